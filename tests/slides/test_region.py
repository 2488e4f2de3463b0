"""Pictures of places: of a slide at any resolution, of a view with its augmentation; oracles: OpenSlide and bags."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import albumentationsxl as A
import numpy as np
import openslide
import pytest
from PIL import Image
from pyramids import coordinate_pixels, write_pyramid

import slideio_pipe as sp
from slideio_pipe.errors import ConfigError, CorruptSlideError, MissingResolutionError

PIXELS = coordinate_pixels(1024, 768)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_pyramid(tmp_path / "a.tif", PIXELS, (1, 2, 4), tile=128)


def pixels(image: Image.Image) -> np.ndarray:
    assert isinstance(image, Image.Image)
    assert image.mode == "RGB"
    return np.asarray(image)


# -- a slide -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("corner", [(0, 0), (100, 60), (396, 204), (960, 700), (-24, -40)])
def test_at_the_resolution_of_a_level_it_is_openslides_region(path: Path, level: int, corner: tuple[int, int]) -> None:
    """Exactly, from the same level-0 corner; beyond the slide white, where OpenSlide is transparent."""
    with openslide.OpenSlide(path) as peer:
        theirs = np.asarray(peer.read_region(corner, level, (90, 70)))
    wanted = np.where(theirs[..., 3:] == 0, 255, theirs[..., :3])
    assert np.array_equal(pixels(sp.open_slide(path).region(*corner, mpp=0.25 * 2**level, size=(90, 70))), wanted)


def test_between_levels_it_is_the_shrunk_area(tmp_path: Path) -> None:
    """Oracle: OpenSlide's level 0 shrunk by Pillow with the same filter, within one level of rounding."""
    y, x = np.mgrid[:768, :1024]
    smooth = np.stack([127 + 100 * np.sin(x / 40), 127 + 100 * np.cos(y / 30), (x + y) / 7], axis=-1).astype(np.uint8)
    path = write_pyramid(tmp_path / "smooth.tif", smooth, (1, 4), tile=128)
    with openslide.OpenSlide(path) as peer:
        theirs = peer.read_region((90, 60), 0, (450, 300)).convert("RGB")
    wanted = np.asarray(theirs.resize((150, 100), Image.Resampling.BILINEAR), int)
    found = pixels(sp.open_slide(path).region(90, 60, mpp=0.75, size=(150, 100))).astype(int)
    inner = np.s_[2:-2, 2:-2]  # at its border Pillow has no neighbours
    assert np.abs(found - wanted)[inner].max() <= 1


@pytest.mark.parametrize("mpp", [None, "native"])
def test_without_mpp_it_is_level_0_and_needs_no_resolution(tmp_path: Path, mpp: Literal["native"] | None) -> None:
    """A size of one number is a square."""
    path = write_pyramid(tmp_path / "a.tif", PIXELS, (1, 4), tile=128, mpp=None)
    slide = sp.open_slide(path)
    assert np.array_equal(pixels(slide.region(40, 30, mpp=mpp, size=64)), PIXELS[30:94, 40:104])
    assert slide.region(0, 0, mpp=mpp).size == (512, 512)
    with pytest.raises(MissingResolutionError):
        slide.region(40, 30, mpp=0.5)


def test_black_outside_is_openslides_without_transparency(path: Path) -> None:
    """As in views."""
    with openslide.OpenSlide(path) as peer:
        theirs = np.asarray(peer.read_region((1000, 700), 0, (90, 90)).convert("RGB"))
    assert np.array_equal(pixels(sp.open_slide(path).region(1000, 700, size=90, outside="black")), theirs)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"x": "left"}, "a location of ('left', 0)"),
        ({"x": None}, "a location of (None, 0)"),
        ({"x": float("nan")}, "a location of (nan, 0)"),
        ({"size": 0}, "a side of 0; pass 1 or more"),
        ({"size": (10, 2.5)}, "a side of 2.5; pass a whole number"),
        ({"size": (1, 2, 3)}, "a size of (1, 2, 3); pass two numbers"),
        ({"size": "big"}, "a size of 'big'"),
        ({"size": 100_000}, "a picture of 100,000×100,000 px takes 30.0 GB; pass a smaller size or a coarser mpp"),
        ({"mpp": -1}, "mpp=-1 is no resolution"),
        ({"mpp": 0.01}, "finer than the slide"),
        ({"outside": "grey"}, "outside is 'grey'"),
    ],
)
def test_a_place_that_is_none_is_refused(path: Path, arguments: dict[str, object], said: str) -> None:
    """With the slide and the reason."""
    with pytest.raises(ConfigError) as caught:
        sp.open_slide(path).region(**({"x": 0, "y": 0} | arguments))
    assert said in str(caught.value)
    assert "a.tif" in str(caught.value)


