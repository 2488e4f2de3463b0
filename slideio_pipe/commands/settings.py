"""The keys of settings files, with description, values, default and the commands that read them.

They are read from the JSON schemas of ``configs/``, which are made from the records: so that ``slideio-pipe config``
and shell completion load neither NumPy nor pydantic.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from slideio_pipe.errors import ConfigError
from slideio_pipe.presets import config_folder

# Which commands read a section, or a key outside sections.
_LOADER = ("profile", "train")
_TILES = ("export", "features", "view", *_LOADER)
READERS: dict[str, tuple[str, ...]] = {
    "unit": ("export", *_LOADER),
    "slide": ("export", "tissue", "features", *_LOADER),
    "view": _TILES,
    "tissue": ("export", "tissue", "features", "view", *_LOADER),
    "grid": _TILES,
    "quality": ("export", "features", *_LOADER),
    "store": ("export",),
    "mask_frame": _LOADER,
    "slide_transform": _LOADER,
    "tile_transform": _LOADER,
    "stored": _LOADER,
    "max_tiles": _LOADER,
    "seed": _LOADER,
    "cohort": ("train",),
    "task": ("train",),
    "model": ("train",),
    "encoder": ("train",),
    "fit": ("train",),
    "modules": ("train",),
}
CLUSTER_READERS = ("export", "tissue", "features")
_KINDS = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "object": "mapping",
    "null": "null",
}
_BOUNDS = {
    "minimum": "at least {:g}",
    "exclusiveMinimum": "more than {:g}",
    "maximum": "at most {:g}",
    "exclusiveMaximum": "less than {:g}",
}


@dataclass(frozen=True)
class Setting:
    """A key of a settings file."""

    key: str  # with its section: fit.epochs
    description: str
    values: str  # in words: "whole number (at least 1) or null"
    default: Any  # of JSON; None for sections and required keys too
    required: bool
    commands: tuple[str, ...]  # that read it
    option: str  # with which they get the file
    keys: tuple[str, ...] = ()  # of a section

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


@cache
def settings() -> dict[str, Setting]:
    """Return all keys of files for ``--config``, and then those of files for ``--cluster``.

    >>> settings()["fit.epochs"].values, settings()["fit.epochs"].default
    ('whole number (at least 1)', 50)
    """
    main, cluster = (_schema(name) for name in ("schema.json", "slurm.schema.json"))
    found = [*_settings(main, READERS, "--config")]
    readers = dict.fromkeys(cluster["properties"], CLUSTER_READERS)
    found += _settings(cluster, readers, "--cluster")
    return {setting.key: setting for setting in found}


def find(name: str) -> list[Setting]:
    """Return the settings with this key: one, or several of a name without its section.

    Raise ConfigError if there is none; the message has similar keys.
    """
    known = settings()
    hits = [setting for key, setting in known.items() if name in (key, key.rpartition(".")[2])]
    if hits:
        return hits
    close = similar_keys(name)
    remedy = f"did you mean {', '.join(close)}?" if close else "slideio-pipe config explain lists all keys"
    raise ConfigError(f'there is no setting "{name}"', remedy=remedy)


def similar_keys(name: str) -> list[str]:
    """Return keys that are like a misspelt one: as a whole, or without the section.

    >>> similar_keys("fit.epoch")[0], similar_keys("tilesize")
    ('fit.epochs', ['grid.tile_size'])
    """
    last, known = name.rpartition(".")[2], list(settings())
    close = difflib.get_close_matches(name, known, 3, 0.7)
    close += [key for key in known if difflib.SequenceMatcher(None, key.rpartition(".")[2], last).ratio() > 0.75]
    return list(dict.fromkeys(close))


def _schema(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((config_folder() / name).read_text(encoding="utf-8"))
    return schema


def _settings(schema: Mapping[str, Any], readers: Mapping[str, tuple[str, ...]], option: str) -> Iterator[Setting]:
    for key, entry in schema["properties"].items():
        commands = readers[key]
        reference = entry.get("$ref") or entry.get("anyOf", [{}])[0].get("$ref")
        if reference is None:
            yield _setting(key, entry, schema, commands, option)
            continue
        section = schema["$defs"][reference.rpartition("/")[2]]
        description, keys = entry.get("description", section["description"]), tuple(section["properties"])
        yield Setting(key, description, "section", None, False, commands, option, keys)
        for name, inner in section["properties"].items():
            yield _setting(f"{key}.{name}", inner, section, commands, option)


def _setting(
    key: str, entry: Mapping[str, Any], section: Mapping[str, Any], commands: tuple[str, ...], option: str
) -> Setting:
    default = entry.get("default", {} if entry.get("type") == "object" else None)
    required = key in section.get("required", ())
    return Setting(key, entry["description"], values_text(entry), default, required, commands, option)


def values_text(entry: Mapping[str, Any]) -> str:
    """Return the values that a schema allows, in words.

    >>> values_text({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]})
    'whole number (at least 1) or null'
    >>> values_text({"type": "array", "items": {"type": "string"}})
    'list, each: text'
    """
    if "anyOf" in entry:
        return _either([text for part in entry["anyOf"] for text in _alternatives(part)])
    if "enum" in entry or "const" in entry:
        return _either(_alternatives(entry))
    bounds = [words.format(entry[bound]) for bound, words in _BOUNDS.items() if bound in entry]
    if "pattern" in entry:
        return "jpeg:Q" if "jpeg" in entry["pattern"] else f"text like {entry['pattern']}"
    if entry["type"] == "array":
        return f"list, each: {values_text(entry['items'])}"
    return _KINDS[entry["type"]] + (f" ({', '.join(bounds)})" if bounds else "")


def _alternatives(part: Mapping[str, Any]) -> list[str]:
    if "enum" in part:
        return ["null" if value is None else str(value) for value in part["enum"]]
    return [str(part["const"])] if "const" in part else [values_text(part)]


def _either(texts: list[str]) -> str:
    *first, last = texts
    return f"{', '.join(first)} or {last}" if first else last
