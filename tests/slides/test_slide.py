"""Opening: every real file, the source of the resolution, regions, pickling and forks."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
import zarr
from paths import ROOT
from pyramids import coordinate_pixels, write_pyramid
from typer.testing import CliRunner

from slideio_pipe import Cohort, Slide, open_features, open_slide
from slideio_pipe.commands.app import app
from slideio_pipe.errors import (
    ConfigError,
    CorruptSlideError,
    EstimatedResolutionWarning,
    ImplausibleResolutionWarning,
    MissingResolutionError,
)
from slideio_pipe.export.config import load_config
from slideio_pipe.geometry import Size
from slideio_pipe.images.virtual_tiff import VirtualTiff

# The public DICOM slide is a level without its full resolution.
pytestmark = pytest.mark.filterwarnings("ignore::slideio_pipe.errors.IncompleteSlideWarning")


@dataclass(frozen=True)
class Real:
    """Facts of a real file."""

    file: str
    vendor: str
    reader: str
    levels: tuple[tuple[int, int], ...]
    mpp: float | None
    source: str
    associated: set[str] = field(default_factory=set)


NDPI_LEVELS = tuple((3968 >> k, 4864 >> k) for k in range(7))
TCGA = "TCGA-CR-7395-01A-01-TS1.svs"
REAL = [
    Real("CMU-1-Small-Region.svs", "aperio", "tiff", ((2220, 2967),), 0.499, "file", {"label", "macro", "thumbnail"}),
    Real(
        TCGA,
        "aperio",
        "tiff",
        ((4443, 3567), (2221, 1783)),
        None,
        "none stated",
        {"thumbnail"},
    ),
    Real("test3-DAPI-2-(387).ndpi", "hamamatsu", "openslide", NDPI_LEVELS, 0.2282, "file", {"macro"}),
    Real("OS-2-ndpi.ome.tif", "ome", "tiff", ((2202, 2202),), 0.2271, "file"),
    Real("multi_frame_jpeg2000_camelyon.dcm", "dicom", "openslide", ((1696, 812),), 28.97, "file"),
    Real("small.svs", "aperio", "tiff", ((16, 16),), 0.499, "file", {"thumbnail"}),
    Real("boxes.tiff", "generic-tiff", "tiff", ((300, 250), (150, 125), (75, 62), (37, 31)), None, "352.8 µm stated"),
    Real("boxes_0.dcm", "dicom", "openslide", ((16, 16),), 0.499, "file", {"thumbnail"}),
    Real("boxes_1.dcm", "dicom", "openslide", ((16, 16),), 0.499, "file", {"thumbnail"}),
]


def quietly(path: Path, **options: Any) -> Slide:
    """Open without the warning that a resolution is estimated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EstimatedResolutionWarning)
        return open_slide(path, **options)


