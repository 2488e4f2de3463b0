"""The draws that a page has made, by the digest of their JSON: what its addresses of tiles mean."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from threading import Lock
from typing import Any

from slideio_pipe.augment.draw import Draw
from slideio_pipe.augment.operations import Operation
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Size
from slideio_pipe.slides.view import SlideView
from slideio_pipe.viewer.colour_table import colour_table
from slideio_pipe.viewer.controls import Drawn, Panel
from slideio_pipe.viewer.scene import Scene

PLAIN = "plain"
DRAWS_KEPT = 2048  # up to a few kB each


def digest_of(draw: Draw) -> str:
    """Return sixteen hex digits that depend only on what the draw does to pixels."""
    shown = draw.model_dump(mode="json", include={"size", "canvas", "affine", "operations"})
    return _digest(shown)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


class DrawnSlides:
    """Slides under the draws of a page.

    Parameters
    ----------
    scene : Scene
    panel : Panel
        The controls that draws are made with.
    """

    def __init__(self, scene: Scene, panel: Panel) -> None:
        self.scene, self.panel = scene, panel
        self._draws: OrderedDict[str, Draw] = OrderedDict()
        self._colours: OrderedDict[str, tuple[Operation, ...]] = OrderedDict()
        self._lock = Lock()

    def view(self, key: str, digest: str) -> SlideView:
        """Return the view of a slide under the draw with a digest; "plain" is none."""
        view = self.scene.view(key)
        return view if digest == PLAIN else replace(view, draw=self._found(self._draws, digest))

    def _found(self, kept: OrderedDict[str, Any], digest: str) -> Any:
        with self._lock:
            if digest not in kept:
                raise ConfigError("this draw is not known any more", remedy="move a slider, or reload the page")
            kept.move_to_end(digest)
            return kept[digest]

    def keep(self, draw: Draw) -> tuple[str, str]:
        """Keep a draw, and return its digest and that of its colours, "" without any."""
        digest = digest_of(draw)
        colours = _digest([each.model_dump(mode="json") for each in draw.operations]) if draw.operations else ""
        with self._lock:
            self._draws[digest] = draw
            if colours:
                self._colours[colours] = draw.operations
            for kept in (self._draws, self._colours):
                while len(kept) > DRAWS_KEPT:
                    kept.popitem(last=False)
        return digest, colours

    def make(self, key: str, wanted: Any) -> dict[str, Any]:
        """Return a draw for a slide as JSON values.

        Parameters
        ----------
        key : str
            Id of the slide.
        wanted : mapping
            {"values": ...} of the controls; or {"seed": ..., "epoch": ..., "locked": ...}, where locked values replace
            drawn ones; or {"draw": ...}, the JSON of a ``Draw``.
        """
        if not isinstance(wanted, Mapping):
            raise ConfigError("no draw was asked for", remedy="reload the page")
        view = self.scene.view(key)
        plain = replace(view, draw=None)
        made = self._made(plain, wanted)
        return self._described(plain, made)

    def _made(self, view: SlideView, wanted: Mapping[str, Any]) -> Drawn:
        if "draw" in wanted:
            draw = _fitted(Draw.from_json(wanted["draw"]), view)
            return Drawn(draw, {}, f"view(draw={draw.to_python()})")
        if "values" in wanted:
            return self.panel.of_values(view, _mapping(wanted["values"]))
        seed, epoch = (_whole(wanted.get(name, 0), name) for name in ("seed", "epoch"))
        made = self.panel.of_seed(view, seed, epoch)
        locked = _mapping(wanted.get("locked", {}))
        return self.panel.of_values(view, made.values | dict(locked)) if locked else made

    def _described(self, view: SlideView, made: Drawn) -> dict[str, Any]:
        draw = made.draw
        digest, colours = self.keep(draw)
        return {
            "digest": PLAIN if draw.is_identity else digest,
            "colours": colours,
            "size": list(draw.canvas),
            "affine": list(draw.affine),
            "summary": summary_of(draw),
            "values": made.values,
            "json": json.dumps(draw.to_json()),
            "yaml": draw.to_yaml(),
            "python": f"view = slide.{made.python}",
        }

    def colours(self, digest: str) -> bytes:
        """Return the table of colours with a digest."""
        return colour_table(self._found(self._colours, digest))


# What operations are called on the page.
_WORDS = {"tone": "brightness", "hsv": "hue", "lab": "colour statistics"}


def summary_of(draw: Draw) -> str:
    """Return a draw as a short text in plain words.

    >>> summary_of(Draw(size=Size(4, 3), canvas=Size(4, 3), operations=({"kind": "hsv", "turn": 0.1},)))
    'hue'
    """
    if draw.is_identity:
        return "as scanned"
    moved = draw.model_copy(update={"operations": ()})
    words = [moved.summary()] if draw.moves else []
    kinds = [getattr(each, "name", "") or _WORDS.get(each.kind, each.kind) for each in draw.operations]
    return ", ".join([*words, *dict.fromkeys(kinds)])


def _fitted(draw: Draw, view: SlideView) -> Draw:
    """Return a draw of any size for a view: the same turn, mirror, scale and colours."""
    if draw.size == view.plain_size:
        return draw
    from slideio_pipe.augment.compose import draw as drawing  # imports albumentationsxl, which takes 2 s
    from slideio_pipe.augment.replay import Replay

    return drawing(Replay(draw), slide=view.slide.name, size=Size(*view.plain_size))


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError("these are no values of controls", remedy="reload the page")
    return value


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ConfigError(f"{name} is {value!r}", remedy="pass a whole number, 0 or more")
    return value
