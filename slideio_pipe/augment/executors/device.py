"""Apply drawn operations to batches of tiles in torch: uint8 in, per-tile numbers as columns, one final rounding.

The same code runs on the CPU and on CUDA.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slideio_pipe.augment.executors.device_columns import KINDS, DeviceColumns, Slot
from slideio_pipe.augment.executors.device_steps import LAB_CONSTANTS, chained, hashed, stepped
from slideio_pipe.augment.operation_columns import OperationColumns
from slideio_pipe.augment.operations import Opaque, Operation
from slideio_pipe.errors import ConfigError

# Pixels per pass. On a CPU temporaries stay in the second-level cache; on a device they stay under a few GB.
CHUNK_PX = {"cpu": 2**16, "cuda": 2**24}


class Statistics(Protocol):
    """Statistics of normalisation: (x · rescale − mean) / std."""

    mean: tuple[float, float, float]  # red first, in units of the rescaled values
    std: tuple[float, float, float]  # likewise
    rescale: float  # factor for a byte, applied first


class DeviceProgram:
    """The drawn operations of a batch of tiles, run on the tiles' device.

    Raise ConfigError if an operation cannot run on a batch, or the dtype is not one of the three.

    Parameters
    ----------
    operations : OperationColumns, sequence of tuples of operations, or one tuple
        One row or tuple per tile, or one for all tiles. Tiles with different orders of operations run together with
        their own numbers: a batch takes one pass per slot, see ``device_columns``.
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
        operations: OperationColumns | Sequence[tuple[Operation, ...]] | tuple[Operation, ...],
        *,
        normalize: Statistics | None,
        dtype: torch.dtype = torch.float16,
        compile: bool = False,
    ) -> None:
        if dtype not in (torch.float16, torch.bfloat16, torch.float32):
            raise ConfigError(f"tiles cannot be {dtype}", remedy="pass float16, bfloat16 or float32")
        self.dtype = torch.uint8 if normalize is None else dtype  # of the result
        columns = operations if isinstance(operations, OperationColumns) else _columns_of(operations)
        self.columns = DeviceColumns.of(columns)
        self.count = None if columns.shared else len(columns.kinds)  # tiles of a batch; None: any
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
        salts = _salts(tiles, places) if (self.columns.kinds == KINDS.index("noise")).any() else None
        if self.compile:
            self._run_compiled(out, tiles, salts)
            return out
        step = _tiles_per_pass(tiles)
        for first in range(0, n, step):
            rows = slice(first, first + step)
            self._run(out[rows], tiles[rows], rows, None if salts is None else salts[rows])
        return out

    def _run(self, out: Tensor, tiles: Tensor, rows: slice, salts: Tensor | None) -> None:
        """Fill ``out`` with some tiles, gathering for each slot those that it changes."""
        slots = self.columns.slots(slice(None) if self.count is None else rows)
        sent = _Sent.of(self.columns, slots, rows.start if self.count else 0, self._finish, tiles.device)
        found = chained(tiles, (), ())
        for slot, members, numbers in zip(slots, sent.members, sent.numbers, strict=True):
            kind, everywhere = KINDS[slot.kind], self.count is None or len(slot.tiles) == len(tiles)
            if kind == "noise" and salts is not None:
                numbers = _salted(numbers, salts if everywhere else salts[members])
            if everywhere:
                found = stepped(kind, found, numbers)
            else:
                found.index_copy_(0, members, stepped(kind, found.index_select(0, members), numbers))
        _finished(found, sent.scale, sent.offset, out)

    def _run_compiled(self, out: Tensor, tiles: Tensor, salts: Tensor | None) -> None:
        """Fill ``out`` with one fused expression per order of kinds."""
        orders, order_of = np.unique(self.columns.kinds, axis=0, return_inverse=True)
        for number in range(len(orders)):
            rows = np.flatnonzero(order_of.ravel() == number)
            part = DeviceColumns(self.columns.kinds[rows], self.columns.numbers[rows])
            slots = part.slots()
            sent = _Sent.of(part, slots, 0, self._finish, tiles.device)
            members = None if len(orders) == 1 else torch.from_numpy(rows).to(tiles.device, non_blocking=True)
            chosen = tiles if members is None else tiles[members]
            kinds, numbers = tuple(KINDS[slot.kind] for slot in slots), list(sent.numbers)
            for k in range(len(kinds)):
                if kinds[k] == "noise" and salts is not None:
                    numbers[k] = _salted(numbers[k], salts if members is None else salts[members])
            found = _compiled(kinds)(chosen, numbers, sent.scale, sent.offset, out.dtype)
            if members is None:
                out.copy_(found)
            else:
                out[members] = found


