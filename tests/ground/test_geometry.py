"""Frames, rounding and the choice of a level, compared with naive arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from slideio_pipe.geometry import (
    SAME_RESOLUTION,
    Affine,
    LevelChoice,
    Mpp,
    Pyramid,
    Rect,
    Size,
    magnification_to_mpp,
    round_half_up,
)

COORDINATES = st.floats(-1e6, 1e6, allow_nan=False)
FACTORS = st.floats(0.01, 100)
WHOLE = st.integers(-1_000_000, 1_000_000)


@st.composite
def affines(draw: st.DrawFn) -> Affine:
    a, b, d, e = (draw(st.floats(-20, 20)) for _ in range(4))
    assume(abs(a * e - b * d) > 0.1)
    return Affine(a, b, draw(COORDINATES), d, e, draw(COORDINATES))


@given(affines(), COORDINATES, COORDINATES)
def test_an_affine_and_its_inverse_cancel(affine: Affine, x: float, y: float) -> None:
    """To a fraction of a pixel in a slide of a million pixels."""
    assert np.allclose(affine.inverse().apply(affine.apply([x, y])), [x, y], atol=1e-3)


@given(affines(), affines(), COORDINATES, COORDINATES)
def test_a_product_applies_the_right_factor_first(second: Affine, first: Affine, x: float, y: float) -> None:
    """``second @ first`` is first, then second."""
    one_by_one = second.apply(first.apply([x, y]))
    assert np.allclose((second @ first).apply([x, y]), one_by_one, rtol=1e-9, atol=1e-3)


@given(affines())
def test_affines_hold_python_floats(affine: Affine) -> None:
    """Also products and inverses, so that they print and store as numbers."""
    for derived in (
        affine @ affine,
        affine.inverse(),
        Affine.from_tuple(np.arange(6.0)),
        Affine.scaling(np.int64(2), 3),
    ):
        assert all(type(value) is float for value in derived.as_tuple())
    assert Affine.from_tuple(affine.as_tuple()) == affine


@given(affines(), affines(), COORDINATES, COORDINATES)
def test_the_matrix_is_that_of_homogeneous_coordinates(one: Affine, other: Affine, x: float, y: float) -> None:
    """Products and inverses equal numpy's: the last row is (0, 0, 1)."""
    assert np.allclose(one.matrix() @ [x, y, 1], [*one.apply([x, y]), 1], rtol=1e-9, atol=1e-3)
    assert np.allclose(one.matrix() @ other.matrix(), (one @ other).matrix(), rtol=1e-9, atol=1e-3)
    assert np.allclose(np.linalg.svd(one.matrix()[:2, :2])[1].prod(), one.mean_stretch() ** 2)


def test_an_affine_maps_arrays_of_points() -> None:
    """(..., 2) to (..., 2), each point on its own."""
    affine = Affine(1, 2, 3, 4, 5, 6)
    points = np.arange(24.0).reshape(3, 4, 2)
    mapped = affine.apply(points)
    assert mapped.shape == points.shape
    for place in np.ndindex(3, 4):
        x, y = points[place]
        assert mapped[place].tolist() == [x + 2 * y + 3, 4 * x + 5 * y + 6]


@given(FACTORS, FACTORS, st.floats(-math.pi, math.pi))
def test_scale_is_the_length_of_unit_steps(sx: float, sy: float, angle: float) -> None:
    """A rotation does not change lengths."""
    turn = Affine(math.cos(angle), -math.sin(angle), 5, math.sin(angle), math.cos(angle), 7)
    assert (turn @ Affine.scaling(sx, sy)).scale() == pytest.approx((sx, sy))


@given(st.integers(-4_000_000, 4_000_000), WHOLE)
def test_rounding_commutes_with_whole_shifts(quarters: int, shift: int) -> None:
    """For halves and negative numbers, too."""
    value = quarters / 4
    assert round_half_up(value + shift) == round_half_up(value) + shift


@given(st.integers(-4_000_000, 4_000_000), st.sampled_from([2, 4, 8, 16]))
def test_rounding_is_floor_of_value_plus_a_half(numerator: int, denominator: int) -> None:
    """Compared with exact arithmetic."""
    expected = math.floor(Fraction(numerator, denominator) + Fraction(1, 2))
    rounded = round_half_up([numerator / denominator])
    assert rounded.dtype == np.int64
    assert rounded.tolist() == [expected]


RECTS = st.builds(Rect, st.integers(-9, 9), st.integers(-9, 9), st.integers(0, 9), st.integers(0, 9))


@given(RECTS, RECTS)
def test_rect_intersection_is_the_set_of_common_pixels(one: Rect, other: Rect) -> None:
    """Pixel by pixel, in both orders."""

    def pixels(r: Rect) -> set[tuple[int, int]]:
        return {(x, y) for x in range(r.x, r.x + r.width) for y in range(r.y, r.y + r.height)}

    common = one.intersect(other)
    assert pixels(common) == pixels(one) & pixels(other)
    assert common.width >= 0
    assert common.height >= 0
    assert pixels(other.intersect(one)) == pixels(common)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.float64(0.5), (0.5, 0.5), [0.5, 0.5], np.array([0.5, 0.5])])
def test_mpp_takes_any_number_or_pair(value: object) -> None:
    """Also numpy's numbers."""
    assert Mpp.of(value) == Mpp(0.5, 0.5)  # type: ignore[arg-type]
    assert Mpp.parse(value) == Mpp(0.5, 0.5)


