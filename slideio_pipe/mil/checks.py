"""Checks before the first epoch, for errors that would otherwise appear after hours, or never."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.patients import unit_of
from slideio_pipe.errors import ConfigError, SkippedWarning, SlideioPipeError, require
from slideio_pipe.features.feature_bag import open_features
from slideio_pipe.mil.columns import class_of
from slideio_pipe.mil.config import FitConfig, TrainConfig
from slideio_pipe.mil.divisions import Division
from slideio_pipe.mil.metrics import comparable
from slideio_pipe.mil.own_parts import OwnParts
from slideio_pipe.mil.tasks import Classification, Survival, Task

_SHOWN = 5
_TEST_TILES = 4096  # number of tiles of the bag for testing a model


def check_divisions(divisions: Sequence[Division], tasks: Sequence[Task], config: TrainConfig) -> None:
    """Refuse divisions that cannot be trained, validated or measured.

    Raise ConfigError if the training slides of a fold lack a class of the others, validation labels cannot be compared,
    or there are fewer training slides than processes.

    Warns
    -----
    SkippedWarning
        Test slides have no label of the training.
    """
    for division, task in zip(divisions, tasks, strict=True):
        _check_classes(divisions, division, task)
        _check_share(division, config.fit)
        _check_validation(division, task, config)


def _check_classes(divisions: Sequence[Division], division: Division, task: Task) -> None:
    """Refuse folds with different classes: their predictions could not be combined."""
    if not isinstance(task, Classification) or len(divisions) == 1:
        return
    slides = [slide for part in (division.train, division.validation, division.test) for slide in part or ()]
    names = [class_of(label) for label in Cohort.unchecked(slides).column(task.column)]
    for name in sorted({name for name in names if name is not None} - set(task.classes)):
        of_class = [slide for slide, its in zip(slides, names, strict=True) if its == name]
        unit = unit_of(of_class)
        patients = sorted({slide.patient or slide.name for slide in of_class})
        who = f"patient {patients[0]}" if len(patients) == 1 else f"{len(patients)} patients"
        shown = ", ".join(slide.name for slide in of_class[:_SHOWN]) + (", …" if len(of_class) > _SHOWN else "")
        raise ConfigError(
            f"no training {unit}{_in(division)} is of class {name!r}, which {who} of the cohort has: {shown}",
            remedy=f"leave these {unit}s out, join the class with another, or split so that every fold trains on it",
        )


def _check_share(division: Division, fit: FitConfig) -> None:
    count = len(division.train)
    if count < fit.devices:
        raise ConfigError(
            f"{count} training {unit_of(division.train)}{'' if count == 1 else 's'}{_in(division)} "
            f"for {fit.devices} devices: each process needs one at least",
            remedy=f"set fit.devices to {count} or lower",
        )


def _check_validation(division: Division, task: Task, config: TrainConfig) -> None:
    """Refuse validation labels that cannot be compared, before hours are spent."""
    for part, cohort in (("val", division.validation), ("test", division.test)):
        if cohort is None:
            continue
        targets = task.targets(list(cohort))
        unknown = targets.isnan().reshape(len(cohort), -1).any(1).tolist()
        names = [slide.name for slide, missing in zip(cohort, unknown, strict=True) if missing]
        unit = unit_of(cohort)
        if names and part == "val":
            raise ConfigError(
                f"{len(names)} validation {unit}s have no valid label: {', '.join(names[:_SHOWN])}",
                remedy=f"fill it in, or leave these {unit}s out",
            )
        if names:
            reason = f"{len(names)} test {unit}s have no valid label, so they are predicted and not measured"
            warnings.warn(f"{reason}: {', '.join(names[:_SHOWN])}", SkippedWarning, stacklevel=4)
        if part == "val" and config.fit.monitor != "none":
            _check_monitor(division, task, targets, config.fit.monitor)


def _check_monitor(division: Division, task: Task, targets: torch.Tensor, monitor: str) -> None:
    """Refuse to choose an epoch by a number that is constant or undefined."""
    count, where, unit = len(targets), _in(division), unit_of(division.train)
    if isinstance(task, Classification) and monitor == "metric" and len(torch.unique(targets)) < 2:
        raise ConfigError(
            f"all {count} validation {unit}s{where} have one label: their AUROC is not defined",
            remedy="set fit.monitor to loss, or fit.validation higher",
        )
    if isinstance(task, Survival) and not comparable(targets.numpy()).any():
        events = int(targets[:, 1].sum())
        raise ConfigError(
            f"no two of the {count} validation {unit}s{where} can be compared ({events} with {task.event} 1): "
            f"their {'C-index' if monitor == 'metric' else 'loss'} is not defined",
            remedy=f"set fit.validation higher, use {unit}s with an event for validation, or set fit.monitor to none",
        )


def _in(division: Division) -> str:
    return f" in {division.name}" if division.name else ""


def try_model(cohort: Cohort, outputs: int, config: TrainConfig, parts: OwnParts) -> None:
    """Refuse a model that does not work on the first bag of features, before the others are read.

    Raise ConfigError if it cannot be made, or does not accept the bag.
    """
    source = cohort[0].source
    try:
        opened = open_features(source, config.encoder.features) if isinstance(source, Path) else None
    except SlideioPipeError:  # reported for all slides together, when they are read
        return
    if opened is None or opened.features.ndim != 2 or not len(opened.features):
        return
    features = torch.from_numpy(np.array(opened.features[:_TEST_TILES])).float()
    places = None if opened.coords is None else np.asarray(opened.coords)[:_TEST_TILES]
    with torch.random.fork_rng(devices=[]):
        try:
            model = parts.build(config, features.shape[1], outputs)
            model.train()(features, places, torch.zeros(()))
        except SlideioPipeError:
            raise
        except Exception as error:  # third-party models may raise anything
            reason = f"model {config.model.name} does not work ({type(error).__name__}: {error})"
            raise ConfigError(reason, remedy="set model.settings as it needs them, or choose another") from error


def made_fabric(fit: FitConfig) -> Any:
    """Return Lightning's Fabric for these settings, not launched yet.

    Raise ConfigError if there is no such precision, accelerator, or number of devices; MissingExtraError if a package
    of the extra is not installed: all are imported here, before hours are spent.
    """
    for module in ("torchmetrics.functional", "tensorboard", "lightning_fabric.loggers"):
        require(module, "train")
    fabric = require("lightning_fabric", "train")
    kind = require("lightning_fabric.utilities.exceptions", "train").MisconfigurationException
    try:
        return fabric.Fabric(accelerator=fit.accelerator, devices=fit.devices, precision=fit.precision)
    except (ValueError, TypeError, RuntimeError, kind) as error:
        reason = " ".join(str(error).split())
        settings = f"fit.precision {fit.precision}, fit.accelerator {fit.accelerator}, fit.devices {fit.devices}"
        raise ConfigError(
            f"cannot train with {settings} ({reason})", remedy="see slideio-pipe config show mil"
        ) from error
