"""A bag behaves like the array of all its tiles."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import examples

from slideio_pipe import TileBag, TileGrid, open_slide
from slideio_pipe.errors import ConfigError
from slideio_pipe.tiles.bag import Bag

N, SIZE = 12, 16
PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
EAGER = np.stack([PIXELS[y : y + SIZE, x : x + SIZE] for y in range(0, 48, SIZE) for x in range(0, 64, SIZE)])


def make_bag(label: Any = 1) -> TileBag:
    view = open_slide(PIXELS, slide_mpp=0.5).view()
    return TileBag(view, TileGrid(view, SIZE), label=label)


BAG = make_bag()
INTEGERS = st.integers(-N - 2, N + 1)
SLICES = st.slices(N)
KEYS = st.one_of(
    INTEGERS,
    INTEGERS.map(np.int64),
    SLICES,
    st.lists(INTEGERS, max_size=6),
    st.lists(INTEGERS, max_size=6).map(lambda values: np.array(values, np.int32)),
    st.lists(st.booleans(), min_size=N, max_size=N),
    st.lists(st.booleans(), min_size=N, max_size=N).map(np.array),
    st.lists(st.booleans(), min_size=3, max_size=3).map(np.array),
    st.lists(st.lists(st.integers(0, N - 1), min_size=2, max_size=2), min_size=1, max_size=3).map(np.array),
    st.integers(0, N - 1).map(np.array),
    st.sampled_from([..., None, True, False, 1.5, "a", np.bool_(True)]),
)
INSIDE = st.one_of(
    st.integers(-SIZE, SIZE - 1),
    st.slices(SIZE),
    st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=3),
    st.sampled_from([..., None]),
)
TUPLES = st.one_of(
    st.tuples(),
    st.tuples(KEYS),
    st.tuples(KEYS, INSIDE),
    st.tuples(KEYS, INSIDE, INSIDE),
    st.tuples(KEYS, st.just(...), st.integers(-3, 2)),
    st.tuples(st.lists(st.integers(0, N - 1), min_size=2, max_size=2), st.just([3, 5])),
    st.tuples(st.integers(0, N - 1), st.slices(SIZE), st.lists(st.integers(0, SIZE - 1), min_size=2, max_size=2)),
)


@examples(400)
@given(KEYS | TUPLES)
def test_indexing_equals_numpy(key: Any) -> None:
    """For any key: the same pixels and shape, or the same kind of error."""
    try:
        expected = EAGER[key]
    except (IndexError, TypeError, ValueError) as error:
        with pytest.raises((type(error), IndexError)):
            BAG[key]
        return
    got = BAG[key]
    assert got.shape == expected.shape
    assert got.dtype == np.uint8
    assert np.array_equal(got, expected)


def test_a_bag_has_the_attributes_of_an_array() -> None:
    """len, shape, dtype, ndim, iteration, conversion."""
    assert (len(BAG), BAG.shape, BAG.dtype, BAG.ndim) == (N, EAGER.shape, np.uint8, 4)
    assert np.array_equal(np.asarray(BAG), EAGER)
    assert np.array_equal(np.asarray(BAG, dtype=np.float32), EAGER.astype(np.float32))
    assert np.array_equal(np.stack(list(BAG)), EAGER)
    assert np.array_equal(next(reversed(list(BAG))), EAGER[-1])
    with pytest.raises(ValueError, match="copy"):
        np.array(BAG, copy=False)
    with pytest.raises(TypeError):
        BAG[0] = 0  # type: ignore[index]


def test_a_tile_bag_satisfies_the_bag_protocol() -> None:
    """Which streams and stores need."""
    assert isinstance(BAG, Bag)


@examples(50)
@given(st.lists(st.integers(0, N - 1), max_size=30), st.integers(1, 4))
def test_read_fills_the_slots_in_the_given_order(indices: list[int], threads: int) -> None:
    """In whatever order tiles are read."""
    out = np.zeros((len(indices), SIZE, SIZE, 3), np.uint8)
    assert BAG.read(indices, out, threads=threads) is out
    assert np.array_equal(out, EAGER[np.array(indices, int)])


def test_reading_outside_is_an_index_error() -> None:
    """As in any sequence."""
    for wrong in (N, -N - 1):
        with pytest.raises(IndexError):
            BAG[wrong]
        with pytest.raises(IndexError):
            BAG.read([0, wrong])


@pytest.mark.parametrize("label", [None, 1, 0.5, "tumour"])
def test_bags_pickle(tmp_path: Path, coordinate_slide: Path, label: Any) -> None:
    """By the slide's path, with label and coordinates."""
    view = open_slide(coordinate_slide).view(mpp=0.5)
    bag = TileBag(view, TileGrid(view, 64, overlap=7, edge="pad"), label=label)
    copy = pickle.loads(pickle.dumps(bag))
    assert copy.label == label
    assert np.array_equal(copy.coords, bag.coords)
    assert np.array_equal(copy[3:9], bag[3:9])
    assert len(pickle.dumps(bag)) < 20_000


