"""``from_numpy``: a user's own function on NumPy arrays as a transform, seeded as all others."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.augment.operations import Opaque
from slideio_pipe.augment.steps import Steps
from slideio_pipe.augment.transform_base import ColourTransform, Context
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Size
from slideio_pipe.parts.calls import takes_second
from slideio_pipe.parts.import_path import import_object, import_path_of

Pixels = NDArray[np.uint8]


class FromNumpy(ColourTransform):
    """A user's function on a tile; made by ``from_numpy``, whose documentation says what it must do."""

    lowered = False
    opaque_because = "a function of your own on NumPy arrays"

    def __init__(self, function: Callable[..., Any] | str, *, always_apply: bool = False, p: float = 1.0) -> None:
        super().__init__(always_apply=always_apply, p=p)
        made = import_object(function) if isinstance(function, str) else function
        if not callable(made):
            given = function if isinstance(function, str) else f"a {type(made).__name__}"
            raise ConfigError(
                f"from_numpy: {given} is no function", remedy="pass a function of a tile, (H, W, 3) uint8"
            )
        # As it is written to YAML and in draws; another process finds a function by it if it is an import path.
        self.function = function if isinstance(function, str) else import_path_of(made) or _described(made)
        self.live = LiveFunction(made, self.function)

    @property
    def label(self) -> str:
        """Its name in messages and tables."""
        return f"from_numpy({self.function.rpartition(':')[2]})"

    def draw_steps(self, rng: np.random.Generator, size: Size, context: Context) -> Steps:
        """Return one opaque operation, with a seed of its own."""
        written = {"transform": {"__class_fullname__": "slideio_pipe.FromNumpy", "function": self.function}}
        drawn = Opaque(name=self.label, transform=written, seed=int(rng.integers(2**32)))
        drawn.bind(self.live)
        return Steps(operations=(drawn,))

    def _called(self, draw_seed: int, size: Size) -> Steps:
        return self.draw_steps(np.random.Generator(np.random.Philox(draw_seed)), size, Context())


class LiveFunction:
    """A function that is called with tiles, and checked at its first call in each process.

    Pickling one that another process would not find raises ConfigError.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function, self.name = function, name
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


def from_numpy(function: Callable[..., Any] | str, *, p: float = 1.0) -> Any:
    """Return a function on NumPy arrays as a transform, to be used alone or in ``A.Compose``.

    Parameters
    ----------
    function : callable or str
        Called as ``function(tile)`` or ``function(tile, rng)`` with a copy of a tile, (H, W, 3) uint8 RGB; returns
        uint8 of the same shape. ``rng`` is a ``np.random.Generator`` seeded by (seed, epoch, slide, tile): all
        randomness must come from it. It is passed to a function that needs two arguments or has one called ``rng``.
        Or the import path of such a function, ``my_module:my_function``.
    p : float
        Probability of each draw.

    Raises
    ------
    ConfigError
        It is no function, or its import path leads nowhere. When tiles are read: it raises, returns something else,
        or two calls with the same tile and seed differ (tested once per process).

    Notes
    -----
    It is opaque: it runs on the CPU, after all geometry, and ``explain`` measures what it costs. As the transform of a
    tile, it is called once per tile, with the whole tile. As that of a slide, it is called for squares of 256 px of the
    view, each time with a generator in the same state, so that all of them have the same draw; a function that looks at
    neighbouring pixels shows seams between the squares, and should be a tile's transform. Threads call it at the same
    time. Worker processes need one that can be pickled: a function of a module, not a lambda.

    Examples
    --------
    >>> import numpy as np
    >>> from slideio_pipe import TileBag, TileGrid, from_numpy, open_slide
    >>> def darker(tile, rng):
    ...     return (tile * rng.uniform(0.5, 1.0)).astype(np.uint8)
    >>> view = open_slide(np.full((300, 500, 3), 200, np.uint8), slide_mpp=0.5).view()
    >>> bag = TileBag(view, TileGrid(view, tile_size=100), tile_transform=from_numpy(darker), seed=3)
    >>> bag[0, 0, 0, 0] == bag[0, 50, 50, 1], bag[0, 0, 0, 0] == bag[1, 0, 0, 0]
    (np.True_, np.False_)
    """
    return FromNumpy(function, p=p)


def _described(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__name__))
