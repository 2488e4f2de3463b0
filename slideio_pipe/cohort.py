"""Which slides a study has, and what is known of each: read from a manifest and checked before anything starts."""

from __future__ import annotations

import csv
import difflib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from slideio_pipe.bag import Bag, Label
from slideio_pipe.errors import ConfigError

COLUMNS = ("slide", "name", "label", "mpp", "mask")
# What a column may be called by mistake: closer than this to one of ours that is not there.
_ALIKE = 0.8
# More problems than this in one message help nobody.
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class CohortSlide:
    """One row of a cohort."""

    source: Path | Bag  # a slide, a bag store, or a bag that is open already
    name: str  # unique in the cohort
    label: Label = None
    mpp: float | None = None  # µm per level-0 px, in place of what the file says
    mask: Path | None = None  # tissue: GeoJSON, or a picture that spans the slide


class Cohort(Sequence[CohortSlide]):
    """The slides of a study, each with its name and label; pickles as its bags do.

    Parameters
    ----------
    slides : iterable of CohortSlide

    Raises
    ------
    ConfigError
        All that is wrong, at once: files that are not there, names given twice, no slide at all.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("a.svs", "b.svs"):
    ...     (folder / name).touch()
    >>> _ = (folder / "cohort.csv").write_text("slide,label\\na.svs,0\\nb.svs,1\\n")
    >>> cohort = Cohort.of(folder / "cohort.csv")
    >>> cohort, cohort[1].label
    (Cohort(2 slides, labels 0 and 1), 1)
    """

    def __init__(self, slides: Iterable[CohortSlide]) -> None:
        self._slides = tuple(slides)
        self._check(["row"] * len(self._slides), [])

    @classmethod
    def of(cls, source: str | Path | Cohort | Iterable[str | Path | Bag | CohortSlide]) -> Cohort:
        """Return a cohort from what a user has: a CSV, or a list of slides, of bag stores or of bags.

        Parameters
        ----------
        source : path, list or Cohort
            A CSV has a column "slide", and maybe "name", "label", "mpp" (µm per level-0 px) and "mask"; paths in it
            are relative to it. Other columns are left alone.

        Raises
        ------
        ConfigError
            All that is wrong, at once.
        """
        if isinstance(source, Cohort):
            return source
        if isinstance(source, str | Path):
            return cls._of_csv(Path(source).expanduser())
        if isinstance(source, Bag) or not isinstance(source, Iterable):
            raise ConfigError(
                f"a cohort is no {type(source).__name__}", remedy="pass a CSV or a list of slides or bags"
            )
        return cls([_as_slide(item) for item in source])

    @classmethod
    def _of_csv(cls, path: Path) -> Cohort:
        header, rows = _read_rows(path)
        problems = [*_header_problems(header)]
        places = [f"line {line}" for line, _ in rows]
        slides = []
        for place, (_, row) in zip(places, rows, strict=True):
            found = _mpp(row.get("mpp", ""))
            if isinstance(found, str):
                problems.append(f"{place}: {found}")
            source, mask = row.get("slide", ""), row.get("mask", "")
            if not source and "slide" in header:
                problems.append(f"{place}: no slide")
            slides.append(
                CohortSlide(
                    source=path.parent / Path(source).expanduser(),
                    name=row.get("name") or Path(source).name,
                    mpp=None if isinstance(found, str) else found,
                    mask=path.parent / Path(mask).expanduser() if mask else None,
                )
            )
        labels = _typed([row.get("label", "") for _, row in rows])
        cohort = cls.__new__(cls)
        cohort._slides = tuple(replace(s, label=label) for s, label in zip(slides, labels, strict=True))
        cohort._check(places, problems, str(path))
        return cohort

    def _check(self, places: Sequence[str], problems: list[str], where: str | None = None) -> None:
        counts = Counter(slide.name for slide in self._slides)
        for place, slide in zip(places, self._slides, strict=True):
            if slide.name and isinstance(slide.source, Path) and not slide.source.exists():
                problems.append(f"{place}: no such slide {slide.source}")
            if slide.mask is not None and not slide.mask.exists():
                problems.append(f"{place}: no such mask {slide.mask}")
        twice = [name for name, count in counts.items() if name and count > 1]
        problems += [f'{counts[name]} slides are called {name} (tell them apart by "name")' for name in twice]
        if not self._slides and not problems:
            problems.append("no slides")
        if problems:
            shown = "; ".join(problems[:_SHOWN])
            more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            head = f"{len(problems)} problems: " if len(problems) > 1 else ""
            raise ConfigError(f"{head}{shown}{more}", slide=where, remedy="correct the cohort")

    @property
    def labels(self) -> list[Label]:
        """The label of every slide."""
        return [slide.label for slide in self._slides]

    @overload
    def __getitem__(self, key: int) -> CohortSlide: ...
    @overload
    def __getitem__(self, key: slice) -> Cohort: ...
    def __getitem__(self, key: int | slice) -> CohortSlide | Cohort:
        return Cohort(self._slides[key]) if isinstance(key, slice) else self._slides[key]

    def __len__(self) -> int:
        return len(self._slides)

    def __iter__(self) -> Iterator[CohortSlide]:
        return iter(self._slides)

    def __repr__(self) -> str:
        known = sorted({str(label) for label in self.labels if label is not None})
        labels = f", labels {' and '.join(known)}" if 0 < len(known) <= 5 else f", {len(known)} labels" if known else ""
        return f"Cohort({len(self):,} slides{labels})"


