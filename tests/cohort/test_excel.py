"""Sheets of Excel files are read as Excel shows them, and what cannot be read surely is refused; oracle: openpyxl."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.table import read_table
from slideio_pipe.errors import ConfigError, MissingExtraError, NumericIdsWarning

openpyxl = pytest.importorskip("openpyxl", reason="Excel files need openpyxl")

DAY = datetime.date(2024, 5, 31)


def book(folder: Path, *rows: Sequence[Any], change: Callable[[Any, Any], object] | None = None) -> Path:
    """Write a sheet with openpyxl, and empty slides a.svs to d.svs beside it."""
    made = openpyxl.Workbook()
    for row in rows:
        made.active.append(row)
    if change is not None:
        change(made, made.active)
    for name in "abcd":
        (folder / f"{name}.svs").touch()
    made.save(folder / "table.xlsx")
    return folder / "table.xlsx"


def column(path: Path, name: str) -> list[str]:
    """Return a column as text."""
    return [row[name] for row in read_table(path).rows]


@pytest.mark.parametrize(
    ("cells", "texts"),
    [
        (["007", "7", "NA"], ["007", "7", "NA"]),
        ([1, 2.0, None], ["1", "2", ""]),
        ([1, 0.5, None], ["1", "0.5", ""]),
        ([True, False, None], ["True", "False", ""]),
        ([DAY, datetime.datetime(2024, 5, 31, 12, 30), None], ["2024-05-31", "2024-05-31 12:30:00", ""]),
        ([" tumour ", "ﾃ µ", "=1+1"], ["tumour", "ﾃ µ", "2"]),
    ],
)  # fmt: skip
def test_cells_are_the_text_that_a_csv_has(tmp_path: Path, cells: list[Any], texts: list[str]) -> None:
    """Zeros of texts stay, whole numbers stay whole, a date has no time, and a formula is its result."""
    rows = [(f"{name}.svs", cell) for name, cell in zip("abc", cells, strict=True)]
    path = book(tmp_path, ("slide", "x"), *rows)
    if "=1+1" in cells:  # openpyxl stores no results
        with pytest.raises(ConfigError, match=r"B4 is a formula without a result.*save the file in Excel"):
            read_table(path)
        return
    assert column(path, "x") == texts


def test_ids_with_a_format_of_zeros_are_read_as_shown(tmp_path: Path) -> None:
    """Excel stores the number 7 and shows 0007."""

    def zeros(_: Any, sheet: Any) -> None:
        for cell in sheet["B"][1:]:
            cell.number_format = "0000"

    path = book(tmp_path, ("slide", "patient"), ("a.svs", 7), ("b.svs", 1234), change=zeros)
    assert [slide.patient for slide in Cohort.of(path)] == ["0007", "1234"]


def test_ids_that_are_numbers_of_several_lengths_are_a_warning(tmp_path: Path) -> None:
    """Zeros may be lost; not if they count 1, 2, 3, or are of one length."""
    path = book(tmp_path, ("slide", "PATIENT"), ("a.svs", 71), ("b.svs", 1234))
    with pytest.warns(NumericIdsWarning, match=r'"PATIENT" are stored as numbers.*\(71, 1234\)'):
        assert [slide.patient for slide in Cohort.of(path)] == ["71", "1234"]
    for ids in ([9, 10, 11], [4711, 1234, 9999]):
        rows = [(f"{name}.svs", one) for name, one in zip("abc", ids, strict=True)]
        assert [slide.patient for slide in Cohort.of(book(tmp_path, ("slide", "patient"), *rows))] == [*map(str, ids)]


def test_the_first_visible_sheet_is_read_and_noted(tmp_path: Path) -> None:
    """Another one by its name, beside or inside of the path."""

    def more(made: Any, sheet: Any) -> None:
        sheet.title, sheet.sheet_state = "Old", "hidden"
        for title, slide in (("Slides", "b.svs"), ("Other", "c.svs")):
            made.create_sheet(title).append(["slide"])
            made[title].append([slide])

    path = book(tmp_path, ("slide",), ("a.svs",), change=more)
    found = Cohort.of(path)
    assert found[0].name == "b.svs"
    assert found.notes == ('table.xlsx: the sheet "Slides" is read; table.xlsx#NAME is another one, of "Old", "Other"',)
    for cohort in (Cohort.of(path, sheet="Other"), Cohort.of(f"{path}#Other")):
        assert (cohort[0].name, cohort.notes) == ("c.svs", ())
    with pytest.raises(ConfigError, match='no sheet "Slide"; there are: "Old", "Slides", "Other"'):
        Cohort.of(path, sheet="Slide")


def test_titles_empty_columns_and_rows_are_left_out(tmp_path: Path) -> None:
    """The first filled row is the header; a row has the number that Excel shows."""
    path = book(tmp_path, (), (None, "slide", None), (), (None, "a.svs", None), (None, "missing.svs"))
    with pytest.raises(ConfigError, match=r"table\.xlsx: row 5: no such slide .*missing\.svs"):
        Cohort.of(path)


def test_hidden_rows_are_noted(tmp_path: Path) -> None:
    """A filter in Excel selects nothing here."""

    def hide(_: Any, sheet: Any) -> None:
        sheet.row_dimensions[3].hidden = True

    found = Cohort.of(book(tmp_path, ("slide",), ("a.svs",), ("b.svs",), change=hide))
    assert len(found) == 2
    assert found.notes == ('1 of 2 rows of the sheet "Sheet" are hidden, and are read as well',)


@pytest.mark.parametrize(
    ("rows", "change", "words"),
    [
        ([("slide", "x"), ("a.svs", "p"), ("b.svs",)], lambda _, s: s.merge_cells("B2:B3"), "B2:B3 are merged"),
        ([("slide", "label"), ("a.svs", "#REF!")], None, "B2 is #REF!"),
        ([("slide", None), ("a.svs", "x")], None, "a column has cells and no name"),
        ([], None, "is empty"),
        ([("slide",)], None, "no slides"),
        ([("file",), ("a.svs",)], None, 'no column "slide"'),
    ],
)  # fmt: skip
def test_sheets_that_cannot_be_read_surely_are_refused(tmp_path: Path, rows: Any, change: Any, words: str) -> None:
    """A merged patient would belong to one row only."""
    with pytest.raises(ConfigError, match=words):
        Cohort.of(book(tmp_path, *rows, change=change))


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 damaged", b"\xd0\xcf\x11\xe0 with a password"])
def test_files_that_are_no_excel_are_refused(tmp_path: Path, content: bytes) -> None:
    """Empty, damaged, or with a password (stored in another format)."""
    (tmp_path / "a.xlsx").write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.xlsx: cannot be read as Excel .*without a password"):
        Cohort.of(tmp_path / "a.xlsx")
    with pytest.raises(ConfigError, match="check the path"):
        Cohort.of(tmp_path / "nowhere.xlsx")


@pytest.mark.parametrize("ending", ["xls", "ods", "xlsb", "numbers"])
def test_other_spreadsheets_are_refused_with_a_remedy(tmp_path: Path, ending: str) -> None:
    """They are not read as CSV."""
    (tmp_path / f"a.{ending}").write_bytes(b"\xd0\xcf\x11\xe0")
    with pytest.raises(ConfigError, match=r"is not read; save it as \.xlsx or as CSV"):
        Cohort.of(tmp_path / f"a.{ending}")


def test_excel_without_openpyxl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is one sentence with the install command."""
    path = book(tmp_path, ("slide",), ("a.svs",))
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(MissingExtraError, match=r"openpyxl is needed and not installed.*slideio-pipe\[excel\]"):
        Cohort.of(path)


