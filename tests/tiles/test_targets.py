"""Boxes and points of tiles, against matrices written out, painted slides and albumentationsxl's own processors."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import albumentationsxl as A
import numpy as np
import pytest
import torch
from albumentationsxl.core.bbox_utils import BboxParams, BboxProcessor
from albumentationsxl.core.keypoints_utils import KeypointParams, KeypointsProcessor
from drawn_regions import HEIGHT, MOVES, TILES, VIEWS, WIDTH, view_of

from slideio_pipe import (
    Annotations,
    ContextBag,
    Flip,
    PatientBag,
    RandomAffine,
    Rotate90,
    Targets,
    TileBag,
    TileGrid,
    open_bag,
    open_slide,
    save_bag,
)
from slideio_pipe.errors import ConfigError, OutsideSlideWarning
from slideio_pipe.images.picture import CLASSES
from slideio_pipe.slides.view import SlideView

RNG = np.random.default_rng(0)
POINTS = RNG.uniform((0, 0), (WIDTH, HEIGHT), (400, 2))
CORNERS = RNG.uniform((0, 0), (WIDTH - 60, HEIGHT - 60), (60, 2))
BOXES = np.concatenate([CORNERS, CORNERS + RNG.uniform(5, 60, (60, 2))], axis=1)
KINDS = ["lymphocyte", "mitosis", "tumour"]
CELLS = Annotations.from_arrays(
    POINTS, RNG.choice(KINDS, len(POINTS)).tolist(), BOXES, RNG.choice(KINDS, len(BOXES)).tolist(), KINDS
)


def into_tile(bag: TileBag, index: int, places: np.ndarray) -> np.ndarray:
    """Return tile px of level-0 places by 3×3 matrices: level 0 → plain view → view → tile → drawn tile."""
    at = np.hstack([places.reshape(-1, 2) / bag.view.downsample, np.ones((places.size // 2, 1))])
    if bag.view.draw is not None:
        at = at @ np.array([*bag.view.draw.affine, 0, 0, 1]).reshape(3, 3).T
    at[:, :2] -= bag.grid.origins[index]
    if bag.tile_transform is not None:
        at = at @ np.array([*bag.draw(index).affine, 0, 0, 1]).reshape(3, 3).T
    return at[:, :2].reshape(places.shape)


def corners_of(boxes: np.ndarray) -> np.ndarray:
    left, top, right, lower = boxes.T
    return np.stack([np.stack(each, axis=1) for each in ((left, top), (right, top), (right, lower), (left, lower))], 1)


@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("view", VIEWS)
def test_targets_are_where_the_draws_put_them(view: str, tiles: str) -> None:
    """After the draws of the slide and of the tile, one place at a time; boxes are hulls, clipped."""
    shown = view_of(*VIEWS[view])
    bag = TileBag(shown, TileGrid(shown, 90, stride=70), tile_transform=TILES[tiles], seed=2, annotations=CELLS)
    height, width = bag.shape[1:3]
    counts = CELLS.counts(bag)
    seen = 0
    for k, found in enumerate(bag.targets()):
        at = into_tile(bag, k, POINTS)
        inside = np.flatnonzero(((at >= 0) & (at < (width, height))).all(axis=1))
        assert found.point_index.tolist() == inside.tolist()
        np.testing.assert_allclose(found.points, at[inside], atol=1e-6)
        assert found.point_labels.tolist() == CELLS.point_labels[inside].tolist()
        turned = into_tile(bag, k, corners_of(BOXES))
        low, high = turned.min(axis=1), turned.max(axis=1)
        clipped = np.hstack([np.clip(low, 0, (width, height)), np.clip(high, 0, (width, height))])
        visible = np.flatnonzero((clipped[:, 2:] > clipped[:, :2]).all(axis=1))
        assert found.box_index.tolist() == visible.tolist()
        np.testing.assert_allclose(found.boxes, clipped[visible], atol=1e-6)
        assert found.labels.tolist() == CELLS.box_labels[visible].tolist()
        by_class = [int((CELLS.point_labels[inside] == label).sum()) for label in CELLS.classes.values()]
        assert [int(counts[name][k]) for name in CELLS.classes] == by_class
        seen += len(inside) + len(visible)
    assert seen > 100


@pytest.mark.parametrize("transform", [None, A.Compose([Rotate90(), Flip()])])
def test_boxes_enclose_the_pixels_that_were_painted(transform: Any) -> None:
    """On a slide with one colour per box, a tile's box is the extent of its colour: exactly, for quarter turns."""
    boxes = np.array([(20 + 70 * k, 30 + 90 * (k % 5), 60 + 70 * k, 55 + 90 * (k % 5)) for k in range(10)])
    pixels = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    for number, (left, top, right, lower) in enumerate(boxes):
        pixels[top:lower, left:right] = (10 + number, 20, 30)
    view = open_slide(pixels, slide_mpp=0.5).view()
    marked = Annotations.from_arrays(boxes=boxes, box_classes=["cell"] * 10)
    bag = TileBag(view, TileGrid(view, 128), tile_transform=transform, seed=4, annotations=marked)
    found = 0
    for tile, targets in zip(bag, bag.targets(), strict=True):
        painted = {}
        for number in range(10):
            rows, columns = np.nonzero((tile == (10 + number, 20, 30)).all(axis=2))
            if len(rows):
                painted[number] = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert targets.box_index.tolist() == list(painted)
        np.testing.assert_allclose(targets.boxes, np.array([*painted.values()], float).reshape(-1, 4), atol=1e-9)
        found += len(painted)
    assert found > 15


