"""The tiles of a slide for two passes: kept on the device as uint8 if they fit, else read again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slideio_pipe.errors import SlideioPipeError
from slideio_pipe.mil.models.slides_apart import slides_apart
from slideio_pipe.streaming.chunk_stream import ChunkStream
from slideio_pipe.streaming.dataset import BagDataset
from slideio_pipe.streaming.stream import TileBatch, stream

_LOG = logging.getLogger(__name__)

# Default memory for kept tiles: this size on the CPU, this fraction of the free memory on CUDA.
_KEPT_BYTES = 512 * 2**20
_KEPT_FRACTION = 0.5


class LostBagError(Exception):
    """A slide failed after some of its chunks had been delivered; it is in the loader's ``failures``."""

    def __init__(self, error: SlideioPipeError | OSError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(slots=True)
class PixelBag:
    """The chunks of one bag as input of the encoder; can be iterated again with the same tiles.

    The first iteration uses the epoch's stream. Chunks beyond ``keep_bytes`` are read again later: draws depend only on
    seed, epoch, slide and tile, so augmented tiles are the same.
    """

    first: TileBatch
    rest: ChunkStream
    dataset: BagDataset
    number: int  # number of the slide in the cohort
    epoch: int
    prepare: Callable[[Tensor], Tensor]  # from uint8 tiles to the encoder's input
    keep_bytes: int
    on_error: str = "raise"
    _kept: list[Tensor | None] = field(default_factory=list)  # uint8; None: read again
    _index: list[NDArray[np.int64]] = field(default_factory=list)
    _coords: list[NDArray[np.int64]] = field(default_factory=list)
    _slides: list[NDArray[np.int64]] = field(default_factory=list)
    _read: bool = False

    @property
    def coords(self) -> NDArray[np.int64]:
        """Level-0 px of the tiles, (N, 2), of patients see ``slides_apart``; available after the first iteration."""
        coords, slides = np.concatenate(self._coords), np.concatenate(self._slides)
        return slides_apart(coords, slides) if len(self.first.slides) > 1 else coords

    def __iter__(self) -> Iterator[Tensor]:
        chunks = self._reread() if self._read else self._from_epoch()
        for tiles in chunks:
            yield self.prepare(tiles)

    def drain(self) -> None:
        """Skip the remaining chunks of the bag, so that the next bag follows."""
        if not self._read:
            for _ in self._from_epoch():
                pass

    def _from_epoch(self) -> Iterator[Tensor]:
        """Yield the chunks as delivered by the loader, and keep those that fit in memory."""
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
            self._slides.append(chunk.slide_index)
            self._read = chunk.last
            yield chunk.tiles
            if chunk.last:
                return
            chunk = next(self.rest)

    def _reread(self) -> Iterator[Tensor]:
        kept = [tiles for tiles in self._kept if tiles is not None]
        yield from kept
        if len(kept) == len(self._kept):
            return
        bag = self.dataset.open(self.number, self.epoch)
        try:
            sizes = [len(index) for index in self._index[len(kept) :]]
            unread = np.concatenate(self._index[len(kept) :])
            with stream(
                bag,
                device=self.first.tiles.device,
                normalize=None,
                batch_size=max(sizes),
                indices=unread,
                on_error="white" if self.on_error == "white" else "raise",
            ) as batches:
                yield from _cut((batch.tiles for batch in batches), sizes)
        finally:
            self.dataset.close(self.number, bag)


def room_for_tiles(device: torch.device, keep_gb: float | None) -> int:
    """Return the bytes of tiles to keep between the two passes."""
    if keep_gb is not None:
        return round(keep_gb * 1e9)
    room = round(_KEPT_FRACTION * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else _KEPT_BYTES
    _LOG.info("%.1f GB for tiles that are kept for the second pass on %s (encoder.keep_gb)", room / 1e9, device)
    return room


def _cut(batches: Iterator[Tensor], sizes: list[int]) -> Iterator[Tensor]:
    """Yield the tiles of batches in chunks of these sizes; skipped tiles made chunks unequal."""
    waiting = next(batches)
    for size in sizes:
        while len(waiting) < size:
            waiting = torch.cat([waiting, next(batches)])
        yield waiting[:size]
        waiting = waiting[size:]
