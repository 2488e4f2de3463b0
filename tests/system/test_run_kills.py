"""Exports of cohorts, killed and interrupted at random moments: no traceback, and the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cohort_runs import children, exporting, slides, tree
from made_slides import made_slide
from paths import ROOT


@pytest.mark.parametrize("after_s", [0.0, 0.6, 1.2])
def test_ctrl_c_prints_one_line(tmp_path: Path, after_s: float) -> None:
    """It reaches the workers, too, also while they start, without a traceback of theirs."""
    slides(tmp_path, **{f"{k}.svs": "no slide" for k in range(20_000)})
    process = subprocess.Popen(
        exporting(tmp_path, tmp_path / "out"), cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "out").exists():  # before that, the interpreter is still loading the command
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(after_s)
    os.killpg(process.pid, signal.SIGINT)
    _, reported = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in reported


@pytest.mark.parametrize("victim", ["run", "group", "worker"])
def test_an_export_killed_at_random_moments_writes_the_same_bytes(tmp_path: Path, victim: str) -> None:
    """Kill -9 of the run, of its process group, or of a worker, then resumed."""
    (tmp_path / "slides").mkdir()
    for k in range(3):
        made_slide(tmp_path / "slides" / f"s{k}.svs", size=(1024, 768), seed=k)
    subprocess.run(exporting(tmp_path / "slides", tmp_path / "whole"), cwd=ROOT, check=True, capture_output=True)
    expected, out, rng = tree(tmp_path / "whole"), tmp_path / "out", random.Random(victim)
    for _ in range(3):
        process = subprocess.Popen(
            exporting(tmp_path / "slides", out),
            cwd=ROOT,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(rng.uniform(0.8, 3.0))
        if victim == "worker":
            for child in children(process.pid)[-1:]:
                os.kill(child, signal.SIGKILL)
        elif process.poll() is None:
            (os.killpg if victim == "group" else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
        found = tree(out) if out.exists() else {}
        assert found.items() <= expected.items()  # no incomplete bag has a final name
    for _ in range(20):  # a remaining worker keeps its lock until it ends
        done = subprocess.run(exporting(tmp_path / "slides", out), cwd=ROOT, capture_output=True, text=True)
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stdout + done.stderr
    assert tree(out) == expected
    assert not list(out.glob("*.partial"))
    assert not list(out.glob("*.lock"))