class _Sent(NamedTuple):
    """The numbers of a pass on the device: one copy for all slots."""

    members: Sequence[Tensor]  # (k,) int64 of each slot
    numbers: Sequence[Tensor]  # (k, P) float32 of each slot
    scale: Tensor  # (3, 1, 1) of the last step: normalisation, or rounding
    offset: Tensor  # likewise

    @classmethod
    def of(
        cls, columns: DeviceColumns, slots: Sequence[Slot], first: int, finish: Sequence[float], device: torch.device
    ) -> _Sent:
        """Send the numbers of slots, whose tiles begin with row ``first`` of the columns."""
        blocks = [_block(columns, slot, first) for slot in slots]
        flat = np.concatenate([*(block.ravel() for block in blocks), np.asarray(finish, np.float32)])
        sizes = [*(block.size for block in blocks), 3, 3]
        *parts, scale, offset = torch.split(torch.from_numpy(flat).to(device, non_blocking=True), sizes)
        tiles = np.concatenate([slot.tiles for slot in slots]) if slots else np.zeros(0, np.int64)
        sent = torch.from_numpy(tiles).to(device, non_blocking=True)
        members = torch.split(sent, [len(slot.tiles) for slot in slots])
        shaped = [part.view(block.shape) for part, block in zip(parts, blocks, strict=True)]
        return cls(members, shaped, scale.view(3, 1, 1), offset.view(3, 1, 1))


def _block(columns: DeviceColumns, slot: Slot, first: int) -> NDArray[np.float32]:
    """Return the (k, P) numbers of a slot, with the constants of its kind."""
    block = columns.numbers[first + slot.tiles, slot.steps]
    if KINDS[slot.kind] != "lab":
        return block
    constants = np.tile(np.asarray(LAB_CONSTANTS, np.float32), (len(block), 1))
    return np.concatenate([block, constants], axis=1)


def _finished(tiles: Tensor, scale: Tensor, offset: Tensor, out: Tensor) -> None:
    """Write float tiles as normalised values or bytes, with one rounding."""
    if out.dtype == torch.uint8:
        out.copy_(tiles.add_(offset))  # conversion to bytes truncates
    else:
        found = tiles.mul_(scale).add_(offset)
        for channel in range(3):  # takes half the time of one copy that also changes the order of memory on a CPU
            out[:, channel] = found[:, channel]


@functools.cache
def _compiled(kinds: tuple[str, ...]) -> Callable[[Tensor, list[Tensor], Tensor, Tensor, torch.dtype], Tensor]:
    """Return the expression for these kinds, fused by torch.compile at its first call."""

    def fused(tiles: Tensor, numbers: list[Tensor], scale: Tensor, offset: Tensor, dtype: torch.dtype) -> Tensor:
        found = chained(tiles, kinds, numbers) * scale + offset
        return found.to(dtype, memory_format=torch.channels_last)

    # torch compiles a code object at most eight times, then runs it uncompiled: each order of kinds gets its own.
    fused.__code__ = fused.__code__.replace(co_name="_".join(("fused", *kinds)))
    return torch.compile(fused, dynamic=True)


def _salts(tiles: Tensor, places: Sequence[int] | None) -> Tensor:
    """Return (n, 2) int64 summands for the keys of noise, from what identifies each tile."""
    digests = _digests(tiles, places)
    low, high = digests & 0xFFFFFFFF, (digests >> 32) & 0xFFFFFFFF
    salts = torch.stack([hashed(low, high, salt) >> 8 for salt in (1, 2)], dim=1)
    return salts.to(tiles.device, non_blocking=True)


def _digests(tiles: Tensor, places: Sequence[int] | None) -> Tensor:
    """Return (n,) int64 that identify tiles: their places, on the host, or sums of bytes with weights of 24 bits."""
    if places is not None:
        return torch.tensor(places, dtype=torch.int64)
    values = tiles.permute(0, 2, 3, 1).reshape(len(tiles), -1)
    weights = hashed(torch.arange(values.shape[1], device=tiles.device), 0, 0) >> 8
    step = _tiles_per_pass(tiles)
    parts = [(values[first : first + step] * weights).sum(1) for first in range(0, len(tiles), step)]
    return torch.cat(parts) if parts else weights[:0]


def _salted(numbers: Tensor, salts: Tensor) -> Tensor:
    """Return the numbers of noise, one row per tile, with its keys changed."""
    result = numbers.expand(len(salts), -1).clone()
    keys = result[:, 1:3]
    keys.copy_((keys.long() + salts) & 0xFFFFFF)
    return result


def _tiles_per_pass(tiles: Tensor) -> int:
    return max(1, CHUNK_PX[tiles.device.type] // max(1, tiles.shape[2] * tiles.shape[3]))


def _columns_of(operations: Sequence[tuple[Operation, ...]] | tuple[Operation, ...]) -> OperationColumns:
    """Return records as arrays: one row per tuple, or one for all tiles."""
    shared = any(not isinstance(entry, tuple) for entry in operations) or operations == ()
    rows: Any = [operations] if shared else operations
    for operation in (operation for row in rows for operation in row):
        if isinstance(operation, Opaque):
            raise ConfigError(
                f"{operation.name} cannot run on a batch of tiles", remedy="use it in the transform of the slide"
            )
    return OperationColumns.of(rows, shared=shared)


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
