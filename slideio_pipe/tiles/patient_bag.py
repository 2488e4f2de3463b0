"""The tiles of all slides of a patient as one bag, with the slide of each tile; no pixel is copied."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slideio_pipe.augment.ending import Ending
from slideio_pipe.augment.operations import Operation
from slideio_pipe.errors import ConfigError
from slideio_pipe.files import Closable
from slideio_pipe.geometry import SAME_RESOLUTION, Mpp
from slideio_pipe.slides.backends.base import OnTiming
from slideio_pipe.tiles.bag import (
    ArrayLikeBag,
    Bag,
    Label,
    PlannedBag,
    UncolouredBag,
    check_bag,
    nominal_mpps_of,
    patient_of,
    quality_of,
)
from slideio_pipe.tiles.marks.targets import Targets
from slideio_pipe.tiles.quality.tile_quality import joined
from slideio_pipe.tiles.reader import empty_tiles

_Read = Callable[[NDArray[np.int64], NDArray[np.uint8]], object]


class PatientBag(ArrayLikeBag, Closable):
    """The tiles of a patient's slides, slide after slide: (N, H, W, 3) uint8, with the slide of each tile.

    Each slide keeps its own view, transforms and draws: tile k of a slide is the same as in the slide's own bag. Slides
    may be scanned at different resolutions, but all are read at one.

    Parameters
    ----------
    slides : sequence of bags
        The bag of each slide: ``TileBag``, ``StoredBag``, ``AugmentedBag`` or the like.
    patient : str, optional
        By default the patient of the slides.
    label : int, float or str, optional
        The patient's label; by default that of the slides.

    Attributes
    ----------
    slides : tuple of bags
    slide_index : (N,) int64
        The number of each tile's slide in ``slides``.
    coords : (N, 2) int64
        Top-left corners (x, y), level-0 px of the tile's own slide.

    Raises
    ------
    ConfigError
        There is no slide; slides have tiles of different sizes, are read at different resolutions, or have different
        labels or patients.

    Examples
    --------
    >>> from slideio_pipe import TileBag, TileGrid, open_slide
    >>> views = [open_slide(np.full((300, 500, 3), k, np.uint8), slide_mpp=0.5).view() for k in (7, 9)]
    >>> bag = PatientBag([TileBag(view, TileGrid(view, tile_size=100), label=1) for view in views], patient="P01")
    >>> bag, int(bag[20].max()), int(bag.slide_index[20])
    (PatientBag(P01: 30 tiles of 100×100 px at 0.5 µm of 2 slides, label 1), 9, 1)
    """

    def __init__(self, slides: Sequence[Bag], *, patient: str | None = None, label: Label = None) -> None:
        if isinstance(slides, Bag) or not slides:
            raise ConfigError("a patient without slides", remedy="pass a list with the bag of each slide")
        for slide in slides:
            check_bag(slide)
        self.slides = tuple(slides)
        self.patient = _agreed("patient", patient, [(slide.name, patient_of(slide)) for slide in slides])
        self.name = self.patient or slides[0].name
        self.label = _agreed("label", label, [(slide.name, slide.label) for slide in slides], self.name)
        _check_tiles(self.slides, self.name)
        self.view_mpp = _resolution(self.slides, self.name)
        self.nominal_mpps, self.mpps = nominal_mpps_of(slides[0]), getattr(slides[0], "mpps", ())
        counts = [len(slide) for slide in slides]
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.slide_index = np.repeat(np.arange(len(slides), dtype=np.int64), counts)
        self.shape = (int(self._starts[-1]), *slides[0].shape[1:])
        self.coords = np.concatenate([np.asarray(slide.coords) for slide in slides])
        self.grid_index = np.concatenate([np.asarray(slide.grid_index) for slide in slides])
        self.tissue = np.concatenate([np.asarray(slide.tissue) for slide in slides])
        self.quality = joined([quality_of(slide) for slide in slides])

    @property
    def slide_names(self) -> tuple[str, ...]:
        """The names of the slides, which ``slide_index`` counts."""
        return tuple(slide.name for slide in self.slides)

    def span(self, slide: int) -> range:
        """Return the positions of a slide's tiles."""
        return range(int(self._starts[slide]), int(self._starts[slide + 1]))

    def read(self, indices: ArrayLike, out: NDArray[np.uint8] | None = None, *, threads: int = 1) -> NDArray[np.uint8]:
        """Return tiles ``indices`` (n,), each slide's by its own bag, in ``out`` (n, H, W, 3) uint8 if given.

        Raises
        ------
        CorruptSlideError, BagFormatError
            A tile cannot be decoded.
        """
        return self._read(indices, out, lambda bag: partial(bag.read, threads=threads))

    def read_uncoloured(
        self, indices: ArrayLike, out: NDArray[np.uint8] | None = None, *, threads: int = 1
    ) -> NDArray[np.uint8]:
        """Return tiles as ``read`` does, without drawn colours, to be coloured on a device."""
        return self._read(
            indices,
            out,
            lambda bag: partial(bag.read_uncoloured if isinstance(bag, UncolouredBag) else bag.read, threads=threads),
        )

    def _read(
        self, indices: ArrayLike, out: NDArray[np.uint8] | None, how: Callable[[Bag], _Read]
    ) -> NDArray[np.uint8]:
        positions = self._positions(indices)
        shape = (len(positions), *self.shape[1:])
        if out is None:
            out = empty_tiles(shape, self.name)
        elif out.shape != shape:
            remedy = f"pass a uint8 array of shape {shape}"
            raise ConfigError(f"out is {out.shape}", slide=self.name, remedy=remedy)
        for bag, rows, inside in self._by_slide(positions):
            first, last = int(rows[0]), int(rows[-1])
            if last - first == len(rows) - 1:
                how(bag)(inside, out[first : last + 1])
            else:  # tiles of slides in turns are copied to their places
                own = empty_tiles((len(rows), *self.shape[1:]), self.name)
                how(bag)(inside, own)
                out[rows] = own
        return out

    @property
    def host_only(self) -> tuple[str, ...]:
        """Names of the transforms that run only as libvips graphs, not on a device."""
        names = [name for slide in self.slides if isinstance(slide, UncolouredBag) for name in slide.host_only]
        return tuple(dict.fromkeys(names))

    def operations(self, index: int) -> tuple[Operation, ...]:
        """Return every colour operation of tile ``index``: those that ``read_uncoloured`` skips."""
        bag, _, inside = next(self._by_slide(self._positions([index])))
        return bag.operations(int(inside[0])) if isinstance(bag, UncolouredBag) else ()

    def storage_order(self, indices: ArrayLike) -> NDArray[np.int64]:
        """Return ``indices`` slide by slide, in the order that decodes every stored tile once."""
        found = [np.zeros(0, np.int64)]
        for bag, rows, inside in self._by_slide(positions := self._positions(indices)):
            ordered = bag.storage_order(inside) if isinstance(bag, PlannedBag) else inside
            found.append(ordered + (positions[rows[0]] - inside[0]))
        return np.concatenate(found)

    def plan_ahead(self, indices: ArrayLike, *, colours: bool = True) -> None:
        """Plan the reading of tiles, as ``DrawnBag.plan_ahead`` does for each slide."""
        for bag, _, inside in self._by_slide(self._positions(indices)):
            if isinstance(bag, PlannedBag):
                bag.plan_ahead(inside, colours=colours)

    @property
    def ending(self) -> Ending | None:
        """What the transforms of the slides do at their end, which a stream does on the device."""
        found = {getattr(slide, "ending", None) for slide in self.slides}
        if len(found) > 1:
            remedy = "give all of them the same transform"
            raise ConfigError("the slides have transforms with different ends", slide=self.name, remedy=remedy)
        ending: Ending | None = found.pop()
        return ending

    @property
    def annotated(self) -> bool:
        """Whether the bags of the slides have annotations."""
        return any(isinstance(slide, ArrayLikeBag) and slide.annotated for slide in self.slides)

    def _targets(self, positions: NDArray[np.int64]) -> list[Targets]:
        found: dict[int, Targets] = {}
        for bag, rows, inside in self._by_slide(positions):
            if not isinstance(bag, ArrayLikeBag) or not bag.annotated:
                remedy = "give each of the patient's bags its annotations, empty ones if it has none"
                raise ConfigError("the bag of a slide has no annotations", slide=bag.name, remedy=remedy)
            found |= zip(rows.tolist(), bag.targets(inside), strict=True)
        return [found[row] for row in range(len(positions))]

    def provenance(self) -> dict[str, Any]:
        """Return the patient, the label, and the provenance of each slide's bag, JSON values."""
        slides = [slide.provenance() for slide in self.slides]
        return {"patient": self.patient, "label": self.label, "slides": slides}

    @property
    def on_stage(self) -> OnTiming | None:
        """What receives the timing of stages, of all slides."""
        return getattr(self.slides[0], "on_stage", None)

    @on_stage.setter
    def on_stage(self, on_stage: OnTiming | None) -> None:
        for slide in self.slides:
            if hasattr(slide, "on_stage"):
                slide.on_stage = on_stage

    def close(self) -> None:
        """Close the files of stored bags; a later read opens them again."""
        for slide in self.slides:
            if isinstance(slide, Closable):
                slide.close()

    def _by_slide(self, positions: NDArray[np.int64]) -> Iterator[tuple[Bag, NDArray[np.int64], NDArray[np.int64]]]:
        """Yield the bag of each slide among positions, the rows of its tiles, and their numbers in the slide's bag."""
        owners = self.slide_index[positions]
        for number in np.unique(owners).tolist():
            rows = np.flatnonzero(owners == number)
            yield self.slides[number], rows, positions[rows] - self._starts[number]

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(PatientBag, patient=self.patient, label=self.label), (self.slides,)

    def __repr__(self) -> str:
        n, *_, h, w, _ = self.shape
        at = "" if self.view_mpp is None else f" at {self.view_mpp.mean:.4g} µm"
        label = "" if self.label is None else f", label {self.label}"
        slides = f"{len(self.slides)} slide{'' if len(self.slides) == 1 else 's'}"
        return f"PatientBag({self.name}: {n:,} tiles of {w}×{h} px{at} of {slides}{label})"


