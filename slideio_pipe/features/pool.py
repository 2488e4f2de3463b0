"""A pool for ``run_cohort`` that encodes: slides are opened ahead, and batches cross their borders.

It works in this process, where the device is; threads open, decode and write. A slide that crashes its reader ends the
run, and the next one goes on behind it: where slides are that bad, ``encode_cohort(workers=…)`` encodes each by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.run import Job
from slideio_pipe.cohort.workers.pool import Outcome
from slideio_pipe.errors import NoTissueError, SlideioPipeError
from slideio_pipe.features.encode_bag import BagFeatures, Encoding
from slideio_pipe.store import StoredBag
from slideio_pipe.streaming.chunks import Chunk, FailedBag, LoaderSettings
from slideio_pipe.streaming.config import LoaderConfig
from slideio_pipe.streaming.dataset import BagDataset
from slideio_pipe.streaming.device import Sender
from slideio_pipe.streaming.ring import BackgroundIterator, BufferPool
from slideio_pipe.streaming.schedule import EpochSchedule
from slideio_pipe.tiles.bag import Bag, Label, patient_of

# Tiles per chunk, at most: what is decoded together. Batches are made of as many chunks as they take.
_CHUNK_SIZE = 64
# Chunks that may be ready before they are asked for.
_PREFETCH = 3
# Bags being written; beyond that the encoding waits for the disk.
_WRITING = 4


@dataclass(frozen=True, slots=True, eq=False)
class BagMetadata:
    """What is kept of a bag whose pixels are gone: all but those."""

    name: str
    coords: NDArray[np.int64]
    grid_index: NDArray[np.int32]
    tissue: NDArray[np.float32]
    label: Label
    provenance: Mapping[str, Any]
    stored: bool  # whether it came from a bag store

    @classmethod
    def of(cls, bag: Bag, label: Label, patient: str | None) -> BagMetadata:
        """Return what is to be kept of a bag."""
        columns = (np.asarray(bag.coords), np.asarray(bag.grid_index), np.asarray(bag.tissue))
        facts = bag.provenance() | {"label": label, "patient": patient}
        return cls(bag.name, *columns, label, facts, isinstance(bag, StoredBag))

    def __len__(self) -> int:
        return len(self.coords)


class FeatureWriter(Protocol):
    """Where features go."""

    def missing(self, job: Job) -> list[str]:
        """Return whose features of a slide are still to be computed; raises what makes the slide fail."""
        ...

    def keep(self, job: Job, bag: BagMetadata, features: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Write the features of a slide, and return what to note of it; called on a thread."""
        ...


@dataclass(slots=True, eq=False)
class _Pending:
    """A slide on its way."""

    job: Job
    wanted: list[str]  # encoders
    began: float = 0.0
    rows: BagFeatures | None = None
    given_up: bool = False


