"""Colour operations on a batch of decoded tiles, one tuple for all or one per tile, as a loader applies them."""

from __future__ import annotations

from collections.abc import Sequence

from slideio_pipe.augment.executors.cpu import Bytes, ColourProgram, Operations, _output, check_tiles
from slideio_pipe.errors import ConfigError


def apply_cpu(tiles: Bytes, draws: Operations | Sequence[Operations], out: Bytes | None = None) -> Bytes:
    """Return a batch with colour operations applied: one tuple of operations for all tiles, or one tuple per tile.

    Parameters
    ----------
    tiles : (n, H, W, 3) uint8 RGB
    draws : tuple of Operation, or a sequence of n such tuples
    out : (n, H, W, 3) uint8, optional
        Written to and returned; may be ``tiles`` itself.

    Raises
    ------
    ConfigError
        The tiles are not uint8 RGB, their number differs from that of the draws, or an operation runs only lazily.
    """
    check_tiles(tiles)
    if not draws or not isinstance(draws[0], tuple | list):
        return ColourProgram(tuple(draws)).apply(tiles, out)  # type: ignore[arg-type]  # operations, not tuples of them
    if tiles.ndim != 4 or len(draws) != len(tiles):
        raise ConfigError(f"{len(draws)} draws for tiles of shape {tiles.shape}", remedy="pass one draw per tile")
    out = _output(tiles, out)
    for tile, operations, result in zip(tiles, draws, out, strict=True):
        ColourProgram(tuple(operations)).apply(tile, result)  # type: ignore[arg-type]
    return out
