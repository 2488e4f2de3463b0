"""What a layout is given: one bag with its name and features; and what every layout does with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.files import disk_errors
from slideio_pipe.store import StoredBag
from slideio_pipe.tiles.bag import Bag, Label

# Tiles decoded at once: what a conversion holds in memory.
CHUNK = 64

LabelType = Literal["string", "float64", "int64"]


class BagRow(NamedTuple):
    """What tables of a whole study say of a bag."""

    stem: str
    name: str  # of the slide
    label: Label
    patient: str | None = None  # whose slide it is, where that is known

    @property
    def case(self) -> str:
        """What a table of patients lists it under: the patient, or the slide where none is given."""
        return self.patient or self.stem


@dataclass(frozen=True, slots=True)
class Item:
    """One bag on its way into a layout."""

    bag: Bag
    stem: str  # the slide's name without its ending
    features: NDArray[Any] | None  # (N, D), a row for each tile
    encoder: str  # whose features they are
    label: Label
    label_type: LabelType  # of the labels of all bags that are converted together
    threads: int = 1
    instance_labels: NDArray[Any] | None = None  # (N,) whole numbers
    patient: str | None = None  # whose slide it is, where that is known

    @property
    def row(self) -> BagRow:
        """What tables say of it."""
        return BagRow(self.stem, self.bag.name, self.label, self.patient)

    @property
    def whose(self) -> dict[str, str]:
        """The patient as an attribute beside coordinates, where that is known."""
        return {} if self.patient is None else {"patient": self.patient}

    @property
    def jpegs(self) -> StoredBag | None:
        """The bag, if it holds its tiles as JPEG."""
        return self.bag if isinstance(self.bag, StoredBag) and self.bag.holds_jpeg else None

    def chunks(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield the first number and the pixels, (n, H, W, 3), of a few tiles at a time."""
        for start in range(0, len(self.bag), CHUNK):
            wanted = np.arange(start, min(start + CHUNK, len(self.bag)))
            yield start, self.bag.read(wanted, threads=self.threads)


class Layout(Protocol):
    """How one tool keeps its bags."""

    @property
    def packages(self) -> tuple[str, ...]:
        """What has to be installed to write it; also the name of the extra, when it is one."""
        ...

    @property
    def leaves_out_empty(self) -> bool:
        """Whether a bag without a tile has no file."""
        ...

    @property
    def joins_labels(self) -> bool:
        """Whether a bag's file depends on the type that the labels of all bags have together."""
        ...

    @property
    def version(self) -> int:
        """Raised when the files of a bag change, so that one folder never holds both kinds."""
        ...

    def outputs(self, item: Item, folder: Path) -> list[Path]:
        """Return the files or folders that ``write`` makes of a bag."""
        ...

    def write(self, item: Item, folder: Path) -> None:
        """Write one bag; each output appears under its name when it is whole."""
        ...

    def finish(self, bags: Sequence[BagRow], folder: Path) -> list[Path]:
        """Write what belongs to all bags together, and return it."""
        ...


def write_item(layout: Layout, item: Item, folder: Path) -> None:
    """Write one bag, and make the folders of its outputs.

    Raises
    ------
    OutputError
        The disk refuses.
    """
    for path in layout.outputs(item, folder):
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
    layout.write(item, folder)
