"""Nuclei, glands and fat as small images of haematoxylin and eosin, drawn once per slide and placed many times."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from slideio_pipe.anatomy import generator

Plane = NDArray[np.float32]
Bytes = NDArray[np.uint8]

# Nuclear planes are stored as bytes: 255 stands for this optical density (natural logarithm).
NUCLEAR_RANGE = 2.4
_GLANDS = 14
_FAT_PERIOD_UM = 640.0
_FAT_CELL_UM = 66.0


@dataclass(frozen=True)
class NucleusKind:
    """How nuclei of one cell type look."""

    length_um: float  # mean long axis
    aspect: float  # short axis / long axis
    irregular: float  # amplitude of the outline's harmonics
    density: float  # optical density of haematoxylin, natural logarithm
    clumps: float  # amplitude of the chromatin texture
    vesicular: float  # how much paler the middle is
    nucleoli: float  # how many, on average


SPINDLE = NucleusKind(12.0, 0.27, 0.04, 1.05, 0.16, 0.10, 0.0)
LYMPHOCYTE = NucleusKind(6.2, 0.93, 0.03, 1.55, 0.22, 0.05, 0.0)
EPITHELIAL = NucleusKind(8.6, 0.66, 0.05, 1.12, 0.22, 0.25, 0.5)
TUMOUR = NucleusKind(11.8, 0.74, 0.13, 1.42, 0.34, 0.30, 1.3)
STAMPS_PER_KIND = 64


def smoothstep(low: float, high: float, values: Plane) -> Plane:
    """Return 0 below ``low``, 1 above ``high`` and a smooth cubic between."""
    t = np.clip((values - np.float32(low)) * np.float32(1 / (high - low)), 0, 1)
    smooth: Plane = t * t * (3 - 2 * t)
    return smooth


@dataclass(frozen=True)
class NucleusStamps:
    """Nuclei of one kind; number i lies at an angle of about π·i/n."""

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
            outline += np.float32(kind.irregular * rng.uniform(0.4, 1.2) / math.sqrt(order - 1)) * np.cos(order * theta + phase)
        rho = radius / outline  # 1 on the nuclear membrane
        # The optics and the 3-4 µm thickness of a section blur the membrane over about 0.7 µm.
        edge_um = (1 - rho) * half * np.sqrt(aspect)
        body = smoothstep(-0.45, 0.55, edge_um)
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


def stamp(plane: Bytes, image: Bytes, x: int, y: int) -> None:
    """Darken a plane by an image whose top-left corner is at (x, y), which may lie outside."""
    h, w = image.shape
    top, left, bottom, right = max(y, 0), max(x, 0), min(y + h, plane.shape[0]), min(x + w, plane.shape[1])
    if top < bottom and left < right:
        region = plane[top:bottom, left:right]
        np.maximum(region, image[top - y : bottom - y, left - x : right - x], out=region)


@dataclass(frozen=True)
class Gland:
    """A gland: what covers the stroma, its cytoplasm and its nuclei, all (side, side)."""

    cover: Plane  # 0 … 1
    eosin: Plane  # optical density
    haematoxylin: Plane  # optical density without nuclei
    nuclei: Bytes

    @classmethod
    def draw(cls, mpp: float, rng: np.random.Generator, epithelium: NucleusStamps) -> Gland:
        """Return a gland of 35 to 85 µm radius around a lumen, its nuclei standing on the basement membrane."""
        radius_um, lumen = rng.uniform(34, 80), rng.uniform(0.32, 0.62)
        height_um = min(radius_um * (1 - lumen), rng.uniform(17, 26))
        side = 2 * math.ceil((radius_um * 1.4 + 8) / mpp)
        axis = ((np.arange(side) + 0.5 - side / 2) * mpp).astype(np.float32)
        x, y = axis[None, :] * np.float32(rng.uniform(0.85, 1.2)), axis[:, None]
        theta, r = np.arctan2(y, x), np.hypot(x, y)
        waves = [(k, rng.uniform(0.02, 0.16) / (k - 1), rng.uniform(0, 2 * math.pi)) for k in (2, 3, 4, 5, 7)]

        def outline(angle: Plane) -> Plane:
            shape: Plane = np.float32(radius_um) * (1 + sum((np.float32(a) * np.cos(k * angle + p) for k, a, p in waves), np.zeros_like(angle)))
            return shape

        outside = r - outline(theta)  # µm beyond the basement membrane
        small = rng.standard_normal((side // 4 + 1,) * 2, dtype=np.float32)
        bumps = cv2.resize(cv2.GaussianBlur(small, (0, 0), max(0.6 / mpp, 0.3)), (side, side), interpolation=cv2.INTER_CUBIC)
        bumps = bumps / np.float32(bumps.std() + 1e-6)
        inside = -outside + 0.9 * bumps
        apical = smoothstep(-0.8, 0.8, height_um - inside)  # 1 in the epithelium, 0 in the lumen
        eosin = apical * (0.40 + 0.05 * bumps) + 0.22 * np.exp(-(((inside - height_um) / 1.2) ** 2))
        eosin += 0.35 * np.exp(-((outside - 1.2) / 1.3) ** 2) + (1 - apical) * 0.03
        haematoxylin = apical * (0.20 + 0.03 * bumps)
        cover = smoothstep(-3.5, 0.5, -outside + 0.8 * bumps)
        nuclei = np.zeros((side, side), np.uint8)
        _line_with_nuclei(nuclei, mpp, rng, epithelium, outline, float(rng.uniform(4.5, 6.5)))
        return cls(cover, eosin, haematoxylin, nuclei)


def _line_with_nuclei(
    plane: Bytes, mpp: float, rng: np.random.Generator, stamps: NucleusStamps, outline: Callable[[Plane], Plane], basal_um: float
) -> None:
    """Stand nuclei along a closed outline, ``basal_um`` inside it, long axes across the membrane."""
    fine = np.linspace(0, 2 * math.pi, 721, dtype=np.float32)
    radius = outline(fine) - basal_um
    px, py = radius * np.cos(fine), radius * np.sin(fine)
    length = np.concatenate([[0], np.cumsum(np.hypot(np.diff(px), np.diff(py)))])
    along = np.arange(0, length[-1] - 4, 6.1) + rng.uniform(-1.3, 1.3, len(np.arange(0, length[-1] - 4, 6.1)))
    angle = np.interp(along, length, fine).astype(np.float32)
    depth = outline(angle) - basal_um - np.abs(rng.normal(0, 2.6, len(angle)))
    half = stamps.images.shape[1] // 2
    side = plane.shape[0]
    for theta, r in zip(angle, depth, strict=True):
        number = int(round((theta + rng.normal(0, 0.25)) / math.pi * STAMPS_PER_KIND)) % STAMPS_PER_KIND
        x, y = side / 2 + r * math.cos(theta) / mpp, side / 2 + r * math.sin(theta) / mpp
        stamp(plane, stamps.images[number], round(x) - half, round(y) - half)


class CellLibrary:
    """The stamps of one slide; what is not needed is never drawn, and the order of need changes nothing."""

    def __init__(self, mpp: float, seed: int) -> None:
        self.mpp, self._seed = mpp, seed
        self._lock = threading.RLock()
        self._glands: dict[int, Gland] = {}
        kinds = (SPINDLE, LYMPHOCYTE, EPITHELIAL, TUMOUR)
        self._nuclei = [NucleusStamps.draw(kind, mpp, generator(seed, 10, i)) for i, kind in enumerate(kinds)]
        self.spindle, self.lymphocyte, self.epithelial, self.tumour = self._nuclei

    def gland(self, number: int) -> Gland:
        """Return one of 14 glands."""
        number %= _GLANDS
        with self._lock:
            if number not in self._glands:
                rng = generator(self._seed, 11, number)
                self._glands[number] = Gland.draw(self.mpp, rng, self.epithelial)
            return self._glands[number]

    @cached_property
    def fat(self) -> Plane:
        """(512, 512) distance to the nearest wall between fat cells in µm; repeats after ``fat_period_um``."""
        side = 512
        rng = generator(self._seed, 12)
        count = round(_FAT_PERIOD_UM / _FAT_CELL_UM)
        rows, columns = np.mgrid[:count, :count]
        jitter = rng.uniform(-0.34, 0.34, (2, count, count))
        points = np.stack([columns + (rows % 2) * 0.5 + jitter[0], rows + jitter[1]], axis=-1).reshape(-1, 2)
        points = (points * (_FAT_PERIOD_UM / count)) % _FAT_PERIOD_UM
        axis = (np.arange(side) + 0.5) * (_FAT_PERIOD_UM / side)
        where = np.stack(np.broadcast_arrays(axis[None, :], axis[:, None]), axis=-1).reshape(-1, 2)
        near = cKDTree(points, boxsize=_FAT_PERIOD_UM).query(where, k=3)[0]
        # The third neighbour rounds the corners, where three fat cells meet.
        second, third = (near[:, 1] - near[:, 0]) / 2, (near[:, 2] - near[:, 0]) / 2
        wall: Plane = (-3.0 * np.log(np.exp(-second / 3.0) + np.exp(-third / 3.0))).reshape(side, side).astype(np.float32)
        return wall

    @property
    def fat_period_um(self) -> float:
        """After what distance the fat repeats."""
        return _FAT_PERIOD_UM
