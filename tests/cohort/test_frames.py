"""DataFrames, Arrow tables and lists of dictionaries are read like the CSV that pandas and polars write of them."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.table import read_table
from slideio_pipe.errors import ConfigError, NumericIdsWarning

NAMES = ["a.svs", "b.svs", "c.svs"]


@pytest.fixture(autouse=True)
def slides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three empty slides in the current folder, to which paths of tables in memory are relative."""
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        (tmp_path / name).touch()


def in_polars(columns: dict[str, list[Any]]) -> Any:
    """Return a DataFrame of polars."""
    return pytest.importorskip("polars", reason="polars is not installed").DataFrame(columns)


def in_arrow(columns: dict[str, list[Any]]) -> Any:
    """Return a table of Arrow."""
    return pytest.importorskip("pyarrow", reason="pyarrow is not installed").table(columns)


def in_rows(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Return a list of dictionaries."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


MAKERS = [pandas.DataFrame, in_polars, in_arrow, in_rows]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("cells", "texts"),
    [
        (["007", "7", "NA"], ["007", "7", "NA"]),
        ([1, None, 3], ["1", "", "3"]),
        ([1, 2, 3], ["1", "2", "3"]),
        ([0.5, None, 1.0], ["0.5", "", "1.0"]),
        ([True, False, True], ["True", "False", "True"]),
        ([datetime.date(2024, 5, 31), None, datetime.date(2024, 6, 1)], ["2024-05-31", "", "2024-06-01"]),
        (["tumour ", None, ""], ["tumour", "", ""]),
    ],
)
def test_cells_are_the_same_from_each_kind_of_table(
    make: Callable[[dict[str, list[Any]]], Any], cells: list[Any], texts: list[str]
) -> None:
    """Also as Parquet files, which polars and pandas write."""
    frame = make({"slide": NAMES, "x": cells})
    assert [row["x"] for row in read_table(frame).rows] == texts
    if make in (pandas.DataFrame, in_polars):
        pytest.importorskip("pyarrow")
        frame.to_parquet("t.parquet") if make is pandas.DataFrame else frame.write_parquet("t.parquet")
        assert [row["x"] for row in read_table("t.parquet").rows] == texts


@pytest.mark.parametrize("make", MAKERS)
def test_a_table_in_memory_is_the_cohort_of_its_csv(make: Callable[[dict[str, list[Any]]], Any]) -> None:
    """Every column of ours, and another one."""
    columns = {
        "slide": NAMES, "label": [1, None, 0], "mpp": [0.25, None, 0.5], "patient": ["01", "1", "02"],
        "split": ["train", "test", None], "fold": [0, 1, None], "site": ["Leiden", "NA", ""],
    }  # fmt: skip
    pandas.DataFrame(columns, dtype=object).to_csv("t.csv", index=False)
    assert list(Cohort.of(make(columns))) == list(Cohort.of(Path.cwd() / "t.csv"))


def test_timestamps_and_categories_of_pandas() -> None:
    """A day has no time; a category is its text."""
    times = pandas.to_datetime(["2024-05-31", None, "2024-06-01 12:30"], format="ISO8601")
    frame = pandas.DataFrame({"slide": NAMES, "t": times, "c": pandas.Categorical(["x", None, "y"])})
    rows = read_table(frame).rows
    assert [row["t"] for row in rows] == ["2024-05-31", "", "2024-06-01 12:30:00"]
    assert [row["c"] for row in rows] == ["x", "", "y"]


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "string", "object", "boolean"])
def test_missing_values_of_every_dtype_of_pandas_are_empty(dtype: str) -> None:
    """NaN, NA and None."""
    cells = {"boolean": [True, None, False], "string": ["1", None, "0"]}.get(dtype, [1, None, 0])
    frame = pandas.DataFrame({"slide": NAMES, "x": pandas.array(cells, dtype=dtype)})
    assert [row["x"] for row in read_table(frame).rows][1] == ""


def test_a_named_index_is_a_column() -> None:
    """As ``set_index`` leaves it; said in the notes."""
    cohort = Cohort.of(pandas.DataFrame({"slide": NAMES, "label": [1, 0, 1]}).set_index("slide"))
    assert [slide.name for slide in cohort] == NAMES
    assert cohort.notes == ('the DataFrame\'s index is read as the column "slide"',)
    levels = pandas.DataFrame({"PATIENT": ["p", "p", "q"], "slide": NAMES, "x": 1}).set_index(["PATIENT", "slide"])
    assert [slide.patient for slide in Cohort.of(levels)] == ["p", "p", "q"]


def test_numbers_of_rows_are_no_column() -> None:
    """A filter and a sort leave an index without a name."""
    frame = pandas.DataFrame({"slide": NAMES, "label": [1, 0, 1]})
    assert [slide.name for slide in Cohort.of(frame[frame.label == 1])] == ["a.svs", "c.svs"]
    assert Cohort.of(frame).notes == ()


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (pandas.DataFrame({"label": [1, 0]}, index=["a.svs", "b.svs"]), "row names .*rename_axis"),
        (pandas.DataFrame({"slide": NAMES}, index=pandas.Index([1, 2, 3], name="slide")), "are columns, too"),
        (pandas.DataFrame({("slide", "x"): NAMES}), "several levels"),
        (pandas.DataFrame({"slide": [["a.svs"], ["b.svs"]]}), 'column "slide" is a list'),
        (pandas.DataFrame([["a.svs", "b.svs"]], columns=["slide", "slide"]), "is there twice"),
        (pandas.DataFrame({"slide": []}), "no slides"),
        ([{"slide": "a.svs"}, "b.svs"], "a dict in a cohort"),
    ],
)
def test_tables_in_memory_that_are_not_clear_are_refused(frame: Any, words: str) -> None:
    """Row names that may be ids, two columns of a name, cells with several values."""
    with pytest.raises(ConfigError, match=words):
        Cohort.of(frame)


def test_a_lazy_frame_is_refused() -> None:
    """It has no rows before ``collect``."""
    with pytest.raises(ConfigError, match=r"LazyFrame has no rows yet; pass its collect\(\)"):
        Cohort.of(in_polars({"slide": NAMES}).lazy())


def test_ids_that_are_decimals_are_whole_numbers() -> None:
    """pandas reads 4711 as 4711.0 beside an empty cell; without one, too, if it was filtered later."""
    frame = pandas.DataFrame({"slide": NAMES, "patient": [4711.0, 1234.0, 9999.0]})
    assert [slide.patient for slide in Cohort.of(frame)] == ["4711", "1234", "9999"]
    with pytest.warns(NumericIdsWarning, match="stored as numbers"):
        Cohort.of(pandas.DataFrame({"slide": NAMES, "patient": [71, 4711, 9999]}))


def test_errors_name_the_row_and_the_kind_of_table() -> None:
    """There is no path to name."""
    with pytest.raises(ConfigError, match=r"^DataFrame: row 2: no such slide"):
        Cohort.of(pandas.DataFrame({"slide": ["a.svs", "x.svs"]}))


def test_reading_a_dataframe_imports_neither_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects are recognised by their methods."""
    frame, other = pandas.DataFrame({"slide": NAMES}), in_polars({"slide": NAMES})
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.setitem(sys.modules, "polars", None)
    assert list(Cohort.of(frame)) == list(Cohort.of(other))