def _as_slide(item: Any) -> CohortSlide:
    if isinstance(item, CohortSlide):
        return item
    if isinstance(item, str | Path):
        path = Path(item).expanduser().absolute()
        return CohortSlide(path, path.name)
    if isinstance(item, Bag):
        return CohortSlide(item, item.name, item.label)
    raise ConfigError(f"a {type(item).__name__} in a cohort", remedy="pass paths of slides or bag stores, or bags")


def _read_rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Return the header of a CSV and its rows with their line numbers, all stripped; empty lines are passed over."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", slide=str(path), remedy="check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError("is no CSV in UTF-8", slide=str(path), remedy="save it as CSV, UTF-8") from error
    if not lines or not lines[0].strip():
        raise ConfigError("is empty", slide=str(path), remedy='write a column "slide"')
    # A spreadsheet writes semicolons where the comma is for decimals.
    delimiter = max(",;\t", key=lines[0].count)
    reader = csv.reader(lines, delimiter=delimiter)
    header = [name.strip() for name in next(reader)]
    rows = [
        (reader.line_num, dict(zip(header, (cell.strip() for cell in row), strict=False)))
        for row in reader
        if any(cell.strip() for cell in row)
    ]
    return header, rows


def _header_problems(header: Sequence[str]) -> Iterator[str]:
    for name in {name for name in header if header.count(name) > 1 and name in COLUMNS}:
        yield f'column "{name}" is there twice'
    unknown = [name for name in header if name not in COLUMNS]
    for name in COLUMNS:
        alike = [] if name in header else difflib.get_close_matches(name, [u.lower() for u in unknown], 1, _ALIKE)
        if alike:
            yield f'column "{alike[0]}" looks like "{name}"'
        elif name == "slide" and name not in header:
            yield f'no column "slide" (there are: {", ".join(header)})'


def _mpp(text: str) -> float | str | None:
    """Return the resolution a cell holds, or what is wrong with it."""
    if not text:
        return None
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        value = math.nan
    return value if math.isfinite(value) and value > 0 else f"mpp {text!r} is no resolution in µm per px"


def _typed(cells: Sequence[str]) -> list[Label]:
    """Return a column of labels as whole numbers if all of them are, else as numbers, else as text; "" is none."""
    for kind in (int, float):
        try:
            return [kind(cell) if cell else None for cell in cells]
        except ValueError:
            continue
    return [cell or None for cell in cells]
