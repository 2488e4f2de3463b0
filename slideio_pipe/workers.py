"""Worker processes, each doing one task at a time: one that dies, hangs or swells costs its task, not the run."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from slideio_pipe.errors import ConfigError, SlideioPipeError, WorkerError

OnStage = Callable[[str], object]
Work = Callable[[Any, OnStage], Any]  # (task, on_stage) to what is reported of it; both pickle

# A task that took a worker with it is tried once more, in a process of its own.
_ATTEMPTS = 2
# Workers that end before they begin, one after the other, mean that none ever will.
_FAILED_STARTS = 3
# How often the memory of workers is looked at.
_WATCH_S = 0.2
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a task."""

    task: Any
    value: Any  # what the work returned; None when it failed
    error: SlideioPipeError | None
    stage: str  # the last one it told of
    seconds: float  # of the last attempt
    warnings: tuple[str, ...] = ()
    quarantined: bool = False  # it took two workers with it


class Pool(Protocol):
    """Whoever does tasks."""

    def outcomes(self, tasks: Iterable[Any]) -> Generator[Outcome]:
        """Yield what became of each task, as they end; tasks are asked for when there is room for another."""
        ...


class WorkerPool:
    """Does tasks in spawned processes.

    Parameters
    ----------
    work : callable
        Called as ``work(task, on_stage)`` in a worker; it and the tasks pickle. Its exceptions are outcomes.
    workers : int
        Processes.
    time_limit_s : float, optional
        After which a worker is killed over its task.
    memory_limit_bytes : int, optional
        Resident memory beyond which a worker is killed (Linux).

    Raises
    ------
    ConfigError
        Numbers that make no sense.
    """

    def __init__(
        self, work: Work, workers: int, *, time_limit_s: float | None = None, memory_limit_bytes: int | None = None
    ) -> None:
        for name, value in (("workers", workers), ("time_limit_s", time_limit_s), ("memory limit", memory_limit_bytes)):
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value}", remedy="pass more than 0")
        self._work, self._count = work, workers
        self._time_limit_s, self._memory_limit_bytes = time_limit_s, memory_limit_bytes
        self._workers: list[_Worker] = []
        self._again: deque[_Job] = deque()
        self._failed_starts = 0

    def outcomes(self, tasks: Iterable[Any]) -> Generator[Outcome]:
        """Yield what became of each task, as they end; tasks are asked for when a worker is free.

        Leaving the loop early ends the workers.

        Raises
        ------
        WorkerError
            No worker starts.
        """
        waiting = iter(tasks)
        try:
            while True:
                self._hand_out(waiting)
                busy = [worker for worker in self._workers if worker.job is not None]
                if not busy:
                    break
                ready = wait([worker.connection for worker in busy], self._patience(busy))
                for worker in busy:
                    found = self._heard(worker) if worker.connection in ready else self._overdue(worker)
                    if found is not None:
                        yield found
            for worker in self._workers:
                worker.dismiss()
        finally:
            for worker in self._workers:
                worker.kill()
            self._workers.clear()

    def _hand_out(self, waiting: Iterator[Any]) -> None:
        """Give every free worker a task, starting as many workers as are allowed and needed."""
        free = deque(worker for worker in self._workers if worker.job is None)
        while free or len(self._workers) < self._count:
            if self._again:
                job = self._again.popleft()
            else:
                try:
                    job = _Job(next(waiting))
                except StopIteration:
                    return
            if not free:
                self._workers.append(_Worker(self._work))
                free.append(self._workers[-1])
            free.popleft().begin(job)

    def _patience(self, busy: list[_Worker]) -> float | None:
        """Return how long may be waited for messages until something has to be looked after."""
        waits = [] if self._memory_limit_bytes is None else [_WATCH_S]
        if self._time_limit_s is not None:
            now = time.monotonic()
            waits += [max(0.0, w.began + self._time_limit_s - now) for w in busy if w.is_ready]
        return min(waits, default=None)

    def _heard(self, worker: _Worker) -> Outcome | None:
        """Take one message of a worker; the end of its pipe is its death."""
        try:
            kind, *content = worker.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            return self._lost(worker, worker.cause_of_death())
        if kind == "ready":
            worker.is_ready, worker.began, self._failed_starts = True, time.monotonic(), 0
        elif kind == "stage":
            worker.stage = content[0]
        else:
            job, seconds = worker.end()
            value, error, told = content
            return Outcome(job.task, value, error, worker.stage, seconds, told)
        return None

    def _overdue(self, worker: _Worker) -> Outcome | None:
        if self._time_limit_s is not None and worker.is_ready and worker.seconds() > self._time_limit_s:
            return self._lost(worker, f"took longer than {self._time_limit_s:g} s")
        if self._memory_limit_bytes is not None and worker.memory_bytes() > self._memory_limit_bytes:
            return self._lost(worker, f"took more than {self._memory_limit_bytes / 1e9:.3g} GB of memory")
        return None

    def _lost(self, worker: _Worker, reason: str) -> Outcome | None:
        """Replace a worker, and have its task tried again or given up."""
        worker.kill()
        self._workers.remove(worker)
        job, seconds = worker.end()
        if not worker.is_ready:
            self._failed_starts += 1
            if self._failed_starts >= _FAILED_STARTS:
                remedy = 'in a script, call it below `if __name__ == "__main__":`; define functions in a module'
                raise WorkerError(f"worker processes do not start ({reason})", remedy=remedy)
            self._again.append(job)
            return None
        job.attempts += 1
        if job.attempts < _ATTEMPTS:
            self._again.append(job)
            return None
        remedy = "look at the slide, then run again with retry=True"
        error = WorkerError(f"its worker process {reason}, twice", remedy=remedy)
        return Outcome(job.task, None, error, worker.stage, seconds, quarantined=True)


