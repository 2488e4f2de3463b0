"""A cohort by patient: one row for all slides of a patient, whose labels must agree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slideio_pipe.cohort.cells import value_of
from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.split_names import split_of
from slideio_pipe.errors import ConfigError
from slideio_pipe.store.patient_index import is_patient_index, open_patient
from slideio_pipe.store.stored_bag import StoredBag
from slideio_pipe.tiles.bag import Label
from slideio_pipe.tiles.patient_bag import PatientBag

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class CohortPatient(CohortSlide):
    """One patient of a cohort: a row with the name and the label of the patient, and the rows of the slides."""

    slides: tuple[CohortSlide, ...] = ()


def slides_of_row(row: CohortSlide) -> tuple[CohortSlide, ...]:
    """Return the slides of a row: those of a patient, or the slide itself."""
    return row.slides if isinstance(row, CohortPatient) else (row,)


def counted(count: int, rows: Iterable[CohortSlide]) -> str:
    """Return a number with its noun, the rows': slides or patients.

    >>> counted(2, [CohortSlide("a.svs", "a.svs")]), counted(1, [])
    ('2 slides', '1 slide')
    """
    return f"{count:,} {unit_of(rows)}{'' if count == 1 else 's'}"


def unit_of(rows: Iterable[CohortSlide]) -> str:
    """Return what a row is: a slide or a patient."""
    return "patient" if any(isinstance(row, CohortPatient) for row in rows) else "slide"


def by_patient(cohort: Cohort, columns: Sequence[str] = ("label",)) -> Cohort:
    """Return the cohort with one row per patient, in the order of their first slides.

    A slide without a patient is a patient of its own, as in ``split_cohort``. In ``columns``, all slides of a patient
    have the same cell or none. Of other columns, cells that differ are left empty. A cohort by patient stays as it is,
    and a row with a patient's bag, stored or open, is the patient with the slides of the bag.

    Parameters
    ----------
    cohort : Cohort
    columns : sequence of str
        The columns with what is predicted.

    Raises
    ------
    ConfigError
        No slide has a patient, or slides of a patient disagree; all of these together.

    Examples
    --------
    >>> slides = [CohortSlide(f"{k}.svs", f"{k}.svs", label=k // 2, patient=f"p{k // 2}") for k in range(4)]
    >>> [(row.name, row.label, len(row.slides)) for row in by_patient(Cohort.unchecked(slides))]
    [('p0', 0, 2), ('p1', 1, 2)]
    """
    if unit_of(cohort) == "patient":
        return cohort
    cohort = by_slide(cohort)
    if all(slide.patient is None for slide in cohort):
        remedy = 'fill the column "patient", or set unit to slide'
        raise ConfigError("a bag is a patient, and no slide has one", remedy=remedy)
    members: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, slide in enumerate(cohort):
        members[slide.patient_key].append(number)
    cells = {name: cohort.column(name) for name in dict.fromkeys(("label", *columns))}
    problems = [*_same_names(list(members))]
    rows = []
    for (_, name), numbers in members.items():
        slides = tuple(cohort[number] for number in numbers)
        of_patient = {column: [values[number] for number in numbers] for column, values in cells.items()}
        problems += _problems(name, slides, {column: of_patient[column] for column in columns})
        rows.append(_row(name, slides, of_patient["label"], columns))
    if problems:
        shown = "; ".join(problems[:_SHOWN])
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ConfigError(f"{shown}{more}", remedy="correct the cohort, or set unit to slide")
    return Cohort.unchecked(rows)


def by_slide(cohort: Cohort) -> Cohort:
    """Return the cohort with one row per slide: bags of patients, stored or open, as the bags of their slides."""
    return Cohort.unchecked(slide for row in cohort for slide in _slides_in(row))


def _slides_in(row: CohortSlide) -> Iterator[CohortSlide]:
    """Yield the slides of a row: of a patient's bag, stored or open, the bags of its slides."""
    bag = row.source
    if isinstance(bag, Path) and is_patient_index(bag):
        bag = open_patient(bag)
    if not isinstance(bag, PatientBag):
        yield row
        return
    label = bag.label if row.label is None else row.label
    for slide in bag.slides:
        source = slide.path if isinstance(slide, StoredBag) else slide  # by path, so that it is closed after reading
        yield replace(row, source=source, name=slide.name, label=label, patient=row.patient or bag.name)


def _same_names(keys: Sequence[tuple[str, str]]) -> Iterator[str]:
    patients = {name for kind, name in keys if kind == "patient"}
    for kind, name in keys:
        if kind == "slide" and name in patients:
            yield f"slide {name} has no patient, and another patient is called {name}"


def _problems(patient: str, slides: Sequence[CohortSlide], columns: dict[str, list[Label]]) -> Iterator[str]:
    """Yield the columns in which the slides of a patient disagree."""
    for column, values in columns.items():
        if len({value for value in values if value is not None}) > 1:
            yield f"patient {patient} has several cells in {column}: {_each(slides, values)}"
    places: dict[str, list[Any]] = {
        "split": [split_of(slide.split) for slide in slides],
        "fold": [slide.fold for slide in slides],
    }
    for column, parts in places.items():
        if len(set(parts)) > 1:  # a slide without a split is left out of a training: not so its patient
            yield f"patient {patient} is in several parts, {column}: {_each(slides, parts)}"


def _each(slides: Sequence[CohortSlide], values: Sequence[Any]) -> str:
    return ", ".join(
        f"{'none' if value is None else value} ({slide.name})" for slide, value in zip(slides, values, strict=True)
    )


def _row(name: str, slides: tuple[CohortSlide, ...], labels: list[Label], columns: Sequence[str]) -> CohortPatient:
    known = {label for label in labels if label is not None}
    first = slides[0]
    return CohortPatient(
        source=first.source,
        name=name,
        label=next(iter(known)) if len(known) == 1 else None,
        patient=first.patient or name,
        split=first.split,
        fold=first.fold,
        other=_other(slides, columns),
        slides=slides,
    )


def _other(slides: Sequence[CohortSlide], agreed: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return the other columns of a patient: the cell of its slides, empty where they differ."""
    found: dict[str, list[str]] = {}
    for slide in slides:
        for column, cell in slide.other:
            found.setdefault(column, []).extend([cell] if value_of(cell) else [])
    return tuple(
        (column, cells[0] if cells and (column in agreed or len(set(cells)) == 1) else "")
        for column, cells in found.items()
    )
