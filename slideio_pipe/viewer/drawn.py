"""The draws that a page has made, by the digest of their JSON: what its addresses of tiles mean."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from dataclasses import replace
from threading import Lock
from typing import Any

from slideio_pipe.augment.draw import Draw
from slideio_pipe.errors import ConfigError
from slideio_pipe.slides.view import SlideView
from slideio_pipe.viewer.scene import Scene

PLAIN = "plain"
DRAWS_KEPT = 2048  # up to a few kB each


def digest_of(draw: Draw) -> str:
    """Return sixteen hex digits that depend only on what the draw does to pixels."""
    shown = draw.model_dump(mode="json", include={"size", "canvas", "affine", "operations"})
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()[:16]


class DrawnSlides:
    """Slides under the draws of a page.

    Parameters
    ----------
    scene : Scene
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._draws: OrderedDict[str, Draw] = OrderedDict()
        self._lock = Lock()

    def view(self, key: str, digest: str) -> SlideView:
        """Return the view of a slide under the draw with a digest; "plain" is none."""
        view = self.scene.view(key)
        return view if digest == PLAIN else replace(view, draw=self.draw(digest))

    def draw(self, digest: str) -> Draw:
        """Return the draw with a digest."""
        with self._lock:
            if digest not in self._draws:
                raise ConfigError("this draw is not known any more", remedy="move a slider, or reload the page")
            self._draws.move_to_end(digest)
            return self._draws[digest]

    def keep(self, draw: Draw) -> str:
        """Keep a draw, and return its digest."""
        digest = digest_of(draw)
        with self._lock:
            self._draws[digest] = draw
            while len(self._draws) > DRAWS_KEPT:
                self._draws.popitem(last=False)
        return digest

    def controls(self, key: str) -> list[dict[str, Any]]:
        """Return the controls of the transform, as JSON values."""
        return []

    def make(self, key: str, wanted: Any) -> dict[str, Any]:
        """Return a new draw as JSON values."""
        raise ConfigError("there is no transform", remedy="pass {transform=}")

    def colours(self, key: str, digest: str) -> bytes:
        """Return the colour table of a draw."""
        raise ConfigError("there is no transform", remedy="pass {transform=}")
