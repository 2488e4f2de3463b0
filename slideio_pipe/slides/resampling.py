"""Sample one piece of pixels through an affine, or shrink it: by the compiled programs, else by OpenCV and Pillow."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slideio_pipe.compiled.library import Programs, load
from slideio_pipe.compiled.records import BY_SHRINKING, TILE
from slideio_pipe.geometry import Affine


def warp(
    pixels: NDArray[np.uint8], affine: Affine, out: NDArray[np.uint8], *, outside: int = 255, sigma: float = 0.0
) -> None:
    """Write pixels into ``out`` through an affine from ``out`` px to px of ``pixels``, both corner-based; bilinear.

    The compiled programs interpolate with weights of 14 bits; OpenCV, where there are none, at 1/32 of a pixel.

    Parameters
    ----------
    pixels, out : (h, w, 3) uint8, C-contiguous
    outside : int
        Grey level around ``pixels``.
    sigma : float
        Standard deviation of a Gaussian on ``pixels``, px.

    Examples
    --------
    >>> pixels = np.arange(4, dtype=np.uint8).reshape(1, 4, 1).repeat(3, axis=2)
    >>> warp(pixels, Affine.translation(1, 0), out := np.empty((1, 4, 3), np.uint8))
    >>> out[0, :, 0].tolist()
    [1, 2, 3, 255]
    """
    # Pixel centres are at whole numbers in both executors; ours are at halves.
    half = Affine.translation(0.5, 0.5)
    centred = half.inverse() @ affine @ half
    programs = load()
    if programs is None:
        _by_opencv(pixels, centred, out, outside, sigma)
    else:
        _compiled(programs, pixels, centred, out, outside, sigma)


def shrink(pixels: NDArray[np.uint8], box: tuple[float, float, float, float], out: NDArray[np.uint8]) -> None:
    """Write the part ``box`` (left, top, right, lower) of pixels into ``out``, by a triangle filter, antialiased.

    The filter is Pillow's BILINEAR, also torchvision's antialiased resize: at the edges of ``pixels`` it is cropped and
    normalised. An enlarged part is interpolated.

    Parameters
    ----------
    pixels : (h, w, 3) uint8, C-contiguous
    box : float
        In px of ``pixels``; may begin between pixels, and extend half a pixel beyond them.
    out : (H, W, 3) uint8

    Examples
    --------
    >>> shrink(np.full((4, 4, 3), 90, np.uint8), (0.0, 0.0, 3.0, 3.0), out := np.empty((2, 2, 3), np.uint8))
    >>> int(out.min()), int(out.max())
    (90, 90)
    """
    programs = load()
    if programs is None:
        height, width = pixels.shape[:2]
        inside = (max(0.0, box[0]), max(0.0, box[1]), min(float(width), box[2]), min(float(height), box[3]))
        size = (out.shape[1], out.shape[0])
        out[:] = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR, box=inside))
        return
    target = out if out.flags.c_contiguous else np.empty(out.shape, np.uint8)
    rows, columns = out.shape[:2]
    across, down = (box[2] - box[0]) / columns, (box[3] - box[1]) / rows
    tile, block = _program(pixels, target)
    tile["affine"], tile["way"] = (across, 0, box[0] / across, 0, down, box[1] / down), BY_SHRINKING
    tile["right"], tile["bottom"] = columns, rows
    programs.run(tile, 0, 1, columns, rows)
    del block
    if target is not out:
        out[:] = target


def _program(pixels: NDArray[np.uint8], out: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[np.uint64]]:
    """Return the program of a tile made from one piece of pixels, and the memory that it points to."""
    height, width = pixels.shape[:2]
    block = np.array([pixels.ctypes.data], np.uint64)
    tile = np.zeros(1, TILE)
    tile["out"] = out.ctypes.data
    source = tile["source"]
    source["blocks"], source["columns"], source["rows"] = block.ctypes.data, 1, 1
    source["block_width"], source["block_height"] = width, height
    source["level_width"], source["level_height"] = width, height
    return tile, block


def _compiled(
    programs: Programs, pixels: NDArray[np.uint8], centred: Affine, out: NDArray[np.uint8], outside: int, sigma: float
) -> None:
    tile, block = _program(pixels, out)
    tile["affine"], tile["outside"], tile["sigma"] = centred, outside, sigma
    programs.run(tile, 0, 1, out.shape[1], out.shape[0])
    del block


def _by_opencv(pixels: NDArray[np.uint8], centred: Affine, out: NDArray[np.uint8], outside: int, sigma: float) -> None:
    if sigma:
        pixels = np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE), np.uint8)
    # Of four channels OpenCV computes the same bytes in half the time, conversions included.
    height, width = out.shape[:2]
    flags, border = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, (outside,) * 4
    four = cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA)
    four = cv2.warpAffine(four, centred.matrix()[:2], (width, height), None, flags, cv2.BORDER_CONSTANT, border)
    cv2.cvtColor(four, cv2.COLOR_RGBA2RGB, out)
