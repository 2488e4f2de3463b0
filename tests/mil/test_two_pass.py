"""The gradient of a bag that is encoded in chunks equals that of the whole bag."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from counted_operations import CountedOperations
from cuda_device import CUDA, simulated
from memory_bag import MemoryBag
from paths import ROOT, SUPPORT
from small_networks import TILES, encoder, gradients, model, tiles
from torch import Tensor, nn

from slideio_pipe.errors import ConfigError
from slideio_pipe.mil.models.tile_encoder import TileEncoder, TokenPooler
from slideio_pipe.mil.models.two_pass import TwoPass, chunk_that_fits
from slideio_pipe.streaming.normalize import Normalize
from slideio_pipe.streaming.stream import stream


def full(network: nn.Module, head: nn.Module, bag: Tensor) -> Tensor:
    """Return the gradients of plain back-propagation, with batch norm in evaluation mode."""
    network, head = copy.deepcopy(network), copy.deepcopy(head)
    network[1].eval()
    (head(network(bag)).logits ** 2).sum().backward()
    return gradients(network, head)


def chunked(network: nn.Module, head: nn.Module, bag: Tensor, size: int, *, keep_graph: bool = True) -> Tensor:
    """Return the gradients of two passes."""
    network, head = copy.deepcopy(network), copy.deepcopy(head)
    encoded = TwoPass(network).encode(bag.split(size), keep_graph=keep_graph)
    (head(encoded.features).logits ** 2).sum().backward()
    encoded.backward()
    return gradients(network, head)


def relative(found: Tensor, wanted: Tensor) -> float:
    """Return the relative difference of two gradients."""
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("keep_graph", [True, False])
@pytest.mark.parametrize("pool", ["gated", "attention", "mean", "max"])
@pytest.mark.parametrize("size", [1, 7, 64, TILES])
def test_chunks_have_the_gradient_of_the_whole_bag(size: int, pool: str, keep_graph: bool) -> None:
    """In double precision to 1e-9, for every chunk size and pooling."""
    network, head = encoder(), model(pool)
    assert relative(chunked(network, head, tiles(), size, keep_graph=keep_graph), full(network, head, tiles())) < 1e-9


@pytest.mark.parametrize("size", [1, 7, 64, TILES])
def test_the_gradient_in_single_precision(size: int) -> None:
    """To 1e-5."""
    network, head = encoder(dtype=torch.float32), model(dtype=torch.float32)
    bag = tiles(dtype=torch.float32)
    assert relative(chunked(network, head, bag, size), full(network, head, bag)) < 1e-5


def test_dropout_draws_the_same_in_both_passes() -> None:
    """The gradient equals that of chunks kept with their graphs; the random state continues after it."""
    network, head, bag = encoder(dropout=0.5), model(), tiles()
    plain, plain_head = copy.deepcopy(network), copy.deepcopy(head)
    plain[1].eval()
    torch.manual_seed(9)
    (plain_head(torch.cat([plain(part) for part in bag.split(7)])).logits ** 2).sum().backward()
    after = torch.rand(1)
    torch.manual_seed(9)
    found = chunked(network, head, bag, 7)
    assert relative(found, gradients(plain, plain_head)) < 1e-9
    assert torch.equal(torch.rand(1), after)


def test_batch_norm_keeps_its_statistics() -> None:
    """They are used and not changed, and the layer stays in training mode."""
    network = encoder()
    before = network[1].running_mean.clone()
    chunked(network, model(), tiles(), 7)
    TwoPass(network).encode(tiles().split(7))
    assert torch.equal(network[1].running_mean, before)
    assert network[1].training


def test_batch_norm_without_statistics_is_refused() -> None:
    """Its output depends on the other tiles of the chunk."""
    with pytest.raises(ConfigError, match="0 normalises over the tiles of a chunk"):
        TwoPass(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)))


class Counting(nn.Module):
    """A network whose output depends on how often it was called."""

    def __init__(self, *, in_buffer: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("calls", torch.zeros(()))
        self.count, self.in_buffer = 0, in_buffer

    def forward(self, bag: Tensor) -> Tensor:
        self.count += 1
        if self.in_buffer:
            self.calls += 1
        return bag.mean((1, 2, 3))[:, None] * self.weight * self.count


def test_an_encoder_that_changes_in_use_is_refused() -> None:
    """Its second pass would differ from the first."""
    with pytest.raises(ConfigError, match="the encoder changes calls in being used"):
        TwoPass(Counting(in_buffer=True)).encode(tiles().split(30))


def test_other_features_in_the_second_pass_are_refused() -> None:
    """A wrong gradient would show only as poor results."""
    bag = TwoPass(Counting(in_buffer=False)).encode(tiles().split(30))
    bag.features.sum().backward()
    with pytest.raises(ConfigError, match="chunk 0 has other features in the second pass"):
        bag.backward()


def test_chunks_that_end_early_are_refused() -> None:
    """A consumed generator has no second pass."""

    def once() -> Iterator[Tensor]:
        yield from tiles().split(30)

    bag = TwoPass(encoder()).encode(once())
    bag.features.sum().backward()
    with pytest.raises(ConfigError, match="the second pass has 0 tiles, the first 65"):
        bag.backward()


def test_without_a_gradient_there_is_no_second_pass() -> None:
    """The error says that loss.backward() was not called."""
    with pytest.raises(ConfigError, match="the features have no gradient"):
        TwoPass(encoder()).encode([tiles()]).backward()


def test_an_empty_bag_is_refused() -> None:
    """There is nothing to learn from; empty chunks are skipped."""
    with pytest.raises(ConfigError, match="a bag without a tile"):
        TwoPass(encoder()).encode([tiles(0)])
    assert len(TwoPass(encoder()).encode([tiles(0), tiles(2), tiles(0)]).features) == 2


def test_an_encoder_with_other_output_shapes_is_refused() -> None:
    """It must return one row of features per tile."""
    with pytest.raises(ConfigError, match=r"the encoder made \(65, 8, 10, 10\) of 65 tiles"):
        TwoPass(encoder()[:1]).encode([tiles()])


class Counted(nn.Module):
    """A network that counts the tiles it computes."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside, self.tiles = inside, 0

    def forward(self, bag: Tensor) -> Tensor:
        self.tiles += len(bag)
        return self.inside(bag)


