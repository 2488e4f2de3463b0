"""The slides of a study with their labels: read from a manifest and checked before any work starts."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

from slideio_pipe.cohort.cells import labels_of
from slideio_pipe.cohort.checks import (
    header_problems,
    label_problems,
    patient_problems,
    series_problems,
    slide_problems,
    warn_of_alike,
)
from slideio_pipe.cohort.cohort_rows import columns_of, rows_of, table_of
from slideio_pipe.cohort.cohort_slide import COLUMNS, CohortSlide
from slideio_pipe.cohort.column_names import ColumnChoice, column_choice
from slideio_pipe.cohort.frames import is_frame, made_frame
from slideio_pipe.cohort.selection import is_wanted, refuse_none, standard_split
from slideio_pipe.cohort.slide_files import PICTURES, SLIDES, slides_in
from slideio_pipe.cohort.split_names import split_of
from slideio_pipe.cohort.study_table import study_table
from slideio_pipe.cohort.table import TABLES, Table, is_table, raw_table, read_table, with_our_names, write_table
from slideio_pipe.cohort.table_join import OF_FILES, join_tables
from slideio_pipe.cohort.table_slides import given_slides, numbered, slides_of_table
from slideio_pipe.errors import ConfigError, in_words
from slideio_pipe.files import not_there
from slideio_pipe.tiles.bag import Bag, Label

# Maximum number of problems in one message.
_SHOWN = 20
_LOG = logging.getLogger("slideio_pipe.cohort.notes")


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
        self._notes: tuple[str, ...] = ()
        self._check(numbered(self._slides), [])

    @classmethod
    def unchecked(cls, slides: Iterable[CohortSlide]) -> Cohort:
        """Return a cohort of slides that are already checked, or whose files are on another machine."""
        cohort = cls.__new__(cls)
        cohort._slides, cohort._notes = tuple(slides), ()
        return cohort

    @classmethod
    def of(
        cls,
        source: Any,
        *,
        root: str | Path | None = None,
        columns: ColumnChoice = None,
        sheet: str | None = None,
        clinical: Any = None,
        slides: str | Path | None = None,
    ) -> Cohort:
        """Return a cohort from a table, a folder, a pattern, a slide, or a list of slides or bags.

        A table is a file (.csv, .tsv, .xlsx, .parquet), a DataFrame of pandas or polars, or a list of dictionaries. It
        has a column "slide", and optionally "name", "label", "mpp" (µm per level-0 px), "mask", "patient", "split",
        "fold" and "cell_file" (cells that QuPath, CellViT or StarDist found). Other columns are kept unchanged. Names
        that other tools give to these columns are read in any case: ``slide_id`` and ``case_id`` (CLAM), ``wsi``
        (TRIDENT), ``FILENAME`` and ``PATIENT`` (STAMP); ``notes`` says which were. Paths are relative to the file,
        those of a table in memory to the current folder.

        Cells are read alike from all of them. "NA", "nan", "None" and the other words that pandas reads as missing
        count as an empty cell; leading zeros of texts stay; whole numbers stay whole, also where pandas or Excel has
        1.0 for 1; dates are 2024-05-31. The index of a pandas DataFrame is a column if it has a name; one without a
        name is ignored if it is numbers, and refused otherwise.

        Parameters
        ----------
        source : path, DataFrame, list or Cohort
            A folder is searched for slides, its subfolders only if it has none itself; ``raw/**/*.svs`` is a pattern.
            Files of one DICOM series are one slide, named after the largest. In a folder without any slide, each JPEG
            is a small slide of one level, or each PNG if it has no JPEG; those of subfolders by a pattern:
            ``tiles/*/*.jpg``.
        root : path, optional
            A folder that must contain every slide and mask, after following links.
        columns : dict or list of str, optional
            The table's column for some of ours: ``{"label": "isMSIH"}``, or ``["label=isMSIH"]``.
        sheet : str, optional
            Sheet of an Excel file, by default the first visible one; also as ``table.xlsx#Sheet2``.
        clinical : path, DataFrame or list of dictionaries, optional
            A table with a row for each patient, whose columns all slides of the patient get.
        slides : path, optional
            A folder, searched with its subfolders, that has the files of the table's ids: slides, or without any slide
            bags, or features, or pictures. A path that exists stays. Any other cell is compared with the paths, then
            with the names of files, with and without their endings; the folder of a DICOM series is one slide. Of
            TCGA's names, the barcode before the UUID is enough; otherwise a beginning is not.

        Raises
        ------
        ConfigError
            All problems together.
        MissingExtraError
            Excel or Parquet without the package that reads it.

        Warns
        -----
        PartsWarning
            Several files are one slide, subfolders of the given folder were searched, or PNGs beside JPEGs are left
            out.
        MissingCellsWarning
            Words count as missing that may be a class.
        NumericIdsWarning
            Ids are stored as numbers, and may have lost leading zeros.
        UnmatchedWarning
            Files of the folder without a row, or patients of only one of the two tables, listed.

        Examples
        --------
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "a.svs").touch()
        >>> rows = [{"FILENAME": folder / "a.svs", "PATIENT": "007", "isMSIH": "MSIH"}]
        >>> cohort = Cohort.of(rows, columns={"label": "isMSIH"})
        >>> cohort[0].name, cohort[0].patient, cohort[0].label
        ('a.svs', '007', 'MSIH')
        >>> print(*cohort.notes)
        the list: columns: slide is "FILENAME", label is "isMSIH", patient is "PATIENT"
        """
        if not isinstance(source, str | Path | Cohort | Bag | Mapping) and isinstance(source, Iterable):
            source = source if is_frame(source) else list(source)
        if is_table(source):
            table = study_table(source, columns=columns, sheet=sheet, clinical=clinical, slides=slides)
            return cls.from_table(table, root)
        if isinstance(source, Table):
            return cls.from_table(source, root)
        for name, given in (("columns", columns), ("clinical", clinical), ("slides", slides), ("sheet", sheet)):
            if given is not None:
                reason = f"{{{name}=}} is for a table" if name != "sheet" else "a sheet is of an Excel file"
                raise ConfigError(reason, remedy="leave it out, or pass a table of the slides")
        if isinstance(source, Cohort):
            found = source
        elif isinstance(source, str | Path):
            return cls._of_path(Path(source).expanduser(), root)
        elif isinstance(source, Bag | Mapping) or not isinstance(source, list):
            remedy = "pass a table, or a list of slides, bags or dictionaries"
            raise ConfigError(f"a cohort is no {type(source).__name__}", remedy=remedy)
        else:
            found = cls(given_slides(source))
        if root is not None:
            found._check(numbered(found), [], root=root)
        return found

    @classmethod
    def _of_path(cls, path: Path, root: str | Path | None) -> Cohort:
        slides = slides_in(path)
        if slides is None and path.suffix.lower() in (*SLIDES, *PICTURES, ".zarr"):
            slides = [path]
        if slides is None:
            return cls.from_table(read_table(path), root)
        if not slides:
            raise not_there(ConfigError, "no slides are there", path)
        return cls.of(slides, root=root)

    @classmethod
    def of_table(cls, path: Path, table: Table, root: str | Path | None = None) -> Cohort:
        """Return the cohort listed in a table that was read from ``path``, or derived from it."""
        return cls.from_table(replace(table, where=str(path), folder=path.parent), root)

    @classmethod
    def from_table(cls, table: Table, root: str | Path | None = None) -> Cohort:
        """Return the cohort listed in a table, as ``read_table`` returns it or derived from that."""
        cohort = cls._parsed(table, root=root)
        cohort._notes = table.notes
        for note in table.notes:
            _LOG.info("%s", in_words(note))
        return cohort

    @classmethod
    def _parsed(cls, table: Table, *, root: str | Path | None = None, files: bool = True) -> Cohort:
        slides, problems = slides_of_table(table)
        cohort = cls.unchecked(slides)
        cohort._check(table.places, [*header_problems(table.header), *problems], table.where, root, files=files)
        return cohort

    def _check(
        self,
        places: Sequence[str],
        problems: list[str],
        where: str | None = None,
        root: str | Path | None = None,
        *,
        files: bool = True,
    ) -> None:
        for place, slide in zip(places, self._slides if files else (), strict=files):
            problems += [f"{place}: {problem}" for problem in slide_problems(slide, root)]
        counts = Counter(slide.name for slide in self._slides)
        twice = [name for name, count in counts.items() if name and count > 1]
        problems += [f'{counts[name]} slides are called {name} (change the column "name")' for name in twice]
        problems += series_problems(places, self._slides, root) if files else ()
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

    def where(self, *, split: Any = None, fold: Any = None, **columns: Any) -> Cohort:
        """Return the slides with these values, in order.

        Parameters
        ----------
        split, fold, **columns
            Column and value: one, a list of several, or a function that returns whether a value is wanted. The columns
            are the fields of a slide (label, patient, name, mpp, …) and the other columns of the table. A number and
            its text are the same; None is an empty cell, but ``split=None`` and ``fold=None`` select every slide.
            "valid" and "Validation" mean the split "val".

        Raises
        ------
        ConfigError
            There are none, or there is no such column.

        Examples
        --------
        >>> labels = ["tumour", "normal", None]
        >>> cohort = Cohort.unchecked(CohortSlide(f"{k}.svs", str(k), label) for k, label in enumerate(labels))
        >>> cohort.where(label="tumour"), len(cohort.where(label=["tumour", "normal"], name=lambda name: name > "0"))
        (Cohort(1 slide, labels tumour), 1)
        """
        found = list(self._slides)
        wanted = {"split": standard_split(split), "fold": fold}
        for name, value in ({key: each for key, each in wanted.items() if each is not None} | columns).items():
            values = Cohort.unchecked(found)._values(name)
            cells = map(split_of, values) if name == "split" else values
            found = [slide for slide, cell in zip(found, cells, strict=True) if is_wanted(cell, value)]
            if not found:
                refuse_none(name, split if name == "split" else value, self._values(name))
        return Cohort.unchecked(found)

    def join(
        self, table: Any, on: str = "patient", *, columns: ColumnChoice = None, sheet: str | None = None
    ) -> Cohort:
        """Return the cohort with the columns of a table, whose rows are found by an id.

        Parameters
        ----------
        table : path, DataFrame or list of dictionaries
            Its columns are found as in ``Cohort.of``; label, mpp, patient, split and fold fill empty fields.
        on : str
            The column with the id, in both: "patient", "slide" or "name" (compared without endings of files), or
            another column.
        columns, sheet
            As in ``Cohort.of``.

        Raises
        ------
        ConfigError
            No id is in both; rows of one id differ; or a cell differs from a field that is not empty.

        Warns
        -----
        UnmatchedWarning
            Ids of only one of the two, listed.

        Examples
        --------
        >>> cohort = Cohort.unchecked(CohortSlide(Path(name), name, patient="07") for name in ("a.svs", "b.svs"))
        >>> cohort.join([{"PATIENT": "07", "label": 1, "age": 61}]).column("age")
        [61, 61]
        """
        besides = [name for name in OF_FILES if name != on]
        right = with_our_names(raw_table(table, sheet=sheet), column_choice(columns), besides)
        joined = Cohort._parsed(join_tables(table_of(self._slides), right, on), files=False)
        return Cohort.unchecked(
            replace(new, source=old.source, mask=old.mask, label=new.label if old.label is None else old.label)
            for new, old in zip(joined, self._slides, strict=True)
        )

    def to_dataframe(self, library: str = "pandas") -> Any:
        """Return the cohort as a DataFrame: a row for each slide, with the types of labels.

        ``Cohort.of`` reads it back. Paths are absolute; an open bag is its name.

        Parameters
        ----------
        library : str
            "pandas" or "polars", which must be installed.

        Raises
        ------
        MissingExtraError
            It is not installed.

        Examples
        --------
        >>> Cohort.unchecked([CohortSlide(Path("/data/a.svs"), "a.svs", label=1)]).to_dataframe().columns.tolist()
        ['slide', 'name', 'label']
        """
        return made_frame(library, columns_of(self._slides))

    def write(self, path: str | Path) -> Path:
        """Write the cohort as a manifest, by its ending CSV, TSV, Excel or Parquet, replacing an existing file.

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
            raise ConfigError("is no table", slide=str(target), remedy="end it in .csv, .tsv, .xlsx or .parquet")
        header, rows = rows_of(self._slides, target.parent.absolute())
        write_table(target, header, rows)
        return target

    @property
    def notes(self) -> tuple[str, ...]:
        """What was chosen while its table was read: columns of other names, a sheet; empty without such a choice."""
        return tuple(in_words(note) for note in self._notes)

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

    def _values(self, name: str) -> list[Any]:
        """Return a field of every slide, or another column."""
        if name in COLUMNS:
            return [slide.source if name == "slide" else getattr(slide, name) for slide in self._slides]
        return self.column(name)

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
