"""Small networks for tests of encoders, and the plain way to encode a tile with them."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

DIM = 8


def network(dim: int = DIM, seed: int = 0) -> nn.Module:
    """Return a convolutional network of any input size."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, dim, 7, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


class Watched(nn.Module):
    """A network that counts its batches."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.batches = inner, []

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(tiles))
        return self.inner(tiles)


class Reciprocal(nn.Module):
    """The reciprocal of a tile's mean: infinite for a black one."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        mean = tiles.mean((2, 3))
        return mean / (mean * mean)


def reference(tile: np.ndarray, model: nn.Module, mean: object, std: object) -> np.ndarray:
    """Return the features of one (H, W, 3) uint8 tile, in float64."""
    normalised = (tile.astype(np.float64) / 255 - np.array(mean)) / np.array(std)
    with torch.no_grad():
        found = copy.deepcopy(model).double()(torch.from_numpy(normalised.transpose(2, 0, 1)[None]))
    return found.numpy()[0]


def write_torchscript(path: Path, side: int = 32, model: nn.Module | None = None) -> Path:
    """Write a network as TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(model or network(), torch.zeros(2, 3, side, side)), str(path))
    return path


def write_program(path: Path, side: int = 32, *, fixed: bool = False) -> Path:
    """Write a network as an exported program, of any number of tiles or of two."""
    shapes = None if fixed else ({0: torch.export.Dim("n")},)
    torch.export.save(torch.export.export(network(), (torch.zeros(2, 3, side, side),), dynamic_shapes=shapes), path)
    return path
