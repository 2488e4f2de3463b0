"""A cache with a memory limit."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ByteCache(Generic[K, V]):
    """The most recently used values, up to a number of bytes; can be shared by threads.

    Examples
    --------
    >>> cache: ByteCache[str, str] = ByteCache(max_bytes=100)
    >>> for key in ("a", "b"):
    ...     cache.keep(key, key.upper(), 50)
    >>> cache.get("a")
    'A'
    >>> cache.keep("c", "C", 50)  # in place of the one that was not used
    >>> cache.get("b"), cache.get("a"), cache.nbytes
    (None, 'A', 100)
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.nbytes = max_bytes, 0
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return ByteCache, (self.max_bytes,)  # a copy, and one in another process, is empty

    def get(self, key: K) -> V | None:
        """Return the value of ``key``; None if it is not kept."""
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept.move_to_end(key)
            return found[0]

    def get_all(self, keys: Iterable[K]) -> list[V | None]:
        """Return the value of each key; None for those that are not kept."""
        kept = self._kept
        values: list[V | None] = []
        with self._lock:
            for key in keys:
                found = kept.get(key)
                if found is None:
                    values.append(None)
                else:
                    kept.move_to_end(key)
                    values.append(found[0])
        return values

    def keep(self, key: K, value: V, nbytes: int) -> None:
        """Keep a value of so many bytes, unless ``key`` has one; the least recently used values make room."""
        self.keep_all([key], [value], [nbytes])

    def keep_all(self, keys: Sequence[K], values: Sequence[V], sizes: Sequence[int]) -> None:
        """Keep several values as ``keep`` does."""
        kept = self._kept
        with self._lock:
            for key, value, nbytes in zip(keys, values, sizes, strict=True):
                if key not in kept:
                    kept[key] = value, nbytes
                    self.nbytes += nbytes
            while self.nbytes > self.max_bytes:
                self.nbytes -= kept.popitem(last=False)[1][1]

    def drop(self, is_gone: Callable[[K], bool]) -> None:
        """Drop the values of some keys."""
        with self._lock:
            for key in [key for key in self._kept if is_gone(key)]:
                self.nbytes -= self._kept.pop(key)[1]
