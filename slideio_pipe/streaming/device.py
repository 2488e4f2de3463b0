"""From uint8 tiles on the host to normalised float tiles on a device: the copy, and what is done there."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from slideio_pipe.augment.executors.device import DeviceProgram
from slideio_pipe.augment.operations import Operation
from slideio_pipe.errors import ConfigError
from slideio_pipe.slides.backends.base import OnTiming
from slideio_pipe.streaming.normalize import Normalize


def check_device(device: str | torch.device) -> torch.device:
    """Return a device that is there, a CUDA device with its number.

    Raises
    ------
    ConfigError
        If it is neither the CPU nor a CUDA device of this machine.

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
            f"{found} is asked for and torch {torch.__version__} sees no CUDA device",
            remedy="pass device='cpu', or install a CUDA build of torch and a driver",
        )
    number = torch.cuda.current_device() if found.index is None else found.index
    if number >= torch.cuda.device_count():
        raise ConfigError(f"{found} is asked for and there are {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", number)


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a CUDA device is the current one of this thread; nothing changes for the CPU.

    Every thread starts with device 0. What is then called without a device makes a context there, which takes some
    hundred MB for each process, and events and custom kernels go to a stream of the wrong device.
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@dataclass(frozen=True, slots=True)
class StreamMark:
    """A point in the work that was queued on a stream of a CUDA device; threads may wait for it."""

    event: torch.cuda.Event
    device: torch.device

    @classmethod
    def here(cls, device: torch.device, *, blocking: bool = False) -> StreamMark:
        """Mark the end of what this thread has queued on its current stream of a device.

        ``blocking`` makes a thread that waits sleep instead of spin on a core.
        """
        event = torch.cuda.Event(blocking=blocking)  # type: ignore[no-untyped-call]
        # An event without a stream would be recorded on the current device, which may be another one.
        event.record(torch.cuda.current_stream(device))
        return cls(event, device)

    def wait(self) -> None:
        """Block this thread until the device has done everything before the mark."""
        with on_device(self.device):
            self.event.synchronize()


def release_activations(error: BaseException) -> None:
    """Free what a failed computation holds through its error: the variables of the functions that were left.

    Otherwise the memory that was too little stays in use as long as anything refers to the error.
    """
    found: BaseException | None = error
    while found is not None:
        traceback.clear_frames(found.__traceback__)
        found = found.__cause__ or found.__context__


@dataclass(frozen=True, slots=True)
class Sent:
    """Tiles on their way to a device, and on CUDA marks that say how far they are."""

    tiles: Tensor  # (n, 3, H, W) channels_last, on the device
    copied: StreamMark | None  # the host memory may be overwritten
    ready: StreamMark | None  # the tiles may be read

    def receive(self) -> Tensor:
        """Return the tiles, safe to use on the caller's current stream."""
        if self.ready is not None:
            current = torch.cuda.current_stream(self.tiles.device)
            current.wait_event(self.ready.event)
            # Allocated on the copy stream: without this the allocator would hand the memory on while `current` reads.
            self.tiles.record_stream(current)
        return self.tiles


@dataclass(frozen=True, slots=True)
class Colours:
    """What is done to the colours of a batch of tiles on the device, before they are normalised."""

    operations: Sequence[tuple[Operation, ...]]  # one tuple per tile
    places: Sequence[int]  # of the tiles in their bag: they seed the noise, together with the operations

    def applied(self, tiles: Tensor, normalize: Normalize | None, dtype: torch.dtype) -> Tensor:
        """Return (n, 3, H, W) uint8 tiles coloured and normalised in one expression with one rounding."""
        first = self.operations[0]
        shared = all(entry is first for entry in self.operations)  # of a view alone: its numbers are sent once
        program = DeviceProgram(first if shared else self.operations, normalize=normalize, dtype=dtype)
        return program(tiles, places=self.places)


class Sender:
    """Brings uint8 tiles to one device and normalises them there; on CUDA on a stream of its own.

    Parameters
    ----------
    device : torch.device
        As ``check_device`` returns it.
    normalize : Normalize or None
        None delivers the bytes as they are.
    dtype : torch.dtype
        Of the normalised tiles.
    """

    def __init__(self, device: torch.device, normalize: Normalize | None, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = torch.uint8 if normalize is None else dtype  # of what arrives
        self._float = dtype
        self.on_stage: OnTiming | None = None  # told ("copy" | "device", start, end); each is waited for then
        self._side = _side_stream(device) if device.type == "cuda" else None
        # A copy, so that moving it to the device does not move the caller's.
        self._normalize = None if normalize is None else deepcopy(normalize).to(device)

    def host_buffer(self, shape: tuple[int, ...]) -> Tensor:
        """Return uninitialised uint8 host memory, page-locked where that lets a copy run beside the CPU."""
        with on_device(self.device):
            return torch.empty(shape, dtype=torch.uint8, pin_memory=self._side is not None)

    def send(self, tiles: Tensor, colours: Colours | None = None) -> Sent:
        """Start the way of (n, H, W, 3) uint8 host tiles; the result never shares their memory."""
        begun = time.perf_counter() if self.on_stage else 0.0
        if self._side is None:
            sent = Sent(self._finish(tiles, colours, copy=True), None, None)
            self._tell("device", begun)
            return sent
        # The device first: a stream's context alone ends by setting the thread's device back to 0, which occupies it.
        with on_device(self.device), torch.cuda.stream(self._side):
            raw = tiles.to(self.device, non_blocking=True)
            copied = StreamMark.here(self.device, blocking=True)
            begun = self._tell("copy", begun)
            result = self._finish(raw, colours, copy=False)
            ready = StreamMark.here(self.device)
            self._tell("device", begun)
        return Sent(result, copied, ready)

    def _tell(self, stage: str, begun: float) -> float:
        """Tell whoever watches how long a step took, which has to be waited for then; return when it ended."""
        if self.on_stage is None:
            return 0.0
        self.drain()
        ended = time.perf_counter()
        self.on_stage(stage, begun, ended)
        return ended

    def drain(self) -> None:
        """Block until nothing sent is on its way any more."""
        if self._side is not None:
            self._side.synchronize()

    def _finish(self, tiles: Tensor, colours: Colours | None, *, copy: bool) -> Tensor:
        """Return NHWC memory as NCHW channels_last tiles, which is the same order of bytes."""
        planes = tiles.permute(0, 3, 1, 2)
        if colours is not None and any(colours.operations):
            return colours.applied(planes, self._normalize, self._float)
        if self._normalize is not None:
            return self._normalize.convert(planes, self.dtype)
        return planes.clone(memory_format=torch.preserve_format) if copy else planes


def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
