"""The page of all commands, made from the commands themselves."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import typer

from slideio_pipe.commands.app import app
from slideio_pipe.commands.environment import COMPILED, PREFIX
from slideio_pipe.commands.exit_codes import ExitCode

MADE = "<!-- made by python -m slideio_pipe.commands.documentation.write_pages: do not edit -->"
_INTRODUCTION = f"""\
{MADE}

# Commands

Results are printed on standard output; errors, warnings and progress on standard error. `slideio-pipe COMMAND --help`
shows what this page says about a command, and `slideio-pipe --install-completion` makes the shell complete commands,
options, presets and keys of settings.

Every command has these options:

| option | meaning |
|---|---|
| `--json` | Print the result as JSON, and nothing else on standard output; no progress bars. |
| `-v`, `--verbose` | Print what is done; `-vv` with details, such as the reader of a slide. Also before the command. |
| `-q`, `--quiet` | Print only errors and results. Also before the command. |

`config schema` prints JSON anyway, and has no `--json`.

## Exit codes

| code | meaning |
|---|---|
{{codes}}

An error in the program itself ends with a traceback and code 1.

## Environment variables

Every option can be set by an environment variable, named after the command and the option:
`{PREFIX}EXPORT_WORKERS=4` is `--workers 4` of `export`, `{PREFIX}TRAIN_OUT=run` is `--out run` of `train`. Options that
are on or off take 1 or 0, repeatable options take values separated by blanks. An option on the command line has
precedence. `{COMPILED}=0` uses OpenCV and NumPy in place of the compiled tile programs. Only the command line reads
these variables; the Python library reads none.
"""
# In --help and in every command, so said once.
_EVERYWHERE = ("help", "verbose", "quiet", "as_json")


def commands_page() -> str:
    """Return the page in Markdown."""
    codes = "\n".join(f"| {code.value} | {_sentence(code.meaning)} |" for code in ExitCode)
    root = typer.main.get_command(app)
    parts = [_INTRODUCTION.format(codes=codes)]
    parts += [_command(path, command) for path, command in commands(root, "slideio-pipe")]
    return "\n".join(parts)


def commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield each command with how it is called, those below ``config`` as well."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _command(path: str, command: Any) -> str:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option" and one.name not in _EVERYWHERE]
    shown = " ".join(_argument_name(one) for one in arguments)
    texts, examples = _paragraphs(command.help)
    lines = [f"## {path}", "", *_apart(texts), "```sh", f"{path} {shown} [OPTIONS]".replace("  ", " "), "```", ""]
    if examples:
        lines += ["For example:", "", "```sh", *examples, "```", ""]
    rows = [(f"`{_argument_name(one)}`", "", _meaning(one)) for one in arguments]
    if rows:
        lines += [*_table("argument", rows)]
    panels = {None: None} | dict.fromkeys(one.rich_help_panel for one in options)
    for panel in panels:
        rows = [(_names(one), _value(one), _meaning(one)) for one in options if one.rich_help_panel == panel]
        lines += [f"**{panel}**", ""] if panel else []
        lines += _table("option", rows) if rows else []
    return "\n".join(lines)


def _table(what: str, rows: list[tuple[str, str, str]]) -> list[str]:
    if not any(value for _, value, _ in rows):
        return [f"| {what} | meaning |", "|---|---|", *(f"| {name} | {text} |" for name, _, text in rows), ""]
    return [f"| {what} | value | meaning |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows), ""]


def _apart(texts: list[str]) -> Iterator[str]:
    for text in texts:
        yield from (text, "")


def _paragraphs(text: str) -> tuple[list[str], list[str]]:
    """Return the paragraphs of a help text, and its examples, each with what it is for as a comment."""
    texts, examples = [], []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        found = re.fullmatch(r"(.*?): \[bold\](.*)\[/\]", paragraph, re.S)
        if found is None:
            texts.append(_escaped(paragraph))
        else:
            examples += [found[2] if found[1] == "Example" else f"{found[2]}   # {found[1][0].lower()}{found[1][1:]}"]
    return texts, examples


def _escaped(text: str) -> str:
    return text.replace(r"\[", "[").replace("<", "&lt;").replace("|", "&#124;")


def _argument_name(argument: Any) -> str:
    name = (argument.metavar or argument.name).replace("|", " or ")
    many = "…" if argument.nargs != 1 else ""
    return f"{name}{many}" if argument.required else f"[{name}]{many}"


def _names(option: Any) -> str:
    return ", ".join(f"`{name}`" for name in option.opts)


def _value(option: Any) -> str:
    return "" if option.is_flag or not option.metavar else f"`{option.metavar.replace('|', '`, `')}`"


def _meaning(parameter: Any) -> str:
    text = _escaped(" ".join((parameter.help or "").split()))
    found = re.fullmatch(r"(.*?) ?\[default: (.*)\]", text)
    if found is not None:
        return f"{found[1]} Default: {found[2]}.".strip()
    default = parameter.default
    if parameter.param_type_name == "option" and not parameter.is_flag and default not in (None, "", ()):
        return f"{text} Default: {default}."
    return text + (" Required." if parameter.param_type_name == "option" and parameter.required else "")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
