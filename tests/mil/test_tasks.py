"""Losses and metrics compared with their formulas and with other packages."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.errors import ConfigError
from slideio_pipe.mil.metrics import Metric, concordance, interval_note, measure
from slideio_pipe.mil.tasks import Classification, Regression, Survival, task_of


def slides(labels: list[Any], **columns: list[Any]) -> list[CohortSlide]:
    """Return slides with labels and other columns."""
    return [
        CohortSlide(f"{k}.svs", f"{k}.svs", label, other=tuple((n, str(v[k])) for n, v in columns.items()))  # type: ignore[arg-type]
        for k, label in enumerate(labels)
    ]


def test_two_classes_have_one_logit() -> None:
    """The loss is cross-entropy with weights of mean one; the probability is of the second class."""
    task = Classification.of(slides(["benign"] * 3 + ["tumour"]))
    assert (task.classes, task.outputs) == (("benign", "tumour"), 1)
    assert task.weights == pytest.approx((4 / 6, 4 / 2))
    logits, targets = torch.tensor([[0.3], [-1.0]]), torch.tensor([1.0, 0.0])
    chance = [1 / (1 + math.exp(-0.3)), 1 / (1 + math.exp(1.0))]
    wanted = (-math.log(chance[0]) * 2 - math.log(1 - chance[1]) * 4 / 6) / 2
    assert float(task.loss(logits, targets)) == pytest.approx(wanted)
    assert task.predict(torch.tensor([0.3]))["probability_tumour"] == pytest.approx(chance[0])


def test_several_classes_have_a_logit_each() -> None:
    """Classes that are numbers are sorted as numbers."""
    task = Classification.of(slides([10, 9, 2]), balanced=False)
    assert task.classes == ("2", "9", "10")
    logits = torch.tensor([[0.1, 0.7, -0.3]])
    wanted = -math.log(math.exp(0.7) / sum(math.exp(x) for x in (0.1, 0.7, -0.3)))
    assert float(task.loss(logits, torch.tensor([1.0]))) == pytest.approx(wanted)
    assert task.predict(logits[0])["predicted"] == "9"


def test_classes_of_different_types_are_equal() -> None:
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
        (lambda: Regression.of(slides([1, "tall"])), r"label of 1 slide is not a number: 1.svs \(tall\); correct"),
        (lambda: Regression.of(slides(["0,5", "1,5"])), r"0.svs \(0,5\), 1.svs \(1,5\); write it with a decimal point"),
        (lambda: Regression.of(slides([1, None])), "1 of 2 training slides have no label: 1.svs"),
        (lambda: Survival.of(slides([0, 0], time=[3, ""], event=[1, 1])), "have no time and event: 1.svs"),
        (lambda: Survival.of(slides([0, 0], time=[3, 4], event=[0, 0])), "no training slide has an event"),
        (
            lambda: Survival.of(slides([0, 0], time=[3, 4], event=[1, 2])),
            r"event of 1 slide is not 1 or 0: 1.svs \(2\); write 1 .*in R's coding 2 is the event",
        ),
        (
            lambda: Survival.of(slides([0, 0], time=[-3, 4], event=[1, 0])),
            r"time .* not a time from 0 on: 0.svs \(-3\)",
        ),
        (lambda: Survival.of(slides([0, 0], time=["12,5", 4], event=[1, 0])), r"0.svs \(12,5\); .* decimal point"),
        (lambda: Survival.of(slides([0, 0], time=["inf", 4], event=[1, 0])), r"0.svs \(inf\)"),
        (lambda: Survival.of(slides([0, 0], time=[3, 4], event=["dead", 0])), r"event .* 0.svs \(dead\); correct"),
    ],
)
def test_invalid_labels_are_refused(make: Any, message: str) -> None:
    """With the slide and the column."""
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    "events", [["True", "False", ""], ["TRUE", "FALSE", ""], ["1:DECEASED", "0:LIVING", "NA"], ["1.0", "0", "nan"]]
)
def test_events_of_other_programs_are_read(events: list[str]) -> None:
    """pandas, R, cBioPortal: 1, 0, and unknown."""
    found = Survival().targets(slides([0, 0, 0], time=["5", "2.5", "1"], event=events))
    assert found[:2].tolist() == [[5, 1], [2.5, 0]]
    assert math.isnan(found[2, 1])


@pytest.mark.parametrize(
    ("task", "columns", "message"),
    [
        (Survival(), {"time": [-3, 4], "event": [1, 1]}, "0.svs"),
        (Survival(), {"time": [3, 4], "event": [1, 2]}, "1.svs"),
        (Regression(0.0, 1.0, "age"), {"age": ["61", "old"]}, "1.svs"),
    ],
)
def test_impossible_values_are_refused_in_every_part(task: Any, columns: dict[str, list[Any]], message: str) -> None:
    """Of slides that validate, test or are predicted: a task computes targets of all."""
    with pytest.raises(ConfigError, match=message):
        task.targets(slides([None, None], **columns))


def test_numbers_are_learnt_in_units_of_their_spread() -> None:
    """And predicted in their own units."""
    task = Regression.of(slides([10.0, 20.0, 30.0]))
    assert float(task.loss(torch.tensor([[0.5]]), torch.tensor([20.0]))) == pytest.approx(0.25)
    own = np.array([3.0, 17.5, 41.0])
    wanted = np.mean((np.array([0.5, -1.0, 2.0]) - (own - task.mean) / task.std) ** 2)
    assert float(task.loss(torch.tensor([[0.5], [-1.0], [2.0]]), torch.tensor(own))) == pytest.approx(wanted)
    assert task.predict(torch.tensor([0.5]))["predicted"] == pytest.approx(25)


def test_cox_is_the_partial_likelihood() -> None:
    """Breslow's: a product over events of the risk divided by the sum of the risks at that time."""
    rng = np.random.default_rng(4)
    risk, time, event = rng.normal(size=12), rng.integers(1, 6, 12).astype(float), rng.integers(0, 2, 12)
    likelihood = math.prod(
        math.exp(risk[k]) / sum(math.exp(risk[j]) for j in range(12) if time[j] >= time[k])
        for k in range(12)
        if event[k]
    )
    found = Survival().loss(torch.tensor(risk)[:, None], torch.tensor(np.stack([time, event], 1)))
    assert float(found) == pytest.approx(-math.log(likelihood) / event.sum())


