"""Curves against scikit-learn and published numbers; plots do not change matplotlib's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import quick, study

from slideio_pipe.mil import plots
from slideio_pipe.mil.curves import Calibration, kaplan_meier, log_rank, precision_recall_curve, roc_curve
from slideio_pipe.mil.fit import fit
from slideio_pipe.mil.metrics import measure
from slideio_pipe.mil.plots import write_plots
from slideio_pipe.mil.tasks import Classification, Regression, Survival, Task

matplotlib = pytest.importorskip("matplotlib")
HISTORY = [{"epoch": k, "lr": 0.1, "loss": 1 / (k + 1), "val_loss": 1 / (k + 1), "val_auroc": 0.5} for k in range(3)]


def drawn(count: int, *, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return random truths and probabilities, with ties if wanted."""
    rng = np.random.default_rng(count)
    truth = rng.random(count) < 0.4
    chance = np.clip(0.3 * truth + rng.random(count) * 0.7, 0, 1)
    return truth, np.round(chance, 1) if ties else chance


@pytest.mark.parametrize("ties", [False, True])
def test_roc_equals_scikit_learn(ties: bool) -> None:
    """Point by point, ties in one step."""
    metrics = pytest.importorskip("sklearn.metrics")
    truth, chance = drawn(57, ties=ties)
    false, true, _ = metrics.roc_curve(truth, chance, drop_intermediate=False)
    ours = roc_curve(truth, chance)
    np.testing.assert_allclose(ours[0], false)
    np.testing.assert_allclose(ours[1], true)


@pytest.mark.parametrize("ties", [False, True])
def test_precision_and_recall_equal_scikit_learn(ties: bool) -> None:
    """From recall 0 upwards; scikit-learn's order is reversed."""
    metrics = pytest.importorskip("sklearn.metrics")
    truth, chance = drawn(41, ties=ties)
    precision, recall, _ = metrics.precision_recall_curve(truth, chance)
    ours = precision_recall_curve(truth, chance)
    np.testing.assert_allclose(ours[0], recall[::-1])
    np.testing.assert_allclose(ours[1], precision[::-1])


def test_calibration_equals_scikit_learn() -> None:
    """Bins of equal width; every slide is counted once; intervals are within 0 and 1."""
    calibration = pytest.importorskip("sklearn.calibration")
    truth, chance = drawn(200)
    found = Calibration.of(truth, chance)
    observed, predicted = calibration.calibration_curve(truth, chance, n_bins=10)
    np.testing.assert_allclose(found.observed, observed)
    np.testing.assert_allclose(found.predicted, predicted)
    assert found.counts.sum() == 200
    assert (found.low >= -1e-12).all()
    assert (found.high <= 1 + 1e-12).all()
    assert ((found.low <= found.observed + 1e-12) & (found.observed <= found.high + 1e-12)).all()


# Weeks of remission under 6-MP and placebo, with what follows from them (Freireich et al. 1963, as in Kalbfleisch and
# Prentice, The Statistical Analysis of Failure Time Data, and Cox 1972).
TREATED = [6, 6, 6, 7, 10, 13, 16, 22, 23]
TREATED_CENSORED = [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
PLACEBO = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]


def test_kaplan_meier_is_as_published() -> None:
    """For the leukaemia trial of 1963."""
    time = np.array(TREATED + TREATED_CENSORED, np.float64)
    event = np.array([True] * len(TREATED) + [False] * len(TREATED_CENSORED))
    times, survive = kaplan_meier(time, event)
    assert times.tolist() == [0, 6, 7, 10, 13, 16, 22, 23]
    assert [round(float(s), 3) for s in survive] == [1, 0.857, 0.807, 0.753, 0.69, 0.627, 0.538, 0.448]


def test_log_rank_is_as_published() -> None:
    """For the same trial: chi² is 16.79."""
    time = np.array(TREATED + TREATED_CENSORED + PLACEBO, np.float64)
    event = np.array([True] * len(TREATED) + [False] * len(TREATED_CENSORED) + [True] * len(PLACEBO))
    group = np.arange(len(time)) >= len(TREATED) + len(TREATED_CENSORED)
    statistic, p = log_rank(time, event, group)
    assert round(statistic, 2) == 16.79
    assert 4e-5 < p < 5e-5


def test_log_rank_of_one_group_has_no_number() -> None:
    """Nothing can be compared."""
    assert np.isnan(log_rank(np.array([1.0, 2.0]), np.array([True, True]), np.array([True, True]))[1])


def test_stratified_log_rank_sums_over_strata() -> None:
    """The trial twice, the second time much later: twice the trial's statistic, unlike the plain test."""
    time = np.array(TREATED + TREATED_CENSORED + PLACEBO, np.float64)
    event = np.array([True] * len(TREATED) + [False] * len(TREATED_CENSORED) + [True] * len(PLACEBO))
    group = np.arange(len(time)) >= len(TREATED) + len(TREATED_CENSORED)
    both, strata = np.concatenate([time, time + 100]), np.repeat([0, 1], len(time))
    statistic, _ = log_rank(both, np.tile(event, 2), np.tile(group, 2), strata)
    assert statistic / 2 == pytest.approx(16.79, abs=0.005)
    plain, _ = log_rank(both, np.tile(event, 2), np.tile(group, 2))
    assert plain != pytest.approx(statistic, rel=0.01)


