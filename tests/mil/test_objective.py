"""A loss and a metric of one's own: what they get, where the metric appears, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from own_parts import module_file, quick
from tiny_training import study
from torch import Tensor, nn
from torch.nn import functional

import slideio_pipe as sp
from slideio_pipe.errors import ConfigError
from slideio_pipe.mil.checkpoint import read_checkpoint
from slideio_pipe.mil.objective import Objective
from slideio_pipe.mil.tasks import Classification, Regression, Survival

pytest.importorskip("lightning_fabric")
pytestmark = pytest.mark.usefixtures("without_plots")
COUNT = 16
LABELS = [k % 2 for k in range(COUNT)]
SPLIT = ["train"] * 8 + ["val"] * 4 + ["test"] * 4


def columns() -> dict[str, list[Any]]:
    known: dict[str, list[Any]] = {"label": LABELS, "size": [k / 3 for k in range(COUNT)], "split": SPLIT}
    return known | {"time": list(range(10, 10 + COUNT)), "event": LABELS}


def squares(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.mse_loss(logits[:, 0], targets)


def cox(logits: Tensor, targets: Tensor) -> Tensor:
    return Survival().loss(logits, targets)


@pytest.mark.system
@pytest.mark.parametrize("bags_per_step", [1, 3])
@pytest.mark.parametrize(
    ("task", "loss"), [({"kind": "regression", "label": "size"}, squares), ({"kind": "survival"}, cox)]
)
def test_a_loss_equal_to_the_built_in_one_trains_the_same(
    task: dict[str, Any], loss: Any, bags_per_step: int, tmp_path: Path
) -> None:
    """Targets have the units of the built-in loss."""
    if task["kind"] == "survival":
        bags_per_step += 1
    table, config = study(tmp_path, columns()), quick(bags_per_step=bags_per_step, monitor="none") | {"task": task}
    built_in = sp.fit(table, config, tmp_path / "a", progress=False)
    own = sp.fit(table, config, tmp_path / "b", loss=loss, progress=False)
    for wanted, found in zip(built_in.history[0], own.history[0], strict=True):
        assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
        assert found["val_loss"] == pytest.approx(wanted["val_loss"], rel=1e-5)
    weights = [read_checkpoint(fitted.checkpoints[0])["model"] for fitted in (built_in, own)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.system
def test_loss_and_metric_by_import_path_are_in_history_results_and_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared with NumPy on predictions.csv, which is of the last epoch."""
    module_file(tmp_path, "own_g")
    table = study(tmp_path, columns())
    text = quick(monitor="none") | {"task": {"loss": "own_g:my_loss", "metric": "own_g:my_metric"}}
    (tmp_path / "mil.yaml").write_text(yaml.safe_dump(text))
    monkeypatch.chdir(tmp_path.parent)
    lines: list[str] = []
    from slideio_pipe.mil import progress_texts

    kept = progress_texts.epoch_words
    monkeypatch.setattr(
        "slideio_pipe.mil.training.epoch_words", lambda *a, **k: lines.append(kept(*a, **k)) or lines[-1]
    )
    fitted = sp.fit(table, tmp_path / "mil.yaml", tmp_path / "run", progress=True)
    rows = list(csv.DictReader((tmp_path / "run" / "predictions.csv").read_text().splitlines()))
    for part in ("val", "test"):
        chance = np.array([float(row["probability_1"]) for row in rows if row["split"] == part])
        label = np.array([int(row["label"]) for row in rows if row["split"] == part])
        right = ((chance > 0.5) == label).mean()
        assert next(iter(fitted.metrics[part])) == "my_metric"
        assert fitted.metrics[part]["my_metric"].value == pytest.approx(right)
        assert "auroc" in fitted.metrics[part]
        if part == "val":
            losses = -(label * np.log(chance) + (1 - label) * np.log(1 - chance))
            assert fitted.history[0][-1]["val_loss"] == pytest.approx(2 * losses.mean(), rel=1e-5)
            assert fitted.history[0][-1]["val_my_metric"] == pytest.approx(right)
    assert "my metric" in lines[-1]
    assert "my metric" in repr(fitted)
    assert "val_my_metric" in (tmp_path / "run" / "history.csv").read_text()
    summary = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert next(iter(summary["metrics"]["test"])) == "my_metric"
    assert read_checkpoint(fitted.checkpoints[0])["about"]["config"]["task"]["loss"] == "own_g:my_loss"
    again = sp.fit(table, tmp_path / "mil.yaml", tmp_path / "run", progress=False)
    assert again.history == fitted.history


