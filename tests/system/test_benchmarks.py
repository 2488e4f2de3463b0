"""Every benchmark runs with `--quick`, and fails if its result is wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import BENCHMARKS, ROOT

PARTS = {"benchmark", "mil_costs", "mil_learning", "mil_musk", "mil_passes", "mil_resume", "mil_stain", "tile_peers"}
NOT_IN_THE_SUITE = {
    "gil": "needs py-spy and the right to look at another process",
    "mil end-to-end": "25 CPU-seconds: it trains until it looks at the lesions",
    "mil resume": "45 CPU-seconds: four trainings; tests/mil/test_fit.py kills one",
    "mil stain": "60 CPU-seconds: two trainings, three cohorts",
    "mil time": "its result is a time, which other processes change",
    "peers": "17 CPU-seconds; tests/commands/test_bench.py compares readers",
}
RUNS = [
    "augment",
    "augment_device",
    "bag_transform --case slide",
    "bag_transform --case stored",
    "bag_transform --case reduced",
    "cohort schedule",
    "cohort export",
    "cohort page",
    "draws",
    "explain_costs",
    "features",
    "gil --saturation",
    "gpu --device cpu",
    "intervals",
    "join_ids",
    "kills",
    "loader",
    "memory",
    "patients",
    "quality",
    "mil gradient",
    "mil memory",
    "mil musk",
    "save_view",
    "settings",
    "store",
    "store_jpeg",
    "stream_colours",
    "versions",
    "viewer",
    "views",
    "context",
]


def start(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a benchmark quickly, in an empty folder."""
    script, *arguments = command.split()
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{script}.py"), *arguments, "--quick"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.parametrize("command", RUNS)
def test_each_benchmark_runs_and_checks_its_result(command: str, tmp_path: Path) -> None:
    """In seconds: pixels, counts and bounds."""
    done = start(command, tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert done.stdout.strip()


def test_every_benchmark_is_run() -> None:
    """Each script and each case of `mil.py` is run, is a part of one, or is listed as too long."""
    named = [command.split() for command in [*RUNS, *NOT_IN_THE_SUITE]]
    scripts = {path.stem for path in BENCHMARKS.glob("*.py")}
    assert scripts == {script for script, *_ in named} | PARTS
    cases = re.search(r"^CASES = \((.*)\)$", (BENCHMARKS / "mil.py").read_text(), re.MULTILINE)
    assert cases is not None
    assert set(re.findall(r'"(.*?)"', cases[1])) == {case[0] for script, *case in named if script == "mil"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")
def test_the_gpu_benchmark_without_a_gpu_has_its_own_exit_code(tmp_path: Path) -> None:
    """With a message."""
    done = start("gpu", tmp_path)
    assert done.returncode == 3
    assert "no CUDA device" in done.stderr


def test_a_wrong_result_ends_with_an_error(tmp_path: Path) -> None:
    """The check of all benchmarks: exit code 1 and the fault."""
    code = "from benchmark import require; require(True, 'a'); require(False, 'other pixels')"
    path = os.environ | {"PYTHONPATH": str(BENCHMARKS)}
    done = subprocess.run([sys.executable, "-c", code], env=path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (1, "WRONG RESULT: other pixels")
