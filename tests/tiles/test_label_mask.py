"""Label masks through views and into tiles: nearest pixel, compared with float64 look-ups."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import albumentationsxl as A
import numpy as np
import pytest
import tifffile
from drawn_regions import DRAWN, MOVES, TILES, VIEWS, centres, to_level0, view_of
from fake_slides import blank
from PIL import Image
from scipy.ndimage import distance_transform_edt

from slideio_pipe import Annotations, LabelMask, Rotate90, TileBag, TileGrid, open_slide
from slideio_pipe.errors import ConfigError, OutputExistsError, SlideNotFoundError
from slideio_pipe.geometry import Affine

RNG = np.random.default_rng(0)
COARSE = RNG.integers(0, 5, (70, 90), dtype=np.uint8)  # pixels of ten level-0 px
MASK = LabelMask(COARSE, Affine.scaling(10, 10), {"a": 1, "b": 2, "c": 3, "d": 4}, "x.svs")


def looked_up(mask: LabelMask, points: np.ndarray) -> np.ndarray:
    """Return the label under each level-0 point."""
    inverse = np.linalg.inv(mask.affine.matrix())
    column, row = np.floor((points @ inverse[:2, :2].T + inverse[:2, 2]).T + 1e-6).astype(int)
    height, width = mask.mask.shape
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return np.where(inside, mask.mask[row.clip(0, height - 1), column.clip(0, width - 1)], 0)


@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("view", VIEWS)
def test_labels_of_tiles_are_those_of_their_positions(view: str, tiles: str) -> None:
    """Nearest pixel, at every resolution, drawn or not; outside the slide 0."""
    shown = view_of(*VIEWS[view])
    bag = TileBag(shown, TileGrid(shown, 60, stride=150, edge="pad"), tile_transform=TILES[tiles], seed=2)
    for k, tile in enumerate(MASK.labels(bag)):
        expected = looked_up(MASK, to_level0(bag, k, centres(bag.shape[2], bag.shape[1])))
        assert (tile.ravel() != expected).mean() < 1e-3  # rounding, on a border


def test_labels_on_their_own_grid_are_copied() -> None:
    """At the mask's resolution, tiles are its crops; quarter turns turn them."""
    labels = RNG.integers(0, 256, (120, 160), dtype=np.uint8)
    view = open_slide(np.zeros((120, 160, 3), np.uint8)).view()
    bag = TileBag(view, TileGrid(view, 40))
    mask = LabelMask(labels, Affine())
    for (x, y), tile in zip(bag.coords, mask.labels(bag), strict=True):
        assert np.array_equal(tile, labels[y : y + 40, x : x + 40])
    turned = TileBag(view, bag.grid, tile_transform=Rotate90(p=1))
    matches = [
        sum(np.array_equal(np.rot90(labels[y : y + 40, x : x + 40], turn), tile) for turn in range(4))
        for (x, y), tile in zip(bag.coords, mask.labels(turned), strict=True)
    ]
    assert matches == [1] * len(bag)


def far_from_borders(mask: LabelMask, least: float) -> np.ndarray:
    """Return the pixels with a minimum distance (level-0 px) from other labels and from the edge."""
    far = np.zeros(mask.mask.shape, np.uint8)
    for value in np.unique(mask.mask):
        here = np.pad(mask.mask == value, 1)
        far |= (distance_transform_edt(here, sampling=mask.affine.scale()[::-1])[1:-1, 1:-1] > least).astype(np.uint8)
    return far


def whole_of(mask: LabelMask) -> LabelMask:
    """Return 1 for all pixels of a mask."""
    return LabelMask(np.ones(mask.mask.shape, np.uint8), mask.affine)


@pytest.mark.parametrize("view", VIEWS)
def test_a_mask_maps_through_a_view_and_back(view: str) -> None:
    """Labels equal those of level 0 except for half a pixel along borders."""
    shown = view_of(*VIEWS[view])
    smooth = LabelMask(DRAWN.raster((450, 350), Affine.scaling(2, 2)), Affine.scaling(2, 2))
    seen = smooth.through(shown)
    inverse = np.linalg.inv(seen.affine.matrix())
    corner = inverse @ shown.affine.matrix() @ [*shown.size, 1]
    np.testing.assert_allclose(corner[:2], seen.mask.shape[::-1], atol=1)
    # A label is looked up at the middle of a pixel of the view: as far from a border as that may be, it is the same.
    far = LabelMask(far_from_borders(smooth, np.hypot(*seen.affine.scale()) / 2 + np.hypot(2, 2)), smooth.affine)
    again = seen.raster((450, 350), Affine.scaling(2, 2))
    inside = far.mask.astype(bool) & (whole_of(seen).raster((450, 350), Affine.scaling(2, 2)) == 1)
    assert inside.mean() > 0.5
    assert np.array_equal(again[inside], smooth.mask[inside])
    bag = TileBag(shown, TileGrid(shown, 90))
    sure = far.labels(bag).astype(bool)
    assert sure.mean() > 0.4
    assert np.array_equal(seen.labels(bag)[sure], smooth.labels(bag)[sure])


@pytest.mark.slow
def test_polygons_of_labels_fill_the_same_pixels(tmp_path: Path) -> None:
    """To annotations, to QuPath's GeoJSON and back: every pixel, every class."""
    drawn = Annotations.from_labels(MASK)
    assert drawn.classes == MASK.classes
    assert np.array_equal(drawn.raster((90, 70), Affine.scaling(10, 10)), COARSE)
    drawn.to_geojson(tmp_path / "a.geojson")
    again = Annotations.from_geojson(tmp_path / "a.geojson", MASK.classes)
    assert np.array_equal(again.raster((90, 70), Affine.scaling(10, 10)), COARSE)
    assert Annotations.from_labels(LabelMask(COARSE, Affine())).classes == {"1": 1, "2": 2, "3": 3, "4": 4}


