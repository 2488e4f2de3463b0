"""Cohorts on the command line: what is accepted, printed and refused."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
from command_line import run
from made_slides import made_slide

import slideio_pipe as sp
from slideio_pipe.commands.cohort import is_cohort


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two slides, a broken one, and a manifest of all."""
    folder = tmp_path_factory.mktemp("study")
    for k in range(2):
        made_slide(folder / f"s{k}.svs", size=(2048, 1536), seed=k)
    (folder / "broken.svs").write_bytes(b"II*\0no slide")
    (folder / "cohort.csv").write_text("slide,label,patient\ns0.svs,0,p0\nbroken.svs,1,p1\ns1.svs,1,p2\n")
    return folder


@pytest.mark.system
def test_export_of_a_manifest_lists_failures_and_resumes(study: Path, tmp_path: Path) -> None:
    """Bags have their labels; failures are printed, listed, and set the exit code."""
    text = run("export", study / "cohort.csv", "--out", tmp_path, "--workers", 2, code=1).stdout
    assert "3 slides: 2 exported, 1 failed" in text
    assert "broken.svs: " in text
    assert f"failures: {tmp_path / 'failures.csv'}" in text
    assert f"report: {tmp_path / 'report.html'}" in text
    assert [sp.open_bag(tmp_path / f"s{k}.bag.zarr").label for k in range(2)] == [0, 1]
    again = json.loads(run("export", study / "cohort.csv", "--out", tmp_path, "--json", code=1).stdout)
    assert (again["done"], again["kept"], again["failed"]) == (0, 2, 1)
    assert (again["warned"], again["report"]) == (0, str(tmp_path / "report.html"))
    assert again["failures"] == str(tmp_path / "failures.csv")


@pytest.mark.slow
def test_warnings_of_workers_are_counted_in_one_line(study: Path, tmp_path: Path) -> None:
    """Which names the file that has them."""
    (tmp_path / "mag.svs").write_bytes((study / "s0.svs").read_bytes().replace(b"|MPP = ", b"|Xpp = "))
    text = run("export", tmp_path / "mag.svs", "--out", tmp_path / "bags", "--workers", 1).stdout
    assert f"1 slide with warnings: {tmp_path / 'bags' / 'report.html'}" in text


@pytest.mark.slow
def test_the_refusal_of_other_settings_names_an_option(study: Path, tmp_path: Path) -> None:
    """Of the command."""
    run("export", study / "s0.svs", study / "s1.svs", "--out", tmp_path)
    refused = run("export", study / "s0.svs", study / "s1.svs", "--out", tmp_path, "--mpp", 1, code=2).stderr
    assert "view.mpp was 0.5, is 1.0" in refused
    assert "--overwrite" in refused


def test_inputs_that_are_cohorts(study: Path, tmp_path: Path) -> None:
    """Several slides, a manifest, a folder of slides or DICOM, a pattern; not a slide, nor a zarr."""
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom" / "1.dcm").touch()
    cohorts = [
        [study],
        [tmp_path / "dicom"],
        [study / "cohort.csv"],
        [study / "*.svs"],
        [study / "s0.svs", study / "s1.svs"],
    ]
    assert all(is_cohort(sources) for sources in cohorts)
    slides = [study / "s0.svs", study / "nowhere.svs", tmp_path / "a.zarr"]
    assert not any(is_cohort([source]) for source in slides)


@pytest.mark.parametrize("option", ["--label", "--patient", "--mask", "--picture"])
def test_options_of_one_slide_are_refused_for_a_cohort(study: Path, tmp_path: Path, option: str) -> None:
    """The remedy says where a cohort has them."""
    reported = run("export", study, "--out", tmp_path, option, "x.png", code=2).stderr
    assert f"{option} is for one slide" in reported
    assert ("report.html" if option == "--picture" else f'a column "{option[2:]}"') in reported


def test_the_output_of_a_cohort_must_be_a_folder(study: Path, tmp_path: Path) -> None:
    """A name of a bag is refused, as is a file."""
    assert "no folder for the bags" in run("export", study, "--out", tmp_path / "a.bag.zarr", code=2).stderr


def test_paths_outside_the_root_are_refused(study: Path, tmp_path: Path) -> None:
    """Before anything starts."""
    refused = run("export", study / "cohort.csv", "--out", tmp_path / "out", "--root", tmp_path, code=2).stderr
    assert refused.count("is outside of") == 3
    assert not (tmp_path / "out").exists()


def test_split_writes_folds_and_parts(study: Path, tmp_path: Path) -> None:
    """As a manifest that the export reads; nothing is replaced without --overwrite."""
    text = run("split", study / "cohort.csv", "--folds", 3, "--out", tmp_path / "folds.csv").stdout
    assert "fold 0 1, fold 1 1, fold 2 1" in text
    assert {slide.fold for slide in sp.Cohort.of(tmp_path / "folds.csv")} == {0, 1, 2}
    assert "is there already" in run("split", tmp_path / "folds.csv", code=2).stderr
    parts = ("--parts", "train=0.67,test=0.33", "--overwrite", "--json")
    assert json.loads(run("split", tmp_path / "folds.csv", *parts).stdout)["slides"] == {"test": 1, "train": 2}
    assert {slide.split for slide in sp.Cohort.of(tmp_path / "folds.csv")} == {"train", "test"}
    assert "--parts" in run("split", tmp_path / "folds.csv", "--parts", "half", "--overwrite", code=2).stderr


def test_split_by_another_column(study: Path, tmp_path: Path) -> None:
    """Every second of 20 slides has the event: two in each fold of the written manifest."""
    slide = sp.Cohort.of(study / "cohort.csv")[0].source
    rows = [f"{slide},s{k},{int(k % 2 == 0)}" for k in range(20)]
    (tmp_path / "events.csv").write_text("\n".join(["slide,name,event", *rows]) + "\n")
    requested = ("--folds", 5, "--by", "event", "--out", tmp_path / "folds.csv")
    run("split", tmp_path / "events.csv", *requested)
    with (tmp_path / "folds.csv").open(newline="") as file:
        counts = Counter((row["fold"], row["event"]) for row in csv.DictReader(file))
    assert counts == {(str(fold), event): 2 for fold in range(5) for event in "01"}
    refused = run("split", tmp_path / "events.csv", "--by", "event", "--plain", "--out", tmp_path / "x.csv", code=2)
    assert "--plain and --by are both given" in refused.stderr
