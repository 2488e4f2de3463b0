"""Where things are on a generated slide: tissue pieces, lesions and zones, as functions of the position in µm.

Everything is analytic and drawn once from a seed, so the ground truth (which pixel is tissue, which is lesion) is
evaluated from the same functions that the picture is rendered from, at any resolution, without a pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from slideio_pipe.geometry import Size

Floats = NDArray[np.float64]

# Noise tables hold this many samples per axis and per feature: bilinear interpolation between them stays smooth.
_TABLE = 256
_SAMPLES_PER_FEATURE = 4.0
# Ragged-border noise, (feature size, amplitude) in µm, for pieces of at least _FULL_RADIUS_UM; smaller ones get less.
_BORDER_NOISE_UM = ((160.0, 26.0), (45.0, 9.0))
_FULL_RADIUS_UM = 700.0
_LESION_RADIUS_UM = (280.0, 620.0)
_OUTLINE_POINTS = 96


def generator(seed: int, *key: int) -> np.random.Generator:
    """Return the counter-based generator of one purpose; streams of different keys are independent.

    >>> generator(7, 1, 2).integers(100) == generator(7, 1, 2).integers(100)
    np.True_
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


class Noise:
    """Smooth periodic noise of mean 0 and standard deviation 1.

    Parameters
    ----------
    rng : numpy.random.Generator
        What the noise is drawn from.
    feature_um : float
        The typical size of a bump. The noise repeats after 64 of them.
    """

    def __init__(self, rng: np.random.Generator, feature_um: float) -> None:
        frequency = np.fft.fftfreq(_TABLE)[:, None] ** 2 + np.fft.rfftfreq(_TABLE)[None, :] ** 2
        spectrum = np.fft.rfft2(rng.standard_normal((_TABLE, _TABLE))) * np.exp(-2 * (math.pi * 1.6) ** 2 * frequency)
        spectrum[0, 0] = 0
        table = np.fft.irfft2(spectrum, s=(_TABLE, _TABLE))
        self._table = (table / table.std()).astype(np.float32)
        self._per_um = _SAMPLES_PER_FEATURE / feature_um

    def __call__(self, x_um: Floats, y_um: Floats) -> Floats:
        """Return the noise at broadcastable positions."""
        x, y = np.broadcast_arrays(x_um * self._per_um, y_um * self._per_um)
        values: Floats = ndimage.map_coordinates(self._table, (y, x), order=1, mode="grid-wrap", output=np.float64)
        return values


@dataclass(frozen=True)
class Blob:
    """A closed curve around a centre: an ellipse whose radius is modulated by harmonics of the angle."""

    x: float  # µm
    y: float  # µm
    radii: tuple[float, float]  # µm, along its own axes
    angle: float  # rad
    amplitudes: tuple[float, ...]  # of cos(2θ), cos(3θ), …, as fractions of the radius
    phases: tuple[float, ...]  # rad

    @classmethod
    def draw(
        cls, rng: np.random.Generator, centre: tuple[float, float], radii: tuple[float, float], roughness: float
    ) -> Blob:
        """Return a blob with random harmonics; ``roughness`` is the amplitude of the lowest one."""
        orders = np.arange(2, 10)
        amplitudes = roughness * rng.uniform(0.3, 1.0, len(orders)) / orders**0.9
        phases = rng.uniform(0, 2 * math.pi, len(orders))
        return cls(*centre, radii, rng.uniform(-0.25, 0.25), tuple(amplitudes), tuple(phases))

    @property
    def reach(self) -> float:
        """No point of the curve is farther than this from the centre, in µm."""
        return max(self.radii) * (1 + sum(self.amplitudes))

    def _modulation(self, theta: Floats) -> Floats:
        waves = zip(self.amplitudes, self.phases, strict=True)
        return 1 + sum((a * np.cos((k + 2) * theta + p) for k, (a, p) in enumerate(waves)), np.zeros_like(theta))

    def depth(self, x_um: Floats, y_um: Floats) -> Floats:
        """Return the approximate depth of positions inside the curve, in µm; negative outside."""
        dx, dy = x_um - self.x, y_um - self.y
        c, s = math.cos(self.angle), math.sin(self.angle)
        u, v = (c * dx + s * dy) / self.radii[0], (c * dy - s * dx) / self.radii[1]
        radius: Floats = (1 - np.hypot(u, v) / self._modulation(np.arctan2(v, u))) * min(self.radii)
        return radius

    def outline(self) -> Floats:
        """Return the curve as (96, 2) points x, y in µm; ``depth`` is 0 on it."""
        theta = np.linspace(0, 2 * math.pi, _OUTLINE_POINTS, endpoint=False)
        radius = self._modulation(theta)
        u, v = radius * np.cos(theta) * self.radii[0], radius * np.sin(theta) * self.radii[1]
        c, s = math.cos(self.angle), math.sin(self.angle)
        return np.stack([self.x + c * u - s * v, self.y + s * u + c * v], axis=-1)


