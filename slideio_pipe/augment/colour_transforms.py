"""Transforms that change colours: stain jitter and normalisation, colour jitter, statistics in Lab, noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slideio_pipe.augment.operation_columns import in_order, operation
from slideio_pipe.augment.operations import Hsv, Lab, Matrix, Noise, Saturation, Tone, Triple
from slideio_pipe.augment.stain_matrices import (
    MACENKO_STRENGTH,
    as_matrix,
    as_stain,
    as_triple,
    exchange,
    jitter_checked,
    named_basis,
)
from slideio_pipe.augment.steps import Steps, coloured
from slideio_pipe.augment.transform_base import (
    ColourTransform,
    Context,
    Range,
    number,
    span,
    triples,
    uniform,
    whole,
)
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Size

# A larger change of a spread or a concentration than this factor is treated as a measurement error.
MAX_FACTOR = 5.0


class StainJitter(ColourTransform):
    """Make each stain stronger or weaker independently, in optical density (Tellez et al. 2018).

    Every concentration c becomes α·c + β, α and β drawn per stain. With β = 0, the default, glass stays exactly white.

    Parameters
    ----------
    basis : {"hed", "macenko", "slide"} or (3, 3) array
        The stains, one per row: Ruifrok and Johnston's haematoxylin, eosin and DAB; Macenko's published reference of
        haematoxylin and eosin; the slide's own, estimated from its tissue (Macenko et al. 2009); or an array.
    alpha : number or (low, high)
        0.2 means 0.8 to 1.2; (0.7, 1.2) is the range itself. Must stay above 0.
    beta : number or (low, high)
        Natural optical density; a number b means −b to b.

    Examples
    --------
    >>> steps = StainJitter(alpha=0.2).draw_steps(np.random.default_rng(0), Size(9, 9), Context())
    >>> steps.operations[0].offset
    (0.0, 0.0, 0.0)
    """

    without_slide = 'basis="hed"'

    def __init__(
        self,
        basis: str | ArrayLike = "hed",
        alpha: float | Range = 0.2,
        beta: float | Range = 0.0,
        *,
        always_apply: bool = False,
        p: float = 1.0,
    ) -> None:
        super().__init__(always_apply=always_apply, p=p)
        owner = type(self).__name__
        self.basis = _basis_argument(basis, owner)
        self.needs_slide = self.basis == "slide"
        self.alpha = _positive(owner, "alpha", alpha)
        self.beta = span(owner, "beta", beta, about=0, low=-6, high=6)

    def draw_steps(self, rng: np.random.Generator, size: Size, context: Context) -> Steps:
        """Return one map in optical density."""
        alpha, beta = uniform(rng, self.alpha, 3), uniform(rng, self.beta, 3)
        return coloured(as_stain(*jitter_checked(_basis_of(self.basis, context, "StainJitter"), alpha, beta)))


class StainNormalize(ColourTransform):
    """Replace the slide's stains by the target's, at the target's strength (Macenko et al. 2009). Glass stays white.

    Parameters
    ----------
    target : {"macenko", "hed"} or (3, 3) array
        Stains of the result.
    basis : {"slide", "hed", "macenko"} or (3, 3) array
        Stains of the slide.
    strength : (3,) numbers, optional
        Target 99th percentile of each concentration, natural optical density; by default Macenko's for target
        "macenko", else unchanged. Has an effect only where the slide's own is measured, that is, for basis "slide".

    Examples
    --------
    >>> from slideio_pipe import draw
    >>> draw(StainNormalize("macenko", basis="hed"), seed=1, size=(40, 30)).operations[0].kind
    'stain'
    """

    without_slide = 'basis="hed"'

    def __init__(
        self,
        target: str | ArrayLike = "macenko",
        basis: str | ArrayLike = "slide",
        strength: Sequence[float] | None = None,
        *,
        always_apply: bool = False,
        p: float = 1.0,
    ) -> None:
        super().__init__(always_apply=always_apply, p=p)
        owner = type(self).__name__
        self.target, self.basis = _basis_argument(target, owner), _basis_argument(basis, owner)
        self.needs_slide = self.basis == "slide"
        if self.target == "slide":
            raise ConfigError(f'{owner}: target="slide"', remedy='pass target="macenko", "hed" or a 3×3')
        if strength is None and self.target == "macenko":
            strength = MACENKO_STRENGTH
        self.strength = None if strength is None else _positive_triple(owner, "strength", strength)

    def draw_steps(self, rng: np.random.Generator, size: Size, context: Context) -> Steps:
        """Return one map in optical density; nothing is random."""
        source = _basis_of(self.basis, context, "StainNormalize")
        factors = np.ones(3)
        if self.needs_slide and context.colour is not None and self.strength is not None:
            factors = np.clip(np.divide(self.strength, context.colour.strength), 1 / MAX_FACTOR, MAX_FACTOR)
        return coloured(as_stain(exchange(source, named_basis(self.target, "StainNormalize"), factors)))


class ColorJitter(ColourTransform):
    """Brightness, contrast, saturation and hue in random order, defined as in torchvision.

    One difference: contrast scales about a fixed grey instead of the image's mean, which would need a pass over the
    whole slide and differ from tile to tile. With the mean as ``pivot``, results equal torchvision's.

    Parameters
    ----------
    brightness, contrast, saturation : number or (low, high)
        0.2 means a factor from 0.8 to 1.2, a number above 1 starts at 0; (0.5, 2) is the range itself.
    hue : number or (low, high)
        Fraction of the colour circle, at most 0.5; 0.1 means −0.1 to 0.1. Wraps.
    pivot : number
        The value that contrast leaves unchanged, 0 to 1.

    Examples
    --------
    >>> from slideio_pipe import draw
    >>> drawn = draw(ColorJitter(brightness=0.2, contrast=0, saturation=0, hue=0), seed=1, size=(40, 30))
    >>> [operation.kind for operation in drawn.operations]
    ['tone']
    """

    def __init__(
        self,
        brightness: float | Range = 0.2,
        contrast: float | Range = 0.2,
        saturation: float | Range = 0.2,
        hue: float | Range = 0.05,
        pivot: float = 0.5,
        *,
        always_apply: bool = False,
        p: float = 1.0,
    ) -> None:
        super().__init__(always_apply=always_apply, p=p)
        owner = type(self).__name__
        self.brightness = _factor(owner, "brightness", brightness)
        self.contrast = _factor(owner, "contrast", contrast)
        self.saturation = _factor(owner, "saturation", saturation)
        self.hue = span(owner, "hue", hue, about=0, low=-0.5, high=0.5)
        self.pivot = number(owner, "pivot", pivot, low=0, high=1)

    def draw_steps(self, rng: np.random.Generator, size: Size, context: Context) -> Steps:
        """Return four operations, in the order drawn."""
        order = rng.permutation(4)
        operations = (
            operation(Tone, brightness=uniform(rng, self.brightness)),
            operation(Tone, contrast=uniform(rng, self.contrast), pivot=self.pivot),
            operation(Saturation, factor=uniform(rng, self.saturation)),
            operation(Hsv, turn=uniform(rng, self.hue)),
        )
        return coloured(*in_order(order, *operations))


class RandStainNA(ColourTransform):
    """Draw target statistics in Lab from those of a cohort, and map the slide to them (Shen et al. 2022).

    The target's mean and spread per channel are drawn from normal distributions; the slide's own are those of its
    tissue tiles, measured once, so all tiles of a bag have the same colours.

    Parameters
    ----------
    mean, std : ((average, deviation) of L, of a, of b)
        Distribution of an image's mean and standard deviation over the cohort; CIE Lab, L 0 to 100. The default is
        the colorectal cohort of the paper (``configs/randstainna-crc.yaml``).
    source : "slide", "cohort" or (mean of L, a, b), (deviation of L, a, b)
        Statistics of the image: measured, or the cohort's average, which needs no measurement and jitters without
        normalising.

    Examples
    --------
    >>> from slideio_pipe import draw
    >>> jitter = RandStainNA(source=[[61.97, 23.19, -11.19], [14.47, 8.13, 6.13]])
    >>> draw(jitter, seed=1, size=(40, 30)).operations[0].kind
    'lab'
    """

    without_slide = 'source="cohort"'

    def __init__(
        self,
        mean: Sequence[Sequence[float]] = ((61.974, 19.134), (23.187, 10.958), (-11.188, 6.643)),
        std: Sequence[Sequence[float]] = ((14.47, 5.64), (8.134, 2.822), (6.129, 2.013)),
        source: str | Sequence[Sequence[float]] = "slide",
        *,
        always_apply: bool = False,
        p: float = 1.0,
    ) -> None:
        super().__init__(always_apply=always_apply, p=p)
        owner = type(self).__name__
        self.mean, self.std = _three_pairs(owner, "mean", mean), _three_pairs(owner, "std", std)
        if min(pair[0] for pair in self.std) <= 0:
            raise ConfigError(f"{owner}: std={std!r}", remedy="pass standard deviations above 0")
        if isinstance(source, str):
            if source not in ("slide", "cohort"):
                raise ConfigError(f"{owner}: source={source!r}", remedy='pass "slide", "cohort" or (mean, deviation)')
            self.source: str | tuple[Triple, Triple] = source
        else:
            first, second = source
            self.source = (as_triple(triples(owner, "source", first)), _positive_triple(owner, "source", second))
        self.needs_slide = self.source == "slide"

    def draw_steps(self, rng: np.random.Generator, size: Size, context: Context) -> Steps:
        """Return one linear map per channel of Lab."""
        (centres, widths), (spreads, spread_widths) = np.transpose(self.mean), np.transpose(self.std)
        mean = centres + widths * rng.standard_normal(3)
        # A spread of 0 or less would erase the image: it is limited to a fifth of the average.
        std = np.maximum(spreads + spread_widths * rng.standard_normal(3), spreads / MAX_FACTOR)
        own_mean, own_std = self._slide_statistics(context)
        gain = np.clip(std / own_std, 1 / MAX_FACTOR, MAX_FACTOR)
        return coloured(operation(Lab, gain=as_triple(gain), bias=as_triple(mean - gain * own_mean)))

    def _slide_statistics(self, context: Context) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if self.source == "cohort":
            return np.transpose(self.mean)[0], np.transpose(self.std)[0]
        if not isinstance(self.source, str):
            return np.asarray(self.source[0]), np.asarray(self.source[1])
        if context.colour is None or context.colour.lab_mean is None or context.colour.lab_std is None:
            raise ConfigError(
                'RandStainNA: source="slide" needs a slide',
                remedy='pass it to slide.view, or source="cohort" for an image that is not one',
            )
        return np.asarray(context.colour.lab_mean), np.maximum(context.colour.lab_std, 1e-3)


class GaussianNoise(ColourTransform):
    """Independent normal noise on every pixel and channel, clipped; seeded, so a draw is reproducible.

    Parameters
    ----------
    sigma : number or (low, high)
        Standard deviation in levels of 255; a number is used in every draw.

    Examples
    --------
    >>> from slideio_pipe import draw
    >>> draw(GaussianNoise(sigma=4), seed=1, size=(40, 30)).operations[0].kind
    'noise'
    """

    def __init__(self, sigma: float | Range = (0.0, 8.0), *, always_apply: bool = False, p: float = 1.0) -> None:
        super().__init__(always_apply=always_apply, p=p)
        self.sigma = span(type(self).__name__, "sigma", sigma, low=0, high=255)

    def draw_steps(self, rng: np.random.Generator, size: Size, context: Context) -> Steps:
        """Return one operation with its own seed."""
        return coloured(operation(Noise, sigma=uniform(rng, self.sigma), seed=whole(rng, 2**31)))


def _basis_argument(basis: Any, owner: str) -> str | Matrix:
    """Return a basis in its stored form: a name, or three triples."""
    if isinstance(basis, str):
        if basis != "slide":
            named_basis(basis, owner)
        return basis
    return as_matrix(named_basis(basis, owner))


def _basis_of(basis: str | Matrix, context: Context, owner: str) -> NDArray[np.float64]:
    """Return the basis, already validated by the constructor."""
    if basis != "slide":
        return named_basis(basis, owner) if isinstance(basis, str) else np.array(basis)
    own = context.basis
    if own is None and context.colour is not None:
        own = context.colour.basis
    if own is None:
        raise ConfigError(
            f'{owner}: basis="slide" needs a slide to estimate stains from',
            remedy='pass it to slide.view, or basis="hed" or a 3×3 for an image that is not a slide',
        )
    return np.array(own)


def _positive(owner: str, name: str, value: Any) -> Range:
    """Return a range of factors about 1, above 0."""
    values = span(owner, name, value, about=1)
    if values[0] <= 0 or (not isinstance(value, Sequence) and value <= 0):
        raise ConfigError(
            f"{owner}: {name}={value!r} means factors from {values[0]:g} to {values[1]:g}",
            remedy=f"pass a number between 0 and 1, or a range above 0; {name}=(1, 1) is none",
        )
    return values


def _factor(owner: str, name: str, value: Any) -> Range:
    """Return a range of factors made from a number as in torchvision: about 1, limited to 0 and above."""
    if not isinstance(value, Sequence):
        spread = number(owner, name, value, low=0, high=math.inf)
        return max(0.0, 1 - spread), 1 + spread
    return span(owner, name, value, low=0)


def _positive_triple(owner: str, name: str, values: Any) -> Triple:
    array = triples(owner, name, values)
    if not (array > 0).all():
        raise ConfigError(f"{owner}: {name}={values!r}", remedy="pass three numbers above 0")
    triple: Triple = as_triple(array)
    return triple


def _three_pairs(owner: str, name: str, values: Any) -> tuple[Range, Range, Range]:
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.shape != (3, 2) or not np.isfinite(array).all() or not (array[:, 1] >= 0).all():
        raise ConfigError(f"{owner}: {name}={values!r}", remedy="pass (average, deviation) of L, a and b")
    (a, b), (c, d), (e, f) = array.tolist()
    return (a, b), (c, d), (e, f)
