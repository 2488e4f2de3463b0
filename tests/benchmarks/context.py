"""Tiles at several magnifications against the bag of each magnification alone; one thread, interleaved.

    python tests/benchmarks/context.py                      # makes slides with levels 1, 4, 16, and with one
    python tests/benchmarks/context.py --slide a.svs --tiles 512

CPU-seconds and wall time of reading a ``ContextBag`` over the sum of those of one ``TileBag`` per magnification, each
read from its own level of the pyramid, at the same places. The slide is opened for each, so that all decode. Cases:

- levels: 0.25 and 1 µm, two levels as stored; three: also 4 µm;
- shrunk: 0.5 and 2 µm, two levels that the decoder shrinks;
- filtered: 0.3 and 1.3 µm;
- shared: 0.25 and 0.4 µm, of one level and one shrink, whose stored tiles are decoded once;
- two sizes: 0.25 and 0.5 µm of one level, decoded once for each;
- one level: 0.5 and 2 µm of a slide that has no other level;
- turned: 0.5 and 2 µm, each tile turned by any angle and coloured;
- exact: shrunk with ``nearest=False`` against shrunk; the second part is what exact centres cost.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import albumentationsxl as A
import cv2
import numpy as np
from benchmark import parsed, parser_of, require

import slideio_pipe as sp

BATCH, PLANNED = 64, 256
TURNED = A.Compose([sp.RandomAffine(), sp.StainJitter()])


class Case(NamedTuple):
    """The magnifications of a bag, and how it is read."""

    mpp: tuple[float, ...]
    transform: Any = None
    nearest: bool = True
    single: bool = False  # of the slide with one level


CASES = {
    "levels": Case((0.25, 1.0)),
    "three": Case((0.25, 1.0, 4.0)),
    "shrunk": Case((0.5, 2.0)),
    "filtered": Case((0.3, 1.3)),
    "shared": Case((0.25, 0.4)),
    "two sizes": Case((0.25, 0.5)),
    "one level": Case((0.5, 2.0), single=True),
    "turned": Case((0.5, 2.0), transform=TURNED),
}
EXACT = Case((0.5, 2.0), nearest=False)


def bag_of(path: Path, case: Case, scale: int | None = None) -> sp.TileBag:
    """Return the bag of a case, of a slide that is opened for it; or one of its magnifications alone."""
    slide = sp.open_slide(path)
    own = slide.require_mpp().mean / 0.25  # a slide of another resolution: the same multiples of it
    view = slide.view(mpp=case.mpp[0] * own)
    drawn = {"tile_transform": case.transform, "seed": 1}
    grid = sp.TileGrid(view, tile_size=256)
    bag = sp.ContextBag(view, grid, mpp=[mpp * own for mpp in case.mpp], nearest=case.nearest, **drawn)
    if scale is None:
        return bag
    return sp.TileBag(bag.at(scale).view, bag.at(scale).grid, **drawn)


def cost(path: Path, case: Case, count: int, scale: int | None = None) -> tuple[float, float]:
    """Return the CPU time and the wall time, ms per tile, of reading the tiles in the middle of a slide."""
    bag = bag_of(path, case, scale)
    first = max(0, (len(bag) - count) // 2)
    chosen = np.arange(first, min(first + count, len(bag)))
    out = np.ones((BATCH, *bag.shape[1:]), np.uint8)  # written: fresh pages would cost more than some scales
    cpu, wall = time.process_time(), time.perf_counter()
    for start in range(0, len(chosen), BATCH):
        if start % PLANNED == 0:
            bag.plan_ahead(chosen[start : start + PLANNED])
        batch = chosen[start : start + BATCH]
        bag.read(batch, out[: len(batch)])
    return (time.process_time() - cpu) * 1e3 / len(chosen), (time.perf_counter() - wall) * 1e3 / len(chosen)


def check(path: Path, case: Case) -> None:
    """Require that each magnification equals its own bag."""
    tiles = bag_of(path, case)[:6]
    for scale in range(len(case.mpp)):
        require(np.array_equal(tiles[:, scale], bag_of(path, case, scale)[:6]), f"{case.mpp[scale]} µm differs")


def main() -> None:
    """Run both sides of each case in turn, and print medians."""
    parser = parser_of(__doc__)
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--tiles", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=12_289, help="of the slides that are made, px")
    args = parsed(parser, tiles=16, rounds=1, side=3073)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for single, levels in {False: (1, 4, 16), True: (1,)}.items():
            size = (args.side, args.side * 3 // 4)
            made = Path(folder) / f"{len(levels)}.svs"
            paths[single] = args.slide or sp.write_synthetic_slide(made, size=size, seed=1, levels=levels).path
        for case in CASES.values():
            check(paths[case.single], case)
        found: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in [*CASES, "exact"]}
        for _ in range(args.rounds):
            for name, case in CASES.items():
                path = paths[case.single]
                together = cost(path, case, args.tiles)
                alone = [cost(path, case, args.tiles, scale) for scale in range(len(case.mpp))]
                found[name].append((*together, sum(cpu for cpu, _ in alone), sum(wall for _, wall in alone)))
            exact = cost(paths[False], EXACT, args.tiles)
            found["exact"].append((*exact, *found["shrunk"][-1][:2]))
        for name, rounds in found.items():
            cpu, wall, cpu_alone, wall_alone = (statistics.median(values) for values in zip(*rounds, strict=True))
            ratios = sorted(each[0] / each[2] for each in rounds)
            print(
                f"{name:10} {cpu:6.3f} ms CPU ({wall:.3f} wall) per tile against {cpu_alone:6.3f} ({wall_alone:.3f}): "
                f"{statistics.median(ratios):.2f} times ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            )


if __name__ == "__main__":
    main()
