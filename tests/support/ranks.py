"""One process of several that train together: with torch alone over gloo, or under a Lightning Trainer.

    python ranks.py torch RANK WORLD_SIZE INIT_FILE OUT EVEN KIND BROKEN
    python ranks.py lightning WORLD_SIZE OUT EVEN KIND BROKEN EPOCHS

Writes what each process saw to ``OUT/<rank>.json``. KIND is "bags" or "chunks"; BROKEN names bags whose tiles cannot be
decoded, joined by commas.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from memory_bag import MemoryBag
from torch import nn

import slideio_pipe as sp
from slideio_pipe.errors import CorruptSlideError

# Tiles of the bags: with chunks of four, from one chunk to six.
SIZES = (3, 22, 8, 5, 17, 4, 11)


class Named(MemoryBag):
    """A bag with a name, with all tiles unreadable if it is broken."""

    def __init__(self, name: str, count: int, *, broken: bool) -> None:
        super().__init__(count=count, height=8, width=8, label=count % 2)
        self.name, self.broken = name, broken  # type: ignore[misc]

    def read(self, indices: Any, out: Any = None, *, threads: int = 1) -> Any:
        if self.broken:
            raise CorruptSlideError("cannot be decoded", slide=self.name)
        return super().read(indices, out, threads=threads)


def make_loader(even: str, broken: str) -> sp.BagLoader:
    """Return a loader without a given rank."""
    names = broken.split(",")
    cohort = [Named(f"b{k}", size, broken=f"b{k}" in names) for k, size in enumerate(SIZES)]
    return sp.BagLoader(
        sp.BagDataset(cohort), device="cpu", normalize=sp.Normalize.half(), dtype=torch.float32, chunk_size=4,
        shuffle=True, ordered=True, threads=1, even=even, max_failures=2,
    )  # fmt: skip


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 1))


def loss_of(output: torch.Tensor, label: Any) -> torch.Tensor:
    return nn.functional.binary_cross_entropy_with_logits(output.mean(0), torch.tensor([float(label)]))


def with_torch(rank: int, world_size: int, init: str, even: str, kind: str, broken: str) -> dict[str, Any]:
    """Train for two epochs, a step per bag."""
    loader = make_loader(even, broken)
    torch.distributed.init_process_group("gloo", f"file://{init}", rank=rank, world_size=world_size)
    model = nn.parallel.DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    steps: list[list[str]] = []
    chunks = 0
    for _ in range(2):
        steps.append([])
        for item in loader.bags() if kind == "bags" else loader:
            chunks += 1
            whole = kind == "bags" or item.last
            with nullcontext() if whole else model.no_sync():
                tiles = item.tiles if len(item.tiles) else item.tiles.new_zeros(1, 3, 8, 8)
                (loss_of(model(tiles), item.label) * min(len(item.tiles), 1)).backward()
            if whole:
                optimizer.step()
                optimizer.zero_grad()
                steps[-1].append(item.bag)
    place = [loader.epoch, len(loader.bags())]
    weights = [p.detach().flatten()[:4].tolist() for p in model.parameters()]
    torch.distributed.barrier()
    del model, optimizer  # it has the process group, whose threads would end with the interpreter
    torch.distributed.destroy_process_group()
    return {"steps": steps, "chunks": chunks, "weights": weights, "place": place}


class Bags:
    """The bags as a Trainer needs them: an iterable with a length."""

    def __init__(self, loader: sp.BagLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[sp.WholeBag]:
        return self.loader.bags()

    def __len__(self) -> int:
        return len(self.loader.bags())


def with_lightning(world_size: int, even: str, kind: str, broken: str, epochs: int) -> tuple[int, dict[str, Any]]:
    """Train under a Trainer; its loader is made before it has a process group."""
    from pytorch_lightning import LightningModule, Trainer

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()
            self.steps: list[list[str]] = [[] for _ in range(epochs)]

        def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
            return batch

        def training_step(self, batch: Any, number: int) -> torch.Tensor:
            key = f"{batch.bag}:{batch.index[0]}" if kind == "chunks" else batch.bag
            self.steps[self.current_epoch].append(key)
            return loss_of(self.network(batch.tiles), batch.label)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.01)

    loader = make_loader(even, broken)
    module = Module()
    trainer = Trainer(
        accelerator="cpu", devices=world_size, strategy="ddp" if world_size > 1 else "auto", max_epochs=epochs,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, Bags(loader) if kind == "bags" else loader)
    weights = [p.detach().flatten()[:4].tolist() for p in module.parameters()]
    return trainer.global_rank, {"steps": module.steps, "weights": weights, "place": [loader.rank, loader.world_size]}


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1] == "torch":
        rank, world_size, init, out, even, kind, broken = sys.argv[2:]
        number, seen = int(rank), with_torch(int(rank), int(world_size), init, even, kind, broken)
    else:
        size, out, even, kind, broken, epochs = sys.argv[2:]
        number, seen = with_lightning(int(size), even, kind, broken, int(epochs))
    Path(out, f"{number}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
