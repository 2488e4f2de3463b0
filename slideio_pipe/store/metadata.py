"""Layout of a ``.bag.zarr``, version 1: written as zarr v3 metadata, and validated when read.

::

    zarr.json            group; attributes["tile_bag"] = provenance of the bag + {"version": 1, "pixels": {…}}
                         + {"failures": [{"tile": 5, "error": "…"}, …]} for tiles that could not be read and are white
    tiles/               (N, H, W, 3) uint8, one chunk per tile, sharded; of a ``ContextBag`` (N, S, H, W, 3), one
                         chunk per tile and magnification, and attributes["tile_bag"]["context"] = {"mpp": [S], …}
    coords/              (N, 2) int64, level-0 x, y
    grid_index/          (N, 2) int32, column, row
    tissue/              (N,) float32, tissue fraction
    quality/<name>/      (N,) float32, optional: focus, pen, fold, bubble, white, those that were measured
    cell_counts/         (N, K) int32, optional: points of each class in the tile; attributes["classes"] are their names
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec
from zarr.storage import MemoryStore

from slideio_pipe.errors import BagFormatError, ConfigError
from slideio_pipe.files import not_there
from slideio_pipe.geometry import Mpp
from slideio_pipe.store import zarr_jpeg
from slideio_pipe.store.codecs import TileCodec, codec_from_zarr
from slideio_pipe.store.shards import ShardGrid
from slideio_pipe.tiles.bag import Bag, Columns, cell_counts_of, quality_of
from slideio_pipe.tiles.quality.tile_quality import NAMES, TileQuality

VERSION = 1
KEY = "tile_bag"
# One shard is written, fsynced and, after a kill, rewritten as a unit; writing holds two of them in memory.
MAX_SHARD_TILES = 512
MAX_SHARD_BYTES = 128 * 2**20
# The small arrays: dtype, shape after N, names of the dimensions.
COLUMNS: dict[str, tuple[str, tuple[int, ...], list[str]]] = {
    "coords": ("<i8", (2,), ["tile", "axis"]),
    "grid_index": ("<i4", (2,), ["tile", "axis"]),
    "tissue": ("<f4", (), ["tile"]),
}
QUALITY = "quality"
CELL_COUNTS = "cell_counts"
TOP_LEVEL = frozenset({"zarr.json", "tiles", QUALITY, CELL_COUNTS, *COLUMNS})


@dataclass(frozen=True, slots=True)
class StoreMetadata:
    """A validated bag store; its tiles are not read."""

    attributes: dict[str, Any]  # attributes["tile_bag"]
    shape: tuple[int, ...]
    grid: ShardGrid
    codec: TileCodec
    columns: dict[str, NDArray[Any]]  # coords, grid_index, tissue
    quality: TileQuality | None
    cell_counts: dict[str, NDArray[np.int64]] | None = None


def tiles_per_shard(tile_bytes: int) -> int:
    """Return the number of tiles per file: 512, or fewer if that exceeds 128 MiB of pixels.

    >>> tiles_per_shard(256 * 256 * 3), tiles_per_shard(1024 * 1024 * 3)
    (512, 42)
    """
    return max(1, min(MAX_SHARD_TILES, MAX_SHARD_BYTES // tile_bytes))


def skeleton(bag: Bag, codec: TileCodec, failures: Sequence[Mapping[str, Any]] = ()) -> dict[str, bytes]:
    """Return every file of the store except the shards, by its path inside.

    The files depend only on the bag and the codec, so comparing them with an unfinished store's shows whether that is
    the same work. Raise ConfigError if the bag's arrays have different lengths, or its provenance is not JSON.
    """
    _, *tile_shape = bag.shape
    if len(tile_shape) not in (3, 4) or tile_shape[-1] != 3 or min(tile_shape) < 1:
        raise ConfigError(f"tiles of shape {tuple(tile_shape)} are not (height, width, 3)", slide=bag.name)
    store: dict[str, Any] = {}
    about = _json(bag)
    if len(tile_shape) == 4 and "context" not in about:
        reason = f"tiles of shape {tuple(tile_shape)} are not (height, width, 3), nor those of a ContextBag"
        raise ConfigError(reason, slide=bag.name)
    if failures:  # those of a bag that was stored before are in its provenance
        about["failures"] = sorted([*about.get("failures", []), *failures], key=lambda failure: failure["tile"])
    attributes = {KEY: {**about, "version": VERSION, "pixels": _pixels(codec)}}
    group = zarr.create_group(MemoryStore(store), zarr_format=3, attributes=attributes)
    slots = tiles_per_shard(int(np.prod(tile_shape)))
    group.create_array(
        "tiles",
        shape=bag.shape,
        dtype="uint8",
        chunks=_chunk_shape(tile_shape),
        shards=(slots, *tile_shape),
        filters=None,
        serializer=BytesCodec(endian=None) if codec.serializer is None else zarr_jpeg.Jpeg.from_dict(codec.serializer),
        compressors=[dict(description) for description in codec.zarr] or None,
        fill_value=0,
        dimension_names=["tile", *["scale"][: len(tile_shape) - 3], "y", "x", "channel"],
    )
    files = add_columns(group, bag)
    return {key: value.to_bytes() for key, value in store.items()} | files


def _chunk_shape(tile_shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a chunk: a tile, or one of its magnifications."""
    return (1, *[1] * (len(tile_shape) - 3), *tile_shape[-3:])


