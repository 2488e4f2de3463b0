"""Pictures of a bag: its tiles on the slide, and a sample of them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from slideio_pipe.images import picture
from slideio_pipe.images.explained import explained
from slideio_pipe.images.lettering import text_px
from slideio_pipe.slides.slide import Slide
from slideio_pipe.tiles.tile_bag import TileBag

# Size of text in an overview, which a report shows at two fifths of its size.
_SMALL_PX = 26
# Longer side of a slide, and side of a tile, in the sheet.
_SIDE_PX, _TILE_PX = 640, 118


def sheet(slide: Slide, bag: TileBag) -> Image.Image:
    """Return a picture of an export: the slide, its tissue and tiles, and a montage of the bag."""
    mask, mpp = bag.grid.mask, bag.view_mpp
    tissue = "" if mask is None else f", {mask.fraction:.0%} tissue"
    label = "" if bag.label is None else f", label {bag.label}"
    mpps = getattr(bag, "mpps", ()) or ((mpp,) if mpp is not None else ())
    at = f" of {', '.join(f'{each.mean:.3g}' for each in mpps)} µm" if mpps else ""
    plain = picture.fit(slide.thumbnail(_SIDE_PX), _SIDE_PX)
    tiled = bag.grid.drawn(_SIDE_PX)
    side, several = bag.shape[-2], len(bag.shape) == 5
    shown, tile_px = bag.plot(8 if several else 20, _TILE_PX, titled=False), max(1.0, side / _TILE_PX)
    um = None if slide.mpp is None else slide.mpp.x * slide.dimensions.width / plain.width
    tile_um = None if mpp is None or several else mpp.x * tile_px  # one bar is not for several magnifications
    px = text_px(plain.width + tiled.width + shown.width)
    return picture.beside(
        [
            explained(plain, f"{bag.name}{label}", um_per_px=um, px=px),
            explained(tiled, f"{len(bag):,} tiles{tissue}", keys=bag.grid.legend(), px=px),
            explained(shown, f"tiles of {side} px{at}", um_per_px=tile_um, px=px),
        ],
        gap=0,
    )


def overview(slide: Slide, bag: TileBag, side_px: int = 320) -> Image.Image:
    """Return the slide, its tissue and its tiles side by side, each at most ``side_px`` wide and high."""
    grid = bag.grid
    plain = picture.fit(slide.thumbnail(side_px), side_px)
    tissue = plain if grid.mask is None else picture.tint_mask(plain, grid.mask.mask)
    corners = grid.corners_level0() * (plain.width / slide.dimensions.width)
    least = corners.min(axis=1)
    tiles = picture.draw_boxes(tissue, np.hstack([least, corners.max(axis=1) - least]))
    width = slide.dimensions.width / plain.width
    shown = plain if slide.mpp is None else picture.scale_bar(plain, slide.mpp.x * width, px=_SMALL_PX)
    return picture.beside([shown, tissue, tiles], gap=6)
