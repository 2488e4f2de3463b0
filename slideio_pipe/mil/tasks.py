"""Prediction tasks for a slide: its class, a number, or the time until an event."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.errors import ConfigError
from slideio_pipe.mil.columns import class_of, event_of, number_of, read_column, refuse_missing

TASKS = ("classification", "regression", "survival")


class Task(Protocol):
    """The target of a model; made from the training slides, stored in the checkpoint."""

    @property
    def outputs(self) -> int:
        """Number of logits of the model."""

    @property
    def separable(self) -> bool:
        """Whether the loss of several slides is the mean of their losses."""

    def targets(self, slides: Sequence[CohortSlide]) -> Tensor:
        """Return the targets of slides, (n, …) float64, NaN if unknown."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the scalar loss of (n, outputs) logits."""

    def predict(self, logits: Tensor) -> dict[str, Any]:
        """Return the prediction for one slide's logits, by column of ``predictions.csv``."""

    def settings(self) -> dict[str, Any]:
        """Return the arguments of ``task_of``, as JSON values."""


@dataclass(frozen=True, slots=True)
class Classification:
    """One of several classes; for two classes one logit: that of the second.

    The loss is cross-entropy, each slide weighted by its class; weights have mean 1 over the training slides.
    """

    classes: tuple[str, ...]
    weights: tuple[float, ...]  # one per class
    column: str = "label"
    separable: ClassVar[bool] = True

    @classmethod
    def of(
        cls,
        slides: Sequence[CohortSlide],
        *,
        column: str = "label",
        classes: Sequence[str] | None = None,
        balanced: bool = True,
    ) -> Classification:
        """Return the task for the labels of training slides.

        Raise ConfigError if labels are missing or unknown, or there are fewer than two classes.
        """
        values = [class_of(value) for value in _column(slides, column)]
        refuse_missing(slides, [value is None for value in values], column)
        counts = Counter(str(value) for value in values)
        names = (
            tuple(class_of(name) or str(name) for name in classes) if classes else tuple(sorted(counts, key=_in_order))
        )
        unknown = sorted(set(counts) - set(names))
        if unknown:
            raise ConfigError(
                f"labels {', '.join(unknown)} are none of the classes {', '.join(names)}", remedy="add them to classes"
            )
        absent = [name for name in names if not counts[name]]
        if len(names) < 2 or absent:
            only = f"no training slide is {absent[0]!r}" if absent and len(names) > 1 else f"all are {names[0]!r}"
            raise ConfigError(f"classification needs two classes at least: {only}", remedy="look at labels and splits")
        total = len(values)
        weights = tuple(total / (len(names) * counts[name]) if balanced else 1.0 for name in names)
        return cls(names, weights, column)

    @property
    def outputs(self) -> int:
        return 1 if len(self.classes) == 2 else len(self.classes)

    def targets(self, slides: Sequence[CohortSlide]) -> Tensor:
        """Return the number of each slide's class, (n,)."""
        number = {name: float(k) for k, name in enumerate(self.classes)}
        return _tensor(number.get(class_of(value) or "", math.nan) for value in _column(slides, self.column))

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        classes = targets.long()
        weights = torch.tensor(self.weights, dtype=logits.dtype, device=logits.device)[classes]
        if self.outputs == 1:
            each = functional.binary_cross_entropy_with_logits(logits[:, 0], targets.to(logits.dtype), reduction="none")
        else:
            each = functional.cross_entropy(logits, classes, reduction="none")
        return (each * weights).mean()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return (n, classes) of (n, outputs) logits, in double precision."""
        logits = logits.double()
        if self.outputs == 1:
            return torch.cat([torch.sigmoid(-logits), torch.sigmoid(logits)], 1)
        return torch.softmax(logits, 1)

    def predict(self, logits: Tensor) -> dict[str, Any]:
        chances = self.probabilities(logits.reshape(1, -1))[0].tolist()
        best = max(range(len(chances)), key=chances.__getitem__)
        return {"predicted": self.classes[best]} | {
            f"probability_{name}": chance for name, chance in zip(self.classes, chances, strict=True)
        }

    def settings(self) -> dict[str, Any]:
        return {
            "task": "classification",
            "classes": list(self.classes),
            "weights": list(self.weights),
            "column": self.column,
        }


@dataclass(frozen=True, slots=True)
class Regression:
    """A number; the loss is the squared error in units of the training slides' standard deviation."""

    mean: float
    std: float
    column: str = "label"
    outputs: ClassVar[int] = 1
    separable: ClassVar[bool] = True

    @classmethod
    def of(cls, slides: Sequence[CohortSlide], *, column: str = "label") -> Regression:
        """Return the task for the numbers of training slides.

        Raise ConfigError if numbers are missing, or all equal.
        """
        values = cls(0.0, 1.0, column).targets(slides)
        refuse_missing(slides, values.isnan().tolist(), column)
        spread = float(values.std()) if len(values) > 1 else 0.0
        if not spread > 0:
            raise ConfigError(f"every {column} of the training slides is {values[0]:g}", remedy="look at the labels")
        return cls(float(values.mean()), spread, column)

    def targets(self, slides: Sequence[CohortSlide]) -> Tensor:
        """Return the number of each slide, (n,); raise ConfigError if some labels are not numbers."""
        return _tensor(read_column(slides, _column(slides, self.column), self.column, number_of))

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return functional.mse_loss(logits[:, 0], ((targets - self.mean) / self.std).to(logits.dtype))

    def predict(self, logits: Tensor) -> dict[str, Any]:
        return {"predicted": float(logits.double().reshape(-1)[0]) * self.std + self.mean}

    def settings(self) -> dict[str, Any]:
        return {"task": "regression", "mean": self.mean, "std": self.std, "column": self.column}


