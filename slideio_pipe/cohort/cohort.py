"""The slides of a study with their labels: read from a manifest and checked before any work starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

from slideio_pipe.cohort.cells import fold_of, infinite_labels, labels_of, missing_words, mpp_of, value_of
from slideio_pipe.cohort.checks import (
    header_problems,
    label_problems,
    patient_problems,
    series_problems,
    slide_problems,
    warn_of_alike,
)
from slideio_pipe.cohort.cohort_slide import COLUMNS, CohortSlide
from slideio_pipe.cohort.slide_files import SLIDES, slides_in, slides_of
from slideio_pipe.cohort.split_names import split_of
from slideio_pipe.cohort.table import TABLES, Table, file_name, read_table, write_table
from slideio_pipe.errors import ConfigError, MissingCellsWarning, warn_caller
from slideio_pipe.files import not_there
from slideio_pipe.tiles.bag import Bag, Label, patient_of

# Maximum number of problems in one message.
_SHOWN = 20


class Cohort(Sequence[CohortSlide]):
    """The slides of a study, each with its name and label; can be pickled if its bags can.

    Parameters
    ----------
    slides : iterable of CohortSlide

    Raises
    ------
    ConfigError
        All problems together: missing files, duplicate names, no slides.

    Warns
    -----
    AlikeLabelsWarning
        A rare label is one letter away from a frequent one: "tumuor" once and "tumour" 40 times. Not an error, because
        classes may be similar. Labels that differ in a digit ("grade 1", "grade 2"), in a word ("HER2+", also "HER2-"),
        short labels ("MSI", "MSS") and labels that are about equally frequent do not count as misspelt.

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
        self._check(_numbered(self._slides), [])

    @classmethod
    def unchecked(cls, slides: Iterable[CohortSlide]) -> Cohort:
        """Return a cohort of slides that are already checked, or whose files are on another machine."""
        cohort = cls.__new__(cls)
        cohort._slides = tuple(slides)
        return cohort

    @classmethod
    def of(
        cls, source: str | Path | Cohort | Iterable[str | Path | Bag | CohortSlide], *, root: str | Path | None = None
    ) -> Cohort:
        """Return a cohort from a manifest, a folder, a pattern, a slide, or a list of slides or bags.

        Parameters
        ----------
        source : path, list or Cohort
            A CSV or Parquet file has a column "slide", and optionally "name", "label", "mpp" (µm per level-0 px),
            "mask", "patient", "split" and "fold"; its paths are relative to it. Other columns are kept unchanged.
            CLAM's ``slide_id`` and ``case_id`` are the slide and the patient. "NA", "nan", "None" and the other words
            that pandas reads as missing count as an empty cell. A folder is searched for slides, its subfolders only if
            it has none itself; ``raw/**/*.svs`` is a pattern. Files of one DICOM series are one slide, named after the
            largest.
        root : path, optional
            A folder that must contain every slide and mask, after following links.

        Raises
        ------
        ConfigError
            All problems together.

        Warns
        -----
        PartsWarning
            Several files are one slide, or subfolders of the given folder were searched.
        """
        if isinstance(source, Cohort):
            found = source
        elif isinstance(source, str | Path):
            return cls._of_path(Path(source).expanduser(), root)
        elif isinstance(source, Bag | Mapping) or hasattr(source, "columns") or not isinstance(source, Iterable):
            remedy = "pass a CSV or a list of slides or bags"
            if hasattr(source, "columns"):  # pandas, polars
                remedy = 'write it as CSV with a column "slide", and pass its path'
            raise ConfigError(f"a cohort is no {type(source).__name__}", remedy=remedy)
        else:
            found = cls([_as_slide(item) for item in _whole_slides(source)])
        if root is not None:
            found._check(_numbered(found), [], root=root)
        return found

    @classmethod
    def _of_path(cls, path: Path, root: str | Path | None) -> Cohort:
        slides = slides_in(path)
        if slides is None and path.suffix.lower() in (*SLIDES, ".zarr"):
            slides = [path]
        if slides is None:
            return cls.of_table(path, read_table(path), root)
        if not slides:
            raise not_there(ConfigError, "no slides are there", path)
        return cls.of(slides, root=root)

    @classmethod
    def of_table(cls, path: Path, table: Table, root: str | Path | None = None) -> Cohort:
        """Return the cohort listed in a table that was read from ``path``, or derived from it."""
        problems = [*header_problems(table.header)]
        other = [name for name in table.header if name not in COLUMNS]
        slides = []
        for place, cells in zip(table.places, table.rows, strict=True):
            row = {name: value_of(cell) for name, cell in cells.items() if name in COLUMNS}
            mpp, fold = mpp_of(row.get("mpp", "")), fold_of(row.get("fold", ""))
            problems += [f"{place}: {found}" for found in (mpp, fold) if isinstance(found, str)]
            source, mask = row.get("slide", ""), row.get("mask", "")
            if not source and "slide" in table.header:
                problems.append(f"{place}: no slide")
            slides.append(
                CohortSlide(
                    source=path.parent / Path(source).expanduser(),
                    name=row.get("name") or file_name(source),
                    mpp=None if isinstance(mpp, str) else mpp,
                    mask=path.parent / Path(mask).expanduser() if mask else None,
                    patient=row.get("patient") or None,
                    split=row.get("split") or None,
                    fold=None if isinstance(fold, str) else fold,
                    other=tuple((name, cells.get(name, "")) for name in other),
                )
            )
        labels = labels_of([row.get("label", "") for row in table.rows])
        problems += [f"label {cell!r} is no finite number" for cell in infinite_labels(_column(table, "label"))]
        _warn_of_missing(table)
        cohort = cls.unchecked(replace(s, label=label) for s, label in zip(slides, labels, strict=True))
        cohort._check(table.places, problems, str(path), root)
        return cohort

    def _check(
        self, places: Sequence[str], problems: list[str], where: str | None = None, root: str | Path | None = None
    ) -> None:
        for place, slide in zip(places, self._slides, strict=True):
            problems += [f"{place}: {problem}" for problem in slide_problems(slide, root)]
        counts = Counter(slide.name for slide in self._slides)
        twice = [name for name, count in counts.items() if name and count > 1]
        problems += [f'{counts[name]} slides are called {name} (change the column "name")' for name in twice]
        problems += series_problems(places, self._slides, root)
        problems += label_problems(self._slides)
        warn_of_alike(self._slides)
        problems += patient_problems(self._slides)
        if not self._slides and not problems:
            problems.append("no slides")
        if problems:
            shown = "; ".join(problems[:_SHOWN])
            more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            head = f"{len(problems)} problems: " if len(problems) > 1 else ""
            raise ConfigError(f"{head}{shown}{more}", slide=where, remedy="correct the cohort")

    def where(self, *, split: str | None = None, fold: int | None = None) -> Cohort:
        """Return the slides of a split or of a fold, in order; "valid" and "Validation" mean "val".

        Raises
        ------
        ConfigError
            There are none.
        """
        named_split = split_of(split)
        chosen = [s for s in self._slides if named_split in (None, split_of(s.split)) and fold in (None, s.fold)]
        if not chosen:
            named = {s.split for s in self._slides} if split is not None else {s.fold for s in self._slides}
            available = ", ".join(sorted(str(name) for name in named if name is not None)) or "none"
            part = f'split "{split}"' if split is not None else f"fold {fold}"
            raise ConfigError(f"no slide is in {part} (there are: {available})", remedy="split the cohort first")
        return Cohort.unchecked(chosen)

    def write(self, path: str | Path) -> Path:
        """Write the cohort as a manifest, CSV or Parquet by its ending, replacing an existing file.

        Paths below the manifest's folder are written relative to it. ``Cohort.of`` reads the same cohort back.

        Raises
        ------
        ConfigError
            It contains bags that are not files, or the ending is not that of a table.
        OutputError
            The file cannot be written.
        """
        target = Path(path).expanduser()
        if target.suffix.lower() not in TABLES:
            raise ConfigError("is no table", slide=str(target), remedy="end it in .csv or .parquet")
        rows = [_row(slide, target.parent.absolute()) for slide in self._slides]
        used = {name for row in rows for name, cell in row.items() if cell} | {"slide"}
        extra = dict.fromkeys(name for slide in self._slides for name, _ in slide.other)
        write_table(target, [*(name for name in COLUMNS if name in used), *extra], rows)
        return target

    @property
    def labels(self) -> list[Label]:
        """The label of every slide."""
        return [slide.label for slide in self._slides]

    def column(self, name: str) -> list[Label]:
        """Return a column of the manifest, with the types of labels: None for an empty cell.

        Raises
        ------
        ConfigError
            There is no such column.
        """
        if name == "label":
            return self.labels
        cells = [dict(slide.other) for slide in self._slides]
        if cells and not any(name in row for row in cells):
            available = ", ".join(["label", *sorted(set().union(*cells))])
            raise ConfigError(f'the cohort has no column "{name}"', remedy=f"there are: {available}")
        return labels_of([row.get(name, "") for row in cells])

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
        return f"Cohort({len(self):,} slide{'' if len(self) == 1 else 's'}{labels})"


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


def _numbered(slides: Iterable[CohortSlide]) -> list[str]:
    """Return names for messages of slides without a manifest."""
    return [f"slide {number}" for number, _ in enumerate(slides, 1)]


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
    return row | dict(slide.other)


def _relative(path: Path, folder: Path) -> str:
    absolute = path.absolute()  # not normalised: "../slides/a.svs" is written as read
    return str(absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute)
