"""Drawn operations on batches of tiles in torch: uint8 in, per-tile numbers as columns, one rounding at the end.

The same expression runs on the CPU and on CUDA. It has no branch that depends on a pixel: all choices are made on the
host, from the records.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from slideio_pipe.augment.operations import LUMA, Hsv, Lab, Noise, Opaque, Operation, Saturation, Stain, Tone
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Size

Planes = tuple[Tensor, Tensor, Tensor]  # red, green, blue: (n, H, W) float32, 0 to 255
Columns = Sequence[Tensor]  # the numbers of one operation: each (n, 1, 1), or (1, 1, 1) for all tiles
Numbers = Sequence[float]

# Pixels per pass. On a CPU temporaries stay in the second-level cache; on a device they stay under some GB.
CHUNK_PX = {"cpu": 2**16, "cuda": 2**24}

# sRGB and CIE Lab for D65 and the 2° observer, with the digits scikit-image uses (IEC 61966-2-1; CIE 15).
XYZ_OF_RGB = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
WHITE_XYZ = np.array([0.95047, 1.0, 1.08883])
UNIT_OF_RGB = XYZ_OF_RGB / WHITE_XYZ[:, None]  # to XYZ in units of white
RGB_OF_UNIT = np.linalg.inv(UNIT_OF_RGB)

LOG2_E = math.log2(math.e)
TINY = 1e-30  # what keeps 0 / 0 from happening


class Statistics(Protocol):
    """What normalisation subtracts and divides by: (x · rescale − mean) / std."""

    @property
    def mean(self) -> tuple[float, float, float]:
        """Red first, in units of the rescaled values."""

    @property
    def std(self) -> tuple[float, float, float]:
        """Red first, in units of the rescaled values."""

    @property
    def rescale(self) -> float:
        """What a byte is multiplied by first."""


def _tone_numbers(tone: Tone) -> Numbers:
    slope = tone.brightness * tone.contrast / 255
    return slope, tone.pivot * (1 - tone.contrast), tone.gamma


def _tone(planes: Planes, columns: Columns) -> Planes:
    slope, lift, gamma = columns
    red, green, blue = (255 * _power((plane * slope + lift).clamp(0, 1), gamma) for plane in planes)
    return red, green, blue


def _line_numbers(tone: Tone) -> Numbers:
    return tone.brightness * tone.contrast, 255 * tone.pivot * (1 - tone.contrast)


def _line(planes: Planes, columns: Columns) -> Planes:
    """Do tones whose gamma is 1."""
    slope, lift = columns
    red, green, blue = (plane * slope + lift for plane in planes)
    return red, green, blue


def _saturation_numbers(saturation: Saturation) -> Numbers:
    return (saturation.factor,)


def _saturation(planes: Planes, columns: Columns) -> Planes:
    (factor,) = columns
    red, green, blue = planes
    grey = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    return torch.lerp(grey, red, factor), torch.lerp(grey, green, factor), torch.lerp(grey, blue, factor)


def _hsv_numbers(hsv: Hsv) -> Numbers:
    return 6 * (hsv.turn % 1), hsv.saturation, 255 * hsv.value


def _hsv(planes: Planes, columns: Columns) -> Planes:
    turn, more_saturation, more_value = columns
    red, green, blue = planes
    largest = torch.maximum(torch.maximum(red, green), blue)
    chroma = largest - torch.minimum(torch.minimum(red, green), blue)
    # How far each channel is below the largest, 0 to 1; all 0 for greys, whose hue is then 0.
    less = [(largest - plane) / chroma.clamp(min=TINY) for plane in planes]
    # The hue in sixths of a circle, counted from the largest channel. ``lerp`` selects: its weights are 0 or 1.
    of_rest = torch.lerp(2 + less[0] - less[2], 4 + less[1] - less[0], less[1].sign())
    sixths = torch.lerp(less[2] - less[1], of_rest, less[0].sign()) + turn
    sixths = sixths - 6 * torch.floor(sixths / 6)
    saturation = (chroma / largest.clamp(min=TINY) + more_saturation).clamp(0, 1)
    value = (largest + more_value).clamp(0, 255)
    # Each channel is full over a third of the circle, empty over another third, linear between.
    full = ((sixths - 3).abs() - 1, 2 - (sixths - 2).abs(), 2 - (sixths - 4).abs())
    red, green, blue = (value * (1 - saturation * (1 - part.clamp(0, 1))) for part in full)
    return red, green, blue


def _stain_numbers(stain: Stain) -> Numbers:
    return *np.ravel(stain.matrix), *(-LOG2_E * offset for offset in stain.offset)


def _stain(planes: Planes, columns: Columns) -> Planes:
    # To base 2, of which a matrix takes no notice; and of (x + 1)/256, so that white is exactly 0 and stays white.
    logs = tuple(torch.log2((plane + 1) * (1 / 256)) for plane in planes)
    red, green, blue = (256 * torch.exp2(moved) - 1 for moved in _mix(logs, columns[:9], columns[9:]))
    return red, green, blue


def _lab_numbers(lab: Lab) -> Numbers:
    # L = 116·fy − 16, a = 500·(fx − fy), b = 200·(fy − fz): linear per channel there is affine in (fx, fy, fz).
    to_lab = np.array([[0.0, 116, 0], [500, -500, 0], [0, 200, -200]])
    bias = np.array([-16.0, 0, 0])
    back = np.linalg.inv(to_lab)
    matrix = back @ np.diag(lab.gain) @ to_lab
    offset = back @ (np.array(lab.gain) * bias + np.array(lab.bias) - bias)
    return *matrix.ravel(), *offset


def _lab(planes: Planes, columns: Columns) -> Planes:
    linear = tuple(_linear_light(plane * (1 / 255)) for plane in planes)
    roots = tuple(_lab_root(plane) for plane in _mix(linear, UNIT_OF_RGB.ravel().tolist()))
    x, y, z = _mix(roots, columns[:9], columns[9:])
    units = tuple(_lab_cube(plane) for plane in (x, y, z.clamp(min=0)))  # z as scikit-image does
    red, green, blue = (255 * _encoded_light(plane) for plane in _mix(units, RGB_OF_UNIT.ravel().tolist()))
    return red, green, blue


def _linear_light(encoded: Tensor) -> Tensor:
    return _from(encoded, 0.04045, _power((encoded + 0.055) * (1 / 1.055), 2.4), encoded * (1 / 12.92))


def _encoded_light(linear: Tensor) -> Tensor:
    return _from(linear, 0.0031308, 1.055 * _power(linear.clamp(min=0), 1 / 2.4) - 0.055, 12.92 * linear)


def _lab_root(unit: Tensor) -> Tensor:
    return _from(unit, 0.008856, _power(unit.clamp(min=0), 1 / 3), 7.787 * unit + 16 / 116)


def _lab_cube(root: Tensor) -> Tensor:
    return _from(root, 0.2068966, root * root * root, (root - 16 / 116) * (1 / 7.787))


def _power(base: Tensor, exponent: Tensor | float) -> Tensor:
    """Return base^exponent for bases from 0; a quarter of the time of torch's own on a CPU."""
    return torch.exp2(torch.log2(base) * exponent)


