"""Memory of delivered tiles is used again, and never while a tensor still has it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from array_bag import open_stream
from array_loader import bag

from slideio_pipe.streaming.normalize import Normalize
from slideio_pipe.streaming.reused_memory import ReusedMemory

BIG = (64, 96, 96, 3)


def test_memory_returns_with_the_last_tensor() -> None:
    """A view of a tensor keeps its memory."""
    memory = ReusedMemory()
    first = memory.empty(BIG, torch.float16)
    place, view = first.data_ptr(), first[3:5].permute(0, 3, 1, 2)
    del first
    second = memory.empty(BIG, torch.float16)
    assert second.data_ptr() != place
    del view
    assert memory.empty(BIG, torch.float16).data_ptr() == place


def test_few_blocks_are_kept() -> None:
    """However many tensors are deleted at once."""
    memory = ReusedMemory()
    many = [memory.empty(BIG, torch.uint8) for _ in range(10)]
    del many
    assert len(memory._free) == 1


@pytest.mark.parametrize("count", [1, 20, 31])
def test_small_tensors_have_their_own_memory(count: int) -> None:
    """A kept one would hold a block many times its size."""
    memory = ReusedMemory()
    memory.empty(BIG, torch.uint8)
    small = memory.empty((count, *BIG[1:]), torch.uint8)
    assert small.untyped_storage().nbytes() == count * 96 * 96 * 3
    assert memory.empty((40, *BIG[1:]), torch.uint8).untyped_storage().nbytes() == 40 * 96 * 96 * 3


def test_very_large_tensors_are_not_kept() -> None:
    """A free block is at most 128 MB."""
    memory = ReusedMemory()
    large = memory.empty((129 << 20,), torch.uint8)
    del large
    assert not memory._free


def test_larger_tensors_replace_the_blocks() -> None:
    """A block of another size is not lent again."""
    memory = ReusedMemory()
    memory.empty(BIG, torch.uint8)
    large = memory.empty((128, *BIG[1:]), torch.uint8)
    large.fill_(7)
    assert large.shape == (128, *BIG[1:])
    assert int(large.sum()) == 7 * large.numel()


@pytest.mark.parametrize("normalize", [None, Normalize.half()])
def test_batches_that_are_kept_are_not_overwritten(normalize: Normalize | None) -> None:
    """Every second batch is kept: afterwards it still has its own tiles."""
    source = bag("a", 120, size=(192, 160))
    kept = [batch for batch in open_stream(source, normalize=normalize, batch_size=20) if batch.index[0] % 40]  # type: ignore[arg-type]
    assert len(kept) == 3
    for batch in kept:
        wanted = torch.from_numpy(source.tiles[batch.index]).permute(0, 3, 1, 2)
        expected = wanted if normalize is None else normalize(wanted)
        np.testing.assert_array_equal(batch.tiles.numpy(), expected.numpy())
        assert batch.tiles.is_contiguous(memory_format=torch.channels_last)
