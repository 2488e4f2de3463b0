"""``FeatureDataset`` and ``pad_features``: the features of a cohort in the loop of a user."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_slides import made_slide
from tiny_training import WIDTH, study
from torch import nn
from torch.utils.data import DataLoader

import slideio_pipe as sp
from slideio_pipe.errors import BagFormatError, ConfigError
from slideio_pipe.mil.feature_dataset import pad_features

LABELS = ["low", "high", "low", "high", "low", "high"]
PATIENTS = ["p0", "p1", "p0", "p1", "p0", "p1"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    columns = {"label": LABELS, "patient": PATIENTS, "time": [5, 6, 5, 6, 5, 6], "event": [1, 0, 1, 0, 1, 0]}
    return study(tmp_path, columns)


def rows(folder: Path, k: int) -> torch.Tensor:
    found: torch.Tensor = torch.load(folder / f"s{k}.pt")
    return found


def test_items_are_the_files_with_the_cells_of_the_table(table: Path) -> None:
    dataset = sp.FeatureDataset(table, classes=["low", "high"])
    assert len(dataset) == 6
    for k, label in enumerate(LABELS):
        item = dataset[k]
        assert torch.equal(item["features"], rows(table.parent, k))
        assert (item["label"], item["name"], item["patient"]) == (int(label == "high"), f"s{k}.pt", PATIENTS[k])
        assert "coords" not in item
    assert sp.FeatureDataset(table)[1]["label"] == "high"
    assert sp.FeatureDataset(table, label=("time", "event"))[1]["label"].tolist() == [6.0, 0.0]
    assert sp.FeatureDataset(table, dtype=torch.float16)[0]["features"].dtype == torch.float16
    part = sp.FeatureDataset(sp.Cohort.of(table).where(patient="p1"), classes=["low", "high"])
    assert [part[k]["name"] for k in range(len(part))] == ["s1.pt", "s3.pt", "s5.pt"]


def test_a_patient_is_all_its_slides(table: Path) -> None:
    """In order, each tile with the number of its slide."""
    dataset = sp.FeatureDataset(table, unit="patient", classes=["low", "high"])
    item = dataset[1]
    wanted = [rows(table.parent, k) for k in (1, 3, 5)]
    assert torch.equal(item["features"], torch.cat(wanted))
    assert item["slide_index"].tolist() == [k for k, part in enumerate(wanted) for _ in part]
    assert (item["label"], item["name"], item["patient"]) == (1, "p1", "p1")
    batch = pad_features([dataset[0], item])
    assert batch["slide_index"].shape == batch["mask"].shape


def test_a_batch_is_padded_with_a_mask(table: Path) -> None:
    """Compared with NumPy: the rows of each bag, then zeros."""
    dataset = sp.FeatureDataset(table, classes=["low", "high"])
    batch = pad_features([dataset[k] for k in range(3)])
    bags = [rows(table.parent, k).numpy() for k in range(3)]
    longest = max(map(len, bags))
    wanted = np.stack([np.pad(bag, ((0, longest - len(bag)), (0, 0))) for bag in bags])
    np.testing.assert_array_equal(batch["features"].numpy(), wanted)
    assert batch["mask"].dtype == torch.bool
    assert batch["mask"].sum(1).tolist() == [len(bag) for bag in bags]
    assert batch["label"].tolist() == [0, 1, 0]
    assert batch["name"] == ["s0.pt", "s1.pt", "s2.pt"]
    texts = pad_features([sp.FeatureDataset(table)[k] for k in range(2)])
    assert texts["label"] == ["low", "high"]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.system)])
def test_a_plain_loader_takes_it(table: Path, workers: int) -> None:
    """With the loader's own collate function and one bag per batch, or padded; in any number of processes."""
    dataset = sp.FeatureDataset(table, classes=["low", "high"])
    how: dict[str, Any] = {"num_workers": workers}
    if workers:
        how["multiprocessing_context"] = "spawn"
    one = list(DataLoader(dataset, **how))
    assert [tuple(batch["features"].shape[::2]) for batch in one] == [(1, WIDTH)] * 6
    assert [batch["name"][0] for batch in one] == [f"s{k}.pt" for k in range(6)]
    assert [int(batch["label"]) for batch in one] == [0, 1, 0, 1, 0, 1]
    if workers:
        return
    padded = list(DataLoader(dataset, batch_size=4, collate_fn=sp.pad_features, **how))
    assert [len(batch["features"]) for batch in padded] == [4, 2]
    assert torch.equal(padded[0]["features"][0, : len(rows(table.parent, 0))], rows(table.parent, 0))