# -- albumentationsxl's rules --------------------------------------------------------------------------------------

BOX_RULES = [
    {"format": "pascal_voc", "label_fields": ["kinds"]},
    {"format": "coco", "label_fields": ["kinds"], "min_area": 150.0},
    {"format": "yolo", "label_fields": ["kinds"], "min_visibility": 0.6},
    {"format": "albumentationsxl", "label_fields": ["kinds"], "min_width": 12.0, "min_height": 20.0},
    {"format": "pascal_voc", "min_area": 40.0, "min_visibility": 0.2},
]


def by_the_library(rules: dict[str, Any], crop: tuple[int, int, int, int], flips: list[Any]) -> dict[str, Any]:
    """Return what albumentationsxl makes of all boxes of the slide: its crop, flips, filter, format and fields."""
    processor = BboxProcessor(BboxParams(**rules))
    image = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
    rows: list[Any] = BOXES.tolist()
    if rules["format"] == "coco":
        rows = [[a, b, c - a, d - b] for a, b, c, d in rows]
    elif rules["format"] == "yolo":
        rows = [[(a + c) / 2 / WIDTH, (b + d) / 2 / HEIGHT, (c - a) / WIDTH, (d - b) / HEIGHT] for a, b, c, d in rows]
    elif rules["format"] == "albumentationsxl":
        rows = [[a / WIDTH, b / HEIGHT, c / WIDTH, d / HEIGHT] for a, b, c, d in rows]
    labels = CELLS.box_labels.tolist()
    data: dict[str, Any] = {"image": image, "bboxes": rows, "kinds": labels}
    if "label_fields" not in rules:
        data["bboxes"] = [(*row, label) for row, label in zip(rows, labels, strict=True)]
    processor.preprocess(data)
    cut = A.Crop(*crop)
    data["bboxes"] = cut.apply_to_bboxes(data["bboxes"], rows=HEIGHT, cols=WIDTH)
    height, width = crop[3] - crop[1], crop[2] - crop[0]
    for flip in flips:
        data["bboxes"] = flip.apply_to_bboxes(data["bboxes"], rows=height, cols=width)
    data["image"] = np.zeros((height, width, 1), np.uint8)
    return dict(processor.postprocess(data))


