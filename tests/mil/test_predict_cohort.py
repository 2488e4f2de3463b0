"""``slideio-pipe predict``: a table, files for other tools, and a bad slide that does not stop the others."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_training import features, quick, slides, study, table, train_features, train_pixels
from typer.testing import CliRunner, Result

import slideio_pipe as sp
from slideio_pipe.commands.app import app
from slideio_pipe.commands.export import export
from slideio_pipe.commands.predict import predict
from slideio_pipe.commands.train import train
from slideio_pipe.commands.words import command_words
from slideio_pipe.errors import ConfigError, MissingResolutionError, NoTissueError, SlideioPipeError, worded
from slideio_pipe.mil.fit import fit

pytest.importorskip("lightning_fabric")
FILES = ["heatmap.geojson", "heatmap.png", "tiles.csv", "tiles.png"]


class Trained(NamedTuple):
    """Fixtures that the tests share."""

    folder: Path
    pixels: Path
    features: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Slides, features, and a training on each."""
    folder = tmp_path_factory.mktemp("predict")
    checkpoint = train_pixels(slides(folder, 2), folder / "run")
    return Trained(folder, checkpoint, train_features(features(folder / "f"), folder / "feature-run"))


def run(*arguments: object) -> Result:
    """Run the command."""
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


@pytest.mark.slow
def test_slides_get_a_table_and_a_folder_each(trained: Trained, tmp_path: Path) -> None:
    """Other tools open the files; nothing is replaced without --overwrite."""
    out = tmp_path / "out"
    done = run(trained.pixels, trained.folder / "cohort.csv", "--out", out, "--pyramid", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert "s0.svs" in done.stdout
    with (out / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["slide"], row["label"]) for row in rows] == [("s0.svs", "0"), ("s1.svs", "1")]
    for name in ("s0", "s1"):
        folder = out / name
        assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "heatmap.ome.tif"])
        with Image.open(folder / "heatmap.png") as picture:
            assert picture.width > 1200
        assert sp.Annotations.from_geojson(folder / "heatmap.geojson").regions
        with sp.open_slide(folder / "heatmap.ome.tif") as pyramid:
            assert pyramid.mpp is not None
    again = run(trained.pixels, trained.folder / "cohort.csv", "--out", out, "--device", "cpu")
    assert again.exit_code == 2
    assert "pass --overwrite" in again.stderr


def test_the_model_of_an_unfinished_training_is_said_to_be_one(trained: Trained, tmp_path: Path) -> None:
    """A run without its metrics goes on or was stopped; a checkpoint that was copied elsewhere is not judged."""
    place = trained.pixels if trained.pixels.is_dir() else trained.pixels.parent
    shutil.copytree(place, tmp_path / "run")
    slide = trained.folder / "s0.svs"
    assert "not finished" not in run(tmp_path / "run", slide, "--device", "cpu").stderr
    (tmp_path / "run" / "metrics.json").unlink()
    kept = "last" if sp.load_predictor(tmp_path / "run").config.fit.monitor == "none" else "best"
    said = f"this training is not finished; the model is that of its {kept} epoch so far"
    assert said in run(tmp_path / "run", slide, "--device", "cpu").stderr
    (tmp_path / "run" / "last.ckpt").unlink()
    assert "not finished" not in run(tmp_path / "run" / "best.ckpt", slide, "--device", "cpu").stderr


def test_a_bad_slide_does_not_fail_the_others(trained: Trained, tmp_path: Path) -> None:
    """It is listed, and the exit code is 1."""
    bad = tmp_path / "bad.svs"
    bad.write_bytes(b"no slide")
    done = run(trained.pixels, bad, trained.folder / "s1.svs", "--json", "--device", "cpu")
    assert done.exit_code == 1
    reported = json.loads(done.stdout)
    assert [row["slide"] for row in reported["predictions"]] == ["s1.svs"]
    assert [row["slide"] for row in reported["failed"]] == ["bad.svs"]
    assert "✗ bad.svs" in run(trained.pixels, bad, "--device", "cpu").stdout


