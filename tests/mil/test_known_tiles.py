"""A training with an encoder by name reads the tiles that the encoder is meant for."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from made_slides import made_slide
from pixel_training import settings
from torch import nn

from slideio_pipe import Normalize, load_predictor
from slideio_pipe.commands.train import changed
from slideio_pipe.errors import EncoderSettingsWarning
from slideio_pipe.features.encoders import Encoder
from slideio_pipe.features.encoders.encoder_tiles import with_tiles_of
from slideio_pipe.features.encoders.known import named_encoder
from slideio_pipe.mil.config import load_train_config
from slideio_pipe.mil.fit import fit
from slideio_pipe.mil.models.tile_encoder import from_encoder


def tiles_of(config: Any, name: str) -> tuple[int, Any]:
    """Return size and mpp of the tiles."""
    found = with_tiles_of(config, [named_encoder(name)])
    return found.grid.tile_size, found.view.mpp


def test_settings_have_precedence_over_the_encoder() -> None:
    """Each of the two alone; also if --set was given, for another setting or for this one."""
    config = load_train_config({"encoder": {"source": "ctranspath"}, "view": {"mpp": 0.5}})
    assert tiles_of(config, "ctranspath") == (224, 0.5)
    assert tiles_of(load_train_config({}), "ctranspath") == (224, 1.0)
    assert tiles_of(load_train_config({}), "dinov2-b") == (224, 0.5)  # no mpp is meant: the default
    assert tiles_of(changed(load_train_config({}), ["fit.epochs=3"]), "ctranspath") == (224, 1.0)
    assert tiles_of(changed(load_train_config({}), ["grid.tile_size=128"]), "ctranspath") == (128, 1.0)
    of_slides = load_train_config({"slide": {"backend": "auto"}})
    assert tiles_of(changed(of_slides, ["slide.backend=tiff"]), "ctranspath") == (224, 1.0)


class Tokens(nn.Module):
    """Returns six tokens: the k-th is k times the mean of the tile."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return tiles.mean((1, 2, 3))[:, None, None] * torch.arange(6.0)[None, :, None]


def test_a_trained_encoder_crops_and_pools_as_for_features() -> None:
    """The centre of a tile, and the tokens after those that are not of patches."""
    loaded = Encoder(
        "a", Tokens(), Normalize.identity(), 32, 2, pooling="class+mean", prefix_tokens=4, resize=40, batch=None
    )
    encoder = from_encoder(loaded)
    tiles = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 40, 40), dtype=np.uint8))
    found = encoder.module(encoder.prepare(tiles))
    mean = tiles[:, :, 4:36, 4:36].double().mean((1, 2, 3)) / 255
    expected = torch.stack([0 * mean, 4.5 * mean], 1)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-5)
    assert encoder.about()["resize"] == 40


@pytest.mark.system
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_training_with_an_encoder_by_name(tmp_path: Path) -> None:
    """Tiles of 224 px at 0.5 µm, which the settings do not state; the checkpoint predicts with the same tiles."""
    pytest.importorskip("lightning_fabric")
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(hidden_size=768, num_hidden_layers=1, patch_size=16, image_size=224)
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "phikon")
    with (tmp_path / "cohort.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["slide", "label"])
        for k in range(4):
            made_slide(tmp_path / f"s{k}.svs", size=(1536, 1024), seed=k, lesions=k % 2)
            rows.writerow([f"s{k}.svs", k % 2])
    values = settings(tmp_path / "cohort.csv", epochs=1)
    del values["view"], values["grid"]["tile_size"]
    values["encoder"] |= {"source": f"phikon@{tmp_path / 'phikon'}", "trainable": False}
    fitted = fit(tmp_path / "cohort.csv", values, tmp_path / "run", progress=False)
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (written["grid"]["tile_size"], written["view"]["mpp"]) == (224, 0.5)
    seen = load_predictor(fitted.checkpoints[0]).predict(tmp_path / "s0.svs")
    assert seen.tile_size == 224
    assert seen.view_mpp is not None
    assert seen.view_mpp.mean == pytest.approx(0.5)
    values["grid"]["tile_size"] = 448
    with pytest.warns(EncoderSettingsWarning, match="phikon sees 1 µm per px and is meant for 0.5"):
        fit(tmp_path / "cohort.csv", values, tmp_path / "other", progress=False)
