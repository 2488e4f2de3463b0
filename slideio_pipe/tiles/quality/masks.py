"""Where a slide has pen, folds, bubbles and no tissue: pure functions from (h, w, 3) uint8 RGB to (h, w) bool.

Like the tissue methods, they use optical density (OD, base 10) relative to the glass of the same overview. They are
written for brightfield; of fluorescence they return empty masks.
"""

from __future__ import annotations

import cv2
import numpy as np

from slideio_pipe.images.channels import channel_mean, channel_range
from slideio_pipe.tiles.tissue_methods import (
    REACH_UM,
    SMOOTH_UM,
    Mask,
    Plane,
    Rgb,
    closed,
    connected_to,
    gaussian,
    glass_colour,
    has_dark_background,
    optical_density,
    pen_marks,
    without_specks,
)

MASKS = ("pen", "fold", "bubble", "white")

# Glass: darker by less than this in the mean over the channels, and less coloured than the least tissue (OTSU_RANGE).
WHITE_DARKNESS, WHITE_COLOUR = 0.04, 0.03
# A fold is two or three layers of tissue, so its OD is a multiple of the slide's own (Beer-Lambert). Of eosin, which
# dense nuclei do not raise: the core has at least this multiple of the median of the tissue, the rest of the fold,
# connected to it, the second.
FOLD_CORE, FOLD_REST = 1.8, 1.5
# OD of eosin below which there is no tissue to compare with.
LEAST_EOSIN = 0.05
# OD of haematoxylin and of eosin in red, green and blue (Ruifrok & Johnston, Anal Quant Cytol Histol 23, 2001).
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
# A smaller piece is red blood cells, or a dense fibre: 50 µm × 50 µm.
FOLD_MIN_UM2 = 2500.0
# The rim of a bubble refracts light away: it is darker than both of its sides, by this OD, and grey: its OD differs
# between the channels by less than this part of its mean. It is thinner than twice the last.
RIM_DARKNESS, RIM_COLOUR, RIM_REACH_UM = 0.06, 0.45, 40.0
# Shorter pieces are nuclei and dust, and a rim covers at most this part of its hull.
RIM_PIECE_UM, RIM_OF_HULL = 120.0, 0.6
# A bubble is at least this large: 100 µm × 100 µm.
BUBBLE_MIN_UM2 = 1e4
# A larger outline is the edge of the coverslip: 3 mm × 3 mm.
BUBBLE_MAX_UM2 = 1e7


def quality_masks(rgb: Rgb, um_per_px: float) -> dict[str, Mask]:
    """Return the masks of ``MASKS`` in an overview.

    Parameters
    ----------
    rgb : (h, w, 3) uint8 RGB
    um_per_px : float
        About ``MASK_MPP``.
    """
    if has_dark_background(rgb):
        return {name: np.zeros(rgb.shape[:2], bool) for name in MASKS}
    glass, reach_px = glass_colour(rgb), max(REACH_UM / um_per_px, 1.0)
    pen, density = pen_marks(rgb, glass, reach_px), _density(rgb, glass)
    colour, darkness = channel_range(density), channel_mean(density)
    return {
        "pen": pen,
        "fold": folds(density, um_per_px) & ~pen,
        "bubble": bubbles(colour, darkness, um_per_px) & ~pen,
        "white": (darkness < WHITE_DARKNESS) & (colour < WHITE_COLOUR) & ~pen,
    }


def _density(rgb: Rgb, glass: Plane) -> Plane:
    """Return ``optical_density`` of each pixel, from a table of the 256 grey levels of each channel."""
    table = optical_density(np.arange(256, dtype=np.float32)[None, :, None].repeat(3, axis=2), glass)
    return np.asarray(cv2.LUT(rgb, table), dtype=np.float32)


def folds(density: Plane, um_per_px: float) -> Mask:
    """Return places with the eosin of a second layer of tissue; for H&E.

    After Kothari, Phan & Wang (J Pathol Inform 4:22, 2013), who find folds as dense pixels connected to denser ones,
    with thresholds of the slide itself; here in the optical density of eosin, which doubles with the layers.
    """
    unmixed = cv2.transform(density, np.linalg.pinv(STAINS).T[1:].astype(np.float32))
    eosin = gaussian(unmixed, max(SMOOTH_UM / um_per_px, 0.7))
    tissue = eosin > LEAST_EOSIN
    if np.count_nonzero(tissue) < 64:
        return np.zeros(eosin.shape, bool)
    usual = float(np.median(eosin[tissue]))
    core = without_specks(eosin > FOLD_CORE * usual, FOLD_MIN_UM2 / um_per_px**2)
    return connected_to(core, eosin > FOLD_REST * usual) if core.any() else core


def bubbles(colour: Plane, darkness: Plane, um_per_px: float) -> Mask:
    """Return thin grey rims, darker than both of their sides, and what they enclose: air under the coverslip.

    A rim may be open: its convex hull is the bubble. Hairs and fibres that curve are found as well.
    """
    side = 2 * max(1, round(RIM_REACH_UM / um_per_px)) + 1
    wide = cv2.morphologyEx(darkness, cv2.MORPH_OPEN, np.ones((side, side), np.uint8))
    rim = (darkness - wide > RIM_DARKNESS) & (colour < RIM_COLOUR * darkness)
    rim = closed(_long_pieces(rim, RIM_PIECE_UM / um_per_px), max(REACH_UM / um_per_px, 1.0))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(rim.astype(np.uint8), connectivity=8)
    least, most = BUBBLE_MIN_UM2 / um_per_px**2, BUBBLE_MAX_UM2 / um_per_px**2
    found = np.zeros(rim.shape, np.uint8)
    for number in range(1, count):
        x, y, width, height, area = stats[number]
        piece = (labels[y : y + height, x : x + width] == number).astype(np.uint8)
        hull = cv2.convexHull(cv2.findNonZero(piece)) + np.array([x, y])
        if least <= cv2.contourArea(hull) <= most and area < RIM_OF_HULL * cv2.contourArea(hull):
            cv2.fillConvexPoly(found, hull, 1)
    return np.asarray(found, dtype=bool)


def _long_pieces(mask: Mask, least_px: float) -> Mask:
    """Return the regions (8-connected) whose bounding box has at least this diagonal."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = np.hypot(stats[:, cv2.CC_STAT_WIDTH], stats[:, cv2.CC_STAT_HEIGHT]) >= least_px
    keep[0] = False
    return np.asarray(keep[labels], dtype=bool)
