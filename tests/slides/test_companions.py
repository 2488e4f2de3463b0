"""Slides of several files, some of them missing: the rest is a preview or an index, and is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image
from pyramids import coordinate_pixels, write_pyramid

from slideio_pipe.errors import CorruptSlideError, SlideioPipeError, UnsupportedSlideError
from slideio_pipe.slides.slide import open_slide

PIXELS = coordinate_pixels(300, 200)
OME = 'xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"'


def preview(path: Path, kind: str = "JPEG") -> Path:
    """Write a flat picture with the name of a slide."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS).save(path, kind)
    return path


def mirax_without_folder(folder: Path) -> Path:
    """MIRAX has Slidedat.ini, index and tiles in a folder beside a JPEG preview."""
    return preview(folder / "a.mrxs")


def mirax_without_index(folder: Path) -> Path:
    (folder / "a").mkdir()
    (folder / "a" / "Data0000.dat").write_bytes(b"\0")
    return preview(folder / "a.mrxs")


def mirax_link(folder: Path) -> Path:
    target = preview(folder / "store" / "a.mrxs")
    (folder / "store" / "a").mkdir()
    (folder / "store" / "a" / "Slidedat.ini").write_text("[GENERAL]\n")
    (folder / "b.mrxs").symlink_to(target)
    return folder / "b.mrxs"


def vsi_without_folder(folder: Path) -> Path:
    """Olympus VSI is a TIFF preview; the tiles are in _a_/stack1/frame_t.ets."""
    return write_pyramid(folder / "a.vsi", PIXELS, (1,))


def vsi_with_folder(folder: Path) -> Path:
    (folder / "_a_" / "stack1").mkdir(parents=True)
    (folder / "_a_" / "stack1" / "frame_t.ets").write_bytes(b"SIS\0")
    return vsi_without_folder(folder)


def vms(folder: Path) -> Path:
    """Hamamatsu VMS is a text that names JPEG files."""
    preview(folder / "a-map.jpg")
    lines = [
        "[Virtual Microscope Specimen]",
        "NoLayers=1",
        "ImageFile=a.jpg",
        "ImageFile(1,0)=b.jpg",
        "MapFile=a-map.jpg",
    ]
    (folder / "a.vms").write_text("\n".join(lines) + "\n")
    return folder / "a.vms"


def ome_binary_only(folder: Path) -> Path:
    """The OME-XML of the plane is in a.companion.ome."""
    xml = f'<OME {OME} UUID="urn:uuid:0"><BinaryOnly MetadataFile="a.companion.ome" UUID="urn:uuid:1"/></OME>'
    path = folder / "a.ome.tif"
    tifffile.imwrite(path, PIXELS[..., 0], photometric="minisblack", tile=(128, 128), description=xml, metadata=None)
    return path


def ome_one_channel(folder: Path) -> Path:
    channels = "".join(f'<Channel ID="Channel:0:{n}" SamplesPerPixel="1"/>' for n in range(3))
    planes = "".join(
        f'<TiffData FirstC="{n}"><UUID FileName="{f}.ome.tif">urn:uuid:{n}</UUID></TiffData>'
        for n, f in enumerate("abc")
    )
    pixels = f'<Pixels ID="Pixels:0" SizeX="300" SizeY="200" SizeC="3" SizeZ="1" SizeT="1">{channels}{planes}</Pixels>'
    (folder / "a.companion.ome").write_text(f'<OME {OME}><Image ID="Image:0">{pixels}</Image></OME>')
    return ome_binary_only(folder)


def slide_of_another_format(folder: Path) -> Path:
    return preview(folder / "a.svs")


def tiff_under_a_name(folder: Path) -> Path:
    return write_pyramid(folder / "a.czi", PIXELS, (1,))


