"""Annotations of a slide: polygons, points and boxes with classes, mapped to a view and back, and for tiles."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Affine, Rect, Size
from slideio_pipe.images import picture
from slideio_pipe.slides.frames import Frame, checked_frame, frame_corner
from slideio_pipe.slides.slide import Slide
from slideio_pipe.slides.view import SlideView
from slideio_pipe.tiles.bag import Bag
from slideio_pipe.tiles.label_mask import LabelMask, Labels, TileLabels, bag_bounds, checked_classes
from slideio_pipe.tiles.marks.annotation_marks import (
    Scanned,
    check_inside,
    class_names,
    labelled,
    marks_of,
    named_marks,
    numbered,
    px_affine,
)
from slideio_pipe.tiles.marks.cell_files import Outline, read_cells
from slideio_pipe.tiles.marks.marks import Marks, rectangles
from slideio_pipe.tiles.marks.tile_targets import TileTargets
from slideio_pipe.tiles.mask_files import UNCLASSIFIED, Annotation, read_shapes, write_annotations
from slideio_pipe.tiles.outlines import polygons_to_mask
from slideio_pipe.tiles.patient_bag import PatientBag
from slideio_pipe.tiles.tile_bag import TileBag

_OF_SLIDES = "pass the bag of its slide, such as patient.slides[0]"


@dataclass(frozen=True, eq=False, repr=False)
class Annotations(TileLabels, TileTargets):
    """Polygons, points and boxes with classes, in level-0 px of a slide or in px of one view.

    Parameters
    ----------
    regions : sequence of Annotation
        Each a class name, or None, and a polygon: rings of (x, y), the outer one first.
    classes : mapping of str to int
        The label of each class, 1 to 255. Where polygons overlap, the class named last wins.
    affine : Affine
        From their px to level-0 px.
    bounds : Rect, optional
        The scanned part of level 0, if the file states it: the origin of QuPath's coordinates.
    frame : {"level0", "qupath"}
        "qupath" if they were read from QuPath without their slide: the origin of their coordinates is then
        taken from the slide that they are used with.
    marks : Marks, optional
        Points, and boxes that are no polygons, with their labels; ``from_arrays`` and ``from_cells`` make them.

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
    marks: Marks = field(default_factory=Marks)
    _checked_on: str = field(default="", init=False)

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
        used = {*self.marks.point_labels.tolist(), *self.marks.box_labels.tolist()}
        if unnamed := used - {*self.classes.values()}:
            reason = f"points or boxes have the label {min(unnamed)}, which is of no class"
            raise ConfigError(reason, remedy="name it in classes")

    @classmethod
    def from_geojson(
        cls,
        path: str | os.PathLike[str],
        classes: Sequence[str] | Mapping[str, int] | None = None,
        *,
        slide: Slide | None = None,
        frame: Frame = "qupath",
    ) -> Annotations:
        """Return the polygons and points of a QuPath export, in level-0 px; lines are ignored.

        For a slide that states the bounds of the scanned area (MIRAX, Leica SCN, Ventana BIF), QuPath's coordinates
        begin at the bounds. Pass the slide; without it they stay in QuPath's frame until they are used with a slide, in
        ``through``, ``labels``, ``targets``, ``plot`` or ``on``. Cells that a tool found: ``from_cells``.

        Parameters
        ----------
        path : path
            A FeatureCollection, Feature, GeometryCollection, geometry, or a list of these.
        classes : sequence of str, or mapping of str to int, optional
            The QuPath classes to read and their labels, 1, 2, … in the order of a sequence; "unclassified" stands for
            what has no class. By default all classes except "Ignore" and "…*": those of polygons in alphabetical order,
            then those of points alone; labels then depend on the file's classes, so name them if labels must agree
            between slides.
        slide : Slide, optional
            The annotated slide.
        frame : {"qupath", "level0"}
            Origin of the file's coordinates: the corner of the slide's bounds, as in QuPath, or of level 0, as in
            OpenSlide.

        Raises
        ------
        SlideNotFoundError, ConfigError
            The file is missing, is not GeoJSON of polygons or points, or has none of these classes; or all of its
            points are outside the slide.
        """
        path = Path(path)
        found = read_shapes(path, class_names(classes, path))
        labels = numbered(
            classes, [each.class_name for each in found.polygons], [each.class_name for each in found.points]
        )
        frame_corner(frame, None)
        points = np.concatenate([np.zeros((0, 2)), *(each.xy for each in found.points)])
        counts = [len(each.xy) for each in found.points]
        values = np.array([labels[each.class_name or UNCLASSIFIED] for each in found.points], np.int64)
        read = cls(found.polygons, labels, frame=frame, marks=Marks(points, np.repeat(values, counts)))
        return read if slide is None else read.on(slide)

    @classmethod
    def from_cells(
        cls,
        source: str | os.PathLike[str] | Mapping[str, Any],
        classes: Sequence[str] | Mapping[str, int] | None = None,
        *,
        slide: Scanned | None = None,
        frame: Frame | None = None,
        mpp: float | None = None,
        origin: tuple[float, float] = (0, 0),
        outline: Outline = "nucleus",
    ) -> Annotations:
        """Return the cells that QuPath, CellViT or StarDist found: a point in each, and its box where it is known.

        Parameters
        ----------
        source : path or mapping
            QuPath's GeoJSON of cells, or its table of measurements (CSV, TSV) with the columns "Centroid X µm" or "px";
            CellViT's ``cells.json`` or ``cell_detection.json``; the details that StarDist returns, also as NPZ or JSON;
            or a table with the columns x and y in px.
        classes : sequence of str, or mapping of str to int, optional
            As for ``from_geojson``. Classes of CellViT have the names of its type map; those of StarDist are numbers;
            "unclassified" stands for cells without a class.
        slide : Slide, optional
            Their slide. Needed for µm and with ``mpp``, and to choose the rows of a table with several images.
        frame : {"qupath", "level0"}, optional
            Origin of the coordinates: by default QuPath's for GeoJSON and tables, level 0 for CellViT and StarDist.
            CellViT's GeoJSON is in level-0 px, too: pass "level0" for a slide with bounds.
        mpp : float, optional
            µm per px of the image in which they were found; by default they are in level-0 px.
        origin : (float, float)
            Corner of that image, in px of the frame at level 0.
        outline : {"nucleus", "cell"}
            Which outline of QuPath's cells gives the point and the box, where a file has both.

        Raises
        ------
        SlideNotFoundError, ConfigError
            The file is missing, or is none of these; all cells are outside the slide; or ``slide`` is needed.

        Examples
        --------
        >>> details = {"points": [[10, 20], [40, 50]], "prob": [0.9, 0.8]}  # row, column
        >>> Annotations.from_cells(details).points.tolist()
        [[20.5, 10.5], [50.5, 40.5]]
        """
        given = source if isinstance(source, Mapping) else Path(source)
        where = None if isinstance(given, Mapping) else given
        cells = read_cells(given, outline=outline, slide=None if slide is None else slide.name)
        found, labels = labelled(cells, classes, where)
        affine = Affine.translation(*origin) @ px_affine(slide, mpp, in_um=cells.in_um, where=where)
        read = cls((), labels, frame=checked_frame(frame or cells.frame), marks=found.moved(affine))
        return read if slide is None else read.on(slide)

    @classmethod
    def from_arrays(
        cls,
        points: ArrayLike = (),
        point_classes: Sequence[str] = (),
        boxes: ArrayLike = (),
        box_classes: Sequence[str] = (),
        classes: Sequence[str] | Mapping[str, int] | None = None,
    ) -> Annotations:
        """Return points and boxes in level-0 px.

        Parameters
        ----------
        points : (n, 2) array_like
            x, y.
        point_classes : n names
        boxes : (m, 4) array_like
            Lowest x and y, highest x and y.
        box_classes : m names
        classes : sequence of str, or mapping of str to int, optional
            Classes and their labels, 1, 2, … in the order of a sequence; by default alphabetical.

        Raises
        ------
        ConfigError
            The numbers of places and classes differ, or a class has no label.

        Examples
        --------
        >>> found = Annotations.from_arrays([(3, 4)], ["cell"], [(0, 0, 8, 9)], ["mitosis"])
        >>> found
        Annotations(1 cell, 1 mitosis)
        """
        labels = numbered(classes, [*point_classes, *box_classes])
        marks = marks_of(points, point_classes, boxes, box_classes, labels)
        return cls((), labels, marks=marks)

    @classmethod
    def from_labels(cls, labels: LabelMask) -> Annotations:
        """Return one polygon, in level-0 px, per connected region of each class of a label mask."""
        regions = labels.regions()
        found = {region.class_name for region in regions}
        values = {str(value): value for value in range(1, 256) if str(value) in found} | dict(labels.classes)
        return cls(regions, values, bounds=labels.bounds)

    # -- frames -------------------------------------------------------------------------------------------------

    def on(self, slide: Scanned) -> Annotations:
        """Return the annotations in level-0 px of a slide, also if they were read without it.

        Raises
        ------
        ConfigError
            All of several points and boxes are outside the slide.
        """
        if self.frame == "level0" and self.bounds == slide.bounds:
            placed = self
        else:
            placed = self._within(slide.bounds)
        if placed._checked_on != slide.name:
            check_inside(placed.marks.moved(placed.affine), slide)
            object.__setattr__(placed, "_checked_on", slide.name)
        return placed

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
        return replace(self, regions=regions, marks=self.marks.moved(affine))

    def to_geojson(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        slide: Slide | None = None,
        frame: Frame = "qupath",
    ) -> None:
        """Write polygons, points and boxes in QuPath's format, each class in its own colour.

        Boxes are written as rectangles, and the points of a class as one object.

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
        boxes, points = named_marks(moved.marks, self.classes)
        write_annotations(Path(path), [*moved.regions, *boxes], colours, points=points, overwrite=overwrite)

    # -- points and boxes ---------------------------------------------------------------------------------------

    @property
    def points(self) -> NDArray[np.float64]:
        """(n, 2) x, y of the points."""
        return self.marks.points

    @property
    def point_labels(self) -> NDArray[np.int64]:
        """(n,) labels of the points."""
        return self.marks.point_labels

    @property
    def has_points(self) -> bool:
        """Whether it has points to count, perhaps none of them on this slide: not polygons alone."""
        return bool(len(self.marks.points)) or not self.regions

    @property
    def boxes(self) -> NDArray[np.float64]:
        """(m, 4) lowest x and y, highest x and y: of the polygons that are rectangles, then of the other boxes."""
        return self.all_marks.boxes

    @property
    def box_labels(self) -> NDArray[np.int64]:
        """(m,) labels of the boxes."""
        return self.all_marks.box_labels

    @cached_property
    def all_marks(self) -> Marks:
        """Points, and the boxes of rectangles and others."""
        which, corners = rectangles([region.polygon for region in self.regions])
        names = [self.regions[k].class_name or UNCLASSIFIED for k in which.tolist()]
        labels = np.array([self.classes[name] for name in names], np.int64)
        return Marks(corners=corners, box_labels=labels).beside(self.marks)

    def _of_bag(self, bag: Bag) -> Annotations:
        """Return the annotations in a frame that is known, for a bag of the slide."""
        if isinstance(bag, PatientBag):
            raise ConfigError("annotations of one slide, and a bag of a patient", slide=bag.name, remedy=_OF_SLIDES)
        if isinstance(bag, TileBag):
            return self.on(bag.view.slide)
        return self._within(bag_bounds(bag)) if self.frame == "qupath" else self

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
        return len(self.regions) + len(self.marks)

    def __repr__(self) -> str:
        counts = dict.fromkeys(self.classes, 0)
        for name, _ in self.regions:
            counts[name or UNCLASSIFIED] += 1
        names = {value: name for name, value in self.classes.items()}
        for labels in (self.marks.point_labels, self.marks.box_labels):
            for value, count in zip(*np.unique(labels, return_counts=True), strict=True):
                counts[names[int(value)]] += int(count)
        return f"Annotations({', '.join(f'{count} {name}' for name, count in counts.items()) or 'none'})"
