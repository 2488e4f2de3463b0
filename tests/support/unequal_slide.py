"""A slide with all sides unequal: pixels, stored tiles, the slide, and the downsamples of its levels."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import tifffile
import zarr

SIZE = (1003, 611)
MPP = (0.25, 0.4)  # µm per level-0 px, x and y
TILE = (112, 64)  # width and height of a stored tile
TISSUE = (130, 90, 620, 330)  # left, top, width, height, level-0 px


class Unequal(NamedTuple):
    """A slide on the disk, and its content."""

    path: Path
    levels: tuple[np.ndarray, ...]  # (h, w, 3) uint8, as they were given to the writer
    lossless: bool

    @property
    def downsamples(self) -> list[tuple[float, float]]:
        """Level-0 px per level px, x and y."""
        return [(SIZE[0] / level.shape[1], SIZE[1] / level.shape[0]) for level in self.levels]


@cache
def pixels() -> np.ndarray:
    """Return level 0: textured tissue on glass."""
    noise = cv2.GaussianBlur(np.random.default_rng(3).normal(0, 1, (SIZE[1], SIZE[0], 3)), (0, 0), 2.5)
    image = np.full((SIZE[1], SIZE[0], 3), 250.0)
    left, top, width, height = TISSUE
    rows, columns = slice(top, top + height), slice(left, left + width)
    image[rows, columns] = np.array([170, 80, 150]) + 240 * noise[rows, columns]
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def write_unequal(path: Path, kind: str) -> Unequal:
    """Write it as a TIFF of this compression, of levels 2.002 × 2.0032… times smaller, or as OME-Zarr of 2 × 3."""
    base = pixels()
    if kind == "ome-zarr":
        return _write_zarr(path.with_suffix(".zarr"), base)
    levels = (base, cv2.resize(base, (501, 305), interpolation=cv2.INTER_AREA))
    options: dict[str, Any] = {"compression": kind}
    if kind == "jpeg":
        options |= {"compressionargs": {"level": 97}, "subsampling": (1, 1)}
    with tifffile.TiffWriter(path.with_suffix(".tif")) as tif:
        for number, level in enumerate(levels):
            resolution = tuple(1e4 / mpp * level.shape[1 - k] / SIZE[k] for k, mpp in enumerate(MPP))
            tif.write(
                level,
                tile=TILE[::-1],
                photometric="rgb",
                metadata=None,
                subfiletype=int(number > 0),
                resolution=resolution,
                resolutionunit="CENTIMETER",
                **options,
            )
    return Unequal(path.with_suffix(".tif"), levels, kind != "jpeg")


def _write_zarr(path: Path, base: np.ndarray) -> Unequal:
    levels = (base, cv2.resize(base, (501, 203), interpolation=cv2.INTER_AREA))
    root = zarr.open_group(str(path), mode="w", zarr_format=2)
    datasets = []
    for number, level in enumerate(levels):
        array = root.create_array(
            str(number), shape=(3, *level.shape[:2]), chunks=(3, TILE[1], TILE[0]), dtype=np.uint8
        )
        array[:] = level.transpose(2, 0, 1)
        x, y = (mpp * SIZE[k] / level.shape[1 - k] for k, mpp in enumerate(MPP))
        datasets.append({"path": str(number), "coordinateTransformations": [{"type": "scale", "scale": [1.0, y, x]}]})
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": name, "type": "space", "unit": "micrometer"} for name in ("y", "x")]
    root.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    return Unequal(path, levels, True)
