"""A worker process and this end of the pipe to it: given one task at a time, heard, watched, killed."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from slideio_pipe.errors import ConfigError, SlideioPipeError

_HAS_SIGMASK = hasattr(signal, "pthread_sigmask")  # Windows has none, and no resource tracker

OnProgress = Callable[[str], object]
Work = Callable[[Any, OnProgress], Any]  # (task, on_stage) to what is reported of it; both pickle

# How often the memory of workers is looked at.
WATCH_S = 0.2
# A worker that is a program of its own ends when it was given nothing for so long: its run was killed on another host.
IDLE_S = 120.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Beyond which a worker is killed over its task.

    Raises
    ------
    ConfigError
        Numbers that make no sense.
    """

    time_s: float | None = None
    memory_bytes: int | None = None  # resident (Linux)

    def __post_init__(self) -> None:
        for name, value in (("time_limit_s", self.time_s), ("memory limit", self.memory_bytes)):
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value}", remedy="pass more than 0")


@dataclass(frozen=True, slots=True)
class Ended:
    """What a worker says of a task it has come to the end of."""

    value: Any  # what the work returned; None when it failed
    error: SlideioPipeError | None
    stage: str  # the last one it told of
    seconds: float
    warnings: tuple[str, ...]


class LostError(Exception):
    """A worker died, or has to: the words behind "its worker process"."""


class Process(Protocol):
    """What a worker needs of its process."""

    @property
    def pid(self) -> int | None:
        """Return its number."""
        ...

    @property
    def exitcode(self) -> int | None:
        """Return how it ended, minus the signal that killed it; None while it lives."""
        ...

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


Start = Callable[[], tuple[Connection, Process]]