@pytest.mark.parametrize(
    "value", [0, -1, math.nan, math.inf, "x", "0.5", None, (1,), (1, 2, 3), (0.5, 0), [0.5, "a"], {}]
)
def test_an_invalid_mpp_is_none(value: object) -> None:
    """Everything but a positive resolution."""
    assert Mpp.parse(value) is None


def test_the_mean_mpp_has_the_pixel_area() -> None:
    """A 0.2 × 0.8 µm pixel has the area of a 0.4 µm square."""
    assert Mpp(0.2, 0.8).mean == pytest.approx(0.4)


@pytest.mark.parametrize(("power", "mpp"), [(40, 0.25), (20, 0.5), (10, 1.0), (1.25, 8.0)])
def test_magnification_convention(power: float, mpp: float) -> None:
    """40× is 0.25 µm, by convention."""
    assert magnification_to_mpp(power) == mpp


@st.composite
def pyramids(draw: st.DrawFn) -> Pyramid:
    width, height = draw(st.integers(64, 100_000)), draw(st.integers(64, 100_000))
    factors = sorted(draw(st.sets(st.sampled_from([2, 3, 4, 8, 16, 32]), max_size=4)))
    return Pyramid(tuple(Size(max(1, width // f), max(1, height // f)) for f in [1, *factors]))


@given(pyramids())
def test_downsamples_come_from_the_sizes_per_axis(pyramid: Pyramid) -> None:
    """Width and height are divided separately, never ``2**level``."""
    for size, (dx, dy) in zip(pyramid.levels, pyramid.downsamples, strict=True):
        assert dx * size.width == pytest.approx(pyramid.levels[0].width)
        assert dy * size.height == pytest.approx(pyramid.levels[0].height)


@given(pyramids(), st.floats(0.1, 100), st.floats(0.5, 2))
def test_the_coarsest_level_that_is_fine_enough_is_chosen(pyramid: Pyramid, downsample: float, ratio: float) -> None:
    """No coarser one is; level pixels × shrink is the requested downsample, unless within 2 %."""
    wanted = (downsample, downsample * ratio)
    choice = pyramid.choose(wanted)

    def fine_enough(level: int) -> bool:
        dx, dy = pyramid.downsamples[level]
        return dx <= wanted[0] * (1 + SAME_RESOLUTION) and dy <= wanted[1] * (1 + SAME_RESOLUTION)

    good = [level for level in range(len(pyramid.levels)) if fine_enough(level)]
    assert choice.level == (max(good) if good else 0)
    exact = tuple(w / d for w, d in zip(wanted, pyramid.downsamples[choice.level], strict=True))
    if choice.resampled:
        snapped = choice.shrink in [(n, n) for n in (2.0, 4.0, 8.0)]
        assert choice.shrink == pytest.approx(exact, rel=SAME_RESOLUTION if snapped else 1e-6)
    else:
        assert all(abs(s - 1) <= SAME_RESOLUTION for s in exact)


@pytest.mark.parametrize(
    ("downsample", "expected"),
    [
        (1.0, LevelChoice(0, (1.0, 1.0))),
        (1.019, LevelChoice(0, (1.0, 1.0))),
        (0.981, LevelChoice(0, (1.0, 1.0))),
        (1.03, LevelChoice(0, (1.03, 1.03))),
        (0.5, LevelChoice(0, (0.5, 0.5))),
        (3.9, LevelChoice(0, (3.9, 3.9))),
        (3.93, LevelChoice(1, (1.0, 1.0))),
        (4.0, LevelChoice(1, (1.0, 1.0))),
        (8.0, LevelChoice(1, (2.0, 2.0))),
        (15.9, LevelChoice(2, (1.0, 1.0))),
        (64.0, LevelChoice(2, (4.0, 4.0))),
    ],
)
def test_two_percent_is_the_same_resolution(downsample: float, expected: LevelChoice) -> None:
    """Levels 1, 4, 16: within 2 % nothing is resampled, beyond it is."""
    pyramid = Pyramid((Size(16_000, 16_000), Size(4_000, 4_000), Size(1_000, 1_000)))
    assert pyramid.choose((downsample, downsample)) == expected


def test_one_axis_outside_two_percent_resamples_both() -> None:
    """Pixels that are not square become square."""
    choice = Pyramid((Size(1000, 1000),)).choose((1.0, 2.0))
    assert choice == LevelChoice(0, (1.0, 2.0))
    assert choice.resampled


@pytest.mark.parametrize(
    ("wanted", "shrink"), [(1.97, 2.0), (2.03, 2.0), (3.93, 4.0), (8.1, 8.0), (1.9, 1.9), (6.0, 6.0)]
)
def test_a_shrink_near_2_4_or_8_is_rounded_to_it(wanted: float, shrink: float) -> None:
    """20× from a 40× scan is a half, for 0.25 and for 0.2528 µm."""
    assert Pyramid((Size(1000, 800),)).choose((wanted, wanted)).shrink == (shrink, shrink)


@pytest.mark.parametrize("affine", [Affine(a=0), Affine(e=0), Affine(2, 4, 1, 1, 2, 5), Affine.scaling(0, 0)])
def test_a_singular_affine_has_no_inverse(affine: Affine) -> None:
    """numpy refuses the same matrix."""
    with pytest.raises(np.linalg.LinAlgError):
        np.linalg.inv(affine.matrix())
    with pytest.raises(np.linalg.LinAlgError, match="singular"):
        affine.inverse()
