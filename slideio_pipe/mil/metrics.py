"""How good predictions are, with how sure one can be of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slideio_pipe.errors import ConfigError
from slideio_pipe.mil.extras import needed
from slideio_pipe.mil.tasks import Classification, Regression, Task

Score = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True, slots=True)
class Metric:
    """A number with its confidence interval of 95 %; NaN where it is not defined."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        interval = "" if math.isnan(self.low) else f" ({self.low:.3f} to {self.high:.3f})"
        return f"{self.value:.3f}{interval}"

    def summary(self) -> dict[str, float | None]:
        """Return it JSON-able; None where it is not defined."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


def measure(
    task: Task,
    logits: Tensor,
    targets: Tensor,
    *,
    groups: Sequence[object] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Metric]:
    """Return the metrics of a task, the leading one first.

    Classification: AUROC, AUPRC (average precision; both over classes one against the rest, mean), balanced accuracy,
    accuracy. Regression: R², MAE, Pearson's r. Survival: C-index. From torchmetrics, but the C-index (Harrell 1982:
    the part of the comparable pairs that are in the right order, ties count half).

    Parameters
    ----------
    task : Task
    logits : (n, outputs) tensor
    targets : (n, …) tensor
        See ``Task.targets``.
    groups : sequence, optional
        Patients: resampled together, as slides of one patient are no independent evidence.
    bootstrap : int
        Resamplings, of which the 2.5th and the 97.5th percentile are the interval; 0 for none.
    seed : int
        Of the resampling.

    Raises
    ------
    MissingExtraError
        torchmetrics is not installed.
    """
    if not len(logits):
        raise ConfigError("no prediction to measure", remedy="look at the splits of the cohort")
    scores = _scores(task)
    logits, targets = logits.detach().double().cpu(), targets.cpu()
    found = {name: _value(score, logits, targets) for name, score in scores.items()}
    if not bootstrap:
        return {name: Metric(value) for name, value in found.items()}
    drawn: dict[str, list[float]] = {name: [] for name in scores}
    for rows in _resampled(len(logits), groups, bootstrap, seed):
        for name, score in scores.items():
            drawn[name].append(_value(score, logits[rows], targets[rows]))
    return {name: Metric(value, *_interval(drawn[name])) for name, value in found.items()}


def known_rows(targets: Tensor) -> Tensor:
    """Return which rows of targets, (n,) or (n, 2), are known, (n,) bool; n may be 0."""
    unknown = targets.isnan()
    return ~(unknown.any(1) if unknown.ndim > 1 else unknown)


def _scores(task: Task) -> dict[str, Score]:
    functional = needed("torchmetrics.functional")
    if isinstance(task, Classification):
        count = len(task.classes)
        of = {"num_classes": count, "validate_args": False}

        def over(metric: Callable[..., Tensor], **settings: object) -> Score:
            return lambda logits, targets: _multiclass(metric, task.probabilities(logits), targets, of | settings)

        return {
            "auroc": over(functional.classification.multiclass_auroc),
            "auprc": over(functional.classification.multiclass_average_precision),
            "balanced_accuracy": over(functional.classification.multiclass_accuracy, average="macro"),
            "accuracy": over(functional.classification.multiclass_accuracy, average="micro"),
        }
    if isinstance(task, Regression):
        mean, std = task.mean, task.std
        return {
            "r2": lambda logits, targets: float(functional.r2_score(logits[:, 0] * std + mean, targets)),
            "mae": lambda logits, targets: float(functional.mean_absolute_error(logits[:, 0] * std + mean, targets)),
            "pearson": lambda logits, targets: float(functional.pearson_corrcoef(logits[:, 0], targets)),
        }
    return {"c_index": lambda logits, targets: concordance(logits[:, 0].numpy(), targets.numpy())}


def _multiclass(metric: Callable[..., Tensor], chances: Tensor, targets: Tensor, settings: dict[str, object]) -> float:
    """Return a metric over the classes; that of two classes is the second's."""
    wanted = targets.long()
    if len(torch.unique(wanted)) < 2 and settings.get("average") != "micro":
        return math.nan
    if chances.shape[1] == 2 and "average" not in settings:
        return float(metric(chances, wanted, **settings, average=None)[1])
    return float(metric(chances, wanted, **{"average": "macro"} | settings))


def concordance(risk: NDArray[np.float64], targets: NDArray[np.float64]) -> float:
    """Return Harrell's C-index of risks, (n,), for times and events, (n, 2); NaN without a comparable pair.

    >>> concordance(np.array([3.0, 2.0, 1.0]), np.array([[1.0, 1.0], [2.0, 1.0], [3.0, 0.0]]))
    1.0
    """
    time, event = targets[:, 0], targets[:, 1] == 1
    # Whoever had the event first; of two at one time, the one who had it against the one who was still there.
    before = event[:, None] & ((time[:, None] < time) | ((time[:, None] == time) & ~event))
    pairs = int(before.sum())
    if not pairs:
        return math.nan
    right = (risk[:, None] > risk)[before].sum() + 0.5 * (risk[:, None] == risk)[before].sum()
    return float(right / pairs)


def _value(score: Score, logits: Tensor, targets: Tensor) -> float:
    with warnings.catch_warnings():  # of classes that a resampling lacks: the result is NaN, which is enough
        warnings.simplefilter("ignore")
        try:
            return score(logits, targets)
        except ValueError:  # too few samples
            return math.nan


def _resampled(count: int, groups: Sequence[object] | None, times: int, seed: int) -> list[Tensor]:
    """Return the rows of each resampling: as many groups as there are, drawn with replacement."""
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
