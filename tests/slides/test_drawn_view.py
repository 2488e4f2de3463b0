"""Views with a drawn augmentation: where pixels are, reproducibility, and that nothing is decoded early."""

from __future__ import annotations

import json
import math
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import albumentationsxl as A
import numpy as np
import pytest
import scipy.ndimage
import zarr
from counted_slide import counted_slide
from pyramids import coordinate_pixels, write_pyramid
from whole_view import whole

from slideio_pipe import (
    ColorJitter,
    Draw,
    Flip,
    GaussianNoise,
    RandomAffine,
    Rotate90,
    Slide,
    SlideView,
    StainJitter,
    TileBag,
    TileGrid,
    TileReader,
    TissueMask,
    open_slide,
)
from slideio_pipe.errors import ConfigError, CorruptSlideError
from slideio_pipe.geometry import Affine, Size

y, x = np.mgrid[:700, :1000]
SMOOTH = np.stack([127 + 100 * np.sin(x / 40), 127 + 100 * np.cos(y / 30), (x + y) / 7], axis=-1).astype(np.uint8)
RAMP = np.stack([x // 4, y // 4, 0 * x + 9], axis=-1).astype(np.uint8)
# Both quantise: OpenCV places samples on a 1/32 px grid, 0.1 levels in SMOOTH, and each rounds once.
AWAY_FROM_BORDERS = 1
# Half of 1/32 px along both axes between black and the white outside.
AT_BORDERS = 9

MOVES = {
    "turned": RandomAffine(rotate=(33, 33), flip=False),
    "turned and mirrored": A.Compose([A.HorizontalFlip(p=1), RandomAffine(rotate=(-70, -70), flip=False)]),
    "enlarged": RandomAffine(rotate=(10, 10), scale=(1.4, 1.4), flip=False),
    "made smaller": RandomAffine(rotate=(200, 200), scale=(0.985, 0.985), flip=False),
    "sheared": RandomAffine(rotate=(5, 5), shear=(20, 20), flip=False),
}


def turned(degrees: float, scale: float = 1.0) -> RandomAffine:
    return RandomAffine(rotate=(degrees, degrees), scale=(scale, scale), flip=False)


def oracle(plain: np.ndarray, draw: Draw) -> np.ndarray:
    """SciPy in float64: bilinear, and white beyond the plain image."""
    rows, columns = np.mgrid[: draw.canvas.height, : draw.canvas.width] + 0.5
    to_plain = np.linalg.inv(np.array([*draw.affine, 0, 0, 1]).reshape(3, 3))
    places = to_plain @ np.stack([columns.ravel(), rows.ravel(), np.ones(columns.size)])
    at = places[[1, 0]] - 0.5
    bands = [
        scipy.ndimage.map_coordinates(plain[..., band].astype(float), at, order=1, mode="grid-constant", cval=255)
        for band in range(3)
    ]
    return np.stack(bands, axis=-1).reshape(*draw.canvas[::-1], 3)


def inner(view: SlideView, margin: float = 2) -> np.ndarray:
    """Return where all sampled pixels are inside the plain image, ``margin`` px from its border."""
    rows, columns = np.mgrid[: view.size.height, : view.size.width] + 0.5
    place = view.to_plain.apply(np.stack([columns, rows], axis=-1))
    return ((place > margin) & (place < np.array(view.plain_size) - margin)).all(axis=-1)


@pytest.mark.combinations
@pytest.mark.parametrize("transform", MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("mpp", [None, 0.31, 0.5])
def test_tiles_and_image_equal_scipy_on_the_plain_pixels(transform: object, mpp: float | None) -> None:
    """To 1 level; tiles to 2 where shrinking rounds before, and to 9 where white begins."""
    view = open_slide(SMOOTH, slide_mpp=0.25).view(mpp=mpp, transform=transform)
    assert view.draw is not None
    expected = oracle(view.plain_image.numpy(), view.draw)
    lazy, tiles, far = view.image.numpy(), whole(view), inner(view)
    assert lazy.shape == tiles.shape == expected.shape
    assert np.abs(lazy - expected).max() <= AWAY_FROM_BORDERS + 0.01
    off = np.abs(tiles - expected)
    assert off[far].max() <= AWAY_FROM_BORDERS + (0.51 if mpp is None else 1.51)
    assert off.max() <= AT_BORDERS + (0 if mpp is None else 10)
    assert np.abs(lazy.astype(int) - tiles)[far].max() <= 2
    outside = ~inner(view, margin=-2)
    assert outside.any()
    assert (lazy[outside] == 255).all()
    assert (tiles[outside] == 255).all()


@pytest.mark.combinations
@pytest.mark.parametrize("own", [(0.25, 0.25), (0.25, 0.5), (0.4, 0.25)])
@pytest.mark.parametrize("mpp", [None, 0.5, 0.8])
@pytest.mark.parametrize("degrees", [15, 90, 180, 222])
def test_pixels_are_where_the_affine_maps_them(own: tuple[float, float], mpp: float | None, degrees: float) -> None:
    """Pixels encode coordinates: a view pixel has the level-0 position of its centre; points map back."""
    view = open_slide(RAMP, slide_mpp=own).view(mpp=mpp, transform=turned(degrees))
    pixels, far = whole(view), inner(view)
    rows, columns = np.mgrid[: view.size.height, : view.size.width]
    centres = np.stack([columns, rows], axis=-1) + 0.5
    place = view.affine.apply(centres)
    slack = 4 + np.array(view.downsample)  # a level of the ramp is 4 px
    for band in range(2):
        assert (np.abs(pixels[..., band] * 4.0 + 2 - place[..., band])[far] <= slack[band]).all()
    assert np.allclose(view.affine.inverse().apply(place), centres, atol=1e-6)
    points = np.argwhere(far)[::997][:, ::-1]
    if mpp is not None and min(view.downsample) > 1.5:
        assert np.array_equal(view.from_level0(view.to_level0(points)), points)


@pytest.mark.parametrize("degrees", [0, 30, 45, 90, 131, 180, 270])
def test_the_canvas_is_the_smallest_that_holds_the_slide(degrees: float) -> None:
    """w·|cos| + h·|sin|, rounded up; every corner of the slide is on it, at its border."""
    view = open_slide(SMOOTH, slide_mpp=0.25).view(mpp=0.5, transform=turned(degrees))
    width, height = view.plain_size
    cosine, sine = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    expected = (width * cosine + height * sine, width * sine + height * cosine)
    assert view.size == tuple(math.ceil(side - 1e-6) for side in expected)
    corners = view.affine.inverse().apply([(0, 0), (1000, 0), (1000, 700), (0, 700)])
    assert np.allclose(corners.min(axis=0), 0, atol=1e-6)
    assert np.allclose(corners.max(axis=0), expected, atol=1e-6)
    assert view.mpp == pytest.approx((0.5, 0.5))


def test_mpp_follows_the_drawn_scale() -> None:
    """Enlarged twice has half the µm per pixel; a quarter turn swaps unequal axes."""
    slide = open_slide(SMOOTH, slide_mpp=(0.25, 0.4))
    assert slide.view(transform=turned(0, 2.0)).mpp == pytest.approx((0.125, 0.2))
    assert slide.view(transform=turned(90)).mpp == pytest.approx((0.4, 0.25))


def quarter(count: int) -> object:
    return lambda pixels: np.rot90(pixels, count)


EXACT = {
    "90": (turned(90), quarter(1)),
    "180": (turned(180), quarter(2)),
    "-90": (turned(-90), quarter(3)),
    "360": (turned(360), quarter(0)),
    "left and right": (A.HorizontalFlip(p=1), lambda pixels: pixels[:, ::-1]),
    "up and down": (A.VerticalFlip(p=1), lambda pixels: pixels[::-1]),
    "transposed": (A.Compose([turned(90), A.VerticalFlip(p=1)]), lambda pixels: pixels.transpose(1, 0, 2)),
}


@pytest.mark.parametrize(("transform", "expected"), EXACT.values(), ids=EXACT)
@pytest.mark.parametrize("size", [(1000, 700), (333, 217)])
def test_quarter_turns_and_flips_copy_bytes(transform: object, expected: object, size: tuple[int, int]) -> None:
    """In the image and in tiles, also of odd sizes; a wrong tile shows as a wrong number."""
    pixels = coordinate_pixels(*size)
    view = open_slide(pixels).view(transform=transform)
    wanted = expected(pixels)  # type: ignore[operator]
    assert np.array_equal(view.image.numpy(), wanted)
    assert np.array_equal(whole(view, 100), wanted)


def test_quarter_turns_copy_the_pixels_of_a_level(coordinate_slide: Path) -> None:
    """Also from a lower level of a file."""
    for seed in range(6):
        view = open_slide(coordinate_slide).view(mpp=1.0, transform=A.Compose([Rotate90(), Flip()]), seed=seed)
        plain = coordinate_pixels(1000, 700)[::4, ::4]
        assert any(
            np.array_equal(view.image.numpy(), np.rot90(side, turns))
            for side in (plain, plain[::-1])
            for turns in range(4)
        )
        assert np.array_equal(whole(view, 64), view.image.numpy())


@pytest.mark.parametrize(
    "transform", [A.Compose([]), A.NoOp(), turned(0), StainJitter(alpha=1e-9, beta=0, p=0), A.Compose([A.Blur(p=0)])]
)
@pytest.mark.parametrize("mpp", [None, 0.6])
def test_an_identity_draw_changes_no_byte(transform: object, mpp: float | None) -> None:
    """In the image and in tiles, at any resolution."""
    slide = open_slide(SMOOTH, slide_mpp=0.25)
    plain, drawn = slide.view(mpp=mpp), slide.view(mpp=mpp, transform=transform)
    assert drawn.draw is not None
    assert drawn.draw.is_identity
    assert np.array_equal(drawn.image.numpy(), plain.image.numpy())
    assert np.array_equal(whole(drawn), whole(plain))
    assert drawn.affine == plain.affine


@pytest.mark.parametrize("basis", ["hed", "macenko"])
def test_white_glass_stays_white(basis: str) -> None:
    """Whole views, turned and shrunk, with the strongest jitter and beta 0: white except near tissue."""
    pixels = np.full((600, 800, 3), 255, np.uint8)
    pixels[200:400, 300:500] = (150, 80, 160)
    transform = A.Compose([StainJitter(basis=basis, alpha=0.5, beta=0), turned(20)])
    for seed in range(3):
        view = open_slide(pixels, slide_mpp=0.25).view(mpp=0.4, transform=transform, seed=seed)
        for found in (view.image.numpy(), whole(view), view.thumbnail(300)):
            assert (found != 255).any(axis=-1).mean() < 0.12  # the tissue is 0.083 of the slide
            assert (found == 255).all(axis=-1).mean() > 0.88


# -- one draw, the same tiles anywhere --------------------------------------------------------------------------------

EVERYTHING = A.Compose(
    [RandomAffine(rotate=180, scale=0.2), StainJitter(), ColorJitter(0.2, 0.2, 0.2, 0.1), GaussianNoise(sigma=3)]
)


def drawn_bag(path: Path, **options: object) -> TileBag:
    view = open_slide(path).view(mpp=0.4, transform=EVERYTHING, seed=5, epoch=2)
    return TileBag(view, TileGrid(view, 90, edge="pad"), **options)  # type: ignore[arg-type]


def tiles_of(bag: TileBag) -> np.ndarray:
    return bag[:]


def test_threads_order_and_pickling_do_not_change_bytes(coordinate_slide: Path) -> None:
    """1 and 4 threads, backwards, one by one, after pickling."""
    bag = drawn_bag(coordinate_slide)
    every = np.arange(len(bag))
    assert len(bag) > 20
    expected = bag.read(every, threads=1)
    assert np.array_equal(bag.read(every, threads=4), expected)
    assert np.array_equal(bag.read(every[::-1], threads=3)[::-1], expected)
    assert np.array_equal(np.concatenate([bag.read([k]) for k in every]), expected)
    assert np.array_equal(pickle.loads(pickle.dumps(bag))[:], expected)
    assert np.array_equal(drawn_bag(coordinate_slide)[:], expected)


@pytest.mark.system
def test_another_process_draws_and_reads_the_same(coordinate_slide: Path) -> None:
    """A process that was not forked has its own hash seed, libvips and caches."""
    bag = drawn_bag(coordinate_slide)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        again = pool.submit(drawn_bag, coordinate_slide).result(timeout=60)
        pixels = pool.submit(tiles_of, bag).result(timeout=60)
    assert again.view.draw == bag.view.draw
    assert np.array_equal(pixels, bag[:])


def test_the_draw_in_the_provenance_gives_the_same_tiles(coordinate_slide: Path) -> None:
    """Through JSON and back: a store has what is needed to make the bag again."""
    bag = drawn_bag(coordinate_slide)
    kept = json.loads(json.dumps(bag.provenance()))
    draw = Draw.model_validate(kept["view"]["draw"])
    assert draw == bag.view.draw
    plain = open_slide(coordinate_slide).view(mpp=0.4)
    view = SlideView(plain.slide, plain.choice, draw)
    assert kept["view"]["affine"] == list(view.affine.as_tuple())
    assert np.array_equal(TileBag(view, TileGrid(view, 90, edge="pad"))[:], bag[:])


def test_seed_epoch_and_slide_each_change_the_draw(tmp_path: Path) -> None:
    """And nothing else does."""
    slides = [open_slide(write_pyramid(tmp_path / name, SMOOTH, (1,))) for name in ("a.tif", "b.tif")]
    draws = [
        slide.view(mpp=0.5, transform=EVERYTHING, seed=seed, epoch=epoch).draw
        for slide in slides for seed in (0, 1) for epoch in (0, 1)
    ]  # fmt: skip
    assert len({draw.affine for draw in draws if draw is not None}) == 8
    assert slides[0].view(mpp=0.5, transform=EVERYTHING, seed=1, epoch=1).draw == draws[3]


def test_views_with_opaque_steps_are_hashed_pickled_and_compared() -> None:
    """Their draw contains a dictionary."""
    slide = open_slide(SMOOTH)
    views = [slide.view(transform=A.Blur(p=1), seed=seed) for seed in (0, 0, 1)]
    assert hash(views[0]) == hash(views[1])
    assert views[0] == views[1]
    assert views[0] != views[2]
    assert pickle.loads(pickle.dumps(views[0])).draw == views[0].draw


def test_colour_transforms_do_not_change_geometry(coordinate_slide: Path) -> None:
    """Same size and affine; tiles equal the image's pixels, to one level."""
    transform = A.Compose([StainJitter(), ColorJitter(0.2, 0.2, 0.2, 0.0)])
    view = open_slide(coordinate_slide).view(transform=transform, seed=3)
    plain = open_slide(coordinate_slide).view()
    assert (view.size, view.affine, view.moves) == (plain.size, plain.affine, False)
    assert np.abs(view.image.numpy().astype(int) - whole(view)).max() <= 1


# -- lazily -----------------------------------------------------------------------------------------------------------


def test_building_a_view_of_a_giant_slide_decodes_nothing() -> None:
    """100,000² pixels, every kind of step; one tile then needs a few stored tiles."""
    slide, requests = counted_slide((100_000, 100_000))
    steps = [RandomAffine(rotate=(30, 30)), StainJitter(), ColorJitter(0.1, 0.1, 0.1, 0.1), GaussianNoise(2)]
    view = slide.view(mpp=0.5, transform=A.Compose(steps), seed=1)
    opaque = slide.view(mpp=0.5, transform=A.Compose([*steps, A.Blur(p=1)]), seed=1)
    images = [view.image, opaque.image]
    grid = TileGrid(view, 256, stride=20_000)
    bag = TileBag(view, grid)
    assert {(image.width, image.height) for image in images} == {view.size}
    assert (requests, len(bag) > 5) == ([], True)
    bag[5]
    assert 0 < len(requests) < 30


def test_a_tile_of_a_turned_giant_slide_is_where_the_affine_maps_it() -> None:
    """No drift over 100,000 px: the ramp repeats every 4096 px, and one pixel changes it by 16."""
    slide, _ = counted_slide((100_000, 100_000))
    view = slide.view(mpp=1.0, transform=turned(37))
    reader = TileReader(view, 64)
    rows, columns = np.mgrid[:64, :64] + 0.5
    checked = 0
    for corner in [(900, 900), (50_000, 60_000), (98_000, 99_000), (99_900, 60_000), (2_000, 97_000)]:
        left, top = view.from_level0(corner).tolist()
        place = view.affine.apply(np.stack([columns + left, rows + top], axis=-1))
        expected = place / 16 % 256
        steady = ((expected > 2) & (expected < 253) & (place > 16) & (place < 99_980)).all(axis=-1)
        pixels = reader.read([[left, top]])[0][..., :2]
        assert (np.abs(pixels - expected)[steady] <= 1.5).all()
        checked += int(steady.sum())
    assert checked > 5000


def test_a_thumbnail_of_a_shrunk_view_decodes_little() -> None:
    """Of a slide drawn a hundred times smaller, not the whole slide."""
    slide, requests = counted_slide((40_000, 30_000))
    view = slide.view(transform=turned(20, 0.01))
    picture = view.thumbnail(1024)
    assert picture.shape == (*view.size[::-1], 3)
    assert {level for level, _, _ in requests} == {2}


@pytest.mark.parametrize("transform", [turned(30), A.Compose([turned(120, 1.5), StainJitter()]), A.VerticalFlip(p=1)])
def test_a_thumbnail_is_the_view_made_smaller(transform: object) -> None:
    """Compared with box averages of the whole image; plot has its size."""
    view = open_slide(SMOOTH, slide_mpp=(0.25, 0.3)).view(mpp=0.3, transform=transform)
    small = view.thumbnail(200)
    assert max(small.shape[:2]) == 200
    factors = (small.shape[0] / view.size.height, small.shape[1] / view.size.width, 1)
    expected = scipy.ndimage.zoom(
        scipy.ndimage.gaussian_filter(view.image.numpy().astype(float), (2, 2, 0)),
        factors,
        order=1,
        grid_mode=True,
        mode="nearest",
    )
    far = scipy.ndimage.zoom(inner(view, 12).astype(float), factors[:2], order=1, grid_mode=True, mode="nearest") > 0.99
    assert np.percentile(np.abs(expected - small)[far], 99) <= 10  # a pixel of the thumbnail
    assert max(view.plot(200, titled=False).size) == 200


# -- graphs that are not lowered --------------------------------------------------------------------------------------


def test_an_opaque_step_runs_on_the_turned_slide() -> None:
    """Tiles are crops of the view's own image, white outside."""
    view = open_slide(SMOOTH, slide_mpp=0.25).view(transform=A.Compose([turned(25), A.Blur(p=1)]), seed=2)
    assert np.array_equal(whole(view), view.image.numpy())
    outside = TileReader(view, 16).read([[-16, 0], [view.size.width, 5]])
    assert (outside == 255).all()


def test_uncoloured_tiles_of_an_opaque_view_have_the_slide_s_colours() -> None:
    """Operations in ``operations`` are not applied."""
    slide = open_slide(SMOOTH, slide_mpp=0.25)
    view = slide.view(transform=A.Compose([A.HorizontalFlip(p=1), A.Blur(blur_limit=9, p=1)]))
    bag = TileBag(view, TileGrid(view, 100))
    assert [operation.kind for operation in bag.operations(0)] == ["opaque"]
    assert np.array_equal(bag.read_uncoloured([0])[0], SMOOTH[:100, ::-1][:, :100])


@pytest.mark.parametrize(
    "transform", [turned(30), ColorJitter(hue=0.2), A.Blur(p=1), A.Compose([turned(9), A.Blur(p=1)])]
)
@pytest.mark.parametrize("kind", ["tiff", "zarr"])
def test_damaged_pixels_are_an_error_every_time(tmp_path: Path, transform: object, kind: str) -> None:
    """Never black tiles, in repeated reads and with every transform."""
    noise = np.random.default_rng(0).integers(0, 255, (700, 1000, 3)).astype(np.uint8)
    if kind == "tiff":
        path = write_pyramid(tmp_path / "damaged.tif", noise, (1,))
        data = bytearray(path.read_bytes())
        data[len(data) // 2 :][:4000] = bytes(4000)
        data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
        path.write_bytes(data)
    else:
        path = tmp_path / "damaged.zarr"
        zarr.create_array(path, shape=noise.shape, chunks=(256, 256, 3), dtype="u1")[:] = noise
        chunk = sorted(file for file in path.rglob("*") if file.is_file() and file.name == "0")[5]
        chunk.write_bytes(b"garbage" * 10)
    view = open_slide(path, slide_mpp=0.5).view(transform=transform)
    bag = TileBag(view, TileGrid(view, 200, edge="pad"))
    for _ in range(3):
        with pytest.raises(CorruptSlideError):
            bag[:]


# -- tissue and outlines ----------------------------------------------------------------------------------------------


def disc(slide: Slide) -> TissueMask:
    """A disc of radius 250 px around (450, 330), at 8 level-0 px per mask pixel."""
    rows, columns = np.mgrid[:88, :125] * 8 + 4
    return TissueMask((columns - 450) ** 2 + (rows - 330) ** 2 < 250**2, Affine.scaling(8, 8), slide.dimensions)


@pytest.mark.parametrize("transform", MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("mpp", [None, 0.6])
def test_tissue_fractions_through_a_turned_view(transform: object, mpp: float | None) -> None:
    """Compared with a lookup of the mask pixel for every pixel of every tile."""
    slide = open_slide(SMOOTH, slide_mpp=0.25)
    view, tissue = slide.view(mpp=mpp, transform=transform), disc(slide)
    grid = TileGrid(view, 60, tissue=tissue, min_tissue=0.0, edge="pad")
    offsets = np.stack(np.meshgrid(np.arange(60), np.arange(60)), axis=-1) + 0.5
    places = view.affine.apply(grid.origins[:, None, None, :] + offsets)
    column, row = np.moveaxis(np.floor(places / 8).astype(int), -1, 0)
    inside = (column >= 0) & (column < 125) & (row >= 0) & (row < 88)
    naive = (tissue.mask[np.clip(row, 0, 87), np.clip(column, 0, 124)] & inside).mean(axis=(1, 2))
    assert naive.max() == 1
    assert naive.min() == 0
    assert np.abs(grid.tissue - naive).max() < 0.06  # half a mask px along the outline of a 60-px tile
    assert np.abs(grid.tissue - naive).mean() < 0.01
    area = (tissue.through(view).mask.sum() * np.prod(tissue.through(view).affine.scale())) * abs(
        np.linalg.det(view.affine.matrix())
    )
    assert area == pytest.approx(math.pi * 250**2, rel=0.02)


def test_kept_tiles_contain_tissue_in_a_mirrored_view() -> None:
    """A flip moves the tiles with the tissue."""
    pixels = np.full((700, 1000, 3), 255, np.uint8)
    pixels[100:300, 600:1000] = 120
    slide = open_slide(pixels, slide_mpp=0.25)
    rows, columns = np.mgrid[:88, :125] * 8 + 4
    tissue = TissueMask((rows >= 100) & (rows < 300) & (columns >= 600), Affine.scaling(8, 8), slide.dimensions)
    view = slide.view(transform=A.HorizontalFlip(p=1))
    bag = TileBag(view, TileGrid(view, 100, tissue=tissue, min_tissue=0.9))
    assert sorted(map(tuple, bag.grid.origins.tolist())) == [(c, r) for c in (0, 100, 200, 300) for r in (100, 200)]
    assert (bag[:] == 120).all()


def test_outlines_map_through_the_affine_and_back(tmp_path: Path) -> None:
    """A GeoJSON ring in view pixels is on the outline of the turned mask, and maps back to its origin."""
    slide = open_slide(SMOOTH, slide_mpp=0.25)
    view, tissue = slide.view(mpp=0.5, transform=turned(50)), disc(slide)
    tissue.to_geojson(tmp_path / "disc.geojson")
    written = json.loads((tmp_path / "disc.geojson").read_text())
    features = written.get("features", [written])
    ring = np.array(features[0]["geometry"]["coordinates"][0], float)
    seen = view.affine.inverse().apply(ring)
    assert np.allclose(view.affine.apply(seen), ring, atol=1e-6)
    through = tissue.through(view)
    inside = through.mask
    border = inside & ~scipy.ndimage.binary_erosion(inside)
    rows, columns = np.nonzero(border)
    outline = through.affine.apply(np.stack([columns, rows], axis=1) + 0.5)
    nearest = np.sqrt(((seen[:, None] - outline) ** 2).sum(axis=-1)).min(axis=1)
    assert nearest.max() <= 8  # view px: two pixels of the original mask, whose ring runs along stairs


def test_corners_and_coords_of_a_turned_grid() -> None:
    """Corners are mapped by the affine; coords are the first of them, rounded; on the slide they are turned squares."""
    view = open_slide(SMOOTH, slide_mpp=0.25).view(mpp=0.5, transform=turned(30))
    grid = TileGrid(view, 64)
    corners = grid.corners_level0()
    assert corners.shape == (len(grid), 4, 2)
    assert np.abs(corners[:, 0] - grid.coords).max() <= 0.5 + 1e-9
    sides = np.linalg.norm(np.roll(corners, -1, axis=1) - corners, axis=-1)
    assert np.allclose(sides, 128)
    assert np.allclose(np.linalg.norm(corners[:, 0] - corners[:, 2], axis=-1), 128 * math.sqrt(2))
    assert max(grid.plot(300, titled=False).size) == max(grid.drawn(300).size) == 300


@pytest.mark.parametrize("transform", [A.HorizontalFlip(p=1), turned(180), turned(90), A.VerticalFlip(p=1)])
def test_coords_of_a_mirrored_grid_make_the_grid_again(transform: object) -> None:
    """The first corner of a tile may be the slide's far corner."""
    view = open_slide(coordinate_pixels(1000, 700), slide_mpp=0.25).view(transform=transform)
    grid = TileGrid(view, 100)
    again = TileGrid.from_coords(view, grid.coords, 100)
    assert np.array_equal(again.origins, grid.origins)
    with pytest.raises(ConfigError, match="is outside the slide"):
        TileGrid.from_coords(view, [[5000, 100]], 100)


def test_a_slide_without_mpp_can_be_drawn() -> None:
    """At its stored resolution; the canvas is in its pixels."""
    view = open_slide(SMOOTH).view(transform=turned(90))
    assert view.mpp is None
    assert view.size == Size(700, 1000)
    assert "turned -90°" in repr(view) or "turned 90°" in repr(view)
