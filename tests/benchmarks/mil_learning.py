"""The demo cohort end to end: predictions, and attention on the lesions."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
import torch
from benchmark import require
from numpy.typing import NDArray
from torchmetrics.functional.classification import binary_auroc

import slideio_pipe as sp
from slideio_pipe.commands.demos.study import LESION, write_mil_cohort
from slideio_pipe.mil.config import TrainConfig, load_train_config
from slideio_pipe.mil.fit import fit
from slideio_pipe.mil.prediction.prediction import Prediction
from slideio_pipe.mil.prediction.predictor import load_predictor
from slideio_pipe.mil.results import Fitted

QUICK = {"slides": 12, "size": (2048, 1536)}  # smaller ones have lesions smaller than tiles
CONFIG = Path(__file__).resolve().parents[2] / "configs" / "mil-end-to-end.yaml"


def settings(*, augmented: bool, seed: int = 0, quick: bool = False) -> TrainConfig:
    """Return the configuration of ``configs``, with its transform of slides, or with turns and without other stains."""
    config = load_train_config(CONFIG)
    fit_config = config.fit.model_copy(update={"accelerator": "cpu", "save_every": 10})
    update: dict[str, object] = {"fit": fit_config, "seed": seed}
    if quick:  # six slides train, with lesions of about 200 px at level 0
        update["fit"] = fit_config.model_copy(update={"epochs": 40, "bootstrap": 0, "bags_per_step": 2})
        update["grid"] = config.grid.model_copy(update={"tile_size": 32})
    if not augmented:
        update["slide_transform"] = str(CONFIG.with_name("mil-turns.yaml"))
    return config.model_copy(update=update)


def trained(folder: Path, *, augmented: bool, seed: int = 0, quick: bool = False) -> Fitted:
    """Return the training on the cohort, existing or new; its time is in its history."""
    cohort = write_mil_cohort(folder / "cohort", **(QUICK if quick else {}))
    name = f"{'drawn' if augmented else 'plain'}-{seed}"
    return fit(cohort, settings(augmented=augmented, seed=seed, quick=quick), folder / name)


def predicted(fitted: Fitted, cohort: Path, *, every: bool = False) -> list[tuple[Prediction, NDArray[np.bool_]]]:
    """Return predictions of the test slides, or of all, and which of their tiles are at least half lesion."""
    predictor = load_predictor(fitted.checkpoints[0])
    found = []
    slides = sp.Cohort.of(cohort)
    for slide in slides if every else slides.where(split="test"):
        prediction = predictor.predict(slide)
        outlines = cohort.parent / "lesions" / f"{Path(slide.name).stem}.geojson"
        found.append((prediction, lesion_tiles(prediction, outlines)))
    return found


def lesion_tiles(prediction: Prediction, outlines: Path) -> NDArray[np.bool_]:
    """Return which tiles are more than half lesion, (N,), counted at 8 level-0 px."""
    coords, step = prediction.coords, 8
    assert coords is not None
    if not outlines.exists():
        return np.zeros(len(coords), bool)
    side = round(prediction.tile_scores().side_level0)
    width, height = (coords.max(0) + side) // step + 1
    mask = np.zeros((height, width), np.uint8)
    for region in sp.Annotations.from_geojson(outlines, [LESION]).regions:
        cv2.fillPoly(mask, [np.rint(region.polygon[0] / step).astype(np.int32)], 1)
    n = side // step
    return np.array([mask[y : y + n, x : x + n].mean() > 0.5 for x, y in coords // step])


def figures(found: list[tuple[Prediction, NDArray[np.bool_]]]) -> dict[str, float]:
    """Return AUROC, sensitivity and specificity at 0.5, and the AUROC of attention for tiles with lesion."""
    labels = np.array([lesion.any() for _, lesion in found])
    chances = np.array([float(prediction.result["probability_1"]) for prediction, _ in found])
    tiles = [auroc(p.attention, lesion) for p, lesion in found if lesion.any()]
    return {
        "auroc": auroc(chances, labels),
        "sensitivity": float((chances[labels] > 0.5).mean()),
        "specificity": float((chances[~labels] <= 0.5).mean()),
        "attention": float(np.mean(tiles)),
        "attention_least": float(np.min(tiles)),
    }


def auroc(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve."""
    return float(binary_auroc(torch.from_numpy(scores), torch.from_numpy(truth.astype(np.int64))))


def end_to_end(folder: Path, seed: int = 0, *, quick: bool = False) -> None:
    """Print the results on held-out slides, and the time.

    With --quick, on all of few slides and without drawn stains, which would need more epochs.
    """
    before = time.process_time()
    fitted = trained(folder, augmented=not quick, seed=seed, quick=quick)
    cpu, wall = time.process_time() - before, sum(row["seconds"] for row in fitted.history[0])
    found = figures(predicted(fitted, folder / "cohort" / "cohort.csv", every=quick))
    config = load_train_config(fitted.folder / "config.yaml")
    print(f"end to end, seed {seed}, {config.fit.epochs} epochs: {wall:.0f} s ({cpu:.0f} CPU-seconds now)")
    parted = f"sensitivity {found['sensitivity']:.2f}, specificity {found['specificity']:.2f}"
    print(f"  {'all' if quick else 'held-out'} slides: AUROC {found['auroc']:.3f}, {parted}")
    least = found["attention_least"]
    print(f"  attention of lesion tiles against the rest: AUROC {found['attention']:.3f}, least of a slide {least:.3f}")
    require(all(0 <= value <= 1 for value in found.values()), f"figures beyond 0 and 1: {found}")
    require(found["auroc"] >= 0.9, f"an AUROC of {found['auroc']:.3f}: it did not learn")
    require(found["attention"] >= 0.9, f"an attention of {found['attention']:.3f}: it looks elsewhere")
