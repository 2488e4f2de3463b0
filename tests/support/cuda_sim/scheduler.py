"""Streams, events and the current device, as in torch.cuda; the policy decides when queued work is computed."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.cuda._sanitizer as sanitizer

DEVICES = 2
STREAMS_PER_DEVICE = 32  # torch returns them in turn
POLICIES = ("lazy", "random", "eager")
_STEPS = (0, 0, 1, 3, 8)  # of "random": how much is computed whenever something is queued


class Simulation:
    """State of the devices in one test.

    Parameters
    ----------
    policy : {"lazy", "random", "eager"}
        When queued work is computed: as late as possible, in a random order of streams, or at once.
    seed : int
        Of the random order.
    """

    def __init__(self, policy: str = "lazy", seed: int = 0) -> None:
        if policy not in POLICIES:
            raise ValueError(f"policy {policy!r} is none of {POLICIES}")
        self.policy, self.random = policy, random.Random(seed)
        self.lock = threading.RLock()
        self.sanitizer = sanitizer.EventHandler()
        self.races: list[Exception] = []
        self.contexts: set[int] = set()  # devices on which something made a context
        self.host_waits: Counter[str] = Counter()  # by the name of the waiting thread
        self.numbers = itertools.count(1)
        self.thread = threading.local()  # .device, .streams
        self.streams: dict[tuple[int, int], Stream] = {}  # -1: the default stream of a device
        self.handed_out: defaultdict[int, int] = defaultdict(int)
        self.memory: Any = None  # memory.py puts its allocator here

    def device(self) -> int:
        """Return the current device of this thread; every thread begins with 0."""
        return getattr(self.thread, "device", 0)

    def count_wait(self) -> None:
        """Count that this thread waits for a device."""
        with self.lock:
            self.host_waits[threading.current_thread().name] += 1

    def step(self) -> None:
        """Compute what the policy selects, after something was queued."""
        if self.policy == "eager":
            for each in list(self.streams.values()):
                each.run_until(each.issued)
        elif self.policy == "random":
            for _ in range(self.random.choice(_STEPS)):
                self.random.choice(list(self.streams.values())).run_one()


_now: list[Simulation] = []


def simulation() -> Simulation:
    """Return the simulation that runs."""
    return _now[0]


def start(new: Simulation) -> Simulation:
    """Begin a new simulation: no stream, no memory, no context."""
    _now[:] = [new]
    return new


class Stream:
    """A queue of work of one device, in order; ``torch.cuda.Stream``."""

    device_index: int
    device: torch.device
    cuda_stream: int

    def __new__(cls, device: Any = None, priority: int = 0, **_: Any) -> Stream:
        """Return the next stream of the device's pool."""
        sim, index = simulation(), index_of(device)
        with sim.lock:
            number = sim.handed_out[index] % STREAMS_PER_DEVICE
            sim.handed_out[index] += 1
            return cls.numbered(index, number)

    @classmethod
    def numbered(cls, index: int, number: int) -> Stream:
        """Return a stream of the pool, or the default stream: -1."""
        sim = simulation()
        with sim.lock:
            if (index, number) not in sim.streams:
                made = object.__new__(cls)
                made.device_index, made.device = index, torch.device("cuda", index)
                made._queue, made.issued, made.done = deque(), 0, 0
                made.cuda_stream = 0 if (index, number) == (0, -1) else next(sim.numbers)
                if made.cuda_stream:  # the sanitizer knows the first one
                    sim.sanitizer._handle_stream_creation(made.cuda_stream)
                sim.streams[index, number] = made
            return sim.streams[index, number]

    _queue: deque[Callable[[], object] | tuple[Stream, int] | None]  # work, a wait for another stream, or a mark
    issued: int
    done: int

    def push(self, work: Callable[[], object] | tuple[Stream, int] | None) -> int:
        """Queue work, and return its number."""
        sim = simulation()
        with sim.lock:
            self.issued += 1
            number = self.issued
            self._queue.append(work)
            sim.step()
            return number

    def run_until(self, number: int) -> None:
        """Compute everything up to a number, and what it depends on."""
        with simulation().lock:
            while self.done < number:
                work = self._queue.popleft()
                if isinstance(work, tuple):
                    work[0].run_until(work[1])
                elif work is not None:
                    work()
                self.done += 1

    def run_one(self) -> None:
        """Compute the next piece of work, if nothing that it waits for is missing."""
        if not self._queue:
            return
        first = self._queue[0]
        if not isinstance(first, tuple) or first[0].done >= first[1]:
            self.run_until(self.done + 1)

    def synchronize(self) -> None:
        """Block until everything that was queued is computed."""
        sim = simulation()
        sim.count_wait()
        sim.contexts.add(self.device_index)
        self.run_until(self.issued)
        sim.sanitizer._handle_stream_synchronization(self.cuda_stream)

    def query(self) -> bool:
        """Return whether nothing is left."""
        return self.done >= self.issued

    def wait_event(self, event: Event) -> None:
        """Make work that is queued from now on wait for an event."""
        event.wait(self)

    def record_event(self, event: Event | None = None) -> Event:
        """Record an event here."""
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_stream(self, other: Stream) -> None:
        """Make work that is queued from now on wait for another stream."""
        self.wait_event(other.record_event())


