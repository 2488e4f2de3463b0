"""Several processes of one training on the CPU (gloo): none waits for a process without work; patients as in one."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import patient_study
import pytest
import torch
import yaml
from paths import ROOT
from tiny_training import quick, slides, study

from slideio_pipe.commands.demos.patients import write_patient_cohort
from slideio_pipe.mil.checkpoint import read_checkpoint

pytest.importorskip("lightning_fabric")
SECONDS = 240  # a training of two epochs takes ten; a hanging one is killed


def train(cohort: Path, config: dict[str, Any], out: Path, *options: str, devices: int = 2) -> tuple[int, str, str]:
    """Run the command on two processes; return exit code and output, or fail at a time limit."""
    config["fit"] |= {"devices": devices, "accelerator": "cpu"}
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


SAME: dict[str, Any] = {"epochs": 2, "lr": 5e-3, "bootstrap": 0, "patience": None, "warmup": 0.0, "clip": None}


def on_features(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Eight patients to train on, three to validate and one to test: on two processes, one tests nothing."""
    cohort = patient_study.features(folder, 12)
    header, *rows = list(csv.reader(cohort.read_text().splitlines()))
    parts = ["train"] * 8 + ["val"] * 3 + ["test"]
    with cohort.open("w", newline="") as file:
        csv.writer(file).writerows([[*header, "split"], *([*row, parts[int(row[2][1:])]] for row in rows)])
    return cohort, {"unit": "patient", "model": {"embed": [8], "attention": 4, "dropout": 0.0}}


def on_pixels(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Ten patients, six of them to train on; their slides are scanned at two resolutions."""
    config = {
        "unit": "patient", "view": {"mpp": 1.0}, "grid": {"tile_size": 16, "min_tissue": 0.1},
        "tissue": {"method": "none"}, "model": {"embed": [], "attention": 4, "dropout": 0.0},
        "encoder": {"source": "small", "chunk_size": 16},
    }  # fmt: skip
    return write_patient_cohort(folder, 10, size_um=(128, 96)), config


@pytest.mark.parametrize("kind", [on_features, on_pixels])
def test_two_processes_train_and_predict_patients_as_one(kind: Any, tmp_path: Path) -> None:
    """One patient each, averaged, equals a step of two patients: weights and predictions to single precision."""
    cohort, config = kind(tmp_path / "study")
    found = []
    for devices in (1, 2):
        out = tmp_path / f"on-{devices}"
        config["fit"] = SAME | {"bags_per_step": 2 // devices, "monitor": "loss"}
        code, _, errors = train(cohort, config, out, devices=devices)
        assert code == 0, errors
        with (out / "predictions.csv").open(newline="") as file:
            rows = {row["patient"]: float(row["probability_1"]) for row in csv.DictReader(file)}
        state = read_checkpoint(out / "last.ckpt")
        found.append((rows, state["model"] | state.get("encoder", {})))
    (one, weights), (two, others) = found
    assert one == pytest.approx(two, abs=1e-4)
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=1e-3, atol=1e-5)
