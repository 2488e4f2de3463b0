"""Prediction by patient: one result, and heat maps of the slides that can be compared."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from made_slides import made_slide
from patient_study import SLIDES, features, settings
from tiny_training import PIXELS
from typer.testing import CliRunner

import slideio_pipe as sp
from slideio_pipe.cohort.patients import CohortPatient, by_patient
from slideio_pipe.commands.app import app
from slideio_pipe.errors import ConfigError, SkippedWarning, SlideioPipeError, SlideioPipeWarning
from slideio_pipe.mil.fit import fit
from slideio_pipe.mil.prediction.predict_cohort import predict_cohort
from slideio_pipe.viewer.attachments import scores_of

pytest.importorskip("lightning_fabric")


class Trained(NamedTuple):
    """A study and its training."""

    cohort: Path
    checkpoint: Path


@pytest.fixture(scope="module")
def on_features(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("features")
    table = features(folder / "f", 12)
    return Trained(table, fit(table, settings(), folder / "run", progress=False).checkpoints[0])


@pytest.fixture(scope="module")
def on_pixels(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Three patients, two of them with two slides, scanned at two resolutions."""
    folder = tmp_path_factory.mktemp("pixels")
    rows = ["slide,label,patient"]
    for number, mpps in enumerate([(0.25, 0.5), (0.5,), (0.25, 0.25)]):
        for k, mpp in enumerate(mpps):
            side = round(256 / mpp)
            made_slide(
                folder / f"p{number}-{k}.svs", size=(side, side), mpp=mpp, seed=10 * number + k + 1, lesions=number % 2
            )
            rows.append(f"p{number}-{k}.svs,{number % 2},P{number}")
    (folder / "cohort.csv").write_text("\n".join(rows) + "\n")
    config = PIXELS | {"unit": "patient"}
    return Trained(
        folder / "cohort.csv", fit(folder / "cohort.csv", config, folder / "run", progress=False).checkpoints[0]
    )


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_patient_is_predicted_from_the_features_of_all_slides(on_features: Trained) -> None:
    predictor = sp.load_predictor(on_features.checkpoint)
    patient = by_patient(sp.Cohort.of(on_features.cohort))[3]
    found = predictor.predict(patient)
    tiles = torch.cat([torch.load(on_features.cohort.parent / f"p3-{k}.pt") for k in range(4)])
    with torch.no_grad():
        wanted = predictor.model(tiles)
    np.testing.assert_allclose(found.logits, wanted.logits.numpy(), atol=1e-6)
    np.testing.assert_allclose(found.attention, wanted.attention.numpy(), atol=1e-7)
    assert (found.slide, found.patient, len(found.slides)) == ("p3", "p3", 4)
    assert found.row()["slides"] == 4
    assert "slide" not in found.row()


def test_attention_of_the_slides_is_its_share_in_the_patient(on_features: Trained) -> None:
    predictor = sp.load_predictor(on_features.checkpoint)
    found = predictor.predict(by_patient(sp.Cohort.of(on_features.cohort))[3])
    assert [slide.slide for slide in found.slides] == [f"p3-{k}.pt" for k in range(4)]
    assert np.array_equal(np.concatenate([slide.attention for slide in found.slides]), found.attention)
    assert sum(slide.attention.sum() for slide in found.slides) == pytest.approx(1)
    for name in ("times_mean", "percentiles"):
        wanted = found.times_mean if name == "times_mean" else found.percentiles()
        parts = [slide.times_mean if name == "times_mean" else slide.percentiles() for slide in found.slides]
        assert np.array_equal(np.concatenate(parts), wanted)
    assert found.times_mean.mean() == pytest.approx(1)
    assert all(slide.result == found.result for slide in found.slides)


def test_a_patient_has_no_picture_of_its_own(on_features: Trained) -> None:
    found = sp.load_predictor(on_features.checkpoint).predict(by_patient(sp.Cohort.of(on_features.cohort))[3])
    with pytest.raises(ConfigError, match=r"prediction.slides\[0\]"):
        found.plot()


