"""From a bag to batches on a device, ahead of the consumer, in memory that does not grow with the bag.

::

    bag.read ──▶ slot of the ring ──copy──▶ device uint8 ──(colours)──normalise──▶ TileBatch ──▶ consumer
    └──────────────────── one thread, at most `prefetch` batches ahead ─────────────────────┘

The thread decodes into a slot of a ring that is allocated once. On CUDA the slots are page-locked, copy and
normalisation run on a stream of their own, a slot is written again only after the event behind its copy, and the
consumer's stream waits for the event behind the normalisation. On the CPU the same code runs without either.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from numbers import Integral
from queue import SimpleQueue
from typing import Generic, Self, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from slideio_pipe.bag import Bag, UncolouredBag
from slideio_pipe.device import Colours, Normalize, Sender, Sent, check_device, check_dtype
from slideio_pipe.errors import ConfigError

T = TypeVar("T")

COLOURS = ("host", "device")


@dataclass(frozen=True, slots=True, eq=False)
class TileBatch:
    """Consecutive tiles of one bag, on the device.

    Its memory is its own: it stays valid after the next batch and after the stream is closed.
    """

    tiles: torch.Tensor  # (n, 3, H, W) channels_last
    coords: NDArray[np.int64]  # (n, 2) level-0 px, x and y
    index: NDArray[np.int64]  # (n,) position in the bag
    bag: str  # name of the bag
    last: bool  # whether the bag ends here

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        kind = f"{tuple(self.tiles.shape)} {str(self.tiles.dtype).removeprefix('torch.')} on {self.tiles.device}"
        return f"TileBatch({self.bag}: {kind}{', last' if self.last else ''})"


@dataclass(frozen=True, slots=True)
class _End:
    reason: BaseException | None = None


class Stage(Generic[T]):
    """Makes what a generator yields on one thread, at most ``ahead`` items before they are taken.

    The thread knows nothing of the stage's owner, so that an owner which is garbage collected can stop it. A finaliser
    may run at any moment and on any thread, so only queues that are reentrant are used: ``SimpleQueue``.
    """

    def __init__(self, items: Generator[T], ahead: int) -> None:
        self._items = items
        self._made: SimpleQueue[T | _End] = SimpleQueue()
        self._permits: SimpleQueue[bool] = SimpleQueue()
        self._stopped = False
        for _ in range(ahead):
            self._permits.put(True)
        # A daemon, because Python waits for other threads before it runs exit handlers, and this one may be waiting
        # for a consumer that is gone. The exit handler ends it before the interpreter is taken down beneath it.
        self._thread = threading.Thread(target=self._run, name="slideio_pipe.streaming", daemon=True)
        atexit.register(self.close)
        self._thread.start()

    def take(self) -> T:
        """Return the next item, or raise what the generator raised in its place; ``StopIteration`` at the end."""
        item = self._made.get()
        if not isinstance(item, _End):
            self._permits.put(True)
            return item
        self._made.put(_End())  # for whoever asks again
        try:
            raise StopIteration if item.reason is None else item.reason
        finally:
            del item  # an exception must not refer to itself through this frame: it would keep the ring alive

    def stop(self) -> None:
        """Ask the thread to end after the item it is making; never blocks."""
        self._stopped = True
        self._permits.put(False)

    def close(self) -> None:
        """End the thread and drop what nobody took."""
        self.stop()
        self._thread.join()
        while not self._made.empty():
            self._made.get()
        self._made.put(_End())

    def _run(self) -> None:
        end = _End()
        try:
            with closing(self._items):
                while self._permits.get() and not self._stopped:
                    self._made.put(next(self._items))
        except StopIteration:
            pass
        except BaseException as reason:
            end = _End(reason)
        finally:
            atexit.unregister(self.close)
            self._made.put(end)
            del end


class Ring:
    """Slots of host memory that are allocated once and filled in turn."""

    def __init__(self, sender: Sender, slots: int, shape: tuple[int, int, int, int]) -> None:
        self._slots = [sender.host_buffer(shape) for _ in range(slots)]
        self._copied: list[torch.cuda.Event | None] = [None] * slots
        self._sender = sender
        self._next = 0

    @property
    def nbytes(self) -> int:
        """Host memory of all slots."""
        return sum(slot.nbytes for slot in self._slots)

    def claim(self, n: int) -> torch.Tensor:
        """Return the first n tiles of the next slot, once its last copy has left it."""
        copied = self._copied[self._next]
        if copied is not None:
            copied.synchronize()
        return self._slots[self._next][:n]

    def send(self, tiles: torch.Tensor, colours: Colours | None = None) -> Sent:
        """Send the claimed tiles and go on to the next slot."""
        sent = self._sender.send(tiles, colours)
        self._copied[self._next] = sent.copied
        self._next = (self._next + 1) % len(self._slots)
        return sent

    def close(self) -> None:
        """Block until no copy reads the slots any more."""
        self._sender.drain()


class TileStream(Iterator[TileBatch]):
    """The batches of one bag in order, made ahead of the consumer; iterate it once.

    Leaving the loop early, an exception, ``close``, a ``with`` block and garbage collection all end its thread.
    ``len`` is the number of batches. Made by ``stream``.

    Attributes
    ----------
    ring_bytes : int
        Host memory of the ring: slots × batch size × bytes of a tile. One slot on the CPU, ``prefetch`` on CUDA.
    ahead_bytes : int
        Device memory of the batches that may wait for the consumer: ``prefetch`` of them.
    """

    def __init__(
        self,
        bag: Bag,
        positions: NDArray[np.int64],
        sender: Sender,
        *,
        batch_size: int,
        prefetch: int,
        threads: int,
        colours: str = "host",
    ) -> None:
        self._bag, self._positions, self._batch_size = bag, positions, batch_size
        self._taken = 0
        self._ended = False
        self._stage: Stage[Sent] | None = None
        self.ring_bytes = self.ahead_bytes = 0
        if not len(positions):
            return
        prefetch = min(prefetch, len(self))
        # On the CPU a slot is free again as soon as its tiles are normalised, which the same thread does.
        slots = prefetch if sender.device.type == "cuda" else 1
        ring = Ring(sender, slots, (min(batch_size, len(positions)), *_tile_shape(bag)))
        self.ring_bytes = ring.nbytes
        self.ahead_bytes = prefetch * ring.nbytes // slots * sender.dtype.itemsize
        self._stage = Stage(_send_batches(bag, positions, ring, batch_size, threads, colours), prefetch)
        weakref.finalize(self, self._stage.stop).atexit = False

    def __len__(self) -> int:
        return -(-len(self._positions) // self._batch_size)

    def __iter__(self) -> Self:
        if self._ended:
            raise ConfigError("the stream has ended", slide=self._bag.name, remedy="make a new one for each epoch")
        return self

    def __next__(self) -> TileBatch:
        if self._stage is None:
            raise StopIteration
        try:
            tiles = self._stage.take().receive()
        except BaseException as end:
            # An interrupted wait may go on; everything else is the end.
            if not isinstance(end, KeyboardInterrupt):
                self._ended = isinstance(end, StopIteration)
                self.close()
            raise
        index = self._positions[self._taken : self._taken + self._batch_size]
        self._taken += len(index)
        coords = np.asarray(self._bag.coords)[index]
        return TileBatch(tiles, coords, index, self._bag.name, self._taken == len(self._positions))

    def close(self) -> None:
        """End the thread, drop batches that nobody took, and free the ring."""
        stage, self._stage = self._stage, None
        if stage is not None:
            stage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def stream(
    bag: Bag,
    *,
    device: str | torch.device,
    normalize: Normalize | None,
    batch_size: int = 64,
    dtype: torch.dtype = torch.float16,
    prefetch: int = 3,
    threads: int | None = None,
    indices: ArrayLike | None = None,
    colours: str = "host",
) -> TileStream:
    """Return the tiles of a bag as batches on a device, decoded ahead of the consumer.

    Parameters
    ----------
    bag : Bag
        Of a slide, from a store, or any other.
    device : str or torch.device
        "cpu", "cuda" or "cuda:1".
    normalize : Normalize or None
        Applied on the device. None delivers the uint8 tiles, whatever ``dtype`` says.
    batch_size : int
        Tiles per batch; the last batch may have fewer.
    dtype : torch.dtype
        float16, bfloat16 or float32: what the normalised values are rounded to, once.
    prefetch : int
        Batches that may be ready before they are asked for.
    threads : int, optional
        Threads that decode. By default one fewer than the cores, at least one: a core is left to launch kernels.
    indices : (n,) int or bool array, optional
        Positions in the bag, in the order to deliver. By default all, in the bag's order.
    colours : {"host", "device"}
        Where the drawn colours of the bag's view and tiles are computed. "host": by the threads that decode, rounded
        to bytes before normalisation. "device": together with the normalisation, in one expression with one rounding
        at its end; at most a level away, noise has other values of the same distribution. A bag from a store has its
        colours in its tiles: nothing is left for the device to do.

    Returns
    -------
    TileStream
        An iterator over ``TileBatch``. An empty bag yields nothing.

    Raises
    ------
    ConfigError
        If an argument makes no sense or the device is not there, or the device is to do colours and a transform runs
        as a libvips graph only.

    Notes
    -----
    What the bag's reader raises, such as ``CorruptSlideError``, is raised after the batches before it.
    On CUDA the tiles are safe on the stream that is current when the batch is taken.
    """
    sender = Sender(check_device(device), _check_normalize(normalize), check_dtype(dtype))
    return TileStream(
        bag,
        _positions(indices, _tile_count(bag), bag.name),
        sender,
        batch_size=_at_least_one("batch_size", batch_size),
        prefetch=_at_least_one("prefetch", prefetch),
        threads=default_threads() if threads is None else _at_least_one("threads", threads),
        colours=_check_colours(colours, bag),
    )


def default_threads() -> int:
    """Return the number of cores this process may use less one, at least one."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # a cluster job owns fewer than the machine has
        cores = min(cores, len(os.sched_getaffinity(0)))
    return max(1, cores - 1)


