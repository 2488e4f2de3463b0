"""TissueMask against naive loops and independent readers; find_tissue on slides."""

from __future__ import annotations

import json
import pickle
import re
import warnings

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from skimage.filters import gaussian
from skimage.measure import points_in_poly

from slideio_pipe.errors import (
    ConfigError,
    EmptyTissueWarning,
    MissingResolutionError,
    OutputError,
    OutputExistsError,
    SlideNotFoundError,
)
from slideio_pipe.geometry import Affine, Mpp, Size
from slideio_pipe.outlines import mask_to_polygons, polygons_to_mask, signed_area
from slideio_pipe.slide import open_slide
from slideio_pipe.synthetic import write_synthetic_slide
from slideio_pipe.tissue import TissueMask, find_tissue

EIGHT_UM = Mpp(8.0, 8.0)
MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9))


class FakeSlide:
    """A slide that is a picture in memory."""

    def __init__(self, rgb: np.ndarray, *, mpp: Mpp | None = EIGHT_UM, size: Size | None = None) -> None:
        self.rgb, self.mpp, self.name = rgb, mpp, "fake.svs"
        self.dimensions = size or Size(rgb.shape[1], rgb.shape[0])

    def require_mpp(self) -> Mpp:
        if self.mpp is None:
            raise MissingResolutionError("no mpp", slide=self.name)
        return self.mpp

    def overview(self, mpp: float) -> tuple[np.ndarray, Affine]:
        return self.rgb, Affine()


def blank(width=200, height=100, mpp=1.0) -> FakeSlide:
    """Return a slide of which only the size matters."""
    return FakeSlide(np.zeros((1, 1, 3), np.uint8), mpp=Mpp(mpp, mpp), size=Size(width, height))


def blobs(height=90, width=120, seed=0) -> np.ndarray:
    """Return a random mask with holes, diagonal contacts and pixels at the edge."""
    noise = gaussian(np.random.default_rng(seed).normal(size=(height, width)), 3)
    return noise > 0.02


def mask_of(pixels: np.ndarray, scale=(4.0, 4.0), **fields) -> TissueMask:
    height, width = pixels.shape
    size = Size(round(width * scale[0]), round(height * scale[1]))
    return TissueMask(pixels, Affine.scaling(*scale), size, "a.svs", mpp=Mpp(2 * scale[0], 2 * scale[1]), **fields)


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
    """Fractional, overhanging and tiny rectangles agree with the sum over pixels."""
    size = (round(pixels.shape[1] * scale[0]), round(pixels.shape[0] * scale[1]))
    tissue = TissueMask(pixels, Affine.scaling(*scale), Size(*size))
    expected = [naive_fraction(pixels, scale, size, rect) for rect in rects]
    found = tissue.fractions(np.array(rects).reshape(-1, 4))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_fractions_of_whole_pixels_are_whole_numbers():
    """A tile on pixel borders has exactly its share, so that min_tissue=0.5 keeps a half."""
    pixels = np.zeros((4, 4), bool)
    pixels[:2] = True
    tissue = mask_of(pixels, (3.0, 3.0))
    assert tissue.fractions([[0, 0, 12, 12], [3, 3, 6, 6], [0, 0, 12, 6], [6, 9, 9, 9]]).tolist() == [0.5, 0.5, 1, 0]


def test_what_lies_off_the_slide_is_no_tissue():
    """Half of a tile that hangs over the edge counts as empty, also where the last mask pixel overhangs the slide."""
    tissue = TissueMask(np.ones((1, 3), bool), Affine.scaling(10, 10), Size(25, 10))
    assert tissue.fractions([[20, 0, 10, 10], [-5, 0, 10, 10], [40, 0, 5, 5]]).tolist() == [0.5, 0.5, 0]
    assert tissue.fraction == 1


@pytest.mark.parametrize("rect", [[0, 0, 0, 5], [0, 0, 5, -1], [0, 0, np.nan, 1]])
def test_a_rectangle_without_area_is_refused(rect):
    """No division by 0."""
    with pytest.raises(ConfigError, match="without area"):
        mask_of(blobs()).fractions([rect])


def test_area_and_description():
    """Areas are in µm² of the slide, and the representation says it all in a line."""
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
    """Neither the caller's array nor the mask's own can change it afterwards."""
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
    """Fractions need rows and columns that run along those of the slide."""
    with pytest.raises(ConfigError, match="turns"):
        TissueMask(np.ones((2, 2), bool), Affine(0, 1, 0, 1, 0, 0), Size(2, 2))


