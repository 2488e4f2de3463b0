"""Bags for worker processes: what they do when they are read happens in the process that reads them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
from array_bag import ArrayBag


class FatalBag(ArrayBag):
    """Kills the process that reads one of its tiles: every time, or once if a file is named that then marks it."""

    def __init__(self, tiles: np.ndarray, name: str, tile: int, once: Path | None = None) -> None:
        super().__init__(tiles, name)
        self.before_read = _Kill(tile, once)


class _Kill:
    def __init__(self, tile: int, once: Path | None) -> None:
        self.tile, self.once, self.owner = tile, once, os.getpid()

    def __call__(self, indices: np.ndarray) -> None:
        if self.tile not in indices or os.getpid() == self.owner:
            return
        if self.once is not None:
            if self.once.exists():
                return
            self.once.touch()
        os.kill(os.getpid(), signal.SIGKILL)


class UnmadeBag(ArrayBag):
    """Cannot be unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _refuse, ()


def _refuse() -> None:
    raise RuntimeError("no licence here")


class SlowBag(ArrayBag):
    """Takes a while for each read."""

    def __init__(self, tiles: np.ndarray, name: str, seconds: float) -> None:
        super().__init__(tiles, name)
        self.before_read = _Wait(seconds)


class _Wait:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, indices: np.ndarray) -> None:
        time.sleep(self.seconds)
