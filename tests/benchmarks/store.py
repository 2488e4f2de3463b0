"""Bag stores: our shard writer and reader against zarr-python, zarrs and tensorstore, on the same files.

Prints medians of interleaved rounds, in tiles per second of CPU (all threads) and of wall clock, and the ratio to ours.
Run from the repository: ``python tests/benchmarks/store.py [--tiles 1024] [--size 256] [--rounds 5] [--folder DIR]``.
Tiles are cut from a real slide beside the checkout when there is one (overlapping, so that there are enough), else
drawn. Our writer makes every shard durable (fsync); the others do not. Files are in the page cache when read.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr
from benchmark import parsed, parser_of, require

from slideio_pipe.geometry import Mpp
from slideio_pipe.store import open_bag, save_bag

SLIDE = Path(__file__).resolve().parents[3] / "shared/data/slides/CMU-1-Small-Region.svs"
PIPELINES = {
    "zarr-python": "zarr.core.codec_pipeline.BatchedCodecPipeline",
    "zarrs": "zarrs.ZarrsCodecPipeline",
}


class MemoryBag:
    """Tiles in memory, so that only storing is measured."""

    name, label, view_mpp = "memory", 1, Mpp(0.5, 0.5)

    def __init__(self, tiles: np.ndarray) -> None:
        self.tiles, self.shape = tiles, tiles.shape
        self.coords = np.zeros((len(tiles), 2), np.int64)
        self.grid_index = np.zeros((len(tiles), 2), np.int32)
        self.tissue = np.ones(len(tiles), np.float32)

    def __len__(self) -> int:
        return len(self.tiles)

    def read(self, indices, out=None, *, threads: int = 1):
        return np.take(self.tiles, indices, axis=0, out=out)

    def provenance(self) -> dict:
        return {"slide": {"name": self.name}, "view": {"mpp": [0.5, 0.5]}, "label": 1}


def cut_tiles(count: int, size: int) -> np.ndarray:
    """Return (count, size, size, 3) tiles of H&E, or of smooth noise."""
    if SLIDE.exists():
        import openslide

        with openslide.OpenSlide(str(SLIDE)) as slide:
            pixels = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    else:
        coarse = np.random.default_rng(0).integers(120, 250, (75, 56, 3))
        noise = np.random.default_rng(1).integers(0, 8, (3000, 2240, 3))
        pixels = (coarse.repeat(40, 0).repeat(40, 1) + noise).clip(0, 255).astype(np.uint8)
    rng = np.random.default_rng(2)
    x, y = (rng.integers(0, side - size, count) for side in (pixels.shape[1], pixels.shape[0]))
    return np.stack([pixels[b : b + size, a : a + size] for a, b in zip(x, y, strict=True)])


def zarr_write(tiles: np.ndarray, like: Path, path: Path, pipeline: str) -> None:
    """Write the tiles with zarr-python, shard by shard, into an array of the same metadata."""
    shutil.copytree(like, path, ignore=shutil.ignore_patterns("c"))
    with zarr.config.set({"codec_pipeline.path": PIPELINES[pipeline]}):
        array = zarr.open_array(path, mode="r+")
        step = array.shards[0]
        for first in range(0, len(tiles), step):
            array[first : first + step] = tiles[first : first + step]


def writers(tiles: np.ndarray, pixels: str, like: Path, folder: Path) -> dict[str, Callable[[], None]]:
    """Return what writes all tiles, by name."""
    bag, out = MemoryBag(tiles), folder / "written"

    def fresh(write: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            shutil.rmtree(out, ignore_errors=True)
            write()

        return run

    found = {"ours": fresh(lambda: save_bag(bag, out, pixels=pixels))}
    for name in pipelines():
        found[name] = fresh(lambda name=name: zarr_write(tiles, like, out, name))
    return found


def readers(path: Path, batches: list[np.ndarray]) -> dict[str, Callable[[], None]]:
    """Return what reads the tiles of each batch (consecutive ones) into one reused buffer, by name."""
    bag = open_bag(path)
    buffer = np.empty((max(map(len, batches)), *bag.shape[1:]), np.uint8)
    spans = [(int(batch[0]), int(batch[-1]) + 1) for batch in batches]

    def ours(threads: int) -> Callable[[], None]:
        def run() -> None:
            for batch in batches:
                bag.read(batch, buffer[: len(batch)], threads=threads)

        return run

    def by_slice(read: Callable[[slice], np.ndarray]) -> None:
        for first, last in spans:
            buffer[: last - first] = read(slice(first, last))

    def through_zarr(name: str) -> Callable[[], None]:
        with zarr.config.set({"codec_pipeline.path": PIPELINES[name]}):
            array = zarr.open_array(path / "tiles", mode="r")
        return lambda: by_slice(lambda span: array[span])

    found = {"ours": ours(1), "ours, 2 threads": ours(2)}
    found |= {name: through_zarr(name) for name in pipelines()}
    if importlib.util.find_spec("tensorstore"):
        import tensorstore

        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / "tiles")}}
        store = tensorstore.open(spec).result()
        found["tensorstore"] = lambda: by_slice(lambda span: store[span].read().result())
    return found


def pipelines() -> list[str]:
    """The zarr pipelines that are installed."""
    return [name for name, path in PIPELINES.items() if importlib.util.find_spec(path.split(".")[0])]


def compare(title: str, tiles: int, candidates: dict[str, Callable[[], None]], rounds: int) -> None:
    """Run the candidates in turns and print the medians."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name, run in candidates.items():
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            if turn:  # the first round fills caches
                seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    print(f"\n{title}\n{'':18}{'tiles/CPU-s':>14}{'tiles/s':>12}{'ours is (CPU)':>16}{'(wall)':>10}")
    medians = {
        name: [statistics.median(column) for column in zip(*runs, strict=True)] for name, runs in seconds.items()
    }
    own = medians["ours"]
    for name, (cpu, wall) in medians.items():
        print(f"{name:18}{tiles / cpu:14,.0f}{tiles / wall:12,.0f}{cpu / own[0]:15.2f}×{wall / own[1]:9.2f}×")


