"""Read and write files of the zarr v3 codec ``sharding_indexed``, one chunk per tile, without zarr.

A shard is its chunks, then an index of one (offset, nbytes) pair of little-endian uint64 per chunk (both 2⁶⁴-1 for a
missing chunk), then the crc32c of that index. zarr-python takes 1.3–2.7 ms per tile for it; here a read is
one ``preadv`` into the caller's slot. Layout: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/
"""

from __future__ import annotations

import itertools
import math
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import google_crc32c
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from slideio_pipe.errors import BagFormatError
from slideio_pipe.files import open_to_read, pread, preadv, put_in_place
from slideio_pipe.store.codecs import TileCodec

MISSING = 2**64 - 1
ENTRY_BYTES = 16  # two uint64
CRC_BYTES = 4
# Descriptors per bag: 16 shards of 512 tiles cover most bags, and 60 bags fit the usual limit of 1024.
OPEN_SHARDS = 16
DAMAGED = "copy or write the bag again"


def write_shard(path: Path, chunks: Iterable[bytes | memoryview], slots: int) -> None:
    """Write a whole shard durably; until then, nothing is at ``path``.

    Raise OSError if the file cannot be written; the unfinished file is removed.

    Parameters
    ----------
    path : Path
        Path of the shard; its folders are created. It is written beside it as ``<name>.partial``, then renamed.
    chunks : iterable of bytes-like
        The encoded chunks of slots 0, 1, …; the slots after the last one are marked as missing.
    slots : int
        Number of chunks in a full shard.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    index = np.full((slots, 2), MISSING, dtype="<u8")
    offset = 0
    try:
        with partial.open("wb") as file:
            for slot, chunk in enumerate(chunks):
                size = memoryview(chunk).nbytes
                file.write(chunk)
                index[slot] = offset, size
                offset += size
            file.write(_with_checksum(index))
        put_in_place(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _with_checksum(index: NDArray[np.uint64]) -> bytes:
    data: bytes = index.tobytes()
    crc: int = google_crc32c.value(data)
    return data + crc.to_bytes(CRC_BYTES, "little")


def read_index(path: Path, slots: int, fd: int) -> NDArray[np.int64]:
    """Return the validated index of a shard: (slots, 2) int64 of offset and nbytes, -1 for a missing chunk.

    Raise BagFormatError if the file is too short, the checksum is wrong, or a chunk is outside the file.
    """
    size = os.fstat(fd).st_size
    tail = slots * ENTRY_BYTES + CRC_BYTES
    if size < tail:
        raise BagFormatError(
            f"shard of {size} bytes is shorter than its index of {tail}", slide=str(path), remedy=DAMAGED
        )
    data = pread(fd, tail, size - tail)
    if len(data) != tail or google_crc32c.value(data[:-CRC_BYTES]) != int.from_bytes(data[-CRC_BYTES:], "little"):
        reason = "the checksum of the shard index is wrong: truncated or damaged"
        raise BagFormatError(reason, slide=str(path), remedy=DAMAGED)
    index = np.frombuffer(data[:-CRC_BYTES], dtype="<u8").reshape(slots, 2)
    missing = (index == MISSING).all(axis=1)
    end = np.uint64(size - tail)
    # Two comparisons instead of offset + nbytes, which can wrap around.
    outside = (index[:, 1] > end) | (index[:, 0] > end - np.minimum(index[:, 1], end))
    if (outside & ~missing).any():
        slot = int(np.flatnonzero(outside & ~missing)[0])
        raise BagFormatError(f"chunk {slot} is outside the shard", slide=str(path), remedy=DAMAGED)
    return np.where(missing[:, None], -1, index.astype(np.int64))


def is_finished(path: Path, chunks: int, slots: int) -> bool:
    """Whether ``path`` is a complete shard: an intact index of ``chunks`` chunks without gaps."""
    try:
        fd = open_to_read(path)
    except OSError:
        return False
    try:
        index = read_index(path, slots, fd)
        size = os.fstat(fd).st_size
    except (BagFormatError, OSError):
        return False
    finally:
        os.close(fd)
    offsets, sizes = index[:chunks].T
    ends = np.cumsum(sizes)
    full = bool((sizes > 0).all() and (index[chunks:] == -1).all() and (offsets == ends - sizes).all())
    return full and size == int(ends[-1]) + slots * ENTRY_BYTES + CRC_BYTES


@dataclass(frozen=True, slots=True)
class ShardGrid:
    """The assignment of tiles to shards of an array, and the meaning of a missing chunk."""

    folder: Path  # of the array: its shards are c/0/0/0/0, c/1/0/0/0, …
    count: int  # tiles
    slots: int  # tiles of a full shard
    fill_value: int = 0  # the pixels of a missing chunk
    complete: bool = False  # no chunk may be missing: a lost shard is an error, not fill_value
    scales: int | None = None  # magnifications of a tile, a chunk each; None: the array has no axis of them

    @property
    def each(self) -> int:
        """Number of chunks of a tile."""
        return self.scales or 1

    @property
    def shards(self) -> int:
        """Number of shards of the array."""
        return -(-self.count // self.slots)

    def path(self, shard: int) -> Path:
        """Return the file of a shard."""
        return self.folder / f"c/{shard}/0/0/0{'' if self.scales is None else '/0'}"

    def span(self, shard: int) -> tuple[int, int]:
        """Return the first tile of a shard and the one after its last."""
        return shard * self.slots, min((shard + 1) * self.slots, self.count)


class _OpenShard:
    """A descriptor that is closed after its last user, so that a cache may drop it while a thread reads."""

    def __init__(self, path: Path) -> None:
        self.fd = open_to_read(path)
        self.close = weakref.finalize(self, os.close, self.fd)


class ShardReader:
    """Decodes chunks of a sharded array into slots of the caller, in any number of threads at once.

    Keeps at most 16 descriptors open (more only while more threads read), and the index of each shard that was read:
    16 bytes per tile.
    """

    def __init__(self, grid: ShardGrid, codec: TileCodec) -> None:
        self._grid, self._codec, self._slots = grid, codec, grid.slots * grid.each
        self._lock = threading.Lock()
        self._files: OrderedDict[int, _OpenShard] = OrderedDict()
        self._indexes: dict[int, NDArray[np.int64]] = {}
        folder = grid.folder.stat()
        self._identity = (folder.st_dev, folder.st_ino)

    def read(self, numbers: NDArray[np.int64], out: NDArray[np.uint8], threads: int = 1) -> None:
        """Fill ``out[k]`` with chunk ``numbers[k]``.

        Raise BagFormatError if a shard is damaged, lost, or was replaced since this reader was made.

        Parameters
        ----------
        numbers : (n,) int64
            Chunks, in any order: tiles, or tile by tile their magnifications.
        out : (n, height, width, 3) uint8, C-contiguous
            The slots; for chunks that are not JPEG also (n, chunk bytes).
        threads : int
            Number of threads; useful from a few megabytes on.
        """
        parts = min(threads, len(numbers))
        if parts <= 1:
            self._read_part(numbers, out)
            return
        bounds = np.linspace(0, len(numbers), parts + 1).astype(int)
        with ThreadPoolExecutor(parts, thread_name_prefix="bag-read") as pool:
            spans = [slice(a, b) for a, b in itertools.pairwise(bounds.tolist())]
            for _ in pool.map(lambda span: self._read_part(numbers[span], out[span]), spans):
                pass

    def decoded(self, number: int, out: NDArray[np.uint8], reduce: int) -> None:
        """Fill ``out`` with chunk ``number``, ``reduce`` times smaller in both directions.

        JPEG is shrunk by its decoder, other pixels by means. Raise BagFormatError as ``read`` does.

        Parameters
        ----------
        number : int
        out : (height // reduce, width // reduce, 3) uint8, C-contiguous
        reduce : 1, 2, 4 or 8
            Divides the sides of a tile.
        """
        height, width = out.shape[:2]
        if reduce == 1:
            self.read(np.array([number]), out[None])
        elif self._codec.decode_reduced is None:
            full = np.empty((height * reduce, width * reduce, 3), np.uint8)
            self.read(np.array([number]), full[None])
            cv2.resize(full, (width, height), dst=out, interpolation=cv2.INTER_AREA)
        else:
            data = self.encoded(number)
            try:
                self._codec.decode_reduced(data, out, reduce)
            except ValueError as error:
                raise self._damaged(*divmod(number, self._slots), f"cannot be decoded ({error})") from error

    def encoded(self, number: int, jpeg: tuple[int, int] | None = None) -> bytes:
        """Return the stored bytes of chunk ``number``; with ``jpeg``, check that it is a JPEG of this height and width.

        Raise BagFormatError if the shard is damaged, lost, or was replaced since this reader was made.
        """
        shard, slot = divmod(number, self._slots)
        file, index = self._shard(shard)
        offset, size = index[slot].tolist()
        if file is None or size < 0:
            raise self._damaged(shard, slot, "is not there")
        data = np.empty(size, np.uint8)
        self._fetch(file, offset, data, shard, slot)
        found = data.tobytes()
        if jpeg is not None:
            try:
                height, width, _, _ = simplejpeg.decode_jpeg_header(found)
            except ValueError as error:
                raise self._damaged(shard, slot, f"is no JPEG ({error})") from error
            if (height, width) != jpeg:
                raise self._damaged(shard, slot, f"is a JPEG of {width}×{height} px")
        return found

    def close(self) -> None:
        """Close all descriptors; a later read opens them again."""
        with self._lock:
            self._files.clear()

    def _read_part(self, numbers: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        if self._codec.decode is None:
            self._read_raw(numbers, out)
        else:
            self._read_encoded(numbers, out)

    def _read_raw(self, numbers: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        tile_bytes = math.prod(out.shape[1:])
        for shard, slots, slot_out in self._runs(numbers, out):
            file, index = self._shard(shard)
            offsets = index[slots, 0]
            for first, last in itertools.pairwise(_run_bounds(offsets, tile_bytes)):
                sizes = index[slots[first:last], 1]
                if file is None or sizes[0] < 0:
                    self._fill(shard, int(slots[first]), slot_out[first:last])
                elif (sizes != tile_bytes).any():
                    wrong = int(np.flatnonzero(sizes != tile_bytes)[0])
                    raise self._damaged(shard, int(slots[first + wrong]), f"has {sizes[wrong]} bytes, not {tile_bytes}")
                else:
                    self._fetch(file, int(offsets[first]), slot_out[first:last], shard, int(slots[first]))

    def _read_encoded(self, numbers: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        decode = self._codec.decode
        assert decode is not None
        scratch = np.empty(0, np.uint8)  # the encoded bytes of one tile, reused for all tiles of this thread
        for shard, slots, slot_out in self._runs(numbers, out):
            file, index = self._shard(shard)
            entries = index[slots]
            if entries[:, 1].max() > len(scratch):
                scratch = np.empty(entries[:, 1].max(), np.uint8)
            for slot, (offset, size), tile in zip(slots.tolist(), entries.tolist(), slot_out, strict=True):
                if file is None or size < 0:
                    self._fill(shard, slot, tile)
                    continue
                self._fetch(file, offset, scratch[:size], shard, slot)
                try:
                    filled = decode(scratch[:size].data, tile)
                except Exception as error:  # codec libraries raise their own classes
                    raise self._damaged(shard, slot, f"cannot be decoded ({error})") from error
                if filled != tile.nbytes:
                    raise self._damaged(shard, slot, f"has {filled} bytes, not {tile.nbytes}")

    def _runs(
        self, numbers: NDArray[np.int64], out: NDArray[np.uint8]
    ) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.uint8]]]:
        """Yield (shard, slots in it, their destination) for every run of chunks in one shard."""
        if len(numbers) == 1:  # a random tile: numpy's set-up would take as long as the read
            shard, slot = divmod(int(numbers[0]), self._slots)
            yield shard, np.array([slot]), out
            return
        shards, slots = np.divmod(numbers, self._slots)
        edges = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(numbers)]
        for first, last in itertools.pairwise(edges):
            if first < last:
                yield int(shards[first]), slots[first:last], out[first:last]

    def _shard(self, shard: int) -> tuple[_OpenShard | None, NDArray[np.int64]]:
        with self._lock:
            file = self._files.get(shard)
            if file is not None:
                self._files.move_to_end(shard)
                return file, self._indexes[shard]
            try:
                file = self._open(shard)
            except FileNotFoundError:
                return None, np.full((self._slots, 2), -1, np.int64)
            if shard not in self._indexes:
                self._indexes[shard] = read_index(self._grid.path(shard), self._slots, file.fd)
            self._files[shard] = file
            if len(self._files) > OPEN_SHARDS:
                self._files.popitem(last=False)
            return file, self._indexes[shard]

    def _open(self, shard: int) -> _OpenShard:
        try:
            folder = self._grid.folder.stat()
            if (folder.st_dev, folder.st_ino) != self._identity:
                reason = "the bag was replaced since it was opened"
                raise BagFormatError(reason, slide=str(self._grid.folder.parent), remedy="open it again")
            return _OpenShard(self._grid.path(shard))
        except FileNotFoundError:
            if self._grid.complete:
                reason = f"shard {shard} of {self._grid.shards} is not there"
                raise BagFormatError(reason, slide=str(self._grid.path(shard)), remedy=DAMAGED) from None
            raise
        except OSError as error:
            reason = f"shard {shard} cannot be opened ({error.strerror})"
            raise BagFormatError(
                reason, slide=str(self._grid.path(shard)), remedy="correct this and try again"
            ) from error

    def _fetch(self, file: _OpenShard, offset: int, into: NDArray[np.uint8], shard: int, slot: int) -> None:
        view = into.data.cast("B")
        done = 0
        while done < len(view):
            count = preadv(file.fd, [view[done:]], offset + done)
            if count == 0:
                raise self._damaged(shard, slot, "ends too early")
            done += count

    def _fill(self, shard: int, slot: int, out: NDArray[np.uint8]) -> None:
        if self._grid.complete:
            raise self._damaged(shard, slot, "is not there")
        out[:] = self._grid.fill_value

    def _damaged(self, shard: int, slot: int, what: str) -> BagFormatError:
        number = shard * self._grid.slots + slot // self._grid.each
        error = BagFormatError(f"tile {number} {what}", slide=str(self._grid.path(shard)), remedy=DAMAGED)
        error.tile = number
        return error


def _run_bounds(offsets: NDArray[np.int64], tile_bytes: int) -> list[int]:
    """Return where to split tiles into runs that are contiguous in the file and in the output, each one kernel call.

    >>> _run_bounds(np.array([0, 12, 24, 40, -1, 11, 23]), 12)
    [0, 3, 4, 5, 7]
    """
    if len(offsets) == 1:
        return [0, 1]
    apart = (np.diff(offsets) != tile_bytes) | (offsets[:-1] < 0)
    return [0, *(np.flatnonzero(apart) + 1).tolist(), len(offsets)]
