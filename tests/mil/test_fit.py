"""A cohort becomes a trained model, also after interruptions; bad input is refused before the training."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_training import WIDTH, cohort, settings
from paths import ROOT, SUPPORT

from slideio_pipe.errors import ConfigError, SkippedWarning
from slideio_pipe.mil.checkpoint import read_checkpoint
from slideio_pipe.mil.config import load_train_config
from slideio_pipe.mil.feature_files import feature_cohort
from slideio_pipe.mil.fit import fit
from slideio_pipe.mil.results import Fitted

pytest.importorskip("lightning_fabric")
pytestmark = pytest.mark.usefixtures("without_plots")


def weights(fitted: Fitted) -> dict[str, torch.Tensor]:
    """Return the weights of the last epoch."""
    found: dict[str, torch.Tensor] = read_checkpoint(fitted.folder / "last.ckpt")["model"]
    return found


@pytest.mark.learning
def test_a_training_learns_and_writes_its_results(tmp_path: Path) -> None:
    """Folds by patient: every slide is tested once, by a model that was not trained on it."""
    fitted = fit(cohort(tmp_path), settings(folds=3, epochs=12), tmp_path / "run", progress=False)
    auroc = fitted.metrics["test"]["auroc"]
    assert auroc.value > 0.9
    assert auroc.low <= auroc.value <= auroc.high
    with fitted.predictions.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    assert sorted(row["slide"] for row in rows) == sorted(f"s{k}.pt" for k in range(24))
    assert all(abs(float(row["probability_0"]) + float(row["probability_1"]) - 1) < 1e-9 for row in rows)
    assert [path.parent.name for path in fitted.checkpoints] == ["fold-0", "fold-1", "fold-2"]
    assert (
        json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]["test"]["auroc"]["value"] == auroc.value
    )
    for fold in range(3):
        folder = tmp_path / "run" / f"fold-{fold}"
        assert len((folder / "history.csv").read_text().splitlines()) == 13
        assert list((folder / "tensorboard").glob("events*"))


def test_a_stopped_training_has_history_and_settings(tmp_path: Path) -> None:
    """After two epochs; resumed, it equals the undisturbed training."""
    table, config = cohort(tmp_path / "features"), settings(epochs=4)

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(table, config, tmp_path / "run", progress=stop)
    known = (tmp_path / "run" / "history.csv").read_text().splitlines()
    assert len(known) == 3
    assert load_train_config(tmp_path / "run" / "config.yaml").fit.epochs == 4
    whole = fit(table, config, tmp_path / "whole", progress=False)
    fit(table, config, tmp_path / "run", progress=False)

    def losses(folder: Path) -> list[str]:
        with (folder / "history.csv").open(newline="") as file:
            return [row["loss"] for row in csv.DictReader(file)]

    assert losses(tmp_path / "run") == losses(whole.folder)
    assert (tmp_path / "run" / "history.csv").read_text().splitlines()[:3] == known


def test_the_written_settings_give_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """config.yaml has absolute paths of cohort and features."""
    table = cohort(tmp_path / "features").rename(tmp_path / "cohort.csv")
    monkeypatch.chdir(tmp_path)
    config = settings(epochs=2) | {"encoder": {"folder": "features"}}
    first = fit(table.name, config, "run", progress=False)
    monkeypatch.chdir(tmp_path.parent)
    again = fit(None, tmp_path / "run" / "config.yaml", tmp_path / "again", progress=False)
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(first).items())
    table.write_text(table.read_text().replace("s3.pt,1", "s3.pt,0").replace("s4.pt,0", "s4.pt,1"))
    with pytest.raises(ConfigError, match=r"another training: 2 slides are others.*: s3.pt, s4.pt; pass overwrite"):
        fit(table, config | {"encoder": {"folder": str(tmp_path / "features")}}, tmp_path / "run", progress=False)


def test_slides_without_features_are_refused(tmp_path: Path) -> None:
    """In one message with a remedy; nothing is written."""
    for k in range(4):
        (tmp_path / f"s{k}.svs").write_bytes(b"a slide")
    (tmp_path / "cohort.csv").write_text("slide,label\n" + "".join(f"s{k}.svs,{k % 2}\n" for k in range(4)))
    with pytest.raises(ConfigError, match="lists slides, and their features are not given"):
        fit(tmp_path / "cohort.csv", settings(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_test_slides_without_a_label_are_predicted_only(tmp_path: Path) -> None:
    """With a warning; with one class there is accuracy only."""
    table = cohort(tmp_path)
    lines = table.read_text().splitlines()
    known = [line.split(",") for line in lines[1:]]
    split = ["test" if row[0] in ("s0.pt", "s2.pt", "s4.pt") else "train" for row in known]
    labels = ["" if row[0] == "s2.pt" else row[1] for row in known]
    rows = [f"{row[0]},{label},{part}" for row, label, part in zip(known, labels, split, strict=True)]
    table.write_text("\n".join(["slide,label,split", *rows]))
    with pytest.warns(SkippedWarning, match="1 test slides have no valid label.* not measured: s2.pt"):
        fitted = fit(table, settings(epochs=1), tmp_path / "run", progress=False)
    assert fitted.slides["test"] == 2
    found = fitted.metrics["test"]
    assert math.isnan(found["auroc"].value)
    assert 0 <= found["accuracy"].value <= 1
    assert sum(",test," in line for line in fitted.predictions.read_text().splitlines()) == 3


@pytest.mark.parametrize("monitor", ["metric", "loss", "none"])
def test_which_epoch_is_kept(monitor: str, tmp_path: Path) -> None:
    """The best by metric and then loss, the best by loss, or the last."""
    config = settings(epochs=8, lr=0.1, monitor=monitor, validation=0.3)
    fitted = fit(cohort(tmp_path), config, tmp_path / "run", progress=False)
    losses = [row["val_loss"] for row in fitted.history[0]]
    metrics = [row["val_auroc"] for row in fitted.history[0]]
    best = {
        "metric": max(range(8), key=lambda epoch: (metrics[epoch], -losses[epoch])),
        "loss": int(np.argmin(losses)),
        "none": 7,
    }
    assert best["loss"] < 7  # else a difference would not be visible
    assert fitted.kept == (best[monitor],)


@pytest.mark.learning
@pytest.mark.parametrize(
    ("task", "leading", "least"),
    [
        ({"kind": "classification", "label": "grade", "classes": ["low", "mid", "high"]}, "auroc", 0.6),
        ({"kind": "regression", "label": "size"}, "r2", 0.3),
        ({"kind": "survival"}, "c_index", 0.6),
    ],
)
def test_tasks_have_their_own_loss_and_metrics(
    task: dict[str, Any], leading: str, least: float, tmp_path: Path
) -> None:
    """Several classes, a number, a time to an event."""
    path = cohort(tmp_path, 32, columns=("grade", "size", "time", "event"))
    config = settings(epochs=25, bags_per_step=8, monitor="loss", validation=0.3) | {"task": task}
    fitted = fit(path, config, tmp_path / "run", progress=False)
    metrics = fitted.metrics["val"]
    assert next(iter(metrics)) == leading
    assert metrics[leading].value > least


def test_a_finished_training_is_not_trained_again(tmp_path: Path) -> None:
    """Its files do not change."""
    path = cohort(tmp_path)
    first = fit(path, settings(), tmp_path / "run", progress=False)
    before = weights(first)
    again = fit(path, settings(), tmp_path / "run", progress=False)
    assert all(torch.equal(before[name], value) for name, value in weights(again).items())
    assert again.history == first.history


def test_other_settings_are_refused_and_overwrite_starts_again(tmp_path: Path) -> None:
    """A checkpoint belongs to one cohort and one configuration."""
    path = cohort(tmp_path)
    fit(path, settings(), tmp_path / "run", progress=False)
    with pytest.raises(ConfigError, match=r"another training: config.fit.lr was 0.005, is 0.01.*overwrite=True"):
        fit(path, settings(lr=0.01), tmp_path / "run", progress=False)
    assert len(fit(path, settings(lr=0.01), tmp_path / "run", overwrite=True, progress=False).history[0]) == 6


_TRAIN = """
import sys, time
sys.path[:0] = [{root!r}, {support!r}]
import torch
torch.set_num_threads(1)
from slideio_pipe.mil import checkpoint
from slideio_pipe.mil.fit import fit
from feature_training import settings
if {slow}:
    step = torch.optim.AdamW.step
    torch.optim.AdamW.step = lambda self, *a, **k: (time.sleep(0.05), step(self, *a, **k))[1]
