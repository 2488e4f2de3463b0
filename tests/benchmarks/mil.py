"""Multiple-instance learning: accuracy, gradient, memory and time of its training.

    python tests/benchmarks/mil.py musk --data ../shared/data  # accuracy beside Ilse et al. 2018; 20 CPU-minutes
    python tests/benchmarks/mil.py gradient                    # of two passes against plain back-propagation
    python tests/benchmarks/mil.py memory                      # of 100 to 10,000 tiles
    python tests/benchmarks/mil.py time                        # over plain back-propagation
    python tests/benchmarks/mil.py end-to-end --out work/      # the demo cohort from pixels; 10 CPU-minutes
    python tests/benchmarks/mil.py stain --out work/ --seeds 0 1 2  # with and without drawn stains, by laboratory; 90
    python tests/benchmarks/mil.py resume                      # killed in mid-epoch, features and pixels

`end-to-end` and `stain` keep slides and trainings in --out, and go on from there.
"""

from __future__ import annotations

from pathlib import Path

import torch
from benchmark import parsed, parser_of
from mil_costs import memory, times
from mil_learning import end_to_end
from mil_musk import PUBLISHED, musk
from mil_passes import gradient
from mil_resume import resume
from mil_stain import stain

CASES = ("musk", "gradient", "memory", "time", "end-to-end", "stain", "resume")


def main() -> None:
    """Run a case."""
    parser = parser_of(__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with bags/musk1.csv")
    parser.add_argument("--pool", choices=list(PUBLISHED), nargs="*", default=list(PUBLISHED))
    parser.add_argument("--out", type=Path, default=Path("mil-benchmark"))
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the trainings of end-to-end and stain")
    given = parsed(parser, out=Path("mil-benchmark-quick"))
    torch.set_num_threads(given.threads)
    calls = {
        "musk": lambda: musk(given.data / "bags" / "musk1.csv", pools=given.pool, quick=given.quick),
        "gradient": lambda: gradient(quick=given.quick),
        "memory": lambda: memory(quick=given.quick),
        "time": lambda: times(quick=given.quick),
        "end-to-end": lambda: [end_to_end(given.out, seed, quick=given.quick) for seed in given.seeds],
        "stain": lambda: stain(given.out, given.seeds, quick=given.quick),
        "resume": lambda: resume(quick=given.quick),
    }
    calls[given.case]()


if __name__ == "__main__":
    main()
