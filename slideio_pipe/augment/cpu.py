"""Colour operations on decoded uint8 tiles: compiled once, run by OpenCV and numpy with the GIL released.

Per 256-px tile and thread, on a 2.5 GHz x86 core: stain jitter 0.3 ms, tone + hue + stain 0.9 ms
(``tests/benchmarks/augment.py``). Tones before anything else become one table of 256 entries; pixels are worked on in
chunks that stay in the second-level cache.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from slideio_pipe.augment.operations import Hsv, Lab, Noise, Opaque, Operation, Saturation, Stain, Tone
from slideio_pipe.errors import ConfigError

Pixels: TypeAlias = NDArray[np.float32]  # (n, 1, 3) RGB, 0 to 255 between steps
Plane: TypeAlias = NDArray[np.float32]  # (n,)
Planes: TypeAlias = NDArray[np.float32]  # (k, n)
Bytes: TypeAlias = NDArray[np.uint8]
Operations: TypeAlias = tuple[Operation, ...]

CHUNK = 32768  # pixels: with fewer, calls cost more than arithmetic; with more, memory leaves the cache
# Channels that differ by far less than this are grey, so that rounding of earlier steps gives no hue.
GREY_LEVELS = 0.01
# sRGB (IEC 61966-2-1) and CIE Lab for D65 and the 2° observer (CIE 15), in the digits of scikit-image.
XYZ_OF_RGB = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
SIGN_BIT = np.uint32(2**31)
WHITE = np.array([0.95047, 1.0, 1.08883])
LAB_OF_ROOTS = np.array([[0.0, 116.0, 0.0], [500.0, -500.0, 0.0], [0.0, 200.0, -200.0]])


class _Scratch:
    """Memory that one thread works in: fresh memory for every tile would cost as much as the arithmetic."""

    def __init__(self) -> None:
        self.pixels = np.empty((2, CHUNK, 1, 3), np.float32)
        self.planes = np.empty((7, CHUNK), np.float32)
        self.bytes = np.empty((3, CHUNK), np.uint8)
        self.noise = np.random.Generator(np.random.SFC64(0))


# In: pixels, a spare array of the same shape, scratch memory. Out: whichever of the two holds the result.
_Step: TypeAlias = Callable[[Pixels, Pixels, _Scratch], Pixels]


class ColourProgram:
    """Colour operations compiled for uint8 RGB tiles of any shape; one program may run in several threads at once.

    Parameters
    ----------
    operations : tuple of Operation
        In the order they are applied.

    Raises
    ------
    ConfigError
        An ``Opaque`` operation is among them: it runs lazily only.

    Notes
    -----
    Noise is seeded by the operation and by the tile's own bytes: it is the same whenever the same tile is asked for, in
    whatever batch, and differs between tiles.

    Examples
    --------
    >>> program = ColourProgram((Tone(brightness=0.5),))
    >>> program.apply(np.full((1, 1, 3), 101, np.uint8)).tolist()
    [[[51, 51, 51]]]
    """

    def __init__(self, operations: Operations) -> None:
        self.operations = tuple(operation for operation in operations if not operation.is_identity)
        for operation in self.operations:
            if isinstance(operation, Opaque):
                raise ConfigError(
                    f"{operation.name} does not run on decoded tiles", remedy="use it in the slide's transform"
                )
        curve, rest = lead_curve(self.operations)
        self._table: Any = None  # uint8 to uint8, when there is nothing but tones
        if not rest:
            self._table = round_levels(curve)
            return
        lead, first = _LEADS.get(type(rest[0])) or (_as_is, _STEPS[type(rest[0])])
        self._lead = np.ascontiguousarray(lead(curve), np.float32)
        self._steps: list[_Step] = [first(rest[0])]
        self._noise = [operation for operation in rest if isinstance(operation, Noise)]
        for before, operation in pairwise(rest):
            if not isinstance(before, Hsv):  # which cannot leave the range
                self._steps.append(partial(_clip, bias=_bias(before)))
            self._steps.append(_STEPS[type(operation)](operation))
        self._bias = _bias(rest[-1])
        self._planar = isinstance(rest[0], Hsv)
        self._own = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        return ColourProgram, (self.operations,)

    def apply(self, tiles: Bytes, out: Bytes | None = None, *, place: int | None = None) -> Bytes:
        """Return the tiles with the operations applied.

        Parameters
        ----------
        tiles : (H, W, 3) or (n, H, W, 3) uint8 RGB
        out : uint8 of the same shape, optional
            Written to and returned; may be ``tiles`` itself.
        place : int, optional
            Seeds the noise together with the operation, in place of the tile's bytes.
        """
        check_tiles(tiles)
        return self._checked(tiles, _output(tiles, out), None, place)

    def _scratch(self) -> _Scratch:
        scratch: _Scratch | None = getattr(self._own, "scratch", None)
        if scratch is None:
            scratch = self._own.scratch = _Scratch()
        return scratch

    def _checked(self, tiles: Bytes, out: Bytes, scratch: _Scratch | None, place: int | None = None) -> Bytes:
        if not self.operations or tiles.size == 0:
            np.copyto(out, tiles)
            return out
        if not out.flags.c_contiguous:
            np.copyto(out, self._checked(tiles, np.empty(tiles.shape, np.uint8), scratch, place))
            return out
        for tile, result in zip(_flat(tiles), _flat(out), strict=True):
            if self._table is not None:
                cv2.LUT(tile, self._table, dst=result)
            else:
                self._run(tile, result, scratch or self._scratch(), place)
        return out

    def _run(self, tile: Bytes, out: Bytes, scratch: _Scratch, place: int | None) -> None:
        if self._noise:
            salt = zlib.crc32(tile.tobytes()) if place is None else place
            scratch.noise = np.random.Generator(np.random.SFC64([salt, *(noise.seed for noise in self._noise)]))
        pixels, result = tile.reshape(-1, 1, 3), out.reshape(-1, 1, 3)
        for start in range(0, len(pixels), CHUNK):
            chunk = pixels[start : start + CHUNK]
            here, spare = scratch.pixels[:, : len(chunk)]
            if self._planar:
                channels = scratch.bytes[:, : len(chunk)]
                cv2.split(chunk, list(channels[..., None]))
                cv2.LUT(channels, self._lead, dst=scratch.planes[:3, : len(chunk)])
            else:
                cv2.LUT(chunk, self._lead, dst=here)
            for step in self._steps:
                if step(here, spare, scratch) is spare:
                    here, spare = spare, here
            cv2.add(here, self._bias, dst=result[start : start + CHUNK], dtype=cv2.CV_8U)  # rounds and clips


def apply_cpu(tiles: Bytes, draws: Operations | Sequence[Operations], out: Bytes | None = None) -> Bytes:
    """Return a batch with colour operations applied: one tuple of them for all tiles, or a sequence of one per tile.

    Parameters
    ----------
    tiles : (n, H, W, 3) uint8 RGB
    draws : tuple of Operation, or a sequence of n such tuples
    out : (n, H, W, 3) uint8, optional
        Written to and returned; may be ``tiles`` itself.

    Raises
    ------
    ConfigError
        The tiles are not uint8 RGB, their number is not that of the draws, or an operation runs lazily only.
    """
    check_tiles(tiles)
    if not draws or not isinstance(draws[0], tuple | list):
        return ColourProgram(tuple(draws)).apply(tiles, out)  # type: ignore[arg-type]  # operations, not tuples of them
    if tiles.ndim != 4 or len(draws) != len(tiles):
        raise ConfigError(f"{len(draws)} draws for tiles of shape {tiles.shape}", remedy="pass one draw per tile")
    out = _output(tiles, out)
    scratch = _Scratch()
    for tile, operations, result in zip(tiles, draws, out, strict=True):
        ColourProgram(tuple(operations))._checked(tile, result, scratch)  # type: ignore[arg-type]
    return out


def check_tiles(tiles: Any) -> None:
    """Raise ``ConfigError`` saying what was given, unless it is uint8 RGB."""
    if not isinstance(tiles, np.ndarray):
        raise ConfigError(f"tiles are a {type(tiles).__name__}", remedy="pass a numpy array of uint8 RGB")
    shape = "×".join(map(str, tiles.shape))
    if tiles.dtype != np.uint8:
        raise ConfigError(f"tiles are {tiles.dtype} ({shape})", remedy="colour operations take uint8 RGB, 0 to 255")
    if tiles.ndim not in (3, 4) or tiles.shape[-1] != 3:
        kind = {1: "grey", 4: "RGBA"}.get(tiles.shape[-1], "not RGB") if tiles.ndim > 2 else "grey"
        raise ConfigError(f"tiles are {kind} ({shape})", remedy="colour operations take (n, H, W, 3) uint8 RGB")


def lead_curve(operations: Operations) -> tuple[NDArray[np.float64], Operations]:
    """Return what the tones before all else make of 0 … 255, as one float64 curve, and the operations after them."""
    curve = np.arange(256, dtype=np.float64)
    for count, operation in enumerate(operations):
        if not isinstance(operation, Tone):
            return curve, operations[count:]
        curve = operation.curve(curve)
    return curve, ()


def round_levels(values: NDArray[np.float64]) -> Bytes:
    """Round values from 0 to 255 half up; a millionth of a level covers what float arithmetic takes off a half."""
    return np.floor(values + 0.5 + 1e-6).astype(np.uint8)


def linear_light(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Decode sRGB: 0 to 255 becomes linear light, 0 to 1."""
    unit = values / 255
    return np.where(unit > 0.04045, ((unit + 0.055) / 1.055) ** 2.4, unit / 12.92)