@pytest.mark.parametrize("flips", [[], [A.HorizontalFlip(p=1)], [A.VerticalFlip(p=1), A.HorizontalFlip(p=1)]])
@pytest.mark.parametrize("rules", BOX_RULES, ids=lambda rules: rules["format"])
def test_boxes_are_those_of_albumentationsxl(rules: dict[str, Any], flips: list[Any]) -> None:
    """Its crop to the tile, its flips, its limits, its formats and its label fields."""
    view = open_slide(np.full((HEIGHT, WIDTH, 3), 200, np.uint8), slide_mpp=0.5).view()
    transform = A.Compose(flips or [A.NoOp()], bbox_params=BboxParams(**rules))
    bag = TileBag(view, TileGrid(view, 100), tile_transform=transform, annotations=CELLS)
    kept = 0
    for k, found in enumerate(bag.targets()):
        x, y = bag.grid.origins[k].tolist()
        expected = by_the_library(rules, (x, y, x + 100, y + 100), flips)
        written = found.to_albumentations()
        assert len(written["bboxes"]) == len(expected["bboxes"])
        np.testing.assert_allclose(
            np.array(written["bboxes"], float).reshape(-1, 5 if "label_fields" not in rules else 4),
            np.array(expected["bboxes"], float).reshape(-1, 5 if "label_fields" not in rules else 4),
            atol=1e-9,
        )
        if "label_fields" in rules:
            assert written["kinds"] == expected["kinds"]
        kept += len(written["bboxes"])
    assert 5 < kept < 2 * len(BOXES)


@pytest.mark.parametrize("rules", [{"format": "xy", "label_fields": ["kinds"]}, {"format": "yx"}])
def test_points_are_those_of_albumentationsxl(rules: dict[str, Any]) -> None:
    """Which counts pixels where we measure places: its point is half a pixel before ours, so that flips agree."""
    view = open_slide(np.full((HEIGHT, WIDTH, 3), 200, np.uint8), slide_mpp=0.5).view()
    flip = A.HorizontalFlip(p=1)
    transform = A.Compose([flip], keypoint_params=KeypointParams(**rules))
    bag = TileBag(view, TileGrid(view, 100), tile_transform=transform, annotations=CELLS)
    kept = 0
    for k, found in enumerate(bag.targets()):
        corner = bag.grid.origins[k]
        local = POINTS - corner
        inside = ((local >= 0.5) & (local < 99.5)).all(axis=1)  # inside for both
        processor = KeypointsProcessor(KeypointParams(**rules))
        places = (local[inside] - 0.5)[:, :: -1 if rules["format"] == "yx" else 1].tolist()
        image = np.zeros((100, 100, 1), np.uint8)
        data: dict[str, Any] = {"image": image, "keypoints": places, "kinds": CELLS.point_labels[inside].tolist()}
        processor.preprocess(data)
        data["keypoints"] = flip.apply_to_keypoints(data["keypoints"], rows=100, cols=100)
        expected = processor.postprocess(data)
        written = found.to_albumentations()
        ours = np.isin(found.point_index, np.flatnonzero(inside))
        theirs = np.array(expected["keypoints"], float).reshape(-1, 2)
        np.testing.assert_allclose(np.array(written["keypoints"]).reshape(-1, 2)[ours], theirs + 0.5, atol=1e-9)
        if "label_fields" in rules:
            assert np.array(written["kinds"])[ours].tolist() == expected["kinds"]
        kept += int(inside.sum())
    assert kept > 300


