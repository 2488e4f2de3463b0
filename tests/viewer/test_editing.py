"""Corrections by hand: what is added and erased, what is saved, and what is refused."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run
from made_slides import made_slide
from numpy.typing import NDArray

import slideio_pipe as sp
from slideio_pipe.errors import ConfigError, OutputExistsError
from slideio_pipe.export.config import load_config
from slideio_pipe.slides.slide import Slide
from slideio_pipe.tiles.config import GridConfig, TissueConfig
from slideio_pipe.viewer.editing import Edit, SaveFolder, corrected, edits_of
from slideio_pipe.viewer.layers import Layers, LayerSettings
from slideio_pipe.viewer.scene import Scene


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    """A generated slide of 3000×2400 px at 0.25 µm."""
    path = tmp_path_factory.mktemp("slides") / "a.svs"
    made_slide(path, size=(3000, 2400), seed=3, lesions=1, pieces=1)
    return sp.open_slide(path)


def box(left: float, top: float, right: float, bottom: float) -> NDArray[np.float64]:
    """Return the ring of a rectangle."""
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def test_later_edits_win(slide: Slide) -> None:
    """Tissue that is erased and added again is tissue; elsewhere the mask is unchanged."""
    mask = sp.find_tissue(slide)
    erased = corrected(mask, [Edit("erase", box(0, 0, 1504, 2400))])
    assert erased.fractions([[0, 0, 1504, 2400]])[0] == 0
    assert (erased.mask[:, 48:] == mask.mask[:, 48:]).all()
    again = corrected(mask, [Edit("erase", box(0, 0, 1504, 2400)), Edit("add", box(0, 0, 640, 640))])
    assert again.fractions([[0, 0, 640, 640]])[0] == 1
    assert again.method == "corrected"
    assert corrected(mask, [Edit("region", box(0, 0, 9, 9), "Tumor")]) is mask


def test_saved_files_are_read_by_an_export(slide: Slide, tmp_path: Path) -> None:
    """The settings are a configuration, the mask is the corrected one, and regions have their class."""
    layers = Layers(Scene(slide), LayerSettings(TissueConfig(), GridConfig(), 0.5))
    edits = (Edit("erase", box(0, 0, 1504, 2400)), Edit("region", box(100, 200, 300, 400), "Tumor"))
    folder = SaveFolder(tmp_path / "new")
    files = layers.save("s0", folder, {"min_area_um2": "5000", "tile_size": "128", "tile_mpp": "1"}, edits)
    assert [Path(file).name for file in files] == ["tissue.yaml", "a.geojson", "a.regions.geojson"]
    config = load_config(files[0])
    assert (config.tissue.min_area_um2, config.grid.tile_size, config.view.mpp) == (5000, 128, 1)
    read = sp.TissueMask.from_geojson(files[1], slide)
    assert (read.mask == layers.mask("s0", {"min_area_um2": "5000"}, edits).mask).all()
    regions = sp.Annotations.from_geojson(files[2], slide=slide)
    assert regions.regions[0].class_name == "Tumor"
    assert (
        np.unique(regions.regions[0].polygon[0], axis=0).tolist() == np.unique(box(100, 200, 300, 400), axis=0).tolist()
    )
    layers.save("s0", folder, {}, ())  # its own files are replaced


def test_files_of_others_are_kept(slide: Slide, tmp_path: Path) -> None:
    """A file that was there before is not replaced."""
    (tmp_path / "a.geojson").write_text("mine")
    layers = Layers(Scene(slide), LayerSettings(TissueConfig(), GridConfig(), 0.5))
    with pytest.raises(OutputExistsError, match="already there"):
        layers.save("s0", SaveFolder(tmp_path), {}, ())
    assert (tmp_path / "a.geojson").read_text() == "mine"


def test_another_session_saves_the_next_slide(slide: Slide, tmp_path: Path) -> None:
    """Settings that are there already are left as they are; other settings do not replace them."""
    layers = Layers(Scene(slide), LayerSettings(TissueConfig(), GridConfig(), 0.5))
    settings, mask = map(Path, layers.save("s0", SaveFolder(tmp_path), {}, ()))
    mask.rename(tmp_path / "slide of the first session.geojson")
    before = settings.read_bytes()
    assert [Path(file) for file in layers.save("s0", SaveFolder(tmp_path), {}, ())] == [settings, mask]
    with pytest.raises(OutputExistsError, match="already there; move that file"):
        layers.save("s0", SaveFolder(tmp_path), {"tile_size": "128"}, ())
    assert settings.read_bytes() == before


def test_the_settings_name_the_mask(slide: Slide, tmp_path: Path) -> None:
    """The command in the saved settings exports what was corrected; without the mask it would be lost."""
    layers = Layers(Scene(slide), LayerSettings(TissueConfig(), GridConfig(), 0.5))
    erase = Edit("erase", box(0, 0, 1504, 2400))
    settings, mask = layers.save("s0", SaveFolder(tmp_path), {"tile_size": "128"}, (erase,))
    line = next(line for line in Path(settings).read_text().splitlines() if "slideio-pipe export" in line)
    names = {"SLIDE": str(slide.path), "tissue.yaml": settings, "SLIDE.geojson": mask}
    run(*[names.get(word, word) for word in shlex.split(line.strip("# "))[1:]], "--out", tmp_path)
    coords = np.asarray(sp.open_bag(tmp_path / "a.bag.zarr").coords)
    assert len(coords) > 0
    assert coords[:, 0].min() >= 1504 - 128  # level-0 px; tiles are 256 px wide, and half of each is tissue


def test_names_stay_in_the_folder(tmp_path: Path) -> None:
    """A name with folders in it is a name in the folder."""
    assert SaveFolder(tmp_path).write("../../a.txt", b"x") == str(tmp_path / "a.txt")


@pytest.mark.parametrize(
    "sent",
    [
        "x",
        5,
        [5],
        [{"kind": "add"}],
        [{"kind": "other", "ring": [[0, 0], [1, 0], [1, 1]]}],
        [{"kind": "add", "ring": [[0, 0], [1, 1]]}],
        [{"kind": "add", "ring": [[0, 0], [1, 0], [float("nan"), 1]]}],
        [{"kind": "add", "ring": [[0, 0, 0]] * 4}],
        [{"kind": "add", "ring": [["a", "b"]] * 4}],
    ],
)
def test_what_is_no_region_is_refused(sent: Any) -> None:
    """A page that sends something else gets an error."""
    with pytest.raises(ConfigError, match="no region"):
        edits_of(sent)
