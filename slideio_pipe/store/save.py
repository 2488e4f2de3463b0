"""Save a bag as ``<slide>.bag.zarr`` and open it.

zarr-python writes the metadata; the shards are written here, because its own pipeline takes 1.3–2.7 ms per tile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.cores import decoding_threads
from slideio_pipe.errors import ConfigError
from slideio_pipe.files import disk_errors, make_folder
from slideio_pipe.progress import Report, reporting
from slideio_pipe.store.codecs import TileCodec, codec_for
from slideio_pipe.store.failed_tiles import FailedTiles, check_store_on_error
from slideio_pipe.store.metadata import skeleton, tiles_per_shard
from slideio_pipe.store.partial import PartialStore
from slideio_pipe.store.patient_index import is_patient_index, open_patient, save_patient
from slideio_pipe.store.psnr import with_loss
from slideio_pipe.store.shards import ShardGrid, is_finished, write_shard
from slideio_pipe.store.source_tiles import SourceTiles
from slideio_pipe.store.stored_bag import StoredBag
from slideio_pipe.tiles.bag import Bag, check_bag
from slideio_pipe.tiles.failures import TileErrors
from slideio_pipe.tiles.patient_bag import PatientBag
from slideio_pipe.tiles.reader import empty_tiles, no_memory


def open_bag(path: str | Path) -> StoredBag | PatientBag:
    """Return the bag stored at ``path``, a slide's or a patient's; no tile is read.

    Raises
    ------
    BagFormatError
        The path is not a bag store, or is a newer or damaged one; or a bag of a patient's slide is not there.

    Examples
    --------
    >>> open_bag("nowhere.bag.zarr")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    slideio_pipe.errors.BagFormatError: ...nowhere.bag.zarr: no bag store: no such folder; check the path
    """
    file = Path(path)
    return open_patient(file) if is_patient_index(file) else StoredBag(file)


@overload
def save_bag(  # type: ignore[overload-overlap]  # a PatientBag is a Bag, too
    bag: PatientBag,
    path: str | Path,
    *,
    pixels: str = "zstd",
    overwrite: bool = False,
    on_error: str = "raise",
    threads: int | None = None,
    progress: Report | bool | None = None,
) -> PatientBag: ...
@overload
def save_bag(
    bag: Bag,
    path: str | Path,
    *,
    pixels: str = "zstd",
    overwrite: bool = False,
    on_error: str = "raise",
    threads: int | None = None,
    progress: Report | bool | None = None,
) -> StoredBag: ...
def save_bag(
    bag: Bag,
    path: str | Path,
    *,
    pixels: str = "zstd",
    overwrite: bool = False,
    on_error: str = "raise",
    threads: int | None = None,
    progress: Report | bool | None = None,
) -> StoredBag | PatientBag:
    """Store a bag in a format that any zarr v3 reader can open, and return it opened from the store.

    The output gets its name when it is complete; until then it is ``<path>.partial``. After a failure or a kill the
    same call continues it, with the same bytes as without an interruption. Memory: two shards of raw tiles, each at
    most 512 tiles and 128 MiB (or one larger tile), and two encoded tiles per thread.

    Of a ``PatientBag`` a small file is written that names the stored bags of its slides; no pixel is copied, and the
    other arguments than ``overwrite`` do not matter.

    Parameters
    ----------
    bag : TileBag, StoredBag, PatientBag or the like
        What to store.
    path : str or Path
        The folder to create, by convention ``<slide>.bag.zarr``; of a patient a file, by convention
        ``<patient>.patient.json``. Missing parent folders are created.
    pixels : "zstd", "source", "jpeg:Q" or "none"
        Lossless zstd; the JPEG bytes of the slide, unchanged, which requires tiles equal to stored ones
        (``TileGrid(align=True)``) and decodes nothing; JPEG of quality Q (1 to 100) with full chroma, whose PSNR
        against the tiles is in ``attributes["pixels"]["psnr_db"]`` of the opened bag; or raw bytes.
    overwrite : bool
        Whether to replace a bag store at ``path``; it is kept until the new one is complete.
    on_error : {"raise", "white"}
        Handling of a tile that cannot be decoded. "white" stores it as a white one, with a ``SkippedWarning``, and
        lists it in ``attributes["failures"]``; more than a tenth of the bag's tiles (at least one is allowed) raise.
    threads : int, optional
        For reading the bag and for encoding, each. By default one per core, at most 8.
    progress : callable, bool or None
        Called as ``progress(done_tiles, total_tiles)`` at the start and after each shard; True shows a bar, False is
        silent, None shows a bar in a terminal or notebook.

    Returns
    -------
    StoredBag or PatientBag

    Raises
    ------
    OutputExistsError
        ``path`` exists and may not be replaced.
    OutputError
        The store cannot be written, or another process is writing it.
    ConfigError
        An argument is invalid, or ``pixels="source"`` is not possible; the message gives the reason and an alternative.
    CorruptSlideError
        A tile cannot be read and ``on_error`` is "raise", or too many cannot; nothing is left at ``path``.

    Examples
    --------
    >>> import tempfile
    >>> from slideio_pipe import TileBag, TileGrid, open_slide
    >>> view = open_slide(np.full((300, 500, 3), 7, np.uint8), slide_mpp=0.5).view()
    >>> bag = TileBag(view, TileGrid(view, tile_size=100), label=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     stored = save_bag(bag, f"{folder}/a.bag.zarr", pixels="zstd")
    ...     print(stored, stored[3:5].shape)
    StoredBag(array: 15 tiles of 100×100 px at 0.5 µm, zstd, label 1) (2, 100, 100, 3)
    """
    check_bag(bag)
    if isinstance(bag, PatientBag):
        make_folder(Path(path).absolute().parent)
        return save_patient(bag, path, overwrite=overwrite)
    codec, on_tile_error = codec_for(pixels), check_store_on_error(on_error)  # checked before any work
    threads = decoding_threads() if threads is None else threads
    if threads < 1:
        raise ConfigError(f"threads is {threads}", slide=str(path), remedy="pass threads >= 1")
    target = Path(path).absolute()
    if target.is_symlink():
        target = target.resolve()  # replace the link's target, not the link
    source = SourceTiles(bag) if pixels == "source" else None
    with _within_memory(bag), PartialStore(target, overwrite=overwrite) as unfinished:
        tolerance = TileErrors(bag.name, bag.shape[0], on_tile_error)
        codec = with_loss(codec, bag, threads, on_tile_error) if source is None else source.codec(tolerance)
        unfinished.begin(skeleton(bag, codec))
        slots = tiles_per_shard(int(np.prod(bag.shape[1:])))
        scales = bag.shape[1] if len(bag.shape) == 5 else None
        grid = ShardGrid(unfinished.folder / "tiles", bag.shape[0], slots, scales=scales)
        with reporting(progress, f"saving {bag.name}") as report:
            unread = FailedTiles(grid, tolerance)
            remaining = _RemainingShards(grid, unread, report)
            if source is None:
                _ShardWriter(bag, codec, threads, tolerance).run(remaining)
            else:
                _copy(source, remaining, tolerance)
        if failures := unread.as_json():
            unfinished.replace_metadata(skeleton(bag, codec, failures))
            unread.delete_notes()
        unfinished.publish()
    unread.warn()
    return StoredBag(target)


@contextmanager
def _within_memory(bag: Bag) -> Iterator[None]:
    """Raise a ConfigError with the tile's size if memory runs out while decoding or encoding."""
    try:
        yield
    except MemoryError as error:
        raise no_memory((min(2, len(bag)), *bag.shape[1:]), bag.name) from error


class _RemainingShards:
    """The unfinished shards, counted in tiles."""

    def __init__(self, grid: ShardGrid, unread: FailedTiles, progress: Report) -> None:
        self.grid, self._unread, self._progress = grid, unread, progress
        spans = {shard: grid.span(shard) for shard in range(grid.shards)}
        self.spans = {
            shard: (first, last)
            for shard, (first, last) in spans.items()
            if not is_finished(grid.path(shard), (last - first) * grid.each, grid.slots * grid.each)
        }
        for shard in sorted(spans.keys() - self.spans.keys()):
            unread.load(shard)
        self._done = grid.count - sum(last - first for first, last in self.spans.values())
        progress(self._done, grid.count)

    def write(self, shard: int, chunks: Iterator[bytes | memoryview]) -> None:
        """Write the file of a shard; safe to call from another thread."""
        path = self.grid.path(shard)
        with disk_errors(path):
            write_shard(path, self._unread.save_with(shard, chunks), self.grid.slots * self.grid.each)

    def finished(self, shard: int) -> None:
        """Report progress."""
        first, last = self.spans[shard]
        self._done += last - first
        self._progress(self._done, self.grid.count)


def _copy(source: SourceTiles, remaining: _RemainingShards, tolerance: TileErrors) -> None:
    """Write the slide's own bytes; no threads, because nothing is computed."""
    for shard, span in remaining.spans.items():
        remaining.write(shard, source.streams(*span, tolerance))
        remaining.finished(shard)


@dataclass(frozen=True, slots=True)
class _ShardWriter:
    """Reads the tiles of one shard while those of the previous shard are encoded and written."""

    bag: Bag
    codec: TileCodec
    threads: int
    tolerance: TileErrors

    def run(self, remaining: _RemainingShards) -> None:
        """Write the unfinished shards."""
        largest = max((last - first for first, last in remaining.spans.values()), default=0)
        buffers = [
            empty_tiles((largest, *self.bag.shape[1:]), self.bag.name) for _ in range(min(2, len(remaining.spans)))
        ]
        pending: deque[tuple[int, Future[None]]] = deque()
        with ThreadPoolExecutor(self.threads) as encoders, ThreadPoolExecutor(1) as writer:
            for turn, (shard, (first, last)) in enumerate(remaining.spans.items()):
                if len(pending) == len(buffers):  # the next buffer is still being written
                    self._finish(*pending.popleft(), remaining)
                tiles = buffers[turn % 2][: last - first]
                self.tolerance.read(partial(self.bag.read, threads=self.threads), np.arange(first, last), tiles)
                pending.append((shard, writer.submit(remaining.write, shard, self._encoded(tiles, encoders))))
            while pending:
                self._finish(*pending.popleft(), remaining)

    def _finish(self, shard: int, written: Future[None], remaining: _RemainingShards) -> None:
        written.result()
        remaining.finished(shard)

    def _encoded(self, tiles: NDArray[np.uint8], encoders: ThreadPoolExecutor) -> Iterator[bytes | memoryview]:
        """Yield the stored bytes of each tile in order, encoding at most two tiles per thread ahead."""
        tiles = tiles.reshape(-1, *tiles.shape[-3:])  # the magnifications of a tile one after another
        if self.codec.encode is None:
            yield from (tile.data for tile in tiles)
            return
        ahead: deque[Future[bytes]] = deque()
        for tile in tiles:
            if len(ahead) == 2 * self.threads:
                yield ahead.popleft().result()
            ahead.append(encoders.submit(self.codec.encode, tile))
        while ahead:
            yield ahead.popleft().result()
