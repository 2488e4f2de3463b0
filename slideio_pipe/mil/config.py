"""Settings of a training: one YAML file, which includes the loader's settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from slideio_pipe.config import Record, checked, load_record
from slideio_pipe.parts.import_path import is_import_path
from slideio_pipe.presets import settings_file, transform_named_in
from slideio_pipe.streaming.config import EXAMPLE, LoaderConfig


def passed_name(given: Any) -> str:
    """Return the name in the settings for an object that was passed in Python, which no setting can express.

    >>> passed_name(dict), passed_name(3)
    ('<dict>', '<int>')
    """
    return f"<{getattr(given, '__name__', type(given).__name__).strip('<>')}>"


def is_passed(name: str | None) -> bool:
    """Return whether a name in the settings stands for an object that was passed in Python."""
    return name is not None and name.startswith("<")


Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]


class TaskConfig(Record):
    """What is predicted, and the cohort's columns for it."""

    kind: Literal["classification", "regression", "survival"] = Field(
        default="classification", description="What is predicted: a class, a number, or the time to an event."
    )
    label: str = Field(default="label", description="Column of the classes, or of the numbers.")
    classes: tuple[str, ...] | None = Field(
        default=None,
        description="Classes in their order, such as [low, high]; any other label is an error. null: those of the "
        "training slides, sorted.",
    )
    balanced: bool = Field(default=True, description="Slides of rare classes get larger weights.")
    time: str = Field(
        default="time", description="Survival: column of the time to the event, or to the last follow-up, in any unit."
    )
    event: str = Field(default="event", description="Survival: column that is 1 where the event happened, else 0.")
    loss: str | None = Field(
        default=None, description="A loss of your own, as my_module:my_loss. null: that of the kind."
    )
    metric: str | None = Field(
        default=None,
        description="A metric of your own, as my_module:my_metric, which fit.monitor: metric then uses. null: none.",
    )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the cohort with what is predicted."""
        return (self.time, self.event) if self.kind == "survival" else (self.label,)

    @model_serializer(mode="wrap")
    def _drop_unset(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out newer settings that are not given, so that settings equal those of older runs."""
        values: dict[str, Any] = dump(self)
        return {key: value for key, value in values.items() if value is not None or key not in ("loss", "metric")}


class ModelConfig(Record):
    """The model from features to the prediction."""

    name: str = Field(
        default="gated",
        description="The model: gated or attention (Ilse et al. 2018), mean, max, torchmil:NAME, such as "
        "torchmil:TransMIL, or one of your own, as my_module:MyAggregator.",
    )
    embed: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(256,), description="Widths of the layers before the attention. []: none."
    )
    attention: int = Field(default=128, ge=1, description="Width of the attention.")
    dropout: Share = Field(default=0.25, description="Fraction of values that is set to 0 after each layer of embed.")
    standardize: bool = Field(
        default=True,
        description="Scale features to mean 0, deviation 1 over the training tiles; not with encoder.source.",
    )
    settings: dict[str, Any] = Field(
        default_factory=dict,
        description="Arguments of a model of torchmil or of your own, in place of embed, attention and dropout.",
    )

    @model_validator(mode="before")
    @classmethod
    def _of_name(cls, values: Any) -> Any:
        """Accept the name alone: ``model: my_module:MyAggregator``."""
        return {"name": values} if isinstance(values, str) else values

    @property
    def is_own(self) -> bool:
        """Whether it is a model of the caller: by import path, or passed in Python."""
        return is_passed(self.name) or (is_import_path(self.name) and not self.name.startswith("torchmil:"))

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of ``build_model`` except the name and the sizes."""
        if self.name.startswith("torchmil:") or self.is_own:
            return dict(self.settings)
        return {"embed": self.embed, "attention": self.attention, "dropout": self.dropout}


class EncoderConfig(Record):
    """The encoder from tiles to features, or the features to read."""

    source: str | None = Field(
        default=None,
        description="Encoder that is trained end to end from tiles: small, a name such as uni (slideio-pipe encoders), "
        "timm:NAME, hf:NAME, a file, or one of your own, as my_module:make_encoder. null: "
        "features are read.",
    )
    folder: str | None = Field(
        default=None,
        description="Folder of features, relative to this file (--features). null: the cohort lists their files.",
    )
    features: str | None = Field(
        default=None, description="Name of the encoder, if a store has features of several. null: the only one."
    )
    trust_remote_code: bool = Field(
        default=False,
        description="Run the code that the repository of an encoder by name contains, if its network is code there.",
    )
    trainable: bool = Field(default=True, description="Train the encoder too. false: only the model behind it.")
    lr: Rate | None = Field(default=None, description="Learning rate of the encoder. null: fit.lr.")
    chunk_size: int = Field(
        default=64, ge=1, description="Tiles encoded at a time: limits memory, does not change the gradient."
    )
    keep_gb: float | None = Field(
        default=None,
        ge=0,
        description="Memory for tiles kept for the second pass, GB. null: 0.5 on the CPU, half of the free memory on "
        "CUDA.",
    )
    workers: int = Field(
        default=0,
        ge=0,
        description="Worker processes that read tiles in place of threads, and as many for the validation: for many "
        "cores (slideio-pipe profile --scan). 0: threads.",
    )

    @model_serializer(mode="wrap")
    def _drop_unset(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out newer settings that are not given, so that settings equal those of older runs."""
        values: dict[str, Any] = dump(self)
        for name in ("workers", "trust_remote_code"):
            if not getattr(self, name):
                values.pop(name, None)
        return values


