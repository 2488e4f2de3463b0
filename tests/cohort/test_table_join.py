"""A table of patients is joined to one of slides, and a cohort to any table; oracle: pandas' merge."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas
import pytest
from array_bag import numbered_bag
from hypothesis import given
from hypothesis import strategies as st

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.errors import ConfigError, MissingExtraError, UnmatchedWarning


def write(folder: Path, name: str, text: str, *files: str) -> Path:
    """Write a table, and empty files below the folder."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    (folder / name).write_text(text)
    return folder / name


def test_the_two_tables_of_stamp_are_a_cohort(tmp_path: Path) -> None:
    """As its documentation shows them: a table of patients, and one of the files of their slides."""
    slides = write(
        tmp_path, "slide.csv", "PATIENT,FILENAME\np1,a.h5\np1,b.h5\n007,c.h5\n", *(f"f/{n}.h5" for n in "abc")
    )
    clini = write(tmp_path, "clini.csv", "PATIENT,isMSIH,AGE\np1,MSIH,61\n007,nonMSIH,\n")
    cohort = Cohort.of(slides, clinical=clini, slides=tmp_path / "f", columns={"label": "isMSIH"})
    assert [(s.name, s.patient, s.label) for s in cohort] == [
        ("a.h5", "p1", "MSIH"), ("b.h5", "p1", "MSIH"), ("c.h5", "007", "nonMSIH"),
    ]  # fmt: skip
    assert cohort.column("AGE") == [61, 61, None]
    assert [note.partition(": ")[2] for note in cohort.notes] == [
        'columns: slide is "FILENAME", patient is "PATIENT"',
        'columns: label is "isMSIH", patient is "PATIENT"',
    ]


def test_a_table_of_clam_is_a_cohort(tmp_path: Path) -> None:
    """Ids without an ending, beside a folder of slides."""
    text = "case_id,slide_id,label\npatient_0,slide_1,tumor_tissue\npatient_1,slide_2,normal_tissue\n"
    table = write(tmp_path, "dataset.csv", text, "DATA/slide_1.svs", "DATA/more/slide_2.ndpi")
    cohort = Cohort.of(table, slides=tmp_path / "DATA")
    assert [(s.name, s.patient, s.label) for s in cohort] == [
        ("slide_1", "patient_0", "tumor_tissue"), ("slide_2", "patient_1", "normal_tissue"),
    ]  # fmt: skip


def test_patients_of_one_table_are_listed(tmp_path: Path) -> None:
    """Those without a row, and those without a slide."""
    slides = write(tmp_path, "s.csv", "slide,patient\na.svs,p1\nb.svs,p2\n", "a.svs", "b.svs")
    clini = write(tmp_path, "c.csv", "patient,label\np1,1\np3,0\n")
    with pytest.warns(UnmatchedWarning) as caught:
        cohort = Cohort.of(slides, clinical=clini)
    assert cohort.labels == [1, None]
    assert [(str(w.message), w.message.names) for w in caught] == [  # type: ignore[union-attr]
        (f"{slides}: 1 of 2 values of patient are not in {clini}: p2", ("p2",)),
        (f"{clini}: 1 of 2 values of patient are not in {slides}: p3", ("p3",)),
    ]