def test_a_bag_of_one_chunk_is_computed_once() -> None:
    """With its graph, by plain back-propagation."""
    counted = Counted(encoder())
    chunked_once = TwoPass(counted).encode([tiles()])
    chunked_once.features.sum().backward()
    chunked_once.backward()
    assert counted.tiles == TILES


def test_chunks_without_a_gradient_are_not_computed_again() -> None:
    """For max pooling, only chunks with a maximum are."""
    counted = Counted(encoder())
    bag = TwoPass(counted).encode(tiles().split(5))
    bag.features[12].sum().backward()
    bag.backward()
    assert counted.tiles == TILES + 5


def test_a_frozen_encoder_has_one_pass() -> None:
    """No graph is built or kept for it."""
    counted = Counted(encoder()).requires_grad_(False)
    bag = TwoPass(counted).encode(tiles().split(5))
    assert not bag.features.requires_grad
    bag.backward()
    assert counted.tiles == TILES


@pytest.mark.parametrize("frozen", [(0, 1), (6,), (0, 6), (1, 6)], ids=str)
@pytest.mark.parametrize("size", [7, TILES])
def test_a_partly_frozen_encoder_trains_the_rest(frozen: tuple[int, ...], size: int) -> None:
    """The other layers have the gradient of the whole bag, frozen ones none; for all choices of layers."""
    network, head = encoder(), model()
    for number in frozen:
        network[number].requires_grad_(False)
    found, wanted = chunked(network, head, tiles(), size), full(network, head, tiles())
    assert relative(found, wanted) < 1e-9
    trained = copy.deepcopy(network)
    encoded = TwoPass(trained).encode(tiles().split(size))
    assert encoded.features.requires_grad
    (head(encoded.features).logits ** 2).sum().backward()
    encoded.backward()
    for number, layer in enumerate(trained):
        for parameter in layer.parameters():
            assert (parameter.grad is None) == (number in frozen)


def test_both_passes_use_the_callers_autocast() -> None:
    """Weights that were cast without a graph are cast again with one."""
    network, head, bag = encoder(dtype=torch.float32), model(dtype=torch.float32), tiles(dtype=torch.float32)
    plain, plain_head = copy.deepcopy(network), copy.deepcopy(head)
    plain[1].eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = (plain_head(plain(bag)).logits ** 2).sum()
    loss.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoded = TwoPass(network).encode(bag.split(7))
        loss = (head(encoded.features).logits ** 2).sum()
    loss.backward()
    encoded.backward()
    assert encoded.features.dtype == torch.bfloat16
    assert relative(gradients(network, head), gradients(plain, plain_head)) < 0.02


