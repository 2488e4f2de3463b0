"""Read tiles of open bags into the buffer pool with threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from slideio_pipe.streaming.bag_reads import PLANNED, Indices, plan_ahead, reader_of
from slideio_pipe.streaming.device import use_device
from slideio_pipe.streaming.ranges import ranged
from slideio_pipe.streaming.ring import Buffer
from slideio_pipe.tiles.bag import Bag
from slideio_pipe.tiles.failures import TileErrors
from slideio_pipe.tiles.reader import READ_RUN

# A thread takes at most so many tiles at a time: the first chunk is complete after the work for one chunk.
_LONGEST_RUN = 32


@dataclass(frozen=True, slots=True, eq=False)
class BagReading:
    """A bag whose tiles are read."""

    bag: Bag
    order: Indices  # its tiles of the epoch, in storage order
    tolerance: TileErrors
    colours: str
    is_wanted: Callable[[], bool]  # whether it has not failed or ended


# For each tile, a buffer and its place there.
Goals = Sequence[tuple[Buffer, int]]


class Readers(Protocol):
    """Reads tiles of several bags at once."""

    def begin(self, reading: BagReading) -> None:
        """Prepare the reading of a bag; in the thread that opened it. Raise SlideioPipeError if it is impossible."""

    def runs(self, reading: BagReading, positions: Indices) -> Iterator[Indices]:
        """Divide positions in a bag's order into runs that one reader reads at a time."""

    def submit(self, reading: BagReading, run: Indices, goals: Goals) -> Future[list[int]]:
        """Start to read a run into its goals; the result is the positions in the run of its bad tiles."""

    def finish(self, reading: BagReading) -> None:
        """Release what is kept of a bag: all of its runs have ended."""

    def close(self) -> None:
        """Cancel runs that have not begun, and wait for the others."""


class ReadingThreads:
    """Reads with threads of this process, which share the decoded stored tiles.

    Parameters
    ----------
    count : int
        Number of threads.
    chunk_size : int
        Tiles per chunk: every thread has about two runs of it.
    device : torch.device
        Where the tiles will be sent.
    """

    def __init__(self, count: int, chunk_size: int, device: torch.device) -> None:
        self._run = min(_LONGEST_RUN, max(READ_RUN, chunk_size // (2 * count)))
        self._planned: dict[BagReading, int] = {}  # tiles of a bag's order up to here are planned
        self._pool = ThreadPoolExecutor(count, "slideio_pipe.read", initializer=partial(use_device, device))
        self._local = threading.local()

    def begin(self, reading: BagReading) -> None:
        """Note that nothing is planned."""
        self._planned[reading] = 0

    def runs(self, reading: BagReading, positions: Indices) -> Iterator[Indices]:
        """Plan these tiles, and more if they are few, and divide them into short runs of one row of stored tiles."""
        first, stop = int(positions[0]), int(positions[-1]) + 1
        if stop > self._planned[reading]:
            self._planned[reading] = planned = max(stop, first + PLANNED)
            plan_ahead(reading.bag, reading.order[first:planned], reading.colours)
        for start in range(0, len(positions), self._run):
            yield positions[start : start + self._run]

    def submit(self, reading: BagReading, run: Indices, goals: Goals) -> Future[list[int]]:
        """Start to read a run into its goals; the result is the positions in the run of its bad tiles."""
        return self._pool.submit(self._read, reading, run, goals)

    def finish(self, reading: BagReading) -> None:
        """Drop what was planned."""
        self._planned.pop(reading, None)

    def close(self) -> None:
        """Cancel runs that have not begun, and wait for the others."""
        self._pool.shutdown(cancel_futures=True)

    def _read(self, reading: BagReading, run: Indices, goals: Goals) -> list[int]:
        if not reading.is_wanted():
            return []
        with ranged("read"):
            return self._read_into(reading, run, goals)

    def _read_into(self, reading: BagReading, run: Indices, goals: Goals) -> list[int]:
        read, index = reader_of(reading.bag, reading.colours), reading.order[run]
        (buffer, first), (last_buffer, last) = goals[0], goals[-1]
        if buffer is last_buffer and [place for _, place in goals] == list(range(first, last + 1)):
            return reading.tolerance.read(read, index, buffer.claim(last + 1)[first:].numpy())
        scratch = self._scratch(reading.bag)[: len(index)]
        bad = reading.tolerance.read(read, index, scratch)
        for tile, (buffer, place) in zip(scratch, goals, strict=True):
            buffer.claim(place + 1).numpy()[place] = tile
        return bad

    def _scratch(self, bag: Bag) -> NDArray[np.uint8]:
        """Return this thread's memory for one run of tiles of different chunks."""
        if getattr(self._local, "tiles", None) is None:
            self._local.tiles = np.empty((self._run, *bag.shape[1:]), np.uint8)
        tiles: NDArray[np.uint8] = self._local.tiles
        return tiles
