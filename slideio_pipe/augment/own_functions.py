"""A user's functions on tiles, as executors call them: seeded, checked, and found again by their names."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.augment.operations import Opaque, Operation
from slideio_pipe.errors import ConfigError
from slideio_pipe.parts.calls import takes_second
from slideio_pipe.parts.import_path import import_object, is_import_path

Pixels = NDArray[np.uint8]

# The transform that draws them, as it is written.
CLASS = "slideio_pipe.FromNumpy"


class LiveFunction:
    """A function that is called with tiles, and checked at its first call in each process.

    Pickling one that another process would not find raises ConfigError.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function, self.name = function, name
        self.failure: ConfigError | None = None  # of its last call in a libvips graph, which shows black there
        self._takes_rng = takes_second(function, "rng")
        self._checked = False
        self._lock = threading.Lock()

    def __call__(self, tile: Pixels, seed: int) -> Pixels:
        """Return the tile as the function changes it; ``seed`` is that of its generator."""
        if not self._checked:
            with self._lock:
                first = self._run(tile, seed)
                if not np.array_equal(first, self._run(tile, seed)):
                    self._refuse_other_draws()
                self._checked = True
            return first
        return self._run(tile, seed)

    def _run(self, tile: Pixels, seed: int) -> Pixels:
        given = tile.copy()
        try:
            if self._takes_rng:
                made = self.function(given, np.random.Generator(np.random.Philox(seed)))
            else:
                made = self.function(given)
        except Exception as error:  # a user's function may raise anything
            raise ConfigError(
                f"from_numpy: {self.name} raised {type(error).__name__}: {error}",
                remedy="correct it; it gets a tile, (H, W, 3) uint8 RGB",
            ) from error
        if not isinstance(made, np.ndarray) or made.dtype != np.uint8 or made.shape != tile.shape:
            what = f"{made.dtype} {made.shape}" if isinstance(made, np.ndarray) else f"a {type(made).__name__}"
            raise ConfigError(
                f"from_numpy: {self.name} returned {what} for a tile of uint8 {tile.shape}",
                remedy="return uint8 of the same shape; put changes of the size into RandomResizedCrop or A.Resize",
            )
        return made

    def _refuse_other_draws(self) -> None:
        reason = f"from_numpy: two calls of {self.name} with one tile" + (" and one seed" if self._takes_rng else "")
        remedy = (
            "draw from rng alone" if self._takes_rng else "give it a second parameter rng, and draw from that alone"
        )
        raise ConfigError(f"{reason} differ", remedy=f"{remedy}: np.random and random are not seeded for it")

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            pickle.dumps(self.function)
        except Exception as error:  # whatever a user's object raises
            raise ConfigError(
                f"from_numpy: {self.name} cannot be sent to a worker process",
                remedy="define it with def in a module of your own; a lambda or local function works with threads only",
            ) from error
        return LiveFunction, (self.function, self.name)


def live_function(operation: Opaque) -> LiveFunction | None:
    """Return the user's function of an operation; None if it is a transform of albumentationsxl.

    Raise ConfigError if it is of another process and has no import path.
    """
    written = operation.transform["transform"]
    if written["__class_fullname__"] != CLASS:
        return None
    if operation.function is None:
        name = str(written["function"])
        if not is_import_path(name):
            raise ConfigError(
                f"{operation.name}: the draw has a function that is no longer there",
                remedy="define it with def in a module of your own, so that it has an import path",
            )
        operation.bind(LiveFunction(import_object(name), name))
    function: LiveFunction = operation.function
    return function


def raise_failure(operations: Iterable[Operation]) -> None:
    """Raise what a user's function raised when it was called by a libvips graph, which shows black there."""
    for each in operations:
        function = live_function(each) if isinstance(each, Opaque) else None
        if function is not None and function.failure is not None:
            raise function.failure
