"""Epochs over a cohort: chunks of several bags or whole bags on a device, resumable, in memory that is stated."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch

from slideio_pipe.backends.base import OnStage
from slideio_pipe.dataset import BagDataset
from slideio_pipe.decoded import SHARED
from slideio_pipe.delivery import Delivery, LoaderMemory, Loss, Pace, Progress
from slideio_pipe.device import Sender, check_device
from slideio_pipe.errors import ConfigError, FailedSlidesError
from slideio_pipe.flights import Flights
from slideio_pipe.normalize import Normalize, check_dtype
from slideio_pipe.staging import Ring, Stage
from slideio_pipe.streaming import COLOURS, TileBatch, at_least_one, check_normalize, default_threads
from slideio_pipe.tolerance import Failure, check_on_error, warn_of
from slideio_pipe.whole_bag import Gathered, WholeBag

STATE_VERSION = 1

_TO_BEAR = 'BagLoader(on_error="white" or "skip") bears with tiles that cannot be decoded, max_failures=5 with slides.'


class BagLoader:
    """The tiles of a cohort on a device, epoch after epoch; ``for chunk in loader`` or ``for bag in loader.bags()``.

    Several bags are open at a time, threads decode tiles into a ring that is allocated once, and chunks are delivered
    as they are ready: the first one after one chunk's work, however large the bag. The chunks of a bag are not mixed
    with another's unless ``interleave`` says so; ``chunk.last`` marks its end. A loader has no ``len``: how many chunks
    there are shows when the bags are opened. ``len(loader.dataset)`` is the number of slides.

    Parameters
    ----------
    dataset : BagDataset
    device : str or torch.device
        "cpu", "cuda" or "cuda:1".
    normalize : Normalize or None
        Applied on the device. None delivers the uint8 tiles.
    chunk_size : int
        Tiles per chunk; the last one of a bag may have fewer.
    dtype : torch.dtype
        float16, bfloat16 or float32.
    shuffle : bool
        Whether the bags come in another order in every epoch.
    mix : int
        Over how many chunks the tiles of a bag are mixed; 0 keeps them in storage order, 1 mixes within a chunk. They
        are read in storage order all the same, each decoded for its place in the ring.
    ordered : bool
        Whether the order of delivery is reproducible: the epoch's order of bags, each chunk in its turn, whatever the
        number of threads. Otherwise what is ready goes first. Which tiles a chunk holds is reproducible either way.
    interleave : int
        Bags whose chunks are delivered in turns.
    bags_in_flight : int
        Bags open at a time: those that are delivered, and those whose tissue is being found meanwhile.
    prefetch : int
        Chunks that may be ready before they are asked for.
    threads : int, optional
        Threads that decode; by default one fewer than the cores.
    rank, world_size : int, optional
        Which share of the bags this process gets, of how many; by default torch.distributed's, else all. Shares do not
        overlap and together are everything; when the bags cannot be divided evenly, some ranks have one more.
    colours : {"host", "device"}
        Where drawn colours are computed; see ``stream``.
    on_error : {"raise", "white", "skip"}
        What becomes of a tile that cannot be decoded: it makes its slide fail, is white, or is left out. A slide of
        which more than a tenth is bad fails anyway.
    max_failures : int
        Slides that may fail in an epoch. They are left out, listed in ``failures``, and the epoch ends with one
        ``SkippedWarning``; ``raise_failures()`` makes an error of it. Beyond that, ``FailedSlidesError`` ends the
        epoch; with 0, the slide's own error.

    Attributes
    ----------
    memory : LoaderMemory
        What it will take.
    failures : list of Failure
        Slides and tiles that could not be read in the latest epoch.
    epoch : int
        The epoch that is running, or the next.
    threads : int
        How many decode.

    Raises
    ------
    ConfigError
        If an argument makes no sense or the device is not there.

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
        normalize: Normalize | None,
        chunk_size: int = 64,
        dtype: torch.dtype = torch.float16,
        shuffle: bool = False,
        mix: int = 0,
        ordered: bool = False,
        interleave: int = 1,
        bags_in_flight: int = 2,
        prefetch: int = 3,
        threads: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        colours: str = "host",
        on_error: str = "raise",
        max_failures: int = 0,
    ) -> None:
        if not isinstance(dataset, BagDataset):
            raise ConfigError(f"a loader of a {type(dataset).__name__}", remedy="pass BagDataset(cohort, config)")
        self.dataset, self.shuffle = dataset, shuffle
        self._sender = Sender(check_device(device), check_normalize(normalize), check_dtype(dtype))
        self._pace = Pace(
            chunk_size=at_least_one("chunk_size", chunk_size),
            threads=default_threads() if threads is None else at_least_one("threads", threads),
            bags_in_flight=max(at_least_one("bags_in_flight", bags_in_flight), interleave),
            interleave=at_least_one("interleave", interleave),
            mix=_at_least_zero("mix", mix),
            ordered=bool(ordered),
            on_error=check_on_error(on_error),
            colours=_check_colours(colours),
        )
        self._prefetch = at_least_one("prefetch", prefetch)
        self.threads = self._pace.threads
        self.rank, self.world_size = _share(rank, world_size)
        self.max_failures = _at_least_zero("max_failures", max_failures)
        self._slot_shape = (chunk_size, *dataset.tile_shape)
        slot = int(np.prod(self._slot_shape))
        ahead = self._prefetch * slot * self._sender.dtype.itemsize
        self.memory = LoaderMemory(self._pace.slots * slot, ahead, SHARED.max_bytes)
        self.failures: list[Failure] = []
        self.epoch = 0
        self._progress = Progress()
        self._resuming = False
        self._stage: Stage[Delivery | Loss] | None = None  # of the iteration that runs

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch: it decides the order of bags, which tiles, and every draw.

        Epochs advance by themselves; this is for those who start somewhere else.
        """
        self.close()
        self.epoch = _at_least_zero("epoch", epoch)
        self._progress, self._resuming = Progress(), False

    def order(self) -> list[int]:
        """Return the numbers of the slides of this epoch and rank, in their order."""
        numbers = np.arange(len(self.dataset))
        if self.shuffle:
            numbers = self.dataset.rng(self.epoch, "order").permutation(len(self.dataset))
        return [int(number) for number in numbers[self.rank :: self.world_size]]

    def __iter__(self) -> ChunkStream:
        """Return the chunks of this epoch: all, or what is still to come when a state was loaded just before."""
        return self._start(self._pace)

    def bags(self) -> Iterator[WholeBag]:
        """Yield whole bags, each in one tensor on the device, tiles in the bag's order; bags that fail are left out.

        Memory: two bags beside ``memory``, the one the consumer has and the one that is filled.
        """
        self._progress.begun.clear()  # of bags that were begun, chunk by chunk, none of the chunks is here
        with closing(self._start(replace(self._pace, interleave=1))) as chunks:
            whole = None
            while (item := chunks.take()) is not None:
                if isinstance(item, Loss):
                    whole = None
                    continue
                whole = whole or Gathered(item, chunks.take_tiles(item))
                whole.add(item, chunks.take_tiles(item))
                if item.last:
                    bag, whole = whole.bag(item), None
                    yield bag
                    del bag

    def _start(self, pace: Pace) -> ChunkStream:
        self.close()
        if not self._resuming:
            self._progress = Progress()
        self._resuming = False
        self.failures = []
        ring = Ring(self._sender, pace.slots, self._slot_shape)
        flights = Flights(self.dataset, self.epoch, self.order(), self._progress.done(), ring, pace)
        self._stage = Stage(flights.deliveries(), self._prefetch)
        return ChunkStream(self, self._stage)

    def watch(self, on_stage: OnStage | None) -> None:
        """Have every stage of the epochs to come told, or none any more; see ``profile``."""
        self.dataset.on_stage = self._sender.on_stage = on_stage

    # -- state ---------------------------------------------------------------------------------------------------

    def state_dict(self, *, whole_bags: bool = False) -> dict[str, Any]:
        """Return where the epoch is, JSON-able: chunks that were delivered do not come again after a resumption.

        Parameters
        ----------
        whole_bags : bool
            Bags that are not complete start again: for training steps of one bag each.
        """
        begun = {} if whole_bags else self._progress.begun
        return {
            "version": STATE_VERSION,
            "epoch": self.epoch,
            "finished": sorted(self._progress.finished),
            "failed": sorted(self._progress.failed),
            "begun": {str(place): sorted(chunks) for place, chunks in sorted(begun.items())},
            **self._identity(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken, with any number of threads.

        Raises
        ------
        ConfigError
            It is of another cohort, configuration or division into chunks and ranks.
        """
        if state.get("version") != STATE_VERSION:
            raise ConfigError(f"a state of version {state.get('version')!r}", remedy="pass what state_dict returned")
        for key, mine in self._identity().items():
            if state.get(key) != mine:
                raise ConfigError(
                    f"the state is of another loader: {key} {state.get(key)!r}, here {mine!r}",
                    remedy=f"make the loader with the {key} it had, or start the epoch anew",
                )
        self.set_epoch(state["epoch"])
        self._progress = Progress(
            {int(place): set(chunks) for place, chunks in state["begun"].items()},
            set(state["finished"]),
            set(state["failed"]),
        )
        self._resuming = True

    def _identity(self) -> dict[str, Any]:
        """Return what decides which tiles are in which chunk."""
        return {
            "cohort": self.dataset.digest(),
            "rank": self.rank,
            "world_size": self.world_size,
            "shuffle": self.shuffle,
            "chunk_size": self._pace.chunk_size,
            "mix": self._pace.mix,
        }

    # -- failures and the end ------------------------------------------------------------------------------------

    def raise_failures(self) -> None:
        """Raise one ``FailedSlidesError`` of all slides that failed in the latest epoch, if any did."""
        errors = [failure.error for failure in self.failures if failure.tile is None]
        if errors:
            raise FailedSlidesError(f"{len(errors)} of {len(self.order())} slides failed", errors)

    def close(self) -> None:
        """End what runs: its threads, its files, its ring."""
        stage, self._stage = self._stage, None
        if stage is not None:
            stage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        share = "" if self.world_size == 1 else f", rank {self.rank} of {self.world_size}"
        slides = f"{len(self.dataset):,} slide{'' if len(self.dataset) == 1 else 's'}"
        return f"BagLoader({slides} to {self._sender.device}{share}; {self.memory})"


