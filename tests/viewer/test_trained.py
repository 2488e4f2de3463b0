"""Slides as a training saw them: its transform, seed, resolution and slides come from its folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from made_slides import made_slide
from paths import CONFIGS

import slideio_pipe as sp
from slideio_pipe.errors import ConfigError
from slideio_pipe.viewer.trained import split_trainings, training_of


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a training with one slide, a transform and the seed 9."""
    made_slide(tmp_path / "a.svs", size=(1500, 1200), seed=3, lesions=1, pieces=1)
    (tmp_path / "cohort.csv").write_text("slide,label\na.svs,1\n", encoding="utf-8")
    folder = tmp_path / "run"
    (folder / "fold-0").mkdir(parents=True)
    settings = {
        "cohort": str(tmp_path / "cohort.csv"),
        "slide_transform": str(CONFIGS / "stain-light.yaml"),
        "seed": 9,
        "view": {"mpp": 1.0},
        "grid": {"tile_size": 64},
        "task": {"kind": "classification"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    for place in (folder / "best.ckpt", folder / "fold-0" / "best.ckpt"):
        place.write_bytes(b"")
    return folder


def test_a_folder_and_its_checkpoints(run: Path) -> None:
    """A folder, a checkpoint in it and one of a fold are the same training; other paths are none."""
    for path in (run, run / "best.ckpt", run / "fold-0", str(run / "fold-0" / "best.ckpt")):
        training = training_of(path)
        assert training is not None
        assert (training.config.seed, training.config.view.mpp) == (9, 1.0)
    assert training_of(run.parent / "a.svs") is None
    assert training_of(run.parent) is None
    assert training_of(3) is None


def test_its_own_slides_or_others(run: Path) -> None:
    """Without other slides those of its cohort are shown."""
    source, training = split_trainings(run)
    assert (source, training is not None) == (run.parent / "cohort.csv", True)
    assert split_trainings([run, run.parent / "a.svs"])[0] == run.parent / "a.svs"
    assert split_trainings(run.parent / "a.svs") == (run.parent / "a.svs", None)
    with pytest.raises(ConfigError, match="several trainings"):
        split_trainings([run, run])


def test_an_unfinished_training(run: Path) -> None:
    """Its settings are not there yet."""
    (run / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"no config\.yaml"):
        training_of(run)


def test_the_draw_is_that_of_the_training(run: Path) -> None:
    """The viewer starts with its seed, and a draw of an epoch is the training's."""
    transform = sp.load_transform(CONFIGS / "stain-light.yaml")
    with sp.explore(run) as viewer, sp.open_slide(run.parent / "a.svs") as slide:
        pages = viewer._server.answer
        assert pages.settings == {"seed": 9, "start": "seed"}
        made = pages.drawn.make("s0", {"seed": 9, "epoch": 12})
        true = slide.view(mpp=1.0, transform=transform, seed=9, epoch=12).draw
        assert sp.Draw.from_json(made["json"]) == true
