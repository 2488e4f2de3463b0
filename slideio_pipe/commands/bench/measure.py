"""Run readers in turns and compute the results: medians, ratios with their range, differences of pixels."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.commands.bench.cases import Case, Tiles
from slideio_pipe.commands.bench.peers import BARE, OURS, Worker

# Decoders of one JPEG differ by single levels, filters by a few at edges; wrong tiles differ by tens.
SAME_TILES = 3.0  # levels, on average

LEAST_TILES = 100  # per job, repeated on a small slide: fewer are too fast to time


@dataclass(frozen=True)
class Ratio:
    """The ratio of two series: the median over rounds, and its range."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, above: Sequence[float], below: Sequence[float]) -> Ratio:
        """Return the ratio of two series, round by round."""
        each = [a / b for a, b in zip(above, below, strict=True)]
        return cls(statistics.median(each), min(each), max(each))


@dataclass(frozen=True)
class Row:
    """The results of one reader in one case."""

    reader: str
    version: str = ""
    threads: int = 1
    cpu_s: float | None = None  # median, all threads
    wall_s: float | None = None  # median
    tiles_per_cpu_s: float | None = None
    tiles_per_s: float | None = None
    ratio: Ratio | None = None  # its CPU-seconds over ours; for "threads", wall time of one thread over two
    wanted: float | None = None  # minimum required ratio
    sha256: str = ""  # first 16 digits of the pixels' hash
    largest_difference: int | None = None  # levels, from the pixels of the first reader of the table
    mean_difference: float | None = None
    note: str = ""  # why there is no figure, or a remark on it

    @property
    def reached(self) -> bool | None:
        """Whether the ratio is at least the required one; None without a requirement."""
        return None if self.wanted is None or self.ratio is None else self.ratio.median >= self.wanted