config = settings(save_every=2)
config["model"]["dropout"] = 0.5
fit({cohort!r}, config, {out!r}, progress=False)
"""


def run(path: Path, out: Path, *, slow: bool = False) -> subprocess.Popen[bytes]:
    """Start a training with dropout, in a process of its own."""
    code = _TRAIN.format(root=str(ROOT), support=str(SUPPORT), cohort=str(path), out=str(out), slow=slow)
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], start_new_session=True)


@pytest.mark.system
def test_a_killed_and_resumed_training_has_the_same_weights(tmp_path: Path) -> None:
    """Bit for bit, killed within epochs; an incomplete checkpoint is not read."""
    path = cohort(tmp_path)
    assert run(path, tmp_path / "whole").wait() == 0
    out = tmp_path / "killed"
    for steps in (7, 61):
        process = run(path, out, slow=True)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if (out / "last.ckpt").exists() and read_checkpoint(out / "last.ckpt")["progress"]["step"] >= steps:
                break
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        state = read_checkpoint(out / "last.ckpt")
        assert not state["progress"]["finished"]
    assert run(path, out).wait() == 0
    whole, killed = read_checkpoint(tmp_path / "whole" / "last.ckpt"), read_checkpoint(out / "last.ckpt")
    assert all(torch.equal(whole["model"][name], value) for name, value in killed["model"].items())
    timeless = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in s["progress"]["history"]] for s in (whole, killed)
    ]
    assert timeless[0] == timeless[1]


# -- bad input ---------------------------------------------------------------------------------------------------------


def replaced(folder: Path, number: int, tiles: torch.Tensor) -> None:
    torch.save(tiles, folder / f"s{number}.pt")


def test_one_error_lists_all_bad_features(tmp_path: Path) -> None:
    """NaN, no tile, another width; before the first epoch."""
    path = cohort(tmp_path)
    replaced(tmp_path, 3, torch.full((4, WIDTH), torch.nan))
    replaced(tmp_path, 4, torch.zeros(0, WIDTH))
    replaced(tmp_path, 5, torch.zeros(4, WIDTH + 1))
    with pytest.raises(ConfigError) as caught:
        fit(path, settings(validation=0), tmp_path / "run", progress=False)
    assert "s3.pt: 4 of 4 tiles have features that are no numbers" in str(caught.value)
    assert "s4.pt: has no tile" in str(caught.value)
    assert "features of several widths: 16 (s0.pt), 17 (s5.pt)" in str(caught.value)
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_a_bag_of_one_tile_is_trained(tmp_path: Path) -> None:
    """Its attention is 1."""
    path = cohort(tmp_path)
    replaced(tmp_path, 3, torch.ones(1, WIDTH))
    assert fit(path, settings(epochs=1), tmp_path / "run", progress=False).history[0]


@pytest.mark.parametrize(
    ("change", "fitting", "message"),
    [
        ("s3.pt,", {}, "1 of 24 training slides have no label: s3.pt"),
        ("one class", {}, "classification needs two classes at least: all are '0'"),
        ("splits", {}, "all 4 validation slides have one label"),
        ("", {"folds": 30}, "24 patients for 30 parts"),
    ],
)
def test_bad_cohorts_are_refused(change: str, fitting: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Missing labels, one class, too few patients: before anything is computed."""
    path = cohort(tmp_path)
    lines = path.read_text().splitlines()
    if change == "one class":
        lines = [lines[0], *(line.replace(",1", ",0") for line in lines[1:])]
    elif change == "splits":
        validate = {f"s{k}.pt" for k in (0, 2, 4, 6)}
        lines = [f"{lines[0]},split", *(f"{x},{'val' if x.split(',')[0] in validate else 'train'}" for x in lines[1:])]
    else:
        lines = [change if change and line.startswith(change) else line for line in lines]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ConfigError, match=message):
        fit(
            path,
            settings(validation=0, **fitting) if not fitting else settings(**fitting),
            tmp_path / "run",
            progress=False,
        )


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    """At once, with a remedy."""
    path = cohort(tmp_path)
    with pytest.raises(ConfigError, match=r"the loss is (nan|inf) in step [0-9]+ of epoch 0; lower fit.lr"):
        fit(path, settings(lr=1e30, clip=None), tmp_path / "run", progress=False)