def test_the_tiles_rules_come_before_the_views() -> None:
    """A limit of the tiles' Compose replaces that of the view's; an argument replaces both."""
    slide = open_slide(np.full((HEIGHT, WIDTH, 3), 200, np.uint8), slide_mpp=0.5)
    strict = A.Compose([A.HorizontalFlip(p=1)], bbox_params=BboxParams("coco", ["a"], min_visibility=1))
    loose = A.Compose([A.HorizontalFlip(p=1)], bbox_params=BboxParams("yolo", ["b"]))
    view = slide.view(transform=strict)
    grid = TileGrid(view, 100)
    by_view = TileBag(view, grid, annotations=CELLS).targets()
    assert all(len(each.boxes) == 0 or each.to_albumentations()["a"] for each in by_view)
    whole = sum(len(each.boxes) for each in by_view)
    by_tiles = TileBag(view, grid, tile_transform=loose, annotations=CELLS).targets()
    assert "b" in by_tiles[0].to_albumentations()
    assert sum(len(each.boxes) for each in by_tiles) > whole
    given = CELLS.targets(TileBag(view, grid, tile_transform=loose), bbox_params={"format": "coco", "min_area": 1e9})
    assert sum(len(each.boxes) for each in given) == 0
    assert pickle.loads(pickle.dumps(view.target_params)) == view.target_params


def test_points_outside_are_kept_if_they_shall_be() -> None:
    """``remove_invisible=False`` keeps every point of the slide in each tile, as in albumentationsxl."""
    view = view_of()
    keep = A.Compose([A.NoOp()], keypoint_params=KeypointParams("xy", remove_invisible=False))
    bag = TileBag(view, TileGrid(view, 300), tile_transform=keep, annotations=CELLS)
    assert [len(each.points) for each in bag.targets()] == [len(POINTS)] * len(bag)
    np.testing.assert_allclose(bag.targets(1).points, into_tile(bag, 1, POINTS), atol=1e-9)


def test_a_view_has_targets_and_its_annotations_move_back() -> None:
    """Clipped to its canvas; boxes that went through a turned view and back are the same, not hulls of hulls."""
    view = view_of(0.7, MOVES)
    found = CELLS.in_view(view)
    assert len(found.boxes) == len(BOXES)
    turned = view.affine.inverse().apply(corners_of(BOXES))
    np.testing.assert_allclose(found.boxes, np.hstack([turned.min(axis=1), turned.max(axis=1)]), atol=1e-6)
    moved = CELLS.through(view)
    np.testing.assert_allclose(moved.boxes, found.boxes, atol=1e-6)
    np.testing.assert_allclose(moved.points, view.affine.inverse().apply(POINTS), atol=1e-6)
    again = moved.to_level0()
    np.testing.assert_allclose(again.boxes, BOXES, atol=1e-6)
    np.testing.assert_allclose(again.points, POINTS, atol=1e-6)
    bag = TileBag(view, TileGrid(view, 90))
    for ours, theirs in zip(moved.targets(bag), CELLS.targets(bag), strict=True):
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-6)


# -- bags ----------------------------------------------------------------------------------------------------------


def _bag(**options: Any) -> TileBag:
    view = view_of(0.7, MOVES)
    return TileBag(view, TileGrid(view, 90), **options)


def test_one_tile_or_several() -> None:
    """Positions as those of ``read``: an integer, some in any order, from the end, none."""
    bag = _bag(tile_transform=MOVES, annotations=CELLS)
    every = bag.targets()
    assert isinstance(bag.targets(3), Targets)
    assert bag.targets(3).boxes.tolist() == every[3].boxes.tolist()
    assert [each.points.tolist() for each in bag.targets([5, -1])] == [
        every[5].points.tolist(),
        every[-1].points.tolist(),
    ]
    assert bag.targets([]) == []
    with pytest.raises(IndexError):
        bag.targets(len(bag))


def test_tensors_are_those_of_torchvision() -> None:
    """Boxes (n, 4) float32 and labels (n,) int64, also if there are none."""
    bag = _bag(annotations=CELLS)
    for found in bag.targets():
        tensors = found.to_torch()
        assert tensors["boxes"].dtype == torch.float32
        assert tensors["boxes"].shape == (len(found.boxes), 4)
        assert tensors["labels"].dtype == tensors["point_labels"].dtype == torch.int64
        assert (tensors["boxes"][:, 2:] > tensors["boxes"][:, :2]).all()


