"""Pictures have the requested size, marks at the right places, and captions with all letters."""

from __future__ import annotations

import base64
import io
import math
import re

import numpy as np
import pytest
from PIL import Image, ImageDraw

from slideio_pipe.images import picture
from slideio_pipe.images.lettering import drawable, font, shortened, text_px, text_width

WHITE, GREY = (255, 255, 255), np.full((60, 100, 3), 120, np.uint8)


def pixels(image: Image.Image) -> np.ndarray:
    """Return a picture as (H, W, 3) integers, for arithmetic."""
    return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize(
    ("width", "height", "limit", "size"),
    [(100, 60, 50, (50, 30)), (60, 100, 50, (30, 50)), (100, 60, 200, (100, 60)), (1000, 1, 10, (10, 1))],
)
def test_fit_keeps_the_aspect_ratio(width: int, height: int, limit: int, size: tuple[int, int]) -> None:
    """The longer side becomes the limit, nothing is enlarged, no side becomes 0."""
    assert picture.fit(np.zeros((height, width, 3), np.uint8), limit).size == size


def test_fit_averages() -> None:
    """A checkerboard of black and white becomes grey: pixels are not skipped."""
    board = np.indices((64, 64)).sum(0) % 2 * 255
    small = picture.fit(np.repeat(board[..., None], 3, axis=2).astype(np.uint8), 16)
    assert set(np.unique(np.asarray(small))) <= {127, 128}


def test_tint_mask_fades_the_outside_and_outlines_the_inside() -> None:
    """Tissue (left half) keeps its colour, the right half is paler, and the line between them is green."""
    mask = np.zeros((6, 10), bool)
    mask[:, :5] = True
    shown = pixels(picture.tint_mask(Image.fromarray(GREY), mask))
    assert (shown[30, 20] == 120).all()
    assert (shown[30, 80] == int(120 * 0.55 + 255 * 0.45)).all()
    distance = np.abs(shown[30] - picture.TISSUE).sum(axis=1)
    assert 45 <= int(distance[5:-5].argmin()) + 5 <= 54
    assert distance.min() < 120


def test_an_empty_mask_has_no_outline() -> None:
    """Everything is faded alike."""
    shown = pixels(picture.tint_mask(Image.fromarray(GREY), np.zeros((3, 5), bool)))
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) == 1


def test_boxes_are_at_their_coordinates() -> None:
    """The frame covers the tile's first and last pixel, the inside is tinted, the outside unchanged."""
    shown = pixels(picture.draw_boxes(Image.fromarray(GREY), [[10, 20, 30, 15]]))
    changed = np.argwhere((shown != 120).any(axis=2))
    assert changed.min(axis=0).tolist() == [20, 10]
    assert changed.max(axis=0).tolist() == [34, 39]
    assert np.abs(shown[20, 25] - picture.TILE).max() < 45
    assert 0 < np.abs(shown[27, 25] - 120).max() < 20


def test_a_box_smaller_than_a_pixel_is_visible() -> None:
    """Tiles of a huge slide are drawn; no tiles draw nothing."""
    assert (pixels(picture.draw_boxes(Image.fromarray(GREY), [[10.2, 20.4, 0.3, 0.3]])) != 120).any()
    assert (pixels(picture.draw_boxes(Image.fromarray(GREY), np.zeros((0, 4)))) == 120).all()


def test_tiny_boxes_cover_the_pixels_of_a_loop() -> None:
    """Each at least one px, overlapping ones are not darker; a million takes no loop."""
    boxes = np.random.default_rng(0).uniform((-3, -3, 0.2, 0.2), (103, 63, 3.9, 3.9), (600, 4))
    wanted = np.zeros((60, 100), bool)
    for x, y, width, height in boxes:
        left, top = min(max(0, math.floor(x + 0.5)), 99), min(max(0, math.floor(y + 0.5)), 59)
        right, lower = max(math.floor(x + width + 0.5), left + 1), max(math.floor(y + height + 0.5), top + 1)
        wanted[top:lower, left:right] = True
    shown = pixels(picture.draw_boxes(Image.fromarray(GREY), boxes))
    assert 0.2 < wanted.mean() < 0.9
    assert np.array_equal((shown != 120).any(axis=2), wanted)
    assert len(np.unique(shown[wanted], axis=0)) == 1


def test_a_montage_shows_tiles_in_order() -> None:
    """Left to right, then down, with white between; larger tiles are shrunk."""
    tiles = np.stack([np.full((64, 64, 3), value, np.uint8) for value in (10, 20, 30, 40, 50)])
    sheet = picture.montage(tiles, columns=3, tile_px=32, gap=4)
    assert sheet.size == (3 * 36 - 4, 2 * 36 - 4)
    shown = pixels(sheet)
    centres = shown[16::36, 16::36, 0].ravel()[:5]
    assert centres.tolist() == [10, 20, 30, 40, 50]
    assert (shown[:, 32:36] == 255).all()
    assert (shown[52, 90] == 255).all()


