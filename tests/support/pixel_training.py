"""Settings of a training on the pixels of slides that takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def settings(slides: Path, *, augment: bool = False, **fitting: Any) -> dict[str, Any]:
    """Return settings of a training that takes seconds."""
    drawn = {"slide_transform": str(slides.parent / "stain.yaml")} if augment else {}
    return drawn | {
        "view": {"mpp": 1.0},
        "grid": {"tile_size": 32, "min_tissue": 0.3},
        "model": {"embed": [], "attention": 8, "dropout": 0.0},
        "encoder": {"source": "small", "chunk_size": 16},
        "fit": {"epochs": 2, "bootstrap": 0, "validation": 0, "accelerator": "cpu", "monitor": "loss"} | fitting,
    }
