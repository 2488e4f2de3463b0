"""Read TIFF tags of any type and encoding: texts, numbers, ratios, names of pages."""

from __future__ import annotations

import contextlib
import math
import re
from typing import Any

from slideio_pipe.files import pread

_DESCRIPTION, _PAGE_NAME = 270, 285
_RATIONAL_TYPES = frozenset({5, 10})  # TIFF 6.0: RATIONAL and SRATIONAL, a numerator and a denominator
_BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_MARKS_AS_TEXT = ("\ufeff", "ÿþ", "þÿ", "ï»¿")  # a byte order mark decoded as text
_XML_ENCODING = re.compile(rb"<\?xml[^>]*encoding=[\"']([\w.-]+)[\"']")
_ASSOCIATED_NAMES = frozenset({"label", "macro", "thumbnail"})
# Aperio's second line: "46000x32914 -> 1024x768 - |…" is the thumbnail, "… -> 11500x8228 JPEG/RGB Q=65" a level.
_APERIO_THUMBNAIL = re.compile(r"^\d+x\d+ -> \d+x\d+ -")
_APERIO_LEVEL = re.compile(r"^(\d+)x(\d+) .*-> ?(\d+)x(\d+)\b(?! -)")


def text(page: Any, code: int = _DESCRIPTION) -> str:
    """Return a text tag, decoded; empty without it.

    tifffile leaves bytes that are neither UTF-8 nor cp1252 undecoded, decodes UTF-16 as one of these, and ends a text
    at its first zero.
    """
    tag = page.tags.get(code)
    value = None if tag is None else tag.value
    if value is None:
        return ""
    right = isinstance(value, str) and "\0" not in value and not value.startswith(_MARKS_AS_TEXT)
    if right and len(value) >= tag.count - 1:
        return str(value)
    if not isinstance(value, bytes | str) and not _is_bytes(value):
        return ""
    return decoded(raw(page, code))


def raw(page: Any, code: int) -> bytes:
    """Return a tag's bytes as stored in the file; empty without it."""
    tag = page.tags.get(code)
    if tag is None:
        return b""
    return pread(page.parent.filehandle.fileno(), tag.valuebytecount, tag.valueoffset)


def _is_bytes(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(item, int) and 0 <= item < 256 for item in value)


def decoded(data: bytes) -> str:
    """Return bytes decoded by their byte order mark, their XML declaration, or as UTF-8, cp1252, Latin-1.

    >>> decoded(b"MPP = 0.25 \\xb5m"), decoded("MPP = 0.25".encode("utf-16")), decoded(b"\\x81|MPP = 0.25")
    ('MPP = 0.25 µm', 'MPP = 0.25', '\\x81|MPP = 0.25')
    """
    encodings = [encoding for mark, encoding in _BYTE_ORDER_MARKS if data.startswith(mark)]
    head = data[:64]
    if not encodings and head.count(0) > len(head) // 4:  # ASCII in two bytes each
        encodings.append("utf-16-le" if head[1:2] == b"\0" else "utf-16-be")
    declared = _XML_ENCODING.search(data[:200])
    encodings += [declared[1].decode("ascii")] if declared else []
    for encoding in (*encodings, "utf-8", "cp1252"):
        with contextlib.suppress(UnicodeDecodeError, LookupError):
            wide = encoding.lower().startswith("utf-16")
            return data[: len(data) // 2 * 2 if wide else None].decode(encoding).strip("\0 \r\n\t\ufeff")
    return data.decode("latin-1").strip("\0 \r\n\t")


def number(value: object) -> float | None:
    """Return the number in a text, with a decimal point or comma; None without one.

    >>> number("0,25"), number("unknown"), number(None)
    (0.25, None, None)
    """
    with contextlib.suppress(TypeError, ValueError):
        return float(str(value).replace(",", "."))
    return None


def ratio(page: Any, code: int) -> float | None:
    """Return the positive number of a tag stored as RATIONAL or, non-standard, as any other number or text."""
    tag = page.tags.get(code)
    value = None if tag is None else tag.value
    if value is None:
        return None
    if isinstance(value, bytes | str):  # one byte is a number, several are digits
        result = float(value[0]) if isinstance(value, bytes) and len(value) == 1 else number(text(page, code))
    else:
        parts = [float(part) for part in (value if isinstance(value, tuple | list) else (value,))]
        if int(tag.dtype) in _RATIONAL_TYPES:
            parts = [parts[0] / parts[1]] if len(parts) > 1 and parts[1] else []
        result = parts[0] if parts else None
    return result if result is not None and math.isfinite(result) and result > 0 else None


def whole(page: Any, code: int, default: int) -> int:
    """Return a tag's whole number of any type; the default without one."""
    value = ratio(page, code)
    return default if value is None else round(value)


def page_name(page: Any) -> str:
    """Return "label", "macro" or "thumbnail" for a page with that name, else an empty string."""
    lines = str(page.description or "").splitlines()
    if lines[1:] and _APERIO_THUMBNAIL.match(lines[1]):
        return "thumbnail"
    calls = [line.split()[0] for line in lines[1:2] if line.split()] + [line.strip() for line in lines[:1]]
    return next((call.lower() for call in (*calls, text(page, _PAGE_NAME)) if call.lower() in _ASSOCIATED_NAMES), "")


def is_aperio_level(page: Any, base: Any) -> bool:
    """Whether Aperio's description states that the page is the base at a lower resolution, with both sizes."""
    lines = str(page.description or "").splitlines()
    match = _APERIO_LEVEL.match(lines[1]) if lines[1:] and lines[0].startswith("Aperio") else None
    sizes = (base.imagewidth, base.imagelength, page.imagewidth, page.imagelength)
    return match is not None and tuple(map(int, match.groups())) == sizes
