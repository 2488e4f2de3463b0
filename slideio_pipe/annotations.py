"""Annotations of a slide: polygons with classes, carried through a view and back, and as labels of tiles."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slideio_pipe import picture
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Affine, Size
from slideio_pipe.label_masks import LabelMask, Labels, TileLabels, checked_classes
from slideio_pipe.mask_files import UNCLASSIFIED, Annotation, read_annotations, write_annotations
from slideio_pipe.outlines import polygons_to_mask
from slideio_pipe.slide import Slide
from slideio_pipe.view import SlideView


@dataclass(frozen=True, eq=False, repr=False)
class Annotations(TileLabels):
    """Polygons with classes, in the px of a slide's level 0 or of one view.

    Parameters
    ----------
    regions : sequence of Annotation
        Each a class name, or None, and a polygon: rings of (x, y), the outer one first.
    classes : mapping of str to int
        The label of each class, 1 to 255. Where polygons overlap, the class that is named last lies on top.
    affine : Affine
        From the polygons' px to level-0 px.

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

    __hash__ = None  # type: ignore[assignment]  # it holds arrays

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
        cls, path: str | os.PathLike[str], classes: Sequence[str] | Mapping[str, int] | None = None
    ) -> Annotations:
        """Return the polygons of a QuPath export, in level-0 px; points and lines are passed over.

        Parameters
        ----------
        path : path
            A FeatureCollection, Feature, GeometryCollection, geometry, or a list of these.
        classes : sequence of str, or mapping of str to int, optional
            The QuPath classes to take and their labels, 1, 2, … in the order of a sequence; "unclassified" stands for
            polygons without. By default all in alphabetical order, but "Ignore" and "…*"; then labels depend on what
            the file has, so name them where several slides belong together.

        Raises
        ------
        SlideNotFoundError, ConfigError
            The file is missing, is no GeoJSON of polygons, or has none of these classes.
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
        return cls(regions, labels)

    @classmethod
    def from_labels(cls, labels: LabelMask) -> Annotations:
        """Return a polygon, in level-0 px, for each connected region of each class of a label mask."""
        regions = labels.regions()
        found = {region.class_name for region in regions}
        values = {str(value): value for value in range(1, 256) if str(value) in found} | dict(labels.classes)
        return cls(regions, values)

    # -- frames -------------------------------------------------------------------------------------------------

    def through(self, view: SlideView) -> Annotations:
        """Return the annotations in the px of ``view``, turned and scaled with the slide."""
        return replace(self._moved(view.affine.inverse() @ self.affine), affine=view.affine)

    def to_level0(self) -> Annotations:
        """Return the annotations in level-0 px: undoes ``through``."""
        return replace(self._moved(self.affine), affine=Affine())

    def _moved(self, affine: Affine) -> Annotations:
        regions = [Annotation(name, [affine.apply(ring) for ring in polygon]) for name, polygon in self.regions]
        return replace(self, regions=regions)

    def to_geojson(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the polygons as QuPath reads them, in level-0 px, each class in a colour of its own."""
        colours = {name: picture.CLASSES[(value - 1) % len(picture.CLASSES)] for name, value in self.classes.items()}
        write_annotations(Path(path), self.to_level0().regions, colours, overwrite=overwrite)

    # -- pixels -------------------------------------------------------------------------------------------------

    @cached_property
    def _boxes(self) -> NDArray[np.float64]:
        """(n, 4): lowest x and y and highest x and y of each region, in its own px."""
        outer = [np.concatenate(polygon) for _, polygon in self.regions]
        return np.array([[*ring.min(axis=0), *ring.max(axis=0)] for ring in outer]).reshape(-1, 4)

    def raster(self, size: Size | tuple[int, int], affine: Affine) -> Labels:
        """Return the labels under the pixel centres of a grid, (height, width) uint8, 0 where there is no polygon.

        Parameters
        ----------
        size : (width, height)
        affine : Affine
            Px of the grid to level-0 px.

        Notes
        -----
        Polygons are moved and then filled (even-odd): nothing is interpolated.
        """
        width, height = size
        to_own = self.affine.inverse() @ affine
        corners = to_own.apply([(0, 0), (width, 0), (0, height), (width, height)])
        low, high = corners.min(axis=0), corners.max(axis=0)
        near = (self._boxes[:, :2] <= high).all(axis=1) & (self._boxes[:, 2:] >= low).all(axis=1)
        to_grid = to_own.inverse()
        labels = np.zeros((height, width), np.uint8)
        there = [self.regions[k] for k in np.flatnonzero(near).tolist()]
        for name, value in self.classes.items():
            polygons = [
                [to_grid.apply(ring) for ring in polygon]
                for class_name, polygon in there
                if (class_name or UNCLASSIFIED) == name
            ]
            if polygons:
                labels[polygons_to_mask(polygons, width, height)] = value
        return labels

    def plot(self, over: Slide | SlideView, max_size: int = 1024) -> Image.Image:
        """Return a thumbnail of a slide, or of a view of it, with the annotations over it."""
        view = over.view() if isinstance(over, Slide) else over
        image = view.plot(max_size)
        scale = Affine.scaling(view.size.width / image.width, view.size.height / image.height)
        return picture.tint_labels(image, self.raster(Size(*image.size), view.affine @ scale))

    def __len__(self) -> int:
        return len(self.regions)

    def __repr__(self) -> str:
        counts = dict.fromkeys(self.classes, 0)
        for name, _ in self.regions:
            counts[name or UNCLASSIFIED] += 1
        return f"Annotations({', '.join(f'{count} {name}' for name, count in counts.items()) or 'none'})"
