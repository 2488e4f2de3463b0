"""TissueMask compared with naive loops and independent readers; find_tissue on slides."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from fake_slides import FakeSlide, blank, blobs, mask_of, two_pieces
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from made_slides import made_slide

from slideio_pipe.errors import ConfigError, CorruptSlideError, EmptyTissueWarning, MissingResolutionError
from slideio_pipe.geometry import Affine, Mpp, Size
from slideio_pipe.slides.slide import open_slide
from slideio_pipe.synthetic.slide import write_synthetic_slide
from slideio_pipe.tiles.find_tissue import find_tissue
from slideio_pipe.tiles.tissue_mask import TissueMask

# The public DICOM slide is a level without its full resolution.
pytestmark = pytest.mark.filterwarnings("ignore::slideio_pipe.errors.IncompleteSlideWarning")

MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9))


def naive_fraction(pixels, scale, size, rect) -> float:
    """Sum the overlap of a rectangle with every tissue pixel, one by one."""
    x, y, w, h = rect
    right, bottom = min(x + w, size[0]), min(y + h, size[1])
    total = 0.0
    for row, column in np.argwhere(pixels):
        dx = min(right, (column + 1) * scale[0]) - max(x, 0, column * scale[0])
        dy = min(bottom, (row + 1) * scale[1]) - max(y, 0, row * scale[1])
        total += max(0.0, dx) * max(0.0, dy)
    return total / (w * h)


@given(
    MASKS,
    st.tuples(st.floats(0.5, 20), st.floats(0.5, 20)),
    st.lists(st.tuples(st.floats(-50, 200), st.floats(-50, 200), st.floats(0.1, 300), st.floats(0.1, 300)), max_size=6),
)
def test_fractions_are_exact(pixels, scale, rects):
    """For fractional, overhanging and tiny rectangles, compared with the sum over pixels."""
    size = (round(pixels.shape[1] * scale[0]), round(pixels.shape[0] * scale[1]))
    tissue = TissueMask(pixels, Affine.scaling(*scale), Size(*size))
    expected = [naive_fraction(pixels, scale, size, rect) for rect in rects]
    found = tissue.fractions(np.array(rects).reshape(-1, 4))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_fractions_of_whole_pixels_are_exact():
    """So that min_tissue=0.5 keeps a tile of half tissue."""
    pixels = np.zeros((4, 4), bool)
    pixels[:2] = True
    tissue = mask_of(pixels, (3.0, 3.0))
    assert tissue.fractions([[0, 0, 12, 12], [3, 3, 6, 6], [0, 0, 12, 6], [6, 9, 9, 9]]).tolist() == [0.5, 0.5, 1, 0]


def test_area_outside_the_slide_is_no_tissue():
    """Half of a tile beyond the edge is empty, also if the last mask pixel extends beyond it."""
    tissue = TissueMask(np.ones((1, 3), bool), Affine.scaling(10, 10), Size(25, 10))
    assert tissue.fractions([[20, 0, 10, 10], [-5, 0, 10, 10], [40, 0, 5, 5]]).tolist() == [0.5, 0.5, 0]
    assert tissue.fraction == 1


@pytest.mark.parametrize("rect", [[0, 0, 0, 5], [0, 0, 5, -1], [0, 0, np.nan, 1]])
def test_a_rectangle_without_area_is_refused(rect):
    """No division by 0."""
    with pytest.raises(ConfigError, match="without area"):
        mask_of(blobs()).fractions([rect])


def test_area_and_description():
    """Areas are in µm² of the slide; the representation has one line."""
    pixels = np.zeros((10, 20), bool)
    pixels[:5, :10] = True
    tissue = mask_of(pixels, method="otsu")
    assert tissue.area_um2 == 50 * 64
    assert tissue.fraction == 0.25
    assert repr(tissue) == "TissueMask(a.svs: 25.0 % tissue, 20x10 at 8.0 µm, otsu)"
    assert not tissue.is_empty
    with pytest.raises(ConfigError, match="mpp"):
        _ = TissueMask(pixels, Affine(), Size(20, 10)).area_um2


def test_a_mask_is_a_frozen_copy():
    """Neither the caller's array nor the mask's own can change it later."""
    pixels = np.zeros((3, 3), bool)
    tissue = mask_of(pixels)
    pixels[:] = True
    assert tissue.is_empty
    with pytest.raises(ValueError, match="read-only"):
        tissue.mask[0, 0] = True


@pytest.mark.parametrize("shape", [(0, 5), (5,), (2, 2, 2)])
def test_a_mask_without_pixels_is_refused(shape):
    """A mask is two-dimensional and not empty."""
    with pytest.raises(ConfigError, match="shape"):
        TissueMask(np.ones(shape, bool), Affine(), Size(5, 5))


def test_a_turned_mask_is_refused():
    """Fractions need rows and columns parallel to those of the slide."""
    with pytest.raises(ConfigError, match="turns"):
        TissueMask(np.ones((2, 2), bool), Affine(0, 1, 0, 1, 0, 0), Size(2, 2))


def test_masks_combine():
    """And, or, not of the pixels; provenance has the operands."""
    one, two = mask_of(blobs(seed=1)), mask_of(blobs(seed=2))
    assert ((one & two).mask == (one.mask & two.mask)).all()
    assert ((one | two).mask == (one.mask | two.mask)).all()
    assert ((~one).mask == ~one.mask).all()
    assert [each["slide"] for each in (one & two).provenance()["settings"]["of"]] == ["a.svs", "a.svs"]
    with pytest.raises(ConfigError, match="different slides"):
        _ = one & mask_of(blobs(30, 30))


def test_masks_of_different_resolution_combine():
    """The right one is resampled to the grid of the left one: half of a pixel's area decides."""
    coarse = TissueMask(np.array([[True, False]]), Affine.scaling(8, 8), Size(16, 8))
    fine = np.zeros((8, 16), bool)
    fine[:4, :] = True
    both = coarse & TissueMask(fine, Affine(), Size(16, 8))
    assert both.mask.tolist() == [[True, False]]
    fine[3, 0] = False
    assert (coarse & TissueMask(fine, Affine(), Size(16, 8))).is_empty


