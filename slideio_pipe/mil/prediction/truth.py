"""Measure predictions against known labels, separately for slides of the training and others."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.patients import counted
from slideio_pipe.errors import ConfigError, MissingExtraError, SlideioPipeWarning, warn_caller
from slideio_pipe.mil.fingerprints import PARTS
from slideio_pipe.mil.metrics import Metric, interval_note, known_rows, measure
from slideio_pipe.mil.prediction.prediction import Prediction
from slideio_pipe.mil.tasks import Survival, Task

NEW = "new"  # the part of slides that are not in the training


@dataclass(frozen=True, slots=True)
class Measured:
    """Metrics of a set of slides."""

    slides: int = 0  # number of slides with a known label
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    note: str | None = None  # note on their intervals, if any

    def summary(self) -> dict[str, Any]:
        """Return it as JSON values."""
        metrics = {name: metric.summary() for name, metric in self.metrics.items()}
        return {"measured": self.slides, "metrics": metrics, "note": self.note}


@dataclass(frozen=True, slots=True)
class Predicted:
    """A slide with its label, and its prediction."""

    slide: CohortSlide
    prediction: Prediction
    part: str  # part of the training: train, val, test, or new


def measure_predictions(task: Task, found: Sequence[Predicted], bootstrap: int) -> tuple[Measured, dict[str, Measured]]:
    """Return metrics of all slides with known labels, and of each part of the training among them.

    Warn with SlideioPipeWarning if measured slides were used for training or for choosing the epoch, or nothing can be
    measured; it gives the reason.
    """
    nothing = Measured(), dict[str, Measured]()
    if not _has_columns(task, [one.slide for one in found]):
        return nothing
    try:
        targets = task.targets([one.slide for one in found])
        rows = known_rows(targets).nonzero().flatten().tolist()
        if not rows:
            return nothing
        known = [found[row] for row in rows]
        parts = {}
        for part in (*PARTS, NEW):
            of_part = [k for k, one in enumerate(known) if one.part == part]
            if of_part:
                chosen = targets[[rows[k] for k in of_part]]
                parts[part] = _measured(task, [known[k] for k in of_part], chosen, bootstrap)
        every = next(iter(parts.values())) if len(parts) == 1 else _measured(task, known, targets[rows], bootstrap)
    except (ConfigError, MissingExtraError) as error:  # predictions are still written
        warnings.warn(f"predictions are not measured: {error}", SlideioPipeWarning, stacklevel=4)
        return nothing
    _warn_of_trained(parts, counted(len(known), [one.slide for one in known]))
    return every, parts


def _measured(task: Task, found: Sequence[Predicted], targets: torch.Tensor, bootstrap: int) -> Measured:
    logits = torch.from_numpy(np.stack([one.prediction.logits for one in found]))
    patients = [one.prediction.patient or one.slide.name for one in found]
    metrics = measure(task, logits, targets, groups=patients, bootstrap=bootstrap)
    return Measured(len(found), metrics, interval_note(task, targets, patients) if bootstrap else None)


def _has_columns(task: Task, slides: Sequence[CohortSlide]) -> bool:
    """Return whether the cohort has the task's columns."""
    columns = {task.time, task.event} if isinstance(task, Survival) else {str(task.settings()["column"])}
    return all(name == "label" or any(name in dict(slide.other) for slide in slides) for name in columns)


def _warn_of_trained(parts: Mapping[str, Measured], count: str) -> None:
    """Warn that metrics of training slides do not hold for other slides."""
    roles = {"train": "were used to train the model", "val": "were used to choose its epoch"}
    found = [f"{parts[part].slides:,} {what}" for part, what in roles.items() if part in parts]
    if found:
        reason = f"of {count} with a known truth {' and '.join(found)}: their metrics do not hold for other slides"
        warn_caller(SlideioPipeWarning(reason))