class Anatomy:
    """The plan of one slide: tissue pieces, lesions inside them, and noise fields that zones are cut from.

    Parameters
    ----------
    size_um : (float, float)
        Width and height of the slide.
    seed : int
        Same seed and size: same plan.
    pieces, lesions : int
        How many.
    """

    def __init__(self, size_um: tuple[float, float], *, seed: int, pieces: int, lesions: int) -> None:
        self.size_um = size_um
        names = ("shift_x", "shift_y", "zone", "fat", "gland", "inflamed", "stain", "loose", "turn", "nest")
        features = (900.0, 900.0, 1500.0, 1300.0, 1000.0, 260.0, 1100.0, 240.0, 420.0, 190.0)
        rngs = [generator(seed, 1, i) for i in range(len(names) + len(_BORDER_NOISE_UM))]
        self.noise = {
            name: Noise(rngs[i], feature) for i, (name, feature) in enumerate(zip(names, features, strict=True))
        }
        self._border = [Noise(rngs[len(names) + i], feature) for i, (feature, _) in enumerate(_BORDER_NOISE_UM)]
        self.pieces = _place_pieces(generator(seed, 2), size_um, pieces)
        self.lesions = self._place_lesions(generator(seed, 3), lesions)

    def tissue_depth(self, x_um: Floats, y_um: Floats) -> Floats:
        """Return the approximate depth of positions inside tissue, in µm; negative on glass, never below -500."""
        x_um, y_um = np.broadcast_arrays(x_um, y_um)
        depth = np.full(x_um.shape, -500.0)
        left, right, top, bottom = x_um.min(), x_um.max(), y_um.min(), y_um.max()
        for piece in self.pieces:
            reach = piece.reach + 0.5 * min(piece.radii) + 120
            if left > piece.x + reach or right < piece.x - reach or top > piece.y + reach or bottom < piece.y - reach:
                continue
            radius = min(piece.radii)
            bend = 0.2 * radius  # noise is stretched with the piece, so that small pieces are as lobed as large ones
            stretch = min(1.0, radius / _FULL_RADIUS_UM)
            xs, ys = x_um / max(stretch, 0.05), y_um / max(stretch, 0.05)
            inside = piece.depth(
                x_um + bend * self.noise["shift_x"](xs, ys), y_um + bend * self.noise["shift_y"](xs, ys)
            )
            for noise, (_, amplitude) in zip(self._border, _BORDER_NOISE_UM, strict=True):
                inside += stretch * amplitude * noise(xs, ys)
            np.maximum(depth, inside, out=depth)
        return depth

    def lesion_depth(self, x_um: Floats, y_um: Floats) -> Floats:
        """Return the approximate depth of positions inside lesions, in µm; negative elsewhere, never below -500."""
        x_um, y_um = np.broadcast_arrays(x_um, y_um)
        depth = np.full(x_um.shape, -500.0)
        left, right, top, bottom = x_um.min(), x_um.max(), y_um.min(), y_um.max()
        for lesion in self.lesions:
            reach = lesion.reach + 100
            if (
                left < lesion.x + reach
                and right > lesion.x - reach
                and top < lesion.y + reach
                and bottom > lesion.y - reach
            ):
                np.maximum(depth, lesion.depth(x_um, y_um), out=depth)
        return depth

    def _place_lesions(self, rng: np.random.Generator, count: int) -> tuple[Blob, ...]:
        placed: list[Blob] = []
        for index in range(count):
            piece = self.pieces[index % len(self.pieces)]
            radius = min(rng.uniform(*_LESION_RADIUS_UM), 0.42 * min(piece.radii))
            placed.append(self._fit_lesion(rng, piece, radius, placed))
        return tuple(placed)

    def _fit_lesion(self, rng: np.random.Generator, piece: Blob, radius: float, others: list[Blob]) -> Blob:
        """Return a lesion inside the piece and apart from the others, shrunk until it fits."""
        blob = Blob.draw(rng, (piece.x, piece.y), (radius, radius), 0.26)
        for _ in range(400):
            theta, reach = rng.uniform(0, 2 * math.pi), math.sqrt(rng.uniform(0, 0.7))
            x, y = (
                piece.x + piece.radii[0] * reach * math.cos(theta),
                piece.y + piece.radii[1] * reach * math.sin(theta),
            )
            blob = Blob.draw(rng, (x, y), (radius, radius * rng.uniform(0.7, 1.0)), 0.26)
            edge = blob.outline()
            apart = all(math.hypot(x - o.x, y - o.y) > blob.reach + o.reach for o in others)
            if apart and self.tissue_depth(edge[:, 0], edge[:, 1]).min() > 0.12 * radius:
                break
            radius *= 0.985
        return blob


