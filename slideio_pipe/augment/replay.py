"""A transform that always draws the same ``Draw``: what was seen on one slide, as a configuration for others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from slideio_pipe.augment.affines import about_middle
from slideio_pipe.augment.draw import Draw
from slideio_pipe.augment.elementwise import every, where
from slideio_pipe.augment.placement import CANVAS_ROUNDING, Placement
from slideio_pipe.augment.steps import Steps
from slideio_pipe.augment.transform_base import Context, GeometricTransform
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Affine, Size


class Replay(GeometricTransform):
    """Repeat a draw: its colours, and its turn, mirror and scale.

    On an image of the draw's own size the record is repeated exactly. On another it is the same linear map about the
    middle: the canvas of a slide grows to hold it, that of a tile keeps its size.

    Parameters
    ----------
    draw : Draw or mapping
        The draw, or its JSON (``Draw.to_json``).

    Examples
    --------
    >>> from slideio_pipe import build_draw, draw
    >>> wanted = build_draw((40, 30), eosin=0.8, turn=20)
    >>> draw(Replay(wanted), size=(40, 30)) == wanted
    True
    >>> draw(Replay(wanted), size=(80, 60)) == build_draw((80, 60), eosin=0.8, turn=20)
    True
    """

    opaque_because = "repeats a draw with a transform that is not translated; runs lazily only, after all geometry"

    def __init__(self, draw: Draw | Mapping[str, Any], *, always_apply: bool = False, p: float = 1.0) -> None:
        super().__init__(always_apply=always_apply, p=p)
        self.record = draw if isinstance(draw, Draw) else Draw.from_json(draw)
        self.lowered = self.record.lowered
        self.draw = self.record.to_json()  # as it is serialised
        a, b, _, d, e, _ = self.record.affine
        self._linear = Affine(a=a, b=b, d=d, e=e)

    def draw_steps(self, rng: np.random.Generator, size: Size, context: Context) -> Steps:
        """Return the draw's own steps; nothing is random."""
        drawn = self.record
        same = (size.width == drawn.size.width) & (size.height == drawn.size.height)
        if not drawn.moves:
            return Steps(operations=drawn.operations)
        if every(same):
            return Steps(Affine(*drawn.affine), drawn.canvas, drawn.operations)
        self._check_elsewhere(context)
        moved = about_middle(self._linear, size)
        affine = Affine(*(where(same, own, other) for own, other in zip(drawn.affine, moved, strict=True)))
        canvas = Size(*(where(same, own, other) for own, other in zip(drawn.canvas, size, strict=True)))
        return Steps(affine, canvas, drawn.operations, fit=context.slide_wide)

    def _check_elsewhere(self, context: Context) -> None:
        """Raise ``ConfigError`` if the draw also crops, shifts or resizes: that has a meaning at its own size only."""
        own = self.record.size
        placed = Placement(own)
        placed.move(Steps(about_middle(self._linear, own), own, fit=context.slide_wide))
        far = max(abs(one - other) for one, other in zip(placed.affine(), self.record.affine, strict=True))
        if placed.canvas != self.record.canvas or far > CANVAS_ROUNDING:
            raise ConfigError(
                f"Replay: a draw that crops or shifts an image of {own.width}×{own.height} px, on another size",
                remedy="use it at the resolution it was drawn for, or the transform it was drawn from",
            )
