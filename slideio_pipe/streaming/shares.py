"""The bags of an epoch for each rank: equally many on every rank, because gradients are averaged step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from slideio_pipe.errors import ConfigError

Even = Literal["drop", "pad", "none"]


@dataclass(frozen=True, slots=True)
class Share:
    """The bags that this process reads.

    Parameters
    ----------
    even : {"drop", "pad", "none"}
        Handling of bags that cannot be divided evenly; see ``BagLoader``.
    fixed : (int, int), optional
        Rank and number of ranks. By default those of torch.distributed, read when needed: a loader may be made before
        the process group.

    Examples
    --------
    >>> [Share("drop", (rank, 2)).of(range(5)) for rank in range(2)]
    [[0, 2], [1, 3]]
    >>> [Share("pad", (rank, 2)).of(range(5)) for rank in range(2)]
    [[0, 2, 4], [1, 3, 0]]
    """

    even: Even
    fixed: tuple[int, int] | None = None

    @property
    def rank(self) -> int:
        """Return the number of this process."""
        return self._place()[0]

    @property
    def world_size(self) -> int:
        """Return the number of processes."""
        return self._place()[1]

    @property
    def is_even(self) -> bool:
        """Return whether other processes depend on this one's number of bags."""
        return self.even != "none" and self.world_size > 1

    def of(self, order: Sequence[int]) -> list[int]:
        """Return the slides of this process, from all slides in their order.

        Raise ConfigError if there are fewer slides than processes, and "drop" would leave none.
        """
        rank, world_size = self._place()
        count, left = len(order), len(order) % world_size
        if self.even == "drop":
            if count < world_size:
                raise ConfigError(
                    f"{count} slides for {world_size} processes: none is left when all read equally many",
                    remedy='use fewer processes, or pass even="pad"',
                )
            order = order[: count - left]
        elif self.even == "pad" and left:
            order = [order[place % count] for place in range(count + world_size - left)]
        return list(order[rank::world_size])

    def dropped(self, count: int) -> int:
        """Return how many of ``count`` slides no process reads."""
        return count % self.world_size if self.even == "drop" else 0

    def _place(self) -> tuple[int, int]:
        if self.fixed is not None:
            return self.fixed
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            return 0, 1
        return distributed.get_rank(), distributed.get_world_size()


def share_of(rank: int | None, world_size: int | None, even: str) -> Share:
    """Return a validated share; raise ConfigError if an argument is invalid."""
    if even not in get_args(Even):
        raise ConfigError(f"even is {even!r}", remedy='pass "drop", "pad" or "none"')
    policy: Even = even  # type: ignore[assignment]
    if (rank is None) != (world_size is None):
        raise ConfigError("rank without world_size, or the other way round", remedy="pass both")
    if rank is None or world_size is None:
        return Share(policy)
    for name, value in (("rank", rank), ("world_size", world_size)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise ConfigError(f"{name} is {value!r}", remedy="pass an integer")
    if world_size < 1:
        raise ConfigError(f"world_size is {world_size}", remedy="pass an integer >= 1")
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank is {rank} of {world_size}", remedy=f"pass 0 to {world_size - 1}")
    return Share(policy, (int(rank), int(world_size)))
