"""Bags of JPEG bytes: costs of writing and reading, sizes, and the effect of chroma subsampling.

Run from the repository: ``python tests/benchmarks/store_jpeg.py [SLIDE] [--tiles 4096] [--rounds 5] [--folder DIR]``.
SLIDE is tiled JPEG; without one, a slide of 12,288² is generated. The bag is of stored tiles with half or more tissue;
``--min-tissue 0`` also uses glass, whose tiles are so small that JPEG tables are a third of each.

- export: ``save_bag(pixels="source")`` against ``pixels="zstd"`` of the same bag, CPU-seconds and wall time, in turns;
  medians of the ratios with their range. Size is relative to the bytes of those tiles in the slide.
- reading: ``open_bag(...).read`` in sequence against a loop of ``simplejpeg.decode_jpeg`` over the same bytes, which
  are in memory for the loop. Different pixels are an error.
- chroma: JPEG of several qualities of tiles that were never JPEG before (a slide of JPEG 2000 beside the checkout,
  when there is one; else the generated slide's, halved) with full and with halved chroma.

Files are in the page cache. Every shard is made durable (fsync), which costs wall time and no CPU.
"""

from __future__ import annotations

import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import simplejpeg
import tifffile
from benchmark import parsed, parser_of, require
from numpy.typing import NDArray

from slideio_pipe import TileBag, TileGrid, find_tissue, open_bag, open_slide, save_bag, write_synthetic_slide

JPEG2000 = Path(__file__).resolve().parents[3] / "shared/data/slides/TCGA-CR-7395-01A-01-TS1.svs"
BATCH = 64

Cost = tuple[float, float]  # seconds of CPU and of wall clock


