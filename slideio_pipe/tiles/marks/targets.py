"""The boxes and points of one image, a tile or a view, in its px: clipped, selected, and written in a format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slideio_pipe.augment.target_rules import BoxRules, PointRules, TargetRules
from slideio_pipe.geometry import Size, inverses
from slideio_pipe.images import picture
from slideio_pipe.tiles.marks.marks import Marks, hulls
from slideio_pipe.tiles.marks.place_index import Pairs, Spans

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Targets:
    """The boxes and points of one image, in its px: (0, 0) is its top-left corner.

    Examples
    --------
    >>> none = np.zeros((0, 2)), np.zeros(0, np.int64), np.zeros(0, np.int64)
    >>> found = Targets(np.array([[10.0, 5, 30, 25]]), np.array([2]), np.array([0]), *none, size=Size(64, 64))
    >>> found
    Targets(1 box, 0 points in 64×64 px)
    >>> found.to_torch()["boxes"].tolist(), found.to_albumentations()["bboxes"]
    ([[10.0, 5.0, 30.0, 25.0]], [(10.0, 5.0, 30.0, 25.0, 2)])
    """

    boxes: Floats  # (n, 4) lowest x and y, highest x and y, inside the image
    labels: Indices  # (n,) of the boxes
    box_index: Indices  # (n,) their positions in ``Annotations.boxes``
    points: Floats  # (m, 2) x, y
    point_labels: Indices  # (m,)
    point_index: Indices  # (m,) their positions in ``Annotations.points``
    size: Size  # of the image, px
    rules: TargetRules = field(default_factory=TargetRules)

    def to_torch(self) -> dict[str, Any]:
        """Return tensors as torchvision's detectors take them: boxes (n, 4) float32, labels (n,) int64.

        Points are beside them: points (m, 2) float32, point_labels (m,) int64.
        """
        import torch  # takes seconds to import, and 0.15 GB in a process that reads tiles

        return {
            "boxes": torch.from_numpy(self.boxes.astype(np.float32)),
            "labels": torch.from_numpy(self.labels),
            "points": torch.from_numpy(self.points.astype(np.float32)),
            "point_labels": torch.from_numpy(self.point_labels),
        }

    def to_albumentations(self) -> dict[str, Any]:
        """Return lists as a ``Compose`` of albumentationsxl returns them, in its formats.

        ``bboxes`` and ``keypoints``, and the labels in the fields that ``label_fields`` names; without them each label
        follows its box, and points have none.
        """
        boxes, points = self.rules.boxes or BoxRules(), self.rules.points or PointRules()
        rows = formatted(self.boxes, boxes, self.size).tolist()
        labels = self.labels.tolist()
        places = (self.points[:, ::-1] if points.format == "yx" else self.points).tolist()
        written: dict[str, Any] = {"bboxes": [tuple(row) for row in rows], "keypoints": [tuple(row) for row in places]}
        if boxes.label_fields is None:
            written["bboxes"] = [(*row, label) for row, label in zip(rows, labels, strict=True)]
        else:
            written[boxes.label_fields[0]] = labels
        if points.label_fields is not None:
            written[points.label_fields[0]] = self.point_labels.tolist()
        return written

    def plot(self, tile: NDArray[np.uint8], size_px: int | None = None) -> Image.Image:
        """Return the tile, (H, W, 3) uint8, with its boxes and points in the colours of their labels.

        Parameters
        ----------
        tile : (H, W, 3) uint8
            The image that they are of, such as ``bag[3]``.
        size_px : int, optional
            Longer side of the picture; by default that of the tile.
        """
        factor = 1.0 if size_px is None else size_px / max(self.size)
        side = (max(1, round(self.size.width * factor)), max(1, round(self.size.height * factor)))
        shown = Image.fromarray(np.asarray(tile, np.uint8)).resize(side, Image.Resampling.BICUBIC)
        labels, point_labels = self.labels.tolist(), self.point_labels.tolist()
        return picture.draw_marks(shown, self.boxes * factor, labels, self.points * factor, point_labels)

    def __len__(self) -> int:
        return len(self.boxes) + len(self.points)

    def __repr__(self) -> str:
        boxes, points = len(self.boxes), len(self.points)
        counted = f"{boxes} box{'' if boxes == 1 else 'es'}, {points} point{'' if points == 1 else 's'}"
        return f"Targets({counted} in {self.size.width}×{self.size.height} px)"


def formatted(boxes: Floats, rules: BoxRules, size: Size) -> Floats:
    """Return boxes (n, 4) in a format of albumentationsxl.

    >>> formatted(np.array([[10.0, 5, 30, 25]]), BoxRules("yolo"), Size(100, 50)).tolist()
    [[0.2, 0.3, 0.2, 0.4]]
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    if rules.format == "coco":
        written = np.concatenate([low, high - low], axis=1)
    elif rules.format == "yolo":
        written = np.concatenate([(low + high) / 2, high - low], axis=1)
    else:
        written = boxes
    return written / np.array([size.width, size.height] * 2, np.float64) if rules.normalized else written


