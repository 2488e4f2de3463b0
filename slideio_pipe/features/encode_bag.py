"""Encode uint8 tiles on a device: batches are filled across bags, rows are returned to their bag.

::

    chunks of bag a, b, … ──▶ Batches of encoder 1 ──full batches──▶ network ──float16──▶ host ──▶ rows of a, b, …
                         └──▶ Batches of encoder 2 ──▶ …

Every batch except the last is full. On CUDA features are copied back while later batches are computed, and the host
waits for the device once, at the end: those that have arrived are stored whenever a batch was queued.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slideio_pipe.errors import ConfigError
from slideio_pipe.features.encoders import Encoder, EncoderOnDevice, load_encoders
from slideio_pipe.features.encoders.encoder import DTYPES
from slideio_pipe.features.encoders.encoder_tiles import warn_scale_of_bag
from slideio_pipe.features.encoders.loading import Source
from slideio_pipe.features.scales import check_context_features, split_scales
from slideio_pipe.progress import Report, reporting
from slideio_pipe.streaming.arguments import at_least_one
from slideio_pipe.streaming.device import StreamMark, check_device, on_device
from slideio_pipe.streaming.stream import stream
from slideio_pipe.tiles.bag import Bag, check_bag, nominal_mpps_of

BATCH_SIZE = 64
# Batches of features that may be missing before the host waits for one. A stream has fewer batches on the device, so
# that this waits only for tiles from elsewhere.
_MAX_TRANSFERS = 32


@dataclass(slots=True, eq=False)
class BagFeatures:
    """The features of one bag, filled as batches arrive."""

    name: str
    features: dict[str, NDArray[Any]]  # encoder: (N, D)
    coords: NDArray[np.int64]
    left: int  # missing rows, of all encoders
    error: ConfigError | None = None  # the first error in the features

    def take(self, encoder: str, index: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Store rows at their positions."""
        self.features[encoder][index] = values
        self.left -= len(index)
        finite = np.isfinite(values).all(axis=1)
        if self.error is None and not finite.all():
            first = int(np.flatnonzero(~finite)[0])
            self.error = _not_finite(self, encoder, int(index[first]), values[first])


@dataclass(slots=True, eq=False)
class _Sent:
    """A batch of features being copied to the host."""

    values: Tensor
    there: StreamMark | None
    parts: list[tuple[BagFeatures, NDArray[np.int64]]]

    @property
    def is_there(self) -> bool:
        """Whether the values may be read."""
        return self.there is None or self.there.is_reached

    def wait(self) -> None:
        """Block until the values may be read."""
        if self.there is not None and not self.there.is_reached:
            self.there.wait()


@dataclass(slots=True, eq=False)
class Batches:
    """Runs chunks of any bags through one encoder, in batches of one size."""

    encoder: EncoderOnDevice
    size: int
    count: int = 0  # number of computed batches
    _waiting: deque[tuple[Tensor, BagFeatures, NDArray[np.int64]]] = field(default_factory=deque)
    _waiting_tiles: int = 0
    _sent: deque[_Sent] = field(default_factory=deque)

    def add(self, tiles: Tensor, rows: BagFeatures, index: NDArray[np.int64]) -> None:
        """Add (n, 3, H, W) or (n, S, 3, H, W) uint8 tiles on the device, at positions ``index`` of their bag."""
        if not len(index):
            return
        self._waiting.append((tiles, rows, index))
        self._waiting_tiles += len(index)
        while self._waiting_tiles >= self.size:
            self._compute(self.size)

    def flush(self) -> None:
        """Compute the remaining tiles, and wait for all rows."""
        if self._waiting_tiles:
            self._compute(self._waiting_tiles)
        if self._sent:
            self._sent[-1].wait()  # one wait for all
        while self._sent:
            self._receive()

    def _compute(self, count: int) -> None:
        chosen, parts = [], []
        missing = count
        while missing:
            tiles, rows, index = self._waiting.popleft()
            if len(index) > missing:
                self._waiting.appendleft((tiles[missing:], rows, index[missing:]))
                tiles, index = tiles[:missing], index[:missing]
            chosen.append(tiles)
            parts.append((rows, index))
            missing -= len(index)
        self._waiting_tiles -= count
        self._sent.append(self._send(chosen, parts))
        self.count += 1
        while self._sent and (self._sent[0].is_there or len(self._sent) > _MAX_TRANSFERS):
            self._receive()

    def _send(self, chosen: list[Tensor], parts: list[tuple[BagFeatures, NDArray[np.int64]]]) -> _Sent:
        found = self.encoder(chosen[0] if len(chosen) == 1 else torch.cat(chosen))
        if found.device.type != "cuda":
            return _Sent(found, None, parts)
        with on_device(found.device):
            values = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
            values.copy_(found, non_blocking=True)
            return _Sent(values, StreamMark.here(found.device), parts)

    def _receive(self) -> None:
        sent = self._sent.popleft()
        sent.wait()
        values, start = sent.values.numpy(), 0
        for rows, index in sent.parts:
            rows.take(self.encoder.encoder.name, index, values[start : start + len(index)])
            start += len(index)


