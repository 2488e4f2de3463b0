"""Epochs over a cohort: chunks or whole bags on a device, resumable, in bounded memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch

from slideio_pipe.cohort.patients import unit_of
from slideio_pipe.errors import ConfigError, FailedSlidesError
from slideio_pipe.files import Closable
from slideio_pipe.slides.backends.base import OnTiming
from slideio_pipe.slides.tile_cache import SHARED
from slideio_pipe.streaming.arguments import at_least, at_least_one, check_colours, check_normalize, default_threads
from slideio_pipe.streaming.batch_transform import BatchTransform, check_transformable
from slideio_pipe.streaming.chunk_stream import BagStream, ChunkStream
from slideio_pipe.streaming.chunks import LoaderMemory, LoaderSettings, Progress
from slideio_pipe.streaming.dataset import BagDataset
from slideio_pipe.streaming.device import Sender, check_device
from slideio_pipe.streaming.epochs import Epochs
from slideio_pipe.streaming.normalize import Normalize, check_dtype
from slideio_pipe.streaming.reading_workers import worker_cache_bytes
from slideio_pipe.streaming.shares import share_of
from slideio_pipe.tiles.failures import TileFailure, check_on_error

STATE_VERSION = 1


class BagLoader(Closable):
    """The tiles of a cohort on a device, epoch by epoch: ``for chunk in loader`` or ``for bag in loader.bags()``.

    Several bags are open at a time, threads decode tiles into a ring that is allocated once, and chunks are delivered
    when they are ready: the first after the work for one chunk, for any size of the bag. The chunks of a bag are not
    mixed with another's unless ``interleave`` is above 1; ``chunk.last`` marks its end. ``len(loader.bags())`` is the
    number of bags of an epoch; ``len(loader)``, of chunks, raises TypeError if slides must be opened to count them.

    An epoch ends when its last chunk or bag has been returned, whether the loop requests another one or counts, as a
    Lightning Trainer, ``islice`` and ``zip`` do. Every new iteration is the next epoch, with other draws, also if the
    one before was left early (``break``, ``limit_train_batches``); an iterator that returned nothing does not count.
    ``load_state_dict`` continues within an epoch, ``set_epoch(n)`` restarts any epoch. Of several iterators only the
    last one made runs.

    In several processes each reads its share of the bags, and equally many, because gradients are averaged step by
    step: see ``even``. This holds for bags, not for chunks, of which a large bag has more: make one step per bag,
    accumulating over its chunks (``no_sync()`` of DistributedDataParallel until ``chunk.last``), or use
    ``loader.bags()``.

    Parameters
    ----------
    dataset : BagDataset
    device : str or torch.device
        "cpu", "cuda" or "cuda:1".
    normalize : Normalize or None
        Applied on the device. None: uint8 tiles. It may be left out if a transform ends in Normalize or ToTensor.
    chunk_size : int
        Tiles per chunk; the last one of a bag may have fewer.
    dtype : torch.dtype
        float16, bfloat16 or float32.
    shuffle : bool
        Whether to shuffle the bags in every epoch.
    mix : int
        Number of chunks over which the tiles of a bag are mixed; 0 keeps them in storage order, 1 mixes within a chunk.
        They are read in storage order in any case, and each is decoded into its place in the ring.
    ordered : bool
        Whether the order of delivery is reproducible: the epoch's order of bags and of their chunks, for any number of
        threads. Otherwise chunks are delivered when ready. The tiles of a chunk are reproducible in both cases.
    interleave : int
        Number of bags whose chunks are delivered in turns.
    bags_in_flight : int
        Bags open at a time: those being delivered, and those whose tissue is being found.
    prefetch : int
        Chunks that may be ready in advance.
    threads : int, optional
        Number of decoding threads; by default one fewer than the cores.
    workers : int
        Number of worker processes that read in place of threads, each with one: for machines with many cores, where
        Python's lock limits threads. 0: none; ``scan_threads`` finds the best number. They write into the shared
        memory of the loader, stay for all epochs, and end with ``close()``, the loader, or this process. The tiles are
        the same. In a script, read below ``if __name__ == "__main__":``.
    rank, world_size : int, optional
        The share of bags of this process; by default torch.distributed's when an epoch starts, else all bags.
    even : {"drop", "pad", "none"}
        Handling of bags that cannot be divided evenly among the processes. "drop": up to ``world_size - 1`` are left
        out, others in every shuffled epoch. "pad": as many are read twice, each time by another process. "none": each
        is read once, and some processes have one more. With "drop" and "pad" every process has the same number of
        bags, also if slides fail (``max_failures``): another bag of the process is then read a second time. In chunks,
        a bag that fails after its first chunk counts as one; it ends with an empty chunk that has an ``error``.
    colours : {"host", "device"}
        Where drawn colours are computed; see ``stream``.
    on_error : {"raise", "white", "skip"}
        Handling of a tile that cannot be decoded: its slide fails, it is white, or it is skipped. A slide with more
        than a tenth of bad tiles fails in any case.
    max_failures : int
        Slides that may fail in an epoch, or patients, of which any slide may be the cause. They are skipped, listed in
        ``failures``, and the epoch ends with one ``SkippedWarning``; ``raise_failures()`` raises an error instead.
        Beyond that, ``FailedSlidesError`` ends the epoch; with 0, the slide's own error.
    batch_transform : callable, optional
        A module or function of the (n, 3, H, W) uint8 tiles of a chunk, such as one of ``torchvision.transforms.v2``;
        see ``stream``. Seeded by the data set's seed, the epoch, the slide and the chunk's first tile.

    Attributes
    ----------
    memory : LoaderMemory
        The memory it will use.
    failures : list of TileFailure
        Slides and tiles that could not be read in the latest epoch.
    epoch : int
        The running epoch, or the next: an epoch ends when its last chunk has been returned.
    threads : int
        Number of decoding threads, or of workers.

    Raises
    ------
    ConfigError
        An argument is invalid or the device does not exist.

    Examples
    --------
    >>> from slideio_pipe import TileBag, TileGrid, open_slide
    >>> view = open_slide(np.full((300, 500, 3), 255, np.uint8), slide_mpp=0.5).view()
    >>> bags = [TileBag(view, TileGrid(view, tile_size=100), label=1)]
    >>> loader = BagLoader(BagDataset(bags), device="cpu", normalize=Normalize.half(), chunk_size=10)
    >>> [(chunk.label, len(chunk), chunk.last) for chunk in loader]
    [(1, 10, False), (1, 5, True)]
    """

    def __init__(
        self,
        dataset: BagDataset,
        *,
        device: str | torch.device,
        normalize: Normalize | Literal["transform"] | None = "transform",
        chunk_size: int = 64,
        dtype: torch.dtype = torch.float16,
        shuffle: bool = False,
        mix: int = 0,
        ordered: bool = False,
        interleave: int = 1,
        bags_in_flight: int = 2,
        prefetch: int = 3,
        threads: int | None = None,
        workers: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        even: str = "drop",
        colours: str = "host",
        on_error: str = "raise",
        max_failures: int = 0,
        batch_transform: Callable[[torch.Tensor], Any] | None = None,
    ) -> None:
        if not isinstance(dataset, BagDataset):
            raise ConfigError(f"a loader of a {type(dataset).__name__}", remedy="pass BagDataset(cohort, config)")
        self.dataset, self.shuffle = dataset, shuffle
        normalize, on = check_normalize(normalize, dataset.ending), check_device(device)
        self._sender, transform = Sender(on, normalize, check_dtype(dtype)), None
        if batch_transform is not None:
            check_transformable(None, dataset.views, scales=1 + len(dataset.config.view.context))
            transform = BatchTransform.of(batch_transform, normalize, dtype, on, seed=dataset.config.seed)
            self._sender = Sender(on, None, dtype)  # bytes; they are normalised after the transform
        workers = at_least(0, "workers", workers)
        if workers and threads is not None:
            raise ConfigError(
                f"{{threads={threads}}} and {{workers={workers}}}", remedy="pass one of them: a worker has one thread"
            )
        self._pace = pace = LoaderSettings(
            chunk_size=at_least_one("chunk_size", chunk_size),
            threads=workers or (default_threads() if threads is None else at_least_one("threads", threads)),
            workers=workers,
            bags_in_flight=max(at_least_one("bags_in_flight", bags_in_flight), interleave),
            interleave=at_least_one("interleave", interleave),
            mix=at_least(0, "mix", mix),
            ordered=bool(ordered),
            on_error=check_on_error(on_error),
            colours=check_colours(colours),
        )
        prefetch = at_least_one("prefetch", prefetch)
        self.threads = pace.threads
        self.max_failures = at_least(0, "max_failures", max_failures)
        self._share = share_of(rank, world_size, even)
        slot = int(np.prod((pace.chunk_size, *dataset.tile_shape)))
        ahead = prefetch * slot * self._sender.dtype.itemsize
        cache = workers * worker_cache_bytes(workers) if workers else SHARED.max_bytes
        self.memory = LoaderMemory(pace.slots * slot, ahead, cache)
        self._epochs = Epochs(
            dataset,
            self._sender,
            pace,
            self._share,
            prefetch=prefetch,
            shuffle=shuffle,
            max_failures=self.max_failures,
            transform=transform,
        )
        if workers:
            weakref.finalize(self, self._epochs.abandon).atexit = False

    @property
    def epoch(self) -> int:
        """The running epoch, or the next."""
        return self._epochs.epoch

    @property
    def failures(self) -> list[TileFailure]:
        """Slides and tiles that could not be read in the latest epoch."""
        return self._epochs.failures

    @property
    def rank(self) -> int:
        """The number of this process; by default torch.distributed's."""
        return self._share.rank

    @property
    def world_size(self) -> int:
        """The number of processes that share the bags; by default torch.distributed's."""
        return self._share.world_size

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch, which determines the order of bags, the selected tiles, and every draw.

        Epochs advance automatically; use this to start at another one, or to repeat one.
        """
        self._epochs.go_to(at_least(0, "epoch", epoch))

    def order(self) -> list[int]:
        """Return the numbers of the slides of this epoch and rank, in their order."""
        return self._epochs.order()

    def __iter__(self) -> ChunkStream:
        """Return the chunks of an epoch: of the next, or the remaining ones after ``load_state_dict``."""
        return ChunkStream(self._epochs)

    def __len__(self) -> int:
        """Return the number of chunks of an epoch, if known: for bags and stores; slides are not opened for it.

        Raises
        ------
        TypeError
            It is unknown, because the tissue of slides must be found first.
        """
        count = self._epochs.count_chunks()
        if count is None:
            raise TypeError(
                "the number of chunks is not known before the slides are opened; loader.bags() has a length"
            )
        return count

    def __bool__(self) -> bool:
        """Return True, also if the length is unknown."""
        return True

    def bags(self) -> BagStream:
        """Return the whole bags of an epoch, each in one tensor on the device, tiles in the bag's order.

        Failed bags are skipped. ``len(loader.bags())`` is their number. Memory: two bags beside ``memory``, the
        consumer's and the one being filled.
        """
        return BagStream(self._epochs)

    def watch(self, on_stage: OnTiming | None) -> None:
        """Set or remove the callback for the stages of later epochs; see ``profile``."""
        self.dataset.on_stage = self._sender.on_stage = on_stage

    # -- state ---------------------------------------------------------------------------------------------------

    def state_dict(self, *, whole_bags: bool = False) -> dict[str, Any]:
        """Return the state of the epoch as JSON values: delivered chunks are not repeated after a resumption.

        Parameters
        ----------
        whole_bags : bool
            Incomplete bags are repeated: for training steps of one bag each.
        """
        progress = self._epochs.progress
        begun = {} if whole_bags else progress.begun
        return {
            "version": STATE_VERSION,
            "epoch": self.epoch,
            "finished": sorted(progress.finished),
            "failed": sorted(progress.failed),
            "extra": list(progress.extra),
            "marked": progress.marked,
            "begun": {str(place): sorted(chunks) for place, chunks in sorted(begun.items())},
            **self._identity(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a ``state_dict``, with any number of threads.

        Raises
        ------
        ConfigError
            It is from another cohort, configuration or division into chunks and ranks.
        """
        if state.get("version") != STATE_VERSION:
            raise ConfigError(f"a state of version {state.get('version')!r}", remedy="pass what state_dict returned")
        for key, ours in self._identity().items():
            if state.get(key, "none" if key == "even" else None) != ours:
                raise ConfigError(
                    f"the state is of another loader: {key} {state.get(key)!r}, here {ours!r}",
                    remedy=f"make the loader with the {key} it had, or restart the epoch",
                )
        progress = Progress(
            {int(place): set(chunks) for place, chunks in state["begun"].items()},
            set(state["finished"]),
            set(state["failed"]),
            list(state.get("extra", [])),
            state.get("marked", 0),
        )
        self._epochs.go_to(state["epoch"], progress)

    def _identity(self) -> dict[str, Any]:
        """Return the settings that determine which tiles are in which chunk."""
        return {
            "cohort": self.dataset.digest(),
            "rank": self.rank,
            "world_size": self.world_size,
            "shuffle": self.shuffle,
            "chunk_size": self._pace.chunk_size,
            "mix": self._pace.mix,
            **({"even": self._share.even} if self.world_size > 1 else {}),
        }

    # -- failures and the end ------------------------------------------------------------------------------------

    def raise_failures(self) -> None:
        """Raise one ``FailedSlidesError`` for all slides that failed in the latest epoch, if any."""
        errors = [failure.error for failure in self.failures if failure.tile is None]
        if errors:
            raise FailedSlidesError(
                f"{len(errors)} of {self._epochs.count} {unit_of(self.dataset.cohort)}s failed", errors
            )

    def close(self) -> None:
        """Stop the running epoch: its threads, files and ring; and end the worker processes."""
        self._epochs.close_workers()

    def __repr__(self) -> str:
        share = "" if self.world_size == 1 else f", rank {self.rank} of {self.world_size}"
        slides = f"{len(self.dataset):,} slide{'' if len(self.dataset) == 1 else 's'}"
        return f"BagLoader({slides} to {self._sender.device}{share}; {self.memory})"
