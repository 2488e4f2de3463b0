"""A folder of JPEGs, one subfolder per class, augmented and classified by a small network.

    python examples/flat_images.py
    python examples/flat_images.py --folder my_images --size 224 --epochs 20 --device cuda

Without --folder, two classes are generated: tiles of two synthetic slides, with and without lesion. The folders "train"
and "test" hold one subfolder per class, as for torchvision's ImageFolder.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import albumentationsxl as A
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import slideio_pipe as sp

CLASSES = ("healthy", "lesion")
ENDINGS = (".jpg", ".jpeg", ".png")


class FlatImages(Dataset[tuple[Tensor, int]]):
    """Images of one folder per class, each a slide of one tile, with other draws in every epoch.

    What is drawn depends on the seed, the epoch, and the name of the file: not on the order, nor on the workers.
    """

    def __init__(self, folder: Path, transform: A.Compose, seed: int = 0) -> None:
        self.classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
        self.paths = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in ENDINGS)
        self.transform, self.seed, self.epoch = transform, seed, 0

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return (3, size, size) uint8, and the class."""
        path = self.paths[index]
        with sp.open_slide(path) as image:
            view = image.view()
            grid = sp.TileGrid(view, tile_size=min(view.size))  # the first square of an oblong image
            bag = sp.TileBag(view, grid, tile_transform=self.transform, seed=self.seed, epoch=self.epoch)
            tile = bag[0]
        return torch.from_numpy(tile).permute(2, 0, 1), self.classes.index(path.parent.name)


def write_images(folder: Path, seed: int, tile: int = 128, most: int = 80) -> None:
    """Write tiles of a synthetic slide as JPEGs: those that are mostly lesion, and as many without lesion."""
    truth = sp.write_synthetic_slide(folder.parent / f"{folder.name}.svs", size=(5000, 4000), seed=seed, pieces=2)
    with sp.open_slide(truth.path) as slide:
        view = slide.view(mpp=0.5)
        grid = sp.TileGrid(view, tile_size=tile, stride=tile // 2, tissue=sp.find_tissue(slide), min_tissue=0.7)
        bag = sp.TileBag(view, grid)
        mask, side = truth.lesion_mask(16), int(tile * view.downsample[0]) // 16
        part = np.array([mask[y // 16 : y // 16 + side, x // 16 : x // 16 + side].mean() for x, y in grid.coords])
        lesion = np.flatnonzero(part > 0.6)[:most]
        healthy = np.random.default_rng(seed).choice(np.flatnonzero(part == 0), len(lesion), replace=False)
        for name, chosen in zip(CLASSES, (healthy, lesion), strict=True):
            (folder / name).mkdir(parents=True)
            for k in chosen:
                Image.fromarray(bag[int(k)]).save(folder / name / f"{folder.name}-{k:04}.jpg", quality=90)


def network(classes: int) -> nn.Module:
    """Return a network that is small enough for a laptop; replace it by your own."""
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def train(data: FlatImages, epochs: int, device: torch.device, workers: int) -> nn.Module:
    """Return the trained network; prints the loss of each epoch."""
    normalize = sp.Normalize.half()
    model = network(len(data.classes)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    # Forked workers would inherit libvips without its threads; spawned ones load it again, which takes seconds.
    start = "spawn" if workers else None
    loader = DataLoader(data, batch_size=16, shuffle=True, num_workers=workers, multiprocessing_context=start)
    for epoch in range(epochs):
        data.epoch = epoch  # a new draw for every image
        losses = []
        for tiles, labels in loader:
            # Bytes are copied to the device, and converted to floats there.
            loss = nn.functional.cross_entropy(model(normalize(tiles.to(device)).float()), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}: loss {np.mean(losses):.3f} over {len(losses)} steps")
    return model


@torch.inference_mode()
def accuracy(model: nn.Module, data: FlatImages, device: torch.device) -> float:
    """Return the fraction of images that are classified correctly."""
    normalize, right = sp.Normalize.half(), 0
    model.eval()
    for tiles, labels in DataLoader(data, batch_size=16):
        found = model(normalize(tiles.to(device)).float()).argmax(1).cpu()
        right += int((found == labels).sum())
    return right / len(data)


def main() -> None:
    """Make the images if there are none, train on "train", and evaluate on "test"."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help='with "train" and "test" inside; default: generated')
    parser.add_argument("--size", type=int, default=96, help="px of the augmented images (96)")
    parser.add_argument("--epochs", type=int, default=4, help="(4)")
    parser.add_argument("--workers", type=int, default=0, help="processes that load images (0: none but this one)")
    parser.add_argument("--device", default="cpu", help='"cpu", "cuda", … (cpu)')
    asked = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="slideio-pipe-") as scratch:
        folder = asked.folder or Path(scratch)
        if asked.folder is None:
            for name, seed in (("train", 5), ("test", 6)):
                write_images(folder / name, seed)
        augment = A.Compose(
            [
                sp.RandomResizedCrop(asked.size, scale=(0.6, 1.0)),
                sp.Flip(),
                sp.StainJitter(alpha=0.2),
                sp.ColorJitter(brightness=0.1, contrast=0.1, saturation=0.1, hue=0.02),
            ]
        )
        data = FlatImages(folder / "train", augment)
        test = FlatImages(folder / "test", A.Compose([A.Resize(asked.size, asked.size)]))
        print(f"{len(data)} images to train on and {len(test)} to test on, of {', '.join(data.classes)}")
        print(f"augmentation, drawn again in every epoch: {' > '.join(type(step).__name__ for step in augment)}")
        model = train(data, asked.epochs, torch.device(asked.device), asked.workers)
        print(f"{accuracy(model, test, torch.device(asked.device)):.0%} of the test images are classified correctly")


if __name__ == "__main__":
    main()
