"""The records of a loader: settings, blocks and chunks, progress, and memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.streaming.device import Sent
from slideio_pipe.tiles.bag import Label
from slideio_pipe.tiles.failures import OnError, TileFailure
from slideio_pipe.tiles.marks.targets import Targets
from slideio_pipe.tiles.patient_bag import no_slides
from slideio_pipe.tiles.reader import READ_RUN

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LoaderSettings:
    """How bags are divided and read."""

    chunk_size: int
    threads: int
    bags_in_flight: int  # open at a time
    interleave: int  # number of these that are delivered in turns
    mix: int  # chunks over which the tiles of a bag are mixed; 0: not at all
    ordered: bool
    on_error: OnError
    colours: str
    workers: int = 0  # reading processes in place of threads

    @property
    def slots(self) -> int:
        """Slots that keep every reader busy while one chunk is sent and one block is being completed.

        A worker has two runs: it begins one while the answer to the other is on its way.
        """
        busy = -(-(2 * self.workers or self.threads) * READ_RUN // self.chunk_size)
        block = max(1, self.mix)
        return block + max(block, busy) + 1


@dataclass(frozen=True, slots=True)
class Block:
    """Chunks that are read together, in storage order."""

    order: Indices  # tiles in storage order
    target: Indices  # destination of each: position in the concatenated chunks
    first: int  # number of the first chunk

    def chunks(self, chunk_size: int) -> range:
        """Return the numbers of the block's chunks."""
        return range(self.first, self.first + -(-len(self.order) // chunk_size))


def plan_blocks(
    order: Indices, pace: LoaderSettings, rng: np.random.Generator, done: Collection[int]
) -> Iterator[Block]:
    """Yield the blocks of a bag, without those whose chunks are all done; the draws do not depend on ``done``.

    Examples
    --------
    >>> pace = LoaderSettings(
    ...     2, threads=1, bags_in_flight=1, interleave=1, mix=0, ordered=True, on_error="raise", colours="host"
    ... )
    >>> [block.order.tolist() for block in plan_blocks(np.arange(5), pace, np.random.default_rng(0), done={1})]
    [[0, 1], [4]]
    """
    size = pace.chunk_size * max(1, pace.mix)
    for start in range(0, len(order), size):
        part = order[start : start + size]
        target = rng.permutation(len(part)) if pace.mix else np.arange(len(part))
        block = Block(part, target.astype(np.int64), start // pace.chunk_size)
        if any(number not in done for number in block.chunks(pace.chunk_size)):
            yield block


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk to be delivered to the consumer."""

    place: int  # place of its bag in the epoch's order
    chunk: int  # number in its bag
    sent: Sent
    index: Indices
    places: Indices  # positions of its tiles among those of the bag that the epoch uses
    coords: NDArray[np.int64]
    bag: str
    label: Label
    total: int  # tiles of the bag that the epoch uses
    last: bool
    failures: tuple[TileFailure, ...]  # tiles that could not be decoded since the last chunk of the bag
    patient: str | None = None  # patient of the slide, if known
    slide_index: Indices = field(default_factory=no_slides)  # number of each tile's slide in ``slides``
    slides: tuple[str, ...] = ()  # names of the bag's slides
    nominal_mpps: tuple[float, ...] = ()  # of several magnifications
    targets: tuple[Targets, ...] | None = None  # boxes and points of each tile, if the bag has annotations


@dataclass(frozen=True, slots=True)
class FailedBag:
    """A bag that failed."""

    place: int
    failure: TileFailure
    label: Label
    began: bool  # whether some of its chunks were delivered


@dataclass(frozen=True, slots=True)
class LoaderMemory:
    """Memory of a loader, independent of the size and number of bags; known before it starts."""

    ring_bytes: int  # host memory that tiles are decoded into; page-locked on CUDA
    ahead_bytes: int  # device memory of the chunks that may wait for the consumer
    cache_bytes: int  # decoded stored tiles, shared by everything in the process

    @property
    def total_bytes(self) -> int:
        """The sum."""
        return self.ring_bytes + self.ahead_bytes + self.cache_bytes

    def __str__(self) -> str:
        parts = (("ring", self.ring_bytes), ("chunks ahead", self.ahead_bytes), ("decoded tiles", self.cache_bytes))
        return f"{self.total_bytes / 1e6:,.0f} MB: " + ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in parts)


@dataclass(slots=True)
class Progress:
    """The part of an epoch that has been returned to the consumer."""

    begun: dict[int, set[int]] = field(default_factory=dict)  # place of a bag in the order: its chunks
    finished: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)  # also finished
    extra: list[int] = field(default_factory=list)  # slides read in place of failed ones, after those of the order
    marked: int = 0  # failed bags whose end was returned, so that they count as a bag
    any: bool = False  # whether an item was returned since the epoch began or was resumed

    def note(self, item: Chunk | FailedBag) -> None:
        self.any = True
        if isinstance(item, FailedBag):
            self.failed.add(item.place)
        else:
            self.begun.setdefault(item.place, set()).add(item.chunk)
        if isinstance(item, FailedBag) or item.last:
            self.finished.add(item.place)
            self.begun.pop(item.place, None)

    def done(self) -> dict[int, set[int] | None]:
        """Return what need not be read again: chunks of a bag, or None for all of them."""
        return {**self.begun, **dict.fromkeys(self.finished)}

    @property
    def missing(self) -> int:
        """Return how many bags fewer than planned will have been returned, at present."""
        return len(self.failed) - self.marked - len(self.extra)
