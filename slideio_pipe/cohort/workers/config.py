"""Settings of SLURM jobs that work on a cohort."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from slideio_pipe.config import Record, load_record


class ClusterConfig(Record):
    """Resources of SLURM jobs, each a Dask worker that processes as many slides at a time as it has cores.

    Names are those of ``dask_jobqueue.SLURMCluster``, except ``jobs``, ``wait_s`` and ``options``.
    """

    jobs: int = Field(ge=1)
    cores: int = Field(ge=1)  # of a job, and slides at a time; each is decoded by one thread
    memory: str  # of a job, "16GB"
    walltime: str | None = None  # of a job, "12:00:00"; expired jobs are submitted again
    queue: str | None = None  # partition
    account: str | None = None
    job_name: str | None = None
    job_extra_directives: tuple[str, ...] = ()  # "--constraint=ssd", without #SBATCH
    job_script_prologue: tuple[str, ...] = ()  # lines before the worker: module load …
    log_directory: str | None = None  # folder of the jobs' output
    local_directory: str | None = None  # folder of the workers' own files
    interface: str | None = None  # network: ib0
    python: str | None = None  # interpreter of the jobs; null: this one
    wait_s: float | None = Field(default=None, gt=0)  # maximum time without a running job; null: unlimited
    options: dict[str, Any] = {}  # noqa: RUF012 - copied by pydantic; other arguments of SLURMCluster


def load_cluster_config(path: str | Path) -> ClusterConfig:
    """Read SLURM settings from YAML; unknown keys are refused, those of ``options`` are passed on.

    Raise ConfigError if the file is missing, is not a YAML mapping, or has unknown keys or impossible values.
    """
    return load_record(ClusterConfig, path, "see configs/slurm.yaml")
