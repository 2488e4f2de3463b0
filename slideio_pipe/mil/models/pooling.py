"""Pooling of a bag's tile features to one vector, with the share of each tile."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Pooled(NamedTuple):
    """A pooled bag."""

    vector: Tensor  # (D,)
    attention: Tensor  # (N,), sums to 1: the share of each tile


class MeanPool(nn.Module):
    """The mean of all tiles."""

    def forward(self, features: Tensor) -> Pooled:
        """Pool (N, D) features."""
        count = features.shape[0]  # len() would be a constant in an exported model
        return Pooled(features.mean(0), features.new_full((count,), 1 / count))


class MaxPool(nn.Module):
    """The largest value of every feature; a tile's share is the fraction of features with its value."""

    def forward(self, features: Tensor) -> Pooled:
        """Pool (N, D) features."""
        largest = features.amax(0)
        own = (features.detach() == largest.detach()).to(features.dtype)  # tiles with equal values share it
        return Pooled(largest, (own / own.sum(0)).mean(1))


class AttentionPool(nn.Module):
    """The mean of all tiles, weighted by a learnt attention.

    Attention of tile k is softmaxₖ wᵀ tanh(V hₖ); gated: softmaxₖ wᵀ (tanh(V hₖ) ⊙ sigm(U hₖ)). From Ilse, Tomczak and
    Welling, Attention-based deep multiple instance learning, ICML 2018, equations 8 and 9.

    Parameters
    ----------
    in_features : int
        D.
    hidden : int
        Rows of V and U.
    gated : bool

    Examples
    --------
    >>> pooled = AttentionPool(8, 4)(torch.rand(5, 8))
    >>> tuple(pooled.vector.shape), round(pooled.attention.sum().item(), 4)
    ((8,), 1.0)
    """

    def __init__(self, in_features: int, hidden: int, *, gated: bool = False) -> None:
        super().__init__()
        self.value = nn.Linear(in_features, hidden)
        self.gate = nn.Linear(in_features, hidden) if gated else None
        self.score = nn.Linear(hidden, 1, bias=False)  # a bias would not change the softmax

    def forward(self, features: Tensor) -> Pooled:
        """Pool (N, D) features."""
        hidden = torch.tanh(self.value(features))
        if self.gate is not None:
            hidden = hidden * torch.sigmoid(self.gate(features))
        # At least float32: among 50,000 tiles, shares are too small for half precision.
        scores = self.score(hidden).squeeze(1)
        attention = torch.softmax(scores, 0, dtype=torch.promote_types(scores.dtype, torch.float32))
        return Pooled(attention.to(features.dtype) @ features, attention)


POOLINGS = ("attention", "gated", "mean", "max")


def pooling(name: str, in_features: int, hidden: int) -> nn.Module:
    """Return a pooling by its name, one of ``POOLINGS``."""
    if name == "mean":
        return MeanPool()
    if name == "max":
        return MaxPool()
    return AttentionPool(in_features, hidden, gated=name == "gated")
