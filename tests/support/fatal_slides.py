"""Slides that end the process that reads them: zarr arrays whose codec crashes, hangs or takes memory."""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr
from zarr.abc.codec import BytesBytesCodec
from zarr.registry import register_codec

from slideio_pipe.export.cohort import ExportWork


@dataclass(frozen=True)
class Fatal(BytesBytesCodec):
    """Stores bytes unchanged; the array's metadata decide what happens when they are read."""

    how: str
    is_fixed_size = True

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the codec of an array's metadata."""
        return cls(**data["configuration"])

    def to_dict(self) -> dict[str, Any]:
        """Return the codec as metadata."""
        return {"name": "fatal", "configuration": {"how": self.how}}

    def compute_encoded_size(self, input_byte_length: int, _spec: Any) -> int:
        """Return how many bytes are stored."""
        return input_byte_length

    async def _encode_single(self, data: Any, _spec: Any) -> Any:
        return data

    async def _decode_single(self, data: Any, _spec: Any) -> Any:
        if self.how in ("fine", "good"):
            return data
        if self.how == "crash":
            ctypes.string_at(0)
        if self.how == "swell":
            hoard = bytearray(3_000_000_000)
            for start in range(0, len(hoard), 50_000_000):
                hoard[start : start + 50_000_000 : 4096] = b"x" * len(range(0, 50_000_000, 4096))
        time.sleep(600)
        return data


register_codec("fatal", Fatal)


class FatalExport(ExportWork):
    """An export whose workers have the codec: they import this module to unpickle it."""


def write_fatal_slide(path: Path, how: str) -> Path:
    """Write a slide that opens normally."""
    array = zarr.create_array(path, shape=(256, 256, 3), chunks=(256, 256, 3), dtype="u1", compressors=[Fatal(how)])
    array[:] = np.full((256, 256, 3), 7, np.uint8)
    return path
