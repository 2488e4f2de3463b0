"""Worker processes that read for a loader: the same tiles as threads, and nothing is left of them."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import albumentationsxl as A
import numpy as np
import psutil
import pytest
import tifffile
import torch
from array_bag import formula, wait_until
from array_loader import bag, bags, open_loader
from command_line import run
from cuda_device import CUDA
from made_slides import made_slide
from paths import ROOT
from worker_bags import FatalBag, UnmadeBag

import slideio_pipe as sp
from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.errors import ConfigError, CorruptSlideError, SkippedWarning, WorkerError
from slideio_pipe.mil.config import load_train_config
from slideio_pipe.mil.sources import PixelSource
from slideio_pipe.streaming.loader import BagLoader
from slideio_pipe.streaming.normalize import Normalize
from slideio_pipe.streaming.profile import Clock
from slideio_pipe.streaming.reading_workers import divide

SUPPORT = ROOT / "tests/support"

pytestmark = pytest.mark.system


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    """No worker outlives its loader, and no memory has a name."""
    named = _named_memory()
    yield
    wait_until(lambda: not multiprocessing.active_children())
    assert _named_memory() == named


def _named_memory() -> set[str]:
    place = Path("/dev/shm")
    return {entry for entry in os.listdir(place) if not entry.startswith("sem.")} if place.is_dir() else set()


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_slide(tmp_path_factory.mktemp("workers") / "a.svs", size=(3000, 2200), seed=3).path


CONFIG: dict[str, Any] = {
    "view": {"mpp": "native"},
    "tissue": {"method": "none"},
    "grid": {"tile_size": 128},
    "seed": 5,
}
BAG = A.Compose(
    [sp.RandomAffine(rotate=25), sp.RandomResizedCrop((96, 96), scale=(0.5, 1.5)), sp.ColorJitter(0.2, 0.2)]
)
STAIN = A.Compose([sp.StainJitter()])


def contents(loader: BagLoader) -> dict[tuple[str, int, int], torch.Tensor]:
    """Return every tile of an epoch by the bag's name, the number of its chunk, and its place there."""
    found: dict[tuple[str, int, int], torch.Tensor] = {}
    numbers: dict[str, int] = {}
    for chunk in loader:
        number = numbers[chunk.bag] = numbers.get(chunk.bag, -1) + 1
        found |= {(chunk.bag, number, place): tile for place, tile in enumerate(chunk.tiles)}
    return found


def same(one: dict[Any, torch.Tensor], other: dict[Any, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tile, other[key]) for key, tile in one.items())


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("mix", [0, 2])
def test_tiles_are_those_of_threads(slide: Path, tmp_path: Path, workers: int, mix: int) -> None:
    """Of slides and stores, plain and augmented, in two epochs, in the same places of the same chunks."""
    sp.save_bag(
        sp.TileBag(view := sp.open_slide(slide).view(), sp.TileGrid(view, tile_size=128)), tmp_path / "b.bag.zarr"
    )
    for transforms in ({}, {"tile_transform": BAG, "slide_transform": STAIN}):
        dataset = sp.BagDataset([slide, tmp_path / "b.bag.zarr"], CONFIG, **transforms)
        options: dict[str, Any] = {"device": "cpu", "normalize": None, "chunk_size": 20, "ordered": True, "mix": mix}
        with (
            BagLoader(dataset, workers=workers, **options) as loader,
            BagLoader(dataset, threads=2, **options) as usual,
        ):
            for _ in range(2):
                assert same(contents(loader), contents(usual))


def test_colours_on_the_device(slide: Path) -> None:
    """Workers read without colours."""
    dataset = sp.BagDataset([slide], CONFIG, tile_transform=sp.ColorJitter(0.3, 0.3))
    options: dict[str, Any] = {"device": "cpu", "normalize": None, "colours": "device", "ordered": True}
    with BagLoader(dataset, workers=2, **options) as loader, BagLoader(dataset, threads=1, **options) as usual:
        assert same(contents(loader), contents(usual))


