"""Saving a bag as ``<slide>.bag.zarr`` and opening it again.

zarr-python describes the arrays; the shards are written here, because its own pipeline costs 1.3–2.7 ms per tile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.cores import decoding_threads
from slideio_pipe.errors import ConfigError
from slideio_pipe.files import disk_errors
from slideio_pipe.progress import Report, reporting
from slideio_pipe.store.codecs import TileCodec, codec_for
from slideio_pipe.store.failed_tiles import FailedTiles, check_bearing
from slideio_pipe.store.layout import skeleton, tiles_per_shard
from slideio_pipe.store.partial import PartialStore
from slideio_pipe.store.psnr import with_loss
from slideio_pipe.store.shards import ShardGrid, is_finished, write_shard
from slideio_pipe.store.source_tiles import SourceTiles
from slideio_pipe.store.stored_bag import StoredBag
from slideio_pipe.tiles.bag import Bag, check_bag
from slideio_pipe.tiles.failures import TileErrors
from slideio_pipe.tiles.reader import empty_tiles, no_memory

# More threads than this wait for the disk or for each other.


def open_bag(path: str | Path) -> StoredBag:
    """Return the bag stored at ``path``; no tile is read.

    Raises
    ------
    BagFormatError
        When the path is no bag store, a newer one, or a damaged one.

    Examples
    --------
    >>> open_bag("nowhere.bag.zarr")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    slideio_pipe.errors.BagFormatError: ...nowhere.bag.zarr: no bag store: no such folder; check the path
    """
    return StoredBag(path)


def save_bag(
    bag: Bag,
    path: str | Path,
    *,
    pixels: str = "zstd",
    overwrite: bool = False,
    on_error: str = "raise",
    threads: int | None = None,
    progress: Report | bool | None = None,
) -> StoredBag:
    """Store a bag so that any zarr v3 reader can open it, and return it opened from there.

    The output appears under its name when it is whole; until then it is ``<path>.partial``. After a failure or a kill
    the same call goes on there, and the result is the same bytes as without. Memory: two shards of raw tiles, each at
    most 512 tiles and 128 MiB (or one tile, when that is larger), and two encoded tiles per thread.

    Parameters
    ----------
    bag : TileBag, StoredBag or the like
        What to store.
    path : str or Path
        The folder to make, by custom ``<slide>.bag.zarr``. Its parents are made, too.
    pixels : "zstd", "source", "jpeg:Q" or "none"
        Lossless zstd; the JPEG bytes of the slide, unchanged, which needs tiles that are stored ones
        (``TileGrid(align=True)``) and decodes nothing; JPEG of quality Q (1 to 100) with full chroma, for which
        ``attributes["pixels"]["psnr_db"]`` of the opened bag says how near it is to the tiles; or raw bytes.
    overwrite : bool
        Whether to replace a bag store at ``path``; it stays until the new one is whole.
    on_error : {"raise", "white"}
        What becomes of a tile that cannot be decoded. "white" keeps it as a white one, with a ``SkippedWarning``, and
        lists it in ``attributes["failures"]``; more than a tenth of the bag's tiles (one is always borne) end it.
    threads : int, optional
        For reading the bag and for encoding, each. By default one per core, 8 at most.
    progress : callable, bool or None
        Called as ``progress(done_tiles, total_tiles)`` at the start and after each shard; True shows a bar, False is
        silent, None shows a bar to a person at a terminal or notebook.

    Returns
    -------
    StoredBag

    Raises
    ------
    OutputExistsError
        When something is at ``path`` that may not be replaced.
    OutputError
        When it cannot be written, or another process is writing it.
    ConfigError
        When an argument makes no sense, or ``pixels="source"`` is not possible; it says why, and what is.
    CorruptSlideError
        When a tile cannot be read and ``on_error`` is "raise", or too many cannot; nothing is left under ``path``.

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
    codec, bearing = codec_for(pixels), check_bearing(on_error)  # refused before anything else is
    threads = decoding_threads() if threads is None else threads
    if threads < 1:
        raise ConfigError(f"threads is {threads}", slide=str(path), remedy="pass threads >= 1")
    target = Path(path).absolute()
    if target.is_symlink():
        target = target.resolve()  # replace what it points to, not the link
    source = SourceTiles(bag) if pixels == "source" else None
    with _within_memory(bag), PartialStore(target, overwrite=overwrite) as unfinished:
        tolerance = TileErrors(bag.name, bag.shape[0], bearing)
        codec = with_loss(codec, bag, threads, bearing) if source is None else source.codec(tolerance)
        unfinished.begin(skeleton(bag, codec))
        slots = tiles_per_shard(int(np.prod(bag.shape[1:])))
        grid = ShardGrid(unfinished.folder / "tiles", bag.shape[0], slots)
        with reporting(progress, f"saving {bag.name}") as report:
            unread = FailedTiles(grid, tolerance)
            todo = _Todo(grid, unread, report)
            if source is None:
                _ShardWriter(bag, codec, threads, tolerance).run(todo)
            else:
                _copy(source, todo, tolerance)
        if failures := unread.as_json():
            unfinished.tell(skeleton(bag, codec, failures))
            unread.forget()
        unfinished.publish()
    unread.warn()
    return open_bag(target)


