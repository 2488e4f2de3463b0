"""Number of cores that a process may use: affinity, and quotas of cgroups as the kernel writes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from slideio_pipe import cores
from slideio_pipe.cores import decoding_threads, usable_cores

MANY = set(range(64))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 cores, all of them allowed."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: MANY, raising=False)


def usable(folder: Path, own: str, files: dict[str, str]) -> int:
    """Return the number of cores if the kernel has these files."""
    for name, text in files.items():
        (folder / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup" / name).write_text(text)
    (folder / "own").write_text(own)
    return usable_cores(folder / "cgroup", folder / "own")


V1 = "cpu,cpuacct/docker/ab"


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),  # a container, version 2
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),  # one and a half
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/system.slice/job.service\n", {"system.slice/job.service/cpu.max": "300000 100000\n"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "500000 100000\n"}, 5),  # the quota above counts
        ("0::/a/b\n", {"a/b/cpu.max": "900000 100000\n", "a/cpu.max": "500000 100000\n"}, 5),
        ("0::/elsewhere\n", {"cpu.max": "400000 100000\n"}, 4),  # a group that is not mounted here
        ("0::/a\n", {"b/cpu.max": "100000 100000\n"}, 64),  # of another group
        ("4:cpu,cpuacct:/docker/ab\n", {f"{V1}/cpu.cfs_quota_us": "250000\n", f"{V1}/cpu.cfs_period_us": "50000\n"}, 5),
        ("4:cpu,cpuacct:/docker/ab\n", {f"{V1}/cpu.cfs_quota_us": "-1\n", f"{V1}/cpu.cfs_period_us": "100000\n"}, 64),
        # version 1 in a container: its group is the root of what is mounted
        ("2:cpu:/docker/ab\n0::/\n", {"cpu/cpu.cfs_quota_us": "700000", "cpu/cpu.cfs_period_us": "100000"}, 7),
        ("1:name=systemd:/a:b\n", {}, 64),  # a colon in a name
        ("0::/\n", {"cpu.max": "\n"}, 64),  # nothing that could be read
    ],
)
def test_the_quota_is_the_smallest_of_all_cgroups(
    own: str, files: dict[str, str], expected: int, tmp_path: Path
) -> None:
    """From the process's group to the root, rounded up."""
    assert usable(tmp_path, own, files) == expected


def test_the_smaller_of_affinity_and_quota_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In both orders."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 8}, raising=False)
    assert usable(tmp_path, "0::/\n", {"cpu.max": "800000 100000"}) == 3
    assert usable(tmp_path, "0::/\n", {"cpu.max": "200000 100000"}) == 2


def test_without_affinity_and_quota_all_cores_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS and Windows."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores(tmp_path, tmp_path / "none") == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores(tmp_path, tmp_path / "none") == 1


@pytest.mark.system
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_a_process_of_one_core_counts_one() -> None:
    """A process pinned to one core; decoding has one thread by default."""
    code = (
        "import os; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1]);"
        "from slideio_pipe.cores import decoding_threads, usable_cores;"
        "from slideio_pipe.streaming.arguments import default_threads;"
        "print(usable_cores(), decoding_threads(), default_threads())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.split() == ["1", "1", "1"]


@pytest.mark.parametrize(("usable", "workers", "threads"), [(64, 1, 8), (12, 4, 3), (4, 8, 1), (2, 0, 2), (1, 1, 1)])
def test_cores_are_divided_among_workers(
    usable: int, workers: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 threads at most and 1 at least for each process."""
    monkeypatch.setattr(cores, "usable_cores", lambda: usable)
    assert decoding_threads(workers) == threads


def test_no_other_module_counts_cores() -> None:
    """It would start a thread for each core of the machine, whatever the quota."""
    root = Path(cores.__file__).parent
    asks = [path.name for path in root.rglob("*.py") if "cpu_count(" in path.read_text(encoding="utf-8")]
    assert asks == ["cores.py"]
