"""A montage of the tiles with the highest scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from slideio_pipe.errors import ConfigError
from slideio_pipe.images import picture
from slideio_pipe.mil.prediction.score_map import TileScores
from slideio_pipe.slides.slide import Slide
from slideio_pipe.tiles.bag import Bag
from slideio_pipe.tiles.tile_bag import TileBag

_INK, _QUIET, _PAPER = (40, 40, 40), (120, 120, 120), (255, 255, 255)
_GAP_PX, _FRAME_PX, _TEXT_PX = 10, 3, 38
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
    step_x, step_y = tile_px + 2 * _FRAME_PX + _GAP_PX, tile_px + 2 * _FRAME_PX + _TEXT_PX + _GAP_PX
    columns = min(columns, max(1, len(order)))
    rows = -(-len(order) // columns)
    sheet = Image.new("RGB", (columns * step_x - _GAP_PX, max(1, rows * step_y - _GAP_PX)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(14), ImageFont.load_default(11)
    for place, (k, tile) in enumerate(zip(order.tolist(), tiles, strict=True)):
        x, y = (place % columns) * step_x, (place // columns) * step_y
        side = tile_px + 2 * _FRAME_PX
        red, green, blue = scores.scale.colours(scores.values[k]).tolist()
        draw.rectangle((x, y, x + side - 1, y + side - 1), (red, green, blue))
        shown = Image.fromarray(tile).resize((tile_px, tile_px), Image.Resampling.LANCZOS)
        sheet.paste(shown, (x + _FRAME_PX, y + _FRAME_PX))
        left, top = scores.coords[k].tolist()
        draw.text((x + 1, y + side + 3), scores.scale.text(float(f"{scores.values[k]:.3g}")), _INK, large)
        draw.text((x + 1, y + side + 22), f"x {left:,}  y {top:,}", _QUIET, small)
    title = f"{scores.slide}: highest {scores.scale.name}{' (' + scores.scale.unit + ')' if scores.scale.unit else ''}"
    return ImageOps.expand(picture.captioned(sheet, title), 16, "white")


def _read(scores: TileScores, pixels: Slide | Bag, order: NDArray[np.int64]) -> NDArray[np.uint8]:
    if not isinstance(pixels, Slide):
        if len(pixels) != len(scores):
            reason = f"the bag has {len(pixels):,} tiles, the prediction {len(scores):,}"
            raise ConfigError(reason, slide=scores.slide, remedy="pass the bag that was predicted, or the slide")
        return pixels.read(order)
    side = scores.side_level0
    factor = max(1.0, side / _MOST_PX)
    own = pixels.mpp
    view = pixels.view() if own is None else pixels.view(mpp=(own.x * factor, own.y * factor))
    # For rotated tiles, the upright square about their centre.
    middles = scores.corners_level0()[order].mean(1)
    size = max(1, round(side / view.downsample[0]))
    return TileBag.from_coords(view, middles - side / 2, size).read(np.arange(len(order)))