def _from(value: Tensor, threshold: float, above: Tensor, below: Tensor) -> Tensor:
    """Return ``above`` where ``value`` exceeds the threshold, else ``below``; a tenth of the time of ``torch.where``."""
    return torch.lerp(below, above, (value - threshold).sign().clamp(min=0))


def _mix(planes: tuple[Tensor, ...], matrix: Sequence[Any], offset: Sequence[Any] = (0.0, 0.0, 0.0)) -> Planes:
    """Return matrix · planes + offset; written out, because a matrix product on CUDA may run in TF32."""
    x, y, z = planes
    first, second, third = (
        matrix[3 * row] * x + matrix[3 * row + 1] * y + (matrix[3 * row + 2] * z + offset[row]) for row in range(3)
    )
    return first, second, third


def _noise_numbers(noise: Noise) -> Numbers:
    # Two keys of 24 bits, which float32 holds exactly.
    keys = np.random.SeedSequence(noise.seed).generate_state(2, np.uint32) >> 8
    return noise.sigma, float(keys[0]), float(keys[1])


def _noise(planes: Planes, columns: Columns) -> Planes:
    sigma, first, second = columns
    keys = first.long() << 8, second.long() << 8
    height, width = planes[0].shape[-2:]
    pixels = 2 * torch.arange(height * width, device=sigma.device).view(height, width)
    radius, angle = _polar(pixels, *keys)
    other_radius, other_angle = _polar(pixels + 1, *keys)
    normal = (radius * torch.cos(angle), radius * torch.sin(angle), other_radius * torch.cos(other_angle))
    red, green, blue = (plane + sigma * value for plane, value in zip(planes, normal, strict=True))
    return red, green, blue


