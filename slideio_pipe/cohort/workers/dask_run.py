"""Assign the tasks of one run to Dask workers, and handle their results.

Tasks are pinned to a worker, one per thread, and no more are submitted: so when a worker dies its tasks are known, and
a retry can avoid that worker; Dask itself would try a task on four workers, and also count deaths for tasks that only
waited there. Every task of a dead worker is retried once on a worker that it has exclusively, so that a second death is
caused by the task.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from slideio_pipe.cohort.workers.pool import ATTEMPTS, FAILED_STARTS, Attempt, Outcome
from slideio_pipe.cohort.workers.process import Limits
from slideio_pipe.errors import ClusterWarning, SlideioPipeError, WorkerError

# Interval of checks for new and lost workers.
_UPDATE_S = 1.0
# Maximum time for an answer of the scheduler, and for workers to kill our processes.
ANSWER_S = 10.0
_RESUME = "check the cluster, then run again: finished slides are kept"


class Access(Protocol):
    """Access to a cluster."""

    remedy: str  # if it has no workers
    wait_s: float | None  # maximum time without workers; None: unlimited

    def connected(self) -> AbstractContextManager[Any]:
        """Return a context manager of a Dask client."""

    def resubmit_jobs(self) -> None:
        """Submit jobs that have ended again, if this process submitted them; called about every second."""


@dataclass(slots=True)
class _PendingTask:
    """A task at a worker, or the check whether the worker can be used."""

    address: str
    future: Any
    attempt: Attempt | None
    began: float


@dataclass(frozen=True, slots=True)
class _Retry:
    """A task to be retried."""

    attempt: Attempt
    avoided: str  # the worker where it failed
    exclusive: bool  # whether the worker itself died: any of its tasks may be the cause
    since: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class ClusterRun:
    """The tasks of a run on the usable workers."""

    client: Any  # distributed.Client
    cluster: Access
    work: bytes  # serialised with cloudpickle
    folder: str  # of the outputs
    mark: bytes  # content of its ``run.lock``: a worker that cannot read it is not used
    limits: Limits  # of the process of a task
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    threads: dict[str, int] = field(default_factory=dict)  # of every worker
    usable: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)  # reasons
    pending: dict[str, _PendingTask] = field(default_factory=dict)  # by key
    loads: Counter[str] = field(default_factory=Counter)  # tasks at each worker
    retries: deque[_Retry] = field(default_factory=deque)
    reserved: set[str] = field(default_factory=set)  # workers that one task uses exclusively
    draining: str | None = None  # the worker that gets no new tasks, to be used exclusively
    answered_at: dict[str, float] = field(default_factory=dict)  # start of the latest answered check, by worker
    ended: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)
    failed_starts: int = 0
    updated_at: float = -_UPDATE_S
    last_usable_at: float = field(default_factory=time.monotonic)  # time of the latest usable worker

    def outcomes(self, tasks: Iterator[Any]) -> Iterator[Outcome]:
        """Yield the outcome of each task when it ends; a task is read when a worker has room for it.

        Raise WorkerError if the scheduler is lost, or no worker can be used.
        """
        more = True
        while True:
            if time.monotonic() >= self.updated_at + _UPDATE_S:
                yield from self._update_workers()
            while self.retries and self._submit_retry():
                pass
            self.draining = self.draining if self.retries else None
            more = more and self._submit_new(tasks)
            if not more and not self.retries and not any(item.attempt for item in self.pending.values()):
                return
            found = self._next_result()
            if found is not None:
                yield found

    def end(self) -> None:
        """Cancel running tasks, and kill their processes before the run releases its folder."""
        futures = [item.future for item in self.pending.values()]

        def cancel() -> None:
            with _ignored():
                self.client.cancel(futures)
            with _ignored():
                from slideio_pipe.cohort.workers.dask_worker import dismiss

                self.client.run(dismiss, self.name, workers=list(self.usable), on_error="ignore")

        if self.client.status == "running" and self.usable:
            thread = threading.Thread(target=cancel, daemon=True)
            thread.start()
            thread.join(ANSWER_S)  # without waiting longer for a worker that does not answer

    def _update_workers(self) -> Iterator[Outcome]:
        """Update the sets of workers."""
        self.updated_at = time.monotonic()
        self.cluster.resubmit_jobs()
        self.threads = dict(self._ask_scheduler(self.client.nthreads))
        for address in (self.usable | set(self.refused)) - set(self.threads):
            self.usable.discard(address)
            self.refused.pop(address, None)
        for key, item in list(self.pending.items()):
            if item.address not in self.threads:
                found = self._lost(key, f"at {item.address} was lost")
                if found is not None:
                    yield found
        checking = {item.address for item in self.pending.values() if item.attempt is None}
        for address in set(self.threads) - self.usable - set(self.refused) - checking:
            self._check(address)
        self._check_worker_timeout()

    def _check_worker_timeout(self) -> None:
        """Raise WorkerError if there has been no worker for too long."""
        if self.usable:
            self.last_usable_at = time.monotonic()
            return
        if self.refused and len(self.refused) == len(self.threads):
            reason = next(iter(self.refused.values()))
            remedy = "check that all workers have this version of slideio-pipe and the same disk"
            raise WorkerError(f"no worker of the cluster can be used: {reason}", remedy=remedy)
        if self.cluster.wait_s is not None and time.monotonic() > self.last_usable_at + self.cluster.wait_s:
            reason = f"the cluster has had no workers for {self.cluster.wait_s:g} s"
            raise WorkerError(reason, remedy=self.cluster.remedy)

    def _check(self, address: str) -> None:
        """Check the versions and the folder of a new worker."""
        self._submit(address, None, _describe_worker, self.folder, self.mark)

    def _submit_new(self, tasks: Iterator[Any]) -> bool:
        """Submit a task to each worker with room; return whether there may be more tasks."""
        while (address := self._worker_with_room()) is not None:
            try:
                task = next(tasks)
            except StopIteration:
                return False
            self._begin(Attempt(task), address)
        return True

    def _submit_retry(self) -> bool:
        """Submit the first task to be retried to another worker, if there is one; return whether it was submitted."""
        task = self.retries[0]
        others = self.usable - {task.avoided} or self.usable
        address = self._idle_worker(others, task.since) if task.exclusive else self._worker_with_room(others)
        if address is None:
            return False
        self.retries.popleft()
        if task.exclusive:
            self.reserved.add(address)
        self._begin(task.attempt, address)
        return True

    def _idle_worker(self, among: set[str], since: float) -> str | None:
        """Return an idle worker that has answered since a time; None while there is none.

        Several workers may have died at once, and one not yet detected as dead would cost the task its last attempt.
        """
        best = self.draining = min(among - self.reserved, key=lambda each: self.loads[each], default=None)
        if best is None or self.loads[best]:
            return None
        if self.answered_at.get(best, since) <= since:
            if not any(item.attempt is None and item.address == best for item in self.pending.values()):
                self._check(best)
            return None
        self.draining = None
        return best

    def _worker_with_room(self, among: Iterable[str] | None = None) -> str | None:
        """Return the worker with the most idle threads."""
        open_to_all = set(self.usable if among is None else among) - self.reserved - {self.draining}
        idle = {each: self.threads[each] - self.loads[each] for each in open_to_all}
        best = max(idle, key=lambda each: idle[each], default=None)
        return best if best is not None and idle[best] > 0 else None

    def _begin(self, attempt: Attempt, address: str) -> None:
        import cloudpickle

        self.loads[address] += 1
        key = f"slideio-pipe-{uuid.uuid4().hex}"
        task = cloudpickle.dumps(attempt.task)
        self._submit(address, attempt, _run_task, self.name, self.work, task, self.limits, key, key=key)

    def _submit(self, address: str, attempt: Attempt | None, *call: Any, key: str | None = None) -> None:
        """Call a function on a worker, and record its purpose."""
        submit = partial(self.client.submit, *call, key=key, workers=[address], pure=False, retries=0)
        future = self._ask_scheduler(submit)
        self.pending[future.key] = _PendingTask(address, future, attempt, time.monotonic())
        future.add_done_callback(lambda done: self.ended.put(done.key))

    def _next_result(self) -> Outcome | None:
        """Wait briefly for a call to end, and handle its result."""
        try:
            key = self.ended.get(timeout=max(0.01, self.updated_at + _UPDATE_S - time.monotonic()))
        except queue.Empty:
            return None
        item = self.pending.get(key)
        if item is None:
            return None
        if item.future.status not in ("finished", "error"):
            self._ask_scheduler(self.client.nthreads)  # raises if the scheduler was lost
            return self._lost(key, f"at {item.address} was lost")
        try:
            found = item.future.result(timeout=ANSWER_S)
        except Exception as error:
            return self._failed(key, item, error)
        if item.attempt is not None:
            return self._handle_result(key, item.attempt, found)
        self._accept(key, item, found)
        return None

    def _failed(self, key: str, item: _PendingTask, error: Exception) -> Outcome | None:
        """Handle an error of Dask."""
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if item.attempt is None:
            self._remove(key)
            self._refuse(item.address, reason)
            return None
        if type(error).__name__ in ("KilledWorker", "TimeoutError", "CommClosedError", "FutureCancelledError"):
            return self._lost(key, f"at {item.address} was lost")
        self._remove(key)
        seconds = time.monotonic() - item.began
        return Outcome(item.attempt.task, None, SlideioPipeError(reason), "worker", seconds)

    def _accept(self, key: str, item: _PendingTask, answer: tuple[dict[str, str], str]) -> None:
        """Accept a worker, or refuse it with a reason."""
        from slideio_pipe.cohort.workers.dask_worker import versions

        self._remove(key)
        self.answered_at[item.address] = item.began
        theirs, problem = answer
        ours = versions()
        differ = [f"{name} {theirs[name]} instead of {ours[name]}" for name in ours if theirs[name] != ours[name]]
        if differ or problem:
            self._refuse(item.address, problem or f"it has {' and '.join(differ)}")
        else:
            self.usable.add(item.address)

    def _refuse(self, address: str, reason: str) -> None:
        self.refused[address] = reason
        if len(self.refused) < len(self.threads):  # if all are refused, an error is raised
            warnings.warn(f"the worker {address} is not used: {reason}", ClusterWarning, stacklevel=2)

    def _handle_result(self, key: str, attempt: Attempt, ran: Any) -> Outcome | None:
        item = self._remove(key)
        if ran.ended is not None:
            self.failed_starts = 0
            return attempt.ended(ran.ended)
        if not ran.started:
            self.failed_starts += 1
            if self.failed_starts >= FAILED_STARTS:
                raise WorkerError(f"worker processes do not start at {item.address} ({ran.lost})", remedy=_RESUME)
            self.retries.append(_Retry(attempt, item.address, exclusive=False))
            return None
        found = attempt.lost(ran.lost, ran.stage, ran.seconds)
        if found is None:
            self._retry_later(attempt, item.address, exclusive=False)
        return found

    def _lost(self, key: str, reason: str) -> Outcome | None:
        """Handle the death of a Dask worker."""
        item = self._remove(key)
        with _ignored():
            item.future.cancel()
        self.usable.discard(item.address)
        if item.attempt is None:
            return None
        found = item.attempt.lost(reason, "worker", time.monotonic() - item.began)
        if found is None:
            self._retry_later(item.attempt, item.address, exclusive=True)
        return found

    def _retry_later(self, attempt: Attempt, avoided: str, *, exclusive: bool) -> None:
        assert attempt.deaths < ATTEMPTS
        self.retries.append(_Retry(attempt, avoided, exclusive))

    def _remove(self, key: str) -> _PendingTask:
        item = self.pending.pop(key)
        if item.attempt is not None:
            self.loads[item.address] -= 1
            if not self.loads[item.address]:
                del self.loads[item.address]
                self.reserved.discard(item.address)
        return item

    def _ask_scheduler(self, question: Callable[[], Any]) -> Any:
        """Return the scheduler's answer; raise WorkerError if it does not answer."""
        try:
            if self.client.status == "running":
                return question()
        except Exception as error:  # Dask's own, tornado's, asyncio's
            raise WorkerError(f"the Dask scheduler was lost ({type(error).__name__})", remedy=_RESUME) from error
        raise WorkerError("the Dask scheduler was lost", remedy=_RESUME)


def _describe_worker(folder: str, mark: bytes) -> tuple[dict[str, str], str]:
    """Return a worker's versions, and why it cannot be used; runs on the worker."""
    from slideio_pipe.cohort.workers.dask_worker import check_place, versions

    return versions(), check_place(folder, mark)


def _run_task(*args: Any) -> Any:
    from slideio_pipe.cohort.workers.dask_worker import run_task

    return run_task(*args)


@contextmanager
def _ignored() -> Iterator[None]:
    """Ignore errors of a cluster that is shutting down."""
    try:
        yield
    except Exception:
        logging.getLogger(__name__).debug("a cluster did not answer at shutdown", exc_info=True)
