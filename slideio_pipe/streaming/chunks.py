"""The records of a loader: at what pace bags are cut and read, what is delivered, what has been, what it takes."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.streaming.device import Sent
from slideio_pipe.tiles.bag import Label
from slideio_pipe.tiles.failures import OnError, TileFailure
from slideio_pipe.tiles.reader import READ_RUN

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LoaderSettings:
    """How bags are cut and read."""

    chunk_size: int
    threads: int
    bags_in_flight: int  # open at a time
    interleave: int  # of those, how many are delivered in turns
    mix: int  # chunks over which the tiles of a bag are mixed; 0: not at all
    ordered: bool
    on_error: OnError
    colours: str

    @property
    def slots(self) -> int:
        """Slots that keep every reader busy while one chunk is sent and one block waits to be complete."""
        busy = -(-self.threads * READ_RUN // self.chunk_size)
        block = max(1, self.mix)
        return block + max(block, busy) + 1


@dataclass(frozen=True, slots=True)
class Block:
    """Chunks that are read together: in storage order, whatever the order of delivery."""

    order: Indices  # tiles in storage order
    target: Indices  # where each goes: its place in the chunks, one behind the other
    first: int  # number of the first chunk

    def chunks(self, chunk_size: int) -> range:
        """Return the numbers of its chunks."""
        return range(self.first, self.first + -(-len(self.order) // chunk_size))


def lay_blocks(
    order: Indices, pace: LoaderSettings, rng: np.random.Generator, done: Collection[int]
) -> Iterator[Block]:
    """Yield the blocks of a bag, without those whose chunks are all done; drawn alike whether they are or not.

    Examples
    --------
    >>> pace = Pace(2, threads=1, bags_in_flight=1, interleave=1, mix=0, ordered=True, on_error="raise", colours="host")
    >>> [block.order.tolist() for block in lay_blocks(np.arange(5), pace, np.random.default_rng(0), done={1})]
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
    """A chunk on its way to the consumer."""

    flight: int  # place of its bag in the epoch's order
    chunk: int  # number in its bag
    sent: Sent
    index: Indices
    places: Indices  # of its tiles among those of the bag that the epoch uses
    coords: NDArray[np.int64]
    bag: str
    label: Label
    total: int  # tiles of the bag that the epoch uses
    last: bool
    failures: tuple[TileFailure, ...]  # tiles that could not be decoded since the last delivery of the bag
    patient: str | None = None  # whose slide it is, where that is known


@dataclass(frozen=True, slots=True)
class FailedBag:
    """A bag that failed."""

    flight: int
    failure: TileFailure
    label: Label
    began: bool  # whether chunks of it were delivered before


@dataclass(frozen=True, slots=True)
class LoaderMemory:
    """What a loader takes, however large its bags and however many: known before it starts."""

    ring_bytes: int  # host memory that tiles are decoded into; page-locked on CUDA
    ahead_bytes: int  # device memory of the chunks that may wait for the consumer
    cache_bytes: int  # decoded stored tiles, shared by everything in the process

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.ring_bytes + self.ahead_bytes + self.cache_bytes

    def __str__(self) -> str:
        parts = (("ring", self.ring_bytes), ("chunks ahead", self.ahead_bytes), ("decoded tiles", self.cache_bytes))
        return f"{self.total_bytes / 1e6:,.0f} MB: " + ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in parts)


@dataclass(slots=True)
class Progress:
    """What of an epoch has been handed to the consumer."""

    begun: dict[int, set[int]] = field(default_factory=dict)  # place of a bag in the order: its chunks
    finished: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)  # also finished
    extra: list[int] = field(default_factory=list)  # slides read in place of failed ones, behind the order's
    marked: int = 0  # failed bags whose end was handed over, so that they count as a bag
    any: bool = False  # whether something came since the epoch began or was resumed

    def note(self, item: Chunk | FailedBag) -> None:
        self.any = True
        if isinstance(item, FailedBag):
            self.failed.add(item.flight)
        else:
            self.begun.setdefault(item.flight, set()).add(item.chunk)
        if isinstance(item, FailedBag) or item.last:
            self.finished.add(item.flight)
            self.begun.pop(item.flight, None)

    def done(self) -> dict[int, set[int] | None]:
        """Return what need not be read again: chunks of a bag, or None for all of them."""
        return {**self.begun, **dict.fromkeys(self.finished)}

    @property
    def missing(self) -> int:
        """Return how many bags fewer than planned will have come, as it stands."""
        return len(self.failed) - self.marked - len(self.extra)
