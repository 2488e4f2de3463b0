"""Read DICOM headers for what OpenSlide does not return: the files of one slide, and each level's own pixel spacing.

DICOM part 3, section C.8.12, defines the whole-slide image. Only the header before the frames is read (pydicom).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slideio_pipe.geometry import Size

if TYPE_CHECKING:  # importing pydicom takes a tenth of a second, and few slides are DICOM
    from pydicom import Dataset
    from pydicom.tag import BaseTag

_IMPLICIT, _BIG_ENDIAN, _DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
_SLIDE_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image
_PER_FRAME_GROUPS = 0x52009230  # the first element that is as long as the slide
_WANTED = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "ImageType",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "Rows",
    "Columns",
    "TotalPixelMatrixColumns",
    "TotalPixelMatrixRows",
    "TotalPixelMatrixFocalPlanes",
    "ConcatenationUID",
    "InConcatenationTotalNumber",
    "SharedFunctionalGroupsSequence",
]
# Transfer syntaxes that OpenSlide 4.0 decodes; names are those of part 6, table A-1.
_DECODED = frozenset(f"1.2.840.10008.1.2.{end}" for end in ("1", "4.50", "4.90", "4.91"))
_NOT_DECODED = {
    _IMPLICIT: "uncompressed with implicit types",
    _DEFLATED: "deflate",
    _BIG_ENDIAN: "big-endian",
    "1.2.840.10008.1.2.4.51": "JPEG of 12 bits",
    "1.2.840.10008.1.2.4.57": "lossless JPEG",
    "1.2.840.10008.1.2.4.70": "lossless JPEG",
    "1.2.840.10008.1.2.4.80": "JPEG-LS",
    "1.2.840.10008.1.2.4.81": "JPEG-LS",
    "1.2.840.10008.1.2.4.110": "JPEG XL",
    "1.2.840.10008.1.2.4.111": "JPEG XL",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.4.201": "high-throughput JPEG 2000",
    "1.2.840.10008.1.2.4.202": "high-throughput JPEG 2000",
    "1.2.840.10008.1.2.4.203": "high-throughput JPEG 2000",
    "1.2.840.10008.1.2.5": "run lengths",
}


@dataclass(frozen=True)
class Instance:
    """One file of a DICOM series."""

    path: Path
    uid: str  # of this file's content
    series: str
    is_slide: bool  # has the class of whole-slide images
    image_type: tuple[str, ...]  # such as ORIGINAL, PRIMARY, VOLUME, NONE
    size: Size  # of the whole image
    tile: Size
    spacing: tuple[float, float] | None  # mm per pixel along x and y
    syntax: str
    samples: int
    bits: int
    photometric: str
    focal_planes: int
    is_part: bool  # part of an image in several files, a concatenation

    @property
    def is_level(self) -> bool:
        """Whether it shows the tissue: not the label, overview or thumbnail."""
        return self.is_slide and "VOLUME" in self.image_type[2:3]

    @property
    def refusal(self) -> str:
        """Why OpenSlide does not read it; empty if no reason is found."""
        if self.bits not in (0, 8):  # 0: damaged header
            return f"DICOM pixels are {self.bits}-bit, not 8-bit"
        if self.samples not in (0, 3):
            plural = "s" if self.samples > 1 else ""
            return f"DICOM pixels are {self.photometric or 'grey'} of {self.samples} sample{plural}, not RGB"
        if self.syntax and self.syntax not in _DECODED:
            name = _NOT_DECODED.get(self.syntax, "an unknown one")
            return f"DICOM compression {self.syntax} ({name}) is not supported"
        if self.focal_planes > 1:
            return f"the DICOM image has {self.focal_planes} focal planes"
        return "each DICOM level is in several files (a concatenation)" if self.is_part else ""


def is_dicom(path: Path) -> bool:
    """Return whether a file begins like a DICOM file."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_instance(path: Path) -> Instance | None:
    """Return the header of a DICOM file; None for any other or a damaged file."""
    try:
        state = path.stat()
        return _read(path, state.st_mtime_ns, state.st_size)
    except OSError:
        return None