@pytest.mark.system
def test_stores_of_ours_give_coordinates_labels_and_patients(tmp_path: Path) -> None:
    """Computed here, from the folder alone; memory-mapped, and by worker processes that are forked too."""
    for k in range(2):
        made_slide(tmp_path / f"a{k}.svs", size=(1024, 1024), seed=k + 1)
    (tmp_path / "cohort.csv").write_text("slide,label,patient\na0.svs,0,p0\na1.svs,1,p0\n")
    network = nn.Sequential(nn.Conv2d(3, 5, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    encoder = sp.load_encoder(network, name="mine", normalize="imagenet", input_size=64)
    sp.encode_cohort(tmp_path / "cohort.csv", encoder, tmp_path / "features", device="cpu", progress=False)
    dataset = sp.FeatureDataset(tmp_path / "features")
    opened = sp.open_features(tmp_path / "features" / "a1.features.zarr")
    assert isinstance(opened.features, np.memmap) or isinstance(opened.features.base, np.memmap)
    item = dataset[1]
    np.testing.assert_array_equal(item["features"].numpy(), opened.features.astype(np.float32))
    np.testing.assert_array_equal(item["coords"].numpy(), opened.coords)
    assert (item["name"], item["label"], item["patient"]) == ("a1.svs", 1, "p0")
    by_name = sp.FeatureDataset(tmp_path / "cohort.csv", "mine", folder=tmp_path / "features", unit="slide")
    for context in ("fork", "spawn"):
        loader = DataLoader(by_name, num_workers=1, multiprocessing_context=context)
        assert [batch["coords"].shape[1] for batch in loader] == [len(dataset[0]["coords"]), len(item["coords"])]
    assert torch.equal(pickle.loads(pickle.dumps(by_name))[0]["features"], dataset[0]["features"])


@pytest.mark.system
def test_a_torchmil_model_takes_a_batch(table: Path) -> None:
    """A padded batch gives each bag the logit that it has alone; and it trains in a loop."""
    models = pytest.importorskip("torchmil.models")
    dataset = sp.FeatureDataset(table, classes=["low", "high"])
    torch.manual_seed(0)
    model = models.ABMIL(in_shape=(WIDTH,), att_dim=8)
    batch = next(iter(DataLoader(dataset, batch_size=6, collate_fn=sp.pad_features)))
    together = model(batch["features"], batch["mask"])
    alone = torch.cat([model(dataset[k]["features"][None]) for k in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        _, found = model.compute_loss(batch["label"], batch["features"], batch["mask"])
        loss = sum(found.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2


def test_a_model_with_a_batch_axis_and_dictionaries_is_an_aggregator_in_six_lines(table: Path, tmp_path: Path) -> None:
    """The calling convention of MIL-Lab: (1, N, D) in, a dictionary of results and one of logs out."""

    class Published(nn.Module):
        def __init__(self, in_dim: int, num_classes: int) -> None:
            super().__init__()
            self.score, self.head = nn.Linear(in_dim, 1), nn.Linear(in_dim, num_classes)

        def forward(self, h: Any, loss_fn: Any = None, label: Any = None, return_attention: bool = False) -> Any:
            del loss_fn, label
            scores = self.score(h)[..., 0]
            logits = self.head((torch.softmax(scores, 1)[..., None] * h).sum(1))
            return {"logits": logits, "loss": None}, {"attention": scores} if return_attention else {}

    class Wrapped(nn.Module):
        def __init__(self, in_features: int, outputs: int) -> None:
            super().__init__()
            self.model = Published(in_features, outputs)

        def forward(self, features: torch.Tensor) -> Any:
            results, log = self.model(features[None], return_attention=True)
            return results["logits"][0], torch.softmax(log["attention"][0], 0)

    fast = {"fit": {"epochs": 2, "validation": 0, "bootstrap": 0, "accelerator": "cpu"}}
    pytest.importorskip("lightning_fabric")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slideio_pipe.mil.results.write_plots", lambda *a, **k: [])
        fitted = sp.fit(table, fast, tmp_path / "run", model=Wrapped, progress=False)
    found = sp.load_predictor(fitted.folder, model=Wrapped).predict(tmp_path / "s0.pt")
    assert found.attention.sum() == pytest.approx(1)


def test_what_does_not_fit_is_refused(table: Path) -> None:
    with pytest.raises(ConfigError, match="labels high are none of the classes low, mid; add them to classes"):
        sp.FeatureDataset(table, classes=["low", "mid"])
    with pytest.raises(ConfigError, match='the cohort has no column "grade"'):
        sp.FeatureDataset(table, label="grade")
    with pytest.raises(ConfigError, match="unit is 'bag'; pass"):
        sp.FeatureDataset(table, unit="bag")
    (table.parent / "s2.pt").write_bytes(b"nothing")
    with pytest.raises(BagFormatError, match="no tensor of features"):
        sp.FeatureDataset(table)[2]
    torch.save(torch.zeros(3, WIDTH + 1), table.parent / "s2.pt")
    with pytest.raises(ConfigError, match=r"its slides have features of several widths: 6, 7"):
        sp.FeatureDataset(table, unit="patient")[0]
    dataset = sp.FeatureDataset(table)
    with pytest.raises(ConfigError, match=r"features of several widths: \(6,\) \(s1.pt\), \(7,\) \(s2.pt\)"):
        pad_features([dataset[1], dataset[2]])
