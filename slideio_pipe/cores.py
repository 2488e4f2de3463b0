"""The cores that this process may use, and the threads that decode on them.

loky's ``cpu_count`` answers the same, but reads an environment variable, and only the root of the cgroup file system:
the quota of a systemd service or of a container without a namespace of its own is further down.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

MAX_THREADS = 8  # that decode in a process, by default


def usable_cores(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return how many cores this process may use, at least 1.

    The least of the machine's cores, of the affinity (of a SLURM job, of taskset) and of the CPU quotas of the cgroups
    (of a container or service), versions 1 and 2; a quota of 1.5 cores counts as 2.

    Parameters
    ----------
    cgroups : Path
        Where the cgroups are mounted.
    own : Path
        The file that lists the cgroups of this process.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *map(math.ceil, _quotas(cgroups, own))]))


def decoding_threads(workers: int = 1) -> int:
    """Return the default number of decoding threads of each of ``workers`` processes, which share the cores: 1 to 8."""
    return max(1, min(MAX_THREADS, usable_cores() // max(1, workers)))


def _quotas(cgroups: Path, own: Path) -> Iterator[float]:
    """Yield the CPU quotas, in cores, of the groups of this process and of all groups above them."""
    try:
        groups = [line.split(":", 2)[1:] for line in own.read_text().splitlines()]
    except OSError:  # not Linux
        return
    for controllers, group in groups:
        mounted = cgroups / controllers  # version 2 has no controllers there
        folder = mounted / group.lstrip("/")
        for level in (folder, *folder.parents):
            if level.is_relative_to(mounted):  # a group that is not mounted here is the root of those that are
                yield from _quota(level)


def _quota(folder: Path) -> Iterator[float]:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((folder / name).read_text() for name in names).split()
        except (OSError, ValueError):
            continue
        if quota not in ("max", "-1"):
            yield int(quota) / int(period)
