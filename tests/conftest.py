"""Fixtures that several test modules share: real slides when they are there, and slides that encode coordinates."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import tifffile
from unequal_slide import unequal as unequal  # a fixture

# Tests press Ctrl-C; what a shell starts in its background would ignore it, and so would whatever that starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

collect_ignore_glob = ["mut*.py"]  # mutants.py needs cosmic-ray, in an environment of its own

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real slides; tests that need it are skipped where it is missing."""
    if not SHARED.is_dir():
        pytest.skip("the folder of real slides is not beside this checkout")
    return SHARED


def coordinate_pixels(width: int, height: int) -> np.ndarray:
    """(H, W, 3) uint8 whose pixels encode their own place: x, y modulo 256, and both in units of 256."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x % 256, y % 256, (x // 256) * 16 + y // 256], axis=-1).astype(np.uint8)


def write_pyramid(
    path: Path,
    pixels: np.ndarray,
    levels: tuple[int, ...] = (1, 4, 16),
    *,
    mpp: float | None = 0.25,
    tile: int = 256,
    description: str | None = None,
    **options: object,
) -> Path:
    """Write a tiled pyramid TIFF whose lower levels are every n-th pixel; lossless unless told otherwise."""
    resolution = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as tif:
        for index, factor in enumerate(levels):
            height, width = (side // factor for side in pixels.shape[:2])
            level = np.ascontiguousarray(pixels[::factor, ::factor][:height, :width])
            tif.write(
                level,
                tile=(tile, tile),
                photometric="rgb",
                metadata=None,
                subfiletype=1 if index else 0,
                description=description if index == 0 else None,
                **{"compression": "deflate", **resolution, **options},
            )
    return path


@pytest.fixture
def coordinate_slide(tmp_path: Path) -> Path:
    """A 1000×700 pyramid (levels 1, 4, 16; mpp 0.25) whose pixels encode their own coordinates."""
    return write_pyramid(tmp_path / "coordinates.tif", coordinate_pixels(1000, 700))
