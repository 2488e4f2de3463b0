"""Shared settings of libvips: no operation cache, conversion to RGB, and a check for forked processes."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pyvips
from numpy.typing import NDArray

from slideio_pipe.errors import ForkError, UnsupportedSlideError

# The operation cache keeps unused graphs, their files and decoded tiles in memory, and would return the old image of a
# replaced file. Each backend keeps what is worth sharing (one image per level).
pyvips.cache_set_max(0)

_LOADED_IN = os.getpid()
_WHITE = [255, 255, 255]


def check_process() -> None:
    """Raise ForkError in a child forked after libvips was loaded: its threads did not survive the fork.

    Raise ForkError if the next read would wait for a lock that is never released.
    """
    if os.getpid() != _LOADED_IN:
        raise ForkError(
            "libvips was loaded before this process was forked, and its threads did not survive",
            remedy='start workers by spawn: DataLoader(…, multiprocessing_context="spawn"), get_context("spawn").Pool',
        )


def as_rgb(image: Any, *, slide: str) -> Any:
    """Return a lazy 3-band uchar sRGB image: grey is repeated, alpha is flattened on white.

    Raise UnsupportedSlideError for 16-bit, floating point, multi-channel or CMYK pixels.
    """
    if image.format != "uchar":
        raise UnsupportedSlideError(
            f"pixels are {image.format}, not 8-bit",
            slide=slide,
            remedy="export the channels you need as an 8-bit RGB image first",
        )
    if image.bands in (2, 4) and image.hasalpha():
        image = image.flatten(background=_WHITE[: image.bands - 1])
    if image.bands == 1:
        image = image.colourspace("srgb") if image.interpretation == "b-w" else image.bandjoin([image, image])
    if image.bands != 3 or image.interpretation in ("cmyk", "lab", "labs", "xyz"):
        raise UnsupportedSlideError(
            f"pixels have {image.bands} channels ({image.interpretation}), not RGB",
            slide=slide,
            remedy="multi-channel images (fluorescence, CMYK) must be rendered to RGB first",
        )
    return image.copy(interpretation="srgb") if image.interpretation != "srgb" else image


def to_rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (H, W, 3) from (H, W, 1 | 3 | 4) uint8: grey is repeated, straight alpha is flattened on white."""
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    if pixels.shape[2] == 3:
        return pixels
    if (pixels[..., 3] == 255).all():
        return pixels[..., :3]
    alpha = pixels[..., 3:].astype(np.uint16)
    return np.asarray((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255, np.uint8)
