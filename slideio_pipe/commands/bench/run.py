"""Run the benchmark: cases, readers, and a table per case."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from slideio_pipe.commands.bench.cases import CASES, READING, Case, tiles_of, tissue_of
from slideio_pipe.commands.bench.measure import Table, race, race_threads
from slideio_pipe.commands.bench.memory import SLIDES, in_own_process
from slideio_pipe.commands.bench.peers import BARE, OURS, PEERS, Peer, Worker
from slideio_pipe.cores import usable_cores
from slideio_pipe.errors import ConfigError
from slideio_pipe.progress import Report as Progress
from slideio_pipe.progress import reporting
from slideio_pipe.slides.slide import Slide, open_slide
from slideio_pipe.synthetic.slide import write_synthetic_slide
from slideio_pipe.tiles.tissue_mask import TissueMask

T = TypeVar("T")
THREADED = (OURS, BARE, "cucim")  # readers timed with two threads
MIN_OF_BAG = 2_000  # minimum number of tiles read from the huge bag


@dataclass(frozen=True)
class Missing:
    """A reader that could not be used, and a remedy."""

    reader: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class Comparison:
    """All results."""

    slide: str
    dimensions: tuple[int, int]
    machine: str
    tables: tuple[Table, ...]
    missing: tuple[Missing, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        head = {"slide": self.slide, "dimensions": list(self.dimensions), "machine": self.machine}
        tables = [table.as_json() for table in self.tables]
        return head | {"cases": tables, "missing": [asdict(one) for one in self.missing]}


def compare_readers(
    slide: str | os.PathLike[str] | None = None,
    *,
    cases: Sequence[str] = (),
    peers: Sequence[str] = (),
    rounds: int = 5,
    tiles: int = 600,
    python: str | os.PathLike[str] | None = None,
    progress: Progress | bool | None = None,
) -> Comparison:
    """Compare the speed of our reader with others: same tiles and output array, in turns, each in its own process.

    Raise ConfigError if a case or reader is unknown, a number is below 1, the interpreter does not run, or the slide is
    too small.

    Parameters
    ----------
    slide : path, optional
        A slide that all readers support; by default an Aperio-style one is generated, 12,000 × 9,000 px.
    cases, peers : sequence of str
        Names in ``CASES`` and ``PEERS``; by default all. Ours always runs.
    rounds : int
        Number of times that every reader reads every tile, after one warm-up round.
    tiles : int
        Maximum tiles per case.
    python : path, optional
        The interpreter with the other readers installed; by default this one.
    progress : callable or bool, optional
        See ``reporting``.
    """
    chosen = _selected(CASES, cases, "case")
    readers = _selected(PEERS, peers, "reader")
    for name, value in (("rounds", rounds), ("tiles", tiles)):
        if value < 1:
            raise ConfigError(f"{{{name}=}} is {value}", remedy="pass 1 or more")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = folder / "generated.svs" if slide is None else Path(slide)
        if slide is None:
            write_synthetic_slide(path, size=(12_000, 9_000), seed=1)
        opened = stack.enter_context(_opened(path))
        readers = {OURS: PEERS[OURS]} | readers
        workers, missing = _started(stack, readers, chosen, python or sys.executable)
        total = sum(_steps(case, workers, rounds) for case in chosen.values())
        step = _counter(stack.enter_context(reporting(progress, "bench")), total)
        context = _Context(path, opened, workers, rounds, tiles, folder, step)
        tables = tuple(context.table(case) for case in chosen.values())
    return Comparison(
        path.name, (opened.dimensions.width, opened.dimensions.height), _machine(), tables, tuple(missing)
    )


@dataclass
class _Context:
    """Data shared by the cases of one comparison."""

    path: Path
    slide: Slide
    workers: Mapping[str, Worker]
    rounds: int
    tiles: int
    folder: Path
    step: Callable[[], None]
    tissue: TissueMask | None = None

    def table(self, case: Case) -> Table:
        """Measure one case."""
        if case.name in ("memory", "slides"):
            count = max(MIN_OF_BAG, self.tiles) if case.name == "memory" else SLIDES
            found = in_own_process(case.name, self.path, count)
            self.step()
            return Table(case, found)
        if self.tissue is None:
            self.tissue = tissue_of(self.slide)
        where = tiles_of(case.name, self.slide, self.tissue, self.tiles)
        run, workers = (race, self.workers) if case.name in READING else (race_threads, _threaded(self.workers))
        return run(case, where, self.path, workers, rounds=self.rounds, folder=self.folder, step=self.step)


def _selected(known: Mapping[str, T], names: Sequence[str], what: str) -> dict[str, T]:
    """Return the requested entries, in our order; all by default."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f'no {what} "{unknown[0]}"', remedy=f"choose from {', '.join(known)}")
    return {name: value for name, value in known.items() if not names or name in names}


@contextmanager
def _opened(path: Path) -> Iterator[Slide]:
    """Open a slide, with a usual resolution if it states none: only the ratio to the stored one matters here."""
    slide = open_slide(path)
    if slide.mpp is None:
        slide.close()
        slide = open_slide(path, slide_mpp=0.25)
    with slide:
        yield slide


def _started(
    stack: ExitStack, peers: Mapping[str, Peer], cases: Mapping[str, Case], python: str | os.PathLike[str]
) -> tuple[dict[str, Worker], list[Missing]]:
    """Start a process per reader; readers that are not installed are returned with the install command."""
    workers: dict[str, Worker] = {}
    missing: list[Missing] = []
    if not any(case in (*READING, "threads") for case in cases):
        return workers, missing
    for name, peer in peers.items():
        worker = stack.enter_context(Worker(peer, python))
        if worker.missing:
            missing.append(Missing(name, worker.missing, f"{os.fspath(python)} -m pip install {peer.pip}"))
        else:
            workers[name] = worker
    return workers, missing


def _threaded(workers: Mapping[str, Worker]) -> dict[str, Worker]:
    return {name: worker for name, worker in workers.items() if name in THREADED}


def _steps(case: Case, workers: Mapping[str, Worker], rounds: int) -> int:
    if case.name in READING:
        return (rounds + 1) * len(workers)
    return (rounds + 1) * 2 * len(_threaded(workers)) if case.name == "threads" else 1


def _counter(report: Progress, total: int) -> Callable[[], None]:
    """Return a function that counts a step and reports it."""
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        report(done, total)

    report(0, total)
    return step


def _machine() -> str:
    return f"{platform.system()} {platform.machine()}, {usable_cores()} cores, Python {platform.python_version()}"
