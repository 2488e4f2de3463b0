"""The page of all keys of settings files, made from their schemas."""

from __future__ import annotations

from slideio_pipe.commands.config import default_text
from slideio_pipe.commands.documentation.commands_page import MADE
from slideio_pipe.commands.settings import Setting, settings
from slideio_pipe.presets import KINDS, presets

_INTRODUCTION = f"""\
{MADE}

# Settings

Settings are YAML files, given with `--config`, or in Python as a path, a dictionary or a record. Every key may be left
out, unknown keys are refused, and options on the command line have precedence. Units: µm is a micrometre; "tile px"
are pixels at `view.mpp`, "level-0 px" those of the slide at its finest.

`slideio-pipe config explain fit.epochs` prints what this page says about a key. `slideio-pipe config show export` and
`slideio-pipe config show mil` print files with every key and its default, to start from.

In an editor: `slideio-pipe config schema > schema.json`, and as the first line of a YAML file in the same folder
`# yaml-language-server: $schema=schema.json`. VS Code (extension YAML) and PyCharm then complete and check it.

## Presets

Presets are settings that the package brings. Pass their name wherever a YAML file is accepted: `--config uni-224`,
`sp.fit(cohort, "mil")`, `sp.load_transform("stain-light")`, and in a file `slide_transform: stain-light`. A file of
that name has precedence.

| name | for | what it is |
|---|---|---|
{{presets}}
"""
_OUTSIDE = "## Keys without a section\n"
_CLUSTER = """\
## SLURM resources

The file for `--cluster` of export, tissue and features; `slideio-pipe config show slurm` prints one. The names are
those of `dask_jobqueue.SLURMCluster`, except `jobs`, `wait_s` and `options`.
"""


def settings_page() -> str:
    """Return the page in Markdown."""
    rows = [preset for kind in KINDS for preset in presets().values() if preset.kind == kind]
    listed = "\n".join(f"| `{preset.name}` | {preset.use} | {preset.summary} |" for preset in rows)
    parts = [_INTRODUCTION.format(presets=listed)]
    main = [one for one in settings().values() if one.option == "--config"]
    for section in main:
        if section.keys:
            inner = [settings()[f"{section.key}.{key}"] for key in section.keys]
            parts.append(f"## {section.key}\n\n{section.description} Read by {_listed(section)}.\n\n{_table(inner)}")
    outside = [one for one in main if not one.keys and "." not in one.key]
    parts.append(f"{_OUTSIDE}\n{_table(outside, readers=True)}")
    cluster = [one for one in settings().values() if one.option == "--cluster"]
    parts.append(f"{_CLUSTER}\n{_table(cluster)}")
    return "\n".join(parts)


def _table(found: list[Setting], *, readers: bool = False) -> str:
    head = "| key | values | default | meaning |\n|---|---|---|---|\n"
    return head + "".join(
        f"| `{one.key}` | {_cell(one.values)} | {_default(one)} | "
        f"{_cell(one.description)}{f' Read by {_listed(one)}.' if readers else ''} |\n"
        for one in found
    )


def _default(setting: Setting) -> str:
    return "must be given" if setting.required else f"`{default_text(setting)}`"


def _listed(setting: Setting) -> str:
    *first, last = setting.commands
    return f"{', '.join(first)} and {last}" if first else last


def _cell(text: str) -> str:
    return text.replace("|", "&#124;")