def test_a_bag_keeps_its_annotations() -> None:
    """Pickled, copied; a stored bag takes them as an attribute."""
    bag = _bag(tile_transform=MOVES, annotations=CELLS)
    expected = [each.boxes.tolist() for each in bag.targets()]
    for again in (pickle.loads(pickle.dumps(bag)), copy.copy(bag)):
        assert [each.boxes.tolist() for each in again.targets()] == expected


def test_a_stored_bag_has_targets(tmp_path: Path) -> None:
    """By its provenance, its view's draw included."""
    bag = _bag()
    stored = save_bag(bag, tmp_path / "a.bag.zarr")
    stored.annotations = CELLS
    assert [each.boxes.tolist() for each in stored.targets()] == [each.boxes.tolist() for each in CELLS.targets(bag)]
    with open_bag(tmp_path / "a.bag.zarr") as plain, pytest.raises(ConfigError, match="has no annotations"):
        plain.targets(0)


def test_tiles_at_several_magnifications_have_the_targets_of_the_first() -> None:
    """And its labels: in px of the finest tile, pickled, too."""
    view = open_slide(np.full((HEIGHT, WIDTH, 3), 200, np.uint8), slide_mpp=0.5).view(mpp=0.5)
    grid = TileGrid(view, 100)
    one = TileBag(view, grid, tile_transform=MOVES, annotations=CELLS)
    several = ContextBag(view, grid, mpp=[0.5, 1.0], tile_transform=MOVES, annotations=CELLS)
    for bag in (several, pickle.loads(pickle.dumps(several))):
        assert [each.boxes.tolist() for each in bag.targets()] == [each.boxes.tolist() for each in one.targets()]
    drawn = Annotations([("Tumor", [corners_of(BOXES)[0]])], {"Tumor": 1})  # type: ignore[list-item]
    assert np.array_equal(drawn.labels(several), drawn.labels(one))


def test_a_patient_has_the_targets_of_its_slides() -> None:
    """Each slide's from its own annotations; without some, it is said."""
    one, other = _bag(annotations=CELLS), _bag(annotations=Annotations.from_arrays([(5, 5)], ["lymphocyte"]))
    patient = PatientBag([one, other])
    found = patient.targets([len(one) + 1, 2, len(one)])
    expected = [other.targets(1), one.targets(2), other.targets(0)]
    assert [each.points.tolist() for each in found] == [each.points.tolist() for each in expected]
    with pytest.raises(ConfigError, match="the bag of a slide has no annotations"):
        PatientBag([one, _bag()]).targets()
    with pytest.raises(ConfigError, match="pass the bag of its slide"):
        CELLS.targets(patient)


# -- what is wrong -------------------------------------------------------------------------------------------------


def _view() -> SlideView:
    return open_slide(np.full((HEIGHT, WIDTH, 3), 200, np.uint8), slide_mpp=0.5).view()


def test_points_of_another_frame_are_noticed() -> None:
    """All outside is an error with where they are; many outside a warning; a few at the edge are nothing."""
    view = _view()
    grid = TileGrid(view, 100)
    away = Annotations.from_arrays(POINTS + 5000, ["lymphocyte"] * len(POINTS))
    with pytest.raises(ConfigError, match=r"all 400 points and boxes are outside the slide, 900×700 px .* from \(5,"):
        TileBag(view, grid, annotations=away)
    shifted = Annotations.from_arrays(POINTS + 300, ["lymphocyte"] * len(POINTS))
    with pytest.warns(OutsideSlideWarning, match="points and boxes are outside the slide"):
        shifted.counts(TileBag(view, grid))
    few = np.concatenate([POINTS, [(-3, 5)]])
    counted = Annotations.from_arrays(few, ["lymphocyte"] * len(few)).counts(TileBag(view, grid))
    assert counted["lymphocyte"].sum() == (POINTS < (900, 700)).all(axis=1).sum()


