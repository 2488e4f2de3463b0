"""Read features of a bag's tiles from an array, a file, or a folder of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.errors import ConfigError, require

ENDINGS = (".npy", ".pt", ".h5")


def read_features(source: Any, stem: str, count: int, *, many: bool = False) -> NDArray[Any]:
    """Return (N, D) features of the bag ``stem``; raise ConfigError if there are none, or not one row per tile.

    Parameters
    ----------
    source : array, str or Path
        The features, a file with them, or the folder of ``<stem>.npy``, ``.pt`` or ``.h5``.
    count : int
        Number of tiles of the bag.
    many : bool
        Whether there are other bags, so that ``source`` must be a folder.

    Examples
    --------
    >>> read_features(np.ones((3, 2)), "a", 3).shape
    (3, 2)
    """
    values = source
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        files = [file for ending in ENDINGS if (file := path / f"{stem}{ending}").is_file()]
        if path.is_dir() and not files:
            remedy = f"put {stem}.npy, .pt or .h5 there"
            raise ConfigError(f"no features in {path}", slide=stem, remedy=remedy)
        many, values = many and not files, _read(files[0] if files else path)
    if many:
        raise ConfigError("one set of features for several bags", remedy="pass the folder of <slide>.npy")
    found = np.asarray(values)
    if found.ndim != 2 or len(found) != count or found.dtype.kind not in "fiu":
        reason = f"features are {found.shape} {found.dtype}, and the bag has {count:,} tiles"
        raise ConfigError(reason, slide=stem, remedy="pass (N, D) numbers in the order of the bag")
    return found


def read_instance_labels(source: Any, stem: str, count: int, *, many: bool = False) -> NDArray[np.int64]:
    """Return (N,) labels of the tiles of the bag ``stem``, from the same sources as ``read_features``.

    Raise ConfigError if there are none, or not one whole number per tile.
    """
    values = source
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        file = path / f"{stem}.npy" if path.is_dir() else path
        if not file.is_file():
            raise ConfigError(f"no labels of tiles in {path}", slide=stem, remedy=f"put {stem}.npy there")
        many, values = many and not path.is_dir(), _read(file)
    if many:
        raise ConfigError("one set of labels of tiles for several bags", remedy="pass the folder of <slide>.npy")
    found = np.asarray(values)
    if found.shape != (count,) or found.dtype.kind not in "iub":
        reason = f"labels of tiles are {found.shape} {found.dtype}, and the bag has {count:,} tiles"
        raise ConfigError(reason, slide=stem, remedy="pass (N,) whole numbers in the order of the bag")
    return found.astype(np.int64)


def _read(file: Path) -> Any:
    try:
        if file.suffix == ".npy":
            return np.load(file, mmap_mode="r", allow_pickle=False)
        if file.suffix == ".pt":
            import torch

            return torch.load(file, map_location="cpu", weights_only=True).numpy()
        if file.suffix in (".h5", ".hdf5"):
            with require("h5py", "hdf5").File(file, "r") as opened:
                return np.asarray(opened["features" if "features" in opened else "feats"])
    except (OSError, KeyError, ValueError, AttributeError, RuntimeError) as error:
        raise ConfigError(f"no features can be read ({error})", slide=str(file), remedy="check the file") from error
    raise ConfigError("features have another ending", slide=str(file), remedy=f"pass {', '.join(ENDINGS)}")
