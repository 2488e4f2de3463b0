"""The gradient of two passes against plain back-propagation."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from benchmark import require
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import slideio_pipe as sp
from slideio_pipe.mil.config import load_train_config
from slideio_pipe.mil.models.mil_model import MilModel
from slideio_pipe.mil.models.small_encoder import SmallEncoder
from slideio_pipe.mil.models.tile_encoder import tile_encoder
from slideio_pipe.mil.models.two_pass import TwoPass
from slideio_pipe.mil.sources import PixelSource

ROOT = Path(__file__).resolve().parents[2]
CHUNKS = (1, 7, 64, None)  # None: the bag
DTYPES = (torch.float64, torch.float32)
_TILES = 130
_LARGEST = {torch.float64: 1e-12, torch.float32: 1e-4}  # relative difference


def networks(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, MilModel]:
    """Return an encoder and a model, the same each time."""
    torch.manual_seed(3)
    return SmallEncoder(32).to(dtype), MilModel(32, 1, embed=(16,), attention=8, dropout=0.0).to(dtype)


def vector(*modules: nn.Module) -> Tensor:
    """Return all gradients, in double precision."""
    return torch.cat([p.grad.flatten().double() for m in modules for p in m.parameters() if p.grad is not None])


def plain(encoder: nn.Module, model: nn.Module, tiles: Tensor) -> None:
    """Go backward through the whole bag at once."""
    (model(encoder(tiles)).logits ** 2).sum().backward()


def in_two_passes(encoder: nn.Module, model: nn.Module, chunks: Iterable[Tensor]) -> None:
    """Go backward in chunks."""
    encoded = TwoPass(encoder).encode(chunks)
    (model(encoded.features).logits ** 2).sum().backward()
    encoded.backward()


def gradient(*, quick: bool = False) -> None:
    """Print relative differences: |ours − plain| / |plain| over all weights."""
    print("| bag | precision | chunk 1 | 7 | 64 | all |\n|---|---|---|---|---|---|")
    bags = {"noise, 130 tiles of 32 px": noise, "slide, stain and tiles drawn, read twice": augmented}
    for name, chunks_of in bags.items():
        for dtype in DTYPES:
            cells = [difference(chunks_of, dtype, size) for size in ((7, None) if quick else CHUNKS)]
            worst = max(map(float, cells))
            require(worst <= _LARGEST[dtype], f"gradients of {name}, {dtype}, are {worst} apart")
            print(f"| {name} | {str(dtype).removeprefix('torch.')} | {' | '.join(cells)} |", flush=True)
    for dtype in DTYPES:
        if quick:
            break
        found = two_processes(dtype)
        require(float(found) <= _LARGEST[dtype], f"gradients of two processes, {dtype}, are {found} apart")
        print(f"| noise, two gloo processes, two bags each | {str(dtype).removeprefix('torch.')} | | {found} | | |")


def noise(dtype: torch.dtype, size: int | None) -> Iterator[Iterable[Tensor]]:
    """Yield one bag of noise."""
    bag = torch.rand(_TILES, 3, 32, 32, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)
    yield bag.split(size or len(bag))


def augmented(dtype: torch.dtype, size: int | None) -> Iterator[Iterable[Tensor]]:
    """Yield the bag of a slide with stains and tiles drawn; no tile is kept between the passes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.svs"
        sp.write_synthetic_slide(path, size=(1536, 1024), seed=4, lesions=1)
        config = load_train_config(
            {
                "view": {"mpp": 1.0},
                "grid": {"tile_size": 32, "min_tissue": 0.3},
                "slide_transform": str(ROOT / "configs" / "mil-slides.yaml"),
                "tile_transform": str(ROOT / "configs" / "mil-turns.yaml"),
                "encoder": {"source": "small", "chunk_size": size or 10_000, "keep_gb": 0.0},
            }
        )
        normalize = tile_encoder(None, "small", None).normalize
        cohort = sp.Cohort([sp.Cohort.of([path])[0]])
        source = PixelSource(cohort, torch.device("cpu"), config, lambda t: normalize.convert(t, dtype), augment=True)
        try:
            for example in source.epoch(0, shuffle=True):
                assert example.pixels is not None
                yield example.pixels
        finally:
            source.close()


Bags = Callable[[torch.dtype, int | None], Iterator[Iterable[Tensor]]]


def difference(bags: Bags, dtype: torch.dtype, size: int | None) -> str:
    """Return the relative difference of two passes from one pass over the same tiles, in double precision."""
    for chunks in bags(dtype, size):
        ours, wanted = networks(dtype), networks(dtype)
        in_two_passes(*ours, chunks)
        plain(*wanted, torch.cat(list(chunks)))
        found, exact = vector(*ours), vector(*wanted)
        return f"{float((found - exact).norm() / exact.norm()):.1e}"
    raise AssertionError("no bag")


def two_processes(dtype: torch.dtype) -> str:
    """Return the relative difference of the gradient averaged over two processes from that of one."""
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "gradient.pt"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        port = str(20_000 + os.getpid() % 20_000)
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        command = [sys.executable, "-W", "ignore", __file__, str(dtype).removeprefix("torch."), str(saved)]
        ranks = [subprocess.Popen(command, env=environment | {"RANK": str(k)}) for k in range(2)]
        codes = [process.wait() for process in ranks]
        if any(codes):
            raise RuntimeError("a process failed")
        found = torch.load(saved)
    encoder, model = networks(dtype)
    torch.stack([(model(encoder(bag)).logits ** 2).sum() for bag in shares(dtype)]).mean().backward()
    exact = vector(encoder, model)
    return f"{float((found - exact).norm() / exact.norm()):.1e}"


def shares(dtype: torch.dtype) -> list[Tensor]:
    """Return four bags of different sizes."""
    (chunks,) = noise(dtype, None)
    (bag,) = chunks
    return [bag[:40], bag[40:], bag[5:30], bag[30:33]]


def rank(dtype: torch.dtype, saved: Path) -> None:
    """Run one of two processes: every second bag, gradients averaged after the last."""
    dist.init_process_group("gloo")
    encoder, model = (DistributedDataParallel(module) for module in networks(dtype))
    passes = TwoPass(encoder)
    mine = shares(dtype)[dist.get_rank() :: 2]
    for number, bag in enumerate(mine):
        last = number == len(mine) - 1
        encoded = passes.encode(bag.split(7), sync=last)
        with passes.synchronised(True) if last else model.no_sync():
            ((model(encoded.features).logits ** 2).sum() / len(mine)).backward()
        encoded.backward()
    if dist.get_rank() == 0:
        torch.save(vector(encoder, model), saved)
    dist.barrier()  # gloo aborts a process if the other one ends during its work
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank(getattr(torch, sys.argv[1]), Path(sys.argv[2]))
