"""How a user's function is called: with its first argument alone, or with a second one as well."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def takes_second(function: Callable[..., Any], name: str) -> bool:
    """Return whether a function needs a second argument, or has a second parameter of this name.

    >>> takes_second(lambda tile, rng=None: tile, "rng"), takes_second(lambda tile, strength=2: tile, "rng")
    (True, False)
    >>> takes_second(lambda tile, generator: tile, "rng"), takes_second(len, "rng")
    (True, False)
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # compiled
        return False
    places = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    return len(places) > 1 and (places[1].default is places[1].empty or places[1].name == name)
