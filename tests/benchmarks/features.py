"""Features of many small slides compared with a plain loop per slide, and the idle time of the device.

    python tests/benchmarks/features.py                    # makes 32 slides of 2048 × 1536 px first
    python tests/benchmarks/features.py --slides 8 --rounds 3 --tile-ms 5

The plain loop is a typical extraction script: slide after slide, OpenSlide reads a tile, Pillow resizes it, and it is
converted to a normalised float tensor; a batch ends with its slide. The loop gets the coordinates; we find the tissue.
The encoder is a small CNN; for the idle time it is a device that takes `--tile-ms` for each tile and no CPU. Its idle
share is the time between its first batch and the end of its last one in which it computes nothing.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import psutil
import torch
from benchmark import parsed, parser_of, require
from PIL import Image
from torch import nn

import slideio_pipe as sp

TILE, SIDE, BATCH = 256, 224, 64
CONFIG = {"view": {"mpp": "native"}, "grid": {"tile_size": TILE}}
MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


class Device(nn.Module):
    """A small CNN, or a device that takes a given time; records when it computes."""

    def __init__(self, tile_ms: float | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tile_ms, self.spans = tile_ms, list[tuple[float, float]]()
        self.network = nn.Sequential(
            nn.Conv2d(3, 16, 7, 4), nn.ReLU(), nn.Conv2d(16, 64, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Return 64 features per tile."""
        begun = time.perf_counter()
        if self.tile_ms is None:
            found = self.network(tiles)
        else:
            time.sleep(1e-3 * self.tile_ms * len(tiles))
            found = torch.zeros(len(tiles), 64)
        self.spans.append((begun, time.perf_counter()))
        return found

    def idle(self) -> float:
        """Return the share of time without computation, and reset it."""
        busy, whole = sum(b - a for a, b in self.spans), self.spans[-1][1] - self.spans[0][0]
        self.spans.clear()
        return 1 - busy / whole


def plain_loop(slides: list[Path], places: dict[str, np.ndarray], device: Device) -> int:
    """Encode slide after slide, tile after tile."""
    count = 0
    for path in slides:
        slide, waiting, found = openslide.OpenSlide(path), [], []
        with torch.inference_mode():
            for k, (x, y) in enumerate(places[path.name].tolist()):
                tile = slide.read_region((x, y), 0, (TILE, TILE)).convert("RGB")
                tile = tile.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                pixels = torch.from_numpy(np.array(tile)).permute(2, 0, 1).float().div(255)
                waiting.append((pixels - MEAN) / STD)
                if len(waiting) == BATCH or k + 1 == len(places[path.name]):
                    found.append(device(torch.stack(waiting)).half())
                    waiting = []
        slide.close()
        count += sum(map(len, found))
    return count


def timed(run: Callable[[], int]) -> tuple[int, float, float]:
    """Return tiles, seconds and CPU-seconds."""
    process = psutil.Process()
    before, started = process.cpu_times(), time.perf_counter()
    count = run()
    seconds, after = time.perf_counter() - started, process.cpu_times()
    return count, seconds, after.user + after.system - before.user - before.system


def compare(slides: list[Path], rounds: int, tile_ms: float | None, scratch: Path) -> None:
    """Print rates, ratios and idle shares of both, in turns."""
    device = Device(tile_ms).eval()
    encoder = sp.load_encoder(device, name="cnn", normalize="imagenet", input_size=SIDE)
    places: dict[str, np.ndarray] = {}
    figures: dict[str, list[tuple[float, float, float]]] = {"ours": [], "plain": []}
    for turn in range(rounds + 1):
        out = scratch / f"out-{tile_ms}-{turn}"

        def ours(out: Path = out) -> int:
            done = sp.encode_cohort(slides, encoder, out, CONFIG, device="cpu", batch_size=BATCH, progress=False)
            return done.tiles

        device.spans.clear()
        count, seconds, cpu = timed(ours)
        idle = device.idle()
        for path in slides:
            coords = sp.open_features(out / f"{path.stem}.features.zarr").coords
            assert coords is not None
            places[path.name] = coords
        if not turn:  # to warm up, and to place the tiles
            continue
        figures["ours"].append((count / seconds, count / cpu, idle))
        same, seconds, cpu = timed(lambda: plain_loop(slides, places, device))
        require(same == count == sum(map(len, places.values())), f"{count} and {same} tiles were encoded")
        figures["plain"].append((count / seconds, count / cpu, device.idle()))
    what = "a small CNN on the CPU" if tile_ms is None else f"a device of {tile_ms:g} ms per tile"
    print(f"{what}: {len(slides)} slides, {count:,} tiles, {rounds} rounds")
    for name, rows in figures.items():
        rate, cpu_rate, idle = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"  {name}: {rate:,.0f} tiles/s, {cpu_rate:,.0f} tiles per CPU-second, device idle {idle:.1%}")
    for what, place in (("wall", 0), ("CPU", 1)):
        ratios = [a[place] / b[place] for a, b in zip(figures["ours"], figures["plain"], strict=True)]
        print(f"  ours / plain, {what}: {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("--slides", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tile-ms", type=float, default=10.0)
    given = parsed(parser, slides=2, rounds=1, tile_ms=1.0)
    with tempfile.TemporaryDirectory() as folder:
        made = [Path(folder) / f"s{k}.svs" for k in range(given.slides)]
        for k, path in enumerate(made):
            sp.write_synthetic_slide(path, size=(2048, 1536), seed=k)
        for tile_ms in (None, given.tile_ms):
            compare(made, given.rounds, tile_ms, Path(folder))
