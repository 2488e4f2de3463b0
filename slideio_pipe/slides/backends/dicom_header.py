"""Read DICOM headers for what OpenSlide does not return: the files of one slide, and each level's own pixel spacing.

DICOM part 5, section 7, defines the encoding; part 3, section C.8.12, the whole-slide image. Only the header before the
frames is read: 0.2 ms per file.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from slideio_pipe.geometry import Size

_IMPLICIT, _BIG_ENDIAN, _DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
_SLIDE_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV"})
_SHARED_GROUPS, _PER_FRAME_GROUPS, _PIXEL_MEASURES = 0x52009229, 0x52009230, 0x00289110
_SYNTAX, _CLASS, _UID, _TYPE, _SERIES = 0x00020010, 0x00080016, 0x00080018, 0x00080008, 0x0020000E
_SAMPLES, _PHOTOMETRIC, _ROWS, _COLUMNS, _BITS = 0x00280002, 0x00280004, 0x00280010, 0x00280011, 0x00280100
_SPACING, _MATRIX_COLUMNS, _MATRIX_ROWS, _FOCAL_PLANES = 0x00280030, 0x00480006, 0x00480007, 0x00480303
_CONCATENATION, _PARTS = 0x00209161, 0x00209163
_WANTED = frozenset(
    {_SYNTAX, _CLASS, _UID, _TYPE, _SERIES, _SAMPLES, _PHOTOMETRIC, _ROWS, _COLUMNS, _BITS, _SPACING}
    | {_MATRIX_COLUMNS, _MATRIX_ROWS, _FOCAL_PLANES, _CONCATENATION, _PARTS}
)
_LONGEST = 4096  # bytes of a value of these tags; more means damage
_DEEPEST = 16
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
    with path.open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            return None
        try:
            values = _values(file)
        except (struct.error, ValueError, EOFError):
            return None
    return Instance(
        path=path,
        uid=_text(values, _UID),
        series=_text(values, _SERIES),
        is_slide=_text(values, _CLASS) == _SLIDE_CLASS,
        image_type=tuple(part.strip() for part in _text(values, _TYPE).split("\\")),
        size=Size(_number(values, _MATRIX_COLUMNS), _number(values, _MATRIX_ROWS)),
        tile=Size(_number(values, _COLUMNS), _number(values, _ROWS)),
        spacing=_spacing(_text(values, _SPACING)),
        syntax=_text(values, _SYNTAX),
        samples=_number(values, _SAMPLES),
        bits=_number(values, _BITS),
        photometric=_text(values, _PHOTOMETRIC),
        focal_planes=_number(values, _FOCAL_PLANES),
        is_part=_CONCATENATION in values and _number(values, _PARTS) != 1,
    )


def _values(file: BinaryIO) -> dict[int, bytes]:
    """Return the wanted elements of a header whose preamble has been read."""
    values: dict[int, bytes] = {}
    start = file.tell()
    # Group 2 always has explicit types.
    _walk(file, values, explicit=True, group=2)
    syntax = _text(values, _SYNTAX)
    if syntax in (_BIG_ENDIAN, _DEFLATED) or not file.tell() > start:
        return values
    _walk(file, values, explicit=syntax != _IMPLICIT)
    return values


def _walk(file: BinaryIO, values: dict[int, bytes], *, explicit: bool, group: int | None = None) -> None:
    while True:
        place = file.tell()
        header = file.read(8)
        if len(header) < 8:
            return
        tag = _tag(header)
        if (group is not None and tag >> 16 != group) or tag >= _PER_FRAME_GROUPS:
            file.seek(place)
            return
        kind, length = _kind_and_length(file, header, explicit=explicit)
        if kind == b"SQ" or length == _UNDEFINED or tag == _SHARED_GROUPS:
            kept = values if tag == _SHARED_GROUPS else None
            _sequence(file, length, kept, explicit=explicit and kind != b"UN", depth=0)
        elif tag in _WANTED and length <= _LONGEST:
            values[tag] = file.read(length)
        else:
            file.seek(length, io.SEEK_CUR)


def _sequence(file: BinaryIO, length: int, kept: dict[int, bytes] | None, *, explicit: bool, depth: int) -> None:
    """Skip a sequence; in the shared groups, keep the pixel spacing."""
    if depth > _DEEPEST:
        raise ValueError("sequences in sequences")
    if length != _UNDEFINED and kept is None:
        file.seek(length, io.SEEK_CUR)
        return
    end = None if length == _UNDEFINED else file.tell() + length
    while end is None or file.tell() < end:
        tag, size = _item(file)
        if tag == _SEQUENCE_END:
            return
        if tag != _ITEM:
            raise ValueError("no item in a sequence")
        _elements(file, size, kept, explicit=explicit, depth=depth)


def _elements(file: BinaryIO, length: int, kept: dict[int, bytes] | None, *, explicit: bool, depth: int) -> None:
    if length != _UNDEFINED and kept is None:
        file.seek(length, io.SEEK_CUR)
        return
    end = None if length == _UNDEFINED else file.tell() + length
    while end is None or file.tell() < end:
        header = file.read(8)
        if len(header) < 8:
            raise EOFError
        tag = _tag(header)
        if tag == _ITEM_END:
            return
        kind, size = _kind_and_length(file, header, explicit=explicit)
        if kind == b"SQ" or size == _UNDEFINED or (kept is not None and tag == _PIXEL_MEASURES):
            inner = kept if tag == _PIXEL_MEASURES else None
            _sequence(file, size, inner, explicit=explicit and kind != b"UN", depth=depth + 1)
        elif kept is not None and tag == _SPACING and size <= _LONGEST:
            kept[tag] = file.read(size)
        else:
            file.seek(size, io.SEEK_CUR)


def _tag(header: bytes) -> int:
    group, element = struct.unpack("<HH", header[:4])
    return int(group) << 16 | int(element)


def _item(file: BinaryIO) -> tuple[int, int]:
    header = file.read(8)
    if len(header) < 8:
        raise EOFError
    return _tag(header), int(struct.unpack("<I", header[4:])[0])


def _kind_and_length(file: BinaryIO, header: bytes, *, explicit: bool) -> tuple[bytes, int]:
    if not explicit:
        return b"", int(struct.unpack("<I", header[4:])[0])
    kind = header[4:6]
    if kind in _LONG:
        return kind, int(struct.unpack("<I", file.read(4))[0])
    return kind, int(struct.unpack("<H", header[6:])[0])


def _text(values: dict[int, bytes], tag: int) -> str:
    return values.get(tag, b"").decode("latin-1").strip(" \0")


def _number(values: dict[int, bytes], tag: int) -> int:
    value = values.get(tag, b"")
    return int.from_bytes(value, "little") if len(value) in (2, 4) else 0


def _spacing(text: str) -> tuple[float, float] | None:
    """Return (x, y) of "between rows \\ between columns"."""
    try:
        y, x = (float(part) for part in text.split("\\"))
    except ValueError:
        return None
    return (x, y) if x > 0 and y > 0 else None
