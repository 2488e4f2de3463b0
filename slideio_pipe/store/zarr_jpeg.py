"""zarr's codec ``imagecodecs_jpeg``: a chunk is one complete JPEG. Bags with JPEG bytes are arrays with this codec.

imagecodecs 2026.10 and later include it, for Python 3.12 and later; then theirs is used, so that zarr has one codec of
that name. Otherwise this one reads and writes the same arrays. zarr finds it through an entry point of this package,
without an import; ``register`` is for a checkout that is not installed.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import simplejpeg
import zarr.registry
from numpy.typing import NDArray
from zarr.abc.codec import ArrayBytesCodec

NAME = "imagecodecs_jpeg"
QUALITY = 95  # imagecodecs' default
CHROMA = "420"  # libjpeg's default


@dataclass(frozen=True)
class _Jpeg(ArrayBytesCodec):
    """Chunks of (…, height, width, 3) uint8 RGB, whose other dimensions are 1, as JPEG."""

    is_fixed_size = False

    level: int | None = None  # JPEG quality, 1 to 100
    subsampling: str | None = None  # of chroma: "444", "422" or "420"

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the codec of this zarr v3 metadata."""
        configuration = dict(data.get("configuration") or {})
        unknown = configuration.keys() - {"level", "subsampling"}
        if data.get("name") != NAME or unknown:
            raise ValueError(f"{NAME} with {', '.join(sorted(unknown))} needs imagecodecs-zarr (Python 3.12 or later)")
        return cls(**configuration)

    def to_dict(self) -> dict[str, Any]:
        """Return the zarr v3 metadata of the codec, as imagecodecs writes it."""
        given = {"level": self.level, "subsampling": self.subsampling}
        configuration = {key: value for key, value in given.items() if value is not None}
        return {"name": NAME, "configuration": configuration} if configuration else {"name": NAME}

    def _decode_sync(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        pixels = np.empty(_picture_shape(chunk_spec.shape), np.uint8)
        decode_into(chunk_bytes.as_numpy_array().data, pixels)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(pixels.reshape(chunk_spec.shape))

    def _encode_sync(self, chunk_array: Any, chunk_spec: Any) -> Any:
        pixels = np.ascontiguousarray(chunk_array.as_numpy_array()).reshape(_picture_shape(chunk_spec.shape))
        encoded = simplejpeg.encode_jpeg(
            pixels, quality=self.level or QUALITY, colorspace="RGB", colorsubsampling=self.subsampling or CHROMA
        )
        return chunk_spec.prototype.buffer.from_bytes(encoded)

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        return await asyncio.to_thread(self._decode_sync, chunk_bytes, chunk_spec)

    async def _encode_single(self, chunk_array: Any, chunk_spec: Any) -> Any:
        return await asyncio.to_thread(self._encode_sync, chunk_array, chunk_spec)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: Any) -> int:
        """Raise: the size of a JPEG is not known before encoding."""
        raise NotImplementedError


def decode_into(data: Any, pixels: NDArray[np.uint8]) -> None:
    """Decode a JPEG into ``pixels``, (height, width, 3) uint8 RGB, without the GIL.

    Raise ValueError if it is damaged, or a picture of another size; nothing outside ``pixels`` is written.
    """
    decode_reduced(data, pixels, 1)


def decode_reduced(data: Any, pixels: NDArray[np.uint8], reduce: int) -> None:
    """Decode a JPEG ``reduce`` (1, 2, 4 or 8) times smaller into ``pixels``, as ``decode_into`` does.

    Its sides are ``reduce`` times those of ``pixels``: the shrink factor of the DCT is close to a mean of pixels.
    """
    height, width = pixels.shape[:2]
    found = simplejpeg.decode_jpeg_header(data)[:2]
    if found != (height * reduce, width * reduce):
        raise ValueError(f"a JPEG of {found[1]}×{found[0]} px, not {width * reduce}×{height * reduce}")
    simplejpeg.decode_jpeg(data, colorspace="RGB", min_height=height, min_width=width, min_factor=1, buffer=pixels)


def _picture_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) < 3 or shape[-1] != 3 or math.prod(shape[:-3]) != 1:
        raise ValueError(f"a chunk of shape {shape} is no RGB picture")
    return shape[-3], shape[-2], shape[-1]


def _chosen() -> type[Any]:
    """Return imagecodecs' codec if there is one that works with this zarr, else ours."""
    try:
        import imagecodecs.zarr as theirs

        codec: type[Any] = theirs.Jpeg
        codec.from_dict({"name": NAME})
    except (ImportError, AttributeError, ValueError):
        return _Jpeg
    return codec


Jpeg = _chosen()


def register() -> None:
    """Register the codec with zarr, unless another package has done so."""
    try:
        zarr.registry.get_codec_class(NAME)
    except KeyError:
        zarr.registry.register_codec(NAME, Jpeg)
