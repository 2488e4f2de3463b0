"""Divide a cohort into training, validation and test slides: by its splits or folds, or drawn by patient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from slideio_pipe.cohort.checks import is_misspelt
from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.patients import counted, unit_of
from slideio_pipe.cohort.split_names import NAMES, split_of
from slideio_pipe.cohort.splits import fold_cohort, split_cohort
from slideio_pipe.errors import ConfigError, SkippedWarning, warn_caller
from slideio_pipe.mil.config import FitConfig, TaskConfig

PARTS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Division:
    """The slides of one training."""

    name: str  # "" for a single division, else "fold-0", …
    train: Cohort
    validation: Cohort | None
    test: Cohort | None


def divide(cohort: Cohort, fit: FitConfig, seed: int, task: TaskConfig | None = None) -> Iterator[Division]:
    """Yield the divisions of a cohort: one, or one per fold.

    With folds, each is the test set once: the cohort's own, or ``fit.folds`` of them. Otherwise the column "split"
    gives "train", "val" and "test", by any name in ``split_names.NAMES``. Without a validation split,
    ``fit.validation`` of the training patients is drawn. Draws are stratified by what ``task`` predicts: classes,
    quartiles of numbers, or events. Raise ConfigError if no slide is left for training, the cohort has another number
    of folds, or a split name looks misspelt.

    Warns
    -----
    SkippedWarning
        Some slides are in other splits, and are left out.
    """
    task = task or TaskConfig()
    column = task.event if task.kind == "survival" else task.label
    if fit.folds is None:
        yield _by_split(cohort, fit, seed, column)
        return
    if all(slide.fold is None for slide in cohort):
        cohort = fold_cohort(cohort, fit.folds, seed=seed, stratify=column)
    folds = sorted({slide.fold for slide in cohort if slide.fold is not None})
    if len(folds) != fit.folds or any(slide.fold is None for slide in cohort):
        raise ConfigError(
            f"{fit.folds} folds are wanted, the cohort has {len(folds)}"
            + (", and slides in none" if any(slide.fold is None for slide in cohort) else ""),
            remedy="split it again: slideio-pipe split COHORT --folds",
        )
    for fold in folds:
        rest = [slide for slide in cohort if slide.fold != fold]
        train, validation = _validation(rest, fit, seed, column)
        yield Division(f"fold-{fold}", train, validation, cohort.where(fold=fold))


def _by_split(cohort: Cohort, fit: FitConfig, seed: int, column: str) -> Division:
    splits = {split_of(slide.split) for slide in cohort}
    known = {"train", "val"} & splits
    trained_on = "train" if known else None  # a cohort without splits is used for training as a whole
    learning = [slide for slide in cohort if split_of(slide.split) in ("train", trained_on)]
    _refuse_misspelt(cohort)
    if not learning:
        available = ", ".join(sorted(str(name) for name in splits if name is not None)) or "none"
        reason = f"no {unit_of(cohort)} to train on (splits: {available})"
        raise ConfigError(reason, remedy='fill the column "split" with train')
    _warn_of_unused(cohort, used=("train", "val", "test", trained_on))
    test = cohort.where(split="test") if "test" in splits else None
    if "val" in splits:
        return Division("", Cohort.unchecked(learning), cohort.where(split="val"), test)
    train, validation = _validation(learning, fit, seed, column)
    return Division("", train, validation, test)


def _refuse_misspelt(cohort: Cohort) -> None:
    counts = Counter(slide.split for slide in cohort if slide.split is not None and split_of(slide.split) not in PARTS)
    for name, count in counts.items():
        intended = next((known for known in NAMES if is_misspelt(name, known)), None)
        if intended is not None:
            reason = f"split {name!r} ({counted(count, cohort)}) looks like {intended!r}"
            raise ConfigError(reason, remedy='correct the column "split"')


def _warn_of_unused(cohort: Cohort, *, used: Sequence[str | None]) -> None:
    counts = Counter(slide.split or "none" for slide in cohort if split_of(slide.split) not in used)
    if counts:
        each = ", ".join(f"{name} ({counted(count, cohort)})" for name, count in counts.items())
        reason = f"{unit_of(cohort)}s of these splits are left out, they are none of {', '.join(PARTS)}: {each}"
        warn_caller(SkippedWarning(reason))


def _validation(slides: list[CohortSlide], fit: FitConfig, seed: int, column: str) -> tuple[Cohort, Cohort | None]:
    everyone = Cohort.unchecked(slides)
    if not fit.validation:
        return everyone, None
    parts = {"train": 1 - fit.validation, "val": fit.validation}
    divided = split_cohort(everyone, parts, seed=seed, stratify=column)
    if not all(any(slide.split == name for slide in divided) for name in ("train", "val")):
        raise ConfigError(
            f"{len(slides)} {unit_of(slides)}s are too few for a validation {fit.validation:.0%} of them",
            remedy="set fit.validation to 0, or higher",
        )
    return divided.where(split="train"), divided.where(split="val")
