"""A flat folder of JPEGs or PNGs is a cohort in every command: each picture is a small slide."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run
from PIL import Image
from tiny_encoders import write_torchscript
from tiny_training import PIXELS

import slideio_pipe as sp
from slideio_pipe.cohort.slide_files import files_in
from slideio_pipe.errors import ConfigError, MissingResolutionError, PartsWarning

COUNT, WIDTH, HEIGHT = 4, 160, 128


def pixels(seed: int) -> np.ndarray:
    """Return tissue with texture, all over."""
    rng = np.random.default_rng(seed)
    rough = rng.integers(-40, 40, (HEIGHT // 8, WIDTH // 8, 3)).repeat(8, 0).repeat(8, 1)
    return (np.array([170, 90, 160]) + rough).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four JPEGs."""
    place = tmp_path_factory.mktemp("jpegs")
    for k in range(COUNT):
        Image.fromarray(pixels(k)).save(place / f"p{k}.{'jpg' if k else 'JPEG'}", quality=95)
    return place


def test_each_picture_is_a_slide(folder: Path) -> None:
    """In the order of names, without a warning; one picture as well."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cohort = sp.Cohort.of(folder)
    assert [slide.name for slide in cohort] == ["p0.JPEG", "p1.jpg", "p2.jpg", "p3.jpg"]
    assert [slide.name for slide in sp.Cohort.of(folder / "p2.jpg")] == ["p2.jpg"]


def test_pixels_are_pillows(folder: Path) -> None:
    """Of every tile, on the grid of the picture."""
    bag = sp.BagDataset(folder, {"view": {"mpp": "native"}, "tissue": {"method": "none"}, "grid": {"tile_size": 32}})[2]
    expected = np.asarray(Image.open(folder / "p2.jpg"))
    assert len(bag) == 20
    for tile, (x, y) in zip(bag.tiles.permute(0, 2, 3, 1).numpy(), bag.coords, strict=True):
        assert np.abs(tile.astype(int) - expected[y : y + 32, x : x + 32]).max() <= 1  # Pillow's own libjpeg


def test_pictures_come_after_slides(folder: Path, tmp_path: Path) -> None:
    """Thumbnails and masks beside slides are no slides, nor are those of folders below."""
    for name in ("a.jpg", "b.jpeg", ".hidden.jpg", "c.png", "below/d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.warns(PartsWarning, match=r"1 PNG beside 2 JPEGs is left out, as masks of them; '.*/\*.png'"):
        assert [path.name for path in files_in(tmp_path) or ()] == ["a.jpg", "b.jpeg"]
    (tmp_path / "below" / "s.svs").touch()
    with pytest.warns(PartsWarning, match="1 file of slides is taken from 1 folder below it"):
        assert [path.name for path in files_in(tmp_path) or ()] == ["s.svs"]
    (tmp_path / "t.svs").touch()
    with pytest.warns(PartsWarning, match="left out"):
        assert [path.name for path in files_in(tmp_path) or ()] == ["t.svs"]


def test_pngs_are_slides_where_there_is_no_jpeg(tmp_path: Path) -> None:
    """A folder without any picture is no cohort."""
    with pytest.raises(ConfigError, match="no slides are there"):
        sp.Cohort.of(tmp_path)
    for name in ("a.PNG", "b.png"):
        Image.fromarray(pixels(1)).save(tmp_path / name)
    assert [slide.name for slide in sp.Cohort.of(tmp_path)] == ["a.PNG", "b.png"]


def test_info_has_a_line_for_each(folder: Path, tmp_path: Path) -> None:
    """With its resolution; one that is no picture is named, with exit code 1."""
    lines = run("info", folder, "--slide-mpp", 0.5).stdout.splitlines()
    assert lines[1] == "p1.jpg: 160 × 128 px, 0.5 µm, 1 level, jpeg"
    assert len(lines) == COUNT
    Image.fromarray(pixels(1)).save(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_text("no picture")
    found = json.loads(run("info", tmp_path, "--json", code=1).stdout)
    assert [slide["dimensions"] for slide in found["slides"]] == [[WIDTH, HEIGHT]]
    assert list(found["failed"]) == ["b.jpg"]
    assert "✗ b.jpg: " in run("info", tmp_path, code=1).stdout


@pytest.mark.slow
def test_export_writes_a_bag_for_each(folder: Path, tmp_path: Path) -> None:
    """At the resolution that is stated for all; lossless, so its pixels are those of the pictures."""
    run("export", folder, "--out", tmp_path, "--slide-mpp", 0.5, "--tile-size", 32, "--tissue", "none")
    bags = [sp.open_bag(path) for path in sorted(tmp_path.glob("*.bag.zarr"))]
    assert [(bag.name, len(bag), bag.view_mpp.x) for bag in bags if bag.view_mpp] == [
        (f"p{k}.{'jpg' if k else 'JPEG'}", 20, 0.5) for k in range(COUNT)
    ]
    expected = np.asarray(Image.open(folder / "p3.jpg"))[:32, :32]
    assert np.abs(bags[3][0].astype(int) - expected).max() <= 1  # Pillow's own libjpeg


@pytest.mark.slow
def test_without_a_resolution_the_message_says_what_to_pass(folder: Path, tmp_path: Path) -> None:
    """A JPEG has none."""
    done = run("export", folder, "--out", tmp_path, "--tile-size", 32, code=1)
    assert "p1.jpg: no mpp (jpeg; none stated)" in done.stdout
    with pytest.raises(MissingResolutionError, match=r"pass slide_mpp=0\.25"):
        sp.BagDataset(folder, {"view": {"mpp": 0.5}})[0]


@pytest.mark.slow
def test_features_are_written_for_each(folder: Path, tmp_path: Path) -> None:
    """As for slides."""
    encoder = write_torchscript(tmp_path / "a.pt")
    options = [
        "--slide-mpp",
        0.5,
        "--mpp",
        0.5,
        "--tile-size",
        32,
        "--tissue",
        "none",
        "--normalize",
        "imagenet",
        "--input-size",
        32,
    ]
    run("features", folder, "--encoder", encoder, "--out", tmp_path / "f", *options)
    found = [sp.open_features(path) for path in sorted((tmp_path / "f").glob("*.features.zarr"))]
    assert [len(features.coords) for features in found] == [20] * COUNT


@pytest.mark.slow
def test_train_takes_a_table_of_their_names(folder: Path, tmp_path: Path) -> None:
    """Joined to the folder by --slides; from pixels."""
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["slide", "label"], *((f"p{k}", k % 2) for k in range(COUNT))])
    settings = PIXELS | {"slide": {"slide_mpp": 1.0}, "tissue": {"method": "none"}}
    (tmp_path / "c.yaml").write_text(json.dumps(settings))
    done = run(
        "train", tmp_path / "c.yaml", "--cohort", tmp_path / "labels.csv", "--slides", folder,
        "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    assert json.loads(done.stdout)
    weights = torch.load(next((tmp_path / "run").glob("*.ckpt")), weights_only=False)
    assert weights
