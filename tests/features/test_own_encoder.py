"""Encoders by import path: a network or an Encoder of the user's module, for features and trainings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from made_slides import made_slide
from own_parts import SOURCE, module_file
from typer.testing import CliRunner

import slideio_pipe as sp
from slideio_pipe.commands.app import app
from slideio_pipe.errors import ConfigError
from slideio_pipe.features.encoders.loading import load_encoders

MORE = """
import slideio_pipe as sp

def whole_encoder():
    return sp.load_encoder(make_encoder(), name="mine", normalize="half", input_size=32, mpp=1.0)

def needs(argument):
    return argument

def number():
    return 5

network = make_encoder()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a user's module in the current folder."""
    name = f"own_{abs(hash(str(tmp_path)))}"
    module_file(tmp_path, name, SOURCE + MORE)
    monkeypatch.chdir(tmp_path)
    return name


def test_a_network_gets_its_tiles_from_the_arguments(here: str) -> None:
    """A function is called, an object is taken; the features are those of the network."""
    for attribute in ("make_encoder", "network"):
        encoder = sp.load_encoder(f"{here}:{attribute}", normalize="half", input_size=32)
        assert (encoder.name, encoder.source, encoder.dim) == (attribute, f"{here}:{attribute}", 6)
        again = sp.load_encoder(encoder.module, name="x", normalize="half", input_size=32)
        assert again.weights == encoder.weights
    named = load_encoders(f"other={here}:network", {"normalize": "half", "input_size": 32})
    assert named[0].name == "other"


def test_a_function_that_makes_an_encoder_needs_no_arguments(here: str) -> None:
    found = sp.load_encoder(f"{here}:whole_encoder")
    assert (found.name, found.input_size, found.mpp, found.normalize.mean) == ("mine", 32, 1.0, (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("make_encoder", r"the normalisation of tiles and the size of tiles are unknown; pass normalize=.* input_size"),
        ("needs", r"it cannot be called without arguments \(TypeError: needs\(\) missing"),
        ("number", r"it is an? int, neither an nn.Module nor an Encoder"),
        ("make_encodr", r"the module has no make_encodr; did you mean make_encoder\?"),
    ],
)
def test_what_is_no_encoder_is_refused(attribute: str, message: str, here: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sp.load_encoder(f"{here}:{attribute}")


@pytest.mark.system
@pytest.mark.parametrize("workers", [None, 1])
def test_the_command_line_computes_features_with_it(here: str, workers: int | None, tmp_path: Path) -> None:
    """In this process, and in worker processes, which import the module too; equal to a plain loop."""
    made_slide(tmp_path / "a.svs", size=(1024, 1024), seed=1)
    given = [] if workers is None else ["--workers", str(workers)]
    done = CliRunner().invoke(
        app, ["features", "a.svs", "--encoder", f"{here}:whole_encoder", "--out", "out", "--device", "cpu", *given]
    )
    assert done.exit_code == 0, done.output
    found = sp.open_features("out/a.features.zarr")
    encoder = sp.load_encoder(f"{here}:whole_encoder")
    with sp.open_slide("a.svs") as slide:
        view = slide.view(mpp=1.0)
        grid = sp.TileGrid.from_coords(view, found.coords, tile_size=32)
        tiles = torch.from_numpy(sp.TileBag(view, grid)[:]).permute(0, 3, 1, 2)
    with torch.no_grad():
        wanted = encoder.module(tiles.float() / 127.5 - 1)
    np.testing.assert_allclose(found.features.astype(np.float32), wanted.numpy(), atol=2e-3)