def targets_of(marks: Marks, affines: Floats, size: Size, rules: TargetRules) -> list[Targets]:
    """Return the targets of each of several images of one size.

    Parameters
    ----------
    marks : Marks
    affines : (n, 6) float64
        Of each image, from its px to those of the marks.
    size : Size
        Of the images, px.
    rules : TargetRules
    """
    count = len(affines)
    boxes, points = rules.boxes or BoxRules(), rules.points or PointRules()
    of_boxes = _split(_boxes_in(marks, affines, size, boxes), count, 4)
    of_points = _split(_points_in(marks, affines, size, points), count, 2)
    return [
        Targets(box, marks.box_labels[which], which, point, marks.point_labels[place], place, size, rules)
        for (which, box), (place, point) in zip(of_boxes, of_points, strict=True)
    ]


def count_points(marks: Marks, affines: Floats, size: Size, labels: Sequence[int]) -> Indices:
    """Return the number of points of each label in each image, (images, labels)."""
    column_of = np.zeros(256, np.int64)
    column_of[list(labels)] = np.arange(len(labels))
    counts = np.zeros(len(affines) * len(labels), np.int64)
    for image, point, _ in _points_in(marks, affines, size, PointRules()):
        places = image * len(labels) + column_of[marks.point_labels[point]]
        counts += np.bincount(places, minlength=len(counts))
    return counts.reshape(len(affines), len(labels))


Found = Iterator[tuple[Indices, Indices, Floats]]


def _points_in(marks: Marks, affines: Floats, size: Size, rules: PointRules) -> Found:
    """Yield numbers of images, of their points, and the places of these, (k, 2); images ascend."""
    to_image = inverses(affines)
    pairs: Iterator[Pairs] | list[Pairs]
    if rules.remove_invisible:
        pairs = marks.point_index.runs(*_spans(affines, size))
    else:  # every point, also far away, as albumentationsxl returns them
        every = len(marks.points)
        pairs = [(np.full(every, k, np.int64), np.arange(every)) for k in range(len(affines))]
    for image, point in pairs:
        places = _applied(to_image[image], marks.points[point][:, None])[:, 0]
        if rules.remove_invisible:
            inside = ((places >= 0) & (places < size)).all(axis=1)
            image, point, places = image[inside], point[inside], places[inside]
        yield image, point, places


def _boxes_in(marks: Marks, affines: Floats, size: Size, rules: BoxRules) -> Found:
    """Yield numbers of images, of their boxes, and these, clipped, (k, 4); images ascend."""
    to_image, whole = inverses(affines), np.array(size, np.float64)

    def centres(reach: Floats) -> Spans:
        """Return where the centres are of boxes whose hull, after the affine, may overlap each image."""
        return _spans(affines, size, np.abs(to_image[:, [[0, 1], [3, 4]]]) @ reach)

    for image, box in marks.box_index.runs(len(affines), centres):
        shown = hulls(_applied(to_image[image], marks.corners[box]))
        clipped = np.concatenate([np.clip(shown[:, :2], 0, whole), np.clip(shown[:, 2:], 0, whole)], axis=1)
        sides, all_sides = clipped[:, 2:] - clipped[:, :2], shown[:, 2:] - shown[:, :2]
        area, total = sides.prod(axis=1), all_sides.prod(axis=1)
        kept = (area > 0) & (area >= rules.min_area) & (area >= rules.min_visibility * total)
        kept &= (sides >= (rules.min_width, rules.min_height)).all(axis=1)
        yield image[kept], box[kept], clipped[kept]


def _split(found: Found, images: int, width: int) -> list[tuple[Indices, Floats]]:
    """Return the numbers and places of each image."""
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, width))), *found]
    image, number, places = (np.concatenate(column) for column in zip(*parts, strict=True))
    ends = np.searchsorted(image, np.arange(images), "right").tolist()
    starts = [0, *ends][:-1]
    return [(number[a:b], places[a:b]) for a, b in zip(starts, ends, strict=True)]


def _spans(affines: Floats, size: Size, margins: Floats | None = None) -> Spans:
    """Return the lowest and the highest x and y of each image after its affine, (n, 2) each.

    With ``margins`` (n, 2), of the image and so many of its px around it.
    """
    corners = np.array([(0, 0), (size.width, 0), size, (0, size.height)], np.float64)
    if margins is None:
        corners = np.broadcast_to(corners, (len(affines), 4, 2))
    else:
        corners = corners + margins[:, None] * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    reached = hulls(_applied(affines, corners))
    return reached[:, :2], reached[:, 2:]


def _applied(affines: Floats, places: Floats) -> Floats:
    """Return (n, k, 2) places after one affine each, (n, 6)."""
    a, b, c, d, e, f = (column[:, None] for column in affines.T)
    x, y = places[..., 0], places[..., 1]
    return np.stack([a * x + b * y + c, d * x + e * y + f], axis=-1)
