"""Split a cohort into training, validation and test, or into folds: by patient, stratified by label, seeded."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.errors import ConfigError
from slideio_pipe.tiles.bag import Label

DEFAULT = {"train": 0.7, "val": 0.15, "test": 0.15}
# With more different numbers than this, labels are a quantity and stratified by quartile.
_CLASSES = 10


def split_cohort(
    cohort: Cohort, fractions: Mapping[str, float] | None = None, *, seed: int = 0, stratify: bool | str = True
) -> Cohort:
    """Return the cohort with every slide assigned to a split; slides of one patient are in the same split.

    Each label is divided by ``fractions`` to the nearest patient, and so is the whole. A slide without a patient counts
    as its own patient. A patient's label is the most frequent one of its slides.

    Parameters
    ----------
    cohort : Cohort
    fractions : mapping, optional
        Fraction of the patients per split; by default train 0.7, val 0.15, test 0.15.
    seed : int
        Random seed of the assignment.
    stratify : bool or str
        Whether to divide each label separately; or the name of another column to stratify by.

    Raises
    ------
    ConfigError
        The fractions are not positive or do not add up to 1; there are fewer patients than splits; or there is no
        such column.

    Examples
    --------
    >>> from slideio_pipe.cohort.cohort_slide import CohortSlide
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
    part_of = _assigned(cohort, list(chosen.values()), seed, stratify)
    names = list(chosen)
    return Cohort.unchecked(replace(slide, split=names[part_of[slide.patient_key]]) for slide in cohort)


def fold_cohort(cohort: Cohort, folds: int = 5, *, seed: int = 0, stratify: bool | str = True) -> Cohort:
    """Return the cohort with every slide assigned to a fold, 0 to ``folds - 1``; one patient's slides are in one fold.

    A slide's fold is the one in which it is tested. Assigned as in ``split_cohort``.

    Raises
    ------
    ConfigError
        Fewer than two folds, fewer patients than folds, or there is no such column.

    Examples
    --------
    >>> from slideio_pipe.cohort.cohort_slide import CohortSlide
    >>> slides = [CohortSlide(f"{k}.svs", f"{k}.svs", label=k % 2, patient=f"p{k // 2}") for k in range(40)]
    >>> cohort = fold_cohort(Cohort.unchecked(slides), 5, seed=7)
    >>> Counter(slide.fold for slide in cohort) == dict.fromkeys(range(5), 8)
    True
    """
    if folds < 2:
        raise ConfigError(f"folds is {folds}", remedy="pass 2 or more")
    part_of = _assigned(cohort, [1 / folds] * folds, seed, stratify)
    return Cohort.unchecked(replace(slide, fold=part_of[slide.patient_key]) for slide in cohort)


def _assigned(
    cohort: Cohort, fractions: Sequence[float], seed: int, stratify: bool | str
) -> dict[tuple[str, str], int]:
    """Return the number of each patient's part."""
    labels: dict[tuple[str, str], list[Label]] = defaultdict(list)
    for slide, label in zip(cohort, _classes(cohort, stratify), strict=True):
        labels[slide.patient_key].append(label)
    if len(labels) < len(fractions):
        raise ConfigError(f"{len(labels)} patients for {len(fractions)} parts", remedy="pass fewer parts")
    strata: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for patient, found in labels.items():
        strata[_most_frequent(found)].append(patient)
    shortfall = np.zeros(len(fractions))  # patients missing in each part after the previous labels
    part_of: dict[tuple[str, str], int] = {}
    for name in sorted(strata):
        patients = sorted(strata[name], key=lambda patient: _sort_key(seed, patient))
        expected = np.asarray(fractions) * len(patients)
        counts = np.floor(expected + 1e-9).astype(int)
        missing = shortfall + expected - counts
        for part in np.argsort(-missing, kind="stable")[: len(patients) - counts.sum()]:
            counts[part] += 1
        shortfall += expected - counts
        parts = np.repeat(np.arange(len(fractions)), counts)
        part_of |= {patient: int(part) for patient, part in zip(patients, parts, strict=True)}
    return part_of


def _most_frequent(labels: Sequence[Label]) -> str:
    counts = Counter(str(label) for label in labels)
    return min(counts, key=lambda name: (-counts[name], name))


def _sort_key(seed: int, patient: tuple[str, str]) -> bytes:
    """Return a patient's sort key, from the seed and the name only, so the order of the slides does not matter."""
    return hashlib.blake2b(json.dumps([seed, *patient]).encode(), digest_size=16).digest()


def _classes(cohort: Cohort, stratify: bool | str) -> list[Label]:
    """Return the labels, or their quartiles if they are a quantity; all equal without stratification."""
    if stratify is False:
        return [None] * len(cohort)
    labels = cohort.column("label" if stratify is True else stratify)
    known = [label for label in labels if label is not None]
    if len(set(known)) <= _CLASSES or not all(isinstance(label, int | float) for label in known):
        return labels
    bounds = np.quantile(np.asarray(known, np.float64), [0.25, 0.5, 0.75])
    return [None if label is None else int(np.searchsorted(bounds, float(label))) for label in labels]
