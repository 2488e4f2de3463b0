"""Progress bars for work of more than a second: shown in a terminal or notebook, else silent."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

Report = Callable[[int, int], object]  # (done, total)
# Characters of a name beside a bar, and of what else the line has in a narrow terminal.
_LONGEST, _SHORTEST, _REST = 30, 12, 62
# A narrower terminal has no place for the time since the start.
_WIDE = 100


class Bar:
    """A progress bar; call it with (done, total)."""

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress, self._what = progress, what
        self._task = progress.add_task(what, total=None, rate="")
        self._begun = False

    def __call__(self, done: int, total: int) -> None:
        """Show how much is done; the first call's count is earlier work and does not count in the rate."""
        if self._begun:
            self._progress.update(self._task, completed=done, total=total)
        else:
            self.start_at(done, total)

    def start_at(self, done: int, total: int) -> None:
        """Show how much was done before; the remaining time is estimated from later work only."""
        self._begun = True
        self._progress.update(self._task, total=total)
        task = self._progress.tasks[0]
        task.completed = done  # not with ``update``, which would count it as work done just now

    def name(self, names: Sequence[str]) -> None:
        """Show the first name being processed and the number of others."""
        longest = max(_SHORTEST, min(_LONGEST, self._progress.console.width - _REST))
        first = names[0] if names else ""
        if len(first) > longest:  # its beginning and its ending
            first = f"{first[: longest - longest // 2]}…{first[len(first) - longest // 2 + 1 :]}"
        more = f" +{len(names) - 1}" if len(names) > 1 else ""
        self._progress.update(self._task, description=f"{self._what} · {first}{more}" if names else self._what)

    def rate(self, text: str) -> None:
        """Show a rate or another text after the bar."""
        self._progress.update(self._task, rate=text)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the bar was first shown."""
        return self._progress.tasks[0].elapsed or 0.0


def name_work(report: Report, names: Sequence[str]) -> None:
    """Show the names being processed, if ``report`` is a bar."""
    if isinstance(report, Bar):
        report.name(names)


def note_kept(report: Report, done: int, total: int) -> None:
    """Report work done before; the rate does not count it."""
    if isinstance(report, Bar):
        report.start_at(done, total)
    else:
        report(done, total)


@contextmanager
def reporting(progress: Report | bool | None, what: str) -> Iterator[Report]:
    """Yield the function to call with (done, total).

    Parameters
    ----------
    progress : callable, bool or None
        A function is called as it is; True shows a bar; False is silent; None shows a bar when standard error is a
        terminal or a notebook.
    what : str
        Shown before the bar.
    """
    with rated(progress, what, "") as (report, _):
        yield report


@contextmanager
def rated(progress: Report | bool | None, what: str, noun: str) -> Iterator[tuple[Report, Callable[[int], object]]]:
    """Yield what ``reporting`` does, and a function that takes a count of finished ``noun`` and shows their rate.

    Parameters
    ----------
    progress : callable, bool or None
        See ``reporting``; a function gets no rate.
    what : str
        Shown before the bar.
    noun : str
        Shown after the rate.
    """
    if callable(progress):
        yield progress, _silent
        return
    console, interactive = _console()
    if progress is False or (progress is None and not interactive):
        yield _silent, _silent
        return
    elapsed = [TimeElapsedColumn()] if console.width >= _WIDE else []
    rate = TextColumn("{task.fields[rate]}")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *elapsed,
        TimeRemainingColumn(),
        rate,
    )
    counted = 0
    # The finished bar is cleared from a terminal; a log with ``progress=True`` keeps its last line.
    with Progress(*columns, console=console, transient=interactive) as shown:
        bar = Bar(shown, what)

        def count(more: int) -> None:
            nonlocal counted
            counted += more
            if bar.elapsed_s:
                bar.rate(f"{counted / bar.elapsed_s:,.0f} {noun}/s")

        yield bar, count


class Note(Protocol):
    """Shows the state of the work as text."""

    def __call__(self, text: str, *, lasting: bool = False) -> object:
        """Show a text beside the bar; without a bar, print it as a line if it is ``lasting``."""


@contextmanager
def narrated(progress: Report | bool | None, what: str) -> Iterator[tuple[Report, Note]]:
    """Yield what ``reporting`` does, and a function that shows a text about the state of the work.

    In a terminal or notebook the text is shown beside the bar; elsewhere True prints the lasting texts as lines on
    standard error, for a log, and draws no bar.

    Parameters
    ----------
    progress : callable, bool or None
        See ``reporting``; a function gets no texts.
    what : str
        Shown before the bar and before each line.
    """
    console, interactive = _console()
    if callable(progress):
        yield progress, _silent
    elif progress is False or (progress is None and not interactive):
        yield _silent, _silent
    elif not interactive:

        def line(text: str, *, lasting: bool = False) -> None:
            if lasting:
                console.print(f"{what}: {text}", markup=False, highlight=False, soft_wrap=True)

        yield _silent, line
    else:
        column = TextColumn("{task.fields[rate]}", table_column=Column(no_wrap=True, overflow="ellipsis"))
        columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), column)
        with Progress(*columns, console=console, transient=True) as shown:
            bar = Bar(shown, what)

            def note(text: str, *, lasting: bool = False) -> None:
                del lasting
                bar.rate(text)

            yield bar, note


def _console() -> tuple[Console, bool]:
    """Return the console for bars, and whether it is a terminal or a notebook."""
    console = Console(stderr=True)
    if console.is_jupyter and importlib.util.find_spec("ipywidgets") is None:
        # Without ipywidgets, rich's bar does not work in a notebook: one line is printed at the end.
        return Console(stderr=True, force_jupyter=False), False
    return console, console.is_terminal or console.is_jupyter


def _silent(*_: object, **__: object) -> None:
    """Show nothing."""