def add_columns(group: zarr.Group, bag: Columns) -> dict[str, bytes]:
    """Add the metadata of a bag's small arrays to a group, and return the files of their values.

    Raise ConfigError if they do not have one row per tile.
    """
    tiles = len(bag)
    files: dict[str, bytes] = {}
    quality = quality_of(bag)
    columns = {name: (getattr(bag, name), *how) for name, how in COLUMNS.items()}
    if quality is not None:
        group.create_group(QUALITY)
        columns |= {f"{QUALITY}/{name}": (values, "<f4", (), ["tile"]) for name, values in quality.measured.items()}
    attributes: dict[str, dict[str, Any]] = {}
    if counts := cell_counts_of(bag):
        attributes[CELL_COUNTS] = {"classes": [*counts]}
        columns[CELL_COUNTS] = (np.stack([*counts.values()], axis=1), "<i4", (len(counts),), ["tile", "class"])
    for name, (column, dtype, tail, dimensions) in columns.items():
        values = np.ascontiguousarray(column, dtype=dtype)
        if values.shape != (tiles, *tail):
            reason = f"{name} has the shape {values.shape}, not {(tiles, *tail)}: one row per tile"
            raise ConfigError(reason, slide=bag.name)
        group.create_array(
            name,
            shape=values.shape,
            dtype=dtype,
            chunks=(max(1, tiles), *tail),
            filters=None,
            serializer=BytesCodec(endian="little"),
            compressors=None,
            fill_value=0,
            dimension_names=dimensions,
            attributes=attributes.get(name),
        )
        if tiles:
            files["/".join([name, "c", *"0" * values.ndim])] = values.tobytes()
    return files


def _pixels(codec: TileCodec) -> dict[str, Any]:
    # "complete": no chunk was left out, so a missing one is a loss and not a black tile.
    return {"codec": codec.name, **codec.pixels, "complete": True}


def _json(bag: Bag) -> dict[str, Any]:
    """Return the provenance as it will be read: tuples become lists."""
    provenance = bag.provenance()  # outside the try: its errors are not about JSON
    try:
        as_read: dict[str, Any] = json.loads(json.dumps(provenance, allow_nan=False))
    except (TypeError, ValueError) as error:
        remedy = "is the label a plain int, float or str?"
        raise ConfigError(f"the bag's provenance is no JSON ({error})", slide=bag.name, remedy=remedy) from error
    return as_read


