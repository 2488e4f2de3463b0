"""What a viewer shows: slides and bags, each under an id; a page never names a path.

Names are resolved once, when the viewer starts. Slides are opened when they are first looked at, and the last few stay
open.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import RLock
from typing import Any

from slideio_pipe.augment.draw import Draw
from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.table import is_table
from slideio_pipe.errors import ConfigError
from slideio_pipe.slides.slide import Slide, open_slide
from slideio_pipe.slides.view import SlideView
from slideio_pipe.store import AugmentedBag, StoredBag
from slideio_pipe.store.metadata import is_bag_store
from slideio_pipe.tiles.patient_bag import PatientBag
from slideio_pipe.tiles.tile_bag import TileBag
from slideio_pipe.viewer.attachments import stem_of
from slideio_pipe.viewer.bag_slide import BagSlide
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
    slides : Path, optional
        Folder of the slides of stored bags. Of a bag without its slide, the stored tiles are shown.
    mpp : float, optional
        µm per view pixel; None is level 0 as stored. A view, or a bag's view, keeps its own.
    backend : str
        Backend that reads files.
    slide_mpp : float, optional
        µm per level-0 pixel, for files that state none.
    """

    def __init__(
        self,
        source: Any,
        *,
        slides: Path | None = None,
        mpp: float | None = None,
        backend: str = "auto",
        slide_mpp: float | None = None,
    ) -> None:
        self._mpp, self._backend, self._slide_mpp, self._folder = mpp, backend, slide_mpp, slides
        if slides is not None and not slides.is_dir():
            raise ConfigError("{slides=} is no folder", slide=str(slides), remedy="pass the folder of the bags' slides")
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

    def own_draw(self, key: str) -> Draw | None:
        """Return the draw that a view or a bag came with; None if it has none."""
        source = self[key].source
        view = source if isinstance(source, SlideView) else getattr(source, "view", None)
        if isinstance(view, SlideView):
            return view.draw
        if isinstance(source, StoredBag):
            stored = (source.provenance().get("view") or {}).get("draw")
            return None if stored is None else Draw.from_json(stored)
        return None

    def _open(self, shown: ShownSlide) -> SlideView:
        source = shown.source
        if isinstance(source, SlideView):
            return replace(source, draw=None)
        if isinstance(source, Slide):
            return source.view(mpp=self._mpp)
        if isinstance(source, TileBag):
            return replace(source.view, draw=None)
        if isinstance(source, StoredBag):
            path = self._slide_of(source)
            return BagSlide(source).view() if path is None else self._opened_file(path, shown).view(mpp=self._mpp)
        if isinstance(source, Path):
            return self._opened_file(source, shown).view(mpp=self._mpp)
        raise ConfigError(f"a {type(source).__name__} cannot be shown", remedy="pass a slide or a bag")

    def _opened_file(self, path: Path, shown: ShownSlide) -> Slide:
        return open_slide(path, slide_mpp=shown.slide_mpp, default_mpp=self._slide_mpp, backend=self._backend)

    def _slide_of(self, bag: StoredBag) -> Path | None:
        """Return the file of a bag's slide: among the slides of the viewer, or in the folder of slides."""
        names = {bag.name, stem_of(bag.name)}
        for other in self.slides.values():
            if isinstance(other.source, Path) and names & {other.source.name, other.source.stem}:
                return other.source
        if self._folder is None:
            return None
        found = (file for file in sorted(self._folder.iterdir()) if names & {file.name, file.stem})
        return next((file for file in found if not is_bag_store(file)), None)

    def close(self) -> None:
        """Drop every open slide."""
        with self._lock:
            self._views.clear()


def _items(source: Any) -> Iterable[Any]:
    if isinstance(source, Slide | SlideView | TileBag):
        return [source]
    if isinstance(source, PatientBag):
        return source.slides
    if is_table(source):
        return Cohort.of(source)
    if isinstance(source, Sequence) and not isinstance(source, str | Cohort):
        return [item for each in source for item in _items(each)]
    if isinstance(source, str | Path | Cohort):
        return Cohort.of(source)
    return [source]


def _shown(number: int, item: Any) -> ShownSlide:
    key = f"s{number}"
    if isinstance(item, AugmentedBag):  # its tiles are those of the stored one
        item = item.stored
    if isinstance(item, CohortSlide):
        label = None if item.label is None else str(item.label)
        source = item.source
        if isinstance(source, Path) and is_bag_store(source):
            source = StoredBag(source)
            label = label or (None if source.label is None else str(source.label))
        return ShownSlide(key, item.name, source, label, item.patient, item.split, item.mpp, item.mask)
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
    if isinstance(slide, BagSlide):
        return _bag_facts(slide)
    return {
        "size": list(view.plain_size),
        "downsample": list(view.downsample),
        "note": "",
        "mpp": None if mpp is None else list(mpp),
        "mpp_source": getattr(slide, "mpp_source", ""),
        "vendor": getattr(slide, "vendor", ""),
        "objective_power": None if facts is None else facts.objective_power,
        "levels": [list(size) for size in slide.pyramid.levels],
        "associated": [] if facts is None else list(facts.associated),
    }


def _bag_facts(slide: BagSlide) -> dict[str, Any]:
    """Return the facts of a bag without its slide; its level 0 is that of the slide, if its tiles are in place."""
    size, down, mpp = slide.pyramid.levels[0], slide.downsample, slide.mpp
    where = "where they were" if slide.in_place else "in the order of the bag"
    return {
        "size": list(size),
        "downsample": list(down),
        "note": f"The slide is not there: its stored tiles are shown, {where}. To see the slide, start with --slides.",
        "mpp": None if mpp is None else [mpp.x / down[0], mpp.y / down[1]],
        "mpp_source": "the bag",
        "vendor": "",
        "objective_power": None,
        "levels": [[round(side * by) for side, by in zip(size, down, strict=True)]],
        "associated": [],
    }
