"""What the command line prints: results on standard output; errors, warnings and bars on standard error."""

from __future__ import annotations

import functools
import json
import logging
import math
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from slideio_pipe.commands.exit_codes import ExitCode
from slideio_pipe.commands.words import command_words
from slideio_pipe.errors import EmptyTissueWarning, SlideioPipeError, SlideioPipeWarning, Words, worded

P = ParamSpec("P")
R = TypeVar("R")

out, err = Console(highlight=False), Console(stderr=True, highlight=False)

QUIET: ContextVar[bool] = ContextVar("quiet", default=False)  # only errors and results are printed
_SHOWN = 5  # failures
# Commands that resume when they are run again.
_RESUMED = ("convert", "export", "features", "train", "tissue")


def reported(command: Callable[P, R]) -> Callable[P, R]:
    """Turn our errors into one line on standard error and exit code 2, our warnings into one line each."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        words = command_words(command)
        with worded(lambda _: words):
            try:
                with _plain_warnings(words), _printed_notes():
                    return command(*args, **kwargs)
            except SlideioPipeError as error:
                raise report_error(error) from None
            except KeyboardInterrupt:
                what_now = "; run the same command again to resume" if command.__name__ in _RESUMED else ""
                _prose(err, f"interrupted{what_now}")
                raise typer.Exit(ExitCode.INTERRUPTED) from None

    return run


def report_error(error: Exception) -> typer.Exit:
    """Print an error as one line on standard error, and return what ends the command."""
    _prose(err, f"[bold red]error[/]: {escape(one_line(error))}")
    return typer.Exit(ExitCode.ERROR)


def shown(as_json: bool) -> bool | None:
    """Return ``progress`` for the library: no bars with --json or --quiet."""
    return False if as_json or QUIET.get() else None


def one_line(error: Exception) -> str:
    """Return the message of an error as one line, also if a library's message has several."""
    return " ".join(str(error).split())


@contextmanager
def _plain_warnings(words: Words) -> Iterator[None]:
    """Print warnings at once; warnings of empty tissue at the end, unless an error explains the same."""
    empty: list[str] = []

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        with worded(lambda _: words):  # a warning of another thread would name arguments as in Python
            text = str(message)
        if issubclass(category, EmptyTissueWarning):
            empty.append(text)
        else:
            warn(text)

    with warnings.catch_warnings():
        warnings.simplefilter("always", SlideioPipeWarning)
        warnings.showwarning = show
        try:
            yield
        except SlideioPipeError:
            empty.clear()
            raise
        finally:
            for text in empty:
                warn(text)


class _Notes(logging.Handler):
    """Prints what was chosen while a table was read, once."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._said:
            self._said.add(text)
            note(text)


@contextmanager
def _printed_notes() -> Iterator[None]:
    """Print the notes of cohorts on standard error, with -v as well only once."""
    log, handler = logging.getLogger("slideio_pipe.cohort.notes"), _Notes()
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]


def warn(text: str) -> None:
    """Print a warning on standard error."""
    if not QUIET.get():
        _prose(err, f"[yellow]warning[/]: {escape(text)}")


def note(text: str) -> None:
    """Print what a user should know on standard error, beside the result."""
    if not QUIET.get():
        _prose(err, escape(text))


def say(text: str, *, style: str | None = None, copied: bool = False) -> None:
    """Print a line of text, on a terminal broken between words; never if it is to be ``copied``, as a command is."""
    out.print(text, style=style, markup=False, soft_wrap=copied or not out.is_terminal)


def _prose(console: Console, text: str) -> None:
    """Print a message, with markup, as one line, or on a terminal broken between words."""
    console.print(text, soft_wrap=not console.is_terminal)


def print_failures(failed: Sequence[tuple[str, Exception]], listed: Path | None) -> None:
    """Print the first failures, each the name of a slide and its error, and the file that lists all."""
    for name, error in failed[:_SHOWN]:
        print_failure(name, error)
    if listed is not None:
        more = len(failed) - _SHOWN
        say(f"{f'and {more:,} more; ' if more > 0 else ''}failures: {listed}")


def print_failure(name: str, error: Exception) -> None:
    """Print the name of a slide and why it failed."""
    _prose(out, f"[red]✗[/] {escape(name)}: {escape(one_line(error).removeprefix(f'{name}: '))}")


def called_as() -> str:
    """Return the name or path that runs this program: the command is not on PATH in an environment not activated."""
    return "slideio-pipe" if shutil.which("slideio-pipe") else sys.argv[0]


def print_json(value: Any) -> None:
    """Print a JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_facts(title: str, facts: Mapping[str, str]) -> None:
    """Print names and values as a table."""
    table = Table(title=escape(title), title_justify="left", title_style="bold", show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(f"[dim]{name}[/]", escape(value))
    out.print(table)


def print_metrics(title: str, metrics: Mapping[str, Any]) -> None:
    """Print metrics with their intervals; each has ``value``, ``low`` and ``high``, NaN if not defined."""
    table = Table("metric", "value", "95 % interval", title=title, title_justify="left")
    for name, metric in metrics.items():
        value = "not defined" if math.isnan(metric.value) else f"{metric.value:.3f}"
        interval = "" if math.isnan(metric.low) else f"{metric.low:.3f} to {metric.high:.3f}"
        table.add_row(name.replace("_", " "), value, interval)
    out.print(table)
