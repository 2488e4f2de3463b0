"""The layers of the viewer are the masks, grids, annotations and scores of the package."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_slides import made_slide
from numpy.typing import NDArray
from PIL import Image

import slideio_pipe as sp
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Affine
from slideio_pipe.slides.slide import Slide
from slideio_pipe.tiles.config import GridConfig, TissueConfig
from slideio_pipe.tiles.mask_files import Annotation
from slideio_pipe.viewer.attachments import annotations_of, read_scores, scores_of
from slideio_pipe.viewer.layers import Layers, LayerSettings
from slideio_pipe.viewer.nearest import nearest_tiles
from slideio_pipe.viewer.scene import Scene


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    """A generated slide of 3000×2400 px at 0.25 µm."""
    path = tmp_path_factory.mktemp("slides") / "a.svs"
    made_slide(path, size=(3000, 2400), seed=3, lesions=1, pieces=1)
    return sp.open_slide(path)


def layers_of(source: Any, **settings: Any) -> Layers:
    """Return the layers of one slide, "s0"."""
    return Layers(Scene(source), LayerSettings(TissueConfig(), GridConfig(tile_size=128), 0.5, **settings))


def floats(text: str) -> NDArray[np.float32]:
    """Return numbers as the page reads them."""
    return np.frombuffer(base64.b64decode(text), "<f4")


def test_tissue_is_the_mask(slide: Slide) -> None:
    """The picture is the mask of ``find_tissue``, and settings of the page replace the first ones."""
    layers = layers_of(slide)
    for query in ({}, {"threshold": "0.12", "min_area_um2": "50000"}):
        found = layers.tissue("s0", query)
        true = sp.find_tissue(slide, **{key: float(value) for key, value in query.items()})
        picture = Image.open(io.BytesIO(base64.b64decode(found["picture"].partition(",")[2])))
        assert (np.asarray(picture)[..., 1] == 255 * true.mask).all()
        assert found["fraction"] == pytest.approx(true.fraction)
        assert found["affine"] == list(true.affine.as_tuple())


def test_the_grid_is_the_grid(slide: Slide) -> None:
    """Fractions and kept tiles are those of ``TileGrid``."""
    found = layers_of(slide).grid("s0", {"min_tissue": "0.6"})
    view, mask = slide.view(mpp=0.5), sp.find_tissue(slide)
    true = sp.TileGrid(view, 128, tissue=mask, min_tissue=0.6)
    fractions = floats(found["fractions"]).reshape(found["rows"], found["columns"])
    columns, rows = true.index.T
    assert fractions[rows, columns] == pytest.approx(true.tissue, abs=1e-6)
    assert found["kept"] == len(true.coords)
    assert found["step"] == [256.0, 256.0]


@pytest.mark.parametrize("query", [{"tile_size": "0"}, {"min_tissue": "7"}, {"tile_mpp": "x"}, {"threshold": "x"}])
def test_impossible_settings_are_refused(slide: Slide, query: dict[str, str]) -> None:
    """A number that the page's user mistyped is an error that names it."""
    with pytest.raises(ConfigError):
        layers_of(slide).grid("s0", query)


def test_a_grid_of_millions_is_refused(tmp_path: Path) -> None:
    """Tiles of a pixel or two would not fit into the page."""
    slide = sp.open_slide(np.zeros((4000, 4000, 3), np.uint8), slide_mpp=0.5)
    with pytest.raises(ConfigError, match="too many to show"):
        layers_of(slide).grid("s0", {"tile_size": "2"})


def test_an_empty_slide_has_an_empty_mask() -> None:
    """Glass is no error."""
    white = sp.open_slide(np.full((800, 900, 3), 245, np.uint8), slide_mpp=2)
    assert layers_of(white).tissue("s0", {})["fraction"] == 0


def square(left: float, top: float, side: float) -> list[NDArray[np.float64]]:
    """Return a polygon."""
    return [np.array([[left, top], [left + side, top], [left + side, top + side], [left, top + side]])]


def test_annotations_by_file_folder_and_object(slide: Slide, tmp_path: Path) -> None:
    """All give the same polygons; a folder is searched by the slide's name."""
    drawn = sp.Annotations([Annotation("Tumour", square(100, 200, 300))], {"Tumour": 1})
    drawn.to_geojson(tmp_path / "a.geojson", slide=slide)
    for given in (tmp_path / "a.geojson", tmp_path, drawn, {"a.svs": drawn}, {"a": tmp_path / "a.geojson"}):
        found = layers_of(slide, annotations=given).annotations("s0", {})
        assert found["classes"][0]["name"] == "Tumour"
        assert sorted(map(tuple, found["regions"][0]["rings"][0]))[0] == (100, 200)
    with pytest.raises(ConfigError, match="no such file"):
        annotations_of(tmp_path / "none.geojson", slide, alone=True)
    assert annotations_of({"b.svs": drawn}, slide, alone=True) is None


