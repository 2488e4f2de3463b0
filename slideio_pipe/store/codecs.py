"""How the bytes of one tile are stored: a codec is a name, zarr's description of it, and two functions.

A shard (``shards.py``) only ever sees encoded bytes, so a further codec is one more record here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import imagecodecs
import numcodecs.zstd  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from slideio_pipe.errors import ConfigError

# Level 3 compresses H&E tiles no smaller than level 1 (2.97 times both) at half the speed: tests/benchmarks/store.py.
ZSTD_LEVEL = 1


@dataclass(frozen=True, slots=True)
class TileCodec:
    """Pixels of one tile to stored bytes and back."""

    name: str  # what save_bag(pixels=…) calls it
    encode: Callable[[NDArray[np.uint8]], bytes] | None  # (H, W, 3) to stored bytes; None: the bytes are the pixels
    decode: Callable[[memoryview, NDArray[np.uint8]], int] | None  # stored bytes into a flat slot; how many it filled
    zarr: tuple[dict[str, Any], ...] = ()  # zarr v3 metadata of the codecs behind "bytes"
    pixels: Mapping[str, Any] = field(default_factory=dict)  # what attributes["tile_bag"]["pixels"] says beside "codec"


def codec_for(pixels: str) -> TileCodec:
    """Return the codec that ``save_bag(pixels=…)`` names.

    Parameters
    ----------
    pixels : "none" or "zstd"
        Raw bytes, or zstd, both lossless.

    Raises
    ------
    ConfigError
        For any other name.
    """
    if pixels == "none":
        return TileCodec("none", None, None, pixels={"lossless": True})
    if pixels == "zstd":
        return TileCodec("zstd", _encode_zstd, _decode_zstd, (_zstd_metadata(),), _zstd_pixels())
    raise ConfigError(f"pixels={pixels!r} is not a way to store tiles", remedy='pass pixels="none" or pixels="zstd"')


def codec_from_zarr(codecs: list[Mapping[str, Any]]) -> TileCodec | None:
    """Return the codec that reads chunks of this zarr v3 codec chain, None when there is none.

    >>> codec_from_zarr([{"name": "bytes"}]).name
    'none'
    >>> codec_from_zarr([{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 9}}]).name
    'zstd'
    >>> codec_from_zarr([{"name": "bytes"}, {"name": "gzip"}]) is None
    True
    """
    names = [codec.get("name") for codec in codecs]
    known = {("bytes",): "none", ("bytes", "zstd"): "zstd"}
    pixels = known.get(tuple(str(name) for name in names))
    return None if pixels is None else codec_for(pixels)


def _zstd_metadata() -> dict[str, Any]:
    # The frame checksum (4 bytes a tile) turns a flipped bit into an error instead of a wrong pixel.
    return {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": True}}


def _zstd_pixels() -> dict[str, Any]:
    zstd = numcodecs.zstd
    version = f"{zstd.MAJOR_VERSION_NUMBER}.{zstd.MINOR_VERSION_NUMBER}.{zstd.MICRO_VERSION_NUMBER}"
    # Another release may compress the same pixels to other bytes: a partial store of another one is started afresh.
    return {"lossless": True, "level": ZSTD_LEVEL, "library": f"zstd {version}"}


def _encode_zstd(tile: NDArray[np.uint8]) -> bytes:
    # numcodecs, not imagecodecs, because only it can write the checksum. Both release the GIL.
    encoded: bytes = numcodecs.zstd.compress(tile.reshape(-1), ZSTD_LEVEL, True)
    return encoded


def _decode_zstd(data: memoryview, slot: NDArray[np.uint8]) -> int:
    # imagecodecs, not numcodecs, because it tells how much it filled: numcodecs leaves the rest of a slot stale.
    return len(imagecodecs.zstd_decode(data, out=slot.data))  # type: ignore[arg-type]  # any buffer will do
