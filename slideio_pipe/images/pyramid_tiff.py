"""Write a lazy image as a tiled pyramid TIFF or OME-TIFF, in bounded memory, complete or not at all."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pyvips

from slideio_pipe.errors import CorruptSlideError, OutputError, OutputExistsError
from slideio_pipe.files import replacing
from slideio_pipe.geometry import Mpp, Size
from slideio_pipe.images import ome_xml
from slideio_pipe.progress import Report, reporting
from slideio_pipe.version import __version__

_TILE = 256
# A classic TIFF is limited to 4 GiB; JPEG of tissue takes about a tenth of the raw bytes, JPEG of noise far more.
_BIGTIFF_FROM_PX = 1_000_000_000
# Image software writes 72 dpi when the resolution is unknown.
_MPP_OF_72_DPI = 25_400 / 72
# Messages of libvips 8.18 about the output; all its other messages are about the pixels.
_OUTPUT_FAULTS = ("unable to open for write", "write error", "write failed", "TIFF write")


def save_pyramid(
    image: Any,
    path: Path,
    *,
    mpp: Mpp | None,
    quality: int,
    overwrite: bool,
    progress: Report | bool | None,
    name: str,
    check: Callable[[], None],
) -> None:
    """Write ``image`` as JPEG tiles of 256 px with levels halved down to one tile.

    With the ending ``.ome.tif`` the file is an OME-TIFF: its levels are SubIFDs of the first page, as Bio-Formats and
    QuPath expect. Otherwise each level is a page, as OpenSlide and libvips expect.

    The file is written as a ``.partial`` sibling and renamed. Memory is libvips' strips of each level, for any image
    height. ``check`` is called before renaming and raises if some pixels could not be decoded, which libvips may not
    report. ``progress`` is called from another thread; an exception that it raises stops the writing and is raised.
    Raise OutputExistsError if ``path`` exists and ``overwrite`` is False; OutputError if the file cannot be written:
    folder, permission, space; CorruptSlideError if the slide's pixels cannot be decoded.
    """
    if path.exists() and not overwrite:
        raise OutputExistsError("is there already", slide=str(path), remedy="pass {overwrite=True}")
    if not path.parent.is_dir():
        raise OutputError("its folder does not exist", slide=str(path), remedy="make the folder first")
    try:
        with replacing(path) as partial:
            with reporting(progress, f"saving {path.name}") as report:
                description = _description(image, mpp, name) if is_ome(path) else None
                _write_or_stop(image, partial, mpp, quality, description, report)
            check()
    except pyvips.Error as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = ", ".join(lines[1:3] or lines)  # the first names the operation, later ones are consequences
        if any(fault in str(error) for fault in _OUTPUT_FAULTS):
            raise OutputError(
                f"cannot be written ({reason})", slide=str(path), remedy="check space and permissions"
            ) from error
        raise CorruptSlideError(
            f"pixels cannot be decoded ({reason})", slide=name, remedy="copy the slide again"
        ) from error


def is_ome(path: Path) -> bool:
    """Return whether the file has an ending of OME-TIFF."""
    return path.name.lower().endswith(ome_xml.SUFFIXES)


def _description(image: Any, mpp: Mpp | None, name: str) -> str:
    size = Size(image.width, image.height)
    return ome_xml.rgb_image(size, mpp, name=name, creator=f"slideio-pipe {__version__}")


def _write_or_stop(
    image: Any, partial: Path, mpp: Mpp | None, quality: int, description: str | None, report: Report
) -> None:
    """Write in a thread: libvips blocks Ctrl-C in the calling thread and drops exceptions of its callbacks."""
    watched = image.copy()
    raised: list[BaseException] = []

    def on_eval(_: Any, progress: Any) -> None:
        try:
            if not raised:
                report(int(progress.percent), 100)
        except BaseException as error:  # cannot cross C
            raised.append(error)
            watched.set_kill(True)

    watched.set_progress(True)
    watched.signal_connect("eval", on_eval)
    with ThreadPoolExecutor(1, thread_name_prefix="slideio-save") as pool:
        writing = pool.submit(_write, watched, partial, mpp, quality, description)
        try:
            while not writing.done():  # waiting without a timeout ignores Ctrl-C on some systems
                wait([writing], timeout=0.1)
            writing.result()
        except pyvips.Error:
            if not raised:
                raise
        except BaseException:
            watched.set_kill(True)
            raise
    if raised:
        raise raised[0]
    report(100, 100)  # libvips reports from time to time, and of a small image never


def _write(image: Any, partial: Path, mpp: Mpp | None, quality: int, description: str | None) -> None:
    # By default libvips states 1000 µm, which looks like a real value; 72 dpi means an unknown resolution.
    stated = Mpp.of(_MPP_OF_72_DPI) if mpp is None else mpp
    keep: dict[str, Any] = {"keep": "none"}  # the scanner's description would state the scanner's resolution
    if description is not None:
        for field in image.get_fields():
            image.remove(field)  # except width and the like, which cannot be removed
        image.set_type(pyvips.GValue.gstr_type, "image-description", description)
        keep = {"keep": "other", "subifd": True}
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
        xres=1000 / stated.x,  # pixels per millimetre
        yres=1000 / stated.y,
        **keep,
    )
