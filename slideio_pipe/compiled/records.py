"""The structs of ``tile_program.h`` as NumPy types, field by field."""

from __future__ import annotations

import numpy as np

# Kinds of colour operations.
NONE, TONE, MIX, HSV, STAIN, LAB = range(6)

OP = np.dtype([("kind", "i4"), ("p", "f4", 15)], align=True)

SOURCE = np.dtype(
    [
        ("blocks", "u8"), ("column", "i4"), ("row", "i4"), ("columns", "i4"), ("rows", "i4"),
        ("block_width", "i4"), ("block_height", "i4"), ("level_width", "i4"), ("level_height", "i4"),
    ],
    align=True,
)  # fmt: skip

TILE = np.dtype(
    [
        ("affine", "f8", 6), ("source", SOURCE), ("out", "u8"), ("ops", "u8"), ("op_count", "i4"),
        ("outside", "i4"), ("copies", "i4"), ("sigma", "f4"),
    ],
    align=True,
)  # fmt: skip
