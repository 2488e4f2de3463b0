"""What belongs to the slides of a viewer: annotations, label masks and scores, found by the slides' names."""

from __future__ import annotations

import csv
import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.errors import ConfigError
from slideio_pipe.slides.slide import Slide
from slideio_pipe.tiles.annotations import Annotations
from slideio_pipe.tiles.label_mask import LabelMask

_POLYGONS, _PICTURES = (".geojson", ".json"), (".png", ".tif", ".tiff")
_TABLES, _CELLVIT = (".csv", ".tsv", ".txt", ".npz"), ("cells.json", "cell_detection.json")


@dataclass(frozen=True)
class TileScores:
    """Scores of tiles.

    Attributes
    ----------
    coords : (n, 2) float64
        Top-left corners (x, y), level-0 px.
    edges : ((x, y), (x, y))
        Upper and left edge of a tile, level-0 px; turned if the tiles are.
    values : mapping of str to (n,) float64
        Scores by name; NaN where there is none.
    """

    coords: NDArray[np.float64]
    edges: tuple[tuple[float, float], tuple[float, float]]
    values: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


def stem_of(name: str) -> str:
    """Return a slide's name without its ending.

    >>> stem_of("a.b.svs"), stem_of("a")
    ('a.b', 'a')
    """
    return Path(name).stem if "." in name else name


def annotations_of(given: Any, slide: Slide, *, alone: bool) -> Annotations | None:
    """Return the annotations of a slide; None if there are none.

    Parameters
    ----------
    given : path, Annotations, LabelMask, or mapping of slide names to these
        A file (GeoJSON, cells as CellViT, StarDist or QuPath's tables have them, or a picture of labels), or a folder
        with a file per slide, named as the slide.
    slide : Slide
    alone : bool
        Whether it is the only slide: then a file is its own, whatever its name.
    """
    found = _chosen(given, slide.name, (*_POLYGONS, *_PICTURES), alone=alone)
    if isinstance(found, Path):
        if found.suffix.lower() in _TABLES or found.name.endswith(_CELLVIT):
            return Annotations.from_cells(found, slide=slide)
        if found.suffix.lower() in _POLYGONS:
            return Annotations.from_geojson(found, slide=slide)
        found = LabelMask.from_file(found, slide)
    if isinstance(found, LabelMask):
        return Annotations.from_labels(found)
    if isinstance(found, Annotations):
        return found.on(slide).to_level0()
    if found is None:
        return None
    raise ConfigError(f"{{annotations=}} is a {type(found).__name__}", remedy="pass a GeoJSON file or a folder of them")


def scores_of(given: Any, name: str, *, alone: bool) -> TileScores | None:
    """Return the scores of a slide's tiles; None if there are none.

    Parameters
    ----------
    given : path, Prediction, list of Prediction, or mapping of slide names to these
        ``tiles.csv`` of ``slideio-pipe predict``, or the folder that it wrote.
    name : str
        The slide's.
    alone : bool
        Whether it is the only slide.
    """
    if hasattr(given, "slides") and given.parts:  # the prediction of a patient
        given = given.slides
    if isinstance(given, Sequence) and not isinstance(given, str):
        given = {each.slide: each for each in given}
    if isinstance(given, str | Path) and Path(given).is_dir():
        folders = [Path(given) / part for part in (name, stem_of(name), "")]
        folders += sorted(Path(given).glob(f"*/{glob.escape(stem_of(name))}"))  # below the folder of its patient
        given = next((folder / "tiles.csv" for folder in folders if (folder / "tiles.csv").is_file()), None)
        alone = True
    found = _chosen(given, name, (".csv",), alone=alone)
    if found is None:
        return None
    if isinstance(found, Path):
        return read_scores(found)
    if not hasattr(found, "places"):
        raise ConfigError(f"{{scores=}} is a {type(found).__name__}", remedy="pass tiles.csv, or a Prediction")
    if stem_of(found.slide) != stem_of(name) and not alone:
        return None
    coords, side = found.places()
    affine = found.affine
    values = {"attention": found.times_mean}
    if found.instances is not None:
        values |= {
            label.replace("_", " "): found.instances[:, place] for place, label in enumerate(found.instance_names)
        }
    edges = ((affine.a * side, affine.d * side), (affine.b * side, affine.e * side))
    return TileScores(np.asarray(coords, np.float64), edges, values)


def read_scores(path: Path) -> TileScores:
    """Return the scores in ``tiles.csv``, as ``Prediction.to_csv`` writes it; the side is that of their grid.

    Raises
    ------
    ConfigError
        The file cannot be read, or has no positions.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"cannot be read ({error})", slide=str(path), remedy="pass tiles.csv of predict") from error
    names = list(rows[0]) if rows else []
    if not {"x", "y"} <= set(names):
        raise ConfigError('has no columns "x" and "y"', slide=str(path), remedy="pass tiles.csv of predict")
    columns = {name: np.array([_number(row[name]) for row in rows]) for name in names}
    coords = np.stack([columns["x"], columns["y"]], axis=1)
    if not np.isfinite(coords).all():
        raise ConfigError("has a tile without a position", slide=str(path), remedy="pass tiles.csv of predict")
    side = _side_of(coords)
    shown = {
        name.replace("_", " "): values
        for name, values in columns.items()
        if name not in ("tile", "x", "y") and np.isfinite(values).any()
    }
    if "attention" in shown:  # as multiples of its mean
        shown["attention"] = shown["attention"] * len(rows)
    return TileScores(coords, ((side, 0.0), (0.0, side)), shown)


def _side_of(coords: NDArray[np.float64]) -> float:
    """Return the smallest distance between columns or rows of tiles."""
    steps = [np.diff(np.unique(places)) for places in coords.T]
    found = np.concatenate(steps)
    return float(found.min()) if found.size else 256.0


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def _chosen(given: Any, name: str, endings: Sequence[str], *, alone: bool) -> Any:
    """Return what belongs to a slide: by its name in a mapping or a folder, or the only one there is."""
    if isinstance(given, Mapping):
        given, alone = given.get(name, given.get(stem_of(name))), True
    if not isinstance(given, str | Path):
        return given
    path = Path(given).expanduser()
    if path.is_dir():
        files = [path / f"{part}{ending}" for part in (stem_of(name), name) for ending in endings]
        return next((file for file in files if file.is_file()), None)
    if not path.is_file():
        raise ConfigError("there is no such file", slide=str(path), remedy="check the path")
    return path if alone or path.stem == stem_of(name) else None
