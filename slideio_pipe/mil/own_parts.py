"""The caller's own parts of a training: aggregator, encoder, loss and metric, passed in Python or by import path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from slideio_pipe.errors import ConfigError
from slideio_pipe.mil.config import TrainConfig, is_passed, passed_name
from slideio_pipe.mil.models.bag_model import BagModel
from slideio_pipe.mil.models.mil_model import build_model
from slideio_pipe.mil.models.own_model import own_model, tried
from slideio_pipe.mil.objective import Objective, OwnLoss, OwnMetric
from slideio_pipe.mil.tasks import Task
from slideio_pipe.parts.import_path import code_digest, import_object, is_import_path


@dataclass(frozen=True, slots=True)
class OwnParts:
    """What the caller brings to a training; None: the package's, by the settings."""

    model: Any = None  # a module, or a callable that makes one
    loss: OwnLoss | None = None
    metric: OwnMetric | None = None
    code: Mapping[str, str] = field(default_factory=dict)  # digests of imported modules, by file

    @classmethod
    def of(cls, config: TrainConfig, *, model: Any = None, loss: Any = None, metric: Any = None) -> OwnParts:
        """Return the parts that the settings name, or that are passed instead of them.

        Raise ConfigError if an import path leads nowhere, or a part that was passed in Python is missing.
        """
        code: dict[str, str] = {}
        found: dict[str, Any] = {}
        named = {"model": config.model.name, "loss": config.task.loss, "metric": config.task.metric}
        for part, given in {"model": model, "loss": loss, "metric": metric}.items():
            name = named[part]
            if given is not None and not isinstance(given, str):
                found[part] = given
            elif is_passed(name):
                raise _missing(part, str(name))
            elif name and name in config.import_paths.values():
                found[part] = import_object(name, modules_of(config))
                code |= code_digest(name)
        for part in ("loss", "metric"):
            found[part] = _callable(part, named[part], found.get(part))
        source = config.import_paths.get("encoder.source")
        if source is not None:
            import_object(source, modules_of(config))
            code |= code_digest(source)
        return cls(found.get("model"), found["loss"], found["metric"], code)

    def objective(self, task: Task) -> Objective:
        """Return the loss and the metrics for a task."""
        return Objective(task, self.loss, self.metric)

    def build(self, config: TrainConfig, width: int, outputs: int) -> BagModel:
        """Return a new model, one of the caller after a trial; raise ConfigError if it cannot be made or is unfit."""
        name = config.model.name
        if self.model is None:
            return build_model(name, width, outputs, **config.model.arguments())
        return tried(own_model(self.model, width, outputs, config.model.arguments(), name), name)


def modules_of(config: TrainConfig) -> list[Path]:
    """Return the folder of own modules that the settings name, if any."""
    return [] if config.modules is None else [Path(config.modules)]


def with_parts(
    config: TrainConfig, *, model: Any = None, encoder: Any = None, loss: Any = None, metric: Any = None
) -> TrainConfig:
    """Return settings with the names of parts that are passed: import paths as they are, objects as ``<Name>``."""
    names = {key: each if isinstance(each, str) else passed_name(each) for key, each in
             {"model": model, "loss": loss, "metric": metric}.items() if each is not None}  # fmt: skip
    update: dict[str, Any] = {}
    if "model" in names:
        update["model"] = config.model.model_copy(update={"name": names.pop("model")})
    if names:
        update["task"] = config.task.model_copy(update=names)
    if isinstance(encoder, str):
        update["encoder"] = config.encoder.model_copy(update={"source": encoder})
    found = config.model_copy(update=update)
    if found.import_paths and found.modules is None:
        found = found.model_copy(update={"modules": str(Path.cwd())})
    return found


def _callable(part: str, name: str | None, found: Any) -> Any:
    """Return a loss or a metric; a class is called without arguments."""
    if found is None:
        if name is not None and not is_import_path(name):
            remedy = f"name a function as my_module:my_{part}"
            raise ConfigError(f"task.{part} is {name!r}, no import path", remedy=remedy)
        return None
    shown = name or passed_name(found)
    if isinstance(found, type):
        try:
            found = found()
        except TypeError as error:
            reason = f"the class of the {part} needs arguments ({error})"
            raise ConfigError(reason, slide=shown, remedy="pass an object of it, or a function") from error
    if not callable(found):
        raise ConfigError(f"the {part} is of type {type(found).__name__}", slide=shown, remedy="pass a function")
    return found


def _missing(part: str, name: str) -> ConfigError:
    reason = f"the {part} {name} was passed in Python, and settings cannot name it"
    return ConfigError(reason, remedy=f"pass it again as {part}, or use an import path: my_module:{name.strip('<>')}")


def trains_something(model: nn.Module, encoder: nn.Module | None, *, trainable: bool) -> None:
    """Raise ConfigError if neither model nor encoder have parameters to train."""
    parts = [model, *([encoder] if encoder is not None and trainable else [])]
    if not any(value.requires_grad for part in parts for value in part.parameters()):
        raise ConfigError("the model has no parameters to train", remedy="use one with parameters, or train an encoder")
