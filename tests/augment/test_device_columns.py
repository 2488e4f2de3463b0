"""Tiles with different orders of operations run together, each in its own order, in a small number of kernels."""

from __future__ import annotations

from typing import Any

import albumentationsxl as A
import numpy as np
import pytest
import torch
from counted_operations import CountedOperations
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import examples

from slideio_pipe.augment.colour_transforms import ColorJitter, StainJitter
from slideio_pipe.augment.draw_tiles import draw_tiles
from slideio_pipe.augment.draws import Draws
from slideio_pipe.augment.executors.device import DeviceProgram
from slideio_pipe.augment.executors.device_columns import KINDS, DeviceColumns
from slideio_pipe.augment.operation_columns import OPAQUE, OperationColumns
from slideio_pipe.augment.operations import Hsv, Lab, Noise, Saturation, Stain, Tone
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Size
from slideio_pipe.streaming.normalize import Normalize

# Of 16 tiles of 8 orders: 6 slots of matrices with a gather and a scatter, hue, stain, and 10 before and after them.
MOST_KERNELS = 110
OPERATIONS = (
    Tone(brightness=0.9), Tone(brightness=1.1, gamma=0.8), Saturation(factor=0.7), Hsv(turn=0.1),
    Stain(matrix=((1.1, 0, 0), (0, 0.9, 0.1), (0, 0, 1))), Lab(gain=(1.1, 0.9, 1.0)), Noise(sigma=5, seed=3),
)  # fmt: skip


def drawn(seed: int) -> Draws:
    """Return the draws of 16 tiles."""
    transform = A.Compose([ColorJitter(p=1), StainJitter(p=1)])
    key: dict[str, Any] = {"seed": seed, "epoch": 0, "slide": "a", "colour": None}
    return draw_tiles(transform, tiles=list(range(16)), size=Size(32, 32), **key)


def orders(draws: Draws) -> int:
    """Return the number of different orders of kinds."""
    return len({tuple(row) for row in draws.kinds.tolist()})


def columns(draws: Draws) -> OperationColumns:
    return OperationColumns(draws.kinds, draws.numbers)


def noise_tiles(count: int = 16) -> torch.Tensor:
    tiles = np.random.default_rng(1).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return torch.from_numpy(tiles).permute(0, 3, 1, 2)


@pytest.mark.parametrize("seed", range(5, 9))
def test_the_number_of_kernels_does_not_depend_on_the_number_of_orders(seed: int) -> None:
    """With eight orders or more in 16 tiles; one expression per order would take over a thousand."""
    draws = drawn(seed)
    assert orders(draws) >= 8
    with CountedOperations() as counted:
        DeviceProgram(columns(draws), normalize=Normalize.imagenet())(noise_tiles())
    assert counted.kernels <= MOST_KERNELS


def test_arrays_and_records_give_the_same_bytes() -> None:
    """Those of each tile alone, too."""
    draws, tiles = drawn(5), noise_tiles()
    found = DeviceProgram(columns(draws), normalize=None)(tiles)
    assert torch.equal(DeviceProgram([draws.operations(k) for k in range(16)], normalize=None)(tiles), found)
    for k in range(16):
        assert torch.equal(DeviceProgram(draws.operations(k), normalize=None)(tiles[k : k + 1])[0], found[k])


@examples(60)
@given(st.lists(st.lists(st.sampled_from(OPERATIONS), max_size=5), min_size=1, max_size=6))
def test_every_tile_has_its_operations_in_its_own_order(rows: list[list[Any]]) -> None:
    """Each exactly once, whatever the others have."""
    made = DeviceColumns.of(OperationColumns.of(rows))
    steps: list[list[int]] = [[] for _ in rows]
    for slot in made.slots():
        assert (np.diff(slot.tiles) > 0).all()
        for tile, step in zip(slot.tiles.tolist(), slot.steps.tolist(), strict=True):
            assert made.kinds[tile, step] == slot.kind
            steps[tile].append(step)
    assert steps == [[*range(len(row))] for row in rows]


def test_an_expensive_operation_runs_once_if_each_tile_has_one() -> None:
    """Tiles wait for those that have cheap operations before it."""
    tone, hue = Tone(brightness=0.9), Hsv(turn=0.1)
    rows = [(hue, tone, tone), (tone, hue, tone), (tone, tone, hue)]
    slots = DeviceColumns.of(OperationColumns.of(rows)).slots()
    assert [KINDS[slot.kind] for slot in slots] == ["mix", "mix", "hsv", "mix", "mix"]
    assert slots[2].tiles.tolist() == [0, 1, 2]


def test_gaps_between_operations_are_skipped() -> None:
    """A view's operation that changes nothing leaves one."""
    draws = drawn(5)
    gap = OperationColumns(np.zeros((1, 1), np.int8), np.zeros((1, 1, 12)), shared=True)
    tiles = noise_tiles()
    wanted = DeviceProgram(columns(draws), normalize=None)(tiles)
    assert torch.equal(DeviceProgram(columns(draws).after(gap), normalize=None)(tiles), wanted)


def test_opaque_operations_in_arrays_are_refused() -> None:
    """They are not left out silently."""
    opaque = OperationColumns(np.full((1, 1), OPAQUE, np.int8), np.zeros((1, 1, 12)))
    with pytest.raises(ConfigError, match="opaque"):
        DeviceProgram(opaque, normalize=None)
