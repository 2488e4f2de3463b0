"""Paint an anatomy as H&E: stroma, nuclei, glands, fat and lesions as stain densities, then Beer-Lambert colours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from slideio_pipe.synthetic.anatomy import Anatomy, Floats, Noise, generator
from slideio_pipe.synthetic.blocks import Block, window
from slideio_pipe.synthetic.cells import (
    NUCLEAR_RANGE,
    STAMPS_PER_KIND,
    CellLibrary,
    Gland,
    NucleusStamps,
    overlap,
    stamp,
)
from slideio_pipe.synthetic.stain import Staining
from slideio_pipe.synthetic.textures import (
    FAT_PERIOD_UM,
    FAT_SIDE,
    FIBRE_PERIOD_UM,
    FIBRE_SIDE,
    Plane,
    fibre_texture,
    glass_texture,
    grain_texture,
    smoothstep,
)

GLASS = 243.0

_DIRECTIONS = (0.15, 1.2, 2.25)  # rad, of the fibre bundles that the stroma is blended from
_COARSE_UM = 4.0  # distance between evaluated positions; interpolated between them
_MARGIN_UM = 14.0  # fields extend this far beyond a block, for nuclei centred outside it
_GLAND_CELL_UM = 165.0
_TABLE = 256
_USUAL = Staining()


@dataclass(frozen=True)
class _Fields:
    """Coarse fields of one block, float32."""

    depth: Plane  # µm inside the tissue
    lesion: Plane  # 0 … 1
    fat: Plane  # 0 … 1
    inflamed: Plane  # 0 … 1
    loose: Plane  # 0 … 1, how open the stroma is
    stain: Plane  # about 1, strength of eosin
    x: Plane  # µm, bent positions at which textures are sampled, float64
    y: Plane
    turn: Plane  # rad, direction of fibres before bending

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
    """A gland of the library, rotated and placed in a block."""

    gland: Gland
    left: int  # px in the block, may be negative
    top: int
    pose: int  # 0 … 7: quarter turns, and a mirror

    def _turned(self, plane: NDArray[Any]) -> NDArray[Any]:
        turned = np.rot90(plane, self.pose % 4)
        return turned[:, ::-1] if self.pose >= 4 else turned

    def draw_into(self, eosin: Plane, haematoxylin: Plane, nuclei: NDArray[np.uint8]) -> None:
        """Draw the gland over the block's stain planes."""
        cover = self._turned(self.gland.cover)
        windows = overlap(eosin, cover, self.left, self.top)
        if windows is None:
            return
        target, source = windows
        for image, plane in ((self.gland.eosin, eosin), (self.gland.haematoxylin, haematoxylin)):
            under = plane[target]
            under += cover[source] * (self._turned(image)[source] - under)
        below = nuclei[target]
        below[cover[source] > 0.5] = 0
        np.maximum(below, self._turned(self.gland.nuclei)[source], out=below)

    def covers(self, column: NDArray[np.intp], row: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Return a mask of the pixels that are more gland than stroma."""
        cover = self._turned(self.gland.cover)
        column, row = column - self.left, row - self.top
        inside = (column >= 0) & (row >= 0) & (column < cover.shape[1]) & (row < cover.shape[0])
        column, row = column.clip(0, cover.shape[1] - 1), row.clip(0, cover.shape[0] - 1)
        covered: NDArray[np.bool_] = inside & (cover[row, column] > 0.3)
        return covered


class Histology:
    """Renders any block of one slide; equal arguments give equal pixels, independent of earlier calls.

    Parameters
    ----------
    anatomy : Anatomy
        Positions of tissue, lesions and zones.
    mpp : float
        µm per pixel.
    seed : int
        The slide's seed.
    glass_period : int
        Period in px of the noise of empty glass, so that every glass tile is identical.
    stain : Staining
        Staining to use; it changes only colours.
    """

    def __init__(self, anatomy: Anatomy, *, mpp: float, seed: int, glass_period: int, stain: Staining = _USUAL) -> None:
        self.anatomy, self.mpp, self._densities = anatomy, mpp, stain.densities()
        self.cells = CellLibrary(mpp, seed)
        rng = generator(seed, 20)
        self._fibres = fibre_texture(rng)
        # Stroma has no detail finer than 0.6 µm: it is painted at half the resolution of a 40× scan.
        self._detail = 2 if mpp <= 0.3 else 1
        self._grain = grain_texture(rng, mpp * self._detail)
        kinds = ("spindle", "round", "tumour", "gland")
        self._tables = {kind: rng.random((_TABLE, _TABLE, 5), dtype=np.float32) for kind in kinds}
        self._glass = glass_texture(rng, glass_period)
        self._strength = rng.uniform(0.93, 1.08, 2)
        self._ripple = [Noise(generator(seed, 21, i), 42.0) for i in range(2)]
        self._step = 2 ** int(np.clip(round(math.log2(_COARSE_UM / mpp)), 0, 4))

    def glass(self) -> NDArray[np.uint8]:
        """Return one period of empty glass, (period, period, 3) uint8 RGB."""
        return np.repeat(np.rint(self._glass + GLASS).astype(np.uint8)[:, :, None], 3, axis=2)

    def render(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8] | None:
        """Return a rectangle as (height, width, 3) uint8 RGB, or None if it is only glass.

        All four numbers are level-0 px and multiples of 16.
        """
        margin = max(1, math.ceil(_MARGIN_UM / (self._step * self.mpp)))
        block = Block(x, y, width, height, self._step, margin, self.mpp)
        xs, ys = block.axes()
        depth = self.anatomy.tissue_depth(xs, ys)
        if depth.max() < -24:
            return None
        fields = self._fields(xs, ys, depth.astype(np.float32))
        eosin, haematoxylin = self._ground(block, fields)
        nuclei = np.zeros((height, width), np.uint8)
        glands = self._glands(block)
        for gland in glands:
            gland.draw_into(eosin, haematoxylin, nuclei)
        self._scatter(block, fields, glands, nuclei)
        return self._paint(block, eosin, haematoxylin, nuclei)

    def _fields(self, xs: Floats, ys: Floats, depth: Plane) -> _Fields:
        """Evaluate every field of a block at the coarse positions."""
        noise = {name: field(xs, ys).astype(np.float32) for name, field in self.anatomy.noise.items()}
        lesion = self.anatomy.lesion_depth(xs, ys).astype(np.float32)
        calm = smoothstep(30, -90, lesion)  # 1 away from lesions
        fat = smoothstep(0.75, 1.25, noise["fat"]) * calm * smoothstep(20, 140, depth)
        ripple = [field(xs, ys).astype(np.float32) for field in self._ripple]
        nests = smoothstep(0.03, 0.17, np.abs(noise["nest"]))  # strands of stroma run between nests of lesion
        return _Fields(
            depth=depth,
            lesion=smoothstep(-12, 10, lesion + 14 * noise["loose"] + 8 * ripple[0]) * nests,
            fat=fat,
            inflamed=smoothstep(1.35, 2.0, noise["inflamed"] + 0.35 * noise["zone"])
            * smoothstep(5, 40, depth)
            * (1 - fat),
            loose=smoothstep(-1.0, 1.6, noise["loose"] * 0.7 + noise["zone"]),
            stain=1 + 0.10 * noise["stain"] + 0.05 * noise["zone"],
            x=(xs + 150 * noise["shift_x"] + 5 * ripple[0]).astype(np.float64),
            y=(ys + 150 * noise["shift_y"] + 5 * ripple[1]).astype(np.float64),
            turn=1.1 * noise["turn"] + 0.8 * noise["stain"],
        )

    def _sample(self, block: Block, texture: NDArray[Any], u: Plane, v: Plane) -> Plane:
        """Return a periodic texture at coarse positions in texture px, interpolated to the block."""
        side = texture.shape[0] // 2
        # Whole periods are subtracted before float32: its rounding would show 100,000 px from the origin.
        u, v = u - side * math.floor(u.min() / side), v - side * math.floor(v.min() / side)
        maps = block.expand(u.astype(np.float32)), block.expand(v.astype(np.float32))
        # Textures hold two periods per axis: wrapping costs four times as much and is done only where needed.
        wrap = max(u.max(), v.max()) > 2 * side - 2
        border = cv2.BORDER_WRAP if wrap else cv2.BORDER_REPLICATE
        sampled: Plane = cv2.remap(texture, *maps, cv2.INTER_LINEAR, borderMode=border)
        return sampled

    def _stroma_fibres(self, block: Block, fields: _Fields) -> tuple[Plane, Plane]:
        """Return fine fibres and bundles, both 0 … 1, blended from three directions."""
        weights = [np.exp(6 * np.cos(2 * (fields.turn - angle))) for angle in _DIRECTIONS]
        total = np.sum(weights, axis=0)
        fibres, bundles = np.zeros((2, block.height, block.width), np.float32)
        scale = FIBRE_SIDE / FIBRE_PERIOD_UM
        for number, (angle, weight) in enumerate(zip(_DIRECTIONS, weights, strict=True)):
            share = (weight / (255 * total)).astype(np.float32)
            if share.max() < 0.02 / 255:
                continue
            c, s = math.cos(angle) * scale, math.sin(angle) * scale
            u, v = c * fields.x + s * fields.y + 331 * number, c * fields.y - s * fields.x + 177 * number
            fine, coarse = cv2.split(self._sample(block, self._fibres, u, v))
            full = block.expand(share)
            fibres += fine * full
            bundles += coarse * full
        return fibres, bundles

    def _ground(self, block: Block, fields: _Fields) -> tuple[Plane, Plane]:
        """Return eosin and haematoxylin without nuclei and glands."""
        if self._detail == 1:
            return self._ground_at(block, fields)
        planes = self._ground_at(block.coarser(self._detail), fields)
        inner = slice(block.step, -block.step)
        size = (block.width + 2 * block.step, block.height + 2 * block.step)
        eosin, haematoxylin = (cv2.resize(p, size, interpolation=cv2.INTER_LINEAR)[inner, inner] for p in planes)
        return eosin, haematoxylin

    def _ground_at(self, block: Block, fields: _Fields) -> tuple[Plane, Plane]:
        fibres, bundles = self._stroma_fibres(block, fields)
        grain = window(self._grain, block)
        loose = block.expand(fields.loose)
        solid = smoothstep(0.0, 0.2, 0.62 * bundles + 0.38 * fibres - 0.05 - 0.22 * loose)
        eosin = solid * (0.25 + 0.33 * fibres + 0.06 * grain - 0.10 * loose) * block.expand(fields.stain) + 0.025
        haematoxylin = solid * (0.05 + 0.03 * fibres) + 0.008 * grain
        if fields.fat.max() > 0.01:
            dissolved = self._vacuoles(block, fields)
            eosin *= 1 - 0.96 * dissolved
            haematoxylin *= 1 - 0.96 * dissolved
        if fields.lesion.max() > 0.01:
            lesion = block.expand(fields.lesion)
            eosin += lesion * (0.30 + 0.07 * grain + 0.10 * fibres - eosin)
            haematoxylin += lesion * (0.30 + 0.07 * grain - haematoxylin)
        haematoxylin += 0.05 * block.expand(fields.inflamed)
        present = smoothstep(-2.5, 2.5, block.expand(fields.depth) + 16 * (0.7 * bundles + 0.3 * fibres) - 8)
        return eosin * present, haematoxylin * present

    def _vacuoles(self, block: Block, fields: _Fields) -> Plane:
        """Return the area of dissolved fat, 0 … 1; towards the stroma vacuoles get smaller and then disappear."""
        scale = FAT_SIDE / FAT_PERIOD_UM
        wall_um = self._sample(block, self.cells.fat, fields.x * scale, fields.y * scale)
        return smoothstep(0.0, 1.5, wall_um - block.expand(_wall_um(fields.fat)))

    def _lattice(self, kind: str, block: Block, cell_um: float, reach_um: float) -> tuple[Floats, Floats, Plane]:
        """Return one jittered point per cell in and around a block, x and y in µm, with three more draws (n, 3)."""
        first = [math.floor((start * self.mpp - reach_um) / cell_um) for start in (block.x, block.y)]
        ends = (block.x + block.width, block.y + block.height)
        last = [math.floor((end * self.mpp + reach_um) / cell_um) for end in ends]
        columns, rows = (np.arange(a, b + 1) for a, b in zip(first, last, strict=True))
        draws = self._tables[kind][rows[:, None] % _TABLE, columns[None, :] % _TABLE].reshape(-1, 5)
        x = (columns[None, :] + 0.5 + np.zeros((len(rows), 1))).ravel() + 0.9 * (draws[:, 0] - 0.5)
        y = (rows[:, None] + 0.5 + np.zeros((1, len(columns)))).ravel() + 0.9 * (draws[:, 1] - 0.5)
        return x * cell_um, y * cell_um, draws[:, 2:]

    def _glands(self, block: Block) -> list[_PlacedGland]:
        """Return the glands that overlap a block; whether a gland exists is decided at its centre."""
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

    def _scatter(self, block: Block, fields: _Fields, glands: list[_PlacedGland], nuclei: NDArray[np.uint8]) -> None:
        """Stamp single nuclei: spindles along the fibres, lymphocytes, tumour nuclei; none in glands or vacuoles."""
        calm = 1 - fields.lesion
        if fields.fat.max() > 0.01:
            columns, rows = (
                np.floor(v * (FAT_SIDE / FAT_PERIOD_UM)).astype(int) % FAT_SIDE for v in (fields.x, fields.y)
            )
            calm *= self.cells.fat[rows, columns] < _wall_um(fields.fat) + 0.5
        spindle = calm * (0.21 - 0.10 * fields.loose) * (1 - 0.55 * fields.fat)
        self._stamp_kind("spindle", block, fields, glands, nuclei, (self.cells.spindle, 11.0, spindle))
        lymphocyte = calm * (0.012 + 0.88 * fields.inflamed) * (1 - 0.7 * fields.fat) + 0.02 * fields.lesion
        self._stamp_kind("round", block, fields, glands, nuclei, (self.cells.lymphocyte, 6.6, lymphocyte))
        if fields.lesion.max() > 0.01:
            self._stamp_kind("tumour", block, fields, glands, nuclei, (self.cells.tumour, 9.4, 0.96 * fields.lesion))

    def _stamp_kind(
        self,
        kind: str,
        block: Block,
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

    def _paint(self, block: Block, eosin: Plane, haematoxylin: Plane, nuclei: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the colours of stain densities: light falls off exponentially (Beer-Lambert)."""
        nuclear = nuclei.astype(np.float32) * np.float32(NUCLEAR_RANGE / 255)
        eosin = eosin * (1 - np.float32(0.2) * np.minimum(nuclear, 1))
        haematoxylin = np.maximum(haematoxylin, cv2.addWeighted(nuclear, 1, haematoxylin, 0.4, 0))
        noise, channels = window(self._glass, block), []
        for h, e in self._densities:
            weights = -h * self._strength[0], -e * self._strength[1]
            light = cv2.exp(cv2.addWeighted(haematoxylin, weights[0], eosin, weights[1], 0))
            channels.append(cv2.addWeighted(light, GLASS, noise, 1, 0, dtype=cv2.CV_8U))
        rgb: NDArray[np.uint8] = cv2.merge(channels)
        return rgb


def _wall_um(fat: Plane) -> Plane:
    """Return half the thickness of the walls between vacuoles; above about 30 µm there are no vacuoles."""
    return np.float32(1.1) + 40 * (1 - fat)
