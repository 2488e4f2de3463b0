"""Frozen records for every stage, with their defaults; YAML to records and back, unknown keys refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from slideio_pipe.errors import ConfigError

Edge = Literal["drop", "shift", "pad"]
Pixels = Literal["none", "zstd"]
TissueMethod = Literal["otsu", "threshold", "none"]


class Record(BaseModel):
    """A frozen record that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SlideConfig(Record):
    """How slides are opened."""

    slide_mpp: float | None = Field(default=None, gt=0)  # µm per level-0 px, when the file does not say or lies
    backend: Literal["auto", "tiff", "openslide", "array"] = "auto"


class ViewConfig(Record):
    """How a slide is looked at."""

    mpp: float | None = Field(default=0.5, gt=0)  # µm per view px, "20×"; None is level 0 as stored


class TissueConfig(Record):
    """How tissue is found."""

    method: TissueMethod = "otsu"
    mpp: float = Field(default=8.0, gt=0)  # µm per mask px


class GridConfig(Record):
    """How a view is cut into tiles."""

    tile_size: int = Field(default=256, ge=1)  # view px
    stride: int | None = Field(default=None, ge=1)  # view px; tile_size when neither stride nor overlap is given
    overlap: int | None = Field(default=None, ge=0)  # view px; tile_size - stride
    edge: Edge = "drop"
    min_tissue: float = Field(default=0.5, ge=0, le=1)  # fraction of a kept tile

    @model_validator(mode="after")
    def _one_step(self) -> Self:
        if self.stride is not None and self.overlap is not None and self.tile_size - self.overlap != self.stride:
            raise ValueError("stride and overlap contradict each other; give one of them")
        if self.overlap is not None and self.overlap >= self.tile_size:
            raise ValueError("overlap must be smaller than tile_size")
        return self

    @property
    def step(self) -> int:
        """Distance between neighbouring tiles, view px."""
        if self.overlap is not None:
            return self.tile_size - self.overlap
        return self.tile_size if self.stride is None else self.stride


class StoreConfig(Record):
    """How a bag is written."""

    pixels: Pixels = "zstd"


class ExportConfig(Record):
    """A slide to a bag on disk: what ``slideio-pipe export`` does."""

    slide: SlideConfig = SlideConfig()
    view: ViewConfig = ViewConfig()
    tissue: TissueConfig = TissueConfig()
    grid: GridConfig = GridConfig()
    store: StoreConfig = StoreConfig()


R = TypeVar("R", bound=Record)


def checked(record: type[R], where: str | None, /, **values: Any) -> R:
    """Return a validated record.

    Raises
    ------
    ConfigError
        Naming every value that makes no sense.

    Examples
    --------
    >>> checked(GridConfig, None, tile_size=256, overlap=64).step
    192
    >>> checked(GridConfig, "a.svs", stride=0)
    Traceback (most recent call last):
    ...
    slideio_pipe.errors.ConfigError: a.svs: stride=0: input should be greater than or equal to 1; see GridConfig
    """
    try:
        return record.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_in_words(error), slide=where, remedy=f"see {record.__name__}") from None


def load_config(path: str | Path) -> ExportConfig:
    """Read an export configuration from YAML; keys left out have their defaults.

    Raises
    ------
    ConfigError
        The file is missing, is no YAML mapping, or has unknown keys or impossible values.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", slide=str(path), remedy="check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"is no YAML ({reason})", slide=str(path), remedy="see configs/export.yaml") from error
    if not isinstance(values, Mapping | None):
        raise ConfigError("is no mapping", slide=str(path), remedy="see configs/export.yaml")
    return checked(ExportConfig, str(path), **dict(values or {}))


def _in_words(error: ValidationError) -> str:
    parts = []
    for problem in error.errors(include_url=False):
        place = ".".join(str(step) for step in problem["loc"])
        reason = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            parts.append(f'unknown key "{place}"')
        else:
            given = f"{place}={problem['input']!r}: " if place else ""
            parts.append(f"{given}{reason[0].lower()}{reason[1:]}")
    return "; ".join(parts)