def test_no_annotations_are_no_error() -> None:
    """A slide without a cell has tiles without one."""
    none = Annotations.from_arrays(classes=["mitosis"])
    view = _view()
    bag = TileBag(view, TileGrid(view, 300), annotations=none)
    assert [len(each) for each in bag.targets()] == [0] * len(bag)
    assert none.counts(bag)["mitosis"].tolist() == [0] * len(bag)
    assert repr(none) == "Annotations(0 mitosis)"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"bbox_params": BboxParams("voc")}, "bbox_params has the format 'voc'; pass one of pascal_voc, coco"),
        ({"bbox_params": BboxParams("coco", ["a", "b"])}, "2 label_fields; an annotation has one label"),
        ({"bbox_params": BboxParams("coco", min_visibility=30)}, "min_visibility of bbox_params is 30"),
        ({"keypoint_params": KeypointParams("xyas")}, "annotated points have no angle and no scale"),
        (
            {"bbox_params": BboxParams("coco", ["k"]), "keypoint_params": KeypointParams("xy", ["k"])},
            "both write labels to 'k'",
        ),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(params: dict[str, Any], message: str) -> None:
    """When the bag gets annotations; without annotations they do not matter."""
    view = _view()
    grid, transform = TileGrid(view, 300), A.Compose([A.NoOp()], **params)
    TileBag(view, grid, tile_transform=transform)
    with pytest.raises(ConfigError) as caught:
        TileBag(view, grid, tile_transform=transform, annotations=CELLS)
    assert message in str(caught.value)


def test_other_things_are_no_annotations() -> None:
    """A path, a mistyped parameter, arrays of other shapes."""
    view = _view()
    grid = TileGrid(view, 300)
    with pytest.raises(ConfigError, match="annotations are a str; pass Annotations"):
        TileBag(view, grid, annotations="cells.json")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="bbox_params has no 'min_size'"):
        CELLS.targets(TileBag(view, grid), bbox_params={"format": "coco", "min_size": 3})
    with pytest.raises(ConfigError, match=r"points of the shape \(3,\)"):
        Annotations.from_arrays([1, 2, 3], ["a"])
    with pytest.raises(ConfigError, match="a box without area"):
        Annotations.from_arrays(boxes=[(5, 5, 5, 9)], box_classes=["a"])
    with pytest.raises(ConfigError, match="pass one label for each"):
        Annotations.from_arrays([(1, 2)], ["a", "b"])
    with pytest.raises(ConfigError, match="class 'b' has no label"):
        Annotations.from_arrays([(1, 2)], ["b"], classes=["a"])


# -- GeoJSON -------------------------------------------------------------------------------------------------------


def test_geojson_has_points_and_rectangles(tmp_path: Path) -> None:
    """Written for QuPath and read again: the same places, to its three decimals, and classes."""
    CELLS.to_geojson(tmp_path / "cells.geojson")
    again = Annotations.from_geojson(tmp_path / "cells.geojson", KINDS)
    for label in CELLS.classes.values():
        theirs, ours = POINTS[CELLS.point_labels == label], again.points[again.point_labels == label]
        np.testing.assert_allclose(ours, theirs, atol=5.1e-4)
    np.testing.assert_allclose(again.boxes, BOXES, atol=5.1e-4)
    assert again.box_labels.tolist() == CELLS.box_labels.tolist()
    assert repr(again) == repr(CELLS)
    features = json.loads((tmp_path / "cells.geojson").read_text())["features"]
    assert [each["geometry"]["type"] for each in features].count("MultiPoint") == 3


def _file(folder: Path, *geometries: tuple[str | None, str, Any]) -> Path:
    features = []
    for name, kind, coordinates in geometries:
        properties = {"objectType": "annotation"} | ({} if name is None else {"classification": {"name": name}})
        geometry = {"type": kind, "coordinates": coordinates}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    path = folder / "drawn.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")
    return path


SQUARE = [[[10, 10], [50, 10], [50, 40], [10, 40], [10, 10]]]
TRIANGLE = [[[0, 0], [90, 0], [0, 90], [0, 0]]]


