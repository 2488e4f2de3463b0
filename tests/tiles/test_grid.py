"""Grids compared with a naive loop, in exact integers."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import albumentationsxl as A
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import examples

from slideio_pipe import TileGrid, TissueMask, open_slide
from slideio_pipe.errors import AlignedGridWarning, ConfigError, EmptyTissueWarning
from slideio_pipe.geometry import Affine, Size
from slideio_pipe.slides.view import SlideView


def view_of(width: int, height: int, *, mpp: float | None = None, slide_mpp: Any = 0.25) -> SlideView:
    return open_slide(np.zeros((height, width, 3), np.uint8), slide_mpp=slide_mpp).view(mpp=mpp)


def naive_starts(length: int, tile: int, stride: int, edge: str) -> list[int]:
    """Return the starts along one axis, one after the other."""
    starts, at = [], 0
    while at + tile <= length:
        starts.append(at)
        at += stride
    covered = starts[-1] + tile if starts else 0
    if edge == "shift" and covered < length and length >= tile:
        starts.append(length - tile)
    if edge == "pad" and covered < length:
        starts.append(at)
    return starts


@examples(80)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(1, 80),
    st.integers(1, 100),
    st.sampled_from(["drop", "shift", "pad"]),
)
def test_the_grid_equals_a_naive_loop(width: int, height: int, tile: int, stride: int, edge: Any) -> None:
    """Origins, coordinates and indices, in raster order, for any size, stride and edge."""
    view = view_of(width, height)
    if edge != "pad" and (tile > width or tile > height):
        with pytest.raises(ConfigError, match="larger than the slide"):
            TileGrid(view, tile, stride=stride, edge=edge)
        return
    grid = TileGrid(view, tile, stride=stride, edge=edge)
    columns, rows = naive_starts(width, tile, stride, edge), naive_starts(height, tile, stride, edge)
    expected = [((x, y), (c, r)) for r, y in enumerate(rows) for c, x in enumerate(columns)]
    assert [tuple(origin) for origin in grid.origins.tolist()] == [origin for origin, _ in expected]
    assert [tuple(index) for index in grid.index.tolist()] == [index for _, index in expected]
    assert grid.coords.tolist() == grid.origins.tolist()
    assert len(grid) == len(expected)
    assert np.isnan(grid.tissue).all()


@examples(60)
@given(st.integers(20, 200), st.integers(20, 200), st.integers(2, 20), st.data())
def test_edges_cover_the_documented_pixels(width: int, height: int, tile: int, data: st.DataObject) -> None:
    """Without gaps in the stride: "drop" and "shift" stay inside, "shift" and "pad" cover every pixel."""
    stride = data.draw(st.integers(1, tile))
    for edge in ("drop", "shift", "pad"):
        covered = np.zeros((height + tile + stride, width + tile + stride), bool)
        grid = TileGrid(view_of(width, height), tile, stride=stride, edge=edge)  # type: ignore[arg-type]
        for x, y in grid.origins.tolist():
            covered[y : y + tile, x : x + tile] = True
            if edge != "pad":
                assert x + tile <= width
                assert y + tile <= height
        if edge != "drop":
            assert covered[:height, :width].all()


@pytest.mark.parametrize("edge", ["drop", "shift", "pad"])
def test_overlap_is_tile_minus_stride(edge: Any) -> None:
    """Both arguments give the same grid."""
    view = view_of(500, 333)
    one, other = TileGrid(view, 64, overlap=16, edge=edge), TileGrid(view, 64, stride=48, edge=edge)
    assert np.array_equal(one.origins, other.origins)


def test_arrays_are_integers_and_read_only() -> None:
    """float32 would lose pixels beyond 16 million, and a grid is shared."""
    grid = TileGrid(view_of(100, 100), 30)
    assert (grid.origins.dtype, grid.coords.dtype) == (np.int64, np.int64)
    assert (grid.index.dtype, grid.tissue.dtype) == (np.int32, np.float32)
    for array in (grid.origins, grid.coords, grid.index, grid.tissue):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_level0_coordinates_are_mapped_by_the_view() -> None:
    """Per axis, rounded once, halves upwards."""
    view = view_of(1000, 700, slide_mpp=(0.25, 0.5), mpp=0.75)
    grid = TileGrid(view, 33)
    dx, dy = view.downsample
    expected = [[int(np.floor(x * dx + 0.5)), int(np.floor(y * dy + 0.5))] for x, y in grid.origins.tolist()]
    assert grid.coords.tolist() == expected
    assert (dx, dy) == pytest.approx((3.0, 1.5))


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    height, width = draw(st.integers(3, 12)), draw(st.integers(3, 12))
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1))).random((height, width)) < draw(st.floats(0.05, 0.95))


@examples(40)
@given(masks(), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.sampled_from([8, 16, 24]))
def test_min_tissue_equals_a_pixel_count(mask: np.ndarray, least: float, tile: int) -> None:
    """Every mask pixel is 8×8 level-0 px; a tile's fraction is the share of its pixels under the mask."""
    height, width = (side * 8 for side in mask.shape)
    tissue = TissueMask(mask, Affine.scaling(8, 8), Size(width, height))
    full = np.kron(mask, np.ones((8, 8), bool))
    expected = {}
    for y in range(0, height - tile + 1, 8):
        for x in range(0, width - tile + 1, 8):
            share = full[y : y + tile, x : x + tile].mean()
            if share >= least:
                expected[x, y] = share
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptyTissueWarning)
        grid = TileGrid(view_of(width, height), tile, stride=8, tissue=tissue, min_tissue=least)
    assert [tuple(origin) for origin in grid.origins.tolist()] == list(expected)
    assert grid.tissue.tolist() == pytest.approx(list(expected.values()), abs=1e-5)


