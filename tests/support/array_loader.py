"""Loaders over bags in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_bag import ArrayBag

from slideio_pipe.streaming.dataset import BagDataset
from slideio_pipe.streaming.loader import BagLoader


def bag(name: str, count: int, seed: int = 0, size: tuple[int, int] = (4, 6)) -> ArrayBag:
    """Return a bag of random tiles, with a label given by its name."""
    rng = np.random.default_rng([seed, *name.encode()])
    made = ArrayBag(rng.integers(0, 256, (count, *size, 3), dtype=np.uint8), name)
    made.label = len(name)  # type: ignore[assignment]
    return made


def bags(*counts: int) -> list[ArrayBag]:
    return [bag(f"bag{number}", count) for number, count in enumerate(counts)]


def open_loader(cohort: Any, config: Any = None, **changes: Any) -> BagLoader:
    usual = {"device": "cpu", "normalize": None, "chunk_size": 10, "threads": 3}
    return BagLoader(BagDataset(cohort, config), **(usual | changes))
