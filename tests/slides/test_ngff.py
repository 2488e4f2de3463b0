"""OME-Zarr: scales, units, channels and roots of bioformats2raw; the specification is the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from pyramids import coordinate_pixels

from slideio_pipe import errors
from slideio_pipe.errors import CorruptSlideError, UnsupportedSlideError
from slideio_pipe.slides.slide import open_slide

PIXELS = coordinate_pixels(701, 500)
VERSIONS = ("0.4", "0.5")


def scale(value: float, y: float | None = None, *, channels: bool = True) -> dict[str, Any]:
    return {"type": "scale", "scale": [*([1.0] if channels else []), value if y is None else y, value]}


def write(
    store: Path,
    version: str,
    datasets: list[list[dict[str, Any]]],
    *,
    whole: list[dict[str, Any]] | None = None,
    unit: str | None = "micrometer",
    pixels: np.ndarray = PIXELS,
    sizes: list[tuple[int, int]] | None = None,
    **others: Any,
) -> Path:
    """Write an OME-Zarr, channels first, whose level n is every 2**n-th pixel, padded with white to ``sizes``."""
    group = zarr.open_group(str(store), mode="w", zarr_format=2 if version == "0.4" else 3)
    for index in range(len(datasets)):
        level = pixels[:: 2**index, :: 2**index].transpose(2, 0, 1)
        if sizes is not None:
            width, height = sizes[index]
            level = np.pad(
                level, ((0, 0), (0, height - level.shape[1]), (0, width - level.shape[2])), constant_values=255
            )
        group.create_array(str(index), data=np.ascontiguousarray(level), chunks=(1, 128, 128))
    spatial = {"type": "space", **({} if unit is None else {"unit": unit})}
    described: dict[str, Any] = {
        "axes": [{"name": "c", "type": "channel"}, {"name": "y", **spatial}, {"name": "x", **spatial}],
        "datasets": [{"path": str(i), "coordinateTransformations": t} for i, t in enumerate(datasets)],
        **({} if whole is None else {"coordinateTransformations": whole}),
    }
    if version == "0.4":
        group.attrs.update({"multiscales": [{"version": "0.4", **described}], **others})
    else:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [described], **others}
    return store


@pytest.mark.parametrize("version", VERSIONS)
def test_the_scale_of_all_levels_is_applied_after_theirs(tmp_path: Path, version: str) -> None:
    """They "are applied to all resolution levels in the same manner … after" those of datasets (NGFF 0.4 and 0.5)."""
    store = write(tmp_path / "a.zarr", version, [[scale(1.0)], [scale(2.0)]], whole=[scale(0.25, 0.5)])
    slide = open_slide(store)
    assert slide.mpp == (0.25, 0.5)
    assert slide.pyramid.downsamples == ((1.0, 1.0), (2.0, 2.0))


@pytest.mark.parametrize(
    ("unit", "value", "mpp"),
    [
        ("micrometer", 0.25, 0.25),
        ("µm", 0.25, 0.25),
        ("μm", 0.25, 0.25),
        ("um", 0.25, 0.25),
        ("micron", 0.25, 0.25),
        ("micrometre", 0.25, 0.25),
        ("nanometer", 250.0, 0.25),
        ("angstrom", 2500.0, 0.25),
        ("millimeter", 0.00025, 0.25),
        ("centimeter", 0.000025, 0.25),
        ("meter", 2.5e-7, 0.25),
        ("inch", 1e-5, 0.254),
        ("pixel", 0.25, None),
        ("parrot", 0.25, None),
        (None, 0.25, None),
    ],
)
def test_names_of_units_are_read(tmp_path: Path, unit: str | None, value: float, mpp: float | None) -> None:
    """All names in use; a unit that is no length gives no resolution."""
    found = open_slide(write(tmp_path / "a.zarr", "0.5", [[scale(value)]], unit=unit)).mpp
    assert found is None if mpp is None else found == pytest.approx((mpp, mpp))


@pytest.mark.parametrize(
    ("unit", "metres"),
    [("foot", 0.3048), ("yard", 0.9144), ("pt", 0.0254 / 72), ("Å", 1e-10), ("kilometers", 1e3), ("mm", 1e-3)],
)
def test_rarer_units(unit: str, metres: float) -> None:
    """International yard and pound agreement; SI."""
    from slideio_pipe.slides.backends.units import um_per

    assert um_per(unit) == pytest.approx(metres * 1e6)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("channels", [2, 4, 5])
def test_channels_are_no_transparency(tmp_path: Path, version: str, channels: int) -> None:
    """Four channels are refused, as are two: NGFF has channels, not RGBA."""
    pixels = np.full((64, 64, channels), 90, np.uint8)
    store = write(tmp_path / "a.zarr", version, [[scale(1.0)]], pixels=pixels)
    with pytest.raises(UnsupportedSlideError, match=f"{channels} channels, not RGB"):
        open_slide(store)


def test_three_channels_of_fluorescence_are_refused(tmp_path: Path) -> None:
    """Their rendering metadata are blue, green, red; those of RGB are red, green, blue."""
    colours = ["FF0000", "00FF00", "0000FF"]
    reported = [{"label": name, "color": c} for name, c in zip(("DAPI", "FITC", "TRITC"), colours[::-1], strict=True)]
    store = write(tmp_path / "a.zarr", "0.4", [[scale(1.0)]], omero={"channels": reported})
    with pytest.raises(UnsupportedSlideError, match="not red, green and blue \\(DAPI 0000FF"):
        open_slide(store)
    for right in (colours, ["FFFFFF"] * 3):
        store = write(tmp_path / "b.zarr", "0.5", [[scale(1.0)]], omero={"channels": [{"color": c} for c in right]})
        assert np.array_equal(open_slide(store).read_region((0, 0), 0, (701, 500)), PIXELS)


def test_padded_levels_are_placed_by_their_scale(tmp_path: Path) -> None:
    """The padding of whole chunks is cut off."""
    sizes = [(701, 500), (384, 256), (256, 128)]
    store = write(tmp_path / "a.zarr", "0.5", [[scale(0.5)], [scale(1.0)], [scale(2.0)]], sizes=sizes)
    slide = open_slide(store)
    assert slide.level_dimensions == ((701, 500), (350, 250), (175, 125))
    assert slide.pyramid.downsamples == ((1, 1), (2, 2), (4, 4))
    # Level pixel (100, 50) of every second pixel is pixel (200, 100).
    assert slide.read_region((200, 100), 1, (1, 1))[0, 0].tolist() == PIXELS[100, 200].tolist()
    assert slide.read_region((200, 100), 2, (1, 1))[0, 0].tolist() == PIXELS[100, 200].tolist()


def test_padded_levels_without_a_scale_are_not_used(tmp_path: Path) -> None:
    """With a warning: pixels come from level 0."""
    store = write(tmp_path / "a.zarr", "0.5", [[], []], sizes=[(768, 512), (512, 256)])
    with pytest.warns(errors.LeftOutLevelsWarning, match="512 × 256 px are not used"):
        slide = open_slide(store)
    assert slide.level_dimensions == ((768, 512),)


def test_a_level_with_an_offset_is_not_used(tmp_path: Path) -> None:
    """Half a pixel is a convention, ten pixels are another position."""
    near = [scale(1.0), {"type": "translation", "translation": [0.0, 0.25, 0.25]}]
    slide = open_slide(write(tmp_path / "a.zarr", "0.4", [[scale(0.5)], near]))
    assert slide.level_count == 2
    far = [scale(1.0), {"type": "translation", "translation": [0.0, 10.0, 0.0]}]
    with pytest.warns(errors.LeftOutLevelsWarning, match="levels 1 are not used"):
        slide = open_slide(write(tmp_path / "b.zarr", "0.4", [[scale(0.5)], far]))
    assert slide.level_count == 1


def test_levels_may_be_in_any_order(tmp_path: Path) -> None:
    """The largest one is level 0."""
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2)
    for path, step in (("small", 2), ("large", 1)):
        group.create_array(path, data=np.ascontiguousarray(PIXELS[::step, ::step]), chunks=(128, 128, 3))
    axes = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}, {"name": "c", "type": "channel"}]
    group.attrs["multiscales"] = [{"axes": axes, "datasets": [{"path": "small"}, {"path": "large"}]}]
    assert open_slide(tmp_path / "a.zarr").level_dimensions == ((701, 500), (351, 250))


def root_of(store: Path, version: str, names: list[str], *, metadata: bool) -> Path:
    """Write a group of images as bioformats2raw does; the first is the scan."""
    root = zarr.open_group(str(store), mode="w", zarr_format=2 if version == "0.4" else 3)
    layout = {"bioformats2raw.layout": 3}
    if version == "0.4":
        root.attrs.update(layout)
    else:
        root.attrs["ome"] = {"version": "0.5", **layout}
    for index in range(len(names)):
        pixels = PIXELS if index == 0 else np.full((40, 60, 3), 10 * index, np.uint8)
        write(store / str(index), version, [[scale(0.5)]], pixels=pixels)
    (store / "OME").mkdir()
    if metadata:
        images = "".join(f'<Image ID="Image:{i}" Name="{name}"/>' for i, name in enumerate(names))
        xml = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{images}</OME>'
        (store / "OME" / "METADATA.ome.xml").write_text(xml)
    return store


@pytest.mark.parametrize("version", VERSIONS)
def test_the_root_of_bioformats2raw_is_its_scan(tmp_path: Path, version: str) -> None:
    """Label and macro are associated images."""
    slide = open_slide(root_of(tmp_path / "a.zarr", version, ["a.svs"], metadata=False))
    assert slide.mpp == (0.5, 0.5)
    assert np.array_equal(slide.read_region((0, 0), 0, (701, 500)), PIXELS)
    names = ["a.svs", "label image", "macro image"]
    slide = open_slide(root_of(tmp_path / "b.zarr", version, names, metadata=True))
    assert np.array_equal(slide.read_region((0, 0), 0, (701, 500)), PIXELS)
    assert slide.facts.associated == ("label", "macro")
    assert (slide.associated_image("macro") == 20).all()


@pytest.mark.parametrize("metadata", [True, False])
def test_several_scans_of_bioformats2raw_are_refused(tmp_path: Path, metadata: bool) -> None:
    """Each is a slide: the remedy names them."""
    store = root_of(tmp_path / "a.zarr", "0.4", ["a.scn #1", "a.scn #2"], metadata=metadata)
    with pytest.raises(UnsupportedSlideError, match=r"2 images; .*pass a\.zarr/0 or a\.zarr/1"):
        open_slide(store)
    assert open_slide(store / "0").dimensions == (701, 500)


def test_a_root_of_bioformats2raw_without_metadata_is_refused(tmp_path: Path) -> None:
    """The remedy names the image to open, not an array."""
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2)
    root.attrs["bioformats2raw.layout"] = 3
    with pytest.raises(CorruptSlideError, match=r"without images \(0, 1, …\)"):
        open_slide(tmp_path / "a.zarr")
    root.create_group("0")
    with pytest.raises(CorruptSlideError, match="image 0 of the bioformats2raw store has no multiscales"):
        open_slide(tmp_path / "a.zarr")


def test_a_group_of_images_without_metadata_is_refused(tmp_path: Path) -> None:
    """The error names the images in it."""
    zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2)
    write(tmp_path / "a.zarr" / "scan", "0.4", [[scale(0.5)]])
    with pytest.raises(UnsupportedSlideError, match=r"pass the image in it: a\.zarr/scan"):
        open_slide(tmp_path / "a.zarr")


def test_a_missing_level_is_an_error(tmp_path: Path) -> None:
    """A store that was copied in part: the error names the missing part."""
    store = write(tmp_path / "a.zarr", "0.4", [[scale(0.5)], [scale(1.0)]])
    (store / "1").rename(tmp_path / "elsewhere")
    with pytest.raises(CorruptSlideError, match="level 1 is missing"):
        open_slide(store)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("planes", [1, 2])
def test_axes_t_and_z_of_size_one_are_dropped(tmp_path: Path, version: str, planes: int) -> None:
    """As OMERO and QuPath write them; several planes are refused with their axes."""
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2 if version == "0.4" else 3)
    pixels = np.broadcast_to(PIXELS.transpose(2, 0, 1)[None, :, None], (1, 3, planes, *PIXELS.shape[:2]))
    group.create_array("0", data=np.array(pixels), chunks=(1, 1, 1, 128, 128))
    kinds = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
    scales = [{"type": "scale", "scale": [1.0, 1.0, 1.0, 0.5, 0.5]}]
    described = {
        "axes": [{"name": name, "type": kind} for name, kind in kinds.items()],
        "datasets": [{"path": "0", "coordinateTransformations": scales}],
    }
    group.attrs["ome" if version == "0.5" else "multiscales"] = (
        {"version": "0.5", "multiscales": [described]} if version == "0.5" else [{"version": "0.4", **described}]
    )
    if planes == 1:
        slide = open_slide(tmp_path / "a.zarr", slide_mpp=0.5)
        assert np.array_equal(slide.read_region((0, 0), 0, (701, 500)), PIXELS)
    else:
        with pytest.raises(UnsupportedSlideError, match="several planes along z"):
            open_slide(tmp_path / "a.zarr")


def test_labels_are_refused(tmp_path: Path) -> None:
    """So is a plate of a screen."""
    store = write(tmp_path / "a.zarr", "0.4", [[scale(0.5)]], pixels=PIXELS[..., :1], **{"image-label": {}})
    with pytest.raises(UnsupportedSlideError, match="labels, not a slide"):
        open_slide(store)
    zarr.open_group(str(tmp_path / "b.zarr"), mode="w", zarr_format=2).attrs["plate"] = {}
    with pytest.raises(UnsupportedSlideError, match=r"pass one field: b\.zarr/A/1/0"):
        open_slide(tmp_path / "b.zarr")