def test_no_tile_with_enough_tissue_is_a_warning() -> None:
    """The grid is empty, and the warning has the reason."""
    mask = np.zeros((10, 10), bool)
    mask[0, 0] = True
    tissue = TissueMask(mask, Affine.scaling(10, 10), Size(100, 100))
    with pytest.warns(EmptyTissueWarning, match="50% tissue"):
        grid = TileGrid(view_of(100, 100), 50, tissue=tissue)
    assert len(grid) == 0
    assert grid.origins.shape == (0, 2)
    assert grid.tissue.shape == (0,)


@examples(60)
@given(st.lists(st.tuples(st.integers(-20, 399), st.integers(-20, 299)), max_size=20))
def test_given_coordinates_are_kept_in_order(coords: list[tuple[int, int]]) -> None:
    """Level-0 corners are unchanged, with duplicates; tiles begin at them, between view pixels or not."""
    view = view_of(400, 300, mpp=0.5)
    grid = TileGrid.from_coords(view, coords, tile_size=32)
    assert grid.coords.tolist() == [list(corner) for corner in coords]
    assert grid.origins.tolist() == [[x / 2, y / 2] for x, y in coords]
    between = any(x % 2 or y % 2 for x, y in coords)
    assert grid.origins.dtype == (np.float64 if between else np.int64)
    nearest = TileGrid.from_coords(view, coords, tile_size=32, nearest=True)
    assert nearest.origins.tolist() == [[(x + 1) // 2, (y + 1) // 2] for x, y in coords]
    assert nearest.coords.tolist() == grid.coords.tolist()


@pytest.mark.parametrize(
    "coords",
    [
        [[500, 10]],
        [[10, 400]],
        [[-64, 0]],
        [[0, 0], [1_000_000, 0]],
        [[1, 2, 3]],
        [1, 2],
        [["a", "b"]],
        [[True, False]],
        [[np.nan, 0.0]],
        [[np.inf, 0.0]],
    ],
    ids=str,
)
def test_invalid_coordinates_are_refused(coords: Any) -> None:
    """Completely outside the slide, or no coordinates."""
    with pytest.raises(ConfigError) as raised:
        TileGrid.from_coords(view_of(400, 300), coords, tile_size=32)
    assert raised.value.slide == "array"
    assert raised.value.remedy


@pytest.mark.parametrize(
    ("corner", "inside"),
    [((-31, 0), True), ((-32, 0), False), ((0, -32), False), ((399, 299), True), ((400, 0), False), ((0, 300), False)],
)
def test_a_tile_must_share_a_pixel_with_the_slide(corner: tuple[int, int], inside: bool) -> None:
    """A 32-px tile whose last pixel is the slide's first is valid; one that only touches the slide is not."""
    if inside:
        assert TileGrid.from_coords(view_of(400, 300), [corner], tile_size=32).coords.tolist() == [list(corner)]
    else:
        with pytest.raises(ConfigError, match="outside the slide"):
            TileGrid.from_coords(view_of(400, 300), [corner], tile_size=32)


def test_float_coordinates_are_read_exactly() -> None:
    """And listed rounded, not truncated: 10.7 is nearer to 11."""
    grid = TileGrid.from_coords(view_of(100, 100), [[10.7, 3.2]], 32)
    assert grid.coords.tolist() == [[11, 3]]
    assert grid.origins.tolist() == [[10.7, 3.2]]


@pytest.mark.parametrize("mpp", [0.25, 0.5, 0.61, 1.3])
def test_coordinates_of_a_grid_make_the_grid_again(mpp: float) -> None:
    """With ``nearest``, at any resolution: they are the view's pixels, rounded to level-0 px."""
    view = view_of(900, 700, mpp=mpp)
    grid = TileGrid(view, 40, stride=33)
    again = TileGrid.from_coords(view, grid.coords, 40, nearest=True)
    assert np.array_equal(again.origins, grid.origins)
    assert again.origins.dtype == np.int64


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"stride": 0}, "stride"),
        ({"stride": -5}, "stride"),
        ({"overlap": 64}, "overlap must be smaller"),
        ({"overlap": 100}, "overlap must be smaller"),
        ({"overlap": -1}, "overlap"),
        ({"stride": 64, "overlap": 32}, "contradict"),
        ({"tile_size": 0}, "tile_size"),
        ({"tile_size": 1000}, "larger than the slide"),
        ({"tile_size": 350}, "larger than the slide"),
        ({"edge": "wrap"}, "edge"),
        ({"min_tissue": 2}, "min_tissue"),
    ],
)
def test_invalid_grids_are_refused(options: dict[str, Any], reason: str) -> None:
    """With the slide, the reason and a remedy."""
    with pytest.raises(ConfigError, match=reason) as raised:
        TileGrid(view_of(400, 300), **{"tile_size": 64, **options})
    assert raised.value.slide == "array"
    assert raised.value.remedy


