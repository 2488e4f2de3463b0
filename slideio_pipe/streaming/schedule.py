"""Several bags read at once: what is opened, what is decoded next and into which slot, what is delivered.

::

    openers ──▶ flight: one bag, laid out in blocks of chunks, in storage order
                   │ a block needs a slot per chunk; its runs of tiles go to whichever reader is free
                   ▼
    readers ──▶ slots of the ring ──▶ complete chunks ──▶ sent to the device, one after the other

One thread decides (`Flights.deliveries`, on a `Stage`); readers and openers only report to its queue. Which chunk holds
which tiles depends on the seed, the epoch and the bag alone, never on threads or time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from slideio_pipe.errors import ConfigError, SlideioPipeError
from slideio_pipe.streaming.chunks import Block, Chunk, FailedBag, Indices, LoaderSettings, lay_blocks
from slideio_pipe.streaming.dataset import BagDataset
from slideio_pipe.streaming.ring import Buffer, BufferPool
from slideio_pipe.streaming.stream import check_colours, colours_of, reader_of
from slideio_pipe.tiles.bag import Bag, Label
from slideio_pipe.tiles.failures import TileErrors, TileFailure
from slideio_pipe.tiles.reader import READ_RUN
from slideio_pipe.tiles.tile_bag import TileBag

# What makes a slide fail; anything else is a fault of the program and ends the epoch.
SLIDE_ERRORS = (SlideioPipeError, OSError)


@dataclass(slots=True, eq=False)
class _Chunk:
    flight: _OpenBag
    number: int
    index: Indices  # in the order of delivery
    slot: Buffer | None = None
    tiles: NDArray[np.uint8] | None = None  # of the slot
    waiting: int = 0  # tiles not decoded yet
    bad: list[int] = field(default_factory=list)
    error: BaseException | None = None


@dataclass(slots=True, eq=False)
class _OpenBag:
    """One bag, from opening to its last chunk."""

    number: int
    slide: int
    name: str
    done: Collection[int]  # chunks that were delivered before a resumption
    opening: Future[None] | None = None
    bag: Bag | None = None
    label: Label = None
    patient: str | None = None
    error: BaseException | None = None
    chosen: Indices = field(default_factory=lambda: np.zeros(0, np.int64))
    blocks: Iterator[Block] = field(default_factory=lambda: iter(()))
    next_block: Block | None = None
    chunks_left: int = 0  # not delivered yet
    delivered: bool = False  # any chunk, in this run or before
    running: int = 0  # runs that write into its slots
    over: bool = False
    tolerance: TileErrors | None = None
    reported: int = 0  # failures of tiles that were delivered


class EpochSchedule:
    """The bags of an epoch.

    Parameters
    ----------
    dataset : BagDataset
    epoch : int
    order : sequence of int
        Numbers of slides, in the order of the epoch.
    done : mapping
        Place in ``order`` to the numbers of chunks that were delivered already; None where all were.
    ring : BufferPool
        At least ``pace.slots`` slots of the dataset's tile shape.
    pace : LoaderSettings
    """

    def __init__(
        self,
        dataset: BagDataset,
        epoch: int,
        order: Sequence[int],
        done: Mapping[int, Collection[int] | None],
        ring: BufferPool,
        pace: LoaderSettings,
    ) -> None:
        self._dataset, self._epoch, self._ring, self._pace = dataset, epoch, ring, pace
        self._waiting = deque(
            _OpenBag(number, slide, dataset.cohort[slide].name, done.get(number, ()) or ())
            for number, slide in enumerate(order)
            if done.get(number, ()) is not None
        )
        self._opening: list[_OpenBag] = []  # opened or being opened, not begun, in order
        self._issuing: deque[_OpenBag] = deque()  # with blocks to hand out
        self._active: list[_OpenBag] = []  # begun and not over
        self._chunks: list[_Chunk] = []  # handed out and not delivered, in order
        self._leaving = 0  # runs of flights that are over
        self._events: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self._stopping = threading.Event()
        self._local = threading.local()

    def deliveries(self) -> Generator[Chunk | FailedBag]:
        """Yield the chunks of all bags, and the bags that failed."""
        pace = self._pace
        self._openers = ThreadPoolExecutor(pace.bags_in_flight, "slideio_pipe.open")
        self._readers = ThreadPoolExecutor(pace.threads, "slideio_pipe.read")
        try:
            while True:
                while not self._events.empty():
                    self._note(self._events.get())
                self._open()
                self._issue()
                item = self._deliverable()
                if item is not None:
                    self._issue()  # into the slot that is free now, while the consumer takes its time
                    yield item
                    item = None  # its memory is the consumer's
                elif self._active or self._opening or self._waiting or self._leaving:
                    self._note(self._events.get())
                else:
                    return
        finally:
            self._stopping.set()
            self._openers.shutdown(cancel_futures=True)
            self._readers.shutdown(cancel_futures=True)
            self._ring.close()
            for flight in (*self._opening, *self._active):
                self._close(flight)

    # -- opening -------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        while self._waiting and len(self._opening) + len(self._active) < self._pace.bags_in_flight:
            flight = self._waiting.popleft()
            self._opening.append(flight)
            flight.opening = self._openers.submit(self._lay, flight)
            flight.opening.add_done_callback(lambda _: self._events.put(()))

    def _lay(self, flight: _OpenBag) -> None:
        """Open a bag and cut it; on a thread of its own."""
        dataset, pace = self._dataset, self._pace
        try:
            flight.bag = bag = dataset.open(flight.slide, self._epoch)
            if tuple(bag.shape[1:]) != tuple(dataset.tile_shape):
                (h, w, _), (height, width, _) = bag.shape[1:], dataset.tile_shape
                raise ConfigError(
                    f"tiles of {w}×{h} px among those of {width}×{height} px",
                    slide=flight.name,
                    remedy="leave it out, or write all bags with one configuration",
                )
            check_colours(pace.colours, bag)
            flight.label = dataset.label(flight.slide, bag)
            flight.patient = dataset.patient(flight.slide, bag)
            flight.chosen = chosen = dataset.chosen(flight.slide, bag, self._epoch)
            flight.tolerance = TileErrors(flight.name, len(chosen), pace.on_error)
            flight.blocks = lay_blocks(
                _storage_order(bag, chosen), pace, dataset.rng(self._epoch, "mix", flight.name), flight.done
            )
            flight.next_block = next(flight.blocks, None)
            flight.chunks_left = -(-len(chosen) // pace.chunk_size) - len(flight.done)
            flight.delivered = bool(flight.done)
        except SLIDE_ERRORS as error:
            flight.error = error

    # -- decoding ------------------------------------------------------------------------------------------------

    def _issue(self) -> None:
        """Hand out blocks while there are slots."""
        while (flight := self._next_issuing()) is not None:
            block = flight.next_block
            assert block is not None
            numbers = [number for number in block.chunks(self._pace.chunk_size) if number not in flight.done]
            if len(numbers) > self._ring.free:
                return
            self._hand_out(flight, block, numbers)
            flight.next_block = next(flight.blocks, None)
            self._issuing.rotate(-1)
            if flight.next_block is None:
                self._issuing.remove(flight)

    def _next_issuing(self) -> _OpenBag | None:
        """Return whose block is next: bags take turns; in order, one that is not open yet holds up the others.

        Also one that may be opened only when another has been delivered: else time would decide when its turns begin.
        """
        ordered = self._pace.ordered
        while len(self._issuing) < self._pace.interleave and (self._opening or (ordered and self._waiting)):
            ready = [flight for flight in self._opening if flight.opening is not None and flight.opening.done()]
            if ordered:
                ready = [flight for flight in ready if flight is self._opening[0]]
            if not ready:
                if ordered:
                    return None
                break
            flight = ready[0]
            assert flight.opening is not None
            flight.opening.result()  # a fault of the program is raised
            self._opening.remove(flight)
            self._active.append(flight)
            if flight.error is None:
                self._issuing.append(flight)
        return self._issuing[0] if self._issuing else None

    def _hand_out(self, flight: _OpenBag, block: Block, numbers: Sequence[int]) -> None:
        size = self._pace.chunk_size
        tiles_of = np.empty_like(block.order)
        tiles_of[block.target] = block.order
        chunks: dict[int, _Chunk] = {}
        for number in numbers:
            start = (number - block.first) * size
            index = tiles_of[start : start + size]
            chunks[number] = _Chunk(flight, number, index, self._ring.take(), waiting=len(index))
        self._chunks.extend(chunks.values())
        wanted = np.isin(block.first + block.target // size, list(chunks))
        order, target = block.order[wanted], block.target[wanted]
        for start in range(0, len(order), READ_RUN):
            places = target[start : start + READ_RUN]
            goals = [(chunks[block.first + int(p) // size], int(p) % size) for p in places]
            flight.running += 1
            future = self._readers.submit(self._read, flight, order[start : start + READ_RUN], goals)
            future.add_done_callback(partial(self._report, flight, goals))

    def _report(self, flight: _OpenBag, goals: list[tuple[_Chunk, int]], run: Future[list[int]]) -> None:
        self._events.put((flight, goals, run))

    def _read(self, flight: _OpenBag, index: Indices, goals: list[tuple[_Chunk, int]]) -> list[int]:
        """Decode a run into its slots; on a reader's thread. Return which of its tiles are bad."""
        if self._stopping.is_set() or flight.over or any(chunk.error is not None for chunk, _ in goals):
            return []
        assert flight.bag is not None
        assert flight.tolerance is not None
        read = reader_of(flight.bag, self._pace.colours)
        chunk, start = goals[0]
        if not self._pace.mix:  # in place
            return flight.tolerance.read(read, index, self._claim(chunk)[start : start + len(index)])
        scratch = self._scratch(flight.bag)[: len(index)]
        bad = flight.tolerance.read(read, index, scratch)
        for tile, (chunk, place) in zip(scratch, goals, strict=True):
            self._claim(chunk)[place] = tile
        return bad

    def _claim(self, chunk: _Chunk) -> NDArray[np.uint8]:
        slot = chunk.slot
        assert slot is not None
        tiles: NDArray[np.uint8] = slot.claim(len(chunk.index)).numpy()
        return tiles

    def _scratch(self, bag: Bag) -> NDArray[np.uint8]:
        """Return this thread's memory for one run of tiles that go to different chunks."""
        if getattr(self._local, "tiles", None) is None:
            self._local.tiles = np.empty((READ_RUN, *bag.shape[1:]), np.uint8)
        tiles: NDArray[np.uint8] = self._local.tiles
        return tiles

    def _note(self, event: tuple[Any, ...]) -> None:
        """Take note of a run that ended; an opening only wakes this thread up."""
        if not event:
            return
        flight, goals, future = event
        flight.running -= 1
        error = None if future.cancelled() else future.exception()
        if error is not None and not isinstance(error, SLIDE_ERRORS):
            raise error
        bad = [] if error is not None or future.cancelled() else future.result()
        for k, (chunk, place) in enumerate(goals):
            chunk.waiting -= 1
            chunk.error = chunk.error or error
            if k in bad:
                chunk.bad.append(place)
            if not chunk.waiting and flight.over:
                self._ring.give_back(chunk.slot)
        if flight.over:
            self._leaving -= 1
            if not flight.running:
                self._close(flight)

    # -- delivering ----------------------------------------------------------------------------------------------

    def _deliverable(self) -> Chunk | FailedBag | None:
        """Return the next chunk or loss that may be delivered now."""
        turn = self._active[: self._pace.interleave]
        for flight in turn:
            if flight.error is not None:
                return self._lose(flight, flight.error)
        for chunk in self._chunks:
            if not chunk.waiting and chunk.flight in turn:
                return self._deliver(chunk) if chunk.error is None else self._lose(chunk.flight, chunk.error)
            if self._pace.ordered:
                break
        return None

    def _deliver(self, chunk: _Chunk) -> Chunk:
        flight, index = chunk.flight, chunk.index
        assert flight.bag is not None
        assert flight.tolerance is not None
        assert chunk.slot is not None
        self._chunks.remove(chunk)
        tiles = chunk.slot.memory[: len(index)]
        if chunk.bad and self._pace.on_error == "skip":
            good = np.delete(np.arange(len(index)), chunk.bad)
            tiles, index = tiles[torch.from_numpy(good)], index[good]
        sent = self._ring.send(chunk.slot, tiles, colours_of(flight.bag, index, self._pace.colours))
        flight.chunks_left -= 1
        flight.delivered = True
        failures = tuple(flight.tolerance.failures[flight.reported :])
        flight.reported += len(failures)
        delivery = Chunk(
            flight.number,
            chunk.number,
            sent,
            index,
            np.searchsorted(flight.chosen, index),
            np.asarray(flight.bag.coords)[index],
            flight.name,
            flight.label,
            len(flight.chosen),
            not flight.chunks_left,
            failures,
            flight.patient,
        )
        if delivery.last:
            flight.over = True
            self._active.remove(flight)
            self._close(flight)
        return delivery

    def _lose(self, flight: _OpenBag, error: BaseException) -> FailedBag:
        assert isinstance(error, SLIDE_ERRORS)
        flight.over = True
        self._active.remove(flight)
        if flight in self._issuing:
            self._issuing.remove(flight)
        for chunk in [chunk for chunk in self._chunks if chunk.flight is flight]:
            self._chunks.remove(chunk)
            if not chunk.waiting and chunk.slot is not None:
                self._ring.give_back(chunk.slot)
        self._leaving += flight.running
        if not flight.running:
            self._close(flight)
        return FailedBag(flight.number, TileFailure(flight.name, error), flight.label, flight.delivered)

    def _close(self, flight: _OpenBag) -> None:
        bag, flight.bag = flight.bag, None
        if bag is not None:
            self._dataset.close(flight.slide, bag)


def _storage_order(bag: Bag, chosen: Indices) -> Indices:
    """Return tiles in the order in which each stored tile of the slide is decoded once."""
    return bag.storage_order(chosen) if isinstance(bag, TileBag) else chosen
