"""Iterators over the chunks, or the whole bags, of one epoch of a loader."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Self

import numpy as np
import torch

from slideio_pipe.errors import ConfigError
from slideio_pipe.files import Closable
from slideio_pipe.streaming.chunks import Chunk, FailedBag
from slideio_pipe.streaming.epochs import Epochs, Items
from slideio_pipe.streaming.stream import TileBatch
from slideio_pipe.streaming.views import tiles_and_views
from slideio_pipe.streaming.whole_bag import BagAssembler, WholeBag


class ChunkStream(Iterator[TileBatch], Closable):
    """The chunks of one epoch; made by ``iter(loader)``.

    Returning its last chunk ends the epoch, also if no other chunk is requested. Leaving the loop early, an exception,
    ``close``, a ``with`` block and garbage collection all end its threads.
    """

    def __init__(self, epochs: Epochs, *, whole: bool = False) -> None:
        self._epochs, self._whole = epochs, whole  # whole: chunks are gathered, and an incomplete bag does not count
        self._ended = False
        self._run(epochs.start(whole=whole))
        self._epoch = epochs.epoch

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TileBatch:
        while (item := self.take()) is not None:
            if isinstance(item, Chunk):
                tiles, views = tiles_and_views(self.take_tiles(item), self._epochs.dataset.views)
                return TileBatch(
                    tiles, item.coords, item.index, item.bag, item.last, item.label,
                    slide_index=item.slide_index, slides=item.slides, views=views, nominal_mpps=item.nominal_mpps,
                    targets=item.targets,
                )  # fmt: skip
            if item.began:
                return self._end_mark(item)
        raise StopIteration

    def take(self) -> Chunk | FailedBag | None:
        """Return the next chunk or failed bag, or None at the end of the epoch."""
        while not self._ended:
            if not self._epochs.is_running(self._stage):
                raise ConfigError("the iterator was closed, perhaps by another one", remedy="iterate the loader again")
            try:
                item = self._stage.take()
            except StopIteration:
                if not self._epochs.is_running(self._stage):  # another thread closed it while this one waited
                    continue
                more = self._epochs.read_replacements(whole=self._whole)
                if more is None:
                    self._end()
                else:
                    self._run(more)
                continue
            except KeyboardInterrupt:  # the caller may continue after an interrupt
                raise
            except BaseException:
                self.close()
                raise
            self._epochs.note(item, whole=self._whole)
            if self._epochs.is_complete():  # a consumer that counts chunks does not request another
                self._end()
            return item
        return None

    def take_tiles(self, item: Chunk) -> torch.Tensor:
        """Return the tiles of a chunk, ready on the device's current stream."""
        tiles = item.sent.receive()
        transform = self._epochs.transform
        return tiles if transform is None else transform.of_bag(self._epoch, item.bag)(tiles, item.index, item.targets)

    def _run(self, items: Items) -> None:
        self._stage = items
        weakref.finalize(self, items.stop).atexit = False

    def _end_mark(self, failed: FailedBag) -> TileBatch:
        """Return the last batch of a bag that failed after some of its chunks were delivered."""
        nothing = np.zeros((0, 2), np.int64)
        failure = failed.failure
        none, transform = self._epochs.no_tiles(), self._epochs.transform
        none = none if transform is None else transform(none, nothing[:, 0])
        tiles, views = tiles_and_views(none, self._epochs.dataset.views)
        return TileBatch(tiles, nothing, nothing[:, 0], failure.slide, True, failed.label, failure.error, views=views)

    def _end(self) -> None:
        self._ended = True
        self._epochs.end()

    def close(self) -> None:
        """End the threads, drop chunks that were not delivered, and free the ring."""
        if self._epochs.is_running(self._stage):
            self._epochs.close()


class BagStream(Iterator[WholeBag], Closable):
    """The whole bags of one epoch; made by ``loader.bags()``. Nothing is read until the first one is requested."""

    def __init__(self, epochs: Epochs) -> None:
        self._epochs = epochs
        self._chunks: ChunkStream | None = None
        self._count: int | None = None  # set at the start, because the loader continues with other epochs
        self._closed = False

    def __len__(self) -> int:
        """Return the number of bags of the epoch; fewer are returned if slides fail and are not replaced."""
        return self._epochs.count_bags() if self._count is None else self._count

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> WholeBag:
        if self._closed:
            raise StopIteration
        try:
            if self._chunks is None:
                self._chunks = ChunkStream(self._epochs, whole=True)
                self._count = self._epochs.count
            return self._gather(self._chunks)
        except BaseException:  # also an interrupt: the bag's first chunks are lost
            self.close()
            raise

    def _gather(self, chunks: ChunkStream) -> WholeBag:
        whole = None
        while (item := chunks.take()) is not None:
            if isinstance(item, FailedBag):
                whole = None
                continue
            tiles = chunks.take_tiles(item)
            whole = whole or BagAssembler(item, tiles)
            whole.add(item, tiles)
            if item.last:
                return whole.bag(item, self._epochs.dataset.views)
        raise StopIteration

    def close(self) -> None:
        """End the threads and free the ring."""
        self._closed = True
        if self._chunks is not None:
            self._chunks.close()