def test_a_tile_larger_than_the_slide_can_be_padded() -> None:
    """It is one tile, mostly white."""
    assert TileGrid(view_of(40, 30), 64, edge="pad").origins.tolist() == [[0, 0]]


def test_a_grid_can_be_pickled() -> None:
    """Its provenance is JSON."""
    grid = TileGrid(view_of(400, 300), 64, stride=32)
    assert np.array_equal(pickle.loads(pickle.dumps(grid)).origins, grid.origins)
    assert json.loads(json.dumps(grid.provenance()))["stride"] == 32
    assert repr(grid) == "TileGrid(array: 88 tiles of 11×8, 64 px at 0.25 µm, stride 32)"


def test_a_mask_of_another_slide_is_refused() -> None:
    """Its tissue would select the wrong tiles without an error."""
    view = open_slide(np.zeros((300, 500, 3), np.uint8), slide_mpp=0.5).view()
    other = TissueMask(np.ones((3, 5), bool), Affine.scaling(100, 100), Size(500, 301), "array")
    with pytest.raises(ConfigError, match="is of array, 500×301 px"):
        TileGrid(view, tile_size=100, tissue=other)
    named = TissueMask(np.ones((3, 5), bool), Affine.scaling(100, 100), Size(500, 300), "b.svs")
    with pytest.raises(ConfigError, match=r"is of b\.svs"):
        TileGrid(view, tile_size=100, tissue=named)


def test_covered_is_the_part_of_the_tissue_in_tiles() -> None:
    """Half, if the grid drops the other half at the edge; all, if it pads."""
    view = open_slide(np.zeros((100, 150, 3), np.uint8), slide_mpp=0.5).view()
    mask = TissueMask(np.ones((10, 15), bool), Affine.scaling(10, 10), Size(150, 100), "array")
    assert TileGrid(view, tile_size=100, tissue=mask).covered() == pytest.approx(2 / 3, abs=0.01)
    assert TileGrid(view, tile_size=100, tissue=mask, edge="pad", min_tissue=0.1).covered() == 1


def test_a_slide_in_place_of_a_view_is_refused() -> None:
    """The remedy is to make a view."""
    with pytest.raises(ConfigError, match=r"pass slide\.view"):
        TileGrid(open_slide(np.zeros((300, 500, 3), np.uint8)))  # type: ignore[arg-type]


