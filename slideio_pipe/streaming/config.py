"""Settings of a data set: from slides to the bags of a training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from slideio_pipe.config import Record, checked, load_record
from slideio_pipe.slides.config import SlideConfig, ViewConfig
from slideio_pipe.slides.frames import Frame
from slideio_pipe.store.config import StoredConfig
from slideio_pipe.tiles.config import GridConfig, TissueConfig


class LoaderConfig(Record):
    """Settings of ``BagDataset``: from slides to the bags of a training."""

    slide: SlideConfig = SlideConfig()
    view: ViewConfig = ViewConfig()
    tissue: TissueConfig = TissueConfig()
    grid: GridConfig = GridConfig()
    # Frame of the cohort's masks; null: QuPath's for GeoJSON, and from the shape for pictures.
    mask_frame: Frame | None = None
    slide_transform: str | None = None  # a YAML file of a transform, drawn once per slide and epoch
    tile_transform: str | None = None  # likewise, drawn once per tile and epoch
    stored: StoredConfig = StoredConfig()  # how tiles of bag stores are augmented
    max_tiles: int | None = Field(default=None, ge=1)  # per bag, drawn again in every epoch; null: all
    seed: int = Field(default=0, ge=0)  # of every draw: transforms, tiles, order

    @model_serializer(mode="wrap")
    def _drop_unset(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out newer settings that are not given, so that settings equal those of older runs."""
        values: dict[str, Any] = dump(self)
        if self.mask_frame is None:
            values.pop("mask_frame", None)
        if self.stored == StoredConfig():
            values.pop("stored", None)
        return values


# Other sections of a training's file, read by mil.settings: a loader accepts the file and ignores them.
TRAINING_SECTIONS = ("cohort", "task", "model", "encoder", "fit")


def load_loader_config(source: str | Path | Mapping[str, Any] | None) -> LoaderConfig:
    """Return a loader's configuration from YAML or a dictionary; missing keys have their defaults.

    Paths of transforms are relative to the YAML file. Sections of the training are ignored. Raise ConfigError if the
    file is missing, is not a YAML mapping, or has unknown keys or impossible values.
    """
    if source is None or isinstance(source, Mapping):
        return checked(LoaderConfig, None, **dict(source or {}))
    config = load_record(LoaderConfig, source, "see configs/mil.yaml", TRAINING_SECTIONS)
    files = {"slide_transform": config.slide_transform, "tile_transform": config.tile_transform}
    folder = Path(source).parent
    return config.model_copy(update={key: str(folder / file) for key, file in files.items() if file is not None})
