"""The loader in your own LightningModule: slides to a trained network, with the exact gradient for bags of any size.

    python examples/lightning_module.py
    python examples/lightning_module.py --cohort cohort.csv --epochs 20 --accelerator cuda

Needs ``pip install pytorch-lightning``. Without --cohort, slides with and without lesions are generated. A step is one
slide: its tiles are encoded twice, so that features and gradients are those of all tiles, and only one chunk has its
graph in memory. ``sp.fit`` does all of this and more; this example is for users who already have a Trainer.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn

import slideio_pipe as sp
from slideio_pipe.mil.models.two_pass import EncodedBag


class Bags:
    """The slides of each epoch, whole and as bytes: an iterable with a length, as a Trainer needs.

    The Trainer takes this number of bags; its next iteration is the next epoch, in another order with other draws.
    """

    def __init__(self, cohort: sp.Cohort, config: sp.LoaderConfig, device: str, *, shuffle: bool) -> None:
        dataset = sp.BagDataset(cohort, config)
        self.loader = sp.BagLoader(dataset, device=device, normalize=None, chunk_size=64, shuffle=shuffle)

    def __iter__(self) -> Iterator[sp.WholeBag]:
        return self.loader.bags()

    def __len__(self) -> int:
        return len(self.loader.bags())


class Chunks:
    """The tiles of a slide, normalised a chunk at a time; can be iterated several times."""

    def __init__(self, tiles: torch.Tensor, size: int, normalize: sp.Normalize) -> None:
        self.tiles, self.size, self.normalize = tiles, size, normalize

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self.normalize(chunk) for chunk in self.tiles.split(self.size))


class SlideClassifier(LightningModule):
    """A small network for tiles, and attention over their features."""

    def __init__(self, chunk_size: int = 64, lr: float = 3e-3) -> None:
        super().__init__()
        self.automatic_optimization = False  # two backward passes make one step
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.model = sp.MilModel(32, 1, embed=(), attention=16)
        self.passes = sp.TwoPass(self.encoder, backward=self._backward)
        self.normalize = sp.Normalize.imagenet(dtype=torch.float32)
        self.chunk_size, self.lr = chunk_size, lr

    def _backward(self, features: torch.Tensor, gradient: torch.Tensor) -> None:
        self.manual_backward(features, gradient=gradient)

    def encode(self, bag: sp.WholeBag) -> EncodedBag:
        """Return the features of a slide."""
        return self.passes.encode(Chunks(bag.tiles, self.chunk_size, self.normalize))

    def transfer_batch_to_device(self, batch: sp.WholeBag, device: torch.device, dataloader_idx: int) -> sp.WholeBag:
        """Return the bag unchanged: the loader has copied it to the device."""
        return batch

    def training_step(self, bag: sp.WholeBag, number: int) -> None:
        """Run the forward pass, the backward pass of the model, and that of the encoder."""
        optimizer = self.optimizers()
        encoded = self.encode(bag)
        logit = self.model(encoded.features).logits
        loss = nn.functional.binary_cross_entropy_with_logits(logit, logit.new_tensor([float(bag.label)]))
        optimizer.zero_grad()
        self.manual_backward(loss)  # gradient of the features
        encoded.backward()  # gradient of the encoder
        optimizer.step()
        self.log("loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=1)

    def test_step(self, bag: sp.WholeBag, number: int) -> None:
        """Count correct predictions."""
        logit = self.model(self.encode(bag).features).logits
        self.log("right", ((logit > 0).float() == float(bag.label)).float(), batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return one optimiser for all weights."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def write_cohort(folder: Path, count: int = 12) -> Path:
    """Write slides, every second one with lesions; the last third are test slides."""
    with (folder / "cohort.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["slide", "label", "split"])
        for k in range(count):
            sp.write_synthetic_slide(folder / f"s{k:02}.svs", size=(2048, 1536), seed=k, lesions=3 * (k % 2))
            rows.writerow([f"s{k:02}.svs", k % 2, "train" if k < count * 2 // 3 else "test"])
    return folder / "cohort.csv"


def main() -> None:
    """Train, test, and print the number of correct slides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, help="CSV with slide, label (0 or 1) and split (train or test)")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--accelerator", default="cpu", choices=["cpu", "cuda"])
    given = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="slideio-pipe-") as folder:
        cohort = sp.Cohort.of(given.cohort or write_cohort(Path(folder)))
        config = sp.LoaderConfig.model_validate(
            {"view": {"mpp": 1.0}, "tissue": {"mpp": 4.0}, "grid": {"tile_size": 32, "min_tissue": 0.3}}
        )
        bags = {
            split: Bags(cohort.where(split=split), config, given.accelerator, shuffle=split == "train")
            for split in ("train", "test")
        }
        trainer = Trainer(
            max_epochs=given.epochs, accelerator=given.accelerator, devices=1, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        module = SlideClassifier()
        trainer.fit(module, bags["train"])
        print(f"loss {float(trainer.callback_metrics['loss']):.3f}")
        (found,) = trainer.test(module, bags["test"], verbose=False)
        print(f"{found['right']:.0%} of {len(bags['test'])} test slides are correct")


if __name__ == "__main__":
    main()
