"""The structure of a TIFF slide: which pages are levels, which are associated images, what resolution they state."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import struct
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from slideio_pipe.backends.jpeg import holds_ycbcr, read_frame
from slideio_pipe.backends.tiff_samples import BLACK_IS_ZERO, PALETTE, RGB, WHITE_IS_ZERO, YCBCR, Samples, samples_of
from slideio_pipe.errors import CorruptSlideError, UnsupportedSlideError
from slideio_pipe.geometry import Mpp, Size

JPEG = 7
# What the libvips of pyvips-binary decodes; anything else it reads as noise without an error (measured for zstd).
LIBVIPS_COMPRESSIONS = frozenset({1, 5, JPEG, 8, 32946, 32773, 50001})
# Aperio's YCbCr flavour of JPEG 2000 needs a colour conversion that only OpenSlide is known to do right.
APERIO_JPEG2000_YCBCR = 33003
OLD_JPEG = 6
_PHOTOMETRICS = frozenset({WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR})
_CONTIGUOUS = 1
# A strip is decoded as a whole: 1.5 GB. Larger ones are left to libvips, where it can.
_MAX_STRIP_PX = 500_000_000
_MACRO_BIT = 8
_UNITS_UM = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
_INCH, _CENTIMETRE = 2, 3
# What tifffile has to say of a damaged header reaches the user as one of our errors, not also on the terminal.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


@dataclass(frozen=True, eq=False)
class TiffPage:
    """One directory of the file that holds an image; every one is its own, so that they can be dictionary keys."""

    size: Size
    tile: Size  # stored tile, or a strip as wide as the image
    tiled: bool
    directory: int  # libvips' page=
    subifd: int  # libvips' subifd=, -1 for the directory itself
    compression: int
    tagged_ycbcr: bool
    lies: bool  # the JPEG holds another colour model than the tag says
    cut: bool  # the last tile's JPEG is smaller than a tile: libvips would take its rows for those of a whole one
    samples: Samples  # how what is stored becomes RGB
    page: Any  # tifffile.TiffPage, closed file: tags, byte ranges and decoder remain usable

    @cached_property
    def libvips_reads_it(self) -> bool:
        """Whether libvips decodes the page, rightly, and says so when it cannot.

        What we can decode ourselves goes that way where libvips

        - refuses the page: tiles that are left out or much larger than the page, strips after a warning on the header;
        - is silently wrong: YCbCr that is not JPEG, a fourth sample that is no alpha, a JPEG of another size or model;
        - gives white where it fails: alpha, because what is not decoded is transparent.
        """
        if self.compression not in LIBVIPS_COMPRESSIONS or self.lies or self.cut or self.in_planes:
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
        """Whether nothing is stored of some tiles."""
        return 0 in self.page.databytecounts or 0 in self.page.dataoffsets

    @property
    def refusal(self) -> str:
        """Why neither libvips nor imagecodecs decodes the page; empty when one does."""
        return "" if self.libvips_reads_it else self._undecodable

    @cached_property
    def _undecodable(self) -> str:
        """Why we cannot decode the page tile by tile; empty when we can."""
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
    """Everything open_slide needs to know of a TIFF, read without decoding a pixel."""

    vendor: str
    levels: tuple[TiffPage, ...]
    associated: dict[str, TiffPage]
    mpp: Mpp | None
    objective_power: float | None
    properties: dict[str, str]
    icc_profile: bytes | None


def is_tiff(path: Path) -> bool:
    """Return whether the file starts like a TIFF or BigTIFF."""
    with path.open("rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_header(path: Path) -> TiffHeader:
    """Read the structure of a TIFF slide; no pixel is decoded.

    Raises
    ------
    CorruptSlideError
        The directories are damaged, or tiles lie beyond the end of the file (a truncated copy).
    UnsupportedSlideError
        No TIFF at all, 16-bit or multi-channel pixels.
    """
    name = path.name
    if not is_tiff(path):
        raise UnsupportedSlideError("not a TIFF", slide=name, remedy='pass backend="auto"')
    try:
        with tifffile.TiffFile(path) as tif:
            return _header(tif, path)
    except (CorruptSlideError, UnsupportedSlideError):
        raise
    except Exception as error:  # tifffile raises whatever the damage leads to: struct.error, KeyError, TypeError, …
        raise CorruptSlideError(
            f"the TIFF header cannot be read ({' '.join(str(error).split()) or type(error).__name__})",
            slide=name,
            remedy="copy or download the slide again",
        ) from error


def _header(tif: tifffile.TiffFile, path: Path) -> TiffHeader:
    pages = _whole_pages(tif.pages)
    if not pages:
        reason = "the TIFF holds no whole image (truncated, or zero size)"
        raise CorruptSlideError(reason, slide=path.name, remedy="copy or download the slide again")
    _check_chain(tif, pages[-1].offset, path)
    level_pages = _ome_levels(tif) if tif.is_ome else _chain_levels(pages)
    for page in level_pages:
        _check_pixels(page, path.name)
    used = {page.offset for page in level_pages}
    others = [page for page in pages if page.offset not in used]
    for page in [*level_pages, *others]:
        _check_complete(page, path)
    base = level_pages[0]
    vendor = "ome" if tif.is_ome else "aperio" if tif.is_svs else "generic-tiff"
    properties = _properties(base, vendor)
    levels = tuple(_describe(page, tif) for page in level_pages)
    return TiffHeader(
        vendor=vendor,
        levels=levels,
        associated=_associated(others, base, tif),
        mpp=_ome_mpp(tif) if vendor == "ome" else _aperio_mpp(properties) if vendor == "aperio" else _tag_mpp(base),
        objective_power=_objective(tif, vendor, properties),
        properties=properties,
        icc_profile=bytes(base.iccprofile) if base.iccprofile else None,
    )


def _whole_pages(pages: Iterable[Any]) -> list[Any]:
    """Return the pages that hold an image, with all their tags."""
    whole: dict[int, Any] = {}
    for page in pages:
        if page.offset in whole:  # tifffile would follow the circle for ever
            raise ValueError("a directory links back to an earlier one")
        whole[page.offset] = page.aspage() if isinstance(page, tifffile.TiffFrame) else page
    return [page for page in whole.values() if page.imagewidth > 0 and page.imagelength > 0]


def _chain_levels(pages: list[Any]) -> list[Any]:
    """Return the pages and SubIFDs that show the largest page at lower resolution, wherever they stand.

    A level is tiled when the largest page is, has its aspect within a pixel or 2 %, the same samples, is smaller than
    the level before, and is not marked as a macro.
    """
    tiled = [page for page in pages if page.is_tiled]
    candidates = [page for page in tiled or pages if not int(page.subfiletype or 0) & _MACRO_BIT] or list(pages)
    base = max(candidates, key=lambda page: page.imagewidth * page.imagelength)
    candidates += [page for page in _whole_pages(base.pages or ()) if page.is_tiled == base.is_tiled]  # SubIFDs
    levels = [base]
    for page in sorted(candidates, key=lambda page: -page.imagewidth):
        smaller = page.imagewidth < levels[-1].imagewidth and page.imagelength <= levels[-1].imagelength
        alike = page.samplesperpixel == base.samplesperpixel and page.dtype == base.dtype
        if smaller and alike and _same_aspect(base, page):
            levels.append(page)
    return levels


def _same_aspect(base: Any, page: Any) -> bool:
    scale = page.imagewidth / base.imagewidth
    expected = base.imagelength * scale
    return bool(abs(page.imagelength - expected) <= max(1.0, 0.02 * expected))


def _ome_levels(tif: tifffile.TiffFile) -> list[Any]:
    """Return the pages of the largest OME series, its SubIFD or page levels included."""
    series = max(tif.series, key=lambda s: s.shape[s.axes.index("Y")] * s.shape[s.axes.index("X")])
    extra = [f"{axis}={n}" for axis, n in zip(series.axes, series.shape, strict=True) if axis not in "YXS" and n > 1]
    if extra:
        raise UnsupportedSlideError(
            f"the OME image has several planes ({', '.join(extra)})",
            slide=Path(tif.filehandle.path).name,
            remedy="channels, z-stacks and time series must be rendered to one RGB plane first",
        )
    return [level.keyframe for level in series.levels]


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
    """Return what kind of number a sample is: "uint16", "4-bit"."""
    bits = page.bitspersample
    if isinstance(bits, tuple):
        return "-".join(map(str, bits)) + "-bit"
    return f"{bits}-bit" if page.dtype is None or page.dtype.itemsize == 1 else str(page.dtype)


def _name(photometric: Any) -> str:
    return getattr(photometric, "name", f"photometric {photometric}")


def _check_chain(tif: tifffile.TiffFile, last: int, path: Path) -> None:
    """Raise CorruptSlideError when the directory at byte ``last`` links beyond the file, which tifffile just logs."""
    layout, file = tif.tiff, tif.filehandle
    file.seek(last)
    (entries,) = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))
    file.seek(last + layout.tagnosize + entries * layout.tagsize)
    (following,) = struct.unpack(layout.offsetformat, file.read(layout.offsetsize))
    if following >= file.size:
        raise CorruptSlideError(
            f"the file is truncated: its next directory is at byte {following:,}, it has {file.size:,}",
            slide=path.name,
            remedy="copy or download the slide again",
        )


def _check_complete(page: Any, path: Path) -> None:
    offsets, counts = np.asarray(page.dataoffsets, np.int64), np.asarray(page.databytecounts, np.int64)
    end = int((offsets + counts).max(initial=0))
    size = path.stat().st_size
    if end > size:
        raise CorruptSlideError(
            f"the file is truncated: its tiles reach byte {end:,}, it has {size:,}",
            slide=path.name,
            remedy="copy or download the slide again",
        )


def _describe(page: Any, tif: tifffile.TiffFile) -> TiffPage:
    directory, subifd = _place(page, tif)
    tagged_ycbcr = int(page.photometric) == YCBCR
    size = Size(int(page.imagewidth), int(page.imagelength))
    tile = Size(int(page.tilewidth), int(page.tilelength)) if page.is_tiled else Size(size.width, _strip_height(page))
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
        lies=_jpeg_is_ycbcr(page, tif, tagged_ycbcr) != tagged_ycbcr,
        cut=_last_jpeg_is_cut(page, tif),
        samples=samples_of(page),
        page=page,
    )


def _place(page: Any, tif: tifffile.TiffFile) -> tuple[int, int]:
    """Return (directory, SubIFD or -1), found by byte offset: in a series tifffile counts SubIFDs from 1."""
    for directory, chained in enumerate(tif.pages):
        if chained.offset == page.offset:
            return directory, -1
        if page.offset in (chained.subifds or ()):
            return directory, chained.subifds.index(page.offset)
    raise ValueError(f"directory at byte {page.offset} is linked from nowhere")


def _strip_height(page: Any) -> int:
    return min(int(page.rowsperstrip or page.imagelength), int(page.imagelength))


def _jpeg_is_ycbcr(page: Any, tif: tifffile.TiffFile, tagged_ycbcr: bool) -> bool:
    """Ask the first stored tile of a three-sample JPEG page what it holds."""
    if int(page.compression) != JPEG or page.samplesperpixel != 3:
        return tagged_ycbcr
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
        if count:
            frame = read_frame(os.pread(tif.filehandle.fileno(), min(int(count), 4096), int(offset)))
            return tagged_ycbcr if frame is None else holds_ycbcr(frame, tagged_ycbcr=tagged_ycbcr)
    return tagged_ycbcr


def _last_jpeg_is_cut(page: Any, tif: tifffile.TiffFile) -> bool:
    if int(page.compression) != JPEG or not page.is_tiled or not page.databytecounts:
        return False
    count, offset = int(page.databytecounts[-1]), int(page.dataoffsets[-1])
    frame = read_frame(os.pread(tif.filehandle.fileno(), min(count, 4096), offset)) if count else None
    return frame is not None and (frame.width < page.tilewidth or frame.height < page.tilelength)


def _associated(pages: list[Any], base: Any, tif: tifffile.TiffFile) -> dict[str, TiffPage]:
    """Name the pages that are no levels: label, macro, thumbnail, else by their place in the file."""
    named: dict[str, TiffPage] = {}
    for page in pages:
        lines = str(page.description or "").splitlines()
        words = [line.split()[0].lower() for line in lines[1:2] if line.split()]
        name = words[0] if words and words[0] in ("label", "macro") else ""
        if not name:
            name = "thumbnail" if _same_aspect(base, page) else f"page-{page.index}"
        named.setdefault(name if name not in named else f"page-{page.index}", _describe(page, tif))
    return named


def _properties(page: Any, vendor: str) -> dict[str, str]:
    if vendor != "aperio":
        return {"description": str(page.description)[:2000]} if page.description else {}
    pairs = (part.partition("=") for part in str(page.description).split("|")[1:])
    return {f"aperio.{key.strip()}": value.strip() for key, _, value in pairs}


def _number(text: str | None) -> float | None:
    with contextlib.suppress(TypeError, ValueError):
        return float(str(text).replace(",", "."))
    return None


def _aperio_mpp(properties: dict[str, str]) -> Mpp | None:
    value = _number(properties.get("aperio.MPP"))
    return None if value is None else Mpp(value, value)


def _tag_mpp(page: Any) -> Mpp | None:
    unit = page.tags.valueof("ResolutionUnit", default=_INCH)
    um_per_unit = {_INCH: 25_400.0, _CENTIMETRE: 10_000.0}.get(int(unit))
    ratios = [page.tags.valueof(tag) for tag in ("XResolution", "YResolution")]
    if um_per_unit is None or any(not ratio or not ratio[0] or not ratio[1] for ratio in ratios):
        return None
    x, y = (um_per_unit * ratio[1] / ratio[0] for ratio in ratios)
    return Mpp(x, y) if math.isfinite(x) and math.isfinite(y) else None


def _ome_element(tif: tifffile.TiffFile, tag: str) -> dict[str, str]:
    try:
        root = ET.fromstring(re.sub(r"^<\?xml[^>]*\?>", "", tif.ome_metadata or "<OME/>"))
    except ET.ParseError:
        return {}
    largest = max(
        (e for e in root.iter() if e.tag.rpartition("}")[2] == tag),
        key=lambda e: int(e.get("SizeX", 0)) * int(e.get("SizeY", 0)),
        default=None,
    )
    return {} if largest is None else dict(largest.attrib)


def _ome_mpp(tif: tifffile.TiffFile) -> Mpp | None:
    pixels = _ome_element(tif, "Pixels")
    sides = []
    for axis in "XY":
        value = _number(pixels.get(f"PhysicalSize{axis}"))
        unit = _UNITS_UM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm").replace("μ", "µ"))
        sides.append(None if value is None or unit is None else value * unit)
    if sides[0] is None or sides[1] is None:
        return _tag_mpp(tif.pages[0])
    return Mpp(sides[0], sides[1])


def _objective(tif: tifffile.TiffFile, vendor: str, properties: dict[str, str]) -> float | None:
    if vendor == "ome":
        return _number(_ome_element(tif, "Objective").get("NominalMagnification"))
    return _number(properties.get("aperio.AppMag"))
