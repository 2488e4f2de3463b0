"""Read the metadata of an OME-Zarr group: levels, axes and their scale, in NGFF 0.1 to 0.5.

https://ngff.openmicroscopy.org: 0.4 stores its metadata in the attributes, 0.5 below "ome". bioformats2raw writes a
group of images: the slide, and its label and macro.
"""

from __future__ import annotations

import contextlib
import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slideio_pipe.errors import CorruptSlideError, LeftOutLevelsWarning, UnsupportedSlideError, warn_caller
from slideio_pipe.geometry import Mpp
from slideio_pipe.slides.backends.units import um_per

if TYPE_CHECKING:  # imported where a store is opened: it takes 0.15 s
    import zarr

_RENDER = "render it to one 8-bit RGB plane first"
# Names of a converted slide's images beside the scan.
_ASSOCIATED = ("label", "macro", "thumbnail", "overview")
_METADATA = (".zarray", ".zattrs", ".zmetadata", "zarr.json")
# Colours of the channels of an RGB image, as written by OMERO and bioformats2raw.
_RGB = ["ff0000", "00ff00", "0000ff"]


@dataclass(frozen=True)
class Multiscale:
    """One image of an OME-Zarr: the arrays of its levels, largest first."""

    arrays: tuple[Any, ...]
    axes: str  # one letter per dimension, such as "cyx"
    mpp: Mpp | None  # of level 0
    downsamples: tuple[tuple[float, float] | None, ...]  # (x, y) to level 0 as stated, or None


@dataclass(frozen=True)
class Series:
    """The images of a group written by bioformats2raw."""

    slide: str  # path of the scan in the store
    associated: Mapping[str, str]  # name, such as "label", to path


def attributes_of(group: zarr.Group) -> Mapping[str, Any]:
    """Return a group's OME metadata in any version."""
    attributes = dict(group.attrs)
    ome = attributes.get("ome")
    return {**attributes, **ome} if isinstance(ome, Mapping) else attributes


def find_series(group: zarr.Group, path: Path) -> Series | None:
    """Return the images of a group written by bioformats2raw; None for any other group.

    Raise UnsupportedSlideError if there are several scans: each is a slide to open separately; CorruptSlideError if
    there is no image.
    """
    if "bioformats2raw.layout" not in attributes_of(group):
        return None
    paths = _series_paths(group)
    if not paths:
        reason = "the root of a bioformats2raw store without images (0, 1, …)"
        raise CorruptSlideError(reason, slide=path.name, remedy="copy it again")
    names = _series_names(path / "OME" / "METADATA.ome.xml")
    associated = {}
    scans = []
    for index, series in enumerate(paths):
        words = names[index].lower().split() if index < len(names) else []
        name = next((known for known in _ASSOCIATED if known in words), None)
        if index and name and name not in associated:
            associated[name] = series
        else:
            scans.append(series)
    if len(scans) > 1:
        raise UnsupportedSlideError(
            f"a store of {len(scans)} images",
            slide=path.name,
            remedy=f"each is a slide of its own: pass {' or '.join(f'{path.name}/{scan}' for scan in scans[:5])}",
        )
    scan = group[scans[0]]
    import zarr

    if not isinstance(scan, zarr.Group) or "multiscales" not in attributes_of(scan):
        raise _incomplete(f"image {scans[0]} of the bioformats2raw store has no multiscales metadata", path.name)
    return Series(scans[0], associated)


