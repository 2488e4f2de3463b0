"""The classic MIL bag transform, to float16, against Pillow; one thread, interleaved.

    python tests/benchmarks/bag_transform.py                  # makes a slide with levels 1, 4, 16 first
    python tests/benchmarks/bag_transform.py --slide a.svs --tiles 40
    python tests/benchmarks/bag_transform.py --case stored    # from a stored bag of JPEG tiles

Each tile of 1024 px at level 0: rotation ±25°, random resized crop of area 0.5 to 1.5, resize to 224 px, flips, colour
jitter, normalisation by 0.5. Pillow does the same steps in the order torchvision's Compose does them (torchvision
itself runs on Pillow there); its crop cannot reach beyond the tile, so areas above 1 are the whole tile.

``--case slide`` reads the slide, Pillow through OpenSlide. ``--case stored`` reads tiles that were stored before as
JPEG (``save_bag(pixels="jpeg:90")``), Pillow the same bytes from memory, in a DataLoader without workers. A quarter of
our time is sampling and colours; the rest is decoding JPEG of 1024 px to a quarter. ``--case reduced`` has the copies
of 256 px that ``add_reduced`` stores beside the tiles.
"""

from __future__ import annotations

import io
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import albumentationsxl as A
import cv2
import numpy as np
import openslide
import torch
from benchmark import parsed, parser_of, require
from PIL import Image, ImageEnhance

import slideio_pipe as sp

Batches: TypeAlias = Iterator[torch.Tensor]  # (16, 3, 224, 224) float16
TILE, OUT, BATCH = 1024, 224, 16
JITTER = (0.2, 0.2, 0.2, 0.05)
TRANSFORM = A.Compose(
    [
        sp.RandomAffine(rotate=25),
        sp.RandomResizedCrop((OUT, OUT), scale=(0.5, 1.5)),
        A.HorizontalFlip(p=0.5),
        A.VerticalFlip(p=0.5),
        sp.ColorJitter(*JITTER),
    ]
)