def test_a_mask_equals_its_pickled_copy():
    """Which is read-only, too; other masks differ."""
    tissue = mask_of(blobs(), settings={"mpp": 8.0})
    tissue.fractions([[0, 0, 5, 5]])
    again = pickle.loads(pickle.dumps(tissue))
    assert again == tissue
    assert not again.mask.flags.writeable
    assert tissue != ~tissue
    assert tissue != "mask"


def test_provenance_is_json():
    """What a bag stores about a mask survives JSON."""
    provenance = mask_of(blobs(), method="otsu", settings={"mpp": 8.0}).provenance()
    assert json.loads(json.dumps(provenance)) == provenance
    assert provenance["method"] == "otsu"


def test_find_tissue_drops_specks_by_area_in_um():
    """Squares of 80 µm (6,400 µm²) are below a tile's area, and are kept on request."""
    slide = FakeSlide(two_pieces())
    tissue = find_tissue(slide)
    assert tissue.mask[20:70, 20:90].all()
    outside = tissue.mask.copy()
    outside[18:72, 18:92] = False  # the outline of dense tissue is up to two pixels, 16 µm, in the glass
    assert not outside.any()
    for kept in (1000, 4000):
        assert find_tissue(slide, min_area_um2=kept).mask[82:88, 122:128].all()


def test_find_tissue_fills_holes_by_area_in_um():
    """A hole of 240 µm (57,600 µm²) is kept unless larger holes are filled."""
    rgb = two_pieces()
    rgb[30:60, 30:60] = 244
    slide = FakeSlide(rgb)
    assert not find_tissue(slide).mask[35:55, 35:55].any()
    assert not find_tissue(slide, max_hole_um2=40_000).mask[35:55, 35:55].any()
    assert find_tissue(slide, max_hole_um2=100_000).mask[20:70, 20:90].mean() > 0.94


def test_find_tissue_on_glass_warns():
    """The mask is empty: neither an error nor noise."""
    with pytest.warns(EmptyTissueWarning, match=r"fake\.svs"):
        assert find_tissue(FakeSlide(np.full((50, 50, 3), 240, np.uint8))).is_empty


def test_method_none_keeps_everything_and_decodes_nothing():
    """The whole slide is tissue, and no overview is read."""
    slide = blank(1001, 703, mpp=0.5)
    slide.overview = None
    tissue = find_tissue(slide, method="none")
    assert tissue.mask.shape == (44, 63)
    assert tissue.fraction == 1


def test_the_part_of_a_pixel_an_overview_leaves_out_is_covered():
    """Tissue at the edge counts up to the edge, though the overview ends a part of a pixel before it."""
    rgb = np.full((10, 10, 3), (190, 110, 170), np.uint8)
    slide = FakeSlide(rgb, mpp=Mpp(0.5, 0.5), size=Size(167, 160))
    slide.overview = lambda mpp: (rgb, Affine.scaling(16, 16))
    tissue = find_tissue(slide)
    assert tissue.fraction == 1
    assert tissue.mask.shape == (10, 11)
    assert tissue.fractions([[151, 0, 16, 16]]) == 1


