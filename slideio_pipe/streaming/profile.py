"""Measure the time from slide to device: time per stage, waiting times, the bottleneck, and advice.

Stages are reported by the threads that do the work; nothing is sampled or estimated. The cost is under a microsecond
per stage and tile.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slideio_pipe.cores import usable_cores
from slideio_pipe.errors import ConfigError, OutputError, in_words
from slideio_pipe.progress import Report, reporting
from slideio_pipe.streaming.dataset import BagDataset
from slideio_pipe.streaming.loader import BagLoader
from slideio_pipe.streaming.normalize import Normalize

# In order of a tile's processing. "wait" is the consumer's.
STAGES = {
    "open": "slide, tissue, grid",
    "read": "bytes from the file",
    "decode": "bytes to pixels",
    "fallback": "unusual tiles, slowly",
    "program": "compiled: shrink, turn, colours",
    "resample": "shrink, turn, crop",
    "augment": "draws, plans, other colours",
    "copy": "host to device",
    "device": "normalise",
}
_ADVICE = {
    "open": "export bags once, or give tissue masks (a column mask in the CSV): tissue is found again in every run",
    "read": "copy the slides to a local disk, or export bags once",
    "decode": "{threads} of {cores} cores decode{more}; a coarser {{mpp=}}, or tiles aligned to the stored ones "
    "({{align=True}}), decode faster",
    "fallback": "the slide's codec is slow or its tiles are unusual: export the bag once as jpeg:90 or zstd",
    "program": "choose an mpp that is stored, or its half, quarter or eighth; drop costly steps, see sp.explain",
    "resample": "choose an mpp that is stored, or its half, quarter or eighth: then nothing is left to filter",
    "augment": 'drop costly steps (sp.explain lists them), or colours="device" with a GPU',
    "copy": "larger chunks; a faster bus",
    "device": "a faster device; on the CPU the model takes far longer than this in any case",
}
# For stored bags, whose mpp and grid are fixed.
_DECODE_STORED = '{threads} of {cores} cores decode{more}; bags saved with {{pixels="none"}} have nothing to decode'
_OF_SLIDES = {"read", "fallback", "program", "resample", "augment"}
# If the consumer waits longer than this fraction of the time, the loader is the bottleneck.
_LOADER_BOUND_ABOVE = 0.05


class Clock:
    """Adds up the time of stages, per thread, and optionally keeps each span for a trace; can be shared by threads.

    Parameters
    ----------
    spans : bool
        Whether to keep every single span: about 100 bytes each.

    Examples
    --------
    >>> clock = Clock()
    >>> clock("decode", 1.0, 1.5)
    >>> clock("decode", 2.0, 2.25)
    >>> clock.totals["decode"], clock.counts["decode"]
    (0.75, 2)
    """

    def __init__(self, *, spans: bool = False) -> None:
        self.totals: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)
        self._spans: list[tuple[str, str, float, float]] | None = [] if spans else None
        self._lock = threading.Lock()

    def __call__(self, stage: str, start: float, end: float) -> None:
        """Record a stage: ``time.perf_counter`` seconds."""
        with self._lock:
            self.totals[stage] += end - start
            self.counts[stage] += 1
            if self._spans is not None:
                self._spans.append((stage, threading.current_thread().name, start, end))

    def trace(self) -> dict[str, Any]:
        """Return the spans as Chrome's trace events, which Perfetto and chrome://tracing show."""
        spans = self._spans or []
        first = min((start for _, _, start, _ in spans), default=0.0)
        threads = {name: number for number, name in enumerate(dict.fromkeys(name for _, name, _, _ in spans), 1)}
        names = [
            {"name": "thread_name", "ph": "M", "pid": os.getpid(), "tid": number, "args": {"name": name}}
            for name, number in threads.items()
        ]
        events = [
            {
                "name": stage,
                "ph": "X",
                "pid": os.getpid(),
                "tid": threads[name],
                "ts": round((start - first) * 1e6, 1),
                "dur": round((end - start) * 1e6, 1),
            }
            for stage, name, start, end in spans
        ]
        return {"traceEvents": [*names, *events], "displayTimeUnit": "ms"}