def openslide_rgb(slide: openslide.OpenSlide, location: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Read with OpenSlide, flattened on white in float64."""
    rgba = np.asarray(slide.read_region(location, 0, size)).astype(float)
    alpha = rgba[..., 3:] / 255
    return np.floor(rgba[..., :3] * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)


@pytest.mark.parametrize("real", REAL, ids=lambda real: real.file)
def test_real_files_open(shared_data: Path, real: Real) -> None:
    """Vendor, levels, resolution and its source, associated images."""
    slide = open_slide(shared_data / "slides" / real.file)
    assert (slide.vendor, slide.facts.backend) == (real.vendor, real.reader)
    assert slide.level_dimensions == real.levels
    assert slide.dimensions == real.levels[0]
    assert slide.level_count == len(real.levels)
    assert (slide.mpp.mean if slide.mpp else 0) == pytest.approx(real.mpp or 0, rel=1e-3)
    assert slide.mpp_source.startswith(real.source)
    assert set(slide.facts.associated) == real.associated
    assert slide.name == real.file


@pytest.mark.parametrize("file", ["ihc.png", "tcga-lung-rgb.png", "tcga-red-pen.png"])
def test_real_images_open(shared_data: Path, file: str) -> None:
    """Flat images are slides of one level without a resolution."""
    slide = open_slide(shared_data / "images" / file)
    assert (slide.level_count, slide.mpp, slide.vendor) == (1, None, "png")
    assert slide.thumbnail(100).shape[2] == 3


@pytest.mark.parametrize(
    "file",
    ["CMU-1-Small-Region.svs", "test3-DAPI-2-(387).ndpi", TCGA, "small.svs", "boxes_0.dcm"],
)
def test_associated_images_equal_openslide(shared_data: Path, file: str) -> None:
    """Label, macro and thumbnail: the same size, and the same pixels if their codec is lossless."""
    path = shared_data / "slides" / file
    slide = open_slide(path)
    with openslide.OpenSlide(str(path)) as reference:
        assert set(slide.facts.associated) == set(reference.associated_images)
        for name, image in reference.associated_images.items():
            ours, theirs = slide.associated_image(name), np.asarray(image)[..., :3]
            assert ours.shape == theirs.shape
            assert np.abs(ours.astype(int) - theirs).mean() < 1


def test_an_unknown_associated_image_is_refused(coordinate_slide: Path) -> None:
    """The error lists the existing ones."""
    with pytest.raises(ConfigError, match='no associated image "label"; there are: none'):
        open_slide(coordinate_slide).associated_image("label")


READABLE = [real.file for real in REAL if real.file != "OS-2-ndpi.ome.tif"]


@pytest.mark.parametrize("file", READABLE)
def test_regions_equal_openslide_at_level_0(shared_data: Path, file: str) -> None:
    """Bit for bit, also across every edge, where OpenSlide is transparent and we are white."""
    path = shared_data / "slides" / file
    slide = open_slide(path)
    width, height = slide.dimensions
    with openslide.OpenSlide(str(path)) as reference:
        for x, y in [(0, 0), (-20, -30), (width - 40, height - 50), (width // 3, height // 2), (-100, height // 2)]:
            expected = openslide_rgb(reference, (x, y), (97, 83))
            assert np.array_equal(slide.read_region((x, y), 0, (97, 83)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("file", [TCGA, "boxes.tiff"])
def test_lower_levels_equal_the_stored_level(shared_data: Path, file: str) -> None:
    """Every level equals tifffile's page; a region at a whole pixel of it is a part of it."""
    path = shared_data / "slides" / file
    slide = open_slide(path)
    with tifffile.TiffFile(path) as tif:
        stored = {page.shape[1::-1]: page for page in tif.pages if page.is_tiled}
        for level, size in enumerate(slide.level_dimensions):
            expected = stored[tuple(size)].asarray()
            assert np.array_equal(slide.read_region((0, 0), level, size), expected)
            dx, dy = slide.pyramid.downsamples[level]
            x, y = size.width // 2, size.height // 3
            part = slide.read_region((x * dx, y * dy), level, (12, 10))
            assert np.array_equal(part, expected[y : y + 10, x : x + 12])


def test_regions_outside_are_white(coordinate_slide: Path) -> None:
    """Completely outside, empty, and at a corner."""
    slide = open_slide(coordinate_slide)
    assert (slide.read_region((5000, 5000), 0, (10, 20)) == 255).all()
    assert slide.read_region((0, 0), 0, (0, 7)).shape == (7, 0, 3)
    corner = slide.read_region((999, 699), 0, (2, 2))
    assert corner[0, 0].tolist() == [999 % 256, 699 % 256, 3 * 16 + 2]
    assert (corner[1] == 255).all()


@pytest.mark.parametrize(("level", "size"), [(-1, (5, 5)), (3, (5, 5)), (0, (-1, 5))])
def test_impossible_regions_are_refused(coordinate_slide: Path, level: int, size: tuple[int, int]) -> None:
    """An unknown level or an invalid size."""
    with pytest.raises(ConfigError):
        open_slide(coordinate_slide).read_region((0, 0), level, size)


@pytest.mark.parametrize(
    ("stated", "side", "mpp", "source"),
    [
        (0.25, 3000, 0.25, "file"),
        (19.9, 3000, 19.9, "file"),
        (20.5, 3000, None, "20.5 µm stated, which no scanner has"),
        (20.5, 1000, 20.5, "file"),  # a thumbnail may be coarse
        (25400 / 72, 3000, None, "352.8 µm stated, the 72 dots per inch of image software"),
        (25400 / 72, 100, None, "352.8 µm stated, the 72 dots per inch of image software"),
        (25400 / 96, 64, None, "264.6 µm stated, the 96 dots per inch of image software"),
        (25400 / 300, 768, None, "84.67 µm stated, the 300 dots per inch of image software"),
        (25400 / 600, 1024, None, "42.33 µm stated, the 600 dots per inch of image software"),
        (1000, 64, None, "1000 µm stated, one pixel per unit, as image software writes"),  # default of libvips
        (1e4, 64, None, "1e+04 µm stated, one pixel per unit, as image software writes"),  # OpenSlide issue 328
        (90, 1024, None, "90 µm stated, which makes it 92.16 mm long, glass has 76"),
        (70, 1024, 70, "file"),
        (10, 9000, None, "10 µm stated, which makes it 90 mm long, glass has 76"),
        (0.055, 3000, 0.055, "file"),  # 100×, oil
        (0.025, 3000, None, "0.025 µm stated, finer than any microscope's 0.05 µm"),
        (0.025, 64, None, "0.025 µm stated, finer than any microscope's 0.05 µm"),
        (0.00025, 3000, None, "0.00025 µm stated, finer than any microscope's 0.05 µm, as if in mm"),
        ((0.25, 0.3), 3000, (0.25, 0.3), "file"),
        ((0.25, 2.5), 3000, None, "0.25 × 2.5 µm stated, which no scanner has: its pixels are nearly square"),
        ((0.25, 0.025), 3000, None, "0.25 × 0.025 µm stated, finer than any microscope's 0.05 µm"),
        (None, 3000, None, "none stated"),
    ],
)
def test_impossible_resolutions_count_as_missing(tmp_path: Path, stated: Any, side: int, mpp: Any, source: str) -> None:
    """Finer than light, longer than a glass of 76 × 26 mm, and defaults of image software."""
    tags: dict[str, Any] = {}
    if stated is not None:
        tags = {"resolution": tuple(1e4 / each for each in np.broadcast_to(stated, 2).tolist()), "resolutionunit": 3}
    path = tmp_path / "a.tif"
    write_pyramid(path, np.zeros((64, side, 3), np.uint8), (1,), mpp=None, tile=64, **tags)
    slide = open_slide(path)
    assert slide.mpp == (None if mpp is None else pytest.approx(np.broadcast_to(mpp, 2), rel=1e-3))
    assert slide.mpp_source == source
    if mpp is None:
        with pytest.raises(MissingResolutionError, match="pass slide_mpp="):
            slide.view(mpp=0.5)


def aperio(path: Path, **properties: object) -> Path:
    """Write a slide with an Aperio description."""
    lines = "|".join(f"{key} = {value}" for key, value in properties.items())
    description = f"Aperio Image Library v12.0.0\r\n512x512 [0,0 512x512] (256x256) JPEG/RGB Q=70|{lines}"
    return write_pyramid(path, coordinate_pixels(512, 512), (1,), mpp=None, description=description)


@pytest.mark.parametrize("text", ["0", "-0.25", "nan", "inf", "", "unknown", "1e400"])
def test_invalid_aperio_descriptions_count_as_missing(tmp_path: Path, text: str) -> None:
    """For any content."""
    slide = open_slide(aperio(tmp_path / "a.svs", MPP=text))
    assert slide.vendor == "aperio"
    assert slide.mpp is None


@pytest.mark.parametrize("text", ["0.2520", "0,2520"])
def test_aperio_mpp_in_any_locale(tmp_path: Path, text: str) -> None:
    """Many languages write the decimal point as a comma."""
    assert open_slide(aperio(tmp_path / "a.svs", MPP=text)).mpp == (0.252, 0.252)


def test_the_objective_power_is_an_estimate_with_a_warning(tmp_path: Path) -> None:
    """The last source of a resolution; an argument avoids the warning."""
    path = aperio(tmp_path / "a.svs", AppMag="40")
    with pytest.warns(EstimatedResolutionWarning, match=r"a\.svs: none stated; using 0\.25 µm, .* 40× objective"):
        slide = open_slide(path)
    assert (slide.mpp, slide.mpp_source) == ((0.25, 0.25), "objective power (estimate)")
    assert open_slide(path, slide_mpp=0.3).mpp == (0.3, 0.3)


@pytest.mark.parametrize("power", ["0", "-0.5", "-40", "nan", "inf", "x"])
def test_an_impossible_objective_power_gives_no_estimate(tmp_path: Path, power: str) -> None:
    """The resolution is then missing."""
    assert open_slide(aperio(tmp_path / "a.svs", AppMag=power)).mpp is None


@pytest.mark.parametrize(("text", "reason"), [("0.00025", "as if in mm"), ("0.025", "finer than any")])
def test_an_impossible_mpp_is_replaced_by_the_objective(tmp_path: Path, text: str, reason: str) -> None:
    """10 µm / 40 is an estimate; a default of the caller has priority."""
    path = aperio(tmp_path / "a.svs", MPP=text, AppMag="40")
    with pytest.warns(EstimatedResolutionWarning, match=f"{text} µm stated, .*{reason}.*; using 0\\.25 µm"):
        assert open_slide(path).mpp == (0.25, 0.25)
    assert open_slide(path, default_mpp=0.3).mpp == (0.3, 0.3)


@pytest.mark.parametrize("power", ["2000", "0.01"])
def test_an_estimate_must_be_possible(tmp_path: Path, power: str) -> None:
    """10 µm over a power of 2,000 or of a hundredth is no resolution of a slide of 512 px."""
    assert open_slide(aperio(tmp_path / "a.svs", AppMag=power)).mpp is None


def ome(path: Path, mpp: float) -> None:
    """Write an OME-TIFF of one level."""
    size = {f"PhysicalSize{axis}": mpp for axis in "XY"}
    tifffile.imwrite(path, coordinate_pixels(600, 400), photometric="rgb", metadata={"axes": "YXS", **size})


def zarr_of(path: Path, mpp: float) -> None:
    """Write an OME-Zarr of one level."""
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group["0"] = coordinate_pixels(600, 400)
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"] + [{"name": "c", "type": "channel"}]
    scale = [{"type": "scale", "scale": [mpp, mpp, 1]}]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]


