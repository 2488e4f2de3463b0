"""Segment tissue in an overview: pure functions from (h, w, 3) uint8 RGB to (h, w) bool.

The rules use optical density (OD, base 10) relative to the glass of the same overview, so that a yellowish lamp or a
dim scan changes the reference and not the decision. Lengths and areas are in pixels of the overview.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.filters import threshold_otsu

from slideio_pipe.images.channels import channel_max, channel_mean, channel_min, channel_range

Rgb = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Plane = NDArray[np.float32]

# Otsu splits any input, also pure glass or pure tissue. Its threshold is therefore limited to the range between the
# signal of JPEG noise and dust on glass and that of pale fat and stroma.
OTSU_RANGE = (0.02, 0.03)
# About one and a half nuclei: averages JPEG noise, keeps a strand of collagen.
SMOOTH_UM = 12.0
# Gaps of up to twice this, half a fat cell, are closed; pen strokes and black padding are wider.
REACH_UM = 24.0
# A shadow (vignetting, scratched glass, coverslip edge) has no colour: brightness counts half.
GREY_WEIGHT = 0.5
# Fraction of the threshold that suffices beside tissue: fat walls of 0.015 OD next to stroma, glass below 0.01.
WEAK_PART = 0.4
# Dust is a region with less than this colour (OD range) in three quarters of it, and this darkness (mean OD) in half.
DUST_COLOUR, DUST_DARKNESS = 0.02, 0.1
# Saturation (of 1) above which a pixel is tissue for method "threshold": CLAM's presets use 8 of 255.
SATURATION_THRESHOLD = 8 / 255
# Glass is bright, at most slightly tinted, and smooth.
GLASS_MIN_VALUE, GLASS_MAX_CHROMA, GLASS_MAX_PINK, GLASS_MAX_STD = 180.0, 26.0, 9.0, 4.0
# Evenly tinted glass, as under yellowed mounting medium, used if there is none of the above: it fills this much of the
# overview and of its border, and hardly anything but padding is brighter.
TINTED_MAX_CHROMA, TINTED_MAX_PINK = 70.0, 25.0
TINTED_MIN_AREA, TINTED_MIN_BORDER, TINTED_MAX_BRIGHTER = 0.1, 0.25, 0.02
# Differences of up to this many grey levels from the commonest colour are noise.
TINTED_NOISE = 12.0
DEFAULT_GLASS = 245.0  # if a slide shows no glass
# White that is equal over 3x3 px was painted where nothing was scanned; after JPEG, a level may have 253.
PADDING_MIN_VALUE = 250
# Within this many pixels of padding, JPEG leaves ripples of nearly white.
PADDING_RIPPLE_PX = 8
# Minimum fraction of other glass in an overview for even white to count as padding.
MIN_GLASS_FRACTION = 0.002
# Largest standard deviation of OD on glass that counts as noise: 4.5 of 255 grey levels.
MAX_NOISE = 0.008
TEXTURE_CLIP = 0.05
# The largest fraction of an overview that a speck may cover.
MAX_SPECK_FRACTION = 0.05
# The largest fraction of all stained pixels that one colour of ink may cover.
MAX_INK_FRACTION = 0.7
# Darker pixels are the background of fluorescence, padding of a scanner, or ink.
BLACK = 16.0
# In brightfield the median of the pixels that are not black is above this: dense haematoxylin is about 110 of 255.
BRIGHTFIELD_MIN_MEDIAN = 80.0
# Fluorescence: signal above the background, of 255, of tissue: above camera noise, below dim autofluorescence.
FLUORESCENCE_RANGE = (6.0, 24.0)


class Segmentation(NamedTuple):
    """A mask and the details of its computation."""

    mask: Mask  # tissue, gaps closed; before specks and holes are removed
    excluded: Mask  # ink and padding: never tissue, also inside a hole
    details: dict[str, Any]  # JSON-able: "background", "used_threshold", "excluded_fraction"


def segment(
    rgb: Rgb, method: str, um_per_px: float, *, threshold: float | None = None, ignore_pen: bool = True
) -> Segmentation:
    """Return the pixels that are tissue, before specks and holes are handled.

    Parameters
    ----------
    rgb : (h, w, 3) uint8 RGB
    method : {"otsu", "threshold"}
        "otsu" compares optical density and texture with Otsu's threshold, limited to ``OTSU_RANGE``; "threshold"
        compares HSV saturation with a fixed number.
    um_per_px : float
    threshold : float, optional
        Replaces Otsu's threshold (OD), ``SATURATION_THRESHOLD`` (0 to 1), or that of fluorescence (grey levels).
    ignore_pen : bool
        Exclude ink.
    """
    # Minimum kernels: a pixel may be coarser than the kernel.
    smooth_px, reach_px = max(SMOOTH_UM / um_per_px, 0.7), max(REACH_UM / um_per_px, 1.0)
    excluded = np.zeros(rgb.shape[:2], dtype=bool)
    dark = has_dark_background(rgb)
    if dark:
        signal = fluorescence_signal(rgb, 2 * smooth_px)
        limit = bounded_otsu(signal, FLUORESCENCE_RANGE) if threshold is None else threshold
        mask: Mask = signal > limit
    else:
        glass = glass_colour(rgb)
        excluded |= dark_padding(rgb, reach_px) | white_padding(rgb, reach_px)
        if ignore_pen:
            excluded |= pen_marks(rgb, glass, reach_px)
        # Painted over, so that smoothing does not spread ink and black beyond the excluded area.
        clean = np.where(excluded[..., None], np.round(glass).astype(np.uint8), rgb)
        if method == "threshold":
            limit = SATURATION_THRESHOLD if threshold is None else threshold
            mask = saturation(gaussian(clean, smooth_px)) > limit
        else:
            mask, limit = _stained(clean, glass, smooth_px, threshold)
    details = {
        "background": "dark" if dark else "bright",
        "used_threshold": round(float(limit), 5),
        "excluded_fraction": round(float(excluded.mean()), 5),
    }
    return Segmentation(closed(mask, reach_px) & ~excluded, excluded, details)


def _stained(rgb: Rgb, glass: Plane, sigma_px: float, threshold: float | None) -> tuple[Mask, float]:
    """Return the pixels above the threshold with the connected pale ones, and the threshold."""
    colour, darkness, texture = stain_signals(rgb, glass, sigma_px)
    paleness = np.hypot(colour, texture)
    signal = np.hypot(paleness, GREY_WEIGHT * darkness)
    limit = bounded_otsu(signal, OTSU_RANGE) if threshold is None else threshold
    # Signal that exists only after smoothing is the blur of dense tissue: a pixel needs half of the signal unsmoothed.
    own = optical_density(gaussian(rgb, sigma_px / 3), glass)
    own_colour = channel_range(own)
    strong = (signal > limit) & (np.hypot(own_colour, GREY_WEIGHT * channel_mean(own)) > limit / 2)
    # The weak rule does not use darkness, with which it would follow a shadow over the glass, nor texture without
    # colour, as of bubbles and scratches.
    weak = (paleness > WEAK_PART * limit) & (np.minimum(colour, own_colour) > WEAK_PART * limit / 2)
    mask = connected_to(strong, weak)
    return _without_dust(mask, colour, darkness), limit


def _without_dust(mask: Mask, colour: Plane, darkness: Plane) -> Mask:
    """Drop regions that are neither coloured nor dark: dust, scratches, bubbles, the edge of the coverslip."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    area = np.maximum(np.bincount(labels.ravel(), minlength=count), 1)
    coloured = np.bincount(labels.ravel(), (colour > DUST_COLOUR).ravel(), minlength=count) / area
    dark = np.bincount(labels.ravel(), (darkness > DUST_DARKNESS).ravel(), minlength=count) / area
    keep = (coloured > 0.25) | (dark > 0.5)
    keep[0] = False
    return np.asarray(keep[labels], dtype=bool)


