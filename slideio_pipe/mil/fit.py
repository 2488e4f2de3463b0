"""Train models on a cohort and measure their predictions, as ``slideio-pipe train`` does."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.patients import by_patient
from slideio_pipe.errors import ConfigError, require
from slideio_pipe.features.encoders import Encoder
from slideio_pipe.features.encoders.encoder_tiles import warn_scale, with_tiles_of
from slideio_pipe.features.encoders.known import known_source
from slideio_pipe.features.scales import in_words
from slideio_pipe.files import disk_errors
from slideio_pipe.locks import WriterLock
from slideio_pipe.mil.checkpoint import Checkpoints, about
from slideio_pipe.mil.checks import check_divisions, made_fabric, try_model
from slideio_pipe.mil.config import TrainConfig, load_train_config
from slideio_pipe.mil.divisions import Division, divide
from slideio_pipe.mil.feature_files import feature_cohort, holds_features
from slideio_pipe.mil.fingerprints import contents, slide_entries
from slideio_pipe.mil.models.own_model import OwnModel, weights_text
from slideio_pipe.mil.models.tile_encoder import TileEncoder, tile_encoder
from slideio_pipe.mil.objective import OwnLoss, OwnMetric
from slideio_pipe.mil.own_parts import OwnParts, modules_of, trains_something, with_parts
from slideio_pipe.mil.results import Fitted, Predicted, fitted_of, write_config, write_history, write_outcome
from slideio_pipe.mil.run_folder import refuse_other_divisions, remove_other_divisions, remove_training
from slideio_pipe.mil.sources import FeatureSource, PixelSource, Source
from slideio_pipe.mil.tasks import Classification, Regression, Survival, Task
from slideio_pipe.mil.training import Training
from slideio_pipe.progress import Report, narrated
from slideio_pipe.streaming.normalize import Normalize

_LOG = logging.getLogger(__name__)

# Settings that may differ between a training and its continuation.
_CHANGEABLE: Any = {"cohort": True, "modules": True, "encoder": {"folder"}, "fit": {"save_every"}}


def fit(
    cohort: Any,
    config: TrainConfig | str | Path | Mapping[str, Any] | None = None,
    out: str | Path = "run",
    *,
    model: nn.Module | Callable[..., nn.Module] | str | None = None,
    encoder: nn.Module | Encoder | str | None = None,
    loss: OwnLoss | str | None = None,
    metric: OwnMetric | str | None = None,
    normalize: Normalize | None = None,
    overwrite: bool = False,
    progress: Report | bool | None = None,
) -> Fitted:
    """Train on a cohort; call it again after an interruption to continue from the last checkpoint.

    Writes into ``out``: ``best.ckpt`` and ``last.ckpt``, ``history.csv``, TensorBoard's events (with folds, these are
    in ``fold-0``, …), ``predictions.csv``, ``metrics.json`` and ``plots/`` of the validation and test slides, and
    ``config.yaml``.

    Parameters
    ----------
    cohort : path, list or Cohort
        With labels. Its slides are files of features, or, if an encoder is trained, slides or bag stores.
    config : TrainConfig, path, name of a preset or dict, optional
        Such as ``"mil"``; ``slideio-pipe config list`` shows the presets. Tiles for an encoder by name
        (``encoder.source: uni``) have the size and the mpp that it is meant for, where the settings have none.
    out : str or Path
        The folder of the run.
    model : nn.Module, callable or str, optional
        The aggregator; replaces ``config.model.name``. A module, of which every fold trains a copy; or its class or a
        function, which is called with the features per tile and the number of logits for every fold; or a name or an
        import path, ``"my_module:MyAggregator"``. See ``Aggregator``.
    encoder : nn.Module, Encoder or str, optional
        Network from normalised tiles (n, 3, H, W) to features (n, D), of which a copy is trained; or what
        ``load_encoder`` returns, with its own normalisation; or what ``config.encoder.source`` names, such as
        ``"my_module:make_encoder"``.
    loss : callable or str, optional
        Replaces the loss of the task: from logits and targets of a step to a scalar. See ``OwnLoss``.
    metric : callable or str, optional
        The leading metric, beside those of the task: from predictions and targets to a number. See ``OwnMetric``.
    normalize : Normalize, optional
        Normalisation for ``encoder``; by default ImageNet's statistics.
    overwrite : bool
        Start anew if the folder contains another training.
    progress : callable, bool or None
        See ``progress.narrated``; counts epochs. True also prints loss and metric of each epoch to a log.

    Raises
    ------
    ConfigError
        The cohort, features or settings have errors, or own parts do not fit, raised before the first epoch; or the
        folder contains a training with other settings.
    OutputError
        Another training writes into the folder, or it cannot be written.
    MissingExtraError
        ``pip install "slideio-pipe[train]"``.
    """
    settings, folder = load_train_config(config), Path(out).expanduser().absolute()
    given = settings.cohort if cohort is None else cohort
    if given is None:
        raise ConfigError("no cohort", remedy="pass one, or name it in the configuration")
    settings = with_parts(settings, model=model, encoder=encoder, loss=loss, metric=metric)
    parts = OwnParts.of(settings, model=model, loss=loss, metric=metric)
    network = None if isinstance(encoder, str) else encoder
    settings = _with_absolute_paths(_with_encoder_tiles(settings, network), given)
    where = settings.encoder.folder
    slides = Cohort.of(given) if where is None else feature_cohort(given, where)
    of_features = network is None and settings.encoder.source is None
    if of_features:
        _refuse_slides(slides)
    if settings.unit == "patient":
        slides = by_patient(slides, settings.task.columns)
    divisions = list(divide(slides, settings.fit, settings.seed, settings.task))
    tasks = [task_for(division.train, settings) for division in divisions]
    check_divisions(divisions, tasks, settings)
    for division, task in zip(divisions, tasks, strict=True):
        parts.objective(task).check(task.targets(list(division.train)), settings.fit.bags_per_step)
    fabric = made_fabric(settings.fit)
    if of_features:
        try_model(divisions[0].train, tasks[0].outputs, settings, parts)
    fabric.launch()
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = WriterLock(folder / "train.lock")
    if fabric.is_global_zero:
        lock.acquire()
    try:
        with torch.random.fork_rng():
            run = _Run(fabric, settings, folder, network, normalize, overwrite, parts)
            run.prepare([division.name for division in divisions])
            runs = [run.division(d, t, progress) for d, t in zip(divisions, tasks, strict=True)]
        return run.finish(runs)
    finally:
        if fabric.is_global_zero:
            lock.release()


def _with_absolute_paths(config: TrainConfig, cohort: Any) -> TrainConfig:
    """Return settings with absolute paths, valid from any working directory."""
    folder = config.encoder.folder
    encoder = config.encoder if folder is None else config.encoder.model_copy(update={"folder": _absolute(folder)})
    named = _absolute(cohort) if isinstance(cohort, str | Path) else None
    return config.model_copy(update={"encoder": encoder, "cohort": named})


def _with_encoder_tiles(config: TrainConfig, encoder: nn.Module | Encoder | None) -> TrainConfig:
    """Return settings of tiles as the known encoder that is trained needs them, unless they are set."""
    known = known_source(config.encoder.source) if encoder is None else None
    if known is None:
        return config
    found = with_tiles_of(config, [known])
    warn_scale([known], found.grid.tile_size, found.view.mpp)
    return found


def _absolute(path: str | Path) -> str:
    return str(Path(path).expanduser().absolute())


def _refuse_slides(cohort: Cohort) -> None:
    """Refuse slides if features are needed, before each is opened as a file of features."""
    if not any(isinstance(slide.source, Path) and holds_features(slide.source) for slide in cohort):
        remedy = (
            "pass {features=…} with the folder that slideio-pipe features wrote (encoder.folder), or train from "
            "pixels: encoder.source"
        )
        raise ConfigError("the cohort lists slides, and their features are not given", remedy=remedy)


def task_for(train: Cohort, config: TrainConfig) -> Task:
    """Return the task of the training slides; raise ConfigError if their labels are not suitable."""
    task = config.task
    if task.kind == "regression":
        return Regression.of(list(train), column=task.label)
    if task.kind == "survival":
        return Survival.of(list(train), time=task.time, event=task.event)
    return Classification.of(list(train), column=task.label, classes=task.classes, balanced=task.balanced)


@dataclass(slots=True)
class _Run:
    fabric: Any
    config: TrainConfig
    folder: Path
    encoder: nn.Module | Encoder | None
    normalize: Normalize | None
    overwrite: bool
    parts: OwnParts

    def prepare(self, names: Sequence[str]) -> None:
        """Refuse a folder with a training of other divisions, or clear it."""
        if not self.overwrite:
            refuse_other_divisions(self.folder, names)
        elif self.fabric.is_global_zero:
            remove_other_divisions(self.folder, names)
        self.fabric.barrier()

    def division(self, division: Division, task: Task, progress: Report | bool | None) -> Predicted:
        """Train on one division, and predict with its best model."""
        folder = self.folder / division.name
        sizes = {"train": division.train, "validation": division.validation, "test": division.test}
        counts = ", ".join(f"{name} {len(cohort)}" for name, cohort in sizes.items() if cohort is not None)
        _LOG.info("%s: slides: %s; device %s", folder, counts, self.fabric.device)
        tiles = self._tile_encoder()
        train = self._source(division.train, tiles, augment=True)
        others = {"val": division.validation, "test": division.test}
        sources = {name: self._source(c, tiles, augment=False) for name, c in others.items() if c is not None}
        sources_of = {"train": train, **sources}
        width, features = self._width(train, tiles, sources)
        torch.manual_seed(self.config.seed)
        model = self.parts.build(self.config, width, task.outputs)
        trains_something(model, None if tiles is None else tiles.module, trainable=self.config.encoder.trainable)
        if isinstance(train, FeatureSource) and self.config.model.standardize:
            model.standardize(*train.statistics())
        known = about(
            task=task.settings(),
            width=width,
            features=features,
            tiling=train.tiling if isinstance(train, FeatureSource) else None,
            encoder=None if tiles is None else tiles.about(),
            config=self.config.model_dump(mode="json", exclude=_CHANGEABLE),
            slides=[
                slide_entries(cohort, task, sources_of[name].contents() if name in sources_of else ())
                for name, cohort in {"train": division.train, **others}.items()
            ],
            contents={} if tiles is None else contents(self.config),
            processes=int(self.fabric.world_size),
            **self._own(model),
            **_magnifications(train),
        )
        checkpoints = self._checkpoints(folder, known)
        module = None if tiles is None else tiles.module
        shown = progress if self.fabric.is_global_zero else False
        with narrated(shown, division.name or "training") as (report, note):
            training = Training(
                self.fabric, model, module, task, train, sources.get("val"), self.config, checkpoints,
                objective=self.parts.objective(task), on_epoch=self._log(folder), note=note,
            )  # fmt: skip
            ended = training.run(report)
        _LOG.info("%s: %d epochs; epoch %s is kept", folder, len(ended.history), ended.best_epoch)
        checkpoints.load_best(training)
        parts = {name: self._predict(training, source) for name, source in sources.items()}
        for source in (train, *sources.values()):
            source.close()
        if self.fabric.is_global_zero:
            write_history(folder, ended.history)  # a kill may have happened between the last checkpoint and its line
        return Predicted(division, task, checkpoints.best, ended.best_epoch, ended.history, parts)

    def finish(self, runs: Sequence[Predicted]) -> Fitted:
        """Measure the predictions of all divisions, and write them."""
        fitted = fitted_of(self.folder, runs, self.config, self.parts.objective(runs[0].task))
        if self.fabric.is_global_zero:
            write_outcome(fitted, runs, self.config)
        self.fabric.barrier()
        return fitted

    def _tile_encoder(self) -> TileEncoder | None:
        if self.encoder is None and self.config.encoder.source is None:
            return None
        torch.manual_seed(self.config.seed)
        chosen = self.config.encoder
        # Every fold trains a copy: the second would begin with what the first has learnt from its test slides.
        network = deepcopy(self.encoder) if chosen.trainable else self.encoder
        return tile_encoder(
            network,
            chosen.source,
            self.normalize,
            trust_remote_code=chosen.trust_remote_code,
            folders=modules_of(self.config),
        )

    def _own(self, model: nn.Module) -> dict[str, Any]:
        """Return a checkpoint's entries on the caller's own parts."""
        paths = bool(self.config.import_paths)
        known: dict[str, Any] = {"code": dict(self.parts.code), "modules": self.config.modules} if paths else {}
        return known | ({"parameters": weights_text(model)} if isinstance(model, OwnModel) else {})

    def _source(self, cohort: Cohort, tiles: TileEncoder | None, *, augment: bool) -> Source:
        share = {"rank": int(self.fabric.global_rank), "world_size": int(self.fabric.world_size)}
        device = self.fabric.device
        if tiles is not None:
            return PixelSource(cohort, device, self.config, tiles.prepare, augment=augment, **share)
        return FeatureSource(
            cohort,
            device,
            encoder=self.config.encoder.features,
            max_tiles=self.config.max_tiles,
            seed=self.config.seed,
            **share,
        )

    def _width(self, train: Source, tiles: TileEncoder | None, sources: Mapping[str, Source]) -> tuple[int, str | None]:
        """Return the number of features per tile and their encoder's name; all parts of a cohort must agree."""
        if tiles is not None:
            side = self.config.grid.tile_size
            return tiles.width(side, self.fabric.device) * max(1, len(train.mpps)), None
        assert isinstance(train, FeatureSource)
        for name, source in sources.items():
            assert isinstance(source, FeatureSource)
            if source.mpps != train.mpps:
                raise ConfigError(
                    f"features of {name} have {in_words(source.mpps)}, those of training {in_words(train.mpps)}",
                    remedy="compute all features at the same magnifications",
                )
            if (source.width, source.encoder) != (train.width, train.encoder):
                raise ConfigError(
                    f"slides of {name} have {source.width} features of {source.encoder}, "
                    f"those of training {train.width} of {train.encoder}",
                    remedy="compute all features with one encoder",
                )
        return train.width, train.encoder

    def _checkpoints(self, folder: Path, known: dict[str, Any]) -> Checkpoints:
        checkpoints = Checkpoints(folder, known)
        if self.fabric.is_global_zero:
            if self.overwrite and not checkpoints.is_same():
                remove_training(self.folder, folder.name if folder != self.folder else "")
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
        self.fabric.barrier()
        return checkpoints

    def _log(self, folder: Path) -> Callable[[list[dict[str, Any]]], None]:
        """Return a function that writes the history and plots of a running training."""
        events = _Events(folder)

        def log(history: list[dict[str, Any]]) -> None:
            events.add(history[-1])
            write_history(folder, history)
            write_config(self.folder, self.config)

        return log

    def _predict(self, training: Training, source: Source) -> tuple[Cohort, Tensor, Tensor]:
        logits, targets, order = training.predict(source)
        return Cohort.unchecked(source.cohort[k] for k in order), logits, targets


def _magnifications(train: Source) -> dict[str, Any]:
    """Return a checkpoint's entries on magnifications, none for one: so that it equals that of older runs."""
    found: dict[str, Any] = {"context": list(train.mpps)} if train.mpps else {}
    scale = train.scale if isinstance(train, FeatureSource) else None
    return found if scale is None else found | {"scale": scale}


class _Events:
    """TensorBoard's events, one point per epoch."""

    def __init__(self, folder: Path) -> None:
        self._logger: Any = None
        self._folder = folder

    def add(self, row: Mapping[str, Any]) -> None:
        if self._logger is None:
            require("tensorboard", "train")
            loggers = require("lightning_fabric.loggers", "train")
            self._logger = loggers.TensorBoardLogger(
                self._folder, name="tensorboard", version="", purge_step=row["epoch"]
            )
        values = {name: value for name, value in row.items() if name != "epoch" and math.isfinite(value)}
        self._logger.log_metrics(values, step=row["epoch"])
        self._logger.save()
