"""The steps of sampling against the plain calls of OpenCV that they replace."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from slideio_pipe.geometry import Affine
from slideio_pipe.slides import sampling

NOISE = np.random.default_rng(0).integers(0, 256, (301, 257, 3), np.uint8)


@pytest.mark.parametrize("number", range(40))
def test_a_warp_equals_that_of_three_channels(number: int) -> None:
    """Turned, sheared, scaled and moved, partly outside, of any size; to the byte."""
    rng = np.random.default_rng(number)
    turn = rng.uniform(-np.pi, np.pi)
    linear = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * rng.uniform(0.3, 3)
    linear = linear @ np.array([[1, rng.uniform(-0.3, 0.3)], [0, 1]])
    moved = rng.uniform(-80, 250, 2)
    affine = Affine(linear[0, 0], linear[0, 1], moved[0], linear[1, 0], linear[1, 1], moved[1])
    height, width = rng.integers(1, 300, 2).tolist()
    pixels = np.ascontiguousarray(NOISE[: rng.integers(1, 302), : rng.integers(1, 258)])
    outside = int(rng.choice([0, 255]))
    found = np.empty((height, width, 3), np.uint8)
    sampling._warp(pixels, affine, found, outside)
    flags, border = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, (outside,) * 3
    expected = cv2.warpAffine(
        pixels, affine.matrix()[:2], (width, height), flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=border
    )
    assert np.array_equal(found, expected)


def test_a_blur_that_is_left_out_would_change_nothing() -> None:
    """And a little more blur would: the limit is not needlessly low."""
    blurred = cv2.GaussianBlur(NOISE, (0, 0), sampling._NO_BLUR, borderType=cv2.BORDER_REPLICATE)
    assert np.array_equal(blurred, NOISE)
    blurred = cv2.GaussianBlur(NOISE, (0, 0), sampling._NO_BLUR + 0.01, borderType=cv2.BORDER_REPLICATE)
    assert not np.array_equal(blurred, NOISE)
