"""OME-XML metadata of an OME-TIFF with one 8-bit RGB image and its µm per pixel."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from slideio_pipe.geometry import Mpp, Size

SUFFIXES = (".ome.tif", ".ome.tiff")
# Schema of June 2016, the last one: https://docs.openmicroscopy.org/ome-model/
NAMESPACE = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
_SCHEMA = f"{NAMESPACE} {NAMESPACE}/ome.xsd"
_INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"


def rgb_image(size: Size, mpp: Mpp | None, *, name: str, creator: str) -> str:
    """Return the OME-XML of an image whose three bands are one channel, in the first directory of its file.

    Lower levels are SubIFDs of that directory and not described in OME-XML. The encoding is UTF-8: Bio-Formats does
    not read character references such as ``&#181;`` for "µ".

    Examples
    --------
    >>> text = rgb_image(Size(800, 600), Mpp(0.5, 0.25), name="a.svs", creator="me")
    >>> root = ET.fromstring(text.encode())
    >>> pixels = root.find(f"{{{NAMESPACE}}}Image/{{{NAMESPACE}}}Pixels")
    >>> pixels.get("SizeX"), pixels.get("PhysicalSizeY"), pixels.get("PhysicalSizeYUnit")
    ('800', '0.25', 'µm')
    """
    root = ET.Element("OME", {"xmlns": NAMESPACE, "xmlns:xsi": _INSTANCE, "xsi:schemaLocation": _SCHEMA})
    root.set("Creator", creator)
    image = ET.SubElement(root, "Image", {"ID": "Image:0", "Name": _printable(name)})
    about = {"ID": "Pixels:0", "DimensionOrder": "XYCZT", "Type": "uint8", "SignificantBits": "8"}
    about |= {"Interleaved": "true", "BigEndian": "false"}
    about |= {"SizeX": str(size.width), "SizeY": str(size.height), "SizeC": "3", "SizeZ": "1", "SizeT": "1"}
    if mpp is not None:
        about |= {"PhysicalSizeX": f"{mpp.x:.10g}", "PhysicalSizeXUnit": "µm"}
        about |= {"PhysicalSizeY": f"{mpp.y:.10g}", "PhysicalSizeYUnit": "µm"}
    pixels = ET.SubElement(image, "Pixels", about)
    ET.SubElement(pixels, "Channel", {"ID": "Channel:0:0", "SamplesPerPixel": "3"})
    ET.SubElement(pixels, "TiffData", {"IFD": "0", "PlaneCount": "1"})
    return f'<?xml version="1.0" encoding="UTF-8"?>{ET.tostring(root, encoding="unicode")}'


def _printable(name: str) -> str:
    """Return a name without characters that XML does not allow, such as surrogates from other file-name encodings."""
    return "".join(letter if letter.isprintable() else "_" for letter in name)
