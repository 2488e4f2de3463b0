"""Stream a bag to a device in batches, ahead of the consumer, in memory that does not grow with the bag.

::

    bag.read ──▶ slot of the ring ──copy──▶ device uint8 ──(colours)──normalise──▶ TileBatch ──▶ consumer
    └──────────────────── one thread, at most `prefetch` batches ahead ─────────────────────┘

The thread decodes into a slot of a ring that is allocated once. On CUDA the slots are page-locked, copy and
normalisation run on their own stream, a slot is reused only after the event of its copy, and the consumer's stream
waits for the event of the normalisation. On the CPU the same code runs without these.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from slideio_pipe.errors import ConfigError, SlideioPipeError
from slideio_pipe.files import Closable
from slideio_pipe.streaming.arguments import (
    at_least_one,
    check_colours,
    check_normalize,
    checked_positions,
    default_threads,
    tile_count,
)
from slideio_pipe.streaming.bag_reads import PLANNED, plan_ahead, reader_of
from slideio_pipe.streaming.batch_transform import BatchTransform, check_transformable
from slideio_pipe.streaming.device import Colours, Sender, Sent, ViewColours, check_device
from slideio_pipe.streaming.normalize import Normalize, check_dtype
from slideio_pipe.streaming.ranges import ranged
from slideio_pipe.streaming.ring import BackgroundIterator, BufferPool
from slideio_pipe.streaming.views import check_views, tiles_and_views, view_colours, with_views
from slideio_pipe.streaming.whole_bag import tiles_by_mpp
from slideio_pipe.tiles.bag import (
    Bag,
    ColourColumnsBag,
    Label,
    UncolouredBag,
    check_bag,
    nominal_mpps_of,
    scale_count,
    targets_of_batch,
)
from slideio_pipe.tiles.failures import TileErrors, check_on_error, warn_of
from slideio_pipe.tiles.marks.targets import Targets
from slideio_pipe.tiles.multi_crop import MultiCrop
from slideio_pipe.tiles.patient_bag import no_slides, slide_index_of, slide_names_of
from slideio_pipe.tiles.views_bag import ViewsBag


@dataclass(frozen=True, slots=True, eq=False)
class TileBatch:
    """Some tiles of one bag, on the device.

    It owns its memory: it stays valid after the next batch and after the stream is closed.

    Examples
    --------
    >>> tiles = torch.zeros(2, 3, 64, 64, dtype=torch.float16)
    >>> batch = TileBatch(tiles, np.array([[0, 0], [256, 0]]), np.array([0, 1]), bag="a", last=True, label=1)
    >>> len(batch), batch.coords[1].tolist(), batch.label
    (2, [256, 0], 1)
    """

    # (n, 3, H, W) channels_last; with ``views``, the first view of each tile; (n, S, 3, H, W) with S magnifications
    tiles: torch.Tensor
    coords: NDArray[np.int64]  # (n, 2) level-0 px of the tile's slide, x and y
    index: NDArray[np.int64]  # (n,) position in the bag
    bag: str  # name of the bag
    last: bool  # whether this is the bag's last batch
    label: Label = None
    error: SlideioPipeError | OSError | None = None  # why the bag ends here, incomplete and without tiles
    slide_index: NDArray[np.int64] = field(default_factory=no_slides)  # (n,) number of each tile's slide in ``slides``
    slides: tuple[str, ...] = ()  # names of the bag's slides: several of a patient's
    # "global" and "local" of a ``MultiCrop``: (n, views, 3, h, w), each view channels_last
    views: Mapping[str, torch.Tensor] = field(default_factory=dict)
    nominal_mpps: tuple[float, ...] = ()  # of a ``ContextBag``: µm per px of each of its magnifications, as asked for
    targets: tuple[Targets, ...] | None = None  # boxes and points of each tile, if the bag has annotations

    def __len__(self) -> int:
        return len(self.index)

    def by_mpp(self) -> dict[float, torch.Tensor]:
        """Return the tiles of each magnification of a ``ContextBag``, (n, 3, H, W), by its µm per px; no copies."""
        return tiles_by_mpp(self.tiles, self.nominal_mpps)

    def __repr__(self) -> str:
        kind = f"{tuple(self.tiles.shape)} {str(self.tiles.dtype).removeprefix('torch.')} on {self.tiles.device}"
        return f"TileBatch({self.bag}: {kind}{', last' if self.last else ''})"


# What the background thread prepares: tiles, their positions, and their boxes and points.
_Prepared = tuple[Sent, NDArray[np.int64], tuple[Targets, ...] | None]


class TileStream(Iterator[TileBatch], Closable):
    """The batches of one bag in order, prepared ahead of the consumer; iterate it once.

    Leaving the loop early, an exception, ``close``, a ``with`` block and garbage collection all end its thread.
    ``len`` is the number of batches. Made by ``stream``.

    Attributes
    ----------
    ring_bytes : int
        Host memory of the ring: slots × batch size × bytes of a tile. One slot on the CPU, ``prefetch`` on CUDA.
    ahead_bytes : int
        Device memory of the batches that may wait for the consumer: ``prefetch`` of them, beside the one in use.
    failures : list of TileFailure
        Tiles that could not be decoded, if ``on_error`` allows them.
    """

    def __init__(
        self,
        bag: Bag,
        positions: NDArray[np.int64],
        sender: Sender,
        *,
        batch_size: int,
        prefetch: int,
        threads: int,
        colours: str = "host",
        tolerance: TileErrors,
        views: MultiCrop | None = None,
        transform: BatchTransform | None = None,
    ) -> None:
        self._views, self._transform = views, transform
        self._bag, self._positions, self._batch_size = bag, positions, batch_size
        self._taken = 0
        self._ended = False
        self.failures = tolerance.failures
        self._stage: BackgroundIterator[_Prepared] | None = None
        self.ring_bytes = self.ahead_bytes = 0
        if not len(positions):
            return
        prefetch = min(prefetch, len(self))
        # On the CPU the same thread normalises a slot's tiles and then frees it.
        slots = prefetch if sender.device.type == "cuda" else 1
        shape = (min(batch_size, len(positions)), *bag.shape[1:])
        ring = BufferPool(sender, sender.host_buffers(slots, shape))
        self.ring_bytes = ring.nbytes
        self.ahead_bytes = prefetch * ring.nbytes // slots * sender.dtype.itemsize
        self._stage = BackgroundIterator(
            _send_batches(bag, positions, ring, batch_size, threads, colours, tolerance), prefetch, sender.device
        )
        weakref.finalize(self, self._stage.stop).atexit = False

    def __len__(self) -> int:
        return -(-len(self._positions) // self._batch_size)

    def __iter__(self) -> Self:
        if self._ended or 0 < self._taken == len(self):  # a consumer that counts does not request another
            raise ConfigError("the stream has ended", slide=self._bag.name, remedy="make a new one for each epoch")
        return self

    def __next__(self) -> TileBatch:
        if self._stage is None:
            raise StopIteration
        try:
            sent, index, targets = self._stage.take()
            tiles, views = tiles_and_views(sent.receive(), self._views)
            if self._transform is not None:
                tiles = self._transform(tiles, index, targets)
        except BaseException as end:
            # The caller may continue after an interrupt; everything else ends the stream.
            if not isinstance(end, KeyboardInterrupt):
                self._ended = isinstance(end, StopIteration)
                self.close()
                if self._ended and self.failures:
                    warn_of(self.failures)
            raise
        self._taken += 1
        coords = np.asarray(self._bag.coords)[index]
        return TileBatch(
            tiles, coords, index, self._bag.name, self._taken == len(self), self._bag.label,
            slide_index=slide_index_of(self._bag, index), slides=slide_names_of(self._bag), views=views,
            nominal_mpps=nominal_mpps_of(self._bag), targets=targets,
        )  # fmt: skip

    def close(self) -> None:
        """End the thread, drop batches that were not delivered, and free the ring."""
        stage, self._stage = self._stage, None
        if stage is not None:
            stage.close()


def stream(
    bag: Bag,
    *,
    device: str | torch.device,
    normalize: Normalize | Literal["transform"] | None = "transform",
    batch_size: int = 64,
    dtype: torch.dtype = torch.float16,
    prefetch: int = 3,
    threads: int | None = None,
    indices: ArrayLike | None = None,
    colours: str = "host",
    on_error: str = "raise",
    views: MultiCrop | None = None,
    batch_transform: Callable[[torch.Tensor], Any] | None = None,
) -> TileStream:
    """Return the tiles of a bag as batches on a device, decoded ahead of the consumer.

    Parameters
    ----------
    bag : Bag
        Bag of a slide, a store or another source.
    device : str or torch.device
        "cpu", "cuda" or "cuda:1".
    normalize : Normalize or None
        Applied on the device. None: uint8 tiles, ``dtype`` is ignored. It may be left out if a transform of the bag
        ends in albumentationsxl's Normalize or ToTensor: the device then does what that end says.
    batch_size : int
        Tiles per batch; the last batch may have fewer.
    dtype : torch.dtype
        float16, bfloat16 or float32: normalised values are rounded to it once.
    prefetch : int
        Batches that may be ready in advance.
    threads : int, optional
        Number of decoding threads. By default one fewer than the cores, at least one: a core is left to launch kernels.
    indices : (n,) int or bool array, optional
        Positions in the bag, in order of delivery. By default all, in the bag's order.
    colours : {"host", "device"}
        Where the drawn colours of the bag's view and tiles are computed. "host": by the decoding threads, rounded to
        bytes before normalisation. "device": with the normalisation, in one expression with one rounding at its end;
        at most a level different, noise has other values of the same distribution. On the CPU this takes three times
        as long (``tests/benchmarks/stream_colours.py``), so "host" is the default. Tiles of a ``StoredBag`` have their
        colours: the device computes none; those of an ``AugmentedBag`` are drawn.
    on_error : {"raise", "white", "skip"}
        Handling of a tile that cannot be decoded: its error is raised, it is white, or it is skipped. The latter two
        list it in ``failures`` and warn at the end; with more than a tenth of the tiles they raise.
    views : MultiCrop, optional
        Several draws of each tile, for self-supervised training: ``batch.views``. The stored tiles are decoded once
        for all of them. Seed and epoch of the draws are the bag's; a stored bag is read as ``AugmentedBag(bag)``. The
        bag has no transform per tile; its view's transform stays, the same for all views of an epoch. Of a patient, the
        host computes the colours of views in any case.
    batch_transform : callable, optional
        A module or function of (n, 3, H, W) uint8 tiles on the device, such as one of ``torchvision.transforms.v2``,
        called once for each batch, before normalisation, in the thread that takes the batches. What it draws from
        torch's generators is seeded by the bag's seed and epoch, its name, and the number of the batch's first tile:
        the same arguments give the same batches, and another ``batch_size`` others. All tiles of a batch share what
        one call draws, as torchvision's do; to draw for each tile, pass
        ``lambda tiles: torch.stack([transform(tile) for tile in tiles])``. It may change the size. If it returns
        floating-point numbers, it has normalised: ``normalize`` must be None, and they are rounded to ``dtype``.

    Returns
    -------
    TileStream
        An iterator over ``TileBatch``. An empty bag yields nothing. Batches of a ``ContextBag`` have one tensor
    (n, S, 3, H, W): ``tiles.flatten(0, 1)`` is (n·S, 3, H, W) channels_last for one call of a network,
    ``batch.by_mpp()`` has each magnification by its µm per px; neither copies.

    Raises
    ------
    ConfigError
        An argument is invalid or the device does not exist, or ``colours`` is "device" and a transform runs only as a
        libvips graph.

    Notes
    -----
    An error of the bag's reader, such as ``CorruptSlideError``, is raised after the batches before it.
    On CUDA the tiles are ready on the stream that is current when the batch is returned. A consumer that only queues
    work is not waited for, and memory stays bounded: one more batch is prepared when the device has completed what was
    queued on the current stream before the next batch was requested. Batches that the caller keeps are never reused.

    Examples
    --------
    >>> import numpy as np
    >>> from slideio_pipe import Normalize, TileBag, TileGrid, open_slide
    >>> view = open_slide(np.full((300, 500, 3), 90, np.uint8), slide_mpp=0.5).view()
    >>> bag = TileBag(view, TileGrid(view, tile_size=100))
    >>> for batch in stream(bag, device="cpu", normalize=Normalize.half(), batch_size=10):
    ...     tuple(batch.tiles.shape), str(batch.tiles.dtype), batch.last
    ((10, 3, 100, 100), 'torch.float16', False)
    ((5, 3, 100, 100), 'torch.float16', True)
    """
    check_bag(bag)
    check_views(views)
    normalize = check_normalize(normalize, getattr(bag, "ending", None), bag.name)
    bag = with_views(bag, views)
    sender = Sender(check_device(device), normalize, check_dtype(dtype))
    transform = None
    if batch_transform is not None:
        check_transformable(bag.name, views, scales=scale_count(bag))
        seed, epoch = (int(getattr(bag, name, 0)) for name in ("seed", "epoch"))
        transform = BatchTransform.of(
            batch_transform, normalize, dtype, sender.device, seed=seed, epoch=epoch, bag=bag.name
        )
        sender = Sender(sender.device, None, dtype)  # the bytes; they are normalised after the transform
    positions = checked_positions(indices, tile_count(bag), bag.name)
    return TileStream(
        bag,
        positions,
        sender,
        batch_size=at_least_one("batch_size", batch_size),
        prefetch=at_least_one("prefetch", prefetch),
        threads=default_threads() if threads is None else at_least_one("threads", threads),
        colours=check_colours(colours, bag),
        tolerance=TileErrors(bag.name, len(positions), check_on_error(on_error)),
        views=views,
        transform=transform,
    )


def _send_batches(
    bag: Bag,
    positions: NDArray[np.int64],
    ring: BufferPool,
    batch_size: int,
    threads: int,
    colours: str,
    tolerance: TileErrors,
) -> Generator[_Prepared]:
    read = reader_of(bag, colours, threads)
    with closing(ring):
        planned = 0
        for start in range(0, len(positions), batch_size):
            index = positions[start : start + batch_size]
            if start >= planned:
                planned = start + max(batch_size, PLANNED)
                plan_ahead(bag, positions[start:planned], colours)
            slot = ring.take()
            tiles = slot.claim(len(index))
            with ranged("read"):
                bad = tolerance.read(read, index, tiles.numpy())
            if bad and tolerance.on_error == "skip":
                valid = np.delete(np.arange(len(index)), bad)
                tiles, index = tiles[torch.from_numpy(valid)], index[valid]
            targets = targets_of_batch(bag, index)
            yield ring.send(slot, tiles, colours_of(bag, index, colours)), index, targets


def colours_of(bag: Bag, index: NDArray[np.int64], colours: str) -> Colours | ViewColours | None:
    """Return the colour operations of tiles that the device must compute."""
    if colours == "device" and isinstance(bag, ViewsBag):
        return view_colours(bag, index)
    if colours != "device" or not isinstance(bag, UncolouredBag):
        return None
    scales = scale_count(bag)
    places = (index[:, None] * scales + np.arange(scales)).ravel().tolist()
    if isinstance(bag, ColourColumnsBag):
        return Colours(bag.colour_columns(index), places)
    return Colours([operations for k in index.tolist() for operations in [bag.operations(k)] * scales], places)
