"""A cache with a memory limit: like a list of keys sorted by use, thread-safe, empty when copied."""

from __future__ import annotations

import copy
import pickle
import sys
import threading

from hypothesis import given
from hypothesis import strategies as st

from slideio_pipe.slides.byte_cache import ByteCache

STEPS = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 60)))


@given(STEPS)
def test_it_keeps_the_last_used_values(steps: list[tuple[str, int]]) -> None:
    """Like a list sorted by use, from whose front values are dropped."""
    cache: ByteCache[str, int] = ByteCache(100)
    plain: list[tuple[str, int]] = []
    for key, nbytes in steps:
        known = next((entry for entry in plain if entry[0] == key), None)
        assert cache.get(key) == (None if known is None else known[1])
        if known is not None:
            plain.remove(known)
            plain.append(known)
        else:
            cache.keep(key, nbytes, nbytes)
            plain.append((key, nbytes))
            while sum(size for _, size in plain) > 100:
                plain.pop(0)
        assert cache.nbytes == sum(size for _, size in plain)


def test_a_value_larger_than_the_limit_is_not_kept() -> None:
    """And all others are dropped."""
    cache: ByteCache[str, str] = ByteCache(10)
    cache.keep("small", "x", 5)
    cache.keep("large", "y", 11)
    assert (cache.get("small"), cache.get("large"), cache.nbytes) == (None, None, 0)


def test_some_keys_are_dropped() -> None:
    """With their bytes."""
    cache: ByteCache[tuple[int, str], str] = ByteCache(100)
    for key in ((1, "a"), (2, "a"), (1, "b")):
        cache.keep(key, key[1], 10)
    cache.drop(lambda key: key[0] == 1)
    assert (cache.get((1, "a")), cache.get((2, "a")), cache.nbytes) == (None, "a", 10)


def test_copies_are_empty() -> None:
    """In this process and in another, with the limit of the original."""
    cache: ByteCache[str, str] = ByteCache(30)
    cache.keep("a", "x", 20)
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert (other.max_bytes, other.nbytes, other.get("a")) == (30, 0, None)


def test_threads_share_it() -> None:
    """The count of bytes equals the size of the values, whichever thread added them."""
    cache: ByteCache[int, bytes] = ByteCache(50)

    def use(first: int) -> None:
        for key in range(first, first + 2000):
            if cache.get(key % 37) is None:
                cache.keep(key % 37, bytes([key % 37]), 1 + key % 7)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=use, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert all(cache.get(key) in (None, bytes([key])) for key in range(37))
    assert 0 < cache.nbytes <= 50
    cache.drop(lambda key: True)
    assert cache.nbytes == 0
