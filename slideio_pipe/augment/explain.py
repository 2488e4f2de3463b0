"""Explain a transform: where each step runs, why, and its cost, as a table for terminals and notebooks."""

from __future__ import annotations

import html
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import albumentationsxl as A
import numpy as np
from albumentationsxl.core.composition import BaseCompose
from rich.console import Console
from rich.table import Table

from slideio_pipe.augment.albumentations import name_of, verdict
from slideio_pipe.augment.ending import ending_steps
from slideio_pipe.augment.own_functions import LiveFunction
from slideio_pipe.augment.own_transforms import FromNumpy
from slideio_pipe.augment.replay import Replay
from slideio_pipe.compiled.library import load
from slideio_pipe.errors import ConfigError

# CPU milliseconds per 256-px tile on one core, as tests/benchmarks/explain_costs.py prints them, with the compiled
# programs; other machines differ.
# StainNormalize and HEDShift are the operation of StainJitter, RandStainNA that of Lab, RandomGamma a table.
_MS_PER_TILE = {
    "geometry": 0.35,
    "StainJitter": 0.25,
    "StainNormalize": 0.25,
    "HEDShift": 0.25,
    "RandStainNA": 1.2,
    "ColorJitter": 0.15,
    "GaussianNoise": 1.7,
    "GaussNoise": 1.7,
    "HueSaturationValue": 0.1,
    "RandomBrightnessContrast": 0.05,
    "RandomGamma": 0.1,
    # As libvips graphs:
    "Blur": 1.3,
    "MotionBlur": 1.4,
    "MedianBlur": 9.6,
    "GaussianBlur": 2.1,
    "Sharpen": 2.6,
    "CoarseDropout": 5.8,
    "ChannelDropout": 1.5,
}
_LAZY_MS = 2.1  # any other libvips graph: median of the above
# The transform whose cost is that of an operation.
_COSTS_AS = {
    "tone": "RandomBrightnessContrast",
    "saturation": "HueSaturationValue",
    "hsv": "HueSaturationValue",
    "stain": "StainJitter",
    "lab": "RandStainNA",
    "noise": "GaussianNoise",
}
_PIXELS, _FLOAT = "pixels: decoded tiles, device or lazy graph", "float32 inside, one rounding"
_OWN = "your function, on the CPU"
_NOT_COMPILED = frozenset({"GaussianNoise", "GaussNoise"})
_TURNS = frozenset({"Affine", "Rotate", "RandomAffine"})
_EXPENSIVE_MS = 5.0


@dataclass(frozen=True, slots=True)
class ExplainedStep:
    """One transform of a composition."""

    name: str
    p: float  # probability, compositions included
    runs: str  # where
    why: str
    dtype: str
    ms_per_tile: float | None  # of 256 px; None when it does not run


@dataclass(frozen=True, repr=False)
class Explanation:
    """The steps of a transform in order, and warnings; can be printed and shown in notebooks."""

    steps: tuple[ExplainedStep, ...]
    warnings: tuple[str, ...]
    where: str  # name of the view, or ""

    @property
    def ms_per_tile(self) -> float:
        """Expected cost of a 256-px tile on one core, each step weighted by its probability."""
        return sum(step.p * step.ms_per_tile for step in self.steps if step.ms_per_tile is not None)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {"steps": [asdict(step) for step in self.steps], "warnings": list(self.warnings), "view": self.where}

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for step in self.steps:
            cost = "–" if step.ms_per_tile is None else f"{step.ms_per_tile:.2g}"
            yield step.name, f"{step.p:.3g}", step.runs, step.why, step.dtype, cost

    def __str__(self) -> str:
        console = Console(width=100, color_system=None)
        table = Table(title=self.where or None, title_justify="left")
        for heading in _HEADINGS:
            table.add_column(heading)
        for row in self._rows():
            table.add_row(*row)
        with console.capture() as captured:
            console.print(table)
            console.print(f"about {self.ms_per_tile:.2g} ms per 256-px tile and core")
            for warning in self.warnings:
                console.print(f"! {warning}", markup=False)
        return captured.get()

    __repr__ = __str__  # a terminal shows the table, as a notebook does

    def _repr_html_(self) -> str:
        head = "".join(f'<th style="text-align:left">{heading}</th>' for heading in _HEADINGS)
        cell = '<td style="text-align:left">'
        rows = "".join(
            "<tr>" + "".join(f"{cell}{html.escape(value)}</td>" for value in row) + "</tr>" for row in self._rows()
        )
        notes = "".join(f"<li>{html.escape(warning)}</li>" for warning in self.warnings)
        total = f"<p>about {self.ms_per_tile:.2g} ms per 256-px tile and core</p>"
        return f"<b>{html.escape(self.where)}</b><table><tr>{head}</tr>{rows}</table>{total}<ul>{notes}</ul>"


_HEADINGS = ("step", "p", "runs", "why", "dtype", "ms per tile")


def explain(transform: Any, view: object | None = None) -> Explanation:
    """Explain where each step of ``transform`` runs and why, without running it; functions of your own are timed.

    Parameters
    ----------
    transform : an albumentationsxl transform
        Ours or albumentationsxl's, alone or composed.
    view : SlideView, optional
        View to use it with; adds the level that is read.

    Raises
    ------
    ConfigError
        It is not an albumentationsxl transform.

    Examples
    --------
    >>> import albumentationsxl as A
    >>> from slideio_pipe import StainJitter
    >>> found = explain(A.Compose([StainJitter(), A.AdvancedBlur()]))
    >>> [step.runs for step in found.steps]
    ['pixels: decoded tiles, device or lazy graph', 'refused']
    >>> found.warnings[0].startswith("AdvancedBlur is refused")
    True
    """
    if not isinstance(transform, A.BasicTransform | BaseCompose):
        raise ConfigError(
            f"{type(transform).__name__}: no albumentationsxl transform", remedy="pass A.Compose([...]) or a transform"
        )
    shared = tuple(_shares(transform, 1.0))
    ends = {id(leaf) for leaf in ending_steps(transform)}
    steps = tuple(_ending_step(leaf) if id(leaf) in ends else _step(leaf, p) for leaf, p in shared)
    where = "" if view is None else repr(view)
    return Explanation(steps, tuple(_warnings(steps)), where)


