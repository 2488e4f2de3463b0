"""Scores of tiles on a slide: colours, maps, pyramids, GeoJSON and top tiles, compared with plain loops."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pyramids import coordinate_pixels

from slideio_pipe import Annotations, TileBag, TileGrid, open_slide
from slideio_pipe.augment.draw import Draw
from slideio_pipe.errors import ConfigError, OutputExistsError
from slideio_pipe.geometry import Affine, Size
from slideio_pipe.mil.prediction import score_map
from slideio_pipe.mil.prediction.colour_scale import ColourScale
from slideio_pipe.mil.prediction.heatmap import draw_heatmap, save_heatmap_pyramid
from slideio_pipe.mil.prediction.score_map import TileScores
from slideio_pipe.mil.prediction.score_regions import write_regions
from slideio_pipe.mil.prediction.top_tiles import draw_top_tiles
from slideio_pipe.tiles.tissue_mask import TissueMask

PROBABILITY = ColourScale.of_probability("probability 1")
UPRIGHT = Affine.scaling(2, 2)


def scored(tile: int = 64, stride: int = 64, *, affine: Affine = UPRIGHT, side: int = 320) -> TileScores:
    """Return random scores of a grid over a square view, some of its tiles missing."""
    rng = np.random.default_rng(3)
    starts = np.arange(0, side - tile + 1, stride)
    origins = np.array([(x, y) for y in starts for x in starts])
    origins = origins[rng.random(len(origins)) < 0.7]
    coords = np.floor(affine.apply(origins) + 0.5).astype(np.int64)
    return TileScores("s", rng.random(len(coords)), PROBABILITY, coords, float(tile), affine, "predicted 1")


def under(scores: TileScores, x: float, y: float, *, rounded: float = 0.0) -> float | None:
    """Return the mean score of the tiles that contain a position at level 0, by a loop; NaN without tiles.

    None where it is within ``rounded`` (of a tile) of a border, whose place is not known better.
    """
    hit = []
    for corners, value in zip(scores.corners_level0(), scores.values, strict=True):
        (u, v) = np.linalg.solve(np.stack([corners[1] - corners[0], corners[3] - corners[0]], 1), (x, y) - corners[0])
        inside = min(u, v, 1 - u, 1 - v)  # how far, below 0 outside
        if abs(inside) < rounded:
            return None
        if 0 <= u < 1 and 0 <= v < 1:
            hit.append(value)
    return float(np.mean(hit)) if hit else np.nan


TURNED = Affine(1.6, -1.2, 900.0, 1.2, 1.6, 40.0)  # by 37 degrees, 2 level-0 px per view px


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tile", "stride", "affine"),
    [(64, 64, Affine.scaling(2, 2)), (64, 32, Affine.scaling(2, 2)), (64, 48, Affine.scaling(2, 2)), (64, 64, TURNED)],
    ids=["grid", "half", "three quarters", "turned"],
)
def test_painted_pixels_are_the_mean_of_the_tiles_over_them(tile: int, stride: int, affine: Affine) -> None:
    """Compared with a loop over tiles, for tiles that overlap and for turned ones."""
    scores = scored(tile, stride, affine=affine)
    to_level0 = Affine.translation(3, 5) @ Affine.scaling(31, 31)
    painted = scores.map.paint(np.full((28, 40, 3), 255, np.uint8), to_level0, blend=False)
    compared = 0
    for row in range(28):
        for column in range(40):
            x, y = to_level0.apply((column + 0.5, row + 0.5)).tolist()
            value = under(scores, x, y, rounded=0.01 if affine == TURNED else 0.0)  # corners are whole level-0 px
            if value is None:
                continue
            wanted = (255, 255, 255) if np.isnan(value) else PROBABILITY.colours(value).tolist()
            assert np.abs(painted[row, column] - np.array(wanted)).max() <= 1
            compared += 1
    assert compared > 1000


@pytest.mark.parametrize(("tile", "stride"), [(63, 50), (64, 37), (45, 64), (63, 1)])
def test_cells_are_right_if_tile_size_and_step_have_no_common_divisor(tile: int, stride: int) -> None:
    """Sixteen cells per tile: exact wherever no tile's border is within a cell."""
    scores = scored(tile, stride)
    scale = scores.affine.scale()
    cell = tuple(tile / 16 * side for side in scale)
    assert scores.map.affine.scale() == pytest.approx(cell)
    side = [tile * one for one in scale]
    low = np.asarray(scores.coords, float)
    compared = 0
    points = 4000 if stride > 1 else 200  # at a stride of 1 a border is within nearly every cell
    for x, y in np.random.default_rng(0).uniform(low.min(axis=0), low.max(axis=0) + side, (points, 2)):
        beside = np.abs(np.stack([low, low + side]) - (x, y))
        if (beside < np.array(cell)).any():
            continue
        over = ((low < (x, y)) & ((x, y) < low + side)).all(axis=1)
        painted = scores.map.paint(
            np.full((1, 1, 3), 255, np.uint8), Affine.translation(x - 0.5, y - 0.5), blend=False
        )[0, 0]
        wanted = PROBABILITY.colours(scores.values[over].mean()).tolist() if over.any() else (255, 255, 255)
        assert np.abs(painted - np.array(wanted)).max() <= 1
        compared += 1
    assert compared > 200 or stride == 1


