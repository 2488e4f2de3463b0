"""Convert numeric arguments (Python, NumPy, whole floats) to plain int and float."""

from __future__ import annotations

import math
import operator
from typing import Any

from slideio_pipe.errors import ConfigError


def whole_number(value: Any, what: str, *, slide: str | None = None, least: int | None = None) -> int:
    """Return a size, level or count of any numeric type as an ``int``.

    NumPy's small integers overflow: 255 + 1 is 0 as ``uint8``. Raise ConfigError if it is not a whole number, or is
    smaller than ``least``.

    Examples
    --------
    >>> import numpy as np
    >>> whole_number(np.uint8(200), "a side") + 100, whole_number(2.0, "a level")
    (300, 2)
    """
    number = _whole(value)
    if number is None:
        raise ConfigError(f"{what} of {value!r}", slide=slide, remedy="pass a whole number")
    if least is not None and number < least:
        raise ConfigError(f"{what} of {number}", slide=slide, remedy=f"pass {least} or more")
    return number


def pair(value: Any, what: str, *, slide: str | None = None) -> tuple[Any, Any]:
    """Return the two numbers of a location or a size; raise ConfigError if there are not two."""
    try:
        x, y = value
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{what} of {value!r}", slide=slide, remedy="pass two numbers, (x, y)") from error
    return x, y


def place(value: Any, *, slide: str | None = None) -> tuple[float, float]:
    """Return a location as two floats; raise ConfigError if it is not one."""
    x, y = pair(value, "a location", slide=slide)
    try:
        found = (float(x), float(y))
    except (TypeError, ValueError):
        found = (math.nan, math.nan)
    if isinstance(x, str) or not all(math.isfinite(side) for side in found):
        raise ConfigError(f"a location of {value!r}", slide=slide, remedy="pass two numbers, (x, y), level-0 px")
    return found


# Largest picture that is made in memory: 0.8 GB.
_MOST_PX = 2**28


def picture_size(value: Any, *, slide: str | None = None) -> tuple[int, int]:
    """Return the size of a picture in px, given as one side or as (width, height).

    Raise ConfigError if it is not at least one px, or would take more than 0.8 GB.

    Examples
    --------
    >>> picture_size(256), picture_size((300, 200))
    ((256, 256), (300, 200))
    """
    sides = pair(value, "a size", slide=slide) if hasattr(value, "__len__") else (value, value)
    width, height = (whole_number(side, "a side", slide=slide, least=1) for side in sides)
    if width * height > _MOST_PX:
        reason = f"a picture of {width:,}×{height:,} px takes {3e-9 * width * height:,.1f} GB"
        raise ConfigError(reason, slide=slide, remedy="pass a smaller size or a coarser {mpp=}")
    return width, height


def no_index(what: str, instead: str, name: str) -> ConfigError:
    """Return the error of square brackets on what has no index."""
    return ConfigError(
        f"{what} has no index", slide=name, remedy=f"pixels at a place are {instead}, x and y level-0 px"
    )


def _whole(value: Any) -> int | None:
    try:
        return operator.index(value)
    except TypeError:
        pass
    try:
        number = None if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number is not None and math.isfinite(number) and number.is_integer() else None
