"""Settings of the tissue mask and of the tile grid."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from slideio_pipe.config import Record
from slideio_pipe.slides.config import Resolution

Edge = Literal["drop", "shift", "pad"]
TissueMethod = Literal["otsu", "threshold", "none"]
Area = Annotated[float, Field(ge=0, allow_inf_nan=False)]  # µm²


class TissueConfig(Record):
    """Settings of ``find_tissue``, with its defaults."""

    method: TissueMethod = "otsu"
    mpp: Resolution = 8.0  # µm per mask px
    min_area_um2: Area = 128.0**2  # smaller regions are dropped; one tile of 256 px at 0.5 µm
    max_hole_um2: Area = 128.0**2  # enclosed holes up to this are filled
    ignore_pen: bool = True  # leave out red, green, blue and black ink
    threshold: Area | None = None  # replaces the method's own; its unit depends on the method


class GridConfig(Record):
    """Settings of the tile grid over a view."""

    tile_size: int = Field(default=256, ge=1)  # view px
    stride: int | None = Field(default=None, ge=1)  # view px; tile_size when neither stride nor overlap is given
    overlap: int | None = Field(default=None, ge=0)  # view px; tile_size - stride
    edge: Edge = "drop"
    min_tissue: float = Field(default=0.5, ge=0, le=1)  # fraction of a kept tile
    align: bool = False  # align to the stored tiles: the sizes above are snapped to them

    @model_validator(mode="after")
    def _check_step(self) -> Self:
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