def test_an_epoch_resumes_with_workers(slide: Path) -> None:
    """In the middle of a bag, with another number of workers."""
    dataset = sp.BagDataset([slide], CONFIG, tile_transform=BAG)
    options: dict[str, Any] = {"device": "cpu", "normalize": None, "chunk_size": 20, "ordered": True}
    with BagLoader(dataset, workers=2, **options) as loader:
        chunks = iter(loader)
        begun = [next(chunks).index.tolist() for _ in range(3)]
        state = loader.state_dict()
    with BagLoader(dataset, workers=1, **options) as resumed, BagLoader(dataset, threads=1, **options) as usual:
        resumed.load_state_dict(state)
        rest = list(resumed)
        whole = list(usual)
    assert begun + [chunk.index.tolist() for chunk in rest] == [chunk.index.tolist() for chunk in whole]
    assert all(torch.equal(chunk.tiles, known.tiles) for chunk, known in zip(rest, whole[3:], strict=True))


def test_tiles_of_a_damaged_file(slide: Path, tmp_path: Path) -> None:
    """They are white, listed, and the same as with threads; with "raise" the slide fails with its own error."""
    path = tmp_path / "damaged.svs"
    path.write_bytes(slide.read_bytes())
    with tifffile.TiffFile(path) as tif:
        offset, size = tif.pages[0].dataoffsets[20], tif.pages[0].databytecounts[20]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\0" * size)
    found = []
    for how in ({"workers": 2}, {"threads": 1}):
        with BagLoader(
            sp.BagDataset([path], CONFIG), device="cpu", normalize=None, on_error="white", ordered=True, **how
        ) as loader:
            with pytest.warns(SkippedWarning, match="could not be read, such as tile"):
                tiles = contents(loader)
            found.append((tiles, sorted((failure.tile, str(failure.error)) for failure in loader.failures)))
    assert same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    loader = BagLoader(sp.BagDataset([path], CONFIG), device="cpu", normalize=None, workers=2)
    with loader, pytest.raises(CorruptSlideError, match=r"damaged\.svs"):
        list(loader)


def test_a_worker_that_is_killed_is_replaced(tmp_path: Path) -> None:
    """Its task is done again; no tile is lost or delivered twice."""
    source = bag("a", 200)
    fatal = FatalBag(source.tiles, "a", 90, once=tmp_path / "killed")
    with open_loader([fatal], threads=None, workers=2, ordered=True) as loader:
        tiles = torch.cat([chunk.tiles for chunk in loader]).permute(0, 2, 3, 1).numpy()
        assert (tmp_path / "killed").exists()
        np.testing.assert_array_equal(tiles, source.tiles)
        children = multiprocessing.active_children()
        os.kill(children[0].pid, signal.SIGKILL)  # between two epochs
        again = torch.cat([chunk.tiles for chunk in loader]).permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(again, source.tiles)


def test_a_slide_that_kills_workers_fails_alone() -> None:
    """After two attempts; the others are read."""
    cohort = [bag("a", 40), FatalBag(bag("b", 40).tiles, "b", 17), bag("c", 40)]
    with open_loader(cohort, threads=None, workers=2, max_failures=1) as loader:
        with pytest.warns(SkippedWarning, match="its worker process was killed by SIGKILL"):
            ended = {chunk.bag for chunk in loader if chunk.last and chunk.error is None}
        assert ended == {"a", "c"}
        assert isinstance(loader.failures[0].error, WorkerError)


def test_leaving_an_epoch_keeps_the_workers(slide: Path) -> None:
    """Until ``close``; the next epoch is complete."""
    dataset = sp.BagDataset([slide], CONFIG)
    loader = BagLoader(dataset, device="cpu", normalize=None, chunk_size=10, workers=2)
    next(iter(loader))
    first = {child.pid for child in multiprocessing.active_children()}
    assert len(first) == 2
    assert sum(len(chunk) for chunk in loader) == len(dataset.open(0))
    assert {child.pid for child in multiprocessing.active_children()} == first
    loader.close()
    assert not multiprocessing.active_children()
    assert sum(len(chunk) for chunk in loader) == len(dataset.open(0))
    loader.close()


def test_a_loader_without_references_ends_its_workers() -> None:
    """In the middle of an epoch, and after one."""
    for complete in (False, True):
        loader = open_loader(bags(200), threads=None, workers=2)
        chunks = iter(loader)
        next(chunks)
        if complete:
            list(chunks)
        assert multiprocessing.active_children()
        del chunks, loader
        wait_until(lambda: not multiprocessing.active_children())


def test_an_iterator_outlives_its_loader() -> None:
    """The epoch is completed, then the processes end."""
    chunks = iter(open_loader(bags(200), threads=None, workers=2))
    assert sum(len(chunk) for chunk in chunks) == 200


