"""Write tile scores as GeoJSON for QuPath."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.files import write_file
from slideio_pipe.geometry import Affine
from slideio_pipe.mil.prediction.score_map import TileScores
from slideio_pipe.tiles.outlines import mask_to_polygons

# With more objects QuPath becomes slow.
MOST_TILES = 20_000
_LEVEL0 = Affine()


def write_regions(
    scores: TileScores,
    path: Path,
    *,
    measurements: Mapping[str, NDArray[np.float64]] | None = None,
    most_tiles: int = MOST_TILES,
    overwrite: bool = False,
    corner: Affine = _LEVEL0,
) -> None:
    """Write a detection per tile, classified by the range of its score.

    Raise OutputExistsError or OutputError if the file exists, or cannot be written.

    Parameters
    ----------
    scores : TileScores
    path : Path
    measurements : mapping of str to (N,) array, optional
        Measurements per tile for QuPath, besides its score.
    most_tiles : int
        With more tiles, touching tiles of one range become one annotation, with its mean score and number of tiles.
    overwrite : bool
    corner : Affine
        From px of the file to level-0 px: a shift to QuPath's origin.
    """
    if len(scores) <= most_tiles:
        features = _tiles(scores, measurements or {}, corner.inverse())
    else:
        features = _merged(scores, corner.inverse())
    text = json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":"))
    write_file(path, text.encode(), overwrite=overwrite)


def _tiles(
    scores: TileScores, measurements: Mapping[str, NDArray[np.float64]], to_file: Affine
) -> list[dict[str, Any]]:
    bins = scores.scale.bin_of(scores.values).tolist()
    columns = {scores.scale.name: scores.values} | dict(measurements)
    rows = np.stack([np.asarray(column, np.float64) for column in columns.values()], 1).tolist()
    outlines = np.round(to_file.apply(scores.corners_level0()), 3).tolist()
    return [
        _feature(scores, "detection", number, [[*ring, ring[0]]], dict(zip(columns, row, strict=True)))
        for number, ring, row in zip(bins, outlines, rows, strict=True)
    ]


def _merged(scores: TileScores, to_file: Affine) -> list[dict[str, Any]]:
    """Return regions of touching cells of one range; where tiles overlap, a cell has their mean."""
    found, values = [], scores.map.values
    covered = ~np.isnan(values)
    bins = np.where(covered, scores.scale.bin_of(np.nan_to_num(values, nan=scores.scale.low)), -1)
    for number in range(len(scores.scale.bins())):
        in_bin = bins == number
        if not in_bin.any():
            continue
        facts = {f"mean {scores.scale.name}": float(values[in_bin].mean())}
        for polygon in mask_to_polygons(in_bin):
            rings = [np.round((to_file @ scores.map.affine).apply(ring), 3).tolist() for ring in polygon]
            found.append(_feature(scores, "annotation", number, [[*ring, ring[0]] for ring in rings], facts))
    return found


def _feature(
    scores: TileScores, kind: str, number: int, rings: list[list[Any]], measurements: Mapping[str, float]
) -> dict[str, Any]:
    name = scores.scale.bins()[number][0]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": rings},
        "properties": {
            "objectType": kind,
            "classification": {"name": name, "color": list(scores.scale.bin_colour(number))},
            "measurements": dict(measurements),
        },
    }
