"""Load the compiled programs and call them; ctypes releases the GIL for each call."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.compiled.compile_programs import digest, has_sources
from slideio_pipe.compiled.jpeg_decoder import decoder_functions
from slideio_pipe.compiled.records import TILE

# Of one thread: a 1,024-px tile turned by 45° at the finest level that it may be sampled from takes 8 MB.
_SCRATCH_BYTES = 2 * 2**20
_FOLDER = Path(__file__).parent
_BYTE = ctypes.c_char
# C-contiguous arrays of one shape for the pixels of tiles, or one array of them.
Slots = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]
_in_use = True  # in this process; see ``use_compiled``


class Programs:
    """The functions of the library.

    Attributes
    ----------
    decodes : bool
        Whether ``decode`` may be called: whether a JPEG decoder was found.

    Examples
    --------
    >>> from slideio_pipe.compiled.records import OP, TONE
    >>> programs = load()
    >>> halved = np.zeros(1, OP)
    >>> halved["kind"], halved["p"][0, :3] = TONE, (0.5, 0, 1)
    >>> pixels = np.full((4, 3), 101, np.uint8)
    >>> if programs is not None:  # None: there is no library for this system
    ...     programs.colour(pixels, pixels, halved)
    ...     assert pixels.max() == 51
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(path))
        pointer, whole, long = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
        self._run = _function(self._library, "tile_run", [pointer, whole, whole, whole, pointer, long], long)
        self._colour = _function(self._library, "colour_run", [pointer, pointer, long, pointer, whole], None)
        self._half = _function(self._library, "half_run", [pointer, pointer, long, pointer, pointer], whole)
        self._instructions = _function(self._library, "instruction_set", [whole], whole)
        self.built_from: str = _function(self._library, "built_from", [], ctypes.c_char_p)().decode()
        self._decode = _function(self._library, "decode_run", [pointer, whole, pointer, long], long)
        functions = decoder_functions()
        use = _function(self._library, "decode_use", [pointer], whole)
        self.decodes = functions is not None and bool(use(functions))
        self._local = threading.local()

    def instruction_set(self, chosen: int = 0) -> int:
        """Return the instruction set in use, 1, 2 or 3, after setting it, unless ``chosen`` is 0."""
        return int(self._instructions(chosen))

    def colour(self, pixels: NDArray[np.uint8], out: NDArray[np.uint8], ops: NDArray[Any]) -> None:
        """Apply operations, (n,) ``records.OP``, to C-contiguous RGB pixels; ``out`` may be ``pixels``."""
        self._colour(pixels.ctypes.data, out.ctypes.data, pixels.size // 3, ops.ctypes.data, len(ops))

    def half(
        self, pixels: NDArray[np.uint8], out: NDArray[Any], scale: NDArray[np.float32], offset: NDArray[np.float32]
    ) -> bool:
        """Write RGB pixels as 16-bit floats, value · scale + offset per channel; False if the processor cannot.

        ``pixels`` and ``out`` are C-contiguous, (…, 3).
        """
        count = pixels.size // 3
        done = self._half(pixels.ctypes.data, out.ctypes.data, count, scale.ctypes.data, offset.ctypes.data)
        return bool(done)

    def run(self, tiles: NDArray[Any], first: int, count: int, width: int, height: int) -> None:
        """Run programs ``first`` to ``first + count`` of ``tiles``, (n,) ``records.TILE``, of tiles of one size.

        What the programs point to must exist until the call returns.
        """
        scratch = self._scratch(_SCRATCH_BYTES)
        start = tiles.ctypes.data + first * TILE.itemsize
        needed = self._run(start, count, width, height, address(scratch), scratch.size)
        while needed:
            if needed < 0:
                raise MemoryError("a tile reaches more than 2 GB of its level")
            scratch = self._scratch(needed)
            needed = self._run(start, count, width, height, address(scratch), scratch.size)

    def decode(self, tiles: NDArray[Any], longest: int) -> float:
        """Decode stored tiles, (n,) ``records.STORED_TILE``; return the seconds that reading the file took.

        Those without ``done`` afterwards were not decoded. ``longest`` is the number of bytes of the longest stream
        with its head. What the tiles point to must exist until the call returns.
        """
        scratch = self._scratch(longest)
        return float(self._decode(tiles.ctypes.data, len(tiles), address(scratch), scratch.size) / 1e9)

    def _scratch(self, size: int) -> NDArray[np.uint8]:
        """Return this thread's work memory, at least ``size`` bytes."""
        scratch: NDArray[np.uint8] | None = getattr(self._local, "scratch", None)
        if scratch is None or scratch.size < size:
            scratch = self._local.scratch = np.empty(size, np.uint8)
        return scratch


def address(array: NDArray[Any]) -> int:
    """Return where the memory of a C-contiguous, writeable array begins, not of an empty one; faster than NumPy's."""
    return ctypes.addressof(_BYTE.from_buffer(array))  # type: ignore[arg-type]  # NumPy does not declare its buffers


def addresses(slots: Slots) -> list[int]:
    """Return where the memory of each slot begins."""
    if isinstance(slots, np.ndarray):
        start, step = address(slots), slots.strides[0]
        return [start + step * k for k in range(len(slots))]
    return [address(slot) for slot in slots]


def _function(library: ctypes.CDLL, name: str, takes: list[Any], gives: Any) -> Any:
    function = getattr(library, name)
    function.argtypes, function.restype = takes, gives
    return function


def use_compiled(use: bool) -> None:
    """Use the compiled programs, as by default, or OpenCV and NumPy in their place, to compare them.

    The choice is of this process and of the worker processes that the package starts afterwards. On the command line
    it is the environment variable SLIDEIO_PIPE_COMPILED, 0 or 1.

    Examples
    --------
    >>> use_compiled(False)
    >>> load() is None
    True
    >>> use_compiled(True)
    """
    global _in_use
    _in_use = use


def is_compiled_used() -> bool:
    """Return the choice of ``use_compiled``, also where there is no library for this system."""
    return _in_use


def load() -> Programs | None:
    """Return the compiled programs; None if there is no library for this system, or they are not to be used."""
    return _loaded() if _in_use else None


@cache
def _loaded() -> Programs | None:
    for ending in ("so", "dylib", "dll"):
        path = _FOLDER / f"tile_program.{ending}"
        if path.exists():
            try:
                found = Programs(path)
            except (OSError, AttributeError):  # made for another system, or long ago
                return None
            # Another layout of the structs would crash; an installation may have no sources.
            return found if found.built_from == digest() or not has_sources() else None
    return None
