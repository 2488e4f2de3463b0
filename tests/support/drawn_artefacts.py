"""Artefacts of known places, drawn on generated tissue: a fold, a bubble, pen and blur."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Rgb = NDArray[np.uint8]
Mask = NDArray[np.bool_]
GLASS = 243.0


def folded(rgb: Rgb, where: Mask) -> Rgb:
    """Return the picture with a second layer of tissue: the light of both layers is multiplied (Beer-Lambert)."""
    second = np.roll(rgb, (17, 29), (0, 1)).astype(float) / GLASS
    return np.where(where[..., None], rgb * second, rgb).clip(0, 255).astype(np.uint8)


def with_bubble(rgb: Rgb, centre: tuple[float, float], radius: float, rim: float) -> tuple[Rgb, Mask]:
    """Return the picture with an air bubble: a dark grey rim, and paler and blurred inside."""
    y, x = np.mgrid[: rgb.shape[0], : rgb.shape[1]]
    distance = np.hypot(x - centre[0], y - centre[1])
    inside = distance < radius
    paler = cv2.GaussianBlur(rgb, (0, 0), 2.0) * 0.9 + 0.1 * GLASS
    out = np.where(inside[..., None], paler, rgb.astype(float))
    weight = 0.65 * np.exp(-(((distance - radius) / rim) ** 2))[..., None]
    grey = 0.35 * out.mean(axis=-1, keepdims=True)
    return (out * (1 - weight) + grey * weight).clip(0, 255).astype(np.uint8), inside


def with_pen(rgb: Rgb, points: list[tuple[float, float]], width: int, colour=(30, 60, 190)) -> tuple[Rgb, Mask]:
    """Return the picture with a stroke of ink."""
    image, mask = Image.fromarray(rgb), Image.new("L", rgb.shape[1::-1])
    ImageDraw.Draw(image).line(points, fill=colour, width=width)
    ImageDraw.Draw(mask).line(points, fill=255, width=width)
    return np.asarray(image), np.asarray(mask) > 0
