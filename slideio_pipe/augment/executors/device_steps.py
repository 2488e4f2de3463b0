"""Colour operations as torch expressions on float tiles, with the numbers of many tiles as columns.

No expression branches on a pixel: all choices are made on the host, from the numbers. So they run identically on the
CPU and on CUDA, and torch.compile fuses a chain into one kernel. All three channels are computed in one call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from slideio_pipe.augment.operations import GREY_LEVELS, UNIT_OF_RGB

RGB_OF_UNIT = np.linalg.inv(UNIT_OF_RGB)
# Each channel of a hue is full over a third of the circle, empty over another third, and linear between them. What it
# lacks, red first: summand + factor · |sixths − centre|, clipped to 0…1.
HSV_SHAPE = (3.0, 2.0, 4.0, -1.0, 1.0, 1.0, 2.0, -1.0, -1.0)  # centres, factors, summands
LAB_CONSTANTS = (*UNIT_OF_RGB.ravel().tolist(), *RGB_OF_UNIT.ravel().tolist())  # appended to a Lab step's numbers

LOG2_E = math.log2(math.e)
TINY = 1e-30  # avoids 0 / 0


def _mix(tiles: Tensor, numbers: Tensor) -> Tensor:
    """Apply a matrix and an offset: tones whose gamma is 1, saturation."""
    return _product(tiles, numbers[:, :9]).add_(numbers[:, 9:12])


def _tone(tiles: Tensor, numbers: Tensor) -> Tensor:
    slope, lift, gamma = numbers[:, 0:1], numbers[:, 1:2], numbers[:, 2:3]
    return _power((tiles * slope + lift).clamp_(0, 1), gamma).mul_(255)


def _hsv(tiles: Tensor, numbers: Tensor) -> Tensor:
    turn, more_saturation, more_value = numbers[:, 0:1], numbers[:, 1:2], numbers[:, 2:3]
    centre, factor, summand = numbers[:, 3:6], numbers[:, 6:9], numbers[:, 9:12]
    red, green, blue = tiles[:, 0:1], tiles[:, 1:2], tiles[:, 2:3]
    largest, least = tiles.amax(1, keepdim=True), tiles.amin(1, keepdim=True)
    chroma = largest - least
    # Hue in sixths of a circle: its distance from red, 0 to 3, with the sign of its side.
    distance = (chroma - least + green + blue - red) / chroma.clamp(min=GREY_LEVELS)
    coloured = (chroma - GREY_LEVELS).sign_().clamp_(min=0)
    sixths = torch.copysign(distance, green - blue) * coloured + turn
    sixths = sixths - 6 * torch.floor(sixths / 6)
    saturation = (chroma / largest.clamp(min=TINY) + more_saturation).clamp_(0, 1)
    value = (largest + more_value).clamp_(0, 255)
    lacking = torch.addcmul(summand, factor, (sixths - centre).abs_()).clamp_(0, 1)
    return torch.addcmul(value, value * saturation, lacking, value=-1)


def _stain(tiles: Tensor, numbers: Tensor) -> Tensor:
    # Base 2 gives the same result with a matrix; (x + 1)/256 makes white exactly 0, so it stays white.
    logs = torch.log2((tiles + 1) * (1 / 256))
    return _mix(logs, numbers).exp2_().mul_(256).sub_(1)


def _lab(tiles: Tensor, numbers: Tensor) -> Tensor:
    linear = _linear_light(tiles * (1 / 255))
    moved = _mix(_lab_root(_product(linear, numbers[:, 12:21])), numbers)
    moved[:, 2].clamp_(min=0)  # z as in scikit-image
    return _encoded_light(_product(_lab_cube(moved), numbers[:, 21:30])).mul_(255)


def _linear_light(encoded: Tensor) -> Tensor:
    return _from(encoded, 0.04045, _power((encoded + 0.055) * (1 / 1.055), 2.4), encoded * (1 / 12.92))


def _encoded_light(linear: Tensor) -> Tensor:
    return _from(linear, 0.0031308, 1.055 * _power(linear.clamp(min=0), 1 / 2.4) - 0.055, 12.92 * linear)


def _lab_root(unit: Tensor) -> Tensor:
    return _from(unit, 0.008856, _power(unit.clamp(min=0), 1 / 3), 7.787 * unit + 16 / 116)


def _lab_cube(root: Tensor) -> Tensor:
    return _from(root, 0.2068966, root * root * root, (root - 16 / 116) * (1 / 7.787))


def _power(base: Tensor, exponent: Tensor | float) -> Tensor:
    """Return base^exponent for bases from 0; takes a quarter of the time of torch's own on a CPU."""
    return torch.log2(base).mul_(exponent).exp2_()


