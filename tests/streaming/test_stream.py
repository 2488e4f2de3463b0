"""Batches in order, each in its own memory of bounded size, and a thread that always ends."""

from __future__ import annotations

import gc
import itertools
import json
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from array_bag import (
    ArrayBag,
    fail_from,
    formula,
    noise_bag,
    numbered_bag,
    open_stream,
    stream_threads,
    wait_for_threads,
    wait_until,
)
from cuda_device import CUDA, DEVICES
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import examples
from paths import BENCHMARKS, ROOT, SUPPORT

from slideio_pipe.errors import ConfigError, CorruptSlideError, SkippedWarning
from slideio_pipe.slides.slide import open_slide
from slideio_pipe.streaming.arguments import default_threads
from slideio_pipe.streaming.device import check_device
from slideio_pipe.streaming.normalize import Normalize
from slideio_pipe.streaming.stream import TileBatch, stream
from slideio_pipe.tiles.bag import Bag
from slideio_pipe.tiles.grid import TileGrid
from slideio_pipe.tiles.tile_bag import TileBag


@pytest.fixture(autouse=True)
def _device_and_threads(request: pytest.FixtureRequest) -> Any:
    """Skip CUDA tests without a device, and check that no test leaves a thread running."""
    if request.node.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    yield
    wait_for_threads()


def test_a_normalisation_adds_no_weights_to_a_model() -> None:
    """Mean and deviation are settings: checkpoints of encoders load with and without it."""
    assert Normalize.imagenet().state_dict() == {}


@pytest.mark.parametrize("device", DEVICES)
def test_kept_batches_hold_their_tiles(device: str) -> None:
    """In order, though the buffers were reused many times."""
    bag = noise_bag(50)
    batches = list(open_stream(bag, device=device))
    assert [len(b) for b in batches] == [4] * 12 + [2]
    assert [b.last for b in batches] == [False] * 12 + [True]
    assert torch.equal(torch.cat([b.tiles for b in batches]).cpu(), formula(bag.tiles))
    np.testing.assert_array_equal(np.concatenate([b.index for b in batches]), np.arange(50))
    np.testing.assert_array_equal(np.concatenate([b.coords for b in batches]), bag.coords)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_batch_has_the_documented_attributes(device: str, dtype: torch.dtype) -> None:
    """Shape, type, memory layout, device and the bag's name."""
    batch = next(open_stream(numbered_bag(5), device=device, dtype=dtype))
    assert batch.tiles.shape == (4, 3, 4, 6)
    assert batch.tiles.dtype == dtype
    assert batch.tiles.device.type == torch.device(device).type
    assert batch.tiles.is_contiguous(memory_format=torch.channels_last)
    assert (batch.index.dtype, batch.coords.dtype, batch.coords.shape) == (np.int64, np.int64, (4, 2))
    assert batch.bag == "array"


@pytest.mark.parametrize("device", DEVICES)
def test_without_normalisation_batches_are_uint8(device: str) -> None:
    """normalize=None delivers the tiles in their own memory."""
    bag = noise_bag(9)
    batches = list(open_stream(bag, device=device, normalize=None))
    tiles = torch.cat([b.tiles for b in batches]).cpu()
    assert tiles.dtype == torch.uint8
    np.testing.assert_array_equal(tiles.permute(0, 2, 3, 1).numpy(), bag.tiles)


@examples(40)
@given(
    count=st.integers(0, 40),
    batch_size=st.integers(1, 50),
    prefetch=st.integers(1, 5),
    picks=st.none() | st.lists(st.integers(0, 1_000_000)),
)
def test_batches_equal_slices_of_the_positions(
    count: int, batch_size: int, prefetch: int, picks: list[int] | None
) -> None:
    """For all sizes and indices; one of them is marked as last."""
    bag = numbered_bag(count)
    indices = None if picks is None else [p % count for p in picks if count]
    wanted = np.arange(count) if indices is None else np.array(indices, dtype=int)
    batches = open_stream(bag, batch_size=batch_size, prefetch=prefetch, indices=indices, normalize=None)
    number = len(batches)
    result = list(batches)
    assert len(result) == number
    expected = [wanted[i : i + batch_size].tolist() for i in range(0, len(wanted), batch_size)]
    assert [b.index.tolist() for b in result] == expected
    assert [b.tiles[:, 0, 0, 0].tolist() for b in result] == expected
    assert [b.last for b in result] == [False] * (number - 1) + [True] * bool(number)


def test_a_mask_selects_tiles() -> None:
    """Booleans mean the positions where they are true."""
    bag = numbered_bag(10)
    (batch,) = open_stream(bag, indices=bag.coords[:, 0] % 3 == 0)
    assert batch.index.tolist() == [0, 3, 6, 9]


