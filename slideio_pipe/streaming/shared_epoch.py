"""The epoch of a dataset, in memory shared with its copies in other processes."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress

import torch

# Indices in the tensor: the epoch, the process that warned, then the epoch (from 1) in which each bag was read.
_EPOCH, _WARNED, _READ = 0, 1, 2
# Once per dataset: longer than a worker that was about to write may be interrupted on a busy machine.
_OTHERS_WRITE_S = 0.1


class SharedEpoch:
    """The epoch set by ``set_epoch``, for this process and for persistent workers (``persistent_workers``).

    It also records which bags a DataLoader has read in this epoch: a second read means that the loop does not call
    ``set_epoch``, so its draws are repeated.

    Parameters
    ----------
    count : int
        Bags of the dataset.
    """

    def __init__(self, count: int) -> None:
        self._values = torch.zeros(_READ + count, dtype=torch.int64)
        self._share()

    @property
    def epoch(self) -> int:
        """Return the current epoch, set by any process."""
        return int(self._values[_EPOCH])

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._values[_READ:] = 0
        self._values[_EPOCH] = epoch

    def is_first_repeat(self, number: int, epoch: int) -> bool:
        """Record that a bag is read; return whether it is the first repeated read of this epoch without a warning."""
        place = _READ + number
        is_repeat = int(self._values[place]) == epoch + 1
        self._values[place] = epoch + 1
        if not is_repeat or self._values[_WARNED]:
            return False
        # Two workers may be here at once. Both write, wait until the other has written, and the last one warns.
        self._values[_WARNED] = os.getpid()
        time.sleep(_OTHERS_WRITE_S)
        return int(self._values[_WARNED]) == os.getpid()

    def _share(self) -> None:
        with suppress(RuntimeError):  # without shared memory a persistent worker repeats its draws and warns
            self._values.share_memory_()  # type: ignore[no-untyped-call]

    def __getstate__(self) -> torch.Tensor:
        return self._values  # DataLoader's pickler passes a handle, any other a copy

    def __setstate__(self, values: torch.Tensor) -> None:
        self._values = values
        self._share()


def is_read_by_data_loader() -> bool:
    """Return whether the call comes from a torch DataLoader, directly or through other functions."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        if frame.f_globals.get("__name__") == "torch.utils.data._utils.fetch":
            return True
        frame = frame.f_back
    return False
