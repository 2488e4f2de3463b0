"""Annotations through views and into tiles, against point-in-polygon tests in float64 and against painted slides."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import albumentationsxl as A
import numpy as np
import pytest
from drawn_regions import DRAWN, HEIGHT, MOVES, REGIONS, TILES, VIEWS, WIDTH, centres, to_level0, view_of
from PIL import Image, ImageDraw
from skimage.measure import points_in_poly

from slideio_pipe import (
    Annotations,
    Rotate90,
    TileBag,
    TileGrid,
    open_bag,
    save_bag,
)
from slideio_pipe.errors import ConfigError, OutputExistsError, SlideNotFoundError
from slideio_pipe.geometry import Affine, Size
from slideio_pipe.tiles.mask_files import Annotation


def oracle(points: np.ndarray) -> np.ndarray:
    """Return the label of (n, 2) level-0 points, one polygon at a time: even-odd, tumour on top."""
    found = np.zeros(len(points), np.uint8)
    for value, wanted in ((1, "Stroma"), (2, "Tumor")):
        for name, polygon in REGIONS:
            if name == wanted:
                found[sum(points_in_poly(points, ring).astype(int) for ring in polygon) % 2 == 1] = value
    return found


@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("view", VIEWS)
def test_labels_of_tiles_are_those_of_their_positions(view: str, tiles: str) -> None:
    """Every pixel centre, mapped to level 0 in float64, is in the polygons of its label; drawn or not."""
    shown = view_of(*VIEWS[view])
    bag = TileBag(shown, TileGrid(shown, 90, stride=70), tile_transform=TILES[tiles], seed=2)
    labels = DRAWN.labels(bag)
    assert labels.shape == bag.shape[:3]
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) == {0, 1, 2}
    for k, tile in enumerate(labels):
        places = to_level0(bag, k, centres(bag.shape[2], bag.shape[1]))
        assert (tile.ravel() != oracle(places)).mean() < 1e-4  # rounding, on an outline


@pytest.mark.parametrize("transform", [None, MOVES])
def test_image_and_labels_move_together(transform: Any) -> None:
    """On a slide painted with its annotations, tiles have the colours of their labels."""
    colours = np.array([(250, 250, 250), (40, 200, 40), (200, 40, 40)], np.uint8)
    painted = colours[DRAWN.raster((WIDTH, HEIGHT), Affine())]
    view = view_of(0.6, MOVES, painted)
    bag = TileBag(view, TileGrid(view, 120), tile_transform=transform, seed=1)
    expected, tiles = colours[DRAWN.labels(bag)].astype(int), bag[:].astype(int)
    apart = np.abs(tiles - expected).max(axis=-1) > 60
    assert apart.mean() < 0.01  # along outlines pixels are mixed
    assert (expected != 250).any(axis=-1).mean() > 0.1


def test_a_raster_of_the_slide_equals_pillow() -> None:
    """Its polygons, sixteen times as fine, averaged: the same except mixed pixels along outlines."""
    fine = 4
    expected = np.zeros((HEIGHT * fine, WIDTH * fine), np.uint8)
    for value, wanted in ((1, "Stroma"), (2, "Tumor")):
        for name, rings in REGIONS:
            if name == wanted:
                canvas = Image.new("L", (WIDTH * fine, HEIGHT * fine))
                for k, ring in enumerate(rings):
                    ImageDraw.Draw(canvas).polygon([tuple(v) for v in ring * fine], fill=int(k == 0))
                expected[np.asarray(canvas) > 0] = value
    blocks = expected.reshape(HEIGHT, fine, WIDTH, fine)
    pure = (blocks == blocks[:, :1, :, :1]).all(axis=(1, 3))
    found = DRAWN.raster(Size(WIDTH, HEIGHT), Affine())
    assert pure.mean() > 0.98
    assert (found == blocks[:, 0, :, 0])[pure].mean() > 0.9995


def test_annotations_are_equal_by_identity() -> None:
    """Polygons are arrays, which Python cannot compare."""
    assert DRAWN == DRAWN
    assert Annotations(REGIONS, {"Stroma": 1, "Tumor": 2}) != DRAWN


@pytest.mark.parametrize("view", VIEWS)
def test_annotations_map_through_a_view_and_back(view: str) -> None:
    """Vertices are where the view shows them, and map back to a millionth of a pixel; labels are the same."""
    shown = view_of(*VIEWS[view])
    moved = DRAWN.through(shown)
    before, seen = DRAWN.regions[1].polygon[0], moved.regions[1].polygon[0]
    np.testing.assert_allclose(shown.affine.apply(seen), before, atol=1e-6)
    again = moved.to_level0()
    for ours, theirs in zip(again.regions, DRAWN.regions, strict=True):
        assert ours.class_name == theirs.class_name
        for ring, other in zip(ours.polygon, theirs.polygon, strict=True):
            np.testing.assert_allclose(ring, other, atol=1e-6)
    bag = TileBag(shown, TileGrid(shown, 90))
    assert (moved.labels(bag) != DRAWN.labels(bag)).mean() < 1e-5
    assert len(moved) == 3


def test_views_of_two_resolutions_chain() -> None:
    """Annotations in px of one view can be mapped to another: the affine has their origin."""
    coarse, turned = view_of(1.0), view_of(0.7, MOVES)
    direct, around = DRAWN.through(turned), DRAWN.through(coarse).through(turned)
    np.testing.assert_allclose(around.regions[0].polygon[1], direct.regions[0].polygon[1], atol=1e-6)


def test_geojson_round_trip(tmp_path: Path) -> None:
    """Written from a turned view in level-0 px, three decimals; read with the same classes and rings."""
    path = tmp_path / "a.geojson"
    DRAWN.through(view_of(0.7, MOVES)).to_geojson(path)
    with pytest.raises(OutputExistsError):
        DRAWN.to_geojson(path)
    again = Annotations.from_geojson(path)
    assert again.classes == {"Stroma": 1, "Tumor": 2}
    for ours, theirs in zip(again.regions, DRAWN.regions, strict=True):
        assert ours.class_name == theirs.class_name
        for ring, other in zip(ours.polygon, theirs.polygon, strict=True):
            np.testing.assert_allclose(ring[:-1], other, atol=6e-4)
    colours = {f["properties"]["classification"]["name"]: f["properties"]["classification"]["color"]
               for f in json.loads(path.read_text())["features"]}  # fmt: skip
    assert len({tuple(colour) for colour in colours.values()}) == 2


def qupath(tmp_path: Path) -> Path:
    """Return a file of three classes, one of them ignored, a polygon without a class, and a point."""
    features = []
    for x, name in ((0, "Tumor"), (100, "Stroma"), (200, "Ignore*"), (300, None)):
        ring = [[x, 0], [x + 50, 0], [x + 50, 99], [x, 99]]
        properties = {"classification": {"name": name}} if name else {}
        geometry = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}}
    (tmp_path / "q.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [*features, point]}))
    return tmp_path / "q.geojson"


@pytest.mark.parametrize(
    ("classes", "labels"),
    [
        (None, {"Stroma": 1, "Tumor": 2, "unclassified": 3}),
        (["Tumor", "Stroma"], {"Tumor": 1, "Stroma": 2}),
        ({"Stroma": 7}, {"Stroma": 7}),
        (["Tumor", "Necrosis"], {"Tumor": 1, "Necrosis": 2}),
        ({"Tumor": 1, "unclassified": 1}, {"Tumor": 1, "unclassified": 1}),
    ],
)
def test_classes_are_chosen_and_numbered(tmp_path: Path, classes: Any, labels: dict[str, int]) -> None:
    """In alphabetical order, in the given order, or with given numbers; other classes are background."""
    found = Annotations.from_geojson(qupath(tmp_path), classes)
    assert found.classes == labels
    raster = found.raster((400, 100), Affine())
    for x, name in ((0, "Tumor"), (100, "Stroma"), (200, "Ignore*"), (300, "unclassified")):
        assert raster[50, x + 25] == labels.get(name, 0)


@pytest.mark.parametrize("order", [["Stroma", "Tumor"], ["Tumor", "Stroma"]])
def test_the_last_class_is_on_top(order: list[str]) -> None:
    """In any order in the file."""
    for regions in (REGIONS, REGIONS[::-1]):
        labels = Annotations(regions, {name: k for k, name in enumerate(order, 1)}).raster((WIDTH, HEIGHT), Affine())
        both = DRAWN.raster((WIDTH, HEIGHT), Affine()) == 2
        overlap = both & (Annotations([REGIONS[1]], {"Stroma": 1}).raster((WIDTH, HEIGHT), Affine()) == 1)
        assert overlap.sum() > 1000
        assert (labels[overlap] == 2).all()
        assert order[1] == {1: order[0], 2: order[1]}[int(labels[overlap][0])]


def test_a_stored_bag_has_the_same_labels(tmp_path: Path) -> None:
    """By its provenance, drawn view included; not if its tiles were drawn one by one."""
    view = view_of(0.7, MOVES)
    bag = TileBag(view, TileGrid(view, 90))
    save_bag(bag, tmp_path / "bag.zarr")
    assert np.array_equal(DRAWN.labels(open_bag(tmp_path / "bag.zarr")), DRAWN.labels(bag))
    save_bag(TileBag(view, bag.grid, tile_transform=Rotate90()), tmp_path / "drawn.zarr")
    with pytest.raises(ConfigError, match="drawn one by one; pass the TileBag"):
        DRAWN.labels(open_bag(tmp_path / "drawn.zarr"))


def test_labels_of_some_tiles_in_any_order() -> None:
    """As ``bag.read``: negative positions count from the end, an empty list gives no labels."""
    view = view_of()
    bag = TileBag(view, TileGrid(view, 100), tile_transform=MOVES)
    labels = DRAWN.labels(bag)
    assert np.array_equal(DRAWN.labels(bag, [5, 1, -1]), labels[[5, 1, -1]])
    assert DRAWN.labels(bag, []).shape == (0, 100, 100)


def test_tiles_of_different_sizes_are_refused() -> None:
    """As by the bag."""
    view = view_of()
    bag = TileBag(view, TileGrid(view, 100), tile_transform=A.RandomScale(p=1))
    with pytest.raises(ConfigError, match="draws tiles of different sizes"):
        DRAWN.labels(bag)


def test_annotations_can_be_pickled() -> None:
    """Their labels are the same."""
    again = pickle.loads(pickle.dumps(DRAWN))
    assert np.array_equal(again.raster((WIDTH, HEIGHT), Affine()), DRAWN.raster((WIDTH, HEIGHT), Affine()))
    assert repr(again) == "Annotations(1 Stroma, 2 Tumor)"


def test_a_plot_shows_labels() -> None:
    """It has the size of the view's plot, and colours only where there are labels."""
    view = view_of()
    plain, shown = np.asarray(view.plot(450, titled=False)), np.asarray(DRAWN.plot(view, 450, titled=False))
    labels = DRAWN.raster((450, 350), Affine.scaling(2, 2))
    assert shown.shape == plain.shape
    assert np.array_equal((shown != plain).any(axis=-1), labels > 0)
    assert np.array_equal(
        np.asarray(DRAWN.plot(view.slide, 450, titled=False)), shown
    )  # as TissueMask.plot takes a slide


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Annotations(REGIONS, {"Tumor": 1}), "class 'Stroma' has no label"),
        (lambda: Annotations(REGIONS, {"Tumor": 0, "Stroma": 1}), "class 'Tumor' has the value 0; number classes 1"),
        (lambda: Annotations(REGIONS, {"Tumor": 256, "Stroma": 1}), "the value 256"),
        (lambda: Annotations([], ["Tumor"]), 'classes are a list; pass {"Tumor": 1}'),  # type: ignore[arg-type]
        (lambda: Annotations([Annotation("T", [np.zeros((2, 2))])], {"T": 1}), "a ring of the shape"),
        (lambda: Annotations([Annotation("T", [np.full((3, 2), np.nan)])], {"T": 1}), "finite"),
    ],
)
def test_invalid_annotations_are_refused(make: Any, message: str) -> None:
    """Classes without a label, labels out of range, invalid rings."""
    with pytest.raises(ConfigError) as caught:
        make()
    assert message in str(caught.value)


def test_files_without_the_requested_classes_are_refused(tmp_path: Path) -> None:
    """A missing file, a wrong class, a string for a list, an invalid label."""
    with pytest.raises(SlideNotFoundError):
        Annotations.from_geojson(tmp_path / "none.geojson")
    with pytest.raises(ConfigError, match="no polygon or point of tumour; classes found: Ignore"):
        Annotations.from_geojson(qupath(tmp_path), ["tumour"])
    with pytest.raises(ConfigError, match="pass a list of names"):
        Annotations.from_geojson(qupath(tmp_path), "Tumor")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="number classes 1 to 255"):
        Annotations.from_geojson(qupath(tmp_path), {"Tumor": 300})
