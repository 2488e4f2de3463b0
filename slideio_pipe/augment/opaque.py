"""A transform that stays as it is, albumentationsxl's own or a user's: run on a whole image, its randomness seeded."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from slideio_pipe.augment.operations import Opaque
from slideio_pipe.errors import ConfigError

# The generators below belong to the process: one transform at a time draws from them.
_drawing = threading.Lock()


def run_opaque(image: Any, operation: Opaque) -> Any:
    """Return an 8-bit RGB pyvips image as the transform makes it; the same record, the same pixels.

    Its randomness comes from the generators that every program shares: Python's ``random``, NumPy's ``np.random`` and,
    where torch is loaded, torch's. They are seeded for the call and left as they were. A generator of the transform's
    own (``np.random.default_rng()``) is refused where it is seen: two draws under one seed would differ.

    Raises
    ------
    ConfigError
        It draws from a generator of its own, or changes the size or the format.
    """
    import albumentationsxl  # takes 3 s: only those who use its transforms pay

    transform = albumentationsxl.from_dict(operation.transform)
    with _drawing:
        with _seeded(operation.seed):
            again = transform.get_params()
        with _seeded(operation.seed):
            params = transform.get_params()
            if not _equal(params, again):
                raise ConfigError(
                    f"{operation.name}: two draws under one seed differ",
                    remedy="draw from random or np.random, not from a generator of its own",
                )
            if transform.targets_as_params:
                params |= transform.get_params_dependent_on_targets({"image": image})
            result = transform.apply(image, **transform.update_params(params, image=image))
    if (result.width, result.height, result.bands, result.format) != (image.width, image.height, 3, "uchar"):
        raise ConfigError(
            f"{operation.name} made {result.bands} bands of {result.format}, {result.width}×{result.height} px, of an "
            f"8-bit RGB image of {image.width}×{image.height} px",
            remedy="use transforms that keep size and format",
        )
    return result.copy(interpretation="srgb")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the generators that a process shares, and put them back as they were."""
    torch = sys.modules.get("torch")  # never loaded for this: a transform that draws from it has loaded it
    own, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002  # what users' transforms draw from
    torchs = None if torch is None else torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        if torch is not None:
            torch.default_generator.manual_seed(seed)  # of the CPU alone: no device is touched
        yield
    finally:
        random.setstate(own)
        np.random.set_state(numpys)  # noqa: NPY002
        if torch is not None:
            torch.set_rng_state(torchs)


def _equal(one: Any, other: Any) -> bool:
    """Return whether drawn parameters are the same, as far as they are numbers, words, arrays or lists of them."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, np.ndarray | np.generic | int | float | complex | str | None):
        first, second = np.asarray(one), np.asarray(other)
        same_kind = first.dtype.kind == second.dtype.kind
        return same_kind and np.array_equal(first, second, equal_nan=first.dtype.kind in "fc")
    return True