def _polar(counter: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return radius and angle of a point of the plane's normal distribution; counter and keys alone decide it.

    A 32-bit integer hash (prospector's constants 21f0aaad and 735a2d97, C. Wellons) with the second key between its
    rounds, then Box and Muller (1958): 16 bits for the radius, which ends at 4.9, and 16 for the angle. Both
    multipliers are below 2³¹: products fit int64, and nothing depends on how an overflow is treated.
    """
    bits = (counter + first) & 0xFFFFFFFF
    bits = ((bits ^ (bits >> 16)) * 0x21F0AAAD) & 0xFFFFFFFF
    bits = ((bits ^ (bits >> 15)) + second) & 0xFFFFFFFF
    bits = (bits * 0x735A2D97) & 0xFFFFFFFF
    bits = bits ^ (bits >> 15)
    uniform = ((bits >> 16).float() + 0.5) * 2**-16
    return torch.sqrt(-2 * torch.log(uniform)), (bits & 0xFFFF).float() * (2 * math.pi * 2**-16)


@dataclass(frozen=True, slots=True)
class Step:
    """One kind of operation: its numbers, computed on the host in float64, and what they do to pixels."""

    width: int  # how many numbers
    numbers: Callable[[Any], Numbers]
    apply: Callable[[Planes, Columns], Planes]


STEPS: Mapping[str, Step] = {
    "tone": Step(3, _tone_numbers, _tone),
    "line": Step(2, _line_numbers, _line),
    "saturation": Step(1, _saturation_numbers, _saturation),
    "hsv": Step(3, _hsv_numbers, _hsv),
    "stain": Step(12, _stain_numbers, _stain),
    "lab": Step(12, _lab_numbers, _lab),
    "noise": Step(3, _noise_numbers, _noise),
}


def _kind(operation: Operation) -> str:
    if isinstance(operation, Opaque):
        raise ConfigError(
            f"{operation.name} cannot run on a batch of tiles", remedy="use it in the transform of the slide"
        )
    return "line" if isinstance(operation, Tone) and operation.gamma == 1 else operation.kind


@dataclass(frozen=True, slots=True)
class Group:
    """Tiles whose operations are of the same kinds in the same order: they differ in numbers alone."""

    kinds: tuple[str, ...]
    tiles: Tensor | None  # (m,) int64 indices into the batch; None: all
    numbers: Tensor  # (m, P) float32, or (1, P) for all tiles

    @classmethod
    def of(cls, operations: Sequence[tuple[Operation, ...]], tiles: Sequence[int] | None) -> Group:
        """Return the group of ``tiles`` and their operations, one tuple each, or one tuple for all."""
        kinds = tuple(_kind(operation) for operation in operations[0])
        rows = [
            [n for kind, step in zip(kinds, steps, strict=True) for n in STEPS[kind].numbers(step)]
            for steps in operations
        ]
        numbers = torch.tensor(rows, dtype=torch.float32).view(len(rows), -1)
        return cls(kinds, None if tiles is None else torch.tensor(tiles), numbers)


class DeviceProgram:
    """The drawn operations of a batch of tiles, ready to run where the tiles are.

    Parameters
    ----------
    operations : sequence of tuples of operations, or one tuple
        One tuple per tile, or one for all tiles. Tiles with the same kinds in the same order run together, whatever
        their numbers: a batch takes one pass for each different order of kinds in it.
    normalize : object with mean, std and rescale, or None
        What follows the operations, for instance a ``Normalize``. None: bytes come out, rounded half up.
    dtype : torch.dtype
        Of normalised tiles: float16, bfloat16 or float32.

    Raises
    ------
    ConfigError
        If an operation cannot run on a batch, or a dtype is none of the three.

    Notes
    -----
    Everything is float32 until the one rounding. Differences from float64: ``tests/test_augment_device.py``; times:
    ``tests/benchmarks/augment_device.py``. A program has no state: threads may share it.

    Examples
    --------
    >>> tiles = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    >>> DeviceProgram([(Tone(brightness=2),), ()], normalize=None)(tiles)[:, 0, 0, 0].tolist()
    [200, 100]
    """

    def __init__(
        self,
        operations: Sequence[tuple[Operation, ...]] | tuple[Operation, ...],
        *,
        normalize: Statistics | None,
        dtype: torch.dtype = torch.float16,
        compile: bool = False,
    ) -> None:
        if dtype not in (torch.float16, torch.bfloat16, torch.float32):
            raise ConfigError(f"tiles cannot be {dtype}", remedy="pass float16, bfloat16 or float32")
        self.dtype = torch.uint8 if normalize is None else dtype  # of what comes out
        self.count: int | None = None  # tiles of a batch; None: any
        if any(not isinstance(entry, tuple) for entry in operations) or operations == ():
            self.groups = [Group.of([_kept(operations)], None)]
        else:
            self.count = len(operations)
            self.groups = _grouped([_kept(entry) for entry in operations])
        self._finish = _finish_numbers(normalize)
        self.compile = compile

    def __call__(self, tiles: Tensor) -> Tensor:
        """Return the augmented tiles, in new memory.

        Parameters
        ----------
        tiles : (n, 3, H, W) uint8 RGB
            Best in channels_last layout, as tiles are stored.

        Returns
        -------
        (n, 3, H, W) tensor, channels_last
            On the device of ``tiles``; uint8 when nothing is normalised.

        Raises
        ------
        ConfigError
            If these are no tiles, or not as many as there are tuples of operations.
        """
        _check_tiles(tiles, self.count)
        n, _, height, width = tiles.shape
        out = torch.empty((n, height, width, 3), dtype=self.dtype, device=tiles.device).permute(0, 3, 1, 2)
        for group in self.groups:
            if group.tiles is None:
                self._fill(out, tiles, group)
            else:
                places = group.tiles.to(tiles.device, non_blocking=True)
                part = torch.empty_like(out[: len(places)])
                self._fill(part, tiles[places], group)
                out[places] = part
        return out

    def _fill(self, out: Tensor, tiles: Tensor, group: Group) -> None:
        """Fill ``out`` with the group's tiles, some at a time."""
        if self.dtype == torch.uint8 and not group.kinds:
            out.copy_(tiles)
            return
        # What ends every list comes last: normalisation, or rounding.
        last = torch.tensor(self._finish).expand(len(group.numbers), 6)
        numbers = torch.cat((group.numbers, last), dim=1).to(tiles.device, non_blocking=True)
        if self.compile:
            out.copy_(_compiled(group.kinds)(tiles, numbers, out.dtype))
            return
        step = max(1, CHUNK_PX[tiles.device.type] // max(1, tiles.shape[2] * tiles.shape[3]))
        for first in range(0, len(tiles), step):
            rows = slice(first, first + step)
            planes = augmented(tiles[rows], group.kinds, numbers if len(numbers) == 1 else numbers[rows])
            for channel, plane in enumerate(planes):
                out[rows, channel] = plane  # here it is rounded; conversion to bytes cuts off


def augmented(tiles: Tensor, kinds: tuple[str, ...], numbers: Tensor) -> Planes:
    """Return tiles after operations of these kinds: the whole expression, without the rounding at its end.

    Parameters
    ----------
    tiles : (n, 3, H, W) uint8
        RGB.
    kinds : tuple of str
        Keys of ``STEPS``.
    numbers : (n, P) or (1, P) float32
        What the steps' ``numbers`` gave, one after the other; then three factors and three summands.
    """
    planes: Planes = tiles[:, 0].float(), tiles[:, 1].float(), tiles[:, 2].float()
    columns = list(numbers[:, :, None, None].unbind(1))
    for kind in kinds:
        step = STEPS[kind]
        red, green, blue = step.apply(planes, columns[: step.width])
        planes, columns = (red.clamp(0, 255), green.clamp(0, 255), blue.clamp(0, 255)), columns[step.width :]
    red, green, blue = (plane * columns[channel] + columns[3 + channel] for channel, plane in enumerate(planes))
    return red, green, blue


@functools.cache
def _compiled(kinds: tuple[str, ...]) -> Callable[[Tensor, Tensor, torch.dtype], Tensor]:
    """Return the expression of these kinds, fused by torch.compile at its first call."""

    def fused(tiles: Tensor, numbers: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.stack(augmented(tiles, kinds, numbers), dim=-1).to(dtype).permute(0, 3, 1, 2)

    # torch compiles a code object eight times at most, and then runs it as it is: each order of kinds gets its own.
    fused.__code__ = fused.__code__.replace(co_name="_".join(("fused", *kinds)))
    return torch.compile(fused, dynamic=True)


def warp(tiles: Tensor, affines: ArrayLike, size: Size, *, fill: int = 255) -> Tensor:
    """Return tiles sampled bilinearly through one affine each, as bytes.

    Parameters
    ----------
    tiles : (n, 3, H, W) uint8
        The plain tiles.
    affines : (n, 2, 3) or (n, 6) float
        Plain px → augmented px, corner-based: what ``Draw.affine`` holds. Where they shrink, nothing is averaged.
    size : Size
        Of the augmented tiles.
    fill : int
        The level outside the plain tile; pixels at its border blend with it.

    Returns
    -------
    (n, 3, height, width) uint8, channels_last
        On the device of ``tiles``, rounded half up. Flips, quarter turns and whole-pixel shifts are exact.

    Raises
    ------
    ConfigError
        If an affine is singular, or there is not one per tile.

    Examples
    --------
    >>> tile = torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2)
    >>> warp(tile, [[-1, 0, 2, 0, 1, 0]], Size(3, 2))[0, 0].tolist()  # mirrored
    [[1, 0, 255], [3, 2, 255]]
    """
    _check_tiles(tiles, None)
    sampling = _sampling(affines, len(tiles), Size(tiles.shape[3], tiles.shape[2]))
    numbers = torch.from_numpy(sampling).float().to(tiles.device, non_blocking=True)
    x = torch.arange(size.width, device=tiles.device) + 0.5
    y = torch.arange(size.height, device=tiles.device)[:, None] + 0.5
    shape = (len(tiles), size.height, size.width, 3)
    out = torch.empty(shape, dtype=torch.uint8, device=tiles.device).permute(0, 3, 1, 2)
    step = max(1, CHUNK_PX[tiles.device.type] // max(1, size.width * size.height))
    for first in range(0, len(tiles), step):
        rows = slice(first, first + step)
        a, b, c, d, e, f = numbers[rows, :, None, None].unbind(1)
        grid = torch.stack((a * x + (b * y + c), d * x + (e * y + f)), dim=-1)
        # Zero outside after the shift by ``fill`` is ``fill`` outside.
        shifted = tiles[rows].to(torch.float32, memory_format=torch.contiguous_format) - fill
        out[rows] = functional.grid_sample(shifted, grid, padding_mode="zeros", align_corners=False) + (fill + 0.5)
    return out


def _sampling(affines: ArrayLike, count: int, plain: Size) -> NDArray[np.float64]:
    """Return the (n, 6) affines from augmented px to plain ones, the tile's borders being at −1 and 1."""
    forward = np.asarray(affines, dtype=np.float64)
    if forward.shape not in ((count, 2, 3), (count, 6)):
        raise ConfigError(f"affines have the shape {forward.shape} for {count} tiles", remedy="pass one per tile")
    square = np.tile(np.eye(3), (count, 1, 1))
    square[:, :2] = forward.reshape(count, 2, 3)
    # A determinant is the area that one plain pixel becomes.
    areas = np.linalg.det(square[:, :2, :2])
    if not np.isfinite(square).all() or not (np.abs(areas) > 1e-12).all():
        raise ConfigError("an affine is singular: it maps tiles to a line")
    to_unit = np.array([[2 / plain.width, 0, -1], [0, 2 / plain.height, -1], [0, 0, 1]])
    sampling: NDArray[np.float64] = (to_unit @ np.linalg.inv(square))[:, :2].reshape(count, 6)
    return sampling


def _kept(operations: Any) -> tuple[Operation, ...]:
    return tuple(operation for operation in operations if not operation.is_identity)


def _grouped(operations: Sequence[tuple[Operation, ...]]) -> list[Group]:
    members: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for tile, steps in enumerate(operations):
        members[tuple(_kind(step) for step in steps)].append(tile)
    if len(members) == 1:
        return [Group.of(operations, None)]
    return [Group.of([operations[tile] for tile in tiles], tiles) for tiles in members.values()]


def _finish_numbers(normalize: Statistics | None) -> list[float]:
    """Return factors, then summands: those of (x · rescale − mean) / std, or of rounding half up."""
    if normalize is None:
        return [1.0] * 3 + [0.5] * 3
    pairs = list(zip(normalize.mean, normalize.std, strict=True))
    return [normalize.rescale / std for _, std in pairs] + [-mean / std for mean, std in pairs]


def _check_tiles(tiles: Tensor, count: int | None) -> None:
    if tiles.dtype != torch.uint8:
        raise ConfigError(f"tiles are {tiles.dtype}, not uint8", remedy="augment bytes, then normalise")
    if tiles.ndim != 4 or tiles.shape[1] != 3:
        raise ConfigError(f"tiles have the shape {tuple(tiles.shape)}", remedy="pass (N, 3, H, W)")
    if count is not None and len(tiles) != count:
        raise ConfigError(f"{len(tiles)} tiles and the operations of {count}", remedy="pass one tuple per tile")
