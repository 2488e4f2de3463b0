"""Read the resolution stated in a TIFF slide: Aperio's description, OME-XML, resolution tags."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import Any

import tifffile

from slideio_pipe.geometry import Mpp
from slideio_pipe.slides.backends.tiff_tags import number, ratio, whole
from slideio_pipe.slides.backends.units import um_per

_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_INCH, _CENTIMETRE = 2, 3
_TWICE_ENCODED = "Â"  # before µ, if UTF-8 was decoded as Latin-1 and encoded again


def properties(page: Any, vendor: str) -> dict[str, str]:
    """Return the key-value pairs of Aperio's description, or another vendor's description."""
    if vendor != "aperio":
        return {"description": page.description[:2000]} if page.description else {}
    pairs = (part.partition("=") for part in page.description.split("|")[1:])
    return {f"aperio.{key.strip()}": value.strip() for key, _, value in pairs}


def stated_mpp(tif: tifffile.TiffFile, base: Any, vendor: str, stated: Mapping[str, str]) -> Mpp | None:
    """Return the resolution of level 0 as stated in the file, plausible or not."""
    if vendor == "ome":
        return _ome_mpp(tif, base)
    if vendor == "aperio":
        value = number(stated.get("aperio.MPP"))
        return None if value is None else Mpp(value, value)
    return tag_mpp(base)


def objective_power(tif: tifffile.TiffFile, vendor: str, stated: Mapping[str, str]) -> float | None:
    """Return the objective's magnification as stated in the file, 20.0 for 20×."""
    if vendor == "ome":
        return number(_ome_element(tif, "Objective").get("NominalMagnification"))
    return number(stated.get("aperio.AppMag"))


def tag_mpp(page: Any) -> Mpp | None:
    """Return the resolution from the tags XResolution, YResolution and ResolutionUnit, stored as any type."""
    um_per_unit = {_INCH: 25_400.0, _CENTIMETRE: 10_000.0}.get(whole(page, _RESOLUTION_UNIT, _INCH))
    x, y = ratio(page, _X_RESOLUTION), ratio(page, _Y_RESOLUTION)
    return None if um_per_unit is None or x is None or y is None else Mpp(um_per_unit / x, um_per_unit / y)


def _ome_mpp(tif: tifffile.TiffFile, base: Any) -> Mpp | None:
    pixels = _ome_element(tif, "Pixels")
    sides = []
    for axis in "XY":
        value = number(pixels.get(f"PhysicalSize{axis}"))
        unit = um_per(pixels.get(f"PhysicalSize{axis}Unit", "µm").replace(_TWICE_ENCODED, ""))
        sides.append(None if value is None or unit is None else value * unit)
    return tag_mpp(base) if sides[0] is None or sides[1] is None else Mpp(sides[0], sides[1])


def _ome_element(tif: tifffile.TiffFile, tag: str) -> dict[str, str]:
    """Return the attributes of the largest element of that name, or {}."""
    text = tif.ome_metadata or ""
    try:
        root = ET.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text or "<OME/>"))
        found = [dict(e.attrib) for e in root.iter() if e.tag.rpartition("}")[2] == tag]
    except ET.ParseError:  # some character is invalid in XML: the attributes can still be read
        starts = re.findall(rf"<(?:\w+:)?{tag}\b([^>]*)>", text)
        found = [dict(re.findall(r"([\w:]+)\s*=\s*[\"']([^\"']*)[\"']", start)) for start in starts]
    return max(found, key=lambda e: (number(e.get("SizeX")) or 0) * (number(e.get("SizeY")) or 0), default={})