class FeaturePool:
    """Encodes slides in this process.

    Parameters
    ----------
    encoding : Encoding
    keeper : FeatureWriter
    config : LoaderConfig
        How slides become tiles.
    slide_transform : albumentationsxl transform, optional
        Drawn once per slide.
    threads : int
        Threads that decode.
    bags_in_flight : int
        Bags open at a time: the one that is encoded, and those whose tissue is being found meanwhile.
    allow_empty : bool
        Write no rows for slides without tissue, instead of failing.
    on_tiles : callable, optional
        Called with how many tiles were encoded since the call before.
    """

    def __init__(
        self,
        encoding: Encoding,
        keeper: FeatureWriter,
        config: LoaderConfig,
        *,
        slide_transform: Any = None,
        threads: int,
        bags_in_flight: int = 4,
        allow_empty: bool = False,
        on_tiles: Callable[[int], object] | None = None,
    ) -> None:
        self._encoding, self._keeper, self._config = encoding, keeper, config
        self._transform, self._allow_empty = slide_transform, allow_empty
        self._on_tiles = on_tiles or (lambda count: None)
        self._pace = LoaderSettings(
            chunk_size=min(_CHUNK_SIZE, min(batches.size for batches in encoding.batches.values())),
            threads=threads,
            bags_in_flight=bags_in_flight,
            interleave=1,
            mix=0,
            ordered=False,
            on_error="raise",
            colours="host",
        )
        self.tiles = 0  # encoded so far

    def outcomes(self, tasks: Iterable[Any]) -> Generator[Outcome]:
        """Yield what became of each job, as they end. All are asked for before the first is begun."""
        pending: list[_Pending] = []
        for job in tasks:
            try:
                wanted = self._keeper.missing(job)
            except SlideioPipeError as error:
                yield Outcome(job, None, error, "open", 0.0)
                continue
            if wanted:
                pending.append(_Pending(job, wanted))
            else:  # they were computed by another run
                yield Outcome(job, {}, None, "encode", 0.0)
        if not pending:
            return
        dataset = _Slides([item.job.slide for item in pending], self._config, self._transform)
        try:
            dataset.tile_shape  # noqa: B018  # may open the first bag, which then stays open for its turn
        except SlideioPipeError:
            yield from (self._failed(item, dataset.failures[k], "open") for k, item in enumerate(pending))
            return
        yield from self._encoded(pending, dataset)

    def _encoded(self, pending: list[_Pending], dataset: _Slides) -> Iterator[Outcome]:
        sender = Sender(self._encoding.device, None, torch.float16)
        ring = BufferPool(sender, self._pace.slots, (self._pace.chunk_size, *dataset.tile_shape))
        flights = EpochSchedule(dataset, 0, range(len(pending)), {}, ring, self._pace)
        stage = BackgroundIterator(flights.deliveries(), _PREFETCH)
        whole: list[_Pending] = []
        writing: dict[Future[dict[str, Any]], _Pending] = {}
        try:
            with ThreadPoolExecutor(1, "slideio_pipe.features") as writer:

                def write(item: _Pending) -> None:
                    assert item.rows is not None
                    laid = dataset.laid.pop(item.job.slide.name)
                    writing[writer.submit(self._keeper.keep, item.job, laid, item.rows.features)] = item
                    item.rows = None

                while True:
                    try:
                        delivered = stage.take()
                    except StopIteration:
                        break
                    yield from self._take(pending[delivered.flight], delivered, dataset, whole)
                    del delivered
                    yield from self._settle(whole, write)
                    while writing and (len(writing) > _WRITING or next(iter(writing)).done()):
                        yield self._written(writing)
                self._encoding.flush()
                yield from self._settle(whole, write)
                while writing:
                    yield self._written(writing)
        finally:
            stage.close()
            dataset.let_go()

    def _take(
        self, item: _Pending, delivered: Chunk | FailedBag, dataset: _Slides, whole: list[_Pending]
    ) -> Iterator[Outcome]:
        """Take a chunk of a slide, or hear that it failed."""
        name = item.job.slide.name
        item.began = item.began or time.perf_counter()
        if isinstance(delivered, FailedBag):
            laid, error = dataset.laid.get(name), delivered.failure.error
            empty = isinstance(error, NoTissueError) and laid is not None and not len(laid)
            if empty and laid is not None and (self._allow_empty or laid.stored):
                item.rows = self._encoding.rows(name, laid.coords, item.wanted)
                whole.append(item)
                return
            whole[:] = [other for other in whole if other is not item]
            if not item.given_up:
                item.given_up = True
                yield self._failed(item, error, "tiles" if delivered.began else "open")
            dataset.laid.pop(name, None)
            return
        if item.rows is None and not item.given_up:
            item.rows = self._encoding.rows(name, dataset.laid[name].coords, item.wanted)
            whole.append(item)
        if item.rows is not None:
            self._encoding.add(delivered.sent.receive(), item.rows, delivered.index)
            self.tiles += len(delivered.index)
            self._on_tiles(len(delivered.index))

    def _settle(self, begun: list[_Pending], write: Callable[[_Pending], None]) -> Iterator[Outcome]:
        """Have the bags written whose last row is there, and give up those that are no numbers."""
        for item in list(begun):
            assert item.rows is not None
            if item.rows.error is not None:
                begun.remove(item)
                error, item.rows, item.given_up = item.rows.error, None, True
                yield self._failed(item, error, "encode")
            elif not item.rows.left:
                begun.remove(item)
                write(item)

    def _written(self, writing: dict[Future[dict[str, Any]], _Pending]) -> Outcome:
        """Wait for the bag that has been written longest."""
        future = next(iter(writing))
        item = writing.pop(future)
        try:
            made = future.result()
        except (SlideioPipeError, OSError) as error:
            return self._failed(item, error, "write")
        return Outcome(item.job, made, None, "write", time.perf_counter() - item.began)

    def _failed(self, item: _Pending, error: BaseException, stage: str) -> Outcome:
        item.rows = None
        own = error if isinstance(error, SlideioPipeError) else SlideioPipeError(f"{type(error).__name__}: {error}")
        seconds = time.perf_counter() - item.began if item.began else 0.0
        return Outcome(item.job, None, own, stage, seconds)


class _Slides(BagDataset):
    """The slides of a run as bags, of which all but the pixels is kept until their features are written."""

    def __init__(self, slides: Sequence[CohortSlide], config: LoaderConfig, slide_transform: Any) -> None:
        super().__init__(Cohort.unchecked(slides), config, slide_transform=slide_transform)
        self.laid: dict[str, BagMetadata] = {}
        self.failures: list[SlideioPipeError] = []  # of each slide, when none can be opened
        self._kept: dict[str, Bag] = {}  # opened for its tile shape

    def let_go(self) -> None:
        """Close what was opened and never read."""
        for number, slide in enumerate(self.cohort):
            bag = self._kept.pop(slide.name, None)
            if bag is not None:
                self.close(number, bag)

    def _opened(self, slide: CohortSlide, epoch: int) -> Bag:
        bag = self._kept.pop(slide.name, None)
        if bag is None:
            try:
                bag = super()._opened(slide, epoch)
                label = bag.label if slide.label is None else slide.label
                self.laid[slide.name] = BagMetadata.of(bag, label, slide.patient or patient_of(bag))
            except (SlideioPipeError, OSError):
                raise
            except Exception as error:  # whatever a library raises over a damaged slide costs that slide only
                raise SlideioPipeError(f"{type(error).__name__}: {error}", slide=slide.name) from error
        return bag

    def _first_shape(self) -> tuple[int, int, int]:
        self.failures = []
        for slide in self.cohort:
            try:
                bag = self._opened(slide, 0)
            except SlideioPipeError as error:
                self.failures.append(error)
                continue
            self._kept[slide.name] = bag
            _, height, width, channels = bag.shape
            return height, width, channels
        raise self.failures[0]
