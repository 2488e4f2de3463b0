"""Any bags into any layout: what is wrong is said before anything is written."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from slideio_pipe.cohort.names import stem_of
from slideio_pipe.cores import decoding_threads
from slideio_pipe.errors import ConfigError, OutputExistsError, SkippedWarning, require, warn_caller
from slideio_pipe.export.layouts.clam import Clam
from slideio_pipe.export.layouts.clam_pixels import ClamPixels
from slideio_pipe.export.layouts.feature_input import read_features, read_instance_labels
from slideio_pipe.export.layouts.huggingface import HuggingFace
from slideio_pipe.export.layouts.item import BagRow, Item, LabelType, Layout, write_item
from slideio_pipe.export.layouts.memmap import MemoryMapped
from slideio_pipe.export.layouts.stamp import Stamp
from slideio_pipe.export.layouts.torchmil import TorchMil
from slideio_pipe.export.layouts.trident import Trident
from slideio_pipe.export.layouts.webdataset import WebDataset
from slideio_pipe.progress import Report, reporting
from slideio_pipe.store import StoredBag, open_bag
from slideio_pipe.tiles.bag import Bag, Label, patient_of
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
# What features are called of which nobody says whose they are.
UNNAMED = "features"

Sources = Bag | str | Path | Iterable[Bag | str | Path]


@dataclass(frozen=True, slots=True)
class Converted:
    """What a conversion wrote."""

    layout: str
    paths: tuple[Path, ...]  # of every bag in turn, then of all together
    bags: int
    tiles: int
    left_out: tuple[str, ...]  # bags without a tile, where the layout has no file for them
    kept: int = 0  # bags that a run before had converted
    failed: tuple[TileFailure, ...] = ()  # of several bags
    failures: Path | None = None  # the list of them


def convert(
    bags: Sources,
    to: str,
    out: str | Path,
    *,
    features: Any = None,
    encoder: str = UNNAMED,
    instance_labels: Any = None,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Report | bool | None = None,
) -> Converted:
    """Write bags in the layout of another tool, all or none of them; ``slideio_pipe.convert`` does more.

    Parameters
    ----------
    bags : bag, path, or several of them
        ``TileBag``, ``StoredBag`` or the ``.bag.zarr`` of one.
    to : "clam", "clam-pixels", "trident", "stamp", "torchmil", "webdataset", "memmap" or "hf"
        Coordinates for CLAM and TRIDENT; features for STAMP; pixels, or features where they are given, for torchmil;
        pixels for CLAM's older bags, WebDataset, TensorDict and Hugging Face datasets.
    out : str or Path
        The folder that the tool is given.
    features : array, str or Path, optional
        (N, D) in the order of the bag: an array or a file (.npy, .pt, .h5) for one bag, or the folder of
        ``<slide>.npy``, ``.pt`` or ``.h5``.
    encoder : str
        Whose features they are; names their folder. Without ``features``, those that lie beside the pixels of each
        bag under this name.
    instance_labels : array, str or Path, optional
        For torchmil: (N,) whole numbers, from an array or a file (.npy) for one bag, or the folder of ``<slide>.npy``.
    overwrite : bool
        Whether to replace files that are there.
    threads : int, optional
        Threads that decode; by default one per core, 8 at most.
    progress : callable, bool or None
        Called as ``progress(done_tiles, total_tiles)`` after each bag; see ``save_bag``.

    Raises
    ------
    ConfigError
        An unknown layout, two bags of one name, a bag that the layout cannot hold; nothing is written then.
    OutputExistsError
        A file is there already.
    MissingExtraError
        A package that the layout needs is not installed.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from slideio_pipe import TileBag, TileGrid, open_slide
    >>> view = open_slide(np.full((300, 500, 3), 7, np.uint8), slide_mpp=0.5).view()
    >>> bag = TileBag(view, TileGrid(view, tile_size=100), label=1)
    >>> done = convert(bag, "torchmil", tempfile.mkdtemp())
    >>> [f"{path.parent.name}/{path.name}" for path in done.paths]
    ['features/array.npy', 'coords/array.npy', 'labels/array.npy']
    """
    layout, folder = layout_of(to), Path(out).expanduser()
    extras = Extras(to, features, encoder, instance_labels)
    threads = decoding_threads() if threads is None else threads
    items = _items(bags, extras, threads)
    left_out = [item for item in items if layout.leaves_out_empty and not len(item.bag)]
    written = [item for item in items if item not in left_out]
    planned = [layout.outputs(item, folder) for item in written]  # refuses what the layout cannot hold
    check_free([path for paths in planned for path in paths], overwrite)
    if left_out:
        warn_of_empty(to, [item.bag.name for item in left_out])
    total, done = sum(len(item.bag) for item in written), 0
    with reporting(progress, f"converting to {to}") as report:
        report(0, total)
        for item in written:
            write_item(layout, item, folder)
            done += len(item.bag)
            report(done, total)
    shared = layout.finish([item.row for item in written], folder) if written else []
    paths = [path for paths in planned for path in paths] + shared
    return Converted(to, tuple(paths), len(written), total, tuple(item.bag.name for item in left_out))


def layout_of(to: str) -> Layout:
    """Return a layout that can be written here.

    Raises
    ------
    ConfigError
        There is none of that name.
    MissingExtraError
        A package that it needs is not installed.
    """
    if to not in LAYOUTS:
        raise ConfigError(f"no layout {to!r}", remedy=f"pass {', '.join(LAYOUTS)}")
    for package in LAYOUTS[to].packages:
        require(package, "hdf5" if package == "h5py" else to)
    return LAYOUTS[to]


@dataclass(frozen=True, slots=True)
class Extras:
    """What goes with bags into a layout."""

    to: str
    features: Any = None
    encoder: str = UNNAMED
    instance_labels: Any = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.+-]+", self.encoder):
            reason = f"the encoder {self.encoder!r} cannot name a folder"
            raise ConfigError(reason, remedy="pass letters, digits, - and _")
        if self.instance_labels is not None and self.to != "torchmil":
            raise ConfigError(f"{self.to} has no place for {{instance_labels=}}", remedy="convert to torchmil")

    def item(self, bag: Bag, row: BagRow, kind: LabelType, threads: int, *, many: bool) -> Item:
        """Return a bag with what goes with it.

        Raises
        ------
        ConfigError
            Something is missing, or not one row for each tile.
        """
        labels, stem = self.instance_labels, row.stem
        return Item(
            bag,
            stem,
            self._features(bag, stem, many=many),
            self.encoder,
            row.label,
            kind,
            threads,
            None if labels is None else read_instance_labels(labels, stem, len(bag), many=many),
            row.patient,
        )

    def _features(self, bag: Bag, stem: str, *, many: bool) -> NDArray[Any] | None:
        """Return the features that were given, else those that the encoder left beside the pixels."""
        if self.features is not None:
            return read_features(self.features, stem, len(bag), many=many)
        there = bag.encoders if isinstance(bag, StoredBag) else ()
        if isinstance(bag, StoredBag) and self.encoder in there:
            return bag.features(self.encoder)
        if self.encoder != UNNAMED:
            reason = f"no features of {self.encoder} beside the pixels (there are: {', '.join(there) or 'none'})"
            raise ConfigError(reason, slide=bag.name, remedy="pass {features=…}, or encode the bag first")
        return None


def warn_of_empty(to: str, names: list[str]) -> None:
    """Say which bags have no file."""
    warn_caller(SkippedWarning(f"no file for bags without a tile, as {to} has it: {', '.join(names)}"))


def _items(bags: Sources, extras: Extras, threads: int) -> list[Item]:
    given = [bags] if isinstance(bags, (str, Path, Bag)) else list(bags)
    opened = [open_bag(bag) if isinstance(bag, (str, Path)) else bag for bag in given]
    if not opened:
        raise ConfigError("no bag to convert", remedy="pass bags, or paths of .bag.zarr folders")
    stems = [stem_of(bag.name) for bag in opened]
    check_stems(stems)
    kind, many = label_type(bag.label for bag in opened), len(opened) > 1
    return [
        extras.item(bag, BagRow(stem, bag.name, bag.label, patient_of(bag)), kind, threads, many=many)
        for bag, stem in zip(opened, stems, strict=True)
    ]


def check_stems(stems: Sequence[str]) -> None:
    """Refuse bags that would be one file."""
    twice = sorted(stem for stem, count in Counter(stems).items() if count > 1)
    if twice:
        reason = f"several bags are called {', '.join(twice)}, and would be one file"
        raise ConfigError(reason, remedy="convert them into folders of their own")


def label_type(labels: Iterable[Label]) -> LabelType:
    """Return the one type that the labels of all bags have in a column."""
    types = {type(label) for label in labels}
    return "string" if str in types else "float64" if float in types else "int64"


def check_free(paths: list[Path], overwrite: bool) -> None:
    """Refuse to write over what is there, unless it is asked for."""
    there = [path for path in paths if os.path.lexists(path)]
    if there and not overwrite:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        remedy = "pass {overwrite=True} or another folder"
        raise OutputExistsError(f"already exists{more}", slide=str(there[0]), remedy=remedy)