class Encoding:
    """Several encoders for the same tiles, each with its own batches.

    Parameters
    ----------
    encoders : iterable of Encoder
    device : str or torch.device
    batch_size : int
        Tiles per batch.
    dtype : "float16" or "float32"
        Dtype of the features; with float16 CUDA also computes in it.
    """

    def __init__(self, encoders: Iterable[Encoder], *, device: str | torch.device, batch_size: int, dtype: str) -> None:
        place, kind, size = check_device(device), check_feature_dtype(dtype), at_least_one("batch_size", batch_size)
        self.device, self.dtype = place, np.dtype(dtype)
        self.batches = {encoder.name: Batches(EncoderOnDevice(encoder, place, kind), size) for encoder in encoders}

    def rows(
        self, name: str, coords: NDArray[np.int64], encoders: Collection[str], magnifications: int = 1
    ) -> BagFeatures:
        """Return empty arrays for the features of a bag."""
        count = len(coords)
        dims = {encoder: self.batches[encoder].encoder.encoder.dim * magnifications for encoder in encoders}
        features = {encoder: np.empty((count, dim), self.dtype) for encoder, dim in dims.items()}
        return BagFeatures(name, features, coords, count * len(features))

    def add(self, tiles: Tensor, rows: BagFeatures, index: NDArray[np.int64]) -> None:
        """Add uint8 tiles of a bag on the device."""
        for name in rows.features:
            self.batches[name].add(tiles, rows, index)

    def flush(self) -> None:
        """Compute the remaining tiles, in batches that may not be full."""
        for batches in self.batches.values():
            batches.flush()


def encode_bag(
    bag: Bag,
    encoders: Source | Iterable[Source],
    *,
    device: str | torch.device,
    batch_size: int = BATCH_SIZE,
    dtype: str = "float16",
    context_features: str = "concat",
    threads: int | None = None,
    progress: Report | bool | None = None,
) -> dict[str, NDArray[Any]]:
    """Return the features of a bag's tiles, one row per tile in the bag's order; tiles are decoded once.

    Of a ``ContextBag`` each magnification is encoded, normalised alike.

    Parameters
    ----------
    bag : Bag
        Bag of a slide, augmented or not, of a store, or another source.
    encoders : Encoder, or what ``load_encoder`` takes, or several
    device : str or torch.device
        "cpu", "cuda" or "cuda:1".
    batch_size : int
        Tiles per batch.
    dtype : "float16" or "float32"
        Dtype of the features. With float16 CUDA also computes in it (autocast); the CPU uses the network's dtype.
    context_features : "concat" or "apart"
        Features of S magnifications: one array of (N, S·D) per encoder, finest first; or one of (N, D) for each, named
        ``uni-0.5um`` and so on.
    threads : int, optional
        Number of decoding threads.
    progress : callable, bool or None
        See ``progress.reporting``; counts tiles.

    Returns
    -------
    dict of str to (N, D) array
        Features by encoder name.

    Raises
    ------
    ConfigError
        An encoder does not accept the tiles, or returns a value that is not finite.

    Examples
    --------
    >>> from torch import nn
    >>> from slideio_pipe import TileBag, TileGrid, load_encoder, open_slide
    >>> view = open_slide(np.full((300, 500, 3), 7, np.uint8), slide_mpp=0.5).view()
    >>> bag = TileBag(view, TileGrid(view, tile_size=100))
    >>> network = nn.Sequential(nn.Conv2d(3, 8, 7, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> tiny = load_encoder(network, name="tiny", normalize="imagenet", input_size=64)
    >>> encode_bag(bag, tiny, device="cpu")["tiny"].shape
    (15, 8)
    """
    check_bag(bag)
    how, mpps = check_context_features(context_features), nominal_mpps_of(bag)
    chosen = load_encoders(encoders)
    warn_scale_of_bag(chosen, bag.provenance())
    encoding = Encoding(chosen, device=device, batch_size=batch_size, dtype=dtype)
    rows = encoding.rows(bag.name, np.asarray(bag.coords), list(encoding.batches), max(1, len(mpps)))
    chunks = stream(bag, device=encoding.device, normalize=None, batch_size=batch_size, threads=threads)
    done = 0
    with chunks, reporting(progress, f"encoding {bag.name}") as report:
        report(0, len(bag))
        for chunk in chunks:
            encoding.add(chunk.tiles, rows, chunk.index)
            if rows.error is not None:
                raise rows.error
            done += len(chunk)
            report(done, len(bag))
    encoding.flush()
    if rows.error is not None:
        raise rows.error
    arrays = (split_scales(values, name, mpps, how) for name, values in rows.features.items())
    return {name: values for of_encoder in arrays for name, values in of_encoder.items()}


def check_feature_dtype(dtype: str) -> torch.dtype:
    """Return the dtype of features; raise ConfigError if the dtype is not supported."""
    if dtype not in DTYPES:
        raise ConfigError(f"features cannot be {dtype!r}", remedy=f"pass {{dtype={' or '.join(map(repr, DTYPES))}}}")
    return DTYPES[dtype]


def _not_finite(rows: BagFeatures, encoder: str, tile: int, values: NDArray[Any]) -> ConfigError:
    x, y = rows.coords[tile].tolist()
    bad = values[~np.isfinite(values)]
    beyond = values.dtype == np.float16 and bool(np.isinf(bad).all())
    what = "beyond float16" if beyond else "no numbers (NaN or infinite)"
    reason = f"{len(bad):,} of {len(values):,} features of {encoder} are {what} at tile {tile} (x {x:,}, y {y:,})"
    remedy = 'pass {dtype="float32"}' if values.dtype == np.float16 else "look at the tile and at the encoder"
    return ConfigError(reason, slide=rows.name, remedy=remedy)
