"""Features of tiles at several magnifications: one array with all of them, or one for each.

With "concat" the features of an encoder are (N, S·D), magnification by magnification, finest first. With "apart" there
is an array of (N, D) for each, ``uni-0.5um`` and ``uni-2um``; ``open_features`` joins them under the name ``uni``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.errors import ConfigError

ContextFeatures = Literal["concat", "apart"]
# Attributes of stored features: the µm per px of all magnifications of an array; or its own, and whose it is.
CONTEXT, SCALE, SCALE_OF = "context", "scale", "scale_of"


def check_context_features(how: str) -> ContextFeatures:
    """Return the way of storing several magnifications; raise ConfigError if there is no such way."""
    for known in get_args(ContextFeatures):
        if how == known:
            found: ContextFeatures = known
            return found
    remedy = f"pass {{context_features={' or '.join(map(repr, get_args(ContextFeatures)))}}}"
    raise ConfigError(f"features of several magnifications cannot be {how!r}", remedy=remedy)


def mpps_in(facts: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the µm per px of the magnifications of an array, from its attributes; empty for one magnification."""
    return () if SCALE in facts else tuple(float(mpp) for mpp in facts.get(CONTEXT, ()))


def in_words(mpps: Sequence[float | None]) -> str:
    """Return magnifications as text.

    >>> in_words((0.5, 2.0)), in_words((None, 2.0)), in_words(())
    ('the magnifications 0.5 and 2 µm', 'the magnifications native and 2 µm', 'one magnification')
    """
    if not mpps:
        return "one magnification"
    *others, last = ("native" if mpp is None else f"{mpp:g}" for mpp in mpps)
    return f"the magnifications {', '.join(others)} and {last} µm" if others else f"the magnification {last} µm"


def array_names(encoder: str, mpps: Sequence[float], how: ContextFeatures) -> tuple[str, ...]:
    """Return the names of an encoder's arrays.

    >>> array_names("uni", (0.5, 2.0), "apart"), array_names("uni", (0.5, 2.0), "concat")
    (('uni-0.5um', 'uni-2um'), ('uni',))
    """
    return (encoder,) if how == "concat" or not mpps else tuple(f"{encoder}-{mpp:g}um" for mpp in mpps)


def array_facts(
    facts: Mapping[str, Any], encoder: str, mpps: Sequence[float], how: ContextFeatures
) -> dict[str, dict[str, Any]]:
    """Return the attributes of each of an encoder's arrays, by name; those of one magnification are the encoder's."""
    names = array_names(encoder, mpps, how)
    if not mpps:
        return {encoder: dict(facts)}
    if how == "concat":
        added: list[dict[str, Any]] = [{CONTEXT: list(mpps)}]
    else:
        added = [{CONTEXT: list(mpps), SCALE: mpp, SCALE_OF: encoder} for mpp in mpps]
    return {
        name: {**facts, **more, "digest": _digest(facts["digest"], more)}
        for name, more in zip(names, added, strict=True)
    }


def split_scales(
    features: NDArray[Any], encoder: str, mpps: Sequence[float], how: ContextFeatures
) -> dict[str, NDArray[Any]]:
    """Return the arrays of an encoder by name, from its features of all magnifications (N, S·D)."""
    names = array_names(encoder, mpps, how)
    return dict(zip(names, np.split(features, len(names), axis=1), strict=True))


def _digest(of_encoder: str, more: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([of_encoder, dict(more)], sort_keys=True).encode()).hexdigest()[:16]