@pytest.mark.parametrize(
    ("slides", "clini", "words"),
    [
        (
            "slide\na.svs\n",
            "patient,label\np,1\n",
            's.csv: no column "patient" to join by; there are: slide; pass columns=',
        ),
        ("slide,patient\na.svs,p\n", "ID,label\np,1\n", r'c.csv: no column "patient"'),
        (
            "slide,patient\na.svs,p\n",
            "patient,label\np,1\np,0\n",
            r'line 2 and line 3 are both of patient "p".*in label',
        ),
        ("slide,patient,label\na.svs,p,1\n", "patient,label\np,0\n", r'line 2: label is "1", and "0" in .*c.csv'),
        ("slide,patient\na.svs,7\n", "patient,label\n007,0\n", 'no patient is in both tables: "7" in.*leading zeros'),
        ("slide,patient\na.svs,\n", "patient,label\np,0\n", 'no patient is in both tables: "none"'),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path: Path, slides: str, clini: str, words: str) -> None:
    """With the rows and the remedy."""
    left, right = write(tmp_path, "s.csv", slides, "a.svs"), write(tmp_path, "c.csv", clini)
    with pytest.raises(ConfigError, match=words):
        Cohort.of(left, clinical=right)


def test_equal_rows_and_equal_cells_are_no_conflict(tmp_path: Path) -> None:
    """A patient twice with the same cells; a label in both tables, 1 and 1.0; an empty cell is filled."""
    left = write(tmp_path, "s.csv", "slide,patient,label\na.svs,p,1\nb.svs,q,\n", "a.svs", "b.svs")
    cohort = Cohort.of(left, clinical=pandas.DataFrame({"patient": ["p", "p", "q"], "label": [1.0, 1.0, 0.0]}))
    assert cohort.labels == [1, 0]


def test_a_clinical_table_is_for_a_table(tmp_path: Path) -> None:
    """A folder has no patients."""
    write(tmp_path, "c.csv", "patient\np\n", "a.svs")
    with pytest.raises(ConfigError, match="clinical is for a table"):
        Cohort.of(tmp_path, clinical=tmp_path / "c.csv")


PATIENTS = st.sampled_from(["p", "q", "01", "1", "r"])


@given(
    slides=st.lists(PATIENTS, min_size=1, max_size=6),
    rows=st.dictionaries(PATIENTS, st.sampled_from(["x", "y", ""]), min_size=1),
)
@pytest.mark.filterwarnings("ignore::slideio_pipe.errors.UnmatchedWarning")
def test_the_join_is_the_left_merge_of_pandas(slides: list[str], rows: dict[str, str]) -> None:
    """Row by row, unless no patient is in both."""
    cohort = Cohort.unchecked(CohortSlide(Path(f"{k}.svs"), str(k), patient=p) for k, p in enumerate(slides))
    table = pandas.DataFrame({"patient": list(rows), "grade": list(rows.values())})
    if not set(slides) & set(rows):
        with pytest.raises(ConfigError, match="no patient is in both"):
            cohort.join(table)
        return
    expected = pandas.DataFrame({"patient": slides}).merge(table, on="patient", how="left")["grade"].fillna("")
    assert [dict(slide.other)["grade"] for slide in cohort.join(table)] == expected.tolist()


def test_a_cohort_is_joined_by_slide_name_or_another_column(tmp_path: Path) -> None:
    """Fields of ours are filled, with their types; files, masks and open bags stay."""
    bag = numbered_bag(3)
    slides = [
        CohortSlide(tmp_path / "a.svs", "a", mask=tmp_path / "m.png", other=(("site", "01"),)),
        CohortSlide(bag, "array", label=2, other=(("site", "02"),)),
    ]
    cohort = Cohort.unchecked(slides)
    by_slide = cohort.join([{"slide_id": "a", "label": 1, "fold": 3}, {"slide_id": "array", "fold": 0}], on="slide")
    assert [(s.source, s.mask, s.label, s.fold) for s in by_slide] == [
        (tmp_path / "a.svs", tmp_path / "m.png", 1, 3), (bag, None, 2, 0),
    ]  # fmt: skip
    by_site = cohort.join([{"site": "01", "scanner": "x"}, {"site": "02", "scanner": "y"}], on="site")
    assert by_site.column("scanner") == ["x", "y"]
    by_name = cohort.join([{"name": "a", "patient": "007"}, {"name": "array", "patient": "7"}], on="name")
    assert [slide.patient for slide in by_name] == ["007", "7"]
    with pytest.raises(ConfigError, match='the cohort: no column "country" to join by'):
        cohort.join([{"country": "x"}], on="country")


def labelled() -> Cohort:
    """Return five slides with fields and a further column."""
    values = [
        ("tumour", "train", 0, "01"),
        ("normal", "Training", 1, "1"),
        (None, "val", 0, ""),
        ("tumour", "test", 1, "1"),
    ]
    return Cohort.unchecked(
        CohortSlide(Path(f"{k}.svs"), str(k), label=label, split=split, fold=fold, mpp=k / 4, other=(("site", site),))
        for k, (label, split, fold, site) in enumerate(values)
    )


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ({"label": "tumour"}, "03"),
        ({"label": ["tumour", None]}, "023"),
        ({"label": None}, "2"),
        ({"label": "tumour", "split": "test"}, "3"),
        ({"split": "train"}, "01"),
        ({"split": ["validation", "test"]}, "23"),
        ({"fold": 1}, "13"),
        ({"fold": "1"}, "13"),
        ({"mpp": lambda mpp: mpp >= 0.5}, "23"),
        ({"site": "01"}, "0"),
        ({"site": 1}, "13"),
        ({"name": {"1", "2"}}, "12"),
        ({}, "0123"),
        ({"split": None}, "0123"),
    ],
)
def test_slides_are_selected_by_values(wanted: dict[str, object], names: str) -> None:
    """One, several or a function; of a field or of another column."""
    assert "".join(slide.name for slide in labelled().where(**wanted)) == names


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"label": "tumor"}, r"no slide has 'tumor' in \"label\" \(there are: normal, tumour\)"),
        ({"split": "external"}, r'no slide is in split "external" \(there are: Training, test, train, val\)'),
        ({"fold": 7}, r"no slide is in fold 7 \(there are: 0, 1\)"),
        ({"mpp": lambda mpp: mpp > 9}, "no slide has a value that the function accepts"),
        ({"grade": 1}, 'the cohort has no column "grade"; there are: label, site'),
    ],
)
def test_a_selection_of_nothing_is_refused(wanted: dict[str, object], words: str) -> None:
    """With the values that there are."""
    with pytest.raises(ConfigError, match=words):
        labelled().where(**wanted)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_cohort_is_a_dataframe_and_back(tmp_path: Path, library: str) -> None:
    """Leading zeros, whole numbers beside empty cells, further columns."""
    pytest.importorskip(library)
    file = tmp_path / "a.svs"
    file.touch()
    slides = [
        CohortSlide(file, "01", 1, 0.25, file, "007", "train", 0, (("site", "01"), ("age", "61"))),
        CohortSlide(file, "1", None, None, None, None, None, None, (("site", ""), ("age", ""))),
    ]
    frame = Cohort(slides).to_dataframe(library)
    assert list(Cohort.of(frame)) == slides
    assert next(iter(frame["label"])) == 1
    assert "float" not in str(frame["age"].dtype).lower()


def test_a_library_that_is_missing_or_unknown_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence with the install command."""
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(MissingExtraError, match="polars is needed and not installed; pip install polars"):
        labelled().to_dataframe("polars")
    with pytest.raises(ConfigError, match="pass pandas or polars"):
        labelled().to_dataframe("dask")