@dataclass(frozen=True)
class Table:
    """One case: facts, and a row per reader."""

    case: Case
    facts: dict[str, Any]
    rows: list[Row] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the table as JSON values."""
        rows = [asdict(row) | {"reached": row.reached} for row in self.rows]
        return {"case": self.case.name, "title": self.case.title} | self.facts | {"rows": rows}


def race(
    case: Case,
    tiles: Tiles,
    slide: Path,
    workers: Mapping[str, Worker],
    *,
    rounds: int,
    folder: Path,
    step: Callable[[], object] = lambda: None,
) -> Table:
    """Let readers read the same tiles in turns; the first round is a warm-up, and its pixels are compared.

    Parameters
    ----------
    workers : mapping
        By name; the pixels of the others are compared with those of the first.
    folder : Path
        Folder for the pixels of two readers, emptied during the run.
    step : callable
        Called after each job.
    """
    jobs = {name: job_of(tiles, slide, folder) for name in workers}
    with Pixels(folder) as pixels:
        answers = take_turns(workers, jobs, rounds, step, pixels)
    apart = pixels.differences
    rows = [row_of(name, worker.version, case, tiles, answers, apart.get(name)) for name, worker in workers.items()]
    return Table(case, facts_of(tiles, rounds), rows)


def race_threads(
    case: Case,
    tiles: Tiles,
    slide: Path,
    workers: Mapping[str, Worker],
    *,
    rounds: int,
    folder: Path,
    step: Callable[[], object] = lambda: None,
) -> Table:
    """Let each reader read with one and with two threads, in turns; the ratio is of wall times."""
    both = {(name, threads): worker for name, worker in workers.items() for threads in (1, 2)}
    jobs = {key: job_of(tiles, slide, folder) | {"threads": key[1]} for key in both}
    answers = take_turns(both, jobs, rounds, step)
    rows = []
    for name, worker in workers.items():
        one, two = answers[name, 1], answers[name, 2]
        note = _note([*one, *two])
        row = Row(name, worker.version, 2, note=note, wanted=case.wanted.get(name))
        if not note:
            ratio = Ratio.of([a["wall_s"] for a in one], [a["wall_s"] for a in two])
            note = "" if one[0]["sha256"] == two[0]["sha256"] else "other pixels than with one thread"
            row = Row(name, worker.version, 2, **_rates(two, tiles), ratio=ratio, wanted=row.wanted, note=note)
        rows.append(row)
    return Table(case, facts_of(tiles, rounds), _with_busy_notes(rows))


def _with_busy_notes(rows: Sequence[Row]) -> list[Row]:
    """Return the rows, with a note if even the bare loop missed the required ratio: the machine is busy."""
    gained = next((row.ratio.median for row in rows if row.reader == BARE and row.ratio is not None), math.inf)
    note = f"a minimal loop gained {gained:.2f}×: no second core was free"
    return [
        replace(row, note=note) if not row.note and row.reached is False and gained < (row.wanted or 0.0) else row
        for row in rows
    ]


def job_of(tiles: Tiles, slide: Path, folder: Path) -> dict[str, Any]:
    """Return a job for a worker; its coordinates are in a file."""
    origins = folder / "origins.npy"
    np.save(origins, tiles.origins)
    return {
        "slide": str(slide.absolute()),
        "origins": str(origins),
        "tile": tiles.tile,
        "shrink": tiles.shrink,
        "threads": 1,
        "repeats": -(-LEAST_TILES // len(tiles.origins)),
    }


def facts_of(tiles: Tiles, rounds: int) -> dict[str, Any]:
    """Return the facts of a table about its tiles."""
    return {"tiles": len(tiles.origins), "tile_px": tiles.tile, "shrink": tiles.shrink, "rounds": rounds}


def take_turns(
    workers: Mapping[Any, Worker],
    jobs: Mapping[Any, dict[str, Any]],
    rounds: int,
    step: Callable[[], object],
    pixels: Pixels | None = None,
) -> dict[Any, list[dict[str, Any]]]:
    """Return the answers of all rounds by worker; a worker that failed gets no more jobs."""
    answers: dict[Any, list[dict[str, Any]]] = {name: [] for name in workers}
    for turn in range(rounds + 1):
        for name, worker in workers.items():
            if answers[name] and "cpu_s" not in answers[name][-1]:
                step()
                continue
            if turn == 0 and pixels is not None:
                answer = worker.ask(jobs[name] | {"pixels": str(pixels.file(name))})
                pixels.compare(name)
            else:
                answer = worker.ask(jobs[name])
            # The warm-up fills the page cache and imports modules: only its failures count.
            if turn or "cpu_s" not in answer:
                answers[name].append(answer)
            step()
    return answers


def row_of(
    name: str,
    version: str,
    case: Case,
    tiles: Tiles,
    answers: Mapping[str, list[dict[str, Any]]],
    difference: tuple[int, float] | None,
) -> Row:
    """Return the row of one reader."""
    own, note, required = answers[name], _note(answers[name]), case.wanted.get(name)
    if note:
        return Row(name, version, note=note, wanted=required)
    if len({answer["sha256"] for answer in own}) > 1:
        note = "its pixels change from round to round"
    elif difference is not None and difference[1] > SAME_TILES:
        note = "reads other pixels: not comparable"
    ours, ratio = answers.get(OURS), None
    if name != OURS and ours is not None and not _note(ours) and not note:
        ratio = Ratio.of([a["cpu_s"] for a in own], [a["cpu_s"] for a in ours])
    largest, mean = difference if difference is not None else (None, None)
    return Row(
        name,
        version,
        **_rates(own, tiles),
        ratio=ratio,
        wanted=required,
        sha256=own[0]["sha256"],
        largest_difference=largest,
        mean_difference=mean,
        note=note,
    )


def _rates(answers: Sequence[dict[str, Any]], tiles: Tiles) -> dict[str, Any]:
    cpu_s, wall_s = (statistics.median(answer[what] for answer in answers) for what in ("cpu_s", "wall_s"))
    count = len(tiles.origins)
    return {"cpu_s": cpu_s, "wall_s": wall_s, "tiles_per_cpu_s": count / cpu_s, "tiles_per_s": count / wall_s}


def _note(answers: Sequence[dict[str, Any]]) -> str:
    """Return why a reader has no figures."""
    for answer in answers:
        if "cannot" in answer:
            return f"not for this: {answer['cannot']}"
        if "cpu_s" not in answer:
            return str(answer.get("error", answer))
    return ""


class Pixels:
    """Pixels of readers, as files that are kept as long as needed: the first reader's, and one more.

    Attributes
    ----------
    differences : dict
        By reader: largest and mean difference from the pixels of the first, in levels.
    """

    def __init__(self, folder: Path) -> None:
        self.differences: dict[str, tuple[int, float]] = {}
        self._folder = folder
        self._reference: Path | None = None

    def file(self, name: str) -> Path:
        """Return the file for a reader's pixels."""
        return self._folder / f"{name}.npy"

    def compare(self, name: str) -> None:
        """Compare the pixels of a reader, if it wrote any, with those of the first that did."""
        file = self.file(name)
        if not file.exists():
            return
        if self._reference is None:
            self._reference = file
            return
        self.differences[name] = difference(np.load(self._reference, mmap_mode="r"), np.load(file, mmap_mode="r"))
        file.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._reference is not None:
            self._reference.unlink(missing_ok=True)


def difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> tuple[int, float]:
    """Return the largest and the mean difference, in levels.

    Examples
    --------
    >>> difference(np.zeros((2, 1, 1, 3), np.uint8), np.full((2, 1, 1, 3), 3, np.uint8))
    (3, 3.0)
    """
    largest, total = 0, 0
    for one, other in zip(a, b, strict=True):
        apart = np.abs(one.astype(np.int16) - other)
        largest, total = max(largest, int(apart.max())), total + int(apart.sum())
    return largest, total / a.size