def read_multiscale(group: zarr.Group, folder: Path, slide: str) -> Multiscale:
    """Return the first image of a group, which is in ``folder``.

    Raise UnsupportedSlideError if there is no image, or it is not one RGB or grey plane: several planes, fluorescence
    channels, labels; CorruptSlideError if a level is missing, or has no chunks.
    """
    attributes = attributes_of(group)
    scales = attributes.get("multiscales")
    if not scales:
        raise _no_image(group, attributes, slide)
    if "image-label" in attributes:
        raise UnsupportedSlideError("an image of labels, not a slide", slide=slide, remedy="pass the image it is of")
    image = scales[0]
    axes = _axes(image, slide)
    datasets = list(image["datasets"])
    arrays = [_array(group, dataset["path"], slide) for dataset in datasets]
    empty = [dataset["path"] for dataset in datasets if not _has_chunks(folder / dataset["path"])]
    if empty:
        raise _incomplete(f"no chunk of level {' and '.join(empty)} is there, only metadata", slide)
    _check_planes(arrays[0], axes, attributes, slide)
    # The specification requires largest first; not all writers comply.
    order = sorted(range(len(arrays)), key=lambda index: -arrays[index].shape[axes.index("x")])
    placed = [_placement([*_transforms(datasets[index]), *_transforms(image)], axes) for index in order]
    kept = [number for number, place in enumerate(placed) if not _is_shifted(place, placed[0])]
    if len(kept) < len(placed):
        left = ", ".join(datasets[order[number]]["path"] for number in range(len(placed)) if number not in kept)
        warn_caller(LeftOutLevelsWarning(f"{slide}: levels {left} are not used: they start elsewhere than level 0"))
    return Multiscale(
        tuple(arrays[order[number]] for number in kept),
        axes,
        _mpp(image, axes, placed[0]),
        tuple(_downsample(placed[number], placed[0]) for number in kept),
    )


def _series_paths(group: zarr.Group) -> list[str]:
    with contextlib.suppress(KeyError):
        listed = attributes_of(group["OME"]).get("series")  # type: ignore[arg-type]
        if listed:
            return [str(path) for path in listed if str(path) in group]
    paths: list[str] = []
    while str(len(paths)) in group:
        paths.append(str(len(paths)))
    return paths


def _series_names(metadata: Path) -> list[str]:
    """Return the names of the images in the OME-XML, in order; [] without one."""
    try:
        root = ET.parse(metadata).getroot()
    except (OSError, ET.ParseError):
        return []
    return [element.get("Name", "") for element in root.iter() if element.tag.rpartition("}")[2] == "Image"]


def _no_image(group: zarr.Group, attributes: Mapping[str, Any], slide: str) -> UnsupportedSlideError:
    if "plate" in attributes or "well" in attributes:
        kind = "plate" if "plate" in attributes else "well"
        field = "A/1/0" if kind == "plate" else "0"
        return UnsupportedSlideError(f"a {kind} of a screen", slide=slide, remedy=f"pass one field: {slide}/{field}")
    inside = [name for name, member in group.groups() if "multiscales" in attributes_of(member)]
    return UnsupportedSlideError(
        "a zarr group without OME-Zarr multiscales",
        slide=slide,
        remedy=f"pass the image in it: {', '.join(f'{slide}/{name}' for name in inside[:5])}"
        if inside
        else "pass the array inside it, or a bag store to open_bag",
    )


def _axes(image: Mapping[str, Any], slide: str) -> str:
    letters = ""
    for axis in image.get("axes", "tczyx"):  # 0.1 and 0.2 have no axes, 0.3 has their names only
        name = str(axis.get("name", "") if isinstance(axis, Mapping) else axis).lower()
        kind = axis.get("type") if isinstance(axis, Mapping) else None
        letters += {"channel": "c", "time": "t"}.get(str(kind), name if len(name) == 1 else "?")
    if letters.count("x") != 1 or letters.count("y") != 1 or letters.count("c") > 1:
        raise UnsupportedSlideError(f"an OME-Zarr with the axes {letters}", slide=slide, remedy=_RENDER)
    return letters


def _array(group: zarr.Group, path: str, slide: str) -> Any:
    try:
        found = group[path]
    except Exception as error:  # a damaged store may raise many classes in zarr
        raise _incomplete(f"level {path} is missing ({type(error).__name__})", slide) from error
    import zarr

    if not isinstance(found, zarr.Array):
        raise _incomplete(f"level {path} is no array", slide)
    return found


