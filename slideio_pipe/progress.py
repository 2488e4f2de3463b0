"""A progress bar for whatever takes more than a second: shown to a person at a terminal or notebook, else silent."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

Report = Callable[[int, int], object]  # (done, total)
_LONGEST = 30  # letters of a name beside a bar


class Bar:
    """A task of a bar: called with (done, total)."""

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress, self._what = progress, what
        self._task = progress.add_task(what, total=None, rate="")
        self._begun = False

    def __call__(self, done: int, total: int) -> None:
        """Show how much is done; what is when it begins was done before, and counts for no rate."""
        if self._begun:
            self._progress.update(self._task, completed=done, total=total)
        else:
            self.start_at(done, total)

    def start_at(self, done: int, total: int) -> None:
        """Show how much was done before: the time that remains follows from what comes behind it."""
        self._begun = True
        self._progress.update(self._task, total=total)
        task = self._progress.tasks[0]
        task.completed = done  # past ``update``, which takes it for the work of this moment

    def name(self, names: Sequence[str]) -> None:
        """Show what is being worked at: the first of it, and how many more."""
        first = names[0] if names else ""
        first = first if len(first) <= _LONGEST else first[: _LONGEST - 1] + "…"
        more = f" +{len(names) - 1}" if len(names) > 1 else ""
        self._progress.update(self._task, description=f"{self._what} · {first}{more}" if names else self._what)

    def rate(self, text: str) -> None:
        """Show a rate, or other words, behind the bar."""
        self._progress.update(self._task, rate=text)

    @property
    def elapsed_s(self) -> float:
        """Return for how long it has been shown."""
        return self._progress.tasks[0].elapsed or 0.0


def name_work(report: Report, names: Sequence[str]) -> None:
    """Show what is being worked at, where a bar is shown."""
    if isinstance(report, Bar):
        report.name(names)


def note_kept(report: Report, done: int, total: int) -> None:
    """Report what was done before, so that no rate counts it."""
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
        Said in front of the bar.
    """
    with rated(progress, what, "") as (report, _):
        yield report


@contextmanager
def rated(progress: Report | bool | None, what: str, noun: str) -> Iterator[tuple[Report, Callable[[int], object]]]:
    """Yield what ``reporting`` does, and a function to call with how many of ``noun`` were done: their rate is shown.

    Parameters
    ----------
    progress : callable, bool or None
        See ``reporting``; a function of its own hears of no rate.
    what : str
        Said in front of the bar.
    noun : str
        Said behind the rate.
    """
    if callable(progress):
        yield progress, _uncounted
        return
    console, watched = _console()
    if progress is False or (progress is None and not watched):
        yield _silent, _uncounted
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    counted = 0
    # A terminal is cleared of the finished bar; a log that asked for one keeps its last line.
    with Progress(*columns, console=console, transient=watched) as shown:
        bar = Bar(shown, what)

        def count(more: int) -> None:
            nonlocal counted
            counted += more
            if bar.elapsed_s:
                bar.rate(f"{counted / bar.elapsed_s:,.0f} {noun}/s")

        yield bar, count


class Note(Protocol):
    """Says how far something has come, in words."""

    def __call__(self, text: str, *, lasting: bool = False) -> object:
        """Show a text beside the bar; where there is none, print it as a line of its own if it is ``lasting``."""
        ...


@contextmanager
def narrated(progress: Report | bool | None, what: str) -> Iterator[tuple[Report, Note]]:
    """Yield what ``reporting`` does, and a function to call with words on how it goes.

    At a terminal or in a notebook the words stand beside the bar; elsewhere True prints the lasting ones as lines on
    standard error, for a log, and draws no bar.

    Parameters
    ----------
    progress : callable, bool or None
        See ``reporting``; a function of its own hears no words.
    what : str
        Said in front of the bar, and of lines.
    """
    console, watched = _console()
    if callable(progress):
        yield progress, _wordless
    elif progress is False or (progress is None and not watched):
        yield _silent, _wordless
    elif not watched:
        yield _silent, _Lines(console, what)
    else:
        words = TextColumn("{task.fields[rate]}", table_column=Column(no_wrap=True, overflow="ellipsis"))
        columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), words)
        with Progress(*columns, console=console, transient=True) as shown:
            bar = Bar(shown, what)

            def note(text: str, *, lasting: bool = False) -> None:
                del lasting
                bar.rate(text)

            yield bar, note


def _console() -> tuple[Console, bool]:
    """Return where bars are shown, and whether a person watches them there."""
    console = Console(stderr=True)
    if console.is_jupyter and importlib.util.find_spec("ipywidgets") is None:
        # One line at the end: rich's bar is a widget there.
        return Console(stderr=True, force_jupyter=False), False
    return console, console.is_terminal or console.is_jupyter


class _Lines:
    """Prints words as lines."""

    def __init__(self, console: Console, what: str) -> None:
        self._console, self._what = console, what

    def __call__(self, text: str, *, lasting: bool = False) -> None:
        if lasting:
            self._console.print(f"{self._what}: {text}", markup=False, highlight=False, soft_wrap=True)


def _wordless(text: str, *, lasting: bool = False) -> None:
    del text, lasting


def _silent(done: int, total: int) -> None:
    del done, total


def _uncounted(count: int) -> None:
    del count
