"""Read tiles of open bags into the buffer pool with worker processes, each with an interpreter of its own.

::

    this process                                      worker process
    ReadTask: places in the pool  ──pipe──▶  BagReads: bag.read into shared memory
    run is complete  ◀──pipe── ReadResult: bad tiles, stages

The pool's memory is shared, so no pixel passes through a pipe; on CUDA it is page-locked once. A bag goes to a process
with its first task. Every process reads a part of the bag of its own, so that few stored tiles are decoded twice.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import numpy as np
import torch

from slideio_pipe.cohort.workers.pool import ATTEMPTS, NO_START
from slideio_pipe.cohort.workers.process import Ended, LostError, Worker, spawned
from slideio_pipe.errors import ConfigError, SlideioPipeWarning, WorkerError
from slideio_pipe.slides.backends.base import OnTiming
from slideio_pipe.slides.tile_cache import SHARED
from slideio_pipe.streaming.bag_reads import BagReads, Indices, OpenedBag, ReadResult, ReadTask
from slideio_pipe.streaming.device import Sender
from slideio_pipe.streaming.reading_threads import BagReading, Goals
from slideio_pipe.streaming.shared_memory import SharedMemory
from slideio_pipe.tiles.bag import Bag
from slideio_pipe.tiles.drawn_bag import DrawnBag
from slideio_pipe.tiles.patient_bag import unannotated
from slideio_pipe.tiles.reader import READ_RUN

# Tiles per task: enough that a message costs little, few enough that all workers are at work on one chunk.
_TASK = 32
# Width of a worker's columns in tiles: tiles off the stored grid decode one more stored column than they have.
_WIDEST, _NARROWEST = 16, 2
# A worker keeps the stored tiles of its own columns: together they keep as many as this process would.
_LEAST_CACHE_BYTES = 16 * 2**20


def worker_cache_bytes(workers: int) -> int:
    """Return the memory limit of the decoded stored tiles of one of so many workers."""
    return max(_LEAST_CACHE_BYTES, SHARED.max_bytes // workers)


@dataclass(slots=True, eq=False)
class _Seat:
    """The place of a worker process, which is started when it is needed, and again after it ended."""

    number: int
    worker: Worker | None = None
    bags: set[int] = field(default_factory=set)  # open in the process

    def leave(self, *, kill: bool) -> None:
        worker, self.worker = self.worker, None
        self.bags.clear()
        if worker is not None:
            worker.kill() if kill else worker.dismiss()


class ReadingWorkers:
    """Worker processes of a loader and the memory that they write to; they stay for all of its epochs.

    They are started when the first tile is read, and end with ``close``, with this object, and with this process.

    Parameters
    ----------
    workers : int
        Number of processes; each decodes with one thread.
    sender : Sender
        Copies the buffers to the device.
    slots : int
        Number of buffers.
    shape : (n, H, W, 3)
        Shape of a buffer.
    """

    def __init__(self, workers: int, sender: Sender, slots: int, shape: tuple[int, ...]) -> None:
        if multiprocessing.current_process().daemon:
            raise ConfigError(
                "a loader with worker processes in a process that may have none, such as a worker of a DataLoader",
                remedy="pass {workers=0} there",
            )
        self._owner = os.getpid()
        self.chunk_size, self.tile_shape = shape[0], shape[1:]
        self.memory = SharedMemory(slots * int(np.prod(shape)))
        pool = torch.from_numpy(self.memory.array).reshape(slots, *shape)
        self.buffers: Sequence[torch.Tensor] = list(pool)
        self.seats = [_Seat(number) for number in range(workers)]
        self._unlock: Callable[[], object] | None = sender.lock_pages(pool)
        self.in_use = self.abandoned = False
        self._numbers = count()
        self._reads = BagReads(self.memory, self.tile_shape, worker_cache_bytes(workers))  # type: ignore[arg-type]

    @property
    def is_ours(self) -> bool:
        """Whether this process has started them: one that was forked from it may not use or end them."""
        return self._owner == os.getpid()

    def ready(self, seat: _Seat) -> Worker:
        """Return the process of a seat; start it if there is none."""
        if seat.worker is None:
            seat.worker = Worker(partial(spawned, self._reads))
        return seat.worker

    def abandon(self) -> None:
        """End the processes now, or with the running epoch: no other will begin. Never blocks."""
        self.abandoned = True
        if not self.in_use:
            self.hang_up()

    def hang_up(self) -> None:
        """End the processes without waiting for them."""
        for seat in self.seats:
            worker, seat.worker = seat.worker, None
            if worker is not None:
                worker.hang_up()

    def next_bag(self) -> int:
        """Return a number for a bag that no other has had in these processes."""
        return next(self._numbers)

    def close(self) -> None:
        """End the processes and unlock the memory: no epoch may be running."""
        if not self.is_ours:
            return
        for seat in self.seats:
            seat.leave(kill=False)
        unlock, self._unlock = self._unlock, None
        if unlock is not None:
            unlock()

    def __del__(self) -> None:
        if getattr(self, "_unlock", None) is not None:  # made, and not closed
            self.close()


@dataclass(slots=True, eq=False)
class _SharedBag:
    """A bag that several workers read: which tile is whose."""

    number: int
    reading: BagReading
    pickled: bytes
    worker_of: Indices  # of each tile of the bag's order
    place: Indices  # of each tile among those of its worker
    timed: bool

    def opened(self, worker: int) -> OpenedBag:
        reading = self.reading
        part = reading.order[self.worker_of == worker]
        errors = reading.tolerance
        return OpenedBag(self.pickled, part, errors.tiles, reading.colours, errors.on_error, self.timed)


class WorkerReaders:
    """The reading of one epoch with worker processes.

    Parameters
    ----------
    workers : ReadingWorkers
    on_stage : callable, optional
        Called with the stages of reading, as timed in the workers.
    """

    def __init__(self, workers: ReadingWorkers, on_stage: OnTiming | None = None) -> None:
        self._workers, self._on_stage = workers, on_stage
        workers.in_use = True
        # A thread per process waits for its answers. Tasks of one process are done in the order of submission.
        self._threads = [ThreadPoolExecutor(1, f"slideio_pipe.worker-{seat.number}") for seat in workers.seats]
        self._bags: dict[BagReading, _SharedBag] = {}
        self._lock = threading.Lock()

    def begin(self, reading: BagReading) -> None:
        """Divide a bag among the workers; raise ConfigError if it cannot be sent to them."""
        content, workers = pickled(reading.bag), len(self._workers.seats)
        number = self._workers.next_bag()
        owners = divide(reading.bag, reading.order, workers, number)
        place = np.empty(len(owners), np.int64)
        for worker in range(workers):
            own = owners == worker
            place[own] = np.arange(own.sum())
        bag = _SharedBag(number, reading, content, owners, place, self._on_stage is not None)
        with self._lock:
            self._bags[reading] = bag

    def runs(self, reading: BagReading, positions: Indices) -> Iterator[Indices]:
        """Divide positions by worker, and those of a worker into tasks."""
        owners = self._bags[reading].worker_of[positions]
        for worker in np.unique(owners):
            own = positions[owners == worker]
            for start in range(0, len(own), _TASK):
                yield own[start : start + _TASK]

    def submit(self, reading: BagReading, run: Indices, goals: Goals) -> Future[list[int]]:
        """Start to read a run into its goals; the result is the positions in the run of its bad tiles."""
        bag = self._bags[reading]
        return self._threads[int(bag.worker_of[run[0]])].submit(self._read, bag, run, goals)

    def finish(self, reading: BagReading) -> None:
        """Release what is kept of a bag: all of its runs have ended."""
        with self._lock:
            self._bags.pop(reading, None)

    def close(self) -> None:
        """Cancel runs that have not begun, and wait for the others."""
        for thread in self._threads:
            thread.shutdown(cancel_futures=True)
        self._workers.in_use = False
        if self._workers.abandoned:
            self._workers.hang_up()

    def _read(self, bag: _SharedBag, run: Indices, goals: Goals) -> list[int]:
        reading = bag.reading
        if not reading.is_wanted():
            return []
        for buffer in {id(buffer): buffer for buffer, _ in goals}.values():
            buffer.claim(0)  # waits until it has been copied
        size = self._workers.chunk_size
        places = np.array([buffer.number * size + place for buffer, place in goals], np.int64)
        found = self._result(bag, int(bag.worker_of[run[0]]), int(bag.place[run[0]]), places)
        for tile, error in zip(found.bad, found.errors, strict=True):
            reading.tolerance.record(int(reading.order[run[tile]]), error)
        if self._on_stage is not None:
            for span in found.spans:
                self._on_stage(*span)
        return found.bad

    def _result(self, bag: _SharedBag, number: int, start: int, places: Indices) -> ReadResult:
        """Return what a worker answers; a worker that ends is replaced, and the task tried once more."""
        seat, lost = self._workers.seats[number], ""
        for _ in range(ATTEMPTS):
            worker = self._workers.ready(seat)
            opened = None if bag.number in seat.bags else bag.opened(number)
            with self._lock:
                in_use = tuple(known.number for known in self._bags.values())
            worker.begin(ReadTask(bag.number, opened, in_use, start, len(places), places))
            try:
                ended = _answer(worker)
            except LostError as error:
                lost, started = str(error), worker.is_ready
                seat.leave(kill=True)
                if not started:
                    raise ConfigError(f"no worker process starts (one {lost})", remedy=NO_START) from None
                continue
            for warning in ended.warnings:
                _warn(warning)
            if ended.error is not None:
                ended.error.slide = ended.error.slide or bag.reading.bag.name  # libraries do not name it
                raise ended.error
            seat.bags = {bag.number, *seat.bags.intersection(in_use)}
            result: ReadResult = ended.value
            return result
        raise WorkerError(
            f"its worker process {lost}", slide=bag.reading.bag.name, remedy="check the file, or leave the slide out"
        )


def _answer(worker: Worker) -> Ended:
    while True:
        ended = worker.receive()
        if ended is not None:
            return ended


def _warn(warning: SlideioPipeWarning | str) -> None:
    warnings.warn(warning, RuntimeWarning if isinstance(warning, str) else None, stacklevel=2)


def pickled(bag: Bag) -> bytes:
    """Return a bag as it goes to other processes; raise ConfigError if it cannot."""
    try:
        return pickle.dumps(unannotated(bag))
    except Exception as error:  # whatever the members of another's bag or transform raise
        raise ConfigError(
            f"a {type(bag).__name__} cannot be sent to a worker process ({type(error).__name__}: {error})",
            slide=bag.name,
            remedy="pass {workers=0}, or define its classes and functions in a module",
        ) from error


def divide(bag: Bag, order: Indices, workers: int, first: int = 0) -> Indices:
    """Return the worker of each tile: of a view, columns of neighbouring tiles in turns, else runs of tiles.

    Parameters
    ----------
    bag : Bag
    order : (n,) int
        Tiles in storage order.
    workers : int
    first : int
        Worker of the first column, modulo their number: small bags do not all go to the same ones.
    """
    if not isinstance(bag, DrawnBag):  # every stored tile is one tile of the bag
        return (np.arange(len(order)) // READ_RUN + first) % workers
    side = max(1.0, bag.tile_size * bag.view.affine.mean_stretch())  # level-0 px
    columns, rows = np.floor_divide(np.asarray(bag.coords)[order].T, side).astype(np.int64)
    per_row = len(order) / max(1, len(np.unique(rows)))
    width = int(np.clip(round(per_row / workers), _NARROWEST, _WIDEST))
    return np.asarray((columns // width + first) % workers, np.int64)
