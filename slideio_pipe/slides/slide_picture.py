"""The picture of a slide, or of a part of it, with its title and a scale bar."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from slideio_pipe.arguments import whole_number
from slideio_pipe.errors import ConfigError
from slideio_pipe.images import picture
from slideio_pipe.slides.regions import RegionSource
from slideio_pipe.slides.view import SlideView


def slide_picture(slide: RegionSource, max_size: int, region: Any, *, titled: bool) -> Image.Image:
    """Return a slide with its longer side ``max_size`` px, or a region (x, y, width, height) of it, level-0 px."""
    most = whole_number(max_size, "a longer side", slide=slide.name, least=1)
    size = slide.pyramid.levels[0]
    if region is None:
        image, across = picture.fit(slide.thumbnail(most), most), float(size.width)
    else:
        image, across = _part(slide, region, most)
    wide, high = size if region is None else region[2:]
    at = "" if region is None else f", from x {region[0]:,.0f}, y {region[1]:,.0f}"
    mpp = "" if slide.mpp is None else f" of {slide.mpp.mean:.3g} µm"
    um_per_px = None if slide.mpp is None else slide.mpp.x * across / image.width
    title = f"{slide.name}: {wide:,} × {high:,} px{mpp}{at}"
    return picture.finished(image, title, titled=titled, um_per_px=um_per_px)


def _part(slide: RegionSource, region: Any, max_size: int) -> tuple[Image.Image, float]:
    """Return a part of a slide, its longer side at most ``max_size`` px, and its width in level-0 px.

    Raise ConfigError if ``region`` is not (x, y, width, height) in level-0 px.
    """
    x, y, *size = region if hasattr(region, "__len__") and len(region) == 4 else (0, 0)
    if not size:
        remedy = "pass (x, y, width, height) in level-0 px"
        raise ConfigError(f"a region of {region!r}", slide=slide.name, remedy=remedy)
    width, height = (whole_number(side, "a side of a region", slide=slide.name, least=1) for side in size)
    factor = max(1.0, max(width, height) / max_size)
    view = SlideView(slide, slide.pyramid.choose((factor, factor)))
    across, down = view.downsample
    cropped = view.crop(x, y, (max(1, round(width / across)), max(1, round(height / down))))
    return picture.fit(np.asarray(cropped), max_size), cropped.width * across
