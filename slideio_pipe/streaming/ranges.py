"""Ranges of our stages in ``torch.profiler``: made only while it runs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.autograd import profiler

_NONE: AbstractContextManager[object] = nullcontext()


def ranged(stage: str) -> AbstractContextManager[object]:
    """Return a context that is a range ``slideio_pipe.<stage>`` in a running profile; otherwise nothing is done.

    A profile has the ranges of the thread that started it; those of the stream's own threads only if it is made for all
    threads.

    Examples
    --------
    >>> with torch.profiler.profile() as found, ranged("wait"):
    ...     pass
    >>> [event.name for event in found.events()]
    ['slideio_pipe.wait']
    """
    # The profiler's own state is of a thread; this is of the process.
    return torch.profiler.record_function(f"slideio_pipe.{stage}") if profiler._is_profiler_enabled else _NONE
