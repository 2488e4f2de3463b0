"""Colour operations as OpenCV and numpy steps, on chunks of float pixels that stay in the second-level cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from slideio_pipe.augment.operations import (
    GREY_LEVELS,
    UNIT_OF_RGB,
    Hsv,
    Lab,
    Noise,
    Operation,
    Saturation,
    Stain,
    Tone,
)

Pixels: TypeAlias = NDArray[np.float32]  # (1, n, 3) RGB, 0 to 255 between steps

CHUNK = 32768  # pixels: with fewer, calls cost more than arithmetic; with more, memory leaves the cache


class Scratch:
    """Work memory of one thread; allocating it for every tile would cost as much as the arithmetic."""

    def __init__(self) -> None:
        self.pixels = np.empty((2, 1, CHUNK, 3), np.float32)
        self.noise = np.random.Generator(np.random.SFC64(0))


# In: pixels, a spare array of the same shape, scratch memory. Out: the one of the two arrays with the result.
Step: TypeAlias = Callable[[Pixels, Pixels, Scratch], Pixels]


def clip(pixels: Pixels, spare: Pixels, scratch: Scratch, *, bias: float) -> Pixels:
    if bias:
        np.add(pixels, np.float32(bias), out=pixels)
    np.clip(pixels, 0, 255, out=pixels)
    return pixels


def bias_of(operation: Operation) -> float:
    """Return the value to be added to the result of an operation's step."""
    return -1.0 if isinstance(operation, Stain) else 0.0


def as_is(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    return curve


def _tone(tone: Tone) -> Step:
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


def _saturation(saturation: Saturation) -> Step:
    return _mix(saturation.matrix())


def _mix(matrix: NDArray[np.float64]) -> Step:
    """Return the step for one (3, 3) or (3, 4) matrix."""
    numbers = np.ascontiguousarray(matrix, np.float32)

    def step(pixels: Pixels, spare: Pixels, scratch: Scratch) -> Pixels:
        cv2.transform(pixels, numbers, dst=spare)
        return spare

    return step


def _stain_of_logs(stain: Stain, scale: float = 256) -> Step:
    # In: ln((x + 1)/256·scale), so that white is 0 with scale 1. Out: x′ + 1.
    logs = np.log([scale, 256.0])
    offset = logs[1] - np.array(stain.offset) - np.sum(stain.matrix, axis=1) * logs[0]
    mix = _mix(np.column_stack([stain.matrix, offset]))

    def step(pixels: Pixels, spare: Pixels, scratch: Scratch) -> Pixels:
        mix(pixels, spare, scratch)
        cv2.exp(spare, dst=spare)
        return spare

    return step


def _stain(stain: Stain) -> Step:
    of_logs = _stain_of_logs(stain)

    def step(pixels: Pixels, spare: Pixels, scratch: Scratch) -> Pixels:
        np.add(pixels, np.float32(1), out=pixels)
        cv2.log(pixels, dst=pixels)
        return of_logs(pixels, spare, scratch)

    return step


def _noise(noise: Noise) -> Step:
    sigma = np.float32(noise.sigma)

    def step(pixels: Pixels, spare: Pixels, scratch: Scratch) -> Pixels:
        scratch.noise.standard_normal(dtype=np.float32, out=spare)
        np.multiply(spare, sigma, out=spare)
        np.add(pixels, spare, out=pixels)
        return pixels

    return step


def _hsv(hsv: Hsv, *, exact: bool = False) -> Step:
    """Return the step through OpenCV's float HSV: hue in degrees (wraps), saturation 0 to 1, value 0 to 255.

    ``exact`` states that greys have no rounding from earlier steps, so their hue is 0.
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


def _lab_of_light(lab: Lab) -> Step:
    of_xyz = UNIT_OF_RGB.astype(np.float32)
    to_rgb = np.linalg.inv(UNIT_OF_RGB).astype(np.float32)
    mix = np.ascontiguousarray(lab.mix(), np.float32)

    def step(pixels: Pixels, spare: Pixels, scratch: Scratch) -> Pixels:
        cv2.transform(pixels, of_xyz, dst=spare)
        straight = spare * np.float32(7.787) + np.float32(16 / 116)
        roots = np.where(spare > 0.008856, cv2.pow(spare, 1 / 3), straight)
        cv2.transform(roots, mix, dst=spare)
        np.maximum(spare[..., 2], 0, out=spare[..., 2])  # as in scikit-image
        units = np.where(spare > 0.2068966, spare * spare * spare, (spare - np.float32(16 / 116)) / np.float32(7.787))
        light = np.maximum(cv2.transform(units, to_rgb), 0)
        bright = cv2.pow(light, 1 / 2.4) * np.float32(1.055) - np.float32(0.055)
        np.copyto(spare, np.where(light > 0.0031308, bright, light * np.float32(12.92)))
        np.multiply(spare, np.float32(255), out=spare)
        return spare

    return step


def _lab(lab: Lab) -> Step:
    of_light = _lab_of_light(lab)

    def step(pixels: Pixels, spare: Pixels, scratch: Scratch) -> Pixels:
        unit = pixels * np.float32(1 / 255)
        curved = cv2.pow((unit + np.float32(0.055)) * np.float32(1 / 1.055), 2.4)
        np.copyto(pixels, np.where(unit > 0.04045, curved, unit * np.float32(1 / 12.92)))
        return of_light(pixels, spare, scratch)

    return step


def linear_light(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Decode sRGB: 0 to 255 becomes linear light, 0 to 1."""
    unit = values / 255
    return np.where(unit > 0.04045, ((unit + 0.055) / 1.055) ** 2.4, unit / 12.92)


def _logs(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log((curve + 1) / 256)


# For the first operation after leading tones: the curve that their table includes, and the remaining step.
LEADS: dict[type, tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], Callable[[Any], Step]]] = {
    Stain: (_logs, partial(_stain_of_logs, scale=1)),
    Lab: (linear_light, _lab_of_light),
    Hsv: (as_is, partial(_hsv, exact=True)),
}
# Step of each operation on levels from 0 to 255.
STEPS: dict[type, Callable[[Any], Step]] = {
    Tone: _tone,
    Saturation: _saturation,
    Hsv: _hsv,
    Stain: _stain,
    Lab: _lab,
    Noise: _noise,
}
