"""When the draws of a bag's tiles are made: once for a run of tiles, and kept for their pixels, colours and places."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import albumentationsxl as A
import numpy as np
import pytest

from slideio_pipe import BagDataset, BagLoader, ColorJitter, RandomAffine, TileBag, TileGrid, draw, open_slide, stream
from slideio_pipe.augment import draw_tiles as module
from slideio_pipe.streaming import reading_threads
from slideio_pipe.tiles import drawn_bag

TRANSFORM = A.Compose([RandomAffine(rotate=30), ColorJitter()])
PIXELS = np.random.default_rng(0).integers(0, 256, (400, 500, 3), np.uint8)


def bag_of(**options: Any) -> TileBag:
    """Twenty tiles."""
    view = open_slide(PIXELS, slide_mpp=0.5).view()
    return TileBag(view, TileGrid(view, 100), tile_transform=TRANSFORM, seed=2, **options)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[int]]]:
    """The tiles of every run that is drawn."""
    drawn: list[list[int]] = []
    real = module.draw_tiles

    def noted(*args: Any, tiles: Any, **options: Any) -> Any:
        drawn.append(list(tiles))
        return real(*args, tiles=tiles, **options)

    monkeypatch.setattr(module, "draw_tiles", noted)
    return drawn


def test_tiles_that_are_read_together_are_drawn_together(runs: list[list[int]]) -> None:
    """Also for their affines and colours afterwards, in any order."""
    bag = bag_of()
    assert runs == [[0]]  # the size of a tile
    bag.read([3, 5, -1])
    bag.affines([19, 3])
    assert bag.operations(5) == bag.draw(5).operations
    bag.read_uncoloured([5, 3])
    assert runs == [[0], [3, 5, 19]]


def test_drawing_ahead_draws_for_reads_of_a_few(runs: list[list[int]]) -> None:
    """By any thread; without a transform there is nothing to draw."""
    bag = bag_of()
    bag.plan_ahead(np.arange(20))
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(bag.read, np.arange(20).reshape(5, 4)))
    assert runs == [[0], list(range(20))]
    assert np.array_equal(np.concatenate(parts), bag_of()[:])
    TileBag(bag.view, bag.grid).plan_ahead([1])


def test_draws_are_those_of_each_tile_alone() -> None:
    """In arrays or not, and after the epoch of a bag is changed."""
    bag = bag_of()
    for bag.epoch in (0, 3):
        bag.plan_ahead(range(20))
        key: dict[str, Any] = {"seed": 2, "epoch": bag.epoch, "slide": bag.name, "size": (100, 100)}
        assert [bag.draw(k) for k in range(20)] == [draw(TRANSFORM, tile=k, **key) for k in range(20)]


def test_a_limited_number_of_draws_is_kept(runs: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are dropped first; a run is kept whole."""
    monkeypatch.setattr(drawn_bag, "_DRAWS_KEPT", 6)
    bag = bag_of()
    bag.plan_ahead([1, 2, 3, 4])
    bag.plan_ahead([5, 6, 7])
    del runs[:]
    for tiles in ([5, 6, 7], [2, 4], [1, 2], [2, 1], [10, 11, 12, 13, 14, 15, 16], [10, 16]):
        bag.plan_ahead(tiles)
    assert runs == [[1, 2], [10, 11, 12, 13, 14, 15, 16]]


@pytest.mark.parametrize("colours", ["host", "device"])
def test_streams_draw_batches_together(colours: str, runs: list[list[int]]) -> None:
    """Hundreds of tiles at once, and not again for the colours on the device."""
    with stream(bag_of(), device="cpu", normalize=None, batch_size=9, threads=2, colours=colours) as batches:
        assert sum(len(batch.index) for batch in batches) == 20
    assert sorted(map(len, runs)) == [1, 20]


@pytest.mark.parametrize("colours", ["host", "device"])
@pytest.mark.parametrize(("planned", "mix", "expected"), [(8, 0, [4, 16]), (8, 2, [20]), (256, 0, [20])])
def test_loaders_draw_every_block_once(
    planned: int, mix: int, expected: list[int], colours: str, runs: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers decode eight tiles at a time; at least a chunk, or the chunks that are mixed, are drawn together."""
    monkeypatch.setattr(reading_threads, "PLANNED", planned)
    dataset = BagDataset([bag_of()])
    loader = BagLoader(dataset, device="cpu", normalize=None, chunk_size=16, threads=2, mix=mix, colours=colours)
    assert sum(len(chunk.tiles) for chunk in loader) == 20
    assert sorted(len(run) for run in runs if run != [0]) == expected


def test_planned_tiles_are_the_same_pixels(executor: str) -> None:
    """In any order, by any thread, with and without colours, and of another epoch: a plan is for one."""
    bag, plain = bag_of(), bag_of()
    for bag.epoch in (0, 1):
        plain.epoch = bag.epoch
        expected, uncoloured = plain.read(np.arange(20)), plain.read_uncoloured(np.arange(20))
        bag.plan_ahead(np.arange(20)[::-1])
        with ThreadPoolExecutor(4) as pool:
            parts = list(pool.map(bag.read, np.arange(20).reshape(5, 4)))
        assert np.array_equal(np.concatenate(parts), expected)
        assert np.array_equal(bag.read([19, 0, 19], threads=2), expected[[19, 0, 19]])
        assert np.array_equal(bag.read_uncoloured(np.arange(20)), uncoloured)
        bag.plan_ahead(np.arange(4), colours=False)
        assert np.array_equal(bag.read_uncoloured([3, 1]), uncoloured[[3, 1]])
        assert np.array_equal(bag.read([3, 1, 7]), expected[[3, 1, 7]])


def test_planning_nothing_and_wrong_tiles() -> None:
    """Nothing to do, or NumPy's error."""
    bag = bag_of()
    bag.plan_ahead([])
    with pytest.raises(IndexError):
        bag.plan_ahead([20])


def test_a_limited_number_of_plans_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are dropped first; tiles of two plans, and of none, are read all the same."""
    monkeypatch.setattr(drawn_bag, "_DRAWS_KEPT", 6)
    bag, expected = bag_of(), bag_of()[:]
    for tiles in ([1, 2, 3, 4], [5, 6, 7], [8]):
        bag.plan_ahead(tiles)
    assert sorted(bag._planned) == [3, 4, 5, 6, 7, 8]
    for tiles in ([1, 2], [3, 4], [4, 5], [8, 7, 6]):
        assert np.array_equal(bag.read(tiles), expected[tiles])
