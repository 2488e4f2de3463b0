"""Views of tiles for self-supervised training against one view of each, to float16; one thread, interleaved.

    python tests/benchmarks/views.py                      # makes a slide with levels 1, 4, 16 first
    python tests/benchmarks/views.py --slide a.svs --tiles 256

CPU-seconds of ``stream(bag, views=…)`` over those of a stream with one draw per tile. The slide is opened for each, so
that both decode. Six cases:

- classic: tiles of 1024 px, 8 views by the classic transform (±25°, flips, colour jitter), 2 of 224 px of an area of
  0.32 to 1 and 6 of 96 px of 0.05 to 0.32, against one of the large ones;
- large: the same with 8 views of 224 px and an area of 0.5 to 1.5, as ``bag_transform.py`` has them;
- dino: tiles of 256 px, 2 views of 224 px and 6 of 96 px with the defaults of ``MultiCrop``, which also turns them by
  any angle and jitters stains, against one of the large ones;
- dinov2: the same with 8 views of 96 px, 10 in all;
- apart: the 8 views of dino against eight streams, one for each;
- bare: reading the 10 views of dinov2 without colours, as for ``colours="device"``, against reading them with colours.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sized
from pathlib import Path

import albumentationsxl as A
import cv2
import numpy as np
import torch
from benchmark import parsed, parser_of, require

import slideio_pipe as sp
from slideio_pipe.tiles.views_bag import ViewsBag

BATCH = 16
NORMALIZE = sp.Normalize.imagenet()
OWN = A.Compose([sp.RandomAffine(rotate=25), A.HorizontalFlip(), A.VerticalFlip(), sp.ColorJitter(0.2, 0.2, 0.2, 0.05)])
CLASSIC = sp.MultiCrop(2, 6, global_transform=OWN, local_transform=OWN)
LARGE = sp.MultiCrop(8, 0, global_scale=(0.5, 1.5), global_transform=OWN)
DINO, DINOV2 = sp.MultiCrop(2, 6), sp.MultiCrop(2, 8)
CASES = {"classic": (1024, CLASSIC), "large": (1024, LARGE), "dino": (256, DINO), "dinov2": (256, DINOV2)}

View = tuple[str, int]


def batches(path: Path, side: int, views: sp.MultiCrop, count: int, one: View | None = None) -> Iterator[sp.TileBatch]:
    """Yield the batches of tiles in the middle of a slide: all views of them, or one."""
    with sp.open_slide(path) as slide:
        view = slide.view()
        bag = sp.TileBag(view, sp.TileGrid(view, tile_size=side), seed=1)
        first = max(0, (len(bag) - count) // 2)
        settings = {"device": "cpu", "normalize": NORMALIZE, "batch_size": BATCH, "threads": 1}
        chosen = np.arange(first, min(first + count, len(bag)))
        if one is None:
            yield from sp.stream(bag, views=views, indices=chosen, **settings)
        else:
            yield from sp.stream(views.bag_of(bag, *one), indices=chosen, **settings)


def each_of(views: sp.MultiCrop) -> list[View]:
    """Return every view."""
    return [(kind.name, number) for kind in views.kinds for number in range(len(kind.transforms))]


def read(path: Path, count: int, *, colours: bool) -> Iterator[range]:
    """Read the views of dinov2, with or without colours; yield what stands for each batch."""
    with sp.open_slide(path) as slide:
        view = slide.view()
        bag = ViewsBag(sp.TileBag(view, sp.TileGrid(view, tile_size=256), seed=1), DINOV2)
        first, out = max(0, (len(bag) - count) // 2), np.zeros((BATCH, *bag.shape[1:]), np.uint8)
        last = min(first + count, len(bag))
        bag.plan_ahead(range(first, last), colours=colours)
        for start in range(first, last, BATCH):
            batch = range(start, min(start + BATCH, last))
            (bag.read if colours else bag.read_without_colours)(batch, out[: len(batch)])
            yield batch


def check(path: Path, side: int, views: sp.MultiCrop) -> None:
    """Require that each view equals its own stream."""
    several = list(batches(path, side, views, 8))
    for kind, number in each_of(views):
        alone = torch.cat([batch.tiles for batch in batches(path, side, views, 8, (kind, number))])
        own = torch.cat([batch.views[kind][:, number] for batch in several])
        require(torch.equal(alone, own), f"{kind} view {number} differs from its own stream")


def cpu_ms(work: Callable[[], Iterator[Sized]]) -> float:
    """Return the CPU time of a stream in ms per tile; its batches are dropped."""
    begun = time.process_time()
    tiles = sum(len(batch) for batch in work())
    return (time.process_time() - begun) * 1e3 / tiles


def main() -> None:
    """Run both sides of each case in turn, and print medians."""
    parser = parser_of(__doc__)
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--tiles", type=int, default=108)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--side", type=int, default=12_288, help="of the slide that is made, px")
    args = parsed(parser, tiles=12, rounds=1, side=4096)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = args.slide
        if path is None:
            size = (args.side, args.side * 3 // 4)
            path = sp.write_synthetic_slide(Path(folder) / "a.svs", size=size, seed=1).path
        for side, views in CASES.values():
            check(path, side, views)
        pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in [*CASES, "apart", "bare"]}
        for _ in range(args.rounds):
            for name, (side, views) in CASES.items():
                several = cpu_ms(lambda side=side, views=views: batches(path, side, views, args.tiles))
                one = cpu_ms(lambda side=side, views=views: batches(path, side, views, args.tiles, ("global", 0)))
                pairs[name].append((several, one))
            alone = [cpu_ms(lambda view=view: batches(path, 256, DINO, args.tiles, view)) for view in each_of(DINO)]
            pairs["apart"].append((pairs["dino"][-1][0], sum(alone)))
            bare, coloured = (cpu_ms(lambda c=c: read(path, args.tiles, colours=c)) for c in (False, True))
            pairs["bare"].append((bare, coloured))
        for name, found in pairs.items():
            first, second = (statistics.median(values) for values in zip(*found, strict=True))
            ratios = sorted(a / b for a, b in found)
            print(
                f"{name:8} {first:6.3f} ms CPU per tile against {second:6.3f}: "
                f"{statistics.median(ratios):.2f} times ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            )


if __name__ == "__main__":
    main()
