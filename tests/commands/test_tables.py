"""A table of ids, the folder of its files and a table of patients, in every command that takes a cohort."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from command_line import run
from made_slides import made_slide
from tiny_training import quick

import slideio_pipe as sp

COUNT = 8


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ids of two slides in nested folders, and a table of their patients."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "raw" / "deep").mkdir(parents=True)
    made_slide(folder / "raw" / "01.svs", size=(1024, 768), seed=1)
    made_slide(folder / "raw" / "deep" / "1.SVS", size=(1024, 768), seed=2)
    (folder / "slides.tsv").write_text("PATIENT\tFILENAME\np1\t01\np2\t1.svs\n")
    (folder / "clini.csv").write_text("PATIENT;KRAS;AGE\np1;wild;61\np2;mutated;55\n")
    return folder


def options(study: Path) -> list[object]:
    """Return the options that join the tables and the files."""
    return ["--slides", study / "raw", "--clinical", study / "clini.csv", "--column", "label=KRAS"]


@pytest.mark.slow
def test_export_says_which_columns_were_taken_and_uses_them(study: Path, tmp_path: Path) -> None:
    """Bags have the ids, labels and patients of the tables."""
    done = run("export", study / "slides.tsv", "--out", tmp_path, "--tissue", "none", *options(study), columns=300)
    assert 'slides.tsv: columns: slide is "FILENAME", patient is "PATIENT"' in done.stderr
    assert done.stderr.count('columns: label is "KRAS"') == 1
    bags = [sp.open_bag(tmp_path / f"{name}.bag.zarr") for name in ("01", "1")]
    assert [(bag.label, bag.patient) for bag in bags] == [("wild", "p1"), ("mutated", "p2")]


@pytest.mark.slow
def test_tissue_writes_a_manifest_of_the_joined_slides(study: Path, tmp_path: Path) -> None:
    """With paths, so that it needs no folder any more."""
    run("tissue", study / "slides.tsv", "--out", tmp_path / "masks", "--manifest", tmp_path / "m.csv", *options(study))
    cohort = sp.Cohort.of(tmp_path / "m.csv")
    assert [(s.name, s.label, s.mask is not None) for s in cohort] == [("01", "wild", True), ("1.svs", "mutated", True)]


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "xlsx"])
def test_split_writes_the_joined_table(study: Path, tmp_path: Path, ending: str) -> None:
    """In the format of its ending."""
    pytest.importorskip({"parquet": "pyarrow", "xlsx": "openpyxl"}.get(ending, "csv"))
    target = tmp_path / f"split.{ending}"
    parts = ["--parts", "train=0.5,test=0.5", "--plain"]
    run("split", study / "slides.tsv", "--out", target, *parts, *options(study))
    cohort = sp.Cohort.of(target)
    assert sorted(slide.split or "" for slide in cohort) == ["test", "train"]
    assert [(s.name, s.patient, s.label) for s in cohort] == [("01", "p1", "wild"), ("1.svs", "p2", "mutated")]
    assert cohort.column("AGE") == [61, 55]


def test_split_does_not_write_an_excel_file_back(study: Path, tmp_path: Path) -> None:
    """Its other sheets would be lost."""
    pytest.importorskip("openpyxl")
    run("split", study / "slides.tsv", "--out", tmp_path / "s.xlsx", "--folds", 2, "--plain", *options(study))
    for source in (tmp_path / "s.xlsx", f"{tmp_path / 's.xlsx'}#cohort"):
        refused = run("split", source, "--folds", 2, "--plain", "--overwrite", code=2).stderr
        assert "sheets and formats of an Excel file would be lost" in refused


def test_profile_takes_the_tables(study: Path) -> None:
    """Both slides are read."""
    sizes = ["--mpp", 1, "--tile-size", 128]
    found = json.loads(run("profile", study / "slides.tsv", *sizes, *options(study), "--json").stdout)
    assert found["bags"] == 2


def test_view_shows_the_joined_slides(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under their ids; the command ends as if Ctrl+C were pressed."""
    seen = []
    explore = sp.explore

    def shown(source: sp.Cohort, **settings: object) -> sp.Explorer:
        seen.extend((slide.name, slide.label) for slide in source)
        return explore(source, **settings)

    monkeypatch.setattr("slideio_pipe.viewer.explore.explore", shown)
    monkeypatch.setattr("slideio_pipe.commands.view.wait_for_interrupt", lambda: None)
    run("view", study / "slides.tsv", "--no-browser", "--port", 0, *options(study))
    assert seen == [("01", "wild"), ("1.svs", "mutated")]


