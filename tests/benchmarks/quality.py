"""The cost of the quality of tiles against reading the bag: one thread, interleaved, medians.

    python tests/benchmarks/quality.py                    # a synthetic slide of 12,288 × 9,216 px, levels 1, 4, 16
    python tests/benchmarks/quality.py --slide a.svs      # another slide

Each pass opens the slide again. "read" decodes all tiles of 256 px at 0.5 µm where there is tissue; "overview" measures
pen, folds, bubbles and white, "focus" the Laplacian at 1 µm, "all" both.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from benchmark import parsed, parser_of, require

import slideio_pipe as sp
from slideio_pipe.tiles.quality.masks import MASKS

RUN = 256


def read(bag: sp.TileBag) -> object:
    """Decode all tiles, a batch at a time."""
    for start in range(0, len(bag), RUN):
        bag.read(np.arange(start, min(start + RUN, len(bag))))
    return None


WAYS: dict[str, Callable[[sp.TileBag], object]] = {
    "read": read,
    "overview": lambda bag: sp.tile_quality(bag, MASKS, threads=1),
    "focus": lambda bag: sp.tile_quality(bag, ["focus"], threads=1),
    "all": lambda bag: sp.tile_quality(bag, threads=1),
}


def opened(path: Path, tissue: sp.TissueMask) -> sp.TileBag:
    """Return the bag of a slide that was just opened."""
    view = sp.open_slide(path, default_mpp=0.25).view(mpp=0.5)
    return sp.TileBag(view, sp.TileGrid(view, tile_size=256, tissue=tissue))


def check(bag: sp.TileBag) -> None:
    """Compare the focus of some tiles with OpenCV's Laplacian of the same places at 1 µm."""
    quality = sp.tile_quality(bag)
    for tile in np.linspace(0, len(bag) - 1, 5).astype(int).tolist():
        x, y = bag.coords[tile].tolist()
        place = np.asarray(bag.view.slide.region(x, y, mpp=1.0, size=(128, 128)))
        expected = cv2.Laplacian(cv2.cvtColor(place, cv2.COLOR_RGB2GRAY), cv2.CV_64F)[1:-1, 1:-1].var()
        require(abs(quality.focus[tile] / expected - 1) < 0.1, f"focus of tile {tile}")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--width", type=int, default=12_288)
    parser.add_argument("--repeats", type=int, default=5)
    given = parsed(parser, width=3072, repeats=2)
    with tempfile.TemporaryDirectory() as folder:
        path = given.slide or Path(folder, "a.svs")
        if given.slide is None:
            sp.write_synthetic_slide(path, size=(given.width, given.width * 3 // 4), seed=3, lesions=4)
        tissue = sp.find_tissue(sp.open_slide(path, default_mpp=0.25))
        check(opened(path, tissue))
        cpu: dict[str, list[float]] = {name: [] for name in WAYS}
        wall: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(given.repeats):
            for name, way in WAYS.items():
                bag = opened(path, tissue)
                begun = time.process_time(), time.perf_counter()
                way(bag)
                cpu[name].append(time.process_time() - begun[0])
                wall[name].append(time.perf_counter() - begun[1])
    whole = statistics.median(cpu["read"])
    print(f"{len(bag):,} tiles of 256 px at 0.5 µm, {given.repeats} passes each")
    for name in WAYS:
        seconds = statistics.median(cpu[name])
        part = f"{seconds / whole:.1%} of reading" if name != "read" else "the bag"
        print(f"{name:8} {seconds:6.3f} CPU-s, {statistics.median(wall[name]):6.3f} s: {part}")


if __name__ == "__main__":
    main()