def test_the_table_has_a_row_per_patient_and_is_measured_by_patient(on_features: Trained, tmp_path: Path) -> None:
    predictor = sp.load_predictor(on_features.checkpoint)
    with pytest.warns(SkippedWarning, match="no heat map"), pytest.warns(SlideioPipeWarning, match="12 patients"):
        found = predict_cohort(predictor, on_features.cohort, tmp_path, progress=False)
    table = rows(tmp_path / "predictions.csv")
    assert [row["patient"] for row in table] == [f"p{k}" for k in range(12)]
    assert [int(row["slides"]) for row in table] == [SLIDES[k % 4] for k in range(12)]
    assert {row["part"] for row in table} == {"train", "val"}
    assert (found.unit, found.measured) == ("patient", 12)
    tiles = rows(tmp_path / "p3" / "p3-2" / "tiles.csv")
    assert len(tiles) == len(torch.load(on_features.cohort.parent / "p3-2.pt"))
    share = [
        sum(float(row["attention"]) for row in rows(file)) for file in sorted((tmp_path / "p3").rglob("tiles.csv"))
    ]
    assert sum(share) == pytest.approx(1)


def test_any_slide_of_a_training_patient_is_recognised(on_features: Trained, tmp_path: Path) -> None:
    copy = tmp_path / "other-name.pt"
    copy.write_bytes((on_features.cohort.parent / "p3-1.pt").read_bytes())
    (tmp_path / "cohort.csv").write_text("slide,patient\nother-name.pt,X1\n")
    found = predict_cohort(sp.load_predictor(on_features.checkpoint), tmp_path / "cohort.csv", progress=False)
    assert found.slides[0].part in ("train", "val")


def test_slides_without_patients_are_predicted_alone_with_a_warning(on_features: Trained) -> None:
    predictor = sp.load_predictor(on_features.checkpoint)
    with pytest.warns(SlideioPipeWarning, match="each is predicted as a patient of its own"):
        found = predict_cohort(predictor, [on_features.cohort.parent / "p0-0.pt"], progress=False)
    assert found.slides[0].prediction is not None
    assert found.unit == "slide"


def test_a_patient_with_a_broken_slide_fails_and_the_others_are_predicted(on_features: Trained, tmp_path: Path) -> None:
    for name in ("p0-0", "p1-0", "p1-1"):
        (tmp_path / f"{name}.pt").write_bytes((on_features.cohort.parent / f"{name}.pt").read_bytes())
    (tmp_path / "p1-1.pt").write_bytes(b"damaged")
    (tmp_path / "cohort.csv").write_text("slide,patient\np0-0.pt,p0\np1-0.pt,p1\np1-1.pt,p1\n")
    done = CliRunner().invoke(
        app, ["predict", str(on_features.checkpoint), str(tmp_path / "cohort.csv"), "--device", "cpu", "--json"]
    )
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert [row["patient"] for row in found["predictions"]] == ["p0"]
    assert "p1-1.pt" in found["failed"][0]["error"]


@pytest.mark.slow
def test_a_patient_is_predicted_from_the_pixels_of_all_slides(on_pixels: Trained, tmp_path: Path) -> None:
    predictor = sp.load_predictor(on_pixels.checkpoint)
    cohort = by_patient(sp.Cohort.of(on_pixels.cohort))
    found = predictor.predict(cohort[0])
    slides = sp.BagDataset(on_pixels.cohort, {key: PIXELS[key] for key in ("view", "grid")})
    bags = [slides.open(k) for k in (0, 1)]
    assert predictor.encoder is not None
    with torch.no_grad():
        tiles = torch.from_numpy(np.concatenate([bag[:] for bag in bags])).permute(0, 3, 1, 2)
        wanted = predictor.model(predictor.encoder.module(predictor.encoder.prepare(tiles)))
    np.testing.assert_allclose(found.logits, wanted.logits.numpy(), atol=1e-5)
    np.testing.assert_allclose(found.attention, wanted.attention.numpy(), atol=1e-6)
    for slide, bag in zip(found.slides, bags, strict=True):
        assert np.array_equal(slide.coords, bag.coords)
        assert slide.affine.a == pytest.approx(bag.view.downsample[0])
    of_bag = predictor.predict(sp.PatientBag(bags, patient="P0"))
    assert np.array_equal(of_bag.attention, found.attention)
    stored = [sp.save_bag(bag, tmp_path / f"{bag.name}.bag.zarr", progress=False) for bag in bags]
    sp.save_bag(sp.PatientBag(stored, patient="P0"), tmp_path / "P0.patient.json")
    of_index = predictor.predict(tmp_path / "P0.patient.json")
    assert np.array_equal(of_index.attention, found.attention)
    assert [slide.slide for slide in of_index.slides] == ["p0-0.svs", "p0-1.svs"]
    with pytest.warns(SlideioPipeWarning, match="of 1 patient with a known truth 1 were used to train"):
        in_cohort = predict_cohort(predictor, [tmp_path / "P0.patient.json"], progress=False)
    assert [one.name for one in in_cohort.slides] == ["P0"]
    for k, bag in enumerate(bags):
        slides.close(k, bag)