# --- on the stored tiles


def test_an_aligned_grid_has_whole_stored_tiles(coordinate_slide: Path) -> None:
    """Tile size and stride become multiples of the stored tile, the edge is changed, and a warning says so."""
    view = open_slide(coordinate_slide).view()
    with pytest.warns(AlignedGridWarning, match="tile_size 256 in place of 200, stride 512 in place of 400, edge"):
        grid = TileGrid(view, 200, stride=400, edge="shift", align=True)
    assert (grid.tile_size, grid.config.step, grid.config.edge) == (256, 512, "drop")
    assert grid.origins.tolist() == [[0, 0], [512, 0]]
    assert grid.changes == {"tile_size": (200, 256), "stride": (400, 512), "edge": ("shift", "drop")}
    described = json.loads(json.dumps(grid.provenance()))
    assert described["align"] is True
    assert described["changes"] == {"tile_size": [200, 256], "stride": [400, 512], "edge": ["shift", "drop"]}


def test_an_already_aligned_grid_has_no_warning(coordinate_slide: Path) -> None:
    """Nothing is changed."""
    view = open_slide(coordinate_slide).view()
    grid = TileGrid(view, 256, stride=512, align=True)
    assert grid.changes == {}
    np.testing.assert_array_equal(grid.origins, TileGrid(view, 256, stride=512).origins)


@pytest.mark.parametrize(
    ("requested", "snapped"), [({"stride": 1}, 256), ({"stride": 383}, 256), ({"stride": 385}, 512)]
)
def test_an_aligned_stride_is_the_nearest_multiple(coordinate_slide: Path, requested: dict, snapped: int) -> None:
    """Of the stored tile, and never 0."""
    with pytest.warns(AlignedGridWarning):
        assert TileGrid(open_slide(coordinate_slide).view(), 256, **requested, align=True).config.step == snapped


def test_an_aligned_grid_has_no_overlap(coordinate_slide: Path) -> None:
    """Stored tiles do not overlap."""
    with pytest.warns(AlignedGridWarning, match="stride 256 in place of 192"):
        assert TileGrid(open_slide(coordinate_slide).view(), 256, overlap=64, align=True).config.step == 256


def test_views_that_are_not_stored_cannot_be_aligned(coordinate_slide: Path, tmp_path: Path) -> None:
    """Resampled and augmented views, and strips in place of tiles, are refused with a remedy."""
    slide = open_slide(coordinate_slide)
    with pytest.raises(
        ConfigError, match=r"resampled from level 0 \(2×\).*; pass mpp=0.25, 1 or 4\S*, or leave out align=True"
    ):
        TileGrid(slide.view(mpp=0.5), align=True)
    turned = slide.view(transform=A.Compose([A.HorizontalFlip(p=1)]))
    with pytest.raises(ConfigError, match=r"transform moves pixels.*; leave out align=True"):
        TileGrid(turned, align=True)
    strips = tmp_path / "strips.tif"
    tifffile.imwrite(
        strips, np.zeros((512, 640, 3), np.uint8), photometric="rgb", rowsperstrip=8, compression="deflate"
    )
    with pytest.raises(
        ConfigError, match="level 0 is stored in tiles of 640×8 px, not square ones; leave out align=True"
    ):
        TileGrid(open_slide(strips).view(), align=True)


@pytest.mark.parametrize(("tile", "stride"), [(100, 150), (50, 200), (150, 100), (300, 300)])
def test_covered_tissue_is_counted_pixel_by_pixel(tile: int, stride: int) -> None:
    """Mask pixels of 10 by 25 px on a slide with unequal sides: the part of the tissue's level-0 px in tiles."""
    mask = np.random.default_rng(5).random((16, 70)) < 0.3
    tissue = TissueMask(mask, Affine.scaling(10, 25), Size(700, 400), "array")
    view = open_slide(np.zeros((400, 700, 3), np.uint8), slide_mpp=0.25).view()
    grid = TileGrid(view, tile, stride=stride, edge="shift", tissue=tissue, min_tissue=0.1)
    pixels = np.kron(mask, np.ones((25, 10), bool))
    inside = np.zeros_like(pixels)
    for x, y in grid.coords:
        inside[y : y + tile, x : x + tile] = True
    assert len(grid) > 0
    assert grid.covered() == pytest.approx((pixels & inside).sum() / pixels.sum())
