"""What one transform drew: an affine, a canvas, colour operations."""

from __future__ import annotations

from typing import Any, NamedTuple

from slideio_pipe.augment.operations import Operation
from slideio_pipe.geometry import Affine, Size


class Steps(NamedTuple):
    """The drawn result of one transform, for one tile; or for many, with arrays as numbers of affine and canvas."""

    affine: Affine | None = None  # px before → px after; None moves nothing
    canvas: Size | None = None  # size after; None keeps the size
    operations: tuple[Operation, ...] = ()  # a column of ``operation_columns`` each for many tiles
    fit: bool = False  # move the content to the corner of the smallest canvas that holds it; overrides ``canvas``


def coloured(*operations: Any) -> Steps:
    """Return the steps of colour operations, without those that change nothing."""
    return Steps(operations=tuple(operation for operation in operations if not operation.is_identity))