def list_of_slides(folder: Path) -> Path:
    (folder / "a.ndpis").write_text("[NanoZoomer Digital Pathology Image Set]\nNoImages=1\nImage0=a.ndpi\n")
    return folder / "a.ndpis"


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (mirax_without_folder, CorruptSlideError, "its folder a is missing; the .mrxs alone is a preview"),
        (mirax_without_index, CorruptSlideError, "its a/Slidedat.ini is missing"),
        (mirax_link, CorruptSlideError, "store/a.mrxs"),
        (vsi_without_folder, CorruptSlideError, "its folder _a_ with .ets files is missing"),
        (vsi_with_folder, UnsupportedSlideError, "its pixels are in _a_/**/*.ets, which is not read"),
        (vms, CorruptSlideError, "files of the slide are missing: a.jpg, b.jpg"),
        (ome_binary_only, CorruptSlideError, "a.companion.ome"),
        (ome_one_channel, UnsupportedSlideError, "one of 3 planes, which a.companion.ome lists"),
        (slide_of_another_format, UnsupportedSlideError, "only a JPEG picture of that name"),
        (tiff_under_a_name, UnsupportedSlideError, "only a TIFF picture of that name"),
        (list_of_slides, UnsupportedSlideError, "a list of .ndpi files"),
    ],
)
def test_a_part_of_a_slide_is_refused(
    make: Callable[[Path], Path], error: type[SlideioPipeError], words: str, tmp_path: Path
) -> None:
    """By every backend: the error names the missing file."""
    path = make(tmp_path)
    for backend in ("auto", "array"):
        if backend == "array" and make in (ome_binary_only, ome_one_channel, tiff_under_a_name):
            continue  # that backend does not read TIFFs
        with pytest.raises(error) as caught:
            open_slide(path, slide_mpp=0.5, backend=backend)
        assert words in str(caught.value)


@pytest.mark.parametrize("ending", [".jpg", ".png", ".tif"])
def test_pictures_under_their_own_names_open(tmp_path: Path, ending: str) -> None:
    """Also a PNG whose name ends in .tif: no file of it is missing."""
    path = preview(tmp_path / f"a{ending}", "PNG")
    assert np.array_equal(open_slide(path).read_region((0, 0), 0, (300, 200)), PIXELS)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("level", [0, 1])
def test_an_ome_zarr_without_chunks_is_refused(tmp_path: Path, version: int, level: int) -> None:
    """Only its metadata were copied: zarr would read black."""
    store = tmp_path / "a.zarr"
    group = zarr.open_group(str(store), mode="w", zarr_format=version)  # type: ignore[arg-type]
    for index, step in enumerate((1, 2)):
        data = np.ascontiguousarray(PIXELS[::step, ::step])
        array = group.create_array(str(index), shape=data.shape, dtype=data.dtype, chunks=(64, 64, 3))
        if index != level:
            array[...] = data
    axes = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}, {"name": "c", "type": "channel"}]
    group.attrs["multiscales"] = [{"axes": axes, "datasets": [{"path": "0"}, {"path": "1"}]}]
    with pytest.raises(CorruptSlideError, match=f"no chunk of level {level} is there"):
        open_slide(store)


def test_the_largest_image_of_an_ome_series_in_another_file(tmp_path: Path) -> None:
    """Each file is its own image, with or without the others; it is not damaged."""
    channel = '<Channel ID="Channel:0:0" SamplesPerPixel="3"/>'
    image = (
        '<Image ID="Image:{0}"><Pixels ID="Pixels:{0}" DimensionOrder="XYCZT" Type="uint8" SizeX="{1}" SizeY="{2}" '
        'SizeC="3" SizeZ="1" SizeT="1">' + channel + '<TiffData IFD="0" PlaneCount="1">'
        '<UUID FileName="{3}.ome.tif">urn:uuid:0000000{0}-0000-0000-0000-000000000000</UUID>'
        "</TiffData></Pixels></Image>"
    )
    images = image.format(0, 150, 100, "small") + image.format(1, 300, 200, "large")
    for number, (name, pixels) in enumerate((("small", PIXELS[:100, :150]), ("large", PIXELS))):
        xml = f'<OME {OME} UUID="urn:uuid:0000000{number}-0000-0000-0000-000000000000">{images}</OME>'
        path = tmp_path / f"{name}.ome.tif"
        tifffile.imwrite(path, pixels, photometric="rgb", tile=(128, 128), description=xml, metadata=None)
    for name, size in (("small", (150, 100)), ("large", (300, 200))):
        slide = open_slide(tmp_path / f"{name}.ome.tif")
        assert slide.dimensions == size
        assert np.array_equal(slide.read_region((0, 0), 0, size), PIXELS[: size[1], : size[0]])
