"""Origins of coordinates of other tools: QuPath's at the bounds of a scan, OpenSlide's at the corner of level 0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import openslide
import pytest
from PIL import Image
from scanned_bounds import Scan, write_scn
from tiny_training import slides, train_pixels
from typer.testing import CliRunner

from slideio_pipe import (
    Annotations,
    BagDataset,
    LabelMask,
    TileBag,
    TileGrid,
    TissueMask,
    export_cohort,
    find_tissue,
    from_clam,
    open_bag,
    open_slide,
    save_bag,
    tissue_cohort,
)
from slideio_pipe.commands.app import app
from slideio_pipe.errors import ConfigError
from slideio_pipe.export.config import ExportConfig
from slideio_pipe.export.slide import export_slide
from slideio_pipe.geometry import Affine, Rect, Size
from slideio_pipe.mil.prediction.colour_scale import ColourScale
from slideio_pipe.mil.prediction.prediction import Prediction
from slideio_pipe.mil.prediction.score_map import TileScores
from slideio_pipe.mil.prediction.score_regions import write_regions
from slideio_pipe.mil.tasks import Classification
from slideio_pipe.slides.frames import Frame, picture_affine, stated_bounds
from slideio_pipe.streaming.config import LoaderConfig, load_loader_config
from slideio_pipe.tiles.mask_files import Annotation

SLIDE = (1704, 1304)
X, Y, WIDTH, HEIGHT = 300, 200, 1024, 640  # the scan
BOX = (64, 128, 512, 256)  # the tissue: left, top, width and height, px of the scan


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dark, textured box on a scan that is not at the corner of its slide and has another shape."""
    pixels = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    left, top, width, height = BOX
    texture = np.random.default_rng(0).integers(-30, 30, (height // 8, width // 8, 1)).repeat(8, 0).repeat(8, 1)
    pixels[top : top + height, left : left + width] = np.clip(np.array([170, 70, 150]) + texture, 0, 255)
    return write_scn(tmp_path_factory.mktemp("scan") / "a.scn", Scan(X, Y, pixels), SLIDE)


def corner(path: Path) -> tuple[int, int]:
    """Return the origin of the scan by OpenSlide: QuPath's (0, 0)."""
    with openslide.OpenSlide(str(path)) as slide:
        names = (openslide.PROPERTY_NAME_BOUNDS_X, openslide.PROPERTY_NAME_BOUNDS_Y)
        x, y = (int(slide.properties[name]) for name in names)
    return x, y


def rectangle(left: float, top: float, width: float, height: float) -> list[list[float]]:
    right, lower = left + width, top + height
    return [[left, top], [right, top], [right, lower], [left, lower], [left, top]]


def geojson(path: Path, ring: list[list[float]], name: str = "Tissue") -> Path:
    geometry = {"type": "Polygon", "coordinates": [ring]}
    feature = {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": name}}}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    return path


def span(path: Path) -> list[float]:
    """Return left, top, right and lower of a GeoJSON file's geometry."""
    features = json.loads(path.read_text())["features"]
    points = np.concatenate([np.array(ring) for f in features for ring in f["geometry"]["coordinates"]])
    return [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()]


def tissue_span(mask: TissueMask) -> list[float]:
    """Return left, top, right and lower of the tissue, level-0 px."""
    rows, columns = np.nonzero(mask.mask)
    corners = mask.affine.apply([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]])
    return corners.ravel().tolist()  # type: ignore[no-any-return]


def box_at(x: int, y: int) -> list[int]:
    left, top, width, height = BOX
    return [x + left, y + top, x + left + width, y + top + height]


def test_bounds_and_size_equal_openslide(path: Path) -> None:
    """And the box is at its position."""
    slide = open_slide(path)
    assert slide.dimensions == SLIDE
    assert slide.bounds == Rect(*corner(path), WIDTH, HEIGHT)
    assert corner(path) == (X, Y)
    assert open_slide(np.zeros((5, 5, 3), np.uint8)).bounds is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("0", "0", "100", "80"), None),
        (("10", "0", "90", "80"), Rect(10, 0, 90, 80)),
        (("10", "5", "900", "800"), Rect(10, 5, 90, 75)),
        (("200", "5", "10", "10"), None),
        (("x", "5", "10", "10"), None),
        (("10", "5", "10"), None),
    ],
)
def test_bounds_must_be_a_proper_part_of_the_slide(values: tuple[str, ...], expected: Rect | None) -> None:
    """The whole slide, an area outside, or invalid numbers count as no bounds."""
    names = [f"openslide.bounds-{name}" for name in ("x", "y", "width", "height")]
    assert stated_bounds(dict(zip(names, values, strict=False)), Size(100, 80)) == expected


