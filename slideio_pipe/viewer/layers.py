"""What is drawn over a slide: tissue, grid, annotations, tiles of a bag, scores; in level-0 px, as JSON values."""

from __future__ import annotations

import base64
import io
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock, RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slideio_pipe.config import checked
from slideio_pipe.errors import ConfigError, SlideioPipeWarning
from slideio_pipe.images.picture import CLASSES
from slideio_pipe.slides.slide import Slide
from slideio_pipe.tiles.annotations import Annotations
from slideio_pipe.tiles.bag import quality_of
from slideio_pipe.tiles.config import GridConfig, TissueConfig
from slideio_pipe.tiles.find_tissue import find_tissue, tissue_of
from slideio_pipe.tiles.grid import TileGrid
from slideio_pipe.tiles.tissue_mask import TissueMask
from slideio_pipe.viewer.attachments import TileScores, annotations_of, scores_of
from slideio_pipe.viewer.editing import Edit, SaveFolder, corrected, export_settings, geojson_of, regions_of
from slideio_pipe.viewer.scene import Scene

MASKS_KEPT = 16
# More tiles than this are not listed: a grid that fine is a mistake of a digit.
MOST_TILES = 2_000_000
# Warnings are collected by a switch of the whole process.
_QUIET = Lock()
NO_ANNOTATIONS: dict[str, Any] = {"classes": [], "regions": []}


@dataclass(frozen=True)
class LayerSettings:
    """What layers start with."""

    tissue: TissueConfig
    grid: GridConfig
    mpp: float | None  # µm per pixel of the grid's tiles; None is level 0 as stored
    annotations: Any = None
    scores: Any = None