def written(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels, tile=(64, 64), compression="zlib")
    else:
        Image.fromarray(pixels, mode).save(path)
    return path


SLIDE = blank(900, 700)


@pytest.mark.parametrize("kind", ["grey.png", "palette.png", "rgb.png", "panda.tif", "grey.tif", "sixteen.tif"])
def test_labels_are_read_from_files(tmp_path: Path, kind: str) -> None:
    """Grey, palette, equal channels, red only, 16 bits: the same labels, scaled to the slide."""
    pixels = COARSE
    if kind == "palette.png":
        image = Image.fromarray(COARSE, "L").convert("P")
        image.putdata(COARSE.ravel().tolist())
        image.save(tmp_path / kind)
    else:
        if kind == "rgb.png":
            pixels = np.repeat(COARSE[..., None], 3, axis=2)
        elif kind == "panda.tif":
            pixels = np.stack([COARSE, 0 * COARSE, 0 * COARSE], axis=-1)
        elif kind == "sixteen.tif":
            pixels = COARSE.astype(np.uint16)
        written(tmp_path / kind, pixels)
    mask = LabelMask.from_file(tmp_path / kind, SLIDE, {"a": 1})  # type: ignore[arg-type]
    assert np.array_equal(mask.mask, COARSE)
    assert mask.mask.dtype == np.uint8
    assert mask.affine == Affine.scaling(10, 10)


def test_saved_labels_are_read_back(tmp_path: Path) -> None:
    """A grey PNG of the values; an existing one is kept without overwrite."""
    MASK.save(tmp_path / "labels.png")
    assert np.array_equal(LabelMask.from_file(tmp_path / "labels.png", SLIDE).mask, COARSE)  # type: ignore[arg-type]
    with pytest.raises(OutputExistsError):
        MASK.save(tmp_path / "labels.png")


def test_a_memory_map_is_read_in_part(tmp_path: Path) -> None:
    """As much as a tile needs."""
    np.save(tmp_path / "labels.npy", COARSE)
    mapped = np.load(tmp_path / "labels.npy", mmap_mode="r")
    mask = LabelMask(mapped, Affine.scaling(10, 10))
    assert mask.mask is mapped
    assert np.array_equal(mask.raster((900, 700), Affine()), MASK.raster((900, 700), Affine()))


def test_booleans_are_one_class() -> None:
    """True is 1."""
    assert LabelMask(COARSE > 2, Affine()).mask.max() == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LabelMask(np.zeros((2, 2, 3), np.uint8), Affine()), "labels of the shape (2, 2, 3)"),
        (lambda: LabelMask(np.zeros((2, 2)), Affine()), "labels are float64; pass integers"),
        (lambda: LabelMask(np.full((2, 2), 300), Affine()), "labels reach from 300 to 300; number classes 1 to 255"),
        (lambda: LabelMask(np.full((2, 2), -1), Affine()), "labels reach from -1"),
        (lambda: LabelMask(COARSE, Affine(a=0.0)), "singular"),
        (lambda: LabelMask(COARSE, Affine(), {"a": 0}), "class 'a' has the value 0"),
    ],
)
def test_invalid_labels_are_refused(make: Any, message: str) -> None:
    """Shapes, types and values."""
    with pytest.raises(ConfigError) as caught:
        make()
    assert message in str(caught.value)


def test_files_without_labels_are_refused(tmp_path: Path) -> None:
    """Missing, a colour picture, of another shape, no picture."""
    colour = written(tmp_path / "colour.png", RNG.integers(0, 256, (70, 90, 3), dtype=np.uint8))
    other = written(tmp_path / "other.png", np.zeros((70, 70), np.uint8))
    (tmp_path / "text.tif").write_text("no picture")
    for name, error, message in (
        ("none.tif", SlideNotFoundError, "no such file"),
        ("none.png", SlideNotFoundError, "no such file"),
        (colour.name, ConfigError, "a colour picture, not labels"),
        (other.name, ConfigError, "do not have the shape of"),
        ("text.tif", ConfigError, "cannot be read"),
    ):
        with pytest.raises(error, match=message):
            LabelMask.from_file(tmp_path / name, SLIDE)  # type: ignore[arg-type]


def test_label_masks_can_be_pickled_and_plotted() -> None:
    """And printed."""
    assert np.array_equal(pickle.loads(pickle.dumps(MASK)).mask, COARSE)
    assert repr(MASK) == "LabelMask(x.svs: 90x70 px, 1 a, 2 b, 3 c, 4 d)"
    shown = np.asarray(MASK.plot(50, titled=False))
    assert shown.shape == (35, 45, 3)
    assert np.array_equal((shown == 255).all(axis=-1), COARSE[::2, ::2] == 0)


def test_tiles_and_labels_share_one_draw() -> None:
    """In two reads of the same bag, and for labels before pixels."""
    view = view_of()
    transform = A.Compose([MOVES])
    first = TileBag(view, TileGrid(view, 100), tile_transform=transform, seed=3)
    second = TileBag(view, first.grid, tile_transform=transform, seed=3)
    labels = MASK.labels(first)
    assert np.array_equal(first[:], second[:])
    assert np.array_equal(labels, MASK.labels(second))
