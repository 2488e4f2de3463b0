"""Splits and folds keep patients together and labels balanced, and depend on the seed only."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.split_names import split_of
from slideio_pipe.cohort.splits import fold_cohort, split_cohort
from slideio_pipe.errors import ConfigError


def cohort_of(labels: list[int | float | str | None], per_patient: int = 1) -> Cohort:
    """Return slides with these labels, a number of slides per patient."""
    return Cohort.unchecked(
        CohortSlide(Path(f"{k}.svs"), f"{k}.svs", label=label, patient=f"p{k // per_patient}")
        for k, label in enumerate(labels)
    )


@given(
    patients=st.lists(st.tuples(st.integers(1, 4), st.sampled_from(["a", "b", "c"])), min_size=5, max_size=60),
    parts=st.sampled_from([{"train": 0.7, "val": 0.15, "test": 0.15}, {"train": 0.5, "test": 0.5}]),
    seed=st.integers(0, 2**63),
)
def test_splits_keep_patients_together_and_labels_balanced(
    patients: list[tuple[int, str]], parts: dict[str, float], seed: int
) -> None:
    """Each label is split to within one patient, and the total to within one per split."""
    slides = [
        CohortSlide(Path(f"{p}-{k}"), f"{p}-{k}", label=label, patient=f"p{p}")
        for p, (count, label) in enumerate(patients)
        for k in range(count)
    ]
    done = split_cohort(Cohort.unchecked(slides), parts, seed=seed)
    split_of = {(slide.patient, slide.split) for slide in done}
    assert len(split_of) == len(patients)
    where = dict(split_of)
    for label in {"a", "b", "c"}:
        of_label = [f"p{p}" for p, (_, found) in enumerate(patients) if found == label]
        for name, part in parts.items():
            count = sum(where[patient] == name for patient in of_label)
            assert abs(count - part * len(of_label)) < 1 + 1e-6
    for name, part in parts.items():
        assert abs(sum(split == name for split in where.values()) - part * len(patients)) <= len(parts)


def test_a_split_depends_on_the_seed_and_not_on_the_order() -> None:
    """The same seed gives the same split of slides in another order; another seed gives another split."""
    cohort = cohort_of(["a", "b"] * 30)
    first = {slide.name: slide.split for slide in split_cohort(cohort, seed=1)}
    turned = Cohort.unchecked(reversed(list(cohort)))
    assert {slide.name: slide.split for slide in split_cohort(turned, seed=1)} == first
    assert {slide.name: slide.split for slide in split_cohort(cohort, seed=2)} != first


def test_folds_are_balanced() -> None:
    """Each has a fifth of the patients and of every label."""
    done = fold_cohort(cohort_of([0, 0, 0, 1, 1] * 10), 5, seed=3)
    assert Counter(slide.fold for slide in done) == dict.fromkeys(range(5), 10)
    assert all(Counter(done.where(fold=k).labels) == {0: 6, 1: 4} for k in range(5))


def test_numeric_labels_are_stratified_by_quartiles() -> None:
    """If they have many values, as survival in months."""
    done = split_cohort(cohort_of([k / 7 for k in range(80)]), {"train": 0.75, "test": 0.25})
    tested = sorted(slide.label for slide in done.where(split="test"))  # type: ignore[type-var]
    assert [sum(low <= 7 * value < low + 20 for value in tested) for low in (0, 20, 40, 60)] == [5, 5, 5, 5]  # type: ignore[operator]


def test_folds_can_be_stratified_by_another_column() -> None:
    """Ten rare of forty: two in every fold; the column label is not used."""
    slides = [
        CohortSlide(Path(f"{k}"), f"{k}", label=k % 7, other=(("grade", "rare" if k % 4 == 0 else "common"),))
        for k in range(40)
    ]
    for seed in range(5):
        done = fold_cohort(Cohort.unchecked(slides), 5, seed=seed, stratify="grade")
        assert [Counter(done.where(fold=k).column("grade"))["rare"] for k in range(5)] == [2] * 5
        halves = split_cohort(Cohort.unchecked(slides), {"train": 0.5, "test": 0.5}, seed=seed, stratify="grade")
        assert Counter(halves.where(split="test").column("grade")) == {"rare": 5, "common": 15}
    with pytest.raises(ConfigError, match='the cohort has no column "stage"; there are: label, grade'):
        fold_cohort(Cohort.unchecked(slides), 5, stratify="stage")


@pytest.mark.parametrize(
    ("name", "known"),
    [("Val", "val"), ("valid", "val"), ("VALIDATION", "val"), ("Training", "train"), (" testing ", "test"), ("a", "a")],
)
def test_splits_have_their_usual_names(name: str, known: str) -> None:
    """A cohort finds them by either name; other names are unchanged."""
    cohort = Cohort.unchecked([CohortSlide(Path("a"), "a", split=name), CohortSlide(Path("b"), "b", split="other")])
    assert split_of(name) == known
    assert [slide.name for slide in cohort.where(split=known)] == ["a"]
    assert [slide.name for slide in cohort.where(split=name)] == ["a"]


def test_slides_without_a_patient_are_patients_of_their_own() -> None:
    """Also if a patient has the name of a slide."""
    slides = [CohortSlide(Path(name), name, patient=patient) for name, patient in (("a", None), ("b", "a"), ("c", "a"))]
    done = fold_cohort(Cohort.unchecked(slides), 2)
    assert done[1].fold == done[2].fold != done[0].fold


@pytest.mark.parametrize("parts", [{"train": 0.5}, {"train": 1.5, "test": -0.5}, {"train": float("nan")}, {}])
def test_invalid_fractions_are_refused(parts: dict[str, float]) -> None:
    """They must be positive and sum to 1."""
    with pytest.raises(ConfigError, match="add up to 1"):
        split_cohort(cohort_of([0] * 9), parts)


def test_more_folds_than_patients_are_refused() -> None:
    """So are fewer than two."""
    with pytest.raises(ConfigError, match="2 patients for 5 parts"):
        fold_cohort(cohort_of([0] * 8, per_patient=4))
    with pytest.raises(ConfigError, match="pass 2 or more"):
        fold_cohort(cohort_of([0] * 8), 1)
