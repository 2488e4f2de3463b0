"""Pyramids named .ome.tif are OME-TIFFs with all levels in SubIFDs, for Bio-Formats, QuPath and tifffile."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
from pyramids import write_pyramid

from slideio_pipe import RandomAffine, StainJitter, open_slide
from slideio_pipe.geometry import Affine, Mpp
from slideio_pipe.images import pyramid_tiff as pyramid_file
from slideio_pipe.mil.prediction.colour_scale import ColourScale
from slideio_pipe.mil.prediction.heatmap import save_heatmap_pyramid
from slideio_pipe.mil.prediction.score_map import TileScores

y, x = np.mgrid[:900, :1300]
SMOOTH = np.stack([127 + 100 * np.sin(x / 40), 127 + 100 * np.cos(y / 30), (x + y) / 9], axis=-1).astype(np.uint8)
OME = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"


def pixels_of(path: Path) -> dict[str, str]:
    """Return the description of the first image's pixels."""
    with tifffile.TiffFile(path) as tif:
        assert tif.is_ome
        assert tif.ome_metadata is not None
        found = ET.fromstring(tif.ome_metadata.encode()).find(f"{OME}Image/{OME}Pixels")
    assert found is not None
    return dict(found.attrib)


def by_tifffile(path: Path, array: np.ndarray, mpp: tuple[float, float]) -> Path:
    """Write the same image as tifffile writes OME-TIFFs."""
    about = {"axes": "YXS", "PhysicalSizeX": mpp[0], "PhysicalSizeXUnit": "µm"}
    about |= {"PhysicalSizeY": mpp[1], "PhysicalSizeYUnit": "µm"}
    tifffile.imwrite(path, array, photometric="rgb", tile=(256, 256), metadata=about, ome=True)
    return path


@pytest.mark.parametrize("transform", [None, RandomAffine(rotate=(30, 30), flip=False), StainJitter()])
@pytest.mark.parametrize("ending", [".ome.tif", ".OME.TIFF"])
def test_every_level_is_read(tmp_path: Path, transform: Any, ending: str) -> None:
    """By tifffile and by us; level 0 is the view within JPEG loss, each level the mean of the one above."""
    view = open_slide(SMOOTH, slide_mpp=0.25).view(transform=transform)
    path = view.save(tmp_path / f"größe{ending}", quality=95)
    with tifffile.TiffFile(path) as tif:
        assert len(tif.pages) == 1
        (series,) = tif.series
        assert (series.kind, series.axes) == ("ome", "YXS")
        levels = [level.asarray() for level in series.levels]
        assert all(level.pages[0].tile == (256, 256) for level in series.levels)  # type: ignore[union-attr]
    width, height = view.size
    assert [level.shape[:2] for level in levels] == [(height >> k, width >> k) for k in range(len(levels))]
    assert max(levels[-1].shape) <= 256 < max(levels[-2].shape)
    assert np.abs(levels[0].astype(int) - view.image.numpy()).mean() < 2
    for above, level in itertools.pairwise(levels):
        h, w = level.shape[:2]
        mean = above[: 2 * h, : 2 * w].reshape(h, 2, w, 2, 3).mean(axis=(1, 3))
        assert np.abs(level - mean).mean() < 2
    with open_slide(path) as again:
        assert (again.facts.vendor, [tuple(size) for size in again.pyramid.levels]) == (
            "ome",
            [(level.shape[1], level.shape[0]) for level in levels],
        )
        for k, level in enumerate(levels):
            assert np.abs(again.level_image(k).numpy().astype(int) - level).max() <= 1


def test_the_description_equals_that_of_tifffile(tmp_path: Path) -> None:
    """Sizes, type, channels, order and µm per pixel of each axis."""
    path = open_slide(SMOOTH, slide_mpp=(0.25, 0.5)).view().save(tmp_path / "a.ome.tif")
    found, expected = pixels_of(path), pixels_of(by_tifffile(tmp_path / "b.ome.tif", SMOOTH, (0.25, 0.5)))
    assert expected.items() <= found.items()
    assert found["PhysicalSizeXUnit"] == "µm"
    assert open_slide(path).mpp == pytest.approx((0.25, 0.5))
    with tifffile.TiffFile(path) as tif:
        assert tif.ome_metadata is not None
        assert "µm" in tif.ome_metadata  # for Bio-Formats "&#181;m" is no unit, and the file no OME-TIFF
        channel = ET.fromstring(tif.ome_metadata.encode()).find(f"{OME}Image/{OME}Pixels/{OME}Channel")
        assert channel is not None
        assert channel.attrib == {"ID": "Channel:0:0", "SamplesPerPixel": "3"}


