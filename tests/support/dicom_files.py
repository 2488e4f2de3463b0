"""DICOM whole-slide images for tests: uncompressed, so that pixels are exact, or with given frames."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

SLIDE_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"
UNCOMPRESSED = "1.2.840.10008.1.2.1"
SERIES = "1.2.3.4.5"
_LONG = ("OB", "OW", "SQ", "UN")


def element(tag: int, kind: str, value: bytes | str | int | float | Sequence[bytes]) -> bytes:
    """Return one element in explicit types, little-endian (DICOM part 5, section 7.1)."""
    if kind == "SQ":
        data = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in value)  # type: ignore[union-attr, arg-type]
    elif isinstance(value, int):
        data = struct.pack("<H" if kind == "US" else "<I", value)
    elif isinstance(value, float):
        data = struct.pack("<f", value)
    else:
        data = value.encode() if isinstance(value, str) else bytes(value)  # type: ignore[arg-type]
    data += (b"\0" if kind in ("UI", "OB") else b" ") * (len(data) % 2)
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + kind.encode()
    return head + (struct.pack("<HI", 0, len(data)) if kind in _LONG else struct.pack("<H", len(data))) + data


def frames(pixels: np.ndarray, tile: int) -> list[bytes]:
    """Return the tiles of an image in raster order; pixels beyond its edge repeat the last ones."""
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, -height % tile), (0, -width % tile), *[(0, 0)] * (pixels.ndim - 2)), mode="edge")
    places = ((y, x) for y in range(0, padded.shape[0], tile) for x in range(0, padded.shape[1], tile))
    return [np.ascontiguousarray(padded[y : y + tile, x : x + tile]).tobytes() for y, x in places]


def write_dicom(
    path: Path,
    pixels: np.ndarray,
    *,
    number: int = 1,
    series: str = SERIES,
    kind: str = "ORIGINAL\\PRIMARY\\VOLUME\\NONE",
    spacing: tuple[float, float] | None = (0.0005, 0.0005),
    tile: int = 128,
    syntax: str = UNCOMPRESSED,
    encoded: list[bytes] | None = None,
    sop_class: str = SLIDE_CLASS,
    extra: Sequence[bytes] = (),
) -> Path:
    """Write one instance of a series; ``spacing`` is (x, y) in mm, ``encoded`` frames in place of the pixels' bytes."""
    height, width = pixels.shape[:2]
    samples = pixels.shape[2] if pixels.ndim == 3 else 1
    bits = pixels.dtype.itemsize * 8
    stored = frames(pixels, tile)
    measures = [] if spacing is None else [element(0x00280030, "DS", f"{spacing[1]}\\{spacing[0]}")]
    uid = f"{series}.{number}"
    elements = [
        element(0x00080008, "CS", kind),
        element(0x00080016, "UI", sop_class),
        element(0x00080018, "UI", uid),
        element(0x00080060, "CS", "SM"),
        element(0x0020000D, "UI", "1.2.3.4"),
        element(0x0020000E, "UI", series),
        element(0x00200013, "IS", str(number)),
        element(0x00209311, "CS", "TILED_FULL"),
        element(0x00280002, "US", samples),
        element(0x00280004, "CS", "RGB" if samples == 3 else "MONOCHROME2"),
        element(0x00280006, "US", 0),
        element(0x00280008, "IS", str(len(stored))),
        element(0x00280010, "US", tile),
        element(0x00280011, "US", tile),
        element(0x00280100, "US", bits),
        element(0x00280101, "US", bits),
        element(0x00280102, "US", bits - 1),
        element(0x00280103, "US", 0),
        element(0x00480006, "UL", width),
        element(0x00480007, "UL", height),
        element(0x00480303, "UL", 1),
        element(0x52009229, "SQ", [element(0x00289110, "SQ", [b"".join(measures)])]),
        *extra,
    ]
    elements.sort(key=lambda data: struct.unpack("<HH", data[:4]))
    meta = b"".join(
        [
            element(0x00020001, "OB", b"\0\1"),
            element(0x00020002, "UI", sop_class),
            element(0x00020003, "UI", uid),
            element(0x00020010, "UI", syntax),
            element(0x00020012, "UI", "1.2.3"),
        ]
    )
    body = b"".join(elements) + _pixel_data(stored, encoded)
    path.write_bytes(b"\0" * 128 + b"DICM" + element(0x00020000, "UL", len(meta)) + meta + body)
    return path


def write_series(
    folder: Path,
    pixels: np.ndarray,
    steps: Sequence[int] = (1, 2, 4),
    *,
    spacing: tuple[float, float] = (0.0005, 0.0005),
    padded: bool = False,
    series: str = SERIES,
    prefix: str = "l",
    tile: int = 128,
) -> list[Path]:
    """Write levels that are every n-th pixel, each in a file; ``padded`` makes each of whole tiles, as Philips does."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, step in enumerate(steps):
        level = pixels[::step, ::step]
        if padded:
            height, width = level.shape[:2]
            level = np.pad(level, ((0, -height % tile), (0, -width % tile), (0, 0)), constant_values=255)
        kind = "ORIGINAL\\PRIMARY\\VOLUME\\NONE" if step == 1 else "DERIVED\\PRIMARY\\VOLUME\\RESAMPLED"
        path = folder / f"{prefix}{number}.dcm"
        at = (spacing[0] * step, spacing[1] * step)
        paths.append(write_dicom(path, level, number=number + 1, series=series, kind=kind, spacing=at, tile=tile))
    return paths


def _pixel_data(stored: list[bytes], encoded: list[bytes] | None) -> bytes:
    if encoded is None:
        return element(0x7FE00010, "OW", b"".join(stored))
    items = [b"", *(frame + b"\0" * (len(frame) % 2) for frame in encoded)]
    body = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in items)
    head = struct.pack("<HH", 0x7FE0, 0x0010) + b"OB" + struct.pack("<HI", 0, 0xFFFFFFFF)
    return head + body + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
