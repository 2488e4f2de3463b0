"""The chunks, or the whole bags, of one epoch of a loader, handed out one after the other."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Self

import numpy as np
import torch

from slideio_pipe.errors import ConfigError
from slideio_pipe.streaming.chunks import Chunk, FailedBag
from slideio_pipe.streaming.epochs import Epochs, Items
from slideio_pipe.streaming.stream import TileBatch
from slideio_pipe.streaming.whole_bag import BagAssembler, WholeBag


class ChunkStream(Iterator[TileBatch]):
    """The chunks of one epoch; made by ``iter(loader)``.

    Its last chunk is the end of the epoch, whether another one is asked for or not. Leaving the loop early, an
    exception, ``close``, a ``with`` block and garbage collection all end its threads.
    """

    def __init__(self, epochs: Epochs, *, whole: bool = False) -> None:
        self._epochs, self._whole = epochs, whole  # whole: chunks are gathered, so that half a bag counts as none
        self._ended = False
        self._run(epochs.start(whole=whole))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TileBatch:
        while (item := self.take()) is not None:
            if isinstance(item, Chunk):
                tiles = self.take_tiles(item)
                return TileBatch(tiles, item.coords, item.index, item.bag, item.last, item.label)
            if item.began:
                return self._end_mark(item)
        raise StopIteration

    def take(self) -> Chunk | FailedBag | None:
        """Return what is delivered next, or None at the end of the epoch."""
        while not self._ended:
            if not self._epochs.is_running(self._stage):
                raise ConfigError("the iteration was closed, by another one maybe", remedy="iterate the loader again")
            try:
                item = self._stage.take()
            except StopIteration:
                more = self._epochs.go_on(whole=self._whole)
                if more is None:
                    self._end()
                else:
                    self._run(more)
                continue
            except KeyboardInterrupt:  # an interrupted wait may go on
                raise
            except BaseException:
                self.close()
                raise
            self._epochs.note(item, whole=self._whole)
            if self._epochs.is_complete():  # a consumer that counts asks for no more
                self._end()
            return item
        return None

    def take_tiles(self, item: Chunk) -> torch.Tensor:
        """Return the tiles of a delivery, safe on the current stream of the device."""
        return item.sent.receive()

    def _run(self, items: Items) -> None:
        self._stage = items
        weakref.finalize(self, items.stop).atexit = False

    def _end_mark(self, loss: FailedBag) -> TileBatch:
        """Return the end of a bag of which some chunks were delivered and the others will not be."""
        nothing = np.zeros((0, 2), np.int64)
        failure = loss.failure
        return TileBatch(
            self._epochs.no_tiles(), nothing, nothing[:, 0], failure.slide, True, loss.label, failure.error
        )

    def _end(self) -> None:
        self._ended = True
        self._epochs.end()

    def close(self) -> None:
        """End the threads, drop chunks that were not taken, and free the ring."""
        if self._epochs.is_running(self._stage):
            self._epochs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class BagStream(Iterator[WholeBag]):
    """The whole bags of one epoch; made by ``loader.bags()``. Nothing is read until the first one is asked for."""

    def __init__(self, epochs: Epochs) -> None:
        self._epochs = epochs
        self._chunks: ChunkStream | None = None
        self._count: int | None = None  # known from the start on: the loader goes on to other epochs
        self._closed = False

    def __len__(self) -> int:
        """Return how many bags the epoch has in all; fewer come when slides fail and none takes their place."""
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
        except BaseException:  # an interrupted wait, too: the bag it was for has lost its first chunks
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
                return whole.bag(item)
        raise StopIteration

    def close(self) -> None:
        """End the threads and free the ring."""
        self._closed = True
        if self._chunks is not None:
            self._chunks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
