"""Read the structure of a TIFF slide: levels, associated images, and the stated resolution."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from slideio_pipe.errors import CorruptSlideError, UnsupportedSlideError
from slideio_pipe.files import pread
from slideio_pipe.geometry import Mpp, Size
from slideio_pipe.slides.backends.jpeg_header import holds_ycbcr, read_frame
from slideio_pipe.slides.backends.levels import UNKNOWN_TILE, place_levels
from slideio_pipe.slides.backends.tiff_levels import chain_levels, same_aspect, segment_size, whole_pages
from slideio_pipe.slides.backends.tiff_resolution import objective_power, properties, stated_mpp
from slideio_pipe.slides.backends.tiff_samples import (
    BLACK_IS_ZERO,
    PALETTE,
    RGB,
    WHITE_IS_ZERO,
    YCBCR,
    Samples,
    samples_of,
)
from slideio_pipe.slides.backends.tiff_tags import page_name, raw, text

JPEG = 7
# Compressions that the libvips of pyvips-binary decodes; others become noise without an error (measured for zstd).
LIBVIPS_COMPRESSIONS = frozenset({1, 5, JPEG, 8, 32946, 32773, 50001})
# Aperio's YCbCr variant of JPEG 2000 needs a colour conversion that only OpenSlide is known to do correctly.
APERIO_JPEG2000_YCBCR = 33003
OLD_JPEG = 6
_PHOTOMETRICS = frozenset({WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR})
_CONTIGUOUS = 1
# A strip is decoded as a whole: 1.5 GB. Larger ones are left to libvips, if it supports them.
_MAX_STRIP_PX = 500_000_000
_ICC_PROFILE = 34675
# tifffile's warnings on a damaged header reach the user as our errors, not also on the terminal.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


@dataclass(frozen=True, eq=False)
class TiffPage:
    """One directory of the file with an image; compared by identity, so that it can be a dictionary key."""

    size: Size
    tile: Size  # stored tile, or a strip as wide as the image
    tiled: bool
    directory: int  # libvips' page=
    subifd: int  # libvips' subifd=, -1 for the directory itself
    compression: int
    tagged_ycbcr: bool
    colour_tag_wrong: bool  # the JPEG holds another colour model than the tag says
    last_tile_short: (
        bool  # the last tile's JPEG is smaller than a tile: libvips would use its rows as those of a whole one
    )
    samples: Samples  # conversion of stored samples to RGB
    page: Any  # tifffile.TiffPage, closed file: tags, byte ranges and decoder remain usable

    @cached_property
    def libvips_reads_it(self) -> bool:
        """Whether libvips decodes the page correctly, and reports an error when it cannot.

        Pages that we can decode ourselves are not left to libvips where it

        - refuses the page: missing tiles or tiles much larger than the page, strips after a warning on the header;
        - is silently wrong: YCbCr that is not JPEG, a fourth sample that is not alpha, a JPEG of another size or model;
        - returns white on failure: alpha, because undecoded pixels are transparent.
        """
        if (
            self.compression not in LIBVIPS_COMPRESSIONS
            or self.colour_tag_wrong
            or self.last_tile_short
            or self.in_planes
        ):
            return False
        codes = self.tagged_ycbcr and self.compression not in tifffile.TIFF.IMAGE_COMPRESSIONS
        four = int(self.page.samplesperpixel) == 4
        if self._undecodable:
            return not (codes or (four and not self.samples.alpha) or self.leaves_out_tiles)
        large = max(self.tile) > max(self.size)
        return self.tiled and not (large or codes or four or self.leaves_out_tiles)

    @property
    def in_planes(self) -> bool:
        """Whether tiles hold one channel each."""
        return int(self.page.planarconfig) != _CONTIGUOUS and int(self.page.samplesperpixel) > 1

    @property
    def leaves_out_tiles(self) -> bool:
        """Whether some tiles are not stored."""
        return 0 in self.page.databytecounts or 0 in self.page.dataoffsets

    @property
    def refusal(self) -> str:
        """Why neither libvips nor imagecodecs decodes the page; empty if one does."""
        return "" if self.libvips_reads_it else self._undecodable

    @cached_property
    def _undecodable(self) -> str:
        """Why we cannot decode the page tile by tile; empty if we can."""
        if self.compression == OLD_JPEG:
            return "old-style JPEG (TIFF compression 6, which JPEG in TIFF replaced in 1995) is not supported"
        if self.compression not in tifffile.TIFF.DECOMPRESSORS or self.compression == APERIO_JPEG2000_YCBCR:
            return f"TIFF compression {self.compression} is not supported"
        if int(self.page.photometric) not in _PHOTOMETRICS:
            return f"{_name(self.page.photometric)} pixels in TIFF compression {self.compression} are not supported"
        if not self.tiled and self.tile.width * self.tile.height > _MAX_STRIP_PX:
            strip = f"strips of {self.tile.width}×{self.tile.height} px"
            return f"{strip} in TIFF compression {self.compression} are too large"
        if self.page.dtype != np.uint8 or self.page.bitspersample != 8:
            return f"pixels are {_bits(self.page)}"
        return self.samples.refusal


@dataclass(frozen=True)
class TiffHeader:
    """The information that ``open_slide`` needs of a TIFF, read without decoding a pixel."""

    vendor: str
    levels: tuple[TiffPage, ...]
    associated: dict[str, TiffPage]
    mpp: Mpp | None
    objective_power: float | None
    properties: dict[str, str]
    icc_profile: bytes | None


def is_tiff(path: Path) -> bool:
    """Return whether the file begins like a TIFF or BigTIFF."""
    with path.open("rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_header(path: Path) -> TiffHeader:
    """Read the structure of a TIFF slide; no pixel is decoded.

    Raise CorruptSlideError if the directories are damaged, or tiles are beyond the end of the file (a truncated copy);
    UnsupportedSlideError if it is not a TIFF, or has 16-bit or multi-channel pixels.
    """
    name = path.name
    if not is_tiff(path):
        raise UnsupportedSlideError("not a TIFF", slide=name, remedy='pass {backend="auto"}')
    try:
        with tifffile.TiffFile(path) as tif:
            return _header(tif, path)
    except (CorruptSlideError, UnsupportedSlideError):
        raise
    except Exception as error:  # damage may raise anything in tifffile: struct.error, KeyError, TypeError, …
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _damaged(f"the TIFF header cannot be read ({reason})", name) from error


def _damaged(reason: str, name: str) -> CorruptSlideError:
    return CorruptSlideError(reason, slide=name, remedy="copy or download the slide again")


def _header(tif: tifffile.TiffFile, path: Path) -> TiffHeader:
    tif.pages.cache = True  # else tifffile parses all earlier pages on each access
    pages = whole_pages(_with_clean_tags(tif.pages))
    if not pages:
        raise _damaged("the TIFF holds no whole image (truncated, or zero size)", path.name)
    _check_chain(tif, pages[-1].offset, path)
    level_pages = _ome_levels(tif) if tif.is_ome else chain_levels(pages, tif.filehandle.fileno())
    for page in level_pages:
        _check_pixels(page, path.name)
    level_pages = _placed(level_pages, path.name)
    used = {page.offset for page in level_pages}
    others = [page for page in pages if page.offset not in used]
    size = path.stat().st_size
    for page in [*level_pages, *others]:
        _check_complete(page, size, path.name)
    base, places = level_pages[0], _places(tif.pages)
    vendor = "ome" if tif.is_ome else "aperio" if base.description.startswith("Aperio ") else "generic-tiff"
    stated = properties(base, vendor)
    return TiffHeader(
        vendor=vendor,
        levels=tuple(_describe(page, tif, places) for page in level_pages),
        associated=_associated(others, base, tif, places),
        mpp=stated_mpp(tif, base, vendor, stated),
        objective_power=objective_power(tif, vendor, stated),
        properties=stated,
        icc_profile=raw(base, _ICC_PROFILE) or None,
    )


def _with_clean_tags(pages: Iterable[Any]) -> Iterator[Any]:
    """Yield the pages with tag values of any type and encoding converted to their meaning.

    tifffile leaves texts that it cannot decode as bytes, and then detects no vendor; an ICC profile may have any type.
    """
    for page in pages:
        page.description = text(page)
        for attribute in ("photometric", "planarconfig", "tilewidth", "tilelength", "imagelength"):
            value = getattr(page, attribute)
            if isinstance(value, bytes):  # type BYTE, which libtiff allows
                setattr(page, attribute, value[0])
        yield page


def _ome_levels(tif: tifffile.TiffFile) -> list[Any]:
    """Return the pages of the largest OME series in this file, its SubIFD or page levels included."""
    own = [one for one in tif.series if one.keyframe.parent.filehandle.path == tif.filehandle.path]
    series = max(own or tif.series, key=lambda s: s.shape[s.axes.index("Y")] * s.shape[s.axes.index("X")])
    extra = [f"{axis}={n}" for axis, n in zip(series.axes, series.shape, strict=True) if axis not in "YXS" and n > 1]
    if extra:
        raise UnsupportedSlideError(
            f"the OME image has several planes ({', '.join(extra)})",
            slide=Path(tif.filehandle.path).name,
            remedy="channels, z-stacks and time series must be rendered to one RGB plane first",
        )
    return [level.keyframe for level in series.levels]


def _placed(pages: list[Any], name: str) -> list[Any]:
    """Return the levels without those that seem padded to whole tiles: a TIFF does not state their placement."""
    sizes = [Size(int(page.imagewidth), int(page.imagelength)) for page in pages]
    tiles = [Size(int(page.tilewidth), int(page.tilelength)) if page.is_tiled else UNKNOWN_TILE for page in pages]
    return [pages[index] for index in place_levels(sizes, [None] * len(pages), tiles, name).kept]


def _check_pixels(page: Any, name: str) -> None:
    if page.dtype != np.uint8 or page.bitspersample != 8:
        raise UnsupportedSlideError(
            f"pixels are {_bits(page)}, not 8-bit",
            slide=name,
            remedy="export the channels you need as an 8-bit RGB image first",
        )
    channels = (1, 3) if int(page.photometric) in (WHITE_IS_ZERO, BLACK_IS_ZERO, PALETTE) else (1, 3, 4)
    if page.samplesperpixel not in channels or int(page.photometric) not in _PHOTOMETRICS:
        raise UnsupportedSlideError(
            f"pixels have {page.samplesperpixel} channels ({_name(page.photometric)}), not RGB",
            slide=name,
            remedy="multi-channel images (fluorescence, CMYK) must be rendered to RGB first",
        )


def _bits(page: Any) -> str:
    """Return the type of a sample: "uint16", "4-bit"."""
    bits = page.bitspersample
    if isinstance(bits, tuple):
        return "-".join(map(str, bits)) + "-bit"
    return f"{bits}-bit" if page.dtype is None or page.dtype.itemsize == 1 else str(page.dtype)


def _name(photometric: Any) -> str:
    return getattr(photometric, "name", f"photometric {photometric}")


def _check_chain(tif: tifffile.TiffFile, last: int, path: Path) -> None:
    """Raise CorruptSlideError if the directory at byte ``last`` links beyond the file, which tifffile only logs."""
    layout, file = tif.tiff, tif.filehandle
    file.seek(last)
    (entries,) = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))
    file.seek(last + layout.tagnosize + entries * layout.tagsize)
    (following,) = struct.unpack(layout.offsetformat, file.read(layout.offsetsize))
    if following >= file.size:
        reason = f"the file is truncated: its next directory is at byte {following:,}, it has {file.size:,}"
        raise _damaged(reason, path.name)


def _check_complete(page: Any, size: int, name: str) -> None:
    offsets, counts = np.asarray(page.dataoffsets, np.int64), np.asarray(page.databytecounts, np.int64)
    end = int((offsets + counts).max(initial=0))
    if end > size:
        raise _damaged(f"the file is truncated: its tiles reach byte {end:,}, it has {size:,}", name)


def _describe(page: Any, tif: tifffile.TiffFile, places: Mapping[int, tuple[int, int]]) -> TiffPage:
    directory, subifd = places[page.offset]
    tagged_ycbcr = int(page.photometric) == YCBCR
    size = Size(int(page.imagewidth), int(page.imagelength))
    tile = segment_size(page)
    if min(tile) < 1:
        raise ValueError("a stored tile has no pixels")
    return TiffPage(
        size=size,
        tile=tile,
        tiled=bool(page.is_tiled),
        directory=directory,
        subifd=subifd,
        compression=int(page.compression),
        tagged_ycbcr=tagged_ycbcr,
        colour_tag_wrong=_jpeg_is_ycbcr(page, tif, tagged_ycbcr) != tagged_ycbcr,
        last_tile_short=_last_jpeg_is_short(page, tif),
        samples=samples_of(page),
        page=page,
    )


def _places(pages: Sequence[Any]) -> dict[int, tuple[int, int]]:
    """Return (directory, SubIFD or -1) by byte offset: in a series tifffile counts SubIFDs from 1."""
    places = {page.offset: (directory, -1) for directory, page in enumerate(pages)}
    for directory, page in enumerate(pages):
        for index, offset in enumerate(page.subifds or ()):
            places.setdefault(offset, (directory, index))
    return places


def _jpeg_is_ycbcr(page: Any, tif: tifffile.TiffFile, tagged_ycbcr: bool) -> bool:
    """Return whether the first stored tile of a three-sample JPEG page is YCbCr."""
    if int(page.compression) != JPEG or page.samplesperpixel != 3:
        return tagged_ycbcr
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
        if count:
            frame = read_frame(pread(tif.filehandle.fileno(), min(int(count), 4096), int(offset)))
            return tagged_ycbcr if frame is None else holds_ycbcr(frame, tagged_ycbcr=tagged_ycbcr)
    return tagged_ycbcr


def _last_jpeg_is_short(page: Any, tif: tifffile.TiffFile) -> bool:
    if int(page.compression) != JPEG or not page.is_tiled or not page.databytecounts:
        return False
    count, offset = int(page.databytecounts[-1]), int(page.dataoffsets[-1])
    frame = read_frame(pread(tif.filehandle.fileno(), min(count, 4096), offset)) if count else None
    return frame is not None and (frame.width < page.tilewidth or frame.height < page.tilelength)


def _associated(
    pages: list[Any], base: Any, tif: tifffile.TiffFile, places: Mapping[int, tuple[int, int]]
) -> dict[str, TiffPage]:
    """Name the pages that are not levels: label, macro, thumbnail, else by position in the file."""
    named: dict[str, TiffPage] = {}
    for page in pages:
        name = page_name(page)
        if not name:  # a tiled page with a tiled slide's shape was compared: it shows something else
            thumbnail = same_aspect(base, page) and page.is_tiled != base.is_tiled
            name = "thumbnail" if thumbnail else f"page-{page.index}"
        named.setdefault(name if name not in named else f"page-{page.index}", _describe(page, tif, places))
    return named
