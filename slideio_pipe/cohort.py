"""Which slides a study has, and what is known of each: read from a manifest and checked before anything starts."""

from __future__ import annotations

import difflib
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from slideio_pipe.bag import Bag, Label, patient_of
from slideio_pipe.errors import AlikeLabelsWarning, ConfigError, MissingCellsWarning, warn_caller
from slideio_pipe.manifest import (
    TABLES,
    Table,
    file_name,
    is_windows_path,
    read_table,
    write_table,
)
from slideio_pipe.manifest_cells import fold_of, infinite_labels, labels_of, missing_words, mpp_of, value_of
from slideio_pipe.slide_files import SLIDES, dicom_series, is_named_dicom, slides_in, slides_of
from slideio_pipe.split_names import split_of

COLUMNS = ("slide", "name", "label", "mpp", "mask", "patient", "split", "fold")
# What a column may be called by mistake: closer than this to one of ours that is not there.
_ALIKE = 0.8
# A label that is so many times rarer than one that looks like it may be a slip; shorter words are never slips.
_OFTEN = 5
_SHORT = 5
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
    patient: str | None = None  # slides of one patient are never parted
    split: str | None = None  # train, val, test, …
    fold: int | None = None  # the fold in which it is tested, from 0
    other: tuple[tuple[str, str], ...] = ()  # columns of the manifest that are none of ours, as they are