def without_specks_and_holes(found: Segmentation, min_area_px: float, max_hole_px: float) -> Mask:
    """Return the mask without small regions and small holes; excluded pixels stay excluded.

    A speck is at most ``MAX_SPECK_FRACTION`` of the overview, so that a slide of one tile keeps its tissue.
    """
    filled = without_holes(found.mask, max_hole_px) & ~found.excluded
    return without_specks(filled, min(min_area_px, MAX_SPECK_FRACTION * filled.size))


def bounded_otsu(signal: NDArray[np.float32], bounds: tuple[float, float]) -> float:
    """Return Otsu's threshold of the signal, limited to ``bounds``."""
    # Capped, because dark nuclei would pull Otsu up to the border between dark and pale tissue.
    capped = np.minimum(signal, 3 * bounds[1])
    if capped.size == 0 or capped.max() - capped.min() < bounds[0] / 10:  # Otsu needs two values
        return bounds[1]
    return float(np.clip(threshold_otsu(capped), *bounds))


def has_dark_background(rgb: Rgb) -> bool:
    """Return whether this is fluorescence (bright on black) and not brightfield, with or without black padding."""
    # Smoothed: bright nuclei are separate spots on black, brightfield is bright everywhere.
    value = gaussian(channel_mean(rgb), 3)
    lit = value[value > BLACK]
    return lit.size == 0 or float(np.median(lit)) < BRIGHTFIELD_MIN_MEDIAN


