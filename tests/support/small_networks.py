"""A network, an aggregator and a bag that are small, and their gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from slideio_pipe.mil.models.mil_model import MilModel

TILES = 65


def encoder(dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Return a small network with layers that make chunks difficult."""
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 16),
    )  # fmt: skip
    network[1].running_mean.normal_()
    network[1].running_var.uniform_(0.5, 2)
    return network.to(dtype)


def model(pool: str = "gated", dtype: torch.dtype = torch.float64) -> MilModel:
    """Return an aggregator."""
    torch.manual_seed(4)
    return MilModel(16, 1, pool=pool, embed=(12,), attention=8, dropout=0.0).to(dtype)


def tiles(count: int = TILES, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return a bag of noise."""
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)


def gradients(*modules: nn.Module) -> Tensor:
    """Return all gradients in one vector."""
    return torch.cat(
        [p.grad.flatten().double() for module in modules for p in module.parameters() if p.grad is not None]
    )
