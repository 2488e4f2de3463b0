"""TileReader against openslide-python: the same slide, the same tiles, interleaved, one thread.

    python tests/benchmarks/reading.py --slide slide.svs
    python tests/benchmarks/reading.py --slide slide.svs --tiles 400 --rounds 7 --json

Without ``--slide`` a synthetic slide is written to a temporary folder. Three cases, all in raster order: *aligned*
(tiles are the stored tiles), *off-grid* (stride 200) and *half* (twice the stored pixel size; OpenSlide reads level 0
and Pillow shrinks, as tiling scripts do). Every round opens the slide afresh, which is not timed, and runs both readers
in turn; medians are reported. Tiles per CPU-second count all threads of the process. Native tiles must be identical;
shrunk ones may differ by one level in 1 of 1000 values, because OpenSlide's region is cut before it is filtered.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openslide
from PIL import Image

import slideio_pipe as sp


class Case(NamedTuple):
    """Which tiles are read, and how."""

    name: str
    tile: int  # px, at the resolution read
    origins: np.ndarray  # (n, 2) level-0 px
    shrink: int  # level-0 px per tile px


def cases(path: Path, count: int) -> Iterator[Case]:
    slide = sp.open_slide(path, slide_mpp=1.0)
    stored, view = slide.tile_sizes[0].width, slide.view()
    for name, tile, stride, shrink in (
        ("aligned", stored, stored, 1),
        ("off-grid", 256, 200, 1),
        ("half", 256, 512, 2),
    ):
        origins = sp.TileGrid(view, tile * shrink, stride=stride).origins
        yield Case(name, tile, origins[:count], shrink)


def read_ours(path: Path, case: Case, out: np.ndarray) -> float:
    """Read all tiles and return the CPU-seconds it took, the slide being open."""
    view = sp.open_slide(path, slide_mpp=1.0).view(mpp=float(case.shrink))
    if view.level:
        raise SystemExit(f"{path.name} stores the half resolution: nothing to compare")
    start = time.process_time()
    sp.TileReader(view, case.tile).read(case.origins // case.shrink, out)
    return time.process_time() - start


def read_openslide(path: Path, case: Case, out: np.ndarray) -> float:
    """The same with OpenSlide."""
    side = case.tile * case.shrink
    with openslide.OpenSlide(str(path)) as slide:
        start = time.process_time()
        for k, (x, y) in enumerate(case.origins.tolist()):
            region = slide.read_region((x, y), 0, (side, side)).convert("RGB")
            if case.shrink > 1:
                region = region.resize((case.tile, case.tile), Image.Resampling.BILINEAR)
            out[k] = np.asarray(region)
        return time.process_time() - start


def agree(ours: np.ndarray, theirs: np.ndarray, shrink: int) -> bool:
    if shrink == 1:
        return np.array_equal(ours, theirs)
    inner = np.s_[:, 2:-2, 2:-2]
    return bool(np.mean(np.abs(ours[inner].astype(np.int16) - theirs[inner]) > 1) < 0.001)


def measure(path: Path, case: Case, rounds: int) -> dict[str, Any]:
    readers = {"slideio_pipe": read_ours, "openslide": read_openslide}
    pixels = {name: np.zeros((len(case.origins), case.tile, case.tile, 3), np.uint8) for name in readers}
    cpu_s: dict[str, list[float]] = {name: [] for name in readers}
    wall_s: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(rounds):
        for name, read in readers.items():
            start = time.perf_counter()
            cpu_s[name].append(read(path, case, pixels[name]))
            wall_s[name].append(time.perf_counter() - start)
    report: dict[str, Any] = {"case": case.name, "tiles": len(case.origins), "tile_px": case.tile}
    for name in readers:
        report[name] = {
            "tiles_per_cpu_s": round(len(case.origins) / statistics.median(cpu_s[name]), 1),
            "tiles_per_s": round(len(case.origins) / statistics.median(wall_s[name]), 1),
            "sha256": hashlib.sha256(pixels[name].tobytes()).hexdigest()[:16],
        }
    ratio = statistics.median(b / a for a, b in zip(cpu_s["slideio_pipe"], cpu_s["openslide"], strict=True))
    same = agree(pixels["slideio_pipe"], pixels["openslide"], case.shrink)
    return report | {"ratio_per_cpu_s": round(ratio, 2), "agree": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slide", type=Path, help="a slide that OpenSlide opens too; synthetic when left out")
    parser.add_argument("--tiles", type=int, default=300, help="at most so many tiles per case (300)")
    parser.add_argument("--rounds", type=int, default=5, help="how often both readers run (5)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.slide
        if path is None:
            path = Path(folder) / "synthetic.svs"
            sp.write_synthetic_slide(path, size=(6000, 4000), levels=(1, 4))
        reports = [measure(path, case, arguments.rounds) for case in cases(path, arguments.tiles)]
    if arguments.json:
        print(json.dumps({"slide": path.name, "cases": reports}, indent=2))
        return
    print(f"{path.name}: tiles per CPU-second, one thread, medians of {arguments.rounds} rounds")
    for report in reports:
        ours, theirs = report["slideio_pipe"], report["openslide"]
        same = "pixels agree" if report["agree"] else "PIXELS DIFFER"
        print(
            f"{report['case']:>9}: {ours['tiles_per_cpu_s']:>8} against {theirs['tiles_per_cpu_s']:>7} of OpenSlide, "
            f"{report['ratio_per_cpu_s']}× ({report['tiles']} tiles of {report['tile_px']} px, {same})"
        )
    if not all(report["agree"] for report in reports):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
