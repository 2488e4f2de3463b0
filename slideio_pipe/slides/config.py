"""Settings of slides and views: resolution and backend."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from slideio_pipe.config import Record
from slideio_pipe.geometry import SAME_RESOLUTION, too_fine

Resolution = Annotated[float, Field(gt=0, allow_inf_nan=False)]  # µm per px


def _possible(mpp: float) -> float:
    if too_fine(mpp):
        raise ValueError(f"{mpp:g} is {too_fine(mpp)}")
    return mpp


SlideResolution = Annotated[Resolution, AfterValidator(_possible)]  # µm per level-0 px


class SlideConfig(Record):
    """How slides are opened."""

    slide_mpp: SlideResolution | None = Field(
        default=None,
        description="µm per level-0 px: for one slide it replaces the file's value; for a cohort it is used where "
        "files state none. null: slides without a resolution are refused.",
    )
    slide_mpp_override: bool = Field(
        default=False, description="In a cohort, slide_mpp also replaces the values that files state."
    )
    backend: Literal["auto", "tiff", "openslide", "array"] = Field(
        default="auto", description="Reader of the slides. auto: chosen from the file."
    )

    def in_cohort(self, own: float | None) -> dict[str, float | None]:
        """Return ``slide_mpp`` and ``default_mpp`` of ``open_slide`` for a slide of a cohort with manifest mpp ``own``.

        >>> SlideConfig(slide_mpp=0.5).in_cohort(None), SlideConfig(slide_mpp=0.5).in_cohort(0.25)
        ({'slide_mpp': None, 'default_mpp': 0.5}, {'slide_mpp': 0.25, 'default_mpp': None})
        """
        if own is not None:
            return {"slide_mpp": own, "default_mpp": None}
        if self.slide_mpp_override:
            return {"slide_mpp": self.slide_mpp, "default_mpp": None}
        return {"slide_mpp": None, "default_mpp": self.slide_mpp}

    @model_serializer(mode="wrap")
    def _drop_unused_override(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the override if it is off, so that settings equal those of older runs."""
        values: dict[str, Any] = dump(self)
        if self.slide_mpp is None and not self.slide_mpp_override:
            values.pop("slide_mpp_override", None)
        return values


class ViewConfig(Record):
    """Settings of a view."""

    mpp: Resolution | None = Field(
        default=0.5,
        description='µm per tile px: 0.5 is what "20x" usually means, 0.25 "40x". null or native: level 0 as stored.',
        json_schema_extra={"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"enum": ["native", None]}]},
    )

    context: tuple[Resolution, ...] = Field(
        default=(),
        description="Further magnifications, µm per px, coarser than mpp and ascending: with each tile come concentric "
        "ones of the same size in px, which show a larger field. Empty: none.",
    )

    @field_validator("mpp", mode="before")
    @classmethod
    def _native(cls, value: object) -> object:
        return None if value == "native" else value

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        for finer, coarser in pairwise((*(() if self.mpp is None else (self.mpp,)), *self.context)):
            if coarser <= finer * (1 + SAME_RESOLUTION):
                raise ValueError(f"context: {coarser:g} µm is not coarser than {finer:g} µm; list them ascending")
        return self

    @model_serializer(mode="wrap")
    def _drop_unset(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out further magnifications if there are none, so that settings equal those of older runs."""
        values: dict[str, Any] = dump(self)
        if not self.context:
            values.pop("context", None)
        return values
