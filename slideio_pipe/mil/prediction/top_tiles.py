"""A montage of the tiles with the highest scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from slideio_pipe.errors import ConfigError
from slideio_pipe.images.explained import explained
from slideio_pipe.images.lettering import INK, PAPER, QUIET, font, text_px
from slideio_pipe.mil.prediction.score_map import TileScores
from slideio_pipe.slides.slide import Slide
from slideio_pipe.tiles.bag import Bag
from slideio_pipe.tiles.tile_bag import TileBag

_GAP_PX, _FRAME_PX = 10, 3
# Largest side of a shown tile in px.
_MOST_PX = 256


def draw_top_tiles(
    scores: TileScores, pixels: Slide | Bag, count: int = 16, *, columns: int = 8, tile_px: int = 128
) -> Image.Image:
    """Return a montage of the tiles with the highest scores, each with its score, position and a coloured frame.

    Parameters
    ----------
    scores : TileScores
    pixels : Slide or Bag
        Source of the pixels: the slide; or the bag that was predicted, in its order.
    count : int
    columns : int
    tile_px : int
        Side of a shown tile.
    """
    order = np.argsort(-scores.values, kind="stable")[:count]
    tiles = _read(scores, pixels, order)
    columns = min(columns, max(1, len(order)))
    side = tile_px + 2 * _FRAME_PX
    px = min(text_px(columns * (side + _GAP_PX)), side // 7)  # a line has up to eleven letters
    line = round(px * 1.35)
    step_x, step_y = side + _GAP_PX, side + 3 * line + _GAP_PX
    rows = -(-len(order) // columns)
    sheet = Image.new("RGB", (columns * step_x - _GAP_PX, max(1, rows * step_y - _GAP_PX)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, (k, tile) in enumerate(zip(order.tolist(), tiles, strict=True)):
        x, y = (place % columns) * step_x, (place // columns) * step_y
        red, green, blue = scores.scale.frames(scores.values[k]).tolist()
        draw.rectangle((x, y, x + side - 1, y + side - 1), (red, green, blue))
        shown = Image.fromarray(tile).resize((tile_px, tile_px), Image.Resampling.LANCZOS)
        sheet.paste(shown, (x + _FRAME_PX, y + _FRAME_PX))
        left, top = scores.coords[k].tolist()
        lines = (scores.scale.shown(float(f"{scores.values[k]:.3g}")), f"x {left:,}", f"y {top:,}")
        for number, text in enumerate(lines):
            draw.text((x + 1, y + side + 2 + number * line), text, QUIET if number else INK, font(px))
    unit = f", {scores.scale.unit}" if scores.scale.unit else ""
    title = f"{scores.slide}: highest {scores.scale.name}{unit}; frames have the colours of the heat map"
    return explained(sheet, title, um_per_px=_um_per_px(scores, pixels, tile_px))


def _um_per_px(scores: TileScores, pixels: Slide | Bag, tile_px: int) -> float | None:
    """Return the resolution of the shown tiles, if it is known."""
    if isinstance(pixels, Slide):
        return None if pixels.mpp is None else pixels.mpp.x * scores.side_level0 / tile_px
    return None if pixels.view_mpp is None else pixels.view_mpp.x * pixels.shape[-2] / tile_px


def _read(scores: TileScores, pixels: Slide | Bag, order: NDArray[np.int64]) -> NDArray[np.uint8]:
    if not isinstance(pixels, Slide):
        if len(pixels) != len(scores):
            reason = f"the bag has {len(pixels):,} tiles, the prediction {len(scores):,}"
            raise ConfigError(reason, slide=scores.slide, remedy="pass the bag that was predicted, or the slide")
        tiles = pixels.read(order)
        return tiles if tiles.ndim == 4 else tiles[:, 0]  # of several magnifications the finest
    side = scores.side_level0
    factor = max(1.0, side / _MOST_PX)
    own = pixels.mpp
    view = pixels.view() if own is None else pixels.view(mpp=(own.x * factor, own.y * factor))
    # For rotated tiles, the upright square about their centre.
    middles = scores.corners_level0()[order].mean(1)
    size = max(1, round(side / view.downsample[0]))
    return TileBag.from_coords(view, middles - side / 2, size).read(np.arange(len(order)))
