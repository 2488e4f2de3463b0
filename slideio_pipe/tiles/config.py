"""Settings of the tissue mask and of the tile grid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from slideio_pipe.config import Record
from slideio_pipe.parts.entry_points import part_named, parts_of
from slideio_pipe.parts.import_path import import_path_of, is_import_path
from slideio_pipe.slides.config import Resolution

Edge = Literal["drop", "shift", "pad"]
Focus = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
# The methods of the package; ``own_tissue`` has those of users and of other packages.
METHODS = ("otsu", "threshold", "none")
ONNX = "onnx:"  # and the file of a model
Area = Annotated[float, Field(ge=0, allow_inf_nan=False)]  # µm²


class TissueConfig(Record):
    """Settings of ``find_tissue``, with its defaults."""

    method: str = Field(
        default="otsu",
        description="Method of finding tissue. otsu: optical density and texture; threshold: saturation; none: every "
        "tile is kept; onnx:FILE: a model; or a function of your own, my_module:my_function.",
        json_schema_extra={"anyOf": [{"enum": list(METHODS)}, {"pattern": r"^[\w.]+:.+$"}]},
    )
    mpp: Resolution = Field(default=8.0, description="µm per px of the tissue mask.")
    min_area_um2: Area = Field(
        default=128.0**2,
        description="Smaller pieces of tissue are dropped, µm². The default is the area of a tile of 256 px at 0.5 µm.",
    )
    max_hole_um2: Area = Field(default=128.0**2, description="Enclosed holes up to this area are filled, µm².")
    ignore_pen: bool = Field(
        default=True,
        description="Leave out red, green, blue and black ink. Use false for stains of such colours (trichrome).",
    )
    threshold: Area | None = Field(
        default=None,
        description="Threshold of tissue: optical density (otsu) or saturation, 0 to 1 (threshold). null: found for "
        "each slide.",
    )

    def beside(self, folder: Path) -> dict[str, TissueConfig]:
        """Return the section of a file in ``folder`` with its model's path, if that is relative to it; else nothing."""
        file = folder / self.method.removeprefix(ONNX)
        is_there = self.method.startswith(ONNX) and file.is_file()
        return {"tissue": self.model_copy(update={"method": f"{ONNX}{file}"})} if is_there else {}

    @field_validator("method", mode="before")
    @classmethod
    def _check_method(cls, method: Any) -> Any:
        if callable(method):
            path = import_path_of(method)
            if path is None:
                raise ValueError("a function without an import path; define it with def in a module of your own")
            return path
        known = not isinstance(method, str) or method in METHODS or method.startswith(ONNX) or is_import_path(method)
        if not known and part_named("tissue", method) is None:
            brought = "".join(f", {part.name!r} of {part.package}" for part in parts_of("tissue"))
            expected = f"'otsu', 'threshold' or 'none'{brought}, or my_module:my_function"
            raise PydanticCustomError("literal_error", "should be {expected}", {"expected": expected})
        return method


class GridConfig(Record):
    """Settings of the tile grid over a view."""

    tile_size: int = Field(default=256, ge=1, description="Side of a tile, tile px.")
    stride: int | None = Field(
        default=None, ge=1, description="Distance between neighbouring tiles, tile px. null: tile_size - overlap."
    )
    overlap: int | None = Field(
        default=None, ge=0, description="Overlap of neighbouring tiles, tile px, instead of stride. null: none."
    )
    edge: Edge = Field(
        default="drop",
        description="Tiles across the right and lower edge of the slide: drop, shift (inside the slide) or pad (with "
        "white).",
    )
    min_tissue: float = Field(
        default=0.5, ge=0, le=1, description="Fraction of a tile that must be tissue. 0 keeps every tile."
    )
    align: bool = Field(
        default=False,
        description="Align tiles to those stored in the file, which are read fastest; tile_size, stride and edge are "
        "changed to fit.",
    )

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


class QualityConfig(Record):
    """Settings of the quality of tiles: which numbers are measured, and the tiles that are dropped for them."""

    measure: bool = Field(
        default=False,
        description="Measure focus, pen, fold, bubble and white of every tile, and store them. false: what a limit "
        "needs.",
    )
    min_focus: Focus | None = Field(
        default=None,
        description="Drop tiles out of focus: variance of the Laplacian at 1 µm per px below this. null: keep them.",
    )
    max_pen: Fraction | None = Field(
        default=None, description="Drop tiles with more ink than this fraction of a tile. null: keep them."
    )
    max_fold: Fraction | None = Field(
        default=None, description="Drop tiles with more folded tissue than this fraction. null: keep them."
    )
    max_bubble: Fraction | None = Field(
        default=None, description="Drop tiles with more air bubbles than this fraction. null: keep them."
    )
    max_white: Fraction | None = Field(
        default=None, description="Drop tiles with more glass than this fraction. null: keep them."
    )

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        return {name: value for name, value in self if name != "measure" and value is not None}

    @property
    def names(self) -> tuple[str, ...]:
        """The numbers that are measured: all, or those of an overview with the limits that need it."""
        if self.measure:
            return ("focus", *_OF_OVERVIEW)
        asked = {name.partition("_")[2] for name in self.limits}
        return (("focus",) if "focus" in asked else ()) + (_OF_OVERVIEW if asked - {"focus"} else ())


# Numbers of one overview, which are measured together.
_OF_OVERVIEW = ("pen", "fold", "bubble", "white")
