"""Modules and installed packages of a user, written for a test; what was imported from them is dropped after it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def imports_from(folder: Path, *, on_path: bool = True) -> Iterator[Path]:
    """Make a folder importable for a while; ``sys.path`` and ``sys.modules`` are as before afterwards."""
    modules, path = set(sys.modules), list(sys.path)
    if on_path:
        sys.path.append(str(folder))
    importlib.invalidate_caches()
    try:
        yield folder
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]
        importlib.invalidate_caches()


def write_distribution(folder: Path, name: str, points: dict[str, dict[str, str]], version: str = "1.0") -> None:
    """Write the metadata of an installed package, as pip does: entry points by group and name."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    groups = [
        f"[slideio_pipe.{group}]\n" + "".join(f"{key} = {value}\n" for key, value in named.items())
        for group, named in points.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))
