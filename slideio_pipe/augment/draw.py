"""The record of one drawn augmentation, with all random parameters as plain numbers.

A draw depends only on (seed, epoch, slide, tile), through a counter-based generator: threads, order and resumption do
not matter. It is JSON, is stored with the results, and can be replayed exactly.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import yaml
from pydantic import Field, model_validator

from slideio_pipe.augment.operations import Opaque, Operation
from slideio_pipe.config import Record, validated
from slideio_pipe.errors import ConfigError
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
        """Return the record as JSON values; ``Draw.from_json`` reads it."""
        value: dict[str, Any] = json.loads(self.model_dump_json())
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | str) -> Self:
        """Return the draw that ``to_json`` wrote, as a mapping or as JSON text; exact to the last bit.

        Raises
        ------
        ConfigError
            It is no JSON of a draw; the message names what is wrong.

        Examples
        --------
        >>> drawn = Draw(size=Size(4, 3), canvas=Size(4, 3), operations=({"kind": "saturation", "factor": 0.5},))
        >>> Draw.from_json(json.dumps(drawn.to_json())) == drawn
        True
        """
        remedy = "pass what Draw.to_json returned"
        try:
            values = json.loads(value) if isinstance(value, str) else value
        except ValueError as error:
            raise ConfigError(f"a draw that is no JSON ({error})", remedy=remedy) from None
        if not isinstance(values, Mapping):
            raise ConfigError(f"a draw of type {type(values).__name__}", remedy=remedy)
        return validated(cls, "a draw", values, remedy)

    def to_yaml(self) -> str:
        """Return a configuration, as in ``configs/``, whose transform repeats this draw; ``load_transform`` reads it.

        Examples
        --------
        >>> grey = {"kind": "saturation", "factor": 0.0}
        >>> print(Draw(size=Size(4, 3), canvas=Size(4, 3), operations=(grey,)).to_yaml())
        transform:
          __class_fullname__: slideio_pipe.Replay
          draw:
            size: [4, 3]
            canvas: [4, 3]
            operations:
            - {kind: saturation, factor: 0.0}
        <BLANKLINE>
        """
        written = {"transform": {"__class_fullname__": "slideio_pipe.Replay", "draw": self._changed()}}
        return yaml.safe_dump(written, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)

    def to_python(self) -> str:
        """Return a line of Python that makes this draw, after ``import slideio_pipe as sp``.

        Examples
        --------
        >>> Draw(size=Size(4, 3), canvas=Size(4, 3)).to_python()
        "sp.Draw.from_json({'size': [4, 3], 'canvas': [4, 3]})"
        """
        return f"sp.Draw.from_json({self._changed()!r})"

    def _changed(self) -> dict[str, Any]:
        """Return the JSON values that are not the defaults."""
        values: dict[str, Any] = json.loads(self.model_dump_json(exclude_defaults=True))
        if self.operations:  # with the kinds, which are defaults
            values["operations"] = [
                {"kind": each.kind} | each.model_dump(mode="json", exclude_defaults=True) for each in self.operations
            ]
        return values


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
