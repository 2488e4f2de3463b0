"""Settings of bag stores: how pixels are encoded."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from slideio_pipe.config import Record
from slideio_pipe.store.tile_layout import Beyond


def jpeg_quality(pixels: str) -> int | None:
    """Return Q of "jpeg:Q", 1 to 100, or None.

    >>> jpeg_quality("jpeg:90"), jpeg_quality("jpeg:0"), jpeg_quality("zstd")
    (90, None, None)
    """
    found = re.fullmatch(r"jpeg:([1-9][0-9]?|100)", pixels)
    return int(found[1]) if found else None


def _known_pixels(pixels: str) -> str:
    if pixels not in ("source", "zstd", "none") and jpeg_quality(pixels) is None:
        raise ValueError(f'{pixels!r} should be "source", "jpeg:Q" with Q from 1 to 100, "zstd" or "none"')
    return pixels


Pixels = Annotated[str, AfterValidator(_known_pixels)]


class StoredConfig(Record):
    """How tiles of a stored bag are augmented: what is beyond their edge. See ``AugmentedBag``."""

    neighbours: bool = True  # the tiles stored beside them, where there are any; false: each tile alone
    beyond: Beyond = "reflect"  # where no tile is stored: reflect or white


class StoreConfig(Record):
    """Settings of a bag store."""

    pixels: Pixels = "zstd"  # or "source", the slide's own JPEG bytes; "jpeg:Q"; "none"
