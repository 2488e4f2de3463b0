"""A cohort as bags: slides are opened, their tissue found and their tiles placed on access."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from slideio_pipe.augment.draw import seeded
from slideio_pipe.augment.ending import Ending, joined, split_end
from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.patients import CohortPatient, by_patient, counted, slides_of_row
from slideio_pipe.errors import ConfigError, NoTissueError, RepeatedDrawsWarning, SlideioPipeError, warn_caller
from slideio_pipe.geometry import Size
from slideio_pipe.slides.backends.base import OnTiming
from slideio_pipe.store import AugmentedBag, StoredBag
from slideio_pipe.store.augmented_bag import check_colours_only
from slideio_pipe.streaming.config import LoaderConfig, load_loader_config
from slideio_pipe.streaming.shared_epoch import SharedEpoch, is_read_by_data_loader
from slideio_pipe.streaming.slide_opener import SlideOpener, count_stored, is_slide, is_store
from slideio_pipe.streaming.views import check_views, tiles_and_views
from slideio_pipe.streaming.whole_bag import WholeBag
from slideio_pipe.tiles.bag import ArrayLikeBag, Bag, Label, nominal_mpps_of, patient_of, targets_of_batch
from slideio_pipe.tiles.drawn_bag import DrawnBag
from slideio_pipe.tiles.marks.annotation_marks import class_names
from slideio_pipe.tiles.multi_crop import MultiCrop
from slideio_pipe.tiles.own_tissue import method_fingerprint
from slideio_pipe.tiles.patient_bag import PatientBag, slide_index_of, slide_names_of
from slideio_pipe.tiles.quality.refused_tiles import no_good_tile
from slideio_pipe.tiles.tile_bag import TileBag
from slideio_pipe.tiles.views_bag import ViewsBag


class BagDataset(torch.utils.data.Dataset[WholeBag]):
    """The bags of a cohort, one per slide or patient; slides are opened on access, and no file stays open.

    ``dataset[3]`` is the whole bag of one slide as uint8, for a plain ``torch.utils.data.DataLoader`` with
    ``batch_size=None`` (and ``multiprocessing_context="spawn"`` if it has workers). Such a loop must call
    ``dataset.set_epoch(epoch)`` before each epoch, like the ``set_epoch`` of a DistributedSampler: without it every
    epoch has the draws of the first, and a ``RepeatedDrawsWarning`` is given. ``BagLoader`` is the alternative:
    threads, chunks, bags larger than memory, epochs that advance automatically.

    Parameters
    ----------
    cohort : path, list or Cohort
        A CSV, or a list of slides, bag stores (``.bag.zarr``) or bags; with ``unit: patient`` also of stored patients
        (``.patient.json``). See ``Cohort.of``.
    config : LoaderConfig, path, name of a preset or dict, optional
        Resolution, tissue, grid, augmentation, tiles per bag and seed, such as ``"uni-224"``. With ``unit: patient`` a
        bag is the ``PatientBag`` of all slides with one value in the column "patient", and its rows in
        ``dataset.cohort`` are patients; the draws of each slide are as in its own bag.
    slide_transform, tile_transform : albumentationsxl transforms, optional
        Drawn once per slide and once per tile, again for every epoch (``set_epoch``); they replace those of ``config``.
        Of a bag store, ``slide_transform`` may have colours only, and ``config.stored`` says what is beyond a tile's
        edge: see ``AugmentedBag``.
    views : MultiCrop, optional
        Several draws of each tile, in place of a transform per tile: ``chunk.views`` of a ``BagLoader``.
    cells : sequence of str, or mapping of str to int, optional
        Classes of the cells in the files of the column "cell_file", and their labels: 1, 2, … in the order of a
        sequence. Batches and whole bags then have ``targets``, the points and boxes of each tile; see
        ``Annotations.from_cells``.

    Raises
    ------
    ConfigError
        The cohort has errors, listed together; or a configuration or transform is invalid.

    Examples
    --------
    >>> from slideio_pipe import TileBag, TileGrid, open_slide
    >>> slides = [open_slide(np.full((300, 500, 3), 90, np.uint8), slide_mpp=0.5)]
    >>> bags = [TileBag(slide.view(), TileGrid(slide.view(), tile_size=100), label=1) for slide in slides]
    >>> dataset = BagDataset(bags)
    >>> len(dataset), dataset[0]
    (1, WholeBag(array: (15, 3, 100, 100) uint8 on cpu, label 1))
    """

    def __init__(
        self,
        cohort: str | Path | Cohort | Iterable[str | Path | Bag],
        config: LoaderConfig | str | Path | Mapping[str, Any] | None = None,
        *,
        slide_transform: Any = None,
        tile_transform: Any = None,
        views: MultiCrop | None = None,
        cells: Sequence[str] | Mapping[str, int] | None = None,
    ) -> None:
        self.config = config if isinstance(config, LoaderConfig) else load_loader_config(config)
        self.cohort = Cohort.of(cohort)
        if self.config.unit == "patient":
            self.cohort = by_patient(self.cohort)
        self.slide_transform, ending = _transform(slide_transform, self.config.slide_transform)
        self.tile_transform, tile_ending = _transform(tile_transform, self.config.tile_transform)
        self.ending = joined(ending, tile_ending, "")
        check_views(views)
        if views is not None and self.tile_transform is not None:
            remedy = "leave one of them out: MultiCrop(global_transform=…, local_transform=…) is of the views"
            raise ConfigError("views, and a transform per tile", remedy=remedy)
        self.views = views
        self._shared = SharedEpoch(len(self.cohort))
        self.on_stage: OnTiming | None = None  # called with the stages of opening and reading, and their times
        self._counts: dict[int, int | None] = {}
        if cells is not None:
            self._check_cells(cells)
        self._slides = SlideOpener(self.config, self.slide_transform, self.tile_transform, views, cells)
        drawn = self.slide_transform is not None or self.tile_transform is not None
        if drawn:
            self._check_drawable()

    def _check_cells(self, classes: Sequence[str] | Mapping[str, int]) -> None:
        """Raise ConfigError if classes are no names, or a slide has no cells, before any is opened."""
        class_names(classes, None)
        if self.views is not None:
            raise ConfigError("cells, and views of tiles", remedy="leave one of them out: views have no targets")
        slides = self._every_slide()
        without = [slide.name for slide in slides if slide.cell_file is None and not _is_annotated(slide.source)]
        if without:
            some = f"{', '.join(without[:5])}{', …' if len(without) > 5 else ''}"
            reason = f"{len(without)} of {len(slides)} slides have no cells: {some}"
            raise ConfigError(reason, remedy='name their files in the column "cell_file" of the cohort')

    def _check_drawable(self) -> None:
        """Raise ConfigError if a transform is not possible for a bag of the cohort, before any is opened."""
        slides = self._every_slide()
        ready = [slide.name for slide in slides if not (is_slide(slide) or is_store(slide))]
        if ready:
            raise ConfigError(
                f"a transform, and {ready[0]} has its pixels already ({len(ready)} of {len(slides)} have)",
                remedy="pass slides or stored bags, augment the bags themselves, or leave the transform out",
            )
        stored = next((slide.name for slide in slides if is_store(slide)), None)
        if stored is not None:
            check_colours_only(self.slide_transform, stored)

    @property
    def epoch(self) -> int:
        """The epoch whose draws ``dataset[k]`` uses; see ``set_epoch``."""
        return self._shared.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._shared.epoch = int(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose draws ``dataset[k]`` uses: the selected tiles, and the transforms' parameters.

        Persistent workers of a DataLoader (``persistent_workers=True``) use it, too. Call it before an epoch begins:
        bags that a DataLoader has prefetched are already drawn.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.cohort)

    def __getitem__(self, number: int) -> WholeBag:
        if not -len(self) <= number < len(self):
            raise IndexError(f"bag {number} of {len(self)}")
        number %= len(self)
        epoch = self.epoch  # once: another process may set it meanwhile
        slide, bag = self.cohort[number], self.open(number, epoch)
        try:
            index = self.chosen(number, bag, epoch)
            self._warn_of_repeats(number, epoch, bag, drawn=len(index) < len(bag))
            tiles, views = tiles_and_views(torch.from_numpy(bag.read(index)).movedim(-1, -3), self.views)
            known = self.label(number, bag), self.patient(number, bag)
            coords, of_slides = np.asarray(bag.coords)[index], slide_index_of(bag, index)
            names, mpps = slide_names_of(bag), nominal_mpps_of(bag)
            found = targets_of_batch(bag, index)
            return WholeBag(tiles, coords, index, slide.name, *known, of_slides, names, views, mpps, found)
        finally:
            self.close(number, bag)

    def _warn_of_repeats(self, number: int, epoch: int, bag: Bag, *, drawn: bool) -> None:
        """Warn once if a DataLoader reads a bag again in one epoch: its draws are the same."""
        bags = bag.slides if isinstance(bag, PatientBag) else (bag,)
        drawn = drawn or self.slide_transform is not None or self.views is not None
        drawn = drawn or any(getattr(each, "tile_transform", None) is not None for each in bags)
        drawn = drawn or any(isinstance(each, AugmentedBag) for each in bags)
        if drawn and is_read_by_data_loader() and self._shared.is_first_repeat(number, epoch):
            warn_caller(
                RepeatedDrawsWarning(
                    f"{self.cohort[number].name} is read again in epoch {epoch}, with the tiles and transforms that "
                    "were drawn before; call dataset.set_epoch(epoch) before each epoch"
                )
            )

    def open(self, number: int, epoch: int | None = None) -> Bag:
        """Return the bag of a slide: opened, tissue found, tiles placed, transforms drawn; no tile is decoded.

        Of a patient, the ``PatientBag`` of its slides; if one of them fails, the patient does.

        Raises
        ------
        NoTissueError
            It has no tiles, or a slide of the patient has none.
        SlideioPipeError
            Errors of opening the slide and finding tissue.
        """
        row, at = self.cohort[number], self.epoch if epoch is None else epoch
        if not isinstance(row, CohortPatient):
            return self._open_slide(row, at)
        bags: list[Bag] = []
        try:
            bags.extend(self._open_slide(slide, at) for slide in row.slides)
            return PatientBag(bags, patient=row.name, label=row.label)
        except BaseException:
            for slide, bag in zip(row.slides, bags, strict=False):
                self._slides.close(slide, bag)
            raise

    def _open_slide(self, slide: CohortSlide, epoch: int) -> Bag:
        begun = time.perf_counter() if self.on_stage else 0.0
        bag = self._opened(slide, epoch)
        if self.on_stage:
            self.on_stage("open", begun, time.perf_counter())
            if isinstance(bag, DrawnBag | StoredBag | ViewsBag):
                bag = copy.copy(bag)  # the caller's bag is not changed
                bag.on_stage = self.on_stage
        if not len(bag):
            if isinstance(bag, TileBag) and bag.grid.refused is not None and len(bag.grid.refused):
                raise no_good_tile(bag.grid.refused, slide.name)
            remedy = "leave it out, or lower {min_tissue=}"
            if slide.mask is not None:
                remedy += f"; check that {slide.mask} is of this slide"
            raise NoTissueError("no tile has enough tissue", slide=slide.name, remedy=remedy)
        return bag

    def close(self, number: int, bag: Bag) -> None:
        """Release the files of a bag that ``open`` returned; bags given by the caller stay open."""
        row = self.cohort[number]
        bags = bag.slides if isinstance(row, CohortPatient) and isinstance(bag, PatientBag) else (bag,)
        for slide, each in zip(slides_of_row(row), bags, strict=True):
            self._slides.close(slide, each)

    def chosen(self, number: int, bag: Bag, epoch: int | None = None) -> NDArray[np.int64]:
        """Return the tiles of a bag that an epoch uses, ascending: all, or ``max_tiles`` of them, drawn per epoch."""
        limit = self.config.max_tiles
        if limit is None or len(bag) <= limit:
            return np.arange(len(bag), dtype=np.int64)
        rng = self.rng(self.epoch if epoch is None else epoch, "tiles", self.cohort[number].name)
        return np.sort(rng.choice(len(bag), limit, replace=False)).astype(np.int64)

    def count_tiles(self, number: int) -> int | None:
        """Return the number of a bag's tiles that an epoch uses; None if its slide must be opened to find out."""
        if number not in self._counts:
            try:
                counts = [count_stored(slide) for slide in slides_of_row(self.cohort[number])]
                known = [count for count in counts if count is not None]
                self._counts[number] = sum(known) if len(known) == len(counts) else None
            except SlideioPipeError:  # raised with more details in the epoch
                return None
        count, limit = self._counts[number], self.config.max_tiles
        return count if count is None or limit is None else min(count, limit)

    def label(self, number: int, bag: Bag) -> Label:
        """Return the label of a slide or patient: the cohort's, else the bag's own."""
        label = self.cohort[number].label
        return bag.label if label is None else label

    def patient(self, number: int, bag: Bag) -> str | None:
        """Return the patient of a slide: the cohort's, else the bag's."""
        return self.cohort[number].patient or patient_of(bag)

    def rng(self, epoch: int, *what: str) -> np.random.Generator:
        """Return the generator that depends only on (seed, epoch, what)."""
        return seeded(self.config.seed, epoch, *what)

    def _opened(self, slide: CohortSlide, epoch: int) -> Bag:
        return self._slides.open(slide, epoch)

    def _every_slide(self) -> list[CohortSlide]:
        """Return the slides of all rows."""
        return [slide for row in self.cohort for slide in slides_of_row(row)]

    @cached_property
    def tile_shape(self) -> tuple[int, ...]:
        """Height, width and channels of every tile, after the number of magnifications if there are several.

        From the configuration if possible, else from the first bag.

        Raises
        ------
        SlideioPipeError
            No bag can be opened; the error is that of the first.
        """
        side, further = self.config.grid.tile_size, len(self.config.view.context)
        scales = (1 + further,) if further else ()
        if self.views is not None:
            return self.views.packed_shape
        if any(is_slide(slide) for slide in self._every_slide()) and not self.config.grid.align:
            if self.tile_transform is None:
                return *scales, side, side, 3
            from slideio_pipe.augment.compose import draw, needs_slide  # imports albumentationsxl

            if not needs_slide(self.tile_transform):
                size = draw(self.tile_transform, tile=0, size=Size(side, side)).canvas
                return *scales, size.height, size.width, 3
        return self._first_shape()

    def _first_shape(self) -> tuple[int, ...]:
        failures: list[SlideioPipeError] = []
        for slide in self._every_slide():
            try:
                _, *tile_shape = self._opened(slide, 0).shape
            except SlideioPipeError as error:
                failures.append(error)
            else:
                return tuple(tile_shape)
        raise failures[0]

    def digest(self) -> str:
        """Return sixteen hex digits over everything the tiles depend on: the ordered slides and the configuration."""
        transforms = [
            None if t is None else t.to_dict()["transform"] for t in (self.slide_transform, self.tile_transform)
        ]
        slides = [[slide.name, slide.mpp, str(slide.mask)] for slide in self._every_slide()]
        patients = [[row.name, len(slides_of_row(row))] for row in self.cohort] if self.config.unit == "patient" else []
        views = [] if self.views is None else [self.views.to_dict()]
        config = self.config.model_dump(mode="json") | method_fingerprint(self.config.tissue.method)
        known = json.dumps([slides + patients, config, transforms, *views], sort_keys=True, default=str)
        return hashlib.sha256(known.encode()).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"BagDataset({counted(len(self), self.cohort)})"


def _is_annotated(source: Any) -> bool:
    return isinstance(source, ArrayLikeBag) and source.annotated


def _transform(given: Any, file: str | None) -> tuple[Any, Ending | None]:
    """Return a transform, given or of a file, and its end, which the device does."""
    if given is None and file is None:
        return None, None
    from slideio_pipe.augment.compose import check, load_transform  # imports albumentationsxl

    transform = load_transform(file) if given is None and file is not None else given
    transform, ending = split_end(transform)
    if transform is not None:
        check(transform)
    return transform, ending
