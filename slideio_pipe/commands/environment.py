"""Environment variables of the command line: one for every option, and the one of the compiled programs.

Only commands read them; the library does not. SLIDEIO_PIPE_EXPORT_WORKERS is ``--workers`` of ``export``.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperCommand

from slideio_pipe.errors import ConfigError

PREFIX = "SLIDEIO_PIPE_"
# 0: OpenCV and NumPy in place of the compiled programs, to compare them.
COMPILED = f"{PREFIX}COMPILED"
# Options that are no settings.
_WITHOUT = ("help",)


class Command(TyperCommand):
    """A command whose options have environment variables, named after the command and the option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give each option its variable; messages name those that are set, a help screen has no room for them."""
        for variable, option in variables(ctx):
            option.envvar = variable
            option.show_envvar = bool(os.environ.get(variable)) and "--help" not in args
        remaining: list[str] = super().parse_args(ctx, args)
        return remaining


def variables(ctx: Any) -> Iterator[tuple[str, Any]]:
    """Yield the variable and the option, for every option of a command."""
    start = _start(ctx)
    for option in ctx.command.params:
        long = next((name[2:] for name in option.opts if name.startswith("--")), None)
        if option.param_type_name == "option" and long is not None and long not in _WITHOUT:
            yield start + long.upper().replace("-", "_"), option


def _start(ctx: Any) -> str:
    """Return the beginning of the names of a command's variables, such as SLIDEIO_PIPE_EXPORT_."""
    names: list[str] = []
    while ctx.parent is not None:
        names.insert(0, str(ctx.info_name).upper().replace("-", "_"))
        ctx = ctx.parent
    return PREFIX + "".join(f"{name}_" for name in names)


def given_variables(ctx: Any) -> dict[str, str]:
    """Return the variables, and their values, that options of this call were taken from."""
    return {
        name: os.environ[name]
        for name, option in variables(ctx)
        if getattr(ctx.get_parameter_source(option.name), "name", "") == "ENVIRONMENT"
    }


def unknown_variables(ctx: typer.Context) -> Iterator[str]:
    """Yield a message for each variable that has the name of this command and of none of its options."""
    known, start = [name for name, _ in variables(ctx)], _start(ctx)
    for name in sorted(os.environ):
        if name.startswith(start) and name not in known:
            close = difflib.get_close_matches(name, known, 1, 0.8)
            hint = f", did you mean {close[0]}?" if close else ""
            yield f"the environment variable {name} is no option of this command{hint}"


def choose_programs() -> None:
    """Use OpenCV and NumPy in place of the compiled programs if the variable says so."""
    chosen = os.environ.get(COMPILED, "")
    if chosen not in ("", "0", "1"):
        raise ConfigError(f"the environment variable {COMPILED} is {chosen!r}", remedy="set it to 0 or 1, or unset it")
    if chosen == "0":
        from slideio_pipe.compiled.library import use_compiled  # loads NumPy

        use_compiled(False)