def fluorescence_signal(rgb: Rgb, sigma_px: float) -> Plane:
    """Return the smoothed brightest channel above the background: a dye is often stored as one pure colour."""
    value = gaussian(channel_max(rgb), sigma_px)
    return np.asarray(np.maximum(value - np.percentile(value, 1), 0), dtype=np.float32)


def gaussian(plane: NDArray[Any], sigma_px: float) -> Plane:
    """Return the plane smoothed by a Gaussian, edges reflected."""
    plane = np.ascontiguousarray(plane, dtype=np.float32)
    return np.asarray(cv2.GaussianBlur(plane, (0, 0), sigma_px, borderType=cv2.BORDER_REFLECT), dtype=np.float32)


def saturation(rgb: NDArray[Any]) -> Plane:
    """Return the HSV saturation, 0 to 1; black is 0."""
    high, low = channel_max(rgb).astype(np.float32), channel_min(rgb).astype(np.float32)
    return np.asarray(np.where(high > BLACK, (high - low) / np.maximum(high, 1), 0), dtype=np.float32)


def glass_colour(rgb: Rgb) -> Plane:
    """Return the (3,) RGB colour of empty glass, or a plausible white if the overview shows none."""
    value = channel_mean(rgb)
    spread = np.sqrt(np.maximum(gaussian(value**2, 1.5) - gaussian(value, 1.5) ** 2, 0))
    chroma = channel_range(rgb).astype(np.float32)
    bright = (value > GLASS_MIN_VALUE) & (value < 254.5)  # 255 exactly is padding painted by the scanner
    # Lamps are yellowish or bluish, stain is pink.
    pink = (rgb[..., 0].astype(np.float32) + rgb[..., 2]) / 2 - rgb[..., 1]
    glass = bright & (chroma < GLASS_MAX_CHROMA) & (pink < GLASS_MAX_PINK) & (spread < GLASS_MAX_STD)
    enough = max(8, MIN_GLASS_FRACTION * value.size)
    scanned = glass & ~(dilated(_is_even_white(rgb), PADDING_RIPPLE_PX) & (channel_min(rgb) >= PADDING_MIN_VALUE))
    # Glass that is itself even white, as of an overexposed or drawn slide, is used if there is no other.
    glass = scanned if np.count_nonzero(scanned) >= enough else glass
    if glass.mean() >= TINTED_MIN_AREA / 2:
        return _most_common(rgb, value, glass)
    # A few neutral pixels may also be between a tint and its complement, in tissue or in painted padding.
    pale = bright & (chroma < TINTED_MAX_CHROMA) & (pink < TINTED_MAX_PINK) & (spread < GLASS_MAX_STD)
    tinted = _tinted_glass(rgb, value, pale) if np.count_nonzero(pale) >= enough else None
    if tinted is not None:
        return tinted
    if np.count_nonzero(glass) < enough:
        return np.full(3, DEFAULT_GLASS, dtype=np.float32)
    return _most_common(rgb, value, glass)


def _most_common(rgb: Rgb, value: Plane, among: Mask) -> Plane:
    """Return the (3,) colour of the commonest brightness among some pixels."""
    # Shadows and pale tissue are darker than glass, and less common.
    counts = np.bincount(np.round(value[among]).astype(np.int64), minlength=256)
    mode = int(np.argmax(gaussian(counts[None, :], 1.5)[0]))
    close = among & (np.abs(value - mode) <= 3)
    return np.asarray(np.median(rgb[close], axis=0), dtype=np.float32)


