"""Streams give the numbers that NumPy's own generators give, one stream after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import examples

from slideio_pipe.augment.draw import seeded
from slideio_pipe.augment.streams import Streams
from slideio_pipe.errors import ConfigError

Call = Callable[[Any], Any]
WEIGHTS = [0.5, 0.25, 0.125, 0.125]

CALLS: dict[str, Call] = {
    "random": lambda rng: rng.random(),
    "three": lambda rng: rng.random(3),
    "integers": lambda rng: rng.integers(4),
    "one integer": lambda rng: rng.integers(1),
    "seed": lambda rng: rng.integers(2**31),
    "often rejected": lambda rng: rng.integers(2**31 + 5),
    "permutation": lambda rng: rng.permutation(7),
    "choice": lambda rng: rng.choice(4, 3, replace=True, p=WEIGHTS),
    "choice without replacement": lambda rng: rng.choice(4, 3, replace=False, p=WEIGHTS),
    "normal": lambda rng: rng.standard_normal(3),
}


@examples(300)
@given(st.lists(st.tuples(st.sampled_from(sorted(CALLS)), st.sampled_from([1, 2, 3])), min_size=1, max_size=40))
def test_numbers_are_those_of_numpy(calls: list[tuple[str, int]]) -> None:
    """Any methods in any order, by all streams or by every second or third, whose positions then differ."""
    streams = Streams.seeded(1, 2, "µ", range(7))
    own = [seeded(1, 2, "µ", tile) for tile in range(7)]
    for name, every in calls:
        rows = np.arange(0, 7, every)
        found = CALLS[name](streams.only(rows))
        assert found.tolist() == [np.asarray(CALLS[name](own[row])).tolist() for row in rows], name


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_a_thousand_streams_are_those_of_numpy(name: str) -> None:
    """Twenty numbers of each, more than the words that are made at first."""
    streams, own = Streams.seeded(9, 0, "a", range(1000)), [seeded(9, 0, "a", tile) for tile in range(1000)]
    for _ in range(20):
        assert CALLS[name](streams).tolist() == [np.asarray(CALLS[name](rng)).tolist() for rng in own]


def test_words_are_those_of_philox() -> None:
    """Of the key, also beyond those made at first."""
    keys = np.array([[1, 2], [2**64 - 1, 2**63]], np.uint64)
    found = Streams(keys).random(200)
    words = [np.random.Philox(key=key).random_raw(200) for key in keys]
    assert np.array_equal(found, (np.array(words) >> np.uint64(11)) / 2**53)


def test_no_streams_give_no_numbers() -> None:
    """Arrays of the right shapes."""
    streams = Streams.seeded(1, 2, "a", [])
    assert len(streams) == 0
    assert (streams.random().shape, streams.random(2).shape, streams.integers(4).shape) == ((0,), (0, 2), (0,))
    assert streams.permutation(4).shape == (0, 4)


@pytest.mark.parametrize(
    "call",
    [lambda s: s.integers(0), lambda s: s.integers(-1), lambda s: s.integers(2**32), lambda s: s.integers(2**40)],
)
def test_limits_beyond_32_bits_or_reversed_are_refused(call: Call) -> None:
    """No transform of ours draws such numbers."""
    with pytest.raises(ConfigError, match="whole number below"):
        call(Streams.seeded(1, 2, "a", [0]))


@pytest.mark.parametrize("weights", [[0.5, 0.6], [1.5, -0.5], [1.0]])
def test_probabilities_that_are_none_are_refused(weights: list[float]) -> None:
    """As NumPy does."""
    with pytest.raises(ConfigError, match="probabilities"):
        Streams.seeded(1, 2, "a", [0]).choice(2, 1, replace=True, p=weights)
