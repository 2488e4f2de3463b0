"""Apply drawn operations to batches of tiles in torch: uint8 in, per-tile numbers as columns, one final rounding.

The same code runs on the CPU and on CUDA.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from slideio_pipe.augment.executors.device_steps import STEPS, augmented, hashed, kind_of
from slideio_pipe.augment.operations import Operation
from slideio_pipe.errors import ConfigError

# Pixels per pass. On a CPU temporaries stay in the second-level cache; on a device they stay under a few GB.
CHUNK_PX = {"cpu": 2**16, "cuda": 2**24}


class Statistics(Protocol):
    """Statistics of normalisation: (x · rescale − mean) / std."""

    mean: tuple[float, float, float]  # red first, in units of the rescaled values
    std: tuple[float, float, float]  # likewise
    rescale: float  # factor for a byte, applied first


@dataclass(frozen=True, slots=True)
class Group:
    """Tiles with the same kinds of operations in the same order: only the numbers differ."""

    kinds: tuple[str, ...]
    tiles: Tensor | None  # (m,) int64 indices into the batch; None: all
    numbers: Tensor  # (m, P) float32, or (1, P) for all tiles

    @classmethod
    def of(cls, operations: Sequence[tuple[Operation, ...]], tiles: Sequence[int] | None) -> Group:
        """Return the group of ``tiles`` and their operations, one tuple each, or one tuple for all."""
        kinds = tuple(kind_of(operation) for operation in operations[0])
        rows = [
            [n for kind, step in zip(kinds, steps, strict=True) for n in STEPS[kind].numbers(step)]
            for steps in operations
        ]
        numbers = torch.tensor(rows, dtype=torch.float32).view(len(rows), -1)
        return cls(kinds, None if tiles is None else torch.tensor(tiles), numbers)


class DeviceProgram:
    """The drawn operations of a batch of tiles, run on the tiles' device.

    Raise ConfigError if an operation cannot run on a batch, or the dtype is not one of the three.

    Parameters
    ----------
    operations : sequence of tuples of operations, or one tuple
        One tuple per tile, or one for all tiles. Tiles with the same kinds in the same order run together with their
        own numbers: a batch takes one pass per order of kinds.
    normalize : object with mean, std and rescale, or None
        Applied after the operations, for instance a ``Normalize``. None: uint8 results, rounded half up.
    dtype : torch.dtype
        Of normalised tiles: float16, bfloat16 or float32.
    compile : bool
        Fuse the expression with torch.compile: 3 to 30 s on a CPU, once per order of kinds and process, with a C++
        compiler; then a chain of tone, hue and stain takes a third of the time, a stain alone slightly less.

    Notes
    -----
    Everything is float32 until the final rounding. Differences from float64: ``tests/augment/test_device.py``; times:
    ``tests/benchmarks/augment_device.py``. A program has no state and can be shared by threads.

    Examples
    --------
    >>> from slideio_pipe.augment.operations import Tone
    >>> tiles = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    >>> DeviceProgram([(Tone(brightness=2),), ()], normalize=None)(tiles)[:, 0, 0, 0].tolist()
    [200, 100]
    """

    def __init__(
        self,
        operations: Sequence[tuple[Operation, ...]] | tuple[Operation, ...],
        *,
        normalize: Statistics | None,
        dtype: torch.dtype = torch.float16,
        compile: bool = False,
    ) -> None:
        if dtype not in (torch.float16, torch.bfloat16, torch.float32):
            raise ConfigError(f"tiles cannot be {dtype}", remedy="pass float16, bfloat16 or float32")
        self.dtype = torch.uint8 if normalize is None else dtype  # of the result
        self.count: int | None = None  # tiles of a batch; None: any
        if any(not isinstance(entry, tuple) for entry in operations) or operations == ():
            self.groups = [Group.of([_kept(operations)], None)]
        else:
            self.count = len(operations)
            self.groups = _grouped([_kept(entry) for entry in operations])
        self._finish = _finish_numbers(normalize)
        self.compile = compile

    def __call__(self, tiles: Tensor, *, places: Sequence[int] | None = None) -> Tensor:
        """Return the augmented tiles, in new memory.

        Raise ConfigError if these are not tiles, or their number differs from that of the tuples of operations.

        Parameters
        ----------
        tiles : (n, 3, H, W) uint8 RGB
            Best in channels_last layout, the layout of stored tiles.
        places : n integers, optional
            Seed the noise together with the operations, for instance with each tile's index in its bag. Without them
            the tile's bytes are used: equal noise for the same tile in any batch, different noise between tiles.

        Returns
        -------
        (n, 3, H, W) tensor, channels_last
            On the device of ``tiles``; uint8 without normalisation.
        """
        _check_tiles(tiles, self.count)
        if places is not None and len(places) != len(tiles):
            raise ConfigError(f"{len(places)} places for {len(tiles)} tiles", remedy="pass one per tile")
        n, _, height, width = tiles.shape
        out = torch.empty((n, height, width, 3), dtype=self.dtype, device=tiles.device).permute(0, 3, 1, 2)
        for group in self.groups:
            if group.tiles is None:
                self._fill(out, tiles, group, places)
            else:
                members = group.tiles.to(tiles.device, non_blocking=True)
                part = torch.empty_like(out[: len(members)])
                group_places = None if places is None else [places[k] for k in group.tiles.tolist()]
                self._fill(part, tiles[members], group, group_places)
                out[members] = part
        return out

    def _fill(self, out: Tensor, tiles: Tensor, group: Group, places: Sequence[int] | None) -> None:
        """Fill ``out`` with the group's tiles, one chunk at a time."""
        if self.dtype == torch.uint8 and not group.kinds:
            out.copy_(tiles)
            return
        # The last step of every chain: normalisation, or rounding.
        last = torch.tensor(self._finish).expand(len(group.numbers), 6)
        numbers = torch.cat((group.numbers, last), dim=1).to(tiles.device, non_blocking=True)
        if "noise" in group.kinds:
            numbers = _salted(numbers, group.kinds, _digests(tiles, places))
        if self.compile:
            out.copy_(_compiled(group.kinds)(tiles, numbers, out.dtype))
            return
        step = _tiles_per_pass(tiles)
        for first in range(0, len(tiles), step):
            rows = slice(first, first + step)
            planes = augmented(tiles[rows], group.kinds, numbers if len(numbers) == 1 else numbers[rows])
            for channel, plane in enumerate(planes):
                out[rows, channel] = plane  # ``plane`` includes +0.5: conversion to bytes truncates