def test_stages_of_workers_are_timed(slide: Path) -> None:
    """They are those of the slide's reading, on this process's clock."""
    clock, begun = Clock(spans=True), time.perf_counter()
    with BagLoader(sp.BagDataset([slide], CONFIG), device="cpu", normalize=None, workers=2) as loader:
        loader.watch(clock)
        list(loader)
    assert {"open", "read", "decode"} <= clock.totals.keys()
    spans = [event for event in clock.trace()["traceEvents"] if event["ph"] == "X"]
    assert 0 < max(event["ts"] + event["dur"] for event in spans) / 1e6 < time.perf_counter() - begun


def test_what_cannot_be_sent_is_refused() -> None:
    """With the reason, and a way out."""
    source = bag("a", 20)
    source.before_read = lambda indices: None
    words = r"cannot be sent to a worker process .*lambda.*pass workers=0"
    with open_loader([source], threads=None, workers=1) as loader, pytest.raises(ConfigError, match=words):
        list(loader)


def test_a_bag_that_cannot_be_made_in_a_worker_is_named() -> None:
    """With the reason and a way out; the others are read."""
    cohort = [UnmadeBag(bag("a", 100).tiles, "a"), bag("b", 40)]
    with open_loader(cohort, threads=None, workers=2, max_failures=1) as loader:
        with pytest.warns(SkippedWarning, match=r"a: its bag .*RuntimeError: no licence here.*pass workers=0"):
            assert {chunk.bag for chunk in loader} == {"b"}
        assert isinstance(loader.failures[0].error, ConfigError)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12: the tests are about it
def test_a_forked_process_does_not_use_its_parents_workers() -> None:
    """Both would write into one memory: it starts its own, and leaves the parent's alone."""
    source = bag("a", 200)
    with open_loader([source], threads=None, workers=1, ordered=True) as loader:
        next(iter(loader))
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        child = context.Process(target=_read_all, args=(loader, theirs))
        child.start()
        tiles = torch.cat([chunk.tiles for chunk in loader]).permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(tiles, source.tiles)
        assert ours.poll(120)
        np.testing.assert_array_equal(ours.recv(), source.tiles)
        child.join()
        assert child.exitcode == 0


def _read_all(loader: BagLoader, answer: Any) -> None:
    answer.send(np.concatenate([chunk.tiles.permute(0, 2, 3, 1).numpy() for chunk in loader]))
    loader.close()


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12: the tests are about it
def test_workers_end_although_a_forked_process_has_their_pipes() -> None:
    """By ``close``, and with the loader."""
    for close in (True, False):
        loader = open_loader(bags(20), threads=None, workers=1)
        list(loader)
        (worker,) = multiprocessing.active_children()
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(300,))
        child.start()
        try:
            if close:
                loader.close()
                assert worker.exitcode == 0
            del loader
            wait_until(lambda worker=worker: not worker.is_alive())  # type: ignore[misc]
        finally:
            child.kill()
            child.join()