def _send_batches(
    bag: Bag, positions: NDArray[np.int64], ring: Ring, batch_size: int, threads: int, colours: str
) -> Generator[Sent]:
    with closing(ring):
        for start in range(0, len(positions), batch_size):
            index = positions[start : start + batch_size]
            tiles = ring.claim(len(index))
            if colours == "device" and isinstance(bag, UncolouredBag):
                bag.read_uncoloured(index, out=tiles.numpy(), threads=threads)
                places = index.tolist()
                yield ring.send(tiles, Colours([bag.operations(k) for k in places], places))
            else:
                bag.read(index, out=tiles.numpy(), threads=threads)
                yield ring.send(tiles)


def _tile_count(bag: Bag) -> int:
    if not hasattr(bag, "shape") or not hasattr(bag, "read"):
        raise ConfigError(f"a stream of a {type(bag).__name__}", remedy="pass one bag: TileBag(…) or open_bag(…)")
    if len(bag.shape) != 4 or bag.shape[3] != 3:
        raise ConfigError(f"a bag of the shape {tuple(bag.shape)}", slide=bag.name, remedy="pass (N, H, W, 3)")
    return bag.shape[0]


def _tile_shape(bag: Bag) -> tuple[int, int, int]:
    _, height, width, channels = bag.shape
    return height, width, channels


