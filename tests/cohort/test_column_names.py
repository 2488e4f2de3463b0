"""Columns are found by the names of other tools, and tables of CLAM, TRIDENT and STAMP are read as they are."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from manifests import manifest

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("case_id,slide_id,label\np0,a.svs,tumor_tissue\n", 'slide is "slide_id", patient is "case_id"'),  # CLAM
        ("wsi,mpp\na.svs,0.25\n", 'slide is "wsi"'),  # TRIDENT
        ("PATIENT,FILENAME\np0,a.svs\n", 'slide is "FILENAME", patient is "PATIENT"'),  # STAMP
        ("Slide ID;Patient-ID;MPP\na.svs;p0;0,25\n", 'slide is "Slide ID", mpp is "MPP", patient is "Patient-ID"'),
    ],
)
def test_tables_of_other_tools_are_read_as_they_are(
    tmp_path: Path, text: str, note: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Which column was taken as what is said once."""
    with caplog.at_level(logging.INFO, "slideio_pipe"):
        cohort = Cohort.of(manifest(tmp_path, text, "a.svs"))
    (slide,) = cohort
    assert slide.name == "a.svs"
    assert slide.patient == ("p0" if "p0" in text else None)
    assert slide.mpp == (0.25 if "25" in text else None)
    assert cohort.notes == (f"{tmp_path / 'cohort.csv'}: columns: {note}",)
    assert [record.getMessage() for record in caplog.records] == list(cohort.notes)


def test_our_own_names_come_first_and_are_not_noted(tmp_path: Path) -> None:
    """The other column is one like any other."""
    cohort = Cohort.of(manifest(tmp_path, "slide_id,slide,PATIENT,patient\nx,a.svs,P,p\n", "a.svs"))
    assert (cohort[0].name, cohort[0].patient, dict(cohort[0].other)) == (
        "a.svs",
        "p",
        {"slide_id": "x", "PATIENT": "P"},
    )
    assert cohort.notes == ()


def test_a_written_cohort_has_the_columns_of_the_tool_as_well(tmp_path: Path) -> None:
    """So that the tool reads it, too."""
    cohort = Cohort.of(manifest(tmp_path, "PATIENT,FILENAME\np0,a.svs\n", "a.svs"))
    written = cohort.write(tmp_path / "again.csv")
    assert written.read_text() == "slide,patient,PATIENT,FILENAME\na.svs,p0,p0,a.svs\n"


def test_two_columns_of_one_meaning_are_refused(tmp_path: Path) -> None:
    """The remedy is the argument that says which, and it works."""
    path = manifest(tmp_path, "slide_id,FILENAME\nx,a.svs\n", "a.svs")
    with pytest.raises(ConfigError) as caught:
        Cohort.of(path)
    assert 'the columns "slide_id" and "FILENAME" may each be the slide; pass columns="slide=slide_id"' in str(
        caught.value
    )
    for choice in ({"slide": "FILENAME"}, "slide=FILENAME", ["slide = filename"]):
        assert Cohort.of(path, columns=choice)[0].name == "a.svs"


def test_a_chosen_column_replaces_one_of_our_name(tmp_path: Path) -> None:
    """The label of a study with several."""
    path = manifest(tmp_path, "slide,label,KRAS\na.svs,1,wild\n", "a.svs")
    assert Cohort.of(path, columns={"label": "KRAS"}).labels == ["wild"]
    assert Cohort.of(path).labels == [1]


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"slide": "file"}, 'no column "file" for slide; there are: slide, label'),
        ({"lable": "label"}, 'columns has "lable", which is no column of a cohort; choose columns for slide, name'),
        ("slide", "names no column; pass columns="),
        (["slide="], "names no column"),
    ],
)
def test_invalid_choices_are_refused(tmp_path: Path, choice: object, words: str) -> None:
    """With what there is."""
    with pytest.raises(ConfigError, match=words):
        Cohort.of(manifest(tmp_path, "slide,label\na.svs,1\n", "a.svs"), columns=choice)  # type: ignore[arg-type]


def test_a_persons_name_is_not_the_name_of_a_slide(tmp_path: Path) -> None:
    """Names of slides are names of files: a column "Name" of a hospital must not be one without being asked for."""
    path = manifest(tmp_path, "slide,Name\na.svs,Jane Roe\n", "a.svs")
    assert Cohort.of(path)[0].name == "a.svs"
    assert Cohort.of(path, columns="name=Name")[0].name == "Jane Roe"


def test_choices_are_for_tables(tmp_path: Path) -> None:
    """A folder has no columns, a CSV no sheets."""
    path = manifest(tmp_path, "slide\na.svs\n", "a.svs")
    with pytest.raises(ConfigError, match="columns is for a table"):
        Cohort.of(tmp_path, columns="slide=x")
    with pytest.raises(ConfigError, match="a sheet is of an Excel file"):
        Cohort.of(path, sheet="x")
