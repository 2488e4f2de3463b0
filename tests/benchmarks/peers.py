"""The whole comparison with other readers: the real slide, and a synthetic one of 40,000 × 40,000 px.

    python -m venv peers && peers/bin/pip install cucim-cu12 click lazy_loader fastslide tiffslide \\
        openslide-python openslide-bin pyvips pyvips-binary simplejpeg tifffile opencv-python-headless
    python tests/benchmarks/peers.py --python peers/bin/python
    python tests/benchmarks/peers.py --python peers/bin/python --slide a.svs --rounds 9 --json > peers.json

What `slideio-pipe bench` does, for both slides. The synthetic slide (levels 1, 4, 16; 140 MB) takes some minutes to
write; ``--slide`` names another to read instead, or the one that was kept. The memory cases run on the last slide only.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from benchmark import parsed, parser_of, require
from rich.console import Console

import slideio_pipe as sp
from slideio_pipe.commands.bench.cases import CASES, READING
from slideio_pipe.commands.bench.peers import OURS
from slideio_pipe.commands.bench.run import compare_readers
from slideio_pipe.commands.bench.tables import print_comparison

REAL = Path(__file__).resolve().parents[3] / "shared/data/slides/CMU-1-Small-Region.svs"


def main() -> None:
    """Compare on every slide there is, and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--python", default=sys.executable, help="the Python that has the other readers installed")
    parser.add_argument("--slide", type=Path, help="the large slide; synthetic when left out")
    parser.add_argument("--side", type=int, default=40_000, help="of the slide that is made, px")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiles", type=int, default=600, help="most tiles per case (600)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parsed(parser, rounds=1, tiles=8, side=2048)
    with tempfile.TemporaryDirectory() as folder:
        large = arguments.slide
        if large is None:
            large = sp.write_synthetic_slide(
                f"{folder}/synthetic.svs", size=(arguments.side, arguments.side), seed=1
            ).path
        slides = {
            path: cases for path, cases in ((REAL, (*READING, "threads")), (large, tuple(CASES))) if path.exists()
        }
        if arguments.quick:
            slides = {large: READING}
        options = {"rounds": arguments.rounds, "tiles": arguments.tiles, "python": arguments.python}
        found = [compare_readers(path, cases=cases, **options) for path, cases in slides.items()]
    for one in found:
        rows = [row for table in one.tables for row in table.rows if row.reader == OURS]
        read = len(rows) == len(one.tables) and all(row.cpu_s is not None or row.note for row in rows)
        require(bool(rows) and read, f"our reader has no figures of {one.slide}")
    if arguments.json:
        print(json.dumps([one.as_json() for one in found], indent=2))
        return
    for one in found:
        print_comparison(one, Console(highlight=False))
        print()


if __name__ == "__main__":
    main()
