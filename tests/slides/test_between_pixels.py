"""Tiles and regions that begin between pixels; oracles: OpenSlide, SciPy, Pillow and means in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import albumentationsxl as A
import cv2
import h5py
import numpy as np
import openslide
import pytest
from PIL import Image
from pyramids import write_pyramid
from scipy.ndimage import map_coordinates

from slideio_pipe import (
    Annotations,
    LabelMask,
    Rotate90,
    TileBag,
    TileGrid,
    from_clam,
    from_trident,
    open_bag,
    open_slide,
    save_bag,
    stream,
)
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Affine
from slideio_pipe.slides.view import SlideView
from slideio_pipe.tiles.mask_files import Annotation

WIDTH, HEIGHT, TILE = 1003, 707, 48
RANDOM = np.random.default_rng(5)


def textured(width: int, height: int) -> np.ndarray:
    """Noise as sharp as tissue at 40×: neighbours differ by 10 levels, so that half a pixel shows."""
    noise = cv2.GaussianBlur(RANDOM.integers(0, 256, (height, width, 3)).astype(np.float32), (0, 0), 3.0)
    return np.clip((noise - 128) * 8 + 128, 0, 255).astype(np.uint8)


PIXELS = textured(WIDTH, HEIGHT)
CORNERS = [[64, 128], [101, 203], [333, 72], [406, 411], [517, 299]]


@pytest.fixture(params=["jpeg", "deflate", "lzw", "jpeg2000", "openslide", "array"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Levels of 1003 × 707, 501 × 353 and 250 × 176 px: downsamples are fractions and differ per axis."""
    codec = {"openslide": "deflate", "array": "deflate"}.get(request.param, request.param)
    lossy = {"compressionargs": {"level": 95}} if codec == "jpeg" else {}
    # OpenSlide itself reads levels at whole level-0 px only: there they are of whole downsamples.
    pixels = PIXELS[:704, :1000] if request.param == "openslide" else PIXELS
    return write_pyramid(tmp_path / f"{request.param}.tif", pixels, (1, 2, 4), tile=128, compression=codec, **lossy)


def opened(path: Path, level: int = 0) -> Any:
    """Return the slide by the named reader; an array is one level of it."""
    if path.stem == "array":
        return open_slide(stored(path, level).astype(np.uint8), slide_mpp=0.25)
    return open_slide(path, backend="openslide" if path.stem == "openslide" else "auto")


def stored(path: Path, level: int) -> np.ndarray:
    """Return a level as float64, decoded by OpenSlide, or by Pillow if OpenSlide lacks the codec."""
    if path.stem == "jpeg2000":
        return np.asarray(PIXELS if level == 0 else PIXELS[:: 2**level, :: 2**level], np.float64)
    with openslide.OpenSlide(str(path)) as slide:
        return np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("RGB"), np.float64)


