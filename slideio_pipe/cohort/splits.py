"""Cohorts parted into training, validation and test, or into folds: by patient, evenly over the labels, seeded."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.errors import ConfigError
from slideio_pipe.tiles.bag import Label

DEFAULT = {"train": 0.7, "val": 0.15, "test": 0.15}
# Labels that are numbers, more of them than this: a quantity, stratified by its quarters.
_CLASSES = 10


def split_cohort(
    cohort: Cohort, fractions: Mapping[str, float] | None = None, *, seed: int = 0, stratify: bool | str = True
) -> Cohort:
    """Return the cohort with every slide in a split; slides of one patient are in the same.

    Every label is parted by ``fractions`` to the nearest patient, and so is the whole. A slide without a patient is one
    of its own. A patient's label is the one most of its slides have.

    Parameters
    ----------
    cohort : Cohort
    fractions : mapping, optional
        The part of the patients in each split; by default train 0.7, val 0.15, test 0.15.
    seed : int
        Who goes where.
    stratify : bool or str
        Whether to part each label by itself; the name of another column to part by.

    Raises
    ------
    ConfigError
        The fractions are not positive or do not add up to 1; there are fewer patients than splits; or there is no
        such column.

    Examples
    --------
    >>> slides = [CohortSlide(f"{k}.svs", f"{k}.svs", label=k % 2, patient=f"p{k // 2}") for k in range(40)]
    >>> cohort = split_cohort(Cohort.unchecked(slides), {"train": 0.8, "test": 0.2}, seed=7)
    >>> Counter(slide.split for slide in cohort) == {"train": 32, "test": 8}
    True
    """
    chosen = dict(DEFAULT if fractions is None else fractions)
    if not all(0 < part < math.inf for part in chosen.values()) or not math.isclose(
        sum(chosen.values()), 1, abs_tol=1e-6
    ):
        raise ConfigError(f"the fractions {chosen} do not add up to 1", remedy="pass positive ones that do")
    part_of = _dealt(cohort, list(chosen.values()), seed, stratify)
    names = list(chosen)
    return Cohort.unchecked(replace(slide, split=names[part_of[_patient(slide)]]) for slide in cohort)


def fold_cohort(cohort: Cohort, folds: int = 5, *, seed: int = 0, stratify: bool | str = True) -> Cohort:
    """Return the cohort with every slide in a fold, 0 to ``folds - 1``; slides of one patient are in the same.

    A slide's fold is the one in which it is tested. Parted as by ``split_cohort``.

    Raises
    ------
    ConfigError
        Fewer than two folds, fewer patients than folds, or there is no such column.
    """
    if folds < 2:
        raise ConfigError(f"folds is {folds}", remedy="pass 2 or more")
    part_of = _dealt(cohort, [1 / folds] * folds, seed, stratify)
    return Cohort.unchecked(replace(slide, fold=part_of[_patient(slide)]) for slide in cohort)


def _patient(slide: CohortSlide) -> tuple[str, str]:
    """Return whom a slide is of; the kind comes first, as a patient may be called like a slide."""
    return ("slide", slide.name) if slide.patient is None else ("patient", slide.patient)


def _dealt(cohort: Cohort, fractions: Sequence[float], seed: int, stratify: bool | str) -> dict[tuple[str, str], int]:
    """Return the part of every patient."""
    labels: dict[tuple[str, str], list[Label]] = defaultdict(list)
    for slide, label in zip(cohort, _classes(cohort, stratify), strict=True):
        labels[_patient(slide)].append(label)
    if len(labels) < len(fractions):
        raise ConfigError(f"{len(labels)} patients for {len(fractions)} parts", remedy="ask for fewer parts")
    strata: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for patient, found in labels.items():
        strata[_most_frequent(found)].append(patient)
    owed = np.zeros(len(fractions))  # patients that a part has got too few of, over the labels before
    part_of: dict[tuple[str, str], int] = {}
    for name in sorted(strata):
        patients = sorted(strata[name], key=lambda patient: _lot(seed, patient))
        wanted = np.asarray(fractions) * len(patients)
        counts = np.floor(wanted + 1e-9).astype(int)
        lacking = owed + wanted - counts
        for part in np.argsort(-lacking, kind="stable")[: len(patients) - counts.sum()]:
            counts[part] += 1
        owed += wanted - counts
        parts = np.repeat(np.arange(len(fractions)), counts)
        part_of |= {patient: int(part) for patient, part in zip(patients, parts, strict=True)}
    return part_of


def _most_frequent(labels: Sequence[Label]) -> str:
    counts = Counter(str(label) for label in labels)
    return min(counts, key=lambda name: (-counts[name], name))


def _lot(seed: int, patient: tuple[str, str]) -> bytes:
    """Return what a patient is sorted by: of the seed and the name alone, so the order of the slides is no matter."""
    return hashlib.blake2b(json.dumps([seed, *patient]).encode(), digest_size=16).digest()


def _classes(cohort: Cohort, stratify: bool | str) -> list[Label]:
    """Return the labels, or the quarter of each if they are a quantity; all alike where there is nothing to part by."""
    if stratify is False:
        return [None] * len(cohort)
    labels = cohort.column("label" if stratify is True else stratify)
    known = [label for label in labels if label is not None]
    if len(set(known)) <= _CLASSES or not all(isinstance(label, int | float) for label in known):
        return labels
    bounds = np.quantile(np.asarray(known, np.float64), [0.25, 0.5, 0.75])
    return [None if label is None else int(np.searchsorted(bounds, float(label))) for label in labels]
