"""Tissue compared with independent references: generated truth, a colour rule for ink, and glass."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage import morphology

from slideio_pipe.slides.slide import open_slide
from slideio_pipe.tiles import tissue_methods as seg
from slideio_pipe.tiles.find_tissue import find_tissue

H_AND_E = (196, 120, 172)
PALE = (233, 222, 230)
BLUE_COUNTERSTAIN = (196, 208, 222)
DAB = (150, 110, 80)
INKS = {"red": (205, 20, 25), "green": (35, 140, 70), "blue": (30, 60, 175), "black": (24, 24, 27)}
GLASS = (241, 242, 243)


def jpeg(rgb: np.ndarray, quality: int = 80) -> np.ndarray:
    """Return the pixels after a JPEG round trip, as a scanner stores them."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def glass(shape=(300, 400), colour=GLASS, noise=3.0, vignetting=0.0, seed=0) -> np.ndarray:
    """Return empty glass with noise and a radial shadow, through JPEG."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    radius = ((x / shape[1] - 0.5) ** 2 + (y / shape[0] - 0.5) ** 2) / 0.5
    light = np.array(colour) * (1 - vignetting * radius)[..., None]
    noisy = light + np.random.default_rng(seed).normal(0, noise, (*shape, 3))
    return jpeg(np.clip(noisy, 0, 255).astype(np.uint8))


def with_tissue(rgb: np.ndarray, colour, seed=1) -> tuple[np.ndarray, np.ndarray]:
    """Return the image with an ellipse of textured tissue, and its mask."""
    where = np.zeros(rgb.shape[:2], dtype=np.uint8)
    cv2.ellipse(where, (200, 150), (110, 80), 20, 0, 360, 1, -1)
    texture = 1 + 0.05 * np.random.default_rng(seed).normal(size=(*rgb.shape[:2], 1))
    stained = np.clip(np.array(colour) * texture, 0, 255)
    return jpeg(np.where(where[..., None] > 0, stained, rgb).astype(np.uint8)), where > 0


def tissue(rgb: np.ndarray, method: str = "otsu", **options) -> np.ndarray:
    """Return the mask at 8 µm per pixel, without specks and holes."""
    return seg.without_specks_and_holes(seg.segment(rgb, method, 8.0, **options), 256, 256)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return np.count_nonzero(one & other) / np.count_nonzero(one | other)


def flattened(path: Path) -> np.ndarray:
    picture = Image.open(path).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    return np.asarray(white.convert("RGB"))


@pytest.mark.parametrize("noise", [0, 2, 5])
@pytest.mark.parametrize("vignetting", [0, 0.1, 0.2])
def test_pure_glass_is_empty(noise, vignetting):
    """Otsu's threshold would split noise in two."""
    assert not tissue(glass(noise=noise, vignetting=vignetting)).any()


@pytest.mark.parametrize("colour", [(255, 255, 255), (200, 200, 202), (240, 235, 222), (226, 224, 235)])
def test_tinted_and_dim_glass_is_empty(colour):
    """The colour of the lamp is no stain."""
    assert not tissue(glass(colour=colour)).any()


# Yellowed mounting medium, weakly and strongly; pinkish, twice; greenish; bluish; a dim brownish lamp.
TINTS = [
    (235, 228, 205), (238, 222, 180), (230, 219, 232), (236, 226, 236), (222, 232, 200), (205, 222, 240),
    (212, 200, 176),
]  # fmt: skip


@pytest.mark.combinations
@pytest.mark.parametrize("tint", TINTS, ids=str)
@pytest.mark.parametrize(("noise", "vignetting"), [(0, 0), (3, 0), (2, 0.1)])
@pytest.mark.parametrize("colour", [H_AND_E, DAB], ids=["h&e", "dab"])
def test_tissue_on_evenly_tinted_glass_is_found(tint, noise, vignetting, colour):
    """The glass around it has the tint, which the stain multiplies."""
    rgb = glass(colour=tint, noise=noise, vignetting=vignetting)
    stained, truth = with_tissue(rgb, np.array(colour) * np.array(tint) / np.array(GLASS))
    assert iou(tissue(stained), truth) > 0.9
    assert not tissue(rgb).any()


@pytest.mark.parametrize("tint", TINTS, ids=str)
def test_tinted_glass_beside_padding_and_ink_is_found(tint):
    """White and black of the scanner, and a stroke of a pen, are not the glass."""
    rgb, truth = with_tissue(glass(colour=tint, noise=2), np.array(H_AND_E) * np.array(tint) / np.array(GLASS))
    rgb = rgb.copy()
    rgb[:, :60], rgb[:, -20:] = 255, 0
    rgb[10:25, 100:300] = INKS["green"]
    assert iou(tissue(jpeg(rgb, 95)), truth) > 0.88


