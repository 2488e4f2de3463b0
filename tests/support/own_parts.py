"""Parts of a user: aggregators, an encoder, a loss and a metric, as classes and as a module to import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SOURCE = '''
"""A user's module."""
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

class MyAggregator(nn.Module):
    """Attention, with a width of its own."""

    def __init__(self, in_features, outputs, hidden=4):
        super().__init__()
        self.score = nn.Sequential(nn.Linear(in_features, hidden), nn.Tanh(), nn.Linear(hidden, 1))
        self.head = nn.Linear(in_features, outputs)

    def forward(self, features):
        attention = torch.softmax(self.score(features)[:, 0], 0)
        return self.head(attention @ features), attention

def make_encoder():
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv2d(3, 6, 8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def my_loss(logits, targets):
    return 2 * binary_cross_entropy_with_logits(logits[:, 0], targets.float())

def my_metric(predictions, targets):
    return (predictions[:, 1].round() == targets).double().mean()

NUMBER = 3
'''


class Attention(nn.Module):
    """Attention MIL in ten lines."""

    def __init__(self, in_features: int, outputs: int, hidden: int = 4) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(in_features, hidden), nn.Tanh(), nn.Linear(hidden, 1))
        self.head = nn.Linear(in_features, outputs)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        attention = torch.softmax(self.score(features)[:, 0], 0)
        return self.head(attention @ features), attention


class Mean(nn.Module):
    """Without attention."""

    def __init__(self, in_features: int, outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(in_features, outputs)

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.head(features.mean(0))
        return found


def module_file(folder: Path, name: str, source: str = SOURCE) -> Path:
    """Write a user's module; every test needs another name, because a process imports each name once."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.py"
    file.write_text(source)
    return file


def quick(**fitting: Any) -> dict[str, Any]:
    """Return settings of a training that takes a second."""
    fast = {"epochs": 2, "lr": 5e-3, "bootstrap": 0, "patience": None, "accelerator": "cpu"}
    return {"fit": fast | fitting}
