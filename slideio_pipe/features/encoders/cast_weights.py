"""A network whose weights have the dtype that autocast computes in, cast once."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn

# Layers that autocast computes in the lower precision, with all of their own parameters.
_LOWERED: frozenset[type[nn.Module]] = frozenset(
    {
        nn.Linear,
        nn.modules.linear.NonDynamicallyQuantizableLinear,
        nn.MultiheadAttention,
        *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
        *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    }
)
_NAMES = frozenset({"weight", "bias", "in_proj_weight", "in_proj_bias"})


def with_cast_weights(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of a network, to run under autocast, whose float32 weights are cast as autocast casts them.

    Autocast casts them in every call, because it keeps casts only of weights that are trained, and only until the
    outermost autocast ends. All other parameters and buffers are those of ``module``; it is returned itself if it has
    no weight to cast, or cannot be copied.

    Examples
    --------
    >>> network = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    >>> [value.dtype for value in with_cast_weights(network, torch.bfloat16).parameters()]
    [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    """
    lowered, others = set[nn.Parameter](), set[nn.Parameter]()
    for layer in module.modules():  # subclasses, and hooks with weights of their own, may use them in other ways
        for name, value in layer.named_parameters(recurse=False):
            (lowered if type(layer) in _LOWERED and name in _NAMES else others).add(value)
    cast = {value for value in lowered - others if value.dtype == torch.float32}
    if not cast:
        return module
    kept: list[Any] = [*module.parameters(), *module.buffers()]
    memo = {id(value): value for value in kept}
    memo |= {id(value): nn.Parameter(value.detach().to(dtype), requires_grad=False) for value in cast}
    try:
        return deepcopy(module, memo)
    except Exception:  # a network may hold anything, such as a lock
        return module
