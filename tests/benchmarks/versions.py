"""This checkout against another one: tiles per second of CPU, read, streamed and exported, in turns.

    python tests/benchmarks/versions.py --before ../slideio-pipe-before [--slide a.svs] [--rounds 5]

``--before`` is the folder of a checkout of another version. Every run is a process of its own with two threads, whose
``PYTHONPATH`` is one of the checkouts; the two versions alternate. Printed are medians, the ratio of medians, and the
ratios of each round from lowest to highest: of processes on a shared machine, a ratio within that range is noise.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmark import parsed, parser_of, require

ROOT = Path(__file__).resolve().parents[2]
CASES = ("on grid", "off grid", "half", "0.6 µm", "stain", "bag transform", "random", "tissue", "export")
# Runs in each version: public names only, so that it fits old and new ones.
CODE = """
import json, sys, tempfile, time, warnings
import albumentationsxl as A, numpy as np
import slideio_pipe as sp
case, path, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
warnings.simplefilter("ignore")
slide = sp.open_slide(path)
mpp = {"half": slide.mpp.x * 2, "0.6 µm": 0.6}.get(case)
colours = A.Compose([sp.StainJitter()]) if case == "stain" else None
parts = [sp.RandomResizedCrop((224, 224), scale=(0.5, 1)), sp.Flip(), sp.StainJitter(), sp.ColorJitter(0.1, 0.1, 0.1)]
tiles = A.Compose(parts) if case == "bag transform" else None
view = slide.view(mpp=mpp, transform=colours, seed=1)
grid = sp.TileGrid(view, 256, stride=192 if case == "off grid" else 256)
bag = sp.TileBag(view, sp.TileGrid.from_coords(view, grid.coords[:limit], 256, nearest=True), tile_transform=tiles)
order = np.random.default_rng(0).permutation(len(bag))
sp.save_bag  # imported
clock = time.process_time()
if case == "random":
    count = sum(len(bag.read(order[k : k + 1])) for k in range(len(order)))
elif case == "tissue":
    count = len([sp.find_tissue(slide) for _ in range(4)])
elif case == "export":
    with tempfile.TemporaryDirectory() as folder:
        count = len(sp.save_bag(bag, folder + "/a.bag.zarr", pixels="source", threads=2, progress=False))
else:
    normalize = sp.Normalize.imagenet()
    count = sum(len(b.tiles) for b in sp.stream(bag, device="cpu", normalize=normalize, batch_size=64, threads=2))
print(json.dumps(count / (time.process_time() - clock)))
"""


def rate(checkout: Path, case: str, slide: Path, limit: int) -> float:
    """Return tiles (or masks) per second of CPU of one version."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, case, str(slide), str(limit)],
        env=os.environ | {"PYTHONPATH": str(checkout)},
        cwd=tempfile.gettempdir(),
        capture_output=True,
        text=True,
        check=False,
    )
    require(done.returncode == 0, f"{case} in {checkout}: {done.stderr[-1500:]}")
    return float(json.loads(done.stdout))


def main() -> None:
    """Run every case in both versions, in turns."""
    parser = parser_of(__doc__)
    parser.add_argument("--before", type=Path, default=ROOT, help="checkout of another version")
    parser.add_argument("--slide", type=Path, help="a slide; a synthetic one of 8192² px by default")
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiles", type=int, default=1000)
    given = parsed(parser)
    side = 8192
    if given.quick:
        given.rounds, given.tiles, given.cases, side = 1, 12, ("on grid", "export"), 1024
    with tempfile.TemporaryDirectory() as folder:
        slide = given.slide
        if slide is None:
            from slideio_pipe import write_synthetic_slide

            slide = write_synthetic_slide(Path(folder) / "a.svs", size=(side, side), seed=1).path
        print(f"{'case':16}{'before':>10}{'now':>10}{'ratio':>8}   rounds")
        for case in given.cases:
            rounds = [[rate(c, case, slide, given.tiles) for c in (given.before, ROOT)] for _ in range(given.rounds)]
            before, now = (statistics.median(column) for column in zip(*rounds, strict=True))
            ratios = sorted(after / old for old, after in rounds)
            print(f"{case:16}{before:10,.0f}{now:10,.0f}{now / before:8.2f}   {ratios[0]:.2f} to {ratios[-1]:.2f}")


if __name__ == "__main__":
    main()
