"""Tiles are prepared once, offline, and augmented online: a training on stored bags, with other draws in every epoch.

    python examples/augment_stored_bags.py
    python examples/augment_stored_bags.py --cohort bags.csv --epochs 50 --accelerator cuda

Without --cohort, slides with and without lesions are generated and exported. --cohort is a CSV with the columns slide
(paths of .bag.zarr, as ``slideio-pipe export`` writes them), label and split (train or test).

Each epoch turns, zooms and mirrors every tile, and gives every slide the stains of another laboratory. A turned tile
has tissue in its corners: that of the tiles stored beside it, and its own reflection where none is.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import albumentationsxl as A

import slideio_pipe as sp

TILE_TRANSFORM = A.Compose([sp.RandomAffine(rotate=180, scale=(0.8, 1.25)), sp.ColorJitter(0.1, 0.1, 0.1, 0.02)])
SLIDE_TRANSFORM = A.Compose([sp.StainJitter(alpha=0.2)])  # colours only: tiles are stored one by one


def write_bags(folder: Path, count: int = 12) -> Path:
    """Write slides, every second one with lesions; export their tiles as JPEG; return the table of the bags."""
    slides, bags = ["slide"], ["slide,label,split"]
    for k in range(count):
        sp.write_synthetic_slide(folder / f"s{k:02}.svs", size=(2048, 1536), seed=k, lesions=3 * (k % 2))
        slides.append(f"s{k:02}.svs")
        bags.append(f"bags/s{k:02}.bag.zarr,{k % 2},{'train' if k < count * 2 // 3 else 'test'}")
    (folder / "slides.csv").write_text("\n".join(slides), encoding="utf-8")
    (folder / "bags.csv").write_text("\n".join(bags), encoding="utf-8")
    tiles = {"view": {"mpp": 1.0}, "tissue": {"mpp": 4.0}, "grid": {"tile_size": 48, "min_tissue": 0.3}}
    settings = tiles | {"store": {"pixels": "jpeg:90"}}
    sp.export_cohort(folder / "slides.csv", folder / "bags", settings, progress=False)
    return folder / "bags.csv"


def main() -> None:
    """Export, train, and print the draws and the area under the curve of the test slides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, help="CSV with slide (a .bag.zarr), label and split (train or test)")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--accelerator", default="cpu", choices=["cpu", "cuda"])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="slideio-pipe-") as temporary:
        folder = Path(temporary)
        cohort = sp.Cohort.of(asked.cohort or write_bags(folder))
        A.save(TILE_TRANSFORM, folder / "tiles.yaml", data_format="yaml")
        A.save(SLIDE_TRANSFORM, folder / "slides.yaml", data_format="yaml")

        stored = sp.open_bag(cohort[0].source)
        bag = sp.AugmentedBag(stored, tile_transform=TILE_TRANSFORM, slide_transform=SLIDE_TRANSFORM, seed=1)
        print(bag)
        print(f"drawn for the slide: {bag.view.draw.summary()}; for its first tile: {bag.draw(0).summary()}")

        fitted = sp.fit(
            cohort,
            {
                "slide_transform": str(folder / "slides.yaml"),
                "tile_transform": str(folder / "tiles.yaml"),
                "grid": {"tile_size": stored.shape[1]},
                "encoder": {"source": "small"},
                "model": {"embed": [], "attention": 16, "dropout": 0.0},
                "fit": {
                    "epochs": asked.epochs, "lr": 0.003, "bags_per_step": 2, "validation": 0, "monitor": "none",
                    "patience": None, "accelerator": asked.accelerator,
                },
            },
            folder / "run",
            progress=False,
        )  # fmt: skip
        first, last = fitted.history[0][0]["loss"], fitted.history[0][-1]["loss"]
        print(f"loss {first:.3f} to {last:.3f} in {asked.epochs} epochs")
        print(f"test slides: AUROC {fitted.metrics['test']['auroc'].value:.2f}")


if __name__ == "__main__":
    main()
