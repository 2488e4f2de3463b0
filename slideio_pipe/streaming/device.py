"""Copy uint8 tiles from the host to a device, and colour and normalise them there."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slideio_pipe.augment.executors.device import DeviceProgram
from slideio_pipe.augment.operation_columns import OperationColumns
from slideio_pipe.augment.operations import Operation
from slideio_pipe.errors import ConfigError
from slideio_pipe.slides.backends.base import OnTiming
from slideio_pipe.streaming.normalize import Normalize
from slideio_pipe.streaming.ranges import ranged
from slideio_pipe.streaming.reused_memory import ReusedMemory


def check_device(device: str | torch.device) -> torch.device:
    """Return an existing device, a CUDA device with its number.

    Raise ConfigError if it is neither the CPU nor a CUDA device of this machine.

    Examples
    --------
    >>> check_device("cpu")
    device(type='cpu')
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as reason:
        raise ConfigError(f"no device is called {device!r}", remedy="pass 'cpu', 'cuda' or 'cuda:1'") from reason
    if found.type == "cpu":
        return torch.device("cpu")
    if found.type != "cuda":
        raise ConfigError(f"tiles cannot be delivered to {found}", remedy="pass 'cpu' or 'cuda'")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"{found} was requested, but torch {torch.__version__} sees no CUDA device",
            remedy="pass {device='cpu'}, or install a CUDA build of torch and a driver",
        )
    number = torch.cuda.current_device() if found.index is None else found.index
    if number >= torch.cuda.device_count():
        raise ConfigError(f"{found} was requested, but there are {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", number)


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Return a context that makes a CUDA device this thread's current one; no effect for the CPU.

    Every thread starts with device 0. A call without a device would create a context there, which takes some hundred
    MB per process, and would queue events and custom kernels on a stream of the wrong device.
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def use_device(device: torch.device) -> None:
    """Make a CUDA device this thread's current one for good: the first call of a thread that works for a stream."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


_copy_streams: dict[int, torch.cuda.Stream] = {}
_copy_streams_lock = threading.Lock()


def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """Return this process's stream for copies to a CUDA device: always the same one.

    torch reuses freed device memory only on the stream that allocated it. With a new stream for each epoch, the memory
    of every epoch would stay reserved.
    """
    number = int(device.index)
    with _copy_streams_lock:
        if number not in _copy_streams:
            _copy_streams[number] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return _copy_streams[number]


@dataclass(frozen=True, slots=True)
class StreamMark:
    """A point in the work queued on a stream of a CUDA device; threads can wait for it."""

    event: torch.cuda.Event
    device: torch.device

    @classmethod
    def here(cls, device: torch.device, *, blocking: bool = False) -> StreamMark:
        """Mark the end of the work that this thread has queued on its current stream of a device.

        With ``blocking`` a waiting thread sleeps instead of spinning on a core.
        """
        event = torch.cuda.Event(blocking=blocking)  # type: ignore[no-untyped-call]
        # An event without a stream would be recorded on the current device, which may be another one.
        event.record(torch.cuda.current_stream(device))
        return cls(event, device)

    @property
    def is_reached(self) -> bool:
        """Whether the device has completed everything before the mark; does not wait."""
        return bool(self.event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        """Block this thread until the device has completed everything before the mark."""
        with on_device(self.device):
            self.event.synchronize()


def release_activations(error: BaseException) -> None:
    """Free the local variables in an error's traceback, which hold the tensors of the failed computation.

    Otherwise that memory stays in use while anything refers to the error.
    """
    found: BaseException | None = error
    while found is not None:
        traceback.clear_frames(found.__traceback__)
        found = found.__cause__ or found.__context__


@dataclass(frozen=True, slots=True)
class Sent:
    """Tiles sent to a device, with marks of the progress on CUDA."""

    tiles: Tensor  # (n, 3, H, W) channels_last, on the device
    copied: StreamMark | None  # the host memory may be overwritten
    ready: StreamMark | None  # the tiles may be read

    def receive(self) -> Tensor:
        """Return the tiles, ready for the caller's current stream."""
        if self.ready is not None:
            current = torch.cuda.current_stream(self.tiles.device)
            current.wait_event(self.ready.event)
            # Allocated on the copy stream: without this the allocator could reuse the memory while `current` reads.
            self.tiles.record_stream(current)
        return self.tiles


@dataclass(frozen=True, slots=True)
class Colours:
    """The colour operations of a batch of tiles on the device, applied before normalisation."""

    operations: OperationColumns | Sequence[tuple[Operation, ...]]  # arrays, or one tuple per tile
    places: Sequence[int]  # positions of the tiles in their bag: they seed the noise, together with the operations

    def applied(self, tiles: Tensor, normalize: Normalize | None, dtype: torch.dtype) -> Tensor:
        """Return (n, 3, H, W) uint8 tiles coloured and normalised in one expression with one rounding."""
        operations: Any = self.operations
        if not isinstance(operations, OperationColumns) and all(entry is operations[0] for entry in operations):
            operations = operations[0]  # only the view's: the numbers are sent once
        return DeviceProgram(operations, normalize=normalize, dtype=dtype)(tiles, places=self.places)

    @property
    def is_identity(self) -> bool:
        """Whether no tile changes."""
        columns = self.operations
        return not (columns.kinds.any() if isinstance(columns, OperationColumns) else any(columns))


