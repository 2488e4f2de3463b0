"""The resolution of a slide in a cohort: first its own column, then its file, then the settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from command_line import run
from pyramids import write_pyramid

import slideio_pipe as sp
from slideio_pipe.errors import ConfigError
from slideio_pipe.export.config import ExportConfig
from slideio_pipe.geometry import Mpp
from slideio_pipe.slides.slide import open_slide
from slideio_pipe.streaming.config import LoaderConfig

# A slide that states 0.5 µm, one that states none, one that states 0.5 and has 0.3 in the cohort.
NAMES = ("stated", "silent", "column")
FILLED = {"stated": 0.5, "silent": 0.25, "column": 0.3}
REPLACED = {"stated": 0.25, "silent": 0.25, "column": 0.3}
CASES = pytest.mark.parametrize(("override", "expected"), [(False, FILLED), (True, REPLACED)])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of three slides, each a purple disc on glass."""
    folder = tmp_path_factory.mktemp("mpps")
    y, x = np.mgrid[:600, :800]
    pixels = np.full((600, 800, 3), 240, np.uint8)
    pixels[(x - 400) ** 2 + (y - 300) ** 2 < 200**2] = (130, 60, 140)
    for name in NAMES:
        write_pyramid(folder / f"{name}.tif", pixels, (1,), mpp=None if name == "silent" else 0.5)
    (folder / "cohort.csv").write_text("slide,mpp\nstated.tif,\nsilent.tif,\ncolumn.tif,0.3\n")
    return folder


def sections(override: bool) -> dict[str, Any]:
    """Return settings that read level 0 everywhere."""
    return {
        "slide": {"slide_mpp": 0.25, "slide_mpp_override": override},
        "view": {"mpp": None},
        "grid": {"tile_size": 128, "min_tissue": 0.0},
        "tissue": {"method": "none"},
    }


def mpps(bags: Path) -> dict[str, float]:
    """Return the mpp of the slide of each bag in a folder."""
    found = {}
    for path in bags.glob("*.bag.zarr"):
        with sp.open_bag(path) as bag:
            found[path.name.removesuffix(".bag.zarr")] = bag.provenance()["slide"]["mpp"][0]
    return found


@pytest.mark.slow
@CASES
def test_exports_use_the_mpp_of_the_settings(
    study: Path, tmp_path: Path, override: bool, expected: dict[str, float]
) -> None:
    """A number fills gaps; with override it replaces what files state."""
    report = sp.export_cohort(study / "cohort.csv", tmp_path, ExportConfig(**sections(override)), progress=False)
    assert report.done == 3
    assert mpps(tmp_path) == pytest.approx(expected)


@pytest.mark.slow
@CASES
def test_the_options_of_the_command_do_the_same(
    study: Path, tmp_path: Path, override: bool, expected: dict[str, float]
) -> None:
    """As the settings."""
    how = ["--slide-mpp", 0.25, "--mpp", "native", "--tissue", "none", "--tile-size", 128, "--min-tissue", 0]
    run("export", study / "cohort.csv", "--out", tmp_path, *how, *(["--slide-mpp-override"] if override else []))
    assert mpps(tmp_path) == pytest.approx(expected)


@CASES
def test_data_sets_use_the_same_mpp_as_an_export(study: Path, override: bool, expected: dict[str, float]) -> None:
    """Training reads slides at the same resolution."""
    dataset = sp.BagDataset(study / "cohort.csv", LoaderConfig(**sections(override)))
    opened = [dataset.open(number) for number in range(len(dataset))]
    found = {Path(bag.name).stem: bag.provenance()["slide"]["mpp"][0] for bag in opened}
    assert found == pytest.approx(expected)


@pytest.mark.system
@CASES
def test_the_manifest_of_masks_keeps_the_mpp(
    study: Path, tmp_path: Path, override: bool, expected: dict[str, float]
) -> None:
    """The export then needs no option."""
    settings = {name: value for name, value in sections(override).items() if name == "slide"}
    for _ in range(2):  # the second run computes nothing
        sp.tissue_cohort(
            study / "cohort.csv", tmp_path / "masks", ExportConfig(**settings),
            manifest=tmp_path / "corrected.csv", progress=False,
        )  # fmt: skip
        known = {Path(slide.name).stem: slide.mpp for slide in sp.Cohort.of(tmp_path / "corrected.csv")}
        unstated = None if not override else 0.25
        assert known == {"stated": unstated, "silent": 0.25, "column": 0.3}
    plain = ExportConfig(view={"mpp": None}, grid={"tile_size": 128})
    sp.export_cohort(tmp_path / "corrected.csv", tmp_path / "bags", plain, progress=False)
    assert mpps(tmp_path / "bags") == pytest.approx(expected)


@pytest.mark.slow
@CASES
def test_imported_coordinates_use_the_same_mpp(
    study: Path, tmp_path: Path, override: bool, expected: dict[str, float]
) -> None:
    """Bags made of several files of coordinates."""
    (tmp_path / "h5").mkdir()
    for name in NAMES[:2]:
        with h5py.File(tmp_path / "h5" / f"{name}.h5", "w") as file:
            file["coords"] = np.array([[300, 200], [428, 200]])
    how = ["--from", "clam", "--slides", study, "--tile-size", 128, "--tile-size-level0", 128, "--slide-mpp", 0.25]
    run("convert", tmp_path / "h5", *how, "--out", tmp_path / "bags", *(["--slide-mpp-override"] if override else []))
    assert mpps(tmp_path / "bags") == pytest.approx({name: expected[name] for name in NAMES[:2]})


def test_slide_mpp_of_one_slide_replaces_what_its_file_states(study: Path, tmp_path: Path) -> None:
    """The option is meant for this slide."""
    facts = json.loads(run("info", study / "stated.tif", "--slide-mpp", 0.25, "--json").stdout)
    assert facts["mpp"] == [0.25, 0.25]
    run("export", study / "stated.tif", "--slide-mpp", 0.25, "--mpp", "native", "--out", tmp_path / "a.bag.zarr")
    with sp.open_bag(tmp_path / "a.bag.zarr") as bag:
        assert bag.provenance()["slide"]["mpp"] == [0.25, 0.25]


def test_default_mpp_is_used_if_the_file_states_none(study: Path) -> None:
    """For one slide."""
    with open_slide(study / "stated.tif", default_mpp=0.25) as slide:
        assert (slide.mpp, slide.mpp_source) == (Mpp(0.5, 0.5), "file")
    with open_slide(study / "silent.tif", default_mpp=0.25) as slide:
        assert (slide.mpp, slide.mpp_source) == (Mpp(0.25, 0.25), "default_mpp argument")
    with pytest.raises(ConfigError, match="default_mpp=-1 is no resolution"):
        open_slide(study / "silent.tif", default_mpp=-1)


def test_settings_of_earlier_runs_are_not_seen_as_changed() -> None:
    """The new key is compared only if it has a value."""
    assert "slide_mpp_override" not in ExportConfig().model_dump(mode="json")["slide"]
    assert ExportConfig(**sections(True)).model_dump(mode="json")["slide"]["slide_mpp_override"] is True
