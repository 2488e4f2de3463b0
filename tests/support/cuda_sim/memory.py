"""Device memory as torch's caching allocator manages it, and page-locked host memory."""

from __future__ import annotations

import weakref
from collections import Counter, defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from cuda_sim.scheduler import Simulation, Stream, simulation

ROUND_TO = 512  # bytes
UNSET = 0xAB  # of memory that was not written
real_empty = torch.empty


class Block:
    """Memory of one stream; freed memory is used for the next tensor of that stream, without a wait."""

    def __init__(self, size: int, stream: Stream) -> None:
        self.size, self.stream = size, stream
        self.data = real_empty(size, dtype=torch.uint8).fill_(UNSET)
        self.other_streams: set[Stream] = set()  # of record_stream


class Owner:
    """What a tensor and its views share: the block is free when the last of them is gone."""

    def __init__(self, block: Block) -> None:
        self.block = block
        weakref.finalize(self, simulation().memory.free, block).atexit = False


class Memory:
    """The allocators of one simulation."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self.reserved: Counter[int] = Counter()  # bytes of blocks by their size; none is ever returned to the device
        self._free: defaultdict[tuple[Stream, int], list[Block]] = defaultdict(list)
        self._waiting: list[tuple[Block, list[tuple[Stream, int, int]]]] = []  # used by other streams: until when
        self._page_locked: dict[int, Tensor] = {}  # kept, so that no address is used twice
        self._registered: dict[int, int] = {}  # pointers of memory of others: bytes

    def take(self, size: int, stream: Stream) -> Block:
        """Return a block for a stream: a freed one, if there is one."""
        size = max(ROUND_TO, -(-size // ROUND_TO) * ROUND_TO)
        with self._sim.lock:
            self._sim.contexts.add(stream.device_index)
            self._settle()
            free = self._free[stream, size]
            block = free.pop() if free else self._reserved(size, stream)
            block.other_streams = set()
            return block

    def _reserved(self, size: int, stream: Stream) -> Block:
        self.reserved[size] += size
        return Block(size, stream)

    def free(self, block: Block) -> None:
        """Take a block back: at once, or when the other streams have passed this point."""
        with self._sim.lock:
            others = block.other_streams - {block.stream}
            if not others:
                self._free[block.stream, block.size].append(block)
                return
            marks = []
            for stream in others:
                event = next(self._sim.numbers)
                self._sim.sanitizer._handle_event_creation(event)
                self._sim.sanitizer._handle_event_record(event, stream.cuda_stream)
                marks.append((stream, stream.issued, event))
            self._waiting.append((block, marks))

    def _settle(self) -> None:
        waiting, self._waiting = self._waiting, []
        for block, marks in waiting:
            if all(stream.done >= number for stream, number, _ in marks):
                for *_, event in marks:
                    self._sim.sanitizer._handle_event_synchronization(event)
                self._free[block.stream, block.size].append(block)
            else:
                self._waiting.append((block, marks))

    def page_locked(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return host memory from which copies are asynchronous; the runtime uses any context that is there for it."""
        made = real_empty(tuple(shape), dtype=dtype)
        if made.numel():
            made.view(-1).view(torch.uint8).fill_(UNSET)
        if not self._sim.contexts:
            self._sim.contexts.add(self._sim.device())
        self._page_locked[made.untyped_storage().data_ptr()] = made
        return made

    def register(self, pointer: int, nbytes: int, flags: int) -> int:
        """Page-lock memory that is not the runtime's, as ``cudaHostRegister``; return an error code, 0 if none."""
        if pointer in self._registered:
            return 712  # cudaErrorHostMemoryAlreadyRegistered
        self._registered[pointer] = nbytes
        return 0

    def unregister(self, pointer: int) -> int:
        """Undo ``register``; return an error code, 0 if none."""
        return 0 if self._registered.pop(pointer, None) is not None else 713  # cudaErrorHostMemoryNotRegistered

    def is_page_locked(self, tensor: Tensor) -> bool:
        """Return whether a tensor of the CPU is in such memory."""
        first = tensor.data_ptr()
        registered = any(start <= first < start + nbytes for start, nbytes in self._registered.items())
        return registered or tensor.untyped_storage().data_ptr() in self._page_locked
