"""Points and boxes in rectangles, against comparisons of all of them with all rectangles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slideio_pipe.tiles.marks.place_index import BoxIndex, PlaceIndex


def _spread(rng: np.random.Generator, count: int, kind: str) -> np.ndarray:
    if kind == "even":
        return rng.uniform(-500, 3000, (count, 2))
    if kind == "grid":  # many on the edges of rectangles, and many at one place
        return rng.integers(0, 12, (count, 2)) * 50.0
    return rng.normal(0, 20, (count, 2)) + rng.integers(0, 4, (count, 1)) * 1e6  # clusters far apart


@pytest.mark.parametrize("kind", ["even", "grid", "clusters"])
@given(count=st.integers(0, 400), rectangles=st.integers(0, 40), seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_points_in_rectangles(kind: str, count: int, rectangles: int, seed: int) -> None:
    """Each point in each rectangle once, in ascending order, edges included."""
    rng = np.random.default_rng(seed)
    points = _spread(rng, count, kind)
    low = _spread(rng, rectangles, kind)
    high = low + rng.choice([0.0, 50.0, 300.0, 1e7], (rectangles, 1))
    inside = (points >= low[:, None]) & (points <= high[:, None])
    found = [np.concatenate(each) for each in zip(*PlaceIndex(points).runs(low, high), strict=True)] or [[], []]
    assert np.array_equal(found, np.nonzero(inside.all(axis=2)))


@given(count=st.integers(0, 300), rectangles=st.integers(1, 40), seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_boxes_that_overlap_rectangles(count: int, rectangles: int, seed: int) -> None:
    """Also large boxes whose centre is far from the rectangle; each candidate once, in ascending order."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 60, (count, 2)) * 10.0
    boxes = np.concatenate([corner, corner + rng.choice([10.0, 20.0, 5000.0], (count, 2))], axis=1)
    low = rng.integers(0, 60, (rectangles, 2)) * 10.0
    high = low + 30
    overlap = (boxes[:, :2] < high[:, None]) & (boxes[:, 2:] > low[:, None])
    runs = BoxIndex(boxes).runs(rectangles, lambda reach: (low - reach, high + reach))
    rectangle, box = (np.concatenate(each) for each in zip(*runs, strict=True))
    numbers = rectangle * max(1, count) + box
    assert (np.diff(numbers) > 0).all()
    assert np.isin(np.flatnonzero(overlap.all(axis=2)), numbers).all()


def test_more_rectangles_than_one_run() -> None:
    """Numbers of rectangles continue from run to run."""
    points = np.arange(3000)[:, None] + np.array([0.5, 0.5])
    low = np.stack([np.arange(3000), np.arange(3000)], axis=1).astype(float)
    rectangle, point = (np.concatenate(each) for each in zip(*PlaceIndex(points).runs(low, low + 1), strict=True))
    assert np.array_equal(rectangle, np.arange(3000))
    assert np.array_equal(point, np.arange(3000))
