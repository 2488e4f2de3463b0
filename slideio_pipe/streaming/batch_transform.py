"""A transform of the caller on batches of tiles, such as torchvision's v2: seeded, run before normalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slideio_pipe.augment.draw import hashed
from slideio_pipe.errors import ConfigError
from slideio_pipe.streaming.device import on_device
from slideio_pipe.streaming.normalize import Normalize
from slideio_pipe.tiles.marks.targets import Targets
from slideio_pipe.tiles.multi_crop import MultiCrop


@dataclass(frozen=True)
class BatchTransform:
    """Calls the transform in the thread that takes the batches: torch's generators are global to the process."""

    function: Callable[[Tensor], Any]
    normalize: Normalize | None  # on the device
    dtype: torch.dtype
    seed: int
    epoch: int
    bag: str

    @classmethod
    def of(
        cls,
        function: Callable[[Tensor], Any],
        normalize: Normalize | None,
        dtype: torch.dtype,
        device: torch.device,
        *,
        seed: int = 0,
        epoch: int = 0,
        bag: str = "",
    ) -> BatchTransform:
        """Return the transform of tiles on a device, which normalises them afterwards."""
        if not callable(function):
            reason = f"the batch transform is a {type(function).__name__}"
            raise ConfigError(reason, remedy="pass a module or function of (n, 3, H, W) uint8 tiles")
        own = None if normalize is None else deepcopy(normalize).to(device)
        return cls(function, own, dtype, seed, epoch, bag)

    def of_bag(self, epoch: int, bag: str) -> BatchTransform:
        """Return the transform of a bag of a cohort in an epoch."""
        return replace(self, epoch=epoch, bag=bag)

    def __call__(self, tiles: Tensor, index: NDArray[np.int64], targets: Sequence[Targets] | None = None) -> Tensor:
        """Return (n, 3, H, W) uint8 tiles transformed, and normalised if they are still bytes.

        Raise ConfigError if the result is no such batch, or was normalised by the transform and would be again; or if
        the tiles have boxes or points.
        """
        if targets is not None:
            reason = "a batch transform with boxes or points, which would not follow it"
            raise ConfigError(reason, slide=self.bag, remedy="pass it as tile_transform, or to the batch")
        made = self._called(tiles, int(index[0])) if len(index) else tiles
        if not isinstance(made, Tensor) or made.ndim != 4 or made.shape[:2] != tiles.shape[:2]:
            what = f"a {type(made).__name__}" if not isinstance(made, Tensor) else f"the shape {tuple(made.shape)}"
            reason = f"the batch transform returned {what} for tiles of the shape {tuple(tiles.shape)}"
            raise ConfigError(reason, slide=self.bag, remedy=f"return ({len(tiles)}, 3, H, W)")
        if made.dtype == torch.uint8:
            if self.normalize is None:
                return made.contiguous(memory_format=torch.channels_last)
            return self.normalize.convert(made, self.dtype, torch.channels_last)
        if self.normalize is not None and len(index):
            reason = f"the batch transform returned {made.dtype}, which {{normalize=}} would normalise again"
            raise ConfigError(reason, slide=self.bag, remedy="pass {normalize=None}, or let it return uint8")
        return made.to(self.dtype, memory_format=torch.channels_last)

    def _called(self, tiles: Tensor, first: int) -> Any:
        """Call the transform with torch's generators seeded; they are as before afterwards."""
        on_cuda = tiles.device.type == "cuda"
        seed = hashed(self.seed, self.epoch, self.bag, "batch", first, digest_bytes=7)
        with torch.random.fork_rng(devices=[tiles.device] if on_cuda else []), torch.no_grad(), on_device(tiles.device):
            torch.default_generator.manual_seed(seed)
            if on_cuda:
                torch.cuda.manual_seed(seed)
            return self.function(tiles)


def check_transformable(name: str | None, views: MultiCrop | None, *, scales: int) -> None:
    """Raise ConfigError if a batch transform would get more than one picture of a tile."""
    if views is not None or scales > 1:
        what = "views" if views is not None else "several magnifications"
        raise ConfigError(f"a batch transform with {what}", slide=name, remedy="transform the batches yourself")