@contextmanager
def _within_memory(bag: Bag) -> Iterator[None]:
    """Say what does not fit where a tile has not even room to be decoded and encoded."""
    try:
        yield
    except MemoryError as error:
        raise no_memory((min(2, len(bag)), *bag.shape[1:]), bag.name) from error


class _Todo:
    """The shards that are not finished yet, counted in tiles."""

    def __init__(self, grid: ShardGrid, unread: FailedTiles, progress: Report) -> None:
        self.grid, self._unread, self._progress = grid, unread, progress
        spans = {shard: grid.span(shard) for shard in range(grid.shards)}
        self.spans = {
            shard: (first, last)
            for shard, (first, last) in spans.items()
            if not is_finished(grid.path(shard), last - first, grid.slots)
        }
        for shard in sorted(spans.keys() - self.spans.keys()):
            unread.load(shard)
        self._done = grid.count - sum(last - first for first, last in self.spans.values())
        progress(self._done, grid.count)

    def write(self, shard: int, chunks: Iterator[bytes | memoryview]) -> None:
        """Write the file of a shard; safe to call from another thread."""
        path = self.grid.path(shard)
        with disk_errors(path):
            write_shard(path, self._unread.save_with(shard, chunks), self.grid.slots)

    def finished(self, shard: int) -> None:
        """Tell the progress."""
        first, last = self.spans[shard]
        self._done += last - first
        self._progress(self._done, self.grid.count)


def _copy(source: SourceTiles, todo: _Todo, tolerance: TileErrors) -> None:
    """Write the slide's own bytes: no thread has anything to compute."""
    for shard, span in todo.spans.items():
        todo.write(shard, source.streams(*span, tolerance))
        todo.finished(shard)


@dataclass(frozen=True, slots=True)
class _ShardWriter:
    """Reads the tiles of one shard while those of the shard before are encoded and written."""

    bag: Bag
    codec: TileCodec
    threads: int
    tolerance: TileErrors

    def run(self, todo: _Todo) -> None:
        """Write the shards that are not finished yet."""
        largest = max((last - first for first, last in todo.spans.values()), default=0)
        buffers = [empty_tiles((largest, *self.bag.shape[1:]), self.bag.name) for _ in range(min(2, len(todo.spans)))]
        pending: deque[tuple[int, Future[None]]] = deque()
        with ThreadPoolExecutor(self.threads) as encoders, ThreadPoolExecutor(1) as writer:
            for turn, (shard, (first, last)) in enumerate(todo.spans.items()):
                if len(pending) == len(buffers):  # the buffer to be filled next is still being written
                    self._finish(*pending.popleft(), todo)
                tiles = buffers[turn % 2][: last - first]
                self.tolerance.read(partial(self.bag.read, threads=self.threads), np.arange(first, last), tiles)
                pending.append((shard, writer.submit(todo.write, shard, self._encoded(tiles, encoders))))
            while pending:
                self._finish(*pending.popleft(), todo)

    def _finish(self, shard: int, written: Future[None], todo: _Todo) -> None:
        written.result()
        todo.finished(shard)

    def _encoded(self, tiles: NDArray[np.uint8], encoders: ThreadPoolExecutor) -> Iterator[bytes | memoryview]:
        """Yield the stored bytes of each tile in order, encoding at most two tiles per thread ahead."""
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