def _tinted_glass(rgb: Rgb, value: Plane, pale: Mask) -> Plane | None:
    """Return the commonest colour of pale smooth pixels if it is that of glass: around tissue, and brighter.

    Light and shadow change its brightness, not its hue, so pixels are compared relative to their own brightness.
    """
    colour = _most_common(rgb, value, pale)
    expected = value[..., None] * (colour / colour.mean())
    alike = pale & (channel_max(np.abs(rgb - expected)) < TINTED_NOISE) & (value > 0.75 * colour.mean())
    border = np.concatenate([alike[0], alike[-1], alike[:, 0], alike[:, -1]])
    padding = dilated(_is_even_white(rgb), PADDING_RIPPLE_PX)
    brighter = (value > colour.mean() + TINTED_NOISE / 2) & ~alike & ~padding
    surrounds = alike.mean() >= TINTED_MIN_AREA and border.mean() >= TINTED_MIN_BORDER
    return colour if surrounds and brighter.mean() <= TINTED_MAX_BRIGHTER else None


def optical_density(rgb: NDArray[Any], glass: Plane) -> Plane:
    """Return ``-log10(rgb / glass)``, (h, w, 3) float32; 0 for pixels brighter than glass, such as painted padding."""
    return np.asarray(np.maximum(-np.log10(np.maximum(rgb, 1) / glass), 0), dtype=np.float32)


def stain_signals(rgb: Rgb, glass: Plane, sigma_px: float) -> tuple[Plane, Plane, Plane]:
    """Return the OD difference of a neighbourhood from glass in colour, in darkness and in texture.

    Colour is the range of the smoothed OD over the channels, darkness its mean. Texture is the local standard deviation
    of the mean OD, above that of the quietest tenth of the overview; it finds fat walls and stroma between nuclei.
    """
    density = optical_density(gaussian(rgb, sigma_px), glass)
    return channel_range(density), channel_mean(density), _texture(rgb, glass, 1.5 * sigma_px)


def _texture(rgb: Rgb, glass: Plane, sigma_px: float) -> Plane:
    # Clipped, because the border of dense tissue would give the glass beside it a wide halo.
    grey = np.minimum(channel_mean(optical_density(rgb, glass)), TEXTURE_CLIP)
    variance = np.maximum(gaussian(grey**2, sigma_px) - gaussian(grey, sigma_px) ** 2, 0)
    noise = min(float(np.percentile(variance, 10)), MAX_NOISE**2)
    return np.asarray(np.sqrt(np.maximum(variance - 1.5 * noise, 0)), dtype=np.float32)


def dark_padding(rgb: Rgb, radius_px: float) -> Mask:
    """Return black areas wider than 2 ``radius_px`` that touch the edge: not scanned."""
    return _touching_the_edge(_opened(_is_black(rgb), radius_px))


def white_padding(rgb: Rgb, radius_px: float) -> Mask:
    """Return evenly white areas wider than 2 ``radius_px`` that touch the edge: outside the strips of a scan."""
    return _touching_the_edge(_opened(_is_even_white(rgb), radius_px))


def _is_even_white(rgb: Rgb) -> Mask:
    """Return 3x3 px squares of one equal near-white, which does not occur on scanned glass because of noise."""
    kernel = np.ones((3, 3), dtype=np.uint8)
    even = channel_min(cv2.dilate(rgb, kernel) == cv2.erode(rgb, kernel)) & (channel_min(rgb) >= PADDING_MIN_VALUE)
    return np.asarray(cv2.dilate(even.astype(np.uint8), kernel), dtype=bool)