def main() -> None:
    """Measure writing, reading in sequence, and reading single tiles, for each way to store pixels."""
    parser = parser_of(__doc__)
    parser.add_argument("--tiles", type=int, default=1024)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    options = parsed(parser, tiles=32, size=64, rounds=1, batch=16)
    tiles = cut_tiles(options.tiles, options.size)
    print(f"{len(tiles)} tiles of {options.size}², {os.cpu_count()} cores, Python {sys.version.split()[0]}")
    numbers = np.arange(len(tiles))
    sequence = [numbers[first : first + options.batch] for first in range(0, len(tiles), options.batch)]
    single = [np.array([k]) for k in np.random.default_rng(3).permutation(len(tiles))[:256]]
    for pixels in ("none", "zstd"):
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            folder = Path(name)
            bag = save_bag(MemoryBag(tiles), folder / "bag", pixels=pixels)
            require(np.array_equal(open_bag(bag.path)[:], tiles), f"{pixels}: the bag has other tiles than were saved")
            theirs = zarr.open_array(bag.path / "tiles", mode="r")[:]
            require(np.array_equal(theirs, tiles), f"{pixels}: zarr-python reads other tiles than were saved")
            size = sum(file.stat().st_size for file in bag.path.rglob("*") if file.is_file())
            raw = tiles.nbytes / size
            title = f"write, {pixels} ({raw:.2f} times smaller than raw)"
            compare(title, len(tiles), writers(tiles, pixels, bag.path / "tiles", folder), options.rounds)
            title = f"read in sequence, {options.batch} at a time, {pixels}"
            compare(title, len(tiles), readers(bag.path, sequence), options.rounds)
            compare(f"read one random tile at a time, {pixels}", len(single), readers(bag.path, single), options.rounds)


if __name__ == "__main__":
    main()
