"""Manifests, and empty files beside them."""

from __future__ import annotations

from pathlib import Path


def manifest(folder: Path, text: str, *files: str) -> Path:
    """Write a CSV and empty files beside it."""
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    path = folder / "cohort.csv"
    path.write_text(text, encoding="utf-8")
    return path
