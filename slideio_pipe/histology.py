"""Paint an anatomy as H&E: stroma, nuclei, glands, fat and lesions as stain densities, then Beer and Lambert."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from slideio_pipe.anatomy import Anatomy, Floats, Noise, generator
from slideio_pipe.cells import NUCLEAR_RANGE, STAMPS_PER_KIND, CellLibrary, Gland, NucleusStamps, Plane, smoothstep, stamp

# Ruifrok & Johnston, Anal. Quant. Cytol. Histol. 23 (2001): optical densities of red, green, blue per unit of stain.
HAEMATOXYLIN = (0.65, 0.70, 0.29)
EOSIN = (0.07, 0.99, 0.11)
# Eosin on a scanner is salmon, not magenta: part of its absorbance lies along the third, brown vector of theirs.
RESIDUAL = (0.27, 0.57, 0.78)
RESIDUAL_OF_EOSIN = 0.24
GLASS = 243.0

_FIBRE_SIDE, _FIBRE_PERIOD_UM = 1024, 300.0
_GRAIN_SIDE = 512
_DIRECTIONS = (0.15, 1.2, 2.25)  # rad, of the fibre bundles that the stroma is blended from
_COARSE_UM = 4.0  # fields are evaluated this often and interpolated
_MARGIN_UM = 14.0  # fields reach this far beyond a block: so do nuclei whose centre lies outside
_GLAND_CELL_UM = 165.0
_TABLE = 256


@dataclass(frozen=True)
class _Block:
    """A rectangle of the slide in px, and the coarse samples that its fields are interpolated from."""

    x: int
    y: int
    width: int
    height: int
    step: int  # px between coarse samples; divides all of the above
    margin: int  # coarse samples beyond each edge
    mpp: float

    def axes(self) -> tuple[Floats, Floats]:
        """Return the coarse positions in µm, from absolute indices: neighbours see the same numbers."""
        columns = np.arange(self.x // self.step - self.margin, (self.x + self.width) // self.step + self.margin)
        rows = np.arange(self.y // self.step - self.margin, (self.y + self.height) // self.step + self.margin)
        return (columns[None, :] + 0.5) * (self.step * self.mpp), (rows[:, None] + 0.5) * (self.step * self.mpp)

    def expand(self, coarse: Plane) -> Plane:
        """Interpolate a coarse field to the pixels of the block."""
        if self.step == 1:
            return np.ascontiguousarray(coarse[self.margin : -self.margin, self.margin : -self.margin])
        inner = coarse[self.margin - 1 : coarse.shape[0] - self.margin + 1, self.margin - 1 : coarse.shape[1] - self.margin + 1]
        size = (self.width + 2 * self.step, self.height + 2 * self.step)
        full = cv2.resize(inner, size, interpolation=cv2.INTER_LINEAR)
        return full[self.step : -self.step, self.step : -self.step]

    def lookup(self, coarse: Plane, x_um: Floats, y_um: Floats) -> Plane:
        """Return a coarse field at positions in µm, nearest sample."""
        unit = self.step * self.mpp
        columns = (x_um // unit).astype(np.intp) - (self.x // self.step - self.margin)
        rows = (y_um // unit).astype(np.intp) - (self.y // self.step - self.margin)
        values: Plane = coarse[rows.clip(0, coarse.shape[0] - 1), columns.clip(0, coarse.shape[1] - 1)]
        return values


@dataclass(frozen=True)
class _Fields:
    """Coarse fields of one block, float32."""

    depth: Plane  # µm inside the tissue
    lesion: Plane  # 0 … 1
    fat: Plane  # 0 … 1
    inflamed: Plane  # 0 … 1
    loose: Plane  # 0 … 1, how open the stroma is
    stain: Plane  # about 1, how strongly eosin took
    x: Plane  # µm, bent positions that textures are sampled at
    y: Plane
    turn: Plane  # rad, where fibres point to before bending

    def fibre_angle(self, unit_um: float) -> Plane:
        """Return the direction of the fibres in rad: that of the sampled texture, bent like its positions."""
        xy, xx = np.gradient(self.x, unit_um)
        yy, yx = np.gradient(self.y, unit_um)
        c, s = np.cos(self.turn), np.sin(self.turn)
        # Fibres follow lines of equal v = c·y - s·x: perpendicular to the gradient of v.
        angle: Plane = np.arctan2(-(c * yx - s * xx), c * yy - s * xy).astype(np.float32)
        return angle


@dataclass(frozen=True)
class _PlacedGland:
    """A gland of the library, turned and put into a block."""

    gland: Gland
    left: int  # px in the block, may be negative
    top: int
    pose: int  # 0 … 7: quarter turns, and a mirror

    def _turned(self, plane: NDArray[Any]) -> NDArray[Any]:
        turned = np.rot90(plane, self.pose % 4)
        return turned[:, ::-1] if self.pose >= 4 else turned

    def lay(self, eosin: Plane, haematoxylin: Plane, nuclei: NDArray[np.uint8]) -> None:
        """Put the gland over what is there."""
        cover = self._turned(self.gland.cover)
        _lay(self._turned(self.gland.eosin), cover, eosin, self.left, self.top)
        _lay(self._turned(self.gland.haematoxylin), cover, haematoxylin, self.left, self.top)
        stamp(nuclei, self._turned(self.gland.nuclei), self.left, self.top)

    def covers(self, column: NDArray[np.intp], row: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Return which pixels of the block are more gland than stroma."""
        cover = self._turned(self.gland.cover)
        column, row = column - self.left, row - self.top
        inside = (column >= 0) & (row >= 0) & (column < cover.shape[1]) & (row < cover.shape[0])
        column, row = column.clip(0, cover.shape[1] - 1), row.clip(0, cover.shape[0] - 1)
        covered: NDArray[np.bool_] = inside & (cover[row, column] > 0.3)
        return covered


