"""A lazy image as a tiled pyramid TIFF on disk, in bounded memory, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyvips

from slideio_pipe.errors import CorruptSlideError, OutputError, OutputExistsError
from slideio_pipe.geometry import Mpp
from slideio_pipe.progress import Report, reporting

_TILE = 256
# TIFF's classic offsets end at 4 GiB; JPEG of tissue is about a tenth of the raw bytes, noise is not.
_BIGTIFF_FROM_PX = 1_000_000_000


def save_pyramid(
    image: Any,
    path: Path,
    *,
    mpp: Mpp | None,
    quality: int,
    overwrite: bool,
    progress: Report | bool | None,
    name: str,
) -> None:
    """Write ``image`` as JPEG tiles of 256 px with levels halved down to one tile.

    Written to a ``.partial`` sibling and renamed. Memory is libvips' strips of each level, whatever the image's height.

    Raises
    ------
    OutputExistsError
        ``path`` is there and ``overwrite`` is False.
    OutputError
        It cannot be written: folder, permission, space.
    CorruptSlideError
        The slide's pixels cannot be decoded.
    """
    if path.exists() and not overwrite:
        raise OutputExistsError("is there already", slide=str(path), remedy="pass overwrite=True")
    if not path.parent.is_dir():
        raise OutputError("its folder does not exist", slide=str(path), remedy="make the folder first")
    partial = path.with_name(path.name + ".partial")
    try:
        with reporting(progress, f"saving {path.name}") as report:
            _write(_watched(image, report), partial, mpp, quality)
        os.replace(partial, path)
    except pyvips.Error as error:
        reason = " ".join(str(error).split())
        if "decompress" in reason or "read" in reason:
            raise CorruptSlideError(f"pixels cannot be decoded ({reason})", slide=name) from error
        raise OutputError(f"cannot be written ({reason})", slide=str(path), remedy="check space and mode") from error
    except OSError as error:
        raise OutputError(f"cannot be written ({error.strerror})", slide=str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def _write(image: Any, partial: Path, mpp: Mpp | None, quality: int) -> None:
    resolution = {} if mpp is None else {"xres": 1000 / mpp.x, "yres": 1000 / mpp.y}  # pixels per millimetre
    image.tiffsave(
        str(partial),
        compression="jpeg",
        Q=quality,
        tile=True,
        tile_width=_TILE,
        tile_height=_TILE,
        pyramid=True,
        bigtiff=image.width * image.height > _BIGTIFF_FROM_PX,
        region_shrink="mean",
        keep="none",  # the scanner's description would state the scanner's resolution
        **resolution,
    )


def _watched(image: Any, report: Report) -> Any:
    """Return the image with ``report`` called as libvips gets through it."""
    watched = image.copy()
    watched.set_progress(True)
    watched.signal_connect("eval", lambda _, progress: report(int(progress.percent), 100))
    return watched
