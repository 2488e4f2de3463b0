"""What a training minimises and measures: the task's loss and metrics, or those of the caller."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slideio_pipe.errors import ConfigError
from slideio_pipe.mil.metrics import Metric, Score, measure
from slideio_pipe.mil.tasks import Classification, Regression, Task


class OwnLoss(Protocol):
    """What a loss of one's own should be, for ``fit(loss=…)`` or ``task.loss``: a function or an ``nn.Module``.

    ``logits`` are those of the slides of a step (``fit.bags_per_step``), (n, outputs) float32, with one output for two
    classes, a number or a risk. ``targets`` are the numbers of the classes, (n,) int64; numbers in units of the
    standard deviation of the training slides, (n,); or times and events, (n, 2). The weights of rare classes
    (``task.balanced``) are those of the built-in loss and not used.

    Examples
    --------
    >>> from torch.nn.functional import binary_cross_entropy_with_logits
    >>> def focal(logits, targets):
    ...     each = binary_cross_entropy_with_logits(logits[:, 0], targets.float(), reduction="none")
    ...     return ((1 - torch.exp(-each)) ** 2 * each).mean()
    >>> focal(torch.tensor([[0.0], [3.0]]), torch.tensor([0, 1]))
    tensor(0.0867)
    """

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the scalar loss."""


class OwnMetric(Protocol):
    """What a metric of one's own should be, for ``fit(metric=…)`` or ``task.metric``; a larger value is better.

    ``predictions`` are probabilities, (n, classes); numbers, (n,); or risks, (n,): float64, of all slides. ``targets``
    are the numbers of the classes, (n,) int64; numbers, (n,); or times and events, (n, 2). So functions of
    torchmetrics fit. It is the leading metric: ``fit.monitor: metric`` chooses the epoch by it. NaN: not defined.

    Examples
    --------
    >>> def recall_of_second(predictions, targets):
    ...     return (predictions[targets == 1, 1] > 0.5).float().mean()
    >>> recall_of_second(torch.tensor([[0.2, 0.8], [0.6, 0.4]]), torch.tensor([1, 1]))
    tensor(0.5000)
    """

    def __call__(self, predictions: Tensor, targets: Tensor) -> Tensor | float:
        """Return a number."""


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss and the metrics of a training."""

    task: Task
    own_loss: OwnLoss | None = None
    own_metric: OwnMetric | None = None

    @property
    def separable(self) -> bool:
        """Whether the loss of several slides is the mean of their losses."""
        return self.own_loss is None and self.task.separable

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the scalar loss of (n, outputs) logits; ``targets`` are those of the task."""
        if self.own_loss is None:
            return self.task.loss(logits, targets)
        if isinstance(self.own_loss, nn.Module):
            self.own_loss.to(logits.device)
        return self.own_loss(logits, _targets_of_loss(self.task, logits, targets))

    def measure(self, logits: Tensor, targets: Tensor, **how: Any) -> dict[str, Metric]:
        """Return the metrics, the leading one first; see ``measure``."""
        return measure(self.task, logits, targets, own=self.own_scores(), **how)

    def own_scores(self) -> dict[str, Score]:
        """Return the caller's metric by name, if there is one."""
        metric = self.own_metric
        return {} if metric is None else {metric_column(metric): _score(self.task, metric)}

    def check(self, targets: Tensor, bags_per_step: int) -> None:
        """Try loss and metric on made logits and the targets of the training; raise ConfigError if they do not fit."""
        if self.own_loss is not None:
            _check_loss(self, targets[:bags_per_step])
        if self.own_metric is not None:
            _check_metric(self, targets)


def metric_column(metric: Any) -> str:
    """Return the name of a metric in tables: that of the function or its class.

    >>> metric_column(max), metric_column(lambda predictions, targets: 0.0)
    ('max', 'metric')
    """
    name = getattr(metric, "__name__", type(metric).__name__)
    found = re.sub(r"\W+", "_", name).strip("_").lower()
    return "metric" if found in ("", "lambda", "partial", "loss") else found


def _targets_of_loss(task: Task, logits: Tensor, targets: Tensor) -> Tensor:
    if isinstance(task, Classification):
        return targets.long()
    if isinstance(task, Regression):
        return ((targets - task.mean) / task.std).to(logits.dtype)
    return targets.to(logits.dtype)


def _score(task: Task, metric: OwnMetric) -> Score:
    def score(logits: Tensor, targets: Tensor, strata: NDArray[np.int64]) -> float:
        if isinstance(task, Classification):
            return float(metric(task.probabilities(logits), targets.long()))
        if isinstance(task, Regression):
            return float(metric(logits[:, 0] * task.std + task.mean, targets))
        # Risks of two models have no common zero: the mean of each model's, weighted by its slides.
        parts = [torch.from_numpy(strata == stratum) for stratum in np.unique(strata)]
        values = [float(metric(logits[rows, 0], targets[rows])) * int(rows.sum()) for rows in parts]
        return sum(values) / len(logits)

    return score


def _check_loss(objective: Objective, targets: Tensor) -> None:
    loss, name = objective.own_loss, _name(objective.own_loss)
    if isinstance(loss, nn.Module) and any(value.requires_grad for value in loss.parameters()):
        raise ConfigError("has parameters, and only model and encoder are trained", slide=name, remedy="use buffers")
    logits = _made_logits(objective.task, len(targets)).float().requires_grad_()
    given = _targets_of_loss(objective.task, logits, targets)
    of = f"of logits {tuple(logits.shape)} and targets {tuple(given.shape)}"
    found = _called(name, "the loss", of, lambda: objective.loss(logits, targets))
    if not isinstance(found, Tensor) or found.ndim:
        what = tuple(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise ConfigError(f"the loss {of} is {what}, no scalar tensor", slide=name, remedy="return its mean or sum")
    if not found.requires_grad:
        remedy = "compute it from the logits with torch"
        raise ConfigError(f"the loss {of} has no gradient", slide=name, remedy=remedy)
    value = float(found.detach())
    if not math.isfinite(value):
        raise ConfigError(f"the loss {of} is {value}", slide=name, remedy="look for a logarithm or division of 0")


def _check_metric(objective: Objective, targets: Tensor) -> None:
    name = _name(objective.own_metric)
    logits, strata = _made_logits(objective.task, len(targets)).double(), np.zeros(len(targets), np.int64)
    score = next(iter(objective.own_scores().values()))
    _called(
        name,
        "the metric",
        f"of predictions and targets of {len(targets)} slides",
        lambda: score(logits, targets, strata),
    )


def _made_logits(task: Task, count: int) -> Tensor:
    return torch.randn(count, task.outputs, generator=torch.Generator().manual_seed(0))


def _called(name: str, what: str, of: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # any code may run in it
        message = next(iter(str(error).strip().splitlines()), "")
        remedy = f"see slideio_pipe.{'OwnLoss' if what == 'the loss' else 'OwnMetric'} for what it gets"
        raise ConfigError(
            f"{what} {of} fails ({type(error).__name__}: {message})", slide=name, remedy=remedy
        ) from error


def _name(given: Any) -> str:
    return str(getattr(given, "__name__", type(given).__name__))