@pytest.mark.parametrize("key", [0, np.s_[10:20, 5:9], "label"])
def test_square_brackets_say_what_to_use(path: Path, key: object) -> None:
    """Of slides and of views."""
    slide = sp.open_slide(path)
    with pytest.raises(ConfigError, match=r"a slide has no index; pixels at a place are slide.region\(x, y, mpp"):
        slide[key]
    with pytest.raises(ConfigError, match=r"a view has no index; pixels at a place are view.crop\(x, y, size\)"):
        slide.view(mpp=0.5)[key]


# -- a view --------------------------------------------------------------------------------------------------------

COLOURS = A.Compose([sp.StainJitter(alpha=(1.2, 1.2)), sp.ColorJitter((1.1, 1.1), (1, 1), (1, 1), 0)])
TURNED = A.Compose([sp.RandomAffine(rotate=(33, 33), scale=(0.8, 0.8), flip=False), COLOURS])


@pytest.mark.parametrize("transform", [None, COLOURS, TURNED], ids=["plain", "colours", "turned"])
def test_a_crop_at_a_tiles_coordinates_is_the_tile(path: Path, transform: object) -> None:
    """Of a plain view bit for bit; with colours within a level, as executors differ by one; turned within two, as
    OpenCV places samples on a 1/32 px grid."""
    view = sp.open_slide(path).view(mpp=0.5, transform=transform)
    bag = sp.TileBag(view, sp.TileGrid(view, tile_size=64, edge="pad"))
    for number in range(0, len(bag), 5):
        found = pixels(view.crop(*bag.coords[number], 64)).astype(int)
        assert np.abs(found - bag[number]).max() <= {None: 0, COLOURS: 1, TURNED: 2}[transform]


def test_a_crop_is_the_part_of_the_whole_image(path: Path) -> None:
    """Bit for bit, beyond the canvas white; the corner is level-0 px also in a turned view."""
    view = sp.open_slide(path).view(mpp=0.5, transform=TURNED)
    whole = np.pad(view.image.numpy(), ((60, 60), (60, 60), (0, 0)), constant_values=255)
    for x, y in ((0, 0), (-50, 100), (300, view.size.height - 20), (view.size.width + 5, 10)):
        corner = view.affine.apply((x, y))
        rows, columns = slice(max(0, y + 60), y + 60 + 48), slice(max(0, x + 60), x + 60 + 50)
        found = pixels(view.crop(*corner, (50, 48)))
        wanted = whole[rows, columns]
        assert np.array_equal(found[: wanted.shape[0], : wanted.shape[1]], wanted)


def test_a_tile_that_cannot_be_decoded_is_an_error_each_time(shared_data: Path) -> None:
    """Never a black picture; plain, with colours, and turned."""
    slide = sp.open_slide(shared_data / "broken" / "unreadable.svs")
    for transform in (None, COLOURS, TURNED):
        view = slide.view(transform=transform)
        corner = view.affine.apply(np.array(view.size) / 2 - 8)
        for _ in range(2):
            with pytest.raises(CorruptSlideError):
                view.crop(*corner, 16)


# -- plot ----------------------------------------------------------------------------------------------------------


def test_plot_of_a_region_is_that_region(path: Path) -> None:
    """At most as large as wanted; without a scale bar where the resolution is unknown."""
    slide = sp.open_slide(PIXELS)
    assert np.array_equal(pixels(slide.plot(400, region=(100, 60, 300, 200), titled=False)), PIXELS[60:260, 100:400])
    half = slide.plot(200, region=(100, 60, 400, 200), titled=False)
    assert half.size == (200, 100)
    assert np.array_equal(pixels(half), pixels(slide.plot(512, titled=False).crop((50, 30, 250, 130))))
    barred = sp.open_slide(path).plot(400, region=(100, 60, 300, 200), titled=False)
    assert not np.array_equal(pixels(barred), PIXELS[60:260, 100:400])


@pytest.mark.parametrize(
    ("region", "said"),
    [
        ((1, 2, 3), "a region of (1, 2, 3); pass (x, y, width, height)"),
        (7, "a region of 7"),
        ((0, 0, 0, 5), "a side of a region of 0; pass 1 or more"),
        (("a", 0, 5, 5), "a location of ('a', 0)"),
    ],
)
def test_a_region_that_is_none_is_refused(region: object, said: str) -> None:
    """With what to pass."""
    with pytest.raises(ConfigError) as caught:
        sp.open_slide(PIXELS).plot(100, region=region)
    assert said in str(caught.value)