def test_mixed_geometry_is_divided(tmp_path: Path) -> None:
    """Rectangles are boxes and remain regions; other polygons are regions; lines are nothing."""
    path = _file(
        tmp_path,
        ("Mitosis", "Polygon", SQUARE),
        ("Tumor", "Polygon", TRIANGLE),
        ("Cell", "Point", [5, 6]),
        (None, "MultiPoint", [[7, 8], [9, 10]]),
        ("Ruler", "LineString", [[0, 0], [5, 5]]),
        ("Ignore*", "Point", [1, 1]),
    )
    read = Annotations.from_geojson(path)
    assert read.classes == {"Mitosis": 1, "Tumor": 2, "Cell": 3, "unclassified": 4}
    assert read.boxes.tolist() == [[10, 10, 50, 40]]
    assert read.box_labels.tolist() == [1]
    assert read.points.tolist() == [[5, 6], [7, 8], [9, 10]]
    assert read.point_labels.tolist() == [3, 4, 4]
    assert len(read.regions) == 2
    assert repr(read) == "Annotations(1 Mitosis, 1 Tumor, 1 Cell, 2 unclassified)"
    chosen = Annotations.from_geojson(path, {"Cell": 9})
    assert (len(chosen), chosen.point_labels.tolist()) == (1, [9])


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        (("A", "Point", [1]), "a point that is no x, y"),
        (("A", "Point", ["x", "y"]), "could not convert"),
        (("A", "Point", [1, None]), "not the GeoJSON of polygons or points"),
        (("A", "MultiPoint", [1, 2]), "a point that is no x, y"),
        (("A", "LineString", [[0, 0], [1, 1]]), "lines, no polygon and no point"),
        (("A", "Circle", [0, 0]), "unknown type 'Circle'"),
    ],
)
def test_malformed_points_are_refused(tmp_path: Path, geometry: Any, message: str) -> None:
    """With the file and the reason."""
    with pytest.raises(ConfigError, match=r"drawn\.geojson") as caught:
        Annotations.from_geojson(_file(tmp_path, geometry))
    assert message in str(caught.value)


def test_an_empty_file_has_no_annotations(tmp_path: Path) -> None:
    """A FeatureCollection of nothing; an empty file is no JSON."""
    assert len(Annotations.from_geojson(_file(tmp_path))) == 0
    (tmp_path / "empty.geojson").write_text("")
    with pytest.raises(ConfigError, match="not the GeoJSON of polygons or points"):
        Annotations.from_geojson(tmp_path / "empty.geojson")


def test_a_slide_turn_that_grows_keeps_all_boxes() -> None:
    """The canvas of a turned slide holds all of it, so that no box is cut."""
    view = _view().slide.view(transform=RandomAffine(rotate=(30, 30), flip=False), seed=1)  # type: ignore[attr-defined]
    assert len(CELLS.in_view(view).boxes) == len(BOXES)


def test_a_plot_shows_boxes_and_points() -> None:
    """In the colours of their classes, at their places, also enlarged; the rest of the tile is unchanged."""
    marked = Annotations.from_arrays([(20, 30)], ["b"], [(40, 50, 80, 70)], ["a"], ["a", "b"])
    view = _view()
    bag = TileBag(view, TileGrid(view, 100), annotations=marked)
    plain, shown = np.asarray(bag[0]), np.asarray(bag.targets(0).plot(bag[0], 200))
    assert shown.shape == (200, 200, 3)
    assert shown[60, 40].tolist() == list(CLASSES[1])
    assert shown[100:140, 80].tolist() == [list(CLASSES[0])] * 40
    assert shown[120, 120].tolist() == plain[60, 60].tolist()
    changed = np.argwhere((np.asarray(bag.targets(0).plot(bag[0])) != plain).any(axis=2))
    assert changed.min(axis=0).tolist() >= [27, 17]
    assert changed.max(axis=0).tolist() <= [69, 79]
