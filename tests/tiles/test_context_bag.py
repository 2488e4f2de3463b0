"""Tiles at several magnifications are those of a view at each, around the same centres, with one draw for all."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import albumentationsxl as A
import numpy as np
import openslide
import pytest
from PIL import Image
from pyramids import coordinate_pixels, write_pyramid

import slideio_pipe as sp
from slideio_pipe.errors import ConfigError, CorruptSlideError, MissingResolutionError, UpsamplingWarning
from slideio_pipe.geometry import Affine
from slideio_pipe.slides.backends.jpeg_tiles import JpegTiles

SIDE = 64
NOISE = np.random.default_rng(5).integers(0, 256, (70, 90, 3), np.uint8)
SOFT = np.kron(NOISE, np.ones((20, 20, 1), np.uint8))  # 1800 × 1400 px
TURNED = sp.RandomAffine(rotate=(30, 40))
MOVED = sp.RandomAffine(rotate=180, scale=0.2, translate=0.3)
COLOURS = A.Compose([sp.StainJitter(), sp.ColorJitter()])
# Levels 1, 4 and 16 of 0.25 µm: read as stored, shrunk by the decoder, by a filter, and from one level.
MPPS = [[0.25, 1.0], [0.5, 1.0, 2.0], [0.25, 0.35], [0.3, 0.61, 3.7]]


@pytest.fixture(scope="module", params=["jpeg", "deflate"])
def slide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> sp.Slide:
    path = tmp_path_factory.mktemp("context") / "a.tif"
    return sp.open_slide(write_pyramid(path, SOFT, (1, 4, 16), tile=SIDE, compression=request.param))


@pytest.fixture(scope="module")
def lossless(tmp_path_factory: pytest.TempPathFactory) -> sp.Slide:
    path = tmp_path_factory.mktemp("context") / "a.tif"
    return sp.open_slide(write_pyramid(path, SOFT, (1, 4, 16), tile=SIDE))


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory: pytest.TempPathFactory) -> sp.Slide:
    path = tmp_path_factory.mktemp("context") / "a.tif"
    return sp.open_slide(write_pyramid(path, SOFT, (1, 4, 16), tile=SIDE, compression="jpeg"))


def context_bag(slide: sp.Slide, mpp: list[float], transform: Any = None, **options: Any) -> sp.ContextBag:
    view = slide.view(mpp=mpp[0], transform=transform, seed=3)
    grid = sp.TileGrid(view, SIDE, stride=131)
    return sp.ContextBag(view, grid, mpp=mpp, **options)


def concentric(bag: sp.TileBag, view: sp.SlideView) -> np.ndarray:
    """Return the level-0 corners (N, 2) of tiles of a plain view around the centres of a plain bag's."""
    fine, coarse = np.array(bag.view.downsample), np.array(view.downsample)
    return (bag.grid.origins + SIDE / 2) * fine - SIDE / 2 * coarse


@pytest.mark.combinations
@pytest.mark.parametrize("nearest", [True, False])
@pytest.mark.parametrize("mpp", MPPS, ids=str)
def test_each_scale_is_the_bag_of_a_view_around_the_same_centres(
    slide: sp.Slide, mpp: list[float], nearest: bool, executor: str
) -> None:
    bag = context_bag(slide, mpp, nearest=nearest)
    assert bag.shape == (len(bag.grid), len(mpp), SIDE, SIDE, 3)
    pixels = bag[:]
    assert np.array_equal(pixels[:, 0], sp.TileBag(bag.view, bag.grid)[:])
    for number, coarse in enumerate(mpp[1:], 1):
        view = slide.view(mpp=coarse)
        alone = sp.TileBag.from_coords(view, concentric(bag, view), SIDE, nearest=nearest)
        assert np.array_equal(pixels[:, number], alone[:])
        assert np.array_equal(bag.at(number)[:], alone[:])
        assert bag.mpps[number] == view.mpp
    assert len(np.unique(pixels[:, -1].reshape(len(bag), -1), axis=0)) == len(bag)