def test_find_tissue_on_tinted_glass():
    """By the public function."""
    rgb, truth = with_tissue(glass(colour=TINTS[0], noise=2), H_AND_E)
    found = find_tissue(open_slide(rgb, slide_mpp=8.0), min_area_um2=0)
    assert found.fraction == pytest.approx(truth.mean(), abs=0.02)


@pytest.mark.parametrize("value", [0, 230, 255])
def test_a_picture_of_one_value_is_empty(value):
    """Padding, black or white, is never tissue."""
    assert not tissue(np.full((50, 60, 3), value, dtype=np.uint8)).any()


@pytest.mark.parametrize("colour", [H_AND_E, BLUE_COUNTERSTAIN, DAB, PALE], ids=["h&e", "counterstain", "dab", "pale"])
@pytest.mark.parametrize("vignetting", [0, 0.1])
def test_stained_tissue_is_found(colour, vignetting):
    """Dark, pale and immunohistochemical tissue overlaps its known outline by 90 %."""
    rgb, truth = with_tissue(glass(vignetting=vignetting), colour)
    assert iou(tissue(rgb), truth) > 0.9


@pytest.mark.parametrize("colour", [H_AND_E, DAB])
def test_fixed_saturation_finds_coloured_tissue(colour):
    """Method "threshold"."""
    rgb, truth = with_tissue(glass(noise=1), colour)
    assert iou(tissue(rgb, "threshold"), truth) > 0.85


@pytest.mark.parametrize("colour", [H_AND_E, DAB, PALE])
def test_a_picture_without_glass_is_all_tissue(colour):
    """The threshold does not split an image of tissue only."""
    noise = np.random.default_rng(3).normal(0, 10, (200, 200, 1))
    rgb = jpeg(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8))
    assert tissue(rgb).mean() > 0.98


def test_walls_of_fat_are_joined():
    """A net of pink walls, 24 µm thick and 100 µm apart, is one region with its vacuoles."""
    rgb = glass(noise=1).copy()
    truth = np.zeros(rgb.shape[:2], dtype=bool)
    truth[60:240, 80:320] = True
    y, x = np.nonzero(truth)
    wall = ((y - 60) % 13 < 3) | ((x - 80) % 13 < 3)
    rgb[y[wall], x[wall]] = (226, 205, 219)
    assert iou(tissue(jpeg(rgb)), truth) > 0.9


def test_black_padding_and_scanner_borders_are_left_out():
    """Black around the scan is no tissue, with and without ink detection, and does not hide the tissue."""
    inner, truth = with_tissue(glass(), H_AND_E)
    rgb = np.pad(inner, ((150, 40), (100, 300), (0, 0)))
    truth = np.pad(truth, ((150, 40), (100, 300)))
    for ignore_pen in (True, False):
        assert iou(tissue(rgb, ignore_pen=ignore_pen), truth) > 0.9


STAIRS = [(slice(0, 70), slice(0, 90)), (slice(0, 40), slice(90, 200)), (slice(0, 55), slice(280, 400))]
STAIRS += [(slice(200, 300), slice(0, 60)), (slice(250, 300), slice(60, 130)), (slice(180, 300), slice(350, 400))]
FRAME = (64, 64)


