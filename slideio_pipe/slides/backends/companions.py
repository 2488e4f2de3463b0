"""Check slides that consist of several files: if companions are missing, raise an error with their names.

A ``.mrxs`` is a JPEG preview and a ``.vsi`` a TIFF preview; the slide's pixels are in folders beside them.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path

import tifffile

from slideio_pipe.errors import CorruptSlideError, UnsupportedSlideError

_CONVERT = "convert it once, for example with QuPath or Bio-Formats, to a tiled JPEG-compressed RGB TIFF"
# Never a flat picture, and never a plain TIFF: a file that reads as one is a preview.
_NO_PICTURES = (
    *(".svs", ".ndpi", ".scn", ".bif", ".mrxs", ".vms", ".vmu", ".svslide", ".dcm", ".vsi", ".qptiff"),
    *(".czi", ".zvi", ".lif", ".lof", ".oir", ".ets", ".isyntax", ".i2syntax", ".sdpc", ".kfb", ".tmap", ".mds"),
)
_NO_TIFFS = tuple(ending for ending in _NO_PICTURES if ending not in (".svs", ".ndpi", ".scn", ".qptiff"))
# Indexes of several slides, each a file of its own.
_INDEXES = {".ndpis": (".ndpi", "channel"), ".afi": (".svs", "channel")}
_NAMED_IN_VMS = re.compile(r"^\s*((?:ImageFile|MapFile)[^=]*)=\s*(\S.*?)\s*$", re.MULTILINE | re.IGNORECASE)
_ANY_IN_VMS = re.compile(r"^\s*([^=\[]*(?:File|Image)[^=]*)=\s*(\S.*?)\s*$", re.MULTILINE | re.IGNORECASE)
_SHOWN = 3


def check_companions(path: Path) -> None:
    """Raise if files are missing without which a slide is only its preview or its index.

    Raise CorruptSlideError, which names them, if files or folders beside it are missing; UnsupportedSlideError if they
    exist, in a format that is not supported.
    """
    ending = path.suffix.lower()
    if ending == ".mrxs":
        _check_mirax(path)
    elif ending == ".vsi":
        _refuse_vsi(path)
    elif ending in (".vms", ".vmu"):
        _raise_missing(path, [path.parent / name for name in named_in_index(path)])
    elif ending in _INDEXES:
        of, what = _INDEXES[ending]
        raise UnsupportedSlideError(f"a list of {of} files", slide=path.name, remedy=f"pass one of them: one {what}")


def check_picture(path: Path, what: str) -> None:
    """Raise if a file has the name of a slide but contains a flat picture or a plain TIFF."""
    ending = path.suffix.lower()
    if ending in (_NO_TIFFS if what == "TIFF" else _NO_PICTURES):
        raise UnsupportedSlideError(
            f"no {ending} slide, only a {what} picture of that name, such as a preview",
            slide=path.name,
            remedy="copy the slide with all its files; a picture needs its own ending",
        )


def check_ome(path: Path) -> None:
    """Raise if the metadata of an OME-TIFF are in a missing file, or if it is one plane of several."""
    with tifffile.TiffFile(path) as tif:
        text = tif.ome_metadata or ""
    found = re.search(r"<(?:\w+:)?BinaryOnly\b[^>]*?MetadataFile\s*=\s*[\"']([^\"']*)", text)
    if found is None:
        return
    companion = path.parent / Path(found[1].replace("\\", "/")).name
    _raise_missing(path, [companion])
    planes = _planes_in(companion, path.name)
    if planes > 1:
        raise UnsupportedSlideError(
            f"one of {planes} planes, which {companion.name} lists",
            slide=path.name,
            remedy="channels, z-stacks and time series must be rendered to one RGB plane first",
        )


def named_in_index(path: Path, *, pixels_only: bool = True) -> Iterator[str]:
    """Yield the files listed in a Hamamatsu VMS or VMU: those that the slide needs, or all."""
    try:
        text = path.read_text("latin-1")
    except OSError:
        return
    for _, name in (_NAMED_IN_VMS if pixels_only else _ANY_IN_VMS).findall(text):
        yield name.replace("\\", "/").rsplit("/", 1)[-1]


def _check_mirax(path: Path) -> None:
    folder = path.with_suffix("")
    if (folder / "Slidedat.ini").is_file():
        return
    missing = f"{folder.name}/Slidedat.ini" if folder.is_dir() else f"folder {folder.name}"
    remedy = f"copy it beside the .mrxs, to {folder}"
    if path.is_symlink():
        target = path.resolve()
        remedy = f"it is a link: pass {target}" if (target.with_suffix("") / "Slidedat.ini").is_file() else remedy
    raise CorruptSlideError(f"its {missing} is missing; the .mrxs alone is a preview", slide=path.name, remedy=remedy)


def _refuse_vsi(path: Path) -> None:
    folder = path.parent / f"_{path.stem}_"
    if not any(folder.glob("**/*.ets")):
        raise CorruptSlideError(
            f"its folder {folder.name} with .ets files is missing; the .vsi alone is a preview",
            slide=path.name,
            remedy="copy it beside the .vsi, then convert the slide with QuPath or Bio-Formats: .ets is not read",
        )
    raise UnsupportedSlideError(
        f"its pixels are in {folder.name}/**/*.ets, which is not read; the .vsi is a preview",
        slide=path.name,
        remedy=_CONVERT,
    )


def _raise_missing(path: Path, companions: Sequence[Path]) -> None:
    missing = [companion.name for companion in companions if not companion.is_file()]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise CorruptSlideError(
            f"files of the slide are missing: {', '.join(missing[:_SHOWN])}{more}",
            slide=path.name,
            remedy=f"copy them to {path.parent}",
        )


def _planes_in(companion: Path, name: str) -> int:
    """Return the number of planes of the image that a file belongs to; 1 if the metadata do not state it."""
    try:
        root = ET.parse(companion).getroot()
    except (OSError, ET.ParseError):
        return 1
    for pixels in (element for element in root.iter() if _has_tag(element, "Pixels")):
        files = {one.get("FileName") for one in pixels.iter() if _has_tag(one, "UUID")}
        if name in files:
            channels = [one for one in pixels.iter() if _has_tag(one, "Channel")]
            sides = [int(pixels.get(side, 1)) for side in ("SizeZ", "SizeT")]
            return sides[0] * sides[1] * max(1, len(channels))
    return 1


def _has_tag(element: ET.Element, tag: str) -> bool:
    return element.tag.rpartition("}")[2] == tag
