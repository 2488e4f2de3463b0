"""One slide of a cohort, with what is known of it, and what a table calls each of these."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slideio_pipe.tiles.bag import Bag, Label

COLUMNS = ("slide", "name", "label", "mpp", "mask", "patient", "split", "fold")


@dataclass(frozen=True, slots=True)
class CohortSlide:
    """One row of a cohort."""

    source: Path | Bag  # a slide, a bag store, or a bag that is open already
    name: str  # unique in the cohort
    label: Label = None
    mpp: float | None = None  # µm per level-0 px, in place of what the file says
    mask: Path | None = None  # tissue: GeoJSON, or a picture that spans the slide
    patient: str | None = None  # slides of one patient are never parted
    split: str | None = None  # train, val, test, …
    fold: int | None = None  # the fold in which it is tested, from 0
    other: tuple[tuple[str, str], ...] = ()  # columns of the manifest that are none of ours, as they are
