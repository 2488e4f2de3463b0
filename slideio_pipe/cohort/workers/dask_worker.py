"""What runs in Dask's workers: every thread of one does a task at a time, in a process of its own.

So libvips meets neither fork nor neighbour, whatever Dask's workers are: of one thread or many, with a nanny or
without. A task that crashes, hangs or swells costs that process only, and its limits are those of a local run.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

from distributed import get_worker

from slideio_pipe.cohort.workers.process import IDLE_S, Ended, Limits, LostError, Worker, program

# How often it is asked whether the task is still wanted.
_ASK_S = 0.5
# How long another host may take to see a file that was just written.
_SEEN_S = 10.0


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of a task on a worker."""

    ended: Ended | None
    lost: str = ""  # why its process died, if it did
    stage: str = ""
    seconds: float = 0.0
    started: bool = True  # False: the process died before it began with the task


class _Crew:
    """The processes that a run has in this Dask worker."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[tuple[Worker, float]] = []
        self._all: set[Worker] = set()

    def take(self, work: bytes) -> Worker:
        """Return a process that has nothing to do; it may have been started before."""
        with self._lock:
            while self._free:
                worker, since = self._free.pop()
                if time.monotonic() - since < IDLE_S / 2:
                    return worker
                self._drop(worker)
            worker = Worker(partial(program, work))
            self._all.add(worker)
            return worker

    def give_back(self, worker: Worker) -> None:
        """Keep a process for the next task."""
        with self._lock:
            if worker in self._all:
                self._free.append((worker, time.monotonic()))

    def drop(self, worker: Worker) -> None:
        """End a process."""
        with self._lock:
            self._drop(worker)

    def dismiss(self) -> None:
        """End all, whatever they do."""
        with self._lock:
            for worker in self._all:
                worker.process.kill()  # its thread hears of it
            for worker in self._all:
                worker.process.join(5)  # so that its locks are free when the run has ended
            for worker, _ in self._free:
                self._drop(worker)
            self._free.clear()

    def _drop(self, worker: Worker) -> None:
        if worker in self._all:
            self._all.remove(worker)
            worker.kill()


# The only state: what this Dask worker has running, by the run it is for.
_CREWS: dict[str, _Crew] = {}


def check_place(folder: str, mark: bytes) -> str:
    """Return why this worker cannot be used; "" if it can.

    Parameters
    ----------
    folder : str
        Where the outputs go.
    mark : bytes
        What ``run.lock`` there holds: another disk under the same path would hold something else.
    """
    here = socket.gethostname()
    lock, begun = Path(folder) / "run.lock", time.monotonic()
    while True:
        try:
            if lock.read_bytes() == mark:
                break
            reason = f"{folder} is another folder on {here}"
        except OSError as error:
            reason = f"{folder} cannot be seen on {here} ({error.strerror})"
        if time.monotonic() > begun + _SEEN_S:
            return reason
        time.sleep(0.25)
    return "" if os.access(folder, os.W_OK) else f"{folder} cannot be written on {here}"


def versions() -> dict[str, str]:
    """Return what has to be the same on both sides."""
    ours = sys.modules[__name__.partition(".")[0]].__version__
    return {"slideio_pipe": ours, "Python": ".".join(platform.python_version_tuple()[:2])}


def run_task(run: str, work: bytes, task: bytes, limits: Limits, key: str) -> Ran:
    """Do a task in a process of its own, and return what became of it.

    Parameters
    ----------
    run : str
        The run it is for; its processes are kept for its next tasks.
    work, task : bytes
        Pickled; only that process imports what they need.
    limits : Limits
        Beyond which the process is killed.
    key : str
        Dask's for this task: once Dask has released it nobody waits for the outcome, and the process is killed.
    """
    crew = _CREWS.setdefault(run, _Crew())
    worker = crew.take(work)
    worker.begin_pickled(task)
    kept = False
    try:
        while True:
            patience = worker.patience(limits)
            if wait([worker.connection], _ASK_S if patience is None else min(patience, _ASK_S)):
                ended = worker.hear()
                if ended is not None:
                    kept = True
                    return Ran(ended)
            else:
                worker.check(limits)
            if not _is_wanted(key):
                return Ran(None, "was no longer wanted", worker.stage, worker.seconds())
    except LostError as lost:
        return Ran(None, str(lost), worker.stage, worker.seconds(), started=worker.is_ready)
    finally:
        (crew.give_back if kept else crew.drop)(worker)


def dismiss(run: str) -> None:
    """End what a run has running in this Dask worker."""
    crew = _CREWS.pop(run, None)
    if crew is not None:
        crew.dismiss()


def _is_wanted(key: str) -> bool:
    """Return whether Dask still waits for a task: its client may have gone, or this worker be closing.

    Dask cannot interrupt a thread; it marks the task as cancelled and lets it run.
    """
    worker = get_worker()
    task = worker.state.tasks.get(key)
    return task is not None and task.state == "executing" and worker.status.name in ("running", "paused")