@pytest.mark.parametrize(
    ("task", "targets"),
    [
        (Classification(("a", "b"), (0.5, 1.5), "label"), torch.tensor([1.0, 0, 1, 1])),
        (Regression(2.0, 3.0), torch.tensor([1.0, 5, 2, 4])),
        (Survival(), torch.tensor([[4.0, 1], [3, 0], [2, 1], [1, 1]])),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_loss_that_is_a_mean_over_slides_is_separable(task: Any, targets: torch.Tensor) -> None:
    """Each slide can be trained on by itself; the loss of survival needs all slides of a step."""
    logits = torch.tensor([[0.3], [-0.4], [1.2], [0.1]])
    alone = [float(task.loss(logits[k : k + 1], targets[k : k + 1])) for k in range(len(logits))]
    together = float(task.loss(logits, targets))
    assert task.separable == (together == pytest.approx(sum(alone) / len(alone)))


def test_a_step_without_an_event_has_no_gradient() -> None:
    """Its loss is 0, and its gradient is 0."""
    logits = torch.zeros(3, 1, requires_grad=True)
    Survival().loss(logits, torch.tensor([[1.0, 0], [2, 0], [3, 0]])).backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0], [0], [0]]


def test_concordance_counts_pairs() -> None:
    """Compared with the definition, pair by pair."""
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
def test_classification_metrics_equal_scikit_learn(classes: int) -> None:
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


THREE = Classification(("a", "b", "c"), (1.0, 1.0, 1.0))