def test_points_and_boxes_are_drawn(slide: Slide, tmp_path: Path) -> None:
    """With the number of their class; boxes that are polygons are regions, not twice."""
    marks = sp.Annotations.from_arrays([(10, 20), (30, 40)], ["b", "a"], [(1, 2, 3, 4)], ["b"], ["a", "b"])
    mixed = sp.Annotations([Annotation("a", square(100, 200, 300))], {"a": 5, "b": 9})
    found = layers_of(slide, annotations=marks).annotations("s0", {})
    assert decoded(found["points"]) == [10, 20, 30, 40]
    assert decoded(found["point_classes"]) == [1, 0]
    assert (decoded(found["boxes"]), decoded(found["box_classes"])) == ([1, 2, 3, 4], [1])
    assert len(mixed.boxes) == 1
    assert decoded(layers_of(slide, annotations=mixed).annotations("s0", {})["boxes"]) == []
    table = tmp_path / "cells.csv"
    table.write_text("x,y,class\n7,8,a\n", encoding="utf-8")
    assert decoded(layers_of(slide, annotations=table).annotations("s0", {})["points"]) == [7, 8]


def decoded(text: str) -> list[float]:
    """Return the numbers that the page gets."""
    numbers: list[float] = np.frombuffer(base64.b64decode(text), "<f4").tolist()
    return numbers


def test_label_masks_become_regions(slide: Slide) -> None:
    """Each class is a polygon around its pixels."""
    mask = sp.LabelMask(np.array([[0, 1], [2, 2]], np.uint8), Affine.scaling(1500, 1200), {"stroma": 1, "tumour": 2})
    found = layers_of(slide, annotations=mask).annotations("s0", {})
    assert {each["class"] for each in found["regions"]} == {"stroma", "tumour"}


def write_scores(path: Path, rows: list[str]) -> Path:
    """Write a table of scores."""
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("\n".join(["tile,x,y,attention,probability_1", *rows]), encoding="utf-8")
    return path


def test_scores_of_a_folder_of_predictions(slide: Slide, tmp_path: Path) -> None:
    """The table of a slide is in the folder of its name; attention is shown as multiples of its mean."""
    write_scores(tmp_path / "a" / "tiles.csv", ["0,0,0,0.25,0.9", "1,512,0,0.75,"])
    found = layers_of(slide, scores=tmp_path).scores("s0", {})
    assert found["count"] == 2
    assert found["edges"] == [[512.0, 0.0], [0.0, 512.0]]
    assert floats(found["values"]["attention"]).tolist() == [0.5, 1.5]
    assert floats(found["values"]["probability 1"])[0] == pytest.approx(0.9)
    assert scores_of(tmp_path, "b.svs", alone=True) is None


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "x,y\n1,\n", "x,y\n1,two\n"])
def test_a_table_without_positions_is_refused(tmp_path: Path, text: str) -> None:
    """The error names the file."""
    file = tmp_path / "tiles.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"tiles\.csv"):
        read_scores(file)


def test_tiles_of_a_bag_over_a_turned_view(slide: Slide) -> None:
    """Its corners and edges are those of its tiles on the slide, turned with the view."""
    view = slide.view(mpp=0.5).adjusted(turn=30)
    bag = sp.TileBag(view, sp.TileGrid(view, tile_size=128))
    found = layers_of(bag).tiles("s0", {})
    (ux, uy), (vx, vy) = found["edges"]
    corner = view.affine.apply([bag.grid.origins[7] + (128, 128)])[0]
    start = floats(found["coords"]).reshape(-1, 2)[7]
    assert np.add(start, (ux + vx, uy + vy)) == pytest.approx(corner, abs=1)


def test_tiles_have_the_numbers_of_their_quality(slide: Slide) -> None:
    """Those that were measured, beside their tissue."""
    view = slide.view(mpp=0.5)
    bag = sp.TileBag(view, sp.TileGrid(view, tile_size=256, tissue=sp.find_tissue(slide)))
    assert list(layers_of(bag).tiles("s0", {})["values"]) == ["tissue"]
    quality = sp.tile_quality(bag, ["focus", "white"])
    values = layers_of(bag).tiles("s0", {})["values"]
    assert list(values) == ["tissue", "focus", "white"]
    assert floats(values["focus"]).tolist() == quality.focus.tolist()


def test_tiles_that_look_alike() -> None:
    """The nearest are those with the largest cosine, whatever their length; the tile itself is left out."""

    class Bag:
        encoders = ("tiny",)

        def features(self, encoder: str) -> NDArray[np.float32]:
            return np.array([[1, 0], [10, 1], [0, 3], [-1, 0]], np.float32)

    found = nearest_tiles(Bag(), 0)
    assert found["tiles"] == [1, 2, 3]
    assert found["cosines"] == pytest.approx([10 / np.sqrt(101), 0, -1], abs=1e-4)
    for number, encoder in [(9, None), (-1, None), (0, "other")]:
        with pytest.raises(ConfigError):
            nearest_tiles(Bag(), number, encoder)
    with pytest.raises(ConfigError, match="no features"):
        nearest_tiles(object(), 0)
