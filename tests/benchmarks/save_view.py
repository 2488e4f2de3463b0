"""Peak resident memory of saving a turned and coloured slide as a pyramid, in a process of its own.

    python tests/benchmarks/save_view.py                  # makes a 40,000 × 40,000 slide first
    python tests/benchmarks/save_view.py --slide a.svs

A slide of 40,000² turned by 20° needs a canvas of 51,000². Prints the peak before saving and after it.
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import albumentationsxl as A
import numpy as np
from benchmark import parsed, parser_of, require

import slideio_pipe as sp


def peak_mb() -> float:
    """Return the most memory that was resident so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> None:
    """Save the view and print its size, the time and the memory."""
    parser = parser_of(__doc__)
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--side", type=int, default=40_000, help="of the slide that is made, px")
    args = parsed(parser, side=1536)
    transform = A.Compose([sp.RandomAffine(rotate=(20, 20)), sp.StainJitter(p=1)])
    with tempfile.TemporaryDirectory() as folder:
        slide = args.slide or Path(folder) / "big.svs"
        if args.slide is None:
            sp.write_synthetic_slide(slide, size=(args.side, args.side), seed=1)
        view = sp.open_slide(slide).view(transform=transform, seed=1)
        view.thumbnail(256)
        before, wall, cpu = peak_mb(), time.perf_counter(), time.process_time()
        saved = view.save(Path(folder) / "augmented.tif", progress=False)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        with sp.open_slide(saved) as written:
            require(written.dimensions == view.size, f"saved {written.dimensions} of {view.size}")
            corner = tuple(side // 2 - 128 for side in view.size)
            again = written.read_region(corner, 0, (256, 256)).astype(int)
        apart = np.abs(again - view.image.crop(*corner, 256, 256).numpy()).mean()
        require(apart <= 4, f"saved pixels are {apart:.1f} levels from the view's on average")
        pixels = view.size.width * view.size.height
        print(
            f"{view.size.width:,} × {view.size.height:,} px in {wall:.0f} s ({1e9 * cpu / pixels:.0f} ns CPU per px), "
            f"{saved.stat().st_size / 1e6:.0f} MB; resident before {before:.0f} MB, at most {peak_mb():.0f} MB"
        )


if __name__ == "__main__":
    main()
