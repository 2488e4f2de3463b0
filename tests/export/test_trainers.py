"""torchmil's own trainer trains on our folders; a cohort of several scanners has one folder for TRIDENT."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyramids import coordinate_pixels, write_pyramid

from slideio_pipe import TileBag, TileGrid, open_slide
from slideio_pipe.export.convert import convert

TILE = 32


def bags_of(folder: Path, mpps: list[float], labels: list[Any], mpp: float | None) -> list[TileBag]:
    """Return bags of small slides, each scanned at its own resolution."""
    found = []
    for number, (own, label) in enumerate(zip(mpps, labels, strict=True)):
        path = write_pyramid(folder / f"s{number}.tif", coordinate_pixels(400, 300), (1, 2), mpp=own, tile=64)
        view = open_slide(path).view(mpp=mpp)
        found.append(TileBag(view, TileGrid(view, tile_size=TILE), label=label))
    return found


@pytest.mark.filterwarnings("ignore")  # torchmil's and tensordict's own
@pytest.mark.parametrize("model", ["ABMIL", "DSMIL", "CLAM_SB", "DTFDMIL"])
def test_torchmil_trains_on_our_folder(tmp_path: Path, model: str) -> None:
    """With its data set, collation, trainer and metrics; the loss falls as with its own data set."""
    datasets = pytest.importorskip("torchmil.datasets")
    from torchmetrics import AUROC, Accuracy
    from torchmil import models
    from torchmil.data import collate_fn
    from torchmil.utils.trainer import Trainer

    labels = [0, 1, 0, 1]
    bags = bags_of(tmp_path, [0.5] * 4, labels, None)
    rng = np.random.default_rng(0)
    (tmp_path / "f").mkdir()
    for number, (bag, label) in enumerate(zip(bags, labels, strict=True)):
        np.save(tmp_path / "f" / f"s{number}.npy", rng.normal(label, 0.3, (len(bag), 8)).astype(np.float32))
    convert(bags, "torchmil", tmp_path / "out", features=tmp_path / "f")
    folders = {f"{kind}_path": str(tmp_path / "out" / kind) for kind in ("features", "coords", "labels")}
    dataset = datasets.ProcessedMILDataset(**folders, bag_keys=["X", "Y"], verbose=False)
    own = datasets.ToyDataset(torch.rand(20, 8), torch.arange(20) % 2, 4, [1], (3, 5), 0.2)
    assert (dataset[0]["Y"].shape, dataset[0]["Y"].dtype) == (own[0]["Y"].shape, own[0]["Y"].dtype)
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, collate_fn=collate_fn)
    torch.manual_seed(0)
    network = getattr(models, model)(in_shape=(8,))
    history: list[dict[str, float]] = []

    class Log:
        def log(self, metrics: dict[str, float]) -> None:
            history.append(metrics)

    metrics = {"accuracy": Accuracy(task="binary"), "auroc": AUROC(task="binary")}
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    trainer = Trainer(
        network, optimizer, metrics, device="cpu", logger=Log(), disable_pbar=True, verbose=False, obj_metric="accuracy"
    )
    trainer.train(12, loader)
    losses = [row["train/loss"] for row in history if "train/loss" in row]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    assert history[-1]["val/auroc"] == 1


@pytest.mark.filterwarnings("ignore")
def test_numeric_labels_are_regression_targets_of_torchmil(tmp_path: Path) -> None:
    """A batch of targets has shape (B,)."""
    datasets = pytest.importorskip("torchmil.datasets")
    from torchmil.data import collate_fn

    convert(bags_of(tmp_path, [0.5] * 2, [0.5, 61.0], None), "torchmil", tmp_path / "out")
    folders = {f"{kind}_path": str(tmp_path / "out" / kind) for kind in ("features", "labels")}
    dataset = datasets.ProcessedMILDataset(**folders, bag_keys=["X", "Y"], verbose=False)
    batch = collate_fn([dataset[0], dataset[1]])
    assert batch["Y"].tolist() == [0.5, 61.0]


# 0.5 µm of these scans is 20×; level 0 is what each scanner calls 40×.
SCANS = [0.25, 0.2528, 0.228, 0.2199, 0.2457, 0.2520]


@pytest.mark.parametrize(
    ("mpp", "folder"),
    [(0.5, "20x"), (1.0, "10x"), (0.46, "20x"), (0.4, "25x"), (2.0, "5x"), (None, "40x"), (0.6, "17x")],
)
def test_a_cohort_has_one_folder_for_trident(tmp_path: Path, mpp: float | None, folder: str) -> None:
    """Named after the requested resolution, not the scans' own; the values that TRIDENT reads tiles by are exact."""
    h5py = pytest.importorskip("h5py")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 0.4 µm of some scans is their level 0
        bags = bags_of(tmp_path, SCANS, [1] * len(SCANS), mpp)
    done = convert(bags, "trident", tmp_path / "out")
    jobs = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir() and path.name[0] != ".")
    assert jobs == [f"{folder}_{TILE}px_0px_overlap"]
    for bag, path in zip(bags, done.paths, strict=False):
        with h5py.File(path) as file:
            reported = file["coords"].attrs
            read = reported["patch_size"] * reported["level0_magnification"] / reported["target_magnification"]
        assert read == pytest.approx(TILE * bag.view.downsample[0], rel=0.021)


def test_other_resolutions_have_other_folders(tmp_path: Path) -> None:
    """20× and 10× tiles of one cohort are separate."""
    pytest.importorskip("h5py")
    for mpp in (0.5, 1.0):
        convert(bags_of(tmp_path, [0.25, 0.228], [0, 1], mpp), "trident", tmp_path / "out")
    jobs = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir() and path.name[0] != "."}
    assert jobs == {f"{power}x_{TILE}px_0px_overlap" for power in (10, 20)}