@dataclass(slots=True)
class _Job:
    task: Any
    attempts: int = 0


class _Worker:
    """A process and this end of the pipe to it."""

    def __init__(self, work: Work) -> None:
        context = multiprocessing.get_context("spawn")  # libvips does not survive a fork
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs, work), daemon=True)
        # A Ctrl-C while it imports would end it with a traceback: what is blocked here is blocked there, for good.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()  # so that its death ends the pipe
        self.job: _Job | None = None
        self.is_ready, self.stage, self.began = False, "", time.monotonic()

    def begin(self, job: _Job) -> None:
        self.job, self.stage, self.began = job, "", time.monotonic()
        with suppress(BrokenPipeError, ConnectionResetError):  # it died idle: heard of as the end of its pipe
            self.connection.send(job.task)

    def end(self) -> tuple[_Job, float]:
        job, self.job = self.job, None
        assert job is not None
        return job, self.seconds()

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def memory_bytes(self) -> int:
        try:
            with open(f"/proc/{self.process.pid}/statm", encoding="ascii") as file:
                return int(file.read().split()[1]) * _PAGE_BYTES
        except (OSError, IndexError):
            return 0

    def cause_of_death(self) -> str:
        self.process.join(5)
        code = self.process.exitcode
        if code is None:
            return "stopped answering"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def dismiss(self) -> None:
        self.connection.close()
        self.process.join(5)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, work: Work) -> None:
    """Do tasks until the pipe ends: the whole life of a worker."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    connection.send(("ready",))
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                value, error = work(task, lambda stage: connection.send(("stage", stage))), None
            except Exception as raised:  # whatever a library raises over a damaged slide costs that slide only
                value, error = None, _portable(raised)
        connection.send(("done", value, error, tuple(dict.fromkeys(str(warning.message) for warning in caught))))


def _die_with_parent() -> None:
    """A worker whose run was killed must not go on writing: the next run would find its bags locked."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _portable(error: Exception) -> SlideioPipeError:
    """Return an error of ours that pickles."""
    if isinstance(error, SlideioPipeError):
        return error
    return SlideioPipeError(f"{type(error).__name__}: {error}")
