"""A cohort is checked before anything starts, and one error lists all problems."""

from __future__ import annotations

import csv
from dataclasses import FrozenInstanceError
from pathlib import Path

import pandas
import pytest
from array_bag import numbered_bag
from manifests import manifest

from slideio_pipe.cohort.cells import MISSING
from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.splits import fold_cohort
from slideio_pipe.errors import AlikeLabelsWarning, ConfigError, MissingCellsWarning


def test_a_manifest_is_read(tmp_path: Path) -> None:
    """Paths are relative to the file; cells may be empty; other columns are kept unchanged."""
    text = "slide,label,mpp,mask,patient\nx/a.svs,1,0.25,a.png,p1\nb.svs,,,,p2\n"
    cohort = Cohort.of(manifest(tmp_path, text, "x/a.svs", "b.svs", "a.png"))
    first, second = cohort
    assert (first.source, first.name, first.label, first.mpp) == (tmp_path / "x/a.svs", "a.svs", 1, 0.25)
    assert first.mask == tmp_path / "a.png"
    assert (second.label, second.mpp, second.mask) == (None, None, None)
    assert len(cohort[1:]) == 1


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["0", "1", ""], [0, 1, None]),
        (["0.5", "1", "2"], [0.5, 1.0, 2.0]),
        (["tumour", "1", ""], ["tumour", "1", None]),
        (["0", "1", "nan"], [0, 1, None]),
        (["0.0", "1.0", "NaN"], [0.0, 1.0, None]),
        (["0", "1", "NA"], [0, 1, None]),
        (["low", "high", "nan"], ["low", "high", None]),
        (["3_4", "4_3", ""], ["3_4", "4_3", None]),
        (["01", "02", "10"], ["01", "02", "10"]),
        (["1e1", ".5", "-2."], [10.0, 0.5, -2.0]),
    ],
)
def test_labels_have_one_type(tmp_path: Path, cells: list[str], labels: list[object]) -> None:
    """A column of whole numbers has integers; one word makes all of it text."""
    rows = "".join(f"{name}.svs,{cell}\n" for name, cell in zip("abc", cells, strict=True))
    cohort = Cohort.of(manifest(tmp_path, "slide,label\n" + rows, "a.svs", "b.svs", "c.svs"))
    assert cohort.labels == labels
    assert [type(label) for label in cohort.labels] == [type(label) for label in labels]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_files_of_spreadsheets_are_read(tmp_path: Path, delimiter: str) -> None:
    """With a byte order mark, semicolons, decimal commas and empty lines."""
    number = "0.25" if delimiter == "," else "0,25"
    text = f"\ufeffslide;mpp\n a.svs ;{number}\n;\n".replace(";", delimiter)
    (slide,) = Cohort.of(manifest(tmp_path, text, "a.svs"))
    assert (slide.name, slide.mpp) == ("a.svs", 0.25)


def test_one_error_lists_all_problems(tmp_path: Path) -> None:
    """With their lines and the name of the file."""
    text = "slide,lable,mpp,mask\na.svs,1,wide,\nmissing.svs,0,-1,no.png\nx/a.svs,1,,\n,1,,\n"
    with pytest.raises(ConfigError) as caught:
        Cohort.of(manifest(tmp_path, text, "a.svs", "x/a.svs"))
    message = str(caught.value)
    for part in (
        "cohort.csv: 7 problems",
        'column "lable" looks like "label"',
        "line 2: mpp 'wide' is no resolution",
        "line 3: mpp '-1' is no resolution",
        "line 3: no such slide",
        "line 3: no such mask",
        "line 5: no slide",
        "2 slides are called a.svs",
    ):
        assert part in message


def test_the_column_name_distinguishes_files_of_the_same_name(tmp_path: Path) -> None:
    """Such files are in two folders."""
    text = "slide,name\nx/1.svs,x1\ny/1.svs,y1\n"
    assert [slide.name for slide in Cohort.of(manifest(tmp_path, text, "x/1.svs", "y/1.svs"))] == ["x1", "y1"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("slide\n", "no slides"),
        ("file,label\na.svs,1\n", 'no column "slide"'),
        ("slide,slide\na.svs,a.svs\n", "is there twice"),
    ],
)
def test_invalid_manifests_are_refused(tmp_path: Path, text: str, words: str) -> None:
    """Each error says what is missing."""
    with pytest.raises(ConfigError, match=words):
        Cohort.of(manifest(tmp_path, text, "a.svs"))


