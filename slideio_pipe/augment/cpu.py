"""Colour operations on decoded uint8 tiles: compiled once, run by OpenCV and numpy with the GIL released.

Per 256-px tile and thread, on a 2.5 GHz x86 core: stain jitter 0.4 ms, tone + hue + stain 1.0 ms
(``tests/benchmarks/augment.py``). Tones before anything else become one table of 256 entries; pixels are worked on in
chunks that stay in the second-level cache.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from slideio_pipe.augment.operations import Hsv, Lab, Noise, Opaque, Operation, Saturation, Stain, Tone
from slideio_pipe.errors import ConfigError

Pixels: TypeAlias = NDArray[np.float32]  # (1, n, 3) RGB, 0 to 255 between steps
Bytes: TypeAlias = NDArray[np.uint8]
Operations: TypeAlias = tuple[Operation, ...]

CHUNK = 32768  # pixels: with fewer, calls cost more than arithmetic; with more, memory leaves the cache
# Channels that differ by less are grey, so that rounding of earlier steps gives no hue.
GREY_LEVELS = 0.01
# sRGB (IEC 61966-2-1) and CIE Lab for D65 and the 2° observer (CIE 15), in the digits of scikit-image.
XYZ_OF_RGB = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
WHITE = np.array([0.95047, 1.0, 1.08883])
LAB_OF_ROOTS = np.array([[0.0, 116.0, 0.0], [500.0, -500.0, 0.0], [0.0, 200.0, -200.0]])


class Scratch:
    """Memory that one thread works in: fresh memory for every tile would cost as much as the arithmetic."""

    def __init__(self) -> None:
        self.pixels = np.empty((2, 1, CHUNK, 3), np.float32)
        self.noise = np.random.Generator(np.random.SFC64(0))


# In: pixels, a spare array of the same shape, scratch memory. Out: whichever of the two holds the result.
_Step: TypeAlias = Callable[[Pixels, Pixels, Scratch], Pixels]


class ColourProgram:
    """Colour operations compiled for uint8 RGB tiles of any shape; one program may run in several threads at once.

    Parameters
    ----------
    operations : tuple of Operation
        In the order they are applied.
    idle : deque of Scratch, optional
        Where memory to work in is taken from and put back; programs that each run on one tile share one.

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

    def __init__(self, operations: Operations, *, idle: deque[Scratch] | None = None) -> None:
        self.operations = tuple(operation for operation in operations if not operation.is_identity)
        for operation in self.operations:
            if isinstance(operation, Opaque):
                raise ConfigError(
                    f"{operation.name} does not run on decoded tiles", remedy="use it in the slide's transform"
                )
        # Not thread-local: to Python, a thread of libvips is a new one at each call.
        self._idle: deque[Scratch] = deque() if idle is None else idle
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
        try:
            scratch = self._idle.pop()
        except IndexError:
            scratch = Scratch()
        done = self._checked(tiles, _output(tiles, out), scratch, place)
        self._idle.append(scratch)
        return done

    def _checked(self, tiles: Bytes, out: Bytes, scratch: Scratch, place: int | None = None) -> Bytes:
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
                self._run(tile, result, scratch, place)
        return out

    def _run(self, tile: Bytes, out: Bytes, scratch: Scratch, place: int | None) -> None:
        if self._noise:
            salt = zlib.crc32(tile.tobytes()) if place is None else place
            scratch.noise = np.random.Generator(np.random.SFC64([salt, *(noise.seed for noise in self._noise)]))
        # One row: OpenCV converts colours row by row, 5 to 15 times slower in one column.
        pixels, result = tile.reshape(1, -1, 3), out.reshape(1, -1, 3)
        for start in range(0, pixels.shape[1], CHUNK):
            chunk = pixels[:, start : start + CHUNK]
            here, spare = scratch.pixels[:, :, : chunk.shape[1]]
            cv2.LUT(chunk, self._lead, dst=here)
            for step in self._steps:
                if step(here, spare, scratch) is spare:
                    here, spare = spare, here
            cv2.add(here, self._bias, dst=result[:, start : start + CHUNK], dtype=cv2.CV_8U)  # rounds and clips


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
    scratch = Scratch()
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


def _clip(pixels: Pixels, spare: Pixels, scratch: Scratch, *, bias: float) -> Pixels:
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

    def step(pixels: Pixels, spare: Pixels, scratch: Scratch) -> Pixels:
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

    def step(pixels: Pixels, spare: Pixels, scratch: Scratch) -> Pixels:
        cv2.transform(pixels, numbers, dst=spare)
        return spare

    return step


def _stain_of_logs(stain: Stain, scale: float = 256) -> _Step:
    # In: ln((x + 1)/256·scale), so that white is 0 with scale 1. Out: x′ + 1.
    logs = np.log([scale, 256.0])
    offset = logs[1] - np.array(stain.offset) - np.sum(stain.matrix, axis=1) * logs[0]
    mix = _mix(np.column_stack([stain.matrix, offset]))

    def step(pixels: Pixels, spare: Pixels, scratch: Scratch) -> Pixels:
        mix(pixels, spare, scratch)
        cv2.exp(spare, dst=spare)
        return spare

    return step


def _stain(stain: Stain) -> _Step:
    of_logs = _stain_of_logs(stain)

    def step(pixels: Pixels, spare: Pixels, scratch: Scratch) -> Pixels:
        np.add(pixels, np.float32(1), out=pixels)
        cv2.log(pixels, dst=pixels)
        return of_logs(pixels, spare, scratch)

    return step


def _noise(noise: Noise) -> _Step:
    sigma = np.float32(noise.sigma)

    def step(pixels: Pixels, spare: Pixels, scratch: Scratch) -> Pixels:
        scratch.noise.standard_normal(dtype=np.float32, out=spare)
        np.multiply(spare, sigma, out=spare)
        np.add(pixels, spare, out=pixels)
        return pixels

    return step


def _hsv(hsv: Hsv, *, exact: bool = False) -> _Step:
    """Return the step through OpenCV's float HSV: hue in degrees, wrapped by it, saturation 0 to 1, value 0 to 255.

    ``exact`` says that greys come without the rounding of earlier steps, so that their hue is 0.
    """
    shift = (360 * (hsv.turn % 1), hsv.saturation, 255 * hsv.value, 0.0)
    moves = bool(hsv.saturation or hsv.value)

    def step(pixels: Pixels, spare: Pixels, scratch: Scratch) -> Pixels:
        cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV, dst=spare)
        if hsv.saturation > 0 and not exact:
            spare[..., 0] *= spare[..., 1] * spare[..., 2] > GREY_LEVELS
        cv2.add(spare, shift, dst=spare)
        if moves:
            cv2.max(spare, (0.0, 0.0, 0.0, 0.0), dst=spare)
            cv2.min(spare, (720.0, 1.0, 255.0, 0.0), dst=spare)
        cv2.cvtColor(spare, cv2.COLOR_HSV2RGB, dst=pixels)
        return pixels

    return step


def _lab_of_light(lab: Lab) -> _Step:
    of_xyz = (XYZ_OF_RGB / WHITE[:, None]).astype(np.float32)
    to_rgb = np.linalg.inv(XYZ_OF_RGB / WHITE[:, None]).astype(np.float32)
    mix = np.ascontiguousarray(lab_mix(lab), np.float32)

    def step(pixels: Pixels, spare: Pixels, scratch: Scratch) -> Pixels:
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

    def step(pixels: Pixels, spare: Pixels, scratch: Scratch) -> Pixels:
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
    Hsv: (_as_is, partial(_hsv, exact=True)),
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
