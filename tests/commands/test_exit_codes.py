"""Every exit code of the table, by a real run of the program."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from made_slides import made_slide
from paths import ROOT
from pyramids import write_pyramid

from slideio_pipe.commands.exit_codes import ExitCode

PROGRAM = [sys.executable, "-m", "slideio_pipe"]


def ended(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([*PROGRAM, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True)


def test_the_table_is_in_the_help() -> None:
    """Each code with its meaning."""
    text = " ".join(run("--help", columns=200).stdout.split())
    assert all(f"{code.value} {code.meaning}" in text for code in ExitCode)


@pytest.mark.system
def test_done_is_0(tmp_path: Path) -> None:
    """Result on standard output, nothing on standard error."""
    done = ended("info", made_slide(tmp_path / "a.svs", size=(600, 400)).path)
    assert (done.returncode, done.stderr) == (ExitCode.DONE, "")
    assert "600" in done.stdout


@pytest.mark.system
def test_some_slides_failed_is_1(tmp_path: Path) -> None:
    """The others are done."""
    good = made_slide(tmp_path / "good.svs", size=(900, 700), seed=3, pieces=1).path
    (tmp_path / "bad.svs").write_bytes(b"no slide")
    done = ended("export", good, tmp_path / "bad.svs", "--out", tmp_path / "bags", "--tile-size", 64, "--mpp", "native")
    assert done.returncode == ExitCode.SOME_FAILED, done.stderr
    assert (tmp_path / "bags" / "good.bag.zarr").is_dir()
    assert "bad.svs" in done.stdout


@pytest.mark.system
@pytest.mark.parametrize(
    "arguments", [("info", "missing.svs"), ("info",), ("exprot",), ("split", "a.csv", "--folds", "two"), ("--verbos",)]
)
def test_an_error_is_2(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """Of ours or in the arguments; nothing on standard output, no traceback."""
    done = ended(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (ExitCode.ERROR, "")
    assert done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.system
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_interrupted_is_130(tmp_path: Path) -> None:
    """In the middle of an export."""
    noise = np.random.default_rng(0).integers(0, 256, (6000, 6000, 3), dtype=np.uint8)
    slide = write_pyramid(tmp_path / "noise.tif", noise, levels=(1,), compression=None)
    grid = ("--tissue", "none", "--mpp", "native", "--tile-size", "128", "--threads", "1")
    command = [*PROGRAM, "export", str(slide), "--out", str(tmp_path / "bags"), *grid]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not (tmp_path / "bags" / "noise.bag.zarr.partial").exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == ExitCode.INTERRUPTED, error


def test_no_command_has_a_number_of_its_own() -> None:
    """All of them use the table."""
    for file in (ROOT / "slideio_pipe" / "commands").rglob("*.py"):
        assert not re.search(r"Exit\(\d|SystemExit\(\d", file.read_text(encoding="utf-8")), file.name