def lab_mix(lab: Lab) -> NDArray[np.float64]:
    """Return the (3, 4) affine map of the cube roots (fx, fy, fz) that is linear per channel in Lab.

    L = 116·fy − 16, a = 500·(fx − fy), b = 200·(fy − fz).
    """
    gain, shift = np.array(lab.gain), np.array([-16.0, 0.0, 0.0])
    back = np.linalg.inv(LAB_OF_ROOTS)
    moved = back @ (gain * shift + np.array(lab.bias) - shift)
    return np.column_stack([back @ np.diag(gain) @ LAB_OF_ROOTS, moved])


def _output(tiles: Bytes, out: Bytes | None) -> Bytes:
    if out is None:
        return np.empty(tiles.shape, np.uint8)
    if out.dtype != np.uint8 or out.shape != tiles.shape:
        given = f"out is {out.dtype} {out.shape}, the tiles are {tiles.shape}"
        raise ConfigError(given, remedy="pass uint8 of that shape")
    return out


def _flat(tiles: Bytes) -> Bytes:
    return tiles if tiles.ndim == 4 else tiles[None]


def _lookup(tile: Bytes, table: Bytes, out: Bytes) -> None:
    if cv2.LUT(tile, table, dst=out) is not out:
        np.copyto(out, cv2.LUT(tile, table))


