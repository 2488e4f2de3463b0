"""How long one reading thread holds Python's lock (the GIL), per tile, and at which rate a process saturates.

    pip install py-spy
    python tests/benchmarks/gil.py                       # every case, 8 seconds each
    python tests/benchmarks/gil.py --case "bag transform" --seconds 20
    python tests/benchmarks/gil.py --saturation          # without py-spy
    python tests/benchmarks/gil.py --workers 2           # CPU time of a loader's process with worker processes

A process reads tiles in one thread as a loader does: it plans a block of 256 tiles, then reads runs of eight into a
buffer. py-spy looks at it 500 times a second and counts how often the thread holds the lock. That share of the CPU-time
per tile is printed: it hardly depends on what else the machine does.

``--saturation`` replaces decoding and compiled programs by sleeps of their own length, and reads with many threads:
what remains is Python, which only one thread runs at a time. The rate is that of a machine with enough cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import albumentationsxl as A
import cv2
import numpy as np
from benchmark import parsed, parser_of, require

import slideio_pipe as sp
from slideio_pipe.compiled import library
from slideio_pipe.tiles.reader import READ_RUN

BLOCK = 256
# Goals, µs per tile with the lock.
GOALS = {"stored": 8, "half": 10, "off grid": 20, "fractional": 25, "stain": 15, "bag transform": 30}
# Measured on one core, ms: a stored tile of 256 px, and the program of a 224-px tile.
DECODE_MS, PROGRAM_MS = 0.17, 0.22


def classic() -> Any:
    """Return the classic transform of bags: turned, cropped from 1024 to 224 px, flipped, jittered."""
    return A.Compose(
        [
            sp.RandomAffine(rotate=25),
            sp.RandomResizedCrop((224, 224), scale=(0.5, 1.5)),
            A.HorizontalFlip(p=0.5),
            A.VerticalFlip(p=0.5),
            sp.ColorJitter(0.2, 0.2, 0.2, 0.05),
        ]
    )


def bag_of(path: Path, case: str) -> sp.TileBag:
    """Return the bag of a case."""
    slide = sp.open_slide(path)
    own = slide.require_mpp().x
    if case == "off grid":
        corners = sp.TileGrid(slide.view(), 256).coords + np.array([13, 77])
        return sp.TileBag.from_coords(slide.view(), corners, 256)
    if case == "bag transform":
        view = slide.view()
        return sp.TileBag(view, sp.TileGrid(view, 1024), tile_transform=classic(), seed=1)
    view = {
        "stored": slide.view,
        "half": lambda: slide.view(mpp=2 * own),
        "fractional": lambda: slide.view(mpp=2.4 * own),
        "stain": lambda: slide.view(transform=sp.StainJitter(), seed=1),
    }[case]()
    return sp.TileBag(view, sp.TileGrid(view, 256))


def of_epoch(bag: sp.TileBag, epoch: int) -> sp.TileBag:
    """Return the bag of another epoch: a loader opens a new one as well."""
    return sp.TileBag(bag.view, bag.grid, tile_transform=bag.tile_transform, seed=1, epoch=epoch)


def blocks_of(bag: sp.TileBag) -> list[np.ndarray]:
    """Return the blocks of an epoch, in storage order."""
    order = bag.storage_order(np.arange(len(bag)))
    return [order[start : start + BLOCK] for start in range(0, len(order), BLOCK)]


def read_for(path: Path, case: str, seconds: float) -> None:
    """Read in this thread for some time; print tiles and CPU-seconds."""
    cv2.setNumThreads(1)
    bag = bag_of(path, case)
    out = np.empty((READ_RUN, *bag.shape[1:]), np.uint8)
    bag.read(np.arange(min(READ_RUN, len(bag))))
    print("ready", flush=True)
    begun, cpu, count, epoch = time.perf_counter(), time.process_time(), 0, 0
    while time.perf_counter() - begun < seconds:
        epoch += 1
        bag = of_epoch(bag, epoch)
        for block in blocks_of(bag):
            bag.plan_ahead(block)
            for start in range(0, len(block), READ_RUN):
                run = block[start : start + READ_RUN]
                bag.read(run, out[: len(run)])
                count += len(run)
            if time.perf_counter() - begun > seconds:
                break
    print(count, time.process_time() - cpu, flush=True)


def with_workers(path: Path, case: str, seconds: float, workers: int) -> float:
    """Return µs of CPU per tile of the process whose loader reads with worker processes; copying a tile included."""
    bag = bag_of(path, case)
    with sp.BagLoader(sp.BagDataset([bag]), device="cpu", normalize=None, workers=workers) as loader:
        sum(len(chunk) for chunk in loader)  # starts the processes
        count, begun, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - begun < seconds:
            count += sum(len(chunk) for chunk in loader)
        return (time.process_time() - cpu) / count * 1e6


def share_with_lock(path: Path, case: str, seconds: float) -> tuple[float, float]:
    """Return the share of its time in which the thread holds the lock, and µs of CPU per tile."""
    command = [sys.executable, __file__, "--read", case, "--slide", str(path), "--seconds", str(seconds)]
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        require(run.stdout.readline().strip() == "ready", f"{case}: the reading process did not start")
        rate, counts = 500, Path(folder) / "counts.txt"
        spy = ["py-spy", "record", "--pid", str(run.pid), "--gil", "--rate", str(rate), "--format", "raw"]
        spy += ["--duration", str(int(seconds) - 1), "--output", str(counts), "--nonblocking"]
        subprocess.run(spy, check=True, capture_output=True)
        held = sum(int(line.rsplit(" ", 1)[1]) for line in counts.read_text().splitlines())
        tiles, took = map(float, run.stdout.readline().split())
    share = held / (rate * (int(seconds) - 1))
    return share, share * took / tiles * 1e6


def saturation(path: Path, threads: int, seconds: float) -> float:
    """Return tiles per second of the classic transform if decoding and programs took no core."""
    slept = {"run": 0, "decode": 0}
    counted = threading.Lock()

    def program(_: Any, tiles: Any, first: int, count: int, width: int, height: int) -> None:
        slept["run"] += 1
        time.sleep(PROGRAM_MS * count / 1e3)

    def decode(_: Any, tiles: Any, longest: int) -> float:
        slept["decode"] += len(tiles)
        time.sleep(DECODE_MS * len(tiles) / 1e3)
        tiles["done"] = 1
        return 0.0

    bag = bag_of(path, "bag transform")
    local, done = threading.local(), [0]

    def read(bag: sp.TileBag, run: np.ndarray) -> None:
        if not hasattr(local, "out"):
            local.out = np.empty((READ_RUN, *bag.shape[1:]), np.uint8)
        bag.read(run, local.out[: len(run)])
        with counted:
            done[0] += len(run)

    library.Programs.run = program  # type: ignore[method-assign]
    library.Programs.decode = decode  # type: ignore[method-assign]
    with ThreadPoolExecutor(threads) as pool:
        begun, epoch = time.perf_counter(), 0
        waiting: list[Any] = []
        while time.perf_counter() - begun < seconds:
            epoch += 1
            bag = of_epoch(bag, epoch)
            for block in blocks_of(bag):
                bag.plan_ahead(block)
                waiting += [pool.submit(read, bag, block[k : k + READ_RUN]) for k in range(0, len(block), READ_RUN)]
                while len(waiting) > 2 * threads:
                    waiting.pop(0).result()
        for each in waiting:
            each.result()
        took = time.perf_counter() - begun
    require(slept["run"] > 0 and slept["decode"] > 0, "the calls were not replaced")
    return done[0] / took


def main() -> None:
    """Print one line per case, or the rate."""
    parser = parser_of(__doc__)
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--case", choices=GOALS, action="append")
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--side", type=int, default=16_384, help="of the slide that is made, px")
    parser.add_argument("--saturation", action="store_true")
    parser.add_argument("--threads", type=int, default=32, help="of --saturation")
    parser.add_argument("--workers", type=int, default=0, help="read by a loader with so many processes")
    parser.add_argument("--read", choices=GOALS, help="read one case in this process")
    args = parsed(parser, seconds=2, side=3072)
    if args.read:
        read_for(args.slide, args.read, args.seconds)
        return
    with tempfile.TemporaryDirectory() as folder:
        size = (args.side, args.side * 3 // 4)
        slide = args.slide or sp.write_synthetic_slide(Path(folder) / "a.svs", size=size, seed=1).path
        if args.saturation:
            print(f"{saturation(slide, args.threads, args.seconds):,.0f} tiles/s (goal 20,000)")
            return
        if args.workers:
            for case in args.case or GOALS:
                each = with_workers(slide, case, args.seconds, args.workers)
                print(f"{case:16} {each:7.1f} µs per tile of a loader with {args.workers} workers")
            return
        print(f"{'case':16} {'share':>7} {'µs per tile':>12} {'goal':>6}   load {os.getloadavg()[0]:.1f}")
        for case in args.case or GOALS:
            share, each = share_with_lock(slide, case, args.seconds)
            print(f"{case:16} {share:7.1%} {each:12.1f} {GOALS[case]:6}")


if __name__ == "__main__":
    main()