@pytest.mark.parametrize("mpp", [0.25, 0.025, 0.00025, 160, 25400 / 300])
@pytest.mark.parametrize("source", ["ome", "ome-zarr", "openslide", "aperio"])
def test_every_reader_checks_the_stated_resolution(tmp_path: Path, source: str, mpp: float) -> None:
    """OME-XML, OME-Zarr, OpenSlide's properties and Aperio's description as resolution tags."""
    path = tmp_path / {"ome": "a.ome.tif", "ome-zarr": "a.zarr"}.get(source, "a.svs")
    if source in ("ome", "ome-zarr"):
        {"ome": ome, "ome-zarr": zarr_of}[source](path, mpp)
    else:
        aperio(path, MPP=mpp)
    slide = open_slide(path, backend="openslide" if source == "openslide" else "auto")
    assert slide.facts.mpp == pytest.approx((mpp, mpp), rel=1e-3)
    assert slide.mpp == (pytest.approx((0.25, 0.25)) if mpp == 0.25 else None)


@pytest.mark.parametrize("given", [0.025, 0.00025, (0.25, 0.01)])
@pytest.mark.parametrize("argument", ["slide_mpp", "default_mpp"])
def test_a_given_resolution_finer_than_light_is_refused(coordinate_slide: Path, argument: str, given: Any) -> None:
    """From an argument, settings, a manifest, features, or a command."""
    with pytest.raises(ConfigError, match=f"{argument}=.* is finer than any microscope's 0.05 µm"):
        open_slide(coordinate_slide, **{argument: given})