def _shares(transform: Any, share: float, *, forced: bool = False) -> Iterator[tuple[Any, float]]:
    """Yield every transform inside compositions, in order, with its probability."""
    if not isinstance(transform, BaseCompose):
        yield transform, share * (1.0 if forced or transform.always_apply else float(transform.p))
        return
    parts = transform.transforms
    if isinstance(transform, A.Sequential):  # always runs
        weights = [1.0] * len(parts)
    elif isinstance(transform, A.OneOrOther):
        weights = [transform.p, *[0.0] * (len(parts) - 2), 1 - transform.p]
    else:
        share *= 1.0 if forced else float(transform.p)
        weights = [1.0] * len(parts)
        if isinstance(transform, A.OneOf | A.SomeOf):
            count = 1 if isinstance(transform, A.OneOf) else transform.n
            weights = [min(1.0, count * weight) for weight in transform.transforms_ps]
    chosen = isinstance(transform, A.OneOf | A.SomeOf | A.OneOrOther)
    for part, weight in zip(parts, weights, strict=True):
        yield from _shares(part, share * float(weight), forced=chosen)


def _ending_step(leaf: Any) -> ExplainedStep:
    """Return one of the last steps, which a stream does on the device."""
    why = "the end of the transform: a stream does it with each batch"
    return ExplainedStep(name_of(leaf), 1.0, "on the device", why, "float32 inside, one rounding", None)


def _step(leaf: Any, p: float) -> ExplainedStep:
    name, judged = name_of(leaf), verdict(leaf)
    if isinstance(leaf, FromNumpy):
        return ExplainedStep(name, p, _OWN, judged.why, "uint8", _measured_ms(leaf.live))
    if judged.kind == "refused":
        return ExplainedStep(name, p, "refused", f"{judged.why}; instead: {judged.instead}", "–", None)
    if judged.kind == "opaque":
        return ExplainedStep(name, p, "lazy libvips graph only", judged.why, "uint8", _MS_PER_TILE.get(name, _LAZY_MS))
    if isinstance(leaf, Replay) and leaf.lowered:
        return _replayed(leaf, p)
    if isinstance(leaf, A.DualTransform):
        why = judged.why or "one affine with all other geometry: pixels are sampled once"
        return ExplainedStep(name, p, "pyramid: one affine", why, "uint8", _MS_PER_TILE["geometry"])
    why = judged.why or "one formula, the same colours wherever it runs"
    if name in _NOT_COMPILED:
        why += "; no compiled form: tiles with it are made by OpenCV and NumPy"
    cost = _MS_PER_TILE.get(name, _LAZY_MS)
    return ExplainedStep(name, p, _PIXELS, why, _FLOAT, cost)


def _measured_ms(function: LiveFunction) -> float:
    """Return the time that a user's function takes for a tile of 256 px with the colours of H&E: the least of three."""
    rng = np.random.default_rng(0)
    tile = rng.normal((190, 140, 190), 25, (256, 256, 3)).clip(0, 255).astype(np.uint8)
    function(tile, 0)  # the first call also checks it
    times = []
    for seed in range(3):
        begun = time.perf_counter()
        function(tile, seed)
        times.append(1000 * (time.perf_counter() - begun))
    return min(times)


def _replayed(leaf: Replay, p: float) -> ExplainedStep:
    """Return the step of a draw that is repeated, which may move pixels, change colours, or both."""
    moves, kinds = leaf.record.moves, [each.kind for each in leaf.record.operations]
    runs = ("pyramid: one affine" + (", then pixels" if kinds else "")) if moves else _PIXELS
    cost = _MS_PER_TILE["geometry"] * moves + sum(_MS_PER_TILE[_COSTS_AS[kind]] for kind in kinds)
    return ExplainedStep("Replay", p, runs, "repeats a draw: nothing is random", _FLOAT, cost)


def _warnings(steps: tuple[ExplainedStep, ...]) -> Iterator[str]:
    for step in steps:
        if step.runs == "refused":
            yield f"{step.name} is refused: {step.why}"
        elif step.ms_per_tile is not None and step.ms_per_tile >= _EXPENSIVE_MS:
            yield f"{step.name} is expensive: about {step.ms_per_tile:.2g} ms per tile, and runs on the CPU only"
    if load() is None:
        yield "this system has no compiled tile programs (slideio-pipe doctor): costs are up to three times as high"
    turns = [step.name for step in steps if step.name in _TURNS]
    if len(turns) > 1:
        yield f"{' and '.join(turns)} both turn: one of them is enough"
    if any(step.runs == "refused" and step.name in ("Normalize", "ToDtype", "ToTensor") for step in steps):
        yield "normalisation is not the last step: run it on the device, stream(..., normalize=Normalize(...))"
    if any(step.runs.startswith("lazy") for step in steps):
        yield "a step that runs lazily only prevents the whole transform from running on the device"
    if any(step.runs == _OWN for step in steps):
        yield "a function of your own prevents the whole transform from running on the device"
