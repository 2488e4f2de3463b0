"""Annotations of a slide: polygons with classes, mapped to a view and back, and as labels of tiles."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Affine, Rect, Size
from slideio_pipe.images import picture
from slideio_pipe.slides.frames import Frame, frame_corner
from slideio_pipe.slides.slide import Slide
from slideio_pipe.slides.view import SlideView
from slideio_pipe.tiles.bag import Bag
from slideio_pipe.tiles.label_mask import LabelMask, Labels, TileLabels, bag_bounds, checked_classes
from slideio_pipe.tiles.mask_files import UNCLASSIFIED, Annotation, read_annotations, write_annotations
from slideio_pipe.tiles.outlines import polygons_to_mask


@dataclass(frozen=True, eq=False, repr=False)
class Annotations(TileLabels):
    """Polygons with classes, in level-0 px of a slide or in px of one view.

    Parameters
    ----------
    regions : sequence of Annotation
        Each a class name, or None, and a polygon: rings of (x, y), the outer one first.
    classes : mapping of str to int
        The label of each class, 1 to 255. Where polygons overlap, the class named last wins.
    affine : Affine
        From the polygons' px to level-0 px.
    bounds : Rect, optional
        The scanned part of level 0, if the file states it: the origin of QuPath's coordinates.
    frame : {"level0", "qupath"}
        "qupath" if the polygons were read from QuPath without their slide: the origin of their coordinates is then
        taken from the slide that they are used with.

    Examples
    --------
    >>> from slideio_pipe import TileBag, TileGrid, open_slide
    >>> view = open_slide(np.zeros((200, 400, 3), np.uint8)).view()
    >>> triangle = [np.array([[0.0, 0.0], [4, 0], [0, 4]])]
    >>> drawn = Annotations([Annotation("Tumor", triangle)], {"Tumor": 1})
    >>> drawn.labels(TileBag(view, TileGrid(view, tile_size=200)))[0, :2, :4].tolist()
    [[1, 1, 1, 0], [1, 1, 0, 0]]
    """

    regions: Sequence[Annotation]
    classes: Mapping[str, int]
    affine: Affine = field(default_factory=Affine)
    bounds: Rect | None = None
    frame: Frame = "level0"

    __hash__ = None  # type: ignore[assignment]  # it contains arrays

    def __post_init__(self) -> None:
        object.__setattr__(self, "regions", tuple(self.regions))
        object.__setattr__(self, "classes", checked_classes(self.classes, None))
        for name, polygon in self.regions:
            if (name or UNCLASSIFIED) not in self.classes:
                raise ConfigError(f"class {name or UNCLASSIFIED!r} has no label", remedy="name it in classes")
            for ring in polygon:
                if np.ndim(ring) != 2 or np.shape(ring)[1] != 2 or len(ring) < 3 or not np.isfinite(ring).all():
                    raise ConfigError(f"a ring of the shape {np.shape(ring)}", remedy="pass (n, 2) finite x, y, n >= 3")

    @classmethod
    def from_geojson(
        cls,
        path: str | os.PathLike[str],
        classes: Sequence[str] | Mapping[str, int] | None = None,
        *,
        slide: Slide | None = None,
        frame: Frame = "qupath",
    ) -> Annotations:
        """Return the polygons of a QuPath export, in level-0 px; points and lines are ignored.

        For a slide that states the bounds of the scanned area (MIRAX, Leica SCN, Ventana BIF), QuPath's coordinates
        begin at the bounds. Pass the slide; without it the polygons stay in QuPath's frame until they are used with a
        slide, in ``through``, ``labels``, ``plot`` or ``on``.

        Parameters
        ----------
        path : path
            A FeatureCollection, Feature, GeometryCollection, geometry, or a list of these.
        classes : sequence of str, or mapping of str to int, optional
            The QuPath classes to read and their labels, 1, 2, … in the order of a sequence; "unclassified" stands for
            polygons without a class. By default all classes in alphabetical order except "Ignore" and "…*"; labels then
            depend on the file's classes, so name them if labels must agree between slides.
        slide : Slide, optional
            The annotated slide.
        frame : {"qupath", "level0"}
            Origin of the file's coordinates: the corner of the slide's bounds, as in QuPath, or of level 0, as in
            OpenSlide.

        Raises
        ------
        SlideNotFoundError, ConfigError
            The file is missing, is not GeoJSON of polygons, or has none of these classes.
        """
        path = Path(path)
        if isinstance(classes, Mapping):
            classes = dict(checked_classes(classes, str(path)))
        regions = read_annotations(
            path, None if classes is None else classes if isinstance(classes, str) else [*classes]
        )
        if classes is None:
            classes = sorted({region.class_name or UNCLASSIFIED for region in regions})
        labels = classes if isinstance(classes, Mapping) else {name: k for k, name in enumerate(classes, 1)}
        frame_corner(frame, None)
        read = cls(regions, labels, frame=frame)
        return read if slide is None else read.on(slide)

    @classmethod
    def from_labels(cls, labels: LabelMask) -> Annotations:
        """Return one polygon, in level-0 px, per connected region of each class of a label mask."""
        regions = labels.regions()
        found = {region.class_name for region in regions}
        values = {str(value): value for value in range(1, 256) if str(value) in found} | dict(labels.classes)
        return cls(regions, values, bounds=labels.bounds)

    # -- frames -------------------------------------------------------------------------------------------------

    def on(self, slide: Slide) -> Annotations:
        """Return the annotations in level-0 px of a slide, also if they were read without it."""
        return self._within(slide.bounds)

    def _within(self, bounds: Rect | None) -> Annotations:
        corner = frame_corner(self.frame, bounds)
        placed = self if corner == Affine() else self._moved(self.affine.inverse() @ corner @ self.affine)
        return replace(placed, bounds=bounds, frame="level0")

    def through(self, view: SlideView) -> Annotations:
        """Return the annotations in the px of ``view``, rotated and scaled with the slide."""
        known = self._within(view.slide.bounds)
        return replace(known._moved(view.affine.inverse() @ known.affine), affine=view.affine)

    def to_level0(self) -> Annotations:
        """Return the annotations in level-0 px: the inverse of ``through``."""
        return replace(self._moved(self.affine), affine=Affine())

    def _moved(self, affine: Affine) -> Annotations:
        regions = [Annotation(name, [affine.apply(ring) for ring in polygon]) for name, polygon in self.regions]
        return replace(self, regions=regions)

    def to_geojson(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        slide: Slide | None = None,
        frame: Frame = "qupath",
    ) -> None:
        """Write the polygons in QuPath's format, each class in its own colour.

        Parameters
        ----------
        path : path
        overwrite : bool
        slide : Slide, optional
            Their slide, if it was not given before.
        frame : {"qupath", "level0"}
            Origin of the coordinates: the corner of the slide's bounds, as in QuPath, or of level 0, as in OpenSlide.

        Raises
        ------
        ConfigError
            They were read from QuPath without their slide, and ``frame`` is "level0".
        """
        known = self if slide is None else self.on(slide)
        colours = {name: picture.CLASSES[(value - 1) % len(picture.CLASSES)] for name, value in self.classes.items()}
        corner = frame_corner(frame, known.bounds)
        if known.frame == "qupath":  # read without a slide: still in QuPath's frame
            if frame != "qupath":
                reason = "where QuPath's coordinates begin on level 0 is not known"
                raise ConfigError(reason, remedy="pass slide=… with what they were drawn on")
            corner = Affine()
        moved = known.to_level0()._moved(corner.inverse())
        write_annotations(Path(path), moved.regions, colours, overwrite=overwrite)

    # -- pixels -------------------------------------------------------------------------------------------------

    def labels(self, bag: Bag, indices: ArrayLike | None = None) -> Labels:
        """Return the labels of tiles, (n, H, W) uint8; see ``TileLabels.labels``."""
        if self.frame == "qupath":
            return self._within(bag_bounds(bag)).labels(bag, indices)
        return super().labels(bag, indices)

    @cached_property
    def _boxes(self) -> NDArray[np.float64]:
        """(n, 4): lowest x and y and highest x and y of each region, in its own px."""
        outer = [np.concatenate(polygon) for _, polygon in self.regions]
        return np.array([[*ring.min(axis=0), *ring.max(axis=0)] for ring in outer]).reshape(-1, 4)

    def raster(self, size: Size | tuple[int, int], affine: Affine) -> Labels:
        """Return the labels at the pixel centres of a grid, (height, width) uint8, 0 without a polygon.

        Parameters
        ----------
        size : (width, height)
        affine : Affine
            Px of the grid to level-0 px.

        Notes
        -----
        Polygons are transformed and then filled (even-odd): nothing is interpolated.
        """
        width, height = size
        to_own = self.affine.inverse() @ affine
        corners = to_own.apply([(0, 0), (width, 0), (0, height), (width, height)])
        low, high = corners.min(axis=0), corners.max(axis=0)
        overlaps = (self._boxes[:, :2] <= high).all(axis=1) & (self._boxes[:, 2:] >= low).all(axis=1)
        to_grid = to_own.inverse()
        labels = np.zeros((height, width), np.uint8)
        overlapping = [self.regions[k] for k in np.flatnonzero(overlaps).tolist()]
        for name, value in self.classes.items():
            polygons = [
                [to_grid.apply(ring) for ring in polygon]
                for class_name, polygon in overlapping
                if (class_name or UNCLASSIFIED) == name
            ]
            if polygons:
                labels[polygons_to_mask(polygons, width, height)] = value
        return labels

    def plot(self, over: Slide | SlideView, max_size: int = 1024, *, titled: bool = True) -> Image.Image:
        """Return a thumbnail of a slide or view with the annotations drawn on it.

        It has a title, a scale bar and a legend of the classes; without title only a scale bar, in its corner.
        """
        view = over.view() if isinstance(over, Slide) else over
        image = picture.fit(view.thumbnail(max_size), max_size)
        scale = Affine.scaling(view.size.width / image.width, view.size.height / image.height)
        labels = self._within(view.slide.bounds).raster(Size(*image.size), view.affine @ scale)
        um_per_px = None if view.mpp is None else view.mpp.x * scale.a
        title, keys = f"annotations of {view.slide.name}", picture.label_keys(labels, self.classes)
        return picture.finished(
            picture.tint_labels(image, labels), title, titled=titled, um_per_px=um_per_px, keys=keys
        )

    def __len__(self) -> int:
        return len(self.regions)

    def __repr__(self) -> str:
        counts = dict.fromkeys(self.classes, 0)
        for name, _ in self.regions:
            counts[name or UNCLASSIFIED] += 1
        return f"Annotations({', '.join(f'{count} {name}' for name, count in counts.items()) or 'none'})"
