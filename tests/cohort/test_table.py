"""Manifests in every format are read, checked and written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from manifests import manifest

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.errors import ConfigError, MissingExtraError, PartsWarning

TEXT = "slide,name,label,mpp,mask,patient,split,fold,site\na.svs,,1,0.25,m.png,p1,train,0,Leiden\nx/b.svs,b,0,,,,,,\n"


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_written_cohort_is_read_back_equal(tmp_path: Path, ending: str) -> None:
    """Other columns are kept."""
    if ending == "parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    cohort = Cohort.of(manifest(tmp_path, TEXT, "a.svs", "x/b.svs", "m.png"))
    assert (cohort[0].patient, cohort[0].split, cohort[0].fold) == ("p1", "train", 0)
    written = cohort.write(tmp_path / f"again.{ending}")
    assert list(Cohort.of(written)) == list(cohort)
    if ending == "csv":
        assert written.read_text() == TEXT.replace("a.svs,,", "a.svs,,", 1)


def test_numbers_of_a_parquet_file_keep_their_type(tmp_path: Path) -> None:
    """Missing values are empty cells."""
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    from pyarrow import parquet

    (tmp_path / "a.svs").touch()
    (tmp_path / "b.svs").touch()
    columns = {"slide": ["a.svs", "b.svs"], "label": [1, 0], "mpp": [0.25, float("nan")], "fold": [2.0, None]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "c.parquet")
    cohort = Cohort.of(tmp_path / "c.parquet")
    assert [(s.label, s.mpp, s.fold) for s in cohort] == [(1, 0.25, 2), (0, None, None)]


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    """With its path."""
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ConfigError, match="cannot be read"):
        Cohort.of(tmp_path / "a.parquet")


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is one sentence with the install command."""
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").touch()
    with pytest.raises(MissingExtraError, match=r"slideio-pipe\[parquet\]"):
        Cohort.of(tmp_path / "a.parquet")


def test_folders_and_patterns_are_cohorts(tmp_path: Path) -> None:
    """A folder is its slides, without hidden files and pictures; a pattern is what it matches."""
    manifest(tmp_path, "", "b.svs", "a.tiff", "thumb.png", ".c.svs", "deep/d.svs")
    with pytest.warns(PartsWarning, match="1 file of slides in folders below it is left out"):
        assert [slide.name for slide in Cohort.of(tmp_path)] == ["a.tiff", "b.svs"]
    assert [slide.name for slide in Cohort.of(tmp_path / "**" / "*.svs")] == ["b.svs", "d.svs"]
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", tmp_path / "*.ndpi"):
        with pytest.raises(ConfigError, match="no slides are there"):
            Cohort.of(nothing)


def test_one_error_lists_the_problems_of_a_study(tmp_path: Path) -> None:
    """A patient in two splits or folds, labels spelt in two ways, an invalid fold."""
    text = (
        "slide,label,patient,split,fold\n"
        "a.svs,Tumour,p1,train,0\nb.svs,tumour,p1,test,1\nc.svs,normal,p2,train,x\nd.svs,normal,,val,\n"
    )
    with pytest.raises(ConfigError) as caught:
        Cohort.of(manifest(tmp_path, text, *(f"{name}.svs" for name in "abcd")))
    message = str(caught.value)
    for part in (
        "4 problems",
        "patient p1 is in test and train",
        "patient p1 is in folds 0 and 1",
        "label 'Tumour' and 'tumour' differ in capitals or spaces only",
        "line 4: fold 'x' is no whole number",
    ):
        assert part in message


def test_paths_outside_the_root_are_refused(tmp_path: Path) -> None:
    """By dots, by an absolute path or by a link; files outside the root are not accessed."""
    root = tmp_path / "root"
    text = "slide,mask\na.svs,\n../b.svs,\n/etc/passwd,\nlink.svs,\na.svs,../no.png\n"
    path = manifest(root, text, "a.svs", "../b.svs")
    (root / "link.svs").symlink_to(tmp_path / "b.svs")
    with pytest.raises(ConfigError) as caught:
        Cohort.of(path, root=root)
    message = str(caught.value)
    for line in (3, 4, 5, 6):
        assert f"line {line}: " in message
    assert message.count("is outside of") == 4
    assert "no such" not in message


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    """The error names the existing ones."""
    cohort = Cohort.unchecked([CohortSlide(tmp_path / "a", "a", split="train")])
    assert len(cohort.where(split="train")) == 1
    with pytest.raises(ConfigError, match="there are: train"):
        cohort.where(split="tset")
