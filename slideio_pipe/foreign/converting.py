"""Any bags into any layout: what is wrong is said before anything is written."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from slideio_pipe.bag import Bag
from slideio_pipe.errors import ConfigError, OutputExistsError, SkippedWarning
from slideio_pipe.foreign.clam import Clam
from slideio_pipe.foreign.features import read_features
from slideio_pipe.foreign.hf import HuggingFace
from slideio_pipe.foreign.item import Item, LabelType, Layout, needed
from slideio_pipe.foreign.memmap import MemoryMapped
from slideio_pipe.foreign.stamp import Stamp
from slideio_pipe.foreign.torchmil import TorchMil
from slideio_pipe.foreign.trident import Trident
from slideio_pipe.foreign.webdataset import WebDataset
from slideio_pipe.progress import Report, reporting
from slideio_pipe.store import StoredBag, open_bag

LAYOUTS: dict[str, Layout] = {
    "clam": Clam(),
    "trident": Trident(),
    "stamp": Stamp(),
    "torchmil": TorchMil(),
    "webdataset": WebDataset(),
    "memmap": MemoryMapped(),
    "hf": HuggingFace(),
}
# What features are called of which nobody says whose they are.
UNNAMED = "features"
# A slide's ending, as a bag's name leaves it out; "TCGA.0a1b" has none.
_ENDING = re.compile(r"(\.ome)?\.[a-z][a-z0-9]*$", re.IGNORECASE)
# More threads than this wait for the disk or for each other.
_MAX_THREADS = 8

Sources = Bag | str | Path | Iterable[Bag | str | Path]


@dataclass(frozen=True, slots=True)
class Converted:
    """What a conversion wrote."""

    layout: str
    paths: tuple[Path, ...]  # of every bag in turn, then of all together
    bags: int
    tiles: int
    left_out: tuple[str, ...]  # bags without a tile, where the layout has no file for them


def convert(
    bags: Sources,
    to: str,
    out: str | Path,
    *,
    features: Any = None,
    encoder: str = UNNAMED,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Report | bool | None = None,
) -> Converted:
    """Write bags in the layout of another tool.

    Parameters
    ----------
    bags : bag, path, or several of them
        ``TileBag``, ``StoredBag`` or the ``.bag.zarr`` of one.
    to : "clam", "trident", "stamp", "torchmil", "webdataset", "memmap" or "hf"
        Coordinates for CLAM and TRIDENT; features for STAMP; pixels, or features where they are given, for torchmil;
        pixels for WebDataset, TensorDict and Hugging Face datasets.
    out : str or Path
        The folder that the tool is given.
    features : array, str or Path, optional
        (N, D) in the order of the bag: an array or a file (.npy, .pt, .h5) for one bag, or the folder of
        ``<slide>.npy``, ``.pt`` or ``.h5``.
    encoder : str
        Whose features they are; names their folder. Without ``features``, those that lie beside the pixels of each
        bag under this name.
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
    if to not in LAYOUTS:
        raise ConfigError(f"no layout {to!r}", remedy=f"pass {', '.join(LAYOUTS)}")
    layout, folder = LAYOUTS[to], Path(out).expanduser()
    for package in layout.packages:
        needed(package, "hdf5" if package == "h5py" else to)
    threads = min(_MAX_THREADS, os.cpu_count() or 1) if threads is None else threads
    items = _items(bags, features, encoder, threads)
    left_out = [item for item in items if layout.leaves_out_empty and not len(item.bag)]
    written = [item for item in items if item not in left_out]
    planned = [layout.outputs(item, folder) for item in written]  # refuses what the layout cannot hold
    _check_free([path for paths in planned for path in paths], overwrite)
    if left_out:
        names = ", ".join(item.bag.name for item in left_out)
        warnings.warn(SkippedWarning(f"no file for bags without a tile, as {to} has it: {names}"), stacklevel=2)
    total, done = sum(len(item.bag) for item in written), 0
    with reporting(progress, f"converting to {to}") as report:
        report(0, total)
        for item in written:
            layout.write(item, folder)
            done += len(item.bag)
            report(done, total)
    shared = layout.finish(written, folder) if written else []
    paths = [path for paths in planned for path in paths] + shared
    return Converted(to, tuple(paths), len(written), total, tuple(item.bag.name for item in left_out))


def _items(bags: Sources, features: Any, encoder: str, threads: int) -> list[Item]:
    given = [bags] if isinstance(bags, (str, Path, Bag)) else list(bags)
    opened = [open_bag(bag) if isinstance(bag, (str, Path)) else bag for bag in given]
    if not opened:
        raise ConfigError("no bag to convert", remedy="pass bags, or paths of .bag.zarr folders")
    if not re.fullmatch(r"[\w.+-]+", encoder):
        raise ConfigError(f"the encoder {encoder!r} cannot name a folder", remedy="pass letters, digits, - and _")
    stems = [stem_of(bag.name) for bag in opened]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        reason = f"several bags are called {', '.join(twice)}, and would be one file"
        raise ConfigError(reason, remedy="convert them into folders of their own")
    kind, many = _label_type(opened), len(opened) > 1
    return [
        Item(bag, stem, _features(features, stem, bag, encoder, many=many), encoder, kind, threads)
        for bag, stem in zip(opened, stems, strict=True)
    ]


def _label_type(bags: list[Bag]) -> LabelType:
    """Return the one type that the labels of all bags have in a column."""
    types = {type(bag.label) for bag in bags}
    return "string" if str in types else "float64" if float in types else "int64"


def _features(source: Any, stem: str, bag: Bag, encoder: str, *, many: bool) -> NDArray[Any] | None:
    """Return the features that were given, else those that the encoder left beside the pixels."""
    if source is not None:
        return read_features(source, stem, len(bag), many=many)
    there = bag.encoders if isinstance(bag, StoredBag) else ()
    if isinstance(bag, StoredBag) and encoder in there:
        return bag.features(encoder)
    if encoder != UNNAMED:
        reason = f"no features of {encoder} beside the pixels (there are: {', '.join(there) or 'none'})"
        raise ConfigError(reason, slide=bag.name, remedy="pass features=…, or encode the bag first")
    return None


def stem_of(name: str) -> str:
    """Return what files of a slide are called.

    Raises
    ------
    ConfigError
        The name would be a file in another folder.

    Examples
    --------
    >>> stem_of("a.ome.tif"), stem_of("TCGA-CR-7395.0a1b.svs"), stem_of("b")
    ('a', 'TCGA-CR-7395.0a1b', 'b')
    """
    stem = _ENDING.sub("", name) or name
    if stem in ("", ".", "..") or "/" in stem or "\\" in stem or "\0" in stem:
        raise ConfigError("the slide's name is no file name", slide=name, remedy="give the slide another name")
    return stem


def _check_free(paths: list[Path], overwrite: bool) -> None:
    there = [path for path in paths if os.path.lexists(path)]
    if there and not overwrite:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        remedy = "pass overwrite=True or another folder"
        raise OutputExistsError(f"already exists{more}", slide=str(there[0]), remedy=remedy)