class ChunkStream(Iterator[TileBatch]):
    """The chunks of one epoch; made by ``iter(loader)``.

    Leaving the loop early, an exception, ``close``, a ``with`` block and garbage collection all end its threads.
    """

    def __init__(self, loader: BagLoader, stage: Stage[Delivery | Loss]) -> None:
        self._loader, self._stage, self._progress = loader, stage, loader._progress
        self._ended = False
        weakref.finalize(self, stage.stop).atexit = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TileBatch:
        while (item := self.take()) is not None:
            if isinstance(item, Delivery):
                tiles = self.take_tiles(item)
                return TileBatch(tiles, item.coords, item.index, item.bag, item.last, item.label)
            if item.began:
                return self._end_mark(item)
        raise StopIteration

    def take(self) -> Delivery | Loss | None:
        """Return what is delivered next, or None at the end of the epoch."""
        if self._ended:
            return None
        if self._loader._stage is not self._stage:
            raise ConfigError("the iteration was closed, by another one maybe", remedy="iterate the loader again")
        try:
            item = self._stage.take()
        except StopIteration:
            self._end()
            return None
        except KeyboardInterrupt:  # an interrupted wait may go on
            raise
        except BaseException:
            self.close()
            raise
        self._progress.note(item)
        loader = self._loader
        if isinstance(item, Delivery):
            loader.failures.extend(item.failures)
        else:
            loader.failures.append(item.failure)
            self._check_failures(item.failure)
        return item

    def take_tiles(self, item: Delivery) -> torch.Tensor:
        """Return the tiles of a delivery, safe on the current stream of the device."""
        return item.sent.receive()

    def _check_failures(self, failure: Failure) -> None:
        loader = self._loader
        if len(self._progress.failed) <= loader.max_failures:
            return
        self.close()
        if not loader.max_failures:
            failure.error.add_note(_TO_BEAR)
            raise failure.error
        errors = [failure.error for failure in loader.failures if failure.tile is None]
        raise FailedSlidesError(
            f"{len(self._progress.failed)} slides failed, {loader.max_failures} may",
            errors,
            remedy="leave them out of the cohort, or raise max_failures",
        )

    def _end_mark(self, loss: Loss) -> TileBatch:
        """Return the end of a bag of which some chunks were delivered and the others will not be."""
        sender = self._loader._sender
        memory = torch.empty((0, *self._loader.dataset.tile_shape), dtype=sender.dtype, device=sender.device)
        nothing = np.zeros((0, 2), np.int64)
        failure = loss.failure
        return TileBatch(
            memory.permute(0, 3, 1, 2), nothing, nothing[:, 0], failure.slide, True, loss.label, failure.error
        )

    def _end(self) -> None:
        loader = self._loader
        self._ended = True
        self.close()
        loader.epoch += 1
        loader._progress = Progress()
        if loader.failures:
            warn_of(loader.failures)

    def close(self) -> None:
        """End the threads, drop chunks that nobody took, and free the ring."""
        if self._loader._stage is self._stage:
            self._loader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _share(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return rank and number of ranks: as given, of torch.distributed, or alone."""
    if (rank is None) != (world_size is None):
        raise ConfigError("rank without world_size, or the other way round", remedy="pass both")
    if rank is None or world_size is None:
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            return 0, 1
        return distributed.get_rank(), distributed.get_world_size()
    size = at_least_one("world_size", world_size)
    if not 0 <= rank < size:
        raise ConfigError(f"rank is {rank} of {size}", remedy=f"pass 0 to {size - 1}")
    return int(rank), size


def _check_colours(colours: str) -> str:
    if colours not in COLOURS:
        raise ConfigError(f"colours is {colours!r}", remedy='pass "host" or "device"')
    return colours


def _at_least_zero(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"{name} is {value!r}", remedy="pass an integer >= 0")
    return value
