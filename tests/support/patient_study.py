"""Studies of patients with one to four slides: features in files, and settings that train on them in a second."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

WIDTH = 8
SLIDES = (1, 2, 3, 4)  # slides of a patient, in turns


def features(folder: Path, patients: int = 24, *, columns: Sequence[str] = ("label", "patient")) -> Path:
    """Write features and their manifest: one slide of every second patient has two tiles with large values."""
    generator = torch.Generator().manual_seed(1)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(patients):
        for slide in range(SLIDES[number % 4]):
            tiles = torch.randn(3 + (number + slide) % 4, WIDTH, generator=generator)
            if number % 2 and slide == 0:
                tiles[:2, :4] += 4
            name = f"p{number}-{slide}.pt"
            torch.save(tiles, folder / name)
            known = {"label": number % 2, "patient": f"p{number}", "size": number % 2 + number / 100}
            known |= {"time": 30 - 20 * (number % 2) + number / 5, "event": int(number % 5 > 0)}
            rows.append([name, *(known[column] for column in columns)])
    with (folder / "cohort.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["slide", *columns], *rows])
    return folder / "cohort.csv"


def settings(**fitting: Any) -> dict[str, Any]:
    """Return settings of a training by patient that takes a second."""
    fast = {"epochs": 4, "lr": 5e-3, "bootstrap": 20, "patience": None, "accelerator": "cpu"}
    return {"unit": "patient", "model": {"embed": [8], "attention": 4}, "fit": fast | fitting}
