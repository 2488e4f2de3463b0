"""What the command line prints: results on standard output; errors, warnings and bars on standard error."""

from __future__ import annotations

import functools
import json
import math
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar, get_type_hints

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from slideio_pipe.errors import EmptyTissueWarning, MissingResolutionError, SlideioPipeError, SlideioPipeWarning

P = ParamSpec("P")
R = TypeVar("R")

out, err = Console(highlight=False), Console(stderr=True, highlight=False)

# How the options are called whose Python names stand in a remedy.
_OPTIONS = {
    "slide_mpp": "--slide-mpp",
    "overwrite": "--overwrite",
    "allow_empty": "--allow-empty",
    "min_tissue": "--min-tissue",
    "tile_size": "--tile-size",
    "tile_size_level0": "--tile-size-level0",
    "features": "--features",
    "tissue_file": "--mask",
    "method": "--tissue",
    "stride": "--stride",
    "overlap": "--overlap",
    "edge": "--edge",
    "align": "--align",
    "pixels": "--pixels",
    "mpp": "--mpp",
    "backend": "--backend",
    "python": "--python",
    "retry": "--retry",
    "on_error": "--on-error",
    "instance_labels": "--instance-labels",
    "out": "--out",
    "normalize": "--normalize",
    "input_size": "--input-size",
    "pooling": "--pooling",
    "dtype": "--dtype",
    "device": "--device",
    "batch_size": "--batch-size",
    "encoder": "--encoder",
    "cluster": "--cluster",
    "scores": "--scores",
    "slides": "--slides",
}
# What Python calls None: level 0 as stored.
_NATIVE = "native"
# Where a command without that option has it: in the settings of a training, or of the loader.
_SETTINGS = {
    "slide_mpp": "slide.slide_mpp",
    "backend": "slide.backend",
    "mpp": "view.mpp",
    "method": "tissue.method",
    "min_tissue": "grid.min_tissue",
    "tile_size": "grid.tile_size",
    "stride": "grid.stride",
    "overlap": "grid.overlap",
    "edge": "grid.edge",
    "align": "grid.align",
    "encoder": "encoder.source",
    "features": "encoder.folder",
    "batch_size": "encoder.chunk_size",
}
_NAMED = re.compile(rf"\b({'|'.join(_OPTIONS)})\b(?:=(?:\"([^\"]*)\"|([^\s,;()]+)))?")
# In a reason only what is set there, pixels="source": the names alone are words.
_SET = re.compile(r"\b(pixels)=(?:\"([^\"]*)\"|([^\s,;()]+))")


# Commands that go on where they stopped.
_RESUMED = ("convert", "export", "features", "train", "tissue")


def reported(command: Callable[P, R]) -> Callable[P, R]:
    """Turn our errors into one line on standard error and exit code 2, our warnings into one line each."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with _plain_warnings():
                return command(*args, **kwargs)
        except SlideioPipeError as error:
            err.print(f"[bold red]error[/]: {escape(in_options(error, command))}", soft_wrap=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            what_now = "; run the same command again to go on" if command.__name__ in _RESUMED else ""
            err.print(f"interrupted{what_now}", soft_wrap=True)
            raise typer.Exit(130) from None

    return run


def in_options(error: SlideioPipeError, command: Callable[..., Any] | None = None) -> str:
    """Return the message of an error, its remedy in words of the command line.

    Where the command lacks an option, the remedy names the key of the settings that says it.

    Examples
    --------
    >>> from slideio_pipe.errors import OutputExistsError
    >>> in_options(OutputExistsError("already exists", slide="a", remedy="pass overwrite=True or another path"))
    'a: already exists; pass --overwrite or another path'
    """
    remedy = error.remedy or ""
    remedy = re.sub(r"\bsee (Grid|Export)Config\b", "see slideio-pipe export --help", remedy)
    remedy = re.sub(r"\bsee LoaderConfig\b", "see configs/mil.yaml", remedy)
    remedy = _NAMED.sub(lambda found: _option(found, command), remedy)
    if isinstance(error, MissingResolutionError):
        option = _named("slide_mpp", command)
        how = f"pass {option}" if option.startswith("--") else f"fill in the column mpp of the cohort, or set {option},"
        remedy = f"{how} with the µm per pixel of level 0: 0.25 is usual for a 40× scan, 0.5 for 20×"
    # Reasons are one line as well, whatever a library put into them.
    reason = _SET.sub(lambda found: _option(found, command), error.reason.replace("store.pixels: ", "--pixels: "))
    return " ".join(str(SlideioPipeError(reason, slide=error.slide, remedy=remedy or None)).split())


def _option(found: re.Match[str], command: Callable[..., Any] | None) -> str:
    value = found[2] or found[3]
    value = _NATIVE if (found[1], value) == ("mpp", "None") else value
    if value is None and "_" not in found[1]:
        return found[0]  # "edge" may be a word
    named = _named(found[1], command)
    if value in (None, "True", "…"):
        return named
    return f"{named} {value}" if named.startswith("--") else f"{named}={value}"


def _named(name: str, command: Callable[..., Any] | None) -> str:
    """Return what is called so in Python as a command has it: an option, or a key of its settings."""
    option = _OPTIONS[name]
    if command is None or name not in _SETTINGS:
        return option
    hints = get_type_hints(command, include_extras=True).values()
    infos = [info for hint in hints for info in getattr(hint, "__metadata__", ())]
    # typer.Option("--out", "-o") holds the first name as its default until the command is made.
    has = any(option in (info.default, *(info.param_decls or ())) for info in infos)
    return option if has else _SETTINGS[name]


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print warnings as they come; that nothing was found only at the end, because an error says more."""
    empty: list[str] = []

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, EmptyTissueWarning):
            empty.append(str(message))
        else:
            warn(str(message))

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


def warn(text: str) -> None:
    """Print a warning on standard error."""
    err.print(f"[yellow]warning[/]: {escape(text)}", soft_wrap=True)


def say(text: str, *, style: str | None = None) -> None:
    """Print a line of text as it is, never broken, so that it can be copied."""
    out.print(text, style=style, markup=False, soft_wrap=True)


def called_as() -> str:
    """Return how the command line was called: an environment that is not activated has it on no PATH."""
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
    """Print numbers with their intervals; of each, ``value``, ``low`` and ``high`` are asked, NaN where not defined."""
    table = Table("metric", "value", "95 % interval", title=title, title_justify="left")
    for name, metric in metrics.items():
        value = "not defined" if math.isnan(metric.value) else f"{metric.value:.3f}"
        interval = "" if math.isnan(metric.low) else f"{metric.low:.3f} to {metric.high:.3f}"
        table.add_row(name.replace("_", " "), value, interval)
    out.print(table)
