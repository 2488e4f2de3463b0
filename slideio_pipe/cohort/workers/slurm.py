"""A Dask cluster of SLURM jobs for the duration of a run."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from distributed import Client
from distributed.deploy.spec import ProcessInterface

from slideio_pipe.cohort.workers.config import ClusterConfig
from slideio_pipe.errors import ConfigError, WorkerError, require

# dask-jobqueue installs a Ctrl-C handler on import, which would end the process without the run's final steps.
_interrupt = signal.getsignal(signal.SIGINT)
require("dask_jobqueue.slurm", "cluster")
signal.signal(signal.SIGINT, _interrupt)

from dask_jobqueue.slurm import SLURMCluster, SLURMJob  # noqa: E402

# Interval for resubmitting jobs that ended (walltime over, node reclaimed).
_RENEW_S = 30.0


class SlurmJobs:
    """The SLURM jobs of a configuration.

    Parameters
    ----------
    config : ClusterConfig
        Resources and number of the jobs.
    where : str
        The configuration's file, for messages.
    """

    remedy = "look at squeue and the logs of the jobs (log_directory), then run again: finished slides are kept"

    def __init__(self, config: ClusterConfig, where: str) -> None:
        self.wait_s = config.wait_s
        self._config, self._where = config, where
        self._refused: list[str] = []
        self._cluster: SLURMCluster | None = None
        self._renewed = 0.0

    @contextmanager
    def connected(self) -> Iterator[Client]:
        """Submit the jobs, and cancel them at the end.

        Raise WorkerError if SLURM is not available, ConfigError if dask-jobqueue refuses an argument.
        """
        if shutil.which(SLURMJob.submit_command) is None:
            remedy = "run on a machine of the SLURM cluster, or pass the address of a Dask scheduler"
            raise WorkerError("there is no sbatch here", slide=self._where, remedy=remedy)
        with self._started() as cluster, Client(cluster, set_as_default=False) as client:
            self._cluster = cluster
            cluster.scale(jobs=self._config.jobs)
            self._renewed = time.monotonic()
            yield client

    def resubmit_jobs(self) -> None:
        """Submit jobs that have ended again; called about every second. Raise WorkerError if SLURM rejects the jobs."""
        if self._refused:
            remedy = "correct the file; its lines were passed to sbatch"
            raise WorkerError(f"SLURM refuses the jobs ({self._refused[0]})", slide=self._where, remedy=remedy)
        if self._cluster is not None and time.monotonic() > self._renewed + _RENEW_S:
            self._cluster.scale(jobs=self._config.jobs)
            self._renewed = time.monotonic()

    def job_script(self) -> str:
        """Return the script of a job."""
        with self._started() as cluster:
            script: str = cluster.job_script()
        return script

    @contextmanager
    def _started(self) -> Iterator[SLURMCluster]:
        """Start a scheduler in this process, without jobs."""
        try:
            cluster = SLURMCluster(job_cls=_job_class(self._refused), **arguments(self._config))
        except (TypeError, ValueError) as error:
            remedy = "see slideio-pipe config show slurm and the arguments of dask_jobqueue.SLURMCluster"
            raise ConfigError(" ".join(str(error).split()), slide=self._where, remedy=remedy) from error
        with cluster:
            yield cluster


def _job_class(refused: list[str]) -> type[SLURMJob]:
    """Return dask-jobqueue's job class, extended to keep the reason of a rejection, which is otherwise only logged."""

    class Job(SLURMJob):  # type: ignore[misc]
        async def start(self) -> None:
            try:
                await super().start()
            except Exception as error:
                message = str(error).split("stderr:")[-1]  # dask-jobqueue quotes the whole script before it
                refused.append(" ".join(message.split())[:300])
                await ProcessInterface.start(self)  # else the cluster could not be closed cleanly

    return Job


def arguments(config: ClusterConfig) -> Mapping[str, Any]:
    """Return the keyword arguments of ``SLURMCluster``."""
    given = config.model_dump(exclude={"jobs", "wait_s", "options"}, exclude_none=True)
    lists = {name: list(value) for name, value in given.items() if isinstance(value, tuple)}
    # One Dask worker per job: its slides already run in separate processes, as many at a time as it has cores.
    return {"processes": 1, **given, **lists, **config.options}