class Event:
    """A mark in a stream; ``torch.cuda.Event``."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, **_: Any) -> None:
        sim = simulation()
        self._mark: tuple[Stream, int] | None = None
        self._time = 0.0
        with sim.lock:
            self._number = next(sim.numbers)
            sim.sanitizer._handle_event_creation(self._number)

    def record(self, stream: Stream | None = None) -> None:
        """Mark the end of a stream: without one, of the current device's current one."""
        stream = current_stream() if stream is None else stream
        if self._mark is not None and self._mark[0].device_index != stream.device_index:
            raise RuntimeError("an event is of the device on which it was recorded first")
        sim = simulation()
        with sim.lock:
            self._mark, self._time = (stream, stream.push(None)), time.perf_counter()
            sim.sanitizer._handle_event_record(self._number, stream.cuda_stream)

    def wait(self, stream: Stream | None = None) -> None:
        """Make a stream wait for the mark."""
        stream = current_stream() if stream is None else stream
        if self._mark is not None:
            with simulation().lock:
                stream.push(self._mark)
                simulation().sanitizer._handle_event_wait(self._number, stream.cuda_stream)

    def synchronize(self) -> None:
        """Block until the mark is reached. The runtime makes a context on the thread's device for that."""
        sim = simulation()
        sim.count_wait()
        sim.contexts.add(sim.device())
        if self._mark is not None:
            self._mark[0].run_until(self._mark[1])
            with sim.lock:
                sim.sanitizer._handle_event_synchronization(self._number)

    def query(self) -> bool:
        """Return whether the mark is reached."""
        return self._mark is None or self._mark[0].done >= self._mark[1]

    def elapsed_time(self, other: Event) -> float:
        """Return milliseconds between the recordings."""
        return 1e3 * (other._time - self._time)


def index_of(device: Any) -> int:
    """Return the number of a device; None, and "cuda" without one, are the thread's."""
    if isinstance(device, int):
        return device
    index = None if device is None else torch.device(device).index
    return simulation().device() if index is None else int(index)


def default_stream(device: Any = None) -> Stream:
    """Return the stream that a device has from the start."""
    return Stream.numbered(index_of(device), -1)


def current_stream(device: Any = None) -> Stream:
    """Return the stream that this thread uses on a device."""
    index = index_of(device)
    chosen: dict[int, Stream] = getattr(simulation().thread, "streams", {})
    return chosen.get(index) or default_stream(index)


def set_stream(stream: Stream | None) -> None:
    """Choose the stream of its device, and that device."""
    if stream is None:
        return
    thread = simulation().thread
    if simulation().device() != stream.device_index:
        set_device(stream.device_index)
    thread.streams = getattr(thread, "streams", {}) | {stream.device_index: stream}


def set_device(device: Any) -> None:
    """Choose the device of this thread, which makes a context there."""
    sim, index = simulation(), index_of(device)
    sim.thread.device = index
    sim.contexts.add(index)


@contextlib.contextmanager
def stream_context(stream: Stream | None) -> Iterator[None]:
    """Use a stream for a while; as in torch, the device before it is set again at the end."""
    if stream is None:
        yield
        return
    before = current_stream()
    there = current_stream(stream.device) if before.device != stream.device else None
    set_stream(stream)
    try:
        yield
    finally:
        set_stream(there)
        set_stream(before)


class DeviceContext:
    """Use a device for a while; ``torch.cuda.device``. The end makes no context on the device before it."""

    def __init__(self, device: Any) -> None:
        self.index = index_of(device)

    def __enter__(self) -> None:
        sim = simulation()
        self._before = sim.device()
        if self.index != self._before:
            sim.contexts.add(self.index)
        sim.thread.device = self.index

    def __exit__(self, *_: object) -> None:
        simulation().thread.device = self._before


def synchronize(device: Any = None) -> None:
    """Block until everything that was queued on a device is computed."""
    sim, index = simulation(), index_of(device)
    sim.count_wait()
    with sim.lock:
        sim.contexts.add(index)
        for stream in list(sim.streams.values()):
            if stream.device_index == index:
                stream.run_until(stream.issued)
        sim.sanitizer._handle_device_synchronization()
