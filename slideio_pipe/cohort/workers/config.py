"""Settings of SLURM jobs that work on a cohort."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from slideio_pipe.config import Record, load_record
from slideio_pipe.presets import settings_file


class ClusterConfig(Record):
    """Resources of SLURM jobs, each a Dask worker that processes as many slides at a time as it has cores.

    Names are those of ``dask_jobqueue.SLURMCluster``, except ``jobs``, ``wait_s`` and ``options``.
    """

    jobs: int = Field(
        ge=1, description="Number of jobs. Jobs that are preempted or reach their walltime are submitted again."
    )
    cores: int = Field(
        ge=1,
        description="Cores of a job, and slides at a time in it: each is decoded by one thread of its own process.",
    )
    memory: str = Field(description='Memory of a job, such as "16GB". A slide takes 0.3 to 0.6 GB.')
    walltime: str | None = Field(
        default=None, description='Time limit of a job, "12:00:00", not of the run. null: that of the partition.'
    )
    queue: str | None = Field(default=None, description="Partition. null: SLURM's default.")
    account: str | None = Field(default=None, description="Account that is charged. null: SLURM's default.")
    job_name: str | None = Field(default=None, description="Name of the jobs. null: dask-worker.")
    job_extra_directives: tuple[str, ...] = Field(
        default=(), description='Further directives of sbatch, without #SBATCH, such as ["--constraint=ssd"].'
    )
    job_script_prologue: tuple[str, ...] = Field(
        default=(), description='Lines of the job script before the worker, such as ["module load python/3.11"].'
    )
    log_directory: str | None = Field(default=None, description="Folder of the jobs' output. null: the current folder.")
    local_directory: str | None = Field(
        default=None,
        description="Folder of the workers' own files: the node's disk, if it has one. null: Dask's choice.",
    )
    interface: str | None = Field(
        default=None, description="Network between the jobs and this machine, such as ib0. null: Dask's choice."
    )
    python: str | None = Field(
        default=None, description="Python interpreter of the jobs. null: the one of this command."
    )
    wait_s: float | None = Field(
        default=None, gt=0, description="Seconds without a running job after which the run ends. null: no limit."
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of dask_jobqueue.SLURMCluster, passed on unchanged."
    )


def load_cluster_config(path: str | Path) -> ClusterConfig:
    """Read SLURM settings from YAML; unknown keys are refused, those of ``options`` are passed on.

    Raise ConfigError if the file is missing, is not a YAML mapping, or has unknown keys or impossible values.
    """
    return load_record(ClusterConfig, settings_file(path, "cluster"), "see slideio-pipe config show slurm")
