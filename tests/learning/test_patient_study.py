"""A study of patients with one to four slides at two scan resolutions trains by patient, on features and on pixels."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import slideio_pipe as sp
from slideio_pipe.cohort.patients import by_patient
from slideio_pipe.commands.demos.patients import write_patient_cohort
from slideio_pipe.mil.fit import fit
from slideio_pipe.mil.models.small_encoder import SmallEncoder
from slideio_pipe.mil.prediction.predict_cohort import predict_cohort

pytest.importorskip("lightning_fabric")
PATIENTS = 30
TILES: dict[str, Any] = {"view": {"mpp": 1.0}, "grid": {"tile_size": 32, "min_tissue": 0.2}}
SETTINGS: dict[str, Any] = TILES | {
    "unit": "patient",
    "model": {"embed": [], "attention": 8, "dropout": 0.0},
    "fit": {"epochs": 2, "bootstrap": 20, "accelerator": "cpu", "patience": None},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_patient_cohort(tmp_path_factory.mktemp("study"), PATIENTS, size_um=(256, 192))


def test_the_study_is_of_patients_with_slides_of_two_resolutions(study: Path) -> None:
    slides = sp.Cohort.of(study)
    patients = by_patient(slides)
    assert len(patients) == PATIENTS
    assert Counter(len(row.slides) for row in patients).keys() == {1, 2, 3, 4}
    assert Counter(patients.labels) == {0: 15, 1: 15}
    mpps = set()
    for slide in slides[:8]:
        with sp.open_slide(slide.source) as opened:
            mpps.add(round(opened.mpp.mean, 3))
    assert mpps == {0.25, 0.5}


def test_it_trains_on_features_by_patient(study: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = sp.load_encoder(SmallEncoder(16), normalize="imagenet", input_size=32)
    sp.encode_cohort(study, encoder, tmp_path / "features", TILES | {"unit": "patient"}, device="cpu", progress=False)
    config = SETTINGS | {"encoder": {"folder": str(tmp_path / "features")}}
    check(fit(study, config, tmp_path / "run", progress=False), study)


def test_it_trains_end_to_end_by_patient(study: Path, tmp_path: Path) -> None:
    config = SETTINGS | {"encoder": {"source": "small", "chunk_size": 32}}
    fitted = fit(study, config, tmp_path / "run", progress=False)
    check(fitted, study)
    tested = sp.Cohort.of(study).where(split="test")
    found = predict_cohort(sp.load_predictor(fitted.checkpoints[0]), tested, tmp_path / "seen", progress=False)
    assert not found.failed
    assert {one.part for one in found.slides} == {"test"}
    assert found.metrics["auroc"].value == pytest.approx(fitted.metrics["test"]["auroc"].value)


def check(fitted: sp.Fitted, study: Path) -> None:
    """Every validation and test patient is predicted once."""
    wanted = [row for row in by_patient(sp.Cohort.of(study)) if row.split in ("val", "test")]
    with fitted.predictions.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert Counter(row["patient"] for row in found) == Counter(row.name for row in wanted)
    assert sum(fitted.slides.values()) == len(wanted)
