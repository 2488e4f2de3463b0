"""Colour operations by their definitions, in float64 and slowly; and random chains of them."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from slideio_pipe.augment.operations import Hsv, Lab, Operation, Saturation, Stain, Tone

# Every 15th level of each channel, 18³ colours, greys and pure colours among them, as an image.
_steps = np.arange(0, 256, 15, dtype=np.uint8)
COLOURS = np.stack(np.meshgrid(_steps, _steps, _steps, indexing="ij"), axis=-1).reshape(72, 81, 3)[:, :64].copy()
COLOURS[0, :, :] = np.linspace(0, 255, 64).astype(np.uint8)[:, None]


def tone(rgb: np.ndarray, op: Tone) -> np.ndarray:
    """255·clip((b·x/255 − pivot)·c + pivot)^g."""
    return 255 * np.clip((op.brightness * rgb / 255 - op.pivot) * op.contrast + op.pivot, 0, 1) ** op.gamma


def saturation(rgb: np.ndarray, op: Saturation) -> np.ndarray:
    """A blend with BT.601 grey."""
    grey = (rgb * [0.2989, 0.587, 0.114]).sum(axis=-1, keepdims=True)
    return grey + op.factor * (rgb - grey)


def hsv(rgb: np.ndarray, op: Hsv) -> np.ndarray:
    """Python's own colorsys, colour by colour; a chroma below a hundredth of a level is grey."""
    out = []
    for red, green, blue in (rgb.reshape(-1, 3) / 255).tolist():  # Python numbers: single numpy numbers are slow
        if max(red, green, blue) - min(red, green, blue) < 1e-4 / 255:
            red = green = blue
        h, s, v = colorsys.rgb_to_hsv(red, green, blue)
        saturation, value = (min(max(number, 0.0), 1.0) for number in (s + op.saturation, v + op.value))
        out.append(colorsys.hsv_to_rgb((h + op.turn) % 1, saturation, value))
    return np.array(out).reshape(rgb.shape) * 255


def stain(rgb: np.ndarray, op: Stain) -> np.ndarray:
    """A linear map of −ln((x + 1)/256)."""
    density = -np.log((rgb + 1) / 256)
    return 256 * np.exp(-(density @ np.transpose(op.matrix) + op.offset)) - 1


def lab(rgb: np.ndarray, op: Lab) -> np.ndarray:
    """Gain and bias in CIE Lab, with the constants and the cut at z = 0 of scikit-image."""
    unit = rgb / 255
    light = np.where(unit > 0.04045, ((unit + 0.055) / 1.055) ** 2.4, unit / 12.92)
    matrix = [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
    white = np.array([0.95047, 1, 1.08883])
    xyz = light @ np.transpose(matrix) / white
    x, y, z = np.moveaxis(np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116), -1, 0)
    values = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1) * op.gain + op.bias
    y = (values[..., 0] + 16) / 116
    roots = np.stack([y + values[..., 1] / 500, y, np.maximum(y - values[..., 2] / 200, 0)], axis=-1)
    xyz = np.where(roots > 0.2068966, roots**3, (roots - 16 / 116) / 7.787) * white
    light = xyz @ np.linalg.inv(matrix).T
    return 255 * np.where(light > 0.0031308, 1.055 * np.maximum(light, 0) ** (1 / 2.4) - 0.055, light * 12.92)


STEPS: dict[type, Callable[[np.ndarray, Any], np.ndarray]] = {
    Tone: tone,
    Saturation: saturation,
    Hsv: hsv,
    Stain: stain,
    Lab: lab,
}


def apply(rgb: np.ndarray, operations: tuple[Operation, ...]) -> np.ndarray:
    """Apply operations in order, clipping after each; float64, not rounded."""
    values = rgb.astype(np.float64)
    for operation in operations:
        values = np.clip(STEPS[type(operation)](values, operation), 0, 255)
    return values


def _random_stain(rng: np.random.Generator) -> Stain:
    matrix = np.eye(3) * rng.uniform(0.7, 1.3, 3) + rng.uniform(-0.1, 0.1, (3, 3))
    return Stain(matrix=tuple(map(tuple, matrix.tolist())), offset=tuple(rng.uniform(-0.05, 0.05, 3).tolist()))


def _random_operation(rng: np.random.Generator, kinds: str) -> Operation:
    kind = rng.choice(list(kinds))
    if kind == "t":
        brightness, contrast, gamma = rng.uniform(0.6, 1.5, 3)
        return Tone(brightness=brightness, contrast=contrast, gamma=float(rng.choice([1.0, gamma])))
    if kind == "s":
        return Saturation(factor=rng.uniform(0, 2))
    if kind == "h":
        # Saturation is not raised: near-greys have no stable hue, which depends on the rounding.
        saturation_shift, value_shift = rng.choice([0, 1], 2) * rng.uniform([-0.3, -0.2], [0, 0.2])
        return Hsv(turn=rng.uniform(-0.6, 0.6), saturation=saturation_shift, value=value_shift)
    if kind == "l":
        gain, bias = rng.uniform(0.85, 1.15, 3), rng.uniform(-6, 6, 3)
        return Lab(gain=tuple(gain.tolist()), bias=tuple(bias.tolist()))
    return _random_stain(rng)


@cache
def random_chain(seed: int, kinds: str = "tshld") -> tuple[Operation, ...]:
    """One to five operations of tone (t), saturation (s), hue (h), Lab (l) and stain (d), by ``seed``."""
    rng = np.random.default_rng(seed)
    return tuple(_random_operation(rng, kinds) for _ in range(rng.integers(1, 6)))
