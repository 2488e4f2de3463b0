"""The end of an epoch, and equal numbers of bags for all processes."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from memory_bag import MemoryBag
from paths import ROOT, SEARCHED, SUPPORT
from torch.utils.data.distributed import DistributedSampler

import slideio_pipe as sp
from slideio_pipe.errors import ConfigError, CorruptSlideError, FailedSlidesError, SkippedWarning


class Named(MemoryBag):
    """A bag with a name; tiles from a given one on cannot be decoded."""

    def __init__(self, name: str, count: int, bad_from: int | None = None) -> None:
        super().__init__(count=count)
        self.name, self.bad_from = name, bad_from

    def read(self, indices: Any, out: Any = None, *, threads: int = 1) -> Any:
        if self.bad_from is not None and max(indices) >= self.bad_from:
            raise CorruptSlideError("is damaged", slide=self.name)
        return super().read(indices, out, threads=threads)


class Named32(Named):
    """One whose tiles are large enough for a small network."""

    def __init__(self, name: str, count: int) -> None:
        super().__init__(name, count)
        self.tiles = self.tiles.repeat(8, axis=1).repeat(8, axis=2)
        self.shape = self.tiles.shape


def bags(*counts: int, bad: Iterable[int] = (), bad_from: int = 0) -> list[Named]:
    return [Named(f"b{k}", count, bad_from if k in bad else None) for k, count in enumerate(counts)]


def open_loader(cohort: Any, **changes: Any) -> sp.BagLoader:
    usual = {"device": "cpu", "normalize": None, "chunk_size": 10, "threads": 2, "ordered": True, "shuffle": True}
    return sp.BagLoader(sp.BagDataset(cohort, {"max_tiles": 25}), **(usual | changes))


def described(items: Iterable[Any]) -> list[tuple[str, list[int]]]:
    return [(item.bag, item.index.tolist()) for item in items]


def by_islice(items: Iterator[Any], count: int) -> list[Any]:
    return list(itertools.islice(items, count))


def by_zip(items: Iterator[Any], count: int) -> list[Any]:
    return [item for _, item in zip(range(count), items, strict=False)]


def by_next(items: Iterator[Any], count: int) -> list[Any]:
    return [next(items) for _ in range(count)]


@pytest.mark.parametrize("take", [by_islice, by_zip, by_next])
@pytest.mark.parametrize("kind", ["bags", "chunks", "interleaved"])
def test_an_epoch_taken_by_count_ends(kind: str, take: Callable[[Iterator[Any], int], list[Any]]) -> None:
    """A loop that takes exactly as many items as exist has the same epochs as one that runs to the end."""
    options = {"interleave": 2} if kind == "interleaved" else {}
    cohort = bags(40, 31, 9, 60)
    exhausted, counted = open_loader(cohort, **options), open_loader(cohort, **options)

    def start(loader: sp.BagLoader) -> Any:
        return loader.bags() if kind == "bags" else iter(loader)

    epochs = [described(start(exhausted)) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    kept = []  # iterators that are not exhausted, and still referenced
    for number, epoch in enumerate(epochs):
        kept.append(start(counted))
        assert described(take(kept[-1], len(epoch))) == epoch
        assert counted.epoch == number + 1
    assert all(next(items, None) is None for items in kept)


@pytest.mark.parametrize("whole", [False, True])
def test_a_state_after_the_last_item_is_of_the_next_epoch(whole: bool) -> None:
    """Resumed in a loop or by count, it begins the next epoch and never an empty one."""
    cohort = bags(40, 31, 9)
    loader, resumed = open_loader(cohort), open_loader(cohort)
    for _ in range(2):
        for _item in loader.bags() if whole else loader:
            state = json.loads(json.dumps(loader.state_dict(whole_bags=whole)))
    third = described(loader)
    resumed.load_state_dict(state)
    assert resumed.epoch == 2
    assert described(resumed) == third


def test_a_state_of_an_earlier_version_without_rest_is_of_the_next_epoch() -> None:
    """They ended an epoch one item later."""
    loader = open_loader(bags(4, 5))
    state = loader.state_dict() | {"finished": [0, 1]}
    for key in ("extra", "marked"):
        del state[key]
    loader.load_state_dict(state)
    assert (loader.epoch, len(list(loader))) == (1, 2)


def test_an_unused_iterator_is_no_epoch() -> None:
    """Trainers make some; a loaded state is not lost to one either."""
    cohort = bags(40, 31)
    loader, plain = open_loader(cohort), open_loader(cohort)
    first = described(plain)
    for _ in range(3):
        iter(loader)
    chunks = iter(loader)
    assert described(itertools.islice(chunks, 2)) == first[:2]
    state = loader.state_dict()
    chunks.close()
    loader.load_state_dict(state)
    iter(loader)
    assert described(loader) == first[2:]
    assert loader.epoch == 1


def test_failures_of_an_epoch_taken_by_count_are_a_warning() -> None:
    """With the last item; the list is kept until the next epoch."""
    loader = open_loader(bags(40, 9, 31, bad=[1]), shuffle=False, max_failures=1)
    chunks = iter(loader)
    with pytest.warns(SkippedWarning, match="1 slide could not be read"):
        assert len(by_next(chunks, 6)) == 6
    with pytest.raises(FailedSlidesError, match="1 of 3 slides failed"):
        loader.raise_failures()


def test_len_of_loaders(tmp_path: Path) -> None:
    """Of bags always, of chunks if no slide has to be opened; a loader is always true."""
    cohort = bags(40, 31, 9)
    loader = open_loader(cohort)
    assert len(loader) == len(list(loader)) == 3 + 3 + 1
    whole = loader.bags()
    assert len(whole) == 3
    assert len(list(whole)) == len(whole) == 3
    stores = [
        sp.save_bag(bag, tmp_path / f"{bag.name}.bag.zarr") and tmp_path / f"{bag.name}.bag.zarr" for bag in cohort
    ]
    assert len(open_loader(stores)) == 7
    sp.write_synthetic_slide(tmp_path / "s.svs", size=(600, 400))
    slides = sp.BagLoader(sp.BagDataset([tmp_path / "s.svs"]), device="cpu", normalize=None)
    with pytest.raises(TypeError, match="not known before the slides are opened"):
        len(slides)
    assert slides
    assert len(slides.bags()) == 1


# -- processes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("even", ["drop", "pad"])
@pytest.mark.parametrize("count", [4, 5, 6, 7, 11])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_shares_equal_torchs_distributed_sampler(even: str, count: int, world_size: int) -> None:
    """For dropping and padding."""
    cohort = bags(*[3] * count)
    for rank in range(world_size):
        sampler = DistributedSampler(cohort, world_size, rank, shuffle=False, drop_last=even == "drop")
        loader = open_loader(cohort, shuffle=False, rank=rank, world_size=world_size, even=even)
        assert loader.order() == list(sampler)
        assert len(loader.bags()) == len(sampler)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_more_processes_than_slides(count: int) -> None:
    """ "pad" gives each a bag, "drop" would leave none and is refused, "none" leaves some without."""
    cohort = bags(*[3] * count)

    def orders(even: str) -> list[list[int]]:
        return [open_loader(cohort, shuffle=False, rank=r, world_size=4, even=even).order() for r in range(4)]

    assert orders("pad") == [[k % count] for k in range(4)]
    assert orders("none") == [[k] if k < count else [] for k in range(4)]
    with pytest.raises(ConfigError, match=f'{count} slides for 4 processes.*even="pad"'):
        orders("drop")


def test_slides_that_are_in_no_epoch_are_a_warning() -> None:
    """Without shuffling they would be the same in all epochs; shuffled, every slide is used."""
    cohort = bags(*[3] * 5)
    loader = open_loader(cohort, shuffle=False, rank=0, world_size=2)
    with pytest.warns(SkippedWarning, match="1 of 5 slides are in no epoch.*b4"):
        list(loader)
    list(loader)  # warned of once, by one process: any other warning is an error
    list(open_loader(cohort, shuffle=False, rank=1, world_size=2))
    loaders = [open_loader(cohort, rank=rank, world_size=2) for rank in range(2)]
    seen: set[int] = set()
    for epoch in range(8):
        for loader in loaders:
            loader.set_epoch(epoch)
            seen.update(loader.order())
    assert seen == set(range(5))


def test_a_loader_may_be_older_than_the_process_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A Trainer starts the group in fit: the rank is looked up when an epoch starts."""
    loader = open_loader(bags(3, 3, 3, 3))
    assert (loader.rank, loader.world_size, len(loader.bags())) == (0, 1, 4)
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'init'}", rank=0, world_size=1)
    try:
        for name, value in (("get_rank", 1), ("get_world_size", 2)):
            monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
        assert (loader.rank, loader.world_size, len(loader.bags())) == (1, 2, 2)
        assert len(list(loader)) == 2
    finally:
        monkeypatch.undo()
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("even", ["drop", "pad", "none"])
@pytest.mark.parametrize("kind", ["bags", "chunks"])
@pytest.mark.parametrize("bad_from", [0, 20])
def test_a_slide_that_fails_is_replaced(even: str, kind: str, bad_from: int) -> None:
    """Every process has the planned number of bags; another bag of its own replaces the failed one."""
    cohort = bags(31, 22, 25, 32, 24, 23, bad=[2], bad_from=bad_from)  # of rank 0
    loader = open_loader(cohort, shuffle=False, rank=0, world_size=2, even=even, max_failures=1)
    whole = loader.bags() if kind == "bags" else None
    with pytest.warns(SkippedWarning, match="1 slide could not be read"):
        items = list(loader) if whole is None else list(whole)
    ends = [item.bag for item in items if kind == "bags" or item.last]
    marked = ["b2"] if kind == "chunks" and bad_from else []  # it ends midway, and counts
    substitute = [] if even == "none" or marked else ["b0"]
    assert ends == ["b0", *marked, "b4", *substitute]
    assert loader.epoch == 1
    assert [failure.slide for failure in loader.failures] == ["b2"]
    if even != "none":
        assert len(ends) == len(loader.bags()) == 3