def test_features_are_found_by_the_names_of_slides(tmp_path: Path) -> None:
    """A table of slides at other paths, as CLAM has it, and a folder of features."""
    cohort(tmp_path / "features")
    table = tmp_path / "clam.csv"
    rows = "".join(f"p{k},s{k},{k % 2}\n" for k in range(24))
    table.write_text(f"case_id,slide_id,label\n{rows}")
    config = settings(epochs=1) | {"encoder": {"folder": str(tmp_path / "features")}}
    fitted = fit(table, config, tmp_path / "run", progress=False)
    with fitted.predictions.open(newline="") as file:
        assert {row["patient"][0] for row in csv.DictReader(file)} == {"p"}
    (tmp_path / "features" / "s7.pt").unlink()
    with pytest.raises(ConfigError, match="1 slides have no features there: s7"):
        fit(table, config, tmp_path / "other", progress=False)


def test_windows_paths_have_features(tmp_path: Path) -> None:
    """A table written on Windows names the same slides."""
    cohort(tmp_path / "features", 4)
    rows = "".join(f"C:\\data\\s{k}.svs,{k % 2}\n" for k in range(4))
    (tmp_path / "study.csv").write_text(f"slide,label\n{rows}")
    found = feature_cohort(tmp_path / "study.csv", tmp_path / "features")
    assert [(slide.name, slide.source) for slide in found] == [
        (f"s{k}.svs", tmp_path / "features" / f"s{k}.pt") for k in range(4)
    ]


