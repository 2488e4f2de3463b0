"""Training by patient on features: one label, one prediction and one count per patient."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from patient_study import SLIDES, features, settings

import slideio_pipe as sp
from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.patients import by_patient
from slideio_pipe.errors import ConfigError
from slideio_pipe.mil.config import load_train_config
from slideio_pipe.mil.fit import fit
from slideio_pipe.mil.sources import FeatureSource
from slideio_pipe.mil.tasks import Classification

CPU = torch.device("cpu")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return features(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def fitted(study: Path, tmp_path_factory: pytest.TempPathFactory) -> sp.Fitted:
    return fit(study, settings(folds=3), tmp_path_factory.mktemp("run"), progress=False)


def test_a_patients_features_are_those_of_its_slides_one_after_another(study: Path) -> None:
    source = FeatureSource(by_patient(Cohort.of(study)), CPU)
    found = {example.number: example.features for example in source.epoch(0, shuffle=False)}
    assert sorted(found) == list(range(24))
    for number in (0, 3, 22):
        slides = [torch.load(study.parent / f"p{number}-{k}.pt") for k in range(SLIDES[number % 4])]
        assert torch.equal(found[number], torch.cat(slides))


def test_features_that_do_not_fit_in_memory_are_read_again(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = by_patient(Cohort.of(study))
    kept = [example.features for example in FeatureSource(cohort, CPU).epoch(0, shuffle=False)]
    monkeypatch.setattr("slideio_pipe.mil.sources._KEPT_BYTES", 0)
    read = [example.features for example in FeatureSource(cohort, CPU).epoch(0, shuffle=False)]
    assert all(torch.equal(a, b) for a, b in zip(kept, read, strict=True))


def test_max_tiles_counts_the_tiles_of_a_patient(study: Path) -> None:
    source = FeatureSource(by_patient(Cohort.of(study)), CPU, max_tiles=5)
    assert max(len(example.features) for example in source.epoch(0, shuffle=True)) == 5


@pytest.mark.slow
def test_every_patient_is_predicted_once_and_tested_in_one_fold(fitted: sp.Fitted) -> None:
    tested = [row for row in rows(fitted.predictions) if row["split"] == "test"]
    assert sorted(row["patient"] for row in tested) == sorted(f"p{k}" for k in range(24))
    assert {row["patient"]: int(row["slides"]) for row in tested} == {f"p{k}": SLIDES[k % 4] for k in range(24)}
    assert "slide" not in tested[0]


def test_metrics_and_their_text_count_patients(fitted: sp.Fitted) -> None:
    assert fitted.slides["test"] == 24
    assert fitted.unit == "patient"
    assert "test, 24 patients" in repr(fitted)
    assert json.loads((fitted.folder / "metrics.json").read_text())["unit"] == "patient"


def test_class_weights_count_patients_and_not_their_slides(study: Path) -> None:
    # Patients with label 1 have two or four slides, those with label 0 one or three: 12 patients each.
    task = Classification.of(list(by_patient(Cohort.of(study))))
    assert task.weights == (1.0, 1.0)
    assert Classification.of(list(Cohort.of(study))).weights != (1.0, 1.0)


def test_slides_of_a_patient_that_disagree_are_refused_all_together(tmp_path: Path) -> None:
    table = features(tmp_path, 8)
    text = table.read_text().replace("p3-2.pt,1", "p3-2.pt,0").replace("p1-1.pt,1", "p1-1.pt,0")
    table.write_text(text)
    with pytest.raises(ConfigError, match="several cells in label") as caught:
        fit(table, settings(), tmp_path / "run", progress=False)
    assert "patient p1 has several cells in label: 1 (p1-0.pt), 0 (p1-1.pt)" in str(caught.value)
    assert "p3-2.pt" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_empty_cell_beside_a_label_is_no_second_label(tmp_path: Path) -> None:
    table = features(tmp_path, 8)
    table.write_text(table.read_text().replace("p3-2.pt,1", "p3-2.pt,"))
    assert by_patient(Cohort.of(table)).labels == [0, 1] * 4


def test_a_cohort_without_patients_is_refused(tmp_path: Path) -> None:
    table = features(tmp_path, 8, columns=("label",))
    with pytest.raises(ConfigError, match='column "patient"'):
        fit(table, settings(), tmp_path / "run", progress=False)


def test_patients_in_two_splits_are_refused(tmp_path: Path) -> None:
    table = features(tmp_path, 8)
    lines = table.read_text().splitlines()
    split = [f"{line},{'test' if line.startswith('p3-1') else 'train'}" for line in lines[1:]]
    table.write_text("\n".join([f"{lines[0]},split", *split]))
    with pytest.raises(ConfigError, match="patient p3 is in test and train"):
        fit(table, settings(), tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("task", "columns"),
    [
        ({"kind": "regression", "label": "size"}, ("size", "patient")),
        ({"kind": "survival"}, ("time", "event", "patient")),
    ],
    ids=["regression", "survival"],
)
def test_numbers_and_events_are_trained_by_patient(task: dict, columns: tuple[str, ...], tmp_path: Path) -> None:
    table = features(tmp_path, 16, columns=columns)
    found = fit(table, settings(bags_per_step=4) | {"task": task}, tmp_path / "run", progress=False)
    assert found.slides == {"val": len(rows(found.predictions))}


@pytest.mark.slow
def test_a_training_by_patient_continues_where_it_was(study: Path, tmp_path: Path) -> None:
    whole = fit(study, settings(validation=0.25), tmp_path / "whole", progress=False)
    partly = settings(validation=0.25, save_every=2)
    with pytest.raises(KeyboardInterrupt):
        fit(study, partly, tmp_path / "again", progress=_stop_at(2))
    again = fit(study, partly, tmp_path / "again", progress=False)
    assert again.predictions.read_bytes() == whole.predictions.read_bytes()


def _stop_at(epoch: int):
    def report(done: int, total: int) -> None:
        if done == epoch:
            raise KeyboardInterrupt

    return report


def test_a_run_of_another_unit_is_not_continued(study: Path, tmp_path: Path) -> None:
    fit(study, settings(epochs=1), tmp_path, progress=False)
    with pytest.raises(ConfigError, match="another training"):
        fit(study, settings(epochs=1) | {"unit": "slide"}, tmp_path, progress=False)


def test_the_default_unit_is_not_written_so_that_earlier_runs_continue() -> None:
    assert "unit" not in load_train_config({}).model_dump()
    written = yaml.safe_load(yaml.safe_dump(load_train_config({"unit": "patient"}).model_dump(mode="json")))
    assert load_train_config(written).unit == "patient"


def test_features_of_two_encoders_in_one_patient_are_refused(tmp_path: Path) -> None:
    table = features(tmp_path, 8)
    torch.save(torch.randn(4, 5), tmp_path / "p3-1.pt")
    with pytest.raises(ConfigError, match=r"several widths: 8 \(p0-0.pt\), 5 \(p3-1.pt\)"):
        fit(table, settings(), tmp_path / "run", progress=False)


def test_slides_of_a_patient_are_not_neighbours() -> None:
    from slideio_pipe.mil.models.slides_apart import slides_apart
    from slideio_pipe.mil.models.torchmil_model import grid_of

    corner = np.array([[0, 0]])
    places = slides_apart(np.concatenate([corner, corner, corner]), np.array([0, 1, 2]))
    grid = grid_of(places)
    distances = np.linalg.norm(grid[:, None] - grid[None], axis=2)
    assert distances[~np.eye(3, dtype=bool)].min() > 1.5
