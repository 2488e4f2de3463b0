"""Read several bags at once: open them, decode their tiles into slots, deliver chunks.

::

    openers ──▶ open bag: divided into blocks of chunks, in storage order
                   │ a block needs a slot per chunk; its runs of tiles go to any free reader
                   ▼
    readers ──▶ slots of the ring ──▶ complete chunks ──▶ sent to the device, one by one

One thread decides (`EpochSchedule.deliveries`, in a `BackgroundIterator`); readers and openers only send events to its
queue. The tiles of a chunk depend only on the seed, the epoch and the bag, never on threads or time.
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

from slideio_pipe.errors import ConfigError, SlideioPipeError
from slideio_pipe.streaming.arguments import check_colours
from slideio_pipe.streaming.chunks import Block, Chunk, FailedBag, Indices, LoaderSettings, plan_blocks
from slideio_pipe.streaming.dataset import BagDataset
from slideio_pipe.streaming.device import use_device
from slideio_pipe.streaming.reading_threads import BagReading, Readers, ReadingThreads
from slideio_pipe.streaming.ring import Buffer, BufferPool
from slideio_pipe.streaming.stream import colours_of
from slideio_pipe.tiles.bag import Bag, Label, PlannedBag, nominal_mpps_of, targets_of_batch
from slideio_pipe.tiles.failures import TileErrors, TileFailure
from slideio_pipe.tiles.patient_bag import slide_index_of, slide_names_of

# Errors that make a slide fail; any other is a programming error and ends the epoch.
SLIDE_ERRORS = (SlideioPipeError, OSError)


@dataclass(slots=True, eq=False)
class _Chunk:
    open_bag: _OpenBag
    number: int
    index: Indices  # in the order of delivery
    slot: Buffer
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
    over: bool = False  # delivered or failed
    reading: BagReading | None = None
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
    readers : Readers, optional
        By default ``pace.threads`` threads; closed at the end.
    """

    def __init__(
        self,
        dataset: BagDataset,
        epoch: int,
        order: Sequence[int],
        done: Mapping[int, Collection[int] | None],
        ring: BufferPool,
        pace: LoaderSettings,
        readers: Readers | None = None,
    ) -> None:
        self._dataset, self._epoch, self._ring, self._pace = dataset, epoch, ring, pace
        self._readers = readers or ReadingThreads(pace.threads, pace.chunk_size, ring.device)
        self._waiting = deque(
            _OpenBag(number, slide, dataset.cohort[slide].name, done.get(number, ()) or ())
            for number, slide in enumerate(order)
            if done.get(number, ()) is not None
        )
        self._opening: list[_OpenBag] = []  # opened or being opened, not started, in order
        self._issuing: deque[_OpenBag] = deque()  # with blocks to submit
        self._active: list[_OpenBag] = []  # started and not finished
        self._chunks: list[_Chunk] = []  # submitted and not delivered, in order
        self._leaving = 0  # runs of finished bags
        self._events: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self._stopping = threading.Event()

    def deliveries(self) -> Generator[Chunk | FailedBag]:
        """Yield the chunks of all bags, and the bags that failed."""
        self._openers = ThreadPoolExecutor(
            self._pace.bags_in_flight, "slideio_pipe.open", initializer=partial(use_device, self._ring.device)
        )
        try:
            while True:
                while not self._events.empty():
                    self._handle(self._events.get())
                self._open()
                self._issue()
                item = self._deliverable()
                if item is not None:
                    self._issue()  # fill the free slot while the consumer works
                    yield item
                    item = None  # its memory belongs to the consumer
                elif self._active or self._opening or self._waiting or self._leaving:
                    self._handle(self._events.get())
                else:
                    return
        finally:
            self._stopping.set()
            self._openers.shutdown(cancel_futures=True)
            self._readers.close()
            self._ring.close()
            for open_bag in (*self._opening, *self._active):
                self._close(open_bag)

    # -- opening -------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        while self._waiting and len(self._opening) + len(self._active) < self._pace.bags_in_flight:
            open_bag = self._waiting.popleft()
            self._opening.append(open_bag)
            open_bag.opening = self._openers.submit(self._prepare, open_bag)
            open_bag.opening.add_done_callback(lambda _: self._events.put(()))

    def _prepare(self, open_bag: _OpenBag) -> None:
        """Open a bag and divide it into blocks; in its own thread."""
        dataset, pace = self._dataset, self._pace
        try:
            open_bag.bag = bag = dataset.open(open_bag.slide, self._epoch)
            if tuple(bag.shape[1:]) != tuple(dataset.tile_shape):
                raise ConfigError(
                    f"tiles of {_described(bag.shape[1:])} among those of {_described(dataset.tile_shape)}",
                    slide=open_bag.name,
                    remedy="leave it out, or write all bags with one configuration",
                )
            check_colours(pace.colours, bag)
            open_bag.label = dataset.label(open_bag.slide, bag)
            open_bag.patient = dataset.patient(open_bag.slide, bag)
            open_bag.chosen = chosen = dataset.chosen(open_bag.slide, bag, self._epoch)
            order = _storage_order(bag, chosen)
            tolerance = TileErrors(open_bag.name, len(chosen), pace.on_error)
            reading = BagReading(bag, order, tolerance, pace.colours, partial(self._is_wanted, open_bag))
            self._readers.begin(reading)
            open_bag.reading = reading
            open_bag.blocks = plan_blocks(order, pace, dataset.rng(self._epoch, "mix", open_bag.name), open_bag.done)
            open_bag.next_block = next(open_bag.blocks, None)
            open_bag.chunks_left = -(-len(chosen) // pace.chunk_size) - len(open_bag.done)
            open_bag.delivered = bool(open_bag.done)
        except SLIDE_ERRORS as error:
            open_bag.error = error

    def _is_wanted(self, open_bag: _OpenBag) -> bool:
        # After a run failed the others are still read: their chunks may be delivered before the one that failed.
        return not (self._stopping.is_set() or open_bag.over)

    # -- decoding ------------------------------------------------------------------------------------------------

    def _issue(self) -> None:
        """Submit blocks while there are slots."""
        while (open_bag := self._next_issuing()) is not None:
            block = open_bag.next_block
            assert block is not None
            numbers = [number for number in block.chunks(self._pace.chunk_size) if number not in open_bag.done]
            if len(numbers) > self._ring.free:
                return
            self._submit(open_bag, block, numbers)
            open_bag.next_block = next(open_bag.blocks, None)
            self._issuing.rotate(-1)
            if open_bag.next_block is None:
                self._issuing.remove(open_bag)

    def _next_issuing(self) -> _OpenBag | None:
        """Return the bag of the next block: bags take turns; in order, a bag that is not open yet blocks the others.

        So does a bag that may be opened only after another is delivered: else its turns would depend on timing.
        """
        ordered = self._pace.ordered
        while len(self._issuing) < self._pace.interleave and (self._opening or (ordered and self._waiting)):
            ready = [open_bag for open_bag in self._opening if open_bag.opening is not None and open_bag.opening.done()]
            if ordered:
                ready = [open_bag for open_bag in ready if open_bag is self._opening[0]]
            if not ready:
                if ordered:
                    return None
                break
            open_bag = ready[0]
            assert open_bag.opening is not None
            open_bag.opening.result()  # raises programming errors
            self._opening.remove(open_bag)
            self._active.append(open_bag)
            if open_bag.error is None:
                self._issuing.append(open_bag)
        return self._issuing[0] if self._issuing else None

    def _submit(self, open_bag: _OpenBag, block: Block, numbers: Sequence[int]) -> None:
        size = self._pace.chunk_size
        tiles_of = np.empty_like(block.order)
        tiles_of[block.target] = block.order
        chunks: dict[int, _Chunk] = {}
        for number in numbers:
            start = (number - block.first) * size
            index = tiles_of[start : start + size]
            chunks[number] = _Chunk(open_bag, number, index, self._ring.take(), waiting=len(index))
        self._chunks.extend(chunks.values())
        first = block.first * size  # its first tile, in the bag's order
        in_chunks = np.isin(block.first + block.target // size, list(chunks))
        reading = open_bag.reading
        assert reading is not None
        for run in self._readers.runs(reading, first + np.flatnonzero(in_chunks)):
            goals = [
                (chunks[block.first + place // size], place % size) for place in block.target[run - first].tolist()
            ]
            open_bag.running += 1
            future = self._readers.submit(reading, run, [(chunk.slot, place) for chunk, place in goals])
            future.add_done_callback(partial(self._report, open_bag, goals))

    def _report(self, open_bag: _OpenBag, goals: list[tuple[_Chunk, int]], run: Future[list[int]]) -> None:
        self._events.put((open_bag, goals, run))

    def _handle(self, event: tuple[Any, ...]) -> None:
        """Handle the end of a run; the event of an opening only wakes this thread."""
        if not event:
            return
        open_bag, goals, future = event
        open_bag.running -= 1
        error = None if future.cancelled() else future.exception()
        if error is not None and not isinstance(error, SLIDE_ERRORS):
            raise error
        bad = [] if error is not None or future.cancelled() else future.result()
        for k, (chunk, place) in enumerate(goals):
            chunk.waiting -= 1
            chunk.error = chunk.error or error
            if k in bad:
                chunk.bad.append(place)
            if not chunk.waiting and open_bag.over:
                self._ring.give_back(chunk.slot)
        if open_bag.over:
            self._leaving -= 1
            if not open_bag.running:
                self._close(open_bag)

    # -- delivering ----------------------------------------------------------------------------------------------

    def _deliverable(self) -> Chunk | FailedBag | None:
        """Return the next chunk or failed bag that may be delivered now."""
        turn = self._active[: self._pace.interleave]
        for open_bag in turn:
            if open_bag.error is not None:
                return self._fail(open_bag, open_bag.error)
        for chunk in self._chunks:
            if not chunk.waiting and chunk.open_bag in turn:
                return self._deliver(chunk) if chunk.error is None else self._fail(chunk.open_bag, chunk.error)
            if self._pace.ordered:
                break
        return None

    def _deliver(self, chunk: _Chunk) -> Chunk:
        open_bag, index = chunk.open_bag, chunk.index
        assert open_bag.bag is not None
        assert open_bag.reading is not None
        self._chunks.remove(chunk)
        tiles = chunk.slot.memory[: len(index)]
        if chunk.bad and self._pace.on_error == "skip":
            valid = np.delete(np.arange(len(index)), chunk.bad)
            tiles, index = tiles[torch.from_numpy(valid)], index[valid]
        sent = self._ring.send(chunk.slot, tiles, colours_of(open_bag.bag, index, self._pace.colours))
        open_bag.chunks_left -= 1
        open_bag.delivered = True
        failures = tuple(open_bag.reading.tolerance.failures[open_bag.reported :])
        open_bag.reported += len(failures)
        delivery = Chunk(
            open_bag.number,
            chunk.number,
            sent,
            index,
            np.searchsorted(open_bag.chosen, index),
            np.asarray(open_bag.bag.coords)[index],
            open_bag.name,
            open_bag.label,
            len(open_bag.chosen),
            not open_bag.chunks_left,
            failures,
            open_bag.patient,
            slide_index_of(open_bag.bag, index),
            slide_names_of(open_bag.bag),
            nominal_mpps_of(open_bag.bag),
            targets_of_batch(open_bag.bag, index),
        )
        if delivery.last:
            open_bag.over = True
            self._active.remove(open_bag)
            self._close(open_bag)
        return delivery

    def _fail(self, open_bag: _OpenBag, error: BaseException) -> FailedBag:
        assert isinstance(error, SLIDE_ERRORS)
        open_bag.over = True
        self._active.remove(open_bag)
        if open_bag in self._issuing:
            self._issuing.remove(open_bag)
        for chunk in [chunk for chunk in self._chunks if chunk.open_bag is open_bag]:
            self._chunks.remove(chunk)
            if not chunk.waiting:
                self._ring.give_back(chunk.slot)
        self._leaving += open_bag.running
        if not open_bag.running:
            self._close(open_bag)
        return FailedBag(open_bag.number, TileFailure(open_bag.name, error), open_bag.label, open_bag.delivered)

    def _close(self, open_bag: _OpenBag) -> None:
        bag, open_bag.bag = open_bag.bag, None
        reading, open_bag.reading = open_bag.reading, None  # it refers to the bag, and to this record
        if reading is not None:
            self._readers.finish(reading)
        if bag is not None:
            self._dataset.close(open_bag.slide, bag)


def _described(tile_shape: tuple[int, ...]) -> str:
    """Return the shape of tiles as text: "256×256 px", "256×256 px at 2 magnifications"."""
    *scales, height, width, _ = tile_shape
    return f"{width}×{height} px" + "".join(f" at {count} magnifications" for count in scales)


def _storage_order(bag: Bag, chosen: Indices) -> Indices:
    """Return tiles in the order that decodes each stored tile of the slide once."""
    return bag.storage_order(chosen) if isinstance(bag, PlannedBag) else chosen
