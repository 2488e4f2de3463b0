"""A training is resumed, or counts as finished, only if none of its inputs changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from paths import CONFIGS
from tiny_training import PIXELS, WIDTH, quick, slides, study, table

from slideio_pipe import write_synthetic_slide
from slideio_pipe.errors import ConfigError
from slideio_pipe.mil.checkpoint import read_checkpoint
from slideio_pipe.mil.fit import fit
from slideio_pipe.mil.prediction.predictor import load_predictor

pytest.importorskip("lightning_fabric")
pytestmark = pytest.mark.usefixtures("without_plots")
COUNT = 12
SPLIT = ["train"] * 8 + ["test"] * 4
TURNS = [k % 2 for k in range(COUNT)]


def columns(**changed: list[Any]) -> dict[str, list[Any]]:
    """Return the columns of a study of every task."""
    known = {"label": TURNS, "grade": TURNS, "size": [k / 2 for k in range(COUNT)], "split": SPLIT}
    return known | {"time": list(range(10, 10 + COUNT)), "event": TURNS} | changed


@pytest.mark.parametrize(
    ("task", "column", "cells", "count"),
    [
        ({}, "label", TURNS[::-1], 12),
        ({"label": "grade"}, "grade", TURNS[::-1], 12),
        ({"kind": "regression", "label": "size"}, "size", [1.0, *(k / 2 for k in range(1, COUNT))], 1),
        ({"kind": "survival"}, "time", [11, 10, *range(12, 10 + COUNT)], 2),
        ({"kind": "survival"}, "event", [1, *TURNS[1:]], 1),
        ({}, "mpp", [0.5] * COUNT, 12),
    ],
)
def test_changed_outcomes_are_refused(
    task: dict[str, Any], column: str, cells: list[Any], count: int, tmp_path: Path
) -> None:
    """In the columns that are trained on; others may change."""
    cohort = study(tmp_path, columns())
    config = quick(task, validation=0, monitor="none", bags_per_step=4)
    first = fit(cohort, config, tmp_path / "run", progress=False)
    table(tmp_path, columns(note=["seen"] * COUNT))
    again = fit(cohort, config, tmp_path / "run", progress=False)
    assert again.history == first.history
    table(tmp_path, columns(**{column: cells}))
    what = "resolution" if column == "mpp" else "label"
    with pytest.raises(
        ConfigError, match=rf"another training: .*{count} slides are others, of another {what} \({count}\)"
    ):
        fit(cohort, config, tmp_path / "run", progress=False)


def test_changed_features_are_refused(tmp_path: Path) -> None:
    """One number of one tile, in a file of the same name and size."""
    cohort = study(tmp_path, columns())
    config = quick(validation=0, monitor="none")
    fit(cohort, config, tmp_path / "run", progress=False)
    features = torch.load(tmp_path / "s3.pt")
    features[1, 2] += 1e-3
    torch.save(features, tmp_path / "s3.pt")
    with pytest.raises(ConfigError, match=r"1 slides are others, of another content \(1\): s3.pt; pass overwrite"):
        fit(cohort, config, tmp_path / "run", progress=False)


def _another_slide(folder: Path) -> None:
    write_synthetic_slide(folder / "s1.svs", size=(1024, 1024), seed=77, overwrite=True)


def _another_transform(folder: Path) -> None:
    (folder / "light.yaml").write_text((folder / "light.yaml").read_text().replace("alpha: 0.1", "alpha: 0.2"))


def _another_mpp(folder: Path) -> None:
    lines = (folder / "cohort.csv").read_text().splitlines()
    (folder / "cohort.csv").write_text("\n".join([f"{lines[0]},mpp", *(f"{line},0.5" for line in lines[1:])]) + "\n")


def _a_comment(folder: Path) -> None:
    (folder / "light.yaml").write_text("# as it was\n" + (folder / "light.yaml").read_text())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_another_slide, r"of another content \(1\): s1.svs"),
        (_another_transform, r"contents.slide_transform was [0-9a-f]{16}, is [0-9a-f]{16}"),
        (_another_mpp, r"of another resolution \(2\): s0.svs, s1.svs"),
        (_a_comment, None),
    ],
)
def test_changed_slides_or_transforms_are_refused(
    change: Callable[[Path], None], message: str | None, tmp_path: Path
) -> None:
    """In trainings from pixels, between two epochs."""
    cohort = slides(tmp_path, 2)
    shutil.copy(CONFIGS / "stain-light.yaml", tmp_path / "light.yaml")
    config = yaml.safe_load(yaml.safe_dump(PIXELS)) | {"slide_transform": str(tmp_path / "light.yaml")}
    config["fit"]["epochs"] = 2

    def stop(done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(cohort, config, tmp_path / "run", progress=stop)
    change(tmp_path)
    if message is None:
        assert len(fit(cohort, config, tmp_path / "run", progress=False).history[0]) == 2
        return
    with pytest.raises(ConfigError, match=message):
        fit(cohort, config, tmp_path / "run", progress=False)


# -- other divisions, other models -------------------------------------------------------------------------------------


def test_folds_are_refused_in_the_folder_of_a_training_without(tmp_path: Path) -> None:
    """Metrics of the folds would be beside best.ckpt of another training."""
    cohort, run = study(tmp_path, columns()), tmp_path / "run"
    plain = quick(validation=0, monitor="none")
    folds = quick(validation=0, monitor="none", folds=2) | {"model": {"name": "mean", "embed": [4]}}
    fit(cohort, plain, run, progress=False)
    kept = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(
        ConfigError, match="holds a training without folds, and one of 2 folds is to be trained; pass ov"
    ):
        fit(cohort, folds, run, progress=False)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == kept
    fit(cohort, folds, run, overwrite=True, progress=False)
    assert sorted(path.parent.name for path in run.rglob("best.ckpt")) == ["fold-0", "fold-1"]
    with pytest.raises(ConfigError, match="no such checkpoint"):
        load_predictor(run)
    with pytest.raises(ConfigError, match=r"holds other folds \(fold-0, fold-1\), and one without folds"):
        fit(cohort, plain, run, progress=False)
    fit(cohort, plain, run, overwrite=True, progress=False)
    assert [path.parent.name for path in run.rglob("best.ckpt")] == ["run"]
    assert load_predictor(run).config.model.name == "gated"


def test_fewer_folds_remove_the_former_ones(tmp_path: Path) -> None:
    """Two folds in place of three."""
    cohort, run = study(tmp_path, columns()), tmp_path / "run"
    for count in (3, 2):
        fit(cohort, quick(validation=0, monitor="none", folds=count), run, overwrite=True, progress=False)
    assert sorted(path.parent.name for path in run.rglob("best.ckpt")) == ["fold-0", "fold-1"]
    with pytest.raises(ConfigError, match="another training"):
        fit(cohort, quick(validation=0, monitor="none", folds=3), run, progress=False)


def test_a_restarted_training_removes_old_results(tmp_path: Path) -> None:
    """Stopped in its first epoch, it has no metrics of the training before."""
    cohort, run = study(tmp_path, columns()), tmp_path / "run"
    fit(cohort, quick(validation=0, monitor="none"), run, progress=False)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(cohort, quick(validation=0, monitor="none", lr=0.1), run, overwrite=True, progress=stop)
    assert not [name for name in ("metrics.json", "predictions.csv", "best.ckpt") if (run / name).exists()]


def test_a_best_checkpoint_alone_is_not_replaced(tmp_path: Path) -> None:
    """A user who deleted last.ckpt keeps best.ckpt, unless the same training restarts."""
    cohort, run = study(tmp_path, columns()), tmp_path / "run"
    fit(cohort, quick(validation=0, monitor="none"), run, progress=False)
    (run / "last.ckpt").unlink()
    with pytest.raises(ConfigError, match=r"best.ckpt: the checkpoint is of another training: config.fit.lr was"):
        fit(cohort, quick(validation=0, monitor="none", lr=0.1), run, progress=False)
    fit(cohort, quick(validation=0, monitor="none"), run, progress=False)


def test_a_checkpoint_of_an_earlier_version_is_resumed(tmp_path: Path) -> None:
    """It has only names and labels of slides, and no contents of files."""
    cohort, run = study(tmp_path, columns()), tmp_path / "run"
    config = quick(validation=0, monitor="none")
    first = fit(cohort, config, run, progress=False)
    for path in (run / "last.ckpt", run / "best.ckpt"):
        known = read_checkpoint(path)
        del known["about"]["contents"]
        known["about"]["slides"] = [[[name, "1"] for name, *_ in part] for part in known["about"]["slides"]]
        torch.save(known, path)
    assert fit(cohort, config, run, progress=False).history == first.history
    assert load_predictor(run).width == WIDTH