def test_a_replacement_is_resumed() -> None:
    """A state between the failure and the end has the replacement."""
    cohort = bags(10, 10, 10, 10, 10, 10, bad=[0])

    def start() -> sp.BagLoader:
        return open_loader(cohort, shuffle=False, rank=0, world_size=2, max_failures=1, chunk_size=4)

    loader, left = start(), start()
    with pytest.warns(SkippedWarning):
        everything = described(loader)
    assert [name for name, _ in everything] == ["b2"] * 3 + ["b4"] * 3 + ["b2"] * 3
    for stop in range(1, 9):
        left.set_epoch(0)
        chunks = iter(left)
        begun = described(itertools.islice(chunks, stop))
        state = json.loads(json.dumps(left.state_dict()))
        chunks.close()
        resumed = start()
        resumed.load_state_dict(state)
        assert begun + described(resumed) == everything
        assert resumed.epoch == 1


def test_bags_of_other_processes_replace_unreadable_ones() -> None:
    """If all slides of a process fail; if all of the cohort do, it is an error."""
    cohort = bags(3, 4, 5, 6, bad=[0, 2])
    loader = open_loader(cohort, shuffle=False, rank=0, world_size=2, max_failures=2)
    with pytest.warns(SkippedWarning):
        assert [bag.bag for bag in loader.bags()] == ["b1", "b3"]
    worse = open_loader(bags(3, 4, bad=[0, 1]), shuffle=False, rank=0, world_size=2, max_failures=5)
    with pytest.raises(FailedSlidesError, match="no slide can be read"):
        list(worse.bags())


