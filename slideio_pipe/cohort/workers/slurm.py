"""A Dask cluster of SLURM jobs, for as long as a run takes."""

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

# dask-jobqueue takes Ctrl-C for itself when it is imported: it would end the process without the run's last words.
_interrupt = signal.getsignal(signal.SIGINT)
require("dask_jobqueue.slurm", "cluster")
signal.signal(signal.SIGINT, _interrupt)

from dask_jobqueue.slurm import SLURMCluster, SLURMJob  # noqa: E402

# How often jobs that ended (their walltime was over, their node was wanted) are asked for anew.
_RENEW_S = 30.0


class SlurmJobs:
    """The jobs that a configuration asks for.

    Parameters
    ----------
    config : ClusterConfig
        What a job has, and how many there are.
    where : str
        The file it was read from, for messages.
    """

    remedy = "look at squeue and the logs of the jobs (log_directory), then run again: what is done stays done"

    def __init__(self, config: ClusterConfig, where: str) -> None:
        self.wait_s = config.wait_s
        self._config, self._where = config, where
        self._refused: list[str] = []
        self._cluster: SLURMCluster | None = None
        self._renewed = 0.0

    @contextmanager
    def connected(self) -> Iterator[Client]:
        """Submit the jobs, and cancel them at the end.

        Raises
        ------
        WorkerError
            SLURM is not here.
        ConfigError
            dask-jobqueue refuses an argument.
        """
        if shutil.which(SLURMJob.submit_command) is None:
            remedy = "run on a machine of the SLURM cluster, or pass the address of a Dask scheduler"
            raise WorkerError("there is no sbatch here", slide=self._where, remedy=remedy)
        with self._started() as cluster, Client(cluster, set_as_default=False) as client:
            self._cluster = cluster
            cluster.scale(jobs=self._config.jobs)
            self._renewed = time.monotonic()
            yield client

    def look_after(self) -> None:
        """Submit jobs that ended again; called every second or so.

        Raises
        ------
        WorkerError
            SLURM refuses them.
        """
        if self._refused:
            remedy = "correct the file; sbatch was asked with what it says"
            raise WorkerError(f"SLURM refuses the jobs ({self._refused[0]})", slide=self._where, remedy=remedy)
        if self._cluster is not None and time.monotonic() > self._renewed + _RENEW_S:
            self._cluster.scale(jobs=self._config.jobs)
            self._renewed = time.monotonic()

    def job_script(self) -> str:
        """Return what a job is submitted as."""
        with self._started() as cluster:
            script: str = cluster.job_script()
        return script

    @contextmanager
    def _started(self) -> Iterator[SLURMCluster]:
        """Start a scheduler in this process, without a job yet."""
        try:
            cluster = SLURMCluster(job_cls=_job_class(self._refused), **arguments(self._config))
        except (TypeError, ValueError) as error:
            remedy = "see configs/slurm.yaml and the arguments of dask_jobqueue.SLURMCluster"
            raise ConfigError(" ".join(str(error).split()), slide=self._where, remedy=remedy) from error
        with cluster:
            yield cluster


def _job_class(refused: list[str]) -> type[SLURMJob]:
    """Return dask-jobqueue's job, which also says why it was not accepted: otherwise that is only logged."""

    class Job(SLURMJob):  # type: ignore[misc]
        async def start(self) -> None:
            try:
                await super().start()
            except Exception as error:
                said = str(error).split("stderr:")[-1]  # dask-jobqueue quotes the whole script before it
                refused.append(" ".join(said.split())[:300])
                await ProcessInterface.start(self)  # else the cluster could not be closed in order

    return Job


def arguments(config: ClusterConfig) -> Mapping[str, Any]:
    """Return the keyword arguments of ``SLURMCluster``."""
    given = config.model_dump(exclude={"jobs", "wait_s", "options"}, exclude_none=True)
    lists = {name: list(value) for name, value in given.items() if isinstance(value, tuple)}
    # One Dask worker a job: its slides are processes of their own already, as many at a time as it has cores.
    return {"processes": 1, **given, **lists, **config.options}
