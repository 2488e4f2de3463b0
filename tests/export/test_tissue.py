"""The tissue of a cohort as files, corrected by hand, and used by an export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import run
from made_slides import made_slide

import slideio_pipe as sp
from slideio_pipe.errors import ConfigError, OutputExistsError
from slideio_pipe.export.config import ExportConfig
from slideio_pipe.tiles.config import TissueConfig

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two slides, one without tissue, a broken one, and a manifest of all."""
    folder = tmp_path_factory.mktemp("study")
    for k in range(2):
        made_slide(folder / f"s{k}.svs", size=(2048, 1536), seed=k)
    (folder / "broken.svs").write_bytes(b"II*\0no slide")
    (folder / "cohort.csv").write_text("slide,label,site\ns0.svs,0,x\nbroken.svs,1,y\ns1.svs,1,z\n")
    return folder


@pytest.fixture(scope="module")
def masks(study: Path) -> Path:
    """The folder of the masks of the study, with a manifest beside them."""
    report = sp.tissue_cohort(study / "cohort.csv", study / "masks", manifest=study / "corrected.csv", progress=False)
    assert (report.done, [failure.slide for failure in report.failed]) == (2, ["broken.svs"])
    return study / "masks"


def test_masks_equal_those_of_single_slides(study: Path, masks: Path, tmp_path: Path) -> None:
    """The same bytes as the command for one slide writes."""
    run("tissue", study / "s1.svs", "--out", tmp_path / "one.geojson")
    assert (masks / "s1.geojson").read_bytes() == (tmp_path / "one.geojson").read_bytes()


def test_the_manifest_names_the_masks(study: Path, masks: Path) -> None:
    """Relative to its own folder, with all other columns, and empty for slides without a mask."""
    assert (study / "corrected.csv").read_text().splitlines() == [
        "slide,label,mask,site",
        "s0.svs,0,masks/s0.geojson,x",
        "broken.svs,1,,y",
        "s1.svs,1,masks/s1.geojson,z",
    ]


def test_a_corrected_mask_is_kept_and_used(study: Path, masks: Path, tmp_path: Path) -> None:
    """A second run keeps existing masks; the export reads the file as it is."""
    square = [[0, 0], [512, 0], [512, 512], [0, 512], [0, 0]]
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [square]}}
    (masks / "s0.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    again = sp.tissue_cohort(study / "cohort.csv", masks, manifest=study / "corrected.csv", progress=False)
    assert (again.done, again.kept, len(again.failed)) == (0, 2, 1)
    assert "Feature" in (masks / "s0.geojson").read_text()
    config = ExportConfig(view={"mpp": None}, grid={"tile_size": 256})  # type: ignore[arg-type]
    sp.export_cohort(study / "corrected.csv", tmp_path, config, progress=False)
    assert sorted(sp.open_bag(tmp_path / "s0.bag.zarr").coords.tolist()) == [[0, 0], [0, 256], [256, 0], [256, 256]]


def test_other_settings_are_refused_and_masks_of_the_cohort_kept(study: Path, masks: Path, tmp_path: Path) -> None:
    """As by an export; a slide that has a mask already is not opened."""
    config = ExportConfig(tissue=TissueConfig(mpp=16.0))
    with pytest.raises(ConfigError, match=r"tissue\.mpp was 8\.0, is 16\.0"):
        sp.tissue_cohort(study / "cohort.csv", masks, config, progress=False)
    report = sp.tissue_cohort(study / "corrected.csv", tmp_path / "more", progress=False)
    assert (report.slides, report.done) == (1, 0)


def test_a_manifest_is_not_replaced_without_overwrite(study: Path, masks: Path, tmp_path: Path) -> None:
    """Neither the cohort's own, nor one of other slides."""
    with pytest.raises(OutputExistsError, match="is the cohort itself"):
        sp.tissue_cohort(study / "cohort.csv", masks, manifest=study / "cohort.csv")
    (tmp_path / "other.csv").write_text(f"slide\n{study / 's0.svs'}\n")
    with pytest.raises(OutputExistsError, match="lists other slides"):
        sp.tissue_cohort(study / "cohort.csv", masks, manifest=tmp_path / "other.csv")
    with pytest.raises(ConfigError, match=r"end the manifest in \.csv"):
        sp.tissue_cohort(study / "cohort.csv", masks, manifest=tmp_path / "masks.txt.gz")


@pytest.mark.system
def test_the_command_writes_masks_and_lists_failures(study: Path, tmp_path: Path) -> None:
    """Pictures instead of outlines; the exit code is 1 if a slide failed."""
    manifest = tmp_path / "masks.csv"
    command = ("tissue", study / "cohort.csv", "--out", tmp_path / "m", "--format", "png", "--manifest", manifest)
    text = run(*command, "--workers", 2, code=1).stdout
    assert "3 slides: 2 found, 1 failed" in text
    assert f"manifest: {manifest}" in text
    assert (tmp_path / "m" / "s0.png").exists()
    assert json.loads(run(*command, "--json", code=1).stdout)["kept"] == 2
    assert "--picture is for one slide" in run(*command, "--picture", "a.png", code=2).stderr
    assert "pass --out masks/" in run("tissue", study / "cohort.csv", "--out", "a.png", code=2).stderr
    one = run("tissue", study / "s0.svs", "--manifest", manifest, code=2).stderr
    assert "--format and --manifest are for a cohort" in one
    inside = ("--root", study, "--manifest", study / "cohort.csv")
    assert "is the cohort itself" in run(*command[:4], *inside, code=2).stderr