@pytest.mark.parametrize("through_scaler", [False, True])
def test_a_scaled_loss_scales_the_gradient(through_scaler: bool) -> None:
    """For half precision: the features' gradient is already scaled, for every way to call backward."""
    network, head = encoder(), model()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def backward(features: Tensor, gradient: Tensor) -> None:
        scaler.scale(features).backward(gradient / scaler.get_scale())

    passes = TwoPass(network, backward=backward) if through_scaler else TwoPass(network)
    bag = passes.encode(tiles().split(7))
    scaler.scale((head(bag.features).logits ** 2).sum()).backward()
    bag.backward()
    assert relative(gradients(network, head) / 1024, full(encoder(), model(), tiles())) < 1e-9


class Greedy(nn.Module):
    """A network with memory for a limited number of tiles."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.inside, self.room = encoder(), room

    def forward(self, bag: Tensor) -> Tensor:
        if len(bag) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.inside(bag)


@pytest.mark.slow
def test_the_error_of_out_of_memory_names_a_chunk_size_that_fits() -> None:
    """Found by halving."""
    with pytest.raises(ConfigError, match="a chunk of 64 tiles does not fit into memory; pass chunk_size=16"):
        TwoPass(Greedy(20)).encode(tiles().split(64))
    with pytest.raises(ConfigError, match="not even one tile fits"):
        TwoPass(Greedy(0)).encode(tiles().split(64))


class Memory:
    """Room for a number of activations; an object that holds some returns them when freed."""

    def __init__(self, room: int) -> None:
        self.room, self.used = room, 0

    def take(self, count: int) -> object:
        """Return an object that holds memory for a number of tiles."""
        if self.used + count > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.used += count
        held = _Held()
        weakref.finalize(held, self._free, count)
        return held

    def _free(self, count: int) -> None:
        self.used -= count


class _Held:
    pass


class _Step(torch.autograd.Function):
    """The identity; its graph holds memory for every tile, and its backward takes as much again."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, memory: Memory) -> Tensor:
        ctx.memory, ctx.count, ctx.held = memory, len(values), memory.take(len(values))
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        for_a_while = ctx.memory.take(ctx.count)
        del for_a_while
        return gradient, None


class Costly(nn.Module):
    """An encoder that takes memory for every tile in each step, until the output is freed."""

    def __init__(self, room: int, steps: int) -> None:
        super().__init__()
        self.inside, self.memory, self.steps = encoder(), Memory(room), steps

    def forward(self, bag: Tensor) -> Tensor:
        activations = [self.memory.take(len(bag)) for _ in range(self.steps - 1)]
        found = _Step.apply(self.inside(bag), self.memory)
        del activations
        return found


def test_a_chunk_size_is_tried_after_the_failed_attempt_is_freed() -> None:
    """Of 100, an attempt with 64 tiles holds 64 when it fails; then 32 would not fit, freed they do."""
    network = Costly(room=100, steps=2)
    with pytest.raises(ConfigError, match="pass chunk_size=32"), torch.no_grad():
        TwoPass(network).encode(tiles(64).split(64))
    assert not network.memory.used


@pytest.mark.parametrize("chunks", [1, 2])
def test_a_chunk_too_large_for_the_backward_pass_is_freed(chunks: int) -> None:
    """The graph of the first or second pass is freed before smaller chunks are tried."""
    network = Costly(room=100, steps=1)
    sizes = [64] if chunks == 1 else [64, 1]
    bag = TwoPass(network).encode(tiles(sum(sizes)).split(sizes))
    bag.features.sum().backward()
    with pytest.raises(ConfigError, match="a chunk of 64 tiles does not fit into memory; pass chunk_size=32"):
        bag.backward()
    assert not network.memory.used


def test_each_attempt_is_freed_before_the_next() -> None:
    """Of 40, 32 tiles fail in the backward pass and hold 32; 16 need 32 once those are free."""
    network = Costly(room=40, steps=1)
    assert chunk_that_fits(network, tiles(64)) == 16
    assert not network.memory.used


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_chunks_of_a_gpu_stream_have_the_features_of_the_cpu() -> None:
    """The first pass computes each chunk when it arrives."""
    bag, network = MemoryBag(50, 12, 12), encoder(dtype=torch.float32).eval()
    bag.tiles[:] = (np.arange(50) * 37 % 251)[:, None, None, None]
    plain = network(torch.from_numpy(bag.tiles).permute(0, 3, 1, 2) / 255).detach()
    network.to(CUDA)
    options = {"normalize": Normalize(0.0, 1.0), "batch_size": 4, "dtype": torch.float32}
    with torch.no_grad():
        found = TwoPass(network).encode(batch.tiles for batch in stream(bag, device=CUDA, **options)).features
    torch.testing.assert_close(found.cpu(), plain, rtol=5e-3, atol=5e-3)


