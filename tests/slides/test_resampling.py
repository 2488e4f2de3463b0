"""Sampling one piece of pixels through an affine: both executors against float64, OpenCV's against its plain call."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from slideio_pipe.geometry import Affine
from slideio_pipe.slides import sampling
from slideio_pipe.slides.resampling import shrink, warp

NOISE = np.random.default_rng(0).integers(0, 256, (301, 257, 3), np.uint8)
HALF = Affine.translation(0.5, 0.5)


def drawn_affine(rng: np.random.Generator) -> Affine:
    """Return a turn, a shear, a scale and a move, partly outside of ``NOISE``."""
    turn = rng.uniform(-np.pi, np.pi)
    linear = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * rng.uniform(0.3, 3)
    linear = linear @ np.array([[1, rng.uniform(-0.3, 0.3)], [0, 1]])
    x, y = rng.uniform(-80, 250, 2)
    return Affine(linear[0, 0], linear[0, 1], x, linear[1, 0], linear[1, 1], y)


def in_float64(pixels: np.ndarray, affine: Affine, width: int, height: int, outside: int) -> np.ndarray:
    """Return (height, width, 3) float64, bilinear, by scipy."""
    xs, ys = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    places = affine.apply(np.stack([xs, ys], axis=-1)) - 0.5
    framed = np.pad(pixels, ((2, 2), (2, 2), (0, 0)), constant_values=outside).astype(np.float64)
    at = np.stack([places[..., 1] + 2, places[..., 0] + 2])
    planes = [map_coordinates(framed[..., c], at, order=1, cval=outside) for c in range(3)]
    return np.stack(planes, axis=-1)


@pytest.mark.parametrize("number", range(40))
def test_a_warp_is_bilinear(executor: str, number: int) -> None:
    """Compiled: within a level of float64 everywhere. OpenCV: as far as 1/64 of a pixel is between noise."""
    rng = np.random.default_rng(number)
    affine = drawn_affine(rng)
    height, width = rng.integers(1, 300, 2).tolist()
    if number % 8 == 0:
        width += 1100  # more than a row of the compiled programs
    pixels = np.ascontiguousarray(NOISE[: rng.integers(1, 302), : rng.integers(1, 258)])
    outside = int(rng.choice([0, 255]))
    found = np.empty((height, width, 3), np.uint8)
    warp(pixels, affine, found, outside=outside)
    difference = np.abs(found - in_float64(pixels, affine, width, height, outside))
    assert difference.max() <= (0.6 if executor == "compiled" else 10)


@pytest.mark.parametrize("number", range(40))
def test_opencv_with_four_channels_equals_three(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the byte."""
    monkeypatch.setattr("slideio_pipe.compiled.library._in_use", False)
    rng = np.random.default_rng(number)
    affine = drawn_affine(rng)
    height, width = rng.integers(1, 300, 2).tolist()
    found = np.empty((height, width, 3), np.uint8)
    warp(NOISE, affine, found, outside=0)
    matrix = (HALF.inverse() @ affine @ HALF).matrix()[:2]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    assert np.array_equal(found, cv2.warpAffine(NOISE, matrix, (width, height), flags=flags))


@pytest.mark.parametrize("linear", [(1, 0, 0, 1), (-1, 0, 0, 1), (0, 1, -1, 0), (0, 1, 1, 0)])
def test_whole_pixels_are_copied(executor: str, linear: tuple[int, int, int, int]) -> None:
    """Shifts, flips and quarter turns copy bytes."""
    a, b, d, e = linear
    corner = min(0, 40 * a) + min(0, 40 * b), min(0, 40 * d) + min(0, 40 * e)
    affine = Affine(a, b, 20 - corner[0], d, e, 30 - corner[1])
    found = np.empty((40, 40, 3), np.uint8)
    warp(NOISE, affine, found)
    source = NOISE[30:70, 20:60]
    expected = {(1, 0, 0, 1): source, (-1, 0, 0, 1): source[:, ::-1], (0, 1, 1, 0): source.transpose(1, 0, 2)}
    turned = np.rot90(source, -1)
    assert np.array_equal(found, expected.get(linear, turned))


