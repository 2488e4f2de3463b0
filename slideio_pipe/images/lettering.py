"""Text in pictures: a font with µ, × and °, and sizes that are readable when a picture is shown 600 px wide."""

from __future__ import annotations

import io
import unicodedata
from functools import cache
from importlib.resources import files

from PIL import ImageFont

INK, QUIET, PAPER = (40, 40, 40), (95, 95, 95), (255, 255, 255)
# Text of 11 px when the picture is shown 600 px wide.
LEAST_PX, PX_PER_WIDTH = 14, 11 / 600
# DejaVu Sans reduced to Latin, Greek, Cyrillic, arrows and mathematical signs: 146 kB; its licence is beside it.
_FONT = "DejaVuSans-subset.ttf"


@cache
def font(px: int) -> ImageFont.FreeTypeFont:
    """Return the font at a size in px."""
    return ImageFont.truetype(io.BytesIO(files("slideio_pipe.images").joinpath(_FONT).read_bytes()), px)


def text_px(width: int) -> int:
    """Return the size of text in a picture of this width.

    >>> text_px(300), text_px(2000)
    (14, 37)
    """
    return max(LEAST_PX, round(width * PX_PER_WIDTH))


def text_width(text: str, px: int) -> int:
    """Return the width of a text in px."""
    return round(font(px).getlength(text))


def drawable(text: str) -> str:
    """Return the text with letters that the font lacks replaced: without their accents, or by "?".

    >>> drawable("0.5 µm, Präparat, 组织")
    '0.5 µm, Präparat, ??'
    """
    return "".join(letter if _has(letter) else _plain(letter) for letter in unicodedata.normalize("NFC", text))


def shortened(text: str, px: int, width: int) -> str:
    """Return the drawable text, with an ellipsis in its middle if it is wider than ``width`` px."""
    shown = drawable(text)
    if text_width(shown, px) <= width:
        return shown
    for kept in range(len(shown) - 1, 1, -1):
        head = kept - kept // 2
        candidate = f"{shown[:head].rstrip()}…{shown[len(shown) - kept // 2 :].lstrip()}"
        if text_width(candidate, px) <= width:
            return candidate
    return "…"


def _plain(letter: str) -> str:
    without = "".join(c for c in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(c))
    return "".join(c if _has(c) else "?" for c in without)


@cache
def _has(letter: str) -> bool:
    return letter == " " or bytes(font(LEAST_PX).getmask(letter)) != _missing()


@cache
def _missing() -> bytes:
    return bytes(font(LEAST_PX).getmask("\uffff"))
