"""Stages of streams and loaders in profiles of torch; without a profile nothing is recorded."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from cuda_device import DEVICES
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile

import slideio_pipe as sp

ROWS, COLUMNS = np.mgrid[:256, :320]
PIXELS = np.stack([ROWS % 200, COLUMNS % 200, (ROWS + COLUMNS) % 200], axis=-1).astype(np.uint8)
ALL_THREADS = {"experimental_config": _ExperimentalConfig(profile_all_threads=True)}


def bag_of(**options: Any) -> sp.TileBag:
    view = sp.open_slide(PIXELS, slide_mpp=0.5).view()
    return sp.TileBag(view, sp.TileGrid(view, 64), **options)


def ranges(found: profile) -> Counter[str]:
    """Return how often each of our ranges is in a profile."""
    names = [event.name for event in found.events()]
    return Counter(name.removeprefix("slideio_pipe.") for name in names if name.startswith("slideio_pipe."))


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    if request.param != "cpu" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return str(request.param)


def test_a_profile_has_the_waiting_for_tiles(device: str) -> None:
    """Once for each batch, in the thread that started it: as ``profile()`` is by default."""
    batches = sp.stream(bag_of(), device=device, normalize=sp.Normalize.imagenet(), batch_size=6)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        count = sum(1 for _ in batches)
    assert count == 4
    assert ranges(found)["wait"] >= count


def test_a_profile_of_all_threads_has_every_stage(device: str) -> None:
    """Reading and normalisation once for each batch, in a thread of the stream; on a GPU the copy as well."""
    with profile(activities=[ProfilerActivity.CPU], **ALL_THREADS) as found:
        batches = list(sp.stream(bag_of(), device=device, normalize=sp.Normalize.imagenet(), batch_size=6))
    counts = ranges(found)
    assert len(batches) == counts["read"] == counts["normalise"] == 4
    assert counts["copy"] == (0 if device == "cpu" else 4)
    threads = {event.name: event.thread for event in found.events()}
    assert threads["slideio_pipe.read"] == threads["slideio_pipe.normalise"] != threads["slideio_pipe.wait"]


def test_colours_on_the_device_are_a_range(device: str) -> None:
    """With the normalisation, which is in the same expression; bytes are only copied."""
    bag = bag_of(tile_transform=sp.StainJitter())
    with profile(activities=[ProfilerActivity.CPU], **ALL_THREADS) as found:
        list(sp.stream(bag, device=device, normalize=sp.Normalize.half(), batch_size=10, colours="device"))
        list(sp.stream(bag, device=device, normalize=None, batch_size=10))
    assert ranges(found)["colours"] == 2
    assert ranges(found)["copy"] == (2 if device == "cpu" else 4)
    assert ranges(found)["normalise"] == 0


def test_a_loader_has_the_same_stages(device: str) -> None:
    """Reading in runs of each thread."""
    dataset = sp.BagDataset([bag_of()])
    loader = sp.BagLoader(dataset, device=device, normalize=sp.Normalize.half(), chunk_size=10, threads=2)
    with profile(activities=[ProfilerActivity.CPU], **ALL_THREADS) as found:
        chunks = list(loader)
    counts = ranges(found)
    assert len(chunks) == counts["normalise"] == 2
    assert counts["read"] >= 2
    assert counts["wait"] >= 2


def test_without_a_profile_no_range_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even an object of one."""

    def fail(*_: object) -> None:
        raise AssertionError("a range was made")

    monkeypatch.setattr("torch.profiler.record_function", fail)
    assert len(list(sp.stream(bag_of(), device="cpu", normalize=sp.Normalize.half(), batch_size=6))) == 4
