"""The facts of a network from its source, before arguments are applied."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class EncoderFacts:
    """A network and its facts as loaded."""

    module: nn.Module
    name: str
    source: str
    weights: str  # digest
    config: Mapping[str, Any] = field(default_factory=dict)  # with the keys of timm or of Hugging Face
    pooling: str = "none"
    batch: int | None = None
    dtype: torch.dtype | None = None
    autocast: bool = True
    width: int | None = None  # features per tile, of a known encoder


def weights_digest(module: nn.Module) -> str:
    """Return sixteen hex digits of a network's class and its weights.

    Examples
    --------
    >>> weights_digest(nn.Flatten()) == weights_digest(nn.Flatten()) != weights_digest(nn.Identity())
    True
    """
    found = hashlib.sha256(type(module).__qualname__.encode())
    for name, value in sorted(module.state_dict().items()):
        found.update(name.encode())
        if isinstance(value, Tensor):
            found.update(f"{value.dtype}{tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]