def test_scales_at_stored_levels_are_openslide_s_pixels(slide: sp.Slide) -> None:
    """Bit for bit."""
    bag, compared = context_bag(slide, [0.25, 1.0, 4.0]), 0
    pixels = bag[:]
    with openslide.OpenSlide(str(slide.path)) as reference:
        for tile, (x, y) in zip(pixels, bag.grid.origins.tolist(), strict=True):
            for level, factor in enumerate((1, 4, 16)):
                corner = tuple(v + SIDE // 2 - SIDE // 2 * factor for v in (x, y))
                inside = min(corner) >= 0 and corner[0] + factor * SIDE <= 1800 and corner[1] + factor * SIDE <= 1400
                if inside and all(v % factor == 0 for v in corner):  # OpenSlide is transparent outside
                    expected = np.asarray(reference.read_region(corner, level, (SIDE, SIDE)).convert("RGB"))
                    assert np.array_equal(tile[level], expected)
                    compared += level
    assert compared > 5


def test_scales_between_levels_are_openslide_s_pixels_shrunk_by_pillow(lossless: sp.Slide) -> None:
    """Antialiased, around the centre: to one level, on noise rarely two; JPEG is shrunk by its decoder."""
    bag, compared = context_bag(lossless, [0.25, 0.6, 2.5], nearest=False), 0
    with openslide.OpenSlide(str(lossless.path)) as reference:
        levels = [reference.read_region((0, 0), k, reference.level_dimensions[k]).convert("RGB") for k in (0, 1)]
    for tile, (x, y) in zip(bag, bag.grid.origins.tolist(), strict=True):
        for scale, (whole, factor, shrink) in enumerate([(levels[0], 1, 2.4), (levels[1], 4, 2.5)], 1):
            left, top = ((v + SIDE / 2) / factor - SIDE / 2 * shrink for v in (x, y))
            box = (left, top, left + shrink * SIDE, top + shrink * SIDE)
            if min(box) >= 4 and box[2] <= whole.width - 4 and box[3] <= whole.height - 4:
                expected = whole.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box)
                difference = np.abs(tile[scale].astype(int) - np.asarray(expected))
                assert difference.max() <= 2
                assert np.mean(difference > 1) < 0.001
                compared += 1
    assert compared > 40


@pytest.mark.parametrize(
    ("transform", "most"), [(TURNED, 1), (A.Compose([TURNED, COLOURS]), 20)], ids=["plain", "drawn"]
)
def test_a_turned_slide_is_the_lazy_graph_of_each_resolution(jpeg: sp.Slide, transform: Any, most: int) -> None:
    """To one level; drawn colours enlarge that of a few pixels."""
    mpp, compared = [0.5, 1.0, 2.0], [0, 0, 0]
    bag = context_bag(jpeg, mpp, transform)
    drawn = bag.view.draw
    assert drawn is not None
    for number in range(3):
        scale = bag.at(number)
        assert scale.view.draw is not None
        assert scale.view.draw.operations == drawn.operations
        width, height = scale.view.size
        assert bag.view.size.width / width == pytest.approx(mpp[number] / mpp[0], rel=0.02)
        for k, (x, y) in enumerate(scale.grid.origins.tolist()):
            if x % 1 == y % 1 == 0 and 0 <= x <= width - SIDE and 0 <= y <= height - SIDE:
                graph = scale.view.image.crop(int(x), int(y), SIDE, SIDE).numpy().astype(int)
                difference = np.abs(bag[k][number] - graph)
                assert difference.max() <= most
                assert np.mean(difference > 1) < 0.001
                compared[number] += 1
    assert min(compared) > 0


