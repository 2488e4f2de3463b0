"""Codecs of tiles: a codec is a name, its zarr metadata, and two functions.

A shard (``shards.py``) contains only encoded bytes, so a new codec is one more record here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import imagecodecs
import numcodecs.zstd  # type: ignore[import-untyped]
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from slideio_pipe.errors import ConfigError
from slideio_pipe.store import zarr_jpeg
from slideio_pipe.store.config import jpeg_quality

# Level 3 compresses H&E tiles no better than level 1 (2.97 times both) at half the speed: tests/benchmarks/store.py.
ZSTD_LEVEL = 1
# Full chroma at every quality: of two JPEGs of equal size it is 0.1 to 2 dB closer to H&E tiles than 4:2:0 of a higher
# quality, for up to a third more decoding time: tests/benchmarks/store_jpeg.py.
CHROMA, CHROMA_NAME = "444", "4:4:4"
# Settings that only a writer of JPEG chunks needs.
_FOR_WRITERS = frozenset({"level", "subsampling", "optimize", "smoothing"})

zarr_jpeg.register()  # a checkout that is not installed has no entry points


@dataclass(frozen=True, slots=True)
class TileCodec:
    """Encodes the pixels of one tile and decodes them."""

    name: str  # name for save_bag(pixels=…)
    encode: Callable[[NDArray[np.uint8]], bytes] | None  # (H, W, 3) to stored bytes; None: the bytes are the pixels
    decode: Callable[[memoryview, NDArray[np.uint8]], int] | None  # stored bytes into (H, W, 3); returns bytes filled
    zarr: tuple[dict[str, Any], ...] = ()  # zarr v3 metadata of the codecs after "bytes"
    serializer: dict[str, Any] | None = None  # zarr v3 metadata of the codec that replaces "bytes"
    pixels: Mapping[str, Any] = field(default_factory=dict)  # for attributes["tile_bag"]["pixels"]
    # Stored bytes into (H // n, W // n, 3), n times smaller, for less than the full decode; None: there is no such way.
    decode_reduced: Callable[[bytes, NDArray[np.uint8], int], None] | None = None


def codec_for(pixels: str) -> TileCodec:
    """Return the codec for ``save_bag(pixels=…)``; raise ConfigError if the name is unknown.

    Parameters
    ----------
    pixels : "none", "zstd", "jpeg:Q" or "source"
        Raw bytes or zstd, both lossless; JPEG of quality Q, 1 to 100; or the slide's own JPEG.
    """
    if pixels == "none":
        return TileCodec("none", None, None, pixels={"lossless": True})
    if pixels == "zstd":
        return TileCodec("zstd", _encode_zstd, _decode_zstd, (_zstd_metadata(),), pixels=_zstd_pixels())
    if pixels == "source":
        described = {"codec": "jpeg", "source": True, "lossless": True, "quality": None}
        return _jpeg_codec("source", None, {"name": zarr_jpeg.NAME}, described)
    quality = jpeg_quality(pixels) if isinstance(pixels, str) else None
    if quality is None:
        remedy = 'pass {pixels="source"}, "jpeg:90" or another quality, "zstd" or "none"'
        raise ConfigError(f"{{pixels={pixels!r}}} is not a way to store tiles", remedy=remedy)
    metadata = {"name": zarr_jpeg.NAME, "configuration": {"level": quality, "subsampling": CHROMA}}
    return _jpeg_codec(pixels, _jpeg_encoder(quality), metadata, _jpeg_pixels(quality))


def _jpeg_codec(
    name: str,
    encode: Callable[[NDArray[np.uint8]], bytes] | None,
    serializer: dict[str, Any],
    pixels: Mapping[str, Any],
) -> TileCodec:
    reduced = zarr_jpeg.decode_reduced
    return TileCodec(name, encode, _decode_jpeg, serializer=serializer, pixels=pixels, decode_reduced=reduced)


def codec_from_zarr(codecs: list[Mapping[str, Any]]) -> TileCodec | None:
    """Return the codec that reads chunks of this zarr v3 codec chain, or None.

    >>> codec_from_zarr([{"name": "bytes"}]).name
    'none'
    >>> codec_from_zarr([{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 9}}]).name
    'zstd'
    >>> codec_from_zarr([{"name": "imagecodecs_jpeg"}]).name
    'source'
    >>> codec_from_zarr([{"name": "bytes"}, {"name": "gzip"}]) is None
    True
    """
    names = tuple(str(codec.get("name")) for codec in codecs)
    if names == (zarr_jpeg.NAME,):
        configuration = codecs[0].get("configuration") or {}
        if not configuration:
            return codec_for("source")
        level = configuration.get("level", zarr_jpeg.QUALITY)
        readable = configuration.keys() <= _FOR_WRITERS and jpeg_quality(f"jpeg:{level}") is not None
        return codec_for(f"jpeg:{level}") if readable else None
    known = {("bytes",): "none", ("bytes", "zstd"): "zstd"}
    pixels = known.get(names)
    return None if pixels is None else codec_for(pixels)


def white_jpeg(height: int, width: int) -> bytes:
    """Return a JPEG that decodes to white, every value 255."""
    encoded: bytes = _jpeg_encoder(90)(np.full((height, width, 3), 255, np.uint8))
    return encoded


def finest_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """Return pixels, (H, W, 3) uint8, as a JPEG of quality 100: accurate within a level on average."""
    encoded: bytes = _jpeg_encoder(100)(pixels)
    return encoded


def _zstd_metadata() -> dict[str, Any]:
    # The frame checksum (4 bytes a tile) turns a flipped bit into an error instead of a wrong pixel.
    return {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": True}}


def _zstd_pixels() -> dict[str, Any]:
    zstd = numcodecs.zstd
    version = f"{zstd.MAJOR_VERSION_NUMBER}.{zstd.MINOR_VERSION_NUMBER}.{zstd.MICRO_VERSION_NUMBER}"
    # Another release may compress the same pixels to other bytes: then a partial store is restarted.
    return {"lossless": True, "level": ZSTD_LEVEL, "library": f"zstd {version}"}


def _encode_zstd(tile: NDArray[np.uint8]) -> bytes:
    # numcodecs, not imagecodecs: only it can write the checksum. Both release the GIL.
    encoded: bytes = numcodecs.zstd.compress(tile.reshape(-1), ZSTD_LEVEL, True)
    return encoded


def _decode_zstd(data: memoryview, tile: NDArray[np.uint8]) -> int:
    # imagecodecs, not numcodecs: it returns the number of filled bytes; numcodecs leaves the rest of a slot stale.
    return len(imagecodecs.zstd_decode(data, out=tile.reshape(-1).data))  # type: ignore[arg-type]  # any buffer is accepted


def _jpeg_pixels(quality: int) -> dict[str, Any]:
    library = f"simplejpeg {simplejpeg.__version__}"
    described = {"codec": "jpeg", "source": False, "lossless": False, "quality": quality, "chroma": CHROMA_NAME}
    return {**described, "library": library}


def _jpeg_encoder(quality: int) -> Callable[[NDArray[np.uint8]], bytes]:
    def encode(tile: NDArray[np.uint8]) -> bytes:
        encoded: bytes = simplejpeg.encode_jpeg(tile, quality=quality, colorspace="RGB", colorsubsampling=CHROMA)
        return encoded

    return encode


def _decode_jpeg(data: memoryview, tile: NDArray[np.uint8]) -> int:
    zarr_jpeg.decode_into(data, tile)
    return tile.nbytes