def test_bags_of_arrays_pickle() -> None:
    """With the array."""
    assert np.array_equal(pickle.loads(pickle.dumps(BAG))[:], EAGER)


def test_the_repr_has_count_mpp_and_level() -> None:
    """Of the tiles."""
    assert repr(BAG) == "TileBag(array: 12 tiles of 16×16 px at 0.5 µm from level 0, label 1)"
    view = open_slide(PIXELS).view()
    assert repr(TileBag(view, TileGrid(view, 16))) == "TileBag(array: 12 tiles of 16×16 px from level 0)"


def test_provenance_is_json(coordinate_slide: Path) -> None:
    """It has all that is needed to make the bag again."""
    view = open_slide(coordinate_slide).view(mpp=0.5)
    described = TileBag(view, TileGrid(view, 64), label=np.int64(3).item()).provenance()
    read_back = json.loads(json.dumps(described))
    assert read_back["slide"]["name"] == "coordinates.tif"
    assert read_back["slide"]["dimensions"] == [1000, 700]
    assert read_back["slide"]["mpp"] == pytest.approx([0.25, 0.25])
    assert len(read_back["slide"]["fingerprint"]) == 16
    assert read_back["view"]["mpp"] == pytest.approx([0.5, 0.5])
    assert read_back["view"]["affine"] == pytest.approx([2, 0, 0, 0, 2, 0])
    assert read_back["grid"]["stride"] == 64
    assert read_back["label"] == 3


def test_tiles_at_given_coordinates(coordinate_slide: Path) -> None:
    """Level-0 corners, in that order; pixels encode their position."""
    view = open_slide(coordinate_slide).view()
    coords = [[500, 300], [7, 13], [500, 300], [990, 690], [-5, -5]]
    bag = TileBag.from_coords(view, coords, tile_size=32, label="x")
    assert bag.coords.tolist() == coords
    assert bag[0, 0, 0].tolist() == [500 % 256, 300 % 256, (500 // 256) * 16 + 300 // 256]
    assert bag[1, 0, 0].tolist() == [7, 13, 0]
    assert bag[3, 9, 9].tolist() == [999 % 256, 699 % 256, 3 * 16 + 2]
    assert bag[3, 10, 0].tolist() == [255, 255, 255]
    assert bag[4, 4, 5].tolist() == [255, 255, 255]
    assert bag[4, 5, 5].tolist() == [0, 0, 0]


def test_an_empty_bag_is_an_empty_array() -> None:
    """A grid without tissue is no exception."""
    bag = TileBag.from_coords(open_slide(PIXELS).view(), np.zeros((0, 2), np.int64), SIZE)
    assert bag.shape == (0, SIZE, SIZE, 3)
    assert bag[:].shape == (0, SIZE, SIZE, 3)
    assert list(bag) == []
    assert np.asarray(bag).shape == (0, SIZE, SIZE, 3)
    assert bag.read([]).shape == (0, SIZE, SIZE, 3)
    with pytest.raises(IndexError):
        bag[0]
    assert json.dumps(bag.provenance())


def test_a_grid_of_another_view_is_refused() -> None:
    """Its coordinates are of other positions."""
    slide = open_slide(PIXELS, slide_mpp=0.5)
    with pytest.raises(ConfigError, match="the grid was made over"):
        TileBag(slide.view(mpp=1.0), TileGrid(slide.view(), SIZE))
    other = open_slide(PIXELS.copy(), slide_mpp=0.5)
    with pytest.raises(ConfigError, match="the grid was made over"):
        TileBag(slide.view(), TileGrid(other.view(), SIZE))


def test_a_grid_of_an_equal_view_is_accepted(coordinate_slide: Path) -> None:
    """Two views of one slide, of one file opened twice, of one array opened twice."""
    slide = open_slide(coordinate_slide)
    assert len(TileBag(slide.view(mpp=0.5), TileGrid(slide.view(mpp=0.5), 64)))
    assert len(TileBag(open_slide(coordinate_slide).view(), TileGrid(slide.view(), 64)))
    assert len(TileBag(open_slide(PIXELS).view(), TileGrid(open_slide(PIXELS).view(), SIZE)))
