"""Bags with a transform per tile: sampled from the pyramid with real tissue around; draws depend on the tile."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import albumentationsxl as A
import numpy as np
import pytest
import scipy.ndimage
from counted_slide import counted_slide
from pyramids import coordinate_pixels

from slideio_pipe import (
    ColorJitter,
    Draw,
    Flip,
    GaussianNoise,
    RandomAffine,
    RandomResizedCrop,
    Rotate90,
    StainJitter,
    TileBag,
    TileGrid,
    TileReader,
    open_bag,
    open_slide,
    save_bag,
    stream,
)
from slideio_pipe.augment.executors.cpu import ColourProgram
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Size

y, x = np.mgrid[:700, :1000]
SMOOTH = np.stack([127 + 100 * np.sin(x / 40), 127 + 100 * np.cos(y / 30), (x + y) / 7], axis=-1).astype(np.uint8)
COLOURS = A.Compose([StainJitter(), ColorJitter(0.2, 0.2, 0.2, 0.1)])


def bag_of(transform: object, *, tile: int = 100, mpp: float | None = None, **options: object) -> TileBag:
    view = open_slide(SMOOTH, slide_mpp=0.25).view(mpp=mpp)
    return TileBag(view, TileGrid(view, tile), tile_transform=transform, **options)  # type: ignore[arg-type]


def oracle(bag: TileBag, index: int) -> np.ndarray:
    """SciPy in float64, from the view's plain pixels: bilinear, white beyond the slide."""
    plain, draw = bag.view.plain_image.numpy().astype(float), bag.draw(index)
    rows, columns = np.mgrid[: draw.canvas.height, : draw.canvas.width] + 0.5
    to_tile = np.linalg.inv(np.array([*draw.affine, 0, 0, 1]).reshape(3, 3))
    places = to_tile @ np.stack([columns.ravel(), rows.ravel(), np.ones(columns.size)])
    at = places[[1, 0]] + bag.grid.origins[index][::-1, None] - 0.5
    bands = [
        scipy.ndimage.map_coordinates(plain[..., band], at, order=1, mode="grid-constant", cval=255)
        for band in range(3)
    ]
    return np.stack(bands, axis=-1).reshape(*draw.canvas[::-1], 3)


MOVES = {
    "turned": RandomAffine(rotate=180, flip=True),
    "zoomed in": RandomAffine(rotate=25, scale=(1.0, 1.6)),
    "sheared": RandomAffine(rotate=0, shear=20),
    "shifted": RandomAffine(rotate=0, translate=0.3),
    "quarters": A.Compose([Rotate90(), Flip()]),
    "cropped": RandomResizedCrop(128, scale=(0.4, 1.0)),
    "albumentationsxl": A.Compose([A.Rotate(limit=45, p=1), A.HorizontalFlip()]),
}


@pytest.mark.parametrize("transform", MOVES.values(), ids=MOVES)
def test_tiles_equal_scipy_on_the_slide(transform: object) -> None:
    """To 1.5 levels (1/32 px, one rounding), 9 where the slide ends; around the tile is the slide."""
    bag = bag_of(transform, seed=3)
    tiles = bag[:]
    differences = np.stack([np.abs(tile - oracle(bag, k)) for k, tile in enumerate(tiles)])
    beside_the_border = [
        k for k, (left, top) in enumerate(bag.grid.origins) if 100 <= left <= 800 and 100 <= top <= 500
    ]
    assert len(beside_the_border) >= 35
    assert differences[beside_the_border].max() <= 1.5
    assert differences.max() <= 9
    assert tiles[beside_the_border].min() > 10


def test_quarter_turns_of_tiles_copy_bytes() -> None:
    """Of a slide that encodes coordinates."""
    view = open_slide(coordinate_pixels(600, 400)).view()
    bag = TileBag(view, TileGrid(view, 64, stride=50), tile_transform=A.Compose([Rotate90(), Flip()]))
    plain = TileBag(view, bag.grid)[:]
    kinds = set()
    for k, tile in enumerate(bag[:]):
        a, b, _, d, e, _ = bag.draw(k).affine
        kinds.add((a, b, d, e))
        matches = [np.rot90(side, turn) for side in (plain[k], plain[k][::-1]) for turn in range(4)]
        assert sum(np.array_equal(tile, match) for match in matches) == 1
    assert len(kinds) == 8


@pytest.mark.parametrize(("crop", "level"), [(1.0, 0), (2.0, 0), (3.0, 0), (4.0, 1), (5.0, 1), (16.0, 2), (40.0, 2)])
def test_a_shrunk_tile_is_read_from_a_coarser_level(crop: float, level: int) -> None:
    """The coarsest that is fine enough, a quarter counted as equal; with the right pixels."""
    slide, requests = counted_slide((20_000, 16_000))
    view = slide.view()
    side = round(64 * crop)
    grid = TileGrid.from_coords(view, [[5000, 4200]], side)
    bag = TileBag(view, grid, tile_transform=A.Compose([RandomAffine(rotate=(30, 30), flip=False), A.Resize(64, 64)]))
    assert bag.shape == (1, 64, 64, 3)
    pixels = bag[0]
    assert {found for found, _, _ in requests} == {level}
    rows, columns = np.mgrid[:64, :64] + 0.5
    inverse = np.linalg.inv(np.array([*bag.draw(0).affine, 0, 0, 1]).reshape(3, 3))
    place = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ inverse.T
    expected = (place[..., :2] + [5000, 4200]) / 16 % 256
    steady = ((expected > 8) & (expected < 248)).all(axis=-1)
    assert steady.mean() > 0.5
    assert np.abs(pixels[..., :2] - expected)[steady].max() <= 1.5


