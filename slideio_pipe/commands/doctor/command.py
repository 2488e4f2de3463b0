"""``slideio-pipe doctor``: examine the installation, and print what was found."""

from __future__ import annotations

import importlib
from typing import Annotated

import typer
from rich.markup import escape

from slideio_pipe.commands import options
from slideio_pipe.commands.doctor.findings import Finding, error_text, report_of
from slideio_pipe.commands.exit_codes import ExitCode
from slideio_pipe.commands.terminal import out, print_json, reported

_MARKS = {
    "ok": "[green]✓[/]",
    "untried": "[dim]·[/]",
    "optional": "[yellow]–[/]",
    "broken": "[red]✗[/]",
    "problem": "[red]✗[/]",
}


def examine(every: bool = False) -> list[Finding]:
    """Return all findings; a ``problem`` affects something that the main job needs.

    Parameters
    ----------
    every : bool
        Whether also extras are used whose packages take seconds to import.
    """
    return [
        *_group("machine", "machine", "examine_machine"),
        *_group("packages", "packages", "examine_packages"),
        *_group("formats", "formats", "examine_formats"),
        *_group("extras", "extras", "examine_extras", every),
        *_group("parts", "parts", "examine_parts"),
        *_group("GPU", "machine", "examine_gpu"),
    ]


def _group(group: str, module: str, function: str, *arguments: object) -> list[Finding]:
    """Return the findings of a group, or the error that ended it: no package that it imports is beyond doubt."""
    try:
        found: list[Finding] = getattr(importlib.import_module(f"slideio_pipe.commands.doctor.{module}"), function)(
            *arguments
        )
    except Exception as error:
        return [Finding(group, group, f"fails: {error_text(error)}", "problem", "install slideio-pipe again")]
    return found


@reported
def doctor(
    every: Annotated[
        bool,
        options.option("--all/--quick", "Also use the extras whose packages take seconds to import."),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Check the installation: machine, packages, formats (each is read), extras (each is used), GPU. Exit code 2 if the
    main job cannot run.

    Example: [bold]slideio-pipe doctor --all[/]
    """
    findings = examine(every)
    if as_json:
        print_json(report_of(findings))
    else:
        _print(findings)
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(ExitCode.ERROR)


def _print(findings: list[Finding]) -> None:
    group = ""
    for finding in findings:
        if finding.group != group:
            group = finding.group
            out.print(f"[bold]{group}[/]")
        out.print(f"{_MARKS[finding.status]} {escape(finding.what):<40}{escape(finding.found)}", soft_wrap=True)
        if finding.remedy:
            out.print(f"  [dim]{escape(finding.remedy)}[/]", soft_wrap=not out.is_terminal)