def test_leftovers_and_errors_are_printed(study: Path, tmp_path: Path) -> None:
    """With the names of options."""
    (tmp_path / "one.csv").write_text("slide_id,wsi\n01,x\n")
    refused = run("split", tmp_path / "one.csv", "--out", tmp_path / "x.csv", code=2, columns=300).stderr
    assert "may each be the slide; pass --column slide=slide_id" in refused
    again = ["--column", "slide=slide_id", "--slides", study / "raw", "--parts", "train=1"]
    printed = run("split", tmp_path / "one.csv", "--out", tmp_path / "x.csv", *again, columns=300).stderr
    assert "warning: " in printed
    assert "1 of 2 slides are in no row: deep/1.SVS" in printed
    missing = run("export", study / "slides.tsv", "--out", tmp_path, "--slides", tmp_path, code=2, columns=300).stderr
    assert "2 of 2 ids have no file below" in missing


@pytest.mark.parametrize("command", ["export", "tissue", "view"])
def test_options_of_tables_are_refused_for_a_slide(study: Path, tmp_path: Path, command: str) -> None:
    """They would be without effect."""
    options = [] if command == "view" else ["--out", tmp_path / "out"]
    refused = run(command, study / "raw" / "01.svs", *options, "--clinical", study / "clini.csv", code=2).stderr
    assert "--clinical is for a table" in refused


def write_features(folder: Path) -> None:
    """Write ids with a patient and a status, and a file of features below a folder for each."""
    (folder / "f" / "batch1").mkdir(parents=True)
    with (
        (folder / "slide.csv").open("w", newline="") as slides,
        (folder / "clini.csv").open("w", newline="") as patients,
    ):
        rows, clinical = csv.writer(slides), csv.writer(patients)
        rows.writerow(["PATIENT", "FILENAME"])
        clinical.writerow(["PATIENT", "isMSIH"])
        for k in range(COUNT):
            torch.manual_seed(k)
            torch.save(torch.randn(6, 4) + (k % 2) * 3, folder / "f" / "batch1" / f"s{k}.pt")
            rows.writerow([f"{k:03}", f"s{k}.h5"])
            clinical.writerow([f"{k:03}", ["nonMSIH", "MSIH"][k % 2]])


@pytest.mark.system
def test_train_and_predict_take_stamps_tables(tmp_path: Path) -> None:
    """Features in a nested folder by ``--slides``, or in a flat one by ``--features``."""
    pytest.importorskip("torchmetrics")
    write_features(tmp_path)
    (tmp_path / "c.yaml").write_text(json.dumps(quick()))
    tables = ["--clinical", tmp_path / "clini.csv", "--column", "label=isMSIH"]
    for k, place in enumerate((["--slides", tmp_path / "f"], ["--features", tmp_path / "f" / "batch1"])):
        out = tmp_path / f"run{k}"
        run("train", tmp_path / "c.yaml", "--cohort", tmp_path / "slide.csv", *place, *tables, "--out", out)
        told = run(
            "predict", out, tmp_path / "slide.csv", *place, *tables, "--out", tmp_path / f"p{k}", "--json"
        ).stdout
        with (tmp_path / f"p{k}" / "predictions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert json.loads(told)
        assert [row["slide"] for row in rows] == [f"s{k}.h5" for k in range(COUNT)]
        assert {row["predicted"] for row in rows} <= {"nonMSIH", "MSIH"}
