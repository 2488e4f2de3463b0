"""Random numbers of many tiles at once, each from its own stream: those that ``draw.seeded`` gives tile by tile.

A stream is NumPy's Philox 4x64-10 (Salmon et al. 2011), whose words are taken from NumPy itself. ``Streams`` keeps a
position in each, and makes numbers of words as ``np.random.Generator`` does: a tile that draws fewer numbers than
another is at another position.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.errors import ConfigError

# Words per stream that are made at first; the usual transform of tiles takes 24.
_FIRST_WORDS = 32
# A word's upper 53 bits as a number from 0 to 1, exclusive.
_UNIT = 1.0 / (1 << 53)
_HALF_BITS, _LOWER_HALF = np.uint64(32), np.uint64(0xFFFFFFFF)

Numbers = NDArray[np.float64]
Whole = NDArray[np.int64]


class _Words:
    """The words of all streams, and the position in each."""

    def __init__(self, keys: NDArray[np.uint64]) -> None:
        self.keys = keys
        self.philox = np.random.Philox(key=0)
        self.state: Any = self.philox.state
        self.words = self._made(0, _FIRST_WORDS)
        self.position = np.zeros(len(keys), np.int64)
        self.used = 0  # no position is beyond it
        # The upper half of a word of which only the lower half was used, if any: 32-bit numbers take half a word.
        self.half = np.zeros(len(keys), np.uint64)
        self.has_half = np.zeros(len(keys), bool)

    def _made(self, first: int, count: int) -> NDArray[np.uint64]:
        """Return words ``first`` to ``first + count`` of every stream, multiples of four."""
        words = np.empty((len(self.keys), count), np.uint64)
        state = self.state
        state.update(buffer_pos=4, has_uint32=0)
        inner = state["state"] = {"counter": np.array([first // 4, 0, 0, 0], np.uint64), "key": None}
        for row, key in zip(words, self.keys, strict=True):
            inner["key"] = key
            self.philox.state = state
            row[:] = self.philox.random_raw(count)
        return words

    def reserve(self) -> None:
        """Make words up to every position."""
        self.used = int(self.position.max(initial=0))
        while (count := self.words.shape[1]) < self.used:
            self.words = np.concatenate([self.words, self._made(count, count)], axis=1)


class Streams:
    """Has those methods of ``np.random.Generator`` that transforms use; each returns the numbers of ``n`` streams.

    Parameters
    ----------
    keys : (n, 2) uint64
        Philox keys, lower word first.

    Examples
    --------
    >>> from slideio_pipe.augment.draw import seeded
    >>> streams = Streams.seeded(1, 0, "a.svs", [4, 5])
    >>> streams.random().tolist() == [seeded(1, 0, "a.svs", tile).random() for tile in (4, 5)]
    True
    """

    def __init__(self, keys: NDArray[np.uint64]) -> None:
        self._all = _Words(keys)
        self._rows = np.arange(len(keys))

    @classmethod
    def seeded(cls, seed: int, epoch: int, slide: str, tiles: Sequence[int]) -> Streams:
        """Return the streams whose keys are those of ``draw.seeded(seed, epoch, slide, tile)``."""
        # The text that is hashed ends with the tile: what precedes it is hashed once.
        begun = hashlib.blake2b(json.dumps((seed, epoch, slide))[:-1].encode(), digest_size=16)
        digests = bytearray()
        for tile in tiles:
            one = begun.copy()
            one.update(b", %d]" % tile)
            digests += one.digest()
        return cls(np.frombuffer(bytes(digests), "<u8").reshape(-1, 2).astype(np.uint64))

    def only(self, rows: NDArray[np.intp]) -> Streams:
        """Return some of the streams, by their position among all; they advance together with these."""
        some = object.__new__(Streams)
        some._all, some._rows = self._all, rows
        return some

    def __len__(self) -> int:
        return len(self._rows)

    # -- numbers -------------------------------------------------------------------------------------------------

    def random(self, count: int | None = None) -> Numbers:
        """Return (n,) numbers from 0 to 1, exclusive, or (n, count)."""
        words = self._next(self._rows, 1 if count is None else count)
        numbers = (words >> np.uint64(11)).astype(np.float64) * _UNIT
        return numbers[:, 0] if count is None else numbers

    def integers(self, count: int) -> Whole:
        """Return (n,) whole numbers from 0 to ``count``, exclusive, at most 2³² (Lemire 2019)."""
        found = np.zeros(len(self), np.int64)
        if count == 1:
            return found
        if not 1 < count < 1 << 32:
            raise ConfigError(f"a whole number below {count}", remedy="pass limits that rise, less than 2³² apart")
        factor, rejected = np.uint64(count), np.uint64(((1 << 32) - count) % count)
        wanted = np.arange(len(self))
        while len(wanted):
            product = self._halves(self._rows[wanted]) * factor
            found[wanted] = (product >> _HALF_BITS).astype(np.int64)
            wanted = wanted[(product & _LOWER_HALF) < rejected]
        return found

    def permutation(self, count: int) -> Whole:
        """Return (n, count) whole numbers from 0, each row in an order of its own."""
        order = np.tile(np.arange(count), (len(self), 1))
        row = np.arange(len(self))
        for last in range(count - 1, 0, -1):
            other = self._masked(last)
            order[row, last], order[row, other] = order[row, other], order[row, last]
        return order

    def choice(self, count: int, size: int, *, replace: bool, p: Sequence[float]) -> Whole:
        """Return (n, size) whole numbers from 0 to ``count``, with probabilities ``p``."""
        if not replace:
            return self._one_by_one(lambda rng: rng.choice(count, size, replace=False, p=p)).astype(np.int64)
        weights = np.asarray(p, np.float64)
        if not (weights >= 0).all() or not abs(weights.sum() - 1) < 1e-9 or len(weights) != count:
            raise ConfigError(f"probabilities {weights.tolist()}", remedy="pass weights of 0 or more")
        reached = weights.cumsum()
        reached /= reached[-1]
        return reached.searchsorted(self.random(size), side="right").astype(np.int64)

    def standard_normal(self, count: int) -> Numbers:
        """Return (n, count) numbers of the normal distribution of mean 0 and deviation 1."""
        return self._one_by_one(lambda rng: rng.standard_normal(count)).astype(np.float64)

    # -- words ---------------------------------------------------------------------------------------------------

    def _next(self, rows: NDArray[np.intp], count: int) -> NDArray[np.uint64]:
        """Return the next (n, count) words of streams ``rows``."""
        streams = self._all
        at = streams.position[rows]
        streams.position[rows] = at + count
        streams.used += count
        if streams.used > streams.words.shape[1]:
            streams.reserve()
        words: NDArray[np.uint64]
        if count == 1:
            words = streams.words[rows, at].reshape(-1, 1)
        else:
            words = streams.words[rows[:, None], at[:, None] + np.arange(count)]
        return words

    def _halves(self, rows: NDArray[np.intp]) -> NDArray[np.uint64]:
        """Return the next 32-bit numbers of streams ``rows``: the lower half of a word, then its upper half."""
        streams = self._all
        halves, left = streams.half[rows], streams.has_half[rows]
        fresh = rows[~left]
        words = self._next(fresh, 1)[:, 0]
        halves[~left] = words & _LOWER_HALF
        streams.half[fresh] = words >> _HALF_BITS
        streams.has_half[rows] = ~left
        return halves

    def _masked(self, most: int) -> Whole:
        """Return whole numbers from 0 to ``most``, inclusive, as NumPy draws them to shuffle: bits, until they fit."""
        mask = np.uint64((1 << most.bit_length()) - 1)
        found = np.zeros(len(self), np.int64)
        wanted = np.arange(len(self))
        while len(wanted):
            found[wanted] = (self._halves(self._rows[wanted]) & mask).astype(np.int64)
            wanted = wanted[found[wanted] > most]
        return found

    def _one_by_one(self, draw: Callable[[np.random.Generator], Any]) -> NDArray[Any]:
        """Return what NumPy's own generator draws for each stream; the streams advance as it does."""
        streams, found = self._all, []
        rng = np.random.Generator(streams.philox)
        for row in self._rows.tolist():
            block, used = divmod(int(streams.position[row]), 4)
            buffer = 4 * block if used else 0
            streams.philox.state = {
                "bit_generator": "Philox",
                "state": {
                    "counter": np.array([block + (used > 0), 0, 0, 0], np.uint64),
                    "key": streams.keys[row],
                },
                "buffer": streams.words[row, buffer : buffer + 4],
                "buffer_pos": used or 4,
                "has_uint32": int(streams.has_half[row]),
                "uinteger": int(streams.half[row]),
            }
            found.append(draw(rng))
            state: dict[str, Any] = dict(streams.philox.state)
            streams.position[row] = 4 * int(state["state"]["counter"][0]) + state["buffer_pos"] - 4
            streams.has_half[row], streams.half[row] = state["has_uint32"], state["uinteger"]
        streams.reserve()
        return np.array(found)