@pytest.mark.slow
def test_heat_maps_of_a_patients_slides_have_one_scale(on_pixels: Trained, tmp_path: Path) -> None:
    predictor = sp.load_predictor(on_pixels.checkpoint)
    with pytest.warns(SlideioPipeWarning, match="of 3 patients with a known truth 3 were used to train"):
        found = predict_cohort(predictor, on_pixels.cohort, tmp_path, progress=False)
    assert not found.failed
    for name in ("heatmap.png", "heatmap.geojson", "tiles.csv", "tiles.png"):
        assert (tmp_path / "P0" / "p0-0" / name).is_file()
        assert (tmp_path / "P0" / "p0-1" / name).is_file()
    assert "p0-1/heatmap.png" in found.slides[0].files
    prediction = found.slides[0].prediction
    assert prediction is not None
    one, other = (slide.tile_scores("attention") for slide in prediction.slides)
    assert (one.scale.low, one.scale.high, one.scale.ticks) == (other.scale.low, other.scale.high, other.scale.ticks)
    assert one.scale.high >= prediction.times_mean.max()
    shapes = json.loads((tmp_path / "P0" / "p0-0" / "heatmap.geojson").read_text())["features"]
    shown = [shape["properties"]["measurements"]["attention"] for shape in shapes]
    assert max(shown) == pytest.approx(prediction.slides[0].times_mean.max(), rel=1e-3)
    for given in (prediction, tmp_path):  # the viewer finds the scores of each slide
        scores = scores_of(given, "p0-1.svs", alone=False)
        assert scores is not None
        assert len(scores.coords) == len(prediction.slides[1])
    of_patient = scores_of(prediction, "p0-1.svs", alone=False)
    assert of_patient is not None
    assert np.array_equal(of_patient.values["attention"], prediction.slides[1].times_mean)


def test_some_slides_as_features_and_others_as_pixels_are_refused(on_features: Trained, on_pixels: Trained) -> None:
    predictor = sp.load_predictor(on_features.checkpoint)
    patient = by_patient(sp.Cohort.of(on_features.cohort))[3]
    pixels = sp.Cohort.of(on_pixels.cohort)[0]
    assert isinstance(patient, CohortPatient)
    mixed = CohortPatient(patient.source, "p3", slides=(*patient.slides, pixels))
    with pytest.raises(SlideioPipeError, match=r"p0-0\.svs"):
        predictor.predict(mixed)


def test_training_goes_on_without_a_patient_whose_slide_is_broken(on_pixels: Trained, tmp_path: Path) -> None:
    """With ``max_failures``; without it the training ends with the slide's error."""
    for file in on_pixels.cohort.parent.glob("*.svs"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "p2-1.svs").write_bytes((tmp_path / "p2-1.svs").read_bytes()[:3000])
    (tmp_path / "cohort.csv").write_text(on_pixels.cohort.read_text())
    config = PIXELS | {"unit": "patient"}
    with pytest.raises(SlideioPipeError, match=r"p2-1\.svs"):
        fit(tmp_path / "cohort.csv", config, tmp_path / "strict", progress=False)
    allowed = config | {"fit": PIXELS["fit"] | {"max_failures": 1}}
    with pytest.warns(SkippedWarning, match=r"1 patient could not be read, such as .*p2-1\.svs"):
        fitted = fit(tmp_path / "cohort.csv", allowed, tmp_path / "run", progress=False)
    assert len(fitted.history[0]) == 1
