"""Base class of bag models: features of a bag in, logits and attention out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from slideio_pipe.errors import ConfigError

TORCHMIL = "torchmil:"


class MilOutput(NamedTuple):
    """The output of a model for a bag."""

    logits: Tensor  # (outputs,)
    attention: Tensor | None  # (N,), sums to 1: the share of each tile; None: an aggregator of the caller has none
    instances: Tensor | None = None  # (N, outputs): logits of each tile as a bag of one
    auxiliary: Tensor | None = None  # (): the model's own loss, if it has one


class BagModel(nn.Module):
    """Base class: checks the number of features, and scales them.

    Parameters
    ----------
    in_features, outputs : int
        D, and the number of logits.
    """

    shift: Tensor  # (D,)
    scale: Tensor  # (D,)

    def __init__(self, in_features: int, outputs: int) -> None:
        super().__init__()
        self.in_features, self.outputs = in_features, outputs
        self.register_buffer("shift", torch.zeros(in_features))
        self.register_buffer("scale", torch.ones(in_features))

    def standardize(self, mean: Tensor, std: Tensor) -> None:
        """Scale features to mean 0 and deviation 1; nearly constant ones are only shifted."""
        varies = std > 1e-6 * std.max().clamp(min=1e-12)
        self.shift.copy_(mean)
        self.scale.copy_(torch.where(varies, 1 / std.clamp(min=1e-30), torch.ones_like(std)))

    def prepared(self, features: Tensor) -> Tensor:
        """Return (N, D) features with the training's scaling; raise ConfigError if they are not (N, D), or N is 0."""
        if features.ndim != 2 or features.shape[1] != self.in_features:
            raise ConfigError(
                f"features of the shape {tuple(features.shape)}, the model takes (N, {self.in_features})",
                remedy="pass features of the encoder that it was made for",
            )
        if not features.shape[0]:  # a symbol in an exported model, where len() would be a constant
            raise ConfigError("a bag without a tile", remedy="leave it out")
        return (features - self.shift) * self.scale