class Worker:
    """A process and this end of the pipe to it."""

    def __init__(self, start: Start) -> None:
        self.connection, self.process = start()
        self.is_ready, self.stage, self.began = False, "", time.monotonic()

    def begin(self, task: Any) -> None:
        """Give it a task; it has none."""
        self.stage, self.began = "", time.monotonic()
        with suppress(BrokenPipeError, ConnectionResetError):  # it died idle: heard of as the end of its pipe
            self.connection.send(task)

    def begin_pickled(self, task: bytes) -> None:
        """Give it a task that only it unpickles."""
        self.stage, self.began = "", time.monotonic()
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send_bytes(task)

    def hear(self) -> Ended | None:
        """Take one message, waiting for it; return what ends a task.

        Raises
        ------
        LostError
            The end of its pipe is its death.
        """
        try:
            kind, *content = self.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            raise LostError(self._cause_of_death()) from None
        if kind == "done":
            value, error, told = content
            return Ended(value, error, self.stage, self.seconds(), told)
        if kind == "unable":
            raise LostError(f"cannot begin ({content[0]})")
        if kind == "ready":
            self.is_ready, self.began = True, time.monotonic()
        else:
            self.stage = content[0]
        return None

    def check(self, limits: Limits) -> None:
        """Raise LostError when it is beyond a limit."""
        if limits.time_s is not None and self.is_ready and self.seconds() > limits.time_s:
            raise LostError(f"took longer than {limits.time_s:g} s")
        if limits.memory_bytes is not None and self._memory_bytes() > limits.memory_bytes:
            raise LostError(f"took more than {limits.memory_bytes / 1e9:.3g} GB of memory")

    def patience(self, limits: Limits) -> float | None:
        """Return how long may be waited for its messages until it has to be looked after; None is for ever."""
        waits = [] if limits.memory_bytes is None else [WATCH_S]
        if limits.time_s is not None and self.is_ready:
            waits.append(max(0.0, self.began + limits.time_s - time.monotonic()))
        return min(waits, default=None)

    def seconds(self) -> float:
        """Return for how long it has had its task."""
        return time.monotonic() - self.began

    def dismiss(self) -> None:
        """Let it end; it has no task."""
        self.connection.close()
        self.process.join(5)

    def kill(self) -> None:
        """End it, and wait until it is gone."""
        self.process.kill()
        self.process.join()
        self.connection.close()

    def _memory_bytes(self) -> int:
        try:
            with open(f"/proc/{self.process.pid}/statm", encoding="ascii") as file:
                return int(file.read().split()[1]) * mmap.PAGESIZE
        except (OSError, IndexError):
            return 0

    def _cause_of_death(self) -> str:
        self.process.join(5)
        code = self.process.exitcode
        if code is None:
            return "stopped answering"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def spawned(work: Work) -> tuple[Connection, Process]:
    """Start a worker with multiprocessing, which also finds works defined in a script."""
    context = multiprocessing.get_context("spawn")  # libvips does not survive a fork
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve_with_parent, args=(theirs, work), daemon=True)
    # A Ctrl-C while it imports would end it with a traceback: what is blocked here is blocked there, for good. The
    # first start of a process also starts multiprocessing's resource tracker, which unblocks the signal: start it now.
    if _HAS_SIGMASK:
        resource_tracker.ensure_running()
    with _interrupts_later():
        process.start()
    theirs.close()  # so that its death ends the pipe
    return ours, process


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Block Ctrl-C here and in processes that are started, and take it afterwards.

    Blocked in this thread, the signal may still reach another one, and Python raises in the main thread all the same:
    a process whose start is cut short there ends with a traceback. So the handler waits as well.
    """
    held: list[int] = []
    handler = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
    if handler is not None:  # None as well: a handler that Python cannot put back
        signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if _HAS_SIGMASK else None
    try:
        yield
    finally:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        if held:
            signal.raise_signal(signal.SIGINT)


# Its last argument is a pipe whose other end nobody but the parent has: the end of the one is the end of the other.
_PROGRAM = """
import sys, threading
from multiprocessing.connection import Connection
connection, lifeline = (Connection(int(fd)) for fd in sys.argv[1:])
sys.path[:] = connection.recv()
from slideio_pipe.cohort.workers.process import serve_program
serve_program(connection, lifeline)
"""


def program(work: bytes) -> tuple[Connection, Process]:
    """Start a worker as a program of its own, with a pickled work.

    For processes that multiprocessing does not let have children, such as Dask's workers, which are daemons to it.
    """
    ours, theirs = multiprocessing.Pipe()
    end, lifeline = multiprocessing.Pipe(duplex=False)
    fds = (theirs.fileno(), end.fileno())
    process = _Program([sys.executable, "-c", _PROGRAM, *map(str, fds)], fds, lifeline)
    theirs.close()
    end.close()
    with suppress(BrokenPipeError, ConnectionResetError):  # it died: heard of as the end of its pipe
        ours.send(sys.path)
        ours.send_bytes(work)
    return ours, process


class _Program:
    """A process of ``subprocess`` in the words of multiprocessing's."""

    def __init__(self, command: list[str], fds: tuple[int, ...], lifeline: Connection) -> None:
        self._process = subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL, process_group=0)
        self._lifeline = lifeline

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exitcode(self) -> int | None:
        return self._process.poll()

    def join(self, timeout: float | None = None) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)

    def kill(self) -> None:
        self._process.kill()


def serve_program(connection: Connection, lifeline: Connection) -> None:
    """Be a worker that ``program`` started."""
    _ignore_interrupts()
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    try:
        work = pickle.loads(connection.recv_bytes())
    except Exception as error:  # a module of the work that is not there
        connection.send(("unable", f"{type(error).__name__}: {error}"))
        return
    _serve(connection, work, IDLE_S)


def _serve_with_parent(connection: Connection, work: Work) -> None:
    _ignore_interrupts()
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    _serve(connection, work)


def _ignore_interrupts() -> None:
    """Leave Ctrl-C to the parent, which ends its workers: a terminal sends it to them as well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_with(parent: Connection | int) -> None:
    """A worker whose run was killed must not go on writing: the next run would find its bags locked."""
    wait([parent])
    os._exit(1)


def _serve(connection: Connection, work: Work, idle_s: float | None = None) -> None:
    """Do tasks until the pipe ends: the whole life of a worker."""
    connection.send(("ready",))
    while True:
        try:
            if not connection.poll(idle_s):
                return
            task = connection.recv()
        except (EOFError, OSError):
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                value, error = work(task, lambda stage: connection.send(("stage", stage))), None
            except Exception as raised:  # whatever a library raises over a damaged slide costs that slide only
                value, error = None, portable(raised)
        connection.send(("done", value, error, tuple(dict.fromkeys(str(warning.message) for warning in caught))))


def portable(error: Exception) -> SlideioPipeError:
    """Return an error of ours, which pickles."""
    if isinstance(error, SlideioPipeError):
        return error
    return SlideioPipeError(f"{type(error).__name__}: {error}")
