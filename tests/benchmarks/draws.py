"""Microseconds per tile that drawing takes: one by one, many tiles at once in arrays, and these with their records.

python tests/benchmarks/draws.py
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmark import parsed, parser_of, require

import slideio_pipe as sp
from slideio_pipe.augment.draw_tiles import draw_tiles

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from drawn_transforms import classic

SIZE = (1024, 1024)
TRANSFORMS = {"classic": classic(), "with StainJitter": classic(sp.StainJitter(beta=0.05))}


def microseconds(way: Callable[[int], object], tiles: int, rounds: int) -> float:
    """Return the median CPU time per tile; every round is another epoch."""
    costs = []
    for epoch in range(rounds):
        started = time.process_time()
        way(epoch)
        costs.append((time.process_time() - started) / tiles * 1e6)
    return statistics.median(costs)


def main() -> None:
    """Compare the draws, then print a line per transform and bag."""
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tiles", type=int, nargs="+", default=[8, 64, 256, 1024])
    given = parsed(parser, rounds=1, tiles=[8, 64])
    for name, transform in TRANSFORMS.items():
        for count in given.tiles:
            tiles = range(count)

            def one_by_one(epoch: int) -> list[sp.Draw]:
                return [sp.draw(transform, seed=1, epoch=epoch, slide="a", tile=k, size=SIZE) for k in tiles]  # noqa: B023

            def at_once(epoch: int) -> object:
                return draw_tiles(transform, seed=1, epoch=epoch, slide="a", tiles=tiles, size=SIZE)  # noqa: B023

            def with_records(epoch: int) -> list[sp.Draw]:
                return list(draw_tiles(transform, seed=1, epoch=epoch, slide="a", tiles=tiles, size=SIZE))  # noqa: B023

            require(one_by_one(0) == with_records(0), f"{name}: draws of {count} tiles at once are others")
            alone, arrays, records = (
                microseconds(way, count, given.rounds) for way in (one_by_one, at_once, with_records)
            )
            print(
                f"{name:18} {count:5} tiles: {alone:6.1f} one by one, {arrays:6.1f} at once, {records:6.1f} as records"
            )


if __name__ == "__main__":
    main()
