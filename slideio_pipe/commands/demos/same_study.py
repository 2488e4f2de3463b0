"""``demo.json`` in the folder of a generated study: which one it is."""

from __future__ import annotations

import json
from pathlib import Path

from slideio_pipe.errors import ConfigError
from slideio_pipe.files import write_file

KIND = "demo.json"


def check_same_study(folder: Path, what: dict[str, object]) -> None:
    """Record the parameters of the slides in a folder, or raise if existing slides have others."""
    known = folder / KIND
    if not known.exists():
        write_file(known, f"{json.dumps(what)}\n".encode(), overwrite=False)
        return
    found = json.loads(known.read_bytes())
    if found != what:
        other = ", ".join(f"{key} {found.get(key)}" for key, value in what.items() if found.get(key) != value)
        raise ConfigError(f"{folder} holds the slides of another cohort ({other})", remedy="choose another folder")