def stitched(rgb: np.ndarray, white: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the image in a white frame with a staircase at its corners, through JPEG, and the frame's mask."""
    outside = np.zeros(rgb.shape[:2], dtype=bool)
    for stair in STAIRS:
        outside[stair] = True
    outside = np.pad(outside, FRAME, constant_values=True)
    rgb = np.pad(rgb, (FRAME, FRAME, (0, 0)))
    return jpeg(np.where(outside[..., None], np.uint8(white), rgb), 90), outside


@pytest.mark.parametrize("white", [255, 253])
@pytest.mark.parametrize("colour", [(235, 230, 233), GLASS], ids=["glass 233", "glass 242"])
@pytest.mark.parametrize("noise", [1.0, 3.0])
def test_white_padding_is_not_the_glass(white, colour, noise):
    """Glass darker than the white around scan strips is no tissue; tissue keeps its outline; white is left out."""
    inner, truth = with_tissue(glass(colour=colour, noise=noise), H_AND_E)
    rgb, outside = stitched(inner, white)
    truth = np.pad(truth, FRAME) & ~outside
    mask = tissue(rgb)
    assert np.abs(seg.glass_colour(rgb) - colour).max() <= 3
    assert iou(mask, truth) > 0.9
    assert not mask[outside].any()
    near = cv2.dilate(truth.astype(np.uint8), np.ones((13, 13), np.uint8)) > 0
    assert not mask[~near].any()


def test_white_padding_around_glass_alone_is_empty():
    """The border between painted white and scanned glass is no tissue."""
    rgb, _ = stitched(glass(colour=(236, 231, 234)), 255)
    assert not tissue(rgb).any()


@pytest.mark.parametrize("white", [252, 253, 255])
def test_even_white_is_the_glass_if_there_is_no_other(white):
    """On a drawing on white without noise, pale tissue is found, too."""
    rgb = np.full((300, 400, 3), white, dtype=np.uint8)
    truth = np.zeros(rgb.shape[:2], dtype=np.uint8)
    cv2.ellipse(truth, (200, 150), (110, 80), 20, 0, 360, 1, -1)
    rgb[truth > 0] = PALE
    assert iou(tissue(rgb), truth > 0) > 0.9


@pytest.mark.parametrize("ink", INKS)
def test_generated_ink_is_left_out(ink):
    """Nine tenths of a stroke on glass are removed, and distant tissue is kept."""
    rgb, truth = with_tissue(glass(), H_AND_E)
    stroke = np.zeros(truth.shape, dtype=np.uint8)
    cv2.polylines(stroke, [np.array([[30, 20], [40, 280], [370, 285]], dtype=np.int32)], False, 1, 16)
    alpha = 0.95 * cv2.GaussianBlur(stroke.astype(np.float32), (0, 0), 1)[..., None]
    inked = jpeg((rgb * (1 - alpha) + np.array(INKS[ink]) * alpha).astype(np.uint8))
    mask = tissue(inked)
    assert mask[stroke > 0].mean() < 0.1
    assert mask[truth].mean() > 0.95
    assert tissue(inked, ignore_pen=False)[stroke > 0].mean() > 0.9


@pytest.mark.parametrize("ink", ["red", "green"])  # pale blue ink has the colour of haematoxylin
def test_the_pale_rim_of_ink_is_left_out(ink):
    """A stroke that fades over 100 µm is removed with all that is connected with its core."""
    rgb, truth = with_tissue(glass(), H_AND_E)
    stroke = np.zeros(truth.shape, dtype=np.uint8)
    cv2.line(stroke, (40, 15), (40, 285), 1, 16)
    alpha = 0.95 * np.clip(1.6 * cv2.GaussianBlur(stroke.astype(np.float32), (0, 0), 7), 0, 1)[..., None]
    inked = jpeg((rgb * (1 - alpha) + np.array(INKS[ink]) * alpha).astype(np.uint8))
    mask = tissue(inked)
    assert not mask[alpha[..., 0] > 0.1].any()
    assert mask[truth].mean() > 0.95


def test_a_slide_stained_in_the_colour_of_ink_is_kept():
    """If all of the stained area has it, it is a special stain."""
    rgb, truth = with_tissue(glass(), (60, 110, 190))
    assert iou(tissue(rgb), truth) > 0.9


def test_dust_and_scratches_are_dropped():
    """A thin grey line across the glass and a grey bubble are no tissue."""
    rgb, truth = with_tissue(glass(), H_AND_E)
    rgb = rgb.copy()
    rgb[:, 20:22] = 190
    cv2.circle(rgb, (350, 50), 25, (224, 225, 226), -1)
    mask = tissue(jpeg(rgb))
    assert iou(mask, truth) > 0.9
    assert not mask[:, :40].any()
    assert not mask[:90, 310:].any()


@pytest.mark.parametrize("dye", [(0, 0, 220), (40, 255, 60), (190, 190, 190)], ids=["dapi", "green", "grey"])
def test_fluorescence_is_bright_on_dark(dye):
    """Nuclei on black and the area between them are one region; the rest is left out."""
    rgb = np.random.default_rng(0).integers(0, 4, (300, 400, 3)).astype(np.uint8)
    _, truth = with_tissue(glass(), H_AND_E)
    nuclei = np.zeros(truth.shape, dtype=bool)
    nuclei[::5, ::5] = nuclei[1::5, ::5] = True
    rgb[nuclei & truth] = dye
    assert seg.has_dark_background(rgb)
    assert iou(tissue(rgb), truth) > 0.85


def test_specks_and_holes_are_removed_by_area():
    """8-connected regions below the limit are dropped, enclosed gaps up to it filled, except at the edge."""
    mask = np.zeros((20, 20), dtype=bool)
    mask[2:9, 2:9] = True
    mask[4:6, 4:6] = False
    mask[15, 15] = mask[16, 16] = True
    assert seg.without_specks(mask, 3).sum() == 45
    assert seg.without_specks(mask, 2).sum() == 47
    assert seg.without_holes(mask, 4).sum() == 51
    assert seg.without_holes(mask, 3).sum() == 47
    ring = np.zeros((5, 5), dtype=bool)
    ring[:, 2] = True
    assert (seg.without_holes(ring, 99) == ring).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (3, 2), (16, 16)])
