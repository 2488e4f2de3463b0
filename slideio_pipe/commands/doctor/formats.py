"""Formats of slides: a file of each kind is written, opened and read; a version number alone proves nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slideio_pipe.commands.doctor.findings import Finding, error_text


def examine_formats() -> list[Finding]:
    """Return a finding for each kind of file."""
    proofs: tuple[tuple[str, str, Callable[[Path], str]], ...] = (
        ("Aperio SVS, generic and OME pyramids", "libvips", _prove_tiff),
        ("JPEG 2000 and other codecs in TIFF", "imagecodecs", _prove_jpeg2000),
        ("NDPI, MIRAX, SCN, BIF, VMS, DICOM", "OpenSlide", _prove_openslide),
        ("OME-Zarr and zarr", "zarr", _prove_zarr),
        ("PNG, JPEG, WebP", "libvips", _prove_png),
    )
    findings = []
    with tempfile.TemporaryDirectory() as folder:
        for formats, reader, prove in proofs:
            try:
                findings.append(Finding("formats", formats, f"{reader}: {prove(Path(folder))}"))
            except Exception as error:  # a broken installation may raise anything
                remedy = "reinstall it, and what it depends on"
                findings.append(Finding("formats", formats, f"{reader} fails: {error_text(error)}", "problem", remedy))
    return findings


def gradient() -> Any:
    """Return a picture whose pixels encode their places, (320, 320, 3) uint8."""
    import numpy as np

    y, x = np.mgrid[:320, :320]
    return np.stack([x % 256, y % 256, (x + y) % 256], axis=-1).astype(np.uint8)


def _check_reads(path: Path, backend: str = "auto") -> str:
    """Open ``path``, read a tile across stored tiles, and compare it with the written gradient."""
    import numpy as np

    from slideio_pipe.slides.slide import open_slide
    from slideio_pipe.tiles.reader import TileReader

    with open_slide(path, backend=backend) as slide:
        tile = TileReader(slide.view(), 64).read([[200, 220]])[0]
    if not np.array_equal(tile, gradient()[220:284, 200:264]):
        raise ValueError("reads other pixels than were written")
    return "reads what was written"


def _write_tiff(path: Path, compression: str) -> Path:
    import tifffile

    tifffile.imwrite(path, gradient(), tile=(256, 256), photometric="rgb", compression=compression)
    return path


def _prove_tiff(folder: Path) -> str:
    return _check_reads(_write_tiff(folder / "lzw.tif", "lzw"), "tiff")


def _prove_jpeg2000(folder: Path) -> str:
    return _check_reads(_write_tiff(folder / "j2k.tif", "jpeg2000"), "tiff")


def _prove_openslide(folder: Path) -> str:
    return _check_reads(_write_tiff(folder / "deflate.tif", "deflate"), "openslide")


def _prove_zarr(folder: Path) -> str:
    import zarr

    path = folder / "array.zarr"
    zarr.save_array(str(path), gradient(), zarr_format=3)
    return _check_reads(path)


def _prove_png(folder: Path) -> str:
    from PIL import Image

    path = folder / "flat.png"
    Image.fromarray(gradient()).save(path)
    return _check_reads(path)