def test_an_mpp_finer_than_light_is_refused_everywhere(coordinate_slide: Path, tmp_path: Path) -> None:
    """In settings, in manifests, for coordinates in µm, and on the command line."""
    settings = tmp_path / "settings.yaml"
    settings.write_text("slide: {slide_mpp: 0.00025}\n")
    with pytest.raises(ConfigError, match="finer than any microscope"):
        load_config(settings)
    manifest = tmp_path / "cohort.csv"
    manifest.write_text(f"slide,mpp\n{coordinate_slide},0.00025\n")
    with pytest.raises(ConfigError, match=r"mpp '0\.00025' is finer than any microscope's 0\.05 µm, as if in mm"):
        Cohort.of(manifest)
    with pytest.raises(ConfigError, match="finer than any microscope"):
        open_features(tmp_path / "a.h5", slide_mpp=0.00025)
    result = CliRunner().invoke(app, ["info", str(coordinate_slide), "--slide-mpp", "0.00025"])
    assert result.exit_code == 2
    assert "finer than any microscope" in result.output


def test_a_given_resolution_of_a_large_slide_is_a_warning(coordinate_slide: Path) -> None:
    """1,000 px at 100 µm are 100 mm, a possible whole mount. 300 mm are no slide."""
    with pytest.warns(ImplausibleResolutionWarning, match="makes the slide 100 mm long, glass has 76"):
        assert open_slide(coordinate_slide, slide_mpp=100).mpp == (100, 100)
    with pytest.raises(ConfigError, match="makes the slide 300 mm long"):
        open_slide(coordinate_slide, slide_mpp=300)


