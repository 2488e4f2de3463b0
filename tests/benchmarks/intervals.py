"""How often a percentile interval of 95 % of few patients contains the true AUROC.

    python tests/benchmarks/intervals.py          # 2 CPU-minutes
    python tests/benchmarks/intervals.py --quick  # seconds: rough

Scores of two classes are normal with means one deviation apart: the true AUROC is 0.760. Patients are resampled as
``slideio_pipe.mil.metrics.measure`` does, resamplings of one class left out.
"""

from __future__ import annotations

import math

import numpy as np
from benchmark import parsed, parser_of, require

TRUE = 0.5 * (1 + math.erf(0.5))
# Patients with and without the label, and the part of 1,500 samples whose interval held the true value.
HELD = {(2, 2): 0.51, (3, 3): 0.72, (5, 5): 0.87, (10, 10): 0.93, (20, 20): 0.93}
HELD |= {(1, 50): 0.28, (2, 50): 0.65, (5, 50): 0.86}


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Return the fraction of pairs in the right order."""
    one, other = score[positive][:, None], score[~positive][None]
    return float((one > other).mean() + 0.5 * (one == other).mean())


def covers(rng: np.random.Generator, with_it: int, without: int, times: int) -> bool:
    """Return whether the interval of one sample contains the true value."""
    positive = np.arange(with_it + without) < with_it
    score = rng.normal(size=len(positive)) + positive
    drawn = rng.integers(len(positive), size=(times, len(positive)))
    found = [auroc(score[rows], positive[rows]) for rows in drawn if 0 < positive[rows].sum() < len(rows)]
    low, high = np.percentile(found, [2.5, 97.5])
    return bool(low <= TRUE <= high)


def main() -> None:
    """Print a line for each number of patients."""
    parser = parser_of(__doc__)
    parser.add_argument("--samples", type=int, default=1500, help="of each number of patients")
    parser.add_argument("--times", type=int, default=300, help="that each is resampled")
    given = parsed(parser, samples=400, times=100)
    rng = np.random.default_rng(0)
    for (with_it, without), known in HELD.items():
        part = sum(covers(rng, with_it, without, given.times) for _ in range(given.samples)) / given.samples
        print(f"{with_it:3} patients with, {without:3} without: holds it in {part:.0%} of samples")
        # Four standard errors, and the error of percentiles of few resamplings.
        most = 4 * math.sqrt(known * (1 - known) / given.samples) + 0.02
        require(abs(part - known) <= most, f"{part:.0%} of samples, not {known:.0%}")


if __name__ == "__main__":
    main()
