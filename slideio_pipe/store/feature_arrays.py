"""Features in stores: ``features/<encoder>``, (N, D), beside the tiles of a bag, or in a store without tiles.

::

    a.bag.zarr/features/uni       (N, D) float16, one raw chunk; attributes["encoder"] identifies the encoder
    a.features.zarr               coords, grid_index, tissue, and features/ as above; attributes["feature_bag"]

Each gets its name when it is complete; until then it is ``<store>.<encoder>.partial``, or
``a.features.zarr.partial``, beside the store.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec
from zarr.storage import MemoryStore

from slideio_pipe.errors import BagFormatError, OutputExistsError
from slideio_pipe.files import disk_errors, put_in_place, replacing_folder, sync_folder
from slideio_pipe.locks import WriterLock
from slideio_pipe.store.metadata import add_columns, read_columns, read_quality
from slideio_pipe.tiles.bag import Columns
from slideio_pipe.tiles.quality.tile_quality import TileQuality

VERSION = 1
KEY = "feature_bag"
SUFFIX = ".features.zarr"
FOLDER = "features"
ENCODER = "encoder"  # the attribute of an array that identifies its encoder

Attributes = Mapping[str, Any]
Named = Mapping[str, tuple[NDArray[Any], Attributes]]  # encoder: (N, D) features and the encoder's attributes


@dataclass(frozen=True, slots=True)
class FeatureStore:
    """A store of features; the features are not read."""

    path: Path
    attributes: dict[str, Any]  # the bag's provenance
    tiles: int
    columns: dict[str, NDArray[Any]]  # coords, grid_index, tissue
    quality: TileQuality | None


def encoder_names(store: Path) -> tuple[str, ...]:
    """Return the names of the encoders whose features a store contains."""
    try:
        found = sorted(path.name for path in (store / FOLDER).iterdir())
    except OSError:
        return ()
    return tuple(name for name in found if encoder_attributes(store, name) is not None)


def encoder_attributes(store: Path, name: str) -> dict[str, Any] | None:
    """Return the stored attributes of an encoder; None if the store has no features of that name."""
    found = _array(store / FOLDER / name)
    return None if found is None else dict(found.get("attributes", {}).get(ENCODER, {}))


def stored_features(store: Path, name: str, tiles: int) -> tuple[NDArray[Any], dict[str, Any]]:
    """Return the (N, D) features of an encoder, memory-mapped for this reader, and the encoder's attributes.

    Raise BagFormatError if the store has none, or not one row for each of ``tiles``, or they are damaged.
    """
    array = store / FOLDER / name
    described = _array(array)
    if described is None:
        names = ", ".join(encoder_names(store)) or "none"
        raise BagFormatError(f"no features of {name} (there are: {names})", slide=str(store), remedy="encode it first")
    rows, dim = described["shape"]
    kind = np.dtype(described["data_type"]).newbyteorder("<")
    if rows != tiles:
        reason = f"features of {name} have {rows:,} rows, and there are {tiles:,} tiles"
        raise BagFormatError(reason, slide=str(store), remedy="encode it again")
    facts = dict(described.get("attributes", {}).get(ENCODER, {}))
    if not rows:
        return np.zeros((0, dim), kind), facts
    try:
        return np.memmap(array / "c" / "0" / "0", kind, "c", shape=(rows, dim)), facts
    except (OSError, ValueError) as error:
        reason = f"features of {name} are damaged ({error})"
        raise BagFormatError(reason, slide=str(store), remedy="encode it again") from error


def add_features(store: Path, name: str, values: NDArray[Any], encoder: Attributes, *, overwrite: bool = False) -> None:
    """Write (N, D) features into a store, complete or not at all.

    Raise OutputExistsError if features of that name exist and may not be replaced, OutputError if they cannot be
    written, or another process writes them.
    """
    target = store / FOLDER / name
    with _partial_folder(store, f"{store.name}.{name}", target) as partial:
        if target.exists() and not overwrite:
            remedy = "pass {overwrite=True}, or give the encoder another name"
            raise OutputExistsError(f"features of {name} are there", slide=str(store), remedy=remedy)
        _write_array(partial, values, encoder)
        _make_group(store / FOLDER)


def create_feature_store(
    path: Path, bag: Columns, provenance: Attributes, features: Named, *, overwrite: bool = False
) -> None:
    """Write a store of features without tiles, complete or not at all.

    Raise OutputExistsError if ``path`` exists and may not be replaced, OutputError if the store cannot be written, or
    another process writes it.

    Parameters
    ----------
    path : Path
        By convention ``<slide>.features.zarr``.
    bag : Columns
        Coordinates, grid index and tissue of the tiles.
    provenance : mapping
        Provenance of the bag, JSON values; ``label`` in it is the slide's.
    features : mapping
        Encoder to features and the encoder's attributes.
    overwrite : bool
        Whether to replace a store of features; anything else is refused.
    """
    with _partial_folder(path, path.name, path) as partial:
        if os.path.lexists(path) and not (overwrite and is_feature_store(path)):
            remedy = (
                "pass {overwrite=True} or another folder" if is_feature_store(path) else "remove it or pass another"
            )
            raise OutputExistsError("already exists", slide=str(path), remedy=remedy)
        store: dict[str, Any] = {}
        attributes = {KEY: {**provenance, "version": VERSION, "tiles": len(bag)}}
        group = zarr.create_group(MemoryStore(store), zarr_format=3, attributes=attributes)
        values = add_columns(group, bag)
        _write({key: value.to_bytes() for key, value in store.items()} | values, partial)
        _make_group(partial / FOLDER)
        for name, (array, encoder) in features.items():
            _write_array(partial / FOLDER / name, array, encoder)


def is_feature_store(path: Path) -> bool:
    """Whether there is a store of features without tiles at ``path``."""
    return feature_store_attributes(path) is not None


def feature_store_attributes(path: Path) -> dict[str, Any] | None:
    """Return the attributes of a store of features; None if there is none."""
    found = _group(path).get(KEY)
    return found if isinstance(found, dict) else None


def open_feature_store(path: Path) -> FeatureStore:
    """Return a validated store of features.

    Raise BagFormatError if it is not a store of features, or is a newer or damaged one.
    """
    found = _group(path).get(KEY)
    if not isinstance(found, dict):
        reason = "no store of features" if path.exists() else "no store of features: no such folder"
        raise BagFormatError(reason, slide=str(path), remedy="pass a .features.zarr, or a .bag.zarr with features")
    version, tiles = found.get("version"), found.get("tiles")
    if not isinstance(version, int) or version > VERSION or not isinstance(tiles, int):
        reason = f"a store of features of version {version!r}; this package reads version {VERSION}"
        raise BagFormatError(reason, slide=str(path), remedy="upgrade slideio-pipe")
    provenance = {key: value for key, value in found.items() if key not in ("version", "tiles")}
    return FeatureStore(path, provenance, tiles, read_columns(path, tiles), read_quality(path, tiles))


def _group(path: Path) -> dict[str, Any]:
    """Return the attributes of a zarr v3 group; {} if it is not one."""
    try:
        found = json.loads((path / "zarr.json").read_bytes())
        attributes = found["attributes"] if found["node_type"] == "group" else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return attributes if isinstance(attributes, dict) else {}


def _array(path: Path) -> dict[str, Any] | None:
    """Return the metadata of an array of features; None if there is no complete one written by this package."""
    try:
        found = json.loads((path / "zarr.json").read_bytes())
        ours = (
            found["node_type"] == "array"
            and [codec["name"] for codec in found["codecs"]] == ["bytes"]
            and found["chunk_grid"]["configuration"]["chunk_shape"] == [max(1, side) for side in found["shape"]]
            and len(found["shape"]) == 2
            and found["data_type"] in ("float16", "float32")
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if ours else None


def _write_array(folder: Path, values: NDArray[Any], encoder: Attributes) -> None:
    """Write an array of one raw chunk, which can be memory-mapped: floats hardly compress."""
    store: dict[str, Any] = {}
    zarr.create_array(
        MemoryStore(store),
        shape=values.shape,
        dtype=values.dtype.name,
        chunks=tuple(max(1, side) for side in values.shape),
        filters=None,
        serializer=BytesCodec(endian="little"),
        compressors=None,
        fill_value=0,
        attributes={ENCODER: dict(encoder)},
        dimension_names=["tile", "feature"],
        zarr_format=3,
    )
    files: dict[str, Any] = {key: value.to_bytes() for key, value in store.items()}
    if len(values):
        files["c/0/0"] = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data
    _write(files, folder)


def _make_group(folder: Path) -> None:
    """Make a folder a zarr group, if it is not one; every process writes the same bytes."""
    if (folder / "zarr.json").exists():
        return
    store: dict[str, Any] = {}
    zarr.create_group(MemoryStore(store), zarr_format=3)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"zarr.json.{os.getpid()}"
    (folder / name).write_bytes(store["zarr.json"].to_bytes())
    put_in_place(folder / name, folder / "zarr.json")
    sync_folder(folder.parent)


def _write(files: Mapping[str, Any], folder: Path) -> None:
    for name, data in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


@contextmanager
def _partial_folder(store: Path, name: str, target: Path) -> Iterator[Path]:
    """Yield the name of a folder to write beside a store, exclusively; it becomes ``target``."""
    lock = WriterLock(store.with_name(f"{name}.lock"))
    with disk_errors(store):
        store.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        try:
            with replacing_folder(target, store.with_name(f"{name}.partial")) as partial:
                yield partial
        finally:
            lock.release()
