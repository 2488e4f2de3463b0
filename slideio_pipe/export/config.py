"""Settings of an export: slide, view, tissue, grid and store in one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from slideio_pipe.config import Record, load_record, validated
from slideio_pipe.errors import ConfigError
from slideio_pipe.parts.import_path import importable, is_import_path
from slideio_pipe.presets import settings_file
from slideio_pipe.slides.config import SlideConfig, ViewConfig
from slideio_pipe.store.config import StoreConfig
from slideio_pipe.tiles.config import GridConfig, QualityConfig, TissueConfig

EXAMPLE = "see slideio-pipe config show export"  # remedy of errors: every key


class ExportConfig(Record):
    """Settings of ``slideio-pipe export``: from a slide to a bag on disk."""

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
    store: StoreConfig = Field(default=StoreConfig(), description="How pixels are stored.")

    @model_serializer(mode="wrap")
    def _drop_unset(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out newer settings that are not given, so that settings equal those of older runs."""
        values: dict[str, Any] = dump(self)
        if self.unit == "slide":
            values.pop("unit", None)
        if self.quality == QualityConfig():
            values.pop("quality", None)
        return values


def load_config(path: str | Path) -> ExportConfig:
    """Read an export configuration from YAML or a preset by name; missing keys have their defaults.

    Modules of a user's own parts may be beside the file. Raise ConfigError if the file is missing, is not a YAML
    mapping, or has unknown keys or impossible values.
    """
    file = settings_file(path, "export")
    config = load_record(ExportConfig, file, EXAMPLE)
    if is_import_path(config.tissue.method):
        importable(file.parent)
    return config.model_copy(update=config.tissue.beside(file.parent))


def export_config(source: ExportConfig | str | Path | Mapping[str, Any] | None) -> ExportConfig:
    """Return an export configuration from a record, a YAML file, the name of a preset, a dictionary,
    or None for the defaults.

    Raise ConfigError if it is none of these, the file is missing or not a YAML mapping, or keys are unknown or values
    impossible.
    """
    if isinstance(source, ExportConfig):
        return source
    if source is None or isinstance(source, Mapping):
        return validated(ExportConfig, None, dict(source or {}), EXAMPLE)
    if isinstance(source, str | Path):
        return load_config(source)
    remedy = "pass an ExportConfig, the path of a YAML file, the name of a preset, or a dictionary"
    raise ConfigError(f"a configuration is no {type(source).__name__}", remedy=remedy)
