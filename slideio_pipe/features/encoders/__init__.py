"""Encoders: networks that turn a tile into one row of features, with the input that each of them needs.

In: a name, a network, or a file. Out: ``Encoder``.
Open first: ``loading.py``, then ``encoder.py``; ``known.yaml`` has the encoders by name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slideio_pipe.features.encoders.encoder import Encoder as Encoder
    from slideio_pipe.features.encoders.encoder import EncoderOnDevice as EncoderOnDevice
    from slideio_pipe.features.encoders.known import known_encoders as known_encoders
    from slideio_pipe.features.encoders.loading import load_encoder as load_encoder
    from slideio_pipe.features.encoders.loading import load_encoders as load_encoders

# Loaded on first use: the table of known encoders does not need torch.
_EXPORTS = {
    "Encoder": "encoder",
    "EncoderOnDevice": "encoder",
    "known_encoders": "known",
    "load_encoder": "loading",
    "load_encoders": "loading",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