def _clip(pixels: Pixels, spare: Pixels, scratch: _Scratch, *, bias: float) -> Pixels:
    if bias:
        np.add(pixels, np.float32(bias), out=pixels)
    np.clip(pixels, 0, 255, out=pixels)
    return pixels


def _bias(operation: Operation) -> float:
    """Return what is yet to be added to the result of an operation's step."""
    return -1.0 if isinstance(operation, Stain) else 0.0


def _as_is(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    return curve


def _tone(tone: Tone) -> _Step:
    factor, lift = np.float32(tone.brightness * tone.contrast), np.float32(255 * tone.pivot * (1 - tone.contrast))

    def step(pixels: Pixels, spare: Pixels, scratch: _Scratch) -> Pixels:
        np.multiply(pixels, factor, out=pixels)
        np.add(pixels, lift, out=pixels)
        if tone.gamma == 1:
            return pixels
        np.clip(pixels, 0, 255, out=pixels)
        np.multiply(pixels, np.float32(1 / 255), out=pixels)
        cv2.pow(pixels, tone.gamma, dst=spare)
        np.multiply(spare, np.float32(255), out=spare)
        return spare

    return step


def _saturation(saturation: Saturation) -> _Step:
    return _mix(saturation.matrix())


def _mix(matrix: NDArray[np.float64]) -> _Step:
    """Return the step that is one (3, 3) or (3, 4) matrix."""
    numbers = np.ascontiguousarray(matrix, np.float32)

    def step(pixels: Pixels, spare: Pixels, scratch: _Scratch) -> Pixels:
        cv2.transform(pixels, numbers, dst=spare)
        return spare

    return step


def _stain_of_logs(stain: Stain, scale: float = 256) -> _Step:
    # In: ln((x + 1)/256·scale), so that white is 0 with scale 1. Out: x′ + 1.
    logs = np.log([scale, 256.0])
    offset = logs[1] - np.array(stain.offset) - np.sum(stain.matrix, axis=1) * logs[0]
    mix = _mix(np.column_stack([stain.matrix, offset]))

    def step(pixels: Pixels, spare: Pixels, scratch: _Scratch) -> Pixels:
        mix(pixels, spare, scratch)
        cv2.exp(spare, dst=spare)
        return spare

    return step


def _stain(stain: Stain) -> _Step:
    of_logs = _stain_of_logs(stain)

    def step(pixels: Pixels, spare: Pixels, scratch: _Scratch) -> Pixels:
        np.add(pixels, np.float32(1), out=pixels)
        cv2.log(pixels, dst=pixels)
        return of_logs(pixels, spare, scratch)

    return step


def _noise(noise: Noise) -> _Step:
    sigma = np.float32(noise.sigma)

    def step(pixels: Pixels, spare: Pixels, scratch: _Scratch) -> Pixels:
        scratch.noise.standard_normal(dtype=np.float32, out=spare)
        np.multiply(spare, sigma, out=spare)
        np.add(pixels, spare, out=pixels)
        return pixels

    return step


def _hsv(hsv: Hsv, *, split: bool = True) -> _Step:
    turn, more_saturation, more_value = (np.float32(v) for v in (hsv.turn % 1, hsv.saturation, 255 * hsv.value))

    def step(pixels: Pixels, spare: Pixels, scratch: _Scratch) -> Pixels:
        planes = scratch.planes[:, : len(pixels)]
        rgb, (value, chroma, hue, other) = planes[:3], planes[3:]
        for channel, plane in enumerate(rgb if split else ()):
            np.copyto(plane, pixels[:, 0, channel])
        _hexcone(planes)
        np.add(hue, turn, out=hue)
        np.subtract(hue, np.floor(hue, out=other), out=hue)
        if more_saturation or more_value:
            _shift(chroma, value, more_saturation, more_value, other)
        _fill_rgb(planes)
        cv2.merge(list(rgb[..., None]), dst=spare)
        return spare

    return step


def _hexcone(planes: Planes) -> None:
    """From red, green and blue write value and chroma (0 to 255) and the hue in turns, −½ to ½, red at 0.

    With the largest channel scaled to 1 and the least to 0, the distance of the hue from red is 1 + green + blue − red
    sixths of a turn everywhere on the hexagon; green minus blue says on which side. Greys are red.
    """
    red, green, blue, value, chroma, hue, least = planes
    np.maximum(np.maximum(red, green, out=value), blue, out=value)
    np.minimum(np.minimum(red, green, out=least), blue, out=least)
    np.subtract(value, least, out=chroma)
    np.subtract(chroma, least, out=hue)
    np.add(hue, np.subtract(green, red, out=least), out=hue)
    np.add(hue, blue, out=hue)
    cv2.max(chroma, GREY_LEVELS, dst=least)
    cv2.divide(hue, least, dst=hue, scale=1 / 6)
    np.subtract(green, blue, out=least)
    # copysign, at a third of its time: the hue is not negative yet.
    side, distance = least.view(np.uint32), hue.view(np.uint32)
    np.bitwise_or(distance, np.bitwise_and(side, SIGN_BIT, out=side), out=distance)


def _shift(chroma: Plane, value: Plane, more_saturation: np.float32, more_value: np.float32, other: Plane) -> None:
    """Replace chroma and value by those of the shifted, clipped saturation and value."""
    np.divide(chroma, cv2.max(value, 1e-30, dst=other), out=chroma)
    np.clip(np.add(chroma, more_saturation, out=chroma), 0, 1, out=chroma)
    np.clip(np.add(value, more_value, out=value), 0, 255, out=value)
    np.multiply(chroma, value, out=chroma)


def _fill_rgb(planes: Planes) -> None:
    """From value, chroma and a hue of 0 to 1 write red, green and blue.

    A channel is full up to a sixth of a turn from its own hue, empty from two sixths on, and linear between.
    """
    rgb, red, (value, chroma, hue, least) = planes[:3], planes[0], planes[3:]
    np.subtract(value, chroma, out=least)
    np.abs(np.subtract(hue, HUES, out=rgb), out=rgb)
    np.subtract(np.float32(0.5), red, out=red)  # red's own hue is at both ends, 0 and 1
    full = np.add(value, chroma, out=hue)
    np.multiply(rgb, np.multiply(chroma, np.float32(6), out=chroma), out=rgb)
    np.subtract(full, rgb, out=rgb)
    np.maximum(np.minimum(rgb, value, out=rgb), least, out=rgb)


# Green's own hue and blue's; for red the farthest from it.
HUES = np.array([[3 / 6], [2 / 6], [4 / 6]], np.float32)


def _lab_of_light(lab: Lab) -> _Step:
    of_xyz = (XYZ_OF_RGB / WHITE[:, None]).astype(np.float32)
    to_rgb = np.linalg.inv(XYZ_OF_RGB / WHITE[:, None]).astype(np.float32)
    mix = np.ascontiguousarray(lab_mix(lab), np.float32)

    def step(pixels: Pixels, spare: Pixels, scratch: _Scratch) -> Pixels:
        cv2.transform(pixels, of_xyz, dst=spare)
        straight = spare * np.float32(7.787) + np.float32(16 / 116)
        roots = np.where(spare > 0.008856, cv2.pow(spare, 1 / 3), straight)
        cv2.transform(roots, mix, dst=spare)
        np.maximum(spare[..., 2], 0, out=spare[..., 2])  # as scikit-image does
        units = np.where(spare > 0.2068966, spare * spare * spare, (spare - np.float32(16 / 116)) / np.float32(7.787))
        light = np.maximum(cv2.transform(units, to_rgb), 0)
        bright = cv2.pow(light, 1 / 2.4) * np.float32(1.055) - np.float32(0.055)
        np.copyto(spare, np.where(light > 0.0031308, bright, light * np.float32(12.92)))
        np.multiply(spare, np.float32(255), out=spare)
        return spare

    return step


def _lab(lab: Lab) -> _Step:
    of_light = _lab_of_light(lab)

    def step(pixels: Pixels, spare: Pixels, scratch: _Scratch) -> Pixels:
        unit = pixels * np.float32(1 / 255)
        curved = cv2.pow((unit + np.float32(0.055)) * np.float32(1 / 1.055), 2.4)
        np.copyto(pixels, np.where(unit > 0.04045, curved, unit * np.float32(1 / 12.92)))
        return of_light(pixels, spare, scratch)

    return step


def _logs(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log((curve + 1) / 256)


# What the table at the front already does for the first operation after the tones, and that operation's step then.
_LEADS: dict[type, tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], Callable[[Any], _Step]]] = {
    Stain: (_logs, partial(_stain_of_logs, scale=1)),
    Lab: (linear_light, _lab_of_light),
    Hsv: (_as_is, partial(_hsv, split=False)),
}
# The step of each operation on levels from 0 to 255.
_STEPS: dict[type, Callable[[Any], _Step]] = {
    Tone: _tone,
    Saturation: _saturation,
    Hsv: _hsv,
    Stain: _stain,
    Lab: _lab,
    Noise: _noise,
}
