"""A training of a second or two, from slides and from features, for what comes after it."""

from __future__ import annotations

from pathlib import Path

import torch

from slideio_pipe import write_synthetic_slide
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
        write_synthetic_slide(folder / f"s{k}.svs", size=(SIDE, SIDE), seed=k + 1, lesions=k % 2)
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
