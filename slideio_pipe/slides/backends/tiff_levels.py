"""Find the pages of a TIFF that are levels: those that show the largest page at lower resolution.

The header decides if it can. If it cannot (a page with the largest page's shape that is not marked as reduced, or any
such page when the file has a second full image), a few windows of both are decoded and compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from slideio_pipe.files import pread
from slideio_pipe.geometry import Size
from slideio_pipe.slides.backends.tiff_tags import is_aperio_level, page_name

_REDUCED_BIT, _MASK_BIT, _MACRO_BIT = 1, 4, 8
# Pixels that may be decoded per file for comparisons: 256 tiles of 256 px, about 0.2 s of JPEG.
_MAX_DECODED_PX = 2**24
# After this many pages with other content, the remaining ones are not compared: a file of a thousand images.
_MAX_OTHERS = 8
# Largest side of a window, in the coarser page and in the finer page.
_WINDOW_PX, _FINE_WINDOW_PX = 32, 512
_GRID = 3  # windows along each side, beside those at the largest stored tiles
# Standard deviation in grey levels above which a window has content: JPEG noise on glass has 2 to 3.
_CONTRAST = 6.0
# Windows of a level correlate with the finer level for any shrinking method; those of another image only by chance,
# except for windows on an outline that both share.
_SAME_CORRELATION, _SAME_WINDOWS = 0.6, 0.8
# Largest difference of a window's means in grey levels: every n-th pixel of a coarse texture may cause it.
_SAME_MEAN = 16.0

Grey = NDArray[np.float32]


def whole_pages(pages: Iterable[Any]) -> list[Any]:
    """Return the pages that contain an image, with all their tags."""
    whole: dict[int, Any] = {}
    for page in pages:
        if page.offset in whole:  # a cycle that tifffile would follow forever
            raise ValueError("a directory links back to an earlier one")
        whole[page.offset] = page.aspage() if isinstance(page, tifffile.TiffFrame) else page
    return [page for page in whole.values() if page.imagewidth > 0 and page.imagelength > 0]


def chain_levels(pages: list[Any], file: int) -> list[Any]:
    """Return the pages and SubIFDs that show the largest page at lower resolution, in any position of the file.

    A level is tiled if the largest page is, has its aspect within a pixel or 2 %, the same samples, is smaller than the
    level before, and is neither marked nor named as something else. It is a SubIFD, or Aperio names it a level, or its
    mark allows nothing else; for any other page the content is compared with the level before.

    Parameters
    ----------
    pages : list of tifffile.TiffPage
    file : int
        The descriptor of the open TIFF.
    """
    tiled = [page for page in pages if page.is_tiled]
    chained = [page for page in tiled or pages if _may_be_level(page)] or list(pages)
    base = max(chained, key=lambda page: page.imagewidth * page.imagelength)
    inside = [page for page in whole_pages(base.pages or ()) if page.is_tiled == base.is_tiled and _may_be_level(page)]
    trusted = {page.offset for page in inside}
    trusted |= {page.offset for page in chained if is_aperio_level(page, base)}
    others = [page for page in chained if page is not base and page.offset not in trusted]
    if all(int(page.subfiletype or 0) & _REDUCED_BIT for page in others):  # reduced from the only full image
        trusted |= {page.offset for page in others}
    levels, looks = [base], _PageComparison(file)
    for page in sorted([*chained, *inside], key=lambda page: -page.imagewidth):
        smaller = page.imagewidth < levels[-1].imagewidth and page.imagelength <= levels[-1].imagelength
        alike = page.samplesperpixel == base.samplesperpixel and page.dtype == base.dtype
        fits = smaller and alike and same_aspect(base, page)
        if fits and (page.offset in trusted or looks.alike(levels[-1], page)):
            levels.append(page)
    return levels


def _may_be_level(page: Any) -> bool:
    return not int(page.subfiletype or 0) & (_MASK_BIT | _MACRO_BIT) and not page_name(page)


def same_aspect(base: Any, page: Any) -> bool:
    """Whether two pages have the same shape, within a pixel or 2 %."""
    scale = page.imagewidth / base.imagewidth
    expected = base.imagelength * scale
    return bool(abs(page.imagelength - expected) <= max(1.0, 0.02 * expected))


class _Span(NamedTuple):
    """A window along one side: its pixels in the coarser and in the finer page, and the step between them."""

    coarse: range
    fine: range
    step: float

    @classmethod
    def around(cls, place: float, small: int, large: int) -> _Span:
        """Return the window around ``place`` (fraction of 1); ``small`` and ``large`` px are the pages' sides."""
        step = large / small
        # A pyramid of every n-th pixel, or of n by n, drops the remainder at the end.
        if round(step) in (large // small, -(-large // small)) and small in (
            large // round(step),
            -(-large // round(step)),
        ):
            step = float(round(step))
        length = max(1, min(_WINDOW_PX, small, int(_FINE_WINDOW_PX / step)))
        start = min(max(0, round(place * small - length / 2)), small - length)
        first = min(int(start * step), large - 1)
        last = min(large, max(first + 1, round((start + length) * step)))
        return cls(range(start, start + length), range(first, last), step)

    def every_nth(self, shift: float) -> NDArray[np.int64]:
        """Return the pixels of the fine window at steps of n, starting at ``shift`` (fraction of n)."""
        steps = ((np.arange(len(self.coarse)) + shift) * self.step).astype(np.int64)
        return np.minimum(steps, len(self.fine) - 1)


class _PageComparison:
    """Compares pages of one file in a few windows, within a budget; beyond the budget no pages are alike."""

    def __init__(self, file: int) -> None:
        self._file, self._left_px, self._others = file, _MAX_DECODED_PX, 0
        self._decoded: dict[tuple[int, int], Grey] = {}

    def alike(self, finer: Any, page: Any) -> bool:
        """Whether both pages show the same. False in doubt: without a level the slide is only read slower."""
        if self._others == _MAX_OTHERS:
            return False
        windows = [pairs for place in _places(finer, page) if (pairs := self._windows(finer, page, place))]
        same = any(_all_alike(pairs) for pairs in zip(*windows, strict=True))
        self._others += not same
        return same

    def _windows(self, finer: Any, page: Any, place: tuple[float, float]) -> list[tuple[Grey, Grey]]:
        """Return the window around ``place`` (y, x) in both pages, for each possible shrinking method."""
        rows = _Span.around(place[0], page.imagelength, finer.imagelength)
        columns = _Span.around(place[1], page.imagewidth, finer.imagewidth)
        coarse = self._crop(page, rows.coarse, columns.coarse)
        fine = None if coarse is None else self._crop(finer, rows.fine, columns.fine)
        if coarse is None or fine is None:
            return []
        mean = _resized(fine, *coarse.shape)
        half = max(1, coarse.shape[0] // 2), max(1, coarse.shape[1] // 2)
        nearest = [fine[np.ix_(rows.every_nth(shift), columns.every_nth(shift))] for shift in (0.0, 0.5)]
        return [(coarse, mean), (_resized(coarse, *half), _resized(mean, *half)), *((coarse, way) for way in nearest)]

    def _crop(self, page: Any, rows: range, columns: range) -> Grey | None:
        """Return pixels of a page as grey; None if they cannot be decoded, or not within the budget."""
        out = np.empty((len(rows), len(columns)), np.float32)
        width, height = segment_size(page)
        across = -(-page.imagewidth // width)
        for row in range(rows.start // height, (rows.stop - 1) // height + 1):
            for column in range(columns.start // width, (columns.stop - 1) // width + 1):
                segment = self._segment(page, row * across + column)
                if segment is None:
                    return None
                y, x = row * height, column * width
                top, left = max(rows.start, y), max(columns.start, x)
                part = segment[top - y : rows.stop - y, left - x : columns.stop - x]
                target = out[top - rows.start :, left - columns.start :][: part.shape[0], : part.shape[1]]
                target[:] = part
        return out

    def _segment(self, page: Any, index: int) -> Grey | None:
        key = (page.offset, index)
        if key not in self._decoded:
            width, height = segment_size(page)
            self._left_px -= height * width
            if self._left_px < 0:
                return None
            try:
                self._decoded[key] = self._decode(page, index, (height, width))
            except Exception:  # codecs may raise anything; reading the slide reports the damage
                return None
        return self._decoded[key]

    def _decode(self, page: Any, index: int, shape: tuple[int, int]) -> Grey:
        out = np.full(shape, 255, np.float32)
        offset, count = int(page.dataoffsets[index]), int(page.databytecounts[index])
        if not (offset and count):  # a missing tile of one level cannot be compared
            raise ValueError("nothing is stored there")
        data = pread(self._file, count, offset)
        pixels = np.asarray(page.decode(data, index, jpegtables=page.jpegtables)[0])
        bands = np.moveaxis(pixels.reshape(pixels.shape[-3:]), 2, 0)
        grey = np.zeros(bands.shape[1:], np.float32)
        for band in bands:  # the mean along the last axis takes ten times as long
            grey += band / np.float32(len(bands))
        out[: grey.shape[0], : grey.shape[1]] = grey[: shape[0], : shape[1]]
        return out


def segment_size(page: Any) -> Size:
    """Return the size of a stored tile or strip."""
    if page.is_tiled:
        return Size(int(page.tilewidth), int(page.tilelength))
    height = int(page.imagelength)
    return Size(int(page.imagewidth), min(int(page.rowsperstrip or height), height))


def _resized(plane: Grey, height: int, width: int) -> Grey:
    return np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BOX), np.float32)


def _places(finer: Any, page: Any) -> list[tuple[float, float]]:
    """Return places (y, x, fractions of 1): in the largest stored tiles, which have content, and on a grid."""
    grid = [((row + 0.5) / _GRID, (column + 0.5) / _GRID) for row in range(_GRID) for column in range(_GRID)]
    return [*_fullest(page), *_fullest(finer), *grid]


def _fullest(page: Any) -> list[tuple[float, float]]:
    """Return the centres of the two stored tiles with most bytes; none if all are equal, as without compression."""
    counts = np.asarray(page.databytecounts, np.int64)
    if counts.size < 2 or counts.min() == counts.max():
        return []
    width, height = segment_size(page)
    down, across = -(-page.imagelength // height), -(-page.imagewidth // width)
    rows, columns = np.divmod(np.argsort(-counts[: down * across], kind="stable")[:2], across)
    y = np.minimum((rows + 0.5) * height / page.imagelength, 1)
    x = np.minimum((columns + 0.5) * width / page.imagewidth, 1)
    return list(zip(y.tolist(), x.tolist(), strict=True))


def _all_alike(windows: Iterable[tuple[Grey, Grey]]) -> bool:
    """Whether pairs of windows agree: all have similar means, and most of those with content correlate."""
    agreeing = []
    for one, other in windows:
        if abs(float(one.mean()) - float(other.mean())) > _SAME_MEAN:
            return False
        if max(float(one.std()), float(other.std())) > _CONTRAST:
            agreeing.append(_correlation(one, other) >= _SAME_CORRELATION)
    return bool(agreeing) and sum(agreeing) >= _SAME_WINDOWS * len(agreeing)


def _correlation(one: Grey, other: Grey) -> float:
    a, b = one - one.mean(), other - other.mean()
    spread = float((a * a).sum()) * float((b * b).sum())
    return float((a * b).sum()) / spread**0.5 if spread > 0 else 0.0
