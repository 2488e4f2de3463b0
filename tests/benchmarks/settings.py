"""What settings change: tiles, bytes, CPU time, memory, rounding. The tables of examples/guide/17_settings.md.

    python tests/benchmarks/settings.py [SLIDE] [--rounds 3]

SLIDE is a tiled JPEG slide of 0.25 µm; without one, a slide of 16,384 × 12,288 px is generated. Times are medians of
the CPU-seconds of all threads, because other work changes them less than wall time. Files are in the page cache.

- tiles: every resolution and tile size: number of tiles, part of the tissue in them, streaming them as float16.
- pixels: a bag in every form of storage: size, largest difference of a value, writing, reading.
- chunks: memory of a loader as it states it, and the time until its first chunk.
- max_tiles: an epoch over part of the tiles.
- draws: stains per slide or per tile, turns per tile.
- dtype: bytes of a tile and the largest error over all bytes against float64.
"""

from __future__ import annotations

import pickle
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark import parsed, parser_of, require

import slideio_pipe as sp

IMAGENET = sp.Normalize.imagenet()


def cpu_s(run: Callable[[Any], object], bag: Any, rounds: int) -> float:
    """Return the median CPU-seconds of a call for a bag, none of whose tiles are in memory."""
    run(pickle.loads(pickle.dumps(bag)))  # fills the caches of files
    costs = []
    for _ in range(rounds):
        opened = pickle.loads(pickle.dumps(bag))
        begin = time.process_time()
        run(opened)
        costs.append(time.process_time() - begin)
    return statistics.median(costs)


def stream_all(bag: Any, indices: Any = None) -> int:
    """Stream tiles of a bag to float16, and return their number."""
    batches = sp.stream(bag, device="cpu", normalize=IMAGENET, batch_size=32, threads=1, indices=indices)
    return sum(len(batch) for batch in batches)


def print_tiles(slide: sp.Slide, tissue: sp.TissueMask, rounds: int) -> None:
    """Resolutions and tile sizes."""
    print("| mpp | tile size | tile, µm | tiles | of the tissue | Mpx | CPU-s | ms per tile |")
    print("|---|---|---|---|---|---|---|---|")
    counts = {}
    for mpp in (0.25, 0.5, 1.0):
        for size in (224, 256, 512, 1024):
            view = slide.view(mpp=mpp)
            if size > min(view.size):
                continue
            grid = sp.TileGrid(view, tile_size=size, tissue=tissue)
            bag = sp.TileBag(view, grid)
            require(stream_all(bag) == len(grid), "tiles are missing")
            counts[mpp, size] = len(grid)
            spent = cpu_s(stream_all, bag, rounds)
            each = spent / max(len(grid), 1) * 1000
            print(
                f"| {mpp} | {size} | {size * mpp:.0f} | {len(grid):,} | {grid.covered():.0%} "
                f"| {len(grid) * size * size / 1e6:.0f} | {spent:.2f} | {each:.2f} |"
            )
    require(3 < counts[0.25, 256] / counts[0.5, 256] < 5, "half the resolution has about a quarter of the tiles")


def print_pixels(slide: sp.Slide, tissue: sp.TissueMask, folder: Path, rounds: int) -> None:
    """Forms of storage, of the same tiles at level 0."""
    view = slide.view()
    bag = sp.TileBag(view, sp.TileGrid(view, align=True, tissue=tissue))
    print(f"\n{len(bag):,} tiles of {bag.shape[1]} px, level 0")
    print("| pixels | MB | largest difference | write, CPU-s | read, CPU-s |\n|---|---|---|---|---|")
    sizes = {}
    plain = bag[:200].astype(np.int16)
    for pixels in ("none", "zstd", "jpeg:90", "jpeg:80", "source"):
        path = folder / f"{pixels.replace(':', '')}.bag.zarr"
        wrote = cpu_s(partial(sp.save_bag, path=path, pixels=pixels, overwrite=True, progress=False), bag, rounds)
        stored = sp.open_bag(path)
        difference = int(np.abs(stored[:200] - plain).max())
        require(pixels.startswith("jpeg") or difference == 0, f"{pixels} is lossless")
        sizes[pixels] = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        read = cpu_s(stream_all, stored, rounds)
        print(f"| {pixels} | {sizes[pixels] / 1e6:.1f} | {difference} | {wrote:.2f} | {read:.2f} |")
    require(sizes["source"] < sizes["zstd"] < sizes["none"], "sizes are in this order")


