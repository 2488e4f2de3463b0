"""Metrics of predictions, with confidence intervals."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slideio_pipe.errors import ConfigError, require
from slideio_pipe.mil.tasks import Classification, Regression, Survival, Task

Score = Callable[[Tensor, Tensor, NDArray[np.int64]], float]  # of logits, targets and strata

# With fewer patients there is no interval: 10 give 92,378 different resamplings, 4 give 35 and 2 give 3. Percentile
# intervals of 95 % contain the true AUROC in 93 % of samples of 20 patients, 87 % of 10, 72 % of 6 and 51 % of 4; with
# 2 patients of one class and 50 of the other in 65 % (tests/benchmarks/intervals.py).
MIN_PATIENTS = 10


@dataclass(frozen=True, slots=True)
class Metric:
    """A number with its confidence interval of 95 %; NaN if undefined."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        interval = "" if math.isnan(self.low) else f" ({self.low:.3f} to {self.high:.3f})"
        return f"{self.value:.3f}{interval}"

    def summary(self) -> dict[str, float | None]:
        """Return it as JSON values; None if undefined."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


def measure(
    task: Task,
    logits: Tensor,
    targets: Tensor,
    *,
    groups: Sequence[object] | None = None,
    strata: Sequence[int] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    own: Mapping[str, Score] | None = None,
) -> dict[str, Metric]:
    """Return the metrics of a task, the leading one first.

    Classification: AUROC, AUPRC (average precision; both one against the rest, averaged over classes), balanced
    accuracy (mean recall), accuracy; a class without slides does not count in the means. Regression: R², MAE, Pearson's
    r. Survival: C-index (Harrell 1982: the fraction of comparable pairs in the right order, ties count half). All are
    torchmetrics' except the C-index, which it lacks, and the intervals: its bootstrap does not resample patients. Raise
    ConfigError if there are no predictions, MissingExtraError if torchmetrics is not installed.

    Parameters
    ----------
    task : Task
    logits : (n, outputs) tensor
    targets : (n, …) tensor
        See ``Task.targets``.
    groups : sequence, optional
        Patients: resampled together, because slides of one patient are not independent.
    strata : sequence of int, optional
        The model of each prediction. Risks of two Cox models have no common zero, so the C-index compares only slides
        of one stratum.
    bootstrap : int
        Number of resamplings; the interval is their 2.5th to 97.5th percentile; 0: no interval. Resamplings without
        one of the slides' classes are dropped. Fewer than ``MIN_PATIENTS`` patients have no interval.
    seed : int
        Seed of the resampling.
    own : mapping, optional
        Metrics of the caller, before the others.
    """
    if not len(logits):
        raise ConfigError("no prediction to measure", remedy="look at the splits of the cohort")
    scores = dict(own or {})
    scores |= {name: score for name, score in _scores(task).items() if name not in scores}
    logits, targets = logits.detach().double().cpu(), targets.cpu()
    models = np.zeros(len(logits), np.int64) if strata is None else np.asarray(strata, np.int64)
    found = {name: _value(score, logits, targets, models) for name, score in scores.items()}
    patients = len(logits) if groups is None else len(set(groups))
    if not bootstrap or patients < MIN_PATIENTS:
        return {name: Metric(value) for name, value in found.items()}
    classes = torch.unique(targets) if isinstance(task, Classification) else torch.empty(0)
    drawn: dict[str, list[float]] = {name: [] for name in scores}
    for rows in _resampled(len(logits), groups, bootstrap, seed):
        lacks_class = bool(len(classes)) and len(torch.unique(targets[rows])) < len(classes)
        for name, score in scores.items():
            if lacks_class and name != "accuracy":  # the mean would be over other classes
                continue
            drawn[name].append(_value(score, logits[rows], targets[rows], models[rows.numpy()]))
    return {name: Metric(value, *_interval(drawn[name])) for name, value in found.items()}


def interval_note(task: Task, targets: Tensor, groups: Sequence[object]) -> str | None:
    """Return why intervals are missing or unreliable, or None.

    >>> interval_note(Regression(0.0, 1.0), torch.zeros(2), ["a", "b"])
    'no intervals: 2 patients, fewer than 10'
    """
    patients = len(set(groups))
    if patients < MIN_PATIENTS:
        return f"no intervals: {patients} patient{'' if patients == 1 else 's'}, fewer than {MIN_PATIENTS}"
    for name, rows in _outcomes(task, targets).items():
        count = len({group for group, of in zip(groups, rows.tolist(), strict=True) if of})
        if 0 < count < MIN_PATIENTS // 2:
            return f"intervals rest on {count} patient{'' if count == 1 else 's'} with {name}: too few to trust them"
    return None


def _outcomes(task: Task, targets: Tensor) -> dict[str, Tensor]:
    """Return the rows of every outcome for which an interval needs enough patients."""
    if isinstance(task, Classification):
        return {f"{task.column} {name}": targets == number for number, name in enumerate(task.classes)}
    return {f"{task.event} 1": targets[:, 1] == 1} if isinstance(task, Survival) else {}


def known_rows(targets: Tensor) -> Tensor:
    """Return the mask (n,) of known targets, (n,) or (n, 2); n may be 0."""
    unknown = targets.isnan()
    return ~(unknown.any(1) if unknown.ndim > 1 else unknown)


def _scores(task: Task) -> dict[str, Score]:
    functional = require("torchmetrics.functional", "train")
    if isinstance(task, Classification):
        count = len(task.classes)
        of = {"num_classes": count, "validate_args": False}

        def over(metric: Callable[..., Tensor], *, every_class: bool) -> Score:
            return lambda logits, targets, _: _over_classes(
                metric, task.probabilities(logits), targets, of, every_class=every_class
            )

        def accuracy(logits: Tensor, targets: Tensor, _: object) -> float:
            found = functional.classification.multiclass_accuracy
            return float(found(task.probabilities(logits), targets.long(), average="micro", **of))

        return {
            "auroc": over(functional.classification.multiclass_auroc, every_class=False),
            "auprc": over(functional.classification.multiclass_average_precision, every_class=False),
            "balanced_accuracy": over(functional.classification.multiclass_accuracy, every_class=True),
            "accuracy": accuracy,
        }
    if isinstance(task, Regression):
        mean, std = task.mean, task.std
        return {
            "r2": lambda logits, targets, _: float(functional.r2_score(logits[:, 0] * std + mean, targets)),
            "mae": lambda logits, targets, _: float(functional.mean_absolute_error(logits[:, 0] * std + mean, targets)),
            "pearson": lambda logits, targets, _: float(functional.pearson_corrcoef(logits[:, 0], targets)),
        }
    return {"c_index": lambda logits, targets, models: concordance(logits[:, 0].numpy(), targets.numpy(), models)}


def _over_classes(
    metric: Callable[..., Tensor],
    chances: Tensor,
    targets: Tensor,
    settings: Mapping[str, object],
    *,
    every_class: bool,
) -> float:
    """Return the mean of a metric over the classes that occur; for two classes the second's, or both.

    torchmetrics' own mean counts a class without slides as 0.
    """
    classes = targets.long()
    present = torch.unique(classes)
    if len(present) < 2:
        return math.nan
    each = metric(chances, classes, average=None, **settings)
    return float(each[1]) if len(each) == 2 and not every_class else float(each[present].mean())


def concordance(
    risk: NDArray[np.float64], targets: NDArray[np.float64], strata: NDArray[np.int64] | None = None
) -> float:
    """Return Harrell's C-index of risks, (n,), for times and events, (n, 2); NaN without a comparable pair.

    With ``strata``, (n,), only pairs within a stratum count.

    >>> concordance(np.array([3.0, 2.0, 1.0]), np.array([[1.0, 1.0], [2.0, 1.0], [3.0, 0.0]]))
    1.0
    """
    before = comparable(targets)
    if strata is not None:
        before &= strata[:, None] == strata
    pairs = int(before.sum())
    if not pairs:
        return math.nan
    right = (risk[:, None] > risk)[before].sum() + 0.5 * (risk[:, None] == risk)[before].sum()
    return float(right / pairs)


def comparable(targets: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return the pairs, (n, n), whose first had the event while the second was known to be event-free."""
    time, event = targets[:, 0], targets[:, 1] == 1
    # At equal times: one with the event against one censored.
    found: NDArray[np.bool_] = event[:, None] & ((time[:, None] < time) | ((time[:, None] == time) & ~event))
    return found


def _value(score: Score, logits: Tensor, targets: Tensor, models: NDArray[np.int64]) -> float:
    with warnings.catch_warnings():  # warnings on missing classes of a resampling, whose result is NaN
        warnings.simplefilter("ignore")
        try:
            return score(logits, targets, models)
        except ValueError:  # too few samples
            return math.nan


def _resampled(count: int, groups: Sequence[object] | None, times: int, seed: int) -> list[Tensor]:
    """Return the rows of each resampling: the same number of groups, drawn with replacement."""
    members: dict[object, list[int]] = {}
    for row, group in enumerate(range(count) if groups is None else groups):
        members.setdefault(group, []).append(row)
    rows = list(members.values())
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(rows), size=(times, len(rows)))
    return [torch.tensor([row for group in draw for row in rows[group]]) for draw in draws]


def _interval(values: Sequence[float]) -> tuple[float, float]:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return math.nan, math.nan
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)
