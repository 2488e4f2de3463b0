"""Single tiles as PNG or JPEG files, and what is told of each beside its pixels."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slideio_pipe.export.layouts.item import CHUNK, Item


def ending(item: Item) -> str:
    """Return what the file of a tile ends in."""
    return "png" if item.jpegs is None else "jpg"


def pictures(item: Item, first: int, last: int) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the file of tiles ``first`` to ``last - 1``: the JPEG of a bag that holds such, or PNG."""
    wanted = np.arange(first, last)
    if item.jpegs is not None:
        yield from zip(wanted.tolist(), item.jpegs.encoded(wanted), strict=True)
        return
    for start in range(first, last, CHUNK):
        some = wanted[start - first : start - first + CHUNK]
        for index, tile in zip(some.tolist(), item.bag.read(some, threads=item.threads), strict=True):
            yield index, _png(tile)


def _png(tile: NDArray[np.uint8]) -> bytes:
    """Return a tile without loss; tissue is hardly smaller at higher levels of compression."""
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def tile_facts(item: Item, index: int) -> dict[str, Any]:
    """Return what is known of a tile: plain numbers and texts."""
    bag = item.bag
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
    }