class _InWorkers(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[torch.Tensor]:
        return (chunk.tiles for chunk in open_loader(bags(20), threads=None, workers=1))


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12: the tests are about it
def test_a_worker_of_a_data_loader_has_no_workers() -> None:
    """It may not start processes, and says so."""
    with pytest.raises(ConfigError, match="such as a worker of a DataLoader; pass workers=0"):
        list(torch.utils.data.DataLoader(_InWorkers(), batch_size=None, num_workers=1))
    gc.collect()  # the traceback keeps the DataLoader, and it its worker


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_chunks_on_a_gpu_are_copied_from_shared_memory() -> None:
    """Asynchronously, because it is page-locked; the workers write to a buffer when it has been copied."""
    source = bag("a", 300, size=(32, 32))
    with open_loader(
        [source], device=CUDA, normalize=Normalize.half(), threads=None, workers=2, ordered=True
    ) as loader:
        for _ in range(2):
            chunks = list(loader)
            for chunk in chunks:
                assert torch.equal(chunk.tiles.cpu(), formula(source.tiles[chunk.index]))
        workers = loader._epochs._workers
        assert workers is not None
        assert all(buffer.is_pinned() for buffer in workers.buffers)
        buffer = workers.buffers[0]
    assert not buffer.is_pinned()  # undone with the workers


SCRIPT = f"""
import os, sys
sys.path[:0] = [{str(SUPPORT)!r}, {str(ROOT)!r}]
from array_loader import bag, open_loader
from worker_bags import SlowBag

def main():
    loader = open_loader([SlowBag(bag("a", 400).tiles, "a", 0.02)], threads=None, workers=2)
    for chunk in loader:
        print("chunk", flush=True)
"""
GUARDED = SCRIPT + '\nif __name__ == "__main__":\n    main()\n'


def run_script(folder: Path, text: str) -> subprocess.Popen[str]:
    path = folder / "script.py"
    path.write_text(text)
    return subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_workers_end_with_a_parent_that_is_ended(tmp_path: Path, number: signal.Signals) -> None:
    """In the middle of an epoch: no process and no memory stays."""
    running = run_script(tmp_path, GUARDED)
    assert running.stdout is not None
    assert running.stdout.readline() == "chunk\n"
    workers = psutil.Process(running.pid).children(recursive=True)
    assert len(workers) >= 2
    running.send_signal(number)
    running.communicate(timeout=60)
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


def test_a_script_without_a_guard_says_so(tmp_path: Path) -> None:
    """It is run again by every worker."""
    running = run_script(tmp_path, SCRIPT + "\nmain()\n")
    _, errors = running.communicate(timeout=120)
    assert running.returncode == 1
    assert "no worker process starts" in errors
    assert 'below `if __name__ == "__main__":`' in errors


@pytest.mark.parametrize("change", [{"workers": -1}, {"workers": 1.5}, {"workers": 2, "threads": 2}])
def test_invalid_numbers_are_refused(change: dict[str, Any]) -> None:
    """Before anything is started."""
    with pytest.raises(ConfigError, match="workers"):
        open_loader(bags(3), **({"threads": None} | change))


def test_memory_counts_the_workers() -> None:
    """They keep as many decoded tiles together as one process, but at least 16 MB each."""
    few, many = (open_loader(bags(3), threads=None, workers=workers).memory for workers in (4, 32))
    assert few.cache_bytes == open_loader(bags(3)).memory.cache_bytes
    assert many.cache_bytes == 32 * 16 * 2**20


def test_columns_are_divided_evenly(slide: Path) -> None:
    """Neighbours in a column of a view stay together; every worker has about as many tiles."""
    view = sp.open_slide(slide).view()
    made = sp.TileBag(view, sp.TileGrid(view, tile_size=64))
    order = made.storage_order(np.arange(len(made)))
    for workers in (2, 3, 5):
        owners = divide(made, order, workers)
        xs = made.coords[order, 0]
        assert all(len(set(owners[xs == x])) == 1 for x in np.unique(xs))
        counts = np.bincount(owners, minlength=workers)
        assert counts.min() > 0.6 * counts.mean()
    assert set(divide(bag("a", 50), np.arange(50), 3)) == {0, 1, 2}  # type: ignore[arg-type]


def test_training_reads_with_workers(slide: Path) -> None:
    """As its settings say: the same tiles as with threads."""
    cohort = Cohort.of([slide])
    both = []
    for workers in (0, 1):
        config = load_train_config(CONFIG | {"encoder": {"source": "small", "workers": workers, "chunk_size": 30}})
        with closing(PixelSource(cohort, torch.device("cpu"), config, torch.Tensor.float, augment=True)) as source:
            (example,) = source.epoch(0, shuffle=True)
            assert example.pixels is not None
            both.append(torch.cat(list(example.pixels)))
    assert torch.equal(*both)


def test_the_command_profiles_workers(slide: Path) -> None:
    """With a number of them, or to find the number."""
    once = json.loads(run("profile", slide, "--mpp", "native", "--workers", 2, "--tiles", 60, "--json").stdout)
    assert (once["workers"], once["threads"]) == (2, 2)
    assert once["stages"]["decode"]["thread_seconds"] > 0
    dataset = sp.BagDataset([slide], CONFIG)
    found = sp.scan_threads(dataset, [1], workers=[1], max_tiles=100, chunk_size=20)
    assert [run.workers for run in found.runs] == [0, 1]
    assert "one worker process" in found.verdict()
    with pytest.raises(ConfigError, match="as numbers of workers"):
        sp.scan_threads(dataset, [1], workers=[0])