def test_features_without_coordinates_have_no_pictures(trained: Trained, tmp_path: Path) -> None:
    """The reason is printed; a picture that an option requires is an error."""
    path = trained.folder / "f" / "f1.pt"
    done = run(trained.features, path, "--out", tmp_path / "out", "--device", "cpu", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["predictions"][0]["files"] == ["tiles.csv"]
    assert "no heat map: f1.pt: positions of its tiles are unknown" in " ".join(done.stderr.split())
    requested = run(trained.features, path, "--out", tmp_path / "requested", "--pyramid", "--device", "cpu", "--json")
    assert requested.exit_code == 1
    assert "positions of its tiles are unknown" in json.loads(requested.stdout)["failed"][0]["error"]


def test_coordinates_in_um_are_drawn_with_the_mpp_of_the_slide(trained: Trained, tmp_path: Path) -> None:
    """STAMP stores µm: the slide that --slides finds has the size of a pixel."""
    h5py = pytest.importorskip("h5py")
    (tmp_path / "slides").mkdir()
    sp.write_synthetic_slide(tmp_path / "slides" / "f1.svs", size=(2048, 1536), mpp=0.5, seed=0)
    values = torch.load(trained.folder / "f" / "f1.pt", weights_only=True).numpy()
    places = np.array([[k % 4, k // 4] for k in range(len(values))]) * 256  # level-0 px
    with h5py.File(tmp_path / "f1.h5", "w") as file:
        file["feats"], file["coords"] = values, (places * 0.5).astype(np.float32)
        file.attrs.update({"unit": "um", "tile_size_um": 128.0, "tile_size_px": 256, "extractor": "x"})
    done = run(
        trained.features, tmp_path / "f1.h5", "--slides", tmp_path / "slides", "--pyramid",
        "--out", tmp_path / "out", "--device", "cpu", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    files = json.loads(done.stdout)["predictions"][0]["files"]
    assert {"heatmap.png", "heatmap.geojson", "heatmap.ome.tif"} <= set(files)
    with (tmp_path / "out" / "f1" / "tiles.csv").open(newline="") as table:
        found = [(int(float(row["x"])), int(float(row["y"]))) for row in csv.DictReader(table)]
    assert sorted(found) == sorted(map(tuple, places.tolist()))


def test_invalid_arguments_are_refused(trained: Trained) -> None:
    """Before anything is read."""
    slide = trained.folder / "s0.svs"
    assert "--out FOLDER" in run(trained.pixels, slide, "--pyramid").stderr
    assert "no scores" in run(trained.pixels, slide, "--scores", "heat").stderr
    assert "no such checkpoint" in run("nothing.ckpt", slide).stderr


def test_predictions_are_measured_where_the_truth_is_known(trained: Trained, tmp_path: Path) -> None:
    """AUROC is the share of pairs in the right order, counted here; slides without a label are not used."""
    table = trained.folder / "f" / "cohort.csv"
    lines = table.read_text().splitlines()
    header = lines[0].split(",")
    row = lines[1].split(",")
    row[header.index("label")] = ""
    some = table.with_name("some.csv")
    some.write_text("\n".join([lines[0], ",".join(row), *lines[2:]]) + "\n")
    reported = json.loads(run(trained.features, some, "--json", "--device", "cpu").stdout)
    known = reported["predictions"][1:]
    chances = {label: [r["probability_1"] for r in known if str(r["label"]) == label] for label in "01"}
    pairs = [(one > other) + 0.5 * (one == other) for one in chances["1"] for other in chances["0"]]
    assert reported["measured"] == len(lines) - 2 == len(known)
    assert reported["metrics"]["auroc"]["value"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    shown = " ".join(run(trained.features, some, "--device", "cpu").stdout.split())
    assert f"{len(known)} slides with a known truth" in shown
    assert "balanced accuracy" in shown
    alone = json.loads(run(trained.features, trained.folder / "f" / "f1.pt", "--json", "--device", "cpu").stdout)
    assert (alone["measured"], alone["metrics"]) == (0, {})


def test_predictions_are_made_without_torchmetrics(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra for metrics is named only if there are labels."""
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.setitem(sys.modules, "torchmetrics.functional", None)
    done = run(trained.features, trained.folder / "f" / "cohort.csv", "--json", "--device", "cpu")
    assert done.exit_code == 0, done.output
    reported = json.loads(done.stdout)
    assert (len(reported["predictions"]), reported["metrics"]) == (4, {})
    assert "predictions are not measured" in done.stderr
    alone = run(trained.features, trained.folder / "f" / "f1.pt", "--json", "--device", "cpu")
    assert "not measured" not in alone.stderr


# -- slides of the training --------------------------------------------------------------------------------------------


def truth(folder: Path, names: list[str]) -> Path:
    """Write a manifest of features in a folder, every second slide of label 1."""
    rows = [f"{name},{k % 2}" for k, name in enumerate(names)]
    (folder / "truth.csv").write_text("\n".join(["slide,label", *rows]) + "\n")
    return folder / "truth.csv"


def test_slides_of_the_training_are_measured_separately(trained: Trained, tmp_path: Path) -> None:
    """Recognised by content, under any name, and by name; each part has its own metrics.

    AUROC is the share of pairs in the right order, counted here.
    """
    for k in range(3):
        shutil.copy(trained.folder / "f" / f"f{k}.pt", tmp_path / f"copy{k}.pt")  # of the training, with another name
    torch.save(torch.load(trained.folder / "f" / "f3.pt") + 0.1, tmp_path / "f3.pt")  # of one of its slides, made again
    generator = torch.Generator().manual_seed(7)
    for k in range(4):
        torch.save(torch.randn(6, 6, generator=generator), tmp_path / f"n{k}.pt")
    names = ["copy0.pt", "copy1.pt", "copy2.pt", "f3.pt", "n0.pt", "n1.pt", "n2.pt", "n3.pt"]
    cohort, out = truth(tmp_path, names), tmp_path / "out"
    done = run(trained.features, cohort, "--out", out, "--json", "--device", "cpu")
    assert done.exit_code == 0, done.output
    reported = json.loads(done.stdout)
    assert [row["part"] for row in reported["predictions"]] == ["train"] * 4 + ["new"] * 4
    with (out / "predictions.csv").open(newline="") as file:
        assert [row["part"] for row in csv.DictReader(file)] == ["train"] * 4 + ["new"] * 4
    assert list(reported["parts"]) == ["train", "new"]
    for part, rows in (("train", reported["predictions"][:4]), ("new", reported["predictions"][4:])):
        chances = {label: [r["probability_1"] for r in rows if str(r["label"]) == label] for label in "01"}
        pairs = [(one > other) + 0.5 * (one == other) for one in chances["1"] for other in chances["0"]]
        found = reported["parts"][part]
        assert found["measured"] == 4
        assert found["metrics"]["auroc"]["value"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert reported["measured"] == 8
    assert (
        "of 8 slides with a known truth 4 were used to train the model: their metrics do not hold for other slides"
        in done.stderr
    )
    shown = " ".join(run(trained.features, cohort, "--device", "cpu").stdout.split())
    assert "4 slides with a known truth, used to train the model" in shown
    assert "4 slides with a known truth, not used in the training" in shown


def test_validation_and_test_slides_are_measured_separately(tmp_path: Path) -> None:
    """Each split of the training is a part; new slides alone cause no warning."""
    split = ["train"] * 6 + ["val"] * 4 + ["test"] * 4
    cohort = study(tmp_path / "f", {"label": [k % 2 for k in range(14)], "split": split})
    fit(cohort, quick(monitor="loss"), tmp_path / "run", progress=False)
    reported = json.loads(run(tmp_path / "run", cohort, "--json", "--device", "cpu").stdout)
    assert [row["part"] for row in reported["predictions"]] == split
    assert {part: found["measured"] for part, found in reported["parts"].items()} == {"train": 6, "val": 4, "test": 4}
    for k in range(4):
        torch.save(torch.randn(5, 6, generator=torch.Generator().manual_seed(k)), tmp_path / f"n{k}.pt")
    new = run(tmp_path / "run", truth(tmp_path, [f"n{k}.pt" for k in range(4)]), "--json", "--device", "cpu")
    assert list(json.loads(new.stdout)["parts"]) == ["new"]
    assert "warning" not in new.stderr


def test_another_slide_of_the_same_name_is_new(trained: Trained, tmp_path: Path) -> None:
    """Slide files are compared by content: two hospitals may both have an s0.svs."""
    sp.write_synthetic_slide(tmp_path / "s0.svs", size=(512, 512), seed=99)
    shutil.copy(trained.folder / "s1.svs", tmp_path / "other.svs")
    found = run(trained.pixels, tmp_path / "s0.svs", tmp_path / "other.svs", "--json", "--device", "cpu")
    assert [row["part"] for row in json.loads(found.stdout)["predictions"]] == ["new", "train"]


def test_impossible_truth_is_a_warning(tmp_path: Path) -> None:
    """Predictions are made but not measured; the warning has the reason."""
    columns = {"time": list(range(1, 13)), "event": [k % 2 for k in range(12)]}
    cohort = study(tmp_path / "f", columns)
    config = quick({"kind": "survival"}, validation=0, monitor="none", bags_per_step=4)
    fit(cohort, config, tmp_path / "run", progress=False)
    table(tmp_path / "f", columns | {"time": [-1, *range(2, 13)]})
    done = run(tmp_path / "run", cohort, "--json", "--device", "cpu")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["parts"] == {}
    assert "predictions are not measured: time of 1 slide is not a time from 0 on: s0.pt (-1)" in done.stderr


@pytest.mark.parametrize("given", ["folder", "pattern", "--features"])
def test_features_can_be_given_as_for_train(given: str, trained: Trained, tmp_path: Path) -> None:
    """A folder of files, a pattern, or a table of slides and a folder."""
    for k in range(2):
        shutil.copy(trained.folder / "f" / f"f{k}.pt", tmp_path / f"a{k}.pt")
    (tmp_path / "report.html").write_text("of the run that made them")
    (tmp_path / "slides.csv").write_text("slide,label\n/elsewhere/a0.svs,0\n/elsewhere/a1.svs,1\n")
    sources = {
        "folder": [tmp_path],
        "pattern": [tmp_path / "*.pt"],
        "--features": [tmp_path / "slides.csv", "--features", tmp_path],
    }
    done = run(trained.features, *sources[given], "--json", "--device", "cpu")
    assert done.exit_code == 0, done.output
    ending = ".svs" if given == "--features" else ".pt"
    assert [row["slide"] for row in json.loads(done.stdout)["predictions"]] == [f"a0{ending}", f"a1{ending}"]


def test_remedies_name_options_or_settings_of_the_command() -> None:
    """predict and train have no --min-tissue: a key of the settings is named."""

    def shown(error: SlideioPipeError, command: Callable[..., object]) -> str:
        with worded(lambda _: command_words(command)):
            return str(error)

    tissue = NoTissueError("no tile has enough tissue", slide="a.svs", remedy="leave it out, or lower {min_tissue=}")
    for command in (train, predict):
        assert shown(tissue, command).endswith("leave it out, or lower grid.min_tissue")
    assert shown(tissue, export).endswith("leave it out, or lower --min-tissue")
    assert str(tissue).endswith("leave it out, or lower min_tissue")
    mpp = MissingResolutionError("no mpp", slide="a.svs", remedy="pass {slide_mpp=0.25}")
    assert shown(mpp, predict).endswith("pass --slide-mpp 0.25")
    assert shown(mpp, train).endswith('--set slide.slide_mpp=0.25, or 0.25 in the column "mpp" of the cohort')
    encoder = ConfigError("no features", remedy="pass the encoder of the training: {encoder=…}")
    assert shown(encoder, predict).endswith("of the training: --encoder")


def test_the_remedy_of_a_missing_mpp_fits_the_command(trained: Trained, tmp_path: Path) -> None:
    """An option for a prediction, a setting for a training, a column for tables."""
    Image.new("RGB", (256, 256), "pink").save(tmp_path / "s0.png")
    failed = run(trained.pixels, tmp_path / "s0.png", "--device", "cpu")
    assert failed.exit_code == 1
    assert "pass --slide-mpp 0.25: µm per level-0 pixel" in failed.stdout
    (tmp_path / "cohort.csv").write_text("slide,label\ns0.png,0\ns1.png,1\n")
    Image.new("RGB", (256, 256), "pink").save(tmp_path / "s1.png")
    config = quick(validation=0, monitor="none", epochs=1) | {"encoder": {"source": "small"}, "view": {"mpp": 0.5}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    requested = ["train", tmp_path / "config.yaml", "--cohort", tmp_path / "cohort.csv", "--out", tmp_path / "run"]
    done = CliRunner().invoke(app, [str(word) for word in requested])
    assert done.exit_code == 2
    advised = 'pass --set slide.slide_mpp=0.25, or 0.25 in the column "mpp" of the cohort: µm per level-0 pixel'
    assert advised in " ".join(done.stderr.split())


def test_the_remedy_of_a_blank_slide_in_a_training_is_a_setting(tmp_path: Path) -> None:
    """On the command line, from a blank slide to the message."""
    for k in range(4):
        Image.new("RGB", (256, 256), "white").save(tmp_path / f"s{k}.png")
    rows = "".join(f"s{k}.png,{k % 2},0.5\n" for k in range(4))
    (tmp_path / "cohort.csv").write_text(f"slide,label,mpp\n{rows}")
    config = quick(validation=0, monitor="none", epochs=1) | {
        "encoder": {"source": "small"}, "view": {"mpp": 0.5}, "grid": {"tile_size": 32},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    requested = ["train", tmp_path / "config.yaml", "--cohort", tmp_path / "cohort.csv", "--out", tmp_path / "run"]
    done = CliRunner().invoke(app, [str(word) for word in requested])
    assert done.exit_code == 2
    assert "lower grid.min_tissue" in " ".join(done.stderr.split())
    assert "--min-tissue" not in done.stderr
