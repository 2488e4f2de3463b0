"""Controls made from a transform: one per random number that it draws, within the range that it draws from.

A transform takes its numbers from a generator. Here the generator records them, and a second one returns numbers that
were set by hand, so the draw of a seed is exactly that of a training, and every slider moves one number of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.augment import compose
from slideio_pipe.augment.albumentations import verdict
from slideio_pipe.augment.draw import Draw, seeded
from slideio_pipe.augment.ending import split_end
from slideio_pipe.augment.slide_colour import SlideColour
from slideio_pipe.augment.transform_base import Context
from slideio_pipe.errors import SlideioPipeError
from slideio_pipe.geometry import Size
from slideio_pipe.slides.view import SlideView
from slideio_pipe.viewer.controls import Control, Drawn, Values, checked_values, mpp_argument
from slideio_pipe.viewer.parameters import Parameter, meanings

# Normal numbers are shown up to this many standard deviations.
SIGMAS = 3.0
# Larger whole numbers are seeds, which no slider shows.
MOST_CHOICES = 12


class Number(NamedTuple):
    """One random number: how it was asked for, and its value as the generator gave it."""

    kind: str  # "unit", "normal", "whole" or "order"
    value: float
    choices: int = 0  # of a whole number


class Recorder:
    """A generator whose numbers are noted, or set before they are asked for."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self.noted: list[Number] = []
        self.given: list[float] = []  # numbers to return first

    def _numbers(self, kind: str, drawn: Any, choices: int = 0) -> Any:
        values = np.atleast_1d(np.asarray(drawn, np.float64)).copy()
        taken = min(len(values), len(self.given))
        values[:taken] = self.given[:taken]
        del self.given[:taken]
        self.noted += [Number(kind, float(value), choices) for value in values]
        return float(values[0]) if np.ndim(drawn) == 0 else values

    def random(self, size: int | None = None) -> Any:
        """Return numbers from 0 to 1."""
        return self._numbers("unit", self._rng.random(size))

    def standard_normal(self, size: int | None = None) -> Any:
        """Return normal numbers."""
        return self._numbers("normal", self._rng.standard_normal(size))

    def integers(self, high: int) -> int:
        """Return a whole number below ``high``."""
        return int(self._numbers("whole", self._rng.integers(high), high))

    def permutation(self, count: int) -> NDArray[np.int64]:
        """Return the numbers below ``count`` in random order."""
        return np.asarray(self._numbers("order", self._rng.permutation(count))).astype(np.int64)

    def choice(self, *arguments: Any, **named: Any) -> Any:
        """Return what a composition chooses."""
        return self._rng.choice(*arguments, **named)


class _RecordedDraw(compose.DrawState):
    """A draw that notes which transforms ran, each with its numbers."""

    def __init__(self, recorder: Recorder, size: Size, context: Context) -> None:
        super().__init__(recorder, size, context)  # type: ignore[arg-type]  # it has the methods that are used
        self.recorder, self.ran = recorder, []  # type: tuple[Recorder, list[tuple[Any, list[Number]]]]

    def run(self, transform: Any) -> None:
        self.recorder.noted = []
        super().run(transform)
        self.ran.append((transform, [*self.recorder.noted]))


@dataclass(frozen=True)
class _Part:
    """One transform of a composition with its controls."""

    leaf: Any
    switch: Control
    numbers: tuple[Number, ...]  # as drawn once: their kinds
    controls: tuple[Control | None, ...]  # one per number

    def numbers_of(self, values: Values, hidden: Mapping[str, float]) -> list[float]:
        """Return the numbers that the generator returns for values of the controls."""
        found = []
        for number, (place, control) in zip(self.numbers, enumerate(self.controls), strict=True):
            if control is None:
                found.append(hidden.get(f"{self.switch.id}.{place}", number.value))
            elif control.kind == "switch":
                found.append(0.25 if values[control.id] >= 0.5 else 0.75)
            elif number.kind == "unit":
                width = control.high - control.low
                found.append((values[control.id] - control.low) / width if width else 0.5)
            else:
                found.append(float(round(values[control.id])) if number.kind == "whole" else values[control.id])
        return found

    def values_of(self, numbers: list[Number]) -> Values:
        """Return the values of the controls for numbers that the generator returned."""
        values = {}
        for number, control in zip(numbers, self.controls, strict=True):
            if control is None:
                continue
            if control.kind == "switch":
                values[control.id] = float(number.value < 0.5)
            elif number.kind == "unit":
                values[control.id] = control.low + (control.high - control.low) * number.value
            else:
                values[control.id] = number.value
        return values

    def hidden_of(self, numbers: list[Number]) -> dict[str, float]:
        """Return the numbers without a control."""
        return {
            f"{self.switch.id}.{place}": number.value
            for number, (place, control) in zip(numbers, enumerate(self.controls), strict=True)
            if control is None
        }


