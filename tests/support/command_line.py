"""A command of the command line, run in this process."""

from __future__ import annotations

from click.testing import Result
from typer.testing import CliRunner

from slideio_pipe.commands import app as cli


def run(*arguments: object, code: int = 0, columns: int = 120) -> Result:
    """Run a command in this process and check its exit code."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], env={"COLUMNS": str(columns)})
    assert result.exit_code == code, result.output + repr(result.exception)
    return result