def _incomplete(reason: str, slide: str) -> CorruptSlideError:
    return CorruptSlideError(reason, slide=slide, remedy="copy the whole store again")


def _has_chunks(folder: Path) -> bool:
    """Return whether the folder of an array has chunks and not only metadata: missing chunks read as black."""
    return any(entry.name not in _METADATA for entry in folder.iterdir())


def _check_planes(array: Any, axes: str, attributes: Mapping[str, Any], slide: str) -> None:
    if array.ndim != len(axes):
        raise CorruptSlideError(f"axes {axes} of an array of shape {array.shape}", slide=slide, remedy="write it again")
    extra = [axis for axis, side in zip(axes, array.shape, strict=True) if axis not in "yxc" and side > 1]
    if extra:
        raise UnsupportedSlideError(
            f"the OME-Zarr has several planes along {', '.join(extra)}",
            slide=slide,
            remedy="write one plane to its own store first",
        )
    channels = array.shape[axes.index("c")] if "c" in axes else 1
    if channels not in (0, 1, 3):
        reason = f"the OME-Zarr has {channels} channels, not RGB (NGFF has no transparency)"
        raise UnsupportedSlideError(reason, slide=slide, remedy=_RENDER)
    omero = attributes.get("omero")
    described = omero.get("channels") if isinstance(omero, Mapping) else None
    if channels == 3 and isinstance(described, Sequence) and not _is_rgb(described):
        names = ", ".join(f"{c.get('label')} {c.get('color')}" for c in described)
        reason = f"the OME-Zarr has three channels that are not red, green and blue ({names})"
        raise UnsupportedSlideError(reason, slide=slide, remedy=_RENDER)


def _is_rgb(channels: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether rendering metadata state red, green and blue channels, or nothing."""
    colours = [str(channel.get("color", "")).lower().lstrip("#")[:6] for channel in channels]
    return len(colours) != 3 or colours == _RGB or len(set(colours)) < 3


def _transforms(described: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return described.get("coordinateTransformations") or ()


def _placement(
    transforms: Sequence[Mapping[str, Any]], axes: str
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Return scale and translation, (x, y) each, of transformations in their order; None without a scale."""
    scale, shift, stated = [1.0, 1.0], [0.0, 0.0], False
    for transform in transforms:
        kind = transform.get("type")
        values = transform.get(str(kind))
        if kind == "identity":
            continue
        if kind not in ("scale", "translation") or not isinstance(values, Sequence) or len(values) != len(axes):
            return None  # a path to a file, or a kind of a later version
        for index, axis in enumerate("xy"):
            value = float(values[axes.index(axis)])
            if kind == "scale":
                scale[index], shift[index] = scale[index] * value, shift[index] * value
            else:
                shift[index] += value
        stated = stated or kind == "scale"
    usable = stated and all(math.isfinite(side) and side > 0 for side in scale)
    return ((scale[0], scale[1]), (shift[0], shift[1])) if usable else None


def _mpp(image: Mapping[str, Any], axes: str, placed: Any) -> Mpp | None:
    if placed is None:
        return None
    sides = []
    for axis, side in zip("xy", placed[0], strict=True):
        described = image["axes"][axes.index(axis)] if "axes" in image else None
        unit = um_per(described.get("unit")) if isinstance(described, Mapping) else None
        if unit is None:
            return None
        sides.append(side * unit)
    return Mpp(*sides)


def _is_shifted(placed: Any, base: Any) -> bool:
    """Return whether a level starts more than one of its own pixels from level 0's start.

    Less is a convention: the centre of a level's first pixel is 0.5, 1.5 or 3.5 px from that of level 0.
    """
    if placed is None or base is None:
        return False
    (scale, shift), (_, first) = placed, base
    return any(abs(s - f) > side for s, f, side in zip(shift, first, scale, strict=True))


def _downsample(placed: Any, base: Any) -> tuple[float, float] | None:
    if placed is None or base is None:
        return None
    x, y = (side / first for side, first in zip(placed[0], base[0], strict=True))
    return x, y
