"""Arguments of streams and loaders, checked."""

from __future__ import annotations

from numbers import Integral
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slideio_pipe.augment.ending import Ending
from slideio_pipe.cores import usable_cores
from slideio_pipe.errors import ConfigError
from slideio_pipe.streaming.normalize import Normalize
from slideio_pipe.tiles.bag import Bag, UncolouredBag
from slideio_pipe.tiles.views_bag import ViewsBag

COLOURS = ("host", "device")


def default_threads() -> int:
    """Return the number of cores this process may use minus one, at least one."""
    return max(1, usable_cores() - 1)


def tile_count(bag: Bag) -> int:
    if not hasattr(bag, "shape") or not hasattr(bag, "read"):
        raise ConfigError(f"a stream of a {type(bag).__name__}", remedy="pass one bag: TileBag(…) or open_bag(…)")
    if len(bag.shape) not in (4, 5) or bag.shape[-1] != 3:
        remedy = "pass (N, H, W, 3), or (N, S, H, W, 3) with S magnifications"
        raise ConfigError(f"a bag of the shape {tuple(bag.shape)}", slide=bag.name, remedy=remedy)
    return bag.shape[0]


def checked_positions(indices: ArrayLike | None, count: int, name: str) -> NDArray[np.int64]:
    """Return the validated positions of an index array, as a copy."""
    if indices is None:
        return np.arange(count, dtype=np.int64)
    positions = np.asarray(indices)
    if positions.dtype == bool and positions.shape == (count,):
        return np.flatnonzero(positions).astype(np.int64)
    if positions.ndim != 1 or (positions.size and positions.dtype.kind not in "iu"):
        raise ConfigError(
            f"indices are {positions.dtype} of the shape {positions.shape}",
            slide=name,
            remedy=f"pass integers, or {count} booleans",
        )
    if positions.size and (positions.min() < 0 or positions.max() >= count):
        raise ConfigError(
            f"indices reach from {positions.min()} to {positions.max()} in a bag of {count} tiles", slide=name
        )
    return positions.astype(np.int64)


def check_normalize(
    normalize: Normalize | Literal["transform"] | None, ending: Ending | None = None, name: str | None = None
) -> Normalize | None:
    """Return a normalisation, by default that of a transform's end, or None.

    Raises
    ------
    ConfigError
        None is given, or it contradicts the transform's.
    """
    if normalize == "transform":
        if ending is None:
            remedy = "pass {normalize=}, such as Normalize.imagenet(), or None for bytes"
            raise ConfigError("no normalisation is given", slide=name, remedy=remedy)
        return Normalize(ending.mean, ending.std, rescale=ending.rescale) if ending.normalises else None
    if isinstance(normalize, Normalize) and ending is not None and ending.normalises:
        own = Normalize(ending.mean, ending.std, rescale=ending.rescale)
        if (own.mean, own.std, own.rescale) != (normalize.mean, normalize.std, normalize.rescale):
            reason = f"the transform ends in another normalisation: {own.extra_repr()}"
            raise ConfigError(reason, slide=name, remedy="leave {normalize=} out, or the end of the transform")
    if normalize is not None and not isinstance(normalize, Normalize):
        raise ConfigError(
            f"normalize is {type(normalize).__name__}",
            remedy="pass Normalize.imagenet(), Normalize.from_config(...) or None",
        )
    return normalize


def check_colours(colours: str, bag: Bag | None = None) -> str:
    """Return a valid place to compute colours that is possible for a bag, if one is given."""
    if colours not in COLOURS:
        slide = None if bag is None else bag.name
        raise ConfigError(f"colours is {colours!r}", slide=slide, remedy='pass "host" or "device"')
    if colours == "device" and isinstance(bag, UncolouredBag | ViewsBag) and bag.host_only:
        raise ConfigError(
            f"{', '.join(bag.host_only)} cannot run on a device: graphs and functions of your own run on the host",
            slide=bag.name,
            remedy='pass colours="host", or leave it out of the transform',
        )
    return colours


def at_least_one(name: str, value: int) -> int:
    """Return a whole number of at least one."""
    return at_least(1, name, value)


def at_least(least: int, name: str, value: int) -> int:
    """Return a whole number that is not smaller than ``least``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ConfigError(f"{name} is {value!r}", remedy=f"pass an integer >= {least}")
    return int(value)
