"""Read cells that other tools found: GeoJSON and tables of QuPath, JSON of CellViT, arrays of StarDist."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.errors import ConfigError, SlideNotFoundError
from slideio_pipe.files import not_there
from slideio_pipe.slides.frames import Frame
from slideio_pipe.tiles.mask_files import class_name_of, points_of, polygon_of, read_json

Outline = Literal["nucleus", "cell"]
Floats = NDArray[np.float64]

_REMEDY = "pass QuPath's GeoJSON or table of measurements, CellViT's cells.json, or StarDist's details"
# "µm" is more than one character, or a wrong one, in tables that were written or read with another encoding.
_CENTROID = re.compile(r"centroid (?P<axis>[xy]) (?P<unit>px|.{0,3}m)", re.IGNORECASE)
_PLAIN = re.compile(r"(?P<axis>[xy])(?P<unit>)", re.IGNORECASE)
_CLASSES = ("classification", "class", "type", "label")


@dataclass(frozen=True)
class Cells:
    """Cells in px of a file's frame, or in µm."""

    names: Sequence[str | None]  # class of each
    centroids: Floats  # (n, 2) x, y
    boxes: Floats  # (n, 4) lowest x and y, highest x and y; NaN where none is known
    frame: Frame
    in_um: bool = False


def read_cells(source: Path | Mapping[str, Any], *, outline: Outline = "nucleus", slide: str | None = None) -> Cells:
    """Return the cells in a file, or in the arrays that StarDist returns.

    Parameters
    ----------
    source : Path or mapping
        What QuPath, CellViT or StarDist wrote; the content decides which.
    outline : {"nucleus", "cell"}
        Which outline of QuPath's cells, where a file has both.
    slide : str, optional
        Name of the slide, to choose the rows of a table with several images.

    Raises
    ------
    SlideNotFoundError, ConfigError
        The file is not there, or is none of these.
    """
    if outline not in get_args(Outline):
        raise ConfigError(f"outline is {outline!r}", remedy='pass "nucleus" or "cell"')
    if isinstance(source, Mapping):
        return _read("details of StarDist", lambda: _of_arrays(source))
    if not source.exists():
        raise not_there(SlideNotFoundError, "no such file", source)
    return _read(str(source), lambda: _of_file(source, outline, slide))


def _read(where: str, read: Any) -> Cells:
    try:
        cells: Cells = read()
    except (ConfigError, SlideNotFoundError):
        raise
    except (OSError, ValueError, TypeError, KeyError, IndexError, RecursionError, zipfile.BadZipFile) as error:
        reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ConfigError(f"not a file of cells ({reason})", slide=where, remedy=_REMEDY) from error
    if not np.isfinite(cells.centroids).all():
        raise ConfigError("a cell whose place is not finite", slide=where, remedy=_REMEDY)
    return cells


def _of_file(path: Path, outline: Outline, slide: str | None) -> Cells:
    if path.suffix.lower() == ".npz":
        with np.load(path) as arrays:
            return _of_arrays(arrays)
    if path.suffix.lower() in (".csv", ".tsv", ".txt"):
        return _of_table(path, slide)
    try:
        document = read_json(path)
    except UnicodeDecodeError as error:
        raise ValueError("neither JSON nor a table") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error}") from error
    if isinstance(document, dict) and isinstance(document.get("cells"), list):
        return _of_cellvit(document)
    if isinstance(document, dict) and "points" in document:
        return _of_arrays(document)
    return _of_geojson(document, outline)


# -- CellViT -------------------------------------------------------------------------------------------------------


def _of_cellvit(document: dict[str, Any]) -> Cells:
    """Return the cells of ``cells.json`` or ``cell_detection.json``: level-0 px, with boxes as rows and columns."""
    cells = document["cells"]
    names = _type_names(document.get("type_map"))
    types = [str(cell["type"]) if "type" in cell else None for cell in cells]
    centroids = _array([cell["centroid"] for cell in cells], (2,))
    boxes = _array([cell.get("bbox", _NO_BOX) for cell in cells], (2, 2))
    (top, left), (lower, right) = (boxes[:, 0].T, boxes[:, 1].T) if len(boxes) else np.zeros((2, 2, 0))
    boxes = np.stack([left, top, right, lower], axis=1)
    return Cells([names.get(kind, kind) if kind else None for kind in types], centroids, boxes, "level0")


