"""Cells that QuPath, CellViT and StarDist found, in files as these tools write them; centroids against scikit-image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scanned_bounds import Scan, write_scn
from skimage.draw import polygon2mask
from skimage.measure import regionprops

from slideio_pipe import Annotations, Slide, TileBag, TileGrid, open_slide
from slideio_pipe.errors import ConfigError, SlideNotFoundError, UnmatchedWarning
from slideio_pipe.tiles.marks.cell_files import Cells, read_cells


def _slide(mpp: float | None = 0.25) -> Slide:
    return open_slide(np.full((600, 800, 3), 220, np.uint8), slide_mpp=mpp)


def _ring(x: float, y: float, radius: float, vertices: int = 12) -> list[list[float]]:
    turn = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
    ring = np.stack([x + radius * np.cos(turn), y + radius * np.sin(turn)], axis=1).round(2).tolist()
    return [*ring, ring[0]]


def _cell(kind: str | None, ring: list[list[float]], nucleus: list[list[float]] | None = None) -> dict[str, Any]:
    """Return a feature as QuPath 0.4 to 0.6 exports a detected cell."""
    classification = {} if kind is None else {"classification": {"name": kind, "color": [200, 0, 0]}}
    feature: dict[str, Any] = {
        "type": "Feature",
        "id": "3c16dc89-fff3-4c18-bcd8-22597c736198",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "objectType": "detection" if nucleus is None else "cell",
            "isLocked": False,
            "measurements": {"Nucleus: Area": 31.5, "Nucleus/Cell area ratio": None},
            **classification,
        },
    }
    return feature if nucleus is None else feature | {"nucleusGeometry": {"type": "Polygon", "coordinates": [nucleus]}}


def _written(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return path


def test_cells_of_qupath(tmp_path: Path) -> None:
    """Centroid and box of the nucleus, or of the cell; detections without a nucleus; classes, and none."""
    features = [
        _cell("Tumor", _ring(100, 90, 20), _ring(104, 92, 8)),
        _cell("Immune cells", _ring(300, 210, 6)),
        _cell(None, _ring(400, 310, 6)),
        _cell("Ignore*", _ring(500, 310, 6)),
    ]
    path = _written(tmp_path, "cells.geojson", {"type": "FeatureCollection", "features": features})
    read = Annotations.from_cells(path)
    assert read.classes == {"Immune cells": 1, "Tumor": 2, "unclassified": 3}
    np.testing.assert_allclose(read.points, [(104, 92), (300, 210), (400, 310)], atol=0.01)
    np.testing.assert_allclose(read.boxes[0], (96, 84, 112, 100), atol=0.01)
    assert read.point_labels.tolist() == read.box_labels.tolist() == [2, 1, 3]
    whole = Annotations.from_cells(path, outline="cell")
    np.testing.assert_allclose(whole.boxes[0], (80, 70, 120, 110), atol=0.01)
    assert Annotations.from_cells(path, ["Tumor"]).point_labels.tolist() == [1]


def test_centroids_are_those_of_the_area(tmp_path: Path) -> None:
    """Of an irregular ring, as scikit-image finds in its pixels; far from the origin, and of one without an area."""
    ring = np.array([(10, 12), (60, 15), (80, 70), (35, 40), (22, 88)], float)
    mask = polygon2mask((100, 100), ring[:, ::-1])
    row, column = regionprops(mask.astype(np.uint8))[0].centroid
    far = ring + np.array([250_000, 130_000])
    path = _written(
        tmp_path,
        "a.geojson",
        [_cell("A", ring.tolist()), _cell("A", far.tolist()), _cell("A", [[1, 1], [3, 1], [5, 1]])],
    )
    near, away, line = read_cells(path).centroids
    np.testing.assert_allclose(near, (column, row), atol=0.3)  # pixels approximate the area
    np.testing.assert_allclose(away - (250_000, 130_000), near, atol=1e-6)
    assert line.tolist() == [3, 1]


HEADER = "Image\tObject ID\tObject type\tName\tClassification\tParent\tROI\tCentroid X µm\tCentroid Y µm\tNucleus: Area"
ROWS = "a.svs\t1\tCell\t\tTumor\tRoot\tPolygon\t25.0\t50.0\t30.1\nb.svs\t2\tCell\t\t\tRoot\tPolygon\t26.0\t51.0\t30\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("measurements.tsv", f"{HEADER}\n{ROWS.splitlines()[0]}\n"),
        ("measurements.txt", f"\ufeff{HEADER}\n{ROWS.splitlines()[0]}\n"),
        ("measurements.csv", f"{HEADER}\n{ROWS.splitlines()[0]}\n".replace("\t", ",")),
        ("european.csv", f"{HEADER}\n{ROWS.splitlines()[0]}\n".replace("\t", ";").replace(".0", ",0")),
        ("px.tsv", "Image\tClass\tCentroid X px\tCentroid Y px\na.svs\tTumor\t100\t200\n"),
        ("plain.csv", "x,y,class\n100,200,Tumor\n"),
    ],
)
def test_tables_of_measurements(tmp_path: Path, name: str, text: str) -> None:
    """In µm or px, with tabs, commas or semicolons, with a byte order mark: the same cell."""
    read = Annotations.from_cells(_written(tmp_path, name, text), slide=_slide(0.25))
    assert read.points.tolist() == [[100, 200]]
    assert (read.classes, len(read.boxes)) == ({"Tumor": 1}, 0)


def test_a_table_with_the_encoding_of_windows(tmp_path: Path) -> None:
    """As QuPath wrote it before 0.4; one that was read wrongly and written again, too."""
    for name, content in {
        "old.txt": f"{HEADER}\n{ROWS.splitlines()[0]}\n".encode("cp1252"),
        "twice.txt": f"{HEADER}\n{ROWS.splitlines()[0]}\n".encode().decode("cp1252").encode(),
    }.items():
        (tmp_path / name).write_bytes(content)
        assert Annotations.from_cells(tmp_path / name, slide=_slide()).points.tolist() == [[100, 200]]


def test_a_table_of_several_images(tmp_path: Path) -> None:
    """Rows of the slide are chosen by its name; without a slide, or without its rows, it is said."""
    path = _written(tmp_path, "all.tsv", f"{HEADER}\n{ROWS}")
    assert read_cells(path, slide="b.svs").centroids.tolist() == [[26, 51]]
    with pytest.raises(ConfigError, match="rows of 2 images, and no slide was given"):
        Annotations.from_cells(path)
    with pytest.raises(ConfigError, match=r"no row of c.svs; images: a.svs, b.svs"):
        read_cells(path, slide="c.svs")


def _cellvit(type_map: dict[str, Any]) -> dict[str, Any]:
    """Return ``cells.json`` as CellViT writes it: places as x, y, boxes as rows before columns."""
    cell = {"bbox": [[40, 100], [60, 130]], "centroid": [115.2, 50.4], "contour": [[100, 40], [129, 40], [115, 59]]}
    rest = {"type_prob": 0.9, "patch_coordinates": [0, 1], "cell_status": 0, "offset_global": [0, 96]}
    cells = [cell | rest | {"type": 2}, cell | rest | {"type": 1, "centroid": [300.0, 200.0]}]
    return {"wsi_metadata": {"mpp": 0.25}, "processed_patches": ["0_1"], "type_map": type_map, "cells": cells}


@pytest.mark.parametrize(
    "type_map",
    [
        {"Background": 0, "Neoplastic": 1, "Inflammatory": 2},
        {"0": "Background", "1": "Neoplastic", "2": "Inflammatory"},  # CellViT-Inference
    ],
)
def test_cells_of_cellvit(tmp_path: Path, type_map: dict[str, Any]) -> None:
    """Names from the type map of either version, boxes with x before y."""
    read = Annotations.from_cells(_written(tmp_path, "cells.json", _cellvit(type_map)), slide=_slide())
    assert read.classes == {"Inflammatory": 1, "Neoplastic": 2}
    assert read.points.tolist() == [[115.2, 50.4], [300, 200]]
    assert read.boxes[0].tolist() == [100, 40, 130, 60]
    assert read.point_labels.tolist() == [1, 2]


def test_geojson_of_cellvit(tmp_path: Path) -> None:
    """One annotation per class, whose polygons, or points, are the cells."""

    def of_class(kind: str, geometry: str, coordinates: Any) -> dict[str, Any]:
        properties = {"objectType": "annotation", "classification": {"name": kind, "color": [1, 2, 3]}}
        return {"type": "Feature", "geometry": {"type": geometry, "coordinates": coordinates}, "properties": properties}

    rings = [[_ring(100, 90, 8)], [_ring(200, 190, 8)], [_ring(300, 290, 8)]]
    outlines = [of_class("Neoplastic", "MultiPolygon", rings[:2]), of_class("Dead", "MultiPolygon", rings[2:])]
    read = Annotations.from_cells(_written(tmp_path, "cells.geojson", outlines), frame="level0")
    np.testing.assert_allclose(read.points, [(100, 90), (200, 190), (300, 290)], atol=0.01)
    assert (len(read.boxes), read.point_labels.tolist()) == (3, [2, 2, 1])
    points = [
        of_class("Neoplastic", "MultiPoint", [[100, 90], [200, 190]]),
        of_class("Dead", "MultiPoint", [[300, 290]]),
    ]
    detected = Annotations.from_cells(_written(tmp_path, "cell_detection.geojson", points), frame="level0")
    assert detected.points.tolist() == [[100, 90], [200, 190], [300, 290]]
    assert len(detected.boxes) == 0


def test_a_cell_in_pieces_is_one_cell(tmp_path: Path) -> None:
    """QuPath's detection with several polygons: its largest."""
    cell = _cell("Tumor", [])
    cell["geometry"] = {"type": "MultiPolygon", "coordinates": [[_ring(100, 90, 2)], [_ring(110, 95, 9)]]}
    read = Annotations.from_cells(_written(tmp_path, "a.geojson", [cell]))
    np.testing.assert_allclose(read.points, [(110, 95)], atol=0.01)