def test_an_unknown_resolution_is_not_written(tmp_path: Path) -> None:
    """The file has no PhysicalSize, and opens without mpp."""
    path = open_slide(SMOOTH).view().save(tmp_path / "a.ome.tif")
    assert not [name for name in pixels_of(path) if name.startswith("Physical")]
    assert open_slide(path).mpp is None


def test_a_scanners_description_is_replaced(tmp_path: Path) -> None:
    """It states another resolution; the slide's name may contain XML characters."""
    source = tmp_path / "a <&\u202e b.tif"
    text = "Aperio Image Library v12.0.0\r\n1300x900 [0,0 1300x900] (256x256) JPEG/RGB Q=90|AppMag = 40|MPP = 0.2500"
    tifffile.imwrite(source, SMOOTH, tile=(256, 256), photometric="rgb", description=text, metadata=None)
    with open_slide(source) as slide:
        path = slide.view(mpp=0.5).save(tmp_path / "b.ome.tif")
    assert pixels_of(path)["PhysicalSizeX"] == "0.5"
    with tifffile.TiffFile(path) as tif:
        assert tif.ome_metadata is not None
        assert "Aperio" not in tif.ome_metadata
        image = ET.fromstring(tif.ome_metadata.encode()).find(f"{OME}Image")
        assert image is not None
        assert image.get("Name") == "a <&_ b.tif"


@pytest.mark.parametrize("size", [(1, 1), (256, 256), (257, 3), (3, 600)])
def test_small_and_thin_images(tmp_path: Path, size: tuple[int, int]) -> None:
    """With one level, or with levels one pixel thin."""
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)
    path = open_slide(pixels, slide_mpp=0.5).view().save(tmp_path / "a.ome.tif")
    with tifffile.TiffFile(path) as tif:
        shapes = [level.shape[:2] for level in tif.series[0].levels]
    assert shapes[0] == size[::-1]
    with open_slide(path) as again:
        assert again.dimensions == size
        assert again.level_count == len(shapes)


def test_openslide_reads_level_0(tmp_path: Path) -> None:
    """OpenSlide ignores SubIFDs; it reads all levels of a .tif, which are pages."""
    view = open_slide(SMOOTH, slide_mpp=0.25).view()
    with openslide.OpenSlide(view.save(tmp_path / "a.ome.tif")) as found:
        region = np.asarray(found.read_region((300, 200), 0, (500, 400)))[..., :3]
    assert np.abs(region.astype(int) - SMOOTH[200:600, 300:800]).mean() < 2
    with openslide.OpenSlide(view.save(tmp_path / "a.tif")) as found:
        assert found.level_dimensions == ((1300, 900), (650, 450), (325, 225), (162, 112))


def test_large_files_have_64_bit_offsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above a limit, which is lowered here."""
    monkeypatch.setattr(pyramid_file, "_BIGTIFF_FROM_PX", 1_000_000)
    path = open_slide(SMOOTH, slide_mpp=0.25).view().save(tmp_path / "a.ome.tif")
    with tifffile.TiffFile(path) as tif:
        assert tif.is_bigtiff
        assert [level.shape[0] for level in tif.series[0].levels] == [900, 450, 225, 112]
    assert open_slide(path).mpp == Mpp(0.25, 0.25)


def test_heat_maps_are_ome_tiffs(tmp_path: Path) -> None:
    """With the slide's name and the resolution of the picture."""
    with open_slide(write_pyramid(tmp_path / "a.tif", SMOOTH, (1,), mpp=0.25)) as slide:
        coords = np.array([[0, 0], [512, 256]])
        scale = ColourScale.of_probability("probability 1")
        scores = TileScores("a.tif", np.array([0.1, 0.9]), scale, coords, 128.0, Affine.scaling(2, 2), "predicted 1")
        path = save_heatmap_pyramid(scores, slide, tmp_path / "heat.ome.tif", mpp=0.5, progress=False)
    found = pixels_of(path)
    assert (found["SizeX"], found["SizeY"], found["PhysicalSizeX"]) == ("650", "450", "0.5")
    with tifffile.TiffFile(path) as tif:
        assert [level.shape[:2] for level in tif.series[0].levels] == [(450, 650), (225, 325), (112, 162)]
        coloured = tif.series[0].asarray().astype(int)
    assert np.abs(coloured - slide_at_half()).mean(axis=-1)[128:256, 256:384].min() > 5  # under the second tile
    assert np.abs(coloured - slide_at_half())[300:, 400:].mean() < 3  # where there is none


def slide_at_half() -> np.ndarray:
    return SMOOTH.reshape(450, 2, 650, 2, 3).mean(axis=(1, 3))
