"""Device memory is bounded for a consumer that only queues work, and every thread of a stream uses its device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from array_bag import ArrayBag, formula, noise_bag, open_stream, wait_for_threads
from cuda_device import CUDA, simulated

from slideio_pipe.streaming.dataset import BagDataset
from slideio_pipe.streaming.device import check_device, copy_stream
from slideio_pipe.streaming.loader import BagLoader
from slideio_pipe.streaming.normalize import Normalize

PREFETCH = 3
BATCH = 8
BATCH_BYTES = BATCH * 16 * 8 * 3 * 2  # of noise_bag's tiles in float16
# Beside those that wait, one is in use, one is named by the loop's variable, and one was freed a moment ago.
MOST = PREFETCH + 3

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def _threads_end() -> Iterator[None]:
    yield
    wait_for_threads()


def batches_of(bag: ArrayBag) -> Any:
    """Return a stream."""
    return open_stream(bag, device=CUDA, batch_size=BATCH, prefetch=PREFETCH)


def chunks_of(bag: ArrayBag) -> Any:
    """Return the chunks of a loader."""
    options: dict[str, Any] = {"chunk_size": BATCH, "prefetch": PREFETCH, "threads": 2, "ordered": True}
    return BagLoader(BagDataset([bag]), device=CUDA, normalize=Normalize.half(), **options)


@pytest.mark.parametrize("source", [batches_of, chunks_of])
def test_memory_is_bounded_for_a_consumer_that_only_queues_work(source: Callable[[ArrayBag], Any]) -> None:
    """It does not wait for its device, and is not made to wait."""
    sim, bag, device = simulated(), noise_bag(400), check_device(CUDA)
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
        batches = source(bag)
        sim.host_waits.clear()
        sums = [batch.tiles.double().sum() for batch in batches]
        assert not sim.host_waits[threading.current_thread().name]
        result = torch.stack(sums).cpu()
    expected = [formula(bag.tiles[i : i + BATCH]).double().sum() for i in range(0, 400, BATCH)]
    torch.testing.assert_close(result, torch.stack(expected))
    assert sim.memory.reserved[BATCH_BYTES] <= MOST * BATCH_BYTES


def test_a_consumer_may_keep_all_batches() -> None:
    """They are its own memory: more of them than may wait, with work queued on each."""
    simulated()
    bag = noise_bag(80)
    kept = [(batch, batch.tiles.double().sum()) for batch in batches_of(bag)]
    for k, (batch, total) in enumerate(kept):
        tiles = formula(bag.tiles[k * BATCH : (k + 1) * BATCH])
        assert torch.equal(batch.tiles.cpu(), tiles)
        assert float(total.cpu()) == float(tiles.double().sum())


def test_a_stream_that_is_left_early_does_not_wait_forever() -> None:
    """Though its thread waits for work that the consumer has queued."""
    simulated()
    for k, batch in enumerate(batches_of(noise_bag(400))):
        batch.tiles.double().sum()
        if k == 2 * PREFETCH:
            break


@pytest.mark.parametrize("source", [batches_of, chunks_of])
def test_later_streams_use_the_memory_of_earlier_ones(source: Callable[[ArrayBag], Any]) -> None:
    """All on one stream for copies."""
    sim = simulated()
    for _ in range(12):
        for batch in source(noise_bag(40)):
            batch.tiles.double().sum()
        torch.cuda.synchronize(check_device(CUDA))
    assert sim.memory.reserved[BATCH_BYTES] <= MOST * BATCH_BYTES


def test_threads_that_ask_at_once_get_one_stream_for_copies() -> None:
    """Per device."""
    simulated()
    device, found, together = check_device(CUDA), [], threading.Barrier(8)

    def ask() -> None:
        together.wait()
        found.append(copy_stream(device))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert found[0].device == device


@pytest.mark.parametrize("source", [batches_of, chunks_of])
def test_every_thread_of_a_stream_uses_its_device(source: Callable[[ArrayBag], Any]) -> None:
    """A bag that decodes on a device needs no number of it; the caller's own device is not changed."""
    simulated()
    bag, devices, before = noise_bag(40), set(), torch.cuda.current_device()

    def note(indices: np.ndarray) -> None:
        assert threading.current_thread().name.startswith("slideio_pipe")
        devices.add(torch.cuda.current_device())

    bag.before_read = note
    assert sum(len(batch) for batch in source(bag)) == 40
    assert devices == {check_device(CUDA).index}
    assert torch.cuda.current_device() == before