def print_loaders(slide: sp.Slide, tissue: sp.TissueMask, rounds: int) -> None:
    """Chunk sizes, limits of tiles, draws."""
    view = slide.view(mpp=0.5)
    grid = sp.TileGrid(view, tile_size=256, tissue=tissue)
    bag = sp.TileBag(view, grid, label=1)
    print("\n| chunk_size | memory, MB | first chunk, ms |\n|---|---|---|")
    for size in (16, 64, 256):
        loader = sp.BagLoader(sp.BagDataset([bag]), device="cpu", normalize=IMAGENET, chunk_size=size, threads=1)
        begin = time.perf_counter()
        next(iter(loader))
        first = time.perf_counter() - begin
        loader.close()
        print(f"| {size} | {loader.memory.total_bytes / 1e6:.0f} | {first * 1000:.0f} |")
    print("\n| max_tiles | tiles | epoch, CPU-s |\n|---|---|---|")
    for most in (50, 200, None):
        some = np.arange(len(bag)) if most is None else np.sort(np.random.default_rng(0).permutation(len(bag))[:most])
        spent = cpu_s(partial(stream_all, indices=some), bag, rounds)
        print(f"| {most} | {len(some)} | {spent:.2f} |")
    jitter, turns, affine = sp.StainJitter(alpha=0.2), sp.Flip(), sp.RandomAffine(rotate=180)
    stained = slide.view(mpp=0.5, transform=jitter)
    kinds = {
        "none": bag,
        "stains, per slide": sp.TileBag(stained, sp.TileGrid(stained, tile_size=256, tissue=tissue)),
        "stains, per tile": sp.TileBag(view, grid, tile_transform=jitter),
        "mirrors, per tile": sp.TileBag(view, grid, tile_transform=turns),
        "any turn, per tile": sp.TileBag(view, grid, tile_transform=affine),
    }
    print("\n| draws | ms per tile |\n|---|---|")
    for name, each in kinds.items():
        print(f"| {name} | {cpu_s(stream_all, each, rounds) / len(each) * 1000:.2f} |")


def print_dtypes() -> None:
    """Bytes and errors of the normalised values."""
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    mean, std = (np.asarray(values)[:, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    exact = (np.arange(256)[None] / 255 - mean) / std
    print("\n| dtype | a tile of 256 px, kB | largest error | of a grey level |\n|---|---|---|---|")
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        values = sp.Normalize.imagenet(dtype=dtype)(levels).to(torch.float64).reshape(3, 256).numpy()
        error = np.abs(values - exact).max()
        require(error < {torch.float16: 0.001, torch.bfloat16: 0.0079, torch.float32: 1e-6}[dtype], str(dtype))
        print(
            f"| {str(dtype)[6:]} | {3 * 256**2 * dtype.itemsize / 1000:.0f} | {error:.2g} | {error * 255 * 0.224:.1%} |"
        )


def main() -> None:
    """Read the command line and print the tables."""
    parser = parser_of(__doc__)
    parser.add_argument("slide", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    given = parsed(parser, rounds=1)
    with tempfile.TemporaryDirectory() as folder:
        path = given.slide
        if path is None:
            size = (3072, 3072) if given.quick else (16384, 12288)
            path = sp.write_synthetic_slide(Path(folder) / "a.svs", size=size, seed=4).path
        slide = sp.open_slide(path)
        tissue = sp.find_tissue(slide, mpp=4)
        print(f"{slide}, {tissue.area_um2 / 1e6:.1f} mm² of tissue\n")
        print_tiles(slide, tissue, given.rounds)
        print_pixels(slide, tissue, Path(folder), given.rounds)
        print_loaders(slide, tissue, given.rounds)
        print_dtypes()


if __name__ == "__main__":
    main()
