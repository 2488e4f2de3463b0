"""One slide to one bag: names, pictures, settings, and what is refused before any work."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from made_slides import made_slide
from paths import CONFIGS
from PIL import Image
from pyramids import coordinate_pixels, write_pyramid

from slideio_pipe import find_tissue, open_bag, open_slide
from slideio_pipe.config import Record
from slideio_pipe.errors import ConfigError, EmptyTissueWarning, NoTissueError, OutputExistsError
from slideio_pipe.export import slide as export
from slideio_pipe.export.config import ExportConfig, load_config
from slideio_pipe.export.slide import bag_path, export_slide, plan_bag
from slideio_pipe.images.picture import PICTURES, save_picture
from slideio_pipe.presets import presets
from slideio_pipe.slides.config import ViewConfig
from slideio_pipe.slides.slide import Slide
from slideio_pipe.tiles.config import GridConfig, TissueConfig

PRESETS = [preset.path for preset in presets().values() if preset.kind == "export"]
EVERY_TILE = ExportConfig(view=ViewConfig(mpp=None), grid=GridConfig(tile_size=100), tissue=TissueConfig(method="none"))


@dataclass
class Named:
    """The attributes of a slide that ``bag_path`` reads."""

    name: str


# --- settings


def test_the_tissue_section_has_the_parameters_of_find_tissue() -> None:
    """The same names and defaults, so that command line and notebook agree."""
    taken = inspect.signature(find_tissue).parameters.values()
    defaults = {p.name: p.default for p in taken if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert defaults.pop("on_error") == "raise"  # of a run, not of the masks it makes
    assert TissueConfig().model_dump() == defaults


def test_configs_export_yaml_has_the_defaults() -> None:
    """It names and explains every key, and changes nothing."""
    path = CONFIGS / "export.yaml"
    assert load_config(path) == ExportConfig()
    lines = path.read_text(encoding="utf-8").splitlines()
    for section, record in ExportConfig():
        if not isinstance(record, Record):  # a key without a section
            assert any(line.startswith(f"{section}:") and "# " in line for line in lines), section
            continue
        for key in type(record).model_fields:
            start = lines.index(f"{section}:")
            line = next(line for line in lines[start + 1 :] if line.startswith(f"  {key}:"))
            assert "# " in line, f"{section}.{key}"


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.name)
def test_every_preset_loads_and_exports(path: Path, tmp_path: Path) -> None:
    """Each gives tiles of a generated slide."""
    config = load_config(path)
    made_slide(tmp_path / "a.svs", size=(2000, 1600), seed=3, pieces=1)
    with open_slide(tmp_path / "a.svs") as slide:
        bag = plan_bag(slide, config)
        assert len(bag) > 0
        assert bag.shape[1] == config.grid.tile_size


def test_presets_exist() -> None:
    """The defaults and at least two others."""
    assert {"export.yaml", "uni-224.yaml", "clam-like.yaml"} <= {path.name for path in PRESETS}


def test_every_tissue_setting_is_used(tmp_path: Path) -> None:
    """The mask records the settings of the configuration."""
    made_slide(tmp_path / "a.svs", size=(2000, 1600), seed=3, pieces=1)
    requested = {"mpp": 4.0, "min_area_um2": 1.0, "max_hole_um2": 2.0, "ignore_pen": False, "threshold": 0.1}
    with open_slide(tmp_path / "a.svs") as slide:
        bag = plan_bag(slide, ExportConfig(tissue=TissueConfig.model_validate(requested)))
    settings = bag.provenance()["tissue"]["settings"]
    assert settings["asked_threshold"] == requested.pop("threshold")
    assert {key: settings[key] for key in requested} == requested


# --- names


@pytest.mark.parametrize(
    ("name", "bag"),
    [
        ("a.svs", "a.bag.zarr"),
        ("a.ome.tif", "a.bag.zarr"),
        ("a.OME.TIFF", "a.bag.zarr"),
        ("a.ome.zarr", "a.bag.zarr"),
        ("x.y.svs", "x.y.bag.zarr"),
        ("x.y.tif", "x.y.bag.zarr"),
        ("TCGA-AA-0001-01Z-00-DX1.6bf2.svs", "TCGA-AA-0001-01Z-00-DX1.6bf2.bag.zarr"),
        ("1.2.840.113619", "1.2.840.113619.bag.zarr"),
        ("1.2.840.113619.dcm", "1.2.840.113619.bag.zarr"),
        ("scan (2) [b].ndpi", "scan (2) [b].bag.zarr"),
        ("组织 Ä.mrxs", "组织 Ä.bag.zarr"),
        ("array", "array.bag.zarr"),
        (".svs", ".svs.bag.zarr"),
    ],
)
def test_a_bag_has_the_name_of_its_slide(name: str, bag: str, tmp_path: Path) -> None:
    """Without the ending of its file format, and nothing else removed."""
    assert bag_path(cast(Slide, Named(name)), tmp_path) == tmp_path / bag


def test_the_path_of_a_bag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Current, given or missing folder, a whole path, the home folder; never inside a file."""
    slide = cast(Slide, Named("a.svs"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert bag_path(slide, None) == tmp_path / "a.bag.zarr"
    assert bag_path(slide, "new/bags") == Path("new/bags/a.bag.zarr")
    assert bag_path(slide, tmp_path / "mine.zarr") == tmp_path / "mine.zarr"
    assert bag_path(slide, "~/bags") == tmp_path / "home" / "bags" / "a.bag.zarr"
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="the output is a file"):
        bag_path(slide, tmp_path / "file")


# --- exporting


@pytest.fixture
def slide_file(coordinate_slide: Path) -> Path:
    """A slide whose pixels encode their coordinates."""
    return coordinate_slide


def test_every_tile_of_a_slide_is_exported(slide_file: Path, tmp_path: Path) -> None:
    """7 × 10 tiles of 100 px with the slide's pixels, and a summary as JSON."""
    calls: list[tuple[int, int]] = []
    done = export_slide(slide_file, tmp_path, EVERY_TILE, label="x", progress=lambda *counts: calls.append(counts))
    assert np.array_equal(done.bag[11], coordinate_pixels(1000, 700)[100:200, 100:200])
    assert calls[-1] == (70, 70)
    summary = done.summary()
    assert {key: summary[key] for key in ("slide", "tiles", "tile_size", "mpp")} == {
        "slide": "coordinates.tif", "tiles": 70, "tile_size": 100, "mpp": [0.25, 0.25]
    }  # fmt: skip
    assert summary["bag"] == str(tmp_path / "coordinates.bag.zarr")


def test_refusals_come_before_tissue_is_found(
    slide_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An existing output or a picture of unknown format: nothing is decoded."""
    bag = export_slide(slide_file, tmp_path, EVERY_TILE).bag.path
    monkeypatch.setattr(export, "plan_bag", lambda *_, **__: pytest.fail("work was done"))
    with pytest.raises(OutputExistsError):
        export_slide(slide_file, tmp_path, EVERY_TILE)
    with pytest.raises(ConfigError, match=r"end it in \.png"):
        export_slide(slide_file, tmp_path / "other", EVERY_TILE, picture_file="a.doc")
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".zarr"] == [bag.name]


def test_no_tile_with_enough_tissue_is_an_error(tmp_path: Path) -> None:
    """The two reasons have different remedies; an empty bag needs permission."""
    glass = write_pyramid(tmp_path / "glass.tif", np.full((600, 600, 3), 243, np.uint8), levels=(1,))
    with pytest.warns(EmptyTissueWarning), pytest.raises(NoTissueError, match=r"no tissue was found.*another method"):
        export_slide(glass, tmp_path)
    mask = np.zeros((10, 10), np.uint8)
    mask[0, 0] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    with pytest.warns(EmptyTissueWarning), pytest.raises(NoTissueError, match=r"1\.00% tissue.*lower min_tissue"):
        export_slide(glass, tmp_path, tissue_file=tmp_path / "mask.png")
    with pytest.warns(EmptyTissueWarning):
        done = export_slide(glass, tmp_path, allow_empty=True, picture_file=tmp_path / "glass.png")
    assert len(open_bag(done.bag.path)) == 0
    with Image.open(tmp_path / "glass.png") as drawn:
        assert drawn.size[0] > 500


def test_the_picture_is_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders are created, an existing picture is kept without overwrite, and every listed format works."""
    image = Image.new("RGB", (20, 10), (1, 2, 3))
    for ending in PICTURES:
        file = tmp_path / "new" / f"a{ending.upper()}"
        save_picture(image, file, overwrite=False)
        with Image.open(file) as written:
            assert written.size == (20, 10)
        with pytest.raises(OutputExistsError):
            save_picture(image, file, overwrite=False)
        save_picture(image, file, overwrite=True)
    assert not list(tmp_path.rglob("*.partial"))


def test_the_sheet_shows_slide_grid_and_montage(slide_file: Path) -> None:
    """Side by side; with and without tissue, label and resolution."""
    for slide_mpp, label in ((0.25, 1), (None, None)):
        options: dict[str, Any] = {} if slide_mpp is None else {"slide_mpp": slide_mpp}
        with open_slide(slide_file, **options) as slide:
            sheet = export.sheet(slide, plan_bag(slide, EVERY_TILE, label=label))
        assert sheet.size[0] > 1200
        assert 400 < sheet.size[1] < 700
