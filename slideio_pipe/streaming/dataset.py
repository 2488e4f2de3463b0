"""A cohort as bags: slides are opened, their tissue found and their tiles placed on access."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import time
import zlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from slideio_pipe.augment.draw import seeded
from slideio_pipe.augment.slide_colour import SlideColour
from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.names import SUFFIX
from slideio_pipe.errors import ConfigError, NoTissueError, RepeatedDrawsWarning, SlideioPipeError, warn_caller
from slideio_pipe.geometry import Size
from slideio_pipe.slides.backends.base import OnTiming
from slideio_pipe.slides.byte_cache import ByteCache
from slideio_pipe.slides.slide import Slide, open_slide
from slideio_pipe.store import AugmentedBag, StoredBag, open_bag
from slideio_pipe.store.augmented_bag import check_colours_only
from slideio_pipe.store.metadata import is_bag_store
from slideio_pipe.streaming.config import LoaderConfig, load_loader_config
from slideio_pipe.streaming.shared_epoch import SharedEpoch, is_read_by_data_loader
from slideio_pipe.streaming.whole_bag import WholeBag
from slideio_pipe.tiles.bag import Bag, Label, patient_of
from slideio_pipe.tiles.drawn_bag import DrawnBag
from slideio_pipe.tiles.find_tissue import tissue_of
from slideio_pipe.tiles.grid import TileGrid
from slideio_pipe.tiles.tile_bag import TileBag
from slideio_pipe.tiles.tissue_mask import TissueMask

# Memory limit of a cohort's tissue masks, compressed: about 20 KB each, so 3,000 slides.
_MASK_BYTES = 64 * 2**20


class BagDataset(torch.utils.data.Dataset[WholeBag]):
    """The bags of a cohort, one per slide; slides are opened on access, and no file stays open.

    ``dataset[3]`` is the whole bag of one slide as uint8, for a plain ``torch.utils.data.DataLoader`` with
    ``batch_size=None`` (and ``multiprocessing_context="spawn"`` if it has workers). Such a loop must call
    ``dataset.set_epoch(epoch)`` before each epoch, like the ``set_epoch`` of a DistributedSampler: without it every
    epoch has the draws of the first, and a ``RepeatedDrawsWarning`` is given. ``BagLoader`` is the alternative:
    threads, chunks, bags larger than memory, epochs that advance automatically.

    Parameters
    ----------
    cohort : path, list or Cohort
        A CSV, or a list of slides, bag stores (``.bag.zarr``) or bags. See ``Cohort.of``.
    config : LoaderConfig, path, name of a preset or dict, optional
        Resolution, tissue, grid, augmentation, tiles per bag and seed, such as ``"uni-224"``.
    slide_transform, tile_transform : albumentationsxl transforms, optional
        Drawn once per slide and once per tile, again for every epoch (``set_epoch``); they replace those of ``config``.
        Of a bag store, ``slide_transform`` may have colours only, and ``config.stored`` says what is beyond a tile's
        edge: see ``AugmentedBag``.

    Raises
    ------
    ConfigError
        The cohort has errors, listed together; or a configuration or transform is invalid.

    Examples
    --------
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
    ) -> None:
        self.cohort = Cohort.of(cohort)
        self.config = config if isinstance(config, LoaderConfig) else load_loader_config(config)
        self.slide_transform = _transform(slide_transform, self.config.slide_transform)
        self.tile_transform = _transform(tile_transform, self.config.tile_transform)
        self._shared = SharedEpoch(len(self.cohort))
        self.on_stage: OnTiming | None = None  # called with the stages of opening and reading, and their times
        self._masks: ByteCache[str, bytes] = ByteCache(_MASK_BYTES)
        self._counts: dict[int, int | None] = {}
        self._colours: dict[str, SlideColour] = {}  # measured when a transform needs it; about a second each
        drawn = self.slide_transform is not None or self.tile_transform is not None
        if drawn:
            self._check_drawable()

    def _check_drawable(self) -> None:
        """Raise ConfigError if a transform is not possible for a bag of the cohort, before any is opened."""
        ready = [slide.name for slide in self.cohort if not (_is_slide(slide) or _is_store(slide))]
        if ready:
            raise ConfigError(
                f"a transform, and {ready[0]} has its pixels already ({len(ready)} of {len(self.cohort)} have)",
                remedy="pass slides or stored bags, augment the bags themselves, or leave the transform out",
            )
        stored = next((slide.name for slide in self.cohort if _is_store(slide)), None)
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
            tiles = torch.from_numpy(bag.read(index)).permute(0, 3, 1, 2)
            known = self.label(number, bag), self.patient(number, bag)
            return WholeBag(tiles, np.asarray(bag.coords)[index], index, slide.name, *known)
        finally:
            self.close(number, bag)

    def _warn_of_repeats(self, number: int, epoch: int, bag: Bag, *, drawn: bool) -> None:
        """Warn once if a DataLoader reads a bag again in one epoch: its draws are the same."""
        drawn = drawn or self.slide_transform is not None or getattr(bag, "tile_transform", None) is not None
        drawn = drawn or isinstance(bag, AugmentedBag)
        if drawn and is_read_by_data_loader() and self._shared.is_first_repeat(number, epoch):
            warn_caller(
                RepeatedDrawsWarning(
                    f"{self.cohort[number].name} is read again in epoch {epoch}, with the tiles and transforms that "
                    "were drawn before; call dataset.set_epoch(epoch) before each epoch"
                )
            )

    def open(self, number: int, epoch: int | None = None) -> Bag:
        """Return the bag of a slide: opened, tissue found, tiles placed, transforms drawn; no tile is decoded.

        Raises
        ------
        NoTissueError
            It has no tiles.
        SlideioPipeError
            Errors of opening the slide and finding tissue.
        """
        slide = self.cohort[number]
        begun = time.perf_counter() if self.on_stage else 0.0
        bag = self._opened(slide, self.epoch if epoch is None else epoch)
        if self.on_stage:
            self.on_stage("open", begun, time.perf_counter())
            if isinstance(bag, DrawnBag | StoredBag):
                bag = copy.copy(bag)  # the caller's bag is not changed
                bag.on_stage = self.on_stage
        if not len(bag):
            remedy = "leave it out, or lower {min_tissue=}"
            if slide.mask is not None:
                remedy += f"; check that {slide.mask} is of this slide"
            raise NoTissueError("no tile has enough tissue", slide=slide.name, remedy=remedy)
        return bag

    def close(self, number: int, bag: Bag) -> None:
        """Release the file of a bag that ``open`` returned; bags given by the caller stay open."""
        slide = self.cohort[number]
        if bag is slide.source:
            return
        if isinstance(bag, AugmentedBag) and _is_store(slide) and "colour" in vars(bag.view.slide):
            self._colours[slide.name] = bag.view.slide.colour
        if isinstance(bag, StoredBag | AugmentedBag):
            if isinstance(slide.source, Path):
                bag.close()
        elif isinstance(bag, TileBag) and isinstance(bag.view.slide, Slide) and _is_slide(slide):
            if "colour" in vars(bag.view.slide):  # measured once, for later epochs
                self._colours[slide.name] = bag.view.slide.colour
            bag.view.slide.close()

    def chosen(self, number: int, bag: Bag, epoch: int | None = None) -> NDArray[np.int64]:
        """Return the tiles of a bag that an epoch uses, ascending: all, or ``max_tiles`` of them, drawn per epoch."""
        limit = self.config.max_tiles
        if limit is None or len(bag) <= limit:
            return np.arange(len(bag), dtype=np.int64)
        rng = self.rng(self.epoch if epoch is None else epoch, "tiles", self.cohort[number].name)
        return np.sort(rng.choice(len(bag), limit, replace=False)).astype(np.int64)

    def count_tiles(self, number: int) -> int | None:
        """Return the number of a bag's tiles that an epoch uses; None if its slide must be opened to find out."""
        slide = self.cohort[number]
        if number not in self._counts:
            try:
                self._counts[number] = _count(slide)
            except SlideioPipeError:  # raised with more details in the epoch
                return None
        count, limit = self._counts[number], self.config.max_tiles
        return count if count is None or limit is None else min(count, limit)

    def label(self, number: int, bag: Bag) -> Label:
        """Return the label of a slide: the cohort's, else the bag's own."""
        label = self.cohort[number].label
        return bag.label if label is None else label

    def patient(self, number: int, bag: Bag) -> str | None:
        """Return the patient of a slide: the cohort's, else the bag's."""
        return self.cohort[number].patient or patient_of(bag)

    def rng(self, epoch: int, *what: str) -> np.random.Generator:
        """Return the generator that depends only on (seed, epoch, what)."""
        return seeded(self.config.seed, epoch, *what)

    @cached_property
    def tile_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every tile: from the configuration if possible, else from the first bag.

        Raises
        ------
        SlideioPipeError
            No bag can be opened; the error is that of the first.
        """
        side = self.config.grid.tile_size
        if any(_is_slide(slide) for slide in self.cohort) and not self.config.grid.align:
            if self.tile_transform is None:
                return side, side, 3
            from slideio_pipe.augment.compose import draw, needs_slide  # imports albumentationsxl

            if not needs_slide(self.tile_transform):
                size = draw(self.tile_transform, tile=0, size=Size(side, side)).canvas
                return size.height, size.width, 3
        return self._first_shape()

    def _first_shape(self) -> tuple[int, int, int]:
        failures: list[SlideioPipeError] = []
        for slide in self.cohort:
            try:
                _, height, width, channels = self._opened(slide, 0).shape
            except SlideioPipeError as error:
                failures.append(error)
            else:
                return height, width, channels
        raise failures[0]

    def digest(self) -> str:
        """Return sixteen hex digits over everything the tiles depend on: the ordered slides and the configuration."""
        transforms = [
            None if t is None else t.to_dict()["transform"] for t in (self.slide_transform, self.tile_transform)
        ]
        slides = [[slide.name, slide.mpp, str(slide.mask)] for slide in self.cohort]
        known = json.dumps([slides, self.config.model_dump(mode="json"), transforms], sort_keys=True, default=str)
        return hashlib.sha256(known.encode()).hexdigest()[:16]

    def _opened(self, slide: CohortSlide, epoch: int) -> Bag:
        source = slide.source
        if isinstance(source, StoredBag):
            return self._augmented(source, slide, epoch)
        if not isinstance(source, Path):
            return _at_epoch(source, epoch)
        if not _is_slide(slide):
            return self._augmented(open_bag(source), slide, epoch)
        config = self.config
        opened = open_slide(source, **config.slide.in_cohort(slide.mpp), backend=config.slide.backend)
        if slide.name in self._colours:
            opened.colour = self._colours[slide.name]
        view = opened.view(mpp=config.view.mpp, transform=self.slide_transform, seed=config.seed, epoch=epoch)
        grid = TileGrid(view, tissue=self._tissue(slide, opened), **config.grid.model_dump())
        drawn = {"tile_transform": self.tile_transform, "seed": config.seed, "epoch": epoch}
        return TileBag(view, grid, label=slide.label, patient=slide.patient, **drawn)

    def _augmented(self, bag: StoredBag, slide: CohortSlide, epoch: int) -> Bag:
        """Return a stored bag with the draws of an epoch; without a transform, the bag itself."""
        if self.slide_transform is None and self.tile_transform is None:
            return bag
        return AugmentedBag(
            bag,
            tile_transform=self.tile_transform,
            slide_transform=self.slide_transform,
            seed=self.config.seed,
            epoch=epoch,
            **self.config.stored.model_dump(),
            colour=self._colours.get(slide.name),
        )

    def _tissue(self, slide: CohortSlide, opened: Slide) -> TissueMask | None:
        """Return the tissue of a slide, found once: later epochs do not decode its overview again."""
        config = self.config.tissue
        if slide.mask is None and config.method == "none":
            return None
        packed = self._masks.get(slide.name)
        if packed is not None:
            known: TissueMask = pickle.loads(zlib.decompress(packed))
            return known
        found = tissue_of(opened, config, slide.mask, frame=self.config.mask_frame)
        packed = zlib.compress(pickle.dumps(found), 1)
        self._masks.keep(slide.name, packed, len(packed))
        return found

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_masks": ByteCache(_MASK_BYTES)}

    def __repr__(self) -> str:
        return f"BagDataset({len(self):,} slide{'' if len(self) == 1 else 's'})"


def _transform(given: Any, file: str | None) -> Any:
    if given is None and file is None:
        return None
    from slideio_pipe.augment.compose import check, load_transform  # imports albumentationsxl

    transform = load_transform(file) if given is None and file is not None else given
    check(transform)
    return transform


def _is_slide(slide: CohortSlide) -> bool:
    """Return whether tiles must still be placed: it is a path, and not a bag store."""
    source = slide.source
    if not isinstance(source, Path):
        return False
    return not (source.is_dir() and (is_bag_store(source) or source.name.endswith(SUFFIX)))


def _is_store(slide: CohortSlide) -> bool:
    """Return whether it is a bag store, opened or not."""
    return isinstance(slide.source, StoredBag) or (isinstance(slide.source, Path) and not _is_slide(slide))


def _count(slide: CohortSlide) -> int | None:
    """Return the number of tiles of a bag; None for a slide."""
    if not isinstance(slide.source, Path):
        return len(slide.source)
    if _is_slide(slide):
        return None
    with open_bag(slide.source) as bag:
        return len(bag)


def _at_epoch(bag: Bag, epoch: int) -> Bag:
    """Return a bag with the tiles' draws of an epoch; its own epoch counts from 0."""
    if isinstance(bag, AugmentedBag) and epoch:
        return bag.at_epoch(bag.epoch + epoch)
    if not isinstance(bag, TileBag) or bag.tile_transform is None or not epoch:
        return bag
    drawn = {"tile_transform": bag.tile_transform, "seed": bag.seed, "epoch": bag.epoch + epoch}
    return TileBag(bag.view, bag.grid, label=bag.label, patient=bag.patient, **drawn)
