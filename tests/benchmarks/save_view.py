"""Peak resident memory of saving a turned and coloured slide as a pyramid, in a process of its own.

    python tests/benchmarks/save_view.py                  # makes a 40,000 × 40,000 slide first
    python tests/benchmarks/save_view.py --slide a.svs

A slide of 40,000² turned by 20° needs a canvas of 51,000². Prints the peak before saving and after it.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import albumentationsxl as A

import slideio_pipe as sp


def peak_mb() -> float:
    """Return the most memory that was resident so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> None:
    """Save the view and print its size, the time and the memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slide", type=Path)
    args = parser.parse_args()
    transform = A.Compose([sp.RandomAffine(rotate=(20, 20)), sp.StainJitter(p=1)])
    with tempfile.TemporaryDirectory() as folder:
        slide = args.slide or Path(folder) / "big.svs"
        if args.slide is None:
            sp.write_synthetic_slide(slide, size=(40_000, 40_000), seed=1)
        view = sp.open_slide(slide).view(transform=transform, seed=1)
        view.thumbnail(256)
        before, wall, cpu = peak_mb(), time.perf_counter(), time.process_time()
        saved = view.save(Path(folder) / "augmented.tif", progress=False)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        pixels = view.size.width * view.size.height
        print(
            f"{view.size.width:,} × {view.size.height:,} px in {wall:.0f} s ({1e9 * cpu / pixels:.0f} ns CPU per px), "
            f"{saved.stat().st_size / 1e6:.0f} MB; resident before {before:.0f} MB, at most {peak_mb():.0f} MB"
        )


if __name__ == "__main__":
    main()
