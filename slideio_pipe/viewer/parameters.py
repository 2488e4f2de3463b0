"""What the random numbers of each transform mean: names, ranges and units, in the order in which they are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from slideio_pipe.augment.transform_base import OurTransform

Range = tuple[float, float]


class Parameter(NamedTuple):
    """What a number means: a name, and the range that 0 to 1 stands for."""

    label: str
    span: Callable[[Any], Range] | None = None  # of the transform; None: it is not shown
    unit: str = ""
    switch: bool = False  # below a half is yes


def _attribute(name: str, place: Any = None, *, by: float = 1.0, plus: float = 0.0) -> Callable[[Any], Range]:
    def span(leaf: Any) -> Range:
        values = getattr(leaf, name)
        low, high = values if place is None else values[place]
        return float(low) * by + plus, float(high) * by + plus

    return span


def _unit(_: Any) -> Range:
    return 0.0, 1.0


_HIDDEN = Parameter("")
_STAINS = ("Haematoxylin", "Eosin", "Third stain")
_LAB = ("lightness", "green to red", "blue to yellow")
_SIDES = ("to the right", "down")


def _shifts(leaf: Any) -> list[Parameter]:
    """Return the shift of ``A.Affine``: as fractions, or as whole px, which have no control."""
    if leaf.translate_percent is None:
        return [_HIDDEN, _HIDDEN]
    return [
        Parameter(f"Shift {side}", _attribute("translate_percent", axis))
        for side, axis in zip(_SIDES, "xy", strict=True)
    ]


def _affine(leaf: Any) -> list[Parameter]:
    ways = zip(("along x", "along y"), "xy", strict=True)
    spans = [(way, axis) for way, axis in ways]
    return [
        *_shifts(leaf),
        *(Parameter(f"Shear {way}", _attribute("shear", axis), "°") for way, axis in spans),
        *(Parameter(f"Scale {way}", _attribute("scale", axis), "×") for way, axis in spans),
        Parameter("Turn", _attribute("rotate"), "°"),
    ]


_MEANINGS: Mapping[str, Callable[[Any], list[Parameter]]] = {
    "StainJitter": lambda leaf: [
        *(Parameter(stain, _attribute("alpha"), "×") for stain in _STAINS),
        *(Parameter(f"{stain}, added", _attribute("beta")) for stain in _STAINS),
    ],
    "ColorJitter": lambda leaf: [
        *[_HIDDEN] * 4,
        *(Parameter(name.capitalize(), _attribute(name), "×") for name in ("brightness", "contrast", "saturation")),
        Parameter("Hue", _attribute("hue"), "turns"),
    ],
    "RandStainNA": lambda leaf: [
        Parameter(f"{what} of {channel}", _unit) for what in ("Mean", "Spread") for channel in _LAB
    ],
    "GaussianNoise": lambda leaf: [Parameter("Strength", _attribute("sigma"), "levels"), _HIDDEN],
    "RandomAffine": lambda leaf: [
        Parameter("Mirror", _unit if leaf.flip else None, switch=True),
        Parameter("Shear", _attribute("shear"), "°"),
        Parameter("Scale", _attribute("scale"), "×"),
        Parameter("Turn", _attribute("rotate"), "°"),
        *(Parameter(f"Shift {side}", _attribute("translate")) for side in _SIDES),
    ],
    "Rotate90": lambda leaf: [Parameter("Quarter turns", _unit)],
    "Flip": lambda leaf: [
        Parameter("Mirror left-right", _unit if leaf.horizontal else None, switch=True),
        Parameter("Mirror top-bottom", _unit if leaf.vertical else None, switch=True),
    ],
    "A.Flip": lambda leaf: [Parameter("Way", _unit)],
    "A.RandomRotate90": lambda leaf: [Parameter("Quarter turns", _unit)],
    "A.Rotate": lambda leaf: [Parameter("Turn", _attribute("limit"), "°")],
    "A.Affine": _affine,
    "A.RandomScale": lambda leaf: [Parameter("Scale", _attribute("scale_limit"), "×")],
    "A.RandomBrightnessContrast": lambda leaf: [
        Parameter("Contrast", _attribute("contrast_limit", plus=1.0), "×"),
        Parameter("Brightness, added", _attribute("brightness_limit")),
    ],
    "A.RandomGamma": lambda leaf: [Parameter("Gamma", _attribute("gamma_limit", by=0.01), "×")],
    "A.HueSaturationValue": lambda leaf: [
        Parameter("Hue", _attribute("hue_shift_limit", by=1 / 180), "turns"),
        Parameter("Saturation, added", _attribute("sat_shift_limit", by=1 / 255)),
        Parameter("Value, added", _attribute("val_shift_limit", by=1 / 255)),
    ],
    "A.HEDShift": lambda leaf: [
        Parameter(f"{stain}, shifted", _attribute(f"{letter}_shift_limit"))
        for stain, letter in zip(_STAINS, "hed", strict=True)
    ],
    "A.GaussNoise": lambda leaf: [Parameter("Variance", _attribute("var_limit")), _HIDDEN],
}


def meanings(leaf: Any, count: int) -> list[Parameter]:
    """Return what each of the ``count`` numbers of a transform means; those of unknown ones are shown from 0 to 1."""
    name = type(leaf).__name__
    key = name if isinstance(leaf, OurTransform) else f"A.{name}"
    known = _MEANINGS[key](leaf) if key in _MEANINGS else []
    if len(known) == count:
        return known
    return [Parameter(f"Number {place}", _unit) for place in range(1, count + 1)]
