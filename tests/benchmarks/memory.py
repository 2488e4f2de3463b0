"""Peak resident memory of exporting and streaming a slide, each in a process of its own.

    python tests/benchmarks/memory.py                     # makes a 40,000 × 40,000 slide first
    python tests/benchmarks/memory.py --slide a.svs --mpp 0.25

Also proves on the way that what the stream yields is ((x/255) − mean)/std to 0.001 in float16.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmark import parsed, parser_of, require

MB = 1e6


def export(slide: Path, mpp: float, out: Path) -> dict[str, float]:
    """Export the tissue tiles of ``slide``; return count and time."""
    from slideio_pipe.export.config import ExportConfig
    from slideio_pipe.export.slide import export_slide
    from slideio_pipe.slides.config import ViewConfig

    done = export_slide(slide, out, ExportConfig(view=ViewConfig(mpp=mpp)), overwrite=True, progress=False)
    return {"tiles": len(done.bag), "seconds": done.seconds}


def stream_slide(slide: Path, mpp: float, out: Path) -> dict[str, float]:
    """Stream the same tiles from the slide to float16 batches and check every value."""
    import numpy as np
    import torch

    import slideio_pipe as sp

    opened = sp.open_slide(slide)
    view = opened.view(mpp=mpp)
    bag = sp.TileBag(view, sp.TileGrid(view, tissue=sp.find_tissue(opened)))
    normalize = sp.Normalize.imagenet()
    mean, std = (np.array(v)[:, None, None] for v in (normalize.mean, normalize.std))
    stored = sp.open_bag(out)
    started, worst = time.perf_counter(), 0.0
    with sp.stream(bag, batch_size=128, device="cpu", normalize=normalize) as batches:
        for batch in batches:
            k = int(batch.index[0])
            expected = (stored[k].transpose(2, 0, 1) / 255.0 - mean) / std
            worst = max(worst, float(np.abs(batch.tiles[0].to(torch.float64).numpy() - expected).max()))
    return {"tiles": len(bag), "seconds": time.perf_counter() - started, "largest_error": worst}


STEPS = {"export": export, "stream": stream_slide}


def main() -> None:
    """Run both steps, each in a fresh interpreter, and print their peaks."""
    parser = parser_of(__doc__)
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--side", type=int, default=40_000, help="of the slide that is made, px")
    parser.add_argument("--mpp", type=float, default=0.25)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parsed(parser, side=2048)
    if args.step:
        result = STEPS[args.step](args.slide, args.mpp, args.out)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(result | {"peak_mb": peak / MB}))
        return
    with tempfile.TemporaryDirectory() as folder:
        slide = args.slide or Path(folder) / "big.svs"
        if args.slide is None:
            from slideio_pipe.synthetic.slide import write_synthetic_slide

            write_synthetic_slide(slide, size=(args.side, args.side), seed=1)
        for step in STEPS:
            out = Path(folder) / "a.bag.zarr"
            command = [sys.executable, __file__, "--slide", slide, "--mpp", str(args.mpp), "--step", step, "--out", out]
            done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
            r = json.loads(done.stdout)
            require(r["tiles"] > 0, f"{step} found no tile")
            require(r.get("largest_error", 0) <= 1e-3, f"a value is {r.get('largest_error')} from float64")
            error = f", largest error {r['largest_error']:.6f}" if "largest_error" in r else ""
            print(
                f"{step:7} {r['tiles']:7,} tiles in {r['seconds']:6.1f} s, {r['tiles'] / r['seconds']:6.0f} tiles/s, "
                f"peak {r['peak_mb']:.0f} MB resident{error}"
            )


if __name__ == "__main__":
    main()
