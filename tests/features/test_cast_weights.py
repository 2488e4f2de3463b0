"""Weights cast once give what autocast gives by casting them in every call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from counted_operations import CountedOperations
from torch import Tensor, nn

from slideio_pipe.features.encoders.cast_weights import with_cast_weights

HALF = torch.bfloat16


class Attending(nn.Module):
    """Tokens of a tile, attended to."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, tiles: Tensor) -> Tensor:
        tokens = self.norm(self.patches(tiles).flatten(2).transpose(1, 2))
        return self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


class Tied(nn.Module):
    """A weight that is also used outside of its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.words = nn.Linear(16, 16), nn.Embedding(16, 16)
        self.words.weight = self.layer.weight

    def forward(self, tiles: Tensor) -> Tensor:
        return self.layer(self.words(tiles.flatten(1).argmax(1) % 16))


NETWORKS: list[Callable[[], nn.Module]] = [
    Attending,
    lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(784, 5)),
    lambda: nn.Sequential(nn.Flatten(), torch.nn.utils.parametrizations.weight_norm(nn.Linear(768, 4))),
    Tied,
]


@pytest.fixture
def _without_fast_path() -> Iterator[None]:
    """Turn off torch's attention in one kernel, which autocast on CUDA does not use."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.usefixtures("_without_fast_path")
@pytest.mark.parametrize("made", NETWORKS)
def test_the_output_is_that_of_autocast(made: Callable[[], nn.Module]) -> None:
    """Bit for bit; the network itself keeps its weights."""
    torch.manual_seed(0)
    network, tiles = made().eval(), torch.rand(6, 3, 16, 16)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.inference_mode(), torch.autocast("cpu", HALF):
        wanted = network(tiles)
        assert torch.equal(with_cast_weights(network, HALF)(tiles), wanted)
        assert torch.equal(network(tiles), wanted)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert next(network.parameters()).dtype == torch.float32


def casts(network: nn.Module, batches: int) -> int:
    """Return the number of casts of weights."""
    with CountedOperations() as counted, torch.no_grad():
        for _ in range(batches):
            with torch.autocast("cpu", HALF):
                network(torch.rand(2, 3, 16, 16, dtype=HALF))
    return counted.names["cast of a weight"]


def test_no_weight_is_cast_again() -> None:
    """Autocast casts all four in every batch."""
    network = NETWORKS[1]().eval()
    assert casts(with_cast_weights(network, HALF), 4) == 0
    assert casts(network, 4) == 4 * 4


def test_other_parameters_and_buffers_are_shared() -> None:
    """Only the cast weights take memory."""
    network = NETWORKS[1]()
    copied = with_cast_weights(network, HALF)
    assert copied[1].running_mean is network[1].running_mean
    assert copied[1].weight is network[1].weight
    assert copied[0].weight.dtype == copied[4].bias.dtype == HALF


def test_a_network_that_cannot_be_copied_is_used_as_it_is() -> None:
    """Its weights are cast by autocast."""
    network = nn.Linear(2, 2)
    network.lock = threading.Lock()
    assert with_cast_weights(network, HALF) is network


def test_a_network_without_such_weights_is_used_as_it_is() -> None:
    """It is not copied."""
    network = nn.Flatten()
    assert with_cast_weights(network, HALF) is network