@pytest.mark.parametrize("sigma", [0.3, 0.5, 0.9, 1.7, 2.5])
def test_a_blur_is_a_gaussian(executor: str, sigma: float) -> None:
    """Within two levels of float64, whose kernel ends at three standard deviations as well."""
    affine = Affine.translation(20.25, 30.5)
    found = np.empty((150, 140, 3), np.uint8)
    warp(NOISE, affine, found, sigma=sigma)
    blurred = np.stack(
        [gaussian_filter(NOISE[..., c].astype(np.float64), sigma, radius=round(3 * sigma)) for c in range(3)], axis=-1
    )
    across = blurred[:, 20:160] * 0.75 + blurred[:, 21:161] * 0.25
    expected = (across[30:180] + across[31:181]) / 2
    assert np.abs(found - expected).max() <= 2


def test_glass_stays_white(executor: str) -> None:
    """Any affine, any blur: weights sum to one exactly."""
    rng = np.random.default_rng(1)
    white = np.full((90, 80, 3), 255, np.uint8)
    for sigma in (0.0, 0.4, 1.1, 2.0):
        found = np.empty((64, 64, 3), np.uint8)
        warp(white, drawn_affine(rng), found, sigma=sigma)
        assert found.min() == 255


def test_a_blur_that_is_left_out_would_change_nothing() -> None:
    """And a little more blur would: the limit is not needlessly low."""
    blurred = cv2.GaussianBlur(NOISE, (0, 0), sampling.NO_BLUR, borderType=cv2.BORDER_REPLICATE)
    assert np.array_equal(blurred, NOISE)
    blurred = cv2.GaussianBlur(NOISE, (0, 0), sampling.NO_BLUR + 0.01, borderType=cv2.BORDER_REPLICATE)
    assert not np.array_equal(blurred, NOISE)


SIZES = pytest.mark.parametrize("size", [(256, 256), (40, 31), (1, 1), (257, 301), (600, 500), (1300, 7)])


@SIZES
@pytest.mark.parametrize("box", [(0.0, 0.0, 257.0, 301.0), (13.37, 20.5, 200.01, 288.8)])
def test_a_shrink_is_pillows(box: tuple[float, float, float, float], size: tuple[int, int], executor: str) -> None:
    """Whole pictures and fractional boxes: a level at most, and in few values; enlarged as well."""
    found = np.empty((size[1], size[0], 3), np.uint8)
    shrink(NOISE, box, found)
    # Pillow rounds after the first of two steps, and chooses by itself which axis that is.
    across = Image.fromarray(NOISE).resize((size[0], 301), Image.Resampling.BILINEAR, box=(box[0], 0, box[2], 301))
    rows_last = across.resize(size, Image.Resampling.BILINEAR, box=(0, box[1], size[0], box[3]))
    once = Image.fromarray(NOISE).resize(size, Image.Resampling.BILINEAR, box=box)
    differences = [np.abs(found - np.asarray(expected).astype(int)) for expected in (rows_last, once)]
    assert min(difference.max() for difference in differences) <= 1
    assert min((difference > 0).mean() for difference in differences) < 0.03


def triangle_weights(start: float, step: float, count: int, size: int) -> np.ndarray:
    """Return (count, size) float64: what each pixel of an axis is made of, cropped and normalised at its ends."""
    reach = max(1.0, step)
    centres = start + (np.arange(count) + 0.5) * step
    weights = np.maximum(0, 1 - np.abs(np.arange(size) + 0.5 - centres[:, None]) / reach)
    return weights / weights.sum(axis=1, keepdims=True)


@SIZES
@pytest.mark.parametrize("box", [(-0.4, 100.2, 256.9, 301.5), (0.5, -0.5, 257.5, 300.5), (30.1, 40.9, 33.3, 299.0)])
def test_a_shrink_is_a_triangle_filter(box: tuple[float, float, float, float], size: tuple[int, int]) -> None:
    """In float64, up to half a pixel beyond the edges; it rounds twice."""
    found = np.empty((size[1], size[0], 3), np.uint8)
    shrink(NOISE, box, found)
    across = triangle_weights(box[0], (box[2] - box[0]) / size[0], size[0], 257)
    down = triangle_weights(box[1], (box[3] - box[1]) / size[1], size[1], 301)
    expected = np.einsum("ys,xt,stc->yxc", down, across, NOISE.astype(np.float64), optimize=True)
    assert np.abs(found - expected).max() <= 1.05


def test_white_shrinks_to_white(executor: str) -> None:
    """Weights sum to one exactly."""
    white = np.full((90, 80, 3), 255, np.uint8)
    for side in (7, 33, 79, 200):
        shrink(white, (0.3, 1.7, 78.1, 88.2), found := np.empty((side, side, 3), np.uint8))
        assert found.min() == 255
