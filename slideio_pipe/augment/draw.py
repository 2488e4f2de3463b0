"""The record of one drawn augmentation, with all random parameters as plain numbers.

A draw depends only on (seed, epoch, slide, tile), through a counter-based generator: threads, order and resumption do
not matter. It is JSON, is stored with the results, and can be replayed exactly.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from slideio_pipe.augment.operations import Opaque, Operation
from slideio_pipe.config import Record
from slideio_pipe.geometry import Affine, Size

AffineTuple = tuple[float, float, float, float, float, float]


class Draw(Record):
    """One drawn augmentation: an affine, then colour operations in order.

    The affine maps pixels of the plain image to pixels of the augmented one, both corner-based. Several geometric
    transforms are multiplied to one affine: pixels are sampled once.
    """

    version: int = 1
    seed: int = 0
    epoch: int = 0
    slide: str = ""
    tile: int | None = None  # None: one draw for the whole slide
    size: Size  # of the plain image, px
    canvas: Size  # of the augmented image, px
    affine: AffineTuple = Affine().as_tuple()  # plain px → augmented px
    operations: tuple[Operation, ...] = Field(default=())

    @model_validator(mode="after")
    def _drop_identities(self) -> Self:
        kept = tuple(operation for operation in self.operations if not operation.is_identity)
        object.__setattr__(self, "operations", kept)
        return self

    @property
    def moves(self) -> bool:
        """Whether any pixel moves."""
        return self.affine != Affine().as_tuple() or self.canvas != self.size

    @property
    def is_identity(self) -> bool:
        """Whether the augmented image is the plain one."""
        return not self.moves and not self.operations

    @property
    def lowered(self) -> bool:
        """Whether it runs completely on decoded batches, on the CPU or a device."""
        return not any(isinstance(operation, Opaque) for operation in self.operations)

    def summary(self) -> str:
        """Return the draw as a short text: rotation and scale, then the kinds of operations."""
        parts = []
        if self.moves:
            a, b, _, d, e, _ = self.affine
            turn, area = math.degrees(math.atan2(b, e)), a * e - b * d
            parts += [f"turned {turn:.0f}°"] if abs(turn) > 0.5 else []  # counter-clockwise, as in the arguments
            parts += [f"scaled {math.sqrt(abs(area)):.2f}×"] if abs(abs(area) - 1) > 1e-6 else []
            parts += ["mirrored"] if area < 0 else []
            parts += [] if parts else ["moved"]
        return ", ".join([*parts, *(operation.kind for operation in self.operations)]) or "identity"

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values; ``Draw.model_validate`` reads it."""
        value: dict[str, Any] = json.loads(self.model_dump_json())
        return value


def seeded(*key: object) -> np.random.Generator:
    """Return the counter-based generator that depends only on ``key``: JSON values, such as a seed, an epoch, a name.

    Examples
    --------
    >>> seeded(7, 0, "a.svs").integers(100) == seeded(7, 0, "a.svs").integers(100)
    np.True_
    """
    words = np.frombuffer(_digest(key, 16), "<u8").astype(np.uint64)  # an array takes less time than the number
    return np.random.Generator(np.random.Philox(key=words))


def hashed(*key: object, digest_bytes: int) -> int:
    """Return a whole number that depends only on ``key``."""
    return int.from_bytes(_digest(key, digest_bytes), "little")


def _digest(key: tuple[object, ...], digest_bytes: int) -> bytes:
    return hashlib.blake2b(json.dumps(key).encode(), digest_size=digest_bytes).digest()
