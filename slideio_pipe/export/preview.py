"""Pictures of a bag: its tiles on the slide, and a sample of them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from slideio_pipe.images import picture
from slideio_pipe.slides.slide import Slide
from slideio_pipe.tiles.tile_bag import TileBag


def sheet(slide: Slide, bag: TileBag) -> Image.Image:
    """Return a picture of an export: the slide, its tissue and tiles, and a montage of the bag."""
    mask, mpp = bag.grid.mask, bag.view_mpp
    tissue = "" if mask is None else f", {mask.fraction:.0%} of the slide is tissue"
    label = "" if bag.label is None else f", label {bag.label}"
    at = "" if mpp is None else f", {mpp.mean:.3g} µm per pixel"
    return picture.beside(
        [
            picture.captioned(slide.plot(640), f"{bag.name}{label}"),
            picture.captioned(bag.grid.plot(640), f"{len(bag):,} tiles{tissue}"),
            picture.captioned(bag.plot(20, 118), f"tiles of the bag{at}"),
        ]
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
    shown = plain if slide.mpp is None else picture.scale_bar(plain, slide.mpp.x * width)
    return picture.beside([shown, tissue, tiles], gap=6)