def test_masks_combine():
    """And, or, not are those of the pixels, and provenance tells the operands."""
    one, two = mask_of(blobs(seed=1)), mask_of(blobs(seed=2))
    assert ((one & two).mask == (one.mask & two.mask)).all()
    assert ((one | two).mask == (one.mask | two.mask)).all()
    assert ((~one).mask == ~one.mask).all()
    assert [each["slide"] for each in (one & two).provenance()["settings"]["of"]] == ["a.svs", "a.svs"]
    with pytest.raises(ConfigError, match="different slides"):
        _ = one & mask_of(blobs(30, 30))


def test_masks_of_different_resolution_combine():
    """The right one is brought to the grid of the left one: half of a pixel's area decides."""
    coarse = TissueMask(np.array([[True, False]]), Affine.scaling(8, 8), Size(16, 8))
    fine = np.zeros((8, 16), bool)
    fine[:4, :] = True
    both = coarse & TissueMask(fine, Affine(), Size(16, 8))
    assert both.mask.tolist() == [[True, False]]
    fine[3, 0] = False
    assert (coarse & TissueMask(fine, Affine(), Size(16, 8))).is_empty


def test_equality_and_pickle():
    """A mask equals its pickled self, which is read-only too, and no other."""
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


@settings(max_examples=60)
@given(MASKS)
def test_outlines_are_exact_and_valid(pixels):
    """Whatever the pixels, areas agree, no ring touches itself, and the file reads back as the same mask."""
    polygons = mask_to_polygons(pixels)
    assert sum(signed_area(ring) for polygon in polygons for ring in polygon) == np.count_nonzero(pixels)
    for outer, *holes in polygons:
        assert signed_area(outer) > 0
        assert all(signed_area(hole) < 0 for hole in holes)
        assert all(len(np.unique(ring, axis=0)) == len(ring) for ring in (outer, *holes))
    assert (polygons_to_mask(polygons, pixels.shape[1], pixels.shape[0]) == pixels).all()


