"""Costs of two passes: memory for bags of any size, and time compared with plain back-propagation."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark import require
from mil_passes import in_two_passes, plain
from numpy.typing import NDArray
from torch import Tensor, nn

import slideio_pipe as sp
from slideio_pipe.geometry import Mpp
from slideio_pipe.mil.config import load_train_config
from slideio_pipe.mil.models.mil_model import MilModel
from slideio_pipe.mil.models.small_encoder import SmallEncoder
from slideio_pipe.mil.models.tile_encoder import tile_encoder
from slideio_pipe.mil.sources import PixelSource

ROOT = Path(__file__).resolve().parents[2]
_SIDE, _CHUNK = 224, 64
_COUNTS = (100, 1000, 10_000)


class Block(nn.Module):
    """A residual block of ResNet-18 (He et al. 2016)."""

    def __init__(self, width: int, wider: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, wider, 3, stride, 1, bias=False), nn.BatchNorm2d(wider), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(wider, wider, 3, 1, 1, bias=False), nn.BatchNorm2d(wider))
        same = stride == 1 and width == wider
        self.short = nn.Identity() if same else nn.Sequential(nn.Conv2d(width, wider, 1, stride), nn.BatchNorm2d(wider))

    def forward(self, tiles: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(tiles)) + self.short(tiles))


def resnet() -> nn.Module:
    """Return ResNet-18 without its classifier."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    width = 64
    for wider, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(width, wider, stride), Block(wider, wider, 1)]
        width = wider
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


# -- memory ------------------------------------------------------------------------------------------------------------


class Drawn:
    """A bag of any size without a slide, whose tiles are computed when they are read."""

    name, label, view_mpp = "drawn", 1, Mpp(0.5, 0.5)

    def __init__(self, count: int) -> None:
        self.shape = (count, _SIDE, _SIDE, 3)
        self.coords = np.stack([np.arange(count) * _SIDE, np.zeros(count, int)], 1)
        self.grid_index = (self.coords // _SIDE).astype(np.int32)
        self.tissue = np.ones(count, np.float32)
        self._one = np.random.default_rng(0).integers(0, 256, self.shape[1:], dtype=np.uint8)

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, indices: Any, out: NDArray[np.uint8] | None = None, *, threads: int = 1) -> NDArray[np.uint8]:
        out = np.empty((len(indices), *self.shape[1:]), np.uint8) if out is None else out
        out[:] = self._one
        out[:, 0, 0, 0] = np.asarray(indices) % 256
        return out

    def provenance(self) -> dict[str, Any]:
        return {"slide": {"name": self.name}, "view": {"mpp": [0.5, 0.5]}, "grid": {"tile_size": _SIDE}}


def memory(*, quick: bool = False) -> None:
    """Print the peak memory of a step, each in its own process."""
    kind = "max_memory_allocated" if torch.cuda.is_available() else "peak resident"
    print(f"| tiles of {_SIDE} px | keep_gb | {kind}, MB | more than before the step, MB |\n|---|---|---|---|")
    for keep in ("0",) if quick else ("0", "default"):
        for count in (1000,) if quick else _COUNTS:
            done = subprocess.run(
                [sys.executable, "-W", "ignore", __file__, str(count), keep],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                check=True,
            )
            peak, before = json.loads(done.stdout)
            floats = count * _SIDE * _SIDE * 3 * 4 / 1e6  # MB of all tiles as the encoder takes them
            require(count < 1000 or peak - before < floats, f"{peak - before:.0f} MB for {count} tiles")
            require(peak >= before > 0, f"a peak of {peak} MB after {before} MB")
            print(f"| {count:,} | {keep} | {peak:,.0f} | {peak - before:,.0f} |", flush=True)


def step(count: int, keep: str) -> None:
    """Make one step over a bag, through the loader, and print its memory."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    keep_gb = None if keep == "default" else float(keep)
    config = load_train_config({"encoder": {"source": "small", "chunk_size": _CHUNK, "keep_gb": keep_gb}})
    prepare = tile_encoder(None, "small", None).prepare
    # The cheapest encoder: the memory measured is that of the tiles.
    encoder = nn.Sequential(nn.Conv2d(3, 16, 16, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).to(device)
    model = MilModel(16, 1, embed=(16,), attention=8).to(device)
    in_two_passes(encoder, model, [torch.rand(_CHUNK, 3, _SIDE, _SIDE, device=device)])
    source = PixelSource(sp.Cohort.of([Drawn(count)]), device, config, prepare, augment=True)
    before = peak(device)
    for example in source.epoch(0, shuffle=True):
        assert example.pixels is not None
        in_two_passes(encoder, model, example.pixels)
    print(json.dumps([peak(device), before]))
    source.close()


def peak(device: torch.device) -> float:
    """Return the largest memory so far, MB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


# -- time --------------------------------------------------------------------------------------------------------------


def times(rounds: int = 5, *, quick: bool = False) -> None:
    """Print CPU time of two passes divided by that of plain back-propagation, measured in turn."""
    print("| encoder | bag | two passes / plain: CPU time, median (least to most) | wall time |\n|---|---|---|---|")
    cases: list[tuple[str, nn.Module, int, int, int]] = [
        ("small", SmallEncoder(64), 64, 512, 64),
        ("like ResNet-18", resnet(), 512, 192, 64),
    ]
    if quick:
        rounds, cases = 1, [("small", SmallEncoder(64), 64, 130, 32)]
    for name, encoder, width, count, side in cases:
        encoder.eval()
        model, tiles = MilModel(width, 1, dropout=0.0), torch.rand(count, 3, side, side)
        ratios = [
            ratio(lambda e=encoder, m=model, t=tiles: in_two_passes(e, m, t.split(_CHUNK)),
                  lambda e=encoder, m=model, t=tiles: plain(e, m, t))
            for _ in range(rounds + 1)
        ][1:]  # fmt: skip
        cpu = statistics.median(each[0] for each in ratios)
        require(0.2 < cpu < 5, f"two passes take {cpu:.1f} times the CPU time of one")
        cells = [
            f"{statistics.median(column):.2f} ({min(column):.2f} to {max(column):.2f})"
            for column in zip(*ratios, strict=True)
        ]
        print(f"| {name} | {count} tiles of {side} px | {cells[0]} | {cells[1]} |", flush=True)


def ratio(ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[float, float]:
    """Return CPU and wall time of one call over another's."""
    spent = []
    for call in (ours, theirs):
        cpu, wall = time.process_time(), time.perf_counter()
        call()
        spent.append((time.process_time() - cpu, time.perf_counter() - wall))
    return spent[0][0] / spent[1][0], spent[0][1] / spent[1][1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    step(int(sys.argv[1]), sys.argv[2])
