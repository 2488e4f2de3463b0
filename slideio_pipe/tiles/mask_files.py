"""Read and write masks and annotations: GeoJSON compatible with QuPath, and pictures."""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from slideio_pipe.errors import ConfigError, SlideNotFoundError
from slideio_pipe.files import not_there, write_file
from slideio_pipe.tiles.outlines import Polygon

# QuPath ignores classes that end in an asterisk in most operations; this one also without it.
IGNORED = "Ignore"
UNCLASSIFIED = "unclassified"
Colour = tuple[int, int, int]
TISSUE: Colour = (0, 160, 80)
Parsed = TypeVar("Parsed")
_GEOMETRIES = ("Polygon", "MultiPolygon", "Point", "MultiPoint", "LineString", "MultiLineString")


class Annotation(NamedTuple):
    """A polygon and the name of its QuPath class, such as "Tumor: Positive", or None."""

    class_name: str | None
    polygon: Polygon


class ClassPoints(NamedTuple):
    """Points of one class, and its name, or None."""

    class_name: str | None
    xy: NDArray[np.float64]  # (n, 2)


class Shapes(NamedTuple):
    """What a GeoJSON file has: polygons and points."""

    polygons: list[Annotation]
    points: list[ClassPoints]


def write_polygons(path: Path, polygons: Iterable[Polygon], *, overwrite: bool) -> None:
    """Write polygons as annotations of class Tissue."""
    write_annotations(path, [Annotation("Tissue", each) for each in polygons], {"Tissue": TISSUE}, overwrite=overwrite)


def write_annotations(
    path: Path,
    annotations: Iterable[Annotation],
    colours: Mapping[str, Colour],
    *,
    points: Iterable[ClassPoints] = (),
    overwrite: bool,
) -> None:
    """Write polygons and points in QuPath's format, each class in its colour; the points of a class are one object."""
    features = [_feature(name, "Polygon", _closed(polygon), colours) for name, polygon in annotations]
    features += [_feature(name, "MultiPoint", np.round(xy, 3).tolist(), colours) for name, xy in points if len(xy)]
    text = json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":"))
    write_file(path, text.encode(), overwrite=overwrite)


def _feature(name: str | None, kind: str, coordinates: Any, colours: Mapping[str, Colour]) -> dict[str, Any]:
    properties: dict[str, Any] = {"objectType": "annotation"}
    if name is not None:
        properties["classification"] = {"name": name} | ({"color": list(colours[name])} if name in colours else {})
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": properties}


def _closed(polygon: Polygon) -> list[list[list[float]]]:
    rings = [np.round(ring, 3) for ring in polygon]
    return [[*ring.tolist(), ring[0].tolist()] for ring in rings]


def write_mask(path: Path, mask: NDArray[np.bool_], *, overwrite: bool) -> None:
    """Write an 8-bit grey PNG, 255 where the mask is set."""
    write_label_picture(path, mask.astype(np.uint8) * np.uint8(255), overwrite=overwrite)


def write_label_picture(path: Path, values: NDArray[np.uint8], *, overwrite: bool) -> None:
    """Write values as an 8-bit grey PNG."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG")
    write_file(path, buffer.getvalue(), overwrite=overwrite)


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Return the mask of pixels that are neither 0 nor transparent; an image of labels, 0 for background, also works.

    Raise ConfigError if it cannot be read, or has colours: then it is a picture of a slide or of a mask, without zeros.
    """
    pixels, bands = read_picture(path)
    colours = pixels[..., [index for index, band in enumerate(bands) if band != "A"]]
    opaque = pixels[..., bands.index("A")] != 0 if "A" in bands else np.ones(pixels.shape[:2], dtype=bool)
    if (colours != colours[..., :1])[opaque].any():
        raise ConfigError(
            "a colour picture, not a mask",
            slide=str(path),
            remedy="pass a black and white mask, such as slideio-pipe tissue SLIDE --out mask.png writes",
        )
    return np.asarray((colours[..., 0] != 0) & opaque, dtype=bool)