def sure_of(numbers: list[int]) -> torch.Tensor:
    """Return logits of three classes with probabilities of nearly 1."""
    logits = torch.full((len(numbers), 3), -9.0, dtype=torch.float64)
    logits[range(len(numbers)), numbers] = 9.0
    return logits


@pytest.mark.parametrize("absent", [0, 1, 2])
def test_a_class_without_a_slide_is_in_no_mean(absent: int) -> None:
    """AUROC and balanced accuracy are means over the classes that slides have, as in scikit-learn."""
    oracle = pytest.importorskip("sklearn.metrics")
    there = [k for k in range(3) if k != absent]
    labels = there * 9
    rng = np.random.default_rng(absent)
    perfect = measure(THREE, sure_of(labels), torch.tensor(labels).double(), bootstrap=200)
    assert all((m.value, m.low, m.high) == pytest.approx((1, 1, 1)) for m in perfect.values())
    logits = torch.from_numpy(rng.normal(size=(18, 3)) + 0.7 * np.eye(3)[labels])
    logits[0] = sure_of([absent])[0]  # a slide that is predicted as the absent class
    chances = torch.softmax(logits, 1).numpy()
    found = measure(THREE, logits, torch.tensor(labels).double(), bootstrap=0)
    each = [oracle.roc_auc_score(np.array(labels) == k, chances[:, k]) for k in there]
    precision = [oracle.average_precision_score(np.array(labels) == k, chances[:, k]) for k in there]
    assert found["auroc"].value == pytest.approx(np.mean(each), abs=1e-6)
    assert found["auprc"].value == pytest.approx(np.mean(precision), abs=1e-6)
    recall = oracle.recall_score(labels, chances.argmax(1), labels=there, average="macro")
    assert found["balanced_accuracy"].value == pytest.approx(recall, abs=1e-6)


def test_resamplings_without_a_rare_class_are_left_out() -> None:
    """For a perfect model and a class with one slide, all intervals are 1 to 1."""
    labels = [0] * 10 + [1] * 10 + [2]
    for metric in measure(THREE, sure_of(labels), torch.tensor(labels).double(), bootstrap=300).values():
        assert (metric.value, metric.low, metric.high) == pytest.approx((1, 1, 1))


def test_a_missed_rare_class_lowers_every_resampling() -> None:
    """The interval is of the mean over three classes, never of the two easy ones: it ends below 1."""
    labels = [0] * 10 + [1] * 10 + [2] * 2
    logits = sure_of(labels)
    logits[-2:, 2] = -30.0  # the rare class gets the lowest probability where it is
    found = measure(THREE, logits, torch.tensor(labels).double(), bootstrap=300)["auroc"]
    assert found.value == pytest.approx(2 / 3, abs=0.05)
    assert found.high < 0.8


@pytest.mark.parametrize(("patients", "has"), [(2, False), (9, False), (10, True)])
def test_few_patients_have_no_interval(patients: int, has: bool) -> None:
    """For any number of slides; a note says so."""
    rows = np.repeat(range(patients), 4)
    targets = torch.from_numpy(rows % 2).double()
    logits = torch.from_numpy(np.random.default_rng(2).normal(size=(len(rows), 1)))
    task = Classification(("0", "1"), (1.0, 1.0))
    for metric in measure(task, logits, targets, groups=rows, bootstrap=100).values():
        assert math.isnan(metric.low) is not has
    note = interval_note(task, targets, rows.tolist())
    assert note == (None if has else f"no intervals: {patients} patients, fewer than 10")


def test_a_note_warns_of_intervals_with_few_outcomes() -> None:
    """An interval depends on the scarcest class, or on the events."""
    one = torch.tensor([0.0] * 20 + [1.0] * 3)
    output = "intervals rest on 3 patients with label 1: too few to trust them"
    assert interval_note(Classification(("0", "1"), (1.0, 1.0)), one, range(23)) == output
    events = torch.stack([torch.arange(23).double(), one], 1)
    assert "3 patients with event 1" in str(interval_note(Survival(), events, range(23)))


