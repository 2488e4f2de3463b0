"""The trainings of ``configs``: each loads, describes its purpose, and runs on the demo cohort."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from paths import CONFIGS
from pydantic import BaseModel

import slideio_pipe as sp
from slideio_pipe.commands.demos.study import write_mil_cohort
from slideio_pipe.mil.config import TrainConfig, load_train_config
from slideio_pipe.mil.fit import fit
from slideio_pipe.mil.models.small_encoder import SmallEncoder
from slideio_pipe.mil.results import Fitted
from slideio_pipe.streaming.config import load_loader_config

pytest.importorskip("lightning_fabric")
LEADING = {
    "mil.yaml": "auroc",
    "mil-multiclass.yaml": "auroc",
    "mil-regression.yaml": "r2",
    "mil-survival.yaml": "c_index",
    "mil-end-to-end.yaml": "auroc",
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the manifest of twelve small slides, their features in a folder beside it."""
    manifest = write_mil_cohort(tmp_path_factory.mktemp("cohort"), 12, size=(1024, 768))
    torch.manual_seed(0)
    tiles = {"view": {"mpp": 1.0}, "grid": {"tile_size": 64, "min_tissue": 0.3}}
    encoder = sp.load_encoder(SmallEncoder(16), normalize="imagenet", input_size=64)
    sp.encode_cohort(manifest, encoder, manifest.parent / "features", tiles, device="cpu", progress=False)
    return manifest


def run(name: str, cohort: Path, out: Path) -> Fitted:
    """Train for two epochs with a file of ``configs``."""
    config = load_train_config(CONFIGS / name)
    update = {"fit": config.fit.model_copy(update={"epochs": 2, "bootstrap": 0, "accelerator": "cpu"})}
    if config.encoder.source is None:
        update["encoder"] = config.encoder.model_copy(update={"folder": str(cohort.parent / "features")})
    return fit(cohort, config.model_copy(update=update), out, progress=False)


def every_key(record: BaseModel) -> dict[str, Any]:
    """Return the fields of a record and of those in it, also those that a dump omits."""
    return {name: every_key(value) if isinstance(value, BaseModel) else value for name, value in record}


def test_mil_yaml_shows_every_key_with_its_default() -> None:
    """A user finds every setting there."""
    shown = yaml.safe_load((CONFIGS / "mil.yaml").read_text(encoding="utf-8"))
    assert shown == json.loads(json.dumps(every_key(TrainConfig()), default=str))
    assert load_train_config(CONFIGS / "mil.yaml") == TrainConfig()


@pytest.mark.parametrize("name", LEADING)
def test_each_configuration_trains(name: str, cohort: Path, tmp_path: Path) -> None:
    """On the demo cohort, with fewer epochs; its leading metric is that of its task."""
    fitted = run(name, cohort, tmp_path / "run")
    assert [len(rows) for rows in fitted.history] == [2]
    assert next(iter(fitted.metrics["test"])) == LEADING[name]
    assert fitted.predictions.stat().st_size > 0


def test_every_configuration_is_tested() -> None:
    """A new file has to be added here."""
    trainings = {p.name for p in CONFIGS.glob("mil*.yaml") if "transform" not in yaml.safe_load(p.read_text())}
    assert trainings == set(LEADING)


@pytest.mark.parametrize("name", LEADING)
def test_a_loader_reads_the_same_file(name: str) -> None:
    """It ignores keys of training."""
    config = load_train_config(CONFIGS / name)
    assert load_loader_config(CONFIGS / name) == config.loader
