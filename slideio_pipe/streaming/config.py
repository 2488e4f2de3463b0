"""Settings of data sets: slides to the bags that are trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from slideio_pipe.config import Record, checked, load_record
from slideio_pipe.slides.config import SlideConfig, ViewConfig
from slideio_pipe.slides.frames import Frame
from slideio_pipe.tiles.config import GridConfig, TissueConfig


class LoaderConfig(Record):
    """Slides to the bags that are trained on: what ``BagDataset`` does with each slide of a cohort."""

    slide: SlideConfig = SlideConfig()
    view: ViewConfig = ViewConfig()
    tissue: TissueConfig = TissueConfig()
    grid: GridConfig = GridConfig()
    # Where (0, 0) of the cohort's masks is; null: where QuPath has it, or for pictures what their shape says.
    mask_frame: Frame | None = None
    slide_transform: str | None = None  # a YAML file of a transform, drawn once per slide and epoch
    tile_transform: str | None = None  # likewise, drawn once per tile and epoch
    max_tiles: int | None = Field(default=None, ge=1)  # of a bag and epoch, drawn anew each time; null: all
    seed: int = Field(default=0, ge=0)  # of every draw: transforms, tiles, order

    @model_serializer(mode="wrap")
    def _without_default_of_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the frame of masks where none is given: older runs have the same settings then."""
        values: dict[str, Any] = dump(self)
        if self.mask_frame is None:
            values.pop("mask_frame", None)
        return values


# What else a training's file holds, for mil.settings: a loader takes the same file and passes over it.
TRAINING_SECTIONS = ("cohort", "task", "model", "encoder", "fit")


def load_loader_config(source: str | Path | Mapping[str, Any] | None) -> LoaderConfig:
    """Return a loader's configuration from YAML or a dictionary; keys left out have their defaults.

    Transforms are files beside the YAML file. What the file says of training is passed over.

    Raises
    ------
    ConfigError
        The file is missing, is no YAML mapping, or has unknown keys or impossible values.
    """
    if source is None or isinstance(source, Mapping):
        return checked(LoaderConfig, None, **dict(source or {}))
    config = load_record(LoaderConfig, source, "see configs/mil.yaml", TRAINING_SECTIONS)
    files = {"slide_transform": config.slide_transform, "tile_transform": config.tile_transform}
    folder = Path(source).parent
    return config.model_copy(update={key: str(folder / file) for key, file in files.items() if file is not None})
