"""Colours of a stream on the host against the same on the device: milliseconds per 256-px tile, wall and CPU.

::

    python tests/benchmarks/stream_colours.py                  # the CPU as device
    python tests/benchmarks/stream_colours.py --device cuda

The slide is an array, so that next to nothing is decoded. Both sides run in turns; figures are medians of the rounds.
"""

from __future__ import annotations

import time
from typing import Any

import albumentationsxl as A
import numpy as np
import torch
from benchmark import parsed, parser_of, require

import slideio_pipe as sp

CHAINS: dict[str, Any] = {
    "stain": sp.StainJitter(p=1),
    "stain + colour": A.Compose([sp.StainJitter(p=1), sp.ColorJitter(p=1)]),
}


def measured(bag: sp.TileBag, device: str, colours: str) -> tuple[float, float]:
    """Return wall and CPU milliseconds per tile of one whole stream."""
    wall, cpu = time.perf_counter(), time.process_time()
    batches = sp.stream(bag, device=device, normalize=sp.Normalize.imagenet(), batch_size=32, colours=colours)
    count = sum(int(batch.tiles.shape[0] + 0 * float(batch.tiles[0, 0, 0, 0])) for batch in batches)  # waits for each
    return 1e3 * (time.perf_counter() - wall) / count, 1e3 * (time.process_time() - cpu) / count


def main() -> None:
    """Print one line for each chain, drawn once for the slide and once per tile."""
    parser = parser_of(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=4096, help="of the slide, px")
    args = parsed(parser, side=512, rounds=1)
    blocks = np.random.default_rng(0).integers(60, 256, (args.side // 8, args.side // 8, 3), dtype=np.uint8)
    slide = sp.open_slide(blocks.repeat(8, axis=0).repeat(8, axis=1), slide_mpp=0.5)
    for name, transform in CHAINS.items():
        for drawn in ("slide", "tile"):
            view = slide.view(transform=transform if drawn == "slide" else None, seed=1)
            grid = sp.TileGrid(view, tile_size=256)
            bag = sp.TileBag(view, grid, tile_transform=transform if drawn == "tile" else None, seed=1)
            levels = sp.Normalize(0.0, 1.0, rescale=1.0)
            options = {"device": args.device, "normalize": levels, "batch_size": 4, "dtype": torch.float32}
            host, device = (next(sp.stream(bag, colours=c, **options)).tiles for c in ("host", "device"))
            apart = float((host - device).abs().max())
            require(apart <= 1.01, f"{name}: host and device are {apart:.2f} levels apart")
            rounds = [{c: measured(bag, args.device, c) for c in ("host", "device")} for _ in range(args.rounds + 1)]
            cells = []
            for colours in ("host", "device"):
                wall, cpu = np.median([each[colours] for each in rounds[1:]], axis=0)
                cells.append(f"{colours} {wall:.2f} ms wall, {cpu:.2f} ms CPU")
            ratio = np.median([each["device"][1] / each["host"][1] for each in rounds[1:]])
            print(f"{name}, drawn per {drawn}: {'; '.join(cells)}; device takes {ratio:.1f}x the CPU time", flush=True)


if __name__ == "__main__":
    main()
