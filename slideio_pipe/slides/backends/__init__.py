"""Readers of slide formats: each implements ``base.Backend``; ``open_backend`` chooses one for a file.

In: a path. Out: ``Facts`` from the header (levels, resolution, vendor), and pixels of a level.
Open first: ``base.py``, then ``tiff.py``.
"""

from __future__ import annotations

import stat
from pathlib import Path

from slideio_pipe.errors import ConfigError, CorruptSlideError, SlideNotFoundError, UnsupportedSlideError
from slideio_pipe.files import not_there
from slideio_pipe.slides.backends.array import FlatBackend, ZarrBackend, is_zarr
from slideio_pipe.slides.backends.base import Backend
from slideio_pipe.slides.backends.companions import check_companions, check_ome, check_picture
from slideio_pipe.slides.backends.dicom_header import base_first, is_dicom, read_instance
from slideio_pipe.slides.backends.openslide import OpenSlideBackend, detect
from slideio_pipe.slides.backends.tiff import TiffBackend
from slideio_pipe.slides.backends.tiff_header import APERIO_JPEG2000_YCBCR, is_tiff, read_header

BACKENDS = ("auto", "tiff", "openslide", "array")
# TIFFs with a meaning outside the TIFF standard are left to OpenSlide. Those in this set are plain pyramids.
_PLAIN_TIFFS = frozenset({None, "aperio", "generic-tiff"})
_AUTO = 'pass {backend="auto"}'


def open_backend(path: Path, backend: str = "auto") -> Backend:
    """Open a slide with the named backend, or with the one that reads it exactly and fastest.

    Raises
    ------
    ConfigError
        The backend is unknown.
    SlideNotFoundError, UnsupportedSlideError, CorruptSlideError
        See ``errors``.
    """
    if backend not in BACKENDS:
        raise ConfigError(f'no backend "{backend}"', slide=path.name, remedy=f"choose one of {', '.join(BACKENDS)}")
    try:
        _check_readable(path)
        if path.is_dir():
            return _open_directory(path, backend)
        check_companions(path)
        if backend == "auto":
            return _choose(path)
        if backend == "tiff":
            return TiffBackend(path)
        if backend == "openslide":
            _check_fourth_sample(path)
            return OpenSlideBackend(path)
        if is_tiff(path):
            raise UnsupportedSlideError("a TIFF, not an array or a flat image", slide=path.name, remedy=_AUTO)
        return _flat(path)
    except PermissionError as error:
        raise CorruptSlideError("no permission to read it", slide=str(path), remedy="check its mode") from error


def _check_readable(path: Path) -> None:
    try:
        mode = path.stat().st_mode
        str(path).encode()
    except UnicodeEncodeError as error:
        raise SlideNotFoundError(
            "the path is not valid UTF-8", slide=ascii(str(path)), remedy="rename the file"
        ) from error
    except PermissionError:
        raise
    except (OSError, ValueError) as error:  # also a name too long, or with a null character
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"no such file ({error})"
        raise not_there(SlideNotFoundError, reason, path) from error
    if stat.S_ISDIR(mode):
        return
    if not stat.S_ISREG(mode):  # a pipe would block, a device would never end
        raise UnsupportedSlideError("not a regular file", slide=str(path), remedy="pass a file on disk")
    if path.stat().st_size == 0:
        raise CorruptSlideError("the file is empty", slide=path.name, remedy="copy or download the slide again")


def _check_fourth_sample(path: Path) -> None:
    """Raise UnsupportedSlideError for a plain TIFF whose fourth sample is not alpha: OpenSlide treats it as alpha."""
    if not is_tiff(path) or detect(path) not in _PLAIN_TIFFS:
        return
    try:
        page = read_header(path).levels[0]
    except (CorruptSlideError, UnsupportedSlideError):  # OpenSlide may read it
        return
    if int(page.page.samplesperpixel) == 4 and not page.samples.alpha:
        reason = "its fourth sample is unspecified, so no alpha, and OpenSlide takes it for one"
        raise UnsupportedSlideError(reason, slide=path.name, remedy='pass {backend="tiff"}')


def _open_directory(path: Path, backend: str) -> Backend:
    if not is_zarr(path):
        raise SlideNotFoundError("a directory, not a slide", slide=str(path), remedy=_files_in(path))
    if backend not in ("auto", "array"):
        raise ConfigError(f'backend "{backend}" reads no zarr', slide=path.name, remedy='pass {backend="array"}')
    return ZarrBackend(path)


def _files_in(folder: Path) -> str:
    """Return a hint: the files in a folder that can be passed instead."""
    files = sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    dicom = [found for path in files if (found := read_instance(path)) is not None]
    series = {found.series: found for found in sorted(dicom, key=base_first, reverse=True)}
    if len(series) == 1:
        return f"pass {next(iter(series.values())).path}; its other files are found beside it"
    mirax = folder.with_name(f"{folder.name}.mrxs")
    if mirax.is_file():
        return f"pass {mirax}"
    return "pass one slide file in it; the folder is a cohort, as export and Cohort.of take it"


def _choose(path: Path) -> Backend:
    vendor = detect(path)
    if vendor is None and is_dicom(path):
        raise UnsupportedSlideError(
            "DICOM, but no whole-slide image",
            slide=path.name,
            remedy="pass a file of a slide (VL Whole Slide Microscopy); is it a radiological image?",
        )
    if not is_tiff(path):
        return _flat(path) if vendor is None else OpenSlideBackend(path)
    if vendor not in _PLAIN_TIFFS:
        return OpenSlideBackend(path)
    check_picture(path, "TIFF")
    header = read_header(path)
    if header.vendor == "ome":
        check_ome(path)
    only_openslide = any(level.compression == APERIO_JPEG2000_YCBCR for level in header.levels)
    return OpenSlideBackend(path) if vendor is not None and only_openslide else TiffBackend(path, header)


def _flat(path: Path) -> Backend:
    opened = FlatBackend(path)
    check_picture(path, opened.facts.vendor.upper())
    return opened
