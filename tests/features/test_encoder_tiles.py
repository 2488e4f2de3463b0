"""The tiles that encoders are meant for are those that slides are read as, unless others are configured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_encoders import network

from slideio_pipe import TileBag, TileGrid, encode_bag, load_encoder, open_slide, save_bag
from slideio_pipe.errors import ConfigError, EncoderSettingsWarning
from slideio_pipe.export.config import ExportConfig
from slideio_pipe.features.encode_cohort import encode_cohort, tile_config
from slideio_pipe.features.encoders import Encoder
from slideio_pipe.features.encoders.encoder_tiles import warn_scale


def encoder(name: str = "a", **more: Any) -> Encoder:
    """Return an encoder of 32 px."""
    return replace(load_encoder(network(), name=name, normalize="imagenet", input_size=32), **more)


def test_tiles_have_the_size_and_the_mpp_of_the_encoder() -> None:
    """Of several the largest size; without statements the input size at the default mpp."""
    meant = encoder(tile_size=64, mpp=1.0)
    assert (tile_config(None, [meant]).grid.tile_size, tile_config(None, [meant]).view.mpp) == (64, 1.0)
    both = tile_config(None, [meant, encoder(mpp=1.0)])
    assert (both.grid.tile_size, both.view.mpp) == (64, 1.0)
    assert (tile_config(None, [encoder()]).grid.tile_size, tile_config(None, [encoder()]).view.mpp) == (32, 0.5)
    assert tile_config({"grid": {"tile_size": 48}}, [meant]).grid.tile_size == 48


@pytest.mark.parametrize("form", ["dict", "ExportConfig", "file"])
def test_settings_without_tiles_have_those_of_a_known_encoder(form: str, tmp_path: Path) -> None:
    """Each of size and mpp alone; encoders that state no tile size leave settings as they were in earlier versions."""
    partly = {"view": {"mpp": 2.0}, "tissue": {"method": "none"}}
    (tmp_path / "a.yaml").write_text(str(partly))
    config = {"dict": partly, "ExportConfig": ExportConfig.model_validate(partly), "file": tmp_path / "a.yaml"}[form]
    found = tile_config(config, [encoder(tile_size=64, mpp=1.0)])
    assert (found.grid.tile_size, found.view.mpp, found.tissue.method) == (64, 2.0, "none")
    assert tile_config(config, [encoder(mpp=1.0)]).grid.tile_size == 256
    assert tile_config({"tissue": {"method": "none"}}, [encoder(tile_size=64, mpp=1.0)]).view.mpp == 1.0


def test_encoders_for_different_mpp_are_refused_together() -> None:
    """Unless the mpp of the tiles is given."""
    two = [encoder(mpp=0.5), encoder("b", mpp=1.0)]
    with pytest.raises(ConfigError, match=r"a at 0.5 µm and b at 1 µm; .* one after the other, or pass mpp=0.5"):
        tile_config(None, two)
    assert tile_config({"view": {"mpp": 0.5}}, two).view.mpp == 0.5


@pytest.mark.parametrize(
    ("more", "side", "mpp", "warns"),
    [
        ({"mpp": 0.5}, 32, 0.5, False),
        ({"mpp": 0.5}, 36, 0.5, False),  # 0.56 µm per px
        ({"mpp": 0.5}, 64, 0.5, True),
        ({"mpp": 0.5}, 32, 0.25, True),
        ({"mpp": 0.5}, 64, 0.25, False),
        ({"mpp": 0.5, "other_mpps": (0.25,)}, 32, 0.25, False),
        ({"mpp": 0.5, "tile_size": 64}, 64, 0.5, False),
        ({"mpp": 0.5, "tile_size": 64}, 32, 0.5, True),
        ({"mpp": 0.5, "tile_size": 40, "resize": 40}, 40, 0.5, False),
        ({}, 32, 8.0, False),
        ({"mpp": 0.5}, 32, "native", False),
    ],
)
def test_tiles_of_another_scale_are_warned_of(more: dict[str, Any], side: int, mpp: Any, warns: bool) -> None:
    """The px that the network sees count: µm per tile px, times the tile's side, by the side it is resized to."""
    if not warns:
        warn_scale([encoder(**more)], side, mpp)  # warnings are errors
        return
    with pytest.warns(EncoderSettingsWarning, match=r"a sees [\d.]+ µm per px and is meant for [\d.]+: use tiles of"):
        warn_scale([encoder(**more)], side, mpp)


@pytest.mark.slow
def test_features_of_tiles_of_another_scale_are_warned_of(tmp_path: Any) -> None:
    """Of a bag, and of slides with configured tiles, once for all slides."""
    pixels = np.full((300, 500, 3), 7, np.uint8)
    view = open_slide(pixels, slide_mpp=0.5).view()
    bag = TileBag(view, TileGrid(view, tile_size=100))
    with pytest.warns(EncoderSettingsWarning, match=r"a sees 1.6 µm per px and is meant for 0.5"):
        encode_bag(bag, encoder(mpp=0.5), device="cpu")
    from slideio_pipe.synthetic.slide import write_synthetic_slide

    for name in ("a", "b"):
        write_synthetic_slide(tmp_path / f"{name}.svs", size=(1024, 1024), seed=3)
    config = {"grid": {"tile_size": 128}, "view": {"mpp": 0.5}}
    with pytest.warns(EncoderSettingsWarning, match=r"a sees 2 µm per px") as seen:
        encode_cohort(tmp_path, encoder(mpp=0.5), tmp_path / "f", config, device="cpu", progress=False)
    assert len(seen) == 1
    save_bag(bag, tmp_path / "a.bag.zarr", progress=False)
    with pytest.warns(EncoderSettingsWarning, match=r"a sees 1.6 µm per px and is meant for 0.5"):
        encode_cohort([tmp_path / "a.bag.zarr"], encoder(mpp=0.5), device="cpu", progress=False)
