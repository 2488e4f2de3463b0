"""Run a transform that is not translated to operations (albumentationsxl's or a user's) on a whole image, seeded."""

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

# The generators below are global to the process: only one transform at a time may use them.
_random_lock = threading.Lock()


def run_opaque(image: Any, operation: Opaque) -> Any:
    """Return an 8-bit RGB pyvips image as transformed; the same record gives the same pixels.

    Randomness comes from the global generators: Python's ``random``, NumPy's ``np.random`` and, where torch is loaded,
    torch's. They are seeded for the call and restored after it. A private generator of the transform
    (``np.random.default_rng()``) is refused if detected: two runs with one seed would differ. Raise ConfigError if it
    uses a private generator, or changes the size or the format.
    """
    import albumentationsxl  # takes 3 s to import: only when needed

    transform = albumentationsxl.from_dict(operation.transform)
    with _random_lock:
        with _seeded(operation.seed):
            repeated = transform.get_params()
        with _seeded(operation.seed):
            params = transform.get_params()
            if not _equal(params, repeated):
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
    """Seed the global generators and restore them afterwards."""
    torch = sys.modules.get("torch")  # not imported here: a transform that uses torch has imported it
    own, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002  # used by users' transforms
    torchs = None if torch is None else torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        if torch is not None:
            torch.default_generator.manual_seed(seed)  # the CPU's only: devices are not initialised
        yield
    finally:
        random.setstate(own)
        np.random.set_state(numpys)  # noqa: NPY002
        if torch is not None:
            torch.set_rng_state(torchs)


def _equal(one: Any, other: Any) -> bool:
    """Return whether drawn parameters are equal; compares numbers, strings, arrays and lists of them."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, np.ndarray | np.generic | int | float | complex | str | None):
        first, second = np.asarray(one), np.asarray(other)
        same_kind = first.dtype.kind == second.dtype.kind
        return same_kind and np.array_equal(first, second, equal_nan=first.dtype.kind in "fc")
    return True