def slide_index_of(bag: Bag, index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of the slide of each of tiles ``index`` (n,): 0 for all tiles of a slide's bag."""
    return bag.slide_index[index] if isinstance(bag, PatientBag) else np.zeros(len(index), np.int64)


def unannotated(bag: Bag) -> Bag:
    """Return a bag without boxes and points, which processes that only read pixels do not need."""
    if not isinstance(bag, ArrayLikeBag) or not bag.annotated:
        return bag
    if isinstance(bag, PatientBag):
        return PatientBag([unannotated(slide) for slide in bag.slides], patient=bag.patient, label=bag.label)
    plain = copy.copy(bag)
    plain.annotations = None
    return plain


def no_slides() -> NDArray[np.int64]:
    """Return the slide numbers of no tiles."""
    return np.zeros(0, np.int64)


def slide_names_of(bag: Bag) -> tuple[str, ...]:
    """Return the names of the slides of a bag."""
    return bag.slide_names if isinstance(bag, PatientBag) else (bag.name,)


def _agreed(what: str, given: Any, found: Sequence[tuple[str, Any]], patient: str | None = None) -> Any:
    """Return the value that is given, else the one of all slides that have one."""
    if given is not None:
        return given
    known = {value for _, value in found if value is not None}
    if len(known) > 1:
        each = ", ".join(f"{'none' if value is None else value} ({name})" for name, value in found)
        remedy = f"pass {what}=…, or fewer slides"
        raise ConfigError(f"slides have several {what}s: {each}", slide=patient, remedy=remedy)
    return next(iter(known), None)


def _check_tiles(slides: Sequence[Bag], patient: str) -> None:
    shapes = {(tuple(slide.shape[1:]), nominal_mpps_of(slide)): slide.name for slide in slides}
    if len(shapes) > 1:
        described = ((shape[-2], shape[-3], "".join(f", {mpp:g} µm" for mpp in mpps)) for shape, mpps in shapes)
        sizes = zip(described, shapes.values(), strict=True)
        each = ", ".join(f"{width}×{height} px{at} ({name})" for (width, height, at), name in sizes)
        remedy = "make the bags of its slides with one tile size and the same magnifications"
        raise ConfigError(f"slides have tiles of different sizes: {each}", slide=patient, remedy=remedy)


def _resolution(slides: Sequence[Bag], patient: str) -> Mpp | None:
    """Return the resolution of the tiles; raise ConfigError if slides are read at different ones."""
    first = slides[0].view_mpp
    for slide in slides[1:]:
        mpp = slide.view_mpp
        if (mpp is None) != (first is None) or (mpp is not None and first is not None and not _is_same(mpp, first)):
            each = ", ".join(
                f"{'unknown' if s.view_mpp is None else f'{s.view_mpp.mean:.4g} µm'} ({s.name})" for s in slides
            )
            remedy = "read all slides of a patient at one {mpp=}"
            raise ConfigError(f"slides are read at different resolutions: {each}", slide=patient, remedy=remedy)
    return first


def _is_same(one: Mpp, other: Mpp) -> bool:
    return all(abs(a / b - 1) <= SAME_RESOLUTION for a, b in zip(one, other, strict=True))
