"""Files of masks: GeoJSON in every form that QuPath writes, pictures of every mode, and refusals."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from fake_slides import FakeSlide, blank, blobs, mask_of, two_pieces
from PIL import Image

from slideio_pipe.errors import ConfigError, EmptyTissueWarning, OutputError, OutputExistsError, SlideNotFoundError
from slideio_pipe.tiles.find_tissue import find_tissue
from slideio_pipe.tiles.tissue_mask import TissueMask


def test_geojson_round_trip_at_another_resolution(tmp_path):
    """Outlines in level-0 px, read back on a finer and on the same grid, overlap by more than 99 %."""
    tissue = mask_of(blobs(), (4.0, 4.0))
    slide = blank(*tissue.slide_size, mpp=2.0)
    tissue.to_geojson(tmp_path / "tissue.geojson")
    again = TissueMask.from_geojson(tmp_path / "tissue.geojson", slide, mpp=8.0)
    assert (again.mask == tissue.mask).all()
    finer = TissueMask.from_geojson(tmp_path / "tissue.geojson", slide, mpp=3.0)
    common, either = (tissue & finer).fraction, (tissue | finer).fraction
    assert common / either > 0.99
    assert finer.area_um2 == pytest.approx(tissue.area_um2, rel=0.01)


def test_geojson_has_the_format_of_qupath(tmp_path):
    """A FeatureCollection of closed polygons with class and object type, in level-0 px."""
    pixels = np.ones((3, 3), bool)
    pixels[1, 1] = False
    mask_of(pixels, (10.0, 10.0)).to_geojson(tmp_path / "t.geojson")
    document = json.loads((tmp_path / "t.geojson").read_text())
    assert document["type"] == "FeatureCollection"
    (feature,) = document["features"]
    assert feature["properties"]["objectType"] == "annotation"
    assert feature["properties"]["classification"]["name"] == "Tissue"
    outer, hole = feature["geometry"]["coordinates"]
    assert outer == [[0, 0], [30, 0], [30, 30], [0, 30], [0, 0]]
    assert hole[0] == hole[-1]
    assert sorted(map(tuple, hole[:-1])) == [(10, 10), (10, 20), (20, 10), (20, 20)]


SQUARE = [[[0, 0], [100, 0], [100, 100], [0, 100], [0, 0]]]
HOLE = [[20, 20], [80, 20], [80, 80], [20, 80], [20, 20]]
POLYGON = {"type": "Polygon", "coordinates": SQUARE}
POINT = {"type": "Point", "coordinates": [1, 2]}


@pytest.mark.parametrize(
    ("document", "fraction"),
    [
        (POLYGON, 0.5),
        ({"type": "Polygon", "coordinates": [*SQUARE, HOLE]}, 0.32),
        ({"type": "MultiPolygon", "coordinates": [SQUARE, [[[150, 0], [200, 0], [200, 100], [150, 100]]]]}, 0.75),
        ({"type": "Feature", "geometry": POLYGON, "properties": {}}, 0.5),
        ([{"type": "Feature", "geometry": POLYGON}, {"type": "Feature", "geometry": POINT}], 0.5),
        ({"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": POLYGON}]}, 0.5),
        ({"type": "GeometryCollection", "geometries": [POLYGON, POINT]}, 0.5),
        ({"type": "Feature", "geometry": {"type": "GeometryCollection", "geometries": [POLYGON]}}, 0.5),
        ({"type": "Polygon", "coordinates": [[[-100, -50, 7], [300, -50, 7], [300, 150, 7], [-100, 150, 7]]]}, 1),
        ([{"type": "Feature", "geometry": None}, POLYGON], 0.5),
    ],
)
def test_every_form_of_geojson_is_read(tmp_path, document, fraction):
    """Geometries alone, in features, collections and lists, with holes, open rings, heights and overhang."""
    path = tmp_path / "annotation.geojson"
    path.write_text(json.dumps(document), encoding="utf-8")
    assert TissueMask.from_geojson(path, blank(), mpp=2.0).fraction == pytest.approx(fraction)


def square(left: int, classification, properties: bool = True) -> dict:
    """Return a feature as QuPath exports it, of 40 px from ``left``."""
    ring = [[left, 0], [left + 40, 0], [left + 40, 100], [left, 100], [left, 0]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}}
    return feature | (
        {"properties": {"objectType": "annotation", "classification": classification}} if properties else {}
    )


CLASSED = [
    square(0, {"name": "Tissue", "color": [0, 160, 80]}),
    square(40, {"name": "Ignore*", "color": [180, 180, 180]}),
    square(80, {"names": ["Tumor", "Positive"], "color": [250, 62, 62]}),
    square(120, None, properties=False),
    square(160, {"names": ["Tumor", "Boundary*"]}),
]


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (None, [0, 2, 3]),
        (["Tissue"], [0]),
        (("Tissue", "Tumor: Positive"), [0, 2]),
        (["Ignore*"], [1]),
        (["unclassified", "Absent"], [3]),
        (["Tumor: Boundary*"], [4]),
    ],
)
def test_classes_of_qupath_select_polygons(tmp_path, classes, expected):
    """Ignored classes are left out, as one name or several parts, unless they are requested by name."""
    path = tmp_path / "classes.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": CLASSED}), encoding="utf-8")
    tissue = TissueMask.from_geojson(path, blank(), mpp=2.0, classes=classes)
    found = tissue.fractions([[left, 0, 40, 100] for left in range(0, 200, 40)])
    assert found.tolist() == [float(index in expected) for index in range(5)]
    assert tissue.settings.get("classes") == (None if classes is None else list(classes))


@pytest.mark.parametrize("classification", ["Ignore", {"name": "Ignore"}, {"name": "Artefact*", "colorRGB": -1}])
def test_a_file_of_ignored_classes_only_is_refused(tmp_path, classification):
    """The error lists the existing classes."""
    path = tmp_path / "ignored.geojson"
    path.write_text(json.dumps([square(0, classification)]), encoding="utf-8")
    name = classification if isinstance(classification, str) else classification["name"]
    with pytest.raises(ConfigError, match=rf"ignored\.geojson: .*classes found: {re.escape(name)}; .*classes="):
        TissueMask.from_geojson(path, blank())


@pytest.mark.parametrize("odd", [3, "", {}, {"name": None}, {"name": 5}, {"names": None}, []])
def test_a_class_without_a_name_is_unclassified(tmp_path, odd):
    """Its polygon is used."""
    path = tmp_path / "odd.geojson"
    path.write_text(json.dumps(square(0, odd)), encoding="utf-8")
    assert TissueMask.from_geojson(path, blank(), mpp=2.0).fraction == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("classes", "reason"),
    [
        (["tissue", "Glass"], "no polygon of tissue, Glass; classes found: Ignore.*unclassified"),
        ("Tissue", "classes is"),
        ([], "classes is"),
    ],
)
def test_classes_that_select_nothing_are_refused(tmp_path, classes, reason):
    """Missing names, a name in place of a list, and no name."""
    path = tmp_path / "classes.geojson"
    path.write_text(json.dumps(CLASSED), encoding="utf-8")
    with pytest.raises(ConfigError, match=reason):
        TissueMask.from_geojson(path, blank(), classes=classes)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "3",
        '"x"',
        "null",
        "{}",
        '{"type": "Banana"}',
        '{"type": "FeatureCollection"}',
        '{"type": "FeatureCollection", "features": 3}',
        '{"type": "Polygon"}',
        '{"type": "Polygon", "coordinates": [[1, 2], [3, 4]]}',
        '{"type": "Polygon", "coordinates": [[[1, 2], [3]]]}',
        '{"type": "Polygon", "coordinates": [[[1, 2], [3, 4]]]}',
        '{"type": "Polygon", "coordinates": [[["a", "b"], ["c", "d"], ["e", "f"]]]}',
        '{"type": "Polygon", "coordinates": [[[NaN, 2], [3, 4], [5, 6]]]}',
        '{"type": "MultiPolygon", "coordinates": [7]}',
        '{"type": ["Polygon"]}',
        '{"type": "Point", "coordinates": [1, 2]}',
        "\x00\x01",
    ],
)
def test_malformed_geojson_is_refused(tmp_path, text):
    """The error has the file, the reason and a remedy."""
    path = tmp_path / "broken.geojson"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.geojson: .+; export from QuPath"):
        TissueMask.from_geojson(path, blank())


def test_geojson_that_is_no_text_is_refused(tmp_path):
    """Bytes that are not UTF-8."""
    path = tmp_path / "broken.geojson"
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match="broken"):
        TissueMask.from_geojson(path, blank())


def test_an_empty_mask_is_written_and_read(tmp_path):
    """A file without polygons is no tissue, with a warning."""
    empty = mask_of(np.zeros((5, 5), bool))
    empty.to_geojson(tmp_path / "e.geojson")
    empty.to_png(tmp_path / "e.png")
    with pytest.warns(EmptyTissueWarning):
        assert TissueMask.from_geojson(tmp_path / "e.geojson", blank(20, 20)).is_empty
    with pytest.warns(EmptyTissueWarning):
        assert TissueMask.from_png(tmp_path / "e.png", blank(20, 20)).is_empty


def test_png_round_trip(tmp_path):
    """An 8-bit grey picture of 0 and 255 reads back as the same mask."""
    tissue = mask_of(blobs())
    tissue.to_png(tmp_path / "mask.png")
    picture = np.asarray(Image.open(tmp_path / "mask.png"))
    assert picture.dtype == np.uint8
    assert (picture == np.where(tissue.mask, 255, 0)).all()
    again = TissueMask.from_png(tmp_path / "mask.png", blank(*tissue.slide_size, mpp=2.0))
    assert (again.mask == tissue.mask).all()
    assert again.affine == tissue.affine
    assert again.mpp == tissue.mpp


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_pictures_of_every_mode_are_read(tmp_path, mode):
    """Pixels that are neither 0 nor transparent are tissue."""
    grey = np.zeros((10, 20), np.uint8)
    grey[:5] = 1 if mode == "P" else 255
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) * 256)
    elif mode == "P":
        picture = Image.fromarray(grey)
        picture.putpalette([255, 255, 255, 0, 0, 0])
    else:
        picture = Image.fromarray(grey).convert(mode)
    if mode in ("RGBA", "LA"):
        alpha = np.zeros((10, 20), np.uint8)
        alpha[:, :10] = 255
        picture.putalpha(Image.fromarray(alpha))
    picture.save(tmp_path / "mask.png")
    expected = 0.25 if mode in ("RGBA", "LA") else 0.5
    assert TissueMask.from_png(tmp_path / "mask.png", blank()).fraction == pytest.approx(expected)


def test_a_grey_picture_of_labels_is_a_mask(tmp_path):
    """0 is background, every other number tissue."""
    Image.fromarray(np.repeat(np.array([0, 1, 2, 200], np.uint8), 5)[None].repeat(10, axis=0)).save(tmp_path / "m.png")
    assert TissueMask.from_png(tmp_path / "m.png", blank()).mask[0].tolist() == [False] * 5 + [True] * 15


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK"])
def test_a_colour_picture_is_refused(tmp_path, mode):
    """The drawing of a mask has no black; the error says what to pass instead."""
    drawing = FakeSlide(two_pieces())
    drawing.thumbnail = lambda max_size: drawing.rgb
    picture = find_tissue(drawing).plot(drawing).convert(mode)
    picture.save(tmp_path / "drawing.tif")
    with pytest.raises(ConfigError, match=r"drawing\.tif: a colour picture, not a mask; .*--out mask\.png"):
        TissueMask.from_png(tmp_path / "drawing.tif", drawing)


def test_the_colour_of_transparent_pixels_does_not_matter(tmp_path):
    """Editors keep any colour under full transparency."""
    pixels = np.full((10, 20, 4), (255, 0, 0, 0), np.uint8)
    pixels[:, :5] = 255
    Image.fromarray(pixels).save(tmp_path / "layer.png")
    assert TissueMask.from_png(tmp_path / "layer.png", blank()).fraction == pytest.approx(0.25)


def test_a_picture_of_another_shape_is_refused(tmp_path):
    """If the aspect ratios differ by over 2 %, which allows for rounding."""
    Image.new("L", (202, 100), 255).save(tmp_path / "near.png")
    assert TissueMask.from_png(tmp_path / "near.png", blank()).fraction == pytest.approx(1)
    Image.new("L", (210, 100), 255).save(tmp_path / "far.png")
    with pytest.raises(ConfigError, match=r"far\.png: .*210x100"):
        TissueMask.from_png(tmp_path / "far.png", blank())


def test_missing_files_and_files_without_a_picture_are_refused(tmp_path):
    """With our errors."""
    for read in (TissueMask.from_png, TissueMask.from_geojson):
        with pytest.raises(SlideNotFoundError, match=r"none\.x"):
            read(tmp_path / "none.x", blank())
        with pytest.raises(ConfigError):
            read(tmp_path, blank())
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
    with pytest.raises(ConfigError, match=r"bad\.png"):
        TissueMask.from_png(tmp_path / "bad.png", blank())


@pytest.mark.parametrize("write", [TissueMask.to_png, TissueMask.to_geojson])
def test_outputs_are_kept_without_overwrite(tmp_path, write):
    """A write that fails leaves no file."""
    path = tmp_path / "out"
    write(mask_of(blobs(seed=1)), path)
    first = path.read_bytes()
    with pytest.raises(OutputExistsError, match="out"):
        write(mask_of(blobs(seed=2)), path)
    assert path.read_bytes() == first
    write(mask_of(blobs(seed=2)), path, overwrite=True)
    assert path.read_bytes() != first
    with pytest.raises(OutputError, match="missing"):
        write(mask_of(blobs()), tmp_path / "missing" / "out")
    assert [each.name for each in tmp_path.iterdir()] == ["out"]
