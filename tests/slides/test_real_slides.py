"""Every real slide, from the command line to the bag, bit for bit against other readers.

The slides lie beside this checkout, in ``../shared/data/slides``; without them these tests are skipped.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from slideio_pipe.commands.app import app
from slideio_pipe.store import StoredBag, open_bag

# The public DICOM slide is a level without its full resolution.
pytestmark = pytest.mark.filterwarnings("ignore::slideio_pipe.errors.IncompleteSlideWarning")

Level = NDArray[np.uint8]


def openslide_level(path: Path, level: int = 0) -> Level:
    """Return a whole level by OpenSlide, transparent pixels on white."""
    with openslide.OpenSlide(path) as slide:
        rgba = slide.read_region((0, 0), level, slide.level_dimensions[level])
    flat = Image.new("RGBA", rgba.size, "white")
    flat.alpha_composite(rgba)
    return np.asarray(flat.convert("RGB"))


def tifffile_level(path: Path, level: int = 0) -> Level:
    """Return a whole level by tifffile; pages of another shape (thumbnail, label) are no levels."""
    with tifffile.TiffFile(path) as tif:
        tiled = [page for page in tif.pages if isinstance(page, tifffile.TiffPage) and page.is_tiled]
        return tiled[level].asarray()


@dataclass(frozen=True)
class Case:
    """A slide, the export's settings, and the oracle of its tiles."""

    file: str
    options: tuple[str, ...]
    tile: int
    oracle: Callable[[Path, int], Level]
    level: int = 0
    mpp: float | None = None  # of the bag

    def __str__(self) -> str:
        return f"{self.file}-level{self.level}"


NDPI = "test3-DAPI-2-(387).ndpi"
TCGA = "TCGA-CR-7395-01A-01-TS1.svs"
CASES = [
    Case("CMU-1-Small-Region.svs", ("--mpp", "0.5"), 256, openslide_level, mpp=0.499),
    Case("OS-2-ndpi.ome.tif", ("--mpp", "native"), 256, tifffile_level, mpp=0.2271),
    Case(TCGA, ("--slide-mpp", "0.25", "--mpp", "0.25"), 256, openslide_level, mpp=0.25),
    Case(TCGA, ("--slide-mpp", "0.25", "--mpp", "0.5"), 256, tifffile_level, level=1, mpp=0.5),
    Case(NDPI, ("--mpp", "native"), 512, openslide_level, mpp=0.2282),
    Case(NDPI, ("--mpp", "0.4563"), 256, openslide_level, level=1, mpp=0.4563),
    Case("multi_frame_jpeg2000_camelyon.dcm", ("--mpp", "native"), 256, openslide_level, mpp=28.97),
    Case("boxes.tiff", ("--mpp", "native"), 64, openslide_level),
    Case("boxes.tiff", ("--slide-mpp", "0.25", "--mpp", "0.5"), 64, openslide_level, level=1, mpp=0.5),
    Case("boxes_0.dcm", ("--mpp", "0.5"), 10, openslide_level, mpp=0.499),
    Case("boxes_1.dcm", ("--mpp", "native"), 16, openslide_level, mpp=0.499),
    Case("small.svs", ("--mpp", "0.5"), 10, openslide_level, mpp=0.499),
]


@pytest.fixture
def slides(shared_data: Path) -> Path:
    """The folder of real slides."""
    return shared_data / "slides"


def run(*arguments: object) -> str:
    """Run a command in this process and return what it printed; it has to succeed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def check_tiles(bag: StoredBag, level: Level) -> None:
    """Compare every tile of a bag with its level; outside the slide it is white."""
    height, width = level.shape[:2]
    tile = bag.shape[1]
    columns, rows = -(-width // tile), -(-height // tile)
    assert len(bag) == columns * rows
    padded = np.full((rows * tile, columns * tile, 3), 255, np.uint8)
    padded[:height, :width] = level
    tiles = padded.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2).reshape(-1, tile, tile, 3)
    assert np.array_equal(bag[:], tiles)


def test_every_slide_has_a_case(slides: Path) -> None:
    """A slide added to the folder must be tested, too."""
    assert {path.name for path in slides.iterdir()} == {case.file for case in CASES}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_bag_of_a_whole_slide_equals_the_oracle(case: Case, slides: Path, tmp_path: Path) -> None:
    """info and export at a stated resolution; all tiles are OpenSlide's or tifffile's, bit for bit."""
    path = slides / case.file
    options = case.options[:2] if case.options[0] == "--slide-mpp" else ()
    reported = json.loads(run("info", path, "--json", *options))
    level = case.oracle(path, case.level)
    assert reported["levels"][case.level]["size"] == [level.shape[1], level.shape[0]]

    grid = ("--tissue", "none", "--edge", "pad", "--tile-size", case.tile)
    summary = json.loads(run("export", path, "--out", tmp_path, "--json", *grid, *case.options))
    bag = open_bag(summary["bag"])
    check_tiles(bag, level)

    scale = np.array(reported["levels"][case.level]["downsample"])
    corners = bag.grid_index * case.tile * scale
    assert np.array_equal(bag.coords, np.floor(corners + 0.5))
    if case.mpp is None:
        assert bag.view_mpp is None
    else:
        assert bag.view_mpp is not None
        assert bag.view_mpp.mean == pytest.approx(case.mpp, rel=2e-3)


@pytest.mark.parametrize("command", ["tissue", "export"])
def test_a_slide_without_resolution_is_refused(command: str, slides: Path, tmp_path: Path) -> None:
    """The TCGA slide states neither mpp nor objective power: the remedy is named and nothing is written."""
    result = CliRunner().invoke(app, [command, str(slides / TCGA), "--out", str(tmp_path / "out.zarr.geojson")])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {TCGA}: no mpp")
    assert "--slide-mpp" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_default_export_of_a_real_slide(slides: Path, tmp_path: Path) -> None:
    """With tissue found: fewer tiles than the grid has, each with at least half tissue, at OpenSlide's position."""
    path = slides / "CMU-1-Small-Region.svs"
    bag = open_bag(json.loads(run("export", path, "--out", tmp_path, "--json"))["bag"])
    assert 20 < len(bag) < 88
    assert bag.tissue.min() >= 0.5
    with openslide.OpenSlide(path) as slide:
        for k, (x, y) in enumerate(bag.coords):
            assert np.array_equal(bag[k], np.asarray(slide.read_region((x, y), 0, (256, 256)))[..., :3])
