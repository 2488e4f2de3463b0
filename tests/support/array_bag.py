"""Bags over one array, streams of them, and the threads that streams start."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from slideio_pipe.streaming.normalize import Normalize
from slideio_pipe.streaming.stream import TileStream, stream


class ArrayBag:
    """A bag in memory that satisfies the Bag protocol, over one array."""

    def __init__(self, tiles: np.ndarray, name: str = "array") -> None:
        self.tiles, self.name, self.shape, self.dtype = tiles, name, tiles.shape, tiles.dtype
        position = np.arange(len(tiles), dtype=np.int64)
        self.coords = np.stack([position * 7, position * 11 + 1], axis=1)
        self.grid_index = np.stack([position, position * 0], axis=1).astype(np.int32)
        self.tissue = np.ones(len(tiles), np.float32)
        self.label, self.view_mpp = None, None
        self.read_sizes: list[int] = []
        self.thread_counts: set[int] = set()
        self.before_read: Callable[[np.ndarray], None] = _unchanged

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, key: Any) -> np.ndarray:
        return self.tiles[key]

    def read(self, indices: np.ndarray, out: np.ndarray | None = None, *, threads: int = 1) -> np.ndarray:
        self.before_read(indices)
        self.read_sizes.append(len(indices))
        self.thread_counts.add(threads)
        out = np.empty((len(indices), *self.shape[1:]), np.uint8) if out is None else out
        assert out.flags.c_contiguous
        out[:] = self.tiles[indices]
        return out

    def provenance(self) -> dict[str, Any]:
        return {"version": 1}


def _unchanged(indices: np.ndarray) -> None:
    """Do nothing: a function of a module, so that a bag can be sent to a worker process."""


def numbered_bag(count: int, size: tuple[int, int] = (4, 6)) -> ArrayBag:
    """Return a bag in which tile k is filled with k, k+1 and k+2."""
    first = np.arange(count, dtype=np.uint8)[:, None, None, None] + np.arange(3, dtype=np.uint8)
    return ArrayBag(np.ascontiguousarray(np.broadcast_to(first, (count, *size, 3))))


def noise_bag(count: int) -> ArrayBag:
    return ArrayBag(np.random.default_rng(count).integers(0, 256, (count, 16, 8, 3), dtype=np.uint8))


def formula(tiles: np.ndarray) -> torch.Tensor:
    """Return 0.5/0.5 normalisation of (n, H, W, 3) bytes, written out in float64."""
    return torch.from_numpy(((tiles / 255 - 0.5) / 0.5).astype(np.float16)).permute(0, 3, 1, 2)


def open_stream(bag: ArrayBag, **changes: Any) -> TileStream:
    settings = {"device": "cpu", "normalize": Normalize.half(), "batch_size": 4, "prefetch": 2, "threads": 1}
    return stream(bag, **(settings | changes))


def stream_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("slideio_pipe")]


def wait_for_threads() -> None:
    """Wait until the threads of all streams have ended; a stream in a cycle of objects has to be collected first."""
    for wait_s in (0.0, 0.01, 0.02, 0.05):
        time.sleep(wait_s)
        if not stream_threads():
            return
    gc.collect()
    wait_until(lambda: not stream_threads())


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for another thread, for at most 20 s."""
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def fail_from(position: int, error: BaseException) -> Callable[[np.ndarray], None]:
    def before_read(indices: np.ndarray) -> None:
        if indices[0] >= position:
            raise error

    return before_read
