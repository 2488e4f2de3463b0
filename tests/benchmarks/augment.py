"""Augmentation lazily over a whole image and on decoded tiles, against albumentationsxl on the same sink.

    python tests/benchmarks/augment.py                      # a synthetic 3072 × 3072 picture
    python tests/benchmarks/augment.py --image a.png --rounds 9

Ours and albumentationsxl's take turns; medians of CPU seconds and of wall time are printed, and the ratio of the CPU
seconds, which other programs on the machine disturb less. The sink writes the whole result to memory.
"""

from __future__ import annotations

import random
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyvips
from benchmark import parsed, parser_of, require

from slideio_pipe.augment.draw import Draw
from slideio_pipe.augment.executors.cpu import ColourProgram
from slideio_pipe.augment.executors.lazy import apply_lazy
from slideio_pipe.augment.operations import Hsv, Stain, Tone
from slideio_pipe.geometry import Affine, Size
from slideio_pipe.images.virtual_tiff import VirtualTiff

TILE = 256
STAIN = Stain(matrix=((1.1, 0.05, 0.0), (0.02, 0.9, 0.01), (0.0, 0.1, 1.05)), offset=(0.01, -0.02, 0.03))
TONE = Tone(brightness=1.05, contrast=1.15)
HSV = Hsv(turn=0.03, saturation=-0.05, value=0.04)
CHAIN = (TONE, HSV, STAIN)

Cost = tuple[float, float]  # CPU seconds, wall seconds


