"""Every tile of a cohort once, with bounded memory; ranks, epochs, states and failures."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import albumentationsxl as A
import numpy as np
import psutil
import pytest
import tifffile
import torch
from array_bag import ArrayBag, fail_from, formula, stream_threads, wait_for_threads, wait_until
from array_loader import bag, bags, open_loader
from cuda_device import CUDA
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import examples
from paths import ROOT, SUPPORT
from pyramids import coordinate_pixels, write_pyramid

import slideio_pipe as sp
from slideio_pipe.errors import ConfigError, CorruptSlideError, FailedSlidesError, SkippedWarning
from slideio_pipe.streaming.dataset import BagDataset
from slideio_pipe.streaming.loader import BagLoader
from slideio_pipe.streaming.normalize import Normalize
from slideio_pipe.streaming.stream import TileBatch

Seen = list[tuple[str, int]]


@pytest.fixture(autouse=True)
def _threads() -> Any:
    """Check that no test leaves a thread running."""
    yield
    wait_for_threads()


def seen(chunks: Iterable[TileBatch]) -> Seen:
    return [(chunk.bag, int(k)) for chunk in chunks for k in chunk.index]


def everything(cohort: Iterable[ArrayBag]) -> Seen:
    return [(b.name, k) for b in cohort for k in range(len(b))]


@examples(40)
@given(
    counts=st.lists(st.integers(1, 70), min_size=1, max_size=6),
    chunk_size=st.integers(1, 40),
    threads=st.integers(1, 4),
    mix=st.integers(0, 3),
    interleave=st.integers(1, 3),
    flags=st.tuples(st.booleans(), st.booleans()),
    world_size=st.integers(1, 3),
)
def test_every_tile_is_delivered_once(
    counts: list[int],
    chunk_size: int,
    threads: int,
    mix: int,
    interleave: int,
    flags: tuple[bool, bool],
    world_size: int,
) -> None:
    """For all settings, by all ranks together, with its own pixels, label and coordinates."""
    cohort = bags(*counts)
    by_name = {b.name: b for b in cohort}
    found: Seen = []
    for rank in range(world_size):
        loader = open_loader(
            cohort,
            chunk_size=chunk_size,
            threads=threads,
            mix=mix,
            interleave=interleave,
            ordered=flags[0],
            shuffle=flags[1],
            rank=rank,
            world_size=world_size,
            even="none",
        )
        ends: Counter[str] = Counter()
        for chunk in loader:
            source = by_name[chunk.bag]
            assert not ends[chunk.bag]  # nothing comes after the end of a bag
            ends[chunk.bag] += chunk.last
            np.testing.assert_array_equal(chunk.tiles.permute(0, 2, 3, 1).numpy(), source.tiles[chunk.index])
            np.testing.assert_array_equal(chunk.coords, source.coords[chunk.index])
            assert chunk.label == source.label
            assert len(chunk) <= chunk_size
            found += [(chunk.bag, int(k)) for k in chunk.index]
        assert len(ends) == len(range(rank, len(counts), world_size))
        assert set(ends.values()) <= {1}
    assert sorted(found) == sorted(everything(cohort))


def test_chunks_of_bags_are_not_interleaved_by_default() -> None:
    """A loop that gathers until ``last`` gathers one bag, ordered or not."""
    for ordered in (False, True):
        names = [chunk.bag for chunk in open_loader(bags(35, 5, 42, 18, 1), ordered=ordered, bags_in_flight=4)]
        assert [name for k, name in enumerate(names) if names[k : k + 1] != names[k - 1 : k]] == sorted(set(names))


def test_interleaved_bags_alternate() -> None:
    """Chunks of that many bags, in a fixed order when ordered."""
    loader = open_loader(bags(40, 40, 20), ordered=True, interleave=2)
    assert [chunk.bag[-1] for chunk in loader] == list("0101010122")


@pytest.mark.parametrize("mix", [0, 1, 3])
def test_ordered_delivery_does_not_depend_on_threads(mix: int) -> None:
    """Shuffled or not; another epoch has another order."""
    cohort = bags(33, 57, 12, 90)

    def run(threads: int, epoch: int) -> Seen:
        loader = open_loader(cohort, {"seed": 5}, threads=threads, ordered=True, shuffle=True, mix=mix)
        loader.set_epoch(epoch)
        return seen(loader)

    assert run(1, 0) == run(4, 0)
    assert run(1, 1) == run(4, 1) != run(1, 0)


def test_the_content_of_chunks_does_not_depend_on_threads() -> None:
    """If not ordered, only their sequence may differ."""
    cohort = bags(64, 100)

    def chunks(threads: int) -> list[Seen]:
        return sorted(seen([chunk]) for chunk in open_loader(cohort, mix=2, threads=threads))

    assert chunks(1) == chunks(4)


def test_mixing_reads_in_storage_order() -> None:
    """Tiles are delivered mixed over the chunks, and read as runs of neighbours."""
    source, reads = bag("a", 80), []
    source.before_read = lambda indices: reads.append(np.asarray(indices).tolist())
    chunks = list(open_loader([source], mix=4, threads=1, ordered=True))
    assert all(run == list(range(run[0], run[0] + len(run))) for run in reads)
    assert [run[0] for run in reads] == sorted(run[0] for run in reads)
    for block in (chunks[:4], chunks[4:]):  # mixed within the block, and only there
        tiles = [k for _, k in seen(block)]
        assert tiles != sorted(tiles)
        assert max(tiles) - min(tiles) == 39
    assert np.ptp(chunks[0].index) > 20


def test_the_first_chunk_does_not_wait_for_the_bag() -> None:
    """When it is delivered, no more was read than the buffer pool holds."""
    source, go_on = bag("huge", 5000), threading.Event()
    read: list[int] = []

    def before_read(indices: np.ndarray) -> None:
        if indices[0] >= 10:
            assert go_on.wait(20)
        read.extend(np.asarray(indices).tolist())

    source.before_read = before_read
    with iter(open_loader([source], threads=2)) as chunks:
        assert len(next(chunks)) == 10
        assert sorted(read) == list(range(10))
        go_on.set()


def test_a_bag_that_opens_slowly_does_not_delay_others() -> None:
    """The next bag's chunks are delivered while the first is being opened."""
    cohort, opened = bags(20, 20), threading.Event()
    loader = open_loader(cohort)
    open_now = loader.dataset.open

    def slowly(number: int, epoch: int | None = None) -> Any:
        if number == 0:
            assert opened.wait(20)
        return open_now(number, epoch)

    loader.dataset.open = slowly  # type: ignore[method-assign]
    chunks = iter(loader)
    assert [next(chunks).bag, next(chunks).bag] == ["bag1", "bag1"]
    opened.set()
    assert [chunk.bag for chunk in chunks] == ["bag0", "bag0"]


