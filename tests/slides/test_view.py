"""Views: size, resolution and affine, and pixels where the affine maps them."""

from __future__ import annotations

import math
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import examples
from pyramids import coordinate_pixels, write_pyramid

from slideio_pipe import SlideView, TileReader, open_slide
from slideio_pipe.errors import ConfigError, ImplausibleResolutionWarning, MissingResolutionError, UpsamplingWarning

SMOOTH = np.stack(
    [
        127 + 100 * np.sin(np.mgrid[:700, :1000][1] / 40),
        127 + 100 * np.cos(np.mgrid[:700, :1000][0] / 30),
        np.mgrid[:700, :1000].sum(0) / 7,
    ],
    axis=-1,
).astype(np.uint8)


@pytest.fixture
def ramp_slide(tmp_path: Path) -> Path:
    """1024×768, levels 1, 4, 16, where red is x/4 and green is y/4 at level 0, and exact means at lower levels."""
    y, x = np.mgrid[:768, :1024]
    return write_pyramid(tmp_path / "ramp.tif", np.stack([x // 4, y // 4, x * 0], -1).astype(np.uint8), mpp=0.25)


@pytest.mark.parametrize(
    ("mpp", "level", "shrink", "size"),
    [
        (None, 0, 1.0, (1000, 700)),
        (0.25, 0, 1.0, (1000, 700)),
        (0.254, 0, 1.0, (1000, 700)),
        (0.246, 0, 1.0, (1000, 700)),
        (0.26, 0, 1.04, (961, 673)),
        (0.5, 0, 2.0, (500, 350)),
        (1.0, 1, 1.0, (250, 175)),
        (1.015, 1, 1.0, (250, 175)),
        (2.0, 1, 2.0, (125, 87)),
        (8.0, 2, 2.0, (31, 21)),
    ],
)
def test_the_view_uses_the_right_level(
    coordinate_slide: Path, mpp: float | None, level: int, shrink: float, size: tuple[int, int]
) -> None:
    """Levels 1, 4, 16 at 0.25 µm: the coarsest fine enough; no resampling within 2 %; nothing beyond the edge."""
    view = open_slide(coordinate_slide).view(mpp=mpp)
    assert view.level == level
    assert view.choice.resampled is (shrink != 1.0)
    assert view.choice.shrink == pytest.approx((shrink, shrink), rel=0.02)
    assert view.size == size


@examples(60)
@given(st.integers(17, 3000), st.integers(17, 3000), st.floats(0.25, 12), st.floats(0.5, 2))
def test_mpp_affine_and_size_agree(width: int, height: int, mpp: float, ratio: float) -> None:
    """The mpp equals the scale of the affine, and all pixels are inside the slide."""
    array = np.broadcast_to(np.uint8(0), (height, width, 3))
    slide = open_slide(array, slide_mpp=(0.25, 0.25 * ratio))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UpsamplingWarning)
        view = slide.view(mpp=mpp)
    assert view.mpp is not None
    exact = all(shrink in (1, 2, 4, 8) for shrink in view.choice.shrink)  # within 2 %: nothing fractional is left
    for got, own, shrink in zip(view.mpp, (0.25, 0.25 * ratio), view.choice.shrink, strict=True):
        assert got == pytest.approx(own * shrink if exact else mpp)
        assert abs(got / mpp - 1) <= 0.0205
    assert view.affine.scale() == pytest.approx(view.downsample)
    for side, own, factor in zip(view.size, slide.dimensions, view.downsample, strict=True):
        assert side == 1 or side * factor <= own + 1e-3
        assert (side + 1) * factor > own - 1e-3


def test_points_map_to_level_0_and_back(coordinate_slide: Path) -> None:
    """Exactly, if the view is no finer than level 0."""
    view = open_slide(coordinate_slide).view(mpp=0.7)
    points = np.random.default_rng(0).integers(0, 200, (50, 2))
    assert view.to_level0(points).dtype == np.int64
    assert np.array_equal(view.from_level0(view.to_level0(points)), points)


@pytest.mark.parametrize("mpp", [None, 0.5, 0.8, 1.0, 1.7, 4.0])
def test_pixels_are_where_the_affine_maps_them(ramp_slide: Path, mpp: float | None) -> None:
    """The slide encodes coordinates: the centre of every view pixel has its level-0 position."""
    view = open_slide(ramp_slide).view(mpp=mpp)
    tile = TileReader(view, 32).read([[8, 6]])[0] if view.size.width > 64 else TileReader(view, 16).read([[8, 6]])[0]
    side = tile.shape[0]
    y, x = np.mgrid[6 : 6 + side, 8 : 8 + side]
    place = view.affine.apply(np.stack([x + 0.5, y + 0.5], -1))
    slack = 0.5 * view.downsample[0] + 2.5  # lower levels are every n-th pixel: half a pixel off by construction
    assert np.abs(tile[..., 0] * 4.0 + 2 - place[..., 0]).max() <= slack
    assert np.abs(tile[..., 1] * 4.0 + 2 - place[..., 1]).max() <= slack


def test_unequal_mpp_makes_square_pixels(tmp_path: Path) -> None:
    """0.25 × 0.5 µm pixels at 1 µm: shrunk 4× and 2×."""
    y, x = np.mgrid[:400, :800]
    pixels = np.stack([x // 4, y // 2, x * 0], -1).astype(np.uint8)
    view = open_slide(pixels, slide_mpp=(0.25, 0.5)).view(mpp=1.0)
    assert view.choice.shrink == (4.0, 2.0)
    assert view.size == (200, 200)
    assert view.mpp == (1.0, 1.0)
    tile = TileReader(view, 100).read([[50, 50]])[0].astype(int)
    assert np.abs(tile[..., 0] - np.arange(50, 150)).max() <= 1
    assert np.abs(tile[..., 1] - np.arange(50, 150)[:, None]).max() <= 1


@pytest.mark.parametrize("mpp", [0.26, 0.3, 0.5, 0.61, 0.8, 1.9])
def test_the_lazy_image_agrees_with_the_reader(mpp: float) -> None:
    """To 1 level in 99.9 % of the values, to 10 in the last row and column."""
    view = open_slide(SMOOTH, slide_mpp=0.25).view(mpp=mpp)
    width, height = view.size
    assert (view.image.width, view.image.height) == view.size
    lazy = view.image.numpy().astype(int)
    tiles = TileReader(view, 64)
    origins = [(x, y) for y in range(0, height, 64) for x in range(0, width, 64)]
    whole = np.zeros((math.ceil(height / 64) * 64, math.ceil(width / 64) * 64, 3), int)
    for (x, y), tile in zip(origins, tiles.read(origins), strict=True):
        whole[y : y + 64, x : x + 64] = tile
    difference = np.abs(lazy - whole[:height, :width])
    assert np.mean(difference[:-1, :-1] <= 1) >= 0.999
    assert difference.max() <= 10


@pytest.mark.parametrize("own", [(0.25, 0.25), (0.25, 0.6), (0.6, 0.25), (0.25, 0.1)])
def test_finer_than_the_slide_is_interpolated_with_a_warning(own: tuple[float, float]) -> None:
    """The lazy image and the reader agree, also if one axis shrinks and the other grows."""
    slide = open_slide(SMOOTH[:200, :300], slide_mpp=own)
    with pytest.warns(UpsamplingWarning, match="µm wanted of a slide scanned at"):
        view = slide.view(mpp=0.2)
    lazy = view.image.numpy().astype(int)
    tile = TileReader(view, 80).read([[20, 20]])[0]
    assert lazy.shape == (view.size.height, view.size.width, 3)
    difference = np.abs(lazy[20:100, 20:100] - tile[: lazy.shape[0] - 20])
    assert np.percentile(difference, 99) <= 3


def test_a_view_at_an_mpp_needs_the_slides_mpp() -> None:
    """The native view does not."""
    slide = open_slide(SMOOTH)
    assert slide.view().mpp is None
    with pytest.raises(MissingResolutionError, match=r"array: no mpp .*; pass slide_mpp="):
        slide.view(mpp=0.5)


@pytest.mark.parametrize("mpp", [0, -1, float("nan"), float("inf"), "20x", (0.5,), (0.5, -1)])
def test_an_invalid_resolution_is_refused(mpp: object) -> None:
    """With our error and the value."""
    with pytest.raises(ConfigError, match="is no resolution"):
        open_slide(SMOOTH, slide_mpp=0.25).view(mpp=mpp)  # type: ignore[arg-type]


def test_a_view_has_at_least_one_pixel() -> None:
    """At any coarse resolution."""
    view = open_slide(SMOOTH, slide_mpp=0.25).view(mpp=1e6)
    assert view.size == (1, 1)
    assert TileReader(view, 2).read([[0, 0]])[0, 1, 1].tolist() == [255, 255, 255]


def test_views_are_equal_by_slide_and_choice(coordinate_slide: Path) -> None:
    """Not by identity; a pickled view opens the slide again."""
    slide = open_slide(coordinate_slide)
    assert slide.view(mpp=0.5) == slide.view(mpp=0.5)
    assert slide.view(mpp=0.5) != slide.view(mpp=1.0)
    copy: SlideView = pickle.loads(pickle.dumps(slide.view(mpp=0.5)))
    assert copy == slide.view(mpp=0.5)
    assert np.array_equal(copy.image.numpy(), slide.view(mpp=0.5).image.numpy())


def test_the_image_is_lazy_and_can_be_extended(coordinate_slide: Path) -> None:
    """Users can add pyvips operations, and drop slide and view."""
    image = open_slide(coordinate_slide).view().image.rot90().crop(10, 20, 100, 100)
    expected = np.rot90(coordinate_pixels(1000, 700), -1)[20:120, 10:110]
    assert np.array_equal(image.numpy(), expected)


@pytest.mark.parametrize("shape", [(4500, 100, 3), (100, 4500, 3)], ids=["tall", "wide"])
def test_a_slide_longer_than_glass_is_warned_of_on_either_axis(shape: tuple[int, int, int]) -> None:
    """4,500 px of 20 µm are 90 mm; unequal pixels are checked per axis."""
    with pytest.warns(ImplausibleResolutionWarning, match="90 mm long, glass has 76"):
        open_slide(np.zeros(shape, np.uint8), slide_mpp=20)
    along_x = shape[1] > shape[0]
    with pytest.warns(ImplausibleResolutionWarning, match="90 mm long"):
        open_slide(np.zeros(shape, np.uint8), slide_mpp=(20, 1) if along_x else (1, 20))
