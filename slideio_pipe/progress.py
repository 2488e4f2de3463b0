"""A progress bar for whatever takes more than a second: shown to a person at a terminal or notebook, else silent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Report = Callable[[int, int], object]  # (done, total)


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
    console = Console(stderr=True)
    watched = console.is_terminal or console.is_jupyter
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
    with Progress(*columns, console=console, transient=watched) as bar:
        task = bar.add_task(what, total=None, rate="")

        def count(more: int) -> None:
            nonlocal counted
            counted += more
            elapsed = bar.tasks[0].elapsed
            if elapsed:
                bar.update(task, rate=f"{counted / elapsed:,.0f} {noun}/s")

        yield (lambda done, total: bar.update(task, completed=done, total=total)), count


def _silent(done: int, total: int) -> None:
    del done, total


def _uncounted(count: int) -> None:
    del count
