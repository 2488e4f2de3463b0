"""Memory of decoded tiles is used again, and never while an array or a view still has it."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_slides import made_slide

import slideio_pipe as sp
from slideio_pipe.slides import pixel_memory
from slideio_pipe.slides.pixel_memory import PixelMemory

SHAPE = (128, 128, 3)
VIEWS = {
    "part": lambda array: array[10:20],
    "part of a part": lambda array: array[10:90][::3][1:2],
    "another shape": lambda array: array.reshape(-1)[5:6],
    "another type": lambda array: array.view(np.int8),
    "mirrored": lambda array: array[:, ::-1].transpose(1, 0, 2),
    "memory": memoryview,
    "broadcast": lambda array: np.broadcast_to(array[:1], SHAPE),
}


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_keeps_the_memory(view: str) -> None:
    """Of any kind; it comes back when the view is deleted."""
    memory = PixelMemory()
    array = memory.empty(SHAPE)
    place, kept = array.ctypes.data, VIEWS[view](array)  # type: ignore[no-untyped-call, operator]
    del array
    other = memory.empty(SHAPE)
    assert other.ctypes.data != place
    del kept
    assert memory.empty(SHAPE).ctypes.data == place


def test_memory_that_is_kept_is_bounded() -> None:
    """Eight megabytes of a size, at least two blocks, and eight sizes."""
    memory = PixelMemory()
    for side in range(110, 150):
        arrays = [memory.empty((side, side, 3)) for _ in range(500)]
        del arrays
    assert len(memory._free) == 8
    assert all(sum(map(len, blocks)) <= 8 * 2**20 for blocks in memory._free.values())
    assert not memory._lent
    large = [memory.empty((4096, 4096, 3)) for _ in range(4)]
    del large
    assert len(memory._free[4096 * 4096 * 3]) == 2


@given(st.lists(st.tuples(st.integers(105, 108), st.booleans()), max_size=60))
def test_arrays_in_use_never_share_memory(steps: list[tuple[int, bool]]) -> None:
    """However they are made and dropped: each keeps what was written to it."""
    memory, used = PixelMemory(), []
    for number, (side, drop) in enumerate(steps):
        array = memory.empty((side, side, 3))
        array[:] = number
        used.append((array[1:], number))
        del array
        if drop:
            used.pop(0)
    assert all((array == number).all() for array, number in used)


def test_threads_share_it() -> None:
    """Arrays of one thread are dropped by another."""
    memory, wrong = PixelMemory(), []

    def work(seed: int) -> None:
        rng, used = np.random.default_rng(seed), []
        for number in range(400):
            array = memory.empty(SHAPE)
            array[:] = value = (seed * 61 + number) % 256
            used.append((array, value))
            if len(used) > 5:
                array, value = used.pop(int(rng.integers(len(used))))
                wrong.extend([1] * bool((array != value).any()))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not memory._lent


def test_tiles_read_again_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With memory of other tiles: off the stored grid and shrunk, against memory that is always new."""
    path = made_slide(tmp_path / "a.svs", size=(2000, 1500), seed=2).path
    found = []
    for least in (pixel_memory._LEAST_BYTES, 10**9):
        monkeypatch.setattr(pixel_memory, "_LEAST_BYTES", least)
        view = sp.open_slide(path).view(mpp=0.3)
        bag = sp.TileBag(view, sp.TileGrid(view, tile_size=200, stride=150))
        found += [bag.read(np.arange(len(bag)), threads=2) for _ in range(2)]
    assert all(np.array_equal(found[0], other) for other in found[1:])