def test_filling_agrees_with_skimage():
    """Random star-shaped polygons cover the pixels that an independent point-in-polygon test gives."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :50]
    centres = np.stack([x.ravel() + 0.5, y.ravel() + 0.5], axis=1)
    for _ in range(20):
        angle = np.sort(rng.uniform(0, 2 * np.pi, 12))
        ring = rng.uniform(5, 35, (12, 1)) * np.stack([np.cos(angle), np.sin(angle)], axis=1) + (25, 20)
        expected = points_in_poly(centres, ring).reshape(40, 50)
        assert (polygons_to_mask([[ring]], 50, 40) == expected).all()


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


def test_geojson_is_what_qupath_reads(tmp_path):
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
def test_every_shape_of_geojson_is_read(tmp_path, document, fraction):
    """Geometries bare, in features, in collections and lists, with holes, open rings, heights and overhang."""
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
def test_classes_of_qupath_pick_the_polygons(tmp_path, classes, expected):
    """Ignored classes are left out, whether one name or several parts, unless they are asked for by name."""
    path = tmp_path / "classes.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": CLASSED}), encoding="utf-8")
    tissue = TissueMask.from_geojson(path, blank(), mpp=2.0, classes=classes)
    found = tissue.fractions([[left, 0, 40, 100] for left in range(0, 200, 40)])
    assert found.tolist() == [float(index in expected) for index in range(5)]
    assert tissue.settings.get("classes") == (None if classes is None else list(classes))


@pytest.mark.parametrize("classification", ["Ignore", {"name": "Ignore"}, {"name": "Artefact*", "colorRGB": -1}])
def test_a_file_of_ignored_classes_only_is_refused(tmp_path, classification):
    """The error lists the classes that are there, so that one can be asked for."""
    path = tmp_path / "ignored.geojson"
    path.write_text(json.dumps([square(0, classification)]), encoding="utf-8")
    name = classification if isinstance(classification, str) else classification["name"]
    with pytest.raises(ConfigError, match=rf"ignored\.geojson: .*classes found: {re.escape(name)}; .*classes="):
        TissueMask.from_geojson(path, blank())


@pytest.mark.parametrize("odd", [3, "", {}, {"name": None}, {"name": 5}, {"names": None}, []])
def test_a_class_that_is_no_name_is_no_class(tmp_path, odd):
    """Its polygon counts as unclassified, and is taken."""
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
def test_classes_that_pick_nothing_are_refused(tmp_path, classes, reason):
    """Absent names, a name in place of a list, and no name at all."""
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
    """The error names the file, what is wrong and what to do."""
    path = tmp_path / "broken.geojson"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.geojson: .+; export from QuPath"):
        TissueMask.from_geojson(path, blank())


def test_geojson_that_is_no_text_is_refused(tmp_path):
    """Bytes that are no UTF-8 are our error too."""
    path = tmp_path / "broken.geojson"
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match="broken"):
        TissueMask.from_geojson(path, blank())


def test_an_empty_mask_survives_its_files(tmp_path):
    """No polygon written reads as no tissue, with a warning."""
    empty = mask_of(np.zeros((5, 5), bool))
    empty.to_geojson(tmp_path / "e.geojson")
    empty.to_png(tmp_path / "e.png")
    with pytest.warns(EmptyTissueWarning):
        assert TissueMask.from_geojson(tmp_path / "e.geojson", blank(20, 20)).is_empty
    with pytest.warns(EmptyTissueWarning):
        assert TissueMask.from_png(tmp_path / "e.png", blank(20, 20)).is_empty


def test_png_round_trip(tmp_path):
    """An 8-bit grey picture of 0 and 255 that reads back as the same mask."""
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
    """Whatever is not 0 and not transparent is tissue."""
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
def test_a_colour_picture_is_no_mask(tmp_path, mode):
    """The drawing of a mask, on which nothing is black, is refused with what to pass instead."""
    drawing = FakeSlide(two_pieces())
    drawing.thumbnail = lambda max_size: drawing.rgb
    picture = find_tissue(drawing).plot(drawing).convert(mode)
    picture.save(tmp_path / "drawing.tif")
    with pytest.raises(ConfigError, match=r"drawing\.tif: a colour picture, not a mask; .*--out mask\.png"):
        TissueMask.from_png(tmp_path / "drawing.tif", drawing)


def test_the_colour_of_what_is_transparent_does_not_matter(tmp_path):
    """An editor may keep any colour under full transparency."""
    pixels = np.full((10, 20, 4), (255, 0, 0, 0), np.uint8)
    pixels[:, :5] = 255
    Image.fromarray(pixels).save(tmp_path / "layer.png")
    assert TissueMask.from_png(tmp_path / "layer.png", blank()).fraction == pytest.approx(0.25)


def test_a_picture_of_another_shape_is_refused(tmp_path):
    """2 % of aspect ratio are forgiven, for rounding, and no more."""
    Image.new("L", (202, 100), 255).save(tmp_path / "near.png")
    assert TissueMask.from_png(tmp_path / "near.png", blank()).fraction == pytest.approx(1)
    Image.new("L", (210, 100), 255).save(tmp_path / "far.png")
    with pytest.raises(ConfigError, match=r"far\.png: .*210x100"):
        TissueMask.from_png(tmp_path / "far.png", blank())


def test_files_that_are_missing_or_no_picture(tmp_path):
    """Missing files and files of another kind are our errors."""
    for read in (TissueMask.from_png, TissueMask.from_geojson):
        with pytest.raises(SlideNotFoundError, match=r"none\.x"):
            read(tmp_path / "none.x", blank())
        with pytest.raises(ConfigError):
            read(tmp_path, blank())
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
    with pytest.raises(ConfigError, match=r"bad\.png"):
        TissueMask.from_png(tmp_path / "bad.png", blank())


@pytest.mark.parametrize("write", [TissueMask.to_png, TissueMask.to_geojson])
def test_outputs_are_not_overwritten_by_accident(tmp_path, write):
    """A second write needs overwrite=True, an impossible one leaves nothing behind."""
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


def two_pieces() -> np.ndarray:
    """Return white glass with a large and a small pink square."""
    rgb = np.full((100, 150, 3), 244, np.uint8)
    rgb[20:70, 20:90] = (190, 110, 170)
    rgb[80:90, 120:130] = (190, 110, 170)
    return rgb


def test_find_tissue_drops_specks_by_area_in_um():
    """80 µm squares fall below a tile of area, and stay when asked for."""
    slide = FakeSlide(two_pieces())
    tissue = find_tissue(slide)
    assert tissue.mask[20:70, 20:90].all()
    outside = tissue.mask.copy()
    outside[18:72, 18:92] = False  # the outline of dense tissue lies up to two pixels, 16 µm, in the glass
    assert not outside.any()
    assert find_tissue(slide, min_area_um2=1000).mask[82:88, 122:128].all()


def test_find_tissue_fills_holes_by_area_in_um():
    """A hole of 240 µm stays unless larger holes are filled."""
    rgb = two_pieces()
    rgb[30:60, 30:60] = 244
    slide = FakeSlide(rgb)
    assert not find_tissue(slide).mask[35:55, 35:55].any()
    assert find_tissue(slide, max_hole_um2=100_000).mask[20:70, 20:90].mean() > 0.94


def test_find_tissue_on_glass_warns():
    """A slide without tissue is a warning and an empty mask, not an error and not noise."""
    with pytest.warns(EmptyTissueWarning, match=r"fake\.svs"):
        assert find_tissue(FakeSlide(np.full((50, 50, 3), 240, np.uint8))).is_empty


def test_method_none_takes_all_and_decodes_nothing():
    """The whole slide is tissue, and no overview is read."""
    slide = blank(1001, 703, mpp=0.5)
    slide.overview = None
    tissue = find_tissue(slide, method="none")
    assert tissue.mask.shape == (44, 63)
    assert tissue.fraction == 1


def test_the_part_of_a_pixel_an_overview_leaves_out_is_covered():
    """Tissue up to the edge counts up to the edge, though the overview ends a part of a pixel before it."""
    rgb = np.full((10, 10, 3), (190, 110, 170), np.uint8)
    slide = FakeSlide(rgb, mpp=Mpp(0.5, 0.5), size=Size(167, 160))
    slide.overview = lambda mpp: (rgb, Affine.scaling(16, 16))
    tissue = find_tissue(slide)
    assert tissue.fraction == 1
    assert tissue.fractions([[151, 0, 16, 16]]) == 1


@pytest.mark.parametrize(
    "options", [{"method": "magic"}, {"mpp": 0}, {"mpp": float("nan")}, {"min_area_um2": -1}, {"max_hole_um2": -1}]
)
def test_arguments_that_make_no_sense(options):
    """They are refused with the name of the slide."""
    with pytest.raises(ConfigError, match=r"fake\.svs"):
        find_tissue(FakeSlide(two_pieces()), **options)


def test_no_resolution_is_an_error():
    """Areas in µm² need a resolution."""
    with pytest.raises(MissingResolutionError):
        find_tissue(FakeSlide(two_pieces(), mpp=None))


def test_settings_are_recorded():
    """The mask tells what it was asked for and which threshold came out."""
    tissue = find_tissue(FakeSlide(two_pieces()), ignore_pen=False)
    assert tissue.method == "otsu"
    assert tissue.settings["ignore_pen"] is False
    assert 0.02 <= tissue.settings["used_threshold"] <= 0.03


def test_generated_slides_agree_with_their_plan(tmp_path):
    """All of the planned tissue is found, and the outline lies at most 24 µm outside; glass alone is empty."""
    truth = write_synthetic_slide(tmp_path / "a.svs", size=(3000, 2000), mpp=0.5, seed=3, lesions=1, pieces=1)
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
    # slide, its mpp if the file has none, bounds of the tissue fraction judged by eye
    ("CMU-1-Small-Region.svs", None, (0.35, 0.5)),
    ("TCGA-CR-7395-01A-01-TS1.svs", 0.5, (0.6, 0.72)),
    ("OS-2-ndpi.ome.tif", None, (0.8, 0.97)),
    ("test3-DAPI-2-(387).ndpi", None, (0.4, 0.8)),
    ("multi_frame_jpeg2000_camelyon.dcm", 28.97, (0.36, 0.46)),
]


@pytest.mark.parametrize(("name", "mpp", "bounds"), REAL, ids=[case[0] for case in REAL])
def test_real_slides(shared_data, name, mpp, bounds):
    """Brightfield of two stains, fluorescence and a slide coarser than the mask give plausible amounts of tissue."""
    tissue = find_tissue(open_slide(shared_data / "slides" / name, slide_mpp=mpp))
    assert bounds[0] < tissue.fraction < bounds[1]


@pytest.mark.parametrize("name", ["small.svs", "boxes_0.dcm"])
@pytest.mark.parametrize("mpp", [0.5, 2.0, 8.0])
def test_slides_of_16_px(shared_data, name, mpp):
    """A miniature does not crash, whatever the resolution."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptyTissueWarning)
        assert 0 <= find_tissue(open_slide(shared_data / "slides" / name), mpp=mpp).fraction <= 1