def test_the_metric_chooses_the_epoch(tmp_path: Path) -> None:
    """The largest value, whatever the built-in metrics are."""
    calls: list[int] = []

    def second_is_best(predictions: Tensor, targets: Tensor) -> float:
        del predictions, targets
        calls.append(1)
        return [0.0, 0.1, 0.9, 0.2, 0.3][min(len(calls) - 1, 4)]  # the first call is the check before the training

    config = quick(epochs=4, monitor="metric")
    fitted = sp.fit(study(tmp_path, columns()), config, tmp_path / "run", metric=second_is_best, progress=False)
    assert [row["val_second_is_best"] for row in fitted.history[0]] == [0.1, 0.9, 0.2, 0.3]
    assert fitted.kept == (1,)


@pytest.mark.system
def test_a_metric_has_an_interval_over_patients(tmp_path: Path) -> None:
    """As the built-in ones: equal metrics have equal intervals."""

    def right(predictions: Tensor, targets: Tensor) -> Tensor:
        return (predictions.argmax(1) == targets).double().mean()

    config = {"fit": quick(folds=2, validation=0, bootstrap=200)["fit"]}
    fitted = sp.fit(study(tmp_path, {"label": LABELS}), config, tmp_path / "run", metric=right, progress=False)
    own, accuracy = (fitted.metrics["test"][name] for name in ("right", "accuracy"))
    assert own.value == pytest.approx(accuracy.value)
    assert own.low == pytest.approx(accuracy.low, abs=0.1)  # resamplings without a class do not count


def test_what_a_metric_gets(tmp_path: Path) -> None:
    """Probabilities, numbers in the units of the column, risks; of risks the mean over the models."""
    del tmp_path
    seen: list[tuple[Tensor, Tensor]] = []

    def metric(predictions: Tensor, targets: Tensor) -> float:
        seen.append((predictions, targets))
        return float(len(targets))

    logits = torch.tensor([[0.0], [1.0], [2.0]])
    labels = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    Objective(Classification(("a", "b"), (1.0, 1.0)), None, metric).measure(logits, labels, bootstrap=0)
    torch.testing.assert_close(seen[0][0][:, 1], torch.sigmoid(logits.double()[:, 0]))
    assert seen[0][1].dtype == torch.int64
    Objective(Regression(5.0, 2.0), None, metric).measure(logits, labels, bootstrap=0)
    assert seen[1][0].tolist() == [5.0, 7.0, 9.0]
    events = torch.tensor([[1.0, 1.0], [2.0, 0.0], [3.0, 1.0]], dtype=torch.float64)
    found = Objective(Survival(), None, metric).measure(logits, events, strata=[0, 0, 1], bootstrap=0)
    assert [row[0].tolist() for row in seen[2:]] == [[0.0, 1.0], [2.0]]
    assert found["metric"].value == pytest.approx((2 * 2 + 1 * 1) / 3)


