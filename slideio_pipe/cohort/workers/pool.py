"""A pool of worker processes, each doing one task at a time: one that dies, hangs or swells costs its task only."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from typing import Any, Protocol

from slideio_pipe.cohort.workers.process import Ended, Limits, LostError, OnProgress, Work, Worker, spawned
from slideio_pipe.errors import ConfigError, SlideioPipeError, WorkerError

__all__ = ["ATTEMPTS", "Attempt", "OnProgress", "Outcome", "Pool", "Work", "WorkerPool"]

# A task that took a worker with it is tried once more, in a process of its own.
ATTEMPTS = 2
# Workers that end before they begin, one after the other, mean that none ever will.
FAILED_STARTS = 3
NO_START = 'in a script, call it below `if __name__ == "__main__":`; define functions in a module'


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
    attempts: int = 1  # that it took


class Pool(Protocol):
    """Whoever does tasks."""

    def outcomes(self, tasks: Iterable[Any]) -> Generator[Outcome]:
        """Yield what became of each task, as they end; tasks are asked for when there is room for another."""
        ...


@dataclass(slots=True)
class Attempt:
    """A task and the workers it took with it."""

    task: Any
    deaths: int = 0

    def ended(self, ended: Ended) -> Outcome:
        """Return what became of it, from what its worker says."""
        attempts = self.deaths + 1
        return Outcome(
            self.task, ended.value, ended.error, ended.stage, ended.seconds, ended.warnings, attempts=attempts
        )

    def lost(self, reason: str, stage: str, seconds: float) -> Outcome | None:
        """Count a death; return what became of the task if it was one too many."""
        self.deaths += 1
        if self.deaths < ATTEMPTS:
            return None
        remedy = "look at the slide, then run again with retry=True"
        error = WorkerError(f"its worker process {reason}, twice", remedy=remedy)
        return Outcome(self.task, None, error, stage, seconds, quarantined=True, attempts=self.deaths)


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
        if workers < 1:
            raise ConfigError(f"workers is {workers}", remedy="pass more than 0")
        self._work, self._count = work, workers
        self._limits = Limits(time_limit_s, memory_limit_bytes)
        self._busy: dict[Worker, Attempt] = {}
        self._free: deque[Worker] = deque()
        self._again: deque[Attempt] = deque()
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
                if not self._busy:
                    break
                waits = [worker.patience(self._limits) for worker in self._busy]
                ready = wait([w.connection for w in self._busy], min((s for s in waits if s is not None), default=None))
                for worker in list(self._busy):
                    found = self._look_at(worker, worker.connection in ready)
                    if found is not None:
                        yield found
            for worker in self._free:
                worker.dismiss()
        finally:
            for worker in (*self._busy, *self._free):
                worker.kill()
            self._busy.clear()
            self._free.clear()

    def _hand_out(self, waiting: Iterator[Any]) -> None:
        """Give every free worker a task, starting as many workers as are allowed and needed."""
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

    def _look_at(self, worker: Worker, has_told: bool) -> Outcome | None:
        """Take a message of a worker, or see that it keeps to the limits."""
        try:
            if not has_told:
                worker.check(self._limits)
                return None
            ended = worker.hear()
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
        """Have the task of a worker tried again by another, or given up."""
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
