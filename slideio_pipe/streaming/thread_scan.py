"""Find the number of reading threads that a machine, a cohort and its transforms gain from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slideio_pipe.cores import usable_cores
from slideio_pipe.errors import ConfigError
from slideio_pipe.streaming.dataset import BagDataset
from slideio_pipe.streaming.profile import Profile, profile

# A number of threads is enough if more bring less than this fraction.
_ENOUGH = 0.95
# Tiles per run: seconds on one thread.
_TILES = 2000


@dataclass(frozen=True, slots=True)
class ThreadScan:
    """Profiles of the same tiles with different numbers of threads, fewest first."""

    runs: tuple[Profile, ...]

    @property
    def best(self) -> Profile:
        """The run with the fewest threads among those within 5 % of the highest rate."""
        highest = max(run.rate for run in self.runs)
        return next(run for run in self.runs if run.rate >= _ENOUGH * highest)

    def verdict(self) -> str:
        """Return what to set, and what more threads would bring, in one sentence.

        >>> from slideio_pipe.streaming.profile import Profile
        >>> one, two = (Profile(10.0, tiles, 1, threads, 0, 0, 0, {}, "") for threads, tiles in ((1, 500), (2, 900)))
        >>> ThreadScan((one, two)).verdict()
        '2 threads read 90 tiles/s, 1.8 times one thread. More were not tried.'
        """
        best, first = self.best, self.runs[0]
        noun = "thread" if best.threads == 1 else "threads"
        against = "" if best is first else f", {best.rate / first.rate:.1f} times {_counted(first.threads)}"
        reads = "reads" if best.threads == 1 else "read"
        found = f"{best.threads} {noun} {reads} {best.rate:,.0f} tiles/s{against}."
        later = [run for run in self.runs if run.threads > best.threads]
        if not later:
            return f"{found} More were not tried."
        most = max(later, key=lambda run: run.rate)
        gain = most.rate / best.rate - 1
        return f"{found} {_counted(most.threads)} would bring {gain:+.0%}: set threads={best.threads}."

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {"best": self.best.threads, "verdict": self.verdict(), "runs": [run.to_json() for run in self.runs]}


def scan_threads(
    dataset: BagDataset, counts: Sequence[int] | None = None, *, max_tiles: int | None = None, **settings: Any
) -> ThreadScan:
    """Profile the same tiles with several numbers of threads, one run after the other.

    Parameters
    ----------
    dataset : BagDataset
    counts : sequence of int, optional
        Numbers of threads; by default 1, 2, 4, … up to the cores that this process may use.
    max_tiles : int, optional
        Tiles per run, 2,000 by default; a first run of a quarter of them is not counted.
    **settings
        As for ``profile``, without ``threads`` and ``trace``.

    Raises
    ------
    ConfigError
        A count is less than 1, or there is none.
    """
    chosen = sorted(set(_usual_counts() if counts is None else counts))
    if not chosen or chosen[0] < 1:
        raise ConfigError(f"{chosen} as numbers of threads", remedy="pass whole numbers from 1 on")
    tiles = _TILES if max_tiles is None else max_tiles
    profile(dataset, max_tiles=max(1, tiles // 4), threads=chosen[-1], **settings)  # imports, files in memory
    return ThreadScan(tuple(profile(dataset, max_tiles=tiles, threads=count, **settings) for count in chosen))


def _usual_counts() -> list[int]:
    cores = usable_cores()
    return [*(count for count in (1, 2, 4, 8, 16, 32, 64) if count < cores), cores]


def _counted(threads: int) -> str:
    return "one thread" if threads == 1 else f"{threads} threads"