def apart(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Return the difference of pixels: the mean and the 99th percentile, levels."""
    difference = np.abs(one.astype(np.float64) - other)
    return float(difference.mean()), float(np.percentile(difference, 99))


def interpolated(level: np.ndarray, x: float, y: float, width: int, height: int) -> np.ndarray:
    """Return pixels of a level from a position on, bilinear, by SciPy in float64."""
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    found = [map_coordinates(level[..., k], [rows + y, columns + x], order=1, mode="nearest") for k in range(3)]
    return np.stack(found, axis=-1)


@pytest.mark.combinations
@pytest.mark.parametrize("level", [0, 1, 2])
def test_regions_are_interpolated_as_openslide_does(path: Path, level: int) -> None:
    """Corners in level-0 px, whole and fractional, at every level of every reader."""
    slide = opened(path, level)
    own, dimensions = (0, slide.dimensions) if path.stem == "array" else (level, slide.level_dimensions[level])
    pixels, (dx, dy) = stored(path, level), slide.pyramid.downsamples[own]
    for x, y in [*CORNERS, [100.5, 33.25]]:
        if x / dx + 40 > dimensions[0] or y / dy + 30 > dimensions[1]:
            continue
        region = slide.read_region((x, y), own, (40, 30))
        mean, p99 = apart(region, interpolated(pixels, x / dx, y / dy, 40, 30))
        assert mean < 0.6
        assert p99 < 1.5
        if path.stem in ("jpeg", "deflate", "lzw") and level and isinstance(x, int):
            with openslide.OpenSlide(str(path)) as peer:
                theirs = np.asarray(peer.read_region((x, y), level, (40, 30)).convert("RGB"))
                mean_downsample = peer.level_downsamples[level]
            # OpenSlide has one downsample for both axes, their mean: equal positions of the level have equal pixels.
            place = (x * dx / mean_downsample, y * dy / mean_downsample)
            assert apart(slide.read_region(place, level, (40, 30)), theirs)[0] < 0.6


@pytest.mark.combinations
@pytest.mark.parametrize("level", [0, 1, 2])
def test_tiles_of_a_level_are_the_pixels_at_their_corners(path: Path, level: int) -> None:
    """A bag of given corners at a stored resolution: SciPy's bilinear pixels of the stored level."""
    slide = opened(path)
    if level >= slide.level_count:
        pytest.skip("an array has one level")
    view = slide.view(mpp=tuple(0.25 * d for d in slide.pyramid.downsamples[level]))
    assert not view.choice.resampled
    corners = [corner for corner in CORNERS if view.from_level0(corner).max() < 120]
    bag = TileBag.from_coords(view, corners, TILE)
    assert bag.coords.tolist() == corners
    dx, dy = slide.pyramid.downsamples[level]
    for tile, (x, y) in zip(bag[:], corners, strict=True):
        mean, p99 = apart(tile, interpolated(stored(path, level), x / dx, y / dy, TILE, TILE))
        assert mean < 0.6
        assert p99 < 1.5


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_means_begin_at_the_corner(tmp_path: Path, factor: int) -> None:
    """Tiles of a JPEG slide at a half, a quarter and an eighth: the means of level-0 px from each corner on."""
    # Full chroma: a decoder that shrinks does not filter halved chroma as one that doubles it.
    jpeg = {"compression": "jpeg", "compressionargs": {"level": 95}, "subsampling": (1, 1)}
    path = write_pyramid(tmp_path / "a.tif", PIXELS, (1,), tile=128, **jpeg)
    pixels = stored(path, 0)
    corners = [*CORNERS, [130, 262]]  # the last: on the grid of halves
    bag = TileBag.from_coords(open_slide(path).view(mpp=0.25 * factor), corners, TILE)
    read = bag[:]
    for tile, (x, y) in zip(read, corners, strict=True):
        rows, columns = (min(TILE, (side - corner) // factor) for side, corner in ((HEIGHT, y), (WIDTH, x)))
        inside = pixels[y : y + rows * factor, x : x + columns * factor]
        mean, p99 = apart(tile[:rows, :columns], inside.reshape(rows, factor, columns, factor, 3).mean(axis=(1, 3)))
        assert mean < 0.6
        assert p99 < 3
    assert np.array_equal(read[[3, 1]], bag[[3, 1]])
    assert np.array_equal(read, bag.read(np.arange(len(bag)), threads=3))


@pytest.mark.combinations
@pytest.mark.parametrize("factor", [1.5386, 2.0, 2.37, 3.3, 0.8])
def test_between_resolutions_a_tile_is_resized_from_its_own_box(path: Path, factor: float) -> None:
    """Pillow's antialiased BILINEAR of the whole level, from the exact box of the tile."""
    if path.stem == "jpeg" and factor == 2.0:
        pytest.skip("the decoder shrinks: a mean, not a triangle")
    single = open_slide(stored(path, 0).astype(np.uint8), slide_mpp=0.25)
    view = SlideView.at(single, 0.25 * factor) if factor >= 1 else None
    if view is None:
        with pytest.warns(UserWarning, match="interpolated"):
            view = single.view(mpp=0.25 * factor)
    whole = Image.fromarray(stored(path, 0).astype(np.uint8))
    for x, y in CORNERS[:4]:
        box = (x, y, x + TILE * view.downsample[0], y + TILE * view.downsample[1])
        expected = np.asarray(whole.resize((TILE, TILE), Image.Resampling.BILINEAR, box=box)).astype(np.float64)
        tile = TileBag.from_coords(view, [[x, y]], TILE)[0]
        # The filter of a crop of the whole sees beyond the box, Pillow's of the box does not: the border is left out.
        mean, p99 = apart(tile[2:-2, 2:-2], expected[2:-2, 2:-2])
        assert mean < 0.5
        assert p99 <= 1


def shifted(x: int, y: int, step: int) -> tuple[np.ndarray, list[int]]:
    """Return the slide cut so that the corner is ``step`` whole px inside it, and on the grid."""
    return np.ascontiguousarray(PIXELS[y - step :, x - step :]), [step, step]


@pytest.mark.parametrize("factor", [1, 2, 4, 2.5])
@pytest.mark.parametrize(
    "transform",
    [
        A.HorizontalFlip(p=1),
        Rotate90(p=1),
        A.RandomBrightnessContrast(p=1),
        A.Compose([A.VerticalFlip(p=1), A.RandomGamma(p=1)]),
        A.Affine(rotate=(-30, 30), scale=(0.8, 1.2), p=1),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_a_drawn_tile_equals_the_same_tile_on_the_grid(factor: float, transform: Any) -> None:
    """The slide is cut at the corner, so that the tile with the same draw is on the grid."""
    for x, y in CORNERS[1:4]:
        cut, corner = shifted(x, y, 40)
        tiles = []
        for pixels, place in ((PIXELS, [x, y]), (cut, corner)):
            view = open_slide(pixels, slide_mpp=0.25).view(mpp=0.25 * factor)
            tiles.append(TileBag.from_coords(view, [place], TILE, tile_transform=transform, seed=4)[0])
        mean, p99 = apart(*tiles)
        assert mean < 0.5
        assert p99 <= 2


@pytest.mark.parametrize("factor", [1.0, 2.0, 2.37])
def test_streams_stores_threads_and_pickles_have_the_same_pixels(tmp_path: Path, factor: float) -> None:
    """As the bag reads them, and the same coordinates."""
    view = open_slide(PIXELS, slide_mpp=0.25).view(mpp=0.25 * factor)
    bag = TileBag.from_coords(view, CORNERS[:4], TILE)
    assert not np.array_equal(bag[:], TileBag.from_coords(view, CORNERS[:4], TILE, nearest=True)[:]) or factor == 1
    with save_bag(bag, tmp_path / "a.bag.zarr", progress=False) as kept:
        assert np.array_equal(kept[:], bag[:])
        assert np.array_equal(kept.coords, bag.coords)
    found = [batch.tiles for batch in stream(bag, device="cpu", batch_size=3, normalize=None)]
    assert np.array_equal(np.concatenate([np.asarray(tiles.permute(0, 2, 3, 1)) for tiles in found]), bag[:])


def looked_up(labels: np.ndarray, corner: list[int], step: tuple[float, float]) -> np.ndarray:
    """Return the label under every pixel's centre, one by one."""
    found = np.zeros((TILE, TILE), np.uint8)
    for row in range(TILE):
        for column in range(TILE):
            x, y = corner[0] + (column + 0.5) * step[0], corner[1] + (row + 0.5) * step[1]
            if 0 <= x < WIDTH and 0 <= y < HEIGHT:
                found[row, column] = labels[int(y), int(x)]
    return found


@pytest.mark.parametrize("factor", [1.0, 2.0, 2.37])
def test_labels_are_those_of_the_pixels_shown(tmp_path: Path, factor: float) -> None:
    """Of a bag and its store, from a mask and from polygons: the label under the centre of every pixel."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[150:431, 120:600:7] = 1
    labels[150:431, 121:600:7] = 2
    mask = LabelMask(labels, Affine())
    view = open_slide(PIXELS, slide_mpp=0.25).view(mpp=0.25 * factor)
    bag = TileBag.from_coords(view, CORNERS, TILE)
    expected = [looked_up(labels, corner, view.downsample) for corner in CORNERS]
    assert np.array_equal(mask.labels(bag), expected)
    with save_bag(bag, tmp_path / "a.bag.zarr", progress=False) as kept:
        assert np.array_equal(mask.labels(kept), expected)
        box = [np.array([[120.0, 150], [600, 150], [600, 431], [120, 431]])]
        drawn = Annotations([Annotation("Tumor", box)], {"Tumor": 1})
        inside = np.zeros((HEIGHT, WIDTH), np.uint8)
        inside[150:431, 120:600] = 1
        boxes = [looked_up(inside, corner, view.downsample) for corner in CORNERS]
        assert np.array_equal(drawn.labels(bag), boxes)
        assert np.array_equal(drawn.labels(kept), boxes)


# -- coordinates of other tools ------------------------------------------------------------------------------------


def coordinates(path: Path, corners: Any, **attributes: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("coords", data=np.asarray(corners)).attrs.update(attributes)
    return path


def test_clams_tiles_are_the_regions_that_clam_reads(tmp_path: Path) -> None:
    """Level 1 at corners from which CLAM's contours start: OpenSlide's pixels there."""
    slide = write_pyramid(tmp_path / "a.tif", PIXELS, (1, 2, 4), tile=128)
    file = coordinates(tmp_path / "a.h5", CORNERS[:4], patch_size=TILE, patch_level=1)
    bag = from_clam(file, open_slide(slide))
    with openslide.OpenSlide(str(slide)) as peer:
        for (x, y), tile in zip(CORNERS[:4], bag[:], strict=True):
            theirs = np.asarray(peer.read_region((x, y), 1, (TILE, TILE)).convert("RGB"))
            assert apart(tile, theirs)[0] < 1.5


@pytest.mark.parametrize(("own", "target"), [(20, 13), (40, 20), (40, 15), (20, 7)])
def test_tridents_tiles_are_the_squares_that_trident_reads(tmp_path: Path, own: int, target: int) -> None:
    """Its files truncate the side at level 0, its reader rounds it: the reader's square counts."""
    side = 64
    attributes = {"patch_size": side, "patch_size_level0": side * own // target, "overlap": 0}
    attributes |= {"level0_magnification": own, "target_magnification": target}
    file = coordinates(tmp_path / "a_patches.h5", CORNERS[:4], **attributes)
    bag = from_trident(file, open_slide(PIXELS, slide_mpp=10 / own))
    reach = round(side * own / target)
    assert bag.view.downsample == pytest.approx((reach / side, reach / side))
    for (x, y), tile in zip(CORNERS[:4], bag[:], strict=True):
        square = Image.fromarray(PIXELS[y : y + reach, x : x + reach])
        expected = np.asarray(square.resize((side, side), Image.Resampling.BILINEAR))
        assert apart(tile[2:-2, 2:-2], expected[2:-2, 2:-2])[0] < 0.1


def test_a_tile_has_the_extent_of_its_file(tmp_path: Path) -> None:
    """506 px of level 0 in 256 are not rounded to a half, as the resolution of a view is."""
    slide = open_slide(np.zeros((1200, 1300, 3), np.uint8), slide_mpp=0.2528)
    bag = from_trident(coordinates(tmp_path / "a.h5", [[0, 0]], patch_size=256, patch_size_level0=506), slide)
    assert bag.view.downsample == (506 / 256, 506 / 256)
    assert slide.view(mpp=0.2528 * 506 / 256).downsample == (2, 2)


@pytest.mark.parametrize("layout", ["clam", "trident"])
@pytest.mark.parametrize("factor", [1, 2, 2.37])
def test_written_corners_are_read_back(tmp_path: Path, layout: str, factor: float) -> None:
    """Given corners unchanged; corners of a grid, rounded to level-0 px, as the pixels of that grid."""
    from slideio_pipe.export.convert import convert

    slide = open_slide(PIXELS, slide_mpp=0.25)
    view = slide.view(mpp=0.25 * factor)
    reader = {"clam": from_clam, "trident": from_trident}[layout]
    for name, bag in {
        "given": TileBag.from_coords(view, sorted(CORNERS), TILE),
        "grid": TileBag(view, TileGrid(view, TILE, stride=31)),
    }.items():
        again = reader(convert(bag, layout, tmp_path / name).paths[0], slide)
        order = np.lexsort((bag.coords[:, 1], bag.coords[:, 0]))
        assert np.array_equal(again.coords, bag.coords[order])
        exact = name == "grid" or factor != 2.37  # a side of 113.76 px is written as 114
        mean, _ = apart(again[:], bag[:][order])
        assert mean == 0 if exact else mean < 4


def test_corners_between_level0_pixels_are_kept(tmp_path: Path) -> None:
    """Some tools write fractions of a pixel."""
    file = coordinates(tmp_path / "a.h5", [[100.5, 60.25]], patch_size=TILE, patch_level=0)
    bag = from_clam(file, open_slide(PIXELS))
    assert bag.coords.tolist() == [[101, 60]]
    expected = interpolated(PIXELS.astype(np.float64), 100.5, 60.25, TILE, TILE)
    assert apart(bag[0], expected)[0] < 0.6


# -- the edge ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outside", ["white", "black"])
@pytest.mark.parametrize("factor", [1, 2, 2.37])
def test_pixels_outside_are_white_or_black(factor: float, outside: str) -> None:
    """A pixel that is half inside is the slide's; there is no blending at the edge."""
    pixels = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
    view = open_slide(pixels, slide_mpp=0.25).view(mpp=0.25 * factor, outside=outside)
    width, height = view.size
    for x, y in ((-31, -17), (WIDTH - 43, HEIGHT - 51), (-30, -16), (WIDTH - 44, -8)):
        tile = TileBag.from_coords(view, [[x, y]], TILE)[0]
        dx, dy = view.downsample
        columns, rows = x / dx + np.arange(TILE) + 0.5, y / dy + np.arange(TILE) + 0.5
        inside = ((rows >= 0) & (rows <= height))[:, None] & ((columns >= 0) & (columns <= width))
        expected = np.where(inside, 120, {"white": 255, "black": 0}[outside])
        assert np.array_equal(tile, np.repeat(expected[..., None], 3, axis=-1))


@pytest.mark.parametrize("transform", [None, A.HorizontalFlip(p=1), A.Affine(rotate=(20, 20), p=1)])
def test_black_outside_is_used_by_drawn_tiles_and_views(tmp_path: Path, transform: Any) -> None:
    """Turned tiles, the turned slide, regions, files of coordinates: as OpenSlide's pixels without alpha."""
    pixels = np.full((200, 300, 3), 255, np.uint8)
    slide = open_slide(pixels, slide_mpp=0.25)
    view = slide.view(outside="black")
    tile = TileBag.from_coords(view, [[280, 180]], TILE, tile_transform=transform)[0]
    assert (tile == 0).any()
    assert not (TileBag.from_coords(slide.view(), [[280, 180]], TILE, tile_transform=transform)[0] == 0).any()
    turned = slide.view(transform=A.Affine(rotate=(20, 20), fit_output=True, p=1), outside="black")
    assert (turned.image.numpy()[0, 0] == 0).all()
    assert (TileBag(turned, TileGrid(turned, TILE, edge="pad"))[0, 0, 0] == 0).all()
    path = write_pyramid(tmp_path / "a.tif", pixels, (1,), tile=64)
    with openslide.OpenSlide(str(path)) as peer:
        theirs = np.asarray(peer.read_region((280, 180), 0, (TILE, TILE)).convert("RGB"))
    assert np.array_equal(slide.read_region((280, 180), 0, (TILE, TILE), outside="black"), theirs)
    file = coordinates(tmp_path / "a.h5", [[280, 180]], patch_size=TILE, patch_level=0)
    assert np.array_equal(from_clam(file, path, outside="black")[0], theirs)
    assert view.outside in str(TileBag.from_coords(view, [[0, 0]], TILE).provenance()["view"])
    with pytest.raises(ConfigError, match='outside is \'grey\'; pass "white" or "black"'):
        slide.view(outside="grey")
    with pytest.raises(ConfigError, match="outside is 'grey'"):
        slide.read_region((0, 0), 0, (5, 5), outside="grey")


def test_sizes_and_corners_may_be_numpy_numbers(tmp_path: Path) -> None:
    """As arrays of coordinates have them."""
    slide = open_slide(PIXELS)
    corner, size = np.array([7, 9], np.int32), np.array([5, 4], np.uint8)
    assert np.array_equal(slide.read_region(corner, 0, size), PIXELS[9:13, 7:12])  # type: ignore[arg-type]
    with save_bag(TileBag.from_coords(slide.view(), [corner], 16), tmp_path / "a.bag.zarr", progress=False) as kept:
        assert np.array_equal(open_bag(kept.path)[0], PIXELS[9:25, 7:23])