class Histology:
    """Renders any block of one slide; equal arguments give equal pixels, whatever was rendered before.

    Parameters
    ----------
    anatomy : Anatomy
        What lies where.
    mpp : float
        µm per pixel.
    seed : int
        The slide's seed.
    glass_period : int
        The noise of empty glass repeats after so many pixels, so that every tile of glass is the same tile.
    """

    def __init__(self, anatomy: Anatomy, *, mpp: float, seed: int, glass_period: int) -> None:
        self.anatomy, self.mpp = anatomy, mpp
        self.cells = CellLibrary(mpp, seed)
        rng = generator(seed, 20)
        self._fibres = _fibre_texture(rng)
        self._grain = _grain_texture(rng, mpp)
        kinds = ("spindle", "round", "tumour", "gland")
        self._tables = {kind: rng.random((_TABLE, _TABLE, 5), dtype=np.float32) for kind in kinds}
        noise = cv2.GaussianBlur(np.tile(rng.standard_normal((glass_period,) * 2, dtype=np.float32), (3, 3)), (0, 0), 1.1)
        noise = noise[glass_period : 2 * glass_period, glass_period : 2 * glass_period]
        self._glass = noise * np.float32(0.8 / noise.std())
        self._strength = rng.uniform(0.93, 1.08, 2)
        self._ripple = [Noise(generator(seed, 21, i), 42.0) for i in range(2)]
        self._step = 2 ** int(np.clip(round(math.log2(_COARSE_UM / mpp)), 0, 4))

    def glass(self) -> NDArray[np.uint8]:
        """Return one period of empty glass, (period, period, 3) uint8 RGB."""
        return np.repeat(np.clip(self._glass + (GLASS + 0.5), 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)

    def render(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8] | None:
        """Return a rectangle as (height, width, 3) uint8 RGB, or None where there is nothing but glass.

        All four numbers are level-0 px and multiples of 16.
        """
        margin = max(1, math.ceil(_MARGIN_UM / (self._step * self.mpp)))
        block = _Block(x, y, width, height, self._step, margin, self.mpp)
        xs, ys = block.axes()
        depth = self.anatomy.tissue_depth(xs, ys)
        if depth.max() < -24:
            return None
        fields = self._fields(xs, ys, depth.astype(np.float32))
        eosin, haematoxylin, present = self._ground(block, fields)
        nuclei = np.zeros((height, width), np.uint8)
        glands = self._glands(block)
        for gland in glands:
            gland.lay(eosin, haematoxylin, nuclei)
        self._scatter(block, fields, glands, nuclei)
        return self._paint(block, eosin * present, haematoxylin * present, nuclei)

    def _fields(self, xs: Floats, ys: Floats, depth: Plane) -> _Fields:
        """Evaluate every field of a block at the coarse positions."""
        noise = {name: field(xs, ys).astype(np.float32) for name, field in self.anatomy.noise.items()}
        lesion = self.anatomy.lesion_depth(xs, ys).astype(np.float32)
        calm = smoothstep(30, -90, lesion)  # 1 away from lesions
        far = smoothstep(20, 140, depth)
        ripple = [field(xs, ys).astype(np.float32) for field in self._ripple]
        return _Fields(
            depth=depth,
            lesion=smoothstep(-18, 14, lesion + 9 * noise["loose"]),
            fat=smoothstep(0.75, 1.25, noise["fat"]) * calm * far,
            inflamed=smoothstep(1.35, 2.0, noise["inflamed"] + 0.35 * noise["zone"]) * smoothstep(5, 40, depth),
            loose=smoothstep(-1.0, 1.6, noise["loose"] * 0.7 + noise["zone"]),
            stain=1 + 0.10 * noise["stain"] + 0.05 * noise["zone"],
            x=(xs + 150 * noise["shift_x"] + 5 * ripple[0]).astype(np.float64),
            y=(ys + 150 * noise["shift_y"] + 5 * ripple[1]).astype(np.float64),
            turn=1.1 * noise["turn"] + 0.8 * noise["stain"],
        )

    def _sample(self, block: _Block, texture: Plane, u: Floats, v: Floats) -> Plane:
        """Return a periodic texture at coarse positions in texture px, interpolated to the block."""
        side = texture.shape[0]
        # Whole periods are taken off before float32, whose steps would show 100,000 px from the origin.
        u, v = u - side * math.floor(u.min() / side), v - side * math.floor(v.min() / side)
        maps = block.expand(u.astype(np.float32)), block.expand(v.astype(np.float32))
        sampled: Plane = cv2.remap(texture, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        return sampled

    def _stroma_fibres(self, block: _Block, fields: _Fields) -> tuple[Plane, Plane]:
        """Return fine fibres and bundles, both 0 … 1, blended from three directions."""
        weights = [np.exp(6 * np.cos(2 * (fields.turn - angle))) for angle in _DIRECTIONS]
        total = np.sum(weights, axis=0)
        mix = np.zeros((block.height, block.width, 2), np.float32)
        scale = _FIBRE_SIDE / _FIBRE_PERIOD_UM
        for number, (angle, weight) in enumerate(zip(_DIRECTIONS, weights, strict=True)):
            share = (weight / total).astype(np.float32)
            if share.max() < 0.02:
                continue
            c, s = math.cos(angle) * scale, math.sin(angle) * scale
            u, v = c * fields.x + s * fields.y + 331 * number, c * fields.y - s * fields.x + 177 * number
            mix += self._sample(block, self._fibres, u, v) * (block.expand(share)[:, :, None] * np.float32(1 / 255))
        return mix[:, :, 0], mix[:, :, 1]

    def _ground(self, block: _Block, fields: _Fields) -> tuple[Plane, Plane, Plane]:
        """Return eosin and haematoxylin without nuclei and glands, and where tissue is present, 0 … 1."""
        fibres, bundles = self._stroma_fibres(block, fields)
        rows, columns = (np.arange(start, start + n) for start, n in ((block.y, block.height), (block.x, block.width)))
        grain = self._grain.take(rows, axis=0, mode="wrap").take(columns, axis=1, mode="wrap")
        loose = block.expand(fields.loose)
        solid = smoothstep(0.0, 0.16, 0.62 * bundles + 0.38 * fibres - 0.10 - 0.24 * loose)
        eosin = solid * (0.25 + 0.33 * fibres + 0.06 * grain - 0.10 * loose) * block.expand(fields.stain) + 0.025
        haematoxylin = solid * (0.05 + 0.03 * fibres) + 0.008 * grain
        if fields.fat.max() > 0.01:
            open_ = self._vacuoles(block, fields)
            eosin *= 1 - 0.96 * open_
            haematoxylin *= 1 - 0.96 * open_
        if fields.lesion.max() > 0.01:
            lesion = block.expand(fields.lesion)
            eosin += lesion * (0.30 + 0.07 * grain + 0.10 * fibres - eosin)
            haematoxylin += lesion * (0.30 + 0.07 * grain - haematoxylin)
        haematoxylin += 0.10 * block.expand(fields.inflamed)
        present = smoothstep(-2.5, 2.5, block.expand(fields.depth) + 16 * (0.7 * bundles + 0.3 * fibres) - 8)
        return eosin, haematoxylin, present

    def _vacuoles(self, block: _Block, fields: _Fields) -> Plane:
        """Return where fat has been dissolved, 0 … 1; towards the stroma vacuoles get smaller, then none."""
        scale = self.cells.fat.shape[0] / self.cells.fat_period_um
        wall_um = self._sample(block, self.cells.fat, fields.x * scale, fields.y * scale)
        return smoothstep(0.0, 1.5, wall_um - block.expand(1.1 + 40 * (1 - fields.fat)))

    def _lattice(self, kind: str, block: _Block, cell_um: float, reach_um: float) -> tuple[Floats, Floats, Plane]:
        """Return one jittered point per cell in and around a block, x and y in µm, with three more draws (n, 3)."""
        first = [math.floor((start * self.mpp - reach_um) / cell_um) for start in (block.x, block.y)]
        ends = (block.x + block.width, block.y + block.height)
        last = [math.floor((end * self.mpp + reach_um) / cell_um) for end in ends]
        columns, rows = (np.arange(a, b + 1) for a, b in zip(first, last, strict=True))
        draws = self._tables[kind][rows[:, None] % _TABLE, columns[None, :] % _TABLE].reshape(-1, 5)
        x = (columns[None, :] + 0.5 + np.zeros((len(rows), 1))).ravel() + 0.9 * (draws[:, 0] - 0.5)
        y = (rows[:, None] + 0.5 + np.zeros((1, len(columns)))).ravel() + 0.9 * (draws[:, 1] - 0.5)
        return x * cell_um, y * cell_um, draws[:, 2:]

    def _glands(self, block: _Block) -> list[_PlacedGland]:
        """Return the glands that reach into a block; whether one exists is decided at its centre alone."""
        x, y, draws = self._lattice("gland", block, _GLAND_CELL_UM, 125.0)
        keep = self.anatomy.noise["gland"](x, y) + 0.5 * draws[:, 0] > 0.55
        keep &= (self.anatomy.tissue_depth(x, y) > 95) & (self.anatomy.lesion_depth(x, y) < -75)
        keep &= self.anatomy.noise["fat"](x, y) < 0.7
        placed = []
        for gx, gy, draw in zip(x[keep], y[keep], draws[keep], strict=True):
            gland = self.cells.gland(int(draw[1] * 4096))
            half = gland.cover.shape[0] // 2
            left, top = round(gx / self.mpp) - half - block.x, round(gy / self.mpp) - half - block.y
            if left < block.width and top < block.height and left + 2 * half > 0 and top + 2 * half > 0:
                placed.append(_PlacedGland(gland, left, top, int(draw[2] * 8)))
        return placed

    def _scatter(self, block: _Block, fields: _Fields, glands: list[_PlacedGland], nuclei: NDArray[np.uint8]) -> None:
        """Stamp single nuclei: spindles along the fibres, lymphocytes, tumour nuclei; none in glands or vacuoles."""
        calm = 1 - fields.lesion
        spindle = calm * (0.21 - 0.10 * fields.loose) * (1 - 0.55 * fields.fat)
        self._stamp_kind("spindle", block, fields, glands, nuclei, (self.cells.spindle, 11.0, spindle))
        lymphocyte = calm * (0.012 + 0.88 * fields.inflamed) * (1 - 0.7 * fields.fat) + 0.02 * fields.lesion
        self._stamp_kind("round", block, fields, glands, nuclei, (self.cells.lymphocyte, 6.6, lymphocyte))
        if fields.lesion.max() > 0.01:
            self._stamp_kind("tumour", block, fields, glands, nuclei, (self.cells.tumour, 9.4, 0.96 * fields.lesion))

    def _stamp_kind(
        self,
        kind: str,
        block: _Block,
        fields: _Fields,
        glands: list[_PlacedGland],
        nuclei: NDArray[np.uint8],
        recipe: tuple[NucleusStamps, float, Plane],
    ) -> None:
        """Stamp nuclei of one kind at a density (0 … 1 per lattice cell) given as a coarse field."""
        stamps, cell_um, density = recipe
        x, y, draws = self._lattice(kind, block, cell_um, 10.0)
        keep = (draws[:, 0] < block.lookup(density, x, y)) & (block.lookup(fields.depth, x, y) > 3)
        x, y, draws = x[keep], y[keep], draws[keep]
        half = stamps.images.shape[1] // 2
        column, row = (np.floor(v / self.mpp).astype(np.intp) - start for v, start in ((x, block.x), (y, block.y)))
        free = np.ones(len(x), bool)
        for gland in glands:
            free &= ~gland.covers(column, row)
        angle = draws[:, 1] * math.pi
        if kind == "spindle":  # along the fibres, within 30°
            angle = block.lookup(fields.fibre_angle(self._step * self.mpp), x, y) + (draws[:, 1] - 0.5)
        number = np.floor(angle / math.pi * STAMPS_PER_KIND).astype(np.intp) % STAMPS_PER_KIND
        for k in np.flatnonzero(free):
            stamp(nuclei, stamps.images[number[k]], int(column[k]) - half, int(row[k]) - half)

    def _paint(self, block: _Block, eosin: Plane, haematoxylin: Plane, nuclei: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the colours of stain densities: light falls off exponentially (Beer-Lambert)."""
        nuclear = nuclei.astype(np.float32) * np.float32(NUCLEAR_RANGE / 255)
        eosin = eosin * (1 - 0.45 * np.minimum(nuclear, 1)) * np.float32(self._strength[1])
        haematoxylin = np.maximum(haematoxylin, nuclear + 0.4 * haematoxylin) * np.float32(self._strength[0])
        period = self._glass.shape[0]
        rows, columns = np.arange(block.y, block.y + block.height), np.arange(block.x, block.x + block.width)
        noise = self._glass.take(rows % period, axis=0).take(columns % period, axis=1) + np.float32(0.5)
        rgb = np.empty((block.height, block.width, 3), np.uint8)
        for channel in range(3):
            absorbed = haematoxylin * np.float32(-HAEMATOXYLIN[channel])
            absorbed -= eosin * np.float32(EOSIN[channel] + RESIDUAL_OF_EOSIN * RESIDUAL[channel])
            light = cv2.exp(absorbed)
            light *= np.float32(GLASS)
            light += noise
            np.clip(light, 0, 255, out=light)
            rgb[:, :, channel] = light
        return rgb


def _lay(image: Plane, cover: Plane, plane: Plane, left: int, top: int) -> None:
    """Blend an image over a plane where ``cover`` says so; its top-left corner may lie outside."""
    h, w = image.shape
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + h, plane.shape[0]), min(left + w, plane.shape[1])
    if y0 < y1 and x0 < x1:
        window = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        under = plane[y0:y1, x0:x1]
        under += cover[window] * (image[window] - under)


def _fibre_texture(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return (1024, 1024, 2) periodic streaks along x, fine fibres and bundles, evenly spread over 0 … 255."""
    um = _FIBRE_PERIOD_UM / _FIBRE_SIDE
    fx, fy = np.fft.rfftfreq(_FIBRE_SIDE)[None, :], np.fft.fftfreq(_FIBRE_SIDE)[:, None]
    channels = []
    for parts in (((12, 0.55, 0.8), (22, 1.3, 1.0)), ((16, 2.2, 0.5), (38, 5.0, 1.0))):
        total = np.zeros((_FIBRE_SIDE, _FIBRE_SIDE))
        for along_um, across_um, amplitude in parts:
            spectrum = np.fft.rfft2(rng.standard_normal((_FIBRE_SIDE, _FIBRE_SIDE)))
            spectrum *= np.exp(-2 * (math.pi / um) ** 2 * ((along_um * fx) ** 2 + (across_um * fy) ** 2))
            layer = np.fft.irfft2(spectrum, s=total.shape)
            total += amplitude / layer.std() * layer
        total /= total.std()
        channels.append(255 / (1 + np.exp(-1.7 * total)))  # close to the normal distribution function
    return np.stack(channels, axis=-1).astype(np.uint8)


def _grain_texture(rng: np.random.Generator, mpp: float) -> Plane:
    """Return (512, 512) periodic isotropic noise of standard deviation 1: 0.5 µm and 2.5 µm features."""
    white = np.tile(rng.standard_normal((_GRAIN_SIDE, _GRAIN_SIDE), dtype=np.float32), (2, 2))
    layers = [cv2.GaussianBlur(white, (0, 0), max(sigma / mpp, 0.4)) for sigma in (0.35, 1.4)]
    middle = slice(_GRAIN_SIDE // 2, _GRAIN_SIDE // 2 + _GRAIN_SIDE)
    texture: Plane = sum((layer[middle, middle] / layer.std() for layer in layers), np.zeros((1, 1), np.float32))
    return (texture / texture.std()).astype(np.float32)