_TWO_PROCESSES = """
import sys, torch, torch.distributed as dist
sys.path[:0] = [{root!r}, {support!r}]
from torch.nn.parallel import DistributedDataParallel
from small_networks import encoder, gradients, model, tiles
from slideio_pipe.mil.models.two_pass import TwoPass
dist.init_process_group("gloo")
rank = dist.get_rank()
network = DistributedDataParallel(encoder())
head = DistributedDataParallel(model({pool!r}))
passes = TwoPass(network)
bags = [tiles(65)[:40], tiles(65)[40:], tiles(65)[5:30], tiles(65)[30:33]]
for k in range(2):
    with torch.enable_grad():
        encoded = passes.encode(bags[2 * k + rank].split(7), sync=k == 1)
        if k == 1:
            loss = (head(encoded.features).logits ** 2).sum() / 2
            loss.backward()
        else:
            with head.no_sync():
                loss = (head(encoded.features).logits ** 2).sum() / 2
                loss.backward()
        encoded.backward()
if rank == 0:
    torch.save(gradients(network, head), sys.argv[1])
dist.barrier()  # gloo aborts a process if the other one ends during its work
dist.destroy_process_group()
"""


@pytest.mark.system
@pytest.mark.parametrize("pool", ["gated", "max"])
def test_two_processes_have_the_gradient_of_one(pool: str, tmp_path: Path) -> None:
    """Two bags each, of different sizes, averaged by DistributedDataParallel over gloo."""
    script = tmp_path / "two.py"
    script.write_text(_TWO_PROCESSES.format(root=str(ROOT), support=str(SUPPORT), pool=pool))
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    port = str(20_000 + os.getpid() % 20_000)
    done = subprocess.run(
        [*command, port, str(script), str(tmp_path / "g.pt")],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    network, head = encoder(), model(pool)
    network[1].eval()
    bags = [tiles(65)[:40], tiles(65)[40:], tiles(65)[5:30], tiles(65)[30:33]]
    (sum((head(network(bag)).logits ** 2).sum() for bag in bags) / 4).backward()
    assert relative(torch.load(tmp_path / "g.pt"), gradients(network, head)) < 1e-9


def passed(chunks: int) -> CountedOperations:
    """Run both passes over chunks of 5 tiles under autocast, and return the operations."""
    network, head = encoder(dtype=torch.float32), model(dtype=torch.float32)
    bag = torch.rand(5 * chunks, 3, 6, 6)
    with CountedOperations() as counted:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            encoded = TwoPass(network).encode(bag.split(5))
        (head(encoded.features.float()).logits ** 2).sum().backward()
        encoded.backward()
    return counted


def test_neither_pass_waits_for_the_device_per_chunk() -> None:
    """Values are read back once per bag, however many chunks it has."""
    assert passed(12).waits == passed(3).waits


def test_weights_are_cast_once_per_pass() -> None:
    """Not once per chunk; and once more with a graph, for the chunk that keeps its own."""
    weights = 4  # of the two layers that autocast lowers
    assert passed(3).names["cast of a weight"] == passed(12).names["cast of a weight"] == 3 * weights


@pytest.mark.cuda
def test_the_first_pass_does_not_wait_for_the_device_per_chunk() -> None:
    """From bytes on the device to features, however many chunks there are."""
    sim, me, waits = simulated(), threading.current_thread().name, []
    network = encoder(dtype=torch.float32).eval().to(CUDA)
    tiles_of = TileEncoder(TokenPooler(network, "small"), Normalize.imagenet(), "small")
    for count in (20, 200):
        batches = stream(MemoryBag(count, 12, 12), device=CUDA, normalize=None, batch_size=4)
        with torch.no_grad():
            sim.host_waits.clear()
            TwoPass(network).encode(tiles_of.prepare(batch.tiles) for batch in batches)
            waits.append(sim.host_waits[me])
    assert waits[1] <= waits[0]


class Lowered(nn.Sequential):
    """A network that computes under an autocast of its own, as those of Lightning do."""

    def forward(self, bag: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(bag).float()


@pytest.mark.parametrize("keep_graph", [True, False])
def test_weights_cast_without_a_graph_are_not_used_with_one(keep_graph: bool) -> None:
    """Casts are kept from one chunk to the next, but not from the first pass to the second, nor after them."""
    network = Lowered(*encoder(dtype=torch.float32))
    head, bag = model(dtype=torch.float32), tiles(dtype=torch.float32)
    found, wanted = chunked(network, head, bag, 33, keep_graph=keep_graph), full(network, head, bag)
    assert relative(found, wanted) < 0.02
    with torch.no_grad():
        before = TwoPass(network).encode(bag.split(7)).features
        network[0].weight.mul_(2)
        assert not torch.equal(TwoPass(network).encode(bag.split(7)).features, before)
