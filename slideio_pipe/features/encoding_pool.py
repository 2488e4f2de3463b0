"""A pool for ``run_cohort`` that encodes slides in this process: it opens slides ahead and fills batches across slides.

Threads open, decode and write; the device is in this process. A slide that crashes its reader ends the run, and the
next run skips it: with many such slides, use ``encode_cohort(workers=…)``, which encodes each in a worker process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
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
from slideio_pipe.cohort.workers.process import portable
from slideio_pipe.errors import NoTissueError, SlideioPipeError
from slideio_pipe.features.encode_bag import BagFeatures, Encoding
from slideio_pipe.features.encoders import Encoder
from slideio_pipe.store import StoredBag
from slideio_pipe.streaming.chunks import Chunk, FailedBag, LoaderSettings
from slideio_pipe.streaming.config import LoaderConfig
from slideio_pipe.streaming.dataset import BagDataset
from slideio_pipe.streaming.device import Sender, check_device
from slideio_pipe.streaming.ring import BackgroundIterator, BufferPool
from slideio_pipe.streaming.schedule import EpochSchedule
from slideio_pipe.tiles.bag import Bag, Label, nominal_mpps_of, patient_of, quality_of
from slideio_pipe.tiles.quality.tile_quality import TileQuality

# Tiles per chunk, at most: decoded together. A batch is made of several chunks.
_CHUNK_SIZE = 64
# Chunks that may be ready in advance.
_PREFETCH = 3
# Bags open at a time: the one being encoded, and those whose tissue is being found.
_BAGS_IN_FLIGHT = 4
# Bags being written at a time; with more, encoding waits for the disk.
_MAX_WRITES = 4


@dataclass(frozen=True, slots=True, eq=False)
class BagMetadata:
    """A bag without its pixels: what is kept until its features are written."""

    name: str
    coords: NDArray[np.int64]
    grid_index: NDArray[np.int32]
    tissue: NDArray[np.float32]
    label: Label
    provenance: Mapping[str, Any]
    stored: bool  # whether it came from a bag store
    quality: TileQuality | None = None
    mpps: tuple[float, ...] = ()  # µm per px of its magnifications, if there are several

    @classmethod
    def of(cls, bag: Bag, label: Label, patient: str | None) -> BagMetadata:
        """Return the record of a bag."""
        columns = (np.asarray(bag.coords), np.asarray(bag.grid_index), np.asarray(bag.tissue))
        facts = bag.provenance() | {"label": label, "patient": patient}
        of_tiles = quality_of(bag), nominal_mpps_of(bag)
        return cls(bag.name, *columns, label, facts, isinstance(bag, StoredBag), *of_tiles)

    def __len__(self) -> int:
        return len(self.coords)


class FeatureWriter(Protocol):
    """The destination of features."""

    def missing(self, job: Job) -> list[str]:
        """Return the encoders whose features of a slide are missing; raises an error that makes the slide fail."""

    def keep(self, job: Job, bag: BagMetadata, features: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Write the features of a slide, and return the entries for its ledger; called in a thread."""


@dataclass(slots=True, eq=False)
class _Pending:
    """A slide being encoded."""

    job: Job
    wanted: list[str]  # encoders
    began: float = 0.0
    rows: BagFeatures | None = None
    failed: bool = False


@dataclass(frozen=True, slots=True)
class EncodeSettings:
    """Settings of encoding; can be pickled."""

    device: str
    batch_size: int
    dtype: str
    tiles: LoaderConfig  # how slides become tiles
    slide_transform: Any  # drawn once per slide, or None
    threads: int  # number of decoding threads
    allow_empty: bool  # write no rows for slides without tissue, instead of failing


