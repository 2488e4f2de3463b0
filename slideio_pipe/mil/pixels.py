"""The tiles of a slide for two passes: kept on the device as bytes where there is room, else read again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slideio_pipe.errors import SlideioPipeError
from slideio_pipe.streaming.chunk_stream import ChunkStream
from slideio_pipe.streaming.dataset import BagDataset
from slideio_pipe.streaming.stream import TileBatch, stream

# Kept without being asked for: this much on the CPU, this part of what is free on CUDA.
_KEPT_BYTES = 512 * 2**20
_KEPT_SHARE = 0.5


class LostBagError(Exception):
    """A slide failed when some of its chunks had been delivered; the loader has it in its ``failures``."""

    def __init__(self, error: SlideioPipeError | OSError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(slots=True)
class PixelBag:
    """The chunks of one bag, as the encoder takes them; iterate it again, and the tiles are the same.

    The first time they come from the epoch's own stream. Chunks beyond ``keep_bytes`` are read again later: draws
    depend on seed, epoch, slide and tile alone, so that augmented tiles come back as they were.
    """

    first: TileBatch
    rest: ChunkStream
    dataset: BagDataset
    number: int  # of the slide in the cohort
    epoch: int
    prepare: Callable[[Tensor], Tensor]  # uint8 tiles to what the encoder takes
    keep_bytes: int
    on_error: str = "raise"
    _kept: list[Tensor | None] = field(default_factory=list)  # uint8; None: to be read again
    _index: list[NDArray[np.int64]] = field(default_factory=list)
    _coords: list[NDArray[np.int64]] = field(default_factory=list)
    _read: bool = False

    @property
    def coords(self) -> NDArray[np.int64]:
        """Level-0 px of the tiles, (N, 2), once they were iterated."""
        return np.concatenate(self._coords)

    def __iter__(self) -> Iterator[Tensor]:
        chunks = self._again() if self._read else self._from_epoch()
        for tiles in chunks:
            yield self.prepare(tiles)

    def drain(self) -> None:
        """Pass over what of the bag was not iterated, so that the next bag comes next."""
        if not self._read:
            for _ in self._from_epoch():
                pass

    def _from_epoch(self) -> Iterator[Tensor]:
        """Yield the chunks as the loader delivers them, and keep what there is room for."""
        room, chunk = self.keep_bytes, self.first
        while True:
            if chunk.error is not None:
                self._read = True
                raise LostBagError(chunk.error)
            size = chunk.tiles.numel() * chunk.tiles.itemsize
            room -= size
            self._kept.append(chunk.tiles if room >= 0 else None)
            self._index.append(chunk.index)
            self._coords.append(chunk.coords)
            self._read = chunk.last
            yield chunk.tiles
            if chunk.last:
                return
            chunk = next(self.rest)

    def _again(self) -> Iterator[Tensor]:
        kept = [tiles for tiles in self._kept if tiles is not None]
        yield from kept
        if len(kept) == len(self._kept):
            return
        bag = self.dataset.open(self.number, self.epoch)
        try:
            sizes = [len(index) for index in self._index[len(kept) :]]
            wanted = np.concatenate(self._index[len(kept) :])
            with stream(
                bag,
                device=self.first.tiles.device,
                normalize=None,
                batch_size=max(sizes),
                indices=wanted,
                on_error="white" if self.on_error == "white" else "raise",
            ) as batches:
                yield from _cut((batch.tiles for batch in batches), sizes)
        finally:
            self.dataset.close(self.number, bag)


def room_for_tiles(device: torch.device, keep_gb: float | None) -> int:
    """Return how many bytes of tiles are kept between two passes."""
    if keep_gb is not None:
        return round(keep_gb * 1e9)
    if device.type == "cuda":
        return round(_KEPT_SHARE * torch.cuda.mem_get_info(device)[0])
    return _KEPT_BYTES


def _cut(batches: Iterator[Tensor], sizes: list[int]) -> Iterator[Tensor]:
    """Yield the tiles of batches in chunks of these sizes; tiles that were left out made chunks of unequal ones."""
    waiting = next(batches)
    for size in sizes:
        while len(waiting) < size:
            waiting = torch.cat([waiting, next(batches)])
        yield waiting[:size]
        waiting = waiting[size:]
