"""Find the number of reading threads or processes that a machine, a cohort and its transforms gain from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slideio_pipe.cores import usable_cores
from slideio_pipe.errors import ConfigError
from slideio_pipe.streaming.dataset import BagDataset
from slideio_pipe.streaming.profile import Profile, profile

# A number of threads is enough if more bring less than this fraction; so are threads, if processes do.
_ENOUGH = 0.95
# Tiles per run: seconds on one thread.
_TILES = 2000


@dataclass(frozen=True, slots=True, repr=False)
class ThreadScan:
    """Profiles of the same tiles with different numbers of threads, then of worker processes, fewest first."""

    runs: tuple[Profile, ...]

    @property
    def threaded(self) -> tuple[Profile, ...]:
        """The runs with threads of this process."""
        return tuple(run for run in self.runs if not run.workers)

    @property
    def best(self) -> Profile:
        """The run with the fewest threads among those within 5 % of the highest rate; workers only if none is."""
        highest = max(run.steady_rate for run in self.runs)
        return next(run for run in self.runs if run.steady_rate >= _ENOUGH * highest)

    def verdict(self) -> str:
        """Return what to set, and what more threads and worker processes would bring.

        >>> from slideio_pipe.streaming.profile import Profile
        >>> one, two = (Profile(10.0, tiles, 1, threads, 0, 0, 0, {}, "") for threads, tiles in ((1, 500), (2, 900)))
        >>> ThreadScan((one, two)).verdict()
        '2 threads read 90 tiles/s, 1.8 times one thread. More were not tried.'
        """
        found, advice = _of_threads(ThreadScan(self.threaded))
        processes = [run for run in self.runs if run.workers]
        if not processes:
            return f"{found} {advice}"
        best = self.best
        other = best if best.workers else max(processes, key=lambda run: run.steady_rate)
        gain = other.steady_rate / max(run.steady_rate for run in self.threaded) - 1
        if best.workers:
            return f"{found} {_processes(best.workers)} bring {gain:+.0%} over threads: set workers={best.workers}."
        return f"{found} {advice} {_processes(other.workers)} would bring {gain:+.0%}."

    def __repr__(self) -> str:
        return f"ThreadScan({len(self.runs)} runs. {self.verdict()})"

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        best = self.best
        chosen = {"best": best.threads, "best_workers": best.workers}
        return chosen | {"verdict": self.verdict(), "runs": [run.to_json() for run in self.runs]}


def _of_threads(scan: ThreadScan) -> tuple[str, str]:
    """Return the rate of the best number of threads, and what more would bring."""
    best, first = scan.best, scan.runs[0]
    noun = "thread" if best.threads == 1 else "threads"
    against = "" if best is first else f", {best.steady_rate / first.steady_rate:.1f} times {_threads(first.threads)}"
    reads = "reads" if best.threads == 1 else "read"
    found = f"{best.threads} {noun} {reads} {best.steady_rate:,.0f} tiles/s{against}."
    later = [run for run in scan.runs if run.threads > best.threads]
    if not later:
        return found, "More were not tried."
    most = max(later, key=lambda run: run.steady_rate)
    gain = most.steady_rate / best.steady_rate - 1
    return found, f"{_threads(most.threads)} would bring {gain:+.0%}: set threads={best.threads}."


def scan_threads(
    dataset: BagDataset,
    counts: Sequence[int] | None = None,
    *,
    workers: Sequence[int] | None = None,
    max_tiles: int | None = None,
    **settings: Any,
) -> ThreadScan:
    """Profile the same tiles with several numbers of threads, then of worker processes, one run after the other.

    Parameters
    ----------
    dataset : BagDataset
    counts : sequence of int, optional
        Numbers of threads; by default 1, 2, 4, … up to the cores that this process may use.
    workers : sequence of int, optional
        Numbers of worker processes (see ``BagLoader``); by default those of ``counts`` from 2 on. ``()``: none.
    max_tiles : int, optional
        Tiles per run, 2,000 by default; a first run of a quarter of them is not counted.
    **settings
        As for ``profile``, without ``threads``, ``workers`` and ``trace``.

    Raises
    ------
    ConfigError
        A count is less than 1, or there is none.

    Examples
    --------
    >>> import numpy as np
    >>> from slideio_pipe import TileBag, TileGrid, open_slide
    >>> view = open_slide(np.full((300, 500, 3), 90, np.uint8), slide_mpp=0.5).view()
    >>> scan = scan_threads(BagDataset([TileBag(view, TileGrid(view, tile_size=100))]), [1])
    >>> type(scan).__name__
    'ThreadScan'
    """
    chosen = sorted(set(_usual_counts() if counts is None else counts))
    if not chosen or chosen[0] < 1:
        raise ConfigError(f"{chosen} as numbers of threads", remedy="pass whole numbers from 1 on")
    processes = [count for count in chosen if count > 1] if workers is None else sorted(set(workers))
    if processes and processes[0] < 1:
        raise ConfigError(f"{processes} as numbers of workers", remedy="pass whole numbers from 1 on, or ()")
    tiles = _TILES if max_tiles is None else max_tiles
    profile(dataset, max_tiles=max(1, tiles // 4), threads=chosen[-1], **settings)  # imports, files in memory
    ways: list[dict[str, Any]] = [{"threads": count} for count in chosen]
    ways += [{"workers": count} for count in processes]
    return ThreadScan(tuple(profile(dataset, max_tiles=tiles, **way, **settings) for way in ways))


def _usual_counts() -> list[int]:
    cores = usable_cores()
    return [*(count for count in (1, 2, 4, 8, 16, 32, 64) if count < cores), cores]


def _threads(count: int) -> str:
    return "one thread" if count == 1 else f"{count} threads"


def _processes(count: int) -> str:
    return "one worker process" if count == 1 else f"{count} worker processes"
