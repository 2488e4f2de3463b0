"""Overhead of the loader over decoding, the time to its first chunk, and its memory.

    python tests/benchmarks/loader.py                          # makes a 20,000 × 20,000 slide first
    python tests/benchmarks/loader.py --slide a.svs --rounds 5

Rates are medians over interleaved rounds with their range; ratios are taken within a round. The "plain loop" reads the
same tiles with `bag.read` and as many threads into one buffer and normalises them there, without other work.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from benchmark import parsed, parser_of, require

import slideio_pipe as sp
from slideio_pipe.cohort.cohort_slide import CohortSlide

CONFIG = {"view": {"mpp": "native"}, "tissue": {"method": "none"}, "grid": {"tile_size": 256}}
MB = 1e6


def timed(run: Callable[[], int]) -> tuple[float, float]:
    """Return tiles per second and per CPU-second, with that of worker processes."""
    before, started = used_cpu(), time.perf_counter()
    count = run()
    seconds = time.perf_counter() - started
    return count / seconds, count / max(1e-9, used_cpu() - before)


def used_cpu() -> float:
    """Return the CPU-seconds of this process and of its children that run."""
    every = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in every)


def make_loader(slides: list[Path], tiles: int, threads: int | None, **options: Any) -> sp.BagLoader:
    """Return a loader of a part of each slide; `tiles` that lie together, as dense bags do."""
    dataset = sp.BagDataset(slides, CONFIG)
    dataset.chosen = lambda number, bag, epoch=None: np.arange(min(tiles, len(bag)))  # type: ignore[method-assign]
    usual: dict[str, Any] = {"normalize": sp.Normalize.imagenet(), "device": "cpu", "chunk_size": 64}
    return sp.BagLoader(dataset, threads=threads, **(usual | options))


def drained(loader: sp.BagLoader) -> int:
    """Read every chunk and drop it."""
    return sum(len(chunk) for chunk in loader)


def plain_loop(slide: Path, tiles: int, threads: int, normalize: sp.Normalize | None) -> int:
    """Read the tiles in order, 64 at a time, into one buffer, and normalise them there."""
    bag = sp.BagDataset([slide], CONFIG).open(0)
    tiles = min(tiles, len(bag))
    out = np.empty((64, *bag.shape[1:]), np.uint8)
    for start in range(0, tiles, 64):
        index = np.arange(start, min(start + 64, tiles))
        read = bag.read(index, out[: len(index)], threads=threads)
        if normalize is not None:
            normalize(torch.from_numpy(read).permute(0, 3, 1, 2))
    return tiles


def plain_loader(slide: Path, tiles: int, workers: int) -> int:
    """Read the same tiles as one whole bag through torch's DataLoader with spawned workers."""
    dataset = sp.BagDataset([slide], CONFIG | {"max_tiles": tiles})
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=workers, multiprocessing_context="spawn" if workers else None
    )
    normalize = sp.Normalize.imagenet()
    return sum(len(normalize(whole.tiles)) for whole in loader)


def check(slide: Path) -> None:
    """Compare chunks with their bag."""
    bag = sp.BagDataset([slide], CONFIG).open(0)
    for chunk in make_loader([slide], 32, 2, normalize=None, mix=2, chunk_size=8):
        same = np.array_equal(chunk.tiles.permute(0, 2, 3, 1).numpy(), bag.read(chunk.index))
        require(same, "the loader delivers other tiles than the bag has")


def rates(slide: Path, tiles: int, rounds: int) -> list[dict[str, Any]]:
    """Return rates of every way, as fractions of decoding only."""
    ways: dict[str, Callable[[], int]] = {}
    imagenet = sp.Normalize.imagenet()
    for threads in (1, 2):
        name = f"{threads} thread{'s' if threads > 1 else ''}"
        ways[f"plain loop, bytes, {name}"] = lambda n=threads: plain_loop(slide, tiles, n, None)
        ways[f"plain loop, float16, {name}"] = lambda n=threads: plain_loop(slide, tiles, n, imagenet)
        ways[f"loader, bytes, {name}"] = lambda n=threads: drained(make_loader([slide], tiles, n, normalize=None))
        ways[f"loader, float16, {name}"] = lambda n=threads: drained(make_loader([slide], tiles, n))
        ways[f"loader ordered, float16, {name}"] = lambda n=threads: drained(
            make_loader([slide], tiles, n, ordered=True)
        )
        ways[f"loader mix=4, float16, {name}"] = lambda n=threads: drained(make_loader([slide], tiles, n, mix=4))
    # Processes are started in the first round, which is not counted.
    with_workers = make_loader([slide], tiles, None, workers=2)
    ways["loader, float16, 2 workers"] = lambda: drained(with_workers)
    ways["DataLoader, float16, 1 thread"] = lambda: plain_loader(slide, tiles, 0)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, run in ways.items():
            found[name].append(timed(run))
    with_workers.close()
    rows = []
    for name, values in found.items():
        kept = values[1:]  # the first round warms the file cache
        bound = found["plain loop, " + name.split(", ", 1)[1].replace("workers", "threads")][1:]
        ratios = sorted(value[0] / other[0] for value, other in zip(kept, bound, strict=True))
        per_cpu = sorted(value[1] / other[1] for value, other in zip(kept, bound, strict=True))
        rows.append({
            "what": name, "tiles_per_s": statistics.median(v[0] for v in kept),
            "ratio": [statistics.median(ratios), ratios[0], ratios[-1]],
            "cpu_ratio": [statistics.median(per_cpu), per_cpu[0], per_cpu[-1]],
        })  # fmt: skip
    return rows


