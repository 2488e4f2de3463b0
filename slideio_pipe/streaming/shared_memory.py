"""Memory that this process and its worker processes share, and that disappears with them."""

from __future__ import annotations

import mmap
import os
import tempfile
import uuid
from multiprocessing import context, reduction
from typing import Any

import numpy as np
from numpy.typing import NDArray


class SharedMemory:
    """Zeroed memory that worker processes map as well; it goes with a worker's arguments when the worker is started.

    It has no name that could stay behind when processes are killed: on Linux it is a memfd, which the small /dev/shm of
    a container does not limit; on other POSIX systems an unlinked temporary file; on Windows a mapping, which the
    system frees with its last process.

    Parameters
    ----------
    nbytes : int
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._fd, self._tag = -1, ""
        if os.name == "nt":
            self._tag = f"slideio_pipe-{uuid.uuid4().hex}"
            self._map = mmap.mmap(-1, nbytes, tagname=self._tag)  # type: ignore[call-arg,unused-ignore]
            return
        self._fd = _nameless_file()
        os.ftruncate(self._fd, nbytes)
        self._map = mmap.mmap(self._fd, nbytes)

    @property
    def array(self) -> NDArray[np.uint8]:
        """The memory, (nbytes,) uint8."""
        return np.frombuffer(self._map, np.uint8)

    def __reduce__(self) -> tuple[Any, ...]:
        context.assert_spawning(self)
        return _mapped, (self._tag or reduction.DupFd(self._fd), self.nbytes)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            os.close(self._fd)  # the mapping lasts as long as its arrays


def _nameless_file() -> int:
    """Return a descriptor of an empty file that no folder lists."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("slideio_pipe")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _mapped(place: Any, nbytes: int) -> NDArray[np.uint8]:
    """Return the memory in a worker process, (nbytes,) uint8."""
    if isinstance(place, str):
        return np.frombuffer(mmap.mmap(-1, nbytes, tagname=place), np.uint8)  # type: ignore[call-arg,unused-ignore]
    fd = place.detach()
    try:
        return np.frombuffer(mmap.mmap(fd, nbytes), np.uint8)
    finally:
        os.close(fd)