def read_series(path: Path) -> list[Instance]:
    """Return the files of the slide that ``path`` belongs to, with ``path``, largest first; [] if it is not DICOM."""
    own = read_instance(path)
    if own is None:
        return []
    found = [own]
    with os.scandir(path.parent) as entries:
        for entry in entries:
            if entry.name != path.name and entry.is_file():
                other = read_instance(path.parent / entry.name)
                found += [other] if other is not None and other.series == own.series else []
    return sorted(found, key=base_first)


def why_not(series: Sequence[Instance]) -> str:
    """Return why OpenSlide does not read a series correctly; empty if its headers give no reason."""
    levels = [instance for instance in series if instance.is_level]
    refusal = next((instance.refusal for instance in levels if instance.refusal), "")
    of_size: dict[Size, set[str]] = {}
    for instance in levels:
        of_size.setdefault(instance.size, set()).add(instance.uid)
    several = next((size for size, uids in of_size.items() if len(uids) > 1), None)
    if refusal or several is None:
        return refusal
    count = len(of_size[several])
    return f"{count} files of the series show {several.width} × {several.height} px (focal planes, or optical paths)"


def base_first(instance: Instance) -> tuple[bool, int, str]:
    """Return the sort key of a series' files: levels before others, the largest first."""
    return not instance.is_level, -instance.size.width * instance.size.height, instance.path.name


@lru_cache(maxsize=16_384)  # read_series, like OpenSlide, reads the whole folder for each slide in it
def _read(path: Path, modified: int, size: int) -> Instance | None:
    del modified, size
    if not is_dicom(path):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of values that break the standard
            return _instance(path, _header(path))
    except OSError:
        raise
    except Exception:  # pydicom raises a different class for every kind of damage
        return None


def _header(path: Path) -> Dataset:
    """Return the elements before the frames' own; of a deflated file, which would be inflated whole, only group 2."""
    from pydicom import Dataset
    from pydicom.filereader import read_file_meta_info, read_partial
    from pydicom.tag import Tag

    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") == _DEFLATED:
        found = Dataset()
        found.file_meta = meta
        return found
    tags: list[BaseTag | int] = [Tag(name) for name in _WANTED]
    with path.open("rb") as file:
        return read_partial(file, stop_when=lambda tag, vr, length: tag >= _PER_FRAME_GROUPS, specific_tags=tags)


def _instance(path: Path, header: Dataset) -> Instance:
    return Instance(
        path=path,
        uid=str(header.get("SOPInstanceUID", "")),
        series=str(header.get("SeriesInstanceUID", "")),
        is_slide=header.get("SOPClassUID") == _SLIDE_CLASS,
        image_type=tuple(map(str, _several(header.get("ImageType")))),
        size=Size(_number(header, "TotalPixelMatrixColumns"), _number(header, "TotalPixelMatrixRows")),
        tile=Size(_number(header, "Columns"), _number(header, "Rows")),
        spacing=_spacing(header),
        syntax=str(header.file_meta.get("TransferSyntaxUID", "")),
        samples=_number(header, "SamplesPerPixel"),
        bits=_number(header, "BitsAllocated"),
        photometric=str(header.get("PhotometricInterpretation") or ""),
        focal_planes=_number(header, "TotalPixelMatrixFocalPlanes"),
        is_part="ConcatenationUID" in header and _number(header, "InConcatenationTotalNumber") != 1,
    )


def _several(value: Any) -> list[Any]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _number(header: Dataset, name: str) -> int:
    value = header.get(name)
    return value if isinstance(value, int) else 0


def _spacing(header: Dataset) -> tuple[float, float] | None:
    """Return (x, y) of the pixel measures that all frames share, which are "between rows \\ between columns"."""
    for group in header.get("SharedFunctionalGroupsSequence", ()):
        for measures in group.get("PixelMeasuresSequence", ()):
            spacing = _several(measures.get("PixelSpacing"))
            if len(spacing) == 2 and all(value > 0 for value in spacing):
                return float(spacing[1]), float(spacing[0])
    return None