def test_the_callers_indices_may_change_afterwards() -> None:
    """A stream copies the given positions."""
    indices = np.arange(8)
    batches = open_stream(numbered_bag(8), indices=indices, normalize=None)
    indices[:] = 0
    next(batches).index[:] = 0
    second = next(batches)
    assert second.index.tolist() == second.tiles[:, 0, 0, 0].tolist() == [4, 5, 6, 7]


def test_an_empty_bag_yields_nothing() -> None:
    """No batch, no thread, no memory."""
    batches = open_stream(numbered_bag(0))
    assert (len(batches), batches.ring_bytes, list(batches)) == (0, 0, [])


def test_the_reader_runs_at_most_prefetch_batches_ahead() -> None:
    """Exactly prefetch batches without a consumer, and one more for each that is taken."""
    bag = numbered_bag(100)
    with open_stream(bag, prefetch=3) as batches:
        wait_until(lambda: len(bag.read_sizes) == 3)
        time.sleep(0.05)
        assert len(bag.read_sizes) == 3
        next(batches)
        wait_until(lambda: len(bag.read_sizes) == 4)


@pytest.mark.parametrize(("device", "slots"), [("cpu", 1), pytest.param(CUDA, 3, marks=pytest.mark.cuda, id="cuda-3")])
def test_memory_is_as_documented(device: str, slots: int) -> None:
    """Of buffers and batches ahead, and no more than the bag needs."""
    tile_bytes = 4 * 6 * 3
    with open_stream(numbered_bag(100), device=device, prefetch=3) as batches:
        assert batches.ring_bytes == slots * 4 * tile_bytes
        assert batches.ahead_bytes == 3 * 4 * tile_bytes * 2
    with open_stream(numbered_bag(3), batch_size=1000) as batches:
        assert batches.ring_bytes == 3 * tile_bytes


def test_the_reader_gets_its_threads() -> None:
    """As the argument threads says; by default one core is left free."""
    bag = numbered_bag(4)
    list(open_stream(bag, threads=5))
    list(open_stream(bag, threads=None))
    assert bag.thread_counts == {5, default_threads()}
    assert default_threads() >= 1