@dataclass(frozen=True, slots=True, repr=False)
class Profile:
    """The measured times of a run through the loader."""

    seconds: float  # wall time
    tiles: int
    bags: int
    threads: int  # or workers
    first_chunk_s: float  # from the start to the first chunk
    wait_s: float  # total wait of the consumer for chunks, including the first
    consumer_s: float  # total work of the consumer
    stages: Mapping[str, float]  # thread-seconds per stage
    memory: str
    workers: int = 0  # worker processes that read in place of threads
    first_tiles: int = 0  # tiles of the first chunk

    @property
    def rate(self) -> float:
        """Tiles per second of wall time."""
        return self.tiles / self.seconds if self.seconds else 0.0

    @property
    def steady_rate(self) -> float:
        """Tiles per second after the first chunk: without the time to open a slide and to start worker processes."""
        seconds = self.seconds - self.first_chunk_s
        return (self.tiles - self.first_tiles) / seconds if self.tiles > self.first_tiles and seconds else self.rate

    @property
    def bottleneck(self) -> str:
        """The slowest stage: "consumer", or the one with most work."""
        if self.wait_s <= _LOADER_BOUND_ABOVE * self.seconds or not self.stages:
            return "consumer"
        return max(self.stages, key=lambda stage: self.stages[stage])

    def verdict(self) -> str:
        """Return the bottleneck in one sentence, and what to change."""
        stage, waited = self.bottleneck, self.wait_s / self.seconds if self.seconds else 0.0
        if stage == "consumer":
            return f"The loader is ahead: the consumer waited {waited:.0%} of the time. Nothing to change here."
        share = self.stages[stage] / sum(self.stages.values())
        stored = stage == "decode" and not self.stages.keys() & _OF_SLIDES
        cores = usable_cores()
        more = ", and more threads would use the others" if self.threads < cores else ""
        advice = (_DECODE_STORED if stored else _ADVICE[stage]).format(threads=self.threads, cores=cores, more=more)
        spent = f"{stage} takes {share:.0%} of the work, and the consumer waited {waited:.0%} of the time"
        return in_words(f"{spent}: {advice}.")

    def __repr__(self) -> str:
        return f"Profile({self.tiles:,} tiles of {self.bags} bags, {self.rate:,.0f} tiles/s. {self.verdict()})"

    def rows(self) -> Iterator[tuple[str, float, float, float, float]]:
        """Yield (stage, thread-seconds, share of the work, ms per tile, tiles per second and thread)."""
        work = sum(self.stages.values())
        for stage in STAGES:
            spent = self.stages.get(stage, 0.0)
            if spent:
                yield stage, spent, spent / work, 1e3 * spent / max(1, self.tiles), self.tiles / spent

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        keys = ("thread_seconds", "share", "ms_per_tile", "tiles_per_second")
        return {
            "seconds": self.seconds,
            "tiles": self.tiles,
            "bags": self.bags,
            "tiles_per_second": self.rate,
            "tiles_per_second_after_first_chunk": self.steady_rate,
            "threads": self.threads,
            "workers": self.workers,
            "first_chunk_seconds": self.first_chunk_s,
            "wait_seconds": self.wait_s,
            "consumer_seconds": self.consumer_s,
            "stages": {stage: dict(zip(keys, figures, strict=True)) for stage, *figures in self.rows()},
            "bottleneck": self.bottleneck,
            "verdict": self.verdict(),
            "memory": self.memory,
        }


def profile(
    dataset: BagDataset,
    *,
    device: str = "cpu",
    normalize: Normalize | None = None,
    max_tiles: int | None = None,
    step_ms: float = 0.0,
    trace: str | Path | None = None,
    progress: Report | bool | None = False,
    **loader: Any,
) -> Profile:
    """Run tiles of a cohort through a ``BagLoader``, and return the time of every stage.

    Parameters
    ----------
    dataset : BagDataset
    device : str
    normalize : Normalize, optional
        By default ImageNet's.
    max_tiles : int, optional
        Stop after this many; by default at the end of the epoch.
    step_ms : float
        Simulated training step per chunk: the consumer sleeps this long.
    trace : path, optional
        File for Perfetto (ui.perfetto.dev) with every span of every thread.
    progress : callable or bool, optional
    **loader
        Passed to ``BagLoader``: threads, workers, chunk_size, mix, bags_in_flight, …

    Raises
    ------
    ConfigError
        A number is invalid.
    OutputError
        The trace cannot be written.

    Examples
    --------
    >>> import numpy as np
    >>> from slideio_pipe import TileBag, TileGrid, open_slide
    >>> view = open_slide(np.full((300, 500, 3), 90, np.uint8), slide_mpp=0.5).view()
    >>> found = profile(BagDataset([TileBag(view, TileGrid(view, tile_size=100))]), threads=1)
    >>> found.tiles, "decode" in found.stages
    (15, True)
    """
    if step_ms < 0 or (max_tiles is not None and max_tiles < 1):
        raise ConfigError(
            f"{{step_ms={step_ms:g}}}, {{max_tiles={max_tiles}}}", remedy="pass {step_ms=} >= 0, {max_tiles=} >= 1"
        )
    clock = Clock(spans=trace is not None)
    watched = BagLoader(dataset, device=device, normalize=normalize or Normalize.imagenet(), **loader)
    watched.watch(clock)
    begun = requested_at = time.perf_counter()
    tiles = bags = first_tiles = 0
    first = waited = worked = 0.0
    with reporting(progress, "profiling") as report:
        chunks = iter(watched)
        while True:
            chunk = next(chunks, None)
            came = time.perf_counter()
            waited += came - requested_at
            if chunk is None:
                break
            if not first:
                first, first_tiles = came - begun, len(chunk)
            tiles, bags = tiles + len(chunk), bags + chunk.last
            report(tiles, max_tiles or tiles)
            if step_ms:
                time.sleep(step_ms / 1e3)
            done = time.perf_counter()
            clock("consumer", came, done)
            worked += done - came
            if max_tiles is not None and tiles >= max_tiles:
                break
            del chunk
            requested_at = time.perf_counter()
        seconds = time.perf_counter() - begun
        watched.close()
        watched.watch(None)
    if trace is not None:
        _write_trace(Path(trace), clock)
    stages = {stage: clock.totals[stage] for stage in STAGES if clock.totals.get(stage)}
    return Profile(
        seconds, tiles, bags, watched.threads, first, waited, worked, stages, str(watched.memory),
        workers=int(loader.get("workers", 0)), first_tiles=first_tiles,
    )  # fmt: skip


def _write_trace(path: Path, clock: Clock) -> None:
    try:
        path.write_text(json.dumps(clock.trace()), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"the trace cannot be written ({error.strerror})", slide=str(path)) from error
