"""Saving a bag as ``<slide>.bag.zarr`` and opening it again.

zarr-python describes the arrays; the shards are written here, because its own pipeline costs 1.3–2.7 ms per tile.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.bag import Bag
from slideio_pipe.errors import ConfigError
from slideio_pipe.progress import Report, reporting
from slideio_pipe.store.codecs import TileCodec, codec_for
from slideio_pipe.store.layout import skeleton, tiles_per_shard
from slideio_pipe.store.partial import PartialStore, disk_errors
from slideio_pipe.store.shards import ShardGrid, is_finished, write_shard
from slideio_pipe.store.stored_bag import StoredBag

# More threads than this wait for the disk or for each other.
MAX_THREADS = 8


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
    pixels: Literal["none", "zstd"] = "zstd",
    overwrite: bool = False,
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
    pixels : "none" or "zstd"
        Raw bytes, or lossless zstd.
    overwrite : bool
        Whether to replace a bag store at ``path``; it stays until the new one is whole.
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
        When an argument makes no sense.
    CorruptSlideError
        When a tile cannot be read; nothing is left under ``path``.

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
    codec = codec_for(pixels)
    threads = min(MAX_THREADS, os.cpu_count() or 1) if threads is None else threads
    if threads < 1:
        raise ConfigError(f"threads is {threads}", slide=str(path), remedy="pass threads >= 1")
    target = Path(path).absolute()
    if target.is_symlink():
        target = target.resolve()  # replace what it points to, not the link
    files = skeleton(bag, codec)
    with PartialStore(target, overwrite=overwrite) as partial:
        partial.begin(files)
        slots = tiles_per_shard(int(np.prod(bag.shape[1:])))
        grid = ShardGrid(partial.folder / "tiles", bag.shape[0], slots)
        with reporting(progress, f"saving {bag.name}") as report:
            _ShardWriter(bag, grid, codec, threads).run(report)
        partial.publish()
    return open_bag(target)


@dataclass(frozen=True, slots=True)
class _ShardWriter:
    """Reads the tiles of one shard while those of the shard before are encoded and written."""

    bag: Bag
    grid: ShardGrid
    codec: TileCodec
    threads: int

    def run(self, progress: Report) -> None:
        """Write the shards that are not finished yet."""
        spans = {shard: self.grid.span(shard) for shard in range(self.grid.shards)}
        sizes = {shard: last - first for shard, (first, last) in spans.items()}
        todo = [shard for shard, size in sizes.items() if not is_finished(self.grid.path(shard), size, self.grid.slots)]
        done = self.grid.count - sum(sizes[shard] for shard in todo)
        progress(done, self.grid.count)
        buffers = [np.empty((max(sizes.values(), default=0), *self.bag.shape[1:]), np.uint8) for _ in todo[:2]]
        pending: deque[tuple[int, Future[None]]] = deque()
        with ThreadPoolExecutor(self.threads) as encoders, ThreadPoolExecutor(1) as writer:
            for turn, shard in enumerate(todo):
                if len(pending) == len(buffers):  # the buffer to be filled next is still being written
                    done += self._finish(*pending.popleft(), sizes, progress, done)
                tiles = buffers[turn % 2][: sizes[shard]]
                self.bag.read(np.arange(*spans[shard]), tiles, threads=self.threads)
                pending.append((shard, writer.submit(self._write, shard, tiles, encoders)))
            while pending:
                done += self._finish(*pending.popleft(), sizes, progress, done)

    def _finish(
        self,
        shard: int,
        written: Future[None],
        sizes: dict[int, int],
        progress: Report,
        done: int,
    ) -> int:
        written.result()
        progress(done + sizes[shard], self.grid.count)
        return sizes[shard]

    def _write(self, shard: int, tiles: NDArray[np.uint8], encoders: ThreadPoolExecutor) -> None:
        path = self.grid.path(shard)
        with disk_errors(path):
            write_shard(path, self._encoded(tiles, encoders), self.grid.slots)

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