@pytest.mark.parametrize(
    "options", [{"method": "magic"}, {"mpp": 0}, {"mpp": float("nan")}, {"min_area_um2": -1}, {"max_hole_um2": -1}]
)
def test_invalid_arguments_are_refused(options):
    """With the name of the slide."""
    with pytest.raises(ConfigError, match=r"fake\.svs"):
        find_tissue(FakeSlide(two_pieces()), **options)


def test_no_resolution_is_an_error():
    """Areas in µm² need one."""
    with pytest.raises(MissingResolutionError):
        find_tissue(FakeSlide(two_pieces(), mpp=None))


def test_settings_are_recorded():
    """The mask has its arguments and the threshold that was found."""
    tissue = find_tissue(FakeSlide(two_pieces()), ignore_pen=False)
    assert tissue.method == "otsu"
    assert tissue.settings["ignore_pen"] is False
    assert 0.02 <= tissue.settings["used_threshold"] <= 0.03


@pytest.mark.slow
def test_generated_slides_agree_with_their_plan(tmp_path):
    """All planned tissue is found, the outline is at most 24 µm outside; glass only is empty."""
    truth = made_slide(tmp_path / "a.svs", size=(3000, 2000), mpp=0.5, seed=3, lesions=1, pieces=1)
    tissue = find_tissue(open_slide(tmp_path / "a.svs"))
    planned = truth.tissue_mask(16)
    found = tissue.mask[: planned.shape[0], : planned.shape[1]]
    assert found[planned].mean() > 0.99
    near = cv2.dilate(planned.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))) > 0
    assert found[~near].mean() < 0.02
    write_synthetic_slide(tmp_path / "glass.svs", size=(1000, 800), mpp=0.5, lesions=0, pieces=0)
    with pytest.warns(EmptyTissueWarning):
        assert find_tissue(open_slide(tmp_path / "glass.svs")).is_empty


REAL = [
    # slide, its mpp if the file has none, bounds of the tissue fraction (visual estimate)
    ("CMU-1-Small-Region.svs", None, (0.35, 0.5)),
    ("TCGA-CR-7395-01A-01-TS1.svs", 0.5, (0.6, 0.72)),
    ("OS-2-ndpi.ome.tif", None, (0.8, 0.97)),
    ("test3-DAPI-2-(387).ndpi", None, (0.4, 0.8)),
    ("multi_frame_jpeg2000_camelyon.dcm", 28.97, (0.36, 0.46)),
]


@pytest.mark.parametrize(("name", "mpp", "bounds"), REAL, ids=[case[0] for case in REAL])
def test_real_slides_have_plausible_tissue(shared_data, name, mpp, bounds):
    """Brightfield of two stains, fluorescence and a slide coarser than the mask."""
    tissue = find_tissue(open_slide(shared_data / "slides" / name, slide_mpp=mpp))
    assert bounds[0] < tissue.fraction < bounds[1]


@pytest.mark.parametrize("name", ["small.svs", "boxes_0.dcm"])
@pytest.mark.parametrize("mpp", [0.5, 2.0, 8.0])
def test_slides_of_16_px_have_a_mask(shared_data, name, mpp):
    """At any resolution."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptyTissueWarning)
        assert 0 <= find_tissue(open_slide(shared_data / "slides" / name), mpp=mpp).fraction <= 1


def test_the_error_of_a_damaged_overview_offers_a_mask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All of a one-level slide is searched: with one damaged tile, a given mask still works."""
    write_synthetic_slide(tmp_path / "a.svs", size=(1024, 768))
    slide = open_slide(tmp_path / "a.svs")

    def damaged(_: float) -> None:
        raise CorruptSlideError("tile (6, 6) cannot be decoded", slide=slide.name, remedy="copy the slide again")

    monkeypatch.setattr(slide, "overview", damaged)
    with pytest.raises(
        CorruptSlideError, match=r"because tile \(6, 6\) cannot .* your own mask .* does not need these pixels"
    ):
        find_tissue(slide)
    assert find_tissue(slide, method="none").fraction == 1


def test_a_mask_through_a_part_of_a_slide_is_that_part_twice_as_fine() -> None:
    """The view's extent, with four pixels for each of the mask's, which are not square here."""
    pixels = np.random.default_rng(2).random((7, 6)) < 0.5
    tissue = TissueMask(pixels, Affine.scaling(8, 12), Size(48, 84))
    part = SimpleNamespace(affine=Affine.translation(8, 12) @ Affine.scaling(2, 2), size=Size(19, 29))
    through = tissue.through(part)
    np.testing.assert_array_equal(through.mask, np.kron(pixels[1:6, 1:6], np.ones((2, 2), bool)))
    assert through.affine == Affine.scaling(2, 3)
    assert through.slide_size == part.size
