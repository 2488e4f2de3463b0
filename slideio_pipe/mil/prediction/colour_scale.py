"""Map scores to colours: a perceptually uniform map, and a scale with round numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from slideio_pipe.images.lettering import INK, LEAST_PX, PAPER, drawable, font, text_width

# "inferno" of S. van der Walt and N. Smith (https://bids.github.io/colormap): (256, 3) RGB.
_INFERNO = cv2.applyColorMap(np.arange(256, dtype=np.uint8), cv2.COLORMAP_INFERNO).reshape(256, 3)[:, ::-1]
# Its first colours are skipped: black over tissue looks like ink.
_FIRST = 56
# Opacity of the colours over tissue, for the lowest and the highest score: tissue stays visible.
FAINT, OPAQUE = 0.5, 0.65
# The colours of attention, which begin at its mean, are as opaque as they get from this place of the scale.
FULL_FROM = 0.3
_ROUND = (1.0, 2.0, 5.0)
# A scale of attention ends at least at this multiple of the mean, so that noise about the mean stays dark.
_MIN_TOP = 4.0


@dataclass(frozen=True, slots=True)
class ColourScale:
    """The colours of scores from ``low`` to ``high``; scores beyond have the colours of the ends."""

    name: str  # name of the scores, at the colour bar and in QuPath
    low: float
    high: float
    ticks: tuple[float, ...]  # ascending, within low and high
    logarithmic: bool = False

    @classmethod
    def of_attention(cls, times_mean: NDArray[np.float64]) -> ColourScale:
        """Return the scale of attention as multiples of its mean over the slide.

        Logarithmic, from the mean upwards. Shares themselves are not useful: among 5,000 tiles the mean is 0.0002, and
        a few tiles have a hundred times that. Ranks would colour a slide without outstanding tiles as brightly as one
        with a lesion; multiples of the mean do not, and can be compared between slides.
        """
        most = float(times_mean.max()) if len(times_mean) else 1.0
        high = max(_MIN_TOP, most)
        ticks = [step * 10**power for power in range(math.ceil(math.log10(high)) + 1) for step in _ROUND]
        shown = [tick for tick in ticks if tick <= high * 1.0001]
        if len(shown) > 6:  # 1, 10, 100, …
            shown = [tick for tick in shown if math.log10(tick).is_integer()]
        return cls("attention", 1.0, high, tuple(shown), logarithmic=True)

    @classmethod
    def of_probability(cls, name: str) -> ColourScale:
        """Return the scale from 0 to 1."""
        return cls(name, 0.0, 1.0, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0))

    @classmethod
    def of_numbers(cls, name: str, values: NDArray[np.float64]) -> ColourScale:
        """Return the scale of unbounded numbers: from their 1st to their 99th percentile."""
        low, high = (float(v) for v in np.percentile(values, [1, 99])) if len(values) else (0.0, 1.0)
        if not high > low:
            low, high = low - 0.5, low + 0.5
        return cls(name, low, high, tuple(np.linspace(low, high, 5).tolist()))

    def position(self, values: ArrayLike) -> NDArray[np.float64]:
        """Return the positions of scores on the scale, 0 to 1."""
        found = np.asarray(values, np.float64)
        low, high = self.low, self.high
        if self.logarithmic:
            found, low, high = np.log(np.maximum(found, 1e-300)), math.log(low), math.log(high)
        return np.clip((found - low) / (high - low), 0, 1)

    def colours(self, values: ArrayLike) -> NDArray[np.uint8]:
        """Return the (…, 3) uint8 RGB of scores."""
        found: NDArray[np.uint8] = _MAP[np.rint(self.position(values) * 255).astype(np.int64)]
        return found

    def text(self, value: float) -> str:
        """Return a score as text.

        >>> ColourScale.of_attention(np.array([0.1, 23.0])).text(20.0)
        '20x'
        """
        if self.logarithmic:
            return f"{value:.3g}x"
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"

    @property
    def unit(self) -> str:
        """The unit of the numbers, for the colour bar."""
        return "times the mean" if self.logarithmic else ""

    def bins(self) -> list[tuple[str, float, float]]:
        """Return (name, from, below) of the ranges between ticks, ascending; the outer ones are unbounded."""
        edges = list(self.ticks)
        if self.logarithmic:
            names = [f"below {self.text(edges[0])}"]
            names += [f"{self.text(a)} to {self.text(b)}" for a, b in pairwise(edges)]
            names += [f"above {self.text(edges[-1])}"]
            limits = [-math.inf, *edges, math.inf]
        else:
            names = [f"{self.text(a)} to {self.text(b)}" for a, b in pairwise(edges)]
            limits = [-math.inf, *edges[1:-1], math.inf]
        return [(f"{self.name} {name}", *ends) for name, ends in zip(names, pairwise(limits), strict=True)]

    def bin_of(self, values: ArrayLike) -> NDArray[np.int64]:
        """Return the number of each score's range."""
        inner = [low for _, low, _ in self.bins()[1:]]
        found: NDArray[np.int64] = np.digitize(np.asarray(values, np.float64), inner)
        return found

    def bin_colour(self, number: int) -> tuple[int, int, int]:
        """Return the colour of the middle of a range."""
        _, low, high = self.bins()[number]
        ends = self.position([max(low, self.low), min(high, self.high)])
        red, green, blue = _MAP[round(float(ends.mean()) * 255)].tolist()
        return red, green, blue

    def shown(self, value: float) -> str:
        """Return a score as text for pictures.

        >>> ColourScale.of_attention(np.array([0.1, 23.0])).shown(20.0)
        '20×'
        """
        return self.text(value).replace("x", "×") if self.logarithmic else self.text(value)

    def bar(self, height: int, px: int = LEAST_PX) -> Image.Image:
        """Return a vertical colour bar with its numbers, in text of ``px``."""
        line, wide, gap = round(px * 1.4), round(px * 1.3), round(px * 0.9)
        texts = [self.name.replace("probability", "probability of"), *([self.unit] if self.unit else [])]
        rest = ["below: the", "slide alone"] if self.logarithmic else []
        labels = [self.shown(tick) for tick in self.ticks]
        widths = [wide + round(px * 0.8) + max(text_width(label, px) for label in labels)]
        widths += [text_width(drawable(word), px) for word in [*texts, *rest]]
        sheet = Image.new("RGB", (max(widths) + 4, height), PAPER)
        draw = ImageDraw.Draw(sheet)
        for number, word in enumerate(texts):
            draw.text((0, number * line), drawable(word), INK, font(px))
        top, bottom = len(texts) * line + gap, height - gap - len(rest) * line
        ramp = self._over_white(np.linspace(1, 0, bottom - top))
        sheet.paste(Image.fromarray(np.repeat(ramp[:, None], wide, 1)), (0, top))
        for tick, label in zip(self.ticks, labels, strict=True):
            y = bottom - 1 - float(self.position([tick])[0]) * (bottom - top - 1)
            draw.line((wide, y, wide + round(px * 0.4), y), INK, max(1, px // 14))
            draw.text((wide + round(px * 0.7), y), label, INK, font(px), anchor="lm")
        for number, word in enumerate(rest):
            draw.text((0, bottom + round(gap * 0.6) + number * line), word, INK, font(px))
        return sheet

    def opacity(self, values: ArrayLike) -> NDArray[np.float32]:
        """Return how much of the colour is seen over tissue, 0 to 1; nothing of attention at or below its mean."""
        place = self.position(values)
        if self.logarithmic:
            return np.asarray(OPAQUE * np.minimum(1.0, place / FULL_FROM), np.float32)
        return np.asarray(FAINT + (OPAQUE - FAINT) * place, np.float32)

    def frames(self, values: ArrayLike) -> NDArray[np.uint8]:
        """Return the (…, 3) uint8 RGB of scores as the colour bar shows them: attention below its mean is white."""
        return self._over_white(self.position(values))

    def _over_white(self, places: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Return the colours of places on the scale as they are over white."""
        colours = _MAP[np.rint(places * 255).astype(np.int64)].astype(np.float64)
        if self.logarithmic:
            seen = np.minimum(1.0, places / FULL_FROM)[..., None]
            colours = colours * seen + 255 * (1 - seen)
        return np.rint(colours).astype(np.uint8)


def _map() -> NDArray[np.uint8]:
    """Return 256 colours, evenly spaced over those that are used."""
    positions = np.linspace(_FIRST, 255, 256)
    bands = [np.interp(positions, np.arange(256), band) for band in _INFERNO.T]
    return np.asarray(np.rint(np.stack(bands, 1)), np.uint8)


_MAP = _map()
