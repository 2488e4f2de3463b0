"""The command line: every command a thin layer over the Python API, errors as one line and exit code 2."""

from __future__ import annotations

import inspect
import io
import logging
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from slideio_pipe import __version__
from slideio_pipe.commands.config import explain, list_presets, schema, show
from slideio_pipe.commands.convert import convert
from slideio_pipe.commands.demo import demo
from slideio_pipe.commands.docs import docs
from slideio_pipe.commands.doctor.command import doctor
from slideio_pipe.commands.encoders import encoders
from slideio_pipe.commands.environment import Command
from slideio_pipe.commands.exit_codes import ExitCode, exit_codes_text
from slideio_pipe.commands.export import export
from slideio_pipe.commands.features import features
from slideio_pipe.commands.info import info
from slideio_pipe.commands.predict import predict
from slideio_pipe.commands.split import split
from slideio_pipe.commands.terminal import say
from slideio_pipe.commands.timing import bench, profile
from slideio_pipe.commands.tissue import tissue
from slideio_pipe.commands.train import train
from slideio_pipe.commands.verbosity import Quiet, Verbose, talking
from slideio_pipe.commands.view import view

# Each command imports what it needs when it runs: torch alone takes seconds, and --help should be instant.
app = typer.Typer(
    name="slideio-pipe",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line."""
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # our errors have more details
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without µ or × gets a question mark, not a traceback
    try:
        app(prog_name="slideio-pipe")
    except KeyboardInterrupt:  # before a command began, during imports
        raise SystemExit(ExitCode.INTERRUPTED) from None


def _version(requested: bool) -> None:
    if requested:
        say(f"slideio-pipe {__version__}")
        raise typer.Exit


_EPILOG = (
    f"{exit_codes_text()} Every option has an environment variable: SLIDEIO_PIPE_EXPORT_WORKERS=4 is "
    "export --workers 4."
)


@app.callback(epilog=_EPILOG)
def _root(
    version: Annotated[
        bool, typer.Option("--version", metavar="", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Gigapixel pathology slides to tile bags and normalised float16 batches.

    Example: [bold]slideio-pipe export a.svs --out bags/[/]
    """
    del version, verbose, quiet  # the commands read the last two: they are accepted after their names as well


def _help(command: Callable[..., object]) -> str:
    """Return the docstring of a command with each paragraph on one line, which the terminal's width breaks."""
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


_COMMANDS: tuple[Callable[..., None], ...] = (
    info, view, tissue, export, demo, doctor, split, encoders, features, train, predict, convert,
    bench, profile, docs
)  # fmt: skip
_OF_CONFIG: dict[str, Callable[..., None]] = {
    "list": list_presets, "show": show, "explain": explain, "schema": schema
}  # fmt: skip
for command in _COMMANDS:
    app.command(help=_help(command), cls=Command)(talking(command))
configuration = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Presets, and what settings mean.")
for name, command in _OF_CONFIG.items():
    configuration.command(name, help=_help(command), cls=Command)(talking(command))
app.add_typer(configuration, name="config")
