"""A cohort of features in files, and settings that train on it in a second."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

WIDTH = 16


def cohort(folder: Path, count: int = 24, *, columns: Sequence[str] = ("label",), width: int = WIDTH) -> Path:
    """Write a cohort of features: every second slide has three tiles with large values."""
    generator = torch.Generator().manual_seed(1)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for k in range(count):
        tiles = torch.randn(5 + k % 7, width, generator=generator)
        if k % 2:
            tiles[:3, :4] += 3
        torch.save(tiles, folder / f"s{k}.pt")
        known = {"label": k % 2, "grade": ("low", "mid", "high")[k % 2 + (k % 4 == 3)], "size": 10.0 * (k % 2) + k / 10}
        known |= {"time": 30 - 20 * (k % 2) + k / 5, "event": int(k % 5 > 0), "patient": f"p{k}"}
        rows.append([f"s{k}.pt", *(known[name] for name in columns)])
    with (folder / "cohort.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["slide", *columns], *rows])
    return folder / "cohort.csv"


def settings(**fitting: Any) -> dict[str, Any]:
    """Return settings of a training that takes a second."""
    fast = {"epochs": 6, "lr": 5e-3, "bootstrap": 50, "patience": None, "accelerator": "cpu"}
    return {"model": {"embed": [8], "attention": 4}, "fit": fast | fitting}