def test_risks_of_several_models_are_not_compared() -> None:
    """The risks of a Cox model have no origin: the C-index is counted within models."""
    rng = np.random.default_rng(3)
    targets = np.stack([rng.integers(1, 40, 60), rng.integers(0, 2, 60)], 1).astype(float)
    risk, models = rng.normal(size=(60, 1)) - targets[:, :1] / 20, np.repeat([0, 1, 2], 20)
    right = pairs = 0.0
    for a, b in itertools.permutations(range(60), 2):
        (time, event), (other, happened) = targets[a], targets[b]
        if models[a] == models[b] and event and (time < other or (time == other and not happened)):
            pairs += 1
            right += 1.0 if risk[a] > risk[b] else 0.5 if risk[a] == risk[b] else 0.0
    known = torch.from_numpy(targets)
    for shift in (0.0, 2.0):
        shifted = torch.from_numpy(risk + shift * (models == 1)[:, None])
        found = measure(Survival(), shifted, known, strata=models.tolist(), bootstrap=0)["c_index"]
        assert found.value == pytest.approx(right / pairs)


def test_nothing_to_measure_is_refused() -> None:
    """With what to check."""
    with pytest.raises(ConfigError, match="no prediction to measure; look at the splits of the cohort"):
        measure(Survival(), torch.empty(0, 1), torch.empty(0, 2))


@pytest.mark.slow
def test_intervals_resample_patients() -> None:
    """Ten patients with ten identical slides each have an interval as wide as ten slides."""
    rng = np.random.default_rng(8)
    task = Classification(("0", "1"), (1.0, 1.0))
    few, labels = torch.from_numpy(rng.normal(size=(10, 1))), torch.arange(10) % 2
    alone = measure(task, few, labels, bootstrap=400)["auroc"]
    many = measure(
        task, few.repeat_interleave(10, 0), labels.repeat_interleave(10), groups=np.repeat(range(10), 10), bootstrap=400
    )["auroc"]
    assert (alone.low, alone.high) == pytest.approx((many.low, many.high))
    assert alone.low < alone.value < alone.high


def test_a_metric_is_printed_with_its_interval() -> None:
    """With three digits."""
    assert str(Metric(0.91251)) == "0.913"
    assert str(Metric(0.91251, 0.8, 1.0)) == "0.913 (0.800 to 1.000)"


def test_metrics_of_one_class_are_not_defined() -> None:
    """NaN, not an exception during a training."""
    task = Classification(("0", "1"), (1.0, 1.0))
    assert math.isnan(measure(task, torch.randn(5, 1), torch.zeros(5), bootstrap=20)["auroc"].value)


def test_tasks_are_restored_from_their_settings() -> None:
    """As stored in a checkpoint."""
    for task in (Classification(("a", "b"), (1.0, 2.0), "x"), Regression(1.0, 2.0), Survival("t", "e")):
        assert task_of(task.settings()) == task


def test_a_class_is_the_same_in_any_part_of_a_cohort() -> None:
    """The type of a column depends on all its cells; a class does not."""
    cells = ["1", "2", "1.0", "x", "01", "2.50"]
    slides = [CohortSlide(f"{k}.svs", f"{k}.svs", other=(("grade", cell),)) for k, cell in enumerate(cells)]
    task = Classification.of(slides, column="grade")
    assert set(task.classes) == {"1", "2", "2.5", "x", "01"}
    together = task.targets(slides).tolist()
    assert [task.targets([slide]).item() for slide in slides] == together
    assert together[0] == together[2]


def test_classes_may_be_given_as_they_are_written() -> None:
    """As numbers or text, with leading zeros and decimals."""
    slides = [CohortSlide(f"{k}.svs", f"{k}.svs", label=label) for k, label in enumerate([1.0, 2.0, 1.0])]
    for classes in (["1.0", "2.0"], [1, 2], ["1", "2"]):
        assert Classification.of(slides, classes=classes).classes == ("1", "2")
