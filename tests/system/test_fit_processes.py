"""Several processes of one training on the CPU (gloo): none waits for a process without work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from paths import ROOT
from tiny_training import quick, slides, study

pytest.importorskip("lightning_fabric")
SECONDS = 240  # a training of two epochs takes ten; a hanging one is killed


def train(cohort: Path, config: dict[str, Any], out: Path, *options: str) -> tuple[int, str, str]:
    """Run the command on two processes; return exit code and output, or fail at a time limit."""
    config["fit"] |= {"devices": 2, "accelerator": "cpu"}
    settings = cohort.with_name("config.yaml")
    settings.write_text(yaml.safe_dump(config))
    script = cohort.with_name("command.py")  # the second process runs it again
    script.write_text("from slideio_pipe.commands.app import app\n\napp()\n")
    called = [sys.executable, str(script), "train", str(settings), "--cohort", str(cohort), "--out", str(out), *options]
    known = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        called, env=known, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        pytest.fail(f"the training hangs; in its folder: {sorted(path.name for path in out.iterdir())}")
    return process.returncode, output, errors


@pytest.mark.parametrize("alone", ["val", "test"])
def test_one_evaluation_slide_for_two_processes(alone: str, tmp_path: Path) -> None:
    """The process without a slide waits for nothing; only one of the two prints."""
    split = ["train"] * 8 + [alone]
    cohort = study(tmp_path, {"label": [k % 2 for k in range(9)], "split": split})
    config = quick(monitor="loss" if alone == "val" else "none", validation=0)
    code, output, errors = train(cohort, config, tmp_path / "run")
    assert code == 0, errors
    assert output.count("2 epochs; kept") == 1
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["slides"] == {alone: 1}


def test_one_evaluation_slide_of_pixels_for_two_processes(tmp_path: Path) -> None:
    """With a trained encoder: its buffers are not exchanged either. JSON is one document."""
    cohort = slides(tmp_path, 5)
    lines = cohort.read_text().splitlines()
    split = ["split", "train", "train", "train", "train", "val"]
    cohort.write_text("\n".join(f"{line},{part}" for line, part in zip(lines, split, strict=True)) + "\n")
    config = quick(monitor="loss", epochs=1) | {
        "view": {"mpp": 1.0}, "grid": {"tile_size": 32, "min_tissue": 0.3},
        "encoder": {"source": "small", "chunk_size": 16},
    }  # fmt: skip
    code, output, errors = train(cohort, config, tmp_path / "run", "--json")
    assert code == 0, errors
    assert json.loads(output)["slides"] == {"val": 1}