@pytest.mark.parametrize("of_slide", [None, TURNED, sp.Rotate90(), sp.Flip(p=1)], ids=repr)
@pytest.mark.parametrize("of_tiles", [None, MOVED, sp.RandomResizedCrop((48, 40))], ids=repr)
@pytest.mark.parametrize("nearest", [True, False])
def test_the_geometry_of_all_scales_turns_about_one_centre(
    jpeg: sp.Slide, of_slide: Any, of_tiles: Any, nearest: bool
) -> None:
    """Each px of a further scale is where the first scale's affine, enlarged about the tile's middle, has it.

    To a thousandth of a px of the scale, where corners are snapped to whole px; if asked for, to the nearest whole px.
    """
    bag = context_bag(jpeg, [0.3, 0.61, 3.7], of_slide, tile_transform=of_tiles, seed=4, nearest=nearest)
    height, width = bag.shape[2:4]
    middle = Affine.translation(width / 2, height / 2)
    places = [(0, 0), (width, 0), (width, height), (3, 17)]
    for number in (1, 2):
        scale = bag.at(number)
        ratio = [coarse / fine for coarse, fine in zip(scale.view.downsample, bag.view.downsample, strict=True)]
        enlarged = middle @ Affine.scaling(*ratio) @ middle.inverse()
        found = scale.affines(range(len(bag)))
        for affine, first in zip(found, bag.affines(range(len(bag))), strict=True):
            moved = np.abs(affine.apply(places) - (first @ enlarged).apply(places)).max()
            assert moved < (1.001 if nearest else 2e-3) * ratio[0] * bag.view.downsample[0]


@pytest.mark.combinations
@pytest.mark.parametrize("of_slide", [None, A.Compose([TURNED, COLOURS]), sp.Rotate90()], ids=["plain", "turned", "90"])
@pytest.mark.parametrize("of_tiles", [COLOURS, A.Compose([sp.Rotate90(), COLOURS])], ids=["colours", "quarters"])
def test_one_draw_is_for_all_scales(jpeg: sp.Slide, of_slide: Any, of_tiles: Any, executor: str) -> None:
    """The draws of each tile are those of a bag of that scale alone: the same turn, the same colours."""
    mpp = [0.5, 1.0, 2.0]
    bag = context_bag(jpeg, mpp, of_slide, tile_transform=of_tiles, seed=4, epoch=2)
    for number in range(3):
        scale = bag.at(number)
        alone = sp.TileBag(scale.view, scale.grid, tile_transform=of_tiles, seed=4, epoch=2)
        assert np.array_equal(bag[::5][:, number], alone[::5])
    assert bag.operations(3) == bag.at(2).operations(3)


def test_colours_are_those_of_the_plain_tiles(jpeg: sp.Slide) -> None:
    """An oracle of ours alone would accept a missing colour: the mean of the stained tiles changes with the draw."""
    plain, dark = context_bag(jpeg, [0.25, 1.0]), context_bag(jpeg, [0.25, 1.0], tile_transform=sp.Replay(DARK))
    expected = np.round(plain[:].astype(float) / 2)
    assert np.abs(dark[:] - expected).max() <= 1


DARK = sp.Draw(size=(SIDE, SIDE), canvas=(SIDE, SIDE), operations=({"kind": "tone", "brightness": 0.5},))


