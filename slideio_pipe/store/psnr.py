"""The PSNR of a bag's stored pixels against its tiles, measured before they are written.

Measured beforehand, it depends only on the bag and the codec, like all metadata of a store: an interrupted
run that continues gets the same value.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np

from slideio_pipe.store.codecs import TileCodec
from slideio_pipe.tiles.bag import Bag
from slideio_pipe.tiles.failures import OnError, TileErrors

# 128 tiles of 256², 8 of 1024²: reading them twice takes a second at most. The squared errors of a bag's H&E tiles vary
# by about their mean, so the value is accurate to some tenths of a decibel.
SAMPLE_PX = 2**23
MIN_SAMPLE = 8
_TILES_PER_READ = 8  # tiles


def with_loss(codec: TileCodec, bag: Bag, threads: int, on_error: OnError = "raise") -> TileCodec:
    """Return ``codec``, if it is lossy, with the PSNR of its pixels against the bag's in its metadata.

    PSNR is 10·log10(255² / mean squared error over all values of the sampled tiles), in decibel: ``psnr_db``, None if
    they are equal. ``psnr_tiles`` is the number of sampled tiles, evenly spaced over the bag. Raise CorruptSlideError
    if a sampled tile cannot be read and ``on_error`` is "raise".
    """
    count, *_, height, width, _ = bag.shape
    encode, decode = codec.encode, codec.decode
    if codec.pixels.get("lossless") or encode is None or decode is None or not count:
        return codec
    looked_at = min(count, max(MIN_SAMPLE, SAMPLE_PX // (height * width)))
    chosen = np.unique(np.linspace(0, count - 1, looked_at).round().astype(np.int64))
    total, stored = 0, np.empty((height, width, 3), np.uint8)
    tolerance, read = TileErrors(bag.name, count, on_error), partial(bag.read, threads=threads)
    for first in range(0, len(chosen), _TILES_PER_READ):
        numbers = chosen[first : first + _TILES_PER_READ]
        tiles = np.empty((len(numbers), *bag.shape[1:]), np.uint8)
        tolerance.read(read, numbers, tiles)
        for tile in tiles.reshape(-1, height, width, 3):
            decode(memoryview(encode(tile)), stored)
            total += int(np.square(tile.astype(np.int32) - stored, dtype=np.int64).sum())
    mean = total / (len(chosen) * math.prod(bag.shape[1:]))
    psnr = None if mean == 0 else round(10 * math.log10(255**2 / mean), 2)
    return replace(codec, pixels={**codec.pixels, "psnr_db": psnr, "psnr_tiles": len(chosen)})
