"""Features of a cohort: a run continues after every kind of failure, and a failure is one slide's."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import ROOT
from pyramids import write_pyramid
from tiny_encoders import DIM, Reciprocal, Watched, network, reference, write_torchscript
from torch import nn
from typer.testing import CliRunner

from slideio_pipe import encode_bag, encode_cohort, export_cohort, load_encoder, open_bag, open_features
from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.commands.app import app
from slideio_pipe.errors import ConfigError
from slideio_pipe.export.config import ExportConfig
from slideio_pipe.streaming import slide_opener
from slideio_pipe.streaming.normalize import IMAGENET_MEAN, IMAGENET_STD

PLAIN = {"view": {"mpp": None}, "tissue": {"method": "none"}}
SIDES = (3, 5, 1, 4, 2, 6)  # tiles along each side of a slide
TILES = sum(side * side for side in SIDES)


def write_slide(path: Path, side: int, fill: int | None = None) -> Path:
    """Write a slide of side × side tiles of 32 px, of noise or of one colour."""
    noise = np.random.default_rng(side).integers(0, 256, (32 * side, 32 * side, 3), dtype=np.uint8)
    return write_pyramid(path, noise if fill is None else np.full_like(noise, fill), (1,), mpp=0.5, tile=32)


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """A folder of small slides."""
    (tmp_path / "slides").mkdir()
    for k, side in enumerate(SIDES):
        write_slide(tmp_path / "slides" / f"s{k}.tif", side)
    return tmp_path / "slides"


def tiny(name: str = "tiny", model: nn.Module | None = None, **settings: Any) -> Any:
    """Return an encoder of tiles of 32 px."""
    return load_encoder(model or network(), name=name, **{"normalize": "imagenet", "input_size": 32, **settings})


def encode(cohort: Any, encoders: Any, out: Path | None, **settings: Any) -> Any:
    """Encode on the CPU, by default all tiles as they are stored."""
    settings = {"config": PLAIN | {"grid": {"tile_size": 32}}, "device": "cpu", "progress": False} | settings
    return encode_cohort(cohort, encoders, out, **settings)


def counts(report: Any) -> tuple[int, int, int, int]:
    """Return how many slides were done, kept and failed, and how many tiles were encoded."""
    return report.done, report.kept, len(report.failed), report.tiles


def failures(folder: Path) -> list[dict[str, str]]:
    """Return the rows of failures.csv."""
    with (folder / "failures.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def check(path: Path, side: int) -> None:
    """Compare the features of a slide with a plain loop over its pixels."""
    noise = np.random.default_rng(side).integers(0, 256, (32 * side, 32 * side, 3), dtype=np.uint8)
    found, model = open_features(path, "tiny"), network()
    assert found.coords is not None
    assert len(found) == side * side
    for (x, y), row in zip(found.coords.tolist(), found.features, strict=True):
        tile = noise[y : y + 32, x : x + 32]
        assert np.abs(row - reference(tile, model, IMAGENET_MEAN, IMAGENET_STD)).max() < 1e-3


def test_slides_are_encoded_without_bags(slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every slide is opened once, every batch but the last is full, and features are those of its tiles."""
    opened: list[Path] = []
    plain = slide_opener.open_slide
    monkeypatch.setattr(slide_opener, "open_slide", lambda path, **more: (opened.append(path), plain(path, **more))[1])
    watched = Watched(network())
    encoder = tiny(model=watched)
    watched.batches.clear()
    report = encode(slides, encoder, tmp_path / "out", batch_size=16)
    assert counts(report) == (len(SIDES), 0, 0, TILES)
    assert sorted(path.name for path in opened) == [f"s{k}.tif" for k in range(len(SIDES))]
    assert watched.batches == [16] * (TILES // 16) + [TILES % 16]
    for k, side in enumerate(SIDES):
        check(tmp_path / "out" / f"s{k}.features.zarr", side)
    assert not list((tmp_path / "out").glob("*.partial"))
    assert not list((tmp_path / "out").glob("*.lock"))
    assert counts(encode(slides, tiny(model=watched), tmp_path / "out")) == (0, len(SIDES), 0, 0)


@pytest.mark.slow
def test_features_are_stored_in_the_bags(slides: Path, tmp_path: Path) -> None:
    """Each bag gets its own; a repeated export keeps the bags; a bag that is made again has none."""
    config = ExportConfig.model_validate(PLAIN | {"grid": {"tile_size": 32}})
    bags = tmp_path / "bags"
    export_cohort(slides, bags, config, progress=False)
    assert counts(encode(bags, tiny(), None)) == (len(SIDES), 0, 0, TILES)
    for k, side in enumerate(SIDES):
        check(bags / f"s{k}.bag.zarr", side)
    with open_bag(bags / "s1.bag.zarr") as bag:
        alone = encode_bag(bag, tiny(), device="cpu")["tiny"]
        assert np.allclose(bag.features("tiny"), alone, atol=1e-3)
    assert counts(encode(bags, tiny(), None)) == (0, len(SIDES), 0, 0)
    assert export_cohort(slides, bags, config, progress=False).kept == len(SIDES)
    shutil.rmtree(bags / "s1.bag.zarr")
    export_cohort(slides, bags, config, progress=False)
    assert counts(encode(bags, tiny(), None)) == (1, len(SIDES) - 1, 0, 25)


def test_only_an_added_encoder_is_computed(slides: Path, tmp_path: Path) -> None:
    """The first one is kept, and either can be requested alone afterwards."""
    out = tmp_path / "out"
    watched = Watched(network())
    first, second = tiny(model=watched), tiny("small", input_size=16)
    encode(slides, first, out)
    watched.batches.clear()
    assert counts(encode(slides, [first, second], out)) == (len(SIDES), 0, 0, TILES)
    assert watched.batches == []
    assert counts(encode(slides, first, out)) == (0, len(SIDES), 0, 0)
    assert counts(encode(slides, second, out)) == (0, len(SIDES), 0, 0)
    assert open_features(out / "s1.features.zarr", "small").features.shape == (25, DIM)
    assert open_features(out / "s1.features.zarr", "small").encoder_facts["input_size"] == 16


@pytest.mark.slow
def test_other_settings_are_refused_without_overwrite(slides: Path, tmp_path: Path) -> None:
    """Another network under the same name, or other tiles: the error names the difference."""
    out = tmp_path / "out"
    encode(slides, tiny(), out)
    with pytest.raises(ConfigError, match=r"tiny \(weights was .*6 slides, such as s0\.tif"):
        encode(slides, tiny(model=network(seed=1)), out)
    assert counts(encode(slides, tiny(model=network(seed=1)), out, overwrite=True)) == (len(SIDES), 0, 0, TILES)
    assert counts(encode(slides, tiny(model=network(seed=1)), out, overwrite=True)) == (0, len(SIDES), 0, 0)
    other = PLAIN | {"grid": {"tile_size": 16}}
    with pytest.raises(ConfigError, match=r"grid\.tile_size was 32, is 16"):
        encode(slides, tiny(model=network(seed=1)), out, config=other)
    with pytest.raises(ConfigError, match=r"tiles of 32 px at 0\.5 µm of other settings"):
        encode(slides, tiny("new"), out, config=other)
    assert counts(encode(slides, tiny("new"), out, config=other, overwrite=True))[:3] == (len(SIDES), 0, 0)
    assert open_features(out / "s1.features.zarr").features.shape == (100, DIM)  # those of other tiles are removed


def test_a_slide_that_fails_does_not_fail_the_others(slides: Path, tmp_path: Path) -> None:
    """An invalid file, a damaged one, and one whose features are not finite; repaired, they are encoded."""
    (slides / "bad.tif").write_bytes(b"nothing")
    write_slide(slides / "black.tif", 3, fill=0)
    damaged = write_slide(slides / "damaged.tif", 6)
    bytes_ = damaged.read_bytes()
    damaged.write_bytes(bytes_[:5000] + bytes(20_000) + bytes_[25_000:])
    encoder = tiny("odd", Reciprocal(), normalize="identity")
    report = encode(slides, encoder, tmp_path / "out", batch_size=16)
    assert counts(report)[:3] == (len(SIDES), 0, 3)
    reported = {row["slide"]: (row["stage"], row["error"]) for row in failures(tmp_path / "out")}
    assert reported["bad.tif"][0] == "open"
    assert reported["damaged.tif"][0] in ("tiles", "open")
    assert reported["black.tif"][0] == "encode"
    assert "of odd are no numbers" in reported["black.tif"][1]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.zarr")) == [
        f"s{k}.features.zarr" for k in range(len(SIDES))
    ]
    (slides / "bad.tif").unlink()
    (slides / "damaged.tif").unlink()
    assert counts(encode(slides, encoder, tmp_path / "out", overwrite=True, dtype="float32"))[2] == 1
    write_slide(slides / "black.tif", 3)
    assert counts(encode(slides, encoder, tmp_path / "out", dtype="float32")) == (1, len(SIDES), 0, 9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::slideio_pipe.SlideioPipeWarning")
def test_slides_without_tissue_fail(slides: Path, tmp_path: Path) -> None:
    """Unless features without rows are allowed; empty bags always have them."""
    write_slide(slides / "glass.tif", 4, fill=245)
    config = {"view": {"mpp": None}, "grid": {"tile_size": 32, "min_tissue": 0.1}, "tissue": {"min_area_um2": 1}}
    glass = slides / "glass.tif"
    report = encode(glass, tiny(), tmp_path / "out", config=config)
    assert "enough tissue" in failures(tmp_path / "out")[0]["error"]
    assert counts(report) == (0, 0, 1, 0)
    assert counts(encode(glass, tiny(), tmp_path / "out", config=config, allow_empty=True)) == (1, 0, 0, 0)
    assert open_features(tmp_path / "out" / "glass.features.zarr").features.shape == (0, DIM)
    export_cohort(glass, tmp_path / "bags", ExportConfig.model_validate(config), allow_empty=True, progress=False)
    assert counts(encode(tmp_path / "bags", tiny(), None)) == (1, 0, 0, 0)
    assert open_features(tmp_path / "bags" / "glass.bag.zarr").features.shape == (0, DIM)


def test_tiles_have_the_size_and_mpp_of_the_encoder(slides: Path, tmp_path: Path) -> None:
    """Unless other ones are given; labels of the cohort are kept."""
    cohort = Cohort([CohortSlide(slides / "s5.tif", "s5.tif", label="tumour")])
    encode_cohort(cohort, tiny(mpp=1.0), tmp_path / "a", device="cpu", config=None, progress=False)
    found = open_features(tmp_path / "a" / "s5.features.zarr")
    assert (found.label, found.tile_size_level0, found.provenance["grid"]["tile_size"]) == ("tumour", 64, 32)
    assert found.view_mpp is not None
    assert found.view_mpp.x == pytest.approx(1.0)


def test_shards_together_encode_every_slide(slides: Path, tmp_path: Path) -> None:
    """One process each; a later run over all slides finds them done."""
    out = tmp_path / "out"
    done = [encode(slides, tiny(), out, shard=f"{k}/2") for k in range(2)]
    assert [report.done for report in done] == [3, 3]
    assert {report.folder.name for report in done} == {"shard-0-of-2", "shard-1-of-2"}
    assert counts(encode(slides, tiny(), out))[2:] == (0, 0)
    with pytest.raises(ConfigError, match="shard"):
        encode(slides, tiny(), out, shard="2/2")


def test_invalid_arguments_are_refused(slides: Path, tmp_path: Path) -> None:
    """No place beside the pixels of slides; no features of some tiles only; no run without encoders."""
    with pytest.raises(ConfigError, match="no place beside its pixels; pass out="):
        encode(slides, tiny(), None)
    with pytest.raises(ConfigError, match="max_tiles is 5"):
        encode(slides, tiny(), tmp_path / "out", config={"max_tiles": 5})
    with pytest.raises(ConfigError, match="no encoder"):
        encode(slides, [], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_transform_of_slides_is_applied_and_recorded(slides: Path, tmp_path: Path) -> None:
    """In the settings of the run."""
    import albumentationsxl as A

    from slideio_pipe import ColorJitter, RandomAffine

    turned = A.Compose([RandomAffine(rotate=0, scale=(1, 1), flip=True), ColorJitter(0.2, 0, 0, 0)])
    report = encode(slides / "s1.tif", tiny(), tmp_path / "out", slide_transform=turned)
    assert counts(report) == (1, 0, 0, 25)
    assert open_features(tmp_path / "out" / "s1.features.zarr").provenance["view"]["draw"] is not None
    with pytest.raises(ConfigError, match="slide_transform was"):
        encode(slides / "s1.tif", tiny(), tmp_path / "out")


# --- the command


class Slow(nn.Module):
    """A network that needs some time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 64, 5), nn.Conv2d(64, DIM, 9)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(tiles).relu()).mean((2, 3))


def command(cohort: Path, encoder: Path, out: Path) -> list[str]:
    """Return the command that encodes a cohort as it is."""
    options = ["--mpp", "native", "--tissue", "none", "--batch-size", "16", "--threads", "1", "--device", "cpu"]
    return ["features", str(cohort), "--encoder", str(encoder), "--out", str(out), *options]


@pytest.fixture
def encoder_file(tmp_path: Path) -> Path:
    """Write a slow network as TorchScript, and the description of its tiles beside it."""
    file = write_torchscript(tmp_path / "slow.pt", 32, Slow().eval())
    file.with_name("slow.pt.json").write_text('{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "input_size": 32}')
    return file


@pytest.mark.system
def test_a_killed_run_can_be_resumed(tmp_path: Path, slides: Path, encoder_file: Path) -> None:
    """Kill -9 at random moments: no incomplete file has a final name, and features are the same."""
    for k in range(10):
        write_slide(slides / f"t{k}.tif", 8)
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert CliRunner().invoke(app, command(slides, encoder_file, whole)).exit_code == 0
    process_of = [sys.executable, "-m", "slideio_pipe", *command(slides, encoder_file, out)]
    rng, seen = random.Random(0), 0
    for _ in range(2):
        process = subprocess.Popen(process_of, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = seen
        for _ in range(600):  # until it has done further work
            seen = len(list(out.glob("*.features.zarr")))
            if seen > before or process.poll() is not None:
                break
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for path in out.glob("*.features.zarr"):
            assert open_features(path).features.shape[1] == DIM
    done = subprocess.run([*process_of, "--json"], cwd=ROOT, capture_output=True, text=True, check=True)
    reported = json.loads(done.stdout)
    assert reported["kept"] >= seen > 0
    assert reported["done"] + reported["kept"] == len(SIDES) + 10
    assert not list(out.glob("*.partial"))
    assert not list(out.glob("*.lock"))
    for path in whole.glob("*.features.zarr"):
        expected, found = open_features(path), open_features(out / path.name)
        assert np.array_equal(found.coords, expected.coords)  # type: ignore[arg-type]
        assert np.allclose(found.features, expected.features, atol=2e-3)


def test_the_command_prints_the_result(tmp_path: Path, slides: Path, encoder_file: Path) -> None:
    """As text or JSON; failed slides make exit code 1."""
    (slides / "bad.tif").write_bytes(b"nothing")
    result = CliRunner().invoke(app, command(slides, encoder_file, tmp_path / "out"))
    assert result.exit_code == 1
    assert "7 slides: 6 encoded, 1 failed" in result.output
    assert f"slow ({DIM})" in result.output
    result = CliRunner().invoke(app, [*command(slides, encoder_file, tmp_path / "out"), "--json"])
    assert json.loads(result.stdout)["kept"] == 6


@pytest.mark.slow
def test_refusals_name_options_of_the_command(tmp_path: Path, slides: Path, encoder_file: Path) -> None:
    """The Python function names its arguments."""

    def refused(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["features", *arguments])
        assert result.exit_code == 2
        return " ".join(result.output.split())

    assert "pass --out with a folder" in refused(str(slides), "--encoder", str(encoder_file))
    encoder_file.with_name("slow.pt.json").unlink()
    reported = refused(str(slides), "--encoder", str(encoder_file), "--out", str(tmp_path / "out"))
    assert "pass --normalize imagenet and --input-size 224" in reported
    bags = tmp_path / "bags"
    export_cohort(
        slides / "s0.tif", bags, ExportConfig.model_validate(PLAIN | {"grid": {"tile_size": 32}}), progress=False
    )
    reported = refused(str(bags), "--encoder", str(encoder_file), "--tile-size", "64")
    assert "--tile-size with bags" in reported
    assert os.listdir(bags / "s0.bag.zarr").count("features") == 0


# -- in processes of their own -----------------------------------------------------------------------------------------


def stored(folder: Path) -> dict[str, bytes]:
    """Return the arrays of all stores of features in a folder."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and ".features.zarr" in str(file) and file.name != "zarr.json"
    }


@pytest.mark.system
def test_worker_processes_compute_the_same_features(slides: Path, tmp_path: Path) -> None:
    """Two workers that load the encoder's file; one slide is damaged: the others equal those of one process."""
    (slides / "broken.tif").write_bytes(b"no slide")
    encoder = load_encoder(write_torchscript(tmp_path / "tiny.pt"), normalize="imagenet", input_size=32)
    alone = encode(slides, encoder, tmp_path / "one", batch_size=8)
    several = encode(slides, encoder, tmp_path / "two", batch_size=8, workers=2)
    assert (several.done, len(several.failed), several.tiles) == (len(SIDES), 1, TILES)
    assert [failure.slide for failure in several.failed] == ["broken.tif"]
    one, two = stored(tmp_path / "one"), stored(tmp_path / "two")
    assert one.keys() == two.keys()
    for side, k in zip(SIDES, range(len(SIDES)), strict=True):
        first = open_features(tmp_path / "one" / f"s{k}.features.zarr").features
        second = open_features(tmp_path / "two" / f"s{k}.features.zarr").features
        assert first.shape == (side * side, DIM)
        np.testing.assert_allclose(first.astype(np.float32), second.astype(np.float32), atol=2e-3)
    again = encode(slides, encoder, tmp_path / "two", batch_size=8, workers=2)
    assert (again.done, again.kept, alone.tiles) == (0, len(SIDES), TILES)


def test_a_network_that_cannot_be_sent_to_a_process_is_refused(slides: Path, tmp_path: Path) -> None:
    """Before a process is started, with what to pass instead."""

    class Local(nn.Module):
        def forward(self, tiles: torch.Tensor) -> torch.Tensor:
            return tiles.mean((2, 3))

    with pytest.raises(ConfigError, match="a network cannot be sent to worker processes"):
        encode(slides, tiny(model=Local()), tmp_path / "out", workers=2)
    with pytest.raises(ConfigError, match="limits are for worker processes"):
        encode(slides, tiny(), tmp_path / "out", time_limit_s=3)
