"""The results of a training: metrics, predictions, history and plots."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.patients import CohortPatient
from slideio_pipe.cohort.table import columns_of, csv_bytes
from slideio_pipe.errors import MissingExtraError, SkippedWarning
from slideio_pipe.files import write_file
from slideio_pipe.images import picture
from slideio_pipe.mil.config import TrainConfig, dump
from slideio_pipe.mil.divisions import Division
from slideio_pipe.mil.metrics import Metric, interval_note, known_rows
from slideio_pipe.mil.objective import Objective
from slideio_pipe.mil.plots import metric_name, write_plots
from slideio_pipe.mil.tasks import Classification, Regression, Survival, Task

PARTS = ("val", "test")
PART_NAMES = {"val": "validation"}


@dataclass(frozen=True, slots=True, repr=False)
class Fitted:
    """The results of a training in its folder; printed and shown in notebooks as a table of the metrics."""

    folder: Path
    checkpoints: tuple[Path, ...]  # the best one of each division
    metrics: Mapping[str, Mapping[str, Metric]]  # of "val" and "test": by name
    history: tuple[list[dict[str, Any]], ...]  # per division, a row per epoch
    slides: Mapping[str, int]  # number of labelled slides, or patients, in "val" and "test"
    kept: tuple[int, ...]  # the epoch of each checkpoint, from 0
    notes: Mapping[str, str] = field(default_factory=dict)  # on the intervals of "val" and "test", if any
    unit: str = "slide"  # what is predicted: a slide or a patient

    @property
    def predictions(self) -> Path:
        """The predictions of the validation and test slides."""
        return self.folder / "predictions.csv"

    def table(self) -> list[tuple[str, str, str, str]]:
        """Return (part, metric, value, 95 % interval) of each metric, as text."""
        rows = []
        for part, found in self.metrics.items():
            name = f"{PART_NAMES.get(part, part)}, {self.slides[part]:,} {self.unit}s"
            for key, metric in found.items():
                value = "not defined" if math.isnan(metric.value) else f"{metric.value:.3f}"
                interval = "" if math.isnan(metric.low) else f"{metric.low:.3f} to {metric.high:.3f}"
                rows.append((name, metric_name(key), value, interval))
        return rows

    def course(self) -> str:
        """Return the number of epochs and which was kept, of each division."""
        epochs = ", ".join(str(len(rows)) for rows in self.history)
        kept = ", ".join(str(epoch) for epoch in self.kept)
        return f"{epochs} epochs; kept: epoch{'s' if len(self.kept) > 1 else ''} {kept}, counted from 0"

    def __repr__(self) -> str:
        rows = [("part", "metric", "value", "95 % interval"), *self.table()]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([f"Fitted in {self.folder}: {self.course()}", *lines])

    def _repr_html_(self) -> str:
        facts = {"course": self.course()}
        for part, metric, value, interval in self.table():
            facts[f"{part}: {metric}"] = f"{value} ({interval})" if interval else value
        facts |= {f"note, {PART_NAMES.get(part, part)}": note for part, note in self.notes.items()}
        plots = [self.folder / "plots" / f"{name}.png" for name in ("history", "roc", "regression", "survival")]
        shown = [picture.fit(_pixels(file), 420) for file in plots if file.exists()]
        return picture.card(f"Training in {self.folder}", facts, shown)

    def summary(self) -> dict[str, Any]:
        """Return the results as JSON values; undefined numbers are None."""
        return {
            "folder": str(self.folder),
            "checkpoints": [str(path) for path in self.checkpoints],
            "epochs": [len(rows) for rows in self.history],
            "kept_epochs": list(self.kept),
            "slides": dict(self.slides),
            **({} if self.unit == "slide" else {"unit": self.unit}),
            "metrics": {
                part: {name: metric.summary() for name, metric in found.items()} for part, found in self.metrics.items()
            },
            "notes": dict(self.notes),
        }


def _pixels(file: Path) -> NDArray[np.uint8]:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


@dataclass(slots=True)
class Predicted:
    """The predictions of a division."""

    division: Division
    task: Task
    checkpoint: Path
    kept: int  # epoch of the checkpoint
    history: list[dict[str, Any]]
    parts: dict[str, tuple[Cohort, Tensor, Tensor]]  # "val" and "test": slides, logits, targets


def fitted_of(folder: Path, runs: Sequence[Predicted], config: TrainConfig, objective: Objective) -> Fitted:
    """Return the results of a training, with metrics over all folds together.

    ``objective`` is that of the first division.
    """
    parts = [part for part in PARTS if any(part in run.parts for run in runs)]
    metrics = {part: _measured(runs, part, config, objective) for part in parts}
    counts = {part: len(_pooled(runs, part).slides) for part in parts}
    notes = {part: note for part in parts if config.fit.bootstrap and (note := _note(runs, part)) is not None}
    checkpoints, histories, kept = zip(*((run.checkpoint, run.history, run.kept) for run in runs), strict=True)
    return Fitted(folder, checkpoints, metrics, histories, counts, kept, notes, config.unit)


def write_outcome(fitted: Fitted, runs: Sequence[Predicted], config: TrainConfig) -> None:
    """Write ``config.yaml``, ``predictions.csv``, ``metrics.json`` and the plots."""
    write_config(fitted.folder, config)
    write_file(fitted.predictions, _predictions(runs), overwrite=True)
    text = json.dumps(fitted.summary(), indent=2)
    write_file(fitted.folder / "metrics.json", f"{text}\n".encode(), overwrite=True)
    _draw(fitted, runs)


@dataclass(frozen=True, slots=True)
class _Pooled:
    """The labelled slides of all folds, each predicted by a model that was not trained on it."""

    slides: list[CohortSlide]
    logits: Tensor  # (n, outputs)
    targets: Tensor  # (n, …)
    folds: list[int]  # fold of the model of each prediction

    @property
    def patients(self) -> list[str]:
        return [slide.patient or slide.name for slide in self.slides]


def _pooled(runs: Sequence[Predicted], part: str) -> _Pooled:
    known = [(k, run.task, *run.parts[part]) for k, run in enumerate(runs) if part in run.parts]
    rows = [(slide, k) for k, _, cohort, _, _ in known for slide in cohort]
    logits = [_in_units_of(runs[0].task, task, found) for _, task, _, found, _ in known]
    targets = torch.cat([found for *_, found in known] or [runs[0].task.targets([])])
    labelled = known_rows(targets)
    kept = [row for row, is_known in zip(rows, labelled.tolist(), strict=True) if is_known]
    every = torch.cat([torch.empty(0, runs[0].task.outputs), *logits])
    return _Pooled([slide for slide, _ in kept], every[labelled], targets[labelled], [k for _, k in kept])


def _in_units_of(first: Task, task: Task, logits: Tensor) -> Tensor:
    """Return logits of a fold in units of the first fold: numbers are in units of each fold's own slides."""
    if isinstance(first, Regression) and isinstance(task, Regression):
        return (logits * task.std + task.mean - first.mean) / first.std
    return logits


