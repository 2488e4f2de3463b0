"""Who can open what. ``open_backend`` chooses; every backend answers the same questions (``base.Backend``)."""

from __future__ import annotations

from pathlib import Path

from slideio_pipe.backends.array import FlatBackend, ZarrBackend, is_zarr
from slideio_pipe.backends.base import Backend
from slideio_pipe.backends.openslide import OpenSlideBackend, detect
from slideio_pipe.backends.tiff import TiffBackend
from slideio_pipe.backends.tiff_header import APERIO_JPEG2000_YCBCR, is_tiff, read_header
from slideio_pipe.errors import ConfigError, CorruptSlideError, SlideNotFoundError, UnsupportedSlideError

BACKENDS = ("auto", "tiff", "openslide", "array")
# TIFFs whose meaning lies outside the TIFF standard: left to OpenSlide. The others it names are plain pyramids.
_PLAIN_TIFFS = frozenset({None, "aperio", "generic-tiff"})


def open_backend(path: Path, backend: str = "auto") -> Backend:
    """Open a slide with the named backend, or the one that reads it exactly and fastest.

    Raises
    ------
    ConfigError
        An unknown backend name.
    SlideNotFoundError, UnsupportedSlideError, CorruptSlideError
        See ``errors``.
    """
    if backend not in BACKENDS:
        raise ConfigError(f'no backend "{backend}"', slide=path.name, remedy=f"choose one of {', '.join(BACKENDS)}")
    if not path.exists():
        raise SlideNotFoundError("no such file", slide=str(path), remedy="check the path")
    if path.is_dir() and not is_zarr(path):
        raise SlideNotFoundError(
            "a directory, not a slide",
            slide=str(path),
            remedy="pass one slide file in it (for DICOM and MIRAX any .dcm, or the .mrxs beside the folder)",
        )
    try:
        if backend == "auto":
            return _choose(path)
        if backend == "tiff":
            return TiffBackend(path)
        if backend == "openslide":
            return OpenSlideBackend(path)
        return ZarrBackend(path) if path.is_dir() else FlatBackend(path)
    except PermissionError as error:
        raise CorruptSlideError("no permission to read it", slide=str(path), remedy="check its mode") from error


def _choose(path: Path) -> Backend:
    if path.is_dir():
        return ZarrBackend(path)
    if path.stat().st_size == 0:
        raise CorruptSlideError("the file is empty", slide=path.name, remedy="copy or download the slide again")
    vendor = detect(path)
    if not is_tiff(path):
        return FlatBackend(path) if vendor is None else OpenSlideBackend(path)
    if vendor not in _PLAIN_TIFFS:
        return OpenSlideBackend(path)
    header = read_header(path)
    compression = header.undecodable()
    if compression is None:
        return TiffBackend(path, header)
    if vendor is not None and compression == APERIO_JPEG2000_YCBCR:
        return OpenSlideBackend(path)
    raise UnsupportedSlideError(
        f"TIFF compression {compression} is not supported",
        slide=path.name,
        remedy="convert it once, for example with Bio-Formats or the scanner's software, to JPEG-compressed TIFF",
    )
