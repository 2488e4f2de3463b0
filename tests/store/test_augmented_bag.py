"""Stored bags with transforms: the tiles of the slide where neighbours are stored, reflected or white where not."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import albumentationsxl as A
import earlier
import numpy as np
import pytest
import scipy.ndimage
from made_slides import made_slide
from memory_bag import MemoryBag
from pyramids import coordinate_pixels, write_pyramid

import slideio_pipe as sp
from slideio_pipe.augment.executors.cpu import ColourProgram
from slideio_pipe.cohort.ledger import fingerprint
from slideio_pipe.errors import BagFormatError, ConfigError, NoTissueError, OutputExistsError
from slideio_pipe.store import StoredBag
from slideio_pipe.store.tile_layout import Shown, TileLayout

TILE = 64
COLOURS = A.Compose([sp.StainJitter(alpha=0.3), sp.ColorJitter(0.2, 0.2, 0.2, 0.05)])
CHAIN = A.Compose(
    [
        sp.RandomAffine(rotate=25),
        sp.RandomResizedCrop((48, 48), scale=(0.5, 1.5)),
        A.HorizontalFlip(p=0.5),
        A.VerticalFlip(p=0.5),
        sp.ColorJitter(0.2, 0.2, 0.2, 0.05),
    ]
)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> sp.Slide:
    """A JPEG slide of one level, so that a slide and a store of its tiles have the same pixels to shrink."""
    rows, columns = np.mgrid[:512, :768]
    rng = np.random.default_rng(4)
    waves = [127 + 90 * np.sin(columns / 21), 127 + 90 * np.cos(rows / 17), (rows + columns) / 6]
    pixels = np.stack(waves, axis=-1) + rng.normal(0, 12, (512, 768, 3))
    path = tmp_path_factory.mktemp("slide") / "a.tif"
    write_pyramid(path, pixels.clip(0, 255).astype(np.uint8), (1,), mpp=0.25, tile=TILE, compression="jpeg")
    return sp.open_slide(path)


def whole(slide: sp.Slide, **options: Any) -> sp.TileBag:
    view = slide.view()
    return sp.TileBag(view, sp.TileGrid(view, TILE), **options)


@pytest.fixture(scope="module", params=["source", "zstd", "none"])
def stored(request: pytest.FixtureRequest, slide: sp.Slide, tmp_path_factory: pytest.TempPathFactory) -> StoredBag:
    folder = tmp_path_factory.mktemp("store")
    return sp.save_bag(whole(slide, label=1), folder / "a.bag.zarr", pixels=request.param, progress=False)


@pytest.fixture(scope="module")
def full(slide: sp.Slide, tmp_path_factory: pytest.TempPathFactory) -> StoredBag:
    """Every tile of the slide, as its own JPEG bytes."""
    folder = tmp_path_factory.mktemp("full")
    return sp.save_bag(whole(slide, label=1), folder / "a.bag.zarr", pixels="source", progress=False)


@pytest.fixture(scope="module")
def holed(slide: sp.Slide, tmp_path_factory: pytest.TempPathFactory) -> StoredBag:
    """The same with every tenth tile left out, in another order."""
    view = slide.view()
    kept = np.random.default_rng(2).permutation(96)[:86]
    bag = sp.TileBag.from_coords(view, sp.TileGrid(view, TILE).coords[kept], TILE)
    return sp.save_bag(bag, tmp_path_factory.mktemp("holed") / "h.bag.zarr", pixels="source", progress=False)


def everything(bag: Any, **options: Any) -> np.ndarray:
    return bag.read(np.arange(len(bag)), **options)


def sampled(pixels: np.ndarray, at: np.ndarray, **border: Any) -> np.ndarray:
    """SciPy in float64, bilinear: ``at`` is (row, column) of pixel centres."""
    bands = [scipy.ndimage.map_coordinates(pixels[..., band].astype(float), at, order=1, **border) for band in range(3)]
    return np.stack(bands, axis=-1)


def places_of(draw: sp.Draw) -> np.ndarray:
    """Return the place in the tile, (2, H, W) row and column, that each pixel of a drawn tile shows."""
    rows, columns = np.mgrid[: draw.canvas.height, : draw.canvas.width] + 0.5
    inverse = np.linalg.inv(np.array([*draw.affine, 0, 0, 1]).reshape(3, 3))
    x, y, _ = np.moveaxis(np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ inverse.T, -1, 0)
    return np.stack([y, x]) - 0.5


MOVES = {
    "turned": sp.RandomAffine(rotate=180, flip=True),
    "zoomed in": sp.RandomAffine(rotate=25, scale=(1.0, 1.6)),
    "sheared": sp.RandomAffine(rotate=0, shear=20),
    "shifted": sp.RandomAffine(rotate=0, translate=0.3),
    "quarters": A.Compose([sp.Rotate90(), sp.Flip()]),
    "far": sp.RandomAffine(rotate=0, translate=(1.4, 1.4), flip=False),
}


@pytest.mark.parametrize("move", [name for name in MOVES if name != "far"])
def test_tiles_equal_scipy_on_the_mosaic(full: StoredBag, slide: sp.Slide, move: str) -> None:
    """To 1.5 levels, as tiles of a slide; pixels beyond the mosaic are those of numpy's symmetric padding."""
    bag = sp.AugmentedBag(full, tile_transform=MOVES[move], seed=3)
    columns, rows = (np.array(slide.dimensions) // TILE).tolist()
    mosaic = full[:].reshape(rows, columns, TILE, TILE, 3).swapaxes(1, 2).reshape(rows * TILE, columns * TILE, 3)
    padded = np.pad(mosaic, ((2 * TILE, 2 * TILE), (2 * TILE, 2 * TILE), (0, 0)), "symmetric")
    for k, tile in enumerate(everything(bag)):
        at = places_of(bag.draw(k)) + (full.coords[k][::-1] + 2 * TILE)[:, None, None]
        assert np.abs(tile - sampled(padded, at)).max() <= 1.5


@pytest.mark.parametrize("transform", MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("beyond", ["reflect", "white"])
def test_a_tile_alone_equals_scipy_on_the_tile(full: StoredBag, transform: Any, beyond: str) -> None:
    """Without neighbours: reflected at its own edge, or white around it."""
    bag = sp.AugmentedBag(full, tile_transform=transform, seed=3, neighbours=False, beyond=beyond)
    border = {"mode": "reflect"} if beyond == "reflect" else {"mode": "grid-constant", "cval": 255}
    plain = full[:]
    for k, tile in enumerate(everything(bag)):
        difference = np.abs(tile - sampled(plain[k], places_of(bag.draw(k)), **border))
        assert difference.max() <= (1.5 if beyond == "reflect" else 9)  # 1/32 px of a white edge


@pytest.mark.parametrize("transform", [CHAIN, *MOVES.values()], ids=["chain", *MOVES])
def test_tiles_are_those_of_the_slide(stored: StoredBag, slide: sp.Slide, transform: Any) -> None:
    """Bit for bit with the same seed and epoch, where no tile beyond the slide is reached; for any encoding."""
    seed = {"seed": 11, "epoch": 2}
    view = slide.view(transform=COLOURS, **seed)
    ours = sp.AugmentedBag(stored, tile_transform=transform, slide_transform=COLOURS, **seed)
    theirs = sp.TileBag(view, sp.TileGrid(view, TILE), tile_transform=transform, **seed)
    assert ours.view.draw is not None
    assert ours.view.draw.operations == view.draw.operations  # type: ignore[union-attr]
    assert [ours.draw(k) for k in range(96)] == [theirs.draw(k) for k in range(96)]
    inside = np.flatnonzero(((stored.coords >= 2 * TILE) & (stored.coords < np.array([9, 5]) * TILE)).all(axis=1))
    assert len(inside) == 21
    np.testing.assert_array_equal(ours.read(inside), theirs.read(inside))


@pytest.mark.parametrize("pixels", ["source", "zstd"])
def test_shrunk_tiles_are_those_of_the_slide(slide: sp.Slide, tmp_path: Path, pixels: str) -> None:
    """From JPEG decoded smaller, bit for bit; from other encodings by means, to a few levels."""
    crop = sp.RandomResizedCrop((20, 20), scale=(0.9, 1.5))
    stored = sp.save_bag(whole(slide), tmp_path / "a.bag.zarr", pixels=pixels, progress=False)
    inside = np.flatnonzero(((stored.coords >= 2 * TILE) & (stored.coords < np.array([9, 5]) * TILE)).all(axis=1))
    ours = sp.AugmentedBag(stored, tile_transform=crop, seed=1).read(inside)
    theirs = whole(slide, tile_transform=crop, seed=1).read(inside)
    if pixels == "source":
        np.testing.assert_array_equal(ours, theirs)
    else:
        assert 0 < np.abs(ours.astype(int) - theirs).max() <= 12
        assert np.abs(ours.astype(float) - theirs).mean() < 1.5


def test_a_grid_with_holes_is_sampled_where_it_is_whole(holed: StoredBag, slide: sp.Slide) -> None:
    """Tiles that reach stored ones equal those of the slide; the others differ, and have no white."""
    bag = sp.AugmentedBag(holed, tile_transform=sp.RandomAffine(rotate=20, flip=False), seed=5)
    view = slide.view()
    theirs = sp.TileBag.from_coords(view, holed.coords, TILE, tile_transform=bag.tile_transform, seed=5)
    same = (everything(bag) == everything(theirs)).all(axis=(1, 2, 3))
    there = {tuple(place) for place in (holed.coords // TILE).tolist()}
    around = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
    full = [all((x + dx, y + dy) in there for dx, dy in around) for x, y in (holed.coords // TILE).tolist()]
    assert 10 <= sum(full) < 60
    assert same[full].all()
    assert not same[~np.array(full)].all()
    white = sp.AugmentedBag(holed, tile_transform=bag.tile_transform, seed=5, beyond="white")
    assert not (everything(bag) == 255).all(axis=-1).any()
    mosaic = np.full((512 + 2 * TILE, 768 + 2 * TILE, 3), 255, np.uint8)
    for (x, y), tile in zip(holed.coords + TILE, holed[:], strict=True):
        mosaic[y : y + TILE, x : x + TILE] = tile
    for k, tile in enumerate(everything(white)):
        at = places_of(white.draw(k)) + (holed.coords[k][::-1] + TILE)[:, None, None]
        assert np.abs(tile - sampled(mosaic, at)).max() <= 9  # 1/32 px of a white edge


@pytest.mark.parametrize("beyond", ["reflect", "white"])
def test_threads_and_orders_do_not_change_a_byte(holed: StoredBag, beyond: str) -> None:
    """1, 2 and 4 threads, tile by tile, in another process, and another order."""
    bag = sp.AugmentedBag(holed, tile_transform=CHAIN, slide_transform=COLOURS, seed=6, epoch=1, beyond=beyond)
    expected = everything(bag)
    for threads in (2, 4):
        np.testing.assert_array_equal(everything(bag, threads=threads), expected)
    again = pickle.loads(pickle.dumps(bag))
    order = np.random.default_rng(0).permutation(len(bag))
    np.testing.assert_array_equal(again.read(order), expected[order])
    np.testing.assert_array_equal(np.stack([bag[k] for k in range(len(bag))]), expected)
    np.testing.assert_array_equal(np.sort(bag.storage_order(order)), np.arange(len(bag)))


@pytest.mark.system
def test_draws_are_replayed_in_a_spawned_process(full: StoredBag, tmp_path: Path) -> None:
    """The bag is pickled by the path of its store."""
    bag = sp.AugmentedBag(full, tile_transform=CHAIN, slide_transform=COLOURS, seed=8)
    (tmp_path / "bag.pickle").write_bytes(pickle.dumps(bag))
    assert (tmp_path / "bag.pickle").stat().st_size < 20_000
    code = "import pickle, sys, zlib; print(zlib.crc32(pickle.load(open(sys.argv[1], 'rb'))[:].tobytes()))"
    command = [sys.executable, "-c", code, str(tmp_path / "bag.pickle")]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(found) == zlib.crc32(bag[:].tobytes())


def test_epochs_and_seeds_have_other_draws(full: StoredBag) -> None:
    """Of tiles and of the whole bag; the tile's number decides, not its place in the request."""
    bag = sp.AugmentedBag(full, tile_transform=CHAIN, slide_transform=COLOURS, seed=1)
    for other in (bag.at_epoch(1), sp.AugmentedBag(full, tile_transform=CHAIN, slide_transform=COLOURS, seed=2)):
        assert other.view.draw != bag.view.draw
        assert other.draw(0) != bag.draw(0)
        assert (everything(other) != everything(bag)).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(bag.at_epoch(0)[:], bag[:])


def test_colours_alone_change_no_place(full: StoredBag) -> None:
    """One draw for all tiles; without any transform the tiles are the stored ones."""
    np.testing.assert_array_equal(sp.AugmentedBag(full)[:], full[:])
    bag = sp.AugmentedBag(full, slide_transform=COLOURS, seed=2)
    assert bag.operations(3) == bag.view.draw.operations  # type: ignore[union-attr]
    np.testing.assert_array_equal(bag[:], ColourProgram(bag.operations(0)).apply(full[:]))
    np.testing.assert_array_equal(bag.read_uncoloured(np.arange(4)), full[:4])
    assert bag.shape == full.shape


def test_streams_colour_on_the_device(full: StoredBag) -> None:
    """To one level of the host's colours, and never with a transform that runs only as a graph."""
    bag = sp.AugmentedBag(full, tile_transform=CHAIN, slide_transform=COLOURS, seed=4)
    for colours in ("host", "device"):
        batches = list(sp.stream(bag, device="cpu", normalize=None, batch_size=32, threads=2, colours=colours))
        tiles = np.concatenate([batch.tiles.permute(0, 2, 3, 1).numpy() for batch in batches])
        assert np.abs(tiles.astype(int) - bag[:]).max() <= 1
    blurred = sp.AugmentedBag(full, tile_transform=A.Compose([sp.Flip(), A.Blur(p=1)]))
    assert blurred[0].shape == (TILE, TILE, 3)
    with pytest.raises(ConfigError, match="Blur cannot run on a device"):
        sp.stream(blurred, device="cpu", normalize=None, colours="device")


def test_overlapping_tiles_have_the_neighbours_of_their_own_place(slide: sp.Slide, tmp_path: Path) -> None:
    """With a stride of half a tile, the tile a whole side further is stored, too."""
    view = slide.view()
    bag = sp.TileBag(view, sp.TileGrid(view, TILE, stride=TILE // 2))
    stored = sp.save_bag(bag, tmp_path / "o.bag.zarr", progress=False)
    turned = sp.RandomAffine(rotate=30, flip=False)
    ours = everything(sp.AugmentedBag(stored, tile_transform=turned))
    theirs = everything(sp.TileBag(view, bag.grid, tile_transform=turned))
    inside = ((stored.coords >= TILE) & (stored.coords + 2 * TILE <= np.array(slide.dimensions))).all(axis=1)
    assert inside.sum() > 200
    np.testing.assert_array_equal(ours[inside], theirs[inside])


def test_random_corners_are_alone(slide: sp.Slide, tmp_path: Path) -> None:
    """Each tile is reflected at its own edge; so are tiles between pixels, and those drawn one by one."""
    view = slide.view()
    corners = np.random.default_rng(1).choice(400, (20, 2), replace=False) + 1
    stored = sp.save_bag(sp.TileBag.from_coords(view, corners, TILE), tmp_path / "r.bag.zarr", progress=False)
    bag = sp.AugmentedBag(stored, tile_transform=MOVES["turned"])
    assert bag.alone == "no tile is stored beside another"
    for k, tile in enumerate(everything(bag)):
        expected = sampled(stored[k], places_of(bag.draw(k)), mode="reflect")
        assert np.abs(tile - expected).max() <= 1.5
    between = sp.TileBag.from_coords(view, sp.TileGrid(view, TILE).coords + 0.5, TILE)
    drawn = whole(slide, tile_transform=sp.Flip())
    for name, made, reason in (("b", between, "between pixels"), ("d", drawn, "drawn one by one")):
        again = sp.save_bag(made, tmp_path / f"{name}.bag.zarr", progress=False)
        alone = sp.AugmentedBag(again, tile_transform=MOVES["turned"])
        assert reason in alone.alone
        assert "alone, reflected beyond" in repr(alone)
        assert reason in alone.provenance()["augmented"]["alone"]
        expected = sampled(again[20], places_of(alone.draw(20)), mode="reflect")
        assert np.abs(alone[20] - expected).max() <= 1.5


def test_a_damaged_tile_costs_that_tile(holed: StoredBag, full: StoredBag, tmp_path: Path) -> None:
    """The others are read as if it were not stored, in any order of reading."""
    lost = 40
    copy = tmp_path / "damaged.bag.zarr"
    shutil.copytree(full.path, copy)
    damage(copy, next(full.encoded([lost])))
    transform = sp.RandomAffine(rotate=25, flip=False)
    bag = sp.AugmentedBag(sp.open_bag(copy), tile_transform=transform, seed=2)
    others = np.delete(np.arange(len(bag)), lost)
    found = bag.read(others)
    with pytest.raises(BagFormatError, match="tile 40 cannot be decoded"):
        bag.read([39, 40])
    # A store that never had the tile.
    layout = [k for k in range(96) if k != lost]
    slide_bag = sp.save_bag(_Part(full, layout), tmp_path / "part.bag.zarr", progress=False)
    expected = sp.AugmentedBag(slide_bag, tile_transform=transform, seed=2)
    expected._run = bag._run(layout).only  # type: ignore[method-assign]  # numbers of tiles differ by one
    np.testing.assert_array_equal(found, everything(expected))
    backwards = sp.AugmentedBag(sp.open_bag(copy), tile_transform=transform, seed=2)
    np.testing.assert_array_equal(np.stack([backwards[int(k)] for k in others[::-1]])[::-1], found)
    batches = sp.stream(bag, device="cpu", normalize=None, batch_size=16, on_error="skip", threads=2)
    with pytest.warns(sp.SlideioPipeWarning, match="1 tile could not be read"):
        read = np.concatenate([batch.index for batch in batches])
    np.testing.assert_array_equal(read, others)


class _Part(MemoryBag):
    """Some tiles of a stored bag."""

    def __init__(self, bag: StoredBag, kept: list[int]) -> None:
        self.tiles, self.coords = bag[:][kept], bag.coords[kept]
        self.grid_index, self.tissue = bag.grid_index[kept], bag.tissue[kept]
        self.shape, self.label, self.name, self._made = self.tiles.shape, bag.label, bag.name, bag.provenance()

    def provenance(self) -> dict:
        return self._made


def damage(store: Path, encoded: bytes) -> None:
    """Overwrite the middle of a stored JPEG."""
    for shard in (store / "tiles").rglob("*"):
        if shard.is_file() and encoded in (data := shard.read_bytes()):
            start = data.index(encoded)
            shard.write_bytes(data[:start] + b"\xff\xd8" + bytes(len(encoded) - 2) + data[start + len(encoded) :])
            return
    raise AssertionError("the tile is not there")


def test_white_tiles_of_a_damaged_slide_are_no_neighbours(full: StoredBag, tmp_path: Path) -> None:
    """A store lists them; a tile beside one is reflected."""

    class Failing(_Part):
        def read(self, indices: Any, out: Any = None, *, threads: int = 1) -> np.ndarray:
            if 40 in np.asarray(indices):
                raise sp.errors.CorruptSlideError("tile 40 cannot be decoded", slide="a")
            return super().read(indices, out, threads=threads)

    with pytest.warns(sp.SlideioPipeWarning, match="1 of 96 tiles could not be read"):
        made = sp.save_bag(
            Failing(full, list(range(96))), tmp_path / "w.bag.zarr", on_error="white", progress=False, pixels="none"
        )
    assert (made[40] == 255).all()
    bag = sp.AugmentedBag(made, tile_transform=sp.RandomAffine(rotate=(20, 20), flip=False))
    assert (bag.read([39, 41]) < 255).any(axis=-1).all()
    assert (bag[40][32] == 255).all()


@pytest.mark.parametrize(
    ("transform", "reason"),
    [
        (A.Compose([sp.StainJitter(), sp.RandomAffine(p=0.01)]), "RandomAffine of slide_transform cannot move"),
        (A.Blur(), "Blur of slide_transform runs only on a whole slide"),
        (A.AdvancedBlur(), "AdvancedBlur"),
    ],
)
def test_a_bag_has_only_colours_of_a_slides_transform(full: StoredBag, transform: Any, reason: str) -> None:
    """Even if the rest is rarely drawn; the remedy is the tile transform."""
    with pytest.raises(ConfigError, match=reason) as caught:
        sp.AugmentedBag(full, slide_transform=transform)
    assert "tile_transform" in str(caught.value) or "instead" in str(caught.value)


def test_wrong_arguments_are_refused(full: StoredBag, slide: sp.Slide, tmp_path: Path) -> None:
    """With the reason and the remedy."""
    with pytest.raises(ConfigError, match="a TileBag is no stored bag; pass open_bag"):
        sp.AugmentedBag(whole(slide))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match='beyond is \'mirror\'; pass "reflect" or "white"'):
        sp.AugmentedBag(full, beyond="mirror")
    with pytest.raises(ConfigError, match="shows 16 tiles and more beside"):
        sp.AugmentedBag(full, tile_transform=sp.RandomAffine(rotate=0, scale=(0.02, 0.02)))[0]
    wide = sp.save_bag(MemoryBag(), tmp_path / "wide.bag.zarr", progress=False)
    with pytest.raises(ConfigError, match="tiles of 6×4 px cannot be augmented"):
        sp.AugmentedBag(wide, tile_transform=sp.Flip())


def test_stains_are_measured_in_the_bag(tmp_path: Path) -> None:
    """Close to those of the slide, once, and kept by copies and other epochs."""
    made_slide(tmp_path / "a.svs", size=(2048, 1536), seed=3, pieces=1)
    slide = sp.open_slide(tmp_path / "a.svs")
    view = slide.view()
    grid = sp.TileGrid(view, 128, tissue=sp.find_tissue(slide), min_tissue=0.5)
    stored = sp.save_bag(sp.TileBag(view, grid), tmp_path / "a.bag.zarr", progress=False)
    own = A.Compose([sp.StainJitter(alpha=0.2, basis="slide")])
    for part in ("slide_transform", "tile_transform"):
        bag = sp.AugmentedBag(stored, **{part: own}, seed=1)
        colour = bag.view.slide.colour
        angles = np.degrees(np.arccos((np.array(colour.basis) * np.array(slide.colour.basis)).sum(1).clip(-1, 1)))
        assert angles[:2].max() < 4
        assert pickle.loads(pickle.dumps(bag)).view.slide.colour is not None
        assert vars(bag.at_epoch(3).view.slide)["colour"] == colour
        assert (bag[0] != stored[0]).any()


def test_labels_follow_augmented_tiles(slide: sp.Slide, full: StoredBag) -> None:
    """By the affines of the draws, which are those of the slide's bag."""
    bag = sp.AugmentedBag(full, tile_transform=CHAIN, seed=7)
    theirs = whole(slide, tile_transform=CHAIN, seed=7)
    for ours, other in zip(bag.affines([0, 30, -1]), theirs.affines([0, 30, -1]), strict=True):
        np.testing.assert_allclose(ours.as_tuple(), other.as_tuple(), atol=1e-9)


def test_a_store_of_augmented_tiles_says_so(full: StoredBag, tmp_path: Path) -> None:
    """Saved again: with the pixels, the draws, and what was beyond."""
    bag = sp.AugmentedBag(full, tile_transform=CHAIN, slide_transform=COLOURS, seed=7, beyond="white")
    again = sp.save_bag(bag, tmp_path / "again.bag.zarr", progress=False)
    np.testing.assert_array_equal(again[:], bag[:])
    made = again.provenance()
    assert made["tile_draw"]["seed"] == 7
    assert made["augmented"]["beyond"] == "white"
    assert made["augmented"]["slide_draw"]["operations"]
    assert "drawn one by one" in sp.AugmentedBag(again, tile_transform=sp.Flip()).alone
    assert str(sp.explain(CHAIN, bag)).startswith("AugmentedBag(a.tif: 96 tiles of 48×48 px from stored 64×64 px")


def test_a_window_shows_the_nearest_stored_tile() -> None:
    """Reflected once per edge that is crossed; corners prefer the neighbour that is stored."""
    places = np.array([[0, 0], [64, 0], [64, 64]])  # an L: below the first there is none
    layout = TileLayout(3, 64, places)
    column, row = (layout.origins(np.array([0]), np.array([[-2, -2, 2, 2]]))[0] // 64).tolist()
    around = {(dx, dy): layout.shown(column + dx, row + dy) for dx in (-1, 0, 1, 2) for dy in (-1, 0, 1, 2)}
    assert around[0, 0] == Shown(0)
    assert (around[1, 0], around[1, 1]) == (Shown(1), Shown(2))
    assert (around[-1, 0], around[0, 1], around[0, 2]) == (Shown(0, True), Shown(0, False, True), Shown(0))
    assert around[-1, -1] == Shown(0, True, True)
    assert around[1, -1] == Shown(1, False, True)
    assert around[2, 0] == Shown(1, True)
    assert around[2, 1] == Shown(2, True)
    layout.lose(1)
    assert layout.shown(column + 1, row) == Shown(0, True)
    white = TileLayout(3, 64, places, "white")
    column, row = (white.origins(np.array([0]), np.array([[-1, 0, 0, 0]]))[0] // 64).tolist()
    assert (white.shown(column - 1, row), white.shown(column + 1, row)) == (None, Shown(1))


def test_coordinates_of_a_slide_are_read_at_their_place(tmp_path: Path) -> None:
    """A slide whose pixels are their coordinates: a neighbour at the wrong place would be a wrong number."""
    path = write_pyramid(tmp_path / "c.tif", coordinate_pixels(640, 420), (1,), mpp=0.5)
    view = sp.open_slide(path).view()
    stored = sp.save_bag(sp.TileBag(view, sp.TileGrid(view, 60)), tmp_path / "c.bag.zarr", progress=False)
    shifted = sp.RandomAffine(rotate=0, translate=(0.25, 0.25), flip=False)
    bag = sp.AugmentedBag(stored, tile_transform=shifted)
    x, y = np.round(bag.affines([13])[0].apply((0, 0))).astype(int)
    np.testing.assert_array_equal(bag[13], coordinate_pixels(640, 420)[y : y + 60, x : x + 60])


def decoded_by(read: Any) -> list[tuple[int, int]]:
    """Return (side of its tiles, tile) of every stored tile that a call decodes."""
    found: list[tuple[int, int]] = []
    decode = StoredBag.decoded

    def noted(bag: StoredBag, index: int, out: np.ndarray, reduce: int = 1) -> None:
        found.append((bag.shape[1], index))
        decode(bag, index, out, reduce)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoredBag, "decoded", noted)
        read()
    return found


def test_only_reached_tiles_are_decoded(full: StoredBag) -> None:
    """Each once: of a mirrored tile itself; of all, turned, every tile, also for the windows at the edge."""
    quarters = sp.AugmentedBag(full, tile_transform=MOVES["quarters"])
    assert decoded_by(lambda: quarters[30]) == [(TILE, 30)]
    turned = sp.AugmentedBag(full, tile_transform=sp.RandomAffine(rotate=(20, 20), flip=False))
    assert sorted(decoded_by(lambda: turned[30])) == [(TILE, k) for k in (18, 29, 30, 31, 42)]
    others = sp.AugmentedBag(full, tile_transform=sp.RandomAffine(rotate=(20, 20), flip=False))
    assert sorted(decoded_by(lambda: others[:])) == [(TILE, k) for k in range(96)]


def test_shrunk_tiles_are_read_from_smaller_copies(slide: sp.Slide, tmp_path: Path) -> None:
    """Lossless copies change no byte, and nothing else is decoded."""
    stored = sp.save_bag(whole(slide, label=1), tmp_path / "a.bag.zarr", pixels="source", progress=False)
    crop = A.Compose([sp.RandomAffine(rotate=20), sp.RandomResizedCrop((14, 14), scale=(0.9, 1.4))])
    parts = (crop, MOVES["turned"])
    before = [sp.AugmentedBag(stored, tile_transform=part, seed=1)[:] for part in parts]
    name = fingerprint(stored.path)
    copies = sp.add_reduced(stored, 4, pixels="zstd", progress=False)
    assert fingerprint(stored.path) == name
    assert (copies.shape, copies.view_mpp) == ((96, 16, 16, 3), (1.0, 1.0))
    assert sp.open_bag(stored.path)[:].tobytes() == stored[:].tobytes()
    for part, tiles in zip(parts, before, strict=True):
        np.testing.assert_array_equal(sp.AugmentedBag(stored, tile_transform=part, seed=1)[:], tiles)
    assert {side for side, _ in decoded_by(lambda: sp.AugmentedBag(stored, tile_transform=crop, seed=1)[:])} == {16}
    with pytest.raises(OutputExistsError):
        sp.add_reduced(stored, 4, progress=False)
    lossy = sp.add_reduced(stored, 2, progress=False)
    assert lossy.attributes["pixels"]["quality"] == 95
    assert sp.AugmentedBag(stored).view.slide.pyramid.downsamples == ((1, 1), (2, 2), (4, 4))


def test_smaller_copies_are_checked(slide: sp.Slide, tmp_path: Path) -> None:
    """Their factor when they are made, and their tiles when they are read."""
    stored = sp.save_bag(whole(slide), tmp_path / "a.bag.zarr", progress=False)
    for factor in (3, 16):
        with pytest.raises(ConfigError, match="pass 2, 4 or 8, a divisor of their sides"):
            sp.add_reduced(stored, factor, progress=False)
    odd = sp.save_bag(MemoryBag(), tmp_path / "odd.bag.zarr", progress=False)
    with pytest.raises(ConfigError, match="tiles of 6×4 px cannot be stored smaller by a factor of 4"):
        sp.add_reduced(odd, 4, progress=False)
    sp.save_bag(MemoryBag(96, 16, 16), stored.path / "reduced" / "2", progress=False)
    with pytest.raises(BagFormatError, match="96 tiles of 16×16 px are no copies of these"):
        sp.AugmentedBag(stored, tile_transform=sp.Flip())
    assert sp.open_bag(stored.path).shape == stored.shape


def test_an_interrupted_copy_is_continued(slide: sp.Slide, tmp_path: Path) -> None:
    """Until it is complete, tiles are read without it; a damaged tile makes none."""
    stored = sp.save_bag(whole(slide), tmp_path / "a.bag.zarr", pixels="source", progress=False)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sp.add_reduced(stored, 4, progress=stop)
    assert len(sp.AugmentedBag(stored).view.slide.pyramid.levels) == 1
    sp.add_reduced(stored, 4, progress=False)
    assert len(sp.AugmentedBag(stored).view.slide.pyramid.levels) == 2
    damage(stored.path, next(stored.encoded([40])))
    with pytest.raises(BagFormatError, match="tile 40 cannot be decoded"):
        sp.add_reduced(sp.open_bag(stored.path), 2, progress=False)
    assert not (stored.path / "reduced" / "2").exists()


def test_bags_of_earlier_versions_are_augmented(tmp_path: Path) -> None:
    """Those of 0.1.0, in any encoding, with their neighbours."""
    with zipfile.ZipFile(Path(earlier.__file__).with_suffix(".zip")) as archive:
        archive.extractall(tmp_path)
    names = ("zstd", "none", "source", "jpeg-90")
    for name in names:
        stored = sp.open_bag(tmp_path / "bags" / f"{name}.bag.zarr")
        bag = sp.AugmentedBag(stored, tile_transform=A.HorizontalFlip(p=1))
        np.testing.assert_array_equal(bag[:], stored[:][:, :, ::-1])
        assert bag.alone == ""


def test_an_empty_bag_is_augmented(slide: sp.Slide, tmp_path: Path) -> None:
    """It has no tile; its stains cannot be measured."""
    view = slide.view()
    empty = sp.TileBag.from_coords(view, np.zeros((0, 2), np.int64), TILE)
    stored = sp.save_bag(empty, tmp_path / "e.bag.zarr", progress=False)
    bag = sp.AugmentedBag(stored, tile_transform=sp.RandomResizedCrop((20, 20)), slide_transform=COLOURS)
    assert bag.read([]).shape == (0, 20, 20, 3)
    with pytest.raises(NoTissueError, match=r'StainJitter: no tile .*pass StainJitter\(basis="hed"\)'):
        sp.AugmentedBag(stored, tile_transform=sp.StainJitter(basis="slide"))


def test_bags_without_a_slide_are_alone(tmp_path: Path) -> None:
    """A store that does not say where its tiles are in a view has no neighbours."""
    stored = sp.save_bag(MemoryBag(5, 8, 8), tmp_path / "m.bag.zarr", progress=False)
    bag = sp.AugmentedBag(
        stored, tile_transform=A.Compose([sp.RandomAffine(rotate=0, translate=(0.5, 0.5), flip=False)])
    )
    assert bag.alone == "it does not record where its tiles are in their view"
    shifted = np.pad(stored[:], ((0, 0), (4, 4), (4, 4), (0, 0)), "symmetric")
    for k in range(5):
        x, y = (round(bag.draw(k).affine[place]) for place in (2, 5))
        np.testing.assert_array_equal(bag[k], shifted[k, 4 - y : 12 - y, 4 - x : 12 - x])


def test_a_bag_is_no_whole_picture(full: StoredBag) -> None:
    """Its view shows no thumbnail and no image."""
    view = sp.AugmentedBag(full, slide_transform=COLOURS).view
    for picture in (view.plot, lambda: view.image):
        with pytest.raises(ConfigError, match="a stored bag has tiles and no whole picture; open its slide"):
            picture()