def read_picture(path: Path) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Return the pixels of a picture, (h, w, bands), and its band names; palette pictures return indices.

    Raise ConfigError if it cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # masks may be large
            with Image.open(path) as picture:
                pixels = np.asarray(picture)
                bands = picture.getbands()
    except FileNotFoundError:
        raise not_there(SlideNotFoundError, "no such file", path) from None
    except (Image.DecompressionBombError, MemoryError) as error:
        raise _too_large(path, error) from error
    except (UnidentifiedImageError, OSError) as error:
        raise ConfigError(
            f"the mask cannot be read ({error})", slide=str(path), remedy="pass a PNG, 0 where there is no tissue"
        ) from error
    return pixels.reshape(*pixels.shape[:2], -1), bands


def _too_large(path: Path, error: Exception) -> ConfigError:
    found = re.search(r"\((\d+) pixels\)", str(error))
    most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6  # Pillow's limit
    reason = "the mask does not fit in memory"
    if found:
        reason = f"the mask has {int(found[1]) / 1e6:,.2f} megapixels, and at most {most:,.2f} are read"
    remedy = "pass a smaller picture of the whole slide, such as one px for 8 µm, or polygons (GeoJSON)"
    return ConfigError(reason, slide=str(path), remedy=remedy)


def read_polygons(path: Path, classes: Sequence[str] | None = None) -> list[Polygon]:
    """Return the polygons in a GeoJSON file, in its own coordinates.

    Raise ConfigError if the file is not GeoJSON of polygons, or no polygon has one of the classes.

    Parameters
    ----------
    path : Path
    classes : sequence of str, optional
        Names of the classes to read; by default all except those that QuPath ignores: "Ignore" and names ending in "*".
    """
    return [each.polygon for each in read_annotations(path, classes)]


def read_annotations(path: Path, classes: Sequence[str] | None = None) -> list[Annotation]:
    """Return the polygons in a GeoJSON file with their classes; see ``read_polygons``."""
    check_class_names(path, classes)
    return read_selected(path, Shapes(_parsed(path, parse_geojson, "polygons"), []), classes).polygons


def read_shapes(path: Path, classes: Sequence[str] | None = None) -> Shapes:
    """Return the polygons and points in a GeoJSON file, in its own coordinates; lines are ignored.

    Raise ConfigError if the file is not GeoJSON of polygons or points, or has none of the classes.
    """
    check_class_names(path, classes)
    return read_selected(path, _parsed(path, parse_shapes, "polygons or points"), classes)


def check_class_names(path: Path, classes: Sequence[str] | None) -> None:
    """Raise ConfigError if the names of classes are not a list of names."""
    if classes is not None and (isinstance(classes, str) or not classes):
        raise ConfigError(f"classes is {classes!r}", slide=str(path), remedy='pass a list of names, such as ["Tissue"]')


