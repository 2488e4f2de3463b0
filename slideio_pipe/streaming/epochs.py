"""State of a loader: the epoch, its delivered chunks, the running iteration, the failures."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from slideio_pipe.cohort.patients import unit_of
from slideio_pipe.errors import FailedSlidesError, SkippedWarning, warn_caller
from slideio_pipe.streaming.batch_transform import BatchTransform
from slideio_pipe.streaming.chunks import Chunk, FailedBag, LoaderSettings, Progress
from slideio_pipe.streaming.dataset import BagDataset
from slideio_pipe.streaming.device import Sender
from slideio_pipe.streaming.reading_threads import Readers, ReadingThreads
from slideio_pipe.streaming.reading_workers import ReadingWorkers, WorkerReaders
from slideio_pipe.streaming.ring import BackgroundIterator, BufferPool
from slideio_pipe.streaming.schedule import EpochSchedule
from slideio_pipe.streaming.shares import Share
from slideio_pipe.tiles.failures import TileFailure, warn_of

Items = BackgroundIterator[Chunk | FailedBag]

_GO_ON_REMEDY = (
    'BagLoader(on_error="white" or "skip") continues after tiles that cannot be decoded, max_failures=5 after slides.'
)


@dataclass(slots=True, eq=False)
class Epochs:
    """The epochs of a loader, one at a time.

    An epoch ends when its last item has been returned, or when another iteration begins after at least one item.
    """

    dataset: BagDataset
    sender: Sender
    pace: LoaderSettings
    share: Share  # the bags of this process
    prefetch: int  # chunks that may be ready in advance
    shuffle: bool  # the bags, in every epoch
    max_failures: int  # slides that may fail in an epoch
    transform: BatchTransform | None = None  # of the caller, on each chunk
    epoch: int = 0
    progress: Progress = field(default_factory=Progress)
    failures: list[TileFailure] = field(default_factory=list)
    count: int = 0  # bags of the latest epoch
    _order: tuple[tuple[int, int, int], list[int]] | None = None
    _items: Items | None = None  # of the running iteration
    _workers: ReadingWorkers | None = None
    _abandoned: bool = False  # the loader was deleted: no epoch follows
    _warned_of_dropped: bool = False

    def go_to(self, epoch: int, progress: Progress | None = None) -> None:
        """Go to the start of an epoch, or to ``progress`` within it."""
        self.close()
        self.epoch, self.progress = epoch, progress or Progress()
        if progress is not None and progress.finished and self.is_complete():
            self.epoch, self.progress = epoch + 1, Progress()

    def order(self) -> list[int]:
        """Return the numbers of the slides of this epoch and process, in their order."""
        known = self.epoch, self.share.rank, self.share.world_size
        if self._order is None or self._order[0] != known:
            numbers = np.arange(len(self.dataset))
            if self.shuffle:
                numbers = self.dataset.rng(self.epoch, "order").permutation(len(self.dataset))
            self._order = known, self.share.of(numbers.tolist())
        return list(self._order[1])

    def count_bags(self) -> int:
        """Return the number of bags of this epoch for this process."""
        return len(self.order())

    def count_chunks(self) -> int | None:
        """Return the number of chunks of this epoch for this process; None if slides must be opened to count them."""
        counts = [self.dataset.count_tiles(number) for number in self.order()]
        known = [count for count in counts if count is not None]
        return None if len(known) < len(counts) else sum(-(-count // self.pace.chunk_size) for count in known)

    def start(self, *, whole: bool) -> Items:
        """Start an iteration: of this epoch, or of the next if an item of this one was returned.

        Parameters
        ----------
        whole : bool
            Gather bags: those that were partly delivered as chunks are read from the start.
        """
        self.close()
        if self.progress.any:
            self.epoch, self.progress = self.epoch + 1, Progress()
        if whole:
            self.progress.begun.clear()
        self.failures = []
        self.count = self.count_bags()
        self._warn_of_dropped()
        return self._read(whole=whole)

    def read_replacements(self, *, whole: bool) -> Items | None:
        """Read other bags in place of failed ones, if other processes depend on this one's number.

        Bags that this process has read are repeated in order, then those of the other processes. Without them one
        process would make fewer steps, and the others would wait for it forever.
        """
        if not self.share.is_even or self.progress.missing <= 0:
            return None
        order, failed = self.order(), self.progress.failed
        bad = {(order + self.progress.extra)[place] for place in failed}
        own = [number for number in order if number not in bad]
        others = [number for number in range(len(self.dataset)) if number not in bad and number not in own]
        spare = own + others
        if not spare:
            errors = [failure.error for failure in self.failures if failure.tile is None]
            raise FailedSlidesError(f"no {self._unit} can be read", errors, remedy="check the disk they are on")
        begun = len(self.progress.extra)
        self.progress.extra += [spare[(begun + k) % len(spare)] for k in range(self.progress.missing)]
        self.close()
        return self._read(whole=whole)

    def note(self, item: Chunk | FailedBag, *, whole: bool) -> None:
        """Record a delivered item.

        Raise SlideioPipeError or OSError if a slide failed, and ``max_failures`` is 0; FailedSlidesError if more slides
        failed than allowed.
        """
        self.progress.note(item)
        if isinstance(item, Chunk):
            self.failures.extend(item.failures)
            return
        self.failures.append(item.failure)
        self.progress.marked += item.began and not whole
        self._check_failures(item.failure)

    def is_complete(self) -> bool:
        """Return whether everything of the epoch has been returned."""
        planned = self.count_bags() + len(self.progress.extra)
        return len(self.progress.finished) >= planned and not (self.share.is_even and self.progress.missing > 0)

    def end(self) -> None:
        """End the running epoch, and give one warning for everything that could not be read."""
        self.close()
        self.epoch, self.progress = self.epoch + 1, Progress()
        if self.failures:
            warn_of(self.failures, self._unit)

    def is_running(self, items: Items) -> bool:
        """Return whether these items are still the running iteration."""
        return self._items is items

    def close(self) -> None:
        """Stop the running epoch: its threads, files and ring."""
        items, self._items = self._items, None
        if items is not None:
            items.close()

    def close_workers(self) -> None:
        """Stop the running epoch, and end the worker processes; another epoch starts new ones."""
        self.close()
        workers, self._workers = self._workers, None
        if workers is not None:
            workers.close()

    def abandon(self) -> None:
        """End the worker processes after the running epoch; for the finaliser of the loader: never blocks."""
        self._abandoned = True
        if self._workers is not None:
            self._workers.abandon()

    def no_tiles(self) -> torch.Tensor:
        """Return a tensor of no tiles, for the end of a bag that failed midway."""
        shape = (0, *self.dataset.tile_shape)
        return torch.empty(shape, dtype=self.sender.dtype, device=self.sender.device).movedim(-1, -3)

    def _read(self, *, whole: bool) -> Items:
        pace = replace(self.pace, interleave=1) if whole else self.pace
        order = self.order() + self.progress.extra
        ring, readers = self._start_readers()
        schedule = EpochSchedule(self.dataset, self.epoch, order, self.progress.done(), ring, pace, readers)
        self._items = BackgroundIterator(schedule.deliveries(), self.prefetch, self.sender.device)
        return self._items

    def _start_readers(self) -> tuple[BufferPool, Readers]:
        """Return the buffers and readers of an epoch; worker processes and their memory stay for the next."""
        pace = self.pace
        shape = (pace.chunk_size, *self.dataset.tile_shape)
        if not pace.workers:
            buffers = self.sender.host_buffers(pace.slots, shape)
            return BufferPool(self.sender, buffers), ReadingThreads(pace.threads, pace.chunk_size, self.sender.device)
        if self._workers is None or not self._workers.is_ours:
            self._workers = ReadingWorkers(pace.workers, self.sender, pace.slots, shape)
            self._workers.abandoned = self._abandoned
        readers = WorkerReaders(self._workers, self.dataset.on_stage)
        return BufferPool(self.sender, self._workers.buffers), readers

    @property
    def _unit(self) -> str:
        return unit_of(self.dataset.cohort)

    def _check_failures(self, failure: TileFailure) -> None:
        failed = len(self.progress.failed)
        if failed <= self.max_failures:
            return
        self.close()
        if not self.max_failures:
            failure.error.add_note(_GO_ON_REMEDY)
            raise failure.error
        errors = [failure.error for failure in self.failures if failure.tile is None]
        raise FailedSlidesError(
            f"{failed} {self._unit}s failed, {self.max_failures} may",
            errors,
            remedy="leave them out of the cohort, or raise {max_failures=}",
        )

    def _warn_of_dropped(self) -> None:
        """Warn once of slides that no epoch reads: without shuffling they are always the same."""
        dropped = self.share.dropped(len(self.dataset))
        if not dropped or self.shuffle or self._warned_of_dropped or self.share.rank:
            return
        self._warned_of_dropped = True
        names = ", ".join(slide.name for slide in list(self.dataset.cohort)[-dropped:])
        warn_caller(
            SkippedWarning(
                f"{dropped} of {len(self.dataset)} {self._unit}s are in no epoch, so that {self.share.world_size} "
                f'processes read equally many: {names}; pass shuffle=True, or even="pad" or "none"'
            )
        )
