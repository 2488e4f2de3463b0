"""Who is trained on, who validates, who tests: by the cohort's own splits or folds, or made here, by patient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from slideio_pipe.cohort import Cohort, CohortSlide
from slideio_pipe.errors import ConfigError
from slideio_pipe.mil.settings import FitConfig
from slideio_pipe.splits import fold_cohort, split_cohort


@dataclass(frozen=True, slots=True)
class Division:
    """A cohort parted for one training."""

    name: str  # "" where there is one, else "fold-0", …
    train: Cohort
    validation: Cohort | None
    test: Cohort | None


def divide(cohort: Cohort, fit: FitConfig, seed: int) -> Iterator[Division]:
    """Yield the divisions of a cohort: one, or one for each fold.

    With folds, each in turn is tested: the cohort's own, or as many as ``fit.folds`` says. Otherwise its splits
    "train", "val" and "test" are what they say; slides of other splits are left out. Where nothing says who validates,
    ``fit.validation`` of the training patients do.

    Raises
    ------
    ConfigError
        No slide is left to train on; or the cohort's folds are not as many as wanted.
    """
    if fit.folds is None:
        yield _by_split(cohort, fit, seed)
        return
    if all(slide.fold is None for slide in cohort):
        cohort = fold_cohort(cohort, fit.folds, seed=seed)
    folds = sorted({slide.fold for slide in cohort if slide.fold is not None})
    if len(folds) != fit.folds or any(slide.fold is None for slide in cohort):
        raise ConfigError(
            f"{fit.folds} folds are wanted, the cohort has {len(folds)}"
            + (", and slides in none" if any(slide.fold is None for slide in cohort) else ""),
            remedy="split it anew: slideio-pipe split COHORT --folds",
        )
    for fold in folds:
        rest = [slide for slide in cohort if slide.fold != fold]
        train, validation = _validation(rest, fit, seed)
        yield Division(f"fold-{fold}", train, validation, cohort.where(fold=fold))


def _by_split(cohort: Cohort, fit: FitConfig, seed: int) -> Division:
    splits = {slide.split for slide in cohort}
    test = cohort.where(split="test") if "test" in splits else None
    known = {"train", "val"} & splits
    learning = [s for s in cohort if s.split == "train" or (not known and s.split is None)]
    if not learning:
        there = ", ".join(sorted(str(name) for name in splits if name is not None)) or "none"
        raise ConfigError(f"no slide to train on (splits: {there})", remedy='fill the column "split" with train')
    if "val" in splits:
        return Division("", Cohort.unchecked(learning), cohort.where(split="val"), test)
    train, validation = _validation(learning, fit, seed)
    return Division("", train, validation, test)


def _validation(slides: list[CohortSlide], fit: FitConfig, seed: int) -> tuple[Cohort, Cohort | None]:
    everyone = Cohort.unchecked(slides)
    if not fit.validation:
        return everyone, None
    parted = split_cohort(everyone, {"train": 1 - fit.validation, "val": fit.validation}, seed=seed)
    if not all(any(slide.split == name for slide in parted) for name in ("train", "val")):
        raise ConfigError(
            f"{len(slides)} slides are too few to validate with {fit.validation:.0%} of them",
            remedy="set fit.validation to 0, or higher",
        )
    return parted.where(split="train"), parted.where(split="val")