def _positions(indices: ArrayLike | None, count: int, name: str) -> NDArray[np.int64]:
    """Return the positions meant by an index array, checked, in memory of their own."""
    if indices is None:
        return np.arange(count, dtype=np.int64)
    wanted = np.asarray(indices)
    if wanted.dtype == bool and wanted.shape == (count,):
        return np.flatnonzero(wanted).astype(np.int64)
    if wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
        raise ConfigError(
            f"indices are {wanted.dtype} of the shape {wanted.shape}",
            slide=name,
            remedy=f"pass integers, or {count} booleans",
        )
    if wanted.size and (wanted.min() < 0 or wanted.max() >= count):
        raise ConfigError(f"indices reach from {wanted.min()} to {wanted.max()} in a bag of {count} tiles", slide=name)
    return wanted.astype(np.int64)


def _check_normalize(normalize: Normalize | None) -> Normalize | None:
    if normalize is not None and not isinstance(normalize, Normalize):
        raise ConfigError(
            f"normalize is {type(normalize).__name__}",
            remedy="pass Normalize.imagenet(), Normalize.from_config(...) or None",
        )
    return normalize


def _check_colours(colours: str, bag: Bag) -> str:
    if colours not in COLOURS:
        raise ConfigError(f"colours is {colours!r}", slide=bag.name, remedy='pass "host" or "device"')
    if colours == "device" and isinstance(bag, UncolouredBag) and bag.host_only:
        raise ConfigError(
            f"{', '.join(bag.host_only)} cannot run on a device: libvips graphs run on the host",
            slide=bag.name,
            remedy='pass colours="host", or leave it out of the transform',
        )
    return colours


def _at_least_one(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ConfigError(f"{name} is {value!r}", remedy="pass an integer >= 1")
    return int(value)
