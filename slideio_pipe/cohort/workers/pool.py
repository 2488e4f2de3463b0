"""A pool of worker processes with one task at a time: a crash, a hang or too much memory fails only that task."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from typing import Any, Protocol

from slideio_pipe.cohort.workers.process import Ended, Limits, LostError, OnProgress, Work, Worker, spawned
from slideio_pipe.errors import ConfigError, SlideioPipeError, WorkerError

_LOG = logging.getLogger(__name__)

__all__ = ["ATTEMPTS", "Attempt", "OnProgress", "Outcome", "Pool", "ThisProcess", "Work", "WorkerPool"]

# A task that ends its worker is retried once, in another process.
ATTEMPTS = 2
# Consecutive workers that end before starting: then no worker can start.
FAILED_STARTS = 3
NO_START = 'in a script, call it below `if __name__ == "__main__":`; define functions in a module'


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a task."""

    task: Any
    value: Any  # result of the work; None if it failed
    error: SlideioPipeError | None
    stage: str  # the last reported stage
    seconds: float  # of the last attempt
    warnings: tuple[str, ...] = ()
    quarantined: bool = False  # it ended two workers
    attempts: int = 1  # number of attempts


class Pool(Protocol):
    """Runs tasks."""

    def outcomes(self, tasks: Iterable[Any]) -> Generator[Outcome]:
        """Yield the outcome of each task when it ends; tasks are read when there is room for another."""


@dataclass(slots=True)
class Attempt:
    """A task and the number of workers it ended."""

    task: Any
    deaths: int = 0

    def ended(self, ended: Ended) -> Outcome:
        """Return the outcome, from the worker's report."""
        warned, attempts = tuple(map(str, ended.warnings)), self.deaths + 1
        return Outcome(self.task, ended.value, ended.error, ended.stage, ended.seconds, warned, attempts=attempts)

    def lost(self, reason: str, stage: str, seconds: float) -> Outcome | None:
        """Count an ended worker; return the outcome if it was the last attempt."""
        self.deaths += 1
        if self.deaths < ATTEMPTS:
            return None
        remedy = "look at the slide, then run again with {retry=True}"
        error = WorkerError(f"its worker process {reason}, twice", remedy=remedy)
        return Outcome(self.task, None, error, stage, seconds, quarantined=True, attempts=self.deaths)


class ThisProcess:
    """Runs tasks one after the other in this process, without limits.

    Parameters
    ----------
    work : callable
        See ``WorkerPool``.
    """

    def __init__(self, work: Work) -> None:
        self._work = work

    def outcomes(self, tasks: Iterable[Any]) -> Generator[Outcome]:
        """Yield the outcome of each task."""
        for task in tasks:
            stages, begun = [""], time.perf_counter()
            value, error = None, None
            try:
                value = self._work(task, stages.append)
            except SlideioPipeError as caught:
                error = caught.with_traceback(None)
            yield Outcome(task, value, error, stages[-1], time.perf_counter() - begun)


class WorkerPool:
    """Runs tasks in spawned processes; raise ConfigError if a number is invalid.

    Parameters
    ----------
    work : callable
        Called as ``work(task, on_stage)`` in a worker; it and the tasks must be picklable. Exceptions become outcomes.
    workers : int
        Number of processes.
    time_limit_s : float, optional
        Time limit per task, after which its worker is killed.
    memory_limit_bytes : int, optional
        Limit of resident memory, above which a worker is killed (Linux).
    """

    def __init__(
        self, work: Work, workers: int, *, time_limit_s: float | None = None, memory_limit_bytes: int | None = None
    ) -> None:
        if workers < 1:
            raise ConfigError(f"workers is {workers}", remedy="pass more than 0")
        self._work, self._count = work, workers
        self._limits = Limits(time_limit_s, memory_limit_bytes)
        self._busy: dict[Worker, Attempt] = {}
        self._free: deque[Worker] = deque()
        self._again: deque[Attempt] = deque()
        self._failed_starts = 0

    def outcomes(self, tasks: Iterable[Any]) -> Generator[Outcome]:
        """Yield the outcome of each task when it ends; tasks are read when a worker is free.

        Leaving the loop early ends the workers. Raise WorkerError if no worker starts.
        """
        waiting = iter(tasks)
        try:
            while True:
                self._assign(waiting)
                if not self._busy:
                    break
                waits = [worker.max_wait_s(self._limits) for worker in self._busy]
                ready = wait([w.connection for w in self._busy], min((s for s in waits if s is not None), default=None))
                for worker in list(self._busy):
                    found = self._check_worker(worker, worker.connection in ready)
                    if found is not None:
                        yield found
            for worker in self._free:
                worker.dismiss()
        finally:
            for worker in (*self._busy, *self._free):
                worker.kill()
            self._busy.clear()
            self._free.clear()

    def _assign(self, waiting: Iterator[Any]) -> None:
        """Give every free worker a task, and start workers as needed up to the limit."""
        while self._free or len(self._busy) < self._count:
            if self._again:
                attempt = self._again.popleft()
            else:
                try:
                    attempt = Attempt(next(waiting))
                except StopIteration:
                    return
            worker = self._free.popleft() if self._free else Worker(partial(spawned, self._work))
            self._busy[worker] = attempt
            worker.begin(attempt.task)

    def _check_worker(self, worker: Worker, has_message: bool) -> Outcome | None:
        """Read a message of a worker, or check its limits."""
        try:
            if not has_message:
                worker.check(self._limits)
                return None
            ended = worker.receive()
        except LostError as lost:
            return self._lost(worker, str(lost))
        if worker.is_ready:
            self._failed_starts = 0
        if ended is None:
            return None
        attempt = self._busy.pop(worker)
        self._free.append(worker)
        return attempt.ended(ended)

    def _lost(self, worker: Worker, reason: str) -> Outcome | None:
        """Retry the task of a dead worker in another one, or give it up."""
        _LOG.info("worker process %s %s, at %s", worker.process.pid, reason, worker.stage or "its start")
        worker.kill()
        attempt = self._busy.pop(worker)
        found = None
        if worker.is_ready:
            found = attempt.lost(reason, worker.stage, worker.seconds())
        else:
            self._failed_starts += 1
            if self._failed_starts >= FAILED_STARTS:
                raise WorkerError(f"worker processes do not start ({reason})", remedy=NO_START)
        if found is None:
            self._again.append(attempt)
        return found