@pytest.mark.parametrize("um_per_px", [0.5, 8.0, 500.0])
def test_tiny_overviews_have_a_mask_of_their_shape(shape, um_per_px):
    """At any resolution."""
    rgb = np.full((*shape, 3), H_AND_E, dtype=np.uint8)
    mask = seg.without_specks_and_holes(seg.segment(rgb, "otsu", um_per_px), 16384 / um_per_px**2, 16384 / um_per_px**2)
    assert mask.shape == shape
    assert mask.all()


def test_red_pen_of_a_real_slide(shared_data):
    """At least 95 % of saturated red ink is left out and 95 % of the tissue is kept."""
    rgb = flattened(shared_data / "images" / "tcga-red-pen.png")
    # The references are rules on the colours, away from the rules on OD that are tested.
    hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)
    pen = (hsv[..., 1] > 190) & (rgb[..., 0] > 130) & ((hsv[..., 0] < 6) | (hsv[..., 0] > 176))
    tumour = rgb[:, 200:].max(axis=2) < 215  # right of the ink and its blur
    mask = seg.without_specks_and_holes(seg.segment(rgb, "otsu", 4.0), 1024, 1024)
    assert pen.mean() > 0.1
    assert mask[pen].mean() < 0.05
    assert mask[:, 200:][tumour].mean() > 0.95
    without = seg.without_specks_and_holes(seg.segment(rgb, "otsu", 4.0, ignore_pen=False), 1024, 1024)
    assert without[pen].mean() > 0.95


def test_immunohistochemistry_is_nearly_all_tissue(shared_data):
    """A DAB tile keeps its brown and its blue, and most of the pale stroma between."""
    rgb = flattened(shared_data / "images" / "ihc.png")
    mask = tissue(rgb)
    assert mask.mean() > 0.85
    assert mask[rgb.min(axis=2) < 190].mean() > 0.97


def test_a_pyramid_of_stitched_fields_is_found_without_its_seams(shared_data):
    """White padding around grey glass leaves no seam in the mask: tissue is what is pink."""
    openslide = pytest.importorskip("openslide")
    with openslide.OpenSlide(shared_data / "slides" / "TCGA-CR-7395-01A-01-TS1.svs") as slide:
        rgb = np.asarray(slide.get_thumbnail((278, 223)).convert("RGB"))
    pink = cv2.GaussianBlur(np.ptp(rgb.astype(np.int16), axis=2).astype(np.float32), (0, 0), 1) > 20
    assert iou(tissue(rgb), pink) > 0.93


@pytest.mark.parametrize("slide_mpp", [0.25, 0.5])
def test_the_staircase_of_a_real_scan_is_no_tissue(shared_data, slide_mpp):
    """On both levels of the overview, with white of 255 and 253, the coloured part is found; the glass is grey."""
    slide = open_slide(shared_data / "slides" / "TCGA-CR-7395-01A-01-TS1.svs", slide_mpp=slide_mpp)
    found = find_tissue(slide)
    rgb, _ = slide.overview(8.0)
    coloured = np.ptp(rgb.astype(np.int16), axis=2) > 25
    mask = found.mask[: rgb.shape[0], : rgb.shape[1]]
    assert seg.glass_colour(rgb).max() < 245
    assert coloured.mean() < mask.mean() < coloured.mean() + 0.05
    assert mask[coloured].mean() > 0.99
    assert not mask[rgb.min(axis=2) >= 252].any()
    # Glass beside a scan line, with little tissue.
    assert found.fractions([[2561, 0, 512, 512]])[0] < 0.1


@pytest.mark.parametrize("radius", range(1, 12))
def test_the_disk_is_round(radius):
    """As scikit-image's; for a fractional radius, by the circle's inequality."""
    assert np.array_equal(seg.disk(radius), morphology.disk(radius))
    between = radius + 0.41
    y, x = np.indices((2 * radius + 1, 2 * radius + 1)) - radius
    assert np.array_equal(seg.disk(between), np.hypot(x, y) <= between)


@pytest.mark.parametrize("radius", [2, 5])
def test_dilation_and_closing_equal_scikit_image(radius):
    """With its disk, on an image that is not square."""
    mask = np.random.default_rng(radius).random((90, 130)) < 0.02
    assert np.array_equal(seg.dilated(mask, radius), morphology.dilation(mask, morphology.disk(radius)))
    inner = slice(2 * radius, -2 * radius)
    expected = morphology.closing(mask, morphology.disk(radius))
    assert np.array_equal(seg.closed(mask, radius)[inner, inner], expected[inner, inner])
