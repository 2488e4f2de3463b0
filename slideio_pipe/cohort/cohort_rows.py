"""A cohort's slides as rows of a manifest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from slideio_pipe.cohort.cells import labels_of
from slideio_pipe.cohort.cohort_slide import COLUMNS, CohortSlide
from slideio_pipe.cohort.table import Table
from slideio_pipe.errors import ConfigError
from slideio_pipe.tiles.bag import Label


def rows_of(slides: Iterable[CohortSlide], folder: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the header and the rows of a manifest; paths below ``folder`` are relative to it.

    Raise ConfigError if a slide is a bag that is not a file.
    """
    listed = list(slides)
    rows = [_row(slide, folder) for slide in listed]
    used = {name for row in rows for name, cell in row.items() if cell} | {"slide"}
    extra = dict.fromkeys(name for slide in listed for name, _ in slide.other)
    return [*(name for name in COLUMNS if name in used), *extra], rows


def columns_of(slides: Sequence[CohortSlide]) -> dict[str, list[Label]]:
    """Return the columns of slides that are not empty, with the types of labels; paths are absolute."""
    columns: dict[str, list[Label]] = {name: [getattr(slide, name, None) for slide in slides] for name in COLUMNS}
    columns["slide"] = [str(s.source.absolute()) if isinstance(s.source, Path) else s.name for s in slides]
    for name in ("mask", "cell_file"):
        paths = [getattr(slide, name) for slide in slides]
        columns[name] = [None if path is None else str(path.absolute()) for path in paths]
    used = {name: cells for name, cells in columns.items() if any(cell is not None for cell in cells)}
    cells = [dict(slide.other) for slide in slides]
    other = dict.fromkeys(name for row in cells for name in row)
    return used | {name: labels_of([row.get(name, "") for row in cells]) for name in other}


def table_of(slides: Sequence[CohortSlide]) -> Table:
    """Return slides as a table to be joined with another; an open bag is its name."""
    files = [slide if isinstance(slide.source, Path) else replace(slide, source=Path(slide.name)) for slide in slides]
    header, rows = rows_of(files, Path.cwd())
    named = tuple(row | {"name": slide.name} for row, slide in zip(rows, slides, strict=True))
    columns = tuple(dict.fromkeys([*header, "name"]))
    places = tuple(f"slide {number}" for number, _ in enumerate(slides, 1))
    return Table(columns, named, places, where="the cohort", folder=Path.cwd())


def _row(slide: CohortSlide, folder: Path) -> dict[str, str]:
    if not isinstance(slide.source, Path):
        raise ConfigError("an open bag is no file", slide=slide.name, remedy="save the bags and list their paths")
    cells = {
        name: value
        for name in ("label", "mpp", "patient", "split", "fold")
        if (value := getattr(slide, name)) is not None
    }
    row = {"slide": _relative(slide.source, folder), **{name: str(value) for name, value in cells.items()}}
    if slide.name != slide.source.name:
        row["name"] = slide.name
    if slide.mask is not None:
        row["mask"] = _relative(slide.mask, folder)
    if slide.cell_file is not None:
        row["cell_file"] = _relative(slide.cell_file, folder)
    return row | dict(slide.other)


def _relative(path: Path, folder: Path) -> str:
    absolute = path.absolute()  # not normalised: "../slides/a.svs" is written as read
    return str(absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute)
