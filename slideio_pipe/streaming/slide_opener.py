"""Open one slide of a cohort as a bag: from the slide, its stored bag, or a bag of the caller."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slideio_pipe.augment.slide_colour import SlideColour
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.names import SUFFIX
from slideio_pipe.slides.byte_cache import ByteCache
from slideio_pipe.slides.slide import Slide, open_slide
from slideio_pipe.store import AugmentedBag, StoredBag
from slideio_pipe.store.metadata import is_bag_store
from slideio_pipe.streaming.config import LoaderConfig
from slideio_pipe.streaming.views import with_views
from slideio_pipe.tiles.annotations import Annotations
from slideio_pipe.tiles.bag import ArrayLikeBag, Bag
from slideio_pipe.tiles.context_bag import bag_of
from slideio_pipe.tiles.find_tissue import tissue_of
from slideio_pipe.tiles.grid import TileGrid
from slideio_pipe.tiles.marks.slide_cells import read_cells_of
from slideio_pipe.tiles.multi_crop import MultiCrop
from slideio_pipe.tiles.patient_bag import PatientBag
from slideio_pipe.tiles.quality.good_tiles import with_quality
from slideio_pipe.tiles.quality.slide_quality import SlideQuality
from slideio_pipe.tiles.tile_bag import TileBag
from slideio_pipe.tiles.tissue_mask import TissueMask
from slideio_pipe.tiles.views_bag import ViewsBag

# Memory limit of a cohort's tissue masks, compressed: about 20 KB each, so 3,000 slides.
_MASK_BYTES = 64 * 2**20
# Likewise of the numbers of tiles: 4 bytes per number and tile; of slides whose transform moves them, rasters of 1 MB.
_QUALITY_BYTES = 256 * 2**20
# Memory limit of a cohort's cells: 100 bytes each, so 5 million.
_CELL_BYTES = 512 * 2**20


class SlideOpener:
    """Opens slides with the settings and transforms of a data set; keeps tissue and measured colours for later epochs.

    Parameters
    ----------
    config : LoaderConfig
    slide_transform, tile_transform : albumentationsxl transforms, or None
    views : MultiCrop, optional
    cells : sequence of str, or mapping of str to int, optional
        Classes of the slides' cells that are read.
    """

    def __init__(
        self,
        config: LoaderConfig,
        slide_transform: Any,
        tile_transform: Any,
        views: MultiCrop | None = None,
        cells: Sequence[str] | Mapping[str, int] | None = None,
    ) -> None:
        self.config, self.slide_transform, self.tile_transform = config, slide_transform, tile_transform
        self.views, self.cells = views, cells
        self._annotations: ByteCache[str, Annotations] = ByteCache(_CELL_BYTES)
        self._masks: ByteCache[str, bytes] = ByteCache(_MASK_BYTES)
        self._qualities: ByteCache[str, bytes] = ByteCache(_QUALITY_BYTES)
        self._colours: dict[str, SlideColour] = {}  # measured when a transform needs it; about a second each

    def open(self, slide: CohortSlide, epoch: int) -> Bag:
        """Return the bag of a slide with the draws of an epoch, or of its packed views; no tile is decoded."""
        bag = self._open(slide, epoch)
        if self.cells is not None and slide.cell_file is not None and isinstance(bag, ArrayLikeBag):
            bag.annotations = self._cells_of(slide, bag)
        return with_views(bag, self.views)

    def _cells_of(self, slide: CohortSlide, bag: Bag) -> Annotations:
        """Return the cells of a slide, read once: a file of 100,000 takes seconds."""
        known = self._annotations.get(slide.name)
        if known is None:
            assert slide.cell_file is not None
            known = read_cells_of(slide.cell_file, bag, self.cells)
            self._annotations.keep(slide.name, known, known.marks.nbytes)
        return known

    def _open(self, slide: CohortSlide, epoch: int) -> Bag:
        source = slide.source
        if isinstance(source, StoredBag):
            return self._augmented(source, slide, epoch)
        if not isinstance(source, Path):
            return _at_epoch(source, epoch, drawn=self.views is not None)
        if not is_slide(slide):
            return self._augmented(StoredBag(source), slide, epoch)
        config = self.config
        opened = open_slide(source, **config.slide.in_cohort(slide.mpp), backend=config.slide.backend)
        if slide.name in self._colours:
            opened.colour = self._colours[slide.name]
        view = opened.view(mpp=config.view.mpp, transform=self.slide_transform, seed=config.seed, epoch=epoch)
        grid = TileGrid(view, tissue=self._tissue(slide, opened), **config.grid.model_dump())
        grid = self._good(slide, grid)
        drawn = {"tile_transform": self.tile_transform, "seed": config.seed, "epoch": epoch}
        known = {"label": slide.label, "patient": slide.patient}
        return bag_of(view, grid, config.view, **known, **drawn)

    def close(self, slide: CohortSlide, bag: Bag) -> None:
        """Release the file of a bag that ``open`` returned; bags given by the caller stay open."""
        if isinstance(bag, ViewsBag):
            bag = bag.bag
        if bag is slide.source:
            return
        if isinstance(bag, AugmentedBag) and is_store(slide) and "colour" in vars(bag.view.slide):
            self._colours[slide.name] = bag.view.slide.colour
        if isinstance(bag, StoredBag | AugmentedBag):
            if isinstance(slide.source, Path):
                bag.close()
        elif isinstance(bag, TileBag) and isinstance(bag.view.slide, Slide) and is_slide(slide):
            if "colour" in vars(bag.view.slide):  # measured once, for later epochs
                self._colours[slide.name] = bag.view.slide.colour
            bag.view.slide.close()

    def _augmented(self, bag: StoredBag, slide: CohortSlide, epoch: int) -> Bag:
        """Return a stored bag with the draws of an epoch; without a transform and views, the bag itself."""
        if self.slide_transform is None and self.tile_transform is None and self.views is None:
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

    def _good(self, slide: CohortSlide, grid: TileGrid) -> TileGrid:
        """Return the grid without the tiles beyond a limit of quality, which is measured once for all epochs."""
        config, opened = self.config.quality, grid.view.slide
        if not config.names or not isinstance(opened, Slide):
            return grid
        # Tiles that a draw moves are elsewhere in the next epoch: then the slide's rasters are kept.
        key, source = f"{slide.name}/{'moved' if grid.view.moves else 'tiles'}", SlideQuality(opened)
        packed = self._qualities.get(key)
        known = None if packed is None else pickle.loads(zlib.decompress(packed))
        if isinstance(known, SlideQuality):
            source = known.on(opened)
        elif known is not None:
            grid.quality = known
        kept = with_quality(grid, config, source=source)
        if grid.view.moves or known is None:
            packed = zlib.compress(pickle.dumps(source if grid.view.moves else grid.quality), 1)
            self._qualities.keep(key, packed, len(packed))
        return kept

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {
            "_masks": ByteCache(_MASK_BYTES),
            "_qualities": ByteCache(_QUALITY_BYTES),
            "_annotations": ByteCache(_CELL_BYTES),
        }


def is_slide(slide: CohortSlide) -> bool:
    """Return whether tiles must still be placed: it is a path, and not a bag store."""
    source = slide.source
    if not isinstance(source, Path):
        return False
    return not (source.is_dir() and (is_bag_store(source) or source.name.endswith(SUFFIX)))


def is_store(slide: CohortSlide) -> bool:
    """Return whether it is a bag store, opened or not."""
    return isinstance(slide.source, StoredBag) or (isinstance(slide.source, Path) and not is_slide(slide))


def count_stored(slide: CohortSlide) -> int | None:
    """Return the number of tiles of a bag; None for a slide."""
    if not isinstance(slide.source, Path):
        return len(slide.source)
    if is_slide(slide):
        return None
    with StoredBag(slide.source) as bag:
        return len(bag)


def _at_epoch(bag: Bag, epoch: int, *, drawn: bool) -> Bag:
    """Return a bag with the tiles' draws of an epoch; its own epoch counts from 0.

    ``drawn`` says whether there are draws beside those of a transform of its own: views.
    """
    if isinstance(bag, PatientBag):
        slides = [_at_epoch(slide, epoch, drawn=drawn) for slide in bag.slides]
        return PatientBag(slides, patient=bag.patient, label=bag.label) if epoch else bag
    if isinstance(bag, AugmentedBag) and epoch:
        return bag.at_epoch(bag.epoch + epoch)
    if not isinstance(bag, TileBag) or not epoch or (bag.tile_transform is None and not drawn):
        return bag
    return bag.at_epoch(bag.epoch + epoch)
