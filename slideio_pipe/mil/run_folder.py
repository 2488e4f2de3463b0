"""The files in the folder of a training, with or without folds."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from slideio_pipe.errors import ConfigError

_CHECKPOINTS = ("last.ckpt", "best.ckpt")
_OUTCOME = ("metrics.json", "predictions.csv", "config.yaml")


def refuse_other_divisions(folder: Path, names: Sequence[str]) -> None:
    """Refuse to mix these divisions with checkpoints of others in one folder: prediction would mix them up.

    Raise ConfigError if the folder has a training without folds and folds are configured, or the reverse, or other
    folds.
    """
    others = sorted(_trained(folder) - set(names))
    if others:
        existing = "a training without folds" if others == [""] else f"other folds ({', '.join(filter(None, others))})"
        configured = "one without folds" if list(names) == [""] else f"one of {len(names)} folds"
        raise ConfigError(
            f"holds {existing}, and {configured} is to be trained",
            slide=str(folder),
            remedy="pass {overwrite=True} or another folder",
        )


def remove_other_divisions(folder: Path, names: Sequence[str]) -> None:
    """Remove the files of trainings with other divisions."""
    for name in _trained(folder) - set(names):
        remove_training(folder, name)


def remove_training(folder: Path, name: str) -> None:
    """Remove the files of a division's training, and the results of its run."""
    place = folder / name
    for file in (*_CHECKPOINTS, "history.csv"):
        (place / file).unlink(missing_ok=True)
    shutil.rmtree(place / "tensorboard", ignore_errors=True)
    if name and not any(place.iterdir()):
        place.rmdir()
    for file in _OUTCOME:
        (folder / file).unlink(missing_ok=True)
    for plot in (folder / "plots").glob("*.png"):
        plot.unlink()


def is_unfinished(checkpoint: Path) -> bool:
    """Return whether a checkpoint (or the folder that has it) is in the folder of a training that goes on, or stopped.

    A finished one has ``metrics.json``. A checkpoint that was copied elsewhere, without ``last.ckpt``, is not judged.

    >>> is_unfinished(Path("copied/best.ckpt"))
    False
    """
    place = checkpoint if checkpoint.is_dir() else checkpoint.parent
    run = place.parent if place.name.startswith("fold-") else place
    return (place / "last.ckpt").exists() and not (run / "metrics.json").exists()


def _trained(folder: Path) -> set[str]:
    """Return the divisions that have checkpoints; "" is a training without folds."""
    places = {"": folder} | {path.name: path for path in folder.glob("fold-*") if path.is_dir()}
    return {name for name, place in places.items() if any((place / file).exists() for file in _CHECKPOINTS)}
