"""Losses and metrics against formulas written out, and against other people's."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from slideio_pipe.cohort import CohortSlide
from slideio_pipe.errors import ConfigError
from slideio_pipe.mil.metrics import concordance, measure
from slideio_pipe.mil.tasks import Classification, Regression, Survival, task_of


def slides(labels: list[Any], **columns: list[Any]) -> list[CohortSlide]:
    """Return slides with labels and other columns."""
    return [
        CohortSlide(f"{k}.svs", f"{k}.svs", label, other=tuple((n, str(v[k])) for n, v in columns.items()))  # type: ignore[arg-type]
        for k, label in enumerate(labels)
    ]


def test_two_classes_have_one_logit() -> None:
    """The loss is cross-entropy with weights of mean one; the probability that of the second class."""
    task = Classification.of(slides(["benign"] * 3 + ["tumour"]))
    assert (task.classes, task.outputs) == (("benign", "tumour"), 1)
    assert task.weights == pytest.approx((4 / 6, 4 / 2))
    logits, targets = torch.tensor([[0.3], [-1.0]]), torch.tensor([1.0, 0.0])
    chance = [1 / (1 + math.exp(-0.3)), 1 / (1 + math.exp(1.0))]
    wanted = (-math.log(chance[0]) * 2 - math.log(1 - chance[1]) * 4 / 6) / 2
    assert float(task.loss(logits, targets)) == pytest.approx(wanted)
    assert task.predict(torch.tensor([0.3]))["probability_tumour"] == pytest.approx(chance[0])


def test_several_classes() -> None:
    """As many logits; numbers are sorted as numbers."""
    task = Classification.of(slides([10, 9, 2]), balanced=False)
    assert task.classes == ("2", "9", "10")
    logits = torch.tensor([[0.1, 0.7, -0.3]])
    wanted = -math.log(math.exp(0.7) / sum(math.exp(x) for x in (0.1, 0.7, -0.3)))
    assert float(task.loss(logits, torch.tensor([1.0]))) == pytest.approx(wanted)
    assert task.predict(logits[0])["predicted"] == "9"


def test_a_class_is_a_class_whatever_its_type() -> None:
    """1 and 1.0 are one class."""
    assert Classification.of(slides([1.0, 0, 1])).classes == ("0", "1")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Classification.of(slides(["a", None])), "1 of 2 training slides have no label: 1.svs"),
        (lambda: Classification.of(slides(["a", "a"])), "classification needs two classes at least: all are 'a'"),
        (lambda: Classification.of(slides(["a", "b"]), classes=["a", "c"]), "labels b are none of the classes a, c"),
        (lambda: Classification.of(slides(["a", "a"]), classes=["a", "c"]), "no training slide is 'c'"),
        (lambda: Classification.of(slides(["a", "b"]), column="grade"), 'the cohort has no column "grade"'),
        (lambda: Regression.of(slides([1, 1])), "every label of the training slides is 1"),
        (lambda: Regression.of(slides([1, "tall"])), "1 of 2 training slides have no label: 1.svs"),
        (lambda: Survival.of(slides([0, 0], time=[3, ""], event=[1, 1])), "have no time and event: 1.svs"),
        (lambda: Survival.of(slides([0, 0], time=[3, 4], event=[0, 0])), "no training slide has an event"),
        (lambda: Survival.of(slides([0, 0], time=[3, 4], event=[1, 2])), "event is neither 0 nor 1"),
    ],
)
def test_labels_that_do_not_do(make: Any, message: str) -> None:
    """Said with the slide and the column."""
    with pytest.raises(ConfigError, match=message):
        make()


def test_numbers_are_learnt_in_units_of_their_spread() -> None:
    """And predicted in their own."""
    task = Regression.of(slides([10.0, 20.0, 30.0]))
    assert float(task.loss(torch.tensor([[0.5]]), torch.tensor([20.0]))) == pytest.approx(0.25)
    assert task.predict(torch.tensor([0.5]))["predicted"] == pytest.approx(25)


def test_cox_is_the_partial_likelihood() -> None:
    """Breslow's, as a product over events of the risk over the sum of those at risk."""
    rng = np.random.default_rng(4)
    risk, time, event = rng.normal(size=12), rng.integers(1, 6, 12).astype(float), rng.integers(0, 2, 12)
    likelihood = math.prod(
        math.exp(risk[k]) / sum(math.exp(risk[j]) for j in range(12) if time[j] >= time[k])
        for k in range(12)
        if event[k]
    )
    found = Survival().loss(torch.tensor(risk)[:, None], torch.tensor(np.stack([time, event], 1)))
    assert float(found) == pytest.approx(-math.log(likelihood) / event.sum())


