"""An export with the unit patient: bags as before, and a small file per patient that names those of its slides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from made_slides import made_slide
from typer.testing import CliRunner

import slideio_pipe as sp
from slideio_pipe.cohort.patient_files import PatientFiles
from slideio_pipe.commands.app import app
from slideio_pipe.errors import ConfigError

pytestmark = pytest.mark.slow

TILES: dict[str, Any] = {"view": {"mpp": 1.0}, "grid": {"tile_size": 32, "min_tissue": 0.3}}
BY_PATIENT = TILES | {"unit": "patient"}
ROWS = [("a.svs", "P1", 1, 0.25), ("b.svs", "P2", 0, 0.5), ("c.svs", "P1", 1, 0.5), ("d.svs", "", 0, 0.5)]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients, one with two slides of two scan resolutions, and a slide without a patient."""
    folder = tmp_path_factory.mktemp("study")
    for number, (name, _, _, mpp) in enumerate(ROWS, 1):
        side = round(256 / mpp)
        made_slide(folder / name, size=(side, side), mpp=mpp, seed=number)
    return table(folder)


def table(folder: Path, rows: Any = ROWS, name: str = "cohort.csv") -> Path:
    lines = ["slide,patient,label", *(f"{slide},{patient},{label}" for slide, patient, label, *_ in rows)]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def export(cohort: Any, out: Path, config: dict[str, Any] = BY_PATIENT, **options: Any) -> sp.RunReport:
    return sp.export_cohort(cohort, out, config, progress=False, **options)


def joined(report: sp.RunReport) -> PatientFiles:
    assert report.patients is not None
    return report.patients


def counts(report: sp.RunReport) -> tuple[int, int]:
    return joined(report).written, joined(report).kept


def files(out: Path) -> list[str]:
    return sorted(path.name for path in out.glob("*.patient.json"))


def test_each_patient_gets_a_file_that_names_the_bags_of_its_slides(study: Path, tmp_path: Path) -> None:
    """Read with json and zarr: the names, the numbers of tiles; the opened bag has their tiles, one after another."""
    report = export(study, tmp_path)
    assert joined(report).summary() == {"written": 3, "kept": 0, "without": {}}
    assert files(tmp_path) == ["P1.patient.json", "P2.patient.json", "d.patient.json"]
    listed = json.loads((tmp_path / "P1.patient.json").read_text())["patient_bag"]
    stored = [zarr.open_group(tmp_path / f"{name}.bag.zarr", mode="r")["tiles"] for name in "ac"]
    assert (listed["patient"], listed["label"]) == ("P1", 1)
    assert [(slide["bag"], slide["tiles"]) for slide in listed["slides"]] == [
        (f"{name}.bag.zarr", tiles.shape[0]) for name, tiles in zip("ac", stored, strict=True)
    ]
    with sp.open_bag(tmp_path / "P1.patient.json") as bag:
        assert (bag.patient, bag.label) == ("P1", 1)
        np.testing.assert_array_equal(bag[:], np.concatenate([tiles[:] for tiles in stored]))


def test_the_bags_are_those_of_the_unit_slide(study: Path, tmp_path: Path) -> None:
    """So a folder of slides can become one of patients, and the other way round; no bag is written again."""
    assert export(study, tmp_path, TILES).patients is None
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.bag.zarr/**/*")}
    report = export(study, tmp_path)
    assert (report.done, report.kept) == (0, 4)
    assert joined(report).written == 3
    assert export(study, tmp_path, TILES).kept == 4
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.bag.zarr/**/*")} == before


def test_a_run_continues_with_the_files_that_are_missing(study: Path, tmp_path: Path) -> None:
    export(study, tmp_path)
    kept = tmp_path / "P2.patient.json"
    before, content = kept.stat().st_mtime_ns, (tmp_path / "P1.patient.json").read_bytes()
    (tmp_path / "P1.patient.json").unlink()
    report = export(study, tmp_path)
    assert counts(report) == (1, 2)
    assert kept.stat().st_mtime_ns == before
    assert (tmp_path / "P1.patient.json").read_bytes() == content


