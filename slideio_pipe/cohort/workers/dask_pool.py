"""Run tasks on a Dask cluster, with the guarantees of a local pool.

A Dask worker runs as many tasks at a time as it has threads, each in its own process (see ``dask_worker``);
``dask_run`` assigns the tasks. When a run ends, its processes are killed: at once through ``dismiss``, or, if the run
itself was killed, when Dask releases its tasks.

Limits of time and memory apply to the process of a task, which the Dask worker beside it watches. The limits of Dask's
nanny and of SLURM apply in addition; a process that they end is a lost worker.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slideio_pipe.cohort.workers.config import load_cluster_config
from slideio_pipe.cohort.workers.dask_run import ANSWER_S, Access, ClusterRun
from slideio_pipe.cohort.workers.pool import Outcome, Pool, WorkerPool
from slideio_pipe.cohort.workers.process import Limits, Work, as_here
from slideio_pipe.errors import ConfigError, WorkerError, require
from slideio_pipe.presets import settings_file

_SLURM = "slideio_pipe.cohort.workers.slurm"
_WAIT_S = 60.0  # maximum time without workers


def pool_for(
    cluster: str | Path | None,
    work: Work,
    workers: int = 1,
    *,
    folder: Path,
    time_limit_s: float | None = None,
    memory_limit_bytes: int | None = None,
) -> Pool:
    """Return the pool for the tasks: processes of this machine, or a cluster.

    Raise MissingExtraError if Dask is not installed, ConfigError if ``cluster`` is neither.

    Parameters
    ----------
    cluster : str or Path, optional
        A Dask scheduler, ``tcp://host:8786``, or a YAML file with a ``ClusterConfig``; None: this machine.
    work : callable
        See ``WorkerPool``.
    workers : int
        Number of processes of this machine.
    folder : Path
        Folder of the outputs with the ``run.lock`` of this run, which the workers must be able to read.
    time_limit_s, memory_limit_bytes : optional
        See ``WorkerPool``.
    """
    limits = Limits(time_limit_s, memory_limit_bytes)
    if cluster is None:
        return WorkerPool(work, workers, time_limit_s=time_limit_s, memory_limit_bytes=memory_limit_bytes)
    require("distributed", "cluster")  # before a folder is made or a file read
    return DaskPool(work, access(cluster), folder, limits)


def access(cluster: str | Path) -> Access:
    """Return the access to a cluster given by address or file.

    Raise ConfigError if it is neither an address nor a YAML file, the file is invalid, or SLURM is requested from a
    thread.
    """
    if "://" in str(cluster):
        return _Scheduler(str(cluster))
    path = settings_file(cluster, "cluster")
    if path.suffix.lower() not in (".yaml", ".yml"):
        remedy = 'pass {cluster="tcp://host:8786"} or a YAML file like that of slideio-pipe config show slurm'
        raise ConfigError(f"{cluster} is no cluster", remedy=remedy)
    config = load_cluster_config(path)
    if _SLURM not in sys.modules and threading.current_thread() is not threading.main_thread():
        reason = "jobs are submitted from another thread than the main one, where dask-jobqueue cannot be imported"
        raise ConfigError(reason, remedy=f"import {_SLURM} in the main thread, at the top of the program")
    from slideio_pipe.cohort.workers.slurm import SlurmJobs  # imports Dask

    return SlurmJobs(config, str(path))


class _Scheduler:
    """A running Dask scheduler."""

    remedy = "start workers with `dask worker` for it"
    wait_s: float | None = _WAIT_S

    def __init__(self, address: str) -> None:
        self._address = address

    @contextmanager
    def connected(self) -> Iterator[Any]:
        from distributed import Client

        try:
            client = Client(self._address, timeout=ANSWER_S, set_as_default=False)
        except (OSError, ValueError) as error:  # a timeout is an OSError
            remedy = "check the address, or start one with `dask scheduler`"
            raise WorkerError(f"no Dask scheduler answers at {self._address}", remedy=remedy) from error
        with client:
            yield client

    def resubmit_jobs(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class DaskPool:
    """Runs tasks on a Dask cluster."""

    work: Work  # see ``WorkerPool``
    cluster: Access
    folder: Path  # of the outputs, with the ``run.lock`` of this run: workers that cannot read it are not used
    limits: Limits  # of the process of a task

    def outcomes(self, tasks: Iterable[Any]) -> Generator[Outcome]:
        """Yield the outcome of each task when it ends; tasks are read when a worker has room.

        Raise WorkerError if the scheduler is missing or lost, or no worker can be used.
        """
        import cloudpickle

        work = cloudpickle.dumps(as_here(self.work))
        mark = (self.folder / "run.lock").read_bytes()
        with _quiet(), self.cluster.connected() as client:
            run = ClusterRun(client, self.cluster, work, str(self.folder), mark, self.limits)
            try:
                yield from run.outcomes(iter(tasks))
            finally:
                run.end()


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress Dask's log messages, which repeat our errors and warnings."""
    loggers = {name: logging.getLogger(name) for name in ("distributed", "distributed.client", "distributed.scheduler")}
    import distributed  # noqa: F401  # sets these levels on import

    levels = {name: logger.level for name, logger in loggers.items()}
    for logger in loggers.values():
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, logger in loggers.items():
            logger.setLevel(levels[name])