class FeaturePool:
    """Encodes slides in this process.

    Parameters
    ----------
    encoders : iterable of Encoder
    how : EncodeSettings
    keeper : FeatureWriter
    on_tiles : callable, optional
        Called with the number of tiles encoded since the previous call.
    """

    def __init__(
        self,
        encoders: Iterable[Encoder],
        how: EncodeSettings,
        keeper: FeatureWriter,
        *,
        on_tiles: Callable[[int], object] | None = None,
    ) -> None:
        self._how, self._keeper = how, keeper
        self._encoding = Encoding(encoders, device=check_device(how.device), batch_size=how.batch_size, dtype=how.dtype)
        self._on_tiles = on_tiles or (lambda count: None)
        self._pace = LoaderSettings(
            chunk_size=min(_CHUNK_SIZE, min(batches.size for batches in self._encoding.batches.values())),
            threads=how.threads,
            bags_in_flight=_BAGS_IN_FLIGHT,
            interleave=1,
            mix=0,
            ordered=False,
            on_error="raise",
            colours="host",
        )
        self.tiles = 0  # number encoded so far

    def outcomes(self, tasks: Iterable[Any]) -> Generator[Outcome]:
        """Yield the outcome of each job when it ends. All jobs are read before the first is started."""
        pending: list[_Pending] = []
        for job in tasks:
            try:
                encoders = self._keeper.missing(job)
            except SlideioPipeError as error:
                yield Outcome(job, None, error, "open", 0.0)
                continue
            if encoders:
                pending.append(_Pending(job, encoders))
            else:  # another run has computed them
                yield Outcome(job, {}, None, "encode", 0.0)
        if not pending:
            return
        dataset = _Slides([item.job.slide for item in pending], self._how.tiles, self._how.slide_transform)
        try:
            dataset.tile_shape  # noqa: B018  # may open the first bag, which then stays open until it is read
        except SlideioPipeError:
            yield from (self._failed(item, dataset.failures[k], "open") for k, item in enumerate(pending))
            return
        yield from self._encoded(pending, dataset)

    def _encoded(self, pending: list[_Pending], dataset: _Slides) -> Iterator[Outcome]:
        sender = Sender(self._encoding.device, None, torch.float16)
        shape = (self._pace.chunk_size, *dataset.tile_shape)
        ring = BufferPool(sender, sender.host_buffers(self._pace.slots, shape))
        flights = EpochSchedule(dataset, 0, range(len(pending)), {}, ring, self._pace)
        stage = BackgroundIterator(flights.deliveries(), _PREFETCH, self._encoding.device)
        whole: list[_Pending] = []
        writing: dict[Future[dict[str, Any]], _Pending] = {}
        try:
            with ThreadPoolExecutor(1, "slideio_pipe.features") as writer:

                def write(item: _Pending) -> None:
                    assert item.rows is not None
                    bag = dataset.opened.pop(item.job.slide.name)
                    writing[writer.submit(self._keeper.keep, item.job, bag, item.rows.features)] = item
                    item.rows = None

                while True:
                    try:
                        delivered = stage.take()
                    except StopIteration:
                        break
                    yield from self._handle_chunk(pending[delivered.place], delivered, dataset, whole)
                    del delivered
                    yield from self._submit_complete(whole, write)
                    while writing and (len(writing) > _MAX_WRITES or next(iter(writing)).done()):
                        yield self._written(writing)
                self._encoding.flush()
                yield from self._submit_complete(whole, write)
                while writing:
                    yield self._written(writing)
        finally:
            stage.close()
            dataset.close_unread()

    def _handle_chunk(
        self, item: _Pending, delivered: Chunk | FailedBag, dataset: _Slides, whole: list[_Pending]
    ) -> Iterator[Outcome]:
        """Encode a chunk of a slide, or handle its failure."""
        name = item.job.slide.name
        item.began = item.began or time.perf_counter()
        if isinstance(delivered, FailedBag):
            bag, error = dataset.opened.get(name), delivered.failure.error
            empty = isinstance(error, NoTissueError) and bag is not None and not len(bag)
            if empty and bag is not None and (self._how.allow_empty or bag.stored):
                item.rows = self._rows(bag, item.wanted)
                whole.append(item)
                return
            whole[:] = [other for other in whole if other is not item]
            if not item.failed:
                item.failed = True
                yield self._failed(item, error, "tiles" if delivered.began else "open")
            dataset.opened.pop(name, None)
            return
        if item.rows is None and not item.failed:
            item.rows = self._rows(dataset.opened[name], item.wanted)
            whole.append(item)
        if item.rows is not None:
            self._encoding.add(delivered.sent.receive(), item.rows, delivered.index)
            self.tiles += len(delivered.index)
            self._on_tiles(len(delivered.index))

    def _rows(self, bag: BagMetadata, wanted: Collection[str]) -> BagFeatures:
        return self._encoding.rows(bag.name, bag.coords, wanted, max(1, len(bag.mpps)))

    def _submit_complete(self, begun: list[_Pending], write: Callable[[_Pending], None]) -> Iterator[Outcome]:
        """Submit complete bags for writing, and fail those with features that are not finite."""
        for item in list(begun):
            assert item.rows is not None
            if item.rows.error is not None:
                begun.remove(item)
                error, item.rows, item.failed = item.rows.error, None, True
                yield self._failed(item, error, "encode")
            elif not item.rows.left:
                begun.remove(item)
                write(item)

    def _written(self, writing: dict[Future[dict[str, Any]], _Pending]) -> Outcome:
        """Wait for the write that was submitted first."""
        future = next(iter(writing))
        item = writing.pop(future)
        try:
            made = future.result()
        except (SlideioPipeError, OSError) as error:
            return self._failed(item, error, "write")
        return Outcome(item.job, made, None, "write", time.perf_counter() - item.began)

    def _failed(self, item: _Pending, error: BaseException, stage: str) -> Outcome:
        item.rows = None
        seconds = time.perf_counter() - item.began if item.began else 0.0
        return Outcome(item.job, None, portable(error), stage, seconds)


class _Slides(BagDataset):
    """The slides of a run as bags; all but the pixels is kept until their features are written."""

    def __init__(self, slides: Sequence[CohortSlide], config: LoaderConfig, slide_transform: Any) -> None:
        super().__init__(Cohort.unchecked(slides), config, slide_transform=slide_transform)
        self.opened: dict[str, BagMetadata] = {}
        self.failures: list[SlideioPipeError] = []  # one per slide, if none can be opened
        self._kept: dict[str, Bag] = {}  # opened to read the tile shape

    def close_unread(self) -> None:
        """Close bags that were opened and not read."""
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
                self.opened[slide.name] = BagMetadata.of(bag, label, slide.patient or patient_of(bag))
            except (SlideioPipeError, OSError):
                raise
            except Exception as error:  # any error of a library for a damaged slide fails only that slide
                raise SlideioPipeError(f"{type(error).__name__}: {error}", slide=slide.name) from error
        return bag

    def _first_shape(self) -> tuple[int, ...]:
        self.failures = []
        for slide in self.cohort:
            try:
                bag = self._opened(slide, 0)
            except SlideioPipeError as error:
                self.failures.append(error)
                continue
            self._kept[slide.name] = bag
            return tuple(bag.shape[1:])
        raise self.failures[0]