def test_the_tissue_of_a_map_is_where_the_mask_has_it() -> None:
    """Pixel for pixel at the mask's own resolution."""
    mask = np.random.default_rng(2).random((30, 40)) > 0.5
    tissue = TissueMask(mask, Affine.scaling(8, 8), Size(320, 240))
    assert np.array_equal(score_map._tissue(tissue, Affine.scaling(8, 8), (30, 40)), mask)


def test_tissue_is_visible_below_the_colours() -> None:
    """Darker tissue has a darker colour; pixels without a tile are unchanged."""
    scores = scored()
    pixels = np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    painted = scores.map.paint(pixels, Affine.scaling(10, 10))
    alone = scores.map.paint(np.full_like(pixels, 255), Affine.scaling(10, 10), blend=False)
    outside = (alone == 255).all(2)
    assert outside.any()
    assert (painted[outside] == pixels[outside]).all()
    grey = pixels[~outside] @ np.array([0.299, 0.587, 0.114])
    part = (painted[~outside].astype(float) - grey[:, None]) / (alone[~outside] - grey[:, None] + 1e-9)
    middle = np.median(part, axis=1)
    assert ((middle > 0.4) & (middle < 0.9)).mean() > 0.95


def test_attention_at_or_below_its_mean_leaves_the_tissue_as_it_is() -> None:
    """Pixel for pixel; above the mean, colours become more opaque as attention rises, without a jump."""
    times_mean = np.array([0.1, 1.0, 1.05, 2.0, 30.0])
    scale = ColourScale.of_attention(times_mean)
    coords = np.array([(k * 100, 0) for k in range(5)])
    scores = TileScores("s", times_mean, scale, coords, 100.0, Affine())
    pixels = np.full((100, 500, 3), (190, 90, 160), np.uint8)
    painted = scores.map.paint(pixels, Affine())
    assert np.array_equal(painted[:, :200], pixels[:, :200])
    changes = [int(np.abs(painted[50, k * 100 + 50].astype(int) - pixels[0, 0]).max()) for k in range(5)]
    assert 0 < changes[2] < 20 < changes[3]
    assert np.abs(painted[50, 450].astype(int) - scale.colours(30.0)).max() < 70
    assert scale.opacity([0.1, 1.0]).tolist() == [0, 0]
    assert 0.5 < scale.opacity(30.0) < 0.8  # nuclei are seen below the highest attention, too


def test_the_bar_has_the_colours_of_its_scale() -> None:
    """With × for times; attention fades to paper at its mean."""
    scale = ColourScale.of_attention(np.array([0.1, 20.0]))
    column = np.asarray(scale.bar(300))[:, 5]
    assert (column == scale.colours(20.0)).all(-1).any()
    assert ((column != 255).any(-1) & (column.min(-1) > 200)).any()
    assert scale.shown(20.0) == "20×"
    assert scale.text(20.0) == "20x"  # as in the classes of QuPath's files


