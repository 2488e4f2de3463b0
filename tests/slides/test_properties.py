"""A slide's properties under OpenSlide's names, and NumPy numbers as arguments; OpenSlide is the oracle."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
from dicom_files import write_series
from pyramids import coordinate_pixels, write_pyramid

from slideio_pipe.errors import ConfigError
from slideio_pipe.slides.slide import Slide, open_slide

PIXELS = coordinate_pixels(700, 500)
APERIO = "Aperio Image Library v12\r\n700x500 (256x256) JPEG/RGB|AppMag = 20|MPP = 0.4990|Filename = a|Date = 1/2/2020"


def quietly(path: Path) -> Slide:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_slide(path)


def made(kind: str, folder: Path) -> Path:
    """Write a slide that OpenSlide opens, too."""
    if kind == "dicom":
        return write_series(folder, PIXELS)[0]
    description = APERIO if kind == "aperio" else "what a scanner says"
    compression = {"compression": "jpeg"} if kind == "aperio" else {}
    return write_pyramid(
        folder / f"a.{'svs' if kind == 'aperio' else 'tif'}", PIXELS, description=description, **compression
    )


@pytest.mark.parametrize("kind", ["aperio", "generic", "dicom"])
def test_properties_equal_openslide(tmp_path: Path, kind: str) -> None:
    """All keys, level by level, and the methods beside them."""
    path = made(kind, tmp_path)
    slide = open_slide(path)
    with openslide.OpenSlide(str(path)) as theirs:
        expected = dict(theirs.properties)
        assert {name: slide.properties.get(name) for name in expected} == expected
        assert slide.level_downsamples == theirs.level_downsamples
        for downsample in (0.5, 1, 1.99, 2, 3.9, 4, 16, 100):
            assert slide.get_best_level_for_downsample(downsample) == theirs.get_best_level_for_downsample(downsample)
    assert slide.facts.properties == slide.properties
    assert pickle.loads(pickle.dumps(slide)).properties == slide.properties


@pytest.mark.parametrize(
    "file",
    [
        "CMU-1-Small-Region.svs",
        "TCGA-CR-7395-01A-01-TS1.svs",
        "boxes.tiff",
        "boxes_0.dcm",
        "multi_frame_jpeg2000_camelyon.dcm",
        "small.svs",
        "test3-DAPI-2-(387).ndpi",
    ],
)
def test_real_slides_have_openslides_properties(shared_data: Path, file: str) -> None:
    """Every key of every slide that OpenSlide opens, by every reader here; associated images, too."""
    path = shared_data / "slides" / file
    slide = quietly(path)
    with openslide.OpenSlide(str(path)) as theirs:
        expected = dict(theirs.properties)
        assert {name: slide.properties.get(name) for name in expected} == expected
        assert slide.level_downsamples == theirs.level_downsamples
        for name, image in theirs.associated_images.items():
            assert slide.associated_images[name].shape[1::-1] == image.size


def test_a_tiff_that_openslide_does_not_open_has_its_names(tmp_path: Path) -> None:
    """For tags and levels."""
    path = tmp_path / "a.tif"
    tags = {"resolution": (20_000, 10_000), "resolutionunit": "CENTIMETER", "software": "a scanner"}
    tifffile.imwrite(path, PIXELS, photometric="rgb", description="what it says", metadata=None, **tags)
    assert openslide.OpenSlide.detect_format(str(path)) is None
    properties = open_slide(path).properties
    expected = {
        "openslide.vendor": "generic-tiff",
        "openslide.comment": "what it says",
        "openslide.mpp-x": "0.5",
        "openslide.mpp-y": "1",
        "openslide.level-count": "1",
        "openslide.level[0].width": "700",
        "openslide.level[0].height": "500",
        "openslide.level[0].downsample": "1",
        "tiff.ImageDescription": "what it says",
        "tiff.Software": "a scanner",
        "tiff.XResolution": "20000",
        "tiff.YResolution": "10000",
        "tiff.ResolutionUnit": "centimeter",
    }
    assert {name: properties.get(name) for name in expected} == expected


def test_an_array_has_properties_of_levels_and_a_vendor() -> None:
    """Nothing else of it is known."""
    slide = open_slide(PIXELS)
    assert slide.properties["openslide.vendor"] == "numpy"
    assert slide.properties["openslide.level[0].width"] == "700"
    assert "openslide.mpp-x" not in slide.properties
    assert dict(slide.associated_images) == {}


def test_associated_images_are_a_mapping(shared_data: Path) -> None:
    """Decoded on access; an unknown one is a KeyError, as for any mapping."""
    images = open_slide(shared_data / "slides" / "CMU-1-Small-Region.svs").associated_images
    assert set(images) == {"label", "macro", "thumbnail"}
    assert len(images) == 3
    assert images["label"].shape[2] == 3
    assert images.get("biopsy") is None
    with pytest.raises(KeyError):
        images["biopsy"]


KINDS = [np.uint8, np.int16, np.uint32, np.int64, np.float32, np.float64]


@pytest.mark.parametrize("kind", KINDS)
def test_regions_accept_numpy_numbers(coordinate_slide: Path, kind: Any) -> None:
    """For position, level and size; small types do not overflow."""
    slide = open_slide(coordinate_slide)
    expected = slide.read_region((250, 250), 1, (100, 120))
    place, size = np.array([250, 250], kind), np.array([100, 120], kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(slide.read_region(place, kind(1), size), expected)
        assert np.array_equal(slide.read_region(tuple(place), kind(1), tuple(size)), expected)
        assert np.array_equal(slide.thumbnail(kind(100)), slide.thumbnail(100))
    large = np.array([2000, 2000], np.int16)
    assert (slide.read_region(large, 0, np.array([31_000, 2], np.int16)) == 255).all()


@pytest.mark.parametrize(
    ("place", "level", "size"),
    [
        ((0, 0), 0, (2.5, 2)),
        ((0, 0), 0.5, (2, 2)),
        ((0, 0), "0", (2, 2)),
        ((0, 0), None, (2, 2)),
        ((0, 0), 0, 20),
        ((0, 0), 0, (2, 2, 2)),
        ((0, 0), 0, (float("nan"), 2)),
        ((float("nan"), 0), 0, (2, 2)),
        (("0", "0"), 0, (2, 2)),
        (0, 0, (2, 2)),
    ],
)
def test_an_invalid_region_is_refused(coordinate_slide: Path, place: Any, level: Any, size: Any) -> None:
    """The error names the wrong number."""
    with pytest.raises(ConfigError, match="pass"):
        open_slide(coordinate_slide).read_region(place, level, size)


def test_invalid_levels_and_sides_are_refused(coordinate_slide: Path) -> None:
    """A level below 0 is not the last one, and a thumbnail has a size."""
    slide = open_slide(coordinate_slide)
    for wrong in (-1, 3, 0.5):
        with pytest.raises(ConfigError, match="level"):
            slide.level_image(wrong)
        with pytest.raises(ConfigError, match="level"):
            slide.stored_tiles(wrong)
    for wrong in (0, -5, (20, 20), "large"):
        with pytest.raises(ConfigError, match="longer side"):
            slide.thumbnail(wrong)