@pytest.mark.parametrize("frame", ["qupath", "level0"])
def test_tissue_is_written_and_read_in_the_frame_of_qupath(path: Path, tmp_path: Path, frame: Any) -> None:
    """It is over the box in QuPath, and the same when read back."""
    slide = open_slide(path)
    found = find_tissue(slide, mpp=4.0)
    assert tissue_span(found) == pytest.approx(box_at(X, Y), abs=16)
    found.to_geojson(tmp_path / "a.geojson", frame=frame)
    assert span(tmp_path / "a.geojson") == pytest.approx(box_at(*((0, 0) if frame == "qupath" else (X, Y))), abs=16)
    again = TissueMask.from_geojson(tmp_path / "a.geojson", slide, mpp=4.0, frame=frame)
    assert np.array_equal(again.mask, found.mask)
    (found & again).to_geojson(tmp_path / "b.geojson", frame=frame)
    assert (tmp_path / "b.geojson").read_bytes() == (tmp_path / "a.geojson").read_bytes()


def test_a_box_from_qupaths_origin_covers_the_bounds(path: Path, tmp_path: Path) -> None:
    """Drawn in QuPath over the whole scan."""
    slide = open_slide(path)
    file = geojson(tmp_path / "q.geojson", rectangle(0, 0, WIDTH, HEIGHT))
    mask = TissueMask.from_geojson(file, slide, mpp=0.5)
    assert tissue_span(mask) == [X, Y, X + WIDTH, Y + HEIGHT]
    drawn = Annotations.from_geojson(file, slide=slide)
    assert drawn.regions[0].polygon[0].min(axis=0).tolist() == [X, Y]
    with pytest.raises(ConfigError, match="no frame 'image'"):
        TissueMask.from_geojson(file, slide, frame="image")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no frame 'image'"):
        picture_affine((WIDTH, HEIGHT), slide, "image", what="labels", path="q.png")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["with the slide", "without", "level 0"])
def test_annotations_label_the_tiles_they_are_drawn_on(path: Path, tmp_path: Path, how: str) -> None:
    """Of a bag, of its store and through a view: dark pixels are under the box."""
    slide = open_slide(path)
    begins = (X, Y) if how == "level 0" else (0, 0)
    left, top, width, height = BOX
    file = geojson(tmp_path / "q.geojson", rectangle(begins[0] + left, begins[1] + top, width, height), "Tumor")
    options: dict[str, Any] = {"with the slide": {"slide": slide}, "without": {}, "level 0": {"frame": "level0"}}[how]
    drawn = Annotations.from_geojson(file, ["Tumor"], **options)
    view = slide.view()
    bag = TileBag(view, TileGrid(view, 128, edge="pad"))
    expected = bag[:].mean(axis=-1) < 200
    assert expected.any()
    assert (drawn.labels(bag).astype(bool) != expected).mean() < 1e-3  # JPEG, along the border
    with save_bag(bag, tmp_path / "a.bag.zarr", progress=False) as kept:
        assert np.array_equal(drawn.labels(kept), drawn.labels(bag))
    seen = drawn.through(slide.view(mpp=1.0))
    assert seen.regions[0].polygon[0].min(axis=0).tolist() == [(X + left) / 2, (Y + top) / 2]
    assert np.asarray(drawn.plot(slide, 400)).tolist() == np.asarray(seen.plot(slide, 400)).tolist()
    seen.to_geojson(tmp_path / "back.geojson")
    assert span(tmp_path / "back.geojson") == box_at(0, 0)
    seen.to_geojson(tmp_path / "level0.geojson", frame="level0")
    assert span(tmp_path / "level0.geojson") == box_at(X, Y)


def test_annotations_without_a_slide_are_written_unchanged(path: Path, tmp_path: Path) -> None:
    """For QuPath; the level-0 frame needs the slide, which annotations made by hand have to be given."""
    file = geojson(tmp_path / "q.geojson", rectangle(*BOX))
    drawn = Annotations.from_geojson(file)
    drawn.to_geojson(tmp_path / "same.geojson")
    assert span(tmp_path / "same.geojson") == box_at(0, 0)
    with pytest.raises(ConfigError, match="pass slide="):
        drawn.to_geojson(tmp_path / "no.geojson", frame="level0")
    drawn.to_geojson(tmp_path / "level0.geojson", frame="level0", slide=open_slide(path))
    assert span(tmp_path / "level0.geojson") == box_at(X, Y)
    by_hand = Annotations([Annotation("a", [np.array(rectangle(*BOX)[:4]) + np.array([X, Y])])], {"a": 1})
    by_hand.to_geojson(tmp_path / "hand.geojson", slide=open_slide(path))
    assert span(tmp_path / "hand.geojson") == box_at(0, 0)