def test_the_number_of_open_bags_is_limited() -> None:
    """Of many bags; each is closed at its end."""
    cohort = bags(*[15] * 12)
    loader, now, most = open_loader(cohort, bags_in_flight=3), 0, 0
    opened, closed, lock = loader.dataset.open, loader.dataset.close, threading.Lock()

    def counted(number: int, epoch: int | None = None) -> Any:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        return opened(number, epoch)

    def counted_close(number: int, bag: Any) -> None:
        nonlocal now
        with lock:
            now -= 1
        closed(number, bag)

    loader.dataset.open, loader.dataset.close = counted, counted_close  # type: ignore[method-assign]
    assert len(seen(loader)) == 180
    assert (now, most) == (0, 3)


def test_chunks_are_normalised_float16() -> None:
    """By the formula."""
    source = bag("a", 23)
    chunks = list(open_loader([source], normalize=Normalize.half(), ordered=True))
    tiles = torch.cat([chunk.tiles for chunk in chunks])
    assert torch.equal(tiles, formula(source.tiles))
    assert tiles.is_contiguous(memory_format=torch.channels_last)


# -- epochs, subsamples, ranks -----------------------------------------------------------------------------------


def test_epochs_advance_by_themselves() -> None:
    """Each iteration is an epoch with its own draws; set_epoch returns to one."""
    loader = open_loader(bags(100, 100), {"max_tiles": 10}, ordered=True)
    first, second = seen(loader), seen(loader)
    assert (loader.epoch, len(first), len(second)) == (2, 20, 20)
    assert first != second
    loader.set_epoch(0)
    assert seen(loader) == first


