"""A test of the simulation: without any one of the package's safeguards a result is wrong."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from memory_bag import MemoryBag
from torch import nn

import slideio_pipe as sp
from slideio_pipe.features.encode_bag import Batches, _Sent
from slideio_pipe.streaming.device import Sender, Sent, StreamMark
from slideio_pipe.streaming.ring import BackgroundIterator, Buffer

pytestmark = [pytest.mark.cuda, pytest.mark.one_order]


class Safeguard(NamedTuple):
    """A line that keeps threads, streams and devices in order, and its replacement."""

    name: str
    owner: type
    method: str
    line: str
    without: str


SAFEGUARDS = [
    Safeguard("a slot waits for its copy", Buffer, "claim", "copied.wait()", "pass"),
    Safeguard("the consumer waits for its tiles", Sent, "receive", "current.wait_event(self.ready.event)", "pass"),
    Safeguard("memory of a batch in use", Sent, "receive", "self.tiles.record_stream(current)", "pass"),
    Safeguard(
        "the mark of the copy is behind it",
        Sender,
        "send",
        "raw = tiles.to(self.device, non_blocking=True)",
        "early = StreamMark.here(self.device); raw = tiles.to(self.device, non_blocking=True)",
    ),
    Safeguard(
        "the mark of the tiles is behind their normalisation",
        Sender,
        "send",
        "result = self._finish(raw, colours, copy=False)",
        "early = StreamMark.here(self.device); result = self._finish(raw, colours, copy=False)",
    ),
    Safeguard(
        "marks are of the stream in use", StreamMark, "here", "torch.cuda.current_stream", "torch.cuda.default_stream"
    ),
    Safeguard(
        "features are marked on their device", Batches, "_send", "here(found.device)", 'here(torch.device("cuda", 0))'
    ),
    Safeguard("a thread that waits has its device", StreamMark, "wait", "on_device(self.device)", "open(os.devnull)"),
    Safeguard(
        "a thread that sends has its device",
        Sender,
        "send",
        "on_device(self.device), torch.cuda.stream",
        "torch.cuda.stream",
    ),
    Safeguard(
        "a thread of a stream begins on its device", BackgroundIterator, "_run", "use_device(self._device)", "pass"
    ),
    Safeguard("features wait for their copy", _Sent, "wait", "self.there.wait()", "pass"),
]
# If the line itself is kept, a later line uses the mark that was made too early.
_THEN = {
    "the mark of the copy is behind it": ("copied = StreamMark.here(self.device, blocking=True)", "copied = early"),
    "the mark of the tiles is behind their normalisation": (
        "ready = StreamMark.here(self.device, blocking=True)",
        "ready = early",
    ),
}


@pytest.fixture(autouse=True)
def _only_simulated() -> None:
    if "cuda_sim.plugin" not in sys.modules:
        pytest.skip("tests/system/test_cuda_sim.py runs this with the simulated devices")


def changed(guard: Safeguard) -> Any:
    """Return the method without its safeguard."""
    source = textwrap.dedent(inspect.getsource(getattr(guard.owner, guard.method)))
    for line, without in [(guard.line, guard.without), *([_THEN[guard.name]] if guard.name in _THEN else [])]:
        assert source.count(line) == 1, f"{guard.owner.__name__}.{guard.method} is another one now: {line}"
        source = source.replace(line, without)
    names = dict(vars(sys.modules[guard.owner.__module__]))
    exec(f"import os\n{source}", names)
    return names[guard.method]


def bag() -> MemoryBag:
    """Return tiles of brightness of their own."""
    made = MemoryBag(60, 40, 40)
    made.tiles[:] = (np.arange(60) * 37 % 251)[:, None, None, None]
    return made


def streamed() -> None:
    """Deliver tiles to the second device, and use each batch after other work."""
    source, device, sums = bag(), torch.device("cuda", 1), []
    for batch in sp.stream(source, device=device, normalize=sp.Normalize(0.0, 1.0, rescale=1.0), batch_size=4):
        sums.append(batch.tiles.float().sum((1, 2, 3)))
        del batch
    expected = source.tiles.astype(np.float64).sum((1, 2, 3))
    assert np.allclose(torch.cat([each.cpu() for each in sums]).numpy(), expected, rtol=1e-3)


def encoded() -> None:
    """Compute means of tiles on the second device."""
    mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    encoder = sp.load_encoder(mean, name="mean", normalize="identity", input_size=40)
    found = sp.encode_bag(bag(), encoder, device="cuda:1", batch_size=6, dtype="float32")["mean"]
    assert np.allclose(found, bag().tiles.mean((1, 2)) / 255, atol=1e-3)


class DeviceBag(MemoryBag):
    """A bag whose reader works on the device that is current in its thread."""

    def read(self, indices: Any, out: Any = None, *, threads: int = 1) -> Any:
        """Read tiles."""
        torch.cuda.synchronize()
        return super().read(indices, out, threads=threads)


def sent() -> None:
    """Send tiles from a thread whose device is another one."""
    source, device = bag(), torch.device("cuda", 1)
    sender = Sender(device, sp.Normalize(0.0, 1.0, rescale=1.0), torch.float32)
    memory = sender.host_buffer(source.tiles.shape)
    memory.numpy()[:] = source.tiles
    assert np.array_equal(sender.send(memory).receive().cpu().permute(0, 2, 3, 1).numpy(), source.tiles)


def decoded() -> None:
    """Deliver the tiles of a bag that works on the device."""
    assert sum(len(batch) for batch in sp.stream(DeviceBag(60, 40, 40), device="cuda:1", normalize=None)) == 60


RUNS = [streamed, encoded, sent, decoded]


def checked(run: Callable[[], None]) -> None:
    """Run something as late as possible; raise for wrong values, races, and device 0 being touched."""
    from cuda_sim.install import reset

    sim = reset("lazy")
    run()
    assert not sim.races, f"{len(sim.races)} races"
    assert 0 not in sim.contexts, "device 0 was touched"


@pytest.mark.parametrize("run", RUNS)
def test_with_all_safeguards_results_are_right(run: Callable[[], None]) -> None:
    """On every path."""
    checked(run)


@pytest.mark.parametrize("guard", SAFEGUARDS, ids=lambda guard: guard.name)
def test_without_a_safeguard_results_are_wrong(guard: Safeguard, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each of them."""
    monkeypatch.setattr(guard.owner, guard.method, changed(guard))
    with pytest.raises(AssertionError):  # noqa: PT012
        for run in RUNS:
            checked(run)
