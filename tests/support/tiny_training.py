"""Trainings of a second or two, from slides and from features, as input of other tests."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from made_slides import made_slide

from slideio_pipe.mil.fit import fit

SIDE, WIDTH = 1024, 6
PIXELS = {
    "view": {"mpp": 1.0},
    "grid": {"tile_size": 32, "min_tissue": 0.3},
    "encoder": {"source": "small", "chunk_size": 16},
    "model": {"embed": [], "attention": 4, "dropout": 0.0},
    "fit": {
        "epochs": 1, "patience": None, "bootstrap": 0, "validation": 0.0, "accelerator": "cpu", "bags_per_step": 1,
    },
}  # fmt: skip


def slides(folder: Path, count: int = 3) -> Path:
    """Write small slides and their manifest."""
    lines = ["slide,label"]
    for k in range(count):
        made_slide(folder / f"s{k}.svs", size=(SIDE, SIDE), seed=k + 1, lesions=k % 2)
        lines.append(f"s{k}.svs,{k % 2}")
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n")
    return folder / "cohort.csv"


def features(folder: Path, count: int = 4) -> Path:
    """Write features and their manifest."""
    generator = torch.Generator().manual_seed(1)
    folder.mkdir(exist_ok=True)
    lines = ["slide,label"]
    for k in range(count):
        torch.save(torch.randn(5 + k, WIDTH, generator=generator) + k % 2, folder / f"f{k}.pt")
        lines.append(f"f{k}.pt,{k % 2}")
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n")
    return folder / "cohort.csv"


def train_pixels(cohort: Path, out: Path, encoder: torch.nn.Module | None = None) -> Path:
    """Return the checkpoint of a training end to end."""
    return fit(cohort, PIXELS, out, encoder=encoder, progress=False).checkpoints[0]


def train_features(cohort: Path, out: Path) -> Path:
    """Return the checkpoint of a training on features."""
    config = {"model": {"embed": [4], "attention": 4}, "fit": PIXELS["fit"]}
    return fit(cohort, config, out, progress=False).checkpoints[0]


def study(folder: Path, columns: Mapping[str, Sequence[object]], *, width: int = WIDTH) -> Path:
    """Write features of as many slides as the columns have cells, s0.pt and so on, and their manifest."""
    generator = torch.Generator().manual_seed(3)
    folder.mkdir(parents=True, exist_ok=True)
    count = len(next(iter(columns.values())))
    for k in range(count):
        torch.save(torch.randn(4 + k % 3, width, generator=generator) + k % 2, folder / f"s{k}.pt")
    return table(folder, columns)


def table(folder: Path, columns: Mapping[str, Sequence[object]]) -> Path:
    """Write the manifest of a study again, with other columns."""
    rows = [["slide", *columns], *([f"s{k}.pt", *cells] for k, cells in enumerate(zip(*columns.values(), strict=True)))]
    with (folder / "cohort.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "cohort.csv"


def quick(task: Mapping[str, Any] | None = None, **fitting: Any) -> dict[str, Any]:
    """Return settings of a training on features that takes a second."""
    fast = {"epochs": 2, "lr": 5e-3, "bootstrap": 0, "patience": None, "accelerator": "cpu"}
    return {"task": dict(task or {}), "model": {"embed": [4], "attention": 4}, "fit": fast | fitting}