@pytest.mark.parametrize("given", [0.5, np.float32(0.5), (0.5, 0.5), np.array([0.5, 0.5])])
def test_the_argument_overrides_the_file(coordinate_slide: Path, given: Any) -> None:
    """With numbers of any type, or one per axis."""
    slide = open_slide(coordinate_slide, slide_mpp=given)
    assert (slide.mpp, slide.mpp_source) == ((0.5, 0.5), "slide_mpp argument")


@pytest.mark.parametrize("given", [0, -1, float("nan"), float("inf"), "x", (0.5,), (0.5, 0)])
def test_an_impossible_argument_is_refused(coordinate_slide: Path, given: Any) -> None:
    """Before anything is opened."""
    with pytest.raises(ConfigError, match="is no resolution"):
        open_slide(coordinate_slide, slide_mpp=given)


def test_resolutions_are_per_axis(tmp_path: Path) -> None:
    """XResolution and YResolution are two numbers."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, coordinate_pixels(64, 64), photometric="rgb", resolution=(40_000, 20_000), resolutionunit=3)
    slide = open_slide(path)
    assert slide.mpp == (0.25, 0.5)
    assert slide.require_mpp() == (0.25, 0.5)


@pytest.mark.parametrize(("unit", "value"), [("µm", 0.25), ("nm", 250), ("mm", 0.00025), ("\u03bcm", 0.25)])
def test_ome_units(tmp_path: Path, unit: str, value: float) -> None:
    """Both Unicode letters that look like µ, and other units."""
    path = tmp_path / "a.ome.tif"
    pixels = coordinate_pixels(64, 64)
    size = {"PhysicalSizeX": value, "PhysicalSizeY": value, "PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    tifffile.imwrite(path, pixels, photometric="rgb", metadata={"axes": "YXS", **size})
    assert open_slide(path).mpp == pytest.approx((0.25, 0.25))


def test_slides_pickle_by_path(coordinate_slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To few bytes; with the same resolution; also for another current folder."""
    monkeypatch.chdir(coordinate_slide.parent)
    slide = open_slide(coordinate_slide.name, slide_mpp=0.3)
    data = pickle.dumps(slide)
    monkeypatch.chdir("/")
    copy = pickle.loads(data)
    assert len(data) < 1000
    assert copy == slide
    assert hash(copy) == hash(slide)
    assert np.array_equal(copy.read_region((300, 200), 0, (9, 9)), slide.read_region((300, 200), 0, (9, 9)))


