"""Tiles of a grid that were dropped for their quality, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.errors import NoTissueError
from slideio_pipe.tiles.quality.tile_quality import MEASURED_AT


@dataclass(frozen=True, eq=False)
class RefusedTiles:
    """Tiles with enough tissue that a limit of quality dropped.

    Attributes
    ----------
    origins : (n, 2) int64 or float64
        Their top-left corners, view px.
    index : (n, 2) int32
        Column and row.
    limits : mapping of str to float
        The limits by name, such as {"min_focus": 40.0}.
    counts : mapping of str to int
        Tiles beyond each limit; a tile may be beyond several.
    of : int
        Number of tiles before.
    """

    origins: NDArray[Any]
    index: NDArray[np.int32]
    limits: Mapping[str, float]
    counts: Mapping[str, int]
    of: int

    def __len__(self) -> int:
        return len(self.origins)

    @property
    def reasons(self) -> str:
        """The reasons as text: "12 under min_focus 40, 3 over max_pen 0.1"; empty without one."""
        parts = [
            f"{self.counts[name]:,} {'under' if name.startswith('min_') else 'over'} {name} {limit:g}"
            for name, limit in self.limits.items()
            if self.counts.get(name)
        ]
        return ", ".join(parts)

    @property
    def short(self) -> str:
        """The reasons as a few words: "focus 12, pen 3"."""
        return ", ".join(f"{name.partition('_')[2]} {self.counts[name]:,}" for name in self.limits if self.counts[name])

    def provenance(self) -> dict[str, Any]:
        """Return JSON values: limits, the resolution of each number, and how many tiles were dropped."""
        at = {name.partition("_")[2]: 0.0 for name in self.limits}
        return {
            "limits": dict(self.limits),
            "mpp": {name: MEASURED_AT[name] for name in at},
            "dropped": len(self),
            "of": self.of,
            "reasons": dict(self.counts),
            "why": self.reasons,
        }


def no_good_tile(refused: RefusedTiles, slide: str) -> NoTissueError:
    """Return the error of a slide all of whose tiles were dropped for their quality."""
    names = [name for name in refused.limits if refused.counts.get(name)]
    change = " or ".join(f"{'lower' if name.startswith('min_') else 'raise'} {{{name}=}}" for name in names)
    reason = f"all {refused.of:,} tiles with enough tissue were dropped for their quality ({refused.reasons})"
    return NoTissueError(reason, slide=slide, remedy=f"look at the slide; leave it out, or {change}")