def test_a_shrunk_tile_decodes_few_stored_tiles() -> None:
    """A 4096-px tile in 256 px: from level 16× a few, not 256."""
    slide, requests = counted_slide((40_000, 40_000))
    view = slide.view()
    bag = TileBag(view, TileGrid(view, 4096), tile_transform=RandomResizedCrop(256, scale=(1, 1), ratio=(1, 1)))
    bag[len(bag) // 2]
    assert {level for level, _, _ in requests} == {2}
    assert len(set(requests)) <= 9


def test_turned_tiles_show_tissue_in_their_corners() -> None:
    """No black or white inside the slide; white outside."""
    view = open_slide(np.full((700, 1000, 3), 90, np.uint8)).view()
    bag = TileBag(view, TileGrid(view, 100), tile_transform=RandomAffine(rotate=(45, 45), flip=False))
    tiles = bag[:].reshape(7, 10, 100, 100, 3)
    assert (tiles[1:-1, 1:-1] == 90).all()
    assert (tiles[0, 0, :5, :5] == 255).all()
    assert tiles.min() == 90


@pytest.mark.parametrize("size", [32, (48, 24), 224])
def test_random_resized_crop_has_its_size(size: object) -> None:
    """Width first; the shapes of the bag, of an empty read and of a preallocated one."""
    width, height = size if isinstance(size, tuple) else (size, size)
    bag = bag_of(RandomResizedCrop(size))  # type: ignore[arg-type]
    assert bag.shape == (70, height, width, 3)
    assert bag[:3].shape == (3, height, width, 3)
    assert bag[0:0].shape == bag[[]].shape == (0, height, width, 3)
    out = np.zeros((2, height, width, 3), np.uint8)
    assert bag.read([4, 7], out) is out
    assert np.array_equal(out, bag[[4, 7]])
    assert bag.read([], np.zeros((0, height, width, 3), np.uint8)).shape == (0, height, width, 3)


@pytest.mark.parametrize("transform", [A.RandomScale(p=1), A.Compose([RandomResizedCrop(50, p=0.5)])])
def test_tiles_of_different_sizes_are_refused(transform: object) -> None:
    """Also read one by one, though each alone would be an array."""
    bag = bag_of(transform)
    with pytest.raises(ConfigError, match="draws tiles of different sizes; end it with Resize"):
        bag[:]
    sizes = [bag.draw(k).canvas for k in range(len(bag))]
    other = next(k for k, size in enumerate(sizes) if size != sizes[0])
    with pytest.raises(ConfigError, match="different sizes"):
        bag[other]
    with pytest.raises(ConfigError, match="different sizes"):
        TileReader(bag.view, 100).read(bag.grid.origins[[0, other]], draws=[bag.draw(0), bag.draw(other)])


def test_an_opaque_step_runs_on_tiles() -> None:
    """On the moved tile, as albumentationsxl applies it; in any order of reads."""
    bag = bag_of(A.Compose([RandomAffine(rotate=30), A.MotionBlur(p=1)]), seed=1)
    still = bag_of(A.Compose([RandomAffine(rotate=30), A.NoOp(p=1)]), seed=1)
    assert [operation.kind for operation in bag.operations(3)] == ["opaque"]
    expected = bag[:12]
    assert not np.array_equal(expected, still[:12])
    assert np.array_equal(bag.read(np.arange(12)[::-1], threads=4)[::-1], expected)
    assert np.array_equal(bag.read_uncoloured([5])[0], still[5])


def test_moving_tiles_of_an_opaque_view_is_refused() -> None:
    """Our error names the step; colours on such a view are allowed."""
    view = open_slide(SMOOTH).view(transform=A.Blur(p=1))
    grid = TileGrid(view, 100)
    with pytest.raises(ConfigError, match=r"Blur runs lazily only, .*; put the geometry into the slide's transform"):
        TileBag(view, grid, tile_transform=RandomAffine(rotate=30))[0]
    coloured = TileBag(view, grid, tile_transform=StainJitter())
    blurred = TileBag(view, grid)[0]
    assert np.array_equal(coloured[0], ColourProgram(coloured.draw(0).operations).apply(blurred))


@pytest.mark.parametrize("of_view", [None, StainJitter(), RandomAffine(rotate=40)], ids=["plain", "stain", "turned"])
def test_uncoloured_tiles_and_operations_make_the_tiles(of_view: object) -> None:
    """One program for both, so one rounding and one noise: the same bytes."""
    view = open_slide(SMOOTH, slide_mpp=0.25).view(transform=of_view)
    transform = A.Compose([RandomAffine(rotate=30), COLOURS, GaussianNoise(sigma=4)])
    bag = TileBag(view, TileGrid(view, 100), tile_transform=transform, seed=9)
    for k in range(0, len(bag), 9):
        plain = bag.read_uncoloured([k])[0]
        assert np.array_equal(ColourProgram(bag.operations(k)).apply(plain), bag[k])


def test_tile_draws_depend_on_seed_epoch_and_tile() -> None:
    """And on nothing else: pickling, threads, negative positions, or order."""
    transform = A.Compose([RandomAffine(rotate=180, scale=0.2), COLOURS])
    bag = bag_of(transform, seed=1, epoch=4)
    expected = bag[:]
    assert np.array_equal(bag_of(transform, seed=1, epoch=4)[:], expected)
    assert np.array_equal(pickle.loads(pickle.dumps(bag))[:], expected)
    assert np.array_equal(bag.read(np.arange(len(bag))[::-1], threads=4)[::-1], expected)
    assert np.array_equal(bag.read([-1, 3]), expected[[-1, 3]])
    for seed, epoch in [(1, 5), (2, 4)]:
        other = bag_of(transform, seed=seed, epoch=epoch)[:]
        assert not any(np.array_equal(one, two) for one, two in zip(other, expected, strict=True))
    assert len({bag.draw(k).affine for k in range(len(bag))}) == len(bag)


def test_stored_bags_keep_transform_seed_and_epoch(tmp_path: Path) -> None:
    """As albumentationsxl serialises it: enough to draw each tile again, also with NumPy seeds."""
    transform = A.Compose([RandomResizedCrop(64), StainJitter(basis=np.eye(3)), A.HorizontalFlip()])
    bag = bag_of(transform, seed=np.int64(11), epoch=2)
    save_bag(bag, tmp_path / "a.zarr")
    with open_bag(tmp_path / "a.zarr") as stored:
        kept = stored.provenance()["tile_draw"]
        assert (kept["seed"], kept["epoch"]) == (11, 2)
        assert kept == json.loads(json.dumps(kept))
        assert np.array_equal(stored[:], bag[:])
    again = A.from_dict({"transform": kept["transform"]})
    same = bag_of(again, seed=kept["seed"], epoch=kept["epoch"])
    assert [same.draw(k) for k in range(len(bag))] == [bag.draw(k) for k in range(len(bag))]
    assert bag_of(None).provenance()["tile_draw"] is None


@pytest.mark.parametrize("transform", [RandomResizedCrop(56), A.Compose([RandomAffine(), COLOURS, A.Resize(56, 56)])])
def test_streams_deliver_drawn_tiles(transform: object) -> None:
    """In the bag's order and drawn size; colours by another executor differ by one level at most."""
    bag = bag_of(transform, seed=2)
    batches = list(stream(bag, device="cpu", normalize=None, batch_size=16, threads=2))
    tiles = np.concatenate([batch.tiles.permute(0, 2, 3, 1).numpy() for batch in batches])
    assert tiles.shape == bag.shape
    assert np.abs(tiles.astype(int) - bag[:]).max() <= 1


def test_draws_of_tile_and_slide_are_multiplied() -> None:
    """Turns by 30° and −30° give the slide back; their product is sampled once."""
    slide = open_slide(SMOOTH, slide_mpp=0.25)
    view = slide.view(transform=RandomAffine(rotate=(30, 30), flip=False))
    bag = TileBag(view, TileGrid(view, 100), tile_transform=RandomAffine(rotate=(-30, -30), flip=False))
    for k in range(len(bag)):
        middle = view.affine.apply(bag.grid.origins[k] + 50.0)
        left, top = middle - 50
        if not (2 <= left <= 898 and 2 <= top <= 598):
            continue
        rows, columns = np.mgrid[:100, :100]
        at = [rows + top, columns + left]
        expected = np.stack(
            [scipy.ndimage.map_coordinates(SMOOTH[..., b].astype(float), at, order=1) for b in range(3)]
        )
        assert np.abs(bag[k] - np.moveaxis(expected, 0, -1)).max() <= 1.5


def test_a_reader_accepts_any_draws() -> None:
    """An affine to half size shows the tile in half the pixels."""
    view = open_slide(SMOOTH, slide_mpp=0.25).view()
    half = Draw(size=Size(100, 100), canvas=Size(50, 50), affine=(0.5, 0, 0, 0, 0.5, 0))
    found = TileReader(view, 100).read([[200, 100], [850, 650]], draws=[half, half])
    expected = SMOOTH[100:200, 200:300].reshape(50, 2, 50, 2, 3).mean(axis=(1, 3))
    assert np.abs(found[0] - expected).max() <= 3  # the antialiased triangle is wider than the box
    assert (found[1][25:] == 255).all()
    assert math.isclose(found[1][:24].mean(), SMOOTH[650:698, 850:950].mean(), rel_tol=0.01)