def _measured(runs: Sequence[Predicted], part: str, config: TrainConfig, objective: Objective) -> dict[str, Metric]:
    found = _pooled(runs, part)
    if not found.slides:
        return {}
    return objective.measure(
        found.logits,
        found.targets,
        groups=found.patients,
        strata=found.folds,
        bootstrap=config.fit.bootstrap,
        seed=config.seed,
    )


def _note(runs: Sequence[Predicted], part: str) -> str | None:
    found = _pooled(runs, part)
    return interval_note(runs[0].task, found.targets, found.patients) if found.slides else None


def _draw(fitted: Fitted, runs: Sequence[Predicted]) -> None:
    """Plot the predictions of the test slides, or else the validation slides, and the history of the training."""
    part = next((name for name in ("test", "val") if fitted.metrics.get(name)), "val")
    found = _pooled(runs, part)
    histories = {run.division.name: run.history for run in runs}
    metrics = fitted.metrics.get(part, {})
    place = fitted.folder / "plots"
    try:
        write_plots(
            place,
            runs[0].task,
            part,
            found.logits,
            found.targets,
            metrics,
            histories,
            strata=found.folds,
            unit=fitted.unit,
        )
    except MissingExtraError as error:  # matplotlib is missing: the training's other files exist
        warnings.warn(f"no plots: {error}", SkippedWarning, stacklevel=2)


def _predictions(runs: Sequence[Predicted]) -> bytes:
    rows = []
    for run in runs:
        for part, (cohort, logits, _) in run.parts.items():
            for slide, logit in zip(cohort, logits, strict=True):
                known = names_of(slide) | {"division": run.division.name}
                rows.append(known | {"split": part, "label": _label(slide, run.task)} | run.task.predict(logit))
    return csv_bytes(columns_of(rows), rows) if rows else b""


def names_of(row: CohortSlide) -> dict[str, Any]:
    """Return the first columns of ``predictions.csv``: the slide and its patient, or the patient and its slides."""
    if isinstance(row, CohortPatient):
        return {"patient": row.name, "slides": len(row.slides)}
    return {"slide": row.name, "patient": row.patient or ""}


def _label(slide: Any, task: Task) -> Any:
    if isinstance(task, Survival):
        time, event = task.targets([slide])[0].tolist()
        return f"{time:g}{'' if event else '+'}"
    value = float(task.targets([slide])[0])
    if math.isnan(value):
        return ""
    return task.classes[int(value)] if isinstance(task, Classification) else value


def write_config(folder: Path, config: TrainConfig) -> None:
    """Write ``config.yaml``, with which the training can be repeated."""
    write_file(folder / "config.yaml", dump(config).encode(), overwrite=True)


def write_history(folder: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write ``history.csv``, a row per epoch."""
    write_file(folder / "history.csv", csv_bytes(history[0], history), overwrite=True)
