"""Multiple-instance learning: what its training promises, printed.

python tests/benchmarks/mil.py musk --data ../shared/data      # accuracy beside Ilse et al. 2018, 25 CPU-minutes
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from mil_musk import PUBLISHED, musk

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=["musk"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--pool", choices=list(PUBLISHED), nargs="*", default=list(PUBLISHED))
    given = parser.parse_args()
    torch.set_num_threads(1)
    musk(given.data / "bags" / "musk1.csv", pools=given.pool)