class TransformPanel:
    """The controls of a transform.

    Parameters
    ----------
    transform : an albumentationsxl transform
        Ours or albumentationsxl's own, alone or composed. A transform that cannot be drawn for a whole slide has no
        controls, and is off; ``problems`` says why.

    Examples
    --------
    >>> import albumentationsxl as A
    >>> from slideio_pipe import RandomAffine, open_slide
    >>> view = open_slide(np.zeros((30, 40, 3), np.uint8)).view()
    >>> panel = TransformPanel(A.Compose([RandomAffine(rotate=(-90, 90), flip=False)]))
    >>> [(control.label, control.low, control.high) for control in panel.controls]
    [('RandomAffine', 0.0, 1.0), ('Turn', -90.0, 90.0)]
    >>> drawn = panel.of_seed(view, seed=3, epoch=0)
    >>> drawn.draw == view.slide.view(transform=panel.transform, seed=3).draw
    True
    >>> panel.of_values(view, drawn.values).draw.affine == drawn.draw.affine
    True
    """

    def __init__(self, transform: Any) -> None:
        transform, _ = split_end(transform)  # the page shows bytes
        compose.check(transform)
        self.transform = transform
        self.problems: list[str] = []
        self._parts = tuple(self._part(number, leaf) for number, leaf in enumerate(compose.leaves(transform)))

    @property
    def controls(self) -> tuple[Control, ...]:
        """A switch for each transform, then one control for each of its numbers."""
        return tuple(
            control
            for part in self._parts
            for control in (part.switch, *(each for each in part.controls if each is not None))
        )

    @property
    def notes(self) -> list[str]:
        """What a user of the controls should know."""
        slow = [type(part.leaf).__name__ for part in self._parts if verdict(part.leaf).kind == "opaque"]
        said = [
            f"{name} runs as a whole image only: no quick preview; zoomed out, it acts on the pixels shown"
            for name in dict.fromkeys(slow)
        ]
        return [*self.problems, *said]

    def of_values(self, view: SlideView, values: Mapping[str, Any]) -> Drawn:
        """Return the draw with these values."""
        given = checked_values(self.controls, values)
        hidden = {
            key: float(value)
            for key, value in values.items()
            if key not in given and isinstance(value, int | float) and value == value
        }
        state = _RecordedDraw(Recorder(np.random.default_rng(0)), Size(*view.plain_size), self._context(view))
        for part in self._parts:
            if given[part.switch.id] >= 0.5:
                state.recorder.given = part.numbers_of(given, hidden)
                state.run(part.leaf)
        draw = self._record(state, view, 0, 0)
        known = {
            key: hidden[key] for part in self._parts for key in part.hidden_of(list(part.numbers)) if key in hidden
        }
        return Drawn(draw, given | known, f"view({mpp_argument(view)}, draw={draw.to_python()})".replace("(, ", "("))

    def of_seed(self, view: SlideView, seed: int, epoch: int) -> Drawn:
        """Return the draw that ``Slide.view`` makes of the transform with this seed and epoch."""
        rng = seeded(seed, epoch, view.slide.name, None)
        state = _RecordedDraw(Recorder(rng), Size(*view.plain_size), self._context(view))
        compose.walk(self.transform, state)
        values = {control.id: control.neutral for control in self.controls}
        for part in self._parts:
            numbers = next((noted for leaf, noted in state.ran if leaf is part.leaf), None)
            values[part.switch.id] = float(numbers is not None)
            if numbers is not None and len(numbers) == len(part.numbers):
                values |= part.values_of(numbers) | part.hidden_of(numbers)
        arguments = [mpp_argument(view), "transform=transform", f"seed={seed}", f"epoch={epoch}" if epoch else ""]
        words = ", ".join(argument for argument in arguments if argument)
        return Drawn(self._record(state, view, seed, epoch), values, f"view({words})")

    def _record(self, state: _RecordedDraw, view: SlideView, seed: int, epoch: int) -> Draw:
        return Draw(
            seed=seed, epoch=epoch, slide=view.slide.name, size=Size(*view.plain_size),
            canvas=state.canvas, affine=state.affine(), operations=tuple(state.operations),
        )  # fmt: skip

    def _context(self, view: SlideView) -> Context:
        return Context(slide_wide=True, basis=None, colour=compose.measured(view.slide, self.transform))

    def _part(self, number: int, leaf: Any) -> _Part:
        name, key = type(leaf).__name__, str(number)
        recorder = Recorder(np.random.default_rng(0))
        try:
            example = Context(slide_wide=True, basis=None, colour=_EXAMPLE)
            compose.drawn_steps(leaf, recorder, Size(1000, 1000), example)  # type: ignore[arg-type]
        except SlideioPipeError as error:
            self.problems.append(str(error))
            recorder.noted = []
        numbers = tuple(recorder.noted)
        meant = meanings(leaf, len(numbers))
        controls = tuple(
            _control(f"{key}.{place}", name, leaf, drawn, parameter)
            for place, (drawn, parameter) in enumerate(zip(numbers, meant, strict=True))
        )
        return _Part(leaf, Control(key, name, name, 0.0, 1.0, 0.0, kind="switch"), numbers, controls)


_EXAMPLE = SlideColour(
    basis=((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78)),
    lab_mean=(60.0, 20.0, -10.0),
    lab_std=(14.0, 8.0, 6.0),
)


def _control(key: str, group: str, leaf: Any, number: Number, parameter: Parameter) -> Control | None:
    """Return the control of a number; None if it has none."""
    if parameter.span is None or number.kind == "order" or number.choices > MOST_CHOICES:
        return None
    low, high = parameter.span(leaf)
    if parameter.switch:
        return Control(key, group, parameter.label, 0.0, 1.0, 0.0, kind="switch")
    if number.kind == "whole":
        return Control(key, group, parameter.label, 0.0, number.choices - 1.0, 0.0, parameter.unit, "choice")
    if number.kind == "normal":
        return Control(key, group, parameter.label, -SIGMAS, SIGMAS, 0.0, "σ")
    if low == high:  # nothing is random
        return None
    wanted = 1.0 if parameter.unit == "×" else 0.0
    return Control(key, group, parameter.label, low, high, min(high, max(low, wanted)), parameter.unit)
