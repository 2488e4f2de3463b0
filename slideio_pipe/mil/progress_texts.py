"""Short texts on the progress of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from slideio_pipe.mil.checkpoint import Progress


def step_words(slides: int, of: int, loss: float) -> str:
    """Return the progress within an epoch.

    >>> step_words(120, 800, 0.5)
    '120/800 slides, loss 0.500'
    """
    return f"{slides:,}/{of:,} slides, loss {loss:.3f}"


def epoch_words(now: Progress, epochs: int, *, chosen: bool = True) -> str:
    """Return the result of the latest of ``epochs`` epochs; they are numbered from 0, as in history.csv.

    ``chosen``: the best epoch is kept; otherwise the last one is, whatever its validation.

    >>> row = {"epoch": 4, "lr": 1e-4, "loss": 0.51, "val_loss": 0.6, "val_auroc": 0.875, "val_auprc": 0.8}
    >>> epoch_words(Progress(best_epoch=3, history=[row]), 50)
    'epoch 4 of 50: loss 0.510, validation loss 0.600, auroc 0.875; best so far: 3'
    >>> epoch_words(Progress(best_epoch=4, history=[row]), 50, chosen=False)
    'epoch 4 of 50: loss 0.510, validation loss 0.600, auroc 0.875'
    """
    row = now.history[-1]
    parts = [f"loss {row['loss']:.3f}", *_validation(row)]
    best = f"; best so far: {now.best_epoch}" if chosen and "val_loss" in row and now.best_epoch >= 0 else ""
    return f"epoch {row['epoch']} of {epochs}: {', '.join(parts)}{best}"


def _validation(row: Mapping[str, Any]) -> list[str]:
    if "val_loss" not in row:
        return []
    found = [f"validation loss {row['val_loss']:.3f}"]
    name = next((name for name in row if name.startswith("val_") and name != "val_loss"), None)
    if name is not None and math.isfinite(row[name]):
        found.append(f"{name.removeprefix('val_').replace('_', ' ')} {row[name]:.3f}")
    return found