@functools.cache
def _compiled(kinds: tuple[str, ...]) -> Callable[[Tensor, Tensor, torch.dtype], Tensor]:
    """Return the expression for these kinds, fused by torch.compile at its first call."""

    def fused(tiles: Tensor, numbers: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.stack(augmented(tiles, kinds, numbers), dim=-1).to(dtype).permute(0, 3, 1, 2)

    # torch compiles a code object at most eight times, then runs it uncompiled: each order of kinds gets its own.
    fused.__code__ = fused.__code__.replace(co_name="_".join(("fused", *kinds)))
    return torch.compile(fused, dynamic=True)


def _digests(tiles: Tensor, places: Sequence[int] | None) -> Tensor:
    """Return (n,) int64 that identify tiles: their places, or sums of their bytes with random weights of 24 bits."""
    if places is not None:
        return torch.tensor(places, dtype=torch.int64).to(tiles.device, non_blocking=True)
    values = tiles.permute(0, 2, 3, 1).reshape(len(tiles), -1)
    weights = hashed(torch.arange(values.shape[1], device=tiles.device), 0, 0) >> 8
    step = _tiles_per_pass(tiles)
    parts = [(values[first : first + step] * weights).sum(1) for first in range(0, len(tiles), step)]
    return torch.cat(parts) if parts else weights[:0]


def _salted(numbers: Tensor, kinds: tuple[str, ...], digests: Tensor) -> Tensor:
    """Return the numbers, one row per tile, with the keys of noise changed by the tile's digest."""
    low, high = digests & 0xFFFFFFFF, (digests >> 32) & 0xFFFFFFFF
    salts = torch.stack([hashed(low, high, salt) >> 8 for salt in (1, 2)], dim=1)
    result = numbers.expand(len(digests), -1).clone()
    column = 0
    for kind in kinds:
        if kind == "noise":
            keys = result[:, column + 1 : column + 3]
            keys.copy_((keys.long() + salts) & 0xFFFFFF)
        column += STEPS[kind].width
    return result


def _tiles_per_pass(tiles: Tensor) -> int:
    return max(1, CHUNK_PX[tiles.device.type] // max(1, tiles.shape[2] * tiles.shape[3]))


def _kept(operations: Any) -> tuple[Operation, ...]:
    return tuple(operation for operation in operations if not operation.is_identity)


def _grouped(operations: Sequence[tuple[Operation, ...]]) -> list[Group]:
    members: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for tile, steps in enumerate(operations):
        members[tuple(kind_of(step) for step in steps)].append(tile)
    if len(members) == 1:
        return [Group.of(operations, None)]
    return [Group.of([operations[tile] for tile in tiles], tiles) for tiles in members.values()]


def _finish_numbers(normalize: Statistics | None) -> list[float]:
    """Return factors, then summands: those of (x · rescale − mean) / std, or of rounding half up."""
    if normalize is None:
        return [1.0] * 3 + [0.5] * 3
    pairs = list(zip(normalize.mean, normalize.std, strict=True))
    return [normalize.rescale / std for _, std in pairs] + [-mean / std for mean, std in pairs]


def _check_tiles(tiles: Tensor, count: int | None) -> None:
    if tiles.dtype != torch.uint8:
        raise ConfigError(f"tiles are {tiles.dtype}, not uint8", remedy="augment bytes, then normalise")
    if tiles.ndim != 4 or tiles.shape[1] != 3:
        raise ConfigError(f"tiles have the shape {tuple(tiles.shape)}", remedy="pass (N, 3, H, W)")
    if count is not None and len(tiles) != count:
        raise ConfigError(f"{len(tiles)} tiles and the operations of {count}", remedy="pass one tuple per tile")
