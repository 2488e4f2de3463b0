"""The model from a bag's features to its prediction: embedding, pooling, head; or a torchmil model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import ArrayLike
from torch import Tensor, nn

from slideio_pipe.errors import ConfigError
from slideio_pipe.mil.models.bag_model import TORCHMIL, BagModel, MilOutput
from slideio_pipe.mil.models.pooling import POOLINGS, pooling
from slideio_pipe.mil.models.torchmil_model import TorchMilModel


class MilModel(BagModel):
    """Maps the features of one bag to the logits of its slide.

    Parameters
    ----------
    in_features : int
        D, features per tile.
    outputs : int
        Logits: 1 for two classes, a number or a risk; else one per class.
    pool : {"gated", "attention", "mean", "max"}
        Pooling of tiles to a bag; see ``pooling``.
    embed : sequence of int
        Widths of the embedding layers, each with ReLU and dropout, applied to every tile's features.
    attention : int
        Width of the attention.
    dropout : float
        After each embedding layer.

    Raises
    ------
    ConfigError
        An argument is invalid.

    Examples
    --------
    >>> import torch
    >>> out = MilModel(16, 1, pool="attention", embed=(8,)).eval()(torch.rand(5, 16))
    >>> tuple(out.logits.shape), tuple(out.attention.shape), tuple(out.instances.shape)
    ((1,), (5,), (5, 1))
    """

    def __init__(
        self,
        in_features: int,
        outputs: int = 1,
        *,
        pool: str = "gated",
        embed: Sequence[int] = (256,),
        attention: int = 128,
        dropout: float = 0.25,
    ) -> None:
        if pool not in POOLINGS:
            raise ConfigError(f"no pooling {pool!r}", remedy=f"pass {', '.join(POOLINGS)} or torchmil:NAME")
        for name, value in (("in_features", in_features), ("outputs", outputs), ("attention", attention)):
            if value < 1:
                raise ConfigError(f"{name} is {value}", remedy="pass at least 1")
        super().__init__(in_features, outputs)
        layers: list[nn.Module] = []
        width = in_features
        for wider in embed:
            layers += [nn.Linear(width, wider), nn.ReLU(), nn.Dropout(dropout)]
            width = wider
        self.embed = nn.Sequential(*layers)
        self.pool = pooling(pool, width, attention)
        self.head = nn.Linear(width, outputs)

    def forward(self, features: Tensor, coords: ArrayLike | None = None, target: Tensor | None = None) -> MilOutput:
        """Return the output for a bag of (N, D) features; coordinates and target are ignored."""
        del coords, target
        embedded = self.embed(self.prepared(features))
        pooled = self.pool(embedded)
        instances = None if self.training else self.head(embedded)
        return MilOutput(self.head(pooled.vector), pooled.attention, instances)


def build_model(name: str, in_features: int, outputs: int, **settings: Any) -> BagModel:
    """Return a model by name: a pooling of ours, or ``torchmil:TransMIL``.

    Raise ConfigError if there is no such model, or it does not support these settings or outputs; MissingExtraError if
    torchmil is not installed.
    """
    if name.startswith(TORCHMIL):
        return TorchMilModel(name.removeprefix(TORCHMIL), in_features, outputs, **settings)
    try:
        return MilModel(in_features, outputs, pool=name, **settings)
    except TypeError as error:
        raise ConfigError(f"{name} has other settings ({error})", remedy="pass embed, attention, dropout") from error
