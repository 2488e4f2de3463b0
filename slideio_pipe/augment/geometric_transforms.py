"""Transforms that move pixels. Each is one affine, so pixels are sampled once for any number of them.

Angles are in degrees, counter-clockwise as seen in the image. In a slide-wide draw the canvas grows to hold rotated
content; in a tile, or in ``A.Compose``, the canvas stays and the affine rotates about its middle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from slideio_pipe.augment.affines import about_middle, combined, mirrored, quarter_turns, scaled, shifted
from slideio_pipe.augment.elementwise import exp, sqrt, tangent, where
from slideio_pipe.augment.steps import Steps
from slideio_pipe.augment.transform_base import Context, GeometricTransform, Range, number, span, uniform, whole
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Affine, Size

# torchvision's default. Its repeated attempts are not needed: a crop here may extend beyond the tile.
RATIO: Range = (3 / 4, 4 / 3)


class RandomAffine(GeometricTransform):
    """Mirror, shear, scale, rotate and shift, in this order, about the middle; one affine.

    Parameters
    ----------
    rotate : number or (low, high)
        Degrees, counter-clockwise; a number r means −r to r.
    scale : number or (low, high)
        0.1 means 0.9 to 1.1; (0.5, 2) is the range itself. Above 1 enlarges.
    shear : number or (low, high)
        Degrees, along x; a number s means −s to s.
    flip : bool
        Mirror in half of the draws; with rotations this gives every mirror image.
    translate : number or (low, high)
        Fraction of width and of height; a number t means −t to t. No effect if the canvas grows.

    Examples
    --------
    >>> steps = RandomAffine(rotate=(90, 90), flip=False).draw_steps(np.random.default_rng(0), Size(9, 9), Context())
    >>> steps.affine.apply([[0, 0]]).tolist(), steps.canvas
    ([[0.0, 9.0]], Size(width=9, height=9))
    """

    def __init__(
        self,
        rotate: float | Range = 180.0,
        scale: float | Range = 0.0,
        shear: float | Range = 0.0,
        flip: bool = True,
        translate: float | Range = 0.0,
        *,
        always_apply: bool = False,
        p: float = 1.0,
    ) -> None:
        super().__init__(always_apply=always_apply, p=p)
        owner = type(self).__name__
        self.rotate = span(owner, "rotate", rotate, about=0)
        self.scale = span(owner, "scale", scale, about=1, low=1e-3, high=1e3)
        self.shear = span(owner, "shear", shear, about=0, low=-80, high=80)
        self.translate = span(owner, "translate", translate, about=0, low=-1e3, high=1e3)
        if not isinstance(flip, bool):
            raise ConfigError(f"{owner}: flip={flip!r}", remedy="pass True or False")
        self.flip = flip

    def draw_steps(self, rng: np.random.Generator, size: Size, context: Context) -> Steps:
        """Return one affine."""
        mirror = where((rng.random() < 0.5) & self.flip, -1.0, 1.0)
        shear = tangent(uniform(rng, self.shear))
        factor = uniform(rng, self.scale)
        turn = uniform(rng, self.rotate)
        shift = (uniform(rng, self.translate) * size.width, uniform(rng, self.translate) * size.height)
        linear = combined(mirror=mirror, shear=shear, scale=factor, turn=turn)
        if isinstance(mirror, float) and linear == Affine() and (shift == (0, 0) or context.slide_wide):
            return Steps()
        return Steps(about_middle(linear, size, shift), size, fit=context.slide_wide)


class Rotate90(GeometricTransform):
    """Zero to three quarter turns, equally likely; exact, and the sides swap.

    Examples
    --------
    >>> from slideio_pipe import draw
    >>> sorted({tuple(draw(Rotate90(), seed=seed, size=(40, 30)).canvas) for seed in range(20)})
    [(30, 40), (40, 30)]
    """

    def draw_steps(self, rng: np.random.Generator, size: Size, context: Context) -> Steps:
        """Return one of four turns."""
        return quarter_turns(whole(rng, 4), size)


class Flip(GeometricTransform):
    """Mirror left-right in half of the draws, and top-bottom in half of the draws; exact.

    Parameters
    ----------
    horizontal : bool
        Mirror left-right.
    vertical : bool
        Mirror top-bottom.

    Examples
    --------
    >>> from slideio_pipe import draw
    >>> drawn = [draw(Flip(vertical=False), seed=seed, size=(40, 30)) for seed in range(20)]
    >>> sorted({draw.affine[:3] for draw in drawn})
    [(-1.0, 0.0, 40.0), (1.0, 0.0, 0.0)]
    """

    def __init__(
        self, horizontal: bool = True, vertical: bool = True, *, always_apply: bool = False, p: float = 1.0
    ) -> None:
        super().__init__(always_apply=always_apply, p=p)
        self.horizontal, self.vertical = bool(horizontal), bool(vertical)

    def draw_steps(self, rng: np.random.Generator, size: Size, context: Context) -> Steps:
        """Return one of up to four mirror images."""
        across, down = (rng.random(2) < 0.5).T
        return mirrored(size, horizontal=across & self.horizontal, vertical=down & self.vertical)


class RandomResizedCrop(GeometricTransform):
    """Crop a part of a tile, or a larger area around it, and scale it to ``size``.

    Parameters
    ----------
    size : int or (width, height)
        Size of the result in px.
    scale : number or (low, high)
        Area of the crop relative to the tile, as in torchvision. Above 1 the crop extends beyond the tile into the
        surrounding tissue and contains the whole tile; torchvision would return only the tile.
    ratio : (low, high)
        Width by height of the crop, relative to the tile; uniform in its logarithm, as in torchvision.

    Examples
    --------
    >>> from slideio_pipe import draw
    >>> draw(RandomResizedCrop(224, scale=(0.5, 1.5)), tile=0, size=(256, 256)).canvas
    Size(width=224, height=224)
    """

    def __init__(
        self,
        size: int | Sequence[int],
        scale: float | Range = (0.5, 1.5),
        ratio: float | Range = RATIO,
        *,
        always_apply: bool = False,
        p: float = 1.0,
    ) -> None:
        super().__init__(always_apply=always_apply, p=p)
        owner = type(self).__name__
        self.size = _whole_size(owner, size)
        self.scale = span(owner, "scale", scale, low=1e-4, high=1e4)
        self.ratio = span(owner, "ratio", ratio, low=1e-2, high=1e2)

    def draw_steps(self, rng: np.random.Generator, size: Size, context: Context) -> Steps:
        """Return the affine from the tile to its crop; corners may be between pixels."""
        if context.slide_wide:
            raise ConfigError(
                "RandomResizedCrop: crops tiles, not slides", remedy="pass it as tile_transform, or use RandomAffine"
            )
        area = uniform(rng, self.scale)
        ratio = exp(uniform(rng, (math.log(self.ratio[0]), math.log(self.ratio[1]))))
        width, height = size.width * sqrt(area * ratio), size.height * sqrt(area / ratio)
        x, y = (rng.random() * (side - part) for side, part in ((size.width, width), (size.height, height)))
        canvas = Size(*self.size)
        return Steps(scaled(canvas.width / width, canvas.height / height) @ shifted(-x, -y), canvas)


def _whole_size(owner: str, size: Any) -> tuple[int, int]:
    sides = list(size) if isinstance(size, Sequence) else [size, size]
    if len(sides) != 2 or any(number(owner, "size", side, low=1, high=2**20) != int(side) for side in sides):
        raise ConfigError(f"{owner}: size={size!r}", remedy="pass whole pixels, one number or (width, height)")
    return int(sides[0]), int(sides[1])
