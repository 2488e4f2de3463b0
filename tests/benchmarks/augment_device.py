"""Milliseconds per tile of the torch executor of drawn colour operations, against the float64 formulas in numpy.

::

    python tests/benchmarks/augment_device.py                      # a CPU, 1 and 2 threads, about a minute
    python tests/benchmarks/augment_device.py --compile            # with what torch.compile fuses
    python tests/benchmarks/augment_device.py --device cuda --batch 256 --compile

All sides run in turns in one process; a figure is the median of the rounds, ``x`` is how many times the float64 side
takes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from benchmark import parsed, parser_of, require
from numpy.typing import NDArray
from skimage import color

from slideio_pipe.augment.executors.device import DeviceProgram
from slideio_pipe.augment.operations import Hsv, Lab, Noise, Operation, Stain, Tone
from slideio_pipe.streaming.device import check_device
from slideio_pipe.streaming.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize

Run = Callable[[], Any]
CHAINS = ("stain", "tone+hsv+stain", "lab", "noise")


def operations(name: str, rng: np.random.Generator) -> tuple[Operation, ...]:
    """Return a chain with its own parameters."""
    jitter = np.eye(3) + rng.normal(0, 0.05, (3, 3))
    one = {
        "tone": Tone(brightness=rng.uniform(0.8, 1.2), contrast=rng.uniform(0.8, 1.2)),
        "hsv": Hsv(turn=rng.uniform(-0.1, 0.1), saturation=rng.uniform(-0.1, 0.1)),
        "stain": Stain(matrix=tuple(map(tuple, jitter)), offset=tuple(rng.normal(0, 0.02, 3))),
        "lab": Lab(gain=tuple(rng.uniform(0.8, 1.2, 3)), bias=tuple(rng.uniform(-5, 5, 3))),
        "noise": Noise(sigma=5, seed=int(rng.integers(2**31))),
    }
    return tuple(one[kind] for kind in name.split("+"))


def plain(pixels: NDArray[np.uint8], chain: tuple[Operation, ...]) -> NDArray[np.float16]:
    """Return a normalised (H, W, 3) tile by the definitions, in float64."""
    rgb = pixels.astype(np.float64)
    for step in chain:
        if isinstance(step, Tone):
            rgb = step.curve(rgb)
        elif isinstance(step, Hsv):
            hsv = color.rgb2hsv(rgb / 255)
            hsv[..., 0] = (hsv[..., 0] + step.turn) % 1
            hsv[..., 1] = np.clip(hsv[..., 1] + step.saturation, 0, 1)
            rgb = 255 * color.hsv2rgb(hsv)
        elif isinstance(step, Stain):
            rgb = 256 * np.exp(np.log((rgb + 1) / 256) @ np.array(step.matrix).T - step.offset) - 1
        elif isinstance(step, Lab):
            rgb = 255 * color.lab2rgb(color.rgb2lab(rgb / 255) * step.gain + step.bias)
        elif isinstance(step, Noise):
            rgb = rgb + np.random.default_rng(step.seed).normal(0, step.sigma, rgb.shape)
        rgb = np.clip(rgb, 0, 255)
    return ((rgb / 255 - IMAGENET_MEAN) / IMAGENET_STD).astype(np.float16)


def interleaved(runs: dict[str, Run], rounds: int, device: torch.device) -> dict[str, float]:
    """Return the median seconds of each run; one of each per round, after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for counted in [False] + [True] * rounds:
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if counted:
                times[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in times.items()}


def rows(args: argparse.Namespace, device: torch.device) -> None:
    """Measure and print every chain, with the threads that are set."""
    rng = np.random.default_rng(0)
    smooth = rng.integers(60, 256, (args.batch, args.size // 8, args.size // 8, 3), dtype=np.uint8)
    pixels = smooth.repeat(8, axis=1).repeat(8, axis=2)
    tiles = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device)
    for name in CHAINS:
        chains = [operations(name, rng) for _ in range(args.batch)]
        normalize = Normalize.imagenet()
        program = DeviceProgram(chains, normalize=normalize)
        if name != "noise":  # whose values differ, of one distribution
            ours = program(tiles)[:4].permute(0, 2, 3, 1).float().cpu().numpy()
            exact = np.stack([plain(pixels[k], chains[k]) for k in range(4)]).astype(np.float32)
            apart = float((np.abs(ours - exact) * IMAGENET_STD * 255).max())
            require(apart <= 1.5, f"{name} is {apart:.2f} levels from float64")
        runs: dict[str, Run] = {"eager": lambda program=program: program(tiles)}
        if args.compile:
            fused = DeviceProgram(chains, normalize=normalize, compile=True)
            runs["compiled"] = lambda fused=fused: fused(tiles)
        runs["float64"] = lambda chains=chains: [plain(pixels[k], chains[k]) for k in range(4)]
        report(name, interleaved(runs, args.rounds, device), args.batch)


def report(name: str, seconds: dict[str, float], batch: int) -> None:
    """Print one line; the float64 side did four tiles."""
    each = {side: 1e3 * value / (4 if side == "float64" else batch) for side, value in seconds.items()}
    ratios = {side: f" (x{each['float64'] / value:.1f})" for side, value in each.items() if "float64" in each}
    cells = (
        f"{side} {value:.3f} ms{ratios.get(side, '') if side != 'float64' else ''}" for side, value in each.items()
    )
    print(f"  {name:<16}" + "   ".join(cells), flush=True)


def main() -> None:
    """Print milliseconds per tile for each chain, with one thread and with two."""
    parser = parser_of(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compile", action="store_true")
    args = parsed(parser, batch=4, size=64, rounds=1)
    device = check_device(args.device)
    for threads in (1, 2) if device.type == "cpu" else (1,):
        torch.set_num_threads(threads)
        print(f"{device}, {threads} CPU threads, {args.batch} tiles of {args.size} px, uint8 to float16")
        rows(args, device)


if __name__ == "__main__":
    main()