def test_a_manifest_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """It does not exist, or is not text."""
    with pytest.raises(ConfigError, match="check the path"):
        Cohort.of(tmp_path / "nowhere.csv")
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00slide")
    with pytest.raises(ConfigError, match="UTF-8"):
        Cohort.of(tmp_path / "a.csv")


def test_many_problems_are_counted_and_not_all_listed(tmp_path: Path) -> None:
    """A manifest of the wrong folder does not fill the screen."""
    with pytest.raises(ConfigError, match=r"100 problems.*and 80 more"):
        Cohort.of(manifest(tmp_path, "slide\n" + "".join(f"{k}.svs\n" for k in range(100))))


def test_a_list_of_paths_and_bags_is_a_cohort(tmp_path: Path) -> None:
    """A bag has its own label; a cohort is returned as it is."""
    (tmp_path / "a.svs").touch()
    bag = numbered_bag(3)
    bag.label = 7  # type: ignore[assignment]
    cohort = Cohort.of([tmp_path / "a.svs", bag])
    assert [(slide.name, slide.label) for slide in cohort] == [("a.svs", None), ("array", 7)]
    assert Cohort.of(cohort) is cohort
    assert repr(cohort) == "Cohort(2 slides, labels 7)"


@pytest.mark.parametrize("source", [7, [7], numbered_bag(1), []])
def test_an_object_that_is_no_cohort_is_refused(source: object) -> None:
    """The error says what to pass."""
    with pytest.raises(ConfigError):
        Cohort.of(source)


def test_errors_of_a_list_name_slides_by_their_number(tmp_path: Path) -> None:
    """A list has no lines as a manifest has."""
    (tmp_path / "a.svs").touch()
    with pytest.raises(ConfigError, match=r"^slide 2: no such slide .*b\.svs"):
        Cohort.of([tmp_path / "a.svs", tmp_path / "b.svs"])


def test_a_slide_is_a_cohort_of_one(tmp_path: Path) -> None:
    """It need not be in a list, and a missing slide is not reported as a missing manifest."""
    (tmp_path / "a.svs").touch()
    assert [slide.name for slide in Cohort.of(tmp_path / "a.svs")] == ["a.svs"]
    with pytest.raises(ConfigError, match=r"no such slide .*b\.svs"):
        Cohort.of(str(tmp_path / "b.svs"))


def labelled(folder: Path, **counts: int) -> Cohort:
    """Return a cohort in which so many slides have these labels."""
    labels = [label.replace("_", " ") for label, count in counts.items() for _ in range(count)]
    (folder / "a.svs").touch()
    return Cohort(CohortSlide(folder / "a.svs", str(number), label) for number, label in enumerate(labels))


@pytest.mark.parametrize("slip", ["tumuor", "tumor", "tumoru", "tumoor", "tunour", "tumourr"])
def test_a_label_that_looks_misspelt_is_a_warning(tmp_path: Path, slip: str) -> None:
    """It is no error: names of classes may be similar."""
    with pytest.warns(AlikeLabelsWarning, match=rf"label '{slip}' \(1×\) may be 'tumour' \(40×\) misspelt"):
        labelled(tmp_path, tumour=40, normal=30, **{slip: 1})


def test_a_label_similar_to_two_others_has_one_warning(tmp_path: Path) -> None:
    """It names the more similar one, or the first."""
    with pytest.warns(AlikeLabelsWarning) as warned:
        labelled(tmp_path, tumour=40, tumours=40, tumourz=1)
    assert [str(warning.message).count("may be") for warning in warned] == [1]


