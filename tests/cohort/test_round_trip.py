"""What a cohort's cells are does not change when it is written and read, in any format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slideio_pipe.cohort.cells import infinite_labels, value_of
from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.table import read_table, write_table

# Texts without control characters, which Excel refuses, and without spaces at the ends, which reading strips.
TEXTS = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=20).map(str.strip)
TRICKY = st.sampled_from(
    [
        *["007", "7", "1.0", "1e5", "NA", "=1+1", "#N/A", "TRUE", "a,b", "a;b", 'q"q', "a\tb", "a\nb"],
        *["'x", "1,5", "-0", "+1", "_x000D_", "０", "12345678901234567890"],
    ]
)
CELLS = st.lists(TEXTS | TRICKY, min_size=1, max_size=6)
NUMBERS = st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False)
ENDINGS = [".csv", ".tsv", ".txt", ".xlsx", ".parquet"]
PACKAGES = {".xlsx": "openpyxl", ".parquet": "pyarrow"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples."""
    return tmp_path_factory.mktemp("tables")


@pytest.mark.parametrize("ending", ENDINGS)
@given(cells=CELLS)
@settings(max_examples=60)
def test_texts_stay(folder: Path, ending: str, cells: list[str]) -> None:
    """Leading zeros, signs, quotes, delimiters, line ends, formulas."""
    pytest.importorskip(PACKAGES.get(ending, "csv"))
    rows = [{"slide": f"{k}.svs", "x": cell} for k, cell in enumerate(cells)]
    write_table(folder / f"t{ending}", ["slide", "x"], rows)
    assert [row["x"] for row in read_table(folder / f"t{ending}").rows] == cells


@pytest.mark.parametrize("ending", ENDINGS)
@given(labels=st.lists(NUMBERS | st.none(), min_size=1, max_size=6) | st.lists(TEXTS | TRICKY, min_size=1, max_size=6))
@settings(max_examples=60)
@pytest.mark.filterwarnings("ignore::slideio_pipe.errors.MissingCellsWarning")
def test_labels_keep_their_type(folder: Path, ending: str, labels: list[Any]) -> None:
    """Whole numbers, decimals, texts: what one reading made of them, each further one does."""
    pytest.importorskip(PACKAGES.get(ending, "csv"))
    (folder / "a.svs").touch()
    given_rows = [{"slide": folder / "a.svs", "name": str(k), "label": label} for k, label in enumerate(labels)]
    cells = [row["label"] for row in read_table(given_rows).rows]
    distinct = {"".join(value_of(cell).split()).casefold() for cell in cells}
    if len(distinct) < len({value_of(cell) for cell in cells}) or infinite_labels(cells):
        return  # refused: they differ in capitals only, or one is infinite
    cohort = Cohort.of(given_rows)
    again = Cohort.of(cohort.write(folder / f"c{ending}"))
    assert list(again) == list(cohort)
    assert [type(label) for label in again.labels] == [type(label) for label in cohort.labels]


@pytest.mark.parametrize("ending", ENDINGS)
def test_each_field_of_a_slide_stays(folder: Path, ending: str) -> None:
    """With ids that look like numbers, and a column that one slide has."""
    pytest.importorskip(PACKAGES.get(ending, "csv"))
    (folder / "a.svs").touch()
    first = CohortSlide(folder / "a.svs", "01", 0.5, 0.25, None, "007", "train", 0, (("site", "1"), ("x", "1.50")))
    second = CohortSlide(
        folder / "a.svs", "1", 1.0, None, folder / "a.svs", "7", None, None, (("site", ""), ("x", "2"))
    )
    cohort = Cohort([first, second])
    assert list(Cohort.of(cohort.write(folder / f"f{ending}"))) == [first, second]
