"""A picture that explains itself: a title above it, a scale bar and the meaning of its colours below it, margins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw

from slideio_pipe.images.lettering import INK, PAPER, drawable, font, shortened, text_px, text_width

Colour = tuple[int, int, int]
# Possible lengths of a scale bar, in µm.
BAR_LENGTHS_UM = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)
# A narrower picture is on wider paper, so that its title fits.
_LEAST_WIDTH = 280


@dataclass(frozen=True)
class Key:
    """The meaning of one colour of a picture.

    Attributes
    ----------
    text : str
    colour : (int, int, int)
        RGB.
    mark : {"area", "line", "box"}
        How the colour is drawn in the picture.
    """

    text: str
    colour: Colour
    mark: Literal["area", "line", "box"] = "area"


def explained(
    image: Image.Image,
    title: str,
    *,
    um_per_px: float | None = None,
    keys: Sequence[Key] = (),
    px: int | None = None,
) -> Image.Image:
    """Return a picture with a title, a scale bar, the meaning of its colours, and margins.

    Parameters
    ----------
    image : Pillow image
        Unchanged inside the result.
    title : str
        What it is.
    um_per_px : float, optional
        µm per px, for the scale bar.
    keys : sequence of Key
        One per colour.
    px : int, optional
        Size of the text; by default readable when the picture is shown 600 px wide.

    Examples
    --------
    >>> shown = explained(Image.new("RGB", (400, 300)), "a.svs", um_per_px=8.0, keys=[Key("tissue", (0, 150, 110))])
    >>> shown.width, shown.height > 300
    (428, True)
    """
    px = text_px(image.width) if px is None else px
    margin, line = px, round(px * 1.7)
    width = max(image.width, _LEAST_WIDTH)
    bar = None if um_per_px is None else bar_of(image.width, um_per_px)
    rows = _rows(keys, bar, px, width)
    height = margin + line + image.height + (round(px * 0.6) + line * len(rows) if rows else 0) + margin
    sheet = Image.new("RGB", (width + 2 * margin, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, margin - round(px * 0.2)), shortened(title, px, width), INK, font(px))
    sheet.paste(image, (margin, margin + line))
    top = margin + line + image.height + round(px * 0.6)
    for row in rows:
        left = margin
        for entry in row:
            _mark(draw, entry, left, top, px)
            left += _entry_width(entry, px)
        top += line
    return sheet


@dataclass(frozen=True)
class Bar:
    """A scale bar."""

    text: str  # "500 µm"
    px: int


def bar_of(width: int, um_per_px: float) -> Bar | None:
    """Return the scale bar of a round length, at most a fifth of the width; None if there is no place for one.

    >>> bar_of(600, 1.0)
    Bar(text='100 µm', px=100)
    """
    length = max((um for um in BAR_LENGTHS_UM if um <= width * um_per_px / 5), default=BAR_LENGTHS_UM[0])
    pixels = round(length / um_per_px)
    if pixels < 8 or pixels > width - 16:
        return None
    return Bar(f"{length / 1000:g} mm" if length >= 1000 else f"{length} µm", pixels)


def _rows(keys: Sequence[Key], bar: Bar | None, px: int, width: int) -> list[list[Key | Bar]]:
    """Return the entries below a picture, in as many rows as they need."""
    rows: list[list[Key | Bar]] = []
    free = 0
    entries: list[Key | Bar] = [*([bar] if bar else []), *keys]
    for entry in entries:
        needed = _entry_width(entry, px)
        if not rows or needed > free:
            rows.append([])
            free = width + 2 * px
        rows[-1].append(entry)
        free -= needed
    return rows


def _entry_width(entry: Key | Bar, px: int) -> int:
    mark = entry.px if isinstance(entry, Bar) else round(px * 1.3)
    return mark + round(px * 0.5) + text_width(drawable(entry.text), px) + 2 * px


def _mark(draw: ImageDraw.ImageDraw, entry: Key | Bar, left: int, top: int, px: int) -> None:
    """Draw the mark of an entry and its text."""
    middle, line = top + round(px * 0.65), max(2, round(px / 7))
    if isinstance(entry, Bar):
        right = left + entry.px
        draw.rectangle((left, middle - line // 2, right - 1, middle + (line - 1) // 2), INK)
        for end in (left, right - line):
            draw.rectangle((end, middle - round(px * 0.3), end + line - 1, middle + round(px * 0.3)), INK)
    else:
        right, half = left + round(px * 1.3), round(px * 0.55)
        if entry.mark == "line":
            draw.rectangle((left, middle - line // 2, right, middle + line // 2), entry.colour)
        elif entry.mark == "box":
            draw.rectangle((left, middle - half, right, middle + half), PAPER, entry.colour, line)
        else:
            draw.rectangle((left, middle - half, right, middle + half), entry.colour, (150, 150, 150))
    draw.text((right + round(px * 0.5), top), drawable(entry.text), INK, font(px))