class Layers:
    """The layers of the slides of a scene.

    Parameters
    ----------
    scene : Scene
    settings : LayerSettings
    """

    def __init__(self, scene: Scene, settings: LayerSettings) -> None:
        self.scene, self.settings = scene, settings
        self._masks: OrderedDict[tuple[str, TissueConfig | None], TissueMask] = OrderedDict()
        self._lock = RLock()

    # -- tissue ------------------------------------------------------------------------------------------------------

    def tissue_config(self, query: dict[str, str]) -> TissueConfig:
        """Return the settings of a page, where it has given some."""
        given: dict[str, Any] = {key: value for key, value in query.items() if key in TissueConfig.model_fields}
        if given.get("threshold") == "":
            given["threshold"] = None
        return checked(TissueConfig, None, **(self.settings.tissue.model_dump() | given))

    def mask(self, key: str, query: dict[str, str], edits: Sequence[Edit] = ()) -> TissueMask:
        """Return the tissue of a slide: with the page's settings, or else its own mask, if it has one; corrected."""
        return corrected(self._plain_mask(key, query), edits)

    def _plain_mask(self, key: str, query: dict[str, str]) -> TissueMask:
        asked = any(name in TissueConfig.model_fields for name in query)
        config = self.tissue_config(query) if asked else None
        with self._lock:
            if (key, config) in self._masks:
                self._masks.move_to_end((key, config))
                return self._masks[key, config]
            mask = self._found(key, config)
            self._masks[key, config] = mask
            while len(self._masks) > MASKS_KEPT:
                self._masks.popitem(last=False)
            return mask

    def _found(self, key: str, config: TissueConfig | None) -> TissueMask:
        shown, slide = self.scene[key], self.slide(key)
        own = getattr(getattr(shown.source, "grid", None), "mask", None)
        if config is None and isinstance(own, TissueMask):
            return own
        with _QUIET, warnings.catch_warnings():  # an empty mask is seen, and places that cannot be read are white
            warnings.simplefilter("ignore", SlideioPipeWarning)
            if config is None and shown.mask is not None:
                found = tissue_of(slide, self.settings.tissue, shown.mask)
                if found is not None:
                    return found
            settings = (config or self.settings.tissue).model_dump()
            return find_tissue(slide, **settings, on_error="white")

    def tissue(self, key: str, query: dict[str, str], edits: Sequence[Edit] = ()) -> dict[str, Any]:
        """Return a mask as a picture with its place."""
        mask = self.mask(key, query, edits)
        used = mask.settings.get("used_threshold")
        area = None if mask.mpp is None else round(mask.area_um2 / 1e6, 3)
        return {
            "picture": _picture(mask.mask),
            "affine": list(mask.affine.as_tuple()),
            "fraction": mask.fraction,
            "area_mm2": area,
            "method": mask.method,
            "threshold": None if used is None else float(used),
        }

    # -- grid --------------------------------------------------------------------------------------------------------

    def grid(self, key: str, query: dict[str, str], edits: Sequence[Edit] = ()) -> dict[str, Any]:
        """Return every tile of a grid with its tissue fraction, in rows from the top."""
        config = self.grid_config(query)
        slide = self.slide(key)
        view = slide.view(mpp=_mpp(query, self.settings.mpp if slide.mpp is not None else None))
        across, down = view.downsample
        tiles = (view.size.width // config.step + 1) * (view.size.height // config.step + 1)
        if tiles > MOST_TILES:
            raise ConfigError(f"{tiles:,} tiles are too many to show", slide=slide.name, remedy="show larger ones")
        grid = TileGrid(view, config.tile_size, stride=config.step, edge=config.edge)
        side = (across * config.tile_size, down * config.tile_size)
        rects = np.concatenate([grid.origins * (across, down), np.broadcast_to(side, (len(grid.origins), 2))], axis=1)
        fractions = self.mask(key, query, edits).fractions(rects)
        kept = int((fractions >= config.min_tissue - 1e-6).sum())
        return {
            "corner": [0.0, 0.0],
            "step": [across * config.step, down * config.step],
            "side": list(side),
            "columns": grid.shape.width,
            "rows": grid.shape.height,
            "fractions": _floats(fractions),
            "kept": kept,
            "min_tissue": config.min_tissue,
            "tile_size": config.tile_size,
            "mpp": None if view.mpp is None else round(view.mpp.mean, 6),
        }

    def grid_config(self, query: dict[str, str]) -> GridConfig:
        """Return the grid of a page, where it has given one."""
        given = {name: query[name] for name in ("tile_size", "min_tissue", "stride") if query.get(name)}
        known = self.settings.grid.model_dump()
        if "tile_size" in given and "stride" not in given:
            known |= {"stride": None, "overlap": None}
        return checked(GridConfig, None, **(known | given | {"align": False}))

    def save(self, key: str, folder: SaveFolder, query: dict[str, str], edits: Sequence[Edit]) -> list[str]:
        """Write the settings, the mask and the regions of a slide; return the paths of the files."""
        slide, mpp = self.slide(key), _mpp(query, self.settings.mpp)
        settings = export_settings(self.tissue_config(query), self.grid_config(query), mpp)
        return folder.save(slide, self.mask(key, query, edits), edits, settings)

    def geojson(self, key: str, what: str, query: dict[str, str], edits: Sequence[Edit]) -> bytes:
        """Return the mask ("tissue") or the regions with a class ("regions") as GeoJSON for QuPath."""
        found = self.mask(key, query, edits) if what == "tissue" else regions_of(edits)
        return geojson_of(found, self.slide(key))

    # -- annotations, tiles, scores ----------------------------------------------------------------------------------

    def annotations(self, key: str, query: dict[str, str], edits: Sequence[Edit] = ()) -> dict[str, Any]:
        """Return the polygons, points and boxes of a slide with the colours of their classes."""
        if self.settings.annotations is None:
            return NO_ANNOTATIONS
        slide = self.slide(key)
        found = annotations_of(self.settings.annotations, slide, alone=self._alone)
        return NO_ANNOTATIONS if found is None else _regions(found)

    def tiles(self, key: str, query: dict[str, str], edits: Sequence[Edit] = ()) -> dict[str, Any]:
        """Return the tiles of a bag."""
        found = tiles_of(self.scene[key].source)
        return {} if found is None else _tile_values(found)

    def scores(self, key: str, query: dict[str, str], edits: Sequence[Edit] = ()) -> dict[str, Any]:
        """Return the scores of tiles."""
        given = self.settings.scores
        found = None if given is None else scores_of(given, self.scene[key].name, alone=self._alone)
        return {} if found is None else _tile_values(found)

    @property
    def _alone(self) -> bool:
        return len(self.scene.slides) == 1

    def listed(self, key: str) -> list[str]:
        """Return which layers a slide has, without computing them."""
        bag = tiles_of(self.scene[key].source) is not None
        has = {
            "tissue": isinstance(self.scene.view(key).slide, Slide) and self.slide(key).mpp is not None,
            "grid": isinstance(self.scene.view(key).slide, Slide) and self.slide(key).mpp is not None,
            "annotations": self.settings.annotations is not None,
            "tiles": bag,
            "scores": self.settings.scores is not None,
        }
        return [name for name, there in has.items() if there]

    def slide(self, key: str) -> Slide:
        """Return an open slide; raise ConfigError for a bag without one."""
        slide = self.scene.view(key).slide
        if not isinstance(slide, Slide):
            raise ConfigError("only the tiles of the bag are there", slide=slide.name, remedy="show its slide as well")
        return slide


def tiles_of(source: Any) -> TileScores | None:
    """Return the tiles of a bag, numbered; None if it is no bag."""
    coords = getattr(source, "coords", None)
    if coords is None or not hasattr(source, "shape"):
        return None
    side = float(source.shape[-3])
    view = getattr(source, "view", None)
    if view is not None:
        affine = view.affine.as_tuple()
    else:
        made = source.provenance()
        affine = tuple((made.get("view") or {}).get("affine") or (1.0, 0.0, 0.0, 0.0, 1.0, 0.0))
    a, b, _, d, e, _ = (float(value) for value in affine)
    values = {} if source.tissue is None else {"tissue": np.asarray(source.tissue, np.float64)}
    quality = quality_of(source)
    values |= {} if quality is None else {name: np.asarray(each, np.float64) for name, each in quality.measured.items()}
    return TileScores(np.asarray(coords, np.float64), ((a * side, d * side), (b * side, e * side)), values)


def _regions(found: Annotations) -> dict[str, Any]:
    classes = list(found.classes)
    colours = {name: "#{:02x}{:02x}{:02x}".format(*CLASSES[k % len(CLASSES)]) for k, name in enumerate(classes)}
    regions = [
        {"class": name or "unclassified", "rings": [np.round(ring, 2).tolist() for ring in polygon]}
        for name, polygon in found.regions
    ]
    # Boxes that are polygons of the file are regions already.
    return {
        "classes": [{"name": name, "colour": colour} for name, colour in colours.items()],
        "regions": regions,
        "points": _floats(found.points),
        "point_classes": _floats(_class_numbers(found, found.point_labels)),
        "boxes": _floats(found.marks.boxes),
        "box_classes": _floats(_class_numbers(found, found.marks.box_labels)),
    }


def _class_numbers(found: Annotations, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the position of each label among the classes."""
    numbers = np.zeros(256, np.int64)
    numbers[list(found.classes.values())] = np.arange(len(found.classes))
    return numbers[labels]


def _tile_values(found: TileScores) -> dict[str, Any]:
    shown = {name: values for name, values in found.values.items() if np.isfinite(values).any()}
    return {
        "count": len(found.coords),
        "coords": _floats(found.coords),
        "edges": [list(edge) for edge in found.edges],
        "values": {name: _floats(values) for name, values in shown.items()},
    }


def _floats(values: NDArray[Any]) -> str:
    """Return numbers as base64 of little-endian float32."""
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def _picture(mask: NDArray[np.bool_]) -> str:
    """Return a mask as a PNG, opaque where it is set, in a data URL."""
    values = np.stack([np.full(mask.shape, 255, np.uint8), mask.astype(np.uint8) * np.uint8(255)], axis=-1)
    buffer = io.BytesIO()
    Image.fromarray(values, "LA").save(buffer, format="PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _mpp(query: dict[str, str], default: float | None) -> float | None:
    given = query.get("tile_mpp", "")
    if not given:
        return default
    try:
        return float(given)
    except ValueError:
        raise ConfigError(f"{given!r} is no resolution", remedy="give µm per pixel, such as 0.5") from None