def test_a_patient_with_a_broken_slide_has_no_file_and_is_reported(study: Path, tmp_path: Path) -> None:
    """In the report, on its page, in run.json and in the command; a later run with the slide writes it."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for name, *_ in ROWS:
        (folder / name).write_bytes((study.parent / name).read_bytes() if name != "c.svs" else b"II*\0 broken")
    cohort, out = table(folder), tmp_path / "bags"
    done = CliRunner().invoke(app, ["export", str(cohort), "--out", str(out), "--config", str(config(tmp_path))])
    assert done.exit_code == 1
    assert "patients: 2 of 3" in done.output
    assert "P1: no bag of c.svs" in done.output
    assert files(out) == ["P2.patient.json", "d.patient.json"]
    assert json.loads((out / "run.json").read_text())["patients"]["without"] == {"P1": "no bag of c.svs"}
    page = (out / "report.html").read_text()
    assert "<dd>2 of 3</dd><dt>patients</dt>" in page
    assert "<dt>P1</dt><dd>no bag of c.svs</dd>" in page
    (folder / "c.svs").write_bytes((study.parent / "c.svs").read_bytes())
    report = export(cohort, out)
    assert counts(report) == (1, 2)
    with sp.open_bag(out / "P1.patient.json") as bag:
        assert bag.slide_names == ("a.svs", "c.svs")


def config(folder: Path) -> Path:
    (folder / "tiles.yaml").write_text("unit: patient\nview: {mpp: 1.0}\ngrid: {tile_size: 32, min_tissue: 0.3}\n")
    return folder / "tiles.yaml"


def test_a_file_follows_its_bags(study: Path, tmp_path: Path) -> None:
    """Bags of other tiles, or a slide more: the file is written again."""
    some = table(study.parent, ROWS[:2], "some.csv")
    export(some, tmp_path)
    with sp.open_bag(tmp_path / "P1.patient.json") as bag:
        assert bag.slide_names == ("a.svs",)
    export(study, tmp_path)
    with sp.open_bag(tmp_path / "P1.patient.json") as bag:
        assert bag.slide_names == ("a.svs", "c.svs")
        fewer = len(bag)
    export(study, tmp_path, BY_PATIENT | {"grid": {"tile_size": 32, "stride": 16, "min_tissue": 0.3}}, overwrite=True)
    with sp.open_bag(tmp_path / "P1.patient.json") as bag:
        assert len(bag) > fewer


def test_a_file_with_slides_of_another_cohort_is_not_replaced(study: Path, tmp_path: Path) -> None:
    """A part of the cohort would leave a patient with some of its slides; --overwrite replaces it."""
    export(study, tmp_path)
    before = (tmp_path / "P1.patient.json").read_bytes()
    part = table(study.parent, ROWS[2:], "part.csv")
    report = export(part, tmp_path)
    assert list(joined(report).without) == ["P1"]
    assert "with a.bag.zarr, which the cohort does not have" in joined(report).without["P1"]
    assert (tmp_path / "P1.patient.json").read_bytes() == before
    replaced = export(part, tmp_path, overwrite=True)
    assert joined(replaced).written == 1
    with sp.open_bag(tmp_path / "P1.patient.json") as bag:
        assert bag.slide_names == ("c.svs",)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a.svs", "P1", 0), ("c.svs", "P1", 1)], r"patient P1 has several cells in label: 0 \(a.svs\), 1 \(c.svs\)"),
        ([("a.svs", "P/1", 0), ("b.svs", "P2", 1)], "patient 'P/1' is no name for a file"),
        ([("a.svs", "p1", 0), ("b.svs", "P1", 1)], "patients p1 and P1 would both become P1.patient.json"),
        ([("a.svs", "", 0), ("b.svs", "", 1)], "a bag is a patient, and no slide has one"),
    ],
    ids=["labels", "slash", "case", "none"],
)
def test_errors_of_the_cohort_are_raised_before_a_slide_is_read(
    rows: Any, message: str, study: Path, tmp_path: Path
) -> None:
    cohort = table(study.parent, rows, "wrong.csv")
    with pytest.raises(ConfigError, match=message):
        export(cohort, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_slides_read_at_several_resolutions_are_no_patient(study: Path, tmp_path: Path) -> None:
    """Their bags are written; the patient is reported."""
    config = {"unit": "patient", "view": {"mpp": "native"}, "grid": {"tile_size": 64, "min_tissue": 0.3}}
    report = export(study, tmp_path, config)
    assert report.done == 4
    assert "slides are read at different resolutions" in joined(report).without["P1"]
    assert files(tmp_path) == ["P2.patient.json", "d.patient.json"]


def test_the_command_says_it_in_json(study: Path, tmp_path: Path) -> None:
    """``--unit patient`` makes a cohort of one table; the same as in Python."""
    tiles = ["--mpp", "1.0", "--tile-size", "32", "--min-tissue", "0.3"]
    called = ["export", str(study), "--out", str(tmp_path), "--unit", "patient", *tiles, "--json"]
    done = CliRunner().invoke(app, called)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["patients"] == {"written": 3, "kept": 0, "without": {}}
    again = CliRunner().invoke(app, called)
    assert json.loads(again.stdout)["patients"] == {"written": 0, "kept": 3, "without": {}}
    alone = CliRunner().invoke(
        app, ["export", str(study.parent / "a.svs"), "--out", str(tmp_path), "--unit", "patient"]
    )
    assert alone.exit_code != 0
    assert "no slide has one" in alone.stderr


def test_a_cohort_of_patient_files_is_read_by_patient(study: Path, tmp_path: Path) -> None:
    """``BagDataset`` of a pattern over the folder has a row per patient."""
    export(study, tmp_path)
    dataset = sp.BagDataset(str(tmp_path / "P*.patient.json"), {"unit": "patient"})
    assert [row.name for row in dataset.cohort] == ["P1", "P2"]
    assert dataset[0].slides == ("a.svs", "c.svs")


def test_the_default_unit_is_not_in_the_settings_so_that_earlier_exports_continue() -> None:
    from slideio_pipe.export.config import ExportConfig

    assert "unit" not in ExportConfig().model_dump()
    assert ExportConfig(unit="patient").model_dump()["unit"] == "patient"
