"""What every model of bags has in common: features of a bag in, logits and attention out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from slideio_pipe.errors import ConfigError

TORCHMIL = "torchmil:"


class MilOutput(NamedTuple):
    """What a model says of a bag."""

    logits: Tensor  # (outputs,)
    attention: Tensor  # (N,), adds up to 1: the share of each tile
    instances: Tensor | None = None  # (N, outputs): logits that each tile would have as a bag of its own
    auxiliary: Tensor | None = None  # (): what the model adds to the loss, where it does


class BagModel(nn.Module):
    """What models have in common: how many features they take, and to what scale these are brought.

    Parameters
    ----------
    in_features, outputs : int
        D, and how many logits.
    """

    shift: Tensor  # (D,)
    scale: Tensor  # (D,)

    def __init__(self, in_features: int, outputs: int) -> None:
        super().__init__()
        self.in_features, self.outputs = in_features, outputs
        self.register_buffer("shift", torch.zeros(in_features))
        self.register_buffer("scale", torch.ones(in_features))

    def standardize(self, mean: Tensor, std: Tensor) -> None:
        """Have features brought to mean 0 and deviation 1; those that hardly vary are only shifted."""
        varies = std > 1e-6 * std.max().clamp(min=1e-12)
        self.shift.copy_(mean)
        self.scale.copy_(torch.where(varies, 1 / std.clamp(min=1e-30), torch.ones_like(std)))

    def prepared(self, features: Tensor) -> Tensor:
        """Return (N, D) features to the scale of the training's.

        Raises
        ------
        ConfigError
            They are not (N, D), or N is 0.
        """
        if features.ndim != 2 or features.shape[1] != self.in_features:
            raise ConfigError(
                f"features of the shape {tuple(features.shape)}, the model takes (N, {self.in_features})",
                remedy="give it features of the encoder that it was made for",
            )
        if not features.shape[0]:  # a symbol when the model is exported, where len() is a constant
            raise ConfigError("a bag without a tile", remedy="leave it out")
        return (features - self.shift) * self.scale
