"""The layouts by name, and their input, which is checked before anything is written."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from slideio_pipe.errors import ConfigError, require
from slideio_pipe.export.layouts.clam import Clam
from slideio_pipe.export.layouts.clam_pixels import ClamPixels
from slideio_pipe.export.layouts.feature_input import read_features, read_instance_labels
from slideio_pipe.export.layouts.huggingface import HuggingFace
from slideio_pipe.export.layouts.item import BagRow, Item, LabelType, Layout, Normalizer
from slideio_pipe.export.layouts.memmap import MemoryMapped
from slideio_pipe.export.layouts.stamp import Stamp
from slideio_pipe.export.layouts.torchmil import TorchMil
from slideio_pipe.export.layouts.trident import Trident
from slideio_pipe.export.layouts.webdataset import WebDataset
from slideio_pipe.parts.entry_points import part_named, parts_of
from slideio_pipe.parts.import_path import import_object, is_import_path, source_digest
from slideio_pipe.store import StoredBag
from slideio_pipe.tiles.bag import Bag, check_one_scale
from slideio_pipe.tiles.failures import TileFailure

LAYOUTS: dict[str, Layout] = {
    "clam": Clam(),
    "clam-pixels": ClamPixels(),
    "trident": Trident(),
    "stamp": Stamp(),
    "torchmil": TorchMil(),
    "webdataset": WebDataset(),
    "memmap": MemoryMapped(),
    "hf": HuggingFace(),
}
# The name of features whose encoder is not given.
UNNAMED = "features"

Sources = Bag | str | Path | Iterable[Bag | str | Path]


@dataclass(frozen=True, slots=True)
class Converted:
    """Result of a conversion."""

    layout: str
    paths: tuple[Path, ...]  # files of each bag in order, then files shared by all bags
    bags: int
    tiles: int
    left_out: tuple[str, ...]  # bags without tiles, if the layout writes no file for them
    kept: int = 0  # bags that an earlier run converted
    failed: tuple[TileFailure, ...] = ()  # failed bags, if several were converted
    failures: Path | None = None  # CSV file that lists them


def layout_of(to: str | Layout) -> Layout:
    """Return a layout, after a check that its packages are installed.

    Parameters
    ----------
    to : str or Layout
        The name of a layout, of the package or an entry point; the import path of a class or object; or an object.

    Raises
    ------
    ConfigError
        There is no such layout, or it is not derived from ``Layout``.
    MissingExtraError
        A package that it needs is not installed.
    """
    found = _found(to)
    for package in found.packages:
        require(package, "hdf5" if package == "h5py" else to if isinstance(to, str) and to in LAYOUTS else None)
    return found


def name_of(to: str | Layout) -> str:
    """Return the name of a layout, for its ledger and messages: that of its class, if it is a user's."""
    if isinstance(to, str) and is_import_path(to):
        return to.rpartition(":")[2].rpartition(".")[2]
    return to if isinstance(to, str) else str(getattr(to, "__name__", type(to).__name__))


def layout_settings(to: str | Layout) -> dict[str, str]:
    """Return what the files of a layout depend on: its name, and for one of a user a digest of its source."""
    if isinstance(to, str) and to in LAYOUTS:
        return {"layout": to}
    digest = source_digest(_found(to))
    return {"layout": name_of(to)} | ({} if digest is None else {"source": digest})


def _found(to: str | Layout) -> Layout:
    if not isinstance(to, str):
        return _checked(to, getattr(to, "__name__", type(to).__name__))
    part = part_named("layouts", to, LAYOUTS)
    if to in LAYOUTS:
        return LAYOUTS[to]
    if part is not None:
        return _checked(part.load(), f"{to} of {part.origin}")
    if is_import_path(to):
        return _checked(import_object(to), to)
    brought = [part.name for part in parts_of("layouts") if part.name not in LAYOUTS]
    known = ", ".join([*LAYOUTS, *dict.fromkeys(brought)])
    raise ConfigError(f"no layout {to!r}", remedy=f"pass {known}, or one of your own, my_module:MyLayout")


def _checked(found: Any, name: str) -> Layout:
    """Return a layout, made without arguments if it is a class."""
    try:
        made = found() if isinstance(found, type) and hasattr(found, "outputs") else found
    except TypeError as error:  # a method is missing, or it needs arguments
        raise ConfigError(f"the layout {name} cannot be made: {error}", remedy="pass an object of it") from error
    if not all(callable(getattr(made, method, None)) for method in ("outputs", "write", "finish", "writes_pixels")):
        raise ConfigError(f"{name} is no layout", remedy="derive a class from slideio_pipe.Layout")
    layout: Layout = made
    return layout


@dataclass(frozen=True, slots=True)
class Extras:
    """Features and labels that are written with the bags."""

    to: str | Layout
    features: Any = None
    encoder: str = UNNAMED
    instance_labels: Any = None
    normalize: Normalizer | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.+-]+", self.encoder):
            reason = f"the encoder {self.encoder!r} cannot name a folder"
            raise ConfigError(reason, remedy="pass letters, digits, - and _")
        if self.instance_labels is not None and self.to != "torchmil":
            raise ConfigError(f"{self.name} has no place for {{instance_labels=}}", remedy="convert to torchmil")
        if self.normalize is not None and self.to != "memmap":
            raise ConfigError(f"{self.name} has no place for pixels of {{normalize=}}", remedy="convert to memmap")

    @property
    def name(self) -> str:
        """Name of the layout."""
        return name_of(self.to)

    def item(self, bag: Bag, row: BagRow, kind: LabelType, threads: int, *, many: bool) -> Item:
        """Return a bag with its features and labels.

        Raise ConfigError if features or labels are missing, or do not have one row per tile.
        """
        labels, stem = self.instance_labels, row.stem
        item = Item(
            bag,
            stem,
            self._features(bag, stem, many=many),
            self.encoder,
            row.label,
            kind,
            threads,
            None if labels is None else read_instance_labels(labels, stem, len(bag), many=many),
            row.patient,
            self.normalize,
        )
        if layout_of(self.to).writes_pixels(item):
            check_one_scale(bag, f"files of {self.name}")
        return item

    def _features(self, bag: Bag, stem: str, *, many: bool) -> NDArray[Any] | None:
        """Return the given features, else those that are stored in the bag under the encoder's name."""
        if self.features is not None:
            return read_features(self.features, stem, len(bag), many=many)
        there = bag.encoders if isinstance(bag, StoredBag) else ()
        if isinstance(bag, StoredBag) and self.encoder in there:
            return bag.features(self.encoder)
        if self.encoder != UNNAMED:
            reason = f"no features of {self.encoder} beside the pixels (there are: {', '.join(there) or 'none'})"
            raise ConfigError(reason, slide=bag.name, remedy="pass {features=…}, or encode the bag first")
        return None