def _stardist(count: int = 3) -> dict[str, Any]:
    """Return details as ``StarDist2D.predict_instances`` does: rows before columns, 32 rays."""
    points = np.array([(40, 100), (90, 300), (200, 310)])[:count]
    turn = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    coord = points[:, :, None] + 7.0 * np.stack([np.sin(turn), np.cos(turn)])
    return {"coord": coord, "points": points, "prob": np.linspace(0.9, 0.6, count)}


def test_cells_of_stardist(tmp_path: Path) -> None:
    """As it returns them, as NPZ and as JSON; found at another resolution, in a region."""
    details = _stardist()
    np.savez(tmp_path / "a.npz", **details)
    as_json = _written(tmp_path, "a.json", {name: value.tolist() for name, value in details.items()})
    for source in (details, tmp_path / "a.npz", as_json):
        read = Annotations.from_cells(source)
        assert read.points.tolist() == [[100.5, 40.5], [300.5, 90.5], [310.5, 200.5]]
        np.testing.assert_allclose(read.boxes[0], (93.5, 33.5, 107.5, 47.5), atol=1e-9)
    half = Annotations.from_cells(details, slide=_slide(0.25), mpp=0.5, origin=(20, 30))
    assert half.points[0].tolist() == [20 + 201, 30 + 81]
    kinds = Annotations.from_cells(details | {"class_id": np.array([2, 1, 2])}, {"1": 5, "2": 6})
    assert kinds.point_labels.tolist() == [6, 5, 6]
    assert len(Annotations.from_cells(_stardist(0))) == 0


