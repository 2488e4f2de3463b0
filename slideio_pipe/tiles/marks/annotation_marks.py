"""Make the points and boxes of annotations: their classes get labels, their px those of a slide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slideio_pipe.errors import ConfigError, OutsideSlideWarning, UnmatchedWarning, warn_caller
from slideio_pipe.geometry import Affine, Mpp, Pyramid, Rect
from slideio_pipe.tiles.label_mask import checked_classes
from slideio_pipe.tiles.marks.cell_files import Cells
from slideio_pipe.tiles.marks.marks import Marks
from slideio_pipe.tiles.mask_files import UNCLASSIFIED, Annotation, ClassPoints, check_class_names, is_selected

Classes = Sequence[str] | Mapping[str, int] | None
# Fewer points outside a slide are strokes that went over its edge.
_FEW_OUTSIDE = 0.05


class Scanned(Protocol):
    """The parts of a slide that this module uses; ``Slide`` has them."""

    @property
    def name(self) -> str: ...
    @property
    def pyramid(self) -> Pyramid: ...
    @property
    def bounds(self) -> Rect | None: ...
    def require_mpp(self) -> Mpp: ...


def class_names(classes: Classes, where: Path | None) -> Sequence[str] | None:
    """Return the names of classes to read; raise ConfigError if they are no list of names or no labels."""
    if isinstance(classes, Mapping):
        classes = dict(checked_classes(classes, None if where is None else str(where)))
    names = None if classes is None else classes if isinstance(classes, str) else [*classes]
    check_class_names(where or Path("classes"), names)
    return names


def numbered(classes: Classes, *found: Iterable[str | None]) -> Mapping[str, int]:
    """Return the label of each class: as given, else 1, 2, … in the order of a sequence or of what was found.

    >>> numbered(None, ["b", None, "a"], ["c", "b"])
    {'a': 1, 'b': 2, 'unclassified': 3, 'c': 4}
    """
    if isinstance(classes, Mapping):
        return classes
    if classes is None:
        classes = list(dict.fromkeys(name for names in found for name in sorted({n or UNCLASSIFIED for n in names})))
    return {name: number for number, name in enumerate(classes, 1)}


def labelled(cells: Cells, classes: Classes, where: Path | None) -> tuple[Marks, Mapping[str, int]]:
    """Return the cells of some classes as points and boxes in their file's px, and the labels of the classes.

    Warn if there are cells, and none is of these classes: a slide may have none, but the name may be wrong.
    """
    wanted = class_names(classes, where)
    kept = {name: is_selected(name, wanted) for name in dict.fromkeys(cells.names)}
    labels = numbered(classes, (name for name, chosen in kept.items() if chosen))
    if kept and not any(kept.values()):
        there = ", ".join(sorted(name or UNCLASSIFIED for name in kept))
        what = "every cell is of an ignored class" if wanted is None else f"no cell of {', '.join(wanted)}"
        head = "" if where is None else f"{where}: "
        warn_caller(UnmatchedWarning(f"{head}{what}; classes found: {there}", names=wanted or ()))
    value_of = {name: labels[name or UNCLASSIFIED] if chosen else 0 for name, chosen in kept.items()}
    values = np.array([value_of[name] for name in cells.names], np.int64)
    chosen = values > 0
    known = chosen & np.isfinite(cells.boxes).all(axis=1)
    points = Marks(cells.centroids[chosen], values[chosen])
    return points.beside(Marks.of_boxes(cells.boxes[known], values[known])), labels


def marks_of(
    points: ArrayLike,
    point_classes: Sequence[str],
    boxes: ArrayLike,
    box_classes: Sequence[str],
    labels: Mapping[str, int],
) -> Marks:
    """Return points and boxes of the classes; raise ConfigError if a class has no label, or a box no area."""
    for name in (*point_classes, *box_classes):
        if name not in labels:
            raise ConfigError(f"class {name!r} has no label", remedy="name it in classes")
    places, spans = _rows(points, 2, "points"), _rows(boxes, 4, "boxes")
    if not (spans[:, :2] < spans[:, 2:]).all():
        raise ConfigError("a box without area", remedy="pass lowest x, lowest y, highest x, highest y")
    of_boxes = Marks.of_boxes(spans, np.array([labels[name] for name in box_classes], np.int64))
    return Marks(places, np.array([labels[name] for name in point_classes], np.int64)).beside(of_boxes)


def _rows(values: ArrayLike, width: int, what: str) -> NDArray[np.float64]:
    found = np.asarray(values, np.float64)
    if not found.size:
        return np.zeros((0, width))
    if found.ndim != 2 or found.shape[1] != width:
        raise ConfigError(f"{what} of the shape {found.shape}", remedy=f"pass an (n, {width}) array")
    return found


def named_marks(marks: Marks, classes: Mapping[str, int]) -> tuple[list[Annotation], list[ClassPoints]]:
    """Return boxes as polygons, and the points of each class, with the names of their classes."""
    names = {value: None if name == UNCLASSIFIED else name for name, value in classes.items()}
    labels = marks.box_labels.tolist()
    boxes = [Annotation(names[label], [ring]) for label, ring in zip(labels, marks.corners, strict=True)]
    return boxes, [ClassPoints(name, marks.points[marks.point_labels == value]) for value, name in names.items()]


def px_affine(slide: Scanned | None, mpp: float | None, *, in_um: bool, where: Path | None) -> Affine:
    """Return the affine from µm, or px of a resolution, to level-0 px; raise ConfigError if a slide is needed."""
    if mpp is None and not in_um:
        return Affine()
    unit = "µm" if in_um else f"px of {mpp} µm"
    name = None if where is None else str(where)
    if slide is None:
        raise ConfigError(f"places in {unit}, and no slide", slide=name, remedy="pass their slide, for its resolution")
    size = Mpp.of(1.0) if in_um else Mpp.parse(mpp)
    if size is None or (in_um and mpp is not None):
        remedy = "leave mpp out: the file is in µm" if in_um else "pass µm per px, such as 0.5"
        raise ConfigError(f"mpp is {mpp!r}", slide=name, remedy=remedy)
    own = slide.require_mpp()
    return Affine.scaling(size.x / own.x, size.y / own.y)


def check_inside(marks: Marks, slide: Scanned) -> None:
    """Check that points and boxes, in level-0 px, are on a slide.

    Warn if more than a twentieth of them are outside; raise ConfigError if all are.
    """
    places = np.concatenate([marks.points, marks.corners.mean(axis=1)])
    size = slide.pyramid.levels[0]
    outside = int(((places < 0) | (places > size)).any(axis=1).sum())
    if outside <= _FEW_OUTSIDE * len(places):
        return
    (left, top), (right, lower) = places.min(axis=0), places.max(axis=0)
    reach = f"they reach from ({left:,.0f}, {top:,.0f}) to ({right:,.0f}, {lower:,.0f})"
    where = f"outside the slide, {size.width:,}×{size.height:,} px at level 0; {reach}"
    if outside < len(places):
        warn_caller(OutsideSlideWarning(f"{slide.name}: {outside:,} of {len(places):,} points and boxes are {where}"))
        return
    remedy = 'check that they are of this slide; read them in their own frame, "qupath" or "level0", and resolution'
    raise ConfigError(f"all {len(places):,} points and boxes are {where}", slide=slide.name, remedy=remedy)