class Cohort(Sequence[CohortSlide]):
    """The slides of a study, each with its name and label; pickles as its bags do.

    Parameters
    ----------
    slides : iterable of CohortSlide

    Raises
    ------
    ConfigError
        All that is wrong, at once: files that are not there, names given twice, no slide at all.

    Warns
    -----
    AlikeLabelsWarning
        A label that few slides have is one letter away from one that many have: "tumuor" once and "tumour" 40 times.
        It is no error, because classes may be alike by right. Labels that differ in a digit ("grade 1", "grade 2"), in
        a word ("HER2+", "HER2-" as well), in a short one ("MSI", "MSS") or that are about as frequent are not taken
        for misspelt.

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
        """Return a cohort of slides that were checked before, or whose files are elsewhere."""
        cohort = cls.__new__(cls)
        cohort._slides = tuple(slides)
        return cohort

    @classmethod
    def of(
        cls, source: str | Path | Cohort | Iterable[str | Path | Bag | CohortSlide], *, root: str | Path | None = None
    ) -> Cohort:
        """Return a cohort from what a user has: a manifest, a folder, a pattern, a slide, or a list of slides or bags.

        Parameters
        ----------
        source : path, list or Cohort
            A CSV or Parquet file has a column "slide", and maybe "name", "label", "mpp" (µm per level-0 px), "mask",
            "patient", "split" and "fold"; paths in it are relative to it. Other columns are kept as they are. CLAM's
            ``slide_id`` and ``case_id`` are the slide and the patient. "NA", "nan", "None" and what else pandas takes
            for an empty cell is one. A folder is searched for slides, the folders below it only where it has none
            itself; ``raw/**/*.svs`` is a pattern. Files of one DICOM series are one slide, named by its largest.
        root : path, optional
            A folder that every slide and mask has to lie in, links followed.

        Raises
        ------
        ConfigError
            All that is wrong, at once.

        Warns
        -----
        PartsWarning
            Several files are one slide, or folders below the one that was given were searched.
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
            raise ConfigError("no slides are there", slide=str(path), remedy="check the path")
        return cls.of(slides, root=root)

    @classmethod
    def of_table(cls, path: Path, table: Table, root: str | Path | None = None) -> Cohort:
        """Return the cohort that a table lists, which was read from ``path`` or made of what was."""
        problems = [*_header_problems(table.header)]
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
            problems += [f"{place}: {problem}" for problem in _slide_problems(slide, root)]
        counts = Counter(slide.name for slide in self._slides)
        twice = [name for name, count in counts.items() if name and count > 1]
        problems += [f'{counts[name]} slides are called {name} (tell them apart by "name")' for name in twice]
        problems += _series_problems(places, self._slides, root)
        problems += _label_problems(self._slides)
        _warn_of_alike(self._slides)
        problems += _parted_patients(self._slides)
        if not self._slides and not problems:
            problems.append("no slides")
        if problems:
            shown = "; ".join(problems[:_SHOWN])
            more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            head = f"{len(problems)} problems: " if len(problems) > 1 else ""
            raise ConfigError(f"{head}{shown}{more}", slide=where, remedy="correct the cohort")

    def where(self, *, split: str | None = None, fold: int | None = None) -> Cohort:
        """Return the slides of a split, or of a fold, in their order; "valid" and "Validation" are "val".

        Raises
        ------
        ConfigError
            There are none.
        """
        named_split = split_of(split)
        chosen = [s for s in self._slides if named_split in (None, split_of(s.split)) and fold in (None, s.fold)]
        if not chosen:
            named = {s.split for s in self._slides} if split is not None else {s.fold for s in self._slides}
            there = ", ".join(sorted(str(name) for name in named if name is not None)) or "none"
            wanted = f'split "{split}"' if split is not None else f"fold {fold}"
            raise ConfigError(f"no slide is in {wanted} (there are: {there})", remedy="split the cohort first")
        return Cohort.unchecked(chosen)

    def write(self, path: str | Path) -> Path:
        """Write the cohort as a manifest, CSV or Parquet by its ending, in place of what was there.

        Paths are written relative to it where they lie below it. ``Cohort.of`` reads the same cohort back.

        Raises
        ------
        ConfigError
            It holds bags that are no files, or the ending is no table's.
        OutputError
            The disk refuses.
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
        """Return the labels, or another column of the manifest typed as labels are: None where a cell is empty.

        Raises
        ------
        ConfigError
            The cohort has no such column.
        """
        if name == "label":
            return self.labels
        cells = [dict(slide.other) for slide in self._slides]
        if cells and not any(name in row for row in cells):
            there = ", ".join(["label", *sorted(set().union(*cells))])
            raise ConfigError(f'the cohort has no column "{name}"', remedy=f"there are: {there}")
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
    """Warn of words that count as no label or no patient and could be the name of one."""
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
    """Return what was given, of files that are one slide only its largest."""
    given = [Path(i).expanduser().absolute() if isinstance(i, str | Path) else i for i in items]
    paths = [item for item in given if isinstance(item, Path)]
    whole = set(slides_of(paths))
    return (item for item in given if not isinstance(item, Path) or item in whole)


def _series_problems(places: Sequence[str], slides: Sequence[CohortSlide], root: str | Path | None) -> Iterator[str]:
    """Say which rows are files of one DICOM slide; of files outside of ``root`` nothing is read."""
    known = {}
    for place, slide in zip(places, slides, strict=True):
        path = slide.source
        if isinstance(path, Path) and is_named_dicom(path) and not any(_slide_problems(slide, root)):
            known[path] = place
    for files in dicom_series(known):
        yield f"{' and '.join(sorted(known[path] for path in files))} are files of one DICOM slide"


def _header_problems(header: Sequence[str]) -> Iterator[str]:
    for name in {name for name in header if header.count(name) > 1 and name in COLUMNS}:
        yield f'column "{name}" is there twice'
    unknown = {name.lower(): name for name in header if name not in COLUMNS}
    for name in COLUMNS:
        alike = [] if name in header else difflib.get_close_matches(name, unknown, 1, _ALIKE)
        if alike:
            yield f'column "{unknown[alike[0]]}" looks like "{name}"; call it "{name}"'
        elif name == "slide" and name not in header:
            yield f'no column "slide" (there are: {", ".join(header)})'


def _slide_problems(slide: CohortSlide, root: str | Path | None) -> Iterator[str]:
    files = {"slide": slide.source if slide.name else None, "mask": slide.mask}
    for what, file in files.items():
        if not isinstance(file, Path):
            continue
        try:
            # Asked before whether it is there: a hostile manifest learns nothing of other folders.
            if root is not None and not file.resolve().is_relative_to(Path(root).expanduser().resolve()):
                yield f"{what} {file} is outside of {root}"
            elif not file.exists():
                hint = " (write its path with / instead of \\)" if is_windows_path(file.name) else ""
                yield f"no such {what} {file}{hint}"
        except (OSError, ValueError) as error:  # too long, a zero byte, a folder that may not be entered
            yield f"{what} {str(file)!r} cannot be looked for ({getattr(error, 'strerror', None) or error})"


def _label_problems(slides: Sequence[CohortSlide]) -> Iterator[str]:
    spelt = defaultdict(set)
    for slide in slides:
        if isinstance(slide.label, str):
            spelt["".join(slide.label.split()).casefold()].add(slide.label)
    for ways in spelt.values():
        if len(ways) > 1:
            yield f"label {' and '.join(repr(way) for way in sorted(ways))} differ in capitals or spaces only"


def _warn_of_alike(slides: Sequence[CohortSlide]) -> None:
    """Warn of labels that look like another one misspelt."""
    counts = Counter(slide.label for slide in slides if isinstance(slide.label, str))
    for rare, few in counts.items():
        alike = [often for often, many in counts.items() if many >= _OFTEN * few and is_misspelt(str(rare), str(often))]
        for often in alike[:1]:
            told = f"label {rare!r} ({few}×) may be {often!r} ({counts[often]}×) misspelt"
            warnings.warn(AlikeLabelsWarning(told), stacklevel=4)


def is_misspelt(word: str, other: str) -> bool:
    """Return whether a letter is wrong, missing, too many, or changed places with its neighbour.

    Only letters are slips: a digit or a sign tells classes apart, and so does a letter that is a word of its own, or
    one of a word so short that every letter of it counts.

    >>> is_misspelt("tumuor", "tumour"), is_misspelt("grade 1", "grade 2"), is_misspelt("type A", "type B")
    (True, False, False)
    """
    first, second = (text.casefold().split() for text in (word, other))
    if len(first) != len(second):
        return False
    differ = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    if len(differ) != 1:
        return False
    a, b = differ[0]
    if min(len(a), len(b)) < _SHORT:
        return False
    start = _same(a, b)
    end = _same(a[start:][::-1], b[start:][::-1])
    wrong, right = a[start : len(a) - end], b[start : len(b) - end]
    swapped = len(wrong) == 2 and wrong == right[::-1]
    # A prefix (atypical, typical) is a word, not a slip.
    is_prefix = start == 0 and len(a) != len(b)
    return (swapped or max(len(wrong), len(right)) == 1) and (wrong + right).isalpha() and not is_prefix


def _same(a: str, b: str) -> int:
    """Return how many letters at the beginning are the same."""
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _parted_patients(slides: Sequence[CohortSlide]) -> Iterator[str]:
    splits: dict[str, set[str]] = defaultdict(set)
    folds: dict[str, set[int]] = defaultdict(set)
    for slide in slides:
        if slide.patient is not None:
            splits[slide.patient] |= set() if slide.split is None else {str(split_of(slide.split))}
            folds[slide.patient] |= set() if slide.fold is None else {slide.fold}
    for patient, names in splits.items():
        if len(names) > 1:
            yield f"patient {patient} is in {' and '.join(sorted(names))}"
    for patient, numbers in folds.items():
        if len(numbers) > 1:
            yield f"patient {patient} is in folds {' and '.join(map(str, sorted(numbers)))}"


def _numbered(slides: Iterable[CohortSlide]) -> list[str]:
    """Return what slides that no manifest lists are called in messages."""
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
    absolute = path.absolute()  # not normalised: "../slides/a.svs" is written as it was read
    return str(absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute)