def run_all(commands: list[list[str]], out: Path) -> list[dict[str, Any]]:
    """Run processes side by side with a time limit, and return their output."""
    environment = {**os.environ, "PYTHONPATH": SEARCHED, "OMP_NUM_THREADS": "1"}
    script = [sys.executable, str(SUPPORT / "ranks.py")]
    running = [
        subprocess.Popen(
            [*script, *command], env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for command in commands
    ]
    try:
        for process in running:
            output = process.communicate(timeout=240)
            assert process.returncode == 0, output
    finally:
        for process in running:
            process.kill()
            process.communicate()  # closes its pipes
    return [json.loads(file.read_text()) for file in sorted(out.glob("*.json"))]


@pytest.mark.system
@pytest.mark.parametrize("even", ["drop", "pad"])
@pytest.mark.parametrize("kind", ["bags", "chunks"])
def test_two_processes_of_torch_take_as_many_steps(even: str, kind: str, tmp_path: Path) -> None:
    """Seven bags of different sizes, one unreadable: equal weights, and no process waits for the other."""
    commands = [["torch", str(r), "2", str(tmp_path / "init"), str(tmp_path), even, kind, "b4"] for r in range(2)]
    first, second = run_all(commands, tmp_path)
    expected = 3 if even == "drop" else 4
    for seen in (first, second):
        assert [len(steps) for steps in seen["steps"]] == [expected, expected]
        assert seen["steps"][0] != seen["steps"][1]
        assert seen["place"] == [2, expected]
    assert first["weights"] == second["weights"]
    assert first["weights"][1] != ranks.network()[1].bias.tolist()
    if kind == "chunks":
        assert first["chunks"] != second["chunks"]  # steps are per bag, because chunks differ


@pytest.mark.system
@pytest.mark.parametrize("kind", ["bags", "chunks"])
def test_the_epochs_of_a_trainer_are_those_of_the_loader(kind: str, tmp_path: Path) -> None:
    """A Trainer takes items by count."""
    pytest.importorskip("pytorch_lightning")
    (seen,) = run_all([["lightning", "1", str(tmp_path), "drop", kind, "", "3"]], tmp_path)
    loader = ranks.make_loader("drop", "")
    if kind == "bags":
        expected = [[bag.bag for bag in loader.bags()] for _ in range(3)]
    else:
        expected = [[f"{chunk.bag}:{chunk.index[0]}" for chunk in loader] for _ in range(3)]
    assert seen["steps"] == expected
    assert expected[0] != expected[1] != expected[2]


def test_the_example_draws_other_tiles_in_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a Trainer."""
    lightning = pytest.importorskip("pytorch_lightning")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import lightning_module

    seen: list[list[Any]] = []

    class Watch(lightning.Callback):  # type: ignore[misc]
        def on_train_epoch_start(self, *_: Any) -> None:
            seen.append([])

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, number: int) -> None:
            seen[-1].append((batch.bag, batch.index.tolist()))

    cohort = [Named32(f"b{k}", 9 + k) for k in range(4)]
    config = sp.LoaderConfig.model_validate({"max_tiles": 5})
    taken = lightning_module.Bags(sp.Cohort.of(cohort), config, "cpu", shuffle=True)
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", devices=1, logger=False, callbacks=[Watch()],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the Trainer, about its own settings
        trainer.fit(lightning_module.SlideClassifier(), taken)
    oracle = lightning_module.Bags(sp.Cohort.of(cohort), config, "cpu", shuffle=True)
    epochs = [sorted(epoch) for epoch in seen]  # ready items come first: the order depends on timing, too
    assert epochs == [sorted(described(oracle)) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.system
@pytest.mark.parametrize("broken", ["", "b4"])
def test_two_processes_of_a_trainer_take_as_many_steps(broken: str, tmp_path: Path) -> None:
    """Seven bags: three steps each, no bag twice in an epoch unless one failed, equal weights."""
    pytest.importorskip("pytorch_lightning")
    first, second = run_all([["lightning", "2", str(tmp_path), "drop", "bags", broken, "3"]], tmp_path)
    assert [first["place"], second["place"]] == [[0, 2], [1, 2]]
    for one, other in zip(first["steps"], second["steps"], strict=True):
        assert (len(one), len(other)) == (3, 3)
        assert broken not in one + other
        assert not set(one) & set(other)
    assert first["weights"] == second["weights"]
    assert first["steps"][0] != first["steps"][1]
