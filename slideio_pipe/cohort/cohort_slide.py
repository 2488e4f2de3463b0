"""One slide of a cohort with its fields, and the column names of a manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slideio_pipe.errors import Words
from slideio_pipe.tiles.bag import Bag, Label

COLUMNS = ("slide", "name", "label", "mpp", "mask", "patient", "split", "fold", "cell_file")


@dataclass(frozen=True, slots=True)
class CohortSlide:
    """One row of a cohort."""

    source: Path | Bag  # a slide, a bag store, or an open bag
    name: str  # unique in the cohort
    label: Label = None
    mpp: float | None = None  # µm per level-0 px, replaces the file's value
    mask: Path | None = None  # tissue: GeoJSON, or a picture that covers the slide
    patient: str | None = None  # slides of one patient are never split
    split: str | None = None  # train, val, test, …
    fold: int | None = None  # the fold in which it is tested, from 0
    other: tuple[tuple[str, str], ...] = ()  # other columns of the manifest, unchanged
    cell_file: Path | None = None  # cells that QuPath, CellViT or StarDist found

    @property
    def patient_key(self) -> tuple[str, str]:
        """The patient as a key, or the slide; the kind comes first, because a patient and a slide may share a name."""
        return ("slide", self.name) if self.patient is None else ("patient", self.patient)


def cohort_words(words: Words) -> Words:
    """Return the words of a surface for a slide of a cohort, whose table has columns for some arguments.

    Examples
    --------
    >>> from slideio_pipe.errors import python_words
    >>> cohort_words(python_words)("slide_mpp", "0.25")
    'slide_mpp=0.25, or 0.25 in the column "mpp" of the cohort'
    """

    def of_cohort(name: str, value: str) -> str:
        if name == "tissue_file":  # every slide has its own
            return 'a file in the column "mask" of the cohort'
        found = words(name, value)
        return f'{found}, or {value} in the column "mpp" of the cohort' if name == "slide_mpp" and value else found

    return of_cohort
