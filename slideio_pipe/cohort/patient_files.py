"""The files of a cohort's patients, ``<patient>.patient.json``, beside the bags of their slides."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.names import file_stem
from slideio_pipe.cohort.patients import CohortPatient
from slideio_pipe.errors import ConfigError, OutputExistsError, SlideioPipeError
from slideio_pipe.files import write_file
from slideio_pipe.store.patient_index import SUFFIX, index_bytes, index_of, indexed
from slideio_pipe.store.stored_bag import StoredBag
from slideio_pipe.tiles.patient_bag import PatientBag

_SHOWN = 20


@dataclass(slots=True)
class PatientFiles:
    """How many files of patients a run wrote, how many were there, and which patients have none, with the reason."""

    written: int = 0
    kept: int = 0
    missing: dict[str, str] = field(default_factory=dict)  # a slide of the patient has no bag yet
    failed: dict[str, SlideioPipeError] = field(default_factory=dict)  # all slides have one

    @property
    def without(self) -> dict[str, str]:
        """The patients without a file, and why."""
        return self.missing | {name: f"{error.reason}; {error.remedy}" for name, error in self.failed.items()}

    def summary(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"written": self.written, "kept": self.kept, "without": self.without}


def patient_file(folder: Path, row: CohortSlide) -> Path:
    """Return the file of a patient in a folder of bags."""
    # A slide without a patient is one of its own.
    name = row.name if not isinstance(row, CohortPatient) or _has_patient(row) else file_stem(row.name)
    return folder / f"{name}{SUFFIX}"


def check_patient_names(folder: Path, rows: Iterable[CohortSlide]) -> None:
    """Raise ConfigError if patients cannot be names of files, or share one."""
    problems, taken = [], dict[str, str]()
    for row in rows:
        strange = row.name.startswith(".") or any(mark in row.name for mark in "/\\\0")
        name = row.name if strange else patient_file(folder, row).name
        if strange:
            problems.append(f"patient {row.name!r} is no name for a file")
        elif name.casefold() in taken:
            problems.append(f"patients {taken[name.casefold()]} and {row.name} would both become {name}")
        taken.setdefault(name.casefold(), row.name)
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ConfigError("; ".join(problems[:_SHOWN]) + more, remedy="correct the cohort, or set unit to slide")


def write_patient_files(
    folder: Path,
    rows: Iterable[CohortSlide],
    bag_of: Callable[[CohortSlide], Path],
    *,
    done: Collection[str],
    fresh: Collection[str],
    overwrite: bool,
) -> PatientFiles:
    """Write the file of each patient whose slides all have bags; an equal one is kept.

    Parameters
    ----------
    folder : Path
        Of the files.
    rows : iterable of CohortPatient
        See ``by_patient``.
    bag_of : callable
        Returns the bag of a slide.
    done : collection of str
        Names of the slides that have a bag.
    fresh : collection of str
        Those whose bag this run wrote.
    overwrite : bool
        Replace a file that lists slides which the patient does not have in this cohort, or that is something else.
    """
    found = PatientFiles()
    for row in _patients(rows):
        lacking = [slide.name for slide in row.slides if slide.name not in done]
        if lacking:
            found.missing[row.name] = f"no bag of {', '.join(lacking)}"
            continue
        bags = [bag_of(slide) for slide in row.slides]
        changed = any(slide.name in fresh for slide in row.slides)
        try:
            if _write(patient_file(folder, row), row, bags, changed=changed, overwrite=overwrite):
                found.written += 1
            else:
                found.kept += 1
        except SlideioPipeError as error:
            found.failed[row.name] = error
    return found


def _write(target: Path, row: CohortPatient, bags: list[Path], *, changed: bool, overwrite: bool) -> bool:
    """Write the file of a patient, and return whether it was needed."""
    there = indexed(target)
    if there is not None and not changed and there.is_of(row.name, row.label, bags):
        return False
    if target.exists() and not overwrite:
        strangers = ["another file"] if there is None else [bag.name for bag in there.bags if bag not in bags]
        if strangers:
            reason = f"{target.name} is there, with {', '.join(strangers)}, which the cohort does not have"
            remedy = "pass {overwrite=True} or another folder, or export all slides of a patient together"
            raise OutputExistsError(reason, slide=row.name, remedy=remedy)
    with PatientBag([StoredBag(bag) for bag in bags], patient=row.name, label=row.label) as bag:
        content = index_bytes(index_of(bag, target.parent))
    if target.exists() and target.read_bytes() == content:
        return False
    write_file(target, content, overwrite=True)
    return True


def _patients(rows: Iterable[CohortSlide]) -> Iterator[CohortPatient]:
    for row in rows:
        assert isinstance(row, CohortPatient)  # by_patient
        yield row


def _has_patient(row: CohortPatient) -> bool:
    return any(slide.patient is not None for slide in row.slides)
