"""A background thread that produces items ahead of the consumer, and its pool of reusable host buffers."""

from __future__ import annotations

import atexit
import threading
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Generic, TypeVar

import torch

from slideio_pipe.streaming.device import Colours, Sender, Sent, StreamMark, ViewColours, use_device
from slideio_pipe.streaming.ranges import ranged

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _End:
    reason: BaseException | None = None


class BackgroundIterator(Generic[T]):
    """Runs a generator in one thread, at most ``ahead`` items before they are taken.

    On CUDA an item counts until the device is done with it. A consumer may queue work on many items without waiting
    for any of them, so a request for the next item marks the end of that work, and the thread makes one more item when
    the mark is reached. The consumer itself never waits for a mark; items that it keeps are its own memory.

    The thread does not refer to the iterator's owner, so that a garbage-collected owner can stop it. A finaliser may
    run at any moment and in any thread, so only reentrant queues are used: ``SimpleQueue``.
    """

    def __init__(self, items: Generator[T], ahead: int, device: torch.device) -> None:
        self._items, self._device = items, device
        self._made: SimpleQueue[T | _End] = SimpleQueue()
        self._permits: SimpleQueue[StreamMark | bool] = SimpleQueue()  # False: the end
        self._stopped = False
        for _ in range(ahead):
            self._permits.put(True)
        # A daemon: Python waits for other threads before it runs exit handlers, and this one may be waiting for a
        # consumer that no longer exists. The exit handler ends it before the interpreter shuts down.
        self._thread = threading.Thread(target=self._run, name="slideio_pipe.stage", daemon=True)
        atexit.register(self.close)
        self._thread.start()

    def take(self) -> T:
        """Return the next item, or raise the generator's exception; ``StopIteration`` at the end."""
        # Of the caller's current stream, before it can use the new item.
        permit = StreamMark.here(self._device, blocking=True) if self._device.type == "cuda" else True
        with ranged("wait"):
            item = self._made.get()
        if not isinstance(item, _End):
            self._permits.put(permit)
            return item
        self._made.put(_End())  # for later calls
        try:
            raise StopIteration if item.reason is None else item.reason
        finally:
            del item  # an exception that refers to itself through this frame would keep the ring alive

    def stop(self) -> None:
        """Make the thread end after the current item; never blocks."""
        self._stopped = True
        self._permits.put(False)

    def close(self) -> None:
        """End the thread and drop items that were not taken."""
        self.stop()
        self._thread.join()
        while not self._made.empty():
            self._made.get()
        self._made.put(_End())

    def _run(self) -> None:
        end = _End()
        try:
            use_device(self._device)
            with closing(self._items):
                while self._is_permitted():
                    self._made.put(next(self._items))
        except StopIteration:
            pass
        except BaseException as reason:
            end = _End(reason)
        finally:
            atexit.unregister(self.close)
            self._made.put(end)
            del end

    def _is_permitted(self) -> bool:
        """Wait until one more item may exist; return False at the end."""
        permit = self._permits.get()
        if isinstance(permit, StreamMark) and not self._stopped:
            permit.wait()
        return permit is not False and not self._stopped


@dataclass(slots=True, eq=False)
class Buffer:
    """Host memory for one batch of tiles."""

    memory: torch.Tensor  # (n, H, W, 3) uint8, or (n, S, H, W, 3)
    number: int  # in its pool
    copied: StreamMark | None = None  # mark after the last copy out of it

    def claim(self, n: int) -> torch.Tensor:
        """Return the first n tiles to write to, after the last copy from them is complete."""
        copied = self.copied  # several threads may write to one slot
        if copied is not None:
            copied.wait()
        return self.memory[:n]


class BufferPool:
    """Slots of host memory, allocated once and used in turn by one thread.

    Parameters
    ----------
    sender : Sender
    memory : sequence of tensor
        One (n, H, W, 3) uint8 tensor per slot, such as ``sender.host_buffers(...)``.
    """

    def __init__(self, sender: Sender, memory: Sequence[torch.Tensor]) -> None:
        self._free = deque(Buffer(slot, number) for number, slot in enumerate(memory))
        self._sender, self.device = sender, sender.device
        self.nbytes = sum(slot.memory.nbytes for slot in self._free)

    @property
    def free(self) -> int:
        """The number of free slots; a copy from a free one may still be running."""
        return len(self._free)

    def take(self) -> Buffer:
        """Return the slot that has been free longest."""
        return self._free.popleft()

    def give_back(self, slot: Buffer) -> None:
        """Make a slot free again."""
        self._free.append(slot)

    def send(self, slot: Buffer, tiles: torch.Tensor, colours: Colours | ViewColours | None = None) -> Sent:
        """Send the tiles in a slot, and free the slot."""
        sent = self._sender.send(tiles, colours)
        slot.copied = sent.copied
        self._free.append(slot)
        return sent

    def close(self) -> None:
        """Block until no copy reads the slots."""
        self._sender.drain()
