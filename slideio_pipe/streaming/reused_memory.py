"""Host memory of delivered tiles, used again when the consumer has dropped them."""

from __future__ import annotations

import weakref
from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray

# Blocks that are kept free: the next is taken soon after the consumer dropped one.
_KEPT = 1
# Smaller tensors have memory of their own: it costs little, and a kept one would hold a whole block.
_LEAST_BYTES = 1 << 20
# Larger ones, too: a free block would be as much as everything else that a loader holds.
_MOST_BYTES = 128 << 20


class ReusedMemory:
    """Blocks of host memory of one size, lent to tensors.

    New memory of 25 MB, a chunk of 64 tiles, is mapped page by page as it is written, which takes as long as decoding
    a third of the tiles (``tests/benchmarks/loader.py``). A block returns when the last tensor that uses it is deleted.

    Examples
    --------
    >>> memory = ReusedMemory()
    >>> tiles = memory.empty((1000, 1000), torch.float16)
    >>> place = tiles.data_ptr()
    >>> del tiles
    >>> memory.empty((1000, 1000), torch.float16).data_ptr() == place
    True
    """

    def __init__(self) -> None:
        self._block_bytes = 0
        # A finaliser may run at any moment and in any thread: it only appends, which is atomic.
        self._free: deque[NDArray[np.uint8]] = deque(maxlen=_KEPT)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return an uninitialised, contiguous tensor of the CPU."""
        nbytes = int(np.prod(shape)) * dtype.itemsize
        if nbytes > _MOST_BYTES:
            return torch.empty(shape, dtype=dtype)
        self._block_bytes = max(self._block_bytes, nbytes)
        if nbytes < max(_LEAST_BYTES, self._block_bytes // 2):
            return torch.empty(shape, dtype=dtype)
        return torch.from_numpy(self._lent(nbytes)).view(dtype).view(shape)

    def _lent(self, nbytes: int) -> NDArray[np.uint8]:
        """Return the start of a free block; torch refers to this array as long as a tensor uses it."""
        block = None
        while block is None and self._free:
            block = self._free.popleft()
            block = block if block.nbytes == self._block_bytes else None
        if block is None:
            block = np.empty(self._block_bytes, np.uint8)
        lent = block[:nbytes]
        weakref.finalize(lent, self._free.append, block).atexit = False
        return lent
