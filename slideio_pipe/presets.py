"""Presets: the settings that the package brings, the YAML files of ``configs/``, found by their name."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from slideio_pipe.errors import ConfigError
from slideio_pipe.files import not_there

Kind = Literal["export", "train", "transform", "cluster"]
KINDS: tuple[Kind, ...] = ("export", "train", "transform", "cluster")
# A key that only files of one kind have; files without any of them are settings of an export.
_KEYS: dict[Kind, tuple[str, ...]] = {
    "transform": ("transform",),
    "cluster": ("jobs",),
    "train": ("task", "model", "encoder", "fit"),
}
_USES: dict[Kind, str] = {
    "export": "--config of export, tissue, features and view",
    "train": "--config of train and profile",
    "transform": "--transform of view; slide_transform and tile_transform in settings",
    "cluster": "--cluster of export, tissue and features",
}


@dataclass(frozen=True)
class Preset:
    """A file of settings with a name."""

    name: str
    path: Path
    kind: Kind
    summary: str  # one line

    @property
    def use(self) -> str:
        """Which options take it."""
        return _USES[self.kind]

    def text(self) -> str:
        """Return the YAML, without the line that names the schema for editors, which is found beside the file."""
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("# yaml-language-server:"))


def config_folder() -> Path:
    """Return the folder of presets and schemas: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


@cache
def presets() -> dict[str, Preset]:
    """Return the presets by name.

    >>> presets()["stain-light"].kind
    'transform'
    """
    return {path.stem: _preset(path) for path in sorted(config_folder().glob("*.yaml"))}


def _preset(path: Path) -> Preset:
    preset = Preset(path.stem, path, "export", "")
    text = preset.text()
    keys = {line.partition(":")[0] for line in text.splitlines()}
    kinds: list[Kind] = [kind for kind, own in _KEYS.items() if not keys.isdisjoint(own)]
    kind = kinds[0] if kinds else "export"
    return Preset(path.stem, path, kind, text.partition("\n")[0].removeprefix("#").strip())


def settings_file(source: str | Path, *kinds: Kind) -> Path:
    """Return the path of a file of settings, given as a path or as the name of a preset; a file has precedence.

    Raises
    ------
    ConfigError
        There is neither such a file nor such a preset, or the preset is none of ``kinds``.

    Examples
    --------
    >>> settings_file("uni-224", "export").name
    'uni-224.yaml'
    >>> settings_file("uni-244", "export")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    slideio_pipe.errors.ConfigError: uni-244: no file and no preset has this name; did you mean "uni-224"? ...
    """
    path, allowed = Path(source).expanduser(), kinds or KINDS
    is_name = path.name == str(source) and not path.suffix
    if path.is_file() or (path.is_dir() and not is_name):
        return path
    preset = presets().get(path.name) if is_name else None
    others = [name for name, other in presets().items() if other.kind in allowed]
    if preset is not None and preset.kind not in allowed:
        raise ConfigError(f"is a preset for {preset.use}", slide=str(source), remedy=f"here: {', '.join(others)}")
    if preset is not None:
        return preset.path
    close = difflib.get_close_matches(path.stem, others, 1, 0.6)
    if is_name:
        hint = f'did you mean "{close[0]}"? ' if close else ""
        remedy = f"{hint}slideio-pipe config list shows the presets"
        raise ConfigError("no file and no preset has this name", slide=str(source), remedy=remedy)
    if close and not path.exists():
        raise not_there(ConfigError, "no such file", source, f'check the path, or pass the preset "{close[0]}"')
    return path  # whoever reads it raises, if it is not there


def transform_named_in(folder: Path, transform: str) -> str:
    """Return a transform that a YAML file in ``folder`` names: its path, or the name of a preset as it is.

    The name is recorded with a run, which can then be resumed on another computer.
    """
    path = folder / transform
    return transform if transform in presets() and not path.is_file() else str(path)
