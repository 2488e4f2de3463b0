"""Which boxes and points of an image are kept, and how they are written: ``bbox_params`` and ``keypoint_params``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

from slideio_pipe.errors import ConfigError

# albumentationsxl calls the format of albumentations by its own name; both are taken.
BOX_FORMATS = ("pascal_voc", "coco", "yolo", "albumentations", "albumentationsxl")
POINT_FORMATS = ("xy", "yx")


@dataclass(frozen=True)
class BoxRules:
    """Limits and format of boxes, as albumentationsxl's ``BboxParams`` defines them.

    Parameters
    ----------
    format : {"pascal_voc", "coco", "yolo", "albumentations"}
    label_fields : tuple of str, optional
        The name of the list of labels. None: each label follows its box.
    min_area : float
        Least area inside the image, px².
    min_visibility : float
        Least fraction of a box's area that is inside the image, 0 to 1.
    min_width, min_height : float
        Least sides inside the image, px.

    Examples
    --------
    >>> BoxRules.of({"format": "coco", "min_visibility": 0.3}).min_visibility
    0.3
    """

    format: str = "pascal_voc"
    label_fields: tuple[str, ...] | None = None
    min_area: float = 0.0
    min_visibility: float = 0.0
    min_width: float = 0.0
    min_height: float = 0.0

    def __post_init__(self) -> None:
        _check_format("bbox_params", self.format, BOX_FORMATS)
        _check_fields("bbox_params", self.label_fields)
        for name in ("min_area", "min_visibility", "min_width", "min_height"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ConfigError(f"{name} of bbox_params is {value!r}", remedy="pass a number of at least 0")
        if self.min_visibility > 1:
            remedy = "pass a fraction of a box's area, 0 to 1"
            raise ConfigError(f"min_visibility of bbox_params is {self.min_visibility:g}", remedy=remedy)

    @classmethod
    def of(cls, params: Any) -> Self:
        """Return the rules in ``BboxParams``, in a dictionary of its arguments, or in rules."""
        return params if isinstance(params, cls) else cls(**_values(cls, "bbox_params", params))

    @property
    def normalized(self) -> bool:
        """Whether coordinates are fractions of the image's sides."""
        return self.format in ("yolo", "albumentations", "albumentationsxl")


@dataclass(frozen=True)
class PointRules:
    """Format of points, and whether those outside the image are kept: albumentationsxl's ``KeypointParams``.

    Parameters
    ----------
    format : {"xy", "yx"}
        Annotated points have neither an angle nor a scale.
    label_fields : tuple of str, optional
        The name of the list of labels. None: points are written without their labels.
    remove_invisible : bool
        Whether points outside the image are left out.

    Examples
    --------
    >>> PointRules.of({"format": "yx"}).remove_invisible
    True
    """

    format: str = "xy"
    label_fields: tuple[str, ...] | None = None
    remove_invisible: bool = True

    def __post_init__(self) -> None:
        if self.format in ("xya", "xys", "xyas", "xysa"):
            reason = f'keypoint_params has the format "{self.format}"; annotated points have no angle and no scale'
            raise ConfigError(reason, remedy='give it the format "xy"')
        _check_format("keypoint_params", self.format, POINT_FORMATS)
        _check_fields("keypoint_params", self.label_fields)

    @classmethod
    def of(cls, params: Any) -> Self:
        """Return the rules in ``KeypointParams``, in a dictionary of its arguments, or in rules."""
        return params if isinstance(params, cls) else cls(**_values(cls, "keypoint_params", params))


@dataclass(frozen=True)
class TargetRules:
    """The rules of boxes and of points; None: not given.

    Examples
    --------
    >>> import albumentationsxl as A
    >>> transform = A.Compose([A.HorizontalFlip()], bbox_params=A.BboxParams("coco", ["kind"]))
    >>> rules = TargetRules.of(*target_params(transform))
    >>> rules.boxes.format, rules.points
    ('coco', None)
    """

    boxes: BoxRules | None = None
    points: PointRules | None = None

    def __post_init__(self) -> None:
        shared = set(self.boxes.label_fields or ()) if self.boxes else set()
        shared &= set(self.points.label_fields or ()) if self.points else set()
        if shared:
            reason = f"bbox_params and keypoint_params both write labels to {min(shared)!r}"
            raise ConfigError(reason, remedy="name two label_fields")

    @classmethod
    def of(cls, bbox_params: Any = None, keypoint_params: Any = None) -> Self:
        """Return the rules in both parameters of a ``Compose``."""
        return cls(
            None if bbox_params is None else BoxRules.of(bbox_params),
            None if keypoint_params is None else PointRules.of(keypoint_params),
        )

    def otherwise(self, other: TargetRules) -> TargetRules:
        """Return these rules, and those of ``other`` where there are none."""
        return TargetRules(self.boxes or other.boxes, self.points or other.points)


class TargetParams(NamedTuple):
    """The arguments of ``bbox_params`` and ``keypoint_params``, unchecked: they matter only where targets are."""

    bbox_params: Mapping[str, Any] | None = None
    keypoint_params: Mapping[str, Any] | None = None


def target_params(transform: Any) -> TargetParams:
    """Return the parameters of a ``Compose``; those of a ``Compose`` inside it do not count."""
    found = getattr(transform, "processors", None) or {}
    params = (getattr(found.get(name), "params", None) for name in ("bboxes", "keypoints"))
    return TargetParams(*(None if each is None else each._to_dict() for each in params))


def _values(kind: Any, name: str, params: Any) -> dict[str, Any]:
    """Return the arguments of a record of rules; parameters of albumentationsxl that have no meaning here are left."""
    known = [field.name for field in fields(kind)]
    # A drawn image is one affine of the slide: nothing is cut between its transforms.
    ignored = ("check_each_transform", "angle_in_degrees")
    if isinstance(params, Mapping):
        unknown = [key for key in params if key not in (*known, *ignored)]
        if unknown:
            raise ConfigError(f"{name} has no {unknown[0]!r}", remedy=f"there are: {', '.join(known)}")
        if "format" not in params:
            raise ConfigError(f"{name} has no format", remedy='pass a dictionary with "format", as to albumentationsxl')
        values = {key: params[key] for key in known if key in params}
    elif all(hasattr(params, key) for key in known):
        values = {key: getattr(params, key) for key in known}
    else:
        raise ConfigError(f"{name} is a {type(params).__name__}", remedy="pass what A.Compose takes, or a dictionary")
    if values.get("label_fields") is not None:
        names = values["label_fields"]
        values["label_fields"] = (names,) if isinstance(names, str) else tuple(names)
    return values


def _check_format(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name} has the format {value!r}", remedy=f"pass one of {', '.join(known)}")


def _check_fields(name: str, names: tuple[str, ...] | None) -> None:
    if names is not None and len(names) != 1:
        reason = f"{name} has {len(names)} label_fields; an annotation has one label"
        raise ConfigError(reason, remedy='pass label_fields=["labels"]')