def _from(value: Tensor, threshold: float, above: Tensor, below: Tensor) -> Tensor:
    """Return ``above`` where ``value`` exceeds the threshold, else ``below``, in a third of torch.where's time."""
    return torch.lerp(below, above, (value - threshold).sign_().clamp_(min=0))


def _product(tiles: Tensor, matrix: Tensor) -> Tensor:
    """Return matrix · tiles, for (n, 9, 1, 1) matrices; written out, because a product on CUDA may run in TF32."""
    of_red, of_green, of_blue = (matrix[:, first::3] for first in range(3))
    made = of_blue * tiles[:, 2:3]
    return made.addcmul_(of_green, tiles[:, 1:2]).addcmul_(of_red, tiles[:, 0:1])


def _noise(tiles: Tensor, numbers: Tensor) -> Tensor:
    """Add noise; ``numbers`` are the deviation and two keys."""
    sigma, first, second = numbers[:, 0:1], numbers[:, 1], numbers[:, 2]
    keys = first.long() << 8, second.long() << 8
    height, width = tiles.shape[-2:]
    pixels = 2 * torch.arange(height * width, device=tiles.device).view(height, width)
    radius, angle = _polar(hashed(pixels, *keys))
    other_radius, other_angle = _polar(hashed(pixels + 1, *keys))
    normal = (radius * torch.cos(angle), radius * torch.sin(angle), other_radius * torch.cos(other_angle))
    return tiles + sigma * torch.stack(normal, dim=1)


def _polar(bits: Tensor) -> tuple[Tensor, Tensor]:
    """Return radius (at most 4.9) and angle of a 2-D normal sample (Box and Muller 1958), from 16 bits each."""
    uniform = ((bits >> 16).float() + 0.5) * 2**-16
    return torch.sqrt(-2 * torch.log(uniform)), (bits & 0xFFFF).float() * (2 * math.pi * 2**-16)


def hashed(counter: Tensor, first: Tensor | int, second: Tensor | int) -> Tensor:
    """Return a 32-bit hash, as int64, of a counter and two 32-bit keys, equal on every device.

    Constants 21f0aaad and 735a2d97 of C. Wellons' hash prospector; the second key enters between the rounds. Both
    multipliers are below 2³¹: products fit int64, so overflow never matters.
    """
    bits = (counter + first) & 0xFFFFFFFF
    bits = ((bits ^ (bits >> 16)) * 0x21F0AAAD) & 0xFFFFFFFF
    bits = ((bits ^ (bits >> 15)) + second) & 0xFFFFFFFF
    bits = (bits * 0x735A2D97) & 0xFFFFFFFF
    return bits ^ (bits >> 15)


# Each takes (n, 3, H, W) float32 tiles, RGB from 0 to 255, and (n, P, 1, 1) or (1, P, 1, 1) numbers; not clipped.
STEPS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mix": _mix, "tone": _tone, "noise": _noise, "stain": _stain, "hsv": _hsv, "lab": _lab
}  # fmt: skip


def stepped(kind: str, tiles: Tensor, numbers: Tensor) -> Tensor:
    """Return tiles after one operation, with (n, P) or (1, P) numbers, clipped to 0…255."""
    return STEPS[kind](tiles, numbers[:, :, None, None]).clamp_(0, 255)


def chained(tiles: Tensor, kinds: Sequence[str], numbers: Sequence[Tensor]) -> Tensor:
    """Return uint8 tiles as float32 after several operations, which all of them have."""
    found = tiles.to(torch.float32, memory_format=torch.contiguous_format)
    for kind, each in zip(kinds, numbers, strict=True):
        found = stepped(kind, found, each)
    return found
