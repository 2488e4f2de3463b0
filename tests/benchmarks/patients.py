"""The cost of a patient's bag: reading it against reading the bags of its slides; one thread, interleaved.

    python tests/benchmarks/patients.py                 # four slides of 6,144 × 4,608 px, scanned at 0.25 and 0.5 µm
    python tests/benchmarks/patients.py --tiles 64      # smaller batches, of which more span two slides

Each way reads all tiles in batches, in their order, at 0.5 µm. Times are of the CPU. Slides are opened again for each
pass, so that no decoded tile is left from the one before.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from benchmark import parsed, parser_of, require

import slideio_pipe as sp


def opened(slides: Iterable[Path]) -> list[sp.TileBag]:
    """Return the bags of the slides at one resolution."""
    views = [sp.open_slide(path).view(mpp=0.5) for path in slides]
    return [sp.TileBag(view, sp.TileGrid(view, tile_size=256), patient="P01") for view in views]


def by_slide(bags: list[sp.TileBag], size: int) -> Iterator[np.ndarray]:
    """Read bag after bag."""
    for bag in bags:
        yield from by_batch(bag, size)


def by_batch(bag: sp.TileBag | sp.PatientBag, size: int) -> Iterator[np.ndarray]:
    """Read a bag in batches."""
    for start in range(0, len(bag), size):
        yield bag.read(np.arange(start, min(start + size, len(bag))))


def timed(batches: Iterator[np.ndarray]) -> tuple[float, int]:
    """Return the CPU seconds of reading, and a sum over all pixels."""
    begun, total, seconds = time.process_time(), 0, 0.0
    for batch in batches:
        seconds += time.process_time() - begun
        total += int(batch.sum(dtype=np.int64))
        begun = time.process_time()
    return seconds + time.process_time() - begun, total


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--width", type=int, default=6144)
    parser.add_argument("--slides", type=int, default=4)
    parser.add_argument("--tiles", type=int, default=256, help="tiles per batch")
    parser.add_argument("--repeats", type=int, default=7)
    given = parsed(parser, width=1536, slides=3, tiles=7, repeats=2)
    with tempfile.TemporaryDirectory() as folder:
        slides = []
        for k in range(given.slides):
            mpp = (0.25, 0.5)[k % 2]
            width = round(given.width * 0.25 / mpp)
            slides.append(Path(folder, f"s{k}.svs"))
            sp.write_synthetic_slide(slides[-1], size=(width, width * 3 // 4), mpp=mpp, seed=k + 1)
        seconds: dict[str, list[float]] = {"slides": [], "patient": []}
        for _ in range(given.repeats):
            bags, patient = opened(slides), sp.PatientBag(opened(slides))
            alone, of_slides = timed(by_slide(bags, given.tiles))
            together, of_patient = timed(by_batch(patient, given.tiles))
            require(of_slides == of_patient, "a patient's tiles are not those of its slides")
            seconds["slides"].append(alone)
            seconds["patient"].append(together)
    require(len(patient) == sum(len(bag) for bag in bags), "tiles are missing")
    middle = {name: statistics.median(found) for name, found in seconds.items()}
    ratio = middle["patient"] / middle["slides"]
    print(f"{len(patient):,} tiles of {len(bags)} slides, {given.repeats} passes each")
    print(f"slides  {1e3 * middle['slides'] / len(patient):.3f} ms per tile")
    print(f"patient {1e3 * middle['patient'] / len(patient):.3f} ms per tile, {ratio:.3f} times the slides")


if __name__ == "__main__":
    main()
