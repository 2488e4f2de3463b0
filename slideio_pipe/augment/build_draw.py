"""Build a ``Draw`` from explicit values, such as those of sliders; albumentationsxl is not imported."""

from __future__ import annotations

from typing import Any, TypedDict

from numpy.typing import ArrayLike
from pydantic import Field

from slideio_pipe.augment.affines import about_middle, combined
from slideio_pipe.augment.draw import Draw
from slideio_pipe.augment.operations import Hsv, Operation, Saturation, Tone
from slideio_pipe.augment.placement import Placement, checked_size
from slideio_pipe.augment.stain_matrices import as_stain, jitter_checked, named_basis
from slideio_pipe.augment.steps import Steps
from slideio_pipe.config import Record, validated
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Affine, Size


class Adjustment(Record):
    """The values of ``build_draw``, with their bounds; the defaults change nothing."""

    haematoxylin: float = Field(default=1.0, gt=0, le=100)
    eosin: float = Field(default=1.0, gt=0, le=100)
    residual: float = Field(default=1.0, gt=0, le=100)
    brightness: float = Field(default=1.0, ge=0, le=100)
    contrast: float = Field(default=1.0, ge=0, le=100)
    gamma: float = Field(default=1.0, gt=0, le=100)
    pivot: float = Field(default=0.5, ge=0, le=1)
    saturation: float = Field(default=1.0, ge=0, le=100)
    hue: float = Field(default=0.0, ge=-0.5, le=0.5)
    turn: float = Field(default=0.0, ge=-1e6, le=1e6)
    mirror: bool = False
    scale: float = Field(default=1.0, ge=1e-3, le=1e3)

    @property
    def linear(self) -> Affine:
        """Mirror, scale and turn, about the origin."""
        return combined(mirror=-1.0 if self.mirror else 1.0, shear=0.0, scale=self.scale, turn=self.turn)


class Adjustments(TypedDict, total=False):
    """Keyword arguments of ``SlideView.adjusted``: those of ``build_draw``."""

    haematoxylin: float
    eosin: float
    residual: float
    basis: str | ArrayLike
    brightness: float
    contrast: float
    gamma: float
    pivot: float
    saturation: float
    hue: float
    turn: float
    mirror: bool
    scale: float


def build_draw(
    size: Size | tuple[int, int],
    *,
    haematoxylin: float = 1.0,
    eosin: float = 1.0,
    residual: float = 1.0,
    basis: str | ArrayLike = "hed",
    brightness: float = 1.0,
    contrast: float = 1.0,
    gamma: float = 1.0,
    pivot: float = 0.5,
    saturation: float = 1.0,
    hue: float = 0.0,
    turn: float = 0.0,
    mirror: bool = False,
    scale: float = 1.0,
    slide: str = "",
    tile: int | None = None,
) -> Draw:
    """Return the draw with exactly these values: the record that the transforms draw from ranges of one value.

    The colours are changed in this order: stains, tone, saturation, hue. The pixels are mirrored, scaled, then turned,
    about the middle, as by ``RandomAffine``. Without further arguments nothing changes.

    Parameters
    ----------
    size : (width, height)
        Size of the plain image in px: ``view.size`` of a view without a draw.
    haematoxylin, eosin, residual : float
        Factors, above 0, of the three stains of ``basis``, in optical density; glass stays white.
    basis : {"hed", "macenko"} or (3, 3) array
        The stains, as in ``StainJitter``; a slide's own are ``slide.colour.basis``.
    brightness, contrast, gamma, pivot : float
        One tone curve: brightness, contrast about ``pivot`` (0 to 1), then gamma.
    saturation : float
        Factor; 0 is grey.
    hue : float
        Fraction of the colour circle, −0.5 to 0.5.
    turn : float
        Degrees, counter-clockwise.
    mirror : bool
        Left-right.
    scale : float
        Above 1 enlarges.
    slide, tile
        Names in the record. With ``tile=None`` the draw is for a whole slide, whose canvas grows to hold all content;
        the canvas of a tile keeps its size.

    Raises
    ------
    ConfigError
        A value is no number or out of its bounds; the message names it.

    Examples
    --------
    >>> drawn = build_draw((40, 30), haematoxylin=1.3, turn=90)
    >>> drawn.canvas, drawn.summary()
    (Size(width=30, height=40), 'turned 90°, stain')
    >>> from slideio_pipe import RandomAffine, draw
    >>> draw(RandomAffine(rotate=(20, 20), flip=False), size=(40, 30)) == build_draw((40, 30), turn=20)
    True
    """
    values = {
        "haematoxylin": haematoxylin, "eosin": eosin, "residual": residual, "brightness": brightness,
        "contrast": contrast, "gamma": gamma, "pivot": pivot, "saturation": saturation, "hue": hue, "turn": turn,
        "mirror": mirror, "scale": scale,
    }  # fmt: skip
    wanted = validated(Adjustment, slide or None, values, "pass other values; see help(slideio_pipe.build_draw)")
    plain = checked_size(size)
    placed = Placement(plain)
    if wanted.linear != Affine():
        placed.move(Steps(about_middle(wanted.linear, plain), plain, fit=tile is None))
    return Draw(
        slide=slide, tile=None if tile is None else int(tile),
        size=plain, canvas=placed.canvas, affine=placed.affine(), operations=_operations(wanted, basis),
    )  # fmt: skip


def _operations(wanted: Adjustment, basis: Any) -> tuple[Operation, ...]:
    """Return the colour operations; ``Draw`` leaves out those that change nothing."""
    if isinstance(basis, str) and basis == "slide":
        remedy = "pass basis=slide.colour.basis, or call view.adjusted, which measures it"
        raise ConfigError('build_draw: basis="slide" needs a slide to estimate stains from', remedy=remedy)
    factors = (wanted.haematoxylin, wanted.eosin, wanted.residual)
    return (
        as_stain(*jitter_checked(named_basis(basis, "build_draw"), factors, (0.0, 0.0, 0.0), owner="build_draw")),
        Tone(brightness=wanted.brightness, contrast=wanted.contrast, pivot=wanted.pivot, gamma=wanted.gamma),
        Saturation(factor=wanted.saturation),
        Hsv(turn=wanted.hue),
    )
