"""The input of a layout: one bag with its name and features; and ``Layout``, the base class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.files import disk_errors
from slideio_pipe.store import StoredBag
from slideio_pipe.tiles.bag import Bag, Label

# Tiles decoded at once, which bounds the memory of a conversion.
CHUNK = 64

LabelType = Literal["string", "float64", "int64"]


class Normalizer(Protocol):
    """What normalises tiles that are written: ``slideio_pipe.Normalize``."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale: float

    def convert(self, tiles: Any, dtype: Any) -> Any:
        """Return (N, 3, H, W) uint8 tiles, of torch, normalised as ``dtype``, in the same order of memory."""


def described(normalize: Normalizer) -> dict[str, Any]:
    """Return a normalisation as JSON values: (x · rescale − mean) / std."""
    return {"mean": list(normalize.mean), "std": list(normalize.std), "rescale": normalize.rescale}


class BagRow(NamedTuple):
    """A bag's row in tables of a whole study."""

    stem: str
    name: str  # name of the slide
    label: Label
    patient: str | None = None  # patient of the slide, if known

    @property
    def case(self) -> str:
        """The key in a table of patients: the patient, or the slide if unknown."""
        return self.patient or self.stem


@dataclass(frozen=True, slots=True)
class Item:
    """One bag to be written in a layout."""

    bag: Bag
    stem: str  # the slide's name without its ending
    features: NDArray[Any] | None  # (N, D), one row per tile
    encoder: str  # name of the features' encoder
    label: Label
    label_type: LabelType  # common type of the labels of all converted bags
    threads: int = 1
    instance_labels: NDArray[Any] | None = None  # (N,) whole numbers
    patient: str | None = None  # patient of the slide, if known
    normalize: Normalizer | None = None  # of pixels that are written as float16

    @property
    def row(self) -> BagRow:
        """Its row in tables."""
        return BagRow(self.stem, self.bag.name, self.label, self.patient)

    @property
    def patient_attributes(self) -> dict[str, str]:
        """The patient as an attribute beside coordinates, if known."""
        return {} if self.patient is None else {"patient": self.patient}

    @property
    def jpegs(self) -> StoredBag | None:
        """The bag, if it stores its tiles as JPEG."""
        return self.bag if isinstance(self.bag, StoredBag) and self.bag.holds_jpeg else None

    def chunks(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield the first number and the pixels, (n, H, W, 3), of some tiles at a time."""
        for start in range(0, len(self.bag), CHUNK):
            numbers = np.arange(start, min(start + CHUNK, len(self.bag)))
            yield start, self.bag.read(numbers, threads=self.threads)


class Layout(ABC):
    """The files of one tool; the base class of a layout of your own, for ``convert``.

    ``outputs`` and ``write`` get one bag: ``item.bag`` (its tiles, ``coords``, ``tissue``), ``item.stem`` (the slide's
    name without its ending, unique in a conversion), ``item.features`` ((N, D), or None), ``item.label``,
    ``item.patient``, and ``item.chunks()`` (its tiles, some at a time). ``convert`` resumes, lists failed bags and
    makes the folders of the outputs. Write each file so that it has its name only when it is complete.

    Examples
    --------
    >>> import tempfile
    >>> from slideio_pipe import Layout, TileBag, TileGrid, convert, open_slide
    >>> class MeanColours(Layout):
    ...     def outputs(self, item, folder):
    ...         return [folder / f"{item.stem}.csv"]
    ...     def writes_pixels(self, item):
    ...         return True
    ...     def write(self, item, folder):
    ...         means = np.concatenate([tiles.mean(axis=(1, 2)) for _, tiles in item.chunks()])
    ...         np.savetxt(folder / f"{item.stem}.csv", means, delimiter=",", fmt="%.1f")
    >>> view = open_slide(np.full((200, 200, 3), 7, np.uint8), slide_mpp=0.5).view()
    >>> done = convert(TileBag(view, TileGrid(view, tile_size=100)), MeanColours(), tempfile.mkdtemp())
    >>> done.layout, done.paths[0].read_text().splitlines()[0]
    ('MeanColours', '7.0,7.0,7.0')
    """

    packages: tuple[str, ...] = ()  # needed to write it; also the name of the extra, if there is one
    leaves_out_empty = False  # whether an empty bag has no file
    joins_labels = False  # whether a bag's file depends on the common label type of all bags
    version = 1  # of a bag's files; increased when they change, so that one folder never mixes versions

    @abstractmethod
    def outputs(self, item: Item, folder: Path) -> list[Path]:
        """Return the files or folders that ``write`` creates for a bag."""

    @abstractmethod
    def write(self, item: Item, folder: Path) -> None:
        """Write one bag; each output gets its name when it is complete."""

    def writes_pixels(self, item: Item) -> bool:
        """Whether the files of a bag have its tiles; by default only coordinates and features."""
        del item
        return False

    def finish(self, bags: Sequence[BagRow], folder: Path) -> list[Path]:
        """Write the files for all bags together, and return them; by default none."""
        del bags, folder
        return []


def write_item(layout: Layout, item: Item, folder: Path) -> None:
    """Write one bag, and create the folders of its outputs; raise OutputError if the files cannot be written."""
    for path in layout.outputs(item, folder):
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
    layout.write(item, folder)