def test_iterating_after_a_break_begins_the_next_epoch() -> None:
    """set_epoch begins the same one again, and a loaded state resumes."""
    loader = open_loader(bags(30), {"max_tiles": 10}, ordered=True, chunk_size=5)
    plain = open_loader(bags(30), {"max_tiles": 10}, ordered=True, chunk_size=5)
    epochs = [seen(plain) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    for epoch in range(2):
        for chunk in loader:
            assert seen([chunk]) == epochs[epoch][:5]
            break
    assert seen(loader) == epochs[2]
    assert loader.epoch == 3
    next(iter(loader))
    loader.set_epoch(2)
    assert seen(loader) == epochs[2]


def test_subsamples_are_drawn_per_bag() -> None:
    """max_tiles different tiles of each bag, in storage order; small bags whole; by the seed."""
    cohort = bags(500, 500, 7)
    loader = open_loader(cohort, {"max_tiles": 50, "seed": 1}, ordered=True)
    chosen = [k for name, k in seen(loader) if name == "bag0"]
    others = [k for name, k in seen(open_loader(cohort, {"max_tiles": 50, "seed": 2})) if name == "bag0"]
    assert len(set(chosen)) == 50
    assert chosen == sorted(chosen)
    assert set(chosen) != set(others)
    assert [len(b) for b in loader.bags()] == [50, 50, 7]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_share_without_overlap(world_size: int) -> None:
    """With ``even="none"`` each bag is of one rank, also shuffled, and numbers differ by one at most."""
    cohort = bags(*[3] * 11)
    loaders = [open_loader(cohort, shuffle=True, rank=r, world_size=world_size, even="none") for r in range(world_size)]
    for epoch in range(2):
        shares = [loader.order() for loader in loaders]
        assert sorted(number for share in shares for number in share) == list(range(11))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert sorted(s for loader in loaders for s in seen(loader)) == sorted(everything(cohort)), epoch


def test_the_rank_is_that_of_torch_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a process group is initialised, the rank need not be passed."""
    for name, value in (("is_initialized", True), ("get_rank", 1), ("get_world_size", 3)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    loader = open_loader(bags(3, 3, 3, 3, 3, 3))
    assert (loader.rank, loader.world_size, loader.order()) == (1, 3, [1, 4])


# -- state -------------------------------------------------------------------------------------------------------


@examples(30)
@given(
    stop=st.integers(0, 30),
    threads=st.integers(1, 4),
    flags=st.tuples(st.booleans(), st.booleans()),
    mix=st.integers(0, 2),
    interleave=st.integers(1, 2),
)
def test_a_resumed_epoch_delivers_the_rest(
    stop: int, threads: int, flags: tuple[bool, bool], mix: int, interleave: int
) -> None:
    """After any chunk, with other threads: together with the delivered chunks, everything once."""
    cohort = bags(33, 8, 61, 27)
    options: dict[str, Any] = {
        "ordered": flags[0], "shuffle": flags[1], "mix": mix, "interleave": interleave, "chunk_size": 7,
    }  # fmt: skip
    loader = open_loader(cohort, threads=threads, **options)
    loader.set_epoch(3)
    first: Seen = []
    for count, chunk in enumerate(loader):
        if count == stop:
            break
        first += seen([chunk])
        state = loader.state_dict()
    else:
        return
    state = json.loads(json.dumps(state if stop else open_state(loader)))
    resumed = open_loader(cohort, threads=2, **options)
    resumed.load_state_dict(state)
    rest = list(resumed)
    assert sorted(first + seen(rest)) == sorted(everything(cohort))
    assert sum(chunk.last for chunk in rest) == 4 - len(state["finished"])
    assert resumed.epoch == 4
    if options["ordered"] and interleave == 1:
        loader.set_epoch(3)
        assert first + seen(rest) == seen(loader)


def open_state(loader: BagLoader) -> dict[str, Any]:
    loader.set_epoch(loader.epoch)
    return loader.state_dict()


def test_a_state_for_whole_bags_repeats_an_incomplete_bag() -> None:
    """For training steps of one bag each."""
    loader = open_loader(bags(30, 30), ordered=True)
    chunks = iter(loader)
    for _ in range(4):
        next(chunks)
    state = loader.state_dict(whole_bags=True)
    chunks.close()
    loader.load_state_dict(state)
    assert seen(loader) == [("bag1", k) for k in range(30)]


def test_iteration_over_bags_resumes_between_bags() -> None:
    """The state between two bags delivers the others."""
    loader = open_loader(bags(30, 12, 25), ordered=True)
    whole = loader.bags()
    assert next(whole).bag == "bag0"
    state = loader.state_dict()
    whole.close()
    loader.load_state_dict(state)
    assert [b.bag for b in loader.bags()] == ["bag1", "bag2"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"chunk_size": 11}, "chunk_size 10, here 11"),
        ({"mix": 2}, "mix 0, here 2"),
        ({"shuffle": True}, "shuffle False"),
        ({"rank": 1, "world_size": 2}, "rank 0, here 1"),
    ],
)
def test_a_state_of_another_loader_is_refused(change: dict[str, Any], words: str) -> None:
    """The error names the difference."""
    state = open_loader(bags(5)).state_dict()
    with pytest.raises(ConfigError, match=words):
        open_loader(bags(5), **change).load_state_dict(state)
    with pytest.raises(ConfigError, match="cohort"):
        open_loader(bags(5, 6)).load_state_dict(state)
    with pytest.raises(ConfigError, match="version"):
        open_loader(bags(5)).load_state_dict({})


# -- whole bags --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", [0, 2])
def test_bags_are_delivered_in_one_tensor(mix: int) -> None:
    """Their tiles are in the bag's own order, with label and coordinates."""
    cohort = bags(35, 4, 60)
    loader = open_loader(cohort, normalize=Normalize.half(), mix=mix, interleave=2, ordered=True)
    for source, whole in zip(cohort, loader.bags(), strict=True):
        assert (whole.bag, whole.label, len(whole)) == (source.name, source.label, len(source))
        assert torch.equal(whole.tiles, formula(source.tiles))
        assert whole.tiles.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_array_equal(whole.coords, source.coords)
        np.testing.assert_array_equal(whole.index, np.arange(len(source)))
    assert loader.epoch == 1


# -- failures ----------------------------------------------------------------------------------------------------


def broken(name: str, count: int, *tiles: int) -> ArrayBag:
    """Return a bag of which some tiles cannot be decoded."""
    made = bag(name, count)

    def before_read(indices: np.ndarray) -> None:
        for k in indices:
            if k in tiles:
                raise CorruptSlideError(f"tile {k} is damaged", slide=name)

    made.before_read = before_read
    return made


def test_a_corrupt_tile_is_raised() -> None:
    """By default its error ends the epoch, after the chunks before it."""
    loader = open_loader([broken("a", 50, 25)], ordered=True)
    chunks = iter(loader)
    assert [next(chunks).index[0] for _ in range(2)] == [0, 10]
    with pytest.raises(CorruptSlideError, match="a: tile 25 is damaged"):
        next(chunks)
    assert [failure.slide for failure in loader.failures] == ["a"]


@pytest.mark.parametrize("mix", [0, 2])
@pytest.mark.parametrize("whole", [False, True])
def test_corrupt_tiles_can_be_white_or_left_out(mix: int, whole: bool) -> None:
    """Only the bad tiles; they are listed with their position, and one warning is issued at the end."""
    source = broken("a", 50, 25, 26, 49)
    for on_error in ("white", "skip"):
        loader = open_loader([source], on_error=on_error, mix=mix, normalize=None)
        with pytest.warns(SkippedWarning, match="3 tiles could not be read, such as tile"):
            parts: list[Any] = list(loader.bags() if whole else loader)
        tiles = np.concatenate([part.tiles.permute(0, 2, 3, 1).numpy() for part in parts])
        index = np.concatenate([part.index for part in parts])
        expected = source.tiles.copy()
        expected[[25, 26, 49]] = 255
        assert sorted(index) == [k for k in range(50) if on_error == "white" or k not in (25, 26, 49)]
        np.testing.assert_array_equal(tiles, expected[index])
        assert sorted(failure.tile for failure in loader.failures if failure.tile is not None) == [25, 26, 49]


def test_a_slide_with_over_a_tenth_of_bad_tiles_fails() -> None:
    """Whatever on_error is."""
    loader = open_loader(
        [broken("a", 50, *range(20, 40)), bag("b", 12)], on_error="white", max_failures=1, ordered=True, threads=1
    )
    with pytest.warns(
        SkippedWarning, match="1 slide"
    ):  # and tiles that were read before an earlier chunk was delivered
        names = [chunk.bag for chunk in loader]
    assert names[-1] == "b"
    with pytest.raises(FailedSlidesError) as caught:
        loader.raise_failures()
    assert "6 of 50 tiles cannot be decoded" in str(caught.value.exceptions[0])


@pytest.mark.parametrize("ordered", [False, True])
def test_slides_that_fail_are_counted(ordered: bool) -> None:
    """Up to max_failures the others are delivered, with one warning and one group of errors."""
    cohort = [bag("a", 30), broken("b", 30, 2), bag("c", 30), broken("d", 30, 29), bag("e", 30)]
    loader = open_loader(cohort, ordered=ordered, max_failures=2)
    first = (
        "b: tile 2" if ordered else "(b: tile 2|d: tile 29)"
    )  # the first that failed, on busy cores the second slide
    with pytest.warns(SkippedWarning, match=f"2 slides could not be read, such as {first} is damaged"):
        chunks = list(loader)
    delivered = [c.bag for c in chunks if c.last and c.error is None]
    assert (delivered if ordered else sorted(delivered)) == ["a", "c", "e"]
    with pytest.raises(FailedSlidesError) as caught:
        loader.raise_failures()
    failed = [error.slide for error in caught.value.exceptions]  # type: ignore[attr-defined]
    assert (failed if ordered else sorted(failed)) == ["b", "d"]
    assert loader.epoch == 1


def test_chunks_before_a_failure_are_complete() -> None:
    """A chunk that is delivered while another one of its bag has failed in part has its own tiles, read to the end."""
    source, delivered = bag("a", 128), threading.Event()

    def before_read(indices: np.ndarray) -> None:
        if 0 in indices:
            raise CorruptSlideError("damaged", slide="a")
        if 16 in indices:  # another run of that chunk, which ends after the other chunk was delivered
            delivered.wait(20)
        time.sleep(0.01)

    def read(loader: BagLoader) -> None:
        for chunk in loader:
            if chunk.bag == "a" and len(chunk):
                np.testing.assert_array_equal(chunk.tiles.permute(0, 2, 3, 1).numpy(), source.tiles[chunk.index])
                delivered.set()

    source.before_read = before_read
    loader = open_loader([source, bag("b", 9)], chunk_size=64, threads=2, max_failures=1)
    with pytest.warns(SkippedWarning, match="damaged"):
        read(loader)
    assert delivered.is_set()


def test_an_epoch_that_is_closed_elsewhere_does_not_end_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread closes the loader when an iterator has begun to wait: the tiles that are missing are an error."""
    loader = open_loader(bags(50))
    chunks = iter(loader)
    next(chunks)
    take = chunks._stage.take
    monkeypatch.setattr(chunks._stage, "take", lambda: (loader.close(), take())[1])
    with pytest.raises(ConfigError, match="the iterator was closed"):
        next(chunks)
    assert loader.epoch == 0


def test_more_failures_than_max_failures_end_the_epoch() -> None:
    """With a group of all errors; with max_failures=0 the error itself is raised."""
    cohort = [broken(name, 5, 0) for name in "abcd"]
    with pytest.raises(FailedSlidesError, match="3 slides failed, 2 may") as caught:
        list(open_loader(cohort, max_failures=2))
    assert len(caught.value.exceptions) == 3
    with pytest.raises(CorruptSlideError, match="tile 0 is damaged") as first:
        list(open_loader(cohort))
    assert "max_failures=5 after slides" in first.value.__notes__[0]  # how to continue nevertheless


def test_a_bag_that_fails_midway_is_marked() -> None:
    """Its last chunk has the error and no tiles, so that its chunks are not joined with the next bag."""
    loader = open_loader([broken("a", 40, 35), bag("b", 10)], ordered=True, max_failures=1)
    with pytest.warns(SkippedWarning):
        chunks = list(loader)
    ends = [(chunk.bag, len(chunk), chunk.error is not None) for chunk in chunks if chunk.last]
    assert ends == [("a", 0, True), ("b", 10, False)]
    assert chunks[3].tiles.shape == (0, 3, 4, 6)
    assert chunks[3].label == 1
    with pytest.warns(SkippedWarning):
        assert [b.bag for b in loader.bags()] == ["b"]


def test_an_error_that_is_not_a_slides_is_raised() -> None:
    """A TypeError in a reader does not count as a failed slide."""
    source = bag("a", 30)
    source.before_read = fail_from(10, TypeError("fault"))
    with pytest.raises(TypeError, match="fault"):
        list(open_loader([source], max_failures=5))


def test_a_state_keeps_failures() -> None:
    """A failed slide is not read again after resumption, and still counts."""
    cohort = [broken("a", 5, 0), bag("b", 20), broken("c", 5, 0)]
    loader = open_loader(cohort, ordered=True, max_failures=1)
    chunks = iter(loader)
    assert next(chunks).bag == "b"
    state = loader.state_dict()
    chunks.close()
    assert state["failed"] == [0]
    loader.load_state_dict(state)
    with pytest.raises(FailedSlidesError, match="2 slides failed, 1 may"):
        list(loader)


def test_bags_of_another_tile_size_fail() -> None:
    """They do not fit into the buffers: the error names the slide."""
    with pytest.raises(ConfigError, match="b: tiles of 5×4 px among those of 6×4 px"):
        list(open_loader([bag("a", 3), bag("b", 3, size=(4, 5))]))


# -- memory and shutdown -----------------------------------------------------------------------------------------


def test_memory_is_stated_before_the_start() -> None:
    """Buffer pool, chunks ahead and cache; the pool has this size, and nothing is decoded beyond it."""
    source = bag("a", 3000)
    loader = open_loader([source], threads=2, prefetch=3, normalize=Normalize.half())
    slot = 10 * 4 * 6 * 3
    assert loader.memory.ring_bytes == 4 * slot
    assert loader.memory.ahead_bytes == 3 * slot * 2
    assert loader.memory.total_bytes == 4 * slot + 3 * slot * 2 + loader.memory.cache_bytes
    with iter(loader) as chunks:
        wait_until(lambda: sum(source.read_sizes) >= 70)
        time.sleep(0.05)
        assert sum(source.read_sizes) == 70  # 3 chunks ahead, 4 slots
        next(chunks)
        wait_until(lambda: sum(source.read_sizes) == 80)


def test_breaking_out_ends_the_threads() -> None:
    """For loops over chunks or bags: the fixture checks for threads."""
    for _ in open_loader(bags(100, 100)):
        break
    for _ in open_loader(bags(100, 100)).bags():
        break


def test_an_exception_in_the_training_step_ends_the_threads() -> None:
    """The exception is raised unchanged."""

    def train() -> None:
        with open_loader(bags(100, 100)) as loader:
            for chunk in loader:
                raise ZeroDivisionError(chunk.bag)

    with pytest.raises(ZeroDivisionError):
        train()
    assert not stream_threads()


def test_a_second_iteration_closes_the_first() -> None:
    """There is one buffer pool: the first iterator then raises an error."""
    loader = open_loader(bags(100))
    first = iter(loader)
    next(first)
    second = iter(loader)
    with pytest.raises(ConfigError, match="closed, perhaps by another one"):
        next(first)
    second.close()


SCRIPTS = {
    "left open": ("next(chunks)", 0, ""),
    "untouched": ("", 0, ""),
    "consumer failed": ("next(chunks); raise SystemExit(3)", 3, ""),
    "interrupted": ("signal.raise_signal(signal.SIGINT)", -2, "KeyboardInterrupt"),
    "interrupted while waiting": (
        "threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\nfor chunk in slow: pass",
        -2,
        "KeyboardInterrupt",
    ),
}


@pytest.mark.system
@pytest.mark.parametrize("case", SCRIPTS)
def test_the_interpreter_exits(case: str) -> None:
    """A program with an open loader in a global variable does not hang or crash at exit."""
    action, code, words = SCRIPTS[case]
    program = f"""
import os, signal, sys, threading, time
sys.path[:0] = [{str(SUPPORT)!r}, {str(ROOT)!r}]
from array_loader import bags, open_loader
chunks, slowly = iter(open_loader(bags(200, 200))), bags(10)
slowly[0].before_read = lambda indices: time.sleep(2)
slow = open_loader(slowly, threads=1)
{action}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Fatal" not in done.stderr


def test_iteration_continues_after_an_interrupted_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A KeyboardInterrupt while waiting loses no chunk."""
    chunks = iter(open_loader(bags(30), ordered=True))
    with monkeypatch.context() as patch:
        patch.setattr(chunks._stage, "take", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            next(chunks)
    assert [chunk.index[0] for chunk in chunks] == [0, 10, 20]


def test_an_iterator_without_references_ends_its_threads() -> None:
    """Also as part of a reference cycle."""
    chunks = iter(open_loader(bags(100)))
    next(chunks)
    cycle: list[Any] = [chunks]
    cycle.append(cycle)
    del chunks, cycle
    gc.collect()
    wait_until(lambda: not stream_threads())


# -- slides ------------------------------------------------------------------------------------------------------


def coordinate_slides(folder: Path, *names: str) -> list[Path]:
    """Write slides of JPEG-free tiles whose pixels encode their coordinates."""
    pixels = coordinate_pixels(900, 700)
    return [write_pyramid(folder / name, pixels, (1,), mpp=0.5, tile=128) for name in names]


PLAIN: dict[str, Any] = {"view": {"mpp": "native"}, "tissue": {"method": "none"}, "grid": {"tile_size": 90}}


@pytest.mark.parametrize("mix", [0, 3])
def test_tiles_of_slides_are_delivered(tmp_path: Path, mix: int) -> None:
    """Off the stored grid, with several open bags and threads: each has its own coordinates."""
    pixels = coordinate_pixels(900, 700)
    paths = coordinate_slides(tmp_path, "a.tif", "b.tif", "c.tif")
    loader = open_loader(paths, PLAIN, mix=mix, shuffle=True, threads=4)
    found: Seen = []
    for chunk in loader:
        for tile, (x, y) in zip(chunk.tiles, chunk.coords, strict=True):
            np.testing.assert_array_equal(tile.permute(1, 2, 0).numpy(), pixels[y : y + 90, x : x + 90])
        found += seen([chunk])
    assert sorted(found) == [(name, k) for name in ("a.tif", "b.tif", "c.tif") for k in range(70)]


def test_files_of_read_slides_are_closed(tmp_path: Path) -> None:
    """When the bag is over, without a collection of garbage."""
    paths = coordinate_slides(tmp_path, *(f"{k}.tif" for k in range(12)))
    opened = []
    gc.collect()
    gc.disable()
    try:
        for chunk in open_loader(paths, PLAIN, chunk_size=100, bags_in_flight=1, ordered=True):
            opened.append(sum(file.path.endswith(".tif") for file in psutil.Process().open_files()))
            del chunk
    finally:
        gc.enable()
    assert max(opened) <= 3


def test_augmented_slides_do_not_depend_on_threads(tmp_path: Path) -> None:
    """Draws depend on seed, epoch, slide and tile: the same pixels, resumed or not, in any thread."""
    paths = coordinate_slides(tmp_path, "a.tif", "b.tif")
    drawn = {"slide_transform": A.Compose([sp.ColorJitter(0.3)]), "tile_transform": A.Compose([sp.Rotate90(p=0.8)])}

    def run(threads: int, mix: int) -> dict[str, torch.Tensor]:
        dataset = BagDataset(paths, PLAIN | {"seed": 3, "max_tiles": 30}, **drawn)
        loader = BagLoader(dataset, device="cpu", normalize=None, chunk_size=7, threads=threads, mix=mix)
        return {whole.bag: whole.tiles for whole in loader.bags()}

    one, other = run(1, 0), run(4, 2)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_colours_on_the_device_equal_those_of_the_host(tmp_path: Path) -> None:
    """To one level, before normalisation."""
    dataset = BagDataset(coordinate_slides(tmp_path, "a.tif"), PLAIN, tile_transform=sp.ColorJitter(0.3, 0.3))
    both = []
    for colours in ("host", "device"):
        loader = BagLoader(dataset, device="cpu", normalize=None, colours=colours)
        loader.set_epoch(0)
        (whole,) = loader.bags()
        both.append(whole.tiles.short())
    assert int((both[0] - both[1]).abs().max()) <= 1


def test_tiles_of_a_damaged_file_are_white_with_on_error(tmp_path: Path) -> None:
    """One stored tile is destroyed: tiles on it are white, all others are unchanged."""
    pixels = coordinate_pixels(900, 700)
    path = write_pyramid(tmp_path / "a.tif", pixels, (1,), mpp=0.5, tile=128, compression="jpeg")
    config = PLAIN | {"grid": {"tile_size": 64}}
    (before,) = open_loader([path], config).bags()
    with tifffile.TiffFile(path) as tif:
        offset, size = tif.pages[0].dataoffsets[9], tif.pages[0].databytecounts[9]  # column 1, row 1
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\0" * size)
    loader = open_loader([path], config, on_error="white")
    with pytest.warns(SkippedWarning, match="4 tiles could not be read, such as tile"):
        (after,) = loader.bags()
    bad = sorted(failure.tile for failure in loader.failures if failure.tile is not None)
    assert before.coords[bad].tolist() == [[128, 128], [192, 128], [128, 192], [192, 192]]
    assert bool((after.tiles[bad] == 255).all())
    others = np.delete(np.arange(len(before)), bad)
    assert torch.equal(before.tiles[others], after.tiles[others])


def test_bad_slides_of_every_kind_are_left_out(tmp_path: Path, shared_data: Path) -> None:
    """Unopenable, without resolution, or without pixels; the good slide is delivered."""
    good, vanished = coordinate_slides(tmp_path, "good.tif", "vanished.tif")
    truncated = tmp_path / "truncated.tif"
    truncated.write_bytes(good.read_bytes()[:2000])
    text = tmp_path / "text.svs"
    text.write_text("no slide")
    no_mpp = write_pyramid(tmp_path / "no_mpp.tif", coordinate_pixels(300, 300), (1,), mpp=None)
    dataset = BagDataset([vanished, truncated, text, no_mpp, good], PLAIN | {"view": {"mpp": 0.5}})
    vanished.unlink()
    loader = BagLoader(dataset, device="cpu", normalize=None, max_failures=4)
    with pytest.warns(SkippedWarning, match="4 slides"):
        assert {chunk.bag for chunk in loader} == {"good.tif"}
    with pytest.raises(FailedSlidesError) as caught:
        loader.raise_failures()
    for name in ("vanished.tif", "truncated.tif", "text.svs", "no_mpp.tif"):
        assert name in str(caught.value)


def test_a_file_that_is_truncated_while_it_is_read_fails(tmp_path: Path) -> None:
    """As one slide; no hang, no crash, no wrong pixels."""
    first, second = coordinate_slides(tmp_path, "a.tif", "b.tif")
    loader = open_loader([first, second], PLAIN, chunk_size=2, ordered=True, on_error="skip", max_failures=1)
    chunks = iter(loader)
    next(chunks)
    with first.open("r+b") as file:
        file.truncate(3000)
    with pytest.warns(SkippedWarning):
        ends = [chunk.bag for chunk in chunks if chunk.last and chunk.error is None]
    assert ends == ["b.tif"]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("mix", [0, 3])
def test_chunks_on_a_gpu_have_the_same_tiles(mix: int) -> None:
    """Through page-locked buffers, also if chunks are kept while the buffers are reused."""
    source = bag("a", 300, size=(32, 32))
    chunks = list(open_loader([source], device=CUDA, normalize=Normalize.half(), mix=mix))
    for chunk in chunks:
        assert torch.equal(chunk.tiles.cpu(), formula(source.tiles[chunk.index]))
    (whole,) = open_loader([source], device=CUDA, normalize=Normalize.half(), mix=mix).bags()
    assert torch.equal(whole.tiles.cpu(), formula(source.tiles))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("interleave", [1, 3])
def test_chunks_and_bags_on_a_gpu_can_be_kept(interleave: int) -> None:
    """After the epoch they still hold their tiles, each in its own memory."""
    sources = {name: bag(name, 20 + 7 * k, size=(16, 24)) for k, name in enumerate("abcdef")}
    loader = open_loader(list(sources.values()), device=CUDA, normalize=Normalize.half(), interleave=interleave)
    for chunk in list(loader):
        assert torch.equal(chunk.tiles.cpu(), formula(sources[chunk.bag].tiles[chunk.index]))
    whole = list(loader.bags())
    assert sorted(each.bag for each in whole) == sorted(sources)
    for each in whole:
        assert torch.equal(each.tiles.cpu(), formula(sources[each.bag].tiles))


@pytest.mark.parametrize(
    "change",
    [
        {"chunk_size": 0},
        {"threads": 0},
        {"prefetch": 0},
        {"bags_in_flight": 0},
        {"interleave": 0},
        {"mix": -1},
        {"max_failures": -1},
        {"on_error": "ignore"},
        {"colours": "gpu"},
        {"device": "nowhere"},
        {"normalize": "imagenet"},
        {"dtype": torch.uint8},
        {"rank": 0},
        {"rank": 2, "world_size": 2},
        {"rank": True, "world_size": 2},
        {"rank": 0, "world_size": 0},
        {"even": "fair"},
    ],
)
def test_invalid_arguments_are_refused(change: dict[str, Any]) -> None:
    """Each of them, at the call."""
    with pytest.raises(ConfigError):
        open_loader(bags(5), **change)


def test_a_loader_needs_a_dataset() -> None:
    """The error for a list of slides says what to pass."""
    with pytest.raises(ConfigError, match=r"BagDataset\(cohort"):
        BagLoader(["a.svs"], device="cpu", normalize=None)  # type: ignore[arg-type]
