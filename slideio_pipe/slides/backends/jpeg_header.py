"""Read the header of a JPEG stream: its size and colour model, which the TIFF tag may state wrongly.

Markers are those of ITU-T T.81 (JPEG), T.871 (JFIF) and Adobe's APP14 segment as described in T.872, 6.5.3.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_SOI, _SOS, _APP0, _APP14 = 0xD8, 0xDA, 0xE0, 0xEE
_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA})
# SOI, then APP14: length 14, "Adobe", version 100, no flags, transform.
_ADOBE_RGB = b"\xff\xd8\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0"
_ADOBE_YCBCR = _ADOBE_RGB[:-1] + b"\1"
_SEQUENTIAL = frozenset({0xC0, 0xC1})
# Warning of libjpeg-turbo for a stream that continues after its last row.
EXTRANEOUS = "extraneous bytes before marker 0xd9"
# Warnings of libjpeg-turbo for missing or damaged bytes, after which it continues in grey. Any other may be an
# unsupported kind (12 bits, lossless), and another decoder is tried.
DAMAGE = ("remature end", "Corrupt JPEG")
_STANDALONE = frozenset({0x01, *range(0xD0, 0xDA)})


@dataclass(frozen=True)
class JpegFrame:
    """The frame header of a JPEG stream."""

    width: int
    height: int
    component_ids: tuple[int, ...]
    sampling: tuple[tuple[int, int], ...]  # (horizontal, vertical) factor per component
    jfif: bool
    adobe_transform: int | None  # 0 = RGB or CMYK, 1 = YCbCr, 2 = YCCK


def _segments(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (marker, payload) up to the start of the entropy-coded data."""
    for marker, at, length in _places(stream):
        yield marker, stream[at + 4 : at + 2 + length]


def _places(stream: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, its offset, length of its payload) up to the start of the entropy-coded data."""
    at = 0
    while at + 4 <= len(stream):
        if stream[at] != 0xFF:
            return
        marker = stream[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in _STANDALONE:
            at += 2
            continue
        (length,) = struct.unpack_from(">H", stream, at + 2)
        yield marker, at, length
        if marker == _SOS:
            return
        at += 2 + length


def read_frame(stream: bytes) -> JpegFrame | None:
    """Return the frame header, or None: not a JPEG, or tables only."""
    jfif, adobe, frame = False, None, b""
    for marker, payload in _segments(stream):
        if marker == _APP0 and payload[:5] == b"JFIF\0":
            jfif = True
        elif marker == _APP14 and payload[:5] == b"Adobe" and len(payload) >= 12:
            adobe = payload[11]
        elif marker in _FRAMES and len(payload) >= 6:
            frame = payload
    if not frame or len(frame) < 6 + 3 * frame[5]:
        return None
    height, width, count = struct.unpack_from(">HHB", frame, 1)
    parts = [frame[6 + 3 * k : 9 + 3 * k] for k in range(count)]
    return JpegFrame(
        width=width,
        height=height,
        component_ids=tuple(part[0] for part in parts),
        sampling=tuple((part[1] >> 4, part[1] & 15) for part in parts),
        jfif=jfif,
        adobe_transform=adobe,
    )


def holds_ycbcr(frame: JpegFrame, *, tagged_ycbcr: bool) -> bool:
    """Return whether three components are YCbCr: the stream has precedence over the TIFF tag.

    Adobe's marker decides; then JFIF, which has no RGB; then component ids spelling "RGB"; then chroma subsampling,
    which is never used for red or blue. Slides without any of these (Aperio) have the colours of their tag.
    """
    if frame.adobe_transform is not None:
        return frame.adobe_transform == 1
    if frame.jfif:
        return True
    if frame.component_ids == (0x52, 0x47, 0x42):
        return False
    if len(set(frame.sampling)) > 1:
        return True
    return tagged_ycbcr


def complete_jpeg(data: bytes, tables: bytes, *, ycbcr: bool) -> bytes:
    """Return the abbreviated stream of a TIFF tile as a complete one that states its colour model.

    Parameters
    ----------
    data : bytes
        The tile's bytes: a JPEG, without its tables if the file stores them once.
    tables : bytes
        The file's ``JPEGTables``, a stream of tables only; empty when the tiles have their own.
    ycbcr : bool
        Whether its three components are YCbCr, not RGB. Stated in Adobe's APP14, to which decoders give precedence
        except over JFIF's marker; a JFIF marker that contradicts it is dropped.
    """
    start = 2
    if not ycbcr and data[2:4] == b"\xff\xe0":
        start = 4 + int.from_bytes(data[4:6], "big")
    return b"".join((jpeg_head(tables, ycbcr=ycbcr), data[start:]))


def jpeg_head(tables: bytes, *, ycbcr: bool) -> bytes:
    """Return what ``complete_jpeg`` puts before a tile's own bytes."""
    return (_ADOBE_YCBCR if ycbcr else _ADOBE_RGB) + tables[2:-2]


def frame_place(stream: bytes) -> int | None:
    """Return the offset of a JPEG's frame header (marker, length, precision, height, width), or None."""
    return next((at for marker, at, _ in _places(stream) if marker in _FRAMES), None)


def is_sequential(stream: bytes, frame_at: int) -> bool:
    """Return whether rows are sequential and Huffman-coded: whether ``cut_to`` may be used."""
    return stream[frame_at + 1] in _SEQUENTIAL


def cut_to(stream: bytes, frame_at: int, rows: int) -> bytes:
    """Return the stream with a frame header that declares ``rows`` rows: a decoder stops after them.

    Decoding then gives the warning ``EXTRANEOUS`` for the rows left out.
    """
    return b"".join((stream[: frame_at + 5], rows.to_bytes(2, "big"), stream[frame_at + 7 :]))
