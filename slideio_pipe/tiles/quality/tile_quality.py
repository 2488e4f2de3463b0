"""Numbers of the quality of tiles: focus, pen, folds, bubbles and white, each (N,) float32."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slideio_pipe.errors import ConfigError

# µm per px at which focus is measured: blur that hides chromatin and outlines of nuclei is wider than 1 µm.
FOCUS_MPP = 1.0
# µm per px of the masks of the others: strokes, folds and bubbles are wider than 20 µm.
MASK_MPP = 8.0


@dataclass(frozen=True, eq=False)
class TileQuality:
    """The quality of the tiles of a bag, in its order; NaN where a number was not measured.

    Attributes
    ----------
    focus : (N,) float32
        Variance of the Laplacian of the grey values (0 to 255) at 1 µm per px: low where a tile is out of focus, and
        where it is empty. It depends on stain and scanner: choose a limit from its histogram in your cohort.
    pen : (N,) float32
        Fraction of the tile under red, green, blue or black ink, 0 to 1.
    fold : (N,) float32
        Fraction of folded tissue: denser than the slide's tissue by the factor of a second layer.
    bubble : (N,) float32
        Fraction of air bubbles: grey rims and what they enclose.
    white : (N,) float32
        Fraction of glass: as bright as the slide's own, and without colour.

    Examples
    --------
    >>> quality = TileQuality.of(focus=[90.0, 5.0], pen=[0.0, 0.4])
    >>> quality
    TileQuality(2 tiles: focus 5 to 90, pen 0 to 0.4)
    """

    focus: NDArray[np.float32]
    pen: NDArray[np.float32]
    fold: NDArray[np.float32]
    bubble: NDArray[np.float32]
    white: NDArray[np.float32]

    def __post_init__(self) -> None:
        lengths = {len(values) for values in self.columns.values()}
        if len(lengths) > 1 or any(values.ndim != 1 for values in self.columns.values()):
            raise ConfigError("quality of different numbers of tiles", remedy="pass one value per tile and name")
        for values in self.columns.values():
            values.flags.writeable = False

    @classmethod
    def of(cls, **columns: ArrayLike) -> TileQuality:
        """Return a record of some numbers by name; the others are NaN.

        Raises
        ------
        ConfigError
            A name is unknown, there is none, or lengths differ.
        """
        unknown = sorted(columns.keys() - set(NAMES))
        if unknown or not columns:
            what = f"no quality is called {unknown[0]}" if unknown else "quality without a number"
            raise ConfigError(what, remedy=f"pass some of {', '.join(NAMES)}")
        given = {name: np.array(values, np.float32) for name, values in columns.items()}
        missing = np.full(next(iter(given.values())).shape, np.nan, np.float32)
        return cls(**{name: given.get(name, missing.copy()) for name in NAMES})

    @property
    def columns(self) -> dict[str, NDArray[np.float32]]:
        """All numbers by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def measured(self) -> dict[str, NDArray[np.float32]]:
        """The numbers that were measured, by name."""
        known = {name: values for name, values in self.columns.items() if not np.isnan(values).all()}
        return known if len(self) else self.columns

    def __len__(self) -> int:
        return len(self.focus)

    def __getitem__(self, index: Any) -> TileQuality:
        """Return the record of some tiles: a slice, positions or a mask."""
        return TileQuality(**{name: np.array(values[index], ndmin=1) for name, values in self.columns.items()})

    def averages(self) -> dict[str, float]:
        """Return the median of focus, and the mean fraction of the others, of those measured."""
        known = {name: values[~np.isnan(values)] for name, values in self.measured.items()}
        return {
            name: float(np.median(values) if name == "focus" else values.mean())
            for name, values in known.items()
            if values.size
        }

    def __repr__(self) -> str:
        def span(values: NDArray[np.float32]) -> str:
            return f"{np.nanmin(values):.3g} to {np.nanmax(values):.3g}"

        known = [f"{name} {span(values)}" for name, values in self.measured.items() if len(self)]
        return f"TileQuality({len(self):,} tiles: {', '.join(known) or 'none'})"


NAMES = tuple(field.name for field in fields(TileQuality))
# The resolution of each number, µm per px.
MEASURED_AT = {name: FOCUS_MPP if name == "focus" else MASK_MPP for name in NAMES}


def joined(parts: Sequence[TileQuality | None]) -> TileQuality | None:
    """Return the records of several bags, one after another; None if none of them has one, or one has none."""
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    return TileQuality(**{name: np.concatenate([part.columns[name] for part in known]) for name in NAMES})


def checked_names(names: Iterable[str] | None) -> tuple[str, ...]:
    """Return names of numbers; raise ConfigError if one is unknown."""
    chosen = NAMES if names is None else (names,) if isinstance(names, str) else tuple(names)
    unknown = [name for name in chosen if name not in NAMES]
    if unknown:
        raise ConfigError(f"no quality is called {unknown[0]!r}", remedy=f"pass some of {', '.join(NAMES)}")
    return chosen


def summary_of(quality: TileQuality | None, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return a bag's quality for a report: averages, and how many tiles were dropped for what; {} if not measured."""
    known = {} if quality is None else {name: round(value, 4) for name, value in quality.averages().items()}
    refused = (provenance.get("grid") or {}).get("quality")
    return known | ({} if refused is None else {"dropped": refused["dropped"], "dropped_for": refused["why"]})