@pytest.mark.parametrize(("cell", "words"), [("x" * 32_768, "32,768 characters"), ("a\x07", "Excel cannot have")])
def test_cells_that_excel_cannot_have_are_refused(tmp_path: Path, cell: str, words: str) -> None:
    """Not cut, and not written as something else."""
    (tmp_path / "a.svs").touch()
    with pytest.raises(ConfigError, match=words):
        Cohort.of([{"slide": tmp_path / "a.svs", "x": cell}]).write(tmp_path / "again.xlsx")
    assert not (tmp_path / "again.xlsx").exists()


def test_numbers_are_numbers_in_the_written_sheet_and_ids_are_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts that begin with = are no formulas."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {"slide": "a.svs", "patient": "12", "label": 1, "mpp": 0.25, "site": "007", "age": 61, "note": "=1+1"},
        {"slide": "b.svs", "patient": "13", "label": 0, "mpp": 0.5, "site": "7", "age": "", "note": "1.0"},
    ]
    book(tmp_path, ("slide",), ("a.svs",))
    written = Cohort.of(rows).write(tmp_path / "again.xlsx")
    header, first, second = openpyxl.load_workbook(written)["cohort"].iter_rows(values_only=True)
    found = dict(zip(header, zip(first, second, strict=True), strict=True))
    assert found["patient"] == ("12", "13")
    assert found["label"] == (1, 0)
    assert found["mpp"] == (0.25, 0.5)
    assert found["site"] == ("007", "7")
    assert found["age"] == (61, None)
    assert found["note"] == ("=1+1", "1.0")
    assert list(Cohort.of(written)) == list(Cohort.of(rows))