def test_colours_equal_matplotlibs_inferno() -> None:
    """Without its black end; brighter always means higher."""
    matplotlib = pytest.importorskip("matplotlib")
    ours = PROBABILITY.colours(np.linspace(0, 1, 256)).astype(int)
    theirs = matplotlib.colormaps["inferno"](np.linspace(56 / 255, 1, 256))[:, :3] * 255
    assert np.abs(ours - theirs).max() < 5
    assert (np.diff(ours @ [0.299, 0.587, 0.114]) > -1).all()


def test_the_scale_of_attention_shows_no_noise() -> None:
    """Nearly equal tiles have nearly one colour; a tile with far more attention has the last colour."""
    even = ColourScale.of_attention(np.array([0.95, 1.0, 1.05]))
    assert even.position([0.95, 1.05]).max() < 0.04
    peaked = ColourScale.of_attention(np.array([0.1, 0.2, 80.0]))
    assert peaked.position([0.2, 80.0]).tolist() == [0, 1]
    assert peaked.ticks == (1, 2, 5, 10, 20, 50)


def shoelace(ring: np.ndarray) -> float:
    """Return the area of a ring."""
    x, y = ring[:, 0], ring[:, 1]
    return abs(float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2))


@pytest.mark.parametrize("affine", [Affine.scaling(2, 2), TURNED], ids=["upright", "turned"])
def test_each_tile_is_a_polygon_for_qupath(affine: Affine, tmp_path: Path) -> None:
    """With its scores as measurements, in level-0 px, with the class of its range."""
    scores = scored(affine=affine)
    write_regions(scores, tmp_path / "a.geojson", measurements={"attention": scores.values * 2})
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert len(features) == len(scores)
    for k, feature in enumerate(features):
        ring = np.array(feature["geometry"]["coordinates"][0])
        assert ring[0].tolist() == ring[-1].tolist() == scores.coords[k].tolist()
        assert shoelace(ring[:-1]) == pytest.approx((64 * 2) ** 2, rel=1e-4)
        reported = feature["properties"]["measurements"]
        assert reported["probability 1"] == pytest.approx(scores.values[k])
        assert reported["attention"] == pytest.approx(scores.values[k] * 2)
    read = Annotations.from_geojson(tmp_path / "a.geojson")
    names = {region.class_name for region in read.regions}
    assert names <= {f"probability 1 {a:.1g} to {a + 0.2:.1g}" for a in (0, 0.2, 0.4, 0.6, 0.8)}
    with pytest.raises(OutputExistsError):
        write_regions(scores, tmp_path / "a.geojson")


@pytest.mark.parametrize("affine", [Affine.scaling(2, 2), TURNED], ids=["upright", "turned"])
def test_many_tiles_become_regions_of_the_same_area(affine: Affine, tmp_path: Path) -> None:
    """Touching tiles of one range are one polygon; no area is covered twice or left out."""
    scores = scored(affine=affine)
    write_regions(scores, tmp_path / "a.geojson", most_tiles=3)
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert 1 < len(features) < len(scores)
    area = 0.0
    for feature in features:
        outer, *holes = (np.array(ring)[:-1] for ring in feature["geometry"]["coordinates"])
        area += shoelace(outer) - sum(shoelace(hole) for hole in holes)
    assert area == pytest.approx(len(scores) * (64 * 2) ** 2, rel=1e-4)
    assert Annotations.from_geojson(tmp_path / "a.geojson").regions


