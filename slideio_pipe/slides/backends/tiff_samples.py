"""Convert the stored samples of a TIFF page to RGB: palette, grey, alpha, and luma and chroma.

Formulae are those of TIFF 6.0: section 18 (``ExtraSamples``), 20 (``ReferenceBlackWhite``) and 21 (YCbCr).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from slideio_pipe.images.vips import to_rgb

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
_UNSPECIFIED, _PREMULTIPLIED = 0, 1
_JPEG2000 = frozenset({33003, 33004, 33005, 34712})
_SUBSAMPLING = (1, 2, 4)
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, the default of YCbCrCoefficients
_REFERENCE = (0.0, 255.0, 128.0, 255.0, 128.0, 255.0)  # the default of ReferenceBlackWhite: no headroom


@dataclass(frozen=True, eq=False)
class YCbCr:
    """Luma and chroma that the codec does not convert."""

    subsampling: tuple[int, int] | None  # luma samples per chroma sample along x and y; None if not stated
    matrix: NDArray[np.float32]  # (3, 3): from (Y, Cb, Cr) to (R, G, B)
    offset: NDArray[np.float32]  # (3,): added to them

    def rgb(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return (H, W, 3) RGB of (H, W, 3) Y, Cb, Cr."""
        converted = pixels.astype(np.float32) @ self.matrix.T + self.offset
        return np.asarray(np.clip(np.rint(converted), 0, 255), np.uint8)

    def unpack(self, raw: NDArray[np.uint8], width: int, rows: int) -> NDArray[np.uint8]:
        """Return the (rows, width, 3) Y, Cb, Cr of decompressed data units; chroma is repeated.

        A data unit is the luma of ``x`` × ``y`` pixels, row by row, then one Cb and one Cr.
        """
        x, y = self.subsampling or (2, 2)
        if self.subsampling is None and raw.size >= width * rows * 3:  # some writers omit the tag; its default is 2, 2
            x, y = 1, 1
        across, down = -(-width // x), -(-rows // y)
        needed = across * down * (x * y + 2)
        if raw.size < needed:
            raise ValueError(f"{raw.size} of {needed} bytes are there")
        units = raw[:needed].reshape(down, across, x * y + 2)
        luma = units[..., : x * y].reshape(down, across, y, x).transpose(0, 2, 1, 3).reshape(down * y, across * x, 1)
        chroma = units[..., x * y :].repeat(y, axis=0).repeat(x, axis=1)
        return np.concatenate([luma, chroma], axis=2)[:rows, :width]


@dataclass(frozen=True, eq=False)
class Samples:
    """The colour model of a page, as stated in its tags."""

    photometric: int
    alpha: bool  # the fourth sample is alpha; else it is dropped
    premultiplied: bool
    palette: NDArray[np.uint8] | None  # (256, 3)
    ycbcr: YCbCr | None
    refusal: str  # why the samples cannot be converted; empty if they can

    def rgb(self, pixels: NDArray[np.uint8], stream: bytes = b"") -> NDArray[np.uint8]:
        """Return (H, W, 3) RGB of decoded samples (H, W, channels); ``stream`` is their encoded bytes."""
        if self.palette is not None:
            return np.asarray(self.palette[pixels[..., 0]])
        if self.photometric == WHITE_IS_ZERO:
            pixels = np.invert(pixels)
        if self.ycbcr is not None and pixels.shape[2] >= 3 and not _colours_decoded(stream):
            pixels = np.concatenate([self.ycbcr.rgb(pixels[..., :3]), pixels[..., 3:]], axis=2)
        if pixels.shape[2] != 4:
            return to_rgb(pixels)
        if not self.alpha:
            return np.ascontiguousarray(pixels[..., :3])
        if self.premultiplied:
            on_white = pixels[..., :3] + (255 - pixels[..., 3:].astype(np.uint16))
            return np.asarray(np.minimum(on_white, 255), np.uint8)
        return to_rgb(pixels)


def samples_of(page: Any) -> Samples:
    """Return the colour model of a ``tifffile.TiffPage`` whose file is open."""
    photometric, extra = int(page.photometric), [int(meaning) for meaning in page.extrasamples]
    palette = _palette(page) if photometric == PALETTE else None
    ycbcr, refusal = None, ""
    if photometric == YCBCR and _samples_are_stored(page):
        ycbcr, refusal = _ycbcr(page)
    if photometric == PALETTE and (palette is None or int(page.samplesperpixel) != 1):
        refusal = "palette pixels without a ColorMap of 256 colours are not supported"
    return Samples(
        photometric=photometric,
        # Without the tag all readers treat the fourth sample as alpha; "unspecified" means that it is not (section 18).
        alpha=not extra or extra[0] != _UNSPECIFIED,
        premultiplied=bool(extra) and extra[0] == _PREMULTIPLIED,
        palette=palette,
        ycbcr=ycbcr,
        refusal=refusal,
    )


def _samples_are_stored(page: Any) -> bool:
    """Return whether the codec has no colour model, or is JPEG 2000, which states it in the stream."""
    compression = int(page.compression)
    return compression not in tifffile.TIFF.IMAGE_COMPRESSIONS or compression in _JPEG2000


def _ycbcr(page: Any) -> tuple[YCbCr | None, str]:
    subsampling = page.tags.valueof("YCbCrSubSampling")
    subsampling = None if subsampling is None else (int(subsampling[0]), int(subsampling[1]))
    luma = _numbers(page, "YCbCrCoefficients", _LUMA)
    reference = _numbers(page, "ReferenceBlackWhite", _REFERENCE)
    if luma is None or min(luma) <= 0:
        return None, "its YCbCrCoefficients are no weights of red, green and blue"
    if reference is None or any(white == black for black, white in zip(reference[::2], reference[1::2], strict=True)):
        return None, "its ReferenceBlackWhite has no range"
    if subsampling is not None and not set(subsampling) <= set(_SUBSAMPLING):
        return None, f"YCbCr subsampled by {subsampling} is not supported"
    if int(page.compression) not in _JPEG2000 and subsampling not in (None, (1, 1)):
        if int(page.planarconfig) != 1 or int(page.samplesperpixel) != 3:
            return None, "subsampled YCbCr in planes or with alpha is not supported"
        if int(page.predictor) != 1:
            return None, "subsampled YCbCr with a predictor is not supported"
    return YCbCr(subsampling, *_conversion(luma, reference)), ""


def _conversion(
    luma: tuple[float, ...], reference: tuple[float, ...]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the matrix and the offset of YCbCr to RGB: codes to full range, then luma and chroma to RGB."""
    red, green, blue = luma
    blacks, whites = np.array(reference[::2]), np.array(reference[1::2])
    scale = np.array([255.0, 127.0, 127.0]) / (whites - blacks)
    to_colours = np.array(
        [
            [1, 0, 2 - 2 * red],
            [1, -blue * (2 - 2 * blue) / green, -red * (2 - 2 * red) / green],
            [1, 2 - 2 * blue, 0],
        ]
    )
    matrix = to_colours * scale
    return matrix.astype(np.float32), (-matrix @ blacks).astype(np.float32)


def _numbers(page: Any, tag: str, default: tuple[float, ...]) -> tuple[float, ...] | None:
    """Return the rationals of a tag as numbers, the default without the tag, None if they are not numbers."""
    stored = page.tags.valueof(tag)
    if stored is None:
        return default
    values = np.asarray(stored, float).ravel()
    if values.size == 2 * len(default):  # numerator, denominator
        with np.errstate(divide="ignore", invalid="ignore"):
            values = values[::2] / values[1::2]
    if values.size != len(default) or not all(map(math.isfinite, values)):
        return None
    return tuple(values.tolist())


def _palette(page: Any) -> NDArray[np.uint8] | None:
    stored = page.tags.valueof("ColorMap")
    colours = np.asarray([] if stored is None else stored, np.uint16)
    if colours.size != 3 * 256:
        return None
    colours = colours.reshape(3, 256).T
    # Old writers fill in bytes instead of 16 bits; libtiff handles this too.
    return (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)


def _colours_decoded(stream: bytes) -> bool:
    """Return whether a JPEG 2000 codestream has a component transform: then its decoder returns RGB.

    The marker COD, ITU-T T.800, A.6.1: length, style, progression order, layers, then the transform.
    """
    if stream[:4] not in (b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0c"):
        return False
    start = stream.find(b"\xff\x4f\xff\x51")
    found = stream.find(b"\xff\x52", start + 2)
    return start >= 0 and 0 <= found < len(stream) - 8 and stream[found + 8] == 1