def latency(slide: Path, rounds: int) -> dict[str, float]:
    """Return seconds until the first chunk of a whole slide, beside opening it and decoding 64 tiles."""
    first, opening, one_chunk = [], [], []
    for _ in range(rounds + 1):
        loader = make_loader([slide], 10**9, 1)
        started = time.perf_counter()
        with iter(loader) as chunks:
            next(chunks)
            first.append(time.perf_counter() - started)
        started = time.perf_counter()
        bag = sp.BagDataset([slide], CONFIG).open(0)
        opening.append(time.perf_counter() - started)
        started = time.perf_counter()
        bag.read(np.arange(64))
        one_chunk.append(time.perf_counter() - started)
    names = ("first chunk", "opening", "decoding one chunk")
    return {name: statistics.median(v[1:]) for name, v in zip(names, (first, opening, one_chunk), strict=True)}


def memory(slide: Path, slides: int, tiles: int) -> dict[str, Any]:
    """Return resident memory beyond the start: over chunks of 1024 px, and over many slides opened and closed."""
    process = psutil.Process()
    loader = make_loader([slide], 64, 2)
    drained(loader)  # imports, pools, caches
    config = CONFIG | {"grid": {"tile_size": 1024, "stride": 256}}
    large = sp.BagLoader(
        sp.BagDataset([slide], config), device="cpu", normalize=sp.Normalize.imagenet(), chunk_size=32, threads=2
    )
    start, most, count = process.memory_info().rss, 0, 0
    with iter(large) as chunks:
        for chunk in chunks:
            most = max(most, process.memory_info().rss - start)
            count += len(chunk)
            if count >= tiles:
                break
    bag_tiles = len(large.dataset.open(0))
    stated = large.memory.total_bytes
    del chunks, chunk, large
    copies = [CohortSlide(slide, f"slide {k}") for k in range(slides)]
    loader = make_loader(copies, 64, 2)  # type: ignore[arg-type]
    grown = [process.memory_info().rss for chunk in loader if chunk.last]
    require(len(grown) == slides, f"{len(grown)} of {slides} slides were delivered")
    half = len(grown) // 2
    growth = statistics.median(grown[-20:]) - statistics.median(grown[half : half + 20])
    return {
        "bag of 1024 px, tiles": bag_tiles, "read": count, "stated_mb": stated / MB, "resident_mb": most / MB,
        "slides": slides, "growth_mb": growth / MB,
        "files open": process.num_fds(),
    }  # fmt: skip


def main() -> None:
    """Print the table; memory is measured in another process."""
    parser = parser_of(__doc__)
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--tiles", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slides", type=int, default=200, help="opened and closed for the growth of memory")
    parser.add_argument("--large", type=int, default=640, help="tiles of 1024 px read for the resident memory")
    parser.add_argument("--side", type=int, default=20_000, help="of the slide that is made, px")
    parser.add_argument("--memory-only", action="store_true", help=argparse.SUPPRESS)
    args = parsed(parser, tiles=16, rounds=1, slides=4, large=4, side=2304)
    if args.memory_only:
        print(json.dumps(memory(args.slide, args.slides, args.large)))
        return
    with tempfile.TemporaryDirectory() as folder:
        slide = args.slide or Path(folder) / "big.svs"
        if args.slide is None:
            sp.write_synthetic_slide(slide, size=(args.side, args.side), seed=1)
        check(slide)
        for row in rates(slide, args.tiles, args.rounds):
            wall, cpu = ("{:.2f} ({:.2f}–{:.2f})".format(*row[key]) for key in ("ratio", "cpu_ratio"))
            print(
                f"{row['what']:36} {row['tiles_per_s']:8.0f} tiles/s   {wall} of the plain loop, per CPU-second {cpu}"
            )
        for name, seconds in latency(slide, args.rounds).items():
            print(f"{name:36} {seconds * 1000:8.0f} ms")
        command = [sys.executable, __file__, "--memory-only", "--slide", str(slide)]
        command += ["--slides", str(args.slides), "--large", str(args.large)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        for name, value in json.loads(done.stdout).items():
            print(f"{name:36} {value:8.0f}")


if __name__ == "__main__":
    main()
