"""Thirty patients, two Excel tables and a nested folder: trained by patient, with tiles at two magnifications.

    python examples/two_magnifications.py
    python examples/two_magnifications.py --end-to-end --folder study/

The slides are generated, so that the labels need both magnifications. Every slide has a spot with a fine pattern, which
cannot be seen at 2 µm per px, and a ring that is larger than a tile at 0.5 µm. In one slide of each patient of label 1
the spot is inside the ring; in all others the ring is empty and the spot is elsewhere. Slides are scanned at 0.25 or
0.5 µm per px.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from openpyxl import Workbook
from torch import Tensor, nn

import slideio_pipe as sp

PATIENTS, TILE = 30, 32
SLIDE_UM, FIELD_UM = (160, 96), 16.0  # size of a slide; side of a tile at 0.5 µm
RING_UM = (12.0, 28.0)  # inner and outer radius
TISSUE, RING, PATTERN = np.array([225.0, 170, 200]), np.array([150.0, 90, 170]), 45.0
TILES: dict[str, Any] = {
    "view": {"mpp": 0.5, "context": [2.0]},
    "grid": {"tile_size": TILE},
    "tissue": {"method": "none"},
}
NORMALIZE = sp.Normalize((0.75, 0.6, 0.75), (0.1, 0.1, 0.1))
TRAINING: dict[str, Any] = {
    "unit": "patient",
    "model": {"embed": [16], "attention": 8, "dropout": 0.0},
    "fit": {"epochs": 20, "lr": 0.01, "patience": None, "monitor": "none", "validation": 0},
}


class Texture(nn.Module):
    """Six numbers per tile: the means of the colours, and the mean steps between neighbouring pixels.

    Both are filters of a convolution, which a training end to end improves.
    """

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Conv2d(3, 6, (1, 2), bias=False)
        colours = torch.eye(3)
        weight = torch.cat([torch.stack([colours, 0 * colours], 2), torch.stack([colours, -colours], 2)])
        self.filters.weight = nn.Parameter(weight[:, :, None])

    def forward(self, tiles: Tensor) -> Tensor:
        """Return (n, 6) features of (n, 3, H, W) tiles."""
        means, steps = self.filters(tiles).split(3, 1)
        return torch.cat([means.mean((2, 3)), steps.abs().mean((2, 3))], 1)


def write_slide(path: Path, mpp: float, *, inside: bool, seed: int) -> None:
    """Write a slide: its spot is inside the ring, or the ring is empty and the spot is elsewhere."""
    rng = np.random.default_rng(seed)
    width, height = (round(side / mpp) for side in SLIDE_UM)
    y, x = (np.mgrid[:height, :width] + 0.5) * mpp
    sides = rng.permutation([2, 7])
    (ring_x, ring_y), (spot_x, spot_y) = (((column + 0.5) * FIELD_UM, (rng.integers(2, 4) + 0.5) * FIELD_UM)
                                          for column in sides)  # fmt: skip
    if inside:
        spot_x, spot_y = ring_x, ring_y
    distance = np.hypot(x - ring_x, y - ring_y)
    in_ring = (distance >= RING_UM[0]) & (distance < RING_UM[1])
    in_spot = (abs(x - spot_x) < FIELD_UM / 2) & (abs(y - spot_y) < FIELD_UM / 2)
    squares = np.where((np.floor(x) + np.floor(y)) % 2 == 0, PATTERN, -PATTERN)  # of 1 µm: grey at 2 µm per px
    pixels = np.where(in_ring[..., None], RING, TISSUE + rng.normal(0, 5, 3)) + (in_spot * squares)[..., None]
    pixels += rng.normal(0, 4, pixels.shape)
    tifffile.imwrite(
        path,
        pixels.clip(0, 255).astype(np.uint8),
        tile=(128, 128),
        compression="zlib",
        photometric="rgb",
        resolution=(1e4 / mpp, 1e4 / mpp),
        resolutionunit="CENTIMETER",
    )


def write_study(folder: Path) -> tuple[Path, Path, Path]:
    """Write slides into folders of two hospitals, a table of slides and one of patients; return their paths."""
    slides: list[list[Any]] = [["FILENAME", "PATIENT"]]
    patients: list[list[Any]] = [["PATIENT", "tumour"]]
    raw = folder / "raw"
    for number in range(PATIENTS):
        patient, label, count = f"{number + 1:03}", number % 2, 1 + number // 2 % 4
        patients.append([patient, ("no", "yes")[label]])
        for k in range(count):
            place = raw / f"hospital-{number % 3}" / patient
            place.mkdir(parents=True, exist_ok=True)
            inside, mpp = label == 1 and k == number // 2 % count, (0.25, 0.5)[(number // 2 + k) % 2]
            write_slide(place / f"{patient}-{k}.tif", mpp, inside=inside, seed=100 * number + k)
            slides.append([f"{patient}-{k}", patient])
    return write_table(folder / "slides.xlsx", slides), write_table(folder / "clinical.xlsx", patients), raw


def write_table(path: Path, rows: list[list[Any]]) -> Path:
    """Write rows as an Excel file."""
    book = Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)
    return path


def read_study(slides: Path, clinical: Path, raw: Path) -> sp.Cohort:
    """Return the cohort of the tables and of the files that the folder has; half of the patients are the test."""
    cohort = sp.Cohort.of(slides, slides=raw, clinical=clinical, columns={"label": "tumour"})
    return sp.split_cohort(cohort, {"train": 0.5, "test": 0.5}, seed=1)


def on_features(cohort: sp.Cohort, folder: Path) -> dict[str, float]:
    """Return the AUROC of the test patients, by the magnifications of the features."""
    encoder = sp.load_encoder(Texture(), name="texture", normalize=NORMALIZE, input_size=TILE)
    sp.encode_cohort(cohort, encoder, folder / "features", TILES, context_features="apart", progress=False)
    found = {}
    for words, name in {"0.5 µm": "texture-0.5um", "2 µm": "texture-2um", "both": "texture"}.items():
        features = {"encoder": {"folder": str(folder / "features"), "features": name}}
        fitted = sp.fit(cohort, TRAINING | features, folder / f"run-{name}", progress=False)
        found[words] = fitted.metrics["test"]["auroc"].value
    return found


def end_to_end(cohort: sp.Cohort, folder: Path) -> float:
    """Return the AUROC of the test patients if the encoder is trained, too, on the pixels of both magnifications."""
    settings = TILES | TRAINING | {"fit": TRAINING["fit"] | {"epochs": 12}}
    run = folder / "run-end-to-end"
    fitted = sp.fit(cohort, settings, run, encoder=Texture(), normalize=NORMALIZE, progress=False)
    return fitted.metrics["test"]["auroc"].value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="folder of the study; by default a temporary one, which is removed")
    parser.add_argument("--end-to-end", action="store_true", help="also train an encoder on the pixels")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="slideio-pipe-") as temporary:
        show_study(given.folder or Path(temporary), pixels=given.end_to_end)


def show_study(folder: Path, *, pixels: bool) -> None:
    """Make the study, train on it, and print the results."""
    folder.mkdir(parents=True, exist_ok=True)
    cohort = read_study(*write_study(folder))
    print(cohort)
    tested = len({slide.patient for slide in cohort.where(split="test")})
    for words, auroc in on_features(cohort, folder).items():
        print(f"features at {words}: AUROC {auroc:.3f} of {tested} test patients")
    if pixels:
        print(f"end to end, both: AUROC {end_to_end(cohort, folder):.3f} of {tested} test patients")


if __name__ == "__main__":
    main()