@dataclass(frozen=True, slots=True)
class Survival:
    """The logarithm of a hazard: the larger, the earlier the event.

    The loss is Cox's negative partial likelihood (1972) over the slides of a step, with Breslow's treatment of ties
    (1974), divided by the number of events.
    """

    time: str = "time"
    event: str = "event"
    outputs: ClassVar[int] = 1
    separable: ClassVar[bool] = False

    @classmethod
    def of(cls, slides: Sequence[CohortSlide], *, time: str = "time", event: str = "event") -> Survival:
        """Return the task for the times and events of training slides.

        Raise ConfigError if times or events are missing or impossible, or no event happened.
        """
        task = cls(time, event)
        known = task.targets(slides)
        refuse_missing(slides, known.isnan().any(1).tolist(), f"{time} and {event}")
        if not bool((known[:, 1] == 1).any()):
            raise ConfigError(f"no training slide has an {event}", remedy="look at the cohort and its splits")
        return task

    def targets(self, slides: Sequence[CohortSlide]) -> Tensor:
        """Return time and event, (n, 2).

        Raise ConfigError if times are negative or not numbers, or events are neither 0 nor 1.
        """
        times = read_column(
            slides, _column(slides, self.time), self.time, number_of,
            wrong=lambda time: not time >= 0, wanted="a time from 0 on",
        )  # fmt: skip
        events = read_column(
            slides, _column(slides, self.event), self.event, event_of,
            wrong=lambda event: event not in (0, 1), wanted="1 or 0",
        )  # fmt: skip
        return torch.stack([_tensor(times), _tensor(events)], 1)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        risk, time, event = logits[:, 0], targets[:, 0], targets[:, 1].to(logits.dtype)
        later = time[None, :] >= time[:, None]  # row: slides still at risk at the time of this slide
        at_risk = torch.logsumexp(risk[None, :].masked_fill(~later, -math.inf), 1)
        return -((risk - at_risk) * event).sum() / event.sum().clamp(min=1)

    def predict(self, logits: Tensor) -> dict[str, Any]:
        return {"risk": float(logits.double().reshape(-1)[0])}

    def settings(self) -> dict[str, Any]:
        return {"task": "survival", "time": self.time, "event": self.event}


def task_of(settings: Mapping[str, Any]) -> Task:
    """Return the task of a checkpoint.

    >>> task_of(Survival("months", "dead").settings())
    Survival(time='months', event='dead')
    """
    known = dict(settings)
    kind = known.pop("task")
    if kind == "classification":
        return Classification(tuple(known["classes"]), tuple(known["weights"]), known["column"])
    return Regression(**known) if kind == "regression" else Survival(**known)


def _column(slides: Sequence[CohortSlide], name: str) -> list[Any]:
    return Cohort.unchecked(slides).column(name)


def _in_order(name: str) -> tuple[float, str]:
    """Sort key: numbers by value, before text."""
    number = number_of(name)
    return (math.inf, name) if math.isnan(number) else (number, name)


def _tensor(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


Kind = Literal["classification", "regression", "survival"]
