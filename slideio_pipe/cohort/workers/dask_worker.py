"""The code that runs in Dask's workers: each of their threads runs one task at a time, in its own process.

So libvips is neither forked nor shared, for any kind of Dask worker: one thread or several, with or without a nanny. A
task that crashes, hangs or grows ends only that process, and its limits are those of a local run.
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

# Interval of checks whether the task is still needed.
_CHECK_S = 0.5
# Maximum time until another host sees a newly written file.
_VISIBLE_S = 10.0


@dataclass(frozen=True, slots=True)
class Ran:
    """The outcome of a task on a worker."""

    ended: Ended | None
    lost: str = ""  # why its process ended, if it did
    stage: str = ""
    seconds: float = 0.0
    started: bool = True  # False: the process ended before it started the task


class _Processes:
    """The processes of a run in this Dask worker."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[tuple[Worker, float]] = []
        self._all: set[Worker] = set()

    def take(self, work: bytes) -> Worker:
        """Return an idle process, new or used before."""
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
        """End all processes, also busy ones."""
        with self._lock:
            for worker in self._all:
                worker.process.kill()  # the waiting thread sees the end of its pipe
            for worker in self._all:
                worker.process.join(5)  # releases its locks before the run ends
            for worker, _ in self._free:
                self._drop(worker)
            self._free.clear()

    def _drop(self, worker: Worker) -> None:
        if worker in self._all:
            self._all.remove(worker)
            worker.kill()


# The only state: the processes in this Dask worker, by run.
_PROCESSES: dict[str, _Processes] = {}


def check_place(folder: str, mark: bytes) -> str:
    """Return why this worker cannot be used; "" if it can.

    Parameters
    ----------
    folder : str
        Folder of the outputs.
    mark : bytes
        Content of its ``run.lock``: another disk under the same path would have another content.
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
        if time.monotonic() > begun + _VISIBLE_S:
            return reason
        time.sleep(0.25)
    return "" if os.access(folder, os.W_OK) else f"{folder} cannot be written on {here}"


def versions() -> dict[str, str]:
    """Return the versions that must be equal on both sides."""
    ours = sys.modules[__name__.partition(".")[0]].__version__
    return {"slideio_pipe": ours, "Python": ".".join(platform.python_version_tuple()[:2])}


def run_task(run: str, work: bytes, task: bytes, limits: Limits, key: str) -> Ran:
    """Run a task in its own process, and return the outcome.

    Parameters
    ----------
    run : str
        The task's run; its processes are kept for its next tasks.
    work, task : bytes
        Pickled; only that process imports what they need.
    limits : Limits
        Limits above which the process is killed.
    key : str
        Dask's key of this task: after Dask has released it the outcome is not needed, and the process is killed.
    """
    processes = _PROCESSES.setdefault(run, _Processes())
    worker = processes.take(work)
    worker.begin_pickled(task)
    kept = False
    try:
        while True:
            max_wait_s = worker.max_wait_s(limits)
            if wait([worker.connection], _CHECK_S if max_wait_s is None else min(max_wait_s, _CHECK_S)):
                ended = worker.receive()
                if ended is not None:
                    kept = True
                    return Ran(ended)
            else:
                worker.check(limits)
            if not _is_needed(key):
                return Ran(None, "was cancelled", worker.stage, worker.seconds())
    except LostError as lost:
        return Ran(None, str(lost), worker.stage, worker.seconds(), started=worker.is_ready)
    finally:
        (processes.give_back if kept else processes.drop)(worker)


def dismiss(run: str) -> None:
    """End the processes of a run in this Dask worker."""
    processes = _PROCESSES.pop(run, None)
    if processes is not None:
        processes.dismiss()


def _is_needed(key: str) -> bool:
    """Return whether Dask still waits for a task: its client may be gone, or this worker may be closing.

    Dask cannot interrupt a thread; it marks the task as cancelled and lets it run.
    """
    worker = get_worker()
    task = worker.state.tasks.get(key)
    return task is not None and task.state == "executing" and worker.status.name in ("running", "paused")