def test_the_pyramid_is_aligned_with_the_slide(coordinate_slide: Path, tmp_path: Path) -> None:
    """tifffile reads the colours where the tiles are; mpp and size are those of the slide's own view."""
    scores = scored(side=300)
    path = tmp_path / "heat.tif"
    with open_slide(coordinate_slide) as slide:
        save_heatmap_pyramid(scores, slide, path, mpp="native", blend=False, progress=False)
        with open_slide(path) as found:
            assert found.dimensions == slide.dimensions
            assert found.mpp == pytest.approx(slide.mpp)
            assert len(found.level_dimensions) > 1
        with pytest.raises(OutputExistsError):
            save_heatmap_pyramid(scores, slide, path)
        save_heatmap_pyramid(scores, slide, tmp_path / "half.tif", mpp=0.5, progress=False)
        with open_slide(tmp_path / "half.tif") as half:
            assert half.mpp == pytest.approx((0.5, 0.5))
            assert half.dimensions == (500, 350)
    with tifffile.TiffFile(path) as tif:
        assert tif.pages[0].is_tiled
        pixels = tif.pages[0].asarray()
    for x, y in [(64, 64), (200, 64), (330, 200), (460, 460), (500, 330), (900, 650)]:  # middles, far from JPEG's edges
        value = under(scores, x + 0.5, y + 0.5)
        assert value is not None
        wanted = (255, 255, 255) if np.isnan(value) else PROBABILITY.colours(value).tolist()
        np.testing.assert_allclose(pixels[y, x], wanted, atol=6)


def test_scores_of_another_slide_are_refused(coordinate_slide: Path, tmp_path: Path) -> None:
    """Tiles outside would be drawn at wrong places; a JPEG is no pyramid."""
    far = scored(affine=Affine(2, 0, 5000, 0, 2, 0))
    with open_slide(coordinate_slide) as slide:
        with pytest.raises(ConfigError, match="are outside"):
            draw_heatmap(far, slide)
        with pytest.raises(ConfigError, match=r"end it in \.tif"):
            save_heatmap_pyramid(scored(), slide, tmp_path / "a.jpg")


def test_the_picture_has_the_slide_its_scores_and_a_bar(coordinate_slide: Path) -> None:
    """Without a slide, the scores alone."""
    with open_slide(coordinate_slide) as slide:
        drawn = draw_heatmap(scored(side=300), slide, 300)
    alone = draw_heatmap(scored(side=300), None, 300)
    assert drawn.width > 2 * 300 > alone.width > 300


def test_the_highest_tiles_have_the_slides_pixels() -> None:
    """The first equals the slide at its coordinates."""
    pixels = coordinate_pixels(640, 640)
    scores = scored(affine=Affine(), side=300)
    slide = open_slide(pixels, slide_mpp=0.25)
    drawn = np.asarray(draw_top_tiles(scores, slide, 4, tile_px=64))
    x, y = scores.coords[int(np.argmax(scores.values))].tolist()
    top, left = 14 + 24 + 3, 14 + 3  # margin, title, frame
    assert (drawn[top : top + 64, left : left + 64] == pixels[y : y + 64, x : x + 64]).all()
    view = slide.view()
    bag = TileBag.from_coords(view, scores.coords, 64)
    assert (np.asarray(draw_top_tiles(scores, bag, 4, tile_px=64)) == drawn).all()
    with pytest.raises(ConfigError, match="tiles, the prediction"):
        draw_top_tiles(scores, TileBag.from_coords(view, scores.coords[:2], 64), 4)


def test_scores_of_a_turned_view_are_over_the_same_tissue() -> None:
    """Coordinates and affine of a rotated slide's bag agree."""
    slide = open_slide(coordinate_pixels(600, 400), slide_mpp=0.25)
    angle = np.deg2rad(30)
    turn = Affine(np.cos(angle), -np.sin(angle), 220.0, np.sin(angle), np.cos(angle), 10.0)
    view = slide.view(draw=Draw(size=Size(600, 400), canvas=Size(800, 700), affine=turn.as_tuple()))
    grid = TileGrid(view, tile_size=50)
    scores = TileScores("s", np.arange(len(grid)) / len(grid), PROBABILITY, grid.coords, 50.0, view.affine)
    assert np.abs(scores.corners_level0() - grid.corners_level0()).max() <= 0.51
    middles = grid.corners_level0().mean(1)
    for k in range(0, len(grid), 7):
        painted = scores.map.paint(
            np.full((1, 1, 3), 255, np.uint8), Affine.translation(*(middles[k] - 0.5).tolist()), blend=False
        )
        assert painted[0, 0].tolist() == PROBABILITY.colours(scores.values[k]).tolist()
