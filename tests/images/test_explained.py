"""Pictures with a title, a scale bar and a legend: the picture inside is unchanged, and every colour is explained."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from slideio_pipe import Annotations, LabelMask, Slide, TileBag, TileGrid, find_tissue, open_slide
from slideio_pipe.geometry import Affine
from slideio_pipe.images import picture
from slideio_pipe.images.explained import Key, explained
from slideio_pipe.images.lettering import INK, font, text_px, text_width

NOISE = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


def place_of(inner: np.ndarray, sheet: np.ndarray) -> tuple[int, int]:
    """Return row and column at which a picture is inside another, pixel for pixel."""
    height, width = inner.shape[:2]
    apart = cv2.matchTemplate(sheet.astype(np.float32), inner.astype(np.float32), cv2.TM_SQDIFF)
    row, column = np.unravel_index(int(apart.argmin()), apart.shape)
    assert np.array_equal(sheet[row : row + height, column : column + width], inner), "the picture is not inside"
    return int(row), int(column)


def written(text: str, px: int) -> np.ndarray:
    """Return a text as it is drawn, on white."""
    left, top, right, lower = font(px).getbbox(text)
    image = Image.new("RGB", (round(right - left), round(lower - top)), (255, 255, 255))
    ImageDraw.Draw(image).text((-left, -top), text, INK, font(px))
    return pixels(image)


def test_the_picture_is_unchanged_within_margins() -> None:
    """Pixel for pixel; around it is paper."""
    sheet = pixels(explained(Image.fromarray(NOISE), "a.svs", um_per_px=1.0, keys=[Key("tissue", (0, 150, 110))]))
    row, column = place_of(NOISE.astype(int), sheet)
    assert min(row, column) >= 14
    assert (sheet[:, :10] == 255).all()
    assert (sheet[:, -10:] == 255).all()
    assert (sheet[-10:] == 255).all()


def test_the_title_and_every_key_are_written() -> None:
    """Letter for letter, the micro sign too, each mark in its colour."""
    keys = [Key("Lesion", (238, 102, 119)), Key("edge", (0, 150, 110), "line"), Key("216 tiles", (20, 60, 200), "box")]
    sheet = pixels(explained(Image.fromarray(NOISE), "a.svs: 0.5 µm", um_per_px=1.0, keys=keys))
    for text in ("a.svs: 0.5 µm", "50 µm", "Lesion", "edge", "216 tiles"):
        place_of(written(text, 14), sheet)
    below = sheet[place_of(NOISE.astype(int), sheet)[0] + 300 :]
    for key in keys:
        assert (below == key.colour).all(-1).any()


@pytest.mark.parametrize(("um_per_px", "length"), [(1.0, 50), (0.25, 80), (12.0, 42)])
def test_the_scale_bar_has_its_stated_length(um_per_px: float, length: int) -> None:
    """In px of the picture: 50, 20 and 500 µm."""
    sheet = pixels(explained(Image.fromarray(NOISE), "a", um_per_px=um_per_px))
    below = sheet[place_of(NOISE.astype(int), sheet)[0] + 300 :]
    rows = ["".join(" #"[int(ink)] for ink in (row == INK).all(-1)) for row in below]
    assert max(len(run) for row in rows for run in row.split()) == length


def test_many_keys_are_in_rows_within_the_width() -> None:
    """None is cut off, and a narrow picture gets wider paper."""
    keys = [Key(f"class number {k}", (k, 200, 10)) for k in range(12)]
    for width in (60, 400):
        sheet = explained(Image.fromarray(NOISE[:, :width]), "labels of a slide", keys=keys)
        shown = pixels(sheet)
        for key in keys:
            place_of(written(key.text, 14), shown)
        assert text_width("labels of a slide", 14) < sheet.width


@pytest.mark.slow
def test_large_pictures_have_large_text() -> None:
    """A picture of 2,400 px is readable at a quarter."""
    wide = np.repeat(np.repeat(NOISE, 6, 0), 6, 1)
    sheet = pixels(explained(Image.fromarray(wide), "a.svs", um_per_px=1.0))
    place_of(written("a.svs", text_px(2400)), sheet)


# -- what the package draws ----------------------------------------------------------------------------------------

y, x = np.mgrid[:600, :800]
TISSUE = np.hypot(x - 300, y - 300) < 200
PIXELS = np.where(TISSUE[..., None], np.array([190, 90, 160]) + (x % 7)[..., None] * 6, 245).astype(np.uint8)


@pytest.fixture
def slide() -> Slide:
    return open_slide(PIXELS, slide_mpp=1.0)


def says(image: Image.Image, *texts: str) -> None:
    """Fail unless each text is written in the picture: ``place_of`` raises AssertionError where it is not."""
    shown = pixels(image)
    for text in texts:
        place_of(written(text, text_px(400)), shown)


def test_a_slide_and_a_view_say_what_they_are(slide: Slide) -> None:
    """Name, size, resolution; a region where it begins."""
    says(slide.plot(400), "array: 800 × 600 px of 1 µm", "100 µm")
    says(slide.plot(400, region=(100, 50, 400, 300)), "array: 400 × 300 px of 1 µm, from x 100, y 50", "50 µm")
    says(slide.view(mpp=2.0).plot(400), "array at 2 µm", "100 µm")
    says(slide.view(mpp=2.0).adjusted(hue=0.1).plot(400), "array at 2 µm, hsv")
    says(open_slide(PIXELS).plot(400), "array: 800 × 600 px")


def test_tissue_and_grids_explain_their_colours(slide: Slide) -> None:
    """The tissue line, the faded rest, and how many tiles were kept and dropped."""
    tissue = find_tissue(slide, mpp=4.0)
    says(tissue.plot(slide, 400), "tissue outline", "no tissue: faded", "100 µm")
    grid = TileGrid(slide.view(), 100, tissue=tissue, min_tissue=0.5)
    assert len(grid) + len(grid.dropped()) == 48
    says(grid.plot(400), f"{len(grid)} tiles", f"{48 - len(grid)} dropped: under 50% tissue", "tissue outline")
    alone = TileGrid(slide.view(), 100)
    assert not len(alone.dropped())
    assert [key.text for key in alone.legend()] == ["48 tiles"]
    assert not len(TileGrid.from_coords(slide.view(), [[0, 0]], 100).dropped())
    assert "under 50% tissue" in grid._repr_html_()


def test_dropped_tiles_are_the_rest_of_the_grid(slide: Slide) -> None:
    """Together with the kept ones each position once, at every edge."""
    tissue = find_tissue(slide, mpp=4.0)
    for edge in ("drop", "shift", "pad"):
        grid = TileGrid(slide.view(), 90, stride=70, edge=edge, tissue=tissue)
        whole = TileGrid(slide.view(), 90, stride=70, edge=edge)
        both = np.concatenate([grid.origins, grid.dropped()])
        assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, whole.origins.tolist()))


def test_classes_are_named(slide: Slide, tmp_path: Path) -> None:
    """Those in the picture, with their colours; a value without a name is a number."""
    mask = LabelMask(np.array([[0, 1], [2, 9]]), Affine.scaling(400, 300), {"tumour": 1, "stroma": 2}, "a.svs")
    says(mask.plot(2), "tumour", "stroma", "label 9", "labels of a.svs")
    drawn = Annotations(mask.regions(), {"tumour": 1, "stroma": 2, "9": 9})
    says(drawn.plot(slide, 400), "annotations of array", "tumour", "stroma", "9", "100 µm")


def test_twelve_classes_have_twelve_colours() -> None:
    """Before any is repeated."""
    assert len({tuple(colour) for colour in picture.label_colours()[1:13].tolist()}) == 12


def test_a_bag_says_which_tiles_it_shows(slide: Slide) -> None:
    """How many of how many, their size, and a scale bar at the size they are shown."""
    bag = TileBag(slide.view(), TileGrid(slide.view(), 100))
    shown = bag.plot(16, 100)
    says(shown, "array: 16 of 48 tiles of 100 px of 1 µm", "50 µm")
    place_of(np.asarray(bag.plot(16, 100, titled=False)).astype(int), pixels(shown))
