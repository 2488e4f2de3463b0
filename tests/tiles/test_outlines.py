"""Outlines of masks: their areas, their validity, and filling, compared with an independent point-in-polygon test."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis.extra import numpy as hnp
from hypothesis_profiles import examples
from skimage.measure import points_in_poly

from slideio_pipe.tiles.outlines import mask_to_polygons, polygons_to_mask, signed_area

MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9))


@examples(60)
@given(MASKS)
def test_outlines_are_exact_and_valid(pixels):
    """For any pixels, areas agree, no ring touches itself, and the file reads back as the same mask."""
    polygons = mask_to_polygons(pixels)
    assert sum(signed_area(ring) for polygon in polygons for ring in polygon) == np.count_nonzero(pixels)
    for outer, *holes in polygons:
        assert signed_area(outer) > 0
        assert all(signed_area(hole) < 0 for hole in holes)
        assert all(len(np.unique(ring, axis=0)) == len(ring) for ring in (outer, *holes))
    assert (polygons_to_mask(polygons, pixels.shape[1], pixels.shape[0]) == pixels).all()


def test_filling_agrees_with_skimage():
    """Random star-shaped polygons cover the same pixels as an independent point-in-polygon test."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :50]
    centres = np.stack([x.ravel() + 0.5, y.ravel() + 0.5], axis=1)
    for _ in range(20):
        angle = np.sort(rng.uniform(0, 2 * np.pi, 12))
        ring = rng.uniform(5, 35, (12, 1)) * np.stack([np.cos(angle), np.sin(angle)], axis=1) + (25, 20)
        expected = points_in_poly(centres, ring).reshape(40, 50)
        assert (polygons_to_mask([[ring]], 50, 40) == expected).all()
