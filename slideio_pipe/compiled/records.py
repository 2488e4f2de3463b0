"""The structs of ``tile_program.h`` and ``stored_tiles.h`` as NumPy types, field by field."""

from __future__ import annotations

import numpy as np

# Kinds of colour operations.
NONE, TONE, MIX, HSV, STAIN, LAB = range(6)

# How a tile's pixels come from the level's.
BY_SAMPLING, BY_COPYING, BY_SHRINKING = range(3)

OP = np.dtype([("kind", "i4"), ("p", "f4", 15)], align=True)

SOURCE = np.dtype(
    [
        ("blocks", "u8"), ("left", "i4"), ("top", "i4"), ("columns", "i4"), ("rows", "i4"),
        ("block_width", "i4"), ("block_height", "i4"), ("level_width", "i4"), ("level_height", "i4"),
    ],
    align=True,
)  # fmt: skip

TILE = np.dtype(
    [
        ("affine", "f8", 6), ("source", SOURCE), ("out", "u8"), ("ops", "u8"), ("op_count", "i4"),
        ("outside", "i4"), ("way", "i4"), ("sigma", "f4"),
        ("left", "i4"), ("top", "i4"), ("right", "i4"), ("bottom", "i4"),
    ],
    align=True,
)  # fmt: skip

STORED = np.dtype(
    [
        ("head", "u8"), ("head_bytes", "i4"), ("descriptor", "i4"), ("width", "i4"), ("height", "i4"),
        ("ycbcr", "i4"), ("unused", "i4"),
    ],
    align=True,
)  # fmt: skip

STORED_TILE = np.dtype(
    [
        ("level", "u8"), ("offset", "i8"), ("bytes", "i8"), ("out", "u8"), ("stride", "i4"), ("rows", "i4"),
        ("reduce", "i4"), ("done", "i4"),
    ],
    align=True,
)  # fmt: skip