def test_a_step_without_an_event_teaches_nothing() -> None:
    """Its loss is 0, and has a gradient: 0."""
    logits = torch.zeros(3, 1, requires_grad=True)
    Survival().loss(logits, torch.tensor([[1.0, 0], [2, 0], [3, 0]])).backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0], [0], [0]]


def test_concordance_counts_pairs() -> None:
    """Against the definition, pair by pair."""
    rng = np.random.default_rng(5)
    risk, time, event = (
        rng.integers(0, 4, 25).astype(float),
        rng.integers(1, 9, 25).astype(float),
        rng.integers(0, 2, 25),
    )
    right = pairs = 0.0
    for a, b in itertools.permutations(range(25), 2):
        if event[a] and (time[a] < time[b] or (time[a] == time[b] and not event[b])):
            pairs += 1
            right += 1.0 if risk[a] > risk[b] else 0.5 if risk[a] == risk[b] else 0.0
    assert concordance(risk, np.stack([time, event], 1)) == pytest.approx(right / pairs)
    assert math.isnan(concordance(risk, np.stack([time, 0 * event], 1)))


@pytest.mark.parametrize("classes", [2, 4])
def test_classification_metrics_are_those_of_scikit_learn(classes: int) -> None:
    """AUROC, average precision, balanced accuracy, accuracy; several classes one against the rest."""
    oracle = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(classes)
    labels = np.r_[np.arange(classes), rng.integers(0, classes, 60)]
    task = Classification(tuple(map(str, range(classes))), (1.0,) * classes)
    logits = torch.from_numpy(
        rng.normal(size=(len(labels), task.outputs)) + (labels[:, None] == range(1, 1 + task.outputs))
    )
    chances = task.probabilities(logits).numpy()
    found = measure(task, logits, torch.from_numpy(labels).double(), bootstrap=0)
    score = chances[:, 1] if classes == 2 else chances
    one_hot = labels if classes == 2 else np.eye(classes)[labels]
    assert found["auroc"].value == pytest.approx(oracle.roc_auc_score(labels, score, multi_class="ovr"), abs=1e-6)
    assert found["auprc"].value == pytest.approx(oracle.average_precision_score(one_hot, score), abs=1e-6)
    best = chances.argmax(1)
    assert found["balanced_accuracy"].value == pytest.approx(oracle.balanced_accuracy_score(labels, best), abs=1e-6)
    assert found["accuracy"].value == pytest.approx(oracle.accuracy_score(labels, best), abs=1e-6)


def test_intervals_resample_patients() -> None:
    """Of ten patients with ten slides each that are all alike, an interval is as wide as of ten slides."""
    rng = np.random.default_rng(8)
    task = Classification(("0", "1"), (1.0, 1.0))
    few, labels = torch.from_numpy(rng.normal(size=(10, 1))), torch.arange(10) % 2
    alone = measure(task, few, labels, bootstrap=400)["auroc"]
    many = measure(
        task, few.repeat_interleave(10, 0), labels.repeat_interleave(10), groups=np.repeat(range(10), 10), bootstrap=400
    )["auroc"]
    assert (alone.low, alone.high) == pytest.approx((many.low, many.high))
    assert alone.low < alone.value < alone.high


def test_metrics_of_one_class_are_not_defined() -> None:
    """NaN, not an exception in the middle of a training."""
    task = Classification(("0", "1"), (1.0, 1.0))
    assert math.isnan(measure(task, torch.randn(5, 1), torch.zeros(5), bootstrap=20)["auroc"].value)


def test_tasks_come_back_from_their_settings() -> None:
    """As a checkpoint keeps them."""
    for task in (Classification(("a", "b"), (1.0, 2.0), "x"), Regression(1.0, 2.0), Survival("t", "e")):
        assert task_of(task.settings()) == task
