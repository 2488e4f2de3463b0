"""The saved state of a training: the last, to continue from; the best, to predict with."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from slideio_pipe.cohort.run import differences
from slideio_pipe.errors import ConfigError
from slideio_pipe.files import disk_errors, not_there, package_versions, put_in_place
from slideio_pipe.mil.fingerprints import other_slides

_LOG = logging.getLogger(__name__)

VERSION = 1


@dataclass(slots=True)
class Progress:
    """The progress of a training."""

    epoch: int = 0
    step: int = 0  # of all epochs
    position: int = 0  # bags of this epoch taken so far, in each process
    loss: float = 0.0  # sum over the bags of this epoch
    bags: int = 0  # readable bags of this epoch
    stale: int = 0  # epochs without a better validation
    best: list[float] = field(default_factory=list)  # scores of the best epoch: larger is better
    best_epoch: int = -1
    finished: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)


class Resumable(Protocol):
    """The parts of a training that a checkpoint saves."""

    fabric: Any
    model: nn.Module
    encoder: nn.Module | None
    optimizer: Any
    scheduler: Any
    progress: Progress

    def where(self) -> list[dict[str, Any]]:
        """Return the position of each process's source within its epoch."""


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """``last.ckpt`` and ``best.ckpt`` of a folder."""

    folder: Path
    # What must agree to continue from a checkpoint, and what prediction needs: task, model, settings, cohort. JSON
    # values.
    about: Mapping[str, Any]

    @property
    def last(self) -> Path:
        return self.folder / "last.ckpt"

    @property
    def best(self) -> Path:
        return self.folder / "best.ckpt"

    def resume(self, training: Resumable) -> dict[str, Any] | None:
        """Load the last checkpoint into a training; return the position in its epoch, None at its beginning.

        Raise ConfigError if it has other settings, or is not a checkpoint.
        """
        if not self.last.exists():
            if self.best.exists():  # it would be overwritten
                self._refuse_other(read_checkpoint(self.best), self.best)
            _LOG.info("%s: starts, there is no checkpoint", self.folder)
            return None
        state = self._modules(training) | {"optimizer": training.optimizer}
        known = read_checkpoint(self.last)
        self._refuse_other(known, self.last)
        training.fabric.load(self.last, state, strict=False)
        training.scheduler.load_state_dict(known["scheduler"])
        for name, value in known["progress"].items():
            setattr(training.progress, name, value)
        _LOG.info("%s: resumes from %s: %s", self.folder, self.last.name, known["progress"])
        sources = known["sources"]
        return None if sources is None else dict(sources[training.fabric.global_rank])

    def load_best(self, training: Resumable) -> None:
        """Load the weights of the best epoch into a training."""
        training.fabric.load(self.best, self._modules(training), strict=False)

    def is_same(self) -> bool:
        """Return whether the existing checkpoints are of this training."""
        existing = [path for path in (self.last, self.best) if path.exists()]
        return not any(self._differences(read_checkpoint(path)) for path in existing[:1])

    def save_last(self, training: Resumable) -> None:
        """Write the state of a training, complete or not at all."""
        now = training.progress
        state = self._modules(training) | {
            "optimizer": training.optimizer,
            "scheduler": training.scheduler.state_dict(),
            "progress": asdict(now),
            "sources": training.where() if now.position else None,
        }
        self._save(training, self.last, state)

    def save_best(self, training: Resumable) -> None:
        """Write the weights."""
        self._save(training, self.best, self._modules(training) | {"progress": asdict(training.progress)})

    def _save(self, training: Resumable, path: Path, state: dict[str, Any]) -> None:
        partial = path.with_name(path.name + ".partial")
        with disk_errors(path):
            training.fabric.save(partial, state | {"about": dict(self.about), "version": VERSION})
            training.fabric.barrier()
            if training.fabric.is_global_zero:
                put_in_place(partial, path)
            training.fabric.barrier()

    def _modules(self, training: Resumable) -> dict[str, Any]:
        found = {"model": training.model, "encoder": training.encoder}
        return {name: module for name, module in found.items() if module is not None}

    def _refuse_other(self, known: Mapping[str, Any], path: Path) -> None:
        other = self._differences(known)
        if other:
            raise ConfigError(
                f"the checkpoint is of another training: {'; '.join(other)}",
                slide=str(path),
                remedy="pass {overwrite=True} or another folder",
            )

    def _differences(self, known: Mapping[str, Any]) -> list[str]:
        """Return the differences between a checkpoint and this training."""
        about = known["about"]
        compared = set(about) - {"packages", "slides", "modules"}  # missing in checkpoints of earlier versions
        before, now = ({name: each.get(name) for name in compared} for each in (about, self.about))
        return differences(before, now) + other_slides(about.get("slides"), self.about.get("slides"))


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return the contents of a checkpoint, on the CPU; no code in it is executed.

    Raise ConfigError if it is not a checkpoint of this package.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        if found["version"] > VERSION:
            raise ConfigError(f"is of version {found['version']}", slide=str(path), remedy="update slideio_pipe")
        return dict(found)
    except FileNotFoundError as error:
        raise not_there(ConfigError, "no such checkpoint", path) from error
    except ConfigError:
        raise
    except Exception as error:  # torch has no specific error for other files
        raise ConfigError(
            f"is no checkpoint of a training ({error})", slide=str(path), remedy="pass best.ckpt"
        ) from None


def about(**known: Any) -> dict[str, Any]:
    """Return the description stored in a checkpoint."""
    return known | {"packages": package_versions()}