def test_stored_tiles_are_decoded_once_where_scales_share_a_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One level, read as stored by both scales: by one scale alone as often as by two."""
    path = write_pyramid(tmp_path / "a.tif", coordinate_pixels(1024, 768), (1,), tile=SIDE, compression="jpeg")
    calls: list[tuple[int, int]] = []
    counted = {name: getattr(JpegTiles, name) for name in ("decode", "decode_at")}

    def decode(self: JpegTiles, column: int, row: int, *rest: Any, **options: Any) -> np.ndarray:
        calls.append((column, row))
        return counted["decode"](self, column, row, *rest, **options)

    def decode_at(self: JpegTiles, places: Any, *rest: Any, **options: Any) -> Any:
        calls.extend(places)
        return counted["decode_at"](self, places, *rest, **options)

    monkeypatch.setattr(JpegTiles, "decode", decode)
    monkeypatch.setattr(JpegTiles, "decode_at", decode_at)
    view = sp.open_slide(path).view(mpp=0.25)
    bag = sp.ContextBag(view, sp.TileGrid(view, SIDE), mpp=[0.25, 0.4])
    for start in range(0, len(bag), 16):
        bag[start : start + 16]
    assert len(set(calls)) == 16 * 12
    assert len(calls) == len(set(calls))


def test_it_is_read_as_an_array(slide: sp.Slide) -> None:
    bag = context_bag(slide, [0.25, 1.0], label=1, patient="P1")
    pixels = bag[:]
    for key in (0, -1, slice(3, 9), [5, 1, 5], (slice(0, 4), 1), (2, 0, 5), bag.coords[:, 0] > 500):
        assert np.array_equal(bag[key], pixels[key])
    assert np.array_equal(np.stack(list(bag)), pixels)
    assert bag.ndim == pixels.ndim
    assert np.asarray(bag).shape == bag.shape
    out = np.empty((2, 2, SIDE, SIDE, 3), np.uint8)
    assert bag.read([7, 2], out, threads=3) is out
    assert np.array_equal(out, pixels[[7, 2]])
    assert bag.read([]).shape == (0, *bag.shape[1:])
    with pytest.raises(ConfigError, match="out has shape"):
        bag.read([1], out)
    with pytest.raises(IndexError, match="tile"):
        bag.read([len(bag)])
    plain = sp.TileBag(bag.view, bag.grid)
    assert (bag.coords == plain.coords).all()
    assert (bag.grid_index == plain.grid_index).all()
    assert (bag.name, bag.label, bag.patient, bag.view_mpp) == (plain.name, 1, "P1", bag.mpps[0])
    bag.plan_ahead(np.arange(20))
    assert np.array_equal(bag.read([4, 3, 9]), pixels[[4, 3, 9]])


def test_epoch_and_seed_are_those_of_the_bag(jpeg: sp.Slide) -> None:
    bag = context_bag(jpeg, [0.25, 1.0], tile_transform=MOVED)
    first = bag[:6]
    later = bag.at_epoch(3)
    assert isinstance(later, sp.ContextBag)
    assert later.epoch == 3
    assert not np.array_equal(later[:6], first)
    bag.epoch = 3
    assert np.array_equal(bag[:6], later[:6])


def test_it_is_pickled_and_described(jpeg: sp.Slide) -> None:
    bag = context_bag(jpeg, [0.5, 2.0], TURNED, tile_transform=MOVED, seed=2, epoch=1, label="tumour", patient="P1")
    again = pickle.loads(pickle.dumps(bag))
    assert np.array_equal(again[:4], bag[:4])
    assert (again.mpps, again.nominal_mpps, again.label, again.patient) == (bag.mpps, (0.5, 2.0), "tumour", "P1")
    about = json.loads(json.dumps(bag.provenance()))
    assert about["context"]["mpp"] == [0.5, 2.0]
    assert about["context"]["mpps"] == [list(mpp) for mpp in bag.mpps]
    assert repr(bag) == f"ContextBag(a.tif: {len(bag)} tiles of 64×64 px at 0.5 and 2 µm, label tumour)"
    assert "0.5 µm, 2 µm" in bag._repr_html_()


def test_the_picture_marks_the_field_of_the_first_scale() -> None:
    view = sp.open_slide(np.full((900, 900, 3), 255, np.uint8), slide_mpp=0.5).view()
    bag = sp.ContextBag(view, sp.TileGrid(view, SIDE), mpp=[0.5, 1.0, 2.0])
    shown = np.asarray(bag.plot(1, SIDE, titled=False))
    assert shown.shape == (SIDE, 3 * SIDE + 2 * 3, 3)
    marked = [np.argwhere((shown[:, k * 67 : k * 67 + SIDE] != 255).any(axis=2)) for k in range(3)]
    assert not len(marked[0])
    for number, side in ((1, 32), (2, 16)):
        low, high = marked[number].min(axis=0), marked[number].max(axis=0)
        assert (np.abs((low + high + 1) / 2 - SIDE / 2) <= 1.5).all()
        assert (np.abs(high - low + 1 - side) <= 3).all()
    assert bag.plot(5).width > bag.plot(5, titled=False).width - 1


@pytest.mark.parametrize("outside", ["white", "black"])
def test_beyond_the_slide_is_the_colour_outside(outside: str) -> None:
    view = sp.open_slide(np.full((256, 256, 3), 100, np.uint8), slide_mpp=0.5).view(mpp=0.5, outside=outside)
    bag = sp.ContextBag(view, sp.TileGrid(view, SIDE), mpp=[0.5, 2.0])
    corner = bag[0, 1]
    assert (corner[:24] == (255 if outside == "white" else 0)).all()
    assert (corner[24:, 24:] == 100).all()


def test_scales_finer_than_the_slide_are_refused_unless_asked_for() -> None:
    slide = sp.open_slide(np.full((256, 256, 3), 100, np.uint8), slide_mpp=0.5)
    with pytest.warns(UpsamplingWarning):
        view = slide.view(mpp=0.25)
    grid = sp.TileGrid(view, SIDE)
    with pytest.raises(ConfigError, match=r"0\.4 µm is finer than the slide.*upsample=True"):
        sp.ContextBag(view, grid, mpp=[0.25, 0.4])
    with pytest.warns(UpsamplingWarning):
        assert sp.ContextBag(view, grid, mpp=[0.25, 0.4], upsample=True)[0].shape == (2, SIDE, SIDE, 3)


@pytest.mark.parametrize(
    ("mpp", "reason"),
    [
        ([], "magnifications"),
        (0.5, "magnifications"),
        ("0.5", "magnifications"),
        ([0.5, float("nan")], "magnifications"),
        ([0.5, float("inf")], "magnifications"),
        ([0.5, "20x"], "magnifications"),
        ([0.5, None], "magnifications"),
        ([0.5, -2], "magnifications"),
        ([0.5, 2.0, 1.0], "finer than"),
        ([0.5, 0.5], "same as"),
        ([0.5, 1.0, 1.01], "same as"),
        ([1.0, 2.0], "first of the magnifications"),
    ],
)
def test_impossible_magnifications_are_refused(mpp: Any, reason: str) -> None:
    view = sp.open_slide(np.full((256, 256, 3), 100, np.uint8), slide_mpp=0.5).view(mpp=0.5)
    with pytest.raises(ConfigError, match=reason):
        sp.ContextBag(view, sp.TileGrid(view, SIDE), mpp=mpp)


def test_a_grid_of_another_slide_and_an_unknown_resolution_are_refused() -> None:
    pixels = np.full((256, 256, 3), 100, np.uint8)
    view, other = (sp.open_slide(pixels.copy(), slide_mpp=0.5).view(mpp=0.5) for _ in range(2))
    with pytest.raises(ConfigError, match="grid was made over"):
        sp.ContextBag(view, sp.TileGrid(other, SIDE), mpp=[0.5, 2.0])
    with pytest.raises(ConfigError, match="a bag of"):
        sp.ContextBag(view.slide, sp.TileGrid(view, SIDE), mpp=[0.5, 2.0])  # type: ignore[arg-type]
    unknown = sp.open_slide(pixels).view()
    with pytest.raises(MissingResolutionError):
        sp.ContextBag(unknown, sp.TileGrid(unknown, SIDE), mpp=[0.5, 2.0])


def test_the_slides_of_a_patient_may_have_several_magnifications(jpeg: sp.Slide) -> None:
    bags = [context_bag(jpeg, [0.25, 1.0], patient="P1"), context_bag(jpeg, [0.25, 1.0], patient="P1")]
    patient = sp.PatientBag(bags)
    assert patient.shape == (2 * len(bags[0]), *bags[0].shape[1:])
    assert np.array_equal(patient[len(bags[0]) - 2 :][:4], np.concatenate([bags[0][-2:], bags[1][:2]]))


def test_an_undecodable_tile_is_an_error(jpeg: sp.Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if only a further scale needs it."""
    bag = context_bag(jpeg, [0.25, 1.0])

    def read(*_: Any, **__: Any) -> None:
        raise CorruptSlideError("damaged", slide="a.tif")

    monkeypatch.setattr(bag.at(1), "_read", read)
    with pytest.raises(CorruptSlideError):
        bag[3]


def test_labels_of_pixels_are_those_of_the_first_scale(jpeg: sp.Slide, tmp_path: Path) -> None:
    """Also of a stored bag."""
    bag = context_bag(jpeg, [0.5, 2.0])
    mask = sp.LabelMask((SOFT[..., 0] > 128).astype(np.uint8), Affine(), {"bright": 1})
    expected = mask.labels(bag.at(0))
    assert 0.2 < expected.mean() < 0.8
    assert np.array_equal(mask.labels(bag), expected)
    assert np.array_equal(mask.labels(sp.save_bag(bag, tmp_path / "a.bag.zarr", progress=False)), expected)
