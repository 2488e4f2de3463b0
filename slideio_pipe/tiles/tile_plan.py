"""Where each tile of a read is sampled from, computed for all tiles at once: level, decoder's shrink, affine, blur.

A tile that shows more plain pixels than it has, by its own draw or its view's, is sampled from a coarser level: a
1024-px tile shown in 224 px needs a sixteenth of the stored pixels. If one axis is shrunk more than the other, their
geometric mean decides, limited so that the finer axis is nearly fine enough: between keeping every detail of one axis
and the level that graphics hardware uses, that of the other axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.geometry import (
    FINE_ENOUGH,
    SAME_RESOLUTION,
    WHOLE_SHRINKS,
    Affine,
    LevelChoice,
    inverses,
    products,
)
from slideio_pipe.slides.sampling import NEARLY
from slideio_pipe.slides.view import SlideView

# An affine this close to a shift by whole pixels is one: what remains are rounding errors of its factors.
_SAME_SHAPE, _SAME_PLACE = 1e-9, 1e-6

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TilePlan:
    """The sources of n tiles.

    Attributes
    ----------
    levels : (n,) int64
        Level that is read.
    shrinks : (n, 2) float64
        Factors that its pixels are shrunk by first, along x and y.
    to_plain : (n, 6) float64
        From tile px to plain px of the view, corner-based.
    affines : (n, 6) float64
        From tile px to px of the level after that shrink, corner-based.
    scales : (n, 2) float64
        Px after that shrink per plain px.
    rest : (n,) float64
        Shrink factor of ``affines``, 1 where nothing is shrunk.
    shifts : (n,) bool
        Where the affine only shifts by whole pixels: nothing is interpolated.
    """

    levels: NDArray[np.int64]
    shrinks: Floats
    to_plain: Floats
    affines: Floats
    scales: Floats
    rest: Floats
    shifts: NDArray[np.bool_]

    @classmethod
    def of(cls, view: SlideView, origins: NDArray[Any], draws: Floats | None) -> TilePlan:
        """Return the plan for tiles at ``origins`` (n, 2), view px, whose draws have the affines ``draws`` (n, 6)."""
        place = np.zeros((len(origins), 6))
        place[:, 0] = place[:, 4] = 1
        place[:, 2], place[:, 5] = origins.T
        if draws is None and not view.moves:
            return cls._shifted(view, place)
        to_view = place if draws is None else products(place, inverses(draws))
        to_plain = products(np.array(view.to_plain), to_view) if view.moves else to_view
        levels, shrinks, scales, rest = _resolutions(view, to_plain)
        affines = to_plain * np.repeat(scales, 3, axis=1)
        return cls(levels, shrinks, to_plain, affines, scales, rest, are_shifts(affines))

    @classmethod
    def _shifted(cls, view: SlideView, place: Floats) -> TilePlan:
        """Return the plan of tiles that are only shifted, by ``place``."""
        count, own = len(place), view.choice
        levels, shrinks, ones = np.full(count, own.level), np.tile(np.array(own.shrink), (count, 1)), np.ones(count)
        corners = place[:, (2, 5)]
        shifts = np.asarray((corners == np.floor(corners)).all(axis=1))
        return cls(levels, shrinks, place, place, np.ones((count, 2)), ones, shifts)

    def choice(self, k: int) -> LevelChoice:
        """Return the resolution of tile ``k``."""
        sx, sy = self.shrinks[k].tolist()
        return LevelChoice(int(self.levels[k]), (sx, sy))

    def affine(self, k: int) -> Affine:
        """Return the affine of tile ``k``."""
        return Affine(*self.affines[k].tolist())


def _resolutions(view: SlideView, to_plain: Floats) -> tuple[NDArray[np.int64], Floats, Floats, Floats]:
    """Return levels, shrinks, px there per plain px, and the shrink that remains."""
    n, own = len(to_plain), view.choice
    levels, shrinks = np.full(n, own.level), np.tile(np.array(own.shrink), (n, 1))
    scales, rest = np.ones((n, 2)), np.ones(n)
    mean, least = _stretches(to_plain)
    shrink = np.minimum(mean, least * NEARLY)
    small = np.flatnonzero(shrink > 1 + SAME_RESOLUTION)
    if len(small):
        steps = np.array(view.downsample) * shrink[small, None]  # level-0 px per tile px
        downsamples = np.array(view.slide.pyramid.downsamples)
        chosen = _levels(downsamples, steps * FINE_ENOUGH)
        own_steps = downsamples[chosen]
        whole = _decoder_shrinks((steps / own_steps).min(axis=1) * FINE_ENOUGH)
        at = own_steps * whole[:, None]
        levels[small], shrinks[small] = chosen, whole[:, None]
        scales[small] = np.array(view.downsample) / at
        rest[small] = (steps / at).min(axis=1)
    return levels, shrinks, scales, rest


def _stretches(affines: Floats) -> tuple[Floats, Floats]:
    """Return what ``Affine.mean_stretch`` and ``Affine.least_stretch`` return, for (n, 6)."""
    a, b, _, d, e, _ = affines.T
    half, area = (a * a + b * b + d * d + e * e) / 2, a * e - b * d
    spread = np.sqrt(np.maximum(0.0, half * half - area * area))
    return np.sqrt(np.abs(area)), np.sqrt(np.maximum(0.0, half - spread))


def _levels(downsamples: Floats, wanted: Floats) -> NDArray[np.int64]:
    """Return the coarsest level at least as fine as ``wanted`` (n, 2) level-0 px, as ``Pyramid.choose``."""
    fits = np.asarray((downsamples[None] <= wanted[:, None] * (1 + SAME_RESOLUTION)).all(axis=2))
    fits[:, 0] = True
    return np.asarray(len(downsamples) - 1 - fits[:, ::-1].argmax(axis=1), np.int64)


def _decoder_shrinks(left: Floats) -> Floats:
    whole = np.ones(len(left))
    for factor in WHOLE_SHRINKS:
        whole[left >= factor] = factor
    return whole


def are_shifts(affines: Floats) -> NDArray[np.bool_]:
    """Return which affines (n, 6) only shift by whole pixels."""
    same_shape = (np.abs(affines[:, (0, 1, 3, 4)] - (1, 0, 0, 1)) < _SAME_SHAPE).all(axis=1)
    place = affines[:, (2, 5)]
    return np.asarray(same_shape & (np.abs(place - np.round(place)) < _SAME_PLACE).all(axis=1))