class FitConfig(Record):
    """Settings of the optimisation."""

    epochs: int = Field(default=50, ge=1, description="Maximum number of epochs; see patience.")
    lr: Rate = Field(default=1e-4, description="Learning rate of AdamW.")
    weight_decay: float = Field(default=1e-2, ge=0, description="Weight decay of AdamW.")
    warmup: Share = Field(default=0.05, description="Fraction of all steps in which the learning rate rises.")
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="Learning rate after the warm-up: falling as a cosine to 0, or constant."
    )
    bags_per_step: int = Field(
        default=1, ge=1, description="Slides whose gradients are averaged in a step. Survival needs at least 2."
    )
    clip: Rate | None = Field(default=1.0, description="Maximum norm of the gradient. null: no limit.")
    patience: int | None = Field(
        default=10,
        ge=1,
        description="Epochs without improvement of the validation until the training ends. null: all epochs.",
    )
    monitor: Literal["loss", "metric", "none"] = Field(
        default="metric",
        description="Value of the validation that chooses the epoch: metric (AUROC, R² or C-index) or loss. none: the "
        "last epoch is kept.",
    )
    validation: Share = Field(
        default=0.2,
        description='Fraction of the training patients for validation, if the cohort has no split "val".',
    )
    folds: int | None = Field(
        default=None, ge=2, description='Folds of a cross-validation. null: by the column "split".'
    )
    precision: str = Field(
        default="32-true",
        description="Precision of the computation, as in Lightning Fabric: 32-true, bf16-mixed, 16-mixed, 64-true.",
    )
    devices: int = Field(default=1, ge=1, description="Processes, each with a device and its share of the slides.")
    accelerator: str = Field(default="auto", description="Kind of device: auto, cpu or cuda. auto: cuda if available.")
    save_every: int | None = Field(
        default=None,
        ge=1,
        description="Steps between checkpoints within an epoch. null: one checkpoint after each epoch.",
    )
    max_failures: int = Field(default=0, ge=0, description="Slides of an epoch that may fail to be read.")
    bootstrap: int = Field(
        default=1000, ge=0, description="Resamplings of patients for a confidence interval of 95 %. 0: no intervals."
    )


class TrainConfig(LoaderConfig):
    """Settings of a training with ``slideio-pipe train`` and ``fit``.

    Examples
    --------
    >>> config = TrainConfig(fit={"epochs": 20, "folds": 5})
    >>> config.fit.folds, config.model.name
    (5, 'gated')
    """

    cohort: str | None = Field(
        default=None,
        description="CSV or Parquet file of the cohort, relative to this file. null: it is passed (--cohort).",
    )
    task: TaskConfig = Field(default=TaskConfig(), description="What is predicted, and the cohort's columns for it.")
    model: ModelConfig = Field(default=ModelConfig(), description="The model from features to the prediction.")
    encoder: EncoderConfig = Field(
        default=EncoderConfig(), description="The encoder from tiles to features, or the features to read."
    )
    fit: FitConfig = Field(default=FitConfig(), description="The optimisation, its validation and its devices.")
    modules: str | None = Field(
        default=None,
        description="Folder of your own modules, such as my_module.py for my_module:MyAggregator, relative to this "
        "file. null: the folder of this file, then the current one.",
    )

    @model_serializer(mode="wrap")
    def _drop_unset(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = LoaderConfig._drop_unset(self, dump)
        return {key: value for key, value in values.items() if key != "modules" or value is not None}

    @property
    def import_paths(self) -> dict[str, str]:
        """The import paths of the caller's own parts, by setting."""
        named = {"model.name": self.model.name, "encoder.source": self.encoder.source}
        named |= {"task.loss": self.task.loss, "task.metric": self.task.metric}
        apart = ("torchmil:", "timm:", "hf:")
        return {
            key: name for key, name in named.items() if name and is_import_path(name) and not name.startswith(apart)
        }

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
    """Return the settings of a training from YAML, a preset by name or a dictionary; missing keys have their defaults.

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
    file = settings_file(source, "train", "export")
    return _with_resolved_paths(load_record(TrainConfig, file, EXAMPLE), file.parent)


def _with_resolved_paths(config: TrainConfig, folder: Path) -> TrainConfig:
    """Return settings with paths resolved relative to their YAML file."""
    files = {name: getattr(config, name) for name in ("slide_transform", "tile_transform")}
    update: dict[str, Any] = {
        name: transform_named_in(folder, file) for name, file in files.items() if file is not None
    }
    update |= config.tissue.beside(folder)
    if config.cohort is not None:
        update["cohort"] = str(folder / config.cohort)
    if config.import_paths or config.modules is not None:
        update["modules"] = str((folder / (config.modules or "")).absolute())
    if config.encoder.folder is not None:
        update["encoder"] = config.encoder.model_copy(update={"folder": str(folder / config.encoder.folder)})
    return config.model_copy(update=update)


def dump(config: TrainConfig) -> str:
    """Return settings as YAML for ``load_train_config``."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