def _mean(slide: Slide) -> float:
    return float(slide.read_region((0, 0), 0, (100, 100)).mean())


@pytest.mark.slow
def test_slides_can_be_sent_to_a_spawned_process(coordinate_slide: Path) -> None:
    """As workers of a cohort use them."""
    slide = open_slide(coordinate_slide)
    expected = _mean(slide)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_mean, (slide,)) == expected


def test_a_forked_process_gets_a_fork_error(coordinate_slide: Path) -> None:
    """For open, read and tile; libvips would hang."""
    code = f"""
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import slideio_pipe as sp
from slideio_pipe.errors import ForkError
slide = sp.open_slide({str(coordinate_slide)!r})
reader = sp.TileReader(slide.view(), 64)
reader.read([[0, 0]])
child = os.fork()
if child == 0:
    refused = 0
    for attempt in (
        lambda: sp.open_slide({str(coordinate_slide)!r}),
        lambda: slide.read_region((0, 0), 0, (5, 5)),
        lambda: reader.read([[0, 0]]),
        lambda: slide.thumbnail(50),
    ):
        try:
            attempt()
        except ForkError as error:
            refused += "spawn" in str(error)
    os._exit(refused)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "4", done.stderr[-500:]


def test_a_closed_slide_raises_our_error(coordinate_slide: Path) -> None:
    """When read, in views and bags too; a slide is a context manager."""
    with open_slide(coordinate_slide) as slide:
        view = slide.view()
        assert view.image.width == 1000
    for attempt in (lambda: slide.read_region((0, 0), 0, (5, 5)), lambda: slide.thumbnail(10)):
        with pytest.raises(ConfigError, match="is closed; open it again"):
            attempt()
    assert np.array_equal(view.image.crop(0, 0, 5, 5).numpy(), coordinate_pixels(5, 5))


def test_slides_are_equal_by_file_and_resolution(coordinate_slide: Path) -> None:
    """Arrays are equal by identity."""
    pixels = coordinate_pixels(50, 50)
    assert open_slide(coordinate_slide) == open_slide(coordinate_slide)
    assert open_slide(coordinate_slide) != open_slide(coordinate_slide, slide_mpp=1)
    assert open_slide(coordinate_slide) != "coordinates.tif"
    array = open_slide(pixels)
    assert array == array
    assert array == open_slide(pixels)
    assert array != open_slide(pixels.copy())
    assert len({array, open_slide(pixels), open_slide(coordinate_slide), open_slide(coordinate_slide)}) == 2


def test_fingerprints_depend_on_content(tmp_path: Path) -> None:
    """Same content, same value; one other byte at either end, another value."""
    one = write_pyramid(tmp_path / "one.tif", coordinate_pixels(300, 200), (1,))
    other = tmp_path / "other.tif"
    other.write_bytes(one.read_bytes())
    assert open_slide(one).fingerprint == open_slide(other).fingerprint
    with other.open("ab") as file:
        file.write(b"x")
    assert open_slide(one).fingerprint != open_slide(other).fingerprint
    assert open_slide(coordinate_pixels(9, 9)).fingerprint != open_slide(coordinate_pixels(9, 8)).fingerprint


@pytest.mark.parametrize("max_size", [1, 50, 333, 1024, 5000])
def test_thumbnails_fit(coordinate_slide: Path, max_size: int) -> None:
    """At most the given size, in the slide's aspect, and never enlarged."""
    height, width, bands = open_slide(coordinate_slide).thumbnail(max_size).shape
    assert bands == 3
    assert max(width, height) <= min(max_size, 1000)
    assert max(width, height) >= min(max_size, 1000) - 1
    assert width / height == pytest.approx(1000 / 700, rel=0.05) or max_size == 1


