"""Milliseconds per 256-px tile and core of each kind of step: the estimates that ``explain`` shows.

python tests/benchmarks/explain_costs.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import albumentationsxl as A
import cv2
import numpy as np
import pyvips
from benchmark import parsed, parser_of, require

import slideio_pipe as sp
from slideio_pipe.augment.executors.cpu import ColourProgram
from slideio_pipe.augment.executors.lazy import apply_lazy
from slideio_pipe.augment.operations import Lab

SIDE = (256, 256)
LOWERED = [
    sp.StainJitter(),
    sp.ColorJitter(0.2, 0.2, 0.2, 0.05),
    sp.GaussianNoise((4, 4)),
    A.HueSaturationValue(p=1),
    A.RandomBrightnessContrast(p=1),
]
LAZY = [
    A.Blur(p=1),
    A.MotionBlur(p=1),
    A.MedianBlur(p=1),
    A.GaussianBlur(sigma_limit=(1, 2), p=1),
    A.Sharpen(p=1),
    A.CoarseDropout(p=1),
    A.ChannelDropout(p=1),
]


def milliseconds(way: Callable[[], object], calls: int, rounds: int) -> float:
    """Return the median CPU time of a call."""
    found = np.asarray(way())
    require(found.shape == (*SIDE, 3) and found.dtype == np.uint8, f"a step made {found.shape} {found.dtype}")
    costs = []
    for _ in range(rounds):
        started = time.process_time()
        for _ in range(calls):
            way()
        costs.append((time.process_time() - started) / calls * 1e3)
    return statistics.median(costs)


def main() -> None:
    """Measure on a tissue tile and print a line per step."""
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=15)
    given = parsed(parser, rounds=1, calls=1)
    calls, rounds = given.calls, given.rounds
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        made = sp.write_synthetic_slide(Path(folder) / "a.svs", size=(2048, 2048), seed=2)
        tile = sp.open_slide(made.path).read_region((900, 900), 0, SIDE)
    programs = {type(t).__name__: ColourProgram(sp.draw(t, seed=3, size=SIDE).operations) for t in LOWERED}
    programs["Lab"] = ColourProgram((Lab(gain=(1.1, 1.0, 1.0)),))
    for name, program in programs.items():
        print(f"{name:26} {milliseconds(lambda p=program: p.apply(tile), calls, rounds):6.2f}")  # type: ignore[misc]
    turn = np.array([[0.9, -0.3, 30], [0.3, 0.9, -10]])
    print(f"{'geometry':26} {milliseconds(lambda: cv2.warpAffine(tile, turn, SIDE), calls, rounds):6.2f}")
    image = pyvips.Image.new_from_array(tile).copy(interpretation="srgb")
    for transform in LAZY:
        drawn = sp.draw(transform, tile=0, seed=3, size=SIDE)
        cost = milliseconds(lambda d=drawn: apply_lazy(image, d).numpy(), -(-calls // 3), rounds)  # type: ignore[misc]
        print(f"{type(transform).__name__:26} {cost:6.2f}  (libvips graph)")


if __name__ == "__main__":
    main()
