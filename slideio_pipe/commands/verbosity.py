"""How much a command prints: -v shows the package's log, -vv its details, -q only errors and results.

The two options are accepted before the name of the command and after it.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, get_type_hints

import typer

from slideio_pipe.commands.environment import choose_programs, given_variables, unknown_variables
from slideio_pipe.commands.terminal import QUIET, err, report_error, warn
from slideio_pipe.errors import SlideioPipeError

LOGGER = logging.getLogger("slideio_pipe")
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose", "-v", count=True, show_default=False, metavar="", help="Print what is done; -vv with details."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", metavar="", help="Print only errors and results.")]
_ADDED: dict[str, tuple[Any, Any]] = {
    "ctx": (typer.Context, inspect.Parameter.empty),
    "verbose": (Verbose, 0),
    "quiet": (Quiet, False),
}


class _Lines(logging.Handler):
    """Prints records on standard error, above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line: time, module and message."""
        try:
            time = logging.Formatter("%(asctime)s", "%H:%M:%S").formatTime(record, "%H:%M:%S")
            where = record.name.removeprefix("slideio_pipe.")
            err.print(f"{time} {where}: {record.getMessage()}", markup=False, soft_wrap=True, style="dim")
        except Exception:
            self.handleError(record)


def talking(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command with the options -v and -q, which reads its environment variables."""

    @functools.wraps(command)
    def run(ctx: typer.Context, verbose: int, quiet: bool, **arguments: Any) -> None:
        root = ctx.find_root().params
        level, is_quiet = verbose + int(root.get("verbose") or 0), quiet or bool(root.get("quiet"))
        with _printing(level, is_quiet):
            try:
                choose_programs()
            except SlideioPipeError as error:
                raise report_error(error) from None
            for text in unknown_variables(ctx):
                warn(text)
            given = given_variables(ctx)
            if given:
                LOGGER.info("from the environment: %s", ", ".join(f"{name}={value}" for name, value in given.items()))
            try:
                command(**arguments)
            except typer.Exit as ended:
                if ended.exit_code == 2 and given:
                    names = ", ".join(f"{name}={value}" for name, value in given.items())
                    err.print(f"options from the environment: {names}", markup=False, soft_wrap=True)
                raise

    hints = get_type_hints(command, include_extras=True)
    own = [one.replace(annotation=hints[name]) for name, one in inspect.signature(command).parameters.items()]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in _ADDED.items()
    ]
    run.__annotations__ = hints | {name: annotation for name, (annotation, _) in _ADDED.items()}
    run.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    return run


@contextmanager
def _printing(level: int, quiet: bool) -> Iterator[None]:
    """Print the package's log, or only errors and results, until the command ends."""
    token, before, handler = QUIET.set(quiet), LOGGER.level, _Lines()
    if level and not quiet:
        LOGGER.setLevel(logging.DEBUG if level > 1 else logging.INFO)
        LOGGER.addHandler(handler)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(before)
        QUIET.reset(token)