def test_batches_of_a_slide_have_its_pixels_and_coordinates() -> None:
    """Each pixel encodes its position."""
    y, x = np.mgrid[:300, :500]
    pixels = np.stack([x % 251, y % 241, (x // 251) * 16 + y // 241], axis=-1).astype(np.uint8)
    view = open_slide(pixels, slide_mpp=0.5).view()
    bag = TileBag(view, TileGrid(view, tile_size=64, stride=48))
    batches = list(stream(bag, device="cpu", normalize=Normalize.half(), batch_size=7))
    assert sum(len(b) for b in batches) == len(bag) > 40
    for batch in batches:
        cut = np.stack([pixels[top : top + 64, left : left + 64] for left, top in batch.coords])
        assert torch.equal(batch.tiles, formula(cut))
    np.testing.assert_array_equal(np.concatenate([b.coords for b in batches]), bag.coords)


def test_a_bag_in_memory_is_a_bag() -> None:
    """The bag of these tests satisfies the protocol."""
    assert isinstance(numbered_bag(1), Bag)


@pytest.mark.parametrize(
    "error", [CorruptSlideError("damaged", slide="a.svs"), ValueError("x"), KeyboardInterrupt(), StopIteration()]
)
def test_an_error_of_the_reader_is_raised_after_the_batches_before_it(error: BaseException) -> None:
    """The reader's own exception, once; then the stream has ended."""
    bag = numbered_bag(20)
    bag.before_read = fail_from(8, error)
    batches = open_stream(bag)
    assert [next(batches).index[0] for _ in range(2)] == [0, 4]
    with pytest.raises(type(error) if not isinstance(error, StopIteration) else RuntimeError) as caught:
        next(batches)
    assert caught.value is error or caught.value.__cause__ is error
    batches.close()
    assert list(batches) == []


def damaged(*tiles: int) -> Callable[[np.ndarray], None]:
    def before_read(indices: np.ndarray) -> None:
        for k in indices:
            if k in tiles:
                raise CorruptSlideError(f"tile {k} is damaged", slide="a.svs")

    return before_read


@pytest.mark.parametrize("on_error", ["white", "skip"])
def test_corrupt_tiles_can_be_white_or_left_out(on_error: str) -> None:
    """Their neighbours are delivered; bad tiles are listed with their position, with one warning at the end."""
    bag = noise_bag(40)
    bag.before_read = damaged(5, 6, 39)
    batches = open_stream(bag, normalize=None, on_error=on_error)
    with pytest.warns(SkippedWarning, match="3 tiles could not be read, such as tile 5: a.svs: tile 5 is damaged"):
        got = list(batches)
    index = np.concatenate([b.index for b in got])
    assert index.tolist() == [k for k in range(40) if on_error == "white" or k not in (5, 6, 39)]
    expected = bag.tiles.copy()
    expected[[5, 6, 39]] = 255
    tiles = torch.cat([b.tiles for b in got]).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(tiles, expected[index])
    assert [failure.tile for failure in batches.failures] == [5, 6, 39]
    assert [b.last for b in got] == [False] * 9 + [True]


def test_a_bag_with_over_a_tenth_of_bad_tiles_is_an_error() -> None:
    """Whatever on_error is."""
    bag = noise_bag(40)
    bag.before_read = damaged(*range(20, 40))
    with pytest.raises(CorruptSlideError, match="5 of 40 tiles cannot be decoded, the last one because: tile 24"):
        list(open_stream(bag, on_error="white"))


def test_the_readers_traceback_is_kept() -> None:
    """It shows the line of the reader."""
    bag = numbered_bag(4)
    bag.before_read = fail_from(0, CorruptSlideError("damaged"))
    with pytest.raises(CorruptSlideError) as caught:
        next(open_stream(bag))
    assert "before_read" in [entry.name for entry in caught.traceback]


def test_breaking_out_ends_the_thread() -> None:
    """The fixture checks for threads."""
    for batch in open_stream(numbered_bag(100)):
        assert isinstance(batch, TileBatch)
        break


def test_an_exception_in_the_consumer_ends_the_thread() -> None:
    """After a with block, which raises it unchanged."""

    def consume() -> None:
        with open_stream(numbered_bag(100)) as batches:
            for batch in batches:
                raise ZeroDivisionError(batch.bag)

    with pytest.raises(ZeroDivisionError):
        consume()
    assert not stream_threads()


def test_close_waits_for_the_tile_being_read() -> None:
    """It is dropped; close can be called again."""
    bag, reading, go_on = numbered_bag(100), threading.Event(), threading.Event()
    bag.before_read = lambda indices: (reading.set(), go_on.wait(20))[0]
    batches = open_stream(bag)
    assert reading.wait(20)
    threading.Timer(0.05, go_on.set).start()
    batches.close()
    batches.close()
    assert not stream_threads()
    assert list(batches) == []
    assert len(bag.read_sizes) == 1


def test_iteration_continues_after_an_interrupted_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A KeyboardInterrupt while waiting loses no batch."""
    batches = open_stream(numbered_bag(8))
    stage = batches._stage
    assert stage is not None
    with monkeypatch.context() as patch:
        patch.setattr(stage, "take", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            next(batches)
    assert [b.index[0] for b in batches] == [0, 4]


@pytest.mark.parametrize("taken", [0, 1])
def test_a_stream_without_references_ends_its_thread(taken: int) -> None:
    """Consumed or not, also as part of a reference cycle."""
    batches = open_stream(numbered_bag(100))
    for _ in range(taken):
        next(batches)
    cycle: list[Any] = [batches]
    cycle.append(cycle)
    del batches, cycle
    # Again and again: its thread, or that of an earlier test, may hold a reference at the moment of a collection.
    wait_until(lambda: gc.collect() >= 0 and not stream_threads())


def test_a_failure_does_not_keep_the_bag() -> None:
    """When the exception is dropped, bag and buffers are freed at once: no cycle keeps page-locked memory."""

    def consume(bag: ArrayBag) -> None:
        try:
            list(open_stream(bag))
        except CorruptSlideError:
            return
        raise AssertionError("no error")

    def fail(indices: np.ndarray) -> None:
        if indices[0] == 4:
            raise CorruptSlideError("damaged")

    bag = numbered_bag(8)
    bag.before_read = fail
    alive = weakref.ref(bag)
    gc.disable()
    try:
        consume(bag)
        del bag
        assert alive() is None
    finally:
        gc.enable()


SCRIPTS = {
    "left open": ("next(batches)", 0, ""),
    "untouched": ("", 0, ""),
    "consumer failed": ("next(batches); raise SystemExit(3)", 3, ""),
    "interrupted": ("signal.raise_signal(signal.SIGINT)", -2, "KeyboardInterrupt"),
}


@pytest.mark.system
@pytest.mark.parametrize("case", SCRIPTS)
def test_the_interpreter_exits(case: str) -> None:
    """A program with an open stream in a global variable does not hang or crash at exit."""
    action, code, words = SCRIPTS[case]
    program = f"""
import signal, sys
sys.path[:0] = [{str(SUPPORT)!r}, {str(ROOT)!r}]
from array_bag import numbered_bag, open_stream
batches = open_stream(numbered_bag(200), batch_size=1)
{action}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Fatal" not in done.stderr


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 0},
        {"batch_size": 2.5},
        {"batch_size": True},
        {"prefetch": 0},
        {"threads": -1},
        {"dtype": torch.uint8},
        {"device": "nowhere"},
        {"normalize": "imagenet"},
        {"on_error": "ignore"},
        {"indices": [0, 10]},
        {"indices": [-1]},
        {"indices": [0.5]},
        {"indices": [[0, 1]]},
        {"indices": np.ones(9, bool)},
    ],
)
def test_invalid_arguments_are_refused(change: dict[str, Any]) -> None:
    """Each of them, at the call, before a thread starts."""
    with pytest.raises(ConfigError):
        open_stream(numbered_bag(10), **change)
    assert not stream_threads()


