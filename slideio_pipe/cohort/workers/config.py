"""Settings of SLURM jobs that work on a cohort."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from slideio_pipe.config import Record, load_record


class ClusterConfig(Record):
    """What is asked of SLURM: jobs, each a Dask worker that does as many slides at a time as it has cores.

    The names are those of ``dask_jobqueue.SLURMCluster``, but for ``jobs``, ``wait_s`` and ``options``.
    """

    jobs: int = Field(ge=1)
    cores: int = Field(ge=1)  # of a job, and slides at a time; each is decoded by one thread
    memory: str  # of a job, "16GB"
    walltime: str | None = None  # of a job, "12:00:00"; jobs that are over are submitted again
    queue: str | None = None  # partition
    account: str | None = None
    job_name: str | None = None
    job_extra_directives: tuple[str, ...] = ()  # "--constraint=ssd", without #SBATCH
    job_script_prologue: tuple[str, ...] = ()  # lines before the worker: module load …
    log_directory: str | None = None  # of what the jobs print
    local_directory: str | None = None  # where workers put their own files
    interface: str | None = None  # network: ib0
    python: str | None = None  # of the jobs; null: this one
    wait_s: float | None = Field(default=None, gt=0)  # give up after so long without a job running; null: never
    options: dict[str, Any] = {}  # noqa: RUF012 - copied by pydantic; whatever else SLURMCluster takes, as it is


def load_cluster_config(path: str | Path) -> ClusterConfig:
    """Read from YAML what is asked of SLURM; unknown keys are refused, those of ``options`` passed on.

    Raises
    ------
    ConfigError
        The file is missing, is no YAML mapping, or has unknown keys or impossible values.
    """
    return load_record(ClusterConfig, path, "see configs/slurm.yaml")
