"""One reader in its own process: jobs arrive as lines of JSON, results are returned the same way.

Runs by path, with any Python >= 3.10 that has numpy and the reader: nothing of slideio_pipe is imported here, unless
it is the reader. Standard output is for the answers; output of libraries is redirected to standard error.

Every reader fills the same array: ``out[k]`` is tile k, (tile, tile, 3) uint8 RGB. Opening the slide and the first
access to that memory are not timed. If a tile has fewer pixels than are read, they are shrunk by area: by OpenCV, by
Pillow's box filter for OpenSlide, by the decoder in the bare loop, by slideio_pipe itself.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

Fill = Callable[[Any, Any], None]  # origins (n, 2), slots (n, tile, tile, 3): reads each tile into its slot
Read = Callable[[], None]  # reads every tile of a job


@dataclass(frozen=True)
class Job:
    """The tiles to read, and the output array."""

    slide: str
    origins: Any  # (n, 2) int64, top-left corners x, y, level-0 px
    tile: int  # side of a tile, px
    shrink: float  # level-0 px per tile px
    threads: int
    out: Any  # (n, tile, tile, 3) uint8

    @property
    def side(self) -> int:
        """Side of a tile in level-0 px."""
        return round(self.tile * self.shrink)


class CannotError(Exception):
    """The reader does not support such a job."""


def in_threads(fill: Fill, job: Job) -> Read:
    """Return a function that reads a job, with a part of the list per thread."""
    if job.threads == 1:
        return lambda: fill(job.origins, job.out)
    pieces = list(zip(np.array_split(job.origins, job.threads), np.array_split(job.out, job.threads), strict=True))
    pool = ThreadPoolExecutor(job.threads)

    def read() -> None:
        with pool:
            for done in [pool.submit(fill, *piece) for piece in pieces]:
                done.result()

    return read


def by_region(job: Job, region: Callable[[int, int], Any]) -> Fill:
    """Return a fill function from one that reads the square at level-0 (x, y)."""
    if job.shrink == 1:

        def fill(origins: Any, slots: Any) -> None:
            for slot, (x, y) in zip(slots, origins.tolist(), strict=True):
                slot[:] = region(x, y)

        return fill
    import cv2

    cv2.setNumThreads(1)

    def shrunk(origins: Any, slots: Any) -> None:
        for slot, (x, y) in zip(slots, origins.tolist(), strict=True):
            cv2.resize(region(x, y), (job.tile, job.tile), dst=slot, interpolation=cv2.INTER_AREA)

    return shrunk


@contextmanager
def slideio_pipe(job: Job) -> Iterator[Read]:
    """Ours: a bag of the given coordinates, read in one call."""
    import slideio_pipe as sp
    from slideio_pipe.commands.environment import choose_programs

    choose_programs()
    with sp.open_slide(job.slide, slide_mpp=1.0) as slide:
        view = slide.view(mpp=float(job.shrink))
        if view.level:
            raise CannotError(f"level {view.level} stores these pixels; the others would read level 0")
        bag = sp.TileBag(view, sp.TileGrid.from_coords(view, job.origins, job.tile))
        every = np.arange(len(bag))

        def read() -> None:
            bag.read(every, job.out, threads=job.threads)

        yield read


@contextmanager
def openslide(job: Job) -> Iterator[Read]:
    """openslide-python and Pillow."""
    import openslide
    from PIL import Image

    with openslide.OpenSlide(job.slide) as slide:

        def fill(origins: Any, slots: Any) -> None:
            for slot, corner in zip(slots, origins.tolist(), strict=True):
                region = slide.read_region(tuple(corner), 0, (job.side, job.side)).convert("RGB")
                if job.shrink > 1:
                    region = region.resize((job.tile, job.tile), Image.Resampling.BOX)
                slot[:] = np.asarray(region)

        yield in_threads(fill, job)


@contextmanager
def cucim(job: Job) -> Iterator[Read]:
    """cuCIM without a GPU, with default settings.

    Its cache of decoded tiles is off by default: when on, cuCIM 26.10 counted no hits and was no faster.
    """
    from cucim import CuImage

    size = (job.side, job.side)
    with closing(CuImage(job.slide)) as slide:
        yield in_threads(by_region(job, lambda x, y: np.asarray(slide.read_region((x, y), size, 0))), job)


@contextmanager
def fastslide(job: Job) -> Iterator[Read]:
    """fastslide, with its default cache."""
    from fastslide import FastSlide

    size = (job.side, job.side)
    with closing(FastSlide.from_file_path(job.slide)) as slide:
        yield in_threads(by_region(job, lambda x, y: slide.read_region((x, y), 0, size).numpy()[:, :, :3]), job)


@contextmanager
def tiffslide(job: Job) -> Iterator[Read]:
    """tiffslide, which reads through tifffile and zarr."""
    from tiffslide import TiffSlide

    with TiffSlide(job.slide) as slide:
        size = (job.side, job.side)
        yield in_threads(by_region(job, lambda x, y: slide.read_region((x, y), 0, size, as_array=True)), job)


@contextmanager
def pyvips(job: Job) -> Iterator[Read]:
    """Plain pyvips: one image, a region per thread, ``fetch``."""
    import pyvips

    pyvips.cache_set_max(0)  # else a reopened slide is the cached one, with its decoded tiles
    image = pyvips.Image.new_from_file(job.slide, access="random")
    if image.bands not in (3, 4):
        raise CannotError(f"{image.bands} bands")

    def fill(origins: Any, slots: Any) -> None:
        region = pyvips.Region.new(image)
        shape = (job.side, job.side, image.bands)

        def fetch(x: int, y: int) -> Any:
            return np.frombuffer(region.fetch(x, y, job.side, job.side), np.uint8).reshape(shape)[:, :, :3]

        by_region(job, fetch)(origins, slots)

    yield in_threads(fill, job)


@contextmanager
def microtome(job: Job) -> Iterator[Read]:
    """microtome-wsi, a reader in Rust: whole stored tiles, in its own threads, into an array of its own."""
    import microtome

    slide = microtome.open(job.slide)
    level = slide.levels[0]
    wide, high = level["tile_width"], level["tile_height"]
    if (wide, high) != (job.side, job.side) or job.shrink > 1 or (job.origins % wide).any():
        raise CannotError("it reads whole stored tiles alone")
    columns = -(-level["width"] // wide)
    numbers = (job.origins[:, 1] // high * columns + job.origins[:, 0] // wide).tolist()

    def read() -> None:
        job.out[:] = slide.read_batch(0, numbers, job.threads)

    yield read


@contextmanager
def simplejpeg(job: Job) -> Iterator[Read]:
    """The lower bound of reading: ``pread`` and libjpeg-turbo on the stored tiles' own bytes, in a bare loop."""
    import tifffile

    with tifffile.TiffFile(job.slide) as tif:
        page = tif.pages.first
        if page.compression != 7 or not page.is_tiled or page.planarconfig != 1:
            raise CannotError("level 0 is not stored as JPEG tiles")
        tile = page.tilewidth
        if tile != page.tilelength or job.side % tile or (job.origins % tile).any():
            raise CannotError("tiles off the stored grid")
        tables = page.jpegtables or b"\xff\xd8\xff\xd9"
        # Adobe's marker states whether three components are RGB; without it simplejpeg assumes YCbCr.
        adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([int(page.photometric == 6)])
        head = b"\xff\xd8" + adobe + tables[2:-2]
        offsets, counts = page.dataoffsets, page.databytecounts
        columns = -(-page.imagewidth // tile)
    descriptor = os.open(job.slide, os.O_RDONLY)
    try:
        streams = [_stored(job, x, y, tile, columns) for x, y in job.origins.tolist()]
        fill = _bare_loop(job, descriptor, head, tile, [[(offsets[k], counts[k]) for k in row] for row in streams])
        yield in_threads(fill, job)
    finally:
        os.close(descriptor)


def _stored(job: Job, x: int, y: int, tile: int, columns: int) -> list[int]:
    """Return the numbers of the stored tiles under a tile, in raster order."""
    steps = range(job.side // tile)
    return [(y // tile + down) * columns + x // tile + right for down in steps for right in steps]


def _bare_loop(job: Job, descriptor: int, head: bytes, tile: int, streams: list[list[tuple[int, int]]]) -> Fill:
    """Return the loop; smaller tiles are shrunk by the decoder in the frequency domain, the cheapest way."""
    import simplejpeg

    if job.shrink not in (1, 2, 4, 8):
        raise CannotError(f"the decoder does not shrink by {job.shrink}")
    decode, pread = simplejpeg.decode_jpeg, os.pread
    numbers = {corner: k for k, corner in enumerate(map(tuple, job.origins.tolist()))}
    step, per_side = tile // int(job.shrink), job.side // tile
    smaller = {} if job.shrink == 1 else {"min_height": step, "min_width": step, "min_factor": 1}

    def fill(origins: Any, slots: Any) -> None:
        first = numbers[tuple(origins[0].tolist())]
        for slot, pieces in zip(slots, streams[first : first + len(slots)], strict=True):
            for k, (offset, count) in enumerate(pieces):
                down, right = (step * place for place in divmod(k, per_side))
                data = head + pread(descriptor, count, offset)[2:]
                if len(pieces) == 1 and not smaller:
                    decode(data, colorspace="RGB", buffer=slot)
                else:
                    slot[down : down + step, right : right + step] = decode(data, colorspace="RGB", **smaller)

    return fill


# By name on the command line: the reader, and the package whose version is reported.
READERS: dict[str, tuple[Callable[[Job], AbstractContextManager[Read]], str, tuple[str, ...]]] = {
    "slideio_pipe": (slideio_pipe, "slideio-pipe", ("slideio_pipe",)),
    "simplejpeg": (simplejpeg, "simplejpeg", ("simplejpeg", "tifffile")),
    "openslide": (openslide, "openslide-python", ("openslide", "PIL")),
    "cucim": (cucim, "cucim-cu12", ("cucim.clara", "cv2")),
    "fastslide": (fastslide, "fastslide", ("fastslide", "cv2")),
    "tiffslide": (tiffslide, "tiffslide", ("tiffslide", "cv2")),
    "microtome": (microtome, "microtome-wsi", ("microtome",)),
    "pyvips": (pyvips, "pyvips", ("pyvips", "cv2")),
}


def measure(name: str, request: dict[str, Any]) -> dict[str, Any]:
    """Run one job; return its seconds and the checksum of its pixels.

    A job too short to time is repeated on a reopened slide, so that a reader's caches are not reused.
    """
    origins = np.load(request["origins"])
    # Filled, so that memory is allocated before timing, and an unwritten tile is visible.
    out = np.full((len(origins), request["tile"], request["tile"], 3), 7, np.uint8)
    job = Job(request["slide"], origins, request["tile"], request["shrink"], request["threads"], out)
    repeats = request.get("repeats", 1)
    cpu_s = wall_s = 0.0
    for _ in range(repeats):
        with READERS[name][0](job) as read:
            gc.collect()
            cpu, wall = time.process_time(), time.perf_counter()
            read()
            cpu_s += time.process_time() - cpu
            wall_s += time.perf_counter() - wall
    if request.get("pixels"):
        np.save(request["pixels"], out)
    return {"cpu_s": cpu_s / repeats, "wall_s": wall_s / repeats, "sha256": hashlib.sha256(out.data).hexdigest()[:16]}


def hello(name: str) -> dict[str, Any]:
    """Return the version of the reader, or what is missing."""
    _, package, modules = READERS[name]
    try:
        for module in modules:
            importlib.import_module(module)
    except ImportError as error:  # also a missing shared library
        return {"missing": " ".join(str(error).split())}
    version = ""
    with suppress(importlib.metadata.PackageNotFoundError):  # conda uses other names for some
        version = importlib.metadata.version(package)
    return {"version": version, "python": sys.version.split()[0]}


def main() -> None:
    """Print the version, then answer each line of standard input with a line."""
    name = sys.argv[1]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    answers.write(json.dumps(hello(name)) + "\n")
    for line in sys.stdin:
        try:
            answer = measure(name, json.loads(line))
        except CannotError as error:
            answer = {"cannot": str(error)}
        except Exception as error:  # any error of a reader is a result
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
