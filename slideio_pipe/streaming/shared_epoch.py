"""The epoch of a dataset, in memory that its copies in other processes share."""

from __future__ import annotations

import sys
from contextlib import suppress

import torch

# Places in the tensor: the epoch, whether the warning was given, then the epoch (from 1 on) in which each bag was read.
_EPOCH, _WARNED, _READ = 0, 1, 2


class SharedEpoch:
    """The epoch that ``set_epoch`` chose, for this process and for workers that live on (``persistent_workers``).

    It also notes which bags a DataLoader has read in this epoch: a second time is the sign of a loop that does not call
    ``set_epoch``, because its draws are those of the first time.

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
        """Return the epoch as it is now, whichever process chose it."""
        return int(self._values[_EPOCH])

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._values[_READ:] = 0
        self._values[_EPOCH] = epoch

    def is_first_repeat(self, number: int, epoch: int) -> bool:
        """Note that a bag is read; return whether it was before in this epoch, and that was not said yet."""
        place = _READ + number
        again = int(self._values[place]) == epoch + 1
        self._values[place] = epoch + 1
        if not again or self._values[_WARNED]:
            return False
        self._values[_WARNED] = 1
        return True

    def _share(self) -> None:
        with suppress(RuntimeError):  # no shared memory here: then a worker that lives on repeats itself, and warns
            self._values.share_memory_()  # type: ignore[no-untyped-call]

    def __getstate__(self) -> torch.Tensor:
        return self._values  # DataLoader's pickler passes a handle on, any other one a copy

    def __setstate__(self, values: torch.Tensor) -> None:
        self._values = values
        self._share()


def is_read_by_data_loader() -> bool:
    """Return whether a torch DataLoader is what asks, through whatever stands between."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        if frame.f_globals.get("__name__") == "torch.utils.data._utils.fetch":
            return True
        frame = frame.f_back
    return False