def test_a_slide_of_a_cohort_is_immutable(tmp_path: Path) -> None:
    """Runs, splits and workers share it."""
    slide = CohortSlide(tmp_path / "a.svs", "a")
    with pytest.raises(FrozenInstanceError):
        slide.label = "tumour"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("grade_1", "grade_2"),
        ("type_A", "type_B"),
        ("MSI", "MSS"),
        ("HER2+", "HER2-"),
        ("typical", "atypical"),
        ("normal", "tumour"),
        ("stage_II", "stage_III"),
        ("pT1a", "pT1b"),
        ("lobular", "tubular"),
    ],
)
def test_similar_labels_that_are_valid_have_no_warning(tmp_path: Path, one: str, other: str) -> None:
    """However rare one of them is, or if both are about as frequent (warnings are errors here)."""
    labelled(tmp_path, **{one: 40, other: 1})
    labelled(tmp_path, **{one: 1, other: 40})
    labelled(tmp_path, tumour=4, tumuor=1)


def test_missing_values_are_the_words_that_pandas_reads_as_missing() -> None:
    """Every one of them."""
    parsers = pytest.importorskip("pandas._libs.parsers")
    assert parsers.STR_NA_VALUES - {""} <= MISSING


def test_missing_values_are_empty_in_every_column_of_ours(tmp_path: Path) -> None:
    """As R and pandas write them; other columns are unchanged."""
    text = "slide,label,mpp,mask,patient,split,fold,site\na.svs,1,NA,nan,NA,nan,NaN,NA\nb.svs,0,0.5,,7,val,1,x\n"
    first, second = Cohort.of(manifest(tmp_path, text, "a.svs", "b.svs"))
    assert (first.mpp, first.mask, first.patient, first.split, first.fold) == (None,) * 5
    assert (second.mpp, second.patient, second.split, second.fold) == (0.5, "7", "val", 1)
    assert dict(first.other) == {"site": "NA"}


@pytest.mark.parametrize("column", ["label", "patient"])
@pytest.mark.parametrize("word", ["NA", "None", "null"])
def test_missing_values_among_words_are_a_warning(tmp_path: Path, word: str, column: str) -> None:
    """They may be a class; the warning has the number of cells."""
    text = f"slide,{column}\na.svs,low\nb.svs,{word}\nc.svs,{word}\n"
    path = manifest(tmp_path, text, "a.svs", "b.svs", "c.svs")
    with pytest.warns(MissingCellsWarning, match=f"2 cells .*{column}.*{word}"):
        cohort = Cohort.of(path)
    assert [getattr(slide, column) for slide in cohort] == ["low", None, None]


@pytest.mark.parametrize("cell", ["inf", "-Infinity", "1e999"])
def test_infinite_labels_are_refused(tmp_path: Path, cell: str) -> None:
    """The error says that they are no finite numbers."""
    with pytest.raises(ConfigError, match="no finite number"):
        Cohort.of(manifest(tmp_path, f"slide,label\na.svs,0\nb.svs,{cell}\n", "a.svs", "b.svs"))


@pytest.mark.parametrize("cells", [["3_4", "4_3"], ["01", "02"], ["1", "2"], ["a", "b"]])
def test_labels_are_written_as_they_were_read(tmp_path: Path, cells: list[str]) -> None:
    """With leading zeros."""
    text = "slide,label\n" + "".join(f"{n}.svs,{cell}\n" for n, cell in zip("ab", cells, strict=True))
    written = Cohort.of(manifest(tmp_path, text, "a.svs", "b.svs")).write(tmp_path / "again.csv")
    assert written.read_text() == text


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_rows_longer_than_the_header_are_refused(tmp_path: Path, delimiter: str) -> None:
    """A delimiter without quotes would shift the cells after it; pandas refuses such a line, too."""
    text = "slide,label,patient\na.svs,normal,p0\nb.svs,tumour, grade 2,p1\n".replace(",", delimiter)
    path = manifest(tmp_path, text, "a.svs", "b.svs")
    with pytest.raises(pandas.errors.ParserError, match="Expected 3 fields in line 3, saw 4"):
        pandas.read_csv(path, sep=delimiter)
    with pytest.raises(ConfigError, match="line 3: 4 cells, the header has 3"):
        Cohort.of(path)
    quoted = text.replace(f"tumour{delimiter} grade 2", f'"tumour{delimiter} grade 2"')
    assert [s.patient for s in Cohort.of(manifest(tmp_path, quoted))] == ["p0", "p1"]
    empty = text.replace(f"tumour{delimiter} grade 2", "tumour").replace("p1", f"p1{delimiter}{delimiter}")
    assert [s.patient for s in Cohort.of(manifest(tmp_path, empty))] == ["p0", "p1"]


