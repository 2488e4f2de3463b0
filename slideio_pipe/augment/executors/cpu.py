"""Apply colour operations to decoded uint8 tiles, with the GIL released.

Two executors with the same contract, each within one level of float64: the compiled programs (``compiled/``), and
OpenCV with NumPy, for operations without a compiled form (noise), for systems without the library, and as the tests'
reference. In the second, leading tones become one table of 256 entries.
"""

from __future__ import annotations

import zlib
from collections import deque
from functools import partial
from itertools import pairwise
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from slideio_pipe.augment.executors.compiled import compiled_chain
from slideio_pipe.augment.executors.cpu_steps import CHUNK, LEADS, STEPS, Scratch, Step, as_is, bias_of, clip
from slideio_pipe.augment.operations import Hsv, Noise, Opaque, Operation, Tone
from slideio_pipe.compiled.library import load
from slideio_pipe.errors import ConfigError

Bytes: TypeAlias = NDArray[np.uint8]
Operations: TypeAlias = tuple[Operation, ...]


class ColourProgram:
    """Colour operations compiled for uint8 RGB tiles of any shape; one program may run in several threads at once.

    Raise ConfigError if there is an ``Opaque`` operation, which runs only lazily.

    Parameters
    ----------
    operations : tuple of Operation
        In the order they are applied.
    idle : deque of Scratch, optional
        Pool of work memory; programs that each run on one tile share one.
    reference : bool
        Use OpenCV and NumPy also where there is a compiled form.

    Notes
    -----
    Noise is seeded by the operation and by the tile's bytes: it is equal for the same tile in any batch, and differs
    between tiles.

    Examples
    --------
    >>> program = ColourProgram((Tone(brightness=0.5),))
    >>> program.apply(np.full((1, 1, 3), 101, np.uint8)).tolist()
    [[[51, 51, 51]]]
    """

    def __init__(self, operations: Operations, *, idle: deque[Scratch] | None = None, reference: bool = False) -> None:
        self.operations = tuple(operation for operation in operations if not operation.is_identity)
        for operation in self.operations:
            if isinstance(operation, Opaque):
                raise ConfigError(
                    f"{operation.name} does not run on decoded tiles", remedy="use it in the slide's transform"
                )
        # Not thread-local: Python sees a thread of libvips as a new thread at each call.
        self._idle: deque[Scratch] = deque() if idle is None else idle
        self._programs = None if reference else load()
        # As the compiled programs take it; None if it runs by OpenCV and NumPy.
        self.chain = None if self._programs is None else compiled_chain(self.operations)
        if self.chain is None:
            self._prepare_reference()

    def _prepare_reference(self) -> None:
        curve, rest = lead_curve(self.operations)
        self._table: Any = None  # uint8 to uint8, if there are only tones
        if not rest:
            self._table = round_levels(curve)
            return
        lead, first = LEADS.get(type(rest[0])) or (as_is, STEPS[type(rest[0])])
        self._lead = np.ascontiguousarray(lead(curve), np.float32)
        self._steps: list[Step] = [first(rest[0])]
        self._noise = [operation for operation in rest if isinstance(operation, Noise)]
        for before, operation in pairwise(rest):
            if not isinstance(before, Hsv):  # HSV stays in the range
                self._steps.append(partial(clip, bias=bias_of(before)))
            self._steps.append(STEPS[type(operation)](operation))
        self._bias = bias_of(rest[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        return ColourProgram, (self.operations,)

    def apply(self, tiles: Bytes, out: Bytes | None = None, *, place: int | None = None) -> Bytes:
        """Return the tiles with the operations applied.

        Parameters
        ----------
        tiles : (H, W, 3) or (n, H, W, 3) uint8 RGB
        out : uint8 of the same shape, optional
            Written to and returned; may be ``tiles`` itself.
        place : int, optional
            Seeds the noise together with the operation, in place of the tile's bytes.
        """
        check_tiles(tiles)
        result = _output(tiles, out)
        if self._programs is not None and self.chain is not None:
            contiguous = np.ascontiguousarray(tiles)
            target = result if result.flags.c_contiguous else np.empty(tiles.shape, np.uint8)
            self._programs.colour(contiguous, target, self.chain)
            if target is not result:
                np.copyto(result, target)
            return result
        try:
            scratch = self._idle.pop()
        except IndexError:
            scratch = Scratch()
        done = self._checked(tiles, result, scratch, place)
        self._idle.append(scratch)
        return done

    def _checked(self, tiles: Bytes, out: Bytes, scratch: Scratch, place: int | None = None) -> Bytes:
        if not self.operations or tiles.size == 0:
            np.copyto(out, tiles)
            return out
        if not out.flags.c_contiguous:
            np.copyto(out, self._checked(tiles, np.empty(tiles.shape, np.uint8), scratch, place))
            return out
        for tile, result in zip(_flat(tiles), _flat(out), strict=True):
            if self._table is not None:
                cv2.LUT(tile, self._table, dst=result)
            else:
                self._run(tile, result, scratch, place)
        return out

    def _run(self, tile: Bytes, out: Bytes, scratch: Scratch, place: int | None) -> None:
        if self._noise:
            salt = zlib.crc32(tile.tobytes()) if place is None else place
            scratch.noise = np.random.Generator(np.random.SFC64([salt, *(noise.seed for noise in self._noise)]))
        # One row: OpenCV converts colours row by row; one column takes 5 to 15 times as long.
        pixels, result = tile.reshape(1, -1, 3), out.reshape(1, -1, 3)
        for start in range(0, pixels.shape[1], CHUNK):
            chunk = pixels[:, start : start + CHUNK]
            pixels_now, spare = scratch.pixels[:, :, : chunk.shape[1]]
            cv2.LUT(chunk, self._lead, dst=pixels_now)
            for step in self._steps:
                if step(pixels_now, spare, scratch) is spare:
                    pixels_now, spare = spare, pixels_now
            cv2.add(pixels_now, self._bias, dst=result[:, start : start + CHUNK], dtype=cv2.CV_8U)  # rounds and clips


def check_tiles(tiles: Any) -> None:
    """Raise ``ConfigError`` unless the tiles are uint8 RGB."""
    if not isinstance(tiles, np.ndarray):
        raise ConfigError(f"tiles are a {type(tiles).__name__}", remedy="pass a numpy array of uint8 RGB")
    shape = "×".join(map(str, tiles.shape))
    if tiles.dtype != np.uint8:
        raise ConfigError(f"tiles are {tiles.dtype} ({shape})", remedy="colour operations take uint8 RGB, 0 to 255")
    if tiles.ndim not in (3, 4) or tiles.shape[-1] != 3:
        kind = {1: "grey", 4: "RGBA"}.get(tiles.shape[-1], "not RGB") if tiles.ndim > 2 else "grey"
        raise ConfigError(f"tiles are {kind} ({shape})", remedy="colour operations take (n, H, W, 3) uint8 RGB")


def lead_curve(operations: Operations) -> tuple[NDArray[np.float64], Operations]:
    """Return the leading tones as one float64 curve over 0 … 255, and the operations after them."""
    curve = np.arange(256, dtype=np.float64)
    for count, operation in enumerate(operations):
        if not isinstance(operation, Tone):
            return curve, operations[count:]
        curve = operation.curve(curve)
    return curve, ()


def round_levels(values: NDArray[np.float64]) -> Bytes:
    """Round values from 0 to 255 half up; adding a millionth of a level covers float errors at halves."""
    return np.floor(values + 0.5 + 1e-6).astype(np.uint8)


def _output(tiles: Bytes, out: Bytes | None) -> Bytes:
    if out is None:
        return np.empty(tiles.shape, np.uint8)
    if out.dtype != np.uint8 or out.shape != tiles.shape:
        given = f"out is {out.dtype} {out.shape}, the tiles are {tiles.shape}"
        raise ConfigError(given, remedy="pass uint8 of that shape")
    return out


def _flat(tiles: Bytes) -> Bytes:
    return tiles if tiles.ndim == 4 else tiles[None]