def is_bag_store(path: Path) -> bool:
    """Whether there is a bag store at ``path``, of any version and in any state."""
    try:
        return isinstance(json.loads((path / "zarr.json").read_bytes())["attributes"][KEY], dict)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_layout(path: Path) -> StoreMetadata:
    """Read and validate everything except the tiles of the bag store at ``path``.

    Raise BagFormatError if it is not a bag store, or is a newer or damaged one.
    """
    attributes = _attributes(path)
    shape, slots, fill_value, codec = _tiles(path)
    complete = bool(attributes["pixels"].get("complete"))
    columns = read_columns(path, shape[0], complete)
    scales = shape[1] if len(shape) == 5 else None
    _check_context(path, attributes, scales)
    grid = ShardGrid(path / "tiles", shape[0], slots, fill_value, complete, scales)
    quality = read_quality(path, shape[0], complete)
    counts = read_cell_counts(path, shape[0], complete)
    return StoreMetadata(attributes, shape, grid, codec, columns, quality, counts)


def read_columns(path: Path, tiles: int, complete: bool = True) -> dict[str, NDArray[Any]]:
    """Return the small arrays of the store at ``path``, each with a row per tile.

    Raise BagFormatError if they cannot be read, or have other shapes.
    """
    columns = {}
    for name, (dtype, tail, _) in COLUMNS.items():
        values = _column(path / name, complete)
        if values.shape != (tiles, *tail):
            raise _damaged(path, f"{name} has the shape {values.shape}, not {(tiles, *tail)}")
        if values.dtype != np.dtype(dtype):
            raise _damaged(path, f"{name} is {values.dtype}, not {np.dtype(dtype)}")
        columns[name] = values
    return columns


def read_quality(path: Path, tiles: int, complete: bool = True) -> TileQuality | None:
    """Return the stored quality of the tiles of the store at ``path``; None if it has none.

    Raise BagFormatError if a number cannot be read, or has not one row per tile.
    """
    found = {}
    for name in NAMES:
        if not (path / QUALITY / name).exists():
            continue
        values = _column(path / QUALITY / name, complete)
        if values.shape != (tiles,):
            raise _damaged(path, f"{QUALITY}/{name} has the shape {values.shape}, not {(tiles,)}")
        found[name] = values
    return TileQuality.of(**found) if found else None


def read_cell_counts(path: Path, tiles: int, complete: bool = True) -> dict[str, NDArray[np.int64]] | None:
    """Return the points of each class in each tile of the store at ``path``; None if they were not counted.

    Raise BagFormatError if they cannot be read, or have not one row per tile and one column per class.
    """
    folder = path / CELL_COUNTS
    if not folder.exists():
        return None
    classes = _metadata(folder, "array").get("attributes", {}).get("classes")
    values = _column(folder, complete)
    if not isinstance(classes, list) or values.shape != (tiles, len(classes)):
        raise _damaged(path, f"{CELL_COUNTS} has the shape {values.shape} of the classes {classes}")
    return {str(name): values[:, column].astype(np.int64) for column, name in enumerate(classes)}


def _damaged(path: Path, reason: str) -> BagFormatError:
    return BagFormatError(reason, slide=str(path), remedy="copy or write the bag again")


def _metadata(path: Path, node: str) -> dict[str, Any]:
    file = path / "zarr.json"
    try:
        metadata = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise _damaged(path, f"no zarr v3 {node}: zarr.json is not there") from None
    except (OSError, ValueError) as error:
        raise _damaged(path, f"zarr.json cannot be read ({error})") from error
    if not isinstance(metadata, dict) or metadata.get("zarr_format") != 3 or metadata.get("node_type") != node:
        raise _damaged(path, f"zarr.json describes no zarr v3 {node}")
    return metadata