def test_frames_of_a_slide_with_bounds(tmp_path: Path) -> None:
    """QuPath's places begin at the bounds, CellViT's at level 0."""
    scan = Scan(60, 40, np.full((512, 512, 3), 180, np.uint8))
    slide = open_slide(write_scn(tmp_path / "a.scn", scan, (700, 640)))
    path = _written(tmp_path, "q.geojson", [_cell("A", _ring(100, 90, 6))])
    np.testing.assert_allclose(Annotations.from_cells(path, slide=slide).points, [(160, 130)], atol=0.01)
    later = Annotations.from_cells(path)
    bag = TileBag(slide.view(), TileGrid(slide.view(), 128))
    k = int(np.flatnonzero((bag.coords == (128, 128)).all(axis=1))[0])
    assert later.counts(bag)["A"].tolist() == [int(number == k) for number in range(len(bag))]
    table = _written(tmp_path, "q.tsv", "Centroid X µm\tCentroid Y µm\n50\t45\n")
    assert Annotations.from_cells(table, slide=slide).points.tolist() == [[160, 130]]
    assert Annotations.from_cells(table, slide=slide, frame="level0").points.tolist() == [[100, 90]]
    cells = _written(tmp_path, "cells.json", _cellvit({}))
    assert Annotations.from_cells(cells, slide=slide).points[1].tolist() == [300, 200]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "no JSON"),
        ("a.json", "", "no JSON"),
        ("a.json", "[1]", "no GeoJSON object"),
        ("a.json", {"cells": [{"type": 1}]}, "KeyError: 'centroid'"),
        ("a.json", {"cells": [{"type": 1, "centroid": [1, 2, 3]}]}, "places of the shape"),
        ("a.json", {"points": [[1, 2]], "coord": [[1, 2]]}, "coord has the shape"),
        ("a.json", {"points": [[1, 2]], "class_id": [1, 2]}, "1 points and 2 classes"),
        ("a.json", {"points": [[1, float("nan")]]}, "a cell whose place is not finite"),
        ("a.geojson", {"type": "Topology"}, "unknown type 'Topology'"),
        ("a.tsv", "Name\tArea\nx\t3\n", 'no columns "Centroid X µm"'),
        ("a.tsv", "", 'no columns "Centroid X µm"'),
        ("a.tsv", "Centroid X px\tCentroid Y px\n1\tfar\n", "could not convert string"),
        ("a.tsv", "Centroid X px\tCentroid Y px\n1\n", "list index out of range"),
        ("a.npz", "PK", "not a file of cells"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: Any, message: str) -> None:
    """With the file, the reason, and what is read."""
    path = _written(tmp_path, name, content)
    with pytest.raises(ConfigError, match="pass QuPath's GeoJSON") as caught:
        Annotations.from_cells(path)
    assert message in str(caught.value)
    assert path.name in str(caught.value)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    """The file, the slide of a table in µm, its resolution, a class, an outline."""
    with pytest.raises(SlideNotFoundError):
        Annotations.from_cells(tmp_path / "none.json")
    table = _written(tmp_path, "a.tsv", "Centroid X µm\tCentroid Y µm\n25\t50\n")
    with pytest.raises(ConfigError, match="places in µm, and no slide; pass their slide"):
        Annotations.from_cells(table)
    with pytest.raises(ConfigError, match="leave mpp out: the file is in µm"):
        Annotations.from_cells(table, slide=_slide(), mpp=0.5)
    with pytest.raises(ConfigError, match="mpp is -1"):
        Annotations.from_cells(_stardist(), slide=_slide(), mpp=-1)
    with pytest.warns(UnmatchedWarning, match="no cell of Tumor; classes found: unclassified"):
        assert len(Annotations.from_cells(_stardist(), ["Tumor"])) == 0
    with pytest.raises(ConfigError, match="outline is 'hull'"):
        Annotations.from_cells(_stardist(), outline="hull")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="all 3 points and boxes are outside the slide"):
        Annotations.from_cells({"points": _stardist()["points"] * 100}, slide=_slide())
    empty = read_cells(_written(tmp_path, "b.geojson", {"type": "FeatureCollection", "features": []}))
    assert isinstance(empty, Cells)
    assert empty.centroids.shape == (0, 2)
