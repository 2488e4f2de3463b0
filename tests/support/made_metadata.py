"""Metadata of this package as another installation could have them."""

from __future__ import annotations

from pathlib import Path

import pytest


def write_metadata(folder: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Write metadata of slideio-pipe that Python finds before those that are installed."""
    about = folder / "slideio_pipe-9.9.dist-info"
    about.mkdir(parents=True)
    written = ["Metadata-Version: 2.4", "Name: slideio-pipe", "Version: 9.9", *lines]
    (about / "METADATA").write_text("\n".join([*written, ""]))
    monkeypatch.syspath_prepend(folder)
