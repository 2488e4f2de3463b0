"""What a viewer shows: slides and bags, each under an id; a page never names a path.

Names are resolved once, when the viewer starts. Slides are opened when they are first looked at, and the last few stay
open.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.errors import ConfigError, SlideioPipeError
from slideio_pipe.slides.slide import Slide, open_slide
from slideio_pipe.slides.view import SlideView
from slideio_pipe.tiles.tile_bag import TileBag
from slideio_pipe.viewer.nearest import encoders_of

OPEN_SLIDES = 8
# Images of the slide's file that may show a patient's name.
PRIVATE_IMAGES = ("label", "macro")


@dataclass
class ShownSlide:
    """A slide of the viewer."""

    id: str
    name: str
    source: Path | Slide | SlideView | Any  # a bag as well
    label: str | None = None
    patient: str | None = None
    split: str | None = None
    slide_mpp: float | None = None
    mask: Path | None = None
    lock: RLock = field(default_factory=RLock, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return what the list of slides shows."""
        facts = {"id": self.id, "name": self.name, "label": self.label, "split": self.split}
        return facts | {"encoders": list(encoders_of(self.source))}


class Scene:
    """The slides of a viewer by id.

    Parameters
    ----------
    source : path, Slide, SlideView, bag, Cohort, or a list of these
        What ``Cohort.of`` takes, and open slides and views.
    mpp : float, optional
        µm per view pixel; None is level 0 as stored. A view, or a bag's view, keeps its own.
    backend : str
        Backend that reads files.
    slide_mpp : float, optional
        µm per level-0 pixel, for files that state none.
    """

    def __init__(
        self, source: Any, *, mpp: float | None = None, backend: str = "auto", slide_mpp: float | None = None
    ) -> None:
        self._mpp, self._backend, self._slide_mpp = mpp, backend, slide_mpp
        shown = [_shown(number, item) for number, item in enumerate(_items(source))]
        if not shown:
            raise ConfigError("there is no slide to show", remedy="pass a slide, a bag, a folder or a cohort")
        self.slides = {each.id: each for each in shown}
        self._views: OrderedDict[str, SlideView] = OrderedDict()
        self._lock = RLock()

    def __getitem__(self, key: str) -> ShownSlide:
        if key not in self.slides:
            raise ConfigError("no such slide in this viewer", remedy="reload the page")
        return self.slides[key]

    def view(self, key: str) -> SlideView:
        """Return the plain view of a slide at its full resolution, opened when needed.

        Raises
        ------
        SlideioPipeError
            The file is not there any more, or is damaged.
        """
        shown = self[key]
        with self._lock:
            if key in self._views:
                self._views.move_to_end(key)
                return self._views[key]
        with shown.lock:
            opened = self._open(shown)
        with self._lock:
            kept = self._views.setdefault(key, opened)
            while len(self._views) > OPEN_SLIDES:
                self._views.popitem(last=False)
            return kept

    def close_slide(self, key: str) -> None:
        """Forget an open slide, so that its file is opened again."""
        with self._lock:
            self._views.pop(key, None)

    def _open(self, shown: ShownSlide) -> SlideView:
        source = shown.source
        if isinstance(source, SlideView):
            return source
        if isinstance(source, Slide):
            return source.view(mpp=self._mpp)
        if isinstance(source, TileBag):
            return source.view
        if isinstance(source, Path):
            return self._opened_file(source, shown).view(mpp=self._mpp)
        raise ConfigError(f"a {type(source).__name__} cannot be shown", remedy="pass a slide or a bag")

    def _opened_file(self, path: Path, shown: ShownSlide) -> Slide:
        return open_slide(path, slide_mpp=shown.slide_mpp, default_mpp=self._slide_mpp, backend=self._backend)

    def close(self) -> None:
        """Forget every open slide."""
        with self._lock:
            self._views.clear()


def _items(source: Any) -> Iterable[Any]:
    if isinstance(source, Slide | SlideView | TileBag):
        return [source]
    if isinstance(source, Sequence) and not isinstance(source, str | Cohort):
        return [item for each in source for item in _items(each)]
    if isinstance(source, str | Path | Cohort):
        return Cohort.of(source)
    return [source]


def _shown(number: int, item: Any) -> ShownSlide:
    key = f"s{number}"
    if isinstance(item, CohortSlide):
        label = None if item.label is None else str(item.label)
        return ShownSlide(key, item.name, item.source, label, item.patient, item.split, item.mpp, item.mask)
    if isinstance(item, Slide):
        return ShownSlide(key, item.name, item)
    if isinstance(item, SlideView):
        return ShownSlide(key, item.slide.name, item)
    if hasattr(item, "coords") and hasattr(item, "name"):
        label = getattr(item, "label", None)
        return ShownSlide(key, item.name, item, None if label is None else str(label))
    raise ConfigError(f"a {type(item).__name__} cannot be shown", remedy="pass a slide, a bag, a folder or a cohort")


def facts_of(view: SlideView) -> dict[str, Any]:
    """Return what a page needs to show a view: sizes and resolution, JSON values."""
    slide = view.slide
    mpp, facts = slide.mpp, getattr(slide, "facts", None)
    return {
        "size": list(view.plain_size),
        "downsample": list(view.downsample),
        "mpp": None if mpp is None else list(mpp),
        "mpp_source": getattr(slide, "mpp_source", ""),
        "vendor": getattr(slide, "vendor", ""),
        "objective_power": None if facts is None else facts.objective_power,
        "levels": [list(size) for size in slide.pyramid.levels],
        "associated": [] if facts is None else list(facts.associated),
    }


def problem_of(error: SlideioPipeError) -> str:
    """Return an error as one line for a page."""
    return " ".join(str(error).split())
