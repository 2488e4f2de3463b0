"""Read tiles of open bags on request: the work of a reading process, which needs no torch."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.errors import ConfigError, SlideioPipeError
from slideio_pipe.files import Closable
from slideio_pipe.slides.tile_cache import SHARED
from slideio_pipe.store.stored_bag import StoredBag
from slideio_pipe.tiles.bag import Bag, PlannedBag, UncolouredBag
from slideio_pipe.tiles.drawn_bag import DrawnBag
from slideio_pipe.tiles.failures import OnError, Read, TileErrors
from slideio_pipe.tiles.patient_bag import PatientBag
from slideio_pipe.tiles.tile_bag import TileBag
from slideio_pipe.tiles.views_bag import ViewsBag

Indices = NDArray[np.int64]
Span = tuple[str, float, float]  # a stage, and its begin and end: ``time.perf_counter`` seconds

# Tiles that are planned together: planning a few takes as long as hundreds.
PLANNED = 256


def plan_ahead(bag: Bag, index: Indices, colours: str) -> None:
    """Plan tiles of a bag that will be read a few at a time; errors are raised when the tile that has one is read."""
    if isinstance(bag, PlannedBag):
        with suppress(SlideioPipeError, OSError):
            bag.plan_ahead(index, colours=colours != "device")


def reader_of(bag: Bag, colours: str, threads: int = 1) -> Read:
    """Return the function that reads tiles of a bag: with their colours, or without those computed on the device."""
    if colours == "device" and isinstance(bag, ViewsBag):
        return partial(bag.read_without_colours, threads=threads)
    if colours == "device" and isinstance(bag, UncolouredBag):
        return partial(bag.read_uncoloured, threads=threads)
    return partial(bag.read, threads=threads)


@dataclass(frozen=True, slots=True)
class OpenedBag:
    """A bag as it goes to a reading process."""

    pickled: bytes
    part: Indices  # the tiles that this process reads, in storage order
    tiles: int  # number of tiles that all processes read
    colours: str
    on_error: OnError
    timed: bool  # whether the stages are timed


@dataclass(frozen=True, slots=True)
class ReadTask:
    """Some tiles of a bag, and their places in the shared memory."""

    bag: int  # number of the bag, which stays open in the process
    opened: OpenedBag | None  # with the first task of a bag
    in_use: tuple[int, ...]  # numbers of the bags that may be read again; others are dropped
    start: int  # of the tiles in the process's part of the bag
    count: int
    places: Indices  # (count,) numbers of tiles in the shared memory


@dataclass(frozen=True, slots=True)
class ReadResult:
    """What came of a task."""

    bad: list[int]  # tiles that cannot be decoded, as positions in the task
    errors: list[SlideioPipeError]  # of each
    spans: list[Span]


@dataclass(slots=True, eq=False)
class _ReadBag:
    bag: Bag
    opened: OpenedBag
    spans: list[Span]
    planned: int = 0  # tiles of the part up to here are planned

    @classmethod
    def of(cls, opened: OpenedBag) -> _ReadBag:
        bag = _unpickled(opened.pickled)
        spans: list[Span] = []
        if opened.timed and isinstance(bag, DrawnBag | StoredBag | PatientBag | ViewsBag):
            bag.on_stage = lambda stage, start, end: spans.append((stage, start, end))
        return cls(bag, opened, spans)

    def close(self) -> None:
        for each in self.bag.slides if isinstance(self.bag, PatientBag) else (self.bag,):
            bag = each.bag if isinstance(each, ViewsBag) else each
            source = bag.view.slide if isinstance(bag, TileBag) else bag
            if isinstance(source, Closable):
                source.close()


def _unpickled(content: bytes) -> Bag:
    try:
        bag: Bag = pickle.loads(content)
    except SlideioPipeError:
        raise
    except Exception as error:  # whatever the members of another's bag or transform raise
        raise ConfigError(
            f"its bag cannot be made in a worker process ({type(error).__name__}: {error})",
            remedy="pass {workers=0}, or define its classes and functions in a module",
        ) from error
    return bag


@dataclass(slots=True, eq=False)
class BagReads:
    """Reads tiles into shared memory; made in the parent and sent to each process when it starts.

    Parameters
    ----------
    memory : SharedMemory
        In the process: (nbytes,) uint8.
    tile_shape : (H, W, C)
    cache_bytes : int
        Limit of the decoded stored tiles that the process keeps.
    """

    memory: NDArray[np.uint8]
    tile_shape: tuple[int, ...]
    cache_bytes: int
    _bags: dict[int, _ReadBag] = field(default_factory=dict)

    def __call__(self, task: ReadTask, on_stage: Callable[[str], object]) -> ReadResult:
        """Read the tiles of a task; raise SlideioPipeError or OSError if the bag fails."""
        SHARED.limit(self.cache_bytes)
        for number in self._bags.keys() - set(task.in_use):
            self._bags.pop(number).close()
        if task.opened is not None:
            self._bags[task.bag] = _ReadBag.of(task.opened)
        read = self._bags[task.bag]
        stop = task.start + task.count
        if stop > read.planned:
            read.planned = task.start + max(task.count, PLANNED)
            plan_ahead(read.bag, read.opened.part[task.start : read.planned], read.opened.colours)
        tolerance = TileErrors(read.bag.name, read.opened.tiles, read.opened.on_error)
        bad = self._fill(read, read.opened.part[task.start : stop], task.places, tolerance)
        spans = list(read.spans)
        read.spans.clear()
        # In the order of the failures, which are recorded tile by tile.
        errors = [failure.error for failure in tolerance.failures if isinstance(failure.error, SlideioPipeError)]
        return ReadResult(bad, errors, spans)

    def _fill(self, read: _ReadBag, index: Indices, places: Indices, tolerance: TileErrors) -> list[int]:
        tiles = self.memory.reshape(-1, *self.tile_shape)
        reading = reader_of(read.bag, read.opened.colours)
        first, last = int(places[0]), int(places[-1])
        if last - first == len(places) - 1 and (np.diff(places) == 1).all():
            return tolerance.read(reading, index, tiles[first : last + 1])
        scratch = np.empty((len(index), *self.tile_shape), np.uint8)
        bad = tolerance.read(reading, index, scratch)
        tiles[places] = scratch
        return bad