def read_json(path: Path) -> Any:
    """Return a JSON document; raise SlideNotFoundError without a file, and what ``json`` raises."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise not_there(SlideNotFoundError, "no such file", path) from None


def _parsed(path: Path, parse: Callable[[Any], Parsed], what: str) -> Parsed:
    try:
        return parse(read_json(path))
    except SlideNotFoundError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"not the GeoJSON of {what} ({reason})", slide=str(path), remedy="export from QuPath as GeoJSON"
        ) from error


def read_selected(path: Path, found: Shapes, classes: Sequence[str] | None) -> Shapes:
    """Return what is of the classes; raise ConfigError if nothing is, in a file with something."""
    selected = Shapes(
        [each for each in found.polygons if is_selected(each.class_name, classes)],
        [each for each in found.points if is_selected(each.class_name, classes)],
    )
    if any(found) and not any(selected):
        what = "point" if not found.polygons else "polygon" if not found.points else "polygon or point"
        reason = f"every {what} is of an ignored class" if classes is None else f"no {what} of {', '.join(classes)}"
        names = ", ".join(sorted({each.class_name or UNCLASSIFIED for kind in found for each in kind}))
        reason = f"{reason}; classes found: {names}"
        raise ConfigError(reason, slide=str(path), remedy="name one of these in classes=[…]")
    return selected


def is_selected(class_name: str | None, classes: Sequence[str] | None) -> bool:
    """Return whether a class is in ``classes``, or, without ``classes``, is not ignored by QuPath."""
    if classes is not None:
        return (class_name or UNCLASSIFIED) in classes
    # For a derived class, such as "Tumor: Boundary*", the last part decides.
    return class_name is None or not (class_name.endswith("*") or class_name.split(": ")[-1] == IGNORED)


def parse_geojson(document: Any) -> list[Annotation]:
    """Return the polygons in a parsed GeoJSON document, or in a list of documents, as exported by QuPath.

    Points and lines are ignored. A document whose geometries include no polygon is refused, so that a file of point
    annotations is not read as an empty mask. Raise ValueError if the document is invalid; the message names the reason.
    """
    geometries = list(_geometries(document, None))
    found: list[Annotation] = []
    for class_name, geometry in geometries:
        kind = geometry["type"]
        if kind == "Polygon":
            found.append(Annotation(class_name, polygon_of(geometry["coordinates"])))
        elif kind == "MultiPolygon":
            found += [Annotation(class_name, polygon_of(rings)) for rings in geometry["coordinates"]]
    if geometries and not found:
        raise ValueError("points or lines, no polygon")
    return [each for each in found if each.polygon]


def parse_shapes(document: Any) -> Shapes:
    """Return the polygons and the points in a parsed GeoJSON document, as ``parse_geojson`` does; lines are ignored."""
    geometries = list(_geometries(document, None))
    kinds = {geometry["type"] for _, geometry in geometries}
    polygons = parse_geojson(document) if kinds & {"Polygon", "MultiPolygon"} else []
    points = [ClassPoints(name, points_of(shape)) for name, shape in geometries if shape["type"].endswith("Point")]
    if kinds and not polygons and not points:
        raise ValueError("lines, no polygon and no point")
    return Shapes(polygons, points)


def points_of(geometry: dict[str, Any]) -> NDArray[np.float64]:
    """Return the (n, 2) places of a Point or MultiPoint; raise ValueError if they are none."""
    places = geometry["coordinates"] if geometry["type"] == "MultiPoint" else [geometry["coordinates"]]
    xy = np.asarray(places, np.float64) if places else np.zeros((0, 2))
    if xy.ndim != 2 or xy.shape[1] < 2 or not np.isfinite(xy).all():
        raise ValueError("a point that is no x, y")
    return xy[:, :2]


def _geometries(node: Any, class_name: str | None) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Yield every geometry below a node, with the class of its feature."""
    if isinstance(node, list):
        for each in node:
            yield from _geometries(each, class_name)
        return
    kind = node.get("type") if isinstance(node, dict) else None
    if kind == "FeatureCollection":
        yield from _geometries(_member(node, "features"), class_name)
    elif kind == "GeometryCollection":
        yield from _geometries(_member(node, "geometries"), class_name)
    elif kind == "Feature":
        if node.get("geometry") is not None:  # a feature may have no geometry
            yield from _geometries(node["geometry"], class_name_of(node))
    elif kind in _GEOMETRIES:
        _member(node, "coordinates")
        yield class_name, node
    else:
        raise ValueError(f"unknown type {kind!r}" if kind else "no GeoJSON object")


def class_name_of(feature: dict[str, Any]) -> str | None:
    """Return the class of a feature: one name, or, since QuPath 0.4, a list of ``names`` for a derived class."""
    properties = feature.get("properties")
    found = properties.get("classification") if isinstance(properties, dict) else None
    if isinstance(found, dict):
        names = found.get("names")
        found = ": ".join(map(str, names)) if isinstance(names, list) else found.get("name")
    return found or None if isinstance(found, str) else None


def _member(node: dict[str, Any], name: str) -> list[Any]:
    value = node.get(name)
    if not isinstance(value, list):
        raise ValueError(f"a {node['type']} without {name}")
    return value


def polygon_of(rings: Any) -> Polygon:
    """Return the rings of a Polygon; raise ValueError if one is none."""
    polygon = []
    for ring in rings:
        vertices = np.asarray(ring, dtype=np.float64)
        if vertices.ndim != 2 or vertices.shape[1] < 2 or not np.isfinite(vertices).all():
            raise ValueError("a ring that is no list of x, y")
        if len(vertices) < 3:
            raise ValueError(f"a ring of {len(vertices)} vertices")
        polygon.append(vertices[:, :2])
    return polygon
