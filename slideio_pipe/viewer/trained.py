"""What a training has seen: its slides, transform, seed and resolution, from the folder that it wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slideio_pipe.config import read_yaml
from slideio_pipe.errors import ConfigError
from slideio_pipe.streaming.config import LoaderConfig, load_loader_config

_CHECKPOINTS = ("best.ckpt", "last.ckpt")


@dataclass(frozen=True)
class Training:
    """The settings of a training that pixels depend on."""

    folder: Path
    config: LoaderConfig
    cohort: Path | None

    def transform(self) -> Any:
        """Return the transform that was drawn once per slide and epoch; None if there was none."""
        if self.config.slide_transform is None:
            return None
        from slideio_pipe.augment.compose import load_transform  # imports albumentationsxl, which takes 2 s

        return load_transform(self.config.slide_transform)


def training_of(path: Any) -> Training | None:
    """Return the training whose folder or checkpoint this is; None if it is something else.

    Raises
    ------
    ConfigError
        It is a training that has not finished: its settings are written at the end.
    """
    if not isinstance(path, str | Path):
        return None
    place = Path(path).expanduser()
    checkpoint = place.suffix == ".ckpt" and place.is_file()
    folder = place.parent if checkpoint else place
    if not folder.is_dir() or not (checkpoint or any(_checkpoints(folder))):
        return None
    for candidate in (folder, folder.parent):  # the folder of a fold has its settings above it
        if (candidate / "config.yaml").is_file():
            return _read(candidate)
    remedy = "let the training finish, or pass its slides and its transform: --transform, --seed"
    raise ConfigError("has no config.yaml", slide=str(folder), remedy=remedy)


def _checkpoints(folder: Path) -> list[Path]:
    places = [folder, *sorted(folder.glob("fold-*"))]
    return [place / name for place in places for name in _CHECKPOINTS if (place / name).is_file()]


def _read(folder: Path) -> Training:
    file = folder / "config.yaml"
    written = read_yaml(file, "pass the folder of a training")
    cohort = written.get("cohort") if isinstance(written, Mapping) else None
    return Training(folder, load_loader_config(file), None if cohort is None else folder / str(cohort))


def split_trainings(source: Any) -> tuple[Any, Training | None]:
    """Return what is no training, or the training's own slides if there is nothing else; and the training.

    Raises
    ------
    ConfigError
        There are several trainings, or the slides of one are not known.
    """
    items = source if isinstance(source, list | tuple) else [source]
    found = [(item, training_of(item)) for item in items]
    trainings = [training for _, training in found if training is not None]
    rest = [item for item, training in found if training is None]
    if not trainings:
        return source, None
    training = trainings[0]
    if len(trainings) > 1:
        raise ConfigError("several trainings are given", remedy="give one, and the slides to show")
    if rest:
        return rest if len(rest) > 1 else rest[0], training
    if training.cohort is None:
        remedy = "name the slides to show as well"
        raise ConfigError("the training does not name its slides", slide=str(training.folder), remedy=remedy)
    return training.cohort, training
