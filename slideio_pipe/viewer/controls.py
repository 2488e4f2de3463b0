"""The controls of an augmentation, and the draws that their values mean.

A panel has controls; from their values it makes a ``Draw``, and from a seed it draws values. ``AdjustPanel`` has
stains, colours, turn, mirror and scale; ``transform_controls.py`` makes a panel from any transform.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from slideio_pipe.augment.build_draw import build_draw
from slideio_pipe.augment.draw import Draw, seeded
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Size
from slideio_pipe.slides.view import SlideView

Values = dict[str, float]


@dataclass(frozen=True, slots=True)
class Control:
    """One slider, switch or choice.

    Attributes
    ----------
    id : str
        Its key among the values.
    group, label, unit : str
        What the page writes.
    low, high : float
        The range of its values; 0 and 1 of a switch.
    neutral : float
        The value that changes nothing, or the middle of the range.
    kind : {"range", "switch", "choice"}
        A choice has whole numbers.
    """

    id: str
    group: str
    label: str
    low: float
    high: float
    neutral: float
    unit: str = ""
    kind: str = "range"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    def checked(self, value: Any) -> float:
        """Return a value within the range; raise ConfigError if it is no number."""
        if isinstance(value, bool | int | float) and value == value:
            return min(self.high, max(self.low, float(value)))
        raise ConfigError(f"{self.label}: {value!r} is no number", remedy="reload the page")


@dataclass(frozen=True, slots=True)
class Drawn:
    """A draw, and the values of the controls that mean it."""

    draw: Draw
    values: Values
    python: str  # what makes its view, after "slide."


class Panel(Protocol):
    """The controls of one augmentation."""

    @property
    def controls(self) -> tuple[Control, ...]: ...
    @property
    def notes(self) -> list[str]: ...
    def of_values(self, view: SlideView, values: Mapping[str, Any]) -> Drawn:
        """Return the draw with these values; a control that is left out is neutral."""

    def of_seed(self, view: SlideView, seed: int, epoch: int) -> Drawn:
        """Return the draw of a seed and an epoch."""


def checked_values(controls: tuple[Control, ...], values: Mapping[str, Any]) -> Values:
    """Return a value within its range for every control; unknown ones are ignored."""
    return {each.id: each.checked(values.get(each.id, each.neutral)) for each in controls}


def mpp_argument(view: SlideView) -> str:
    """Return the argument ``mpp`` that makes a view, as Python; "" for level 0 as stored."""
    if view.choice.level == 0 and not view.choice.resampled:
        return ""
    down, own = view.downsample, view.slide.mpp
    return "" if own is None else f"mpp=({down[0] * own.x!r}, {down[1] * own.y!r})"


# Range of each slider, and within it the range that "draw again" draws from.
_ADJUSTED: tuple[tuple[Control, tuple[float, float]], ...] = (
    (Control("haematoxylin", "Stain", "Haematoxylin", 0.2, 2.5, 1.0, "×"), (0.7, 1.4)),
    (Control("eosin", "Stain", "Eosin", 0.2, 2.5, 1.0, "×"), (0.7, 1.4)),
    (Control("residual", "Stain", "Rest of the colour", 0.2, 2.5, 1.0, "×"), (0.9, 1.1)),
    (Control("brightness", "Colour", "Brightness", 0.5, 1.5, 1.0, "×"), (0.9, 1.1)),
    (Control("contrast", "Colour", "Contrast", 0.5, 1.5, 1.0, "×"), (0.9, 1.1)),
    (Control("gamma", "Colour", "Gamma", 0.5, 2.0, 1.0), (1.0, 1.0)),
    (Control("saturation", "Colour", "Saturation", 0.0, 2.0, 1.0, "×"), (0.8, 1.2)),
    (Control("hue", "Colour", "Hue", -0.25, 0.25, 0.0, "turns"), (-0.03, 0.03)),
    (Control("turn", "Geometry", "Turn", -180.0, 180.0, 0.0, "°"), (-180.0, 180.0)),
    (Control("scale", "Geometry", "Scale", 0.5, 2.0, 1.0, "×"), (0.9, 1.1)),
    (Control("mirror", "Geometry", "Mirror", 0.0, 1.0, 0.0, kind="switch"), (0.0, 1.0)),
)


class AdjustPanel:
    """Stains, colours, turn, mirror and scale: the values of ``build_draw``.

    Examples
    --------
    >>> import numpy as np
    >>> from slideio_pipe import open_slide
    >>> view = open_slide(np.zeros((30, 40, 3), np.uint8)).view()
    >>> drawn = AdjustPanel().of_values(view, {"eosin": 1.25, "turn": 90})
    >>> drawn.draw.summary(), drawn.python
    ('turned 90°, stain', 'view().adjusted(eosin=1.25, turn=90.0)')
    """

    controls = tuple(control for control, _ in _ADJUSTED)
    notes: list[str] = []  # noqa: RUF012  # nothing to say, ever

    def of_values(self, view: SlideView, values: Mapping[str, Any]) -> Drawn:
        """Return the draw with these values."""
        given = checked_values(self.controls, values)
        changed: dict[str, Any] = {
            each.id: bool(given[each.id]) if each.kind == "switch" else round(given[each.id], 6)
            for each in self.controls
            if given[each.id] != each.neutral
        }
        draw = build_draw(Size(*view.plain_size), slide=view.slide.name, **changed)
        words = ", ".join(f"{name}={value!r}" for name, value in changed.items())
        return Drawn(draw, given, f"view({mpp_argument(view)})" + (f".adjusted({words})" if words else ""))

    def of_seed(self, view: SlideView, seed: int, epoch: int) -> Drawn:
        """Return the draw of random values near the neutral ones."""
        rng = seeded(seed, epoch, view.slide.name, None)
        numbers = rng.random(len(_ADJUSTED)).tolist()
        values = {}
        for (control, (low, high)), number in zip(_ADJUSTED, numbers, strict=True):
            value = low + (high - low) * number
            values[control.id] = float(round(value)) if control.kind == "switch" else round(value, 3)
        return self.of_values(view, values)
