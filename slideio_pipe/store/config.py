"""Settings of bag stores: how pixels are encoded."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

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


_ANY_PIXELS = {"anyOf": [{"enum": ["zstd", "source", "none"]}, {"pattern": "^jpeg:([1-9][0-9]?|100)$"}]}
Pixels = Annotated[str, AfterValidator(_known_pixels), Field(json_schema_extra=_ANY_PIXELS)]


class StoredConfig(Record):
    """How tiles of a stored bag are augmented: what is beyond their edge. See ``AugmentedBag``."""

    neighbours: bool = Field(
        default=True,
        description="Geometric transforms also sample the tiles stored beside a tile. false: each tile alone; "
        "decodes less.",
    )
    beyond: Beyond = Field(
        default="reflect", description="What is sampled where no tile is stored: the tile's mirror image, or white."
    )


class StoreConfig(Record):
    """Settings of a bag store."""

    pixels: Pixels = Field(
        default="zstd",
        description="Encoding of pixels. zstd: lossless; source: the JPEG bytes of the slide (needs grid.align); "
        "jpeg:Q: JPEG of quality Q, 1 to 100; none: raw.",
    )