def test_a_bag_that_is_not_rgb_is_refused() -> None:
    """With its name."""
    with pytest.raises(ConfigError, match="array: a bag of the shape"):
        open_stream(ArrayBag(np.zeros((2, 4, 4, 1), np.uint8)))


@pytest.mark.system
def test_the_benchmark_runs(tmp_path: Path) -> None:
    """On the CPU, and writes its results."""
    script, report = BENCHMARKS / "gpu.py", tmp_path / "gpu.json"
    command = [sys.executable, str(script), "--device", "cpu", "--quick", "--json", str(report)]
    path = os.pathsep.join([str(script.parents[2]), os.environ.get("PYTHONPATH", "")])
    subprocess.run(command, check=True, capture_output=True, timeout=300, env=os.environ | {"PYTHONPATH": path})
    rows = json.loads(report.read_text())["rows"]
    whole = {"normalise", "copy + normalise, ring", "stream", "stream + encoder", "encode_bag"}
    alone = {"  bound: encoder alone", "  bound: its encoder alone"}
    assert whole | alone <= {what for what, _, _ in rows}
    assert all(value > 0 for _, value, _ in rows)


@pytest.mark.cuda
def test_a_slow_consumer_stream_sees_its_own_tiles() -> None:
    """Work queued on the consumer's stream reads the right tiles, though batches are dropped at once."""
    bag = noise_bag(400)
    device, sums = check_device(CUDA), []
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
        for batch in open_stream(bag, device=device, batch_size=8):
            torch.cuda._sleep(2_000_000)  # the copy of later batches overtakes this one's use
            sums.append(batch.tiles.double().sum())
            del batch
        result = torch.stack(sums).cpu()
    expected = torch.stack([formula(bag.tiles[i : i + 8]).double().sum() for i in range(0, 400, 8)])
    torch.testing.assert_close(result, expected)


@pytest.mark.cuda
def test_buffers_are_page_locked() -> None:
    """The reader writes into them; there are prefetch of them."""
    bag, addresses = noise_bag(100), set()
    read = bag.read

    def spy(indices: np.ndarray, out: np.ndarray | None = None, *, threads: int = 1) -> np.ndarray:
        assert out is not None
        assert torch.from_numpy(out).is_pinned()
        addresses.add(out.ctypes.data)
        return read(indices, out, threads=threads)

    bag.read = spy  # type: ignore[method-assign]
    list(open_stream(bag, device=CUDA, prefetch=3))
    assert len(addresses) == 3


def test_a_second_epoch_needs_a_new_stream() -> None:
    """A stream that has ended raises an error instead of being empty."""
    batches = open_stream(numbered_bag(5))
    assert sum(len(batch) for batch in batches) == 5
    with pytest.raises(ConfigError, match="make a new one for each epoch"):
        iter(batches)
    counted = open_stream(numbered_bag(5))  # as a Trainer does, which has the length
    assert sum(len(batch) for batch in itertools.islice(counted, len(counted))) == 5
    with pytest.raises(ConfigError, match="make a new one for each epoch"):
        iter(counted)


def test_a_list_of_bags_is_refused() -> None:
    """The error says what to pass."""
    with pytest.raises(ConfigError, match="pass one bag"):
        stream([numbered_bag(2)], device="cpu", normalize=None)  # type: ignore[arg-type]


def test_the_repr_of_a_batch_is_one_line() -> None:
    """It does not print pixels."""
    (batch,) = open_stream(numbered_bag(2))
    assert repr(batch).startswith("TileBatch(")
    assert "float16 on cpu, last" in repr(batch)
