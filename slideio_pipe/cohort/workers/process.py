"""A worker process and the parent's end of its pipe: send tasks, receive results, check limits, kill."""

from __future__ import annotations

import logging
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
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeAlias

from slideio_pipe.compiled.library import is_compiled_used, use_compiled
from slideio_pipe.errors import ConfigError, SlideioPipeError, SlideioPipeWarning

_LOG = logging.getLogger(__name__)

_PROC = Path("/proc")
_HAS_SIGMASK = hasattr(signal, "pthread_sigmask")  # Windows has none, and no resource tracker

OnProgress = Callable[[str], object]
Work = Callable[[Any, OnProgress], Any]  # (task, on_stage) to its result; both can be pickled

# Interval of checks of the workers' memory.
WATCH_S = 0.2
# A worker started as a program ends after this time without a task: its run was killed on another host.
IDLE_S = 120.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits above which a worker is killed; raise ConfigError if a number is invalid."""

    time_s: float | None = None
    memory_bytes: int | None = None  # resident (Linux)

    def __post_init__(self) -> None:
        for name, value in (("time_limit_s", self.time_s), ("memory limit", self.memory_bytes)):
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value}", remedy="pass more than 0")
        if self.memory_bytes is not None and not (_PROC / "self" / "statm").exists():
            raise ConfigError(
                "the memory of a worker is read from /proc, which is Linux'", remedy="pass no memory limit"
            )


@dataclass(frozen=True, slots=True)
class Ended:
    """A worker's report of a finished task."""

    value: Any  # result of the work; None if it failed
    error: SlideioPipeError | None
    stage: str  # the last reported stage
    seconds: float
    warnings: tuple[SlideioPipeWarning | str, ...]  # ours, which name arguments, and what others say


class LostError(Exception):
    """A worker ended or must be killed; the message follows "its worker process"."""


Process: TypeAlias = "BaseProcess | _Program"
Start = Callable[[], tuple[Connection, Process]]


class Worker:
    """A process and the parent's end of its pipe."""

    def __init__(self, start: Start) -> None:
        self.connection, self.process = start()
        _LOG.info("worker process %s started", self.process.pid)
        self.is_ready, self.stage, self.began = False, "", time.monotonic()

    def begin(self, task: Any) -> None:
        """Send a task to an idle worker."""
        self.stage, self.began = "", time.monotonic()
        with suppress(BrokenPipeError, ConnectionResetError):  # it ended while idle: detected as the end of its pipe
            self.connection.send(task)

    def begin_pickled(self, task: bytes) -> None:
        """Send a pickled task, which only the worker unpickles."""
        self.stage, self.began = "", time.monotonic()
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send_bytes(task)

    def receive(self) -> Ended | None:
        """Wait for one message; return the report if it ends a task.

        Raise LostError if the pipe was closed, because the worker ended.
        """
        try:
            kind, *content = self.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            raise LostError(self._cause_of_death()) from None
        if kind == "done":
            value, error, warned = content
            return Ended(value, error, self.stage, self.seconds(), warned)
        if kind == "unable":
            raise LostError(f"cannot begin ({content[0]})")
        if kind == "ready":
            self.is_ready, self.began = True, time.monotonic()
        else:
            self.stage = content[0]
        return None

    def check(self, limits: Limits) -> None:
        """Raise LostError if the worker is above a limit."""
        if limits.time_s is not None and self.is_ready and self.seconds() > limits.time_s:
            raise LostError(f"took longer than {limits.time_s:g} s")
        if limits.memory_bytes is not None and self._memory_bytes() > limits.memory_bytes:
            raise LostError(f"took more than {limits.memory_bytes / 1e9:.3g} GB of memory")

    def max_wait_s(self, limits: Limits) -> float | None:
        """Return the maximum time to wait for messages until the next check; None is unlimited."""
        waits = [] if limits.memory_bytes is None else [WATCH_S]
        if limits.time_s is not None and self.is_ready:
            waits.append(max(0.0, self.began + limits.time_s - time.monotonic()))
        return min(waits, default=None)

    def seconds(self) -> float:
        """Return the time since its task began."""
        return time.monotonic() - self.began

    def dismiss(self) -> None:
        """End an idle worker."""
        _LOG.info("worker process %s is no longer needed", self.process.pid)
        self.hang_up()
        self.process.join(5)

    def hang_up(self) -> None:
        """Make an idle worker end, without waiting for it."""
        with suppress(OSError):  # it has ended
            # Nothing to unpickle is the end. A process that was forked from this one keeps a copy of the pipe open.
            self.connection.send_bytes(b"")
        self.connection.close()

    def kill(self) -> None:
        """Kill it, and wait for the end."""
        self.process.kill()
        self.process.join()
        self.connection.close()

    def _memory_bytes(self) -> int:
        try:
            return int((_PROC / str(self.process.pid) / "statm").read_text().split()[1]) * mmap.PAGESIZE
        except (OSError, IndexError):
            return 0

    def _cause_of_death(self) -> str:
        self.process.join(5)
        code = self.process.exitcode
        if code is None:
            return "stopped answering"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


