"""Map scores to colours: a perceptually uniform map, and a scale with round numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from slideio_pipe.images import picture

# "inferno" of S. van der Walt and N. Smith (https://bids.github.io/colormap): (256, 3) RGB.
_INFERNO = cv2.applyColorMap(np.arange(256, dtype=np.uint8), cv2.COLORMAP_INFERNO).reshape(256, 3)[:, ::-1]
# Its first colours are skipped: black over tissue looks like ink.
_FIRST = 56
_INK, _PAPER = (40, 40, 40), (255, 255, 255)
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

    def bar(self, height: int) -> Image.Image:
        """Return a vertical colour bar with its numbers."""
        font, line = ImageFont.load_default(14), 20
        texts = [self.name.replace("probability", "probability of"), *([self.unit] if self.unit else [])]
        texts = [picture.drawable(word) for word in texts]
        draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
        labels = [self.text(tick) for tick in self.ticks]
        width = round(
            max([40 + max(draw.textlength(text, font) for text in labels)] + [draw.textlength(w, font) for w in texts])
        )
        sheet = Image.new("RGB", (width + 4, height), _PAPER)
        draw = ImageDraw.Draw(sheet)
        for number, word in enumerate(texts):
            draw.text((0, number * line), word, _INK, font)
        top, bottom = len(texts) * line + 12, height - 12
        ramp = _MAP[np.linspace(255, 0, bottom - top).round().astype(np.int64)]
        sheet.paste(Image.fromarray(np.repeat(ramp[:, None], 18, 1)), (0, top))
        for tick, label in zip(self.ticks, labels, strict=True):
            y = bottom - 1 - float(self.position([tick])[0]) * (bottom - top - 1)
            draw.line((18, y, 23, y), _INK)
            draw.text((28, y - 8), label, _INK, font)
        return sheet


def _map() -> NDArray[np.uint8]:
    """Return 256 colours, evenly spaced over those that are used."""
    positions = np.linspace(_FIRST, 255, 256)
    bands = [np.interp(positions, np.arange(256), band) for band in _INFERNO.T]
    return np.asarray(np.rint(np.stack(bands, 1)), np.uint8)


_MAP = _map()
