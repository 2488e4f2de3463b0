"""Nuclei, glands and fat as small images of haematoxylin and eosin, drawn once per slide and reused."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from slideio_pipe.synthetic.anatomy import generator
from slideio_pipe.synthetic.textures import Plane, fat_texture, smoothstep

Bytes = NDArray[np.uint8]

# Nuclear planes are stored as bytes: 255 stands for this optical density (natural logarithm).
NUCLEAR_RANGE = 2.4
_GLANDS = 20


@dataclass(frozen=True)
class NucleusKind:
    """Appearance of the nuclei of one cell type."""

    length_um: float  # mean long axis
    aspect: float  # short axis / long axis
    irregular: float  # amplitude of the outline's harmonics
    density: float  # optical density of haematoxylin, natural logarithm
    clumps: float  # amplitude of the chromatin texture
    vesicular: float  # relative paleness of the middle
    nucleoli: float  # mean number


SPINDLE = NucleusKind(11.5, 0.25, 0.05, 1.05, 0.16, 0.10, 0.0)
LYMPHOCYTE = NucleusKind(6.2, 0.93, 0.03, 1.55, 0.22, 0.05, 0.0)
EPITHELIAL = NucleusKind(8.6, 0.66, 0.05, 1.12, 0.22, 0.25, 0.5)
TUMOUR = NucleusKind(11.6, 0.76, 0.12, 1.25, 0.24, 0.30, 1.3)
STAMPS_PER_KIND = 64


@dataclass(frozen=True)
class NucleusStamps:
    """Images of nuclei of one kind; number i is rotated by about π·i/n."""

    images: Bytes  # (n, side, side), optical density in units of NUCLEAR_RANGE / 255

    @classmethod
    def draw(cls, kind: NucleusKind, mpp: float, rng: np.random.Generator) -> NucleusStamps:
        """Return the stamps of a kind at a resolution."""
        n, side = STAMPS_PER_KIND, 2 * math.ceil(kind.length_um * 0.74 / mpp + 2)
        axis = ((np.arange(side) + 0.5 - side / 2) * mpp).astype(np.float32)
        x, y = axis[None, None, :], axis[None, :, None]
        angle = (np.arange(n) + rng.uniform(-0.5, 0.5, n)) * math.pi / n
        c, s = (f(angle).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
        half = (kind.length_um / 2 * rng.normal(1, 0.11, n).clip(0.78, 1.2)).astype(np.float32)[:, None, None]
        aspect = (kind.aspect * rng.normal(1, 0.11, n).clip(0.7, 1.3)).clip(0, 1).astype(np.float32)[:, None, None]
        u, v = (c * x + s * y) / half, (c * y - s * x) / (half * aspect)
        theta, radius = np.arctan2(v, u), np.hypot(u, v)
        outline = np.ones_like(theta)
        for order in (2, 3, 4, 5):
            phase = rng.uniform(0, 2 * math.pi, n).astype(np.float32)[:, None, None]
            outline += np.float32(kind.irregular * rng.uniform(0.4, 1.2) / math.sqrt(order - 1)) * np.cos(
                order * theta + phase
            )
        rho = radius / outline  # 1 on the nuclear membrane
        # The optics and the 3-4 µm thickness of a section blur the membrane over about 0.7 µm.
        edge_um = (1 - rho) * half * np.sqrt(aspect)
        body = smoothstep(-0.6, 0.75, edge_um)
        texture = _chromatin(rng, (n, side, side), mpp)
        rim = np.exp(-(((rho - 0.86) / 0.16) ** 2))
        level = 1 + np.float32(kind.clumps) * texture - np.float32(kind.vesicular) * (1 - rho).clip(0, 1) + 0.16 * rim
        level += _nucleoli(rng, kind, (x, y), half * aspect)
        stain = rng.normal(1, 0.13, n).clip(0.65, 1.3).astype(np.float32)[:, None, None] * np.float32(kind.density)
        density = body * stain * level.clip(0.35, 1.7)
        return cls(np.clip(density * (255 / NUCLEAR_RANGE), 0, 255).astype(np.uint8))


def _chromatin(rng: np.random.Generator, shape: tuple[int, int, int], mpp: float) -> Plane:
    """Return the clumped texture inside nuclei, of standard deviation about 1."""
    white = rng.standard_normal(shape, dtype=np.float32)
    fine = ndimage.gaussian_filter(white, (0, 0.42 / mpp, 0.42 / mpp), mode="wrap", truncate=2.5)
    coarse = ndimage.gaussian_filter(white, (0, 1.1 / mpp, 1.1 / mpp), mode="wrap", truncate=2.5)
    texture: Plane = fine / (fine.std() + 1e-6) * 0.75 + coarse / (coarse.std() + 1e-6) * 0.55
    return texture


def _nucleoli(rng: np.random.Generator, kind: NucleusKind, axes: tuple[Plane, Plane], half_um: Plane) -> Plane:
    """Return dark round spots of about 1.5 µm off the middle of nuclei."""
    n = STAMPS_PER_KIND
    spots = np.zeros((n, axes[1].shape[1], axes[0].shape[2]), np.float32)
    for chance in (kind.nucleoli, kind.nucleoli - 1):
        present = (rng.random(n) < chance).astype(np.float32)[:, None, None]
        offset = (rng.uniform(-0.4, 0.4, (2, n)).astype(np.float32))[:, :, None, None] * half_um
        size = np.float32(rng.uniform(0.6, 0.95))
        spots += present * 0.55 * np.exp(-((axes[0] - offset[0]) ** 2 + (axes[1] - offset[1]) ** 2) / size**2)
    return spots


Window = tuple[slice, slice]


def overlap(plane: NDArray[Any], image: NDArray[Any], left: int, top: int) -> tuple[Window, Window] | None:
    """Return the overlapping windows of a plane and of an image placed at (left, top), or None without overlap."""
    h, w = image.shape
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + h, plane.shape[0]), min(left + w, plane.shape[1])
    if y0 >= y1 or x0 >= x1:
        return None
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def stamp(plane: Bytes, image: Bytes, left: int, top: int) -> None:
    """Darken a plane by an image; its top-left corner may be outside."""
    windows = overlap(plane, image, left, top)
    if windows:
        region = plane[windows[0]]
        np.maximum(region, image[windows[1]], out=region)


@dataclass(frozen=True)
class Gland:
    """A gland or a vessel: cover of the stroma, cytoplasm and nuclei, all (side, side)."""

    cover: Plane  # 0 … 1
    eosin: Plane  # optical density
    haematoxylin: Plane  # optical density without nuclei
    nuclei: Bytes

    @classmethod
    def draw(cls, mpp: float, rng: np.random.Generator, epithelium: NucleusStamps) -> Gland:
        """Return epithelium around a lumen, 34 to 78 µm in radius, with nuclei on the basement membrane."""
        ring = _Ring.draw(mpp, rng, rng.uniform(34, 78), 0.15)
        height_um = min(ring.radius_um * rng.uniform(0.55, 0.9), rng.uniform(19, 34))
        mottle = 0.6 * ring.noise(rng, 0.5) + 0.4 * ring.noise(rng, 2.2)
        inside = ring.inside + 1.6 * ring.noise(rng, 5.0)
        apical = smoothstep(-1.1, 1.1, height_um - inside)  # 1 in the epithelium, 0 in the lumen
        # Cytoplasm gets paler towards the lumen; secretion in the lumen is a thin film.
        toward = (inside / np.float32(height_um)).clip(0, 1)
        eosin = apical * (0.42 - 0.14 * toward + 0.06 * mottle) + 0.12 * np.exp(-(((inside - height_um) / 1.5) ** 2))
        secretion = np.float32(rng.choice([0.0, 0.02, 0.16]))
        eosin += 0.28 * np.exp(-(((inside + 1.4) / 1.3) ** 2)) + (1 - apical) * secretion
        haematoxylin = apical * (0.24 - 0.10 * toward + 0.03 * mottle)
        nuclei = np.zeros(inside.shape, np.uint8)
        ring.line(nuclei, rng, epithelium, (rng.uniform(5.0, 7.0), 3.0, 5.8))
        if height_um > 25:  # a second, looser row: cut obliquely, or proliferating
            ring.line(nuclei, rng, epithelium, (rng.uniform(11, 14), 3.5, 9.0))
        return cls(ring.cover(), eosin, haematoxylin, nuclei)

    @classmethod
    def draw_vessel(cls, mpp: float, rng: np.random.Generator, endothelium: NucleusStamps) -> Gland:
        """Return a vessel of 14 to 45 µm radius with a thin wall and red cells."""
        ring = _Ring.draw(mpp, rng, rng.uniform(14, 45), 0.22)
        wall_um = rng.uniform(2.5, 7)
        wall = smoothstep(-0.8, 0.8, wall_um - ring.inside)
        eosin = wall * (0.42 + 0.05 * ring.noise(rng, 0.6)) + 0.015
        side = ring.inside.shape[0]
        disc = _disc(mpp)
        red = np.zeros((side, side), np.uint8)
        chance = rng.uniform(0.1, 0.95)
        for x, y in rng.uniform(0, side, (round((side * mpp / 5.2) ** 2), 2)):
            if ring.inside[int(y), int(x)] > wall_um + 3.2 and rng.random() < chance:
                stamp(red, disc, round(x) - disc.shape[0] // 2, round(y) - disc.shape[0] // 2)
        eosin += red.astype(np.float32) * np.float32(0.85 / 255)
        nuclei = np.zeros((side, side), np.uint8)
        ring.line(nuclei, rng, endothelium, (wall_um - 0.5, 0.4, 21.0), across=False)
        return cls(ring.cover(), eosin, 0.06 * wall, nuclei)


@dataclass(frozen=True)
class _Ring:
    """A closed outline with harmonics, and the depth inside it of every pixel of its square image."""

    mpp: float
    radius_um: float
    waves: tuple[tuple[int, float, float], ...]  # order, amplitude, phase
    inside: Plane  # µm

    @classmethod
    def draw(cls, mpp: float, rng: np.random.Generator, radius_um: float, roughness: float) -> _Ring:
        waves = tuple(
            (k, rng.uniform(0.1, roughness * 10) / 10 / (k - 1), rng.uniform(0, 6.283)) for k in (2, 3, 4, 5, 7)
        )
        side = 2 * math.ceil((radius_um * (1 + sum(a for _, a, _ in waves)) + 6) / mpp)
        axis = ((np.arange(side) + 0.5 - side / 2) * mpp).astype(np.float32)
        x, y = axis[None, :], axis[:, None]
        bare = cls(mpp, radius_um, waves, x)
        return cls(mpp, radius_um, waves, bare.outline(np.arctan2(y, x)) - np.hypot(x, y))

    def outline(self, angle: Plane) -> Plane:
        """Return the distance of the outline from the centre in µm."""
        shape = np.ones_like(angle)
        for order, amplitude, phase in self.waves:
            shape += np.float32(amplitude) * np.cos(order * angle + np.float32(phase))
        return shape * np.float32(self.radius_um)

    def cover(self) -> Plane:
        """Return the fraction of stroma that is replaced, 0 … 1."""
        return smoothstep(-3.2, 0.4, self.inside)

    def noise(self, rng: np.random.Generator, feature_um: float) -> Plane:
        """Return noise of standard deviation 1 and a feature size, of the image's size."""
        side = self.inside.shape[0]
        coarse = max(4, math.ceil(side * self.mpp / feature_um))
        white = cv2.GaussianBlur(rng.standard_normal((coarse, coarse), dtype=np.float32), (0, 0), 0.8)
        smooth: Plane = cv2.resize(white, (side, side), interpolation=cv2.INTER_CUBIC)
        return smooth / np.float32(smooth.std() + 1e-6)

    def line(
        self,
        plane: Bytes,
        rng: np.random.Generator,
        stamps: NucleusStamps,
        row_um: tuple[float, float, float],
        *,
        across: bool = True,
    ) -> None:
        """Place nuclei along the outline: depth inside it, scatter of the depth, and spacing, in µm."""
        depth_um, scatter_um, spacing_um = row_um
        fine = np.linspace(0, 2 * math.pi, 361, dtype=np.float32)
        radius = (self.outline(fine) - depth_um).clip(1)
        length = np.concatenate(
            [[0], np.cumsum(np.hypot(np.diff(radius * np.cos(fine)), np.diff(radius * np.sin(fine))))]
        )
        along = np.arange(0, length[-1] - 0.7 * spacing_um, spacing_um)
        along = along + rng.uniform(-0.3, 0.3, len(along)) * spacing_um
        angle = np.interp(along, length, fine).astype(np.float32)
        depth = self.outline(angle) - depth_um - np.abs(rng.normal(0, scatter_um, len(angle)))
        half, middle = stamps.images.shape[1] // 2, plane.shape[0] / 2
        turn = rng.normal(0 if across else math.pi / 2, 0.25, len(angle))
        number = np.round((angle + turn) / math.pi * STAMPS_PER_KIND).astype(int) % STAMPS_PER_KIND
        for theta, r, n in zip(angle, depth, number, strict=True):
            x, y = middle + r * math.cos(theta) / self.mpp, middle + r * math.sin(theta) / self.mpp
            stamp(plane, stamps.images[n], round(x) - half, round(y) - half)


