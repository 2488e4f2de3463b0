"""Make slides of a cohort from the rows of a table, and from lists of paths and bags."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slideio_pipe.cohort.cells import fold_of, infinite_labels, labels_of, missing_words, mpp_of, value_of
from slideio_pipe.cohort.cohort_slide import COLUMNS, CohortSlide
from slideio_pipe.cohort.slide_files import slides_of
from slideio_pipe.cohort.table import Table, file_name
from slideio_pipe.errors import ConfigError, MissingCellsWarning, warn_caller
from slideio_pipe.tiles.bag import Bag, patient_of


def slides_of_table(table: Table) -> tuple[list[CohortSlide], list[str]]:
    """Return a slide for each row, and the problems of its cells; warn of words that may not be missing values."""
    other = [name for name in table.header if name not in COLUMNS]
    slides, problems = [], []
    for place, cells in zip(table.places, table.rows, strict=True):
        row = {name: value_of(cell) for name, cell in cells.items() if name in COLUMNS}
        mpp, fold = mpp_of(row.get("mpp", "")), fold_of(row.get("fold", ""))
        problems += [f"{place}: {found}" for found in (mpp, fold) if isinstance(found, str)]
        source, mask, cell_file = (row.get(name, "") for name in ("slide", "mask", "cell_file"))
        if not source and "slide" in table.header:
            problems.append(f"{place}: no slide")
        slides.append(
            CohortSlide(
                source=table.folder / (Path(source).expanduser() if source.startswith("~") else source),
                name=row.get("name") or file_name(source),
                mpp=None if isinstance(mpp, str) else mpp,
                mask=table.folder / Path(mask).expanduser() if mask else None,
                cell_file=table.folder / Path(cell_file).expanduser() if cell_file else None,
                patient=row.get("patient") or None,
                split=row.get("split") or None,
                fold=None if isinstance(fold, str) else fold,
                other=tuple((name, cells.get(name, "")) for name in other),
            )
        )
    labels = labels_of(_column(table, "label"))
    problems += [f"label {cell!r} is no finite number" for cell in infinite_labels(_column(table, "label"))]
    _warn_of_missing(table)
    return [replace(slide, label=label) for slide, label in zip(slides, labels, strict=True)], problems


def given_slides(items: Sequence[Any]) -> list[CohortSlide]:
    """Return the slides of a list of paths, bags and slides; of several files of one slide only the largest."""
    return [_as_slide(item) for item in _whole_slides(items)]


def numbered(slides: Iterable[CohortSlide]) -> list[str]:
    """Return names for messages of slides without a manifest."""
    return [f"slide {number}" for number, _ in enumerate(slides, 1)]


def _column(table: Table, name: str) -> list[str]:
    return [row.get(name, "") for row in table.rows]


def _warn_of_missing(table: Table) -> None:
    """Warn of words that count as a missing label or patient and could be the name of one."""
    for name in ("label", "patient"):
        for word, count in missing_words(_column(table, name)).items():
            reason = (
                f'{count} cells of the column "{name}" are {word!r}, which counts as no {name}; if it is one, rename it'
            )
            warn_caller(MissingCellsWarning(reason))


def _as_slide(item: Any) -> CohortSlide:
    if isinstance(item, CohortSlide):
        return item
    if isinstance(item, str | Path):
        path = Path(item).expanduser().absolute()
        return CohortSlide(path, path.name)
    if isinstance(item, Bag):
        return CohortSlide(item, item.name, item.label, patient=patient_of(item))
    raise ConfigError(f"a {type(item).__name__} in a cohort", remedy="pass paths of slides or bag stores, or bags")


def _whole_slides(items: Iterable[Any]) -> Iterator[Any]:
    """Yield the items; of several files of one slide only the largest."""
    given = [Path(i).expanduser().absolute() if isinstance(i, str | Path) else i for i in items]
    paths = [item for item in given if isinstance(item, Path)]
    whole = set(slides_of(paths))
    return (item for item in given if not isinstance(item, Path) or item in whole)