def _attributes(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise not_there(BagFormatError, "no bag store: no such folder", path)
    if not (path / "zarr.json").exists():
        remedy = "pass the .bag.zarr folder that save_bag wrote"
        raise BagFormatError("no bag store: no zarr.json is there", slide=str(path), remedy=remedy)
    bag = _metadata(path, "group").get("attributes", {}).get(KEY)
    if not isinstance(bag, dict):
        remedy = "pass the .bag.zarr folder that save_bag wrote"
        raise BagFormatError(f'a zarr group without the attribute "{KEY}"', slide=str(path), remedy=remedy)
    version = bag.get("version")
    if not isinstance(version, int) or version < 1:
        raise _damaged(path, f"version {version!r} is not a version")
    if version > VERSION:
        reason = f"a bag store of version {version}; this package reads version {VERSION}"
        raise BagFormatError(reason, slide=str(path), remedy="upgrade slideio-pipe")
    if "label" not in bag or not isinstance(bag.get("pixels"), dict):
        raise _damaged(path, f'attributes["{KEY}"] lacks "label" or "pixels"')
    if not isinstance(bag.get("slide"), dict) or not isinstance(bag["slide"].get("name"), str):
        raise _damaged(path, f'attributes["{KEY}"] lacks the name of the slide')
    return bag


def _check_context(path: Path, attributes: Mapping[str, Any], scales: int | None) -> None:
    """Raise BagFormatError if the resolutions of a bag's magnifications are not as many as these."""
    context = attributes.get("context")
    if scales is None and context is None:
        return
    try:
        found = [len(context["mpp"]), len([Mpp.of(mpp) for mpp in context["mpps"]])]  # type: ignore[index]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"the resolutions of its magnifications cannot be read ({error!r})") from error
    if found != [scales, scales]:
        raise _damaged(path, f"it has {scales or 'no'} magnifications, and the resolutions of {found[0]}")


def _tiles(path: Path) -> tuple[tuple[int, ...], int, int, TileCodec]:
    """Return shape, tiles per shard, fill value and codec of the array ``tiles``."""
    metadata = _metadata(path / "tiles", "array")
    try:
        shape, (sharding,) = tuple(metadata["shape"]), metadata["codecs"]
        slots, *rest = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        inner = sharding["configuration"]
        fixed = {
            "data_type": metadata["data_type"] == "uint8",
            "shape": len(shape) in (4, 5) and shape[0] >= 0 and min(shape[1:]) > 0 and shape[-1] == 3,
            "chunk_grid": metadata["chunk_grid"]["name"] == "regular" and tuple(rest) == shape[1:] and slots > 0,
            "chunk_key_encoding": metadata["chunk_key_encoding"]["name"] == "default"
            and metadata["chunk_key_encoding"].get("configuration", {}).get("separator", "/") == "/",
            "sharding": sharding["name"] == "sharding_indexed"
            and tuple(inner["chunk_shape"]) == _chunk_shape(shape[1:])
            and inner.get("index_location", "end") == "end",
            "index_codecs": [codec["name"] for codec in inner["index_codecs"]] == ["bytes", "crc32c"]
            and inner["index_codecs"][0].get("configuration", {}).get("endian") == "little",
        }
        codec = codec_from_zarr(inner["codecs"])
        fill_value = int(metadata["fill_value"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, f"the array tiles is not described as a bag's ({error!r})") from error
    wrong = [name for name, right in fixed.items() if not right]
    if wrong:
        raise _damaged(path, f"the array tiles has not the layout of a bag: {', '.join(wrong)}")
    if codec is None:
        names = "+".join(str(description.get("name")) for description in inner["codecs"])
        raise BagFormatError(f"tiles are stored as {names}", slide=str(path), remedy="upgrade slideio-pipe")
    return shape, slots, fill_value, codec


def _column(path: Path, complete: bool) -> NDArray[Any]:
    _metadata(path, "array")
    try:
        array = zarr.open_array(path, mode="r")
        if complete and array.nchunks_initialized != array.nchunks:
            raise _damaged(path, "chunks are not there")
        return np.asarray(array[...])
    except BagFormatError:
        raise
    except Exception as error:  # damaged data may raise a dozen unrelated classes
        raise _damaged(path, f"cannot be read ({error})") from error