@dataclass(frozen=True, slots=True)
class ViewColours:
    """The colour operations of a batch of packed views on the device: see ``ViewsBag``."""

    kinds: Sequence[tuple[Colours, int, int]]  # of all views of a kind; views of a tile; their side, px

    def applied(self, packed: Tensor, normalize: Normalize | None, dtype: torch.dtype) -> Tensor:
        """Return (n, 3, pixels, 1) uint8 tiles coloured and normalised, with one rounding."""
        result = torch.empty_like(packed, dtype=torch.uint8 if normalize is None else dtype)
        start = 0
        for colours, views, side in self.kinds:
            stop = start + views * side**2
            shape = (len(packed), 3, views, side, side)
            plain, out = (tensor[:, :, start:stop, 0].view(shape).permute(0, 2, 1, 3, 4) for tensor in (packed, result))
            made = colours.applied(plain.flatten(0, 1), normalize, dtype)
            out.copy_(made.view(len(packed), views, 3, side, side))
            start = stop
        return result

    @property
    def is_identity(self) -> bool:
        """Whether no view changes."""
        return all(colours.is_identity for colours, _, _ in self.kinds)


class Sender:
    """Copies uint8 tiles to one device and normalises them there; on CUDA on the stream for copies.

    Parameters
    ----------
    device : torch.device
        From ``check_device``.
    normalize : Normalize or None
        None: uint8 tiles.
    dtype : torch.dtype
        Dtype of the normalised tiles.
    """

    def __init__(self, device: torch.device, normalize: Normalize | None, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = torch.uint8 if normalize is None else dtype  # of the result
        self._float = dtype
        self.on_stage: OnTiming | None = None  # called with ("copy" | "device", start, end), after waiting
        self._side = copy_stream(device) if device.type == "cuda" else None
        self._ready: StreamMark | None = None  # of the tiles sent last
        self._results = ReusedMemory()  # on the CPU
        # A copy, so that the caller's module is not moved to the device.
        self._normalize = None if normalize is None else deepcopy(normalize).to(device)

    def host_buffer(self, shape: tuple[int, ...]) -> Tensor:
        """Return uninitialised uint8 host memory, page-locked if that allows asynchronous copies."""
        with on_device(self.device):
            return torch.empty(shape, dtype=torch.uint8, pin_memory=self._side is not None)

    def host_buffers(self, count: int, shape: tuple[int, ...]) -> list[Tensor]:
        """Return memory for several batches."""
        return [self.host_buffer(shape) for _ in range(count)]

    def lock_pages(self, memory: Tensor) -> Callable[[], None]:
        """Page-lock host memory that is not torch's, if that allows asynchronous copies; return what undoes it.

        Raise ConfigError if the driver refuses.
        """
        if self._side is None:
            return lambda: None
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        with on_device(self.device):
            failed = int(runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0))
        if failed:
            raise ConfigError(
                f"{memory.nbytes / 1e6:,.0f} MB of memory cannot be page-locked (CUDA error {failed})",
                remedy="pass {workers=0}, or smaller chunks",
            )
        return partial(runtime.cudaHostUnregister, memory.data_ptr())

    def send(self, tiles: Tensor, colours: Colours | ViewColours | None = None) -> Sent:
        """Start sending (n, H, W, 3) or (n, S, H, W, 3) uint8 host tiles; the result never shares their memory."""
        begun = time.perf_counter() if self.on_stage else 0.0
        if self._side is None:
            sent = Sent(self._finish(tiles, colours, copy=True), None, None)
            self._report_stage("device", begun)
            return sent
        # The device first: the context of a stream alone would set the thread's device back to 0 and use it.
        with on_device(self.device), torch.cuda.stream(self._side):
            with ranged("copy"):
                raw = tiles.to(self.device, non_blocking=True)
            copied = StreamMark.here(self.device, blocking=True)
            begun = self._report_stage("copy", begun)
            result = self._finish(raw, colours, copy=False)
            self._ready = ready = StreamMark.here(self.device, blocking=True)
            self._report_stage("device", begun)
        return Sent(result, copied, ready)

    def _report_stage(self, stage: str, begun: float) -> float:
        """Wait for a step and report its time if there is a callback; return its end."""
        if self.on_stage is None:
            return 0.0
        if self._side is not None:
            self._side.synchronize()
        ended = time.perf_counter()
        self.on_stage(stage, begun, ended)
        return ended

    def drain(self) -> None:
        """Block until everything sent has arrived: then the statistics of the normalisation may be freed."""
        if self._ready is not None:
            self._ready.wait()

    def _finish(self, tiles: Tensor, colours: Colours | ViewColours | None, *, copy: bool) -> Tensor:
        """Return NHWC memory as NCHW channels_last tiles, which have the same order of bytes."""
        if tiles.ndim == 5:  # several magnifications of each tile, one after another
            one_by_one = self._finish(tiles.flatten(0, 1), colours, copy=copy)
            return one_by_one.view(*tiles.shape[:2], *one_by_one.shape[1:])
        planes = tiles.permute(0, 3, 1, 2)
        if colours is not None and not colours.is_identity:
            with ranged("colours"):
                return colours.applied(planes, self._normalize, self._float)
        if self._normalize is None:
            return self._copied(tiles) if copy else planes
        with ranged("normalise"):
            if not copy:
                return self._normalize.convert(planes, self.dtype)
            made = self._results.empty(tuple(tiles.shape), self.dtype).permute(0, 3, 1, 2)
            self._normalize.convert_into(planes, made)
            return made

    def _copied(self, tiles: Tensor) -> Tensor:
        """Return host tiles in memory of their own."""
        memory = self._results.empty(tuple(tiles.shape), self.dtype)
        with ranged("copy"):
            # torch divides a copy among its own threads, which wait actively: more CPU time than the copy itself.
            np.copyto(memory.numpy(), tiles.numpy())
        return memory.permute(0, 3, 1, 2)