def _disc(mpp: float) -> Bytes:
    """Return a red cell, 7 µm across and paler in the middle, 0 … 255."""
    side = 2 * math.ceil(4.2 / mpp)
    axis = ((np.arange(side) + 0.5 - side / 2) * mpp).astype(np.float32)
    r = np.hypot(axis[None, :], axis[:, None])
    return (255 * smoothstep(3.9, 2.9, r) * (0.8 + 0.2 * smoothstep(0.5, 2.2, r))).astype(np.uint8)


class CellLibrary:
    """The stamps of one slide, drawn when first needed; the order of use does not change them."""

    def __init__(self, mpp: float, seed: int) -> None:
        self.mpp, self._seed = mpp, seed
        self._lock = threading.RLock()
        self._glands: dict[int, Gland] = {}
        kinds = (SPINDLE, LYMPHOCYTE, EPITHELIAL, TUMOUR)
        self._nuclei = [NucleusStamps.draw(kind, mpp, generator(seed, 10, i)) for i, kind in enumerate(kinds)]
        self.spindle, self.lymphocyte, self.epithelial, self.tumour = self._nuclei

    def gland(self, number: int) -> Gland:
        """Return one of the 20 glands and vessels."""
        number %= _GLANDS
        with self._lock:
            if number not in self._glands:
                rng = generator(self._seed, 11, number)
                vessel = number % 4 == 0
                draw, stamps = (Gland.draw_vessel, self.spindle) if vessel else (Gland.draw, self.epithelial)
                self._glands[number] = draw(self.mpp, rng, stamps)
            return self._glands[number]

    @cached_property
    def fat(self) -> Plane:
        """Return the walls between fat cells, see `fat_texture`."""
        return fat_texture(generator(self._seed, 12))