def _place_pieces(rng: np.random.Generator, size_um: tuple[float, float], count: int) -> tuple[Blob, ...]:
    """Return pieces side by side in a loose grid whose cells are as square as the slide allows."""
    if not count:
        return ()
    width, height = size_um
    columns = min(range(1, count + 1), key=lambda c: _grid_flaw(size_um, count, c))
    rows = math.ceil(count / columns)
    cell = (width / columns, height / rows)
    pieces = []
    for index in range(count):
        centre = (
            (index % columns + rng.uniform(0.46, 0.54)) * cell[0],
            (index // columns + rng.uniform(0.46, 0.54)) * cell[1],
        )
        radii = (cell[0] * rng.uniform(0.33, 0.40), cell[1] * rng.uniform(0.33, 0.40))
        pieces.append(Blob.draw(rng, centre, radii, 0.15))
    return tuple(pieces)


def _grid_flaw(size_um: tuple[float, float], count: int, columns: int) -> float:
    """Return how far the cells of a grid are from upright rectangles of 4:5, and how many stay empty."""
    rows = math.ceil(count / columns)
    aspect = (size_um[0] / columns) / (size_um[1] / rows)
    return abs(math.log(aspect / 0.8)) + 2.5 * math.log(columns * rows / count)


def mask_positions(size: Size, mpp: float, downsample: float) -> tuple[Floats, Floats]:
    """Return the centres, x (1, w) and y (h, 1) in µm, of the pixels of a slide seen at a downsample.

    >>> [axis.ravel().tolist() for axis in mask_positions(Size(9, 4), 0.5, 4)]
    [[1.0, 3.0], [1.0]]
    """
    width, height = max(1, int(size.width / downsample)), max(1, int(size.height / downsample))
    scale = mpp * downsample
    x: Floats = (np.arange(width, dtype=np.float64) + 0.5) * scale
    y: Floats = (np.arange(height, dtype=np.float64) + 0.5) * scale
    return x[None, :], y[:, None]
