"""How often a percentile interval of 95 % of few patients holds the true AUROC.

    python tests/benchmarks/intervals.py          # 2 CPU-minutes
    python tests/benchmarks/intervals.py --quick  # seconds: rough

Scores of two classes are normal with means one deviation apart: the true AUROC is 0.760. Patients are resampled as
``slideio_pipe.mil.metrics.measure`` does, resamplings of one class left out.
"""

from __future__ import annotations

import argparse
import math

import numpy as np

TRUE = 0.5 * (1 + math.erf(0.5))
CASES = ((2, 2), (3, 3), (5, 5), (10, 10), (20, 20), (1, 50), (2, 50), (5, 50))


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Return the part of the pairs in the right order."""
    one, other = score[positive][:, None], score[~positive][None]
    return float((one > other).mean() + 0.5 * (one == other).mean())


def covers(rng: np.random.Generator, with_it: int, without: int, times: int) -> bool:
    """Return whether the interval of one sample holds the true value."""
    positive = np.arange(with_it + without) < with_it
    score = rng.normal(size=len(positive)) + positive
    drawn = rng.integers(len(positive), size=(times, len(positive)))
    found = [auroc(score[rows], positive[rows]) for rows in drawn if 0 < positive[rows].sum() < len(rows)]
    low, high = np.percentile(found, [2.5, 97.5])
    return bool(low <= TRUE <= high)


def main() -> None:
    """Print a line for each number of patients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    samples, times = (60, 60) if given.quick else (1500, 300)
    rng = np.random.default_rng(0)
    part = {}
    for with_it, without in CASES:
        part[with_it, without] = sum(covers(rng, with_it, without, times) for _ in range(samples)) / samples
        print(f"{with_it:3} patients with, {without:3} without: holds it in {part[with_it, without]:.0%} of samples")
    if not part[2, 2] < part[5, 5] <= part[20, 20] + 0.1 or part[20, 20] < 0.8:
        raise SystemExit("intervals of more patients should hold the true value more often")


if __name__ == "__main__":
    main()