def _touching_the_edge(mask: Mask) -> Mask:
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    touching = np.zeros(count, dtype=bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        touching[edge] = True
    touching[0] = False
    return np.asarray(touching[labels], dtype=bool)


def _is_black(rgb: Rgb) -> Mask:
    high, low = channel_max(rgb).astype(np.float32), channel_min(rgb).astype(np.float32)
    # Neutral: in dense haematoxylin, DAB and melanin the channels' ratio stays above 1.5 (an OD range of 0.18).
    return np.asarray((high < BLACK) | ((high < 60) & (high < 1.5 * np.maximum(low, 1))), dtype=bool)


def pen_marks(rgb: Rgb, glass: Plane, radius_px: float) -> Mask:
    """Return red, green, blue and black ink with its pale rim; strokes must be wider than 2 ``radius_px``.

    Ink differs from stain in its OD in red, green and blue. Haematoxylin and eosin absorb green most, DAB absorbs blue
    most and red too (the vectors of Ruifrok & Johnston, Anal Quant Cytol Histol 23, 2001).
    """
    density = optical_density(gaussian(rgb, max(radius_px / 2, 0.5)), glass)
    red, green, blue = (np.asarray(density[..., band], dtype=np.float32) for band in range(3))
    stained = int(np.count_nonzero(channel_max(density) > OTSU_RANGE[1]))
    margin_px = 1.5 * radius_px + 2  # the pale edge of a stroke, and two pixels of resampling blur
    found = dilated(_opened(_is_black(rgb), radius_px), margin_px)
    for core, rim in (
        _red_ink(red, green, blue, radius_px),
        # Green ink: no tissue stain transmits green best.
        ((np.minimum(red, blue) > green + 0.15) & (red > 0.3), np.minimum(red, blue) > green + 0.02),
        # Blue ink absorbs far more red than green; haematoxylin absorbs both equally.
        (
            (red > 0.45) & (red > 1.3 * green) & (red > blue + 0.35),
            (red > 0.04) & (red > 1.3 * green) & (red > 1.5 * blue),
        ),
    ):
        ink = dilated(connected_to(_opened(core, radius_px), rim), margin_px)
        # A larger fraction is a special stain (trichrome, picrosirius red), not ink.
        if np.count_nonzero(ink) < MAX_INK_FRACTION * stained:
            found |= ink
    return found


def _red_ink(red: Plane, green: Plane, blue: Plane, radius_px: float) -> tuple[Mask, Mask]:
    """Return core and rim of ink that transmits red and absorbs blue like green; eosin absorbs half as much blue."""
    least = np.minimum(green, blue)
    core: Mask = (least > 0.45) & (red < 0.3 * green) & (blue > 0.85 * green)
    if _opened(core, radius_px).any():
        # With ink present, thin smears of it, mixed with stain, count too. In H&E without ink this rule accepts less
        # than one pixel in a thousand.
        core = core | ((least > 0.2) & (red < 0.2 * green) & (blue > 0.76 * green))
    return core, (least > 0.03) & (red < 0.5 * green) & (blue > 0.8 * green)


def connected_to(strong: Mask, weak: Mask) -> Mask:
    """Return the strong pixels and the weak ones connected to them (8-connected)."""
    count, labels = cv2.connectedComponents((strong | weak).astype(np.uint8), connectivity=8)
    keep = np.zeros(count, dtype=bool)
    keep[labels[strong]] = True
    return np.asarray(keep[labels], dtype=bool)


def disk(radius_px: float) -> NDArray[np.uint8]:
    """Return the pixels whose centre is at most ``radius_px`` from the centre pixel."""
    reach = int(radius_px)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return np.asarray(x * x + y * y <= radius_px * radius_px, dtype=np.uint8)


def dilated(mask: Mask, radius_px: float) -> Mask:
    """Return the mask dilated by a disk."""
    return np.asarray(cv2.dilate(mask.astype(np.uint8), disk(radius_px)), dtype=bool)


def _opened(mask: Mask, radius_px: float) -> Mask:
    return np.asarray(cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, disk(radius_px)), dtype=bool)


def closed(mask: Mask, radius_px: float) -> Mask:
    """Return the mask with gaps narrower than about 2 ``radius_px`` closed; the overview's edge is not a gap."""
    reach = int(radius_px)
    padded = np.pad(mask.astype(np.uint8), reach, mode="edge")
    result = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, disk(radius_px))
    return np.asarray(result[reach : reach + mask.shape[0], reach : reach + mask.shape[1]], dtype=bool)


def without_specks(mask: Mask, min_area_px: float) -> Mask:
    """Return the mask without regions (8-connected) smaller than ``min_area_px``."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= min_area_px
    keep[0] = False
    return np.asarray(keep[labels], dtype=bool)


def without_holes(mask: Mask, max_area_px: float) -> Mask:
    """Return the mask with enclosed gaps (4-connected) of up to ``max_area_px`` filled."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    fill = stats[:, cv2.CC_STAT_AREA] <= max_area_px
    fill[0] = False
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        fill[edge] = False  # touches the edge: not enclosed
    return np.asarray(mask | fill[labels], dtype=bool)
