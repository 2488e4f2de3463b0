"""``from_numpy``: a user's own function on NumPy arrays as a transform, seeded as all others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from slideio_pipe.augment.operations import Opaque
from slideio_pipe.augment.own_functions import CLASS, LiveFunction
from slideio_pipe.augment.steps import Steps
from slideio_pipe.augment.transform_base import ColourTransform, Context
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Size
from slideio_pipe.parts.import_path import import_object, import_path_of, source_digest


class FromNumpy(ColourTransform):
    """A user's function on a tile; made by ``from_numpy``, whose documentation says what it must do.

    Parameters
    ----------
    function : callable or str
        Or its import path.
    source : str, optional
        Digest of the function's source when the transform was written; recorded, not compared.
    """

    lowered = False
    opaque_because = "a function of your own: opaque, called once per tile, after all geometry"

    def __init__(
        self,
        function: Callable[..., Any] | str,
        source: str | None = None,
        *,
        always_apply: bool = False,
        p: float = 1.0,
    ) -> None:
        super().__init__(always_apply=always_apply, p=p)
        del source
        made = import_object(function) if isinstance(function, str) else function
        if not callable(made) or isinstance(made, type):
            given = function if isinstance(function, str) else f"a {type(made).__name__}"
            raise ConfigError(f"from_numpy: {given} is no function", remedy="pass a function of (H, W, 3) uint8")
        # As it is written to YAML and in draws; another process finds a function by it if it is an import path.
        self.function = function if isinstance(function, str) else import_path_of(made) or _described(made)
        self.source = source_digest(made)
        self._live = LiveFunction(made, self.function)

    @property
    def label(self) -> str:
        """Its name in messages and tables."""
        return f"from_numpy({self.function.rpartition(':')[2]})"

    @property
    def live(self) -> LiveFunction:
        """The function."""
        return self._live

    def draw_steps(self, rng: np.random.Generator, size: Size, context: Context) -> Steps:
        """Return one opaque operation, with a seed of its own."""
        written = {"__class_fullname__": CLASS, "function": self.function, "source": self.source}
        drawn = Opaque(name=self.label, transform={"transform": written}, seed=int(rng.integers(2**32)))
        drawn.bind(self._live)
        return Steps(operations=(drawn,))


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