@dataclass(frozen=True, slots=True)
class AsHere:
    """A work that uses compiled tile programs in a worker if, and only if, the process that made this uses them."""

    work: Work
    compiled: bool

    def __call__(self, task: Any, on_stage: OnProgress) -> Any:
        """Process a task."""
        use_compiled(self.compiled)
        return self.work(task, on_stage)


def as_here(work: Work) -> Work:
    """Return a work for another process with the choices of this one."""
    return AsHere(work, is_compiled_used())


def spawned(work: Work) -> tuple[Connection, Process]:
    """Start a worker with multiprocessing, which also supports works defined in a script."""
    context = multiprocessing.get_context("spawn")  # libvips does not survive a fork
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve_with_parent, args=(theirs, as_here(work)), daemon=True)
    # A Ctrl-C during its imports would end it with a traceback: signals blocked here stay blocked there. The
    # first start of a process also starts multiprocessing's resource tracker, which unblocks the signal: start it now.
    if _HAS_SIGMASK:
        resource_tracker.ensure_running()
    with _interrupts_later():
        process.start()
    theirs.close()  # so that the worker's end closes the pipe
    return ours, process


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Block Ctrl-C here and in processes that are started, and handle it afterwards.

    A signal blocked in this thread may still reach another one, and Python then raises in the main thread:
    a process whose start is interrupted ends with a traceback. So the handler is delayed as well.
    """
    held: list[int] = []
    handler = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
    if handler is not None:  # None: a handler that Python cannot restore
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


# Its last argument is a pipe whose other end only the parent has: the worker ends when the parent does.
_PROGRAM = """
import sys, threading
from multiprocessing.connection import Connection
connection, lifeline = (Connection(int(fd)) for fd in sys.argv[1:])
sys.path[:] = connection.recv()
from slideio_pipe.cohort.workers.process import serve_program
serve_program(connection, lifeline)
"""


def program(work: bytes) -> tuple[Connection, Process]:
    """Start a worker as a separate program, with a pickled work.

    For processes that may not have children in multiprocessing, such as Dask's workers, which are daemons.
    """
    ours, theirs = multiprocessing.Pipe()
    end, lifeline = multiprocessing.Pipe(duplex=False)
    fds = (theirs.fileno(), end.fileno())
    process = _Program([sys.executable, "-c", _PROGRAM, *map(str, fds)], fds, lifeline)
    theirs.close()
    end.close()
    with suppress(BrokenPipeError, ConnectionResetError):  # it ended: detected as the end of its pipe
        ours.send(sys.path)
        ours.send_bytes(work)
    return ours, process


class _Program:
    """A process of ``subprocess`` with multiprocessing's interface."""

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
    """Run a worker that ``program`` started."""
    _ignore_interrupts()
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    try:
        work = pickle.loads(connection.recv_bytes())
    except Exception as error:  # a missing module of the work
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
    """Leave Ctrl-C to the parent, which ends its workers: a terminal also sends it to them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_with(parent: Connection | int) -> None:
    """End with the parent: a worker of a killed run must not keep writing, or the next run finds its bags locked."""
    wait([parent])
    os._exit(1)


def _serve(connection: Connection, work: Work, idle_s: float | None = None) -> None:
    """Run tasks until the pipe is closed: the main loop of a worker."""
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
            except Exception as raised:  # any error of a library for a damaged slide fails only that slide
                value, error = None, portable(raised)
        found = {str(warning.message): warning.message for warning in caught}
        warned = [message if isinstance(message, SlideioPipeWarning) else text for text, message in found.items()]
        connection.send(("done", value, error, tuple(warned)))


def portable(error: BaseException) -> SlideioPipeError:
    """Return an error of ours, which can be pickled."""
    if isinstance(error, SlideioPipeError):
        return error
    return SlideioPipeError(f"{type(error).__name__}: {error}")
