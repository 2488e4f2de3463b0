"""A slide with all sides unequal: reading, drawing, tissue, export and heat maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import albumentationsxl as A
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import map_coordinates
from unequal_slide import MPP, SIZE, TILE, TISSUE, Unequal

from slideio_pipe import (
    Annotations,
    LabelMask,
    Rotate90,
    TileBag,
    TileGrid,
    find_tissue,
    open_bag,
    open_slide,
    save_bag,
)
from slideio_pipe.geometry import Affine, Size
from slideio_pipe.mil.prediction.colour_scale import ColourScale
from slideio_pipe.mil.prediction.heatmap import save_heatmap_pyramid
from slideio_pipe.mil.prediction.score_map import TileScores
from slideio_pipe.mil.prediction.score_regions import write_regions
from slideio_pipe.tiles.mask_files import Annotation

SIDE = 48
LEFT, TOP, WIDTH, HEIGHT = TISSUE


def close(one: np.ndarray, other: np.ndarray, mean: float, p99: float) -> None:
    difference = np.abs(one.astype(np.float64) - other.astype(np.float64))
    assert difference.mean() <= mean
    assert np.percentile(difference, 99) <= p99


def test_x_and_y_are_not_exchanged(unequal: Unequal) -> None:
    """In sizes, stored tiles, resolutions and downsamples."""
    slide = open_slide(unequal.path)
    assert slide.dimensions == SIZE
    assert slide.mpp == pytest.approx(MPP, rel=1e-4)
    assert slide.level_dimensions == tuple(level.shape[1::-1] for level in unequal.levels)
    if unequal.path.suffix == ".tif":
        assert slide.tile_sizes[0] == TILE
    for found, expected in zip(slide.pyramid.downsamples, unequal.downsamples, strict=True):
        assert found == pytest.approx(expected, rel=4e-3)


def test_stored_levels_are_read_as_they_were_written(unequal: Unequal) -> None:
    """Tiles and regions of each level, on stored tiles, across them, and over the edge."""
    slide = open_slide(unequal.path)
    bound = (0, 0) if unequal.lossless else (1.5, 6)
    for number, level in enumerate(unequal.levels):
        dx, dy = slide.pyramid.downsamples[number]
        padded = np.pad(level, ((0, SIDE), (0, SIDE), (0, 0)), constant_values=255)
        view = slide.view(mpp=(slide.mpp.x * dx, slide.mpp.y * dy))
        assert view.choice.level == number
        assert not view.choice.resampled
        bag = TileBag(view, TileGrid(view, SIDE, stride=37, edge="pad"))
        for (x, y), tile in zip(bag.grid.origins, bag[:], strict=True):
            close(tile, padded[y : y + SIDE, x : x + SIDE], *bound)
        assert bag.coords.tolist() == np.floor(bag.grid.origins * (dx, dy) + 0.5).astype(int).tolist()
        close(slide.read_region((30 * dx, 20 * dy), number, (70, 33)), level[20:53, 30:100], *bound)


@pytest.mark.parametrize("mpp", [0.8, 0.55, (0.5, 0.8), (1.0, 3.2), (0.61, 1.03)])
def test_square_and_other_pixels_of_a_view(unequal: Unequal, mpp: Any) -> None:
    """Pillow's antialiased BILINEAR of the view's level, from the exact box of each tile."""
    slide = open_slide(unequal.path)
    view = slide.view(mpp=mpp)
    requested = (mpp, mpp) if isinstance(mpp, float) else mpp
    assert view.mpp == pytest.approx(requested, rel=0.02)
    assert view.size == pytest.approx([side / down for side, down in zip(SIZE, view.downsample, strict=True)], abs=1)
    # The coarsest level that is fine enough along both axes.
    fits = [
        k
        for k, d in enumerate(unequal.downsamples)
        if all(own * f <= m * 1.021 for own, f, m in zip(MPP, d, requested, strict=True))
    ]
    assert view.level == max(fits)
    level = Image.fromarray(unequal.levels[view.level])
    sx, sy = view.choice.shrink
    bag = TileBag(view, TileGrid(view, SIDE, stride=40))
    whole = (0, 0, view.size.width * sx, view.size.height * sy)
    expected = np.asarray(level.resize(tuple(view.size), Image.Resampling.BILINEAR, box=whole))
    for (x, y), tile in zip(bag.grid.origins, bag[:], strict=True):
        # A decoder that shrinks takes means, Pillow a triangle.
        bound = (0.5, 2) if unequal.lossless else (6, 20)
        close(tile, expected[y : y + SIDE, x : x + SIDE], *bound)


@pytest.mark.combinations
@pytest.mark.parametrize("where", ["view", "tile"])
@pytest.mark.parametrize(
    "transform",
    [A.HorizontalFlip(p=1), A.VerticalFlip(p=1), Rotate90(p=1), A.Affine(rotate=(25, 25), p=1)],
    ids=lambda transform: type(transform).__name__,
)
def test_drawn_tiles_show_the_pixels_at_their_positions(unequal: Unequal, transform: Any, where: str) -> None:
    """Level 0, sampled by SciPy at the positions that the bag states."""
    slide = open_slide(unequal.path)
    view = slide.view(mpp=0.4, **({"transform": transform, "seed": 2} if where == "view" else {}))
    grid = TileGrid(view, SIDE, stride=90)
    bag = TileBag(view, grid, **({"tile_transform": transform, "seed": 2} if where == "tile" else {}))
    base = unequal.levels[0].astype(np.float64)
    compared = 0
    for tile, affine in zip(bag[:], bag.affines(np.arange(len(bag))), strict=True):
        columns, rows = np.meshgrid(np.arange(SIDE) + 0.5, np.arange(SIDE) + 0.5)
        x, y = np.moveaxis(affine.apply(np.stack([columns, rows], -1)), -1, 0)
        if not (x.min() > LEFT + 4 and x.max() < LEFT + WIDTH - 4 and y.min() > TOP + 4 and y.max() < TOP + HEIGHT - 4):
            continue
        expected = np.stack([map_coordinates(base[..., k], [y - 0.5, x - 0.5], order=1) for k in range(3)], axis=-1)
        close(tile, expected, 6, 24)  # of a view that is 1.6 × 1.0 coarser: filtered, not sampled
        compared += 1
    assert compared >= 3


def test_tissue_has_its_box_area_and_fractions(unequal: Unequal) -> None:
    """To one mask pixel, in µm², and per tile."""
    slide = open_slide(unequal.path)
    mask = find_tissue(slide, mpp=4.0)
    rows, columns = np.nonzero(mask.mask)
    low, high = mask.affine.apply([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]])
    px, py = mask.affine.scale()
    assert (px, py) == pytest.approx((4 / MPP[0], 4 / MPP[1]), rel=0.03)
    assert low == pytest.approx([LEFT, TOP], abs=1.5 * px)
    assert high == pytest.approx([LEFT + WIDTH, TOP + HEIGHT], abs=1.5 * px)
    area = (WIDTH * MPP[0], HEIGHT * MPP[1])
    assert 0.98 * area[0] * area[1] < mask.area_um2 < (area[0] + 8) * (area[1] + 8) * 1.02  # a mask pixel around
    view = slide.view(mpp=0.8)
    grid = TileGrid(view, SIDE, stride=31, tissue=mask, min_tissue=0.3)
    full = np.kron(mask.mask, np.ones((16, 10)))
    step_x, step_y = px / 10, py / 16
    dx, dy = view.downsample
    for (x, y), part in zip(grid.origins, grid.tissue, strict=True):
        left, right = (round(v * dx / step_x) for v in (x, x + SIDE))
        upper, lower = (round(v * dy / step_y) for v in (y, y + SIDE))
        assert part == pytest.approx(full[upper:lower, left:right].mean(), abs=0.03)
    hit = np.zeros(full.shape, bool)
    for x, y in grid.origins:
        hit[
            round(y * dy / step_y) : round((y + SIDE) * dy / step_y),
            round(x * dx / step_x) : round((x + SIDE) * dx / step_x),
        ] = True
    assert grid.covered() == pytest.approx(full[hit].sum() / full.sum(), abs=0.06)


def test_a_stored_bag_has_the_same_pixels_and_labels(unequal: Unequal, tmp_path: Path) -> None:
    """Pixels, corners, resolution; polygons and masks under tiles, from the bag and from the store."""
    slide = open_slide(unequal.path)
    view = slide.view(mpp=0.8)
    bag = TileBag(view, TileGrid(view, SIDE, stride=40))
    save_bag(bag, tmp_path / "a.bag.zarr", progress=False).close()
    labels = np.zeros(SIZE[::-1], np.uint8)
    labels[TOP : TOP + HEIGHT, LEFT : LEFT + WIDTH] = 1
    mask = LabelMask(labels, Affine())
    ring = np.array([[LEFT, TOP], [LEFT + WIDTH, TOP], [LEFT + WIDTH, TOP + HEIGHT], [LEFT, TOP + HEIGHT]], float)
    drawn = Annotations([Annotation("a", [ring])], {"a": 1})
    with open_bag(tmp_path / "a.bag.zarr") as kept:
        assert np.array_equal(kept[:], bag[:])
        assert kept.view_mpp == pytest.approx((0.8, 0.8), rel=1e-3)
        dx, dy = view.downsample
        for found in (mask.labels(bag), mask.labels(kept), drawn.labels(bag), drawn.labels(kept)):
            for (x, y), tile in zip(bag.grid.origins, found, strict=True):
                across, down = (x + np.arange(SIDE) + 0.5) * dx, (y + np.arange(SIDE) + 0.5) * dy
                inside_x = (across > LEFT) & (across < LEFT + WIDTH)
                inside_y = (down > TOP) & (down < TOP + HEIGHT)
                assert np.array_equal(tile, np.outer(inside_y, inside_x))


def test_a_heat_map_is_over_its_tiles(unequal: Unequal, tmp_path: Path) -> None:
    """Painted pixels, the pyramid and the polygons, compared tile by tile."""
    slide = open_slide(unequal.path)
    view = slide.view(mpp=0.8)
    grid = TileGrid(view, SIDE, stride=SIDE)
    values = np.random.default_rng(0).random(len(grid))
    scale = ColourScale.of_probability("p")
    scores = TileScores(slide.name, values, scale, grid.coords, float(SIDE), view.affine)
    write_regions(scores, tmp_path / "a.geojson")
    dx, dy = view.downsample
    rings = [
        np.array(f["geometry"]["coordinates"][0]) for f in json.loads((tmp_path / "a.geojson").read_text())["features"]
    ]
    for ring, (x, y) in zip(rings, grid.coords, strict=True):
        assert ring.min(axis=0) == pytest.approx([x, y], abs=1e-3)
        assert ring.max(axis=0) == pytest.approx([x + SIDE * dx, y + SIDE * dy], abs=1e-3)
    to_level0 = Affine.scaling(7.0, 5.0)
    blank = np.full((SIZE[1] // 5, SIZE[0] // 7, 3), 255, np.uint8)
    painted = scores.map.paint(blank, to_level0, blend=False)
    for value, (x, y) in zip(values, grid.coords, strict=True):
        column, row = (x + SIDE * dx / 2) / 7, (y + SIDE * dy / 2) / 5
        assert np.abs(painted[int(row), int(column)] - scale.colours(value).astype(int)).max() <= 1
    file = save_heatmap_pyramid(scores, slide, tmp_path / "a.tif", mpp=0.8, blend=False, progress=False)
    shown = open_slide(file)
    assert shown.dimensions == Size(*view.size)
    for value, (x, y) in zip(values, grid.origins, strict=True):
        middle = shown.read_region((x + SIDE // 2 - 2, y + SIDE // 2 - 2), 0, (4, 4)).mean(axis=(0, 1))
        assert np.abs(middle - scale.colours(value).astype(int)).max() <= 4  # JPEG