def test_a_montage_of_no_tiles_has_a_text() -> None:
    """An empty bag has a picture, too."""
    assert picture.montage(np.zeros((0, 8, 8, 3), np.uint8)).size[0] > 0


@pytest.mark.parametrize("text", ["0.5 µm, 3×4", "Präparat Ä", "组织 切片", "a — b…", "Ω→²", "turned 45°", "Zażółć"])
def test_captions_use_letters_of_the_font_only(text: str) -> None:
    """A missing letter would be drawn as a box."""
    used = font(15)
    missing = bytes(used.getmask("\uffff"))
    drawn = drawable(text)
    assert drawn.strip()
    assert all(bytes(used.getmask(letter)) != missing for letter in drawn if letter != " ")


@pytest.mark.parametrize("text", ["turned −45°", "0.5 µm per px", "768 × 576 – 2", "Präparat №3", "препарат"])
def test_signs_and_letters_of_the_field_are_written(text: str) -> None:
    """Not replaced: the micro sign, ×, minus and degrees, accents, Greek and Cyrillic."""
    assert drawable(text) == text


def test_a_long_name_is_shortened_in_its_middle() -> None:
    """Its beginning and its ending differ between slides; a short one is unchanged."""
    long = "TCGA-CR-7395-01A-01-TS1.8b0a5bb0-cc23-4ee6-9f60-9e2c9a2cf3a3.svs"
    shown = shortened(long, 14, 300)
    assert text_width(shown, 14) <= 300 < text_width(long, 14)
    assert shown.startswith("TCGA-CR")
    assert shown.endswith(".svs")
    assert shortened("a.svs", 14, 300) == "a.svs"


@pytest.mark.parametrize("width", [300, 640, 1024, 2000, 5000])
def test_text_is_readable_when_a_picture_is_shown_600_px_wide(width: int) -> None:
    """Ten px and more."""
    assert text_px(width) * min(1, 600 / width) >= 10


def test_a_caption_is_above_the_picture() -> None:
    """The picture below is unchanged, and the line has text."""
    shown = pixels(picture.captioned(Image.fromarray(GREY), "a.svs"))
    assert shown.shape == (84, 100, 3)
    assert (shown[24:] == 120).all()
    assert shown[:24].min() < 100


@pytest.mark.parametrize(
    ("um_per_px", "label", "length"), [(1.0, "100 µm", 100), (9.0, "1 mm", 111), (0.03, "2 µm", 67)]
)
def test_a_scale_bar_has_its_stated_length(um_per_px: float, label: str, length: int) -> None:
    """In pixels, to one pixel, for a round number of µm."""
    drawn = pixels(picture.scale_bar(Image.new("RGB", (600, 300), (200, 100, 150)), um_per_px))
    line = np.flatnonzero((drawn[289] == 40).all(axis=1))
    assert line[0] == 10
    assert len(line) == pytest.approx(length, abs=1)
    text = Image.new("RGB", (200, 26), WHITE)
    ImageDraw.Draw(text).text((5, 2), label, (40, 40, 40), font(14))
    assert np.abs(pixels(text)[:20, 5:60] - drawn[264:284, 10:65]).max() == 0


def test_a_tiny_picture_has_no_scale_bar() -> None:
    """It is unchanged."""
    tiny = Image.fromarray(GREY[:20, :20])
    assert picture.scale_bar(tiny, 0.25) is tiny


def test_sheets_keep_every_picture() -> None:
    """Beside and above: sizes add up, and each picture is at its place."""
    a, b = Image.new("RGB", (10, 20), (255, 0, 0)), Image.new("RGB", (30, 5), (0, 0, 255))
    beside, above = picture.beside([a, b], gap=2), picture.above([a, b], gap=2)
    assert (beside.size, above.size) == ((42, 20), (30, 27))
    assert beside.getpixel((12, 0)) == above.getpixel((29, 22)) == (0, 0, 255)
    assert beside.getpixel((41, 10)) == above.getpixel((20, 10)) == WHITE


def test_a_card_escapes_text_and_contains_its_pictures() -> None:
    """For any slide name; the embedded picture is the given one."""
    html = picture.card("<script>.svs", {"label": "a & b"}, [Image.fromarray(GREY)])
    assert "<script>" not in html
    assert "&lt;script&gt;.svs" in html
    assert "a &amp; b" in html
    data = re.search(r"base64,([^\"]+)", html)
    assert data is not None
    assert np.array_equal(pixels(Image.open(io.BytesIO(base64.b64decode(data[1])))), GREY)
