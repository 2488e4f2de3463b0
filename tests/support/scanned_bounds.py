"""A Leica SCN whose scan is a part of its slide: OpenSlide states it as ``openslide.bounds-*``."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile

_NM_PER_PX = 500
_IMAGE = """<image name="{name}"><creationDate>2020-01-01T00:00:00Z</creationDate>
<device model="Leica SCN400" version="1.4"/><pixels sizeX="{width}" sizeY="{height}">{levels}</pixels>
<view sizeX="{across}" sizeY="{down}" offsetX="{left}" offsetY="{top}" spacingZ="0"/><scanSettings>
<objectiveSettings><objective>{power}</objective></objectiveSettings><illuminationSettings>
<numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource>
</illuminationSettings></scanSettings></image>"""
_FILE = """<?xml version="1.0" encoding="utf-8"?>
<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">
<collection name="c" sizeX="{across}" sizeY="{down}"><barcode>MA==</barcode>{images}</collection></scn>"""


class Scan(NamedTuple):
    """Position of the scanned part on level 0, px, and its content."""

    x: int
    y: int
    pixels: np.ndarray  # (height, width, 3)


def write_scn(path: Path, scan: Scan, slide_size: tuple[int, int]) -> Path:
    """Write a slide of ``slide_size`` px of 0.5 µm with one scan, at levels of 1 and 2, and a macro image."""
    height, width = scan.pixels.shape[:2]
    across, down = (side * _NM_PER_PX for side in slide_size)
    macro = np.full((slide_size[1] // 20, slide_size[0] // 20, 3), 200, np.uint8)
    pages = [macro, scan.pixels, np.ascontiguousarray(scan.pixels[::2, ::2])]

    def levels(first: int, images: list[np.ndarray]) -> str:
        return "".join(
            f'<dimension sizeX="{image.shape[1]}" sizeY="{image.shape[0]}" r="{k}" ifd="{first + k}"/>'
            for k, image in enumerate(images)
        )

    whole = {"name": "macro", "width": macro.shape[1], "height": macro.shape[0], "levels": levels(0, pages[:1])}
    whole |= {"across": across, "down": down, "left": 0, "top": 0, "power": 0.6}
    part = {"name": "scan", "width": width, "height": height, "levels": levels(1, pages[1:]), "power": 20}
    part |= {"across": width * _NM_PER_PX, "down": height * _NM_PER_PX}
    part |= {"left": scan.x * _NM_PER_PX, "top": scan.y * _NM_PER_PX}
    images = _IMAGE.format(**whole) + _IMAGE.format(**part)
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        for number, page in enumerate(pages):
            tif.write(
                page,
                tile=(256, 256),
                compression="jpeg",
                photometric="rgb",
                description=_FILE.format(across=across, down=down, images=images) if number == 0 else None,
                metadata=None,
                resolution=(20_000 >> max(0, number - 1), 20_000 >> max(0, number - 1)),
                resolutionunit="CENTIMETER",
                subfiletype=int(number == 2),
            )
    return path