def test_row_names_of_r_are_a_column_without_a_header(tmp_path: Path) -> None:
    """R's write.table gives every row one cell more than the header."""
    with pytest.raises(ConfigError, match="row names"):
        Cohort.of(manifest(tmp_path, "slide,label\n1,a.svs,0\n2,b.svs,1\n", "a.svs", "b.svs"))


@pytest.mark.parametrize("text", ['slide,label\n"a.svs,0\nb.svs,1\n', 'slide,label\na.svs,"0\nb.svs,1\n'])
def test_a_quote_that_is_not_closed_is_refused(tmp_path: Path, text: str) -> None:
    """All lines after it would be one cell: their slides would be missing without a message."""
    with pytest.raises(ConfigError, match="no CSV"):
        Cohort.of(manifest(tmp_path, text, "a.svs", "b.svs"))


def test_only_line_ends_end_a_line(tmp_path: Path) -> None:
    """A form feed or a Unicode line separator is part of its cell; quoted cells may contain line ends."""
    text = 'slide,label\na.svs,one\x0btwo\nb.svs,"x\ny"\nc.svs,u\u2028v\n'
    assert Cohort.of(manifest(tmp_path, text, "a.svs", "b.svs", "c.svs")).labels == ["one\x0btwo", "x\ny", "u\u2028v"]


def test_clams_case_id_is_the_patient(tmp_path: Path) -> None:
    """Wherever a table is read; the column keeps its name when written."""
    rows = "".join(f"c{k // 4},s{k}.svs,{k % 2}\n" for k in range(20))
    path = manifest(tmp_path, f"case_id,slide_id,label\n{rows}", *(f"s{k}.svs" for k in range(20)))
    cohort = Cohort.of(path)
    assert [slide.patient for slide in cohort] == [f"c{k // 4}" for k in range(20)]
    folds: dict[str, set[str]] = {}
    with fold_cohort(cohort, 5).write(tmp_path / "folds.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            folds.setdefault(row["case_id"], set()).add(row["fold"])
    assert [len(found) for found in folds.values()] == [1] * 5
    assert list(Cohort.of(tmp_path / "folds.csv")) == list(fold_cohort(cohort, 5))


def test_case_id_is_no_patient_beside_a_column_patient(tmp_path: Path) -> None:
    """It is then a column like any other."""
    (slide,) = Cohort.of(manifest(tmp_path, "slide,case_id,patient\na.svs,c,p\n", "a.svs"))
    assert (slide.patient, dict(slide.other)) == ("p", {"case_id": "c"})


def test_headers_in_capitals_are_read(tmp_path: Path) -> None:
    """As the columns of our names; messages name a misspelt one as it is written in the table."""
    (slide,) = Cohort.of(manifest(tmp_path, "Slide,Label\na.svs,1\n", "a.svs"))
    assert (slide.name, slide.label) == ("a.svs", 1)
    with pytest.raises(ConfigError, match='column "Slides" looks like "slide"'):
        Cohort.of(manifest(tmp_path, "Slides,Label\na.svs,1\n", "a.svs"))


def test_windows_paths_are_refused_with_a_remedy(tmp_path: Path) -> None:
    """A backslash separates no folders here: the message says how to write the path."""
    with pytest.raises(ConfigError, match="with / instead of"):
        Cohort.of(manifest(tmp_path, "slide,label\nx\\a.svs,1\n", "x/a.svs"))


@pytest.mark.parametrize("source", [{"slide": ["a.svs"]}, iter(pandas.DataFrame({"slide": ["a.svs"]}))])
def test_names_of_columns_are_no_slides(source: object) -> None:
    """A dictionary of columns is refused as what it is; names of columns are slides that do not exist."""
    reason = "a cohort is no dict" if isinstance(source, dict) else "no such slide"
    with pytest.raises(ConfigError, match=reason):
        Cohort.of(source)
