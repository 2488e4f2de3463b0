"""What one run asks of which Dask worker, and what it hears from them.

Tasks are pinned to a worker, one per thread, and there are no more of them at a time: so it is known whose task it was
when a worker dies, and which worker has to be avoided the second time; Dask itself would try it on four workers, and
count the deaths of whatever waited there as well. Whatever was at a worker that died is tried once more with a worker
for itself: so a second death is its own.
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

# How often it is looked which workers there are.
_LOOK_S = 1.0
# How long a scheduler may take to answer, and workers to kill what they run for us.
ANSWER_S = 10.0
_RESUME = "see to the cluster, then run again: what is done stays done"


class Access(Protocol):
    """How a cluster is reached."""

    remedy: str  # when it has no workers
    wait_s: float | None  # for how long it may have none; None: for ever

    def connected(self) -> AbstractContextManager[Any]:
        """Return a context manager of a Dask client."""
        ...

    def look_after(self) -> None:
        """Do what has to be done every now and then."""
        ...


@dataclass(slots=True)
class _PendingTask:
    """A task at a worker, or the question whether the worker can be used."""

    address: str
    future: Any
    attempt: Attempt | None
    began: float


@dataclass(frozen=True, slots=True)
class _Again:
    """A task that is to be tried once more."""

    attempt: Attempt
    avoided: str  # the worker where it failed
    alone: bool  # whether the worker itself died: the other tasks there may have been innocent
    since: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class ClusterRun:
    """The tasks of a run, at the workers that can be used.

    Parameters
    ----------
    client : distributed.Client
    cluster : Access
        How the cluster is reached.
    work : bytes
        What does a task, as cloudpickle writes it.
    folder : str
        Where the outputs go.
    mark : bytes
        The content of the ``run.lock`` there: a worker that does not see it is not used.
    limits : Limits
        Of the process that does a task.
    """

    client: Any
    cluster: Access
    work: bytes
    folder: str
    mark: bytes
    limits: Limits
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    threads: dict[str, int] = field(default_factory=dict)  # of every worker there is
    usable: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)  # why
    flights: dict[str, _PendingTask] = field(default_factory=dict)  # by key
    loads: Counter[str] = field(default_factory=Counter)  # tasks at each worker
    again: deque[_Again] = field(default_factory=deque)
    reserved: set[str] = field(default_factory=set)  # workers that one task has for itself
    draining: str | None = None  # the worker that gets no new task, so that one may have it for itself
    answered_at: dict[str, float] = field(default_factory=dict)  # when a worker was asked that answered
    ended: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)
    failed_starts: int = 0
    looked: float = -_LOOK_S
    last_usable_at: float = field(default_factory=time.monotonic)  # when a worker was last there

    def outcomes(self, tasks: Iterator[Any]) -> Iterator[Outcome]:
        """Yield what became of each task, as they end; a task is taken when a worker has room for it.

        Raises
        ------
        WorkerError
            The scheduler is gone, or no worker can be used.
        """
        more = True
        while True:
            if time.monotonic() >= self.looked + _LOOK_S:
                yield from self._look()
            while self.again and self._hand_out_again():
                pass
            self.draining = self.draining if self.again else None
            more = more and self._hand_out(tasks)
            if not more and not self.again and not any(flight.attempt for flight in self.flights.values()):
                return
            found = self._hear()
            if found is not None:
                yield found

    def end(self) -> None:
        """Take back what is at work, and have its processes killed before the run lets go of its folder."""
        futures = [flight.future for flight in self.flights.values()]

        def tell() -> None:
            with _ignored():
                self.client.cancel(futures)
            with _ignored():
                from slideio_pipe.cohort.workers.dask_worker import dismiss

                self.client.run(dismiss, self.name, workers=list(self.usable), on_error="ignore")

        if self.client.status == "running" and self.usable:
            thread = threading.Thread(target=tell, daemon=True)
            thread.start()
            thread.join(ANSWER_S)  # a worker that does not answer is not waited for

    def _look(self) -> Iterator[Outcome]:
        """See which workers have come and gone."""
        self.looked = time.monotonic()
        self.cluster.look_after()
        self.threads = dict(self._asked(self.client.nthreads))
        for address in (self.usable | set(self.refused)) - set(self.threads):
            self.usable.discard(address)
            self.refused.pop(address, None)
        for key, flight in list(self.flights.items()):
            if flight.address not in self.threads:
                found = self._lost(key, f"at {flight.address} was lost")
                if found is not None:
                    yield found
        asked = {flight.address for flight in self.flights.values() if flight.attempt is None}
        for address in set(self.threads) - self.usable - set(self.refused) - asked:
            self._ask(address)
        self._check_worker_timeout()

    def _check_worker_timeout(self) -> None:
        """Raise WorkerError when there has been no worker for too long."""
        if self.usable:
            self.last_usable_at = time.monotonic()
            return
        if self.refused and len(self.refused) == len(self.threads):
            reason = next(iter(self.refused.values()))
            remedy = "see that all workers have this version of slideio-pipe and see the same disk"
            raise WorkerError(f"no worker of the cluster can be used: {reason}", remedy=remedy)
        if self.cluster.wait_s is not None and time.monotonic() > self.last_usable_at + self.cluster.wait_s:
            reason = f"the cluster has had no workers for {self.cluster.wait_s:g} s"
            raise WorkerError(reason, remedy=self.cluster.remedy)

    def _ask(self, address: str) -> None:
        """Ask a new worker what it is and what it sees."""
        self._submit(address, None, _introduce, self.folder, self.mark)

    def _hand_out(self, tasks: Iterator[Any]) -> bool:
        """Give workers with room a task each; return whether there may be more tasks."""
        while (address := self._room()) is not None:
            try:
                task = next(tasks)
            except StopIteration:
                return False
            self._begin(Attempt(task), address)
        return True

    def _hand_out_again(self) -> bool:
        """Give a task that took a worker with it to another, if there is another; return whether it was given."""
        task = self.again[0]
        others = self.usable - {task.avoided} or self.usable
        address = self._empty(others, task.since) if task.alone else self._room(others)
        if address is None:
            return False
        self.again.popleft()
        if task.alone:
            self.reserved.add(address)
        self._begin(task.attempt, address)
        return True

    def _empty(self, among: set[str], since: float) -> str | None:
        """Return a worker without a task that has answered since a time; None while that has to be waited for.

        Several may have died at once, and those that nobody has missed yet would cost the task its last attempt.
        """
        best = self.draining = min(among - self.reserved, key=lambda each: self.loads[each], default=None)
        if best is None or self.loads[best]:
            return None
        if self.answered_at.get(best, since) <= since:
            if not any(flight.attempt is None and flight.address == best for flight in self.flights.values()):
                self._ask(best)
            return None
        self.draining = None
        return best

    def _room(self, among: Iterable[str] | None = None) -> str | None:
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
        """Have a worker call a function, and remember for what."""
        submit = partial(self.client.submit, *call, key=key, workers=[address], pure=False, retries=0)
        future = self._asked(submit)
        self.flights[future.key] = _PendingTask(address, future, attempt, time.monotonic())
        future.add_done_callback(lambda done: self.ended.put(done.key))

    def _hear(self) -> Outcome | None:
        """Wait a little for a worker to come to the end of something."""
        try:
            key = self.ended.get(timeout=max(0.01, self.looked + _LOOK_S - time.monotonic()))
        except queue.Empty:
            return None
        flight = self.flights.get(key)
        if flight is None:
            return None
        if flight.future.status not in ("finished", "error"):
            self._asked(self.client.nthreads)  # raises when it is the scheduler that was lost
            return self._lost(key, f"at {flight.address} was lost")
        try:
            found = flight.future.result(timeout=ANSWER_S)
        except Exception as error:
            return self._failed(key, flight, error)
        if flight.attempt is not None:
            return self._ran(key, flight.attempt, found)
        self._welcome(key, flight, found)
        return None

    def _failed(self, key: str, flight: _PendingTask, error: Exception) -> Outcome | None:
        """Deal with what Dask says instead of an outcome."""
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if flight.attempt is None:
            self._landed(key)
            self._refuse(flight.address, reason)
            return None
        if type(error).__name__ in ("KilledWorker", "TimeoutError", "CommClosedError", "FutureCancelledError"):
            return self._lost(key, f"at {flight.address} was lost")
        self._landed(key)
        seconds = time.monotonic() - flight.began
        return Outcome(flight.attempt.task, None, SlideioPipeError(reason), "worker", seconds)

    def _welcome(self, key: str, flight: _PendingTask, told: tuple[dict[str, str], str]) -> None:
        """Use a worker, or say why it is not used."""
        from slideio_pipe.cohort.workers.dask_worker import versions

        self._landed(key)
        self.answered_at[flight.address] = flight.began
        theirs, problem = told
        here = versions()
        differ = [f"{name} {theirs[name]} instead of {here[name]}" for name in here if theirs[name] != here[name]]
        if differ or problem:
            self._refuse(flight.address, problem or f"it has {' and '.join(differ)}")
        else:
            self.usable.add(flight.address)

    def _refuse(self, address: str, reason: str) -> None:
        self.refused[address] = reason
        if len(self.refused) < len(self.threads):  # else it will be an error
            warnings.warn(f"the worker {address} is not used: {reason}", ClusterWarning, stacklevel=2)

    def _ran(self, key: str, attempt: Attempt, ran: Any) -> Outcome | None:
        flight = self._landed(key)
        if ran.ended is not None:
            self.failed_starts = 0
            return attempt.ended(ran.ended)
        if not ran.started:
            self.failed_starts += 1
            if self.failed_starts >= FAILED_STARTS:
                raise WorkerError(f"worker processes do not start at {flight.address} ({ran.lost})", remedy=_RESUME)
            self.again.append(_Again(attempt, flight.address, alone=False))
            return None
        found = attempt.lost(ran.lost, ran.stage, ran.seconds)
        if found is None:
            self._once_more(attempt, flight.address, alone=False)
        return found

    def _lost(self, key: str, reason: str) -> Outcome | None:
        """Deal with the death of the Dask worker itself."""
        flight = self._landed(key)
        with _ignored():
            flight.future.cancel()
        self.usable.discard(flight.address)
        if flight.attempt is None:
            return None
        found = flight.attempt.lost(reason, "worker", time.monotonic() - flight.began)
        if found is None:
            self._once_more(flight.attempt, flight.address, alone=True)
        return found

    def _once_more(self, attempt: Attempt, avoided: str, *, alone: bool) -> None:
        assert attempt.deaths < ATTEMPTS
        self.again.append(_Again(attempt, avoided, alone))

    def _landed(self, key: str) -> _PendingTask:
        flight = self.flights.pop(key)
        if flight.attempt is not None:
            self.loads[flight.address] -= 1
            if not self.loads[flight.address]:
                del self.loads[flight.address]
                self.reserved.discard(flight.address)
        return flight

    def _asked(self, question: Callable[[], Any]) -> Any:
        """Return what the scheduler answers.

        Raises
        ------
        WorkerError
            It does not.
        """
        try:
            if self.client.status == "running":
                return question()
        except Exception as error:  # Dask's own, tornado's, asyncio's
            raise WorkerError(f"the Dask scheduler was lost ({type(error).__name__})", remedy=_RESUME) from error
        raise WorkerError("the Dask scheduler was lost", remedy=_RESUME)


def _introduce(folder: str, mark: bytes) -> tuple[dict[str, str], str]:
    """Say, on a worker, what it is, and what keeps it from working here."""
    from slideio_pipe.cohort.workers.dask_worker import check_place, versions

    return versions(), check_place(folder, mark)


def _run_task(*args: Any) -> Any:
    from slideio_pipe.cohort.workers.dask_worker import run_task

    return run_task(*args)


@contextmanager
def _ignored() -> Iterator[None]:
    """Go on whatever a cluster that is going down answers."""
    try:
        yield
    except Exception:
        logging.getLogger(__name__).debug("a cluster that is left did not answer", exc_info=True)
