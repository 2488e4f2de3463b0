"""Damage inside the stored JPEG tiles of a TIFF, at random: every read ends in pixels or in one of our errors.

    python tests/fuzz_tiles.py tile.tif --times 10000 --seed 5

A crash or a hang is what it looks for, so the test runs it in a process of its own. Each attempt is a function of the
seed and its number: one that fails is repeated by ``--first NUMBER --times 1``.
"""

from __future__ import annotations

import argparse
import struct
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyvips
import tifffile

import slideio_pipe as sp
from slideio_pipe.errors import SlideioPipeError
from slideio_pipe.geometry import LevelChoice, Rect
from slideio_pipe.slides.sampling import Sampler


class Victim:
    """A whole file, and the positions of its tiles' bytes and offsets."""

    def __init__(self, path: Path) -> None:
        self.content = path.read_bytes()
        with tifffile.TiffFile(path) as tif:
            page = tif.pages[0]
            self.offsets, self.counts = list(page.dataoffsets), list(page.databytecounts)
            self.byteorder = tif.byteorder
            self.arrays = {name: page.tags[name] for name in ("TileOffsets", "TileByteCounts")}

    def number_at(self, name: str, index: int) -> tuple[int, str]:
        """Return the position of a tag's value, and its struct format."""
        tag = self.arrays[name]
        kind = {3: "H", 4: "I", 16: "Q"}[int(tag.dtype)]
        return tag.valueoffset + index * struct.calcsize(kind), self.byteorder + kind


Damage = Callable[[bytearray, Victim, np.random.Generator], None]


def _span(victim: Victim, random: np.random.Generator) -> tuple[int, int]:
    tile = int(random.integers(len(victim.offsets)))
    return victim.offsets[tile], victim.counts[tile]


def flip_header(data: bytearray, victim: Victim, random: np.random.Generator) -> None:
    """Change bytes among the markers of a tile."""
    start, count = _span(victim, random)
    for _ in range(int(random.integers(1, 6))):
        data[start + int(random.integers(min(count, 64)))] = int(random.integers(256))


def flip_scan(data: bytearray, victim: Victim, random: np.random.Generator) -> None:
    """Change bytes anywhere in a tile."""
    start, count = _span(victim, random)
    for _ in range(int(random.integers(1, 12))):
        data[start + int(random.integers(count))] = int(random.integers(256))


def resize_frame(data: bytearray, victim: Victim, random: np.random.Generator) -> None:
    """Make the frame header state another size, number of components or sampling."""
    start, count = _span(victim, random)
    frame = bytes(data[start : start + count]).find(b"\xff\xc0")
    if frame >= 0:
        sizes = [0, 1, 8, 63, 65, 128, 4096, 65500, 65535]
        struct.pack_into(">HH", data, start + frame + 5, int(random.choice(sizes)), int(random.choice(sizes)))
        data[start + frame + 9 + int(random.integers(4))] = int(random.choice([0, 1, 2, 3, 4, 0x11, 0x22, 0x41, 0xFF]))


def splice(data: bytearray, victim: Victim, random: np.random.Generator) -> None:
    """Copy a piece of one tile into another."""
    (source, first), (target, second) = _span(victim, random), _span(victim, random)
    length = int(random.integers(1, min(first, second)))
    data[target : target + length] = data[source : source + length]


def cut(data: bytearray, victim: Victim, random: np.random.Generator) -> None:
    """Zero the rest of a tile."""
    start, count = _span(victim, random)
    kept = int(random.integers(count))
    data[start + kept : start + count] = bytes(count - kept)


def misplace(data: bytearray, victim: Victim, random: np.random.Generator) -> None:
    """Write another offset or byte count: of another tile, none, beyond the file, huge."""
    name = str(random.choice(["TileOffsets", "TileByteCounts"]))
    place, kind = victim.number_at(name, int(random.integers(len(victim.offsets))))
    most = 256 ** struct.calcsize(kind) - 1
    values = [0, 1, 2, 10, victim.offsets[0], victim.counts[-1], len(data) - 5, len(data) + 1, most, most // 2]
    struct.pack_into(kind, data, place, min(most, int(random.choice(np.array(values, dtype=object)))))


DAMAGES: tuple[Damage, ...] = (flip_header, flip_scan, resize_frame, splice, cut, misplace)


def attempt(victim: Victim, target: Path, seed: int, number: int) -> str:
    """Damage the file, read it in every way, and return the outcome."""
    random = np.random.default_rng([seed, number])
    data = bytearray(victim.content)
    for damage in random.choice(np.array(DAMAGES, dtype=object), int(random.choice([1, 1, 1, 2, 3]))):
        damage(data, victim, random)
    target.write_bytes(data)
    try:
        slide = sp.open_slide(target)
    except SlideioPipeError as error:
        return _refusal(error)
    ends = set()
    for read in _reads(slide):
        try:
            read()
        except SlideioPipeError as error:
            ends.add(_refusal(error).replace("refused", "refused later"))
        except pyvips.Error:  # the lazy image itself is libvips', and so are its errors
            ends.add("refused by libvips")
    return ", ".join(sorted(ends)) or "read"


def _reads(slide: sp.Slide) -> Iterator[Callable[[], object]]:
    sampler, tile, (width, height) = Sampler(slide), slide.facts.tile_sizes[0], slide.dimensions
    reader = sp.TileReader(slide.view(), tile.width)
    yield lambda: reader.read([[0, 0], [tile.width, 0], [tile.width, tile.width]], threads=2)
    yield lambda: reader.read([[5, 7], [90, 70]])
    for shrink in (1.0, 2.0, 3.0, 8.0):
        whole = Rect(0, 0, int(width / shrink), int(height / shrink))
        out = np.empty((whole.height, whole.width, 3), np.uint8)
        yield partial(sampler.plain, LevelChoice(0, (shrink, shrink)), whole, out)
    yield lambda: _together(slide)
    yield lambda: slide.view().image.avg()
    yield lambda: slide.thumbnail(64)


def _together(slide: sp.Slide) -> None:
    """Decode tiles in one call: each is as it is decoded alone, or is not decoded."""
    tiles = slide.stored_tiles(0)
    if tiles is None:
        return
    (width, height), places = tiles.tile, [(x, y) for y in range(tiles.grid.height) for x in range(tiles.grid.width)]
    for reduce, rows in ((1, height), (1, 16), (2, height // 2)):
        out = np.zeros((len(places), rows, width // reduce, 3), np.uint8)
        starts = [pixels.ctypes.data for pixels in out]
        left = tiles.decode_at(places, starts, stride=out.strides[1], rows=rows, reduce=reduce)
        for k, (column, row) in enumerate(places):
            if k not in left:
                needed = None if rows * reduce == height else rows - 2
                alone = tiles.decode(column, row, reduce=reduce, rows=needed)
                assert np.array_equal(out[k], alone[:rows]), (column, row, reduce, rows)


def _refusal(error: SlideioPipeError) -> str:
    assert error.slide, error
    assert error.reason, error
    assert error.remedy, error
    return "refused"


def main() -> None:
    """Run and print the number of attempts per outcome."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--times", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    victim, ends = Victim(args.file), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / f"damaged{args.file.suffix}"
        for number in range(args.first, args.first + args.times):
            try:
                ends[attempt(victim, target, args.seed, number)] += 1
            except BaseException:
                print(f"attempt {number} of seed {args.seed}")
                raise
    print(dict(ends))


if __name__ == "__main__":
    main()