def test_risks_are_halved_within_each_fold(tmp_path: Path) -> None:
    """A constant added to the risks of one fold does not change the plot of survival."""
    generator = torch.Generator().manual_seed(5)
    risk = torch.randn(30, 1, generator=generator)
    targets = torch.stack([1 + torch.rand(30, generator=generator), torch.arange(30) % 2], 1).double()
    folds = [k % 3 for k in range(30)]
    pictures = []
    for shift in (0.0, 5.0):
        moved = risk + shift * (torch.tensor(folds) == 1)[:, None]
        files = write_plots(tmp_path, Survival(), "test", moved, targets, {}, {"": HISTORY[:0]}, strata=folds)
        with Image.open(files[0]) as image:
            pictures.append(np.asarray(image))
    np.testing.assert_array_equal(*pictures)


CASES: list[tuple[Task, set[str]]] = [
    (Classification(("0", "1"), (1.0, 1.0)), {"roc", "precision_recall", "calibration", "history"}),
    (Classification(("a", "b", "c"), (1.0, 1.0, 1.0)), {"roc", "precision_recall", "calibration", "history"}),
    (Regression(10.0, 2.0, "age"), {"regression", "history"}),
    (Survival(), {"survival", "history"}),
]


def predicted(task: Task, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and targets that fit a task."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(count, task.outputs, generator=generator)
    if isinstance(task, Classification):
        return logits, (torch.arange(count) % len(task.classes)).double()
    if isinstance(task, Regression):
        return logits, logits[:, 0].double() * 2 + 10
    return logits, torch.stack([1 + torch.rand(count, generator=generator), torch.arange(count) % 2], 1).double()


@pytest.mark.slow
@pytest.mark.parametrize(("task", "names"), CASES, ids=["two", "three", "number", "survival"])
def test_every_task_has_its_plots(task: Task, names: set[str], tmp_path: Path) -> None:
    """Readable pictures on white; the caller's matplotlib settings do not change."""
    before = dict(matplotlib.rcParams)
    logits, targets = predicted(task, 24)
    metrics = measure(task, logits, targets, bootstrap=0)
    files = write_plots(tmp_path / "plots", task, "test", logits, targets, metrics, {"": HISTORY})
    assert {file.stem for file in files} == names
    for file in files:
        with Image.open(file) as image:
            assert image.width >= 600
            pixels = np.asarray(image.convert("RGB"))
        assert pixels[:5, :5].min() == 255
        assert (pixels < 200).any(axis=2).mean() > 0.003
    assert dict(matplotlib.rcParams) == before


@pytest.mark.slow
@pytest.mark.parametrize(("task", "names"), CASES, ids=["two", "three", "number", "survival"])
def test_no_curve_is_hidden_by_its_legend(task: Task, names: set[str]) -> None:
    """Every plot explains its lines, outside its axes and inside the picture."""
    logits, targets = predicted(task, 24)
    metrics, models = measure(task, logits, targets, bootstrap=0), np.zeros(24, np.int64)
    figures = plots._of_task(task, logits.double(), targets, models, metrics, "test")
    figures["history"] = plots._history({"": HISTORY})
    assert set(figures) == names
    for figure in figures.values():
        figure.draw_without_rendering()
        (legend,) = figure.legends
        assert not any(axes.get_legend() for axes in figure.axes)
        assert legend.get_texts()
        box = legend.get_window_extent()
        assert not any(box.overlaps(axes.get_window_extent()) for axes in figure.axes)
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0


@pytest.mark.slow
@pytest.mark.parametrize("case", ["one class", "one slide", "none", "all alike"])
def test_undefined_curves_are_left_out(case: str, tmp_path: Path) -> None:
    """Without an error."""
    task: Any = Classification(("0", "1"), (1.0, 1.0))
    count = {"one class": 5, "one slide": 1, "none": 0, "all alike": 4}[case]
    logits = torch.zeros(count, 1)
    targets = torch.zeros(count).double() if case != "all alike" else torch.tensor([0.0, 1, 0, 1]).double()
    metrics = measure(task, logits, targets, bootstrap=0) if count else {}
    files = {file.stem for file in write_plots(tmp_path, task, "val", logits, targets, metrics, {"": HISTORY[:1]})}
    assert "history" in files
    assert ("roc" in files) == (case == "all alike")


def test_survival_of_equal_risks_is_one_curve(tmp_path: Path) -> None:
    """No half is higher than the median."""
    targets = torch.tensor([[1.0, 1], [2, 0], [3, 1]]).double()
    files = write_plots(tmp_path, Survival(), "test", torch.zeros(3, 1), targets, {}, {"": HISTORY[:0]})
    assert [file.name for file in files] == ["survival.png"]


def test_a_training_writes_them(tmp_path: Path) -> None:
    """Into the folder of the run."""
    cohort = study(tmp_path, {"label": [0, 1] * 4, "split": ["train"] * 4 + ["test"] * 4})
    fitted = fit(cohort, quick(validation=0, monitor="none"), tmp_path / "run", progress=False)
    names = {"roc.png", "precision_recall.png", "calibration.png", "history.png"}
    assert {file.name for file in (fitted.folder / "plots").iterdir()} == names
    # Printed, it is a table; a notebook shows the table beside the plots.
    first, heading, *rows = repr(fitted).splitlines()
    assert str(fitted.folder) in first
    assert heading.split("  ")[0] == "part"
    assert len(rows) == sum(len(found) for found in fitted.metrics.values())
    area = fitted.metrics["test"]["auroc"]
    assert any(row.split()[:4] == ["test,", "4", "slides", "AUROC"] and f"{area.value:.3f}" in row for row in rows)
    html = fitted._repr_html_()
    assert html.count("<img") == 2
    assert all(f"{part}: {metric}" in html for part, metric, *_ in fitted.table())