def timed(run: Callable[[], Any]) -> Cost:
    """Return the cost of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def alternating(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Cost]:
    """Return the medians of every run; runs alternate, after one round that does not count."""
    costs: dict[str, list[Cost]] = {name: [] for name in runs}
    for count in range(rounds + 1):
        for name, run in runs.items():
            cost = timed(run)
            if count:
                costs[name].append(cost)
    return {name: (median(c for c, _ in each), median(w for _, w in each)) for name, each in costs.items()}


def median(values: Any) -> float:
    """Return the median of an iterable."""
    return statistics.median(list(values))


def picture(path: Path | None, side: int) -> np.ndarray:
    """(side, side, 3) uint8: the given picture repeated, or a generated slide's tissue."""
    if path is None:
        import tempfile

        from slideio_pipe import open_slide
        from slideio_pipe.synthetic.slide import write_synthetic_slide

        with tempfile.TemporaryDirectory() as folder:
            slide = Path(folder) / "slide.svs"
            write_synthetic_slide(slide, size=(6000, 5000), seed=1)
            pixels = open_slide(slide).read_region((1500, 1000), 0, (2048, 2048))
    else:
        pixels = pyvips.Image.new_from_file(str(path)).numpy()[..., :3]
    times = [-(-side // length) for length in pixels.shape[:2]]
    return np.ascontiguousarray(np.tile(pixels, (*times, 1))[:side, :side])


def sink(image: Any) -> Callable[[], Any]:
    """Return a function that computes all of an image, by every thread of libvips."""
    # A crop is not in libvips' operation cache, and shares branches.
    return lambda: image.crop(0, 0, image.width, image.height).write_to_memory()


def fetches(image: Any) -> Callable[[], Any]:
    """Return a function that fetches every other 256-px tile of every other row."""
    region = pyvips.Region.new(image)
    places = [(x, y) for y in range(0, image.height - TILE, 4 * TILE) for x in range(0, image.width - TILE, 4 * TILE)]
    return lambda: [region.fetch(x, y, TILE, TILE) for x, y in places]


def report(title: str, costs: dict[str, Cost], per: float, unit: str, target: float) -> None:
    """Print both costs and their ratio."""
    ours, theirs = costs["ours"], costs["albumentationsxl"]
    print(f"\n{title}")
    for name, (cpu, wall) in costs.items():
        print(f"  {name:18s} {cpu / per:8.2f} {unit} CPU  {wall / per:8.2f} {unit} wall")
    ratios = f"{theirs[0] / ours[0]:.1f}× CPU, {theirs[1] / ours[1]:.1f}× wall"
    print(f"  ratio              {ratios} (wanted {target:g}×)")


def against_albumentationsxl(pixels: np.ndarray, rounds: int) -> None:
    """Stain jitter alone, on the sink and by tile; then rotation and all colours on the sink."""
    import albumentationsxl

    image = pyvips.Image.new_from_array(pixels).copy(interpretation="srgb")
    size, per = Size(image.width, image.height), image.width * image.height * 1e-9
    random.seed(0)
    stain = Draw(size=size, canvas=size, operations=(STAIN,))
    shift = albumentationsxl.HEDShift(p=1.0)
    hed = shift(image=image)["image"]
    ours = apply_lazy(image, stain)
    tiles = len(range(0, image.height - TILE, 4 * TILE)) ** 2 * 1e-3
    both = {"ours": sink(ours), "albumentationsxl": sink(hed)}
    report("stain jitter, sink", alternating(both, rounds), per, "ns/px", 5)
    both = {"ours": fetches(ours), "albumentationsxl": fetches(hed)}
    report("stain jitter, fetched 256-px tile", alternating(both, rounds), tiles, "ms", 30)

    centre = Affine.translation(size.width / 2, size.height / 2)
    cos, sin = np.cos(np.radians(17)), np.sin(np.radians(17))
    turned = centre @ Affine(cos, -sin, 0, sin, cos, 0) @ centre.inverse()
    chain = albumentationsxl.Compose(
        [
            albumentationsxl.Affine(rotate=(17, 17), p=1.0),
            albumentationsxl.RandomBrightnessContrast(p=1.0),
            albumentationsxl.HueSaturationValue(p=1.0),
            shift,
        ]
    )
    theirs = chain(image=image)["image"]
    ours = apply_lazy(image, Draw(size=size, canvas=size, affine=turned.as_tuple(), operations=CHAIN))
    # A fresh graph each time: what is computed tile by tile stays in libvips' cache.
    draw = Draw(size=size, canvas=size, affine=turned.as_tuple(), operations=CHAIN)
    both = {"ours": lambda: sink(apply_lazy(image, draw))(), "albumentationsxl": sink(theirs)}
    title = "rotation + brightness/contrast + hue/saturation + stain, sink"
    report(title, alternating(both, rounds), per, "ns/px", 4)


def on_tiles(pixels: np.ndarray) -> None:
    """Print the time of a 256-px tile on the CPU executor, on one thread."""
    tile = np.ascontiguousarray(pixels[:TILE, :TILE])
    out = np.empty_like(tile)
    print("\ndecoded 256-px tile, one thread")
    image = pyvips.Image.new_from_array(tile).copy(interpretation="srgb")
    lazily = apply_lazy(image, Draw(size=Size(TILE, TILE), canvas=Size(TILE, TILE), operations=CHAIN)).numpy()
    apart = np.abs(lazily.astype(int) - ColourProgram(CHAIN).apply(tile)).max()
    require(apart <= 1, f"the graph and the decoded tile are {apart} levels apart")
    for name, operations in {"tone": (TONE,), "stain": (STAIN,), "hue": (HSV,), "tone + hue + stain": CHAIN}.items():
        program = ColourProgram(operations)
        program.apply(tile, out)
        costs = [timed(lambda program=program: program.apply(tile, out)) for _ in range(200)]  # type: ignore[misc]
        print(
            f"  {name:18s} {1e3 * median(w for _, w in costs):6.2f} ms, least {1e3 * min(w for _, w in costs):6.2f} ms"
        )


def building() -> None:
    """Print the time to build the graph of a 100,000² image, and what was decoded in that time."""
    read: list[tuple[int, int]] = []

    def read_tile(column: int, row: int) -> np.ndarray:
        read.append((column, row))
        return np.zeros((512, 512, 3), np.uint8)

    size = Size(100_000, 100_000)
    source = VirtualTiff(size, Size(512, 512), read_tile)
    draw = Draw(size=size, canvas=size, affine=(0.8, -0.6, 1e4, 0.6, 0.8, 2e3), operations=CHAIN)
    costs = [timed(lambda: apply_lazy(source.image, draw)) for _ in range(20)]
    require(not read, f"building a graph decoded {len(read)} tiles")
    print(f"\ngraph over 100,000 × 100,000 px: {1e3 * median(w for _, w in costs):.1f} ms, {len(read)} tiles decoded")


def main() -> None:
    """Run all measurements."""
    parser = parser_of(__doc__)
    parser.add_argument("--image", type=Path, help="a picture to repeat; a generated slide without one")
    parser.add_argument("--side", type=int, default=3072, help="side of the image, px")
    parser.add_argument("--rounds", type=int, default=5)
    given = parsed(parser, side=512, rounds=1)
    warnings.simplefilter("ignore")
    pixels = picture(given.image, given.side)
    building()
    on_tiles(pixels)
    against_albumentationsxl(pixels, given.rounds)


if __name__ == "__main__":
    main()