@pytest.mark.parametrize(
    ("covers", "frame"), [("slide", None), ("bounds", None), ("slide", "level0"), ("bounds", "qupath")]
)
def test_masks_of_the_slide_or_of_the_scan_are_read(path: Path, tmp_path: Path, covers: str, frame: Any) -> None:
    """Of the whole slide, as we write them, or of the scan, as QuPath exports them."""
    slide = open_slide(path)
    x, y, (width, height) = (X, Y, SLIDE) if covers == "slide" else (0, 0, (WIDTH, HEIGHT))
    pixels = np.zeros((height // 4, width // 4), np.uint8)
    left, top, across, down = BOX
    pixels[(y + top) // 4 : (y + top + down) // 4, (x + left) // 4 : (x + left + across) // 4] = 1
    Image.fromarray(pixels).save(tmp_path / "m.png")
    assert tissue_span(TissueMask.from_png(tmp_path / "m.png", slide, frame=frame)) == box_at(X, Y)
    labels = LabelMask.from_file(tmp_path / "m.png", slide, {"a": 1}, frame=frame)
    bag = TileBag(slide.view(), TileGrid(slide.view(), 128, edge="pad"))
    assert ((labels.labels(bag) > 0) != (bag[:].mean(axis=-1) < 200)).mean() < 1e-3
    Annotations.from_labels(labels).to_geojson(tmp_path / "q.geojson")
    assert span(tmp_path / "q.geojson") == box_at(0, 0)
    other = {"slide": "qupath", "bounds": "level0"}[covers]
    with pytest.raises(ConfigError, match="does not have the shape of"):
        TissueMask.from_png(tmp_path / "m.png", slide, frame=other)  # type: ignore[arg-type]


def test_a_mask_of_another_shape_is_refused(path: Path, tmp_path: Path) -> None:
    """With both shapes."""
    Image.fromarray(np.ones((200, 200), np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(ConfigError, match="1704x1304 px, nor of what was scanned, 1024x640 px"):
        TissueMask.from_png(tmp_path / "m.png", open_slide(path))


def predicted(bag: TileBag | Any, bounds: Rect | None) -> Prediction:
    n = len(bag)
    return Prediction(
        slide="a.scn",
        result={"predicted": "1", "probability_0": 0.1, "probability_1": 0.9},
        logits=np.zeros(2),
        attention=np.full(n, 1 / n),
        instances=None,
        instance_names=(),
        coords=bag.coords,
        tile_size=128.0,
        affine=Affine(),
        view_mpp=None,
        task=Classification(("0", "1"), (1.0, 1.0)),
        bounds=bounds,
    )


def test_heat_maps_are_written_in_the_frame_of_qupath(path: Path, tmp_path: Path) -> None:
    """One polygon per tile and merged ones, from the slide or from the bag's metadata."""
    slide = open_slide(path)
    bag = TileBag.from_coords(slide.view(), [[X + 64, Y + 128], [X + 192, Y + 128]], 128)
    assert bag.provenance()["slide"]["bounds"] == [X, Y, WIDTH, HEIGHT]
    expected = [64, 128, 64 + 256, 128 + 128]
    for most in (20_000, 0):
        known = predicted(bag, slide.bounds)
        known.to_geojson(tmp_path / "a.geojson", most_tiles=most, overwrite=True)
        assert span(tmp_path / "a.geojson") == expected
        known.to_geojson(tmp_path / "a.geojson", most_tiles=most, overwrite=True, frame="level0")
        assert span(tmp_path / "a.geojson") == [X + 64, Y + 128, X + 64 + 256, Y + 128 + 128]
        predicted(bag, None).to_geojson(tmp_path / "a.geojson", most_tiles=most, overwrite=True, slide=slide)
        assert span(tmp_path / "a.geojson") == expected
    values = np.array([0.2, 0.9])
    scores = TileScores("a", values, ColourScale.of_probability("p"), bag.coords, 128.0, Affine())
    write_regions(scores, tmp_path / "b.geojson", corner=Affine.translation(X, Y))
    assert span(tmp_path / "b.geojson") == expected


def test_coordinates_of_clam_and_trident_are_of_level_0(path: Path, tmp_path: Path) -> None:
    """They are arguments of OpenSlide's read_region: no bounds."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        found = file.create_dataset("coords", data=np.array([[X + 60, Y + 120]]))
        found.attrs.update({"patch_size": 64, "patch_level": 0})
    tile = from_clam(tmp_path / "a.h5", path)[0]
    with openslide.OpenSlide(str(path)) as peer:
        theirs = np.asarray(peer.read_region((X + 60, Y + 120), 0, (64, 64)).convert("RGB"))
    assert np.array_equal(tile, theirs)


@pytest.mark.slow
@pytest.mark.combinations
@pytest.mark.parametrize("frame", [None, "qupath", "level0"])
@pytest.mark.parametrize("ending", ["geojson", "png"])
def test_training_and_export_read_masks_in_the_same_frame(
    path: Path, tmp_path: Path, frame: Frame | None, ending: str
) -> None:
    """The same cohort and frame give the same tiles, and these are on the painted box."""
    mask = tmp_path / f"a.{ending}"
    left, top, right, lower = box_at(*((X, Y) if frame == "level0" else (0, 0)))
    if ending == "geojson":
        ring = [[left, top], [right, top], [right, lower], [left, lower], [left, top]]
        mask.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    else:
        width, height = SLIDE if frame == "level0" else (WIDTH, HEIGHT)
        painted = np.zeros((height, width), np.uint8)
        painted[top:lower, left:right] = 255
        Image.fromarray(painted).save(mask)
    table = tmp_path / "cohort.csv"
    table.write_text(f"slide,mask\n{path},{mask}\n")
    tiles: dict[str, Any] = {"view": {"mpp": None}, "tissue": {"mpp": 2.0}, "grid": {"tile_size": 64}}
    export_cohort(table, tmp_path / "bags", ExportConfig(**tiles), mask_frame=frame)
    dataset = BagDataset(table, tiles | {"mask_frame": frame})
    trained = dataset.open(0)
    with open_bag(tmp_path / "bags" / "a.bag.zarr") as bag:
        assert np.array_equal(trained.coords, bag.coords)
    dataset.close(0, trained)
    inside = box_at(X, Y)
    middles = np.asarray(trained.coords) + 32
    assert len(middles) >= 20
    assert ((middles >= inside[:2]) & (middles <= inside[2:])).all()


def test_settings_without_a_frame_are_those_of_earlier_versions() -> None:
    """A frame that is not given changes no digest: runs and checkpoints can be resumed."""
    assert "mask_frame" not in LoaderConfig().model_dump()
    assert LoaderConfig(mask_frame="level0").model_dump()["mask_frame"] == "level0"
    with pytest.raises(ConfigError, match="mask_frame"):
        load_loader_config({"mask_frame": "level 0"})


def run(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "120"})
    assert result.exit_code == code, result.output
    return result


@pytest.mark.system
@pytest.mark.parametrize("frame", [None, "qupath", "level0"])
def test_commands_and_functions_have_the_same_frames(path: Path, tmp_path: Path, frame: str | None) -> None:
    """tissue writes a mask, export reads it: for one slide and a cohort, by command and in Python."""
    written = [] if frame is None else ["--frame", frame]
    read = [] if frame is None else ["--mask-frame", frame]
    begins = (X, Y) if frame == "level0" else (0, 0)
    mask = tmp_path / "a.geojson"
    run("tissue", path, "--out", mask, "--mpp", 4, *written)
    assert span(mask) == pytest.approx(box_at(*begins), abs=16)
    tissue_cohort([path], tmp_path / "masks", ExportConfig(tissue={"mpp": 4.0}), **({"frame": frame} if frame else {}))
    assert (tmp_path / "masks" / "a.geojson").read_bytes() == mask.read_bytes()
    run("export", path, "--mask", mask, "--out", tmp_path / "one", "--tile-size", 128, "--mpp", "native", *read)
    config = ExportConfig(view={"mpp": None}, grid={"tile_size": 128})
    done = export_slide(path, tmp_path / "two", config, tissue_file=mask, mask_frame=frame)  # type: ignore[arg-type]
    table = tmp_path / "cohort.csv"
    table.write_text(f"slide,mask\n{path},{mask}\n")
    export_cohort(table, tmp_path / "three", config, mask_frame=frame)  # type: ignore[arg-type]
    run("export", table, "--out", tmp_path / "four", "--tile-size", 128, "--mpp", "native", *read)
    inside = box_at(X, Y)
    for folder in ("one", "two", "three", "four"):
        with open_bag(tmp_path / folder / "a.bag.zarr") as bag:
            assert np.array_equal(bag.coords, done.bag.coords)
            middles = bag.coords + 64
            assert len(bag)
            assert (middles >= np.array(inside[:2]) - 64).all()
            assert (middles <= np.array(inside[2:]) + 64).all()
    assert "no frame 'image'" in run("tissue", path, "--out", mask, "--frame", "image", code=2).output


def test_the_heat_map_of_a_prediction_has_the_frame_of_qupath(path: Path, tmp_path: Path) -> None:
    """Or on request that of OpenSlide."""
    checkpoint = train_pixels(slides(tmp_path), tmp_path / "run")
    for frame, (x, y) in {"qupath": (0, 0), "level0": (X, Y)}.items():
        run("predict", checkpoint, path, "--out", tmp_path / frame, "--frame", frame, "--device", "cpu")
        (file,) = (tmp_path / frame).rglob("heatmap.geojson")
        assert span(file) == pytest.approx(box_at(x, y), abs=64)  # a tile
