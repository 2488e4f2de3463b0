"""Measure the memory of our reader in its own process: one huge bag streamed, many slides opened and closed."""

from __future__ import annotations

import gc
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import slideio_pipe as sp
from slideio_pipe.errors import ConfigError, SlideioPipeError
from slideio_pipe.slides.tile_cache import DEFAULT_BYTES

STATUS = Path("/proc/self/status")  # Linux; ru_maxrss would inherit the parent's peak
TILE, BAG, BATCH = 1024, 20_000, 32  # px, tiles, tiles
MB = 1e6
ALLOWED_BYTES = 500e6  # allowed memory beside ring and caches
SLIDES, WARM = 200, 20  # slides opened, and the number of these for warming up the caches
GROWTH_BYTES = 20e6  # of 180 more slides: 0.1 MB each would be a leak


def in_own_process(what: str, slide: Path, count: int) -> dict[str, Any]:
    """Run ``stream_bag`` or ``open_slides`` in a fresh interpreter and return the result."""
    command = [sys.executable, "-m", "slideio_pipe.commands.bench.memory", what, str(slide), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=importing_this_package())
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"error": last}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def importing_this_package() -> dict[str, str]:
    """Return the environment of a process that imports this very package."""
    above = str(Path(sp.__file__).parents[1])
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (above, os.environ.get("PYTHONPATH"))))}


def stream_bag(path: Path, count: int) -> dict[str, Any]:
    """Stream ``count`` tiles of a bag of 20,000 overlapping tiles of 1024 px; return its memory, in bytes.

    The bag covers the slide with the stride that gives this number; uint8 batches of 32 are dropped on arrival.
    """
    slide = sp.open_slide(path, slide_mpp=1.0)
    width, height = slide.dimensions
    tile = min(TILE, width // 2, height // 2)
    stride = max(1, math.isqrt((width - tile) * (height - tile) // BAG))
    view = slide.view()
    bag = sp.TileBag(view, sp.TileGrid(view, tile, stride=stride))
    before = resident()
    # Spread over the whole slide, neighbours together, as in normal reading.
    batches = range(0, len(bag) - BATCH, max(BATCH, BATCH * len(bag) // max(BATCH, count)))
    indices = [k for start in batches for k in range(start, start + BATCH)][:count]
    with sp.stream(bag, device="cpu", normalize=None, batch_size=BATCH, indices=indices) as stream:
        ring, read = stream.ring_bytes + stream.ahead_bytes, 0
        for batch in stream:
            read += len(batch)
    allowed = ring + DEFAULT_BYTES + ALLOWED_BYTES
    return {
        "bag": len(bag),
        "tile_px": tile,
        "tiles_read": read,
        "before_mb": before / MB,
        "peak_mb": peak() / MB,
        "ring_mb": ring / MB,
        "caches_mb": DEFAULT_BYTES / MB,
        "allowed_mb": allowed / MB,
        "reached": peak() <= allowed,
    }


def open_slides(path: Path, count: int) -> dict[str, Any]:
    """Open, read and close ``count`` slides, each with its own path; return the growth of memory and open files."""
    resident_bytes: list[float] = []
    files: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        for k in range(count):
            other = Path(folder) / f"{k}-{path.name}"
            other.symlink_to(path.absolute())
            with sp.open_slide(other, slide_mpp=1.0) as slide:
                view = slide.view()
                tile = min(256, *slide.dimensions)
                sp.TileBag(view, sp.TileGrid(view, tile))[:4]
                slide.thumbnail(256)
            other.unlink()
            gc.collect()
            resident_bytes.append(resident())
            files.append(len(os.listdir("/proc/self/fd")))
    warm = min(WARM, count - 1)
    growth = resident_bytes[-1] - resident_bytes[warm]
    return {
        "slides": count,
        "warm_mb": resident_bytes[warm] / MB,
        "end_mb": resident_bytes[-1] / MB,
        "growth_mb": growth / MB,
        "allowed_mb": GROWTH_BYTES / MB,
        "open_files_grown": files[-1] - files[warm],
        "reached": growth <= GROWTH_BYTES and files[-1] <= files[warm],
    }


def resident() -> float:
    """Return the resident memory of this process, in bytes."""
    return _status("VmRSS")


def peak() -> float:
    """Return the largest resident memory of this process so far, in bytes."""
    return _status("VmHWM")


def _status(what: str) -> float:
    if not STATUS.exists():
        raise ConfigError("resident memory is read from /proc", remedy="run the memory cases on Linux")
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith(what))
    return float(line.split()[1]) * 1024


MEASURES = {"memory": stream_bag, "slides": open_slides}


def main() -> None:
    """Print the result of one measurement as JSON."""
    what, path, count = sys.argv[1:]
    try:
        found = MEASURES[what](Path(path), int(count))
    except SlideioPipeError as error:
        found = {"error": str(error)}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
