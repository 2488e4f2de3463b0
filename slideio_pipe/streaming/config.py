"""Settings of a data set: from slides to the bags of a training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from slideio_pipe.config import Record, checked, load_record
from slideio_pipe.parts.import_path import importable, is_import_path
from slideio_pipe.presets import settings_file, transform_named_in
from slideio_pipe.slides.config import SlideConfig, ViewConfig
from slideio_pipe.slides.frames import Frame
from slideio_pipe.store.config import StoredConfig
from slideio_pipe.tiles.config import GridConfig, QualityConfig, TissueConfig


class LoaderConfig(Record):
    """Settings of ``BagDataset``: from slides to the bags of a training.

    Examples
    --------
    >>> config = LoaderConfig(view={"mpp": 1.0}, max_tiles=2000)
    >>> config.view.mpp, config.grid.tile_size
    (1.0, 256)
    """

    unit: Literal["slide", "patient"] = Field(
        default="slide",
        description="What a bag is: slide, or patient: all slides of a patient, with one label for all of them.",
    )
    slide: SlideConfig = Field(default=SlideConfig(), description="How slides are opened.")
    view: ViewConfig = Field(default=ViewConfig(), description="The resolution at which tiles are read.")
    tissue: TissueConfig = Field(default=TissueConfig(), description="How tissue is found.")
    grid: GridConfig = Field(default=GridConfig(), description="Size and places of the tiles.")
    quality: QualityConfig = Field(
        default=QualityConfig(), description="The quality of tiles: what is measured, and which are dropped for it."
    )
    mask_frame: Frame | None = Field(
        default=None,
        description="Origin of the cohort's masks: qupath (corner of the scanned area) or level0 (corner of level 0). "
        "null: qupath; for pictures, from their shape.",
    )
    slide_transform: str | None = Field(
        default=None,
        description="A transform, drawn once per slide and epoch: a YAML file relative to this one, or a preset such "
        "as stain-light. For bag stores (.bag.zarr) only colours. null: none.",
    )
    tile_transform: str | None = Field(
        default=None,
        description="A transform, drawn once per tile and epoch: a YAML file relative to this one, or a preset. "
        "null: none.",
    )
    stored: StoredConfig = Field(
        default=StoredConfig(), description="How tiles of bag stores (.bag.zarr) are augmented."
    )
    max_tiles: int | None = Field(
        default=None, ge=1, description="Maximum number of tiles per bag, drawn again for each epoch. null: all."
    )
    seed: int = Field(default=0, ge=0, description="Random seed of transforms, tiles and order.")

    @model_serializer(mode="wrap")
    def _drop_unset(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out newer settings that are not given, so that settings equal those of older runs."""
        values: dict[str, Any] = dump(self)
        if self.mask_frame is None:
            values.pop("mask_frame", None)
        if self.quality == QualityConfig():
            values.pop("quality", None)
        if self.stored == StoredConfig():
            values.pop("stored", None)
        if self.unit == "slide":
            values.pop("unit", None)
        return values


EXAMPLE = "see slideio-pipe config show mil"  # remedy of errors: every key
# Other sections of a training's file, read by mil.settings: a loader accepts the file and ignores them.
TRAINING_SECTIONS = ("cohort", "task", "model", "encoder", "fit", "modules")


def load_loader_config(source: str | Path | Mapping[str, Any] | None) -> LoaderConfig:
    """Return a loader's configuration from YAML, a preset by name or a dictionary; missing keys have their defaults.

    Paths of transforms are relative to the YAML file. Sections of the training are ignored. Raise ConfigError if the
    file is missing, is not a YAML mapping, or has unknown keys or impossible values.
    """
    if source is None or isinstance(source, Mapping):
        return checked(LoaderConfig, None, **dict(source or {}))
    file = settings_file(source, "train", "export")
    config = load_record(LoaderConfig, file, EXAMPLE, TRAINING_SECTIONS)
    files = {"slide_transform": config.slide_transform, "tile_transform": config.tile_transform}
    if is_import_path(config.tissue.method):
        importable(file.parent)
    named = {key: transform_named_in(file.parent, value) for key, value in files.items() if value is not None}
    return config.model_copy(update=named | config.tissue.beside(file.parent))
