"""``explore()`` of slides, views, bags and predictions: opens what is explored in the viewer, which is a room above."""

from __future__ import annotations

import importlib
from typing import Any


class Explorable:
    """Has ``explore``."""

    def explore(self, **options: Any) -> Any:
        """Show it in the viewer, in the notebook's output or in the browser; see ``slideio_pipe.explore``.

        Parameters
        ----------
        options
            Those of ``slideio_pipe.explore``, such as ``transform`` or ``browser=True``.

        Returns
        -------
        Explorer
            The running viewer. A notebook shows its page; without one, ``url`` is its address. ``close`` ends it.

        Examples
        --------
        >>> import numpy as np
        >>> from slideio_pipe import open_slide
        >>> with open_slide(np.zeros((600, 800, 3), np.uint8)).explore() as viewer:
        ...     viewer.url.startswith("http://127.0.0.1:")
        True
        """
        return explored(self, **options)


def explored(source: Any, **options: Any) -> Any:
    """Return the running viewer of what ``slideio_pipe.explore`` takes."""
    # By the package's name: no room imports one above it.
    return importlib.import_module("slideio_pipe").explore(source, **options)