_NO_BOX = [[np.nan, np.nan], [np.nan, np.nan]]


def _type_names(type_map: Any) -> dict[str, str]:
    """Return the name of each number; the file has names as keys, or numbers."""
    if not isinstance(type_map, dict):
        return {}
    by_number = all(str(key).lstrip("-").isdigit() for key in type_map)
    pairs = type_map.items() if by_number else ((number, name) for name, number in type_map.items())
    return {str(number): str(name) for number, name in pairs}


# -- StarDist ------------------------------------------------------------------------------------------------------


def _of_arrays(arrays: Mapping[str, Any]) -> Cells:
    """Return the cells of StarDist's details: indices of pixels, row before column."""
    if "points" not in arrays:
        raise ValueError("no points")
    points = _array(arrays["points"], (2,))[:, ::-1] + 0.5  # the centre of a pixel is half a pixel further
    boxes = np.full((len(points), 4), np.nan)
    if "coord" in arrays and len(points):
        outlines = np.asarray(arrays["coord"], np.float64)
        if outlines.ndim != 3 or outlines.shape[:2] != (len(points), 2):
            raise ValueError(f"coord has the shape {outlines.shape}, not {(len(points), 2)} and rays")
        rows, columns = outlines[:, 0] + 0.5, outlines[:, 1] + 0.5
        boxes = np.stack([columns.min(1), rows.min(1), columns.max(1), rows.max(1)], axis=1)
    names: list[str | None] = [None] * len(points)
    if "class_id" in arrays:
        names = [str(number) for number in np.asarray(arrays["class_id"]).astype(np.int64).tolist()]
    return Cells(_as_many(names, points), points, boxes, "level0")


# -- tables --------------------------------------------------------------------------------------------------------


class _Columns(NamedTuple):
    x: int
    y: int
    in_um: bool
    name: int | None
    image: int | None