@pytest.mark.parametrize("as_list", [False, True])
def test_two_slides_with_one_feature_file_are_refused(as_list: bool, tmp_path: Path) -> None:
    """A rescan would be tested on the features of a training slide: the error names both."""
    cohort(tmp_path / "features", 4)
    slides = ["s0.svs", "s1.svs", "s0.ndpi"]
    for name in slides:
        (tmp_path / name).touch()
    (tmp_path / "study.csv").write_text("slide,label\n" + "".join(f"{name},0\n" for name in slides))
    source = [tmp_path / name for name in slides] if as_list else tmp_path / "study.csv"
    with pytest.raises(ConfigError, match=r"one file of features: s0\.svs and s0\.ndpi \(s0\.pt\)"):
        feature_cohort(source, tmp_path / "features")
    for name in ("s0.svs", "s0.ndpi"):
        (tmp_path / "features" / f"{name}.pt").write_bytes((tmp_path / "features" / "s0.pt").read_bytes())
    assert [slide.source.name for slide in feature_cohort(source, tmp_path / "features")] == [
        "s0.svs.pt", "s1.pt", "s0.ndpi.pt",
    ]  # fmt: skip


@pytest.mark.system
def test_two_trainings_do_not_share_a_folder(tmp_path: Path) -> None:
    """The second is refused while the first runs."""
    path = cohort(tmp_path)
    process = run(path, tmp_path / "run", slow=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    from slideio_pipe.errors import OutputError

    with pytest.raises(OutputError):
        fit(path, settings(), tmp_path / "run", progress=False)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.learning
def test_folds_of_numbers_are_measured_together(tmp_path: Path) -> None:
    """Each fold is trained in units of its own slides; predictions and metrics are in those of the cohort."""
    path = cohort(tmp_path, 24, columns=("size",))
    config = settings(folds=3, epochs=30, bags_per_step=4, monitor="loss") | {
        "task": {"kind": "regression", "label": "size"}
    }
    fitted = fit(path, config, tmp_path / "run", progress=False)
    with fitted.predictions.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    errors = [abs(float(row["predicted"]) - float(row["label"])) for row in rows]
    assert fitted.metrics["test"]["mae"].value == pytest.approx(sum(errors) / len(errors), rel=1e-4)
