"""``slideio-pipe config``: presets, and what the keys of settings files mean."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable
from typing import Annotated

import typer
import yaml

from slideio_pipe.commands import options
from slideio_pipe.commands.completion import one_of, preset_names, setting_keys
from slideio_pipe.commands.settings import Setting, find, settings
from slideio_pipe.commands.terminal import out, print_json, reported, say
from slideio_pipe.errors import ConfigError
from slideio_pipe.presets import KINDS, config_folder, presets, settings_file

_SCHEMAS = {"settings": "schema.json", "slurm": "slurm.schema.json", "transform": "transform.schema.json"}

PresetName = Annotated[
    str,
    typer.Argument(help="A preset, as in slideio-pipe config list.", metavar="NAME", autocompletion=preset_names()),
]
Key = Annotated[
    str | None,
    typer.Argument(
        help="A key such as fit.epochs, a name without its section such as epochs, or a section such as fit. "
        r"\[default: all sections]",
        metavar="KEY",
        autocompletion=setting_keys,
    ),
]
SchemaKind = Annotated[
    str,
    typer.Argument(
        help="Of files for --config, for --cluster, or of transforms.",
        metavar="settings|slurm|transform",
        autocompletion=one_of(*_SCHEMAS),
    ),
]


@reported
def list_presets(as_json: options.Json = False) -> None:
    """List the presets: settings that the package brings. Pass them by name wherever a YAML file is accepted.

    Example: [bold]slideio-pipe config list[/]
    """
    if as_json:
        print_json([{"name": p.name, "kind": p.kind, "use": p.use, "summary": p.summary} for p in presets().values()])
        return
    for kind in KINDS:
        found = [preset for preset in presets().values() if preset.kind == kind]
        say(f"{found[0].use}:", style="bold")
        _print_rows((preset.name, preset.summary) for preset in found)
    say("slideio-pipe config show NAME prints one; it is a file to start from: add > mine.yaml")


@reported
def show(name: PresetName, as_json: options.Json = False) -> None:
    """Print a preset: a file of settings to start from.

    Example: [bold]slideio-pipe config show mil > mine.yaml[/]
    """
    if name not in presets():
        settings_file(name, *KINDS)  # raises with similar names, or is a file of the user's
        raise ConfigError("is a file, not a preset", slide=name, remedy="slideio-pipe config list shows the presets")
    text = presets()[name].text()
    if as_json:
        print_json(yaml.safe_load(text))
    else:
        sys.stdout.write(text)


@reported
def explain(key: Key = None, as_json: options.Json = False) -> None:
    """Say what a key of a settings file means: its values, its default, and the commands that read it.

    Example: [bold]slideio-pipe config explain fit.epochs[/]

    All keys of a section: [bold]slideio-pipe config explain grid[/]
    """
    found = find(key) if key is not None else [setting for setting in settings().values() if "." not in setting.key]
    if as_json:
        print_json([setting.as_json() for setting in found])
    elif key is None:
        for option in ("--config", "--cluster"):
            say(f"in files for {option}:", style="bold")
            _print_rows((setting.key, setting.description) for setting in found if setting.option == option)
    else:
        for number, setting in enumerate(found):
            if number:
                say("")
            _print_setting(setting)


@reported
def schema(kind: SchemaKind = "settings") -> None:
    """Print the JSON schema of settings files, with which VS Code and PyCharm complete and check YAML.

    Save it beside your file, whose first line then is: # yaml-language-server: $schema=schema.json

    Example: [bold]slideio-pipe config schema > schema.json[/]
    """
    if kind not in _SCHEMAS:
        raise ConfigError(f'there is no schema "{kind}"', remedy=f"there are: {', '.join(_SCHEMAS)}")
    sys.stdout.write((config_folder() / _SCHEMAS[kind]).read_text(encoding="utf-8"))


def default_text(setting: Setting) -> str:
    """Return a default as written in YAML."""
    if setting.required:
        return "none, it must be given"
    return setting.default if isinstance(setting.default, str) else json.dumps(setting.default, ensure_ascii=False)


def _print_setting(setting: Setting) -> None:
    say(f"{setting.key}: {setting.description}", style="bold")
    facts: dict[str, str] = {}
    if not setting.keys:
        facts = {"values": setting.values, "default": default_text(setting)}
    facts["read by"] = f"{', '.join(setting.commands)} ({setting.option})"
    if "train" in setting.commands and not setting.keys:
        facts["change it"] = f"slideio-pipe train --set {setting.key}={_example(setting)}"
    _print_rows(facts.items())
    if setting.keys:
        inner = [settings()[f"{setting.key}.{key}"] for key in setting.keys]
        say("keys:")
        _print_rows((one.key, f"{one.description} [default: {default_text(one)}]") for one in inner)


def _example(setting: Setting) -> str:
    return json.dumps(setting.default, ensure_ascii=False, separators=(",", ":"))


def _print_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Print names and texts in two columns."""
    lines = list(rows)
    indent = 4 + max((len(name) for name, _ in lines), default=0)
    for name, text in lines:
        start, more = f"  {name}".ljust(indent), " " * indent
        say(textwrap.fill(text, max(out.width, indent + 20), initial_indent=start, subsequent_indent=more), copied=True)