def timed(run: Callable[[], object]) -> Cost:
    """Return the cost of a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def in_turns(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[Cost]]:
    """Return the costs of each, measured in turn; the first round fills caches and is not counted."""
    costs: dict[str, list[Cost]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            cost = timed(run)
            if turn:
                costs[name].append(cost)
    return costs


def print_costs(title: str, costs: dict[str, list[Cost]], tiles: int) -> None:
    """Print medians, and how many times the first is faster than each, with the range over the rounds."""
    first = next(iter(costs.values()))
    print(f"\n{title}\n{'':26}{'tiles/CPU-s':>12}{'tiles/s':>10}{'CPU of it ÷ CPU of first':>32}{'wall':>8}")
    for name, runs in costs.items():
        cpu, wall = (statistics.median(run[k] for run in runs) for k in (0, 1))
        ratios = sorted(run[0] / own[0] for run, own in zip(runs, first, strict=True))
        walls = statistics.median(run[1] / own[1] for run, own in zip(runs, first, strict=True))
        output = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        print(f"{name:26}{tiles / cpu:12,.0f}{tiles / wall:10,.0f}{output:>32}{walls:8.2f}")


def bag_of(slide: Path, count: int, min_tissue: float) -> TileBag:
    """Return the first stored tiles of a slide, on its own grid, in raster order."""
    opened = open_slide(slide)
    view = opened.view()
    tissue = find_tissue(opened) if min_tissue else None
    grid = TileGrid(view, view.slide.tile_sizes[0].width, align=True, tissue=tissue, min_tissue=min_tissue)
    return TileBag.from_coords(view, grid.coords[:count], grid.tile_size)


def compare_exports(slide: Path, bag: TileBag, folder: Path, rounds: int) -> None:
    """Measure writing, and print sizes against the bytes of the tiles in the slide."""

    def saving(pixels: str) -> Callable[[], object]:
        def run() -> None:
            shutil.rmtree(folder / pixels, ignore_errors=True)
            save_bag(bag, folder / pixels, pixels=pixels, progress=False)

        return run

    runs = {pixels: saving(pixels) for pixels in ("source", "zstd", "jpeg:90")}
    print_costs(f"export of {len(bag):,} tiles of {bag.shape[1]}²", in_turns(runs, rounds), len(bag))
    with tifffile.TiffFile(slide) as tif:
        columns, counts = -(-tif.pages[0].imagewidth // bag.shape[1]), tif.pages[0].databytecounts
        own = sum(counts[y * columns + x] for x, y in (bag.grid.origins // bag.shape[1]).tolist())
    print(f"\nbytes of the tiles in the slide: {own:,}, {own / len(bag):,.0f} per tile")
    for pixels in runs:
        size = sum(file.stat().st_size for file in (folder / pixels).rglob("*") if file.is_file())
        print(f"{pixels:10}{size:14,} bytes, {size / own:6.3f} times those in the slide")


def compare_reading(bag: TileBag, folder: Path, rounds: int) -> None:
    """Measure reading in sequence against the bare decoder."""
    stored = open_bag(folder / "source")
    require(bool((stored[:100] == bag[:100]).all()), "the bag has other pixels than the slide")
    tiles = bag.view.slide.stored_tiles(0)
    assert tiles is not None
    streams = [tiles.stream(int(x), int(y)) for x, y in bag.grid.origins // bag.shape[1]]
    numbers = np.arange(len(bag))
    slots = np.empty((BATCH, *bag.shape[1:]), np.uint8)

    def ours(threads: int) -> Callable[[], object]:
        def run() -> None:
            for first in range(0, len(bag), BATCH):
                batch = numbers[first : first + BATCH]
                stored.read(batch, slots[: len(batch)], threads=threads)

        return run

    def bare(part: int, parts: int) -> None:
        for k in range(part, len(streams), parts):
            simplejpeg.decode_jpeg(streams[k], colorspace="RGB", buffer=slots[k % BATCH])

    def bare_in_two() -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(bare, (0, 1), (2, 2)))

    for k in (0, len(bag) // 2, len(bag) - 1):
        same = bool((stored[k] == simplejpeg.decode_jpeg(streams[k])).all())
        require(same, "the bag has other pixels than simplejpeg decodes")
    runs = {"bare simplejpeg loop": lambda: bare(0, 1), "open_bag": ours(1)}
    runs |= {"bare loop, 2 threads": bare_in_two, "open_bag, 2 threads": ours(2)}
    print_costs(f"reading in sequence, {BATCH} at a time", in_turns(runs, rounds), len(bag))


def chroma_table(tiles: NDArray[np.uint8]) -> None:
    """Print size, PSNR and cost of JPEG with halved and full chroma."""
    print(f"\nchroma, {len(tiles)} tiles of {tiles.shape[1]}²")
    print(f"{'quality':>8}{'chroma':>8}{'kB':>8}{'of raw':>9}{'PSNR dB':>9}{'encode ms':>11}{'decode ms':>11}")
    for quality in (50, 75, 80, 85, 90, 95):
        for chroma in ("420", "444"):
            start = time.process_time()
            options = {"quality": quality, "colorspace": "RGB", "colorsubsampling": chroma}
            encoded = [simplejpeg.encode_jpeg(tile, **options) for tile in tiles]
            encoding = time.process_time() - start
            start = time.process_time()
            decoded = [simplejpeg.decode_jpeg(data) for data in encoded]
            decoding = time.process_time() - start
            size = sum(map(len, encoded)) / len(tiles)
            psnr = 10 * math.log10(255**2 / np.square(np.stack(decoded).astype(np.float64) - tiles).mean())
            ms = [1000 * seconds / len(tiles) for seconds in (encoding, decoding)]
            row = f"{quality:8}{':'.join(chroma):>8}{size / 1e3:8.1f}{tiles[0].nbytes / size:8.1f}×{psnr:9.2f}"
            print(f"{row}{ms[0]:11.2f}{ms[1]:11.2f}")


def raw_tiles(slide: Path) -> NDArray[np.uint8]:
    """Return some tiles without earlier JPEG blocks of 8 px: of JPEG 2000, or halved."""
    source = JPEG2000 if JPEG2000.exists() else slide
    with open_slide(source, slide_mpp=0.25) as opened:
        view = opened.view(mpp=None if source == JPEG2000 else 0.5)
        return TileBag(view, TileGrid(view))[::4]


def main() -> None:
    """Measure export and reading of a slide's own bytes, then print the effect of chroma subsampling."""
    parser = parser_of(__doc__)
    parser.add_argument("slide", type=Path, nargs="?")
    parser.add_argument("--tiles", type=int, default=4096, help="how many of the slide's tiles (default 4096)")
    parser.add_argument("--min-tissue", type=float, default=0.5)
    parser.add_argument("--side", type=int, default=12288, help="of the slide that is made, px")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    options = parsed(parser, tiles=16, rounds=1, side=2048)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        slide = options.slide
        if slide is None:
            slide = folder / "generated.svs"
            write_synthetic_slide(slide, size=(options.side, options.side), seed=1)
        bag = bag_of(slide, options.tiles, options.min_tissue)
        print(f"{slide.name}: {bag}")
        compare_exports(slide, bag, folder, options.rounds)
        compare_reading(bag, folder, options.rounds)
        chroma_table(raw_tiles(slide))


if __name__ == "__main__":
    main()
