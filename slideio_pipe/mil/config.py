"""Settings of a training: one YAML file, which includes the loader's settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from slideio_pipe.config import Record, checked, load_record
from slideio_pipe.streaming.config import LoaderConfig

Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]


class TaskConfig(Record):
    """What is predicted, and the cohort's columns for it."""

    kind: Literal["classification", "regression", "survival"] = "classification"
    label: str = "label"  # column of the classes or numbers
    classes: tuple[str, ...] | None = None  # their order; None: those of the training slides, sorted
    balanced: bool = True  # slides of rare classes get larger weights
    time: str = "time"  # survival: column of the time to the event or to censoring
    event: str = "event"  # survival: column that is 1 if the event happened, else 0


class ModelConfig(Record):
    """The model from features to the prediction."""

    name: str = "gated"  # gated, attention, mean, max, or torchmil:NAME
    embed: tuple[Annotated[int, Field(ge=1)], ...] = (256,)
    attention: int = Field(default=128, ge=1)
    dropout: Share = 0.25
    standardize: bool = True  # scale features to mean 0, deviation 1 over the training tiles; not with an encoder
    settings: dict[str, Any] = Field(default_factory=dict)  # arguments of a torchmil model

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of ``build_model`` except the name and the sizes."""
        if self.name.startswith("torchmil:"):
            return dict(self.settings)
        return {"embed": self.embed, "attention": self.attention, "dropout": self.dropout}


class EncoderConfig(Record):
    """The encoder from tiles to features, or the features to read."""

    source: str | None = None  # "small", timm:NAME, hf:NAME or a path: trained end to end. None: read features
    folder: str | None = None  # folder of features, relative to the YAML file; None: the cohort lists their files
    features: str | None = None  # encoder of the features, if a store has several
    trainable: bool = True
    lr: Rate | None = None  # None: that of ``fit``
    chunk_size: int = Field(default=64, ge=1)  # tiles encoded at a time
    keep_gb: float | None = Field(default=None, ge=0)  # memory of tiles kept for the second pass; None: automatic
    # Processes that read tiles in place of threads, and as many for the validation; 0: threads.
    workers: int = Field(default=0, ge=0)

    @model_serializer(mode="wrap")
    def _drop_unset(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a newer setting that is not given, so that settings equal those of older runs."""
        values: dict[str, Any] = dump(self)
        if not self.workers:
            values.pop("workers", None)
        return values


class FitConfig(Record):
    """Settings of the optimisation."""

    epochs: int = Field(default=50, ge=1)
    lr: Rate = 1e-4
    weight_decay: float = Field(default=1e-2, ge=0)
    warmup: Share = 0.05  # fraction of all steps in which the learning rate rises
    schedule: Literal["cosine", "constant"] = "cosine"  # afterwards
    bags_per_step: int = Field(default=1, ge=1)
    clip: Rate | None = 1.0  # norm of the gradient
    patience: int | None = Field(default=10, ge=1)  # epochs without a better validation; None: all epochs
    monitor: Literal["loss", "metric", "none"] = "metric"  # metric: AUROC, R² or C-index; none: the last epoch is kept
    validation: Share = 0.2  # fraction of the training slides, if the cohort has no split "val"
    folds: int | None = Field(default=None, ge=2)  # cross-validation; None: use the column "split"
    precision: str = "32-true"  # see Lightning Fabric
    devices: int = Field(default=1, ge=1)
    accelerator: str = "auto"
    save_every: int | None = Field(default=None, ge=1)  # steps between checkpoints within an epoch
    max_failures: int = Field(default=0, ge=0)  # slides that may fail per epoch
    bootstrap: int = Field(default=1000, ge=0)  # resamplings of a confidence interval


class TrainConfig(LoaderConfig):
    """Settings of a training with ``slideio-pipe train`` and ``fit``."""

    cohort: str | None = None  # relative to the YAML file; used if no cohort is passed
    task: TaskConfig = TaskConfig()
    model: ModelConfig = ModelConfig()
    encoder: EncoderConfig = EncoderConfig()
    fit: FitConfig = FitConfig()

    @model_validator(mode="after")
    def _survival_steps(self) -> Self:
        if self.task.kind == "survival" and self.fit.bags_per_step < 2:
            raise ValueError("survival compares slides: fit.bags_per_step should be at least 2")
        return self

    @property
    def loader(self) -> LoaderConfig:
        """The loader's part of the settings."""
        return LoaderConfig(**{name: getattr(self, name) for name in LoaderConfig.model_fields})


def load_train_config(source: TrainConfig | str | Path | Mapping[str, Any] | None) -> TrainConfig:
    """Return the settings of a training from YAML or a dictionary; missing keys have their defaults.

    Raise ConfigError if the file is missing, is not a YAML mapping, or has unknown keys or impossible values.

    Examples
    --------
    >>> load_train_config({"model": {"name": "attention"}}).model.embed
    (256,)
    """
    if isinstance(source, TrainConfig):
        return source
    if source is None or isinstance(source, Mapping):
        return checked(TrainConfig, None, **dict(source or {}))
    return _with_resolved_paths(load_record(TrainConfig, source, "see configs/mil.yaml"), Path(source).parent)


def _with_resolved_paths(config: TrainConfig, folder: Path) -> TrainConfig:
    """Return settings with paths resolved relative to their YAML file."""
    files = {name: getattr(config, name) for name in ("slide_transform", "tile_transform", "cohort")}
    update: dict[str, Any] = {name: str(folder / file) for name, file in files.items() if file is not None}
    if config.encoder.folder is not None:
        update["encoder"] = config.encoder.model_copy(update={"folder": str(folder / config.encoder.folder)})
    return config.model_copy(update=update)


def dump(config: TrainConfig) -> str:
    """Return settings as YAML for ``load_train_config``."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