def test_overviews_come_with_their_affine(coordinate_slide: Path) -> None:
    """At the requested resolution, or at level 0 if that is coarser."""
    slide = open_slide(coordinate_slide)
    pixels, affine = slide.overview(2.0)
    assert affine.scale() == pytest.approx((8, 8))
    assert pixels.shape == (87, 125, 3)
    native, affine = slide.overview(0.01)
    assert affine.scale() == (1, 1)
    assert np.array_equal(native, coordinate_pixels(1000, 700))


def test_a_huge_slide_opens_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10⁸ pixels of virtual tiles: facts, views and grids read none of them."""
    tiles: list[tuple[int, int]] = []

    def read(column: int, row: int) -> np.ndarray:
        tiles.append((column, row))
        return np.zeros((512, 512, 3), np.uint8)

    made = VirtualTiff(Size(20_000, 20_000), Size(512, 512), read)
    slide = open_slide(coordinate_pixels(10, 10), slide_mpp=0.25)
    monkeypatch.setattr(slide._backend, "_image", made.image)
    assert slide.level_image(0).width == 20_000
    assert slide.view().image.width == 20_000
    assert tiles == []


def test_a_damaged_tile_is_an_error_each_time(tmp_path: Path) -> None:
    """libvips reports it once, and returns black afterwards; neighbouring tiles are right."""
    pixels = np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
    path = write_pyramid(tmp_path / "a.tif", pixels, levels=(1,), tile=128)
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages[0].dataoffsets[3], tif.pages[0].databytecounts[3]
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = bytes(count)
    path.write_bytes(data)
    slide = open_slide(path)
    for _ in range(3):
        with pytest.raises(CorruptSlideError):
            slide.read_region((200, 200), 0, (10, 10))
        assert np.array_equal(slide.read_region((0, 0), 0, (128, 128)), pixels[:128, :128])


def test_opening_leaves_no_open_files(shared_data: Path) -> None:
    """Thirty slides opened, read and dropped, without close and without garbage collection."""
    gc.collect()
    gc.disable()
    try:
        for file in ("CMU-1-Small-Region.svs", "OS-2-ndpi.ome.tif", "test3-DAPI-2-(387).ndpi"):
            open_slide(shared_data / "slides" / file).read_region((0, 0), 0, (5, 5))
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(30):
                open_slide(shared_data / "slides" / file).read_region((0, 0), 0, (5, 5))
            assert len(os.listdir("/proc/self/fd")) <= before
    finally:
        gc.enable()


@pytest.mark.parametrize("dpi", [72, 75, 96, 100, 120, 144, 150, 180, 200, 240, 250, 300, 350, 360, 400, 600])
def test_dots_per_inch_of_image_software_are_no_resolution(tmp_path: Path, dpi: int) -> None:
    """Defaults of monitors, printers and paper scanners; other numbers count."""
    for stated, believed in ((dpi, False), (dpi * 1.01, True)):
        path = tmp_path / f"{stated}.tif"
        tifffile.imwrite(path, coordinate_pixels(64, 64), tile=(64, 64), resolution=(stated, stated), resolutionunit=2)
        slide = open_slide(path)
        assert (slide.mpp is not None) == believed
        assert believed or f"the {dpi} dots per inch" in slide.mpp_source


def test_files_of_stored_tiles_are_closed_with_them(tmp_path: Path) -> None:
    """A cohort of thousands of slides must not run out of file descriptors."""
    path = write_pyramid(tmp_path / "a.tif", coordinate_pixels(512, 512), levels=(1,), mpp=0.5, compression="jpeg")
    slide = open_slide(path)
    tiles = slide.stored_tiles(0)
    assert tiles is not None
    tiles.decode(0, 0)
    assert [fd for fd in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{fd}") == str(path)]
    del tiles
    slide.close()
    del slide
    gc.collect()
    assert not [fd for fd in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{fd}") == str(path)]


def test_the_repr_has_size_resolution_levels_and_reader(coordinate_slide: Path) -> None:
    """And the vendor."""
    assert repr(open_slide(coordinate_slide)) == (
        "Slide(coordinates.tif: 1000×700 px, 0.25 µm, 3 levels, generic-tiff by tiff)"
    )