def from_slide(slide: Path, count: int, epoch: int) -> Batches:
    """Yield (n, 3, 224, 224) float16, made through one affine per tile and the pyramid."""
    with sp.open_slide(slide) as opened:
        view = opened.view()
        grid = sp.TileGrid(view, tile_size=TILE)
        bag = sp.TileBag(view, grid, tile_transform=TRANSFORM, seed=1, epoch=epoch)
        columns, rows = (side // TILE for side in opened.dimensions)
        yield from _streamed(bag, _chosen(columns, rows, count))


def from_store(store: Path, count: int, epoch: int) -> Batches:
    """Yield the same from a stored bag, across neighbouring tiles."""
    with sp.AugmentedBag(sp.open_bag(store), tile_transform=TRANSFORM, seed=1, epoch=epoch) as bag:
        columns, rows = (bag.grid_index.max(axis=0) + 1).tolist()
        yield from _streamed(bag, _chosen(columns, rows, count))


def openslide_pillow(slide: Path, count: int, epoch: int) -> Batches:
    """Yield the same by OpenSlide and Pillow, tile by tile."""
    rng = np.random.default_rng(epoch)
    opened = openslide.OpenSlide(str(slide))
    columns, rows = (side // TILE for side in opened.dimensions)
    done = []
    for k in _chosen(columns, rows, count):
        corner = (int(k % columns) * TILE, int(k // columns) * TILE)
        done.append(_augmented(opened.read_region(corner, 0, (TILE, TILE)).convert("RGB"), rng))
        if len(done) == BATCH:
            yield torch.stack(done)
            done = []
    if done:
        yield torch.stack(done)


class Jpegs(torch.utils.data.Dataset[torch.Tensor]):
    """Tiles of a stored bag as Pillow decodes and augments them."""

    def __init__(self, encoded: Iterator[bytes], epoch: int) -> None:
        self.encoded, self.rng = list(encoded), np.random.default_rng(epoch)

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, k: int) -> torch.Tensor:
        return _augmented(Image.open(io.BytesIO(self.encoded[k])).convert("RGB"), self.rng)


def data_loader_pillow(store: Path, count: int, epoch: int) -> Batches:
    """Yield the same by a DataLoader of Pillow over the stored JPEG bytes."""
    bag = sp.open_bag(store)
    columns, rows = (bag.grid_index.max(axis=0) + 1).tolist()
    tiles = Jpegs(bag.encoded(_chosen(columns, rows, count)), epoch)
    yield from torch.utils.data.DataLoader(tiles, batch_size=BATCH)


def _streamed(bag: sp.TileBag | sp.AugmentedBag, chosen: np.ndarray) -> Batches:
    normalize = sp.Normalize((0.5,) * 3, (0.5,) * 3)
    batches = sp.stream(bag, device="cpu", normalize=normalize, batch_size=BATCH, threads=1, indices=chosen)
    for batch in batches:
        yield batch.tiles


def _check(name: str, made: torch.Tensor) -> None:
    usual = made.shape[1:] == (3, OUT, OUT) and made.dtype == torch.float16 and bool((made.abs() <= 1).all())
    require(usual, f"{name}: tiles are {tuple(made.shape)} {made.dtype}, or beyond -1 to 1")
    spread = made.float().std(dim=(1, 2, 3))
    require(bool((spread > 0.01).any()), f"{name}: tiles are empty")


def _augmented(image: Image.Image, rng: np.random.Generator) -> torch.Tensor:
    """Return a tile as Pillow augments it, (3, 224, 224) float16."""
    image = image.rotate(rng.uniform(-25, 25), Image.Resampling.BILINEAR)
    side = TILE * min(1.0, float(np.sqrt(rng.uniform(0.5, 1.5))))
    left, top = rng.uniform(0, TILE - side, 2)
    image = image.resize((OUT, OUT), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    for flip in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM):
        image = image.transpose(flip) if rng.random() < 0.5 else image
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(rng.uniform(0.8, 1.2))
    hue, saturation, value = image.convert("HSV").split()
    shift = int(rng.uniform(-0.05, 0.05) * 255) % 256
    hue = hue.point([(v + shift) % 256 for v in range(256)])
    image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255
    return ((pixels - 0.5) / 0.5).half()


def _chosen(columns: int, rows: int, wanted: int) -> np.ndarray:
    """Return a block of neighbouring tiles from the middle of the slide, in raster order."""
    side = math.ceil(math.sqrt(wanted))
    width, height = min(side, columns), min(math.ceil(wanted / side), rows)
    left, top = (columns - width) // 2, (rows - height) // 2
    ys, xs = np.mgrid[top : top + height, left : left + width]
    return (ys * columns + xs).reshape(-1)[:wanted]


def stored(slide: Path, folder: Path) -> Path:
    """Store every tile of a slide as JPEG, and return the store."""
    with sp.open_slide(slide) as opened:
        view = opened.view()
        bag = sp.TileBag(view, sp.TileGrid(view, tile_size=TILE))
        return sp.save_bag(bag, folder / "a.bag.zarr", pixels="jpeg:90", progress=False).path


def main() -> None:
    """Run both in turn and print medians."""
    parser = parser_of(__doc__)
    parser.add_argument("--case", choices=["slide", "stored", "reduced"], default="slide")
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--tiles", type=int, default=144)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=16_384, help="of the slide that is made, px")
    args = parsed(parser, tiles=4, rounds=1, side=3072)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        source = (
            args.slide
            or sp.write_synthetic_slide(Path(folder) / "a.svs", size=(args.side, args.side * 3 // 4), seed=1).path
        )
        ways: dict[str, Callable[[Path, int, int], Batches]]
        if args.case == "slide":
            ways = {"slideio_pipe": from_slide, "OpenSlide + Pillow": openslide_pillow}
        else:
            source = stored(source, Path(folder))
            if args.case == "reduced":
                sp.add_reduced(sp.open_bag(source), 4, progress=False)
            ways = {"slideio_pipe": from_store, "DataLoader + Pillow": data_loader_pillow}
        cost: dict[str, list[float]] = {name: [] for name in ways}
        for name, way in ways.items():
            _check(name, torch.cat(list(way(source, 4, 0))))  # with imports and caches
        for epoch in range(args.rounds):
            for name, way in ways.items():
                cpu, wall = time.process_time(), time.perf_counter()
                tiles = sum(len(batch) for batch in way(source, args.tiles, epoch))  # each is dropped, as in training
                require(tiles == args.tiles, f"{name} made {tiles} of {args.tiles} tiles")
                cost[name].append((time.process_time() - cpu) / tiles * 1e3)
                waited = (time.perf_counter() - wall) / tiles * 1e3
                print(f"{name:20} {cost[name][-1]:7.2f} ms CPU, {waited:7.2f} wall")
        first, second = (statistics.median(values) for values in cost.values())
        ratios = [b / a for a, b in zip(*cost.values(), strict=True)]
        print(f"{args.case}: median ratio {second / first:.1f} ({min(ratios):.1f} to {max(ratios):.1f}) per CPU-second")


if __name__ == "__main__":
    main()