class Weighted(nn.Module):
    """A loss with parameters, which nothing trains."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (self.weight * squares(logits, targets.float())).sum()


class Needy:
    """Needs an argument."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss": lambda x, y: x[:, 0] * y}, r"the loss of logits \(1, 1\) and targets \(1,\) is \(1,\), no scalar"),
        ({"loss": lambda x, y: 1.0}, r"the loss .* is a float, no scalar tensor; return its mean or sum"),
        (
            {"loss": lambda x, y: x.detach().sum()},
            r"the loss .* has no gradient; compute it from the logits with torch",
        ),
        ({"loss": lambda x, y: x.sum() / 0}, r"the loss .* is -?inf; look for a logarithm or division of 0"),
        ({"loss": lambda x: x.sum()}, r"the loss .* fails \(TypeError: .*; see slideio_pipe.OwnLoss"),
        ({"loss": nn.BCEWithLogitsLoss()}, r"BCEWithLogitsLoss: the loss of logits \(1, 1\) and targets \(1,\) fails"),
        ({"loss": Weighted()}, r"Weighted: has parameters, and only model and encoder are trained; use buffers"),
        ({"loss": Needy}, r"the class of the loss needs arguments .*alpha"),
        ({"loss": 3}, r"the loss is of type int; pass a function"),
        ({"loss": "focal"}, r"task.loss is 'focal', no import path; name a function as my_module:my_loss"),
        ({"metric": lambda p, y: p}, r"the metric of predictions and targets of 8 slides fails"),
        ({"metric": lambda p, y: None}, r"the metric .* fails \(TypeError"),
        ({"metric": "own_missing:auc"}, r"there is no module own_missing"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_epoch(
    given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """With shapes, and before the folder of the run is made."""
    with pytest.raises(ConfigError, match=message):
        sp.fit(study(tmp_path, columns()), quick(), tmp_path / "run", progress=False, **given)
    assert not (tmp_path / "run").exists()


@pytest.mark.system
def test_a_module_of_torch_is_a_loss(tmp_path: Path) -> None:
    """For three classes cross-entropy fits as it is, also with weights in a buffer, also by its class."""
    grades = [("low", "mid", "high")[k % 3] for k in range(COUNT)]
    table = study(tmp_path, columns() | {"label": grades})
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 1.0]))
    config = quick(monitor="loss", bags_per_step=4)  # the weighted mean of one slide is its loss
    fitted = sp.fit(table, config, tmp_path / "a", loss=loss, progress=False)
    by_class = sp.fit(table, config, tmp_path / "b", loss=nn.CrossEntropyLoss, progress=False)
    unweighted = config | {"task": {"balanced": False}}
    built_in = sp.fit(table, unweighted, tmp_path / "c", progress=False)
    assert fitted.history[0][-1]["loss"] != pytest.approx(built_in.history[0][-1]["loss"], rel=1e-3)
    assert by_class.history[0][-1]["loss"] == pytest.approx(built_in.history[0][-1]["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("own_h:MyAgregator", r"own_h:MyAgregator: the module has no MyAgregator; did you mean MyAggregator\?"),
        ("own_hh:MyAggregator", r"there is no module own_hh in .*; did you mean own_h\?"),
        ("own_broken:x", r"its module cannot be imported \(ZeroDivisionError: .*; run it with Python"),
        ("own_lacks:x", r"its module cannot be imported \(ModuleNotFoundError: No module named 'nothing_such'"),
        ("own_h:NUMBER", r"the model is an int, neither a module"),
    ],
)
def test_import_paths_that_lead_nowhere_are_explained(
    path: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a name that is like it."""
    module_file(tmp_path, "own_h")
    module_file(tmp_path, "own_broken", "x = 1 / 0\n")
    module_file(tmp_path, "own_lacks", "import nothing_such\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own_h", raising=False)
    with pytest.raises(ConfigError, match=message):
        sp.fit(study(tmp_path / "s", columns()), quick(), tmp_path / "run", model=path, progress=False)


def test_two_modules_of_one_name_are_not_confused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process imports a name once: the second file would silently be the first one."""
    for name in ("a", "b"):
        module_file(tmp_path / name, "own_i")
    table = study(tmp_path / "s", columns())
    monkeypatch.chdir(tmp_path / "a")
    sp.fit(table, quick(epochs=1), tmp_path / "run", model="own_i:MyAggregator", progress=False)
    monkeypatch.chdir(tmp_path / "b")
    with pytest.raises(ConfigError, match=r"another module is called own_i, of .*/a/own_i.py, not .*/b/own_i.py"):
        sp.fit(table, quick(epochs=1), tmp_path / "run-b", model="own_i:MyAggregator", progress=False)
