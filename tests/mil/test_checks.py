"""Faults that would show after the last epoch, or never, are refused before the first, or warned of."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_training import quick, study
from typer.testing import CliRunner

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.commands.app import app
from slideio_pipe.errors import ConfigError, MissingExtraError, SkippedWarning
from slideio_pipe.mil.checkpoint import read_checkpoint
from slideio_pipe.mil.config import load_train_config
from slideio_pipe.mil.divisions import divide
from slideio_pipe.mil.fit import fit
from slideio_pipe.mil.results import Fitted

pytest.importorskip("lightning_fabric")
pytestmark = pytest.mark.usefixtures("without_plots")
LABELS = [k % 2 for k in range(24)]


def parts_of(fitted: Fitted) -> tuple[int, ...]:
    """Return the numbers of slides that train, validate and test."""
    return tuple(map(len, read_checkpoint(fitted.checkpoints[0])["about"]["slides"]))


# -- splits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", [("train", "valid", "test"), ("Training", "Val", "testing"), ("TRAIN", "validation", "Test")]
)
def test_splits_have_their_usual_names(names: Sequence[str], tmp_path: Path) -> None:
    """Every slide is used, without a warning."""
    split = [names[0]] * 12 + [names[1]] * 6 + [names[2]] * 6
    cohort = study(tmp_path, {"label": LABELS, "split": split})
    assert parts_of(fit(cohort, quick(monitor="loss"), tmp_path / "run", progress=False)) == (12, 6, 6)


def test_slides_of_other_splits_are_counted(tmp_path: Path) -> None:
    """A warning names the splits and their numbers of slides, also of slides without a split."""
    split = ["train"] * 10 + ["val"] * 6 + ["external"] * 5 + [""] * 3
    cohort = study(tmp_path, {"label": LABELS, "split": split})
    with pytest.warns(SkippedWarning, match=r"left out, .* train, val, test: external \(5 slides\), none \(3 slides\)"):
        fitted = fit(cohort, quick(monitor="loss"), tmp_path / "run", progress=False)
    assert parts_of(fitted) == (10, 6, 0)


def test_a_split_that_looks_like_another_is_refused(tmp_path: Path) -> None:
    """Half of the training would be lost."""
    cohort = study(tmp_path, {"label": LABELS, "split": ["train"] * 9 + ["trian"] * 9 + ["val"] * 6})
    with pytest.raises(ConfigError, match=r"split 'trian' \(9 slides\) looks like 'train'; correct the column"):
        fit(cohort, quick(), tmp_path / "run", progress=False)


def test_two_names_of_one_split_are_the_same(tmp_path: Path) -> None:
    """A patient may be in val and in Validation."""
    split = ["train"] * 20 + ["val", "Validation"] * 2
    cohort = study(tmp_path, {"label": LABELS, "split": split, "patient": [f"p{k // 4}" for k in range(24)]})
    assert len(Cohort.of(cohort).where(split="val")) == 4


@pytest.mark.parametrize(
    ("task", "column", "cells"),
    [
        ({"label": "grade"}, "grade", ["rare" if k % 4 == 0 else "common" for k in range(40)]),
        ({"kind": "survival"}, "event", [int(k % 4 == 0) for k in range(40)]),
        ({}, "label", ["rare" if k % 4 == 0 else "common" for k in range(40)]),
    ],
)
def test_folds_are_balanced_by_the_predicted_column(
    task: dict[str, Any], column: str, cells: list[Any], tmp_path: Path
) -> None:
    """Ten of 40 slides have it: two in every test, one or two in every validation."""
    columns = {"label": list(range(40)), "time": list(range(40))} | {column: cells}
    cohort = Cohort.of(study(tmp_path, columns))
    for seed in range(3):
        config = load_train_config({"task": task, "fit": {"folds": 5, "bags_per_step": 2}, "seed": seed})
        for division in divide(cohort, config.fit, config.seed, config.task):
            assert division.test is not None
            assert division.validation is not None
            of = {
                part: Counter(map(str, slides.column(column)))[str(cells[0])]
                for part, slides in (("test", division.test), ("val", division.validation))
            }
            assert of["test"] == 2
            assert of["val"] in (1, 2)


# -- classes, events, processes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("folds", [2, 3])
def test_folds_with_different_classes_are_refused(folds: int, tmp_path: Path) -> None:
    """The class of one patient cannot be learnt in every fold: the error names it before the training."""
    labels = ["rare"] * 2 + ["m"] * 14 + ["n"] * 8
    patients = ["px"] * 2 + [f"p{k}" for k in range(22)]
    cohort = study(tmp_path, {"label": labels, "patient": patients})
    expected_text = (
        r"no training slide in fold-\d is of class 'rare', which patient px of the cohort has: s0.pt, s1.pt; leave"
    )
    with pytest.raises(ConfigError, match=expected_text):
        fit(cohort, quick(folds=folds, validation=0, monitor="none"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("monitor", ["metric", "loss"])
@pytest.mark.parametrize("events", ["none", "last"])
def test_a_validation_without_comparable_slides_is_refused(events: str, monitor: str, tmp_path: Path) -> None:
    """Without an event, or with one at the last time only, every epoch would be as good as the first."""
    happened = [k % 2 for k in range(16)] + [0] * 7 + [int(events == "last")]
    columns = {"time": list(range(10, 34)), "event": happened, "split": ["train"] * 16 + ["val"] * 8}
    cohort = study(tmp_path, columns)
    config = quick({"kind": "survival"}, monitor=monitor, bags_per_step=8)
    with pytest.raises(ConfigError, match="no two of the 8 validation slides can be compared"):
        fit(cohort, config, tmp_path / "run", progress=False)
    last = quick({"kind": "survival"}, monitor="none", bags_per_step=8)
    assert fit(cohort, last, tmp_path / "run", progress=False).kept == (1,)


@pytest.mark.parametrize(
    ("time", "event", "message"),
    [(-3, 1, r"s23.pt \(-3\)"), (33, 2, r"event .* s23.pt \(2\)"), ("x", 1, r"s23.pt \(x\)")],
)
def test_impossible_outcomes_of_test_slides_are_refused(time: Any, event: int, message: str, tmp_path: Path) -> None:
    """As those of training slides."""
    columns = {
        "time": [*range(10, 33), time], "event": [*(k % 2 for k in range(23)), event],
        "split": ["train"] * 16 + ["test"] * 8,
    }  # fmt: skip
    config = quick({"kind": "survival"}, validation=0, monitor="none", bags_per_step=8)
    with pytest.raises(ConfigError, match=message):
        fit(study(tmp_path, columns), config, tmp_path / "run", progress=False)


def test_more_processes_than_training_slides_are_refused(tmp_path: Path) -> None:
    """Some would have nothing to train on."""
    cohort = study(tmp_path, {"label": LABELS, "split": ["train"] * 2 + ["val"] * 22})
    with pytest.raises(ConfigError, match=r"2 training slides for 3 devices: .* one at least; set fit.devices to 2"):
        fit(cohort, quick(devices=3), tmp_path / "run", progress=False)


# -- settings and packages ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fitting", [{"precision": "fp16"}, {"accelerator": "abacus"}])
def test_errors_of_lightning_are_config_errors(fitting: dict[str, Any], tmp_path: Path) -> None:
    """With the settings that cause them."""
    with pytest.raises(
        ConfigError, match=f"cannot train with .*{next(iter(fitting.values()))}.*see slideio-pipe config show mil"
    ):
        fit(study(tmp_path, {"label": LABELS}), quick(**fitting), tmp_path / "run", progress=False)


def test_a_model_that_fails_is_refused_at_the_first_bag(tmp_path: Path) -> None:
    """Later bags, also those that cannot be read, are not opened."""
    pytest.importorskip("torchmil")
    cohort = study(tmp_path, {"label": LABELS})
    (tmp_path / "s7.pt").write_bytes(b"no tensor")
    config = quick() | {"model": {"name": "torchmil:CAMIL"}}
    with pytest.raises(ConfigError, match="CAMIL"):
        fit(cohort, config, tmp_path / "run", progress=False)


@pytest.mark.parametrize("module", ["torchmetrics", "tensorboard"])
def test_missing_packages_are_an_error_before_the_first_epoch(module: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Not after an hour of training."""
    for name in (module, f"{module}.functional"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(MissingExtraError, match=f"{module} is needed"):
        fit(study(tmp_path, {"label": LABELS}), quick(), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_the_c_index_of_folds_compares_within_folds(tmp_path: Path) -> None:
    """Counted from predictions.csv, pair by pair; there is no warning."""
    columns = {"time": [(7 * k) % 31 + 1 for k in range(24)], "event": [int(k % 3 > 0) for k in range(24)]}
    config = quick({"kind": "survival"}, folds=3, validation=0, monitor="none", bags_per_step=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = fit(study(tmp_path, columns), config, tmp_path / "run", progress=False)
    lines = [line.split(",") for line in fitted.predictions.read_text().splitlines()]
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    right = pairs = 0.0
    for one in rows:
        for other in rows:
            first, second = (float(row["label"].rstrip("+")) for row in (one, other))
            if one["division"] != other["division"] or one["label"].endswith("+"):
                continue
            if first < second or (first == second and other["label"].endswith("+")):
                pairs += 1
                ahead = float(one["risk"]) - float(other["risk"])
                right += 1.0 if ahead > 0 else 0.5 if ahead == 0 else 0.0
    assert fitted.metrics["test"]["c_index"].value == pytest.approx(right / pairs)


# -- output during the training ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("folds", [None, 2])
def test_each_epoch_is_a_line_in_a_log(folds: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With loss and metric of validation as in history.csv, and the best epoch so far."""
    fitted = fit(study(tmp_path, {"label": LABELS}), quick(folds=folds), tmp_path / "run", progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    names = ["training"] if folds is None else ["fold-0", "fold-1"]
    wanted = [
        f"{name}: epoch {row['epoch']} of {len(rows)}: loss {row['loss']:.3f}, validation loss {row['val_loss']:.3f}, "
        f"auroc {row['val_auroc']:.3f}; best so far: "
        for name, rows in zip(names, fitted.history, strict=True)
        for row in rows
    ]
    lines = [line for line in err.splitlines() if ": epoch " in line]
    assert [line.rstrip("0123456789") for line in lines] == wanted
    assert [int(line.rpartition(" ")[2]) for line in lines[1::2]] == list(fitted.kept)


def test_the_command_prints_progress_and_valid_json(tmp_path: Path) -> None:
    """Lines on standard error, none with --json; standard output is one document."""
    cohort = study(tmp_path, {"label": LABELS})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(quick(bootstrap=20)))
    requested = ["train", str(tmp_path / "config.yaml"), "--cohort", str(cohort), "--out"]
    done = CliRunner().invoke(app, [*requested, str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert "training: epoch 1 of 2: loss" in done.stderr
    assert "training: epoch" not in done.stdout
    assert "no intervals: 5 patients, fewer than 10" in done.stdout
    quiet = CliRunner().invoke(app, [*requested, str(tmp_path / "other"), "--json"])
    assert "training: epoch" not in quiet.stderr
    assert json.loads(quiet.stdout)["notes"] == {"val": "no intervals: 5 patients, fewer than 10"}
