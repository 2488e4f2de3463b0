"""Single tiles as PNG or JPEG files, and their metadata."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slideio_pipe.export.layouts.item import CHUNK, Item
from slideio_pipe.tiles.bag import quality_of


def ending(item: Item) -> str:
    """Return the file ending of a tile."""
    return "png" if item.jpegs is None else "jpg"


def pictures(item: Item, first: int, last: int) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the file of tiles ``first`` to ``last - 1``: JPEG for a bag stored as JPEG, else PNG."""
    numbers = np.arange(first, last)
    if item.jpegs is not None:
        yield from zip(numbers.tolist(), item.jpegs.encoded(numbers), strict=True)
        return
    for start in range(first, last, CHUNK):
        some = numbers[start - first : start - first + CHUNK]
        for index, tile in zip(some.tolist(), item.bag.read(some, threads=item.threads), strict=True):
            yield index, _png(tile)


def _png(tile: NDArray[np.uint8]) -> bytes:
    """Return a tile as lossless PNG; higher compression levels hardly reduce tissue."""
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def tile_facts(item: Item, index: int) -> dict[str, Any]:
    """Return the metadata of a tile: plain numbers and texts."""
    bag, quality = item.bag, quality_of(item.bag)
    (x, y), (column, row), tissue = bag.coords[index], bag.grid_index[index], float(bag.tissue[index])
    return {
        "slide": bag.name,
        "index": index,
        "x": int(x),  # level-0 px
        "y": int(y),
        "column": int(column),
        "row": int(row),
        "tissue": None if np.isnan(tissue) else tissue,
        "mpp": None if bag.view_mpp is None else bag.view_mpp.mean,
        "label": item.label,
        "patient": item.patient,
        **({} if quality is None else {name: _finite(values[index]) for name, values in quality.measured.items()}),
    }


def _finite(value: np.float32) -> float | None:
    return None if np.isnan(value) else float(value)