def _of_table(path: Path, slide: str | None) -> Cells:
    """Return the rows of a table of measurements: QuPath's, or one with the columns x and y in px."""
    text = _text(path)
    delimiter = max("\t,;", key=text.partition("\n")[0].count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns = _columns([name.strip() for name in next(rows, [])])
    found = [row for row in rows if any(row)]
    if columns.image is not None:
        found = _of_slide(found, columns.image, slide)
    places = [[float(row[columns.x].replace(",", ".")), float(row[columns.y].replace(",", "."))] for row in found]
    names = [None if columns.name is None else row[columns.name].strip() or None for row in found]
    centroids = _array(places, (2,))
    return Cells(names, centroids, np.full((len(centroids), 4), np.nan), "qupath", columns.in_um)


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")  # as QuPath wrote on Windows before 0.4


def _columns(header: Sequence[str]) -> _Columns:
    for pattern in (_CENTROID, _PLAIN):
        units: dict[str, dict[str, int]] = {}
        for number, name in enumerate(header):
            if found := pattern.fullmatch(name):
                unit = "px" if found["unit"].lower() in ("px", "") else "um"
                units.setdefault(unit, {}).setdefault(found["axis"].lower(), number)
        for unit in ("px", "um"):
            if len(units.get(unit, {})) == 2:
                place = units[unit]
                plain = [name.casefold() for name in header]
                kind = next((plain.index(name) for name in _CLASSES if name in plain), None)
                image = plain.index("image") if "image" in plain else None
                return _Columns(place["x"], place["y"], unit == "um", kind, image)
    raise ValueError('no columns "Centroid X µm" and "Centroid Y µm", nor x and y')


def _of_slide(rows: list[list[str]], image: int, slide: str | None) -> list[list[str]]:
    """Return the rows of a slide, if a table has several images; raise ConfigError if it has none of the slide."""
    images = dict.fromkeys(row[image] for row in rows)
    if len(images) < 2:
        return rows
    if slide is None:
        raise ValueError(f"rows of {len(images)} images, and no slide was given")
    own = [name for name in images if _same_image(name, slide)]
    if not own:
        listed = ", ".join(list(images)[:5])
        raise ValueError(f"no row of {slide}; images: {listed}{', …' if len(images) > 5 else ''}")
    return [row for row in rows if row[image] in own]


def _same_image(image: str, slide: str) -> bool:
    """Return whether QuPath's name of an image is a slide's; it may have no ending, or a series after it."""
    image, slide = image.casefold(), slide.casefold()
    return image == slide or image.startswith(f"{slide} - ") or slide.rpartition(".")[0] == image


# -- GeoJSON -------------------------------------------------------------------------------------------------------


class _Cell(NamedTuple):
    name: str | None
    ring: Floats  # its outline, or a single place


def _of_geojson(document: Any, outline: Outline) -> Cells:
    cells = list(_cells(document, outline))
    names = [cell.name for cell in cells]
    if not cells:
        return Cells(names, np.zeros((0, 2)), np.zeros((0, 4)), "qupath")
    lengths = np.array([len(cell.ring) for cell in cells])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    vertices = np.concatenate([cell.ring for cell in cells])
    boxes = np.concatenate([np.minimum.reduceat(vertices, starts), np.maximum.reduceat(vertices, starts)], axis=1)
    boxes[lengths == 1] = np.nan
    return Cells(names, _centroids(vertices, starts, lengths), boxes, "qupath")


def _cells(node: Any, outline: Outline, feature: dict[str, Any] | None = None) -> Iterator[_Cell]:
    """Yield every cell below a node: each polygon and each point is one."""
    if isinstance(node, list):
        for each in node:
            yield from _cells(each, outline)
        return
    kind = node.get("type") if isinstance(node, dict) else None
    if kind == "FeatureCollection":
        yield from _cells(node["features"], outline)
    elif kind == "GeometryCollection":
        for each in node["geometries"]:
            yield from _cells(each, outline, feature)
    elif kind == "Feature":
        nucleus = node.get("nucleusGeometry") if outline == "nucleus" else None
        geometry = nucleus or node.get("geometry")
        if geometry is not None:
            yield from _cells(geometry, outline, node)
    elif kind in ("Polygon", "MultiPolygon", "Point", "MultiPoint"):
        yield from _of_geometry(node, feature or {})
    elif kind not in ("LineString", "MultiLineString"):
        raise ValueError(f"unknown type {kind!r}" if kind else "no GeoJSON object")


def _of_geometry(geometry: dict[str, Any], feature: dict[str, Any]) -> Iterator[_Cell]:
    name, kind, coordinates = class_name_of(feature), geometry["type"], geometry["coordinates"]
    if kind.endswith("Point"):
        yield from (_Cell(name, place[None]) for place in points_of(geometry))
    elif kind == "Polygon":
        yield from (_Cell(name, polygon[0]) for polygon in [polygon_of(coordinates)] if polygon)
    else:
        polygons = [polygon for polygon in map(polygon_of, coordinates) if polygon]
        properties = feature.get("properties")
        if isinstance(properties, dict) and properties.get("objectType") in ("cell", "detection") and polygons:
            # One cell in pieces: the largest stands for it. In an annotation, as CellViT writes, each is a cell.
            polygons = [max(polygons, key=lambda polygon: float(np.ptp(polygon[0], axis=0).prod()))]
        yield from (_Cell(name, polygon[0]) for polygon in polygons)


def _centroids(vertices: Floats, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Floats:
    """Return the centre of the area of each ring; of one without an area, the mean of its vertices."""
    owner = np.repeat(np.arange(len(starts)), lengths)
    local = vertices - vertices[starts][owner]  # small numbers: the products of level-0 px lose digits
    following = np.arange(len(vertices)) + 1
    ends = starts + lengths
    following[ends - 1] = starts
    cross = local[:, 0] * local[following, 1] - local[following, 0] * local[:, 1]
    doubled = np.add.reduceat(cross, starts)
    sums = np.add.reduceat((local + local[following]) * cross[:, None], starts)
    flat = np.abs(doubled) < 1e-9
    means = np.add.reduceat(local, starts) / lengths[:, None]
    centres = np.where(flat[:, None], means, sums / np.where(flat, 1.0, 3 * doubled)[:, None])
    return np.asarray(vertices[starts] + centres)


def _array(values: Any, shape: tuple[int, ...]) -> Floats:
    found = np.asarray(values, np.float64) if len(values) else np.zeros((0, *shape))
    if found.shape[1:] != shape:
        raise ValueError(f"places of the shape {found.shape}, not (n, {', '.join(map(str, shape))})")
    return found


def _as_many(names: list[str | None], points: Floats) -> list[str | None]:
    if len(names) != len(points):
        raise ValueError(f"{len(points)} points and {len(names)} classes")
    return names
