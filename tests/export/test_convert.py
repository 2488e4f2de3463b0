"""A study is converted bag by bag: finished bags are kept, failures are listed, and a kill changes no byte."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run
from made_slides import made_slide
from memory_bag import MemoryBag
from paths import ROOT

import slideio_pipe as sp
from slideio_pipe.errors import ConfigError, OutputExistsError, SkippedWarning
from slideio_pipe.export.layouts import Converted


def stored(folder: Path, *names: str, count: int = 70, label: Any = 1) -> Path:
    """Save bags of these names, each with other pixels."""
    for number, name in enumerate(names):
        bag = MemoryBag(count + number, 16, 16, label=label)
        bag.name = f"{name}.svs"
        sp.save_bag(bag, folder / f"{name}.bag.zarr", progress=False)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file of the layout."""
    files = (file for file in folder.rglob("*") if file.is_file() and ".convert-" not in str(file))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def inodes(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): file.stat().st_ino for file in folder.rglob("*.npy")}


def failing(done: Converted) -> dict[str, str]:
    return {failure.slide: str(failure.error) for failure in done.failed}


def test_a_study_is_a_folder_a_pattern_a_manifest_or_a_list(tmp_path: Path) -> None:
    """All give the same files; names and labels of a manifest replace the bags' own."""
    bags = stored(tmp_path / "bags", "a", "b")
    (tmp_path / "study.csv").write_text("slide,label\nbags/a.bag.zarr,\nbags/b.bag.zarr,1\n")
    paths = [bags / "a.bag.zarr", bags / "b.bag.zarr"]
    studies = {"list": paths, "folder": bags, "pattern": str(bags / "*.zarr"), "manifest": tmp_path / "study.csv"}
    for name, study in studies.items():
        done = sp.convert(study, "torchmil", tmp_path / name)
        assert (done.bags, done.kept, done.tiles, done.failed) == (2, 0, 141, ())
        assert tree(tmp_path / name) == tree(tmp_path / "list")
    (tmp_path / "other.csv").write_text("slide,name,label\nbags/a.bag.zarr,first,7\nbags/b.bag.zarr,,\n")
    sp.convert(tmp_path / "other.csv", "torchmil", tmp_path / "other")
    assert {path.name for path in (tmp_path / "other" / "labels").iterdir()} == {"first.npy", "b.npy"}
    assert np.load(tmp_path / "other" / "labels" / "first.npy").tolist() == 7


def test_a_second_run_writes_missing_files(tmp_path: Path) -> None:
    """Complete files are kept; a removed one is made again."""
    bags, out = stored(tmp_path / "bags", "a", "b", "c"), tmp_path / "out"
    first = sp.convert(bags, "torchmil", out)
    before = inodes(out)
    (out / "coords" / "b.npy").unlink()
    again = sp.convert(bags, "torchmil", out)
    assert (again.bags, again.kept, again.paths) == (3, 2, first.paths)
    after = inodes(out)
    assert {name for name in before if before[name] == after[name]} >= {f"features/{k}.npy" for k in "ac"}


def test_a_bag_that_fails_does_not_fail_the_others(tmp_path: Path) -> None:
    """Its reason is listed; after repair it is converted, and the tables equal those of a run without the fault."""
    bags, out = stored(tmp_path / "bags", "a", "b", "c"), tmp_path / "out"
    metadata = bags / "b.bag.zarr" / "zarr.json"
    content = metadata.read_bytes()
    metadata.write_bytes(b"{}")
    with pytest.warns(SkippedWarning, match=r"1 of 3 bags could not be converted, such as .*b\.bag\.zarr") as caught:
        done = sp.convert(bags, "hf", out)
    assert caught[0].filename == __file__
    assert (done.bags, list(failing(done))) == (2, ["b.bag.zarr"])
    assert done.failures is not None
    with done.failures.open(encoding="utf-8") as file:
        assert [row["slide"] for row in csv.DictReader(file)] == ["b.bag.zarr"]
    metadata.write_bytes(content)
    assert (sp.convert(bags, "hf", out).kept, done.failures.exists()) == (2, False)
    sp.convert(bags, "hf", tmp_path / "whole")
    assert tree(out) == tree(tmp_path / "whole")


def test_a_bag_that_the_layout_cannot_hold_fails_alone(tmp_path: Path) -> None:
    """A text label, or missing features."""
    bags = stored(stored(tmp_path / "bags", "a"), "b", label="tumour")
    with pytest.warns(SkippedWarning):
        assert "labels are numbers" in failing(sp.convert(bags, "torchmil", tmp_path / "out"))["b.bag.zarr"]
    (tmp_path / "features").mkdir()
    np.save(tmp_path / "features" / "a.npy", np.ones((70, 3), np.float32))
    with pytest.warns(SkippedWarning):
        done = sp.convert(bags, "memmap", tmp_path / "memmap", features=tmp_path / "features")
    assert (done.bags, list(failing(done))) == (1, ["b"])


def test_files_that_this_run_did_not_write_are_not_replaced(tmp_path: Path) -> None:
    """In no run, unless with overwrite."""
    bags, out = stored(tmp_path / "bags", "a", "b"), tmp_path / "out"
    (out / "features").mkdir(parents=True)
    (out / "features" / "a.npy").write_text("theirs")
    for _ in range(2):
        with pytest.warns(SkippedWarning):
            done = sp.convert(bags, "torchmil", out)
        assert isinstance(done.failed[0].error, OutputExistsError)
        assert (out / "features" / "a.npy").read_text() == "theirs"
    assert sp.convert(bags, "torchmil", out, overwrite=True).kept == 1
    assert np.load(out / "features" / "a.npy").shape == (70, 3, 16, 16)


def test_a_changed_bag_or_changed_features_are_not_converted_without_overwrite(tmp_path: Path) -> None:
    """With overwrite, unchanged bags are kept."""
    bags, out = stored(tmp_path / "bags", "a", "b"), tmp_path / "out"
    (tmp_path / "features").mkdir()
    for name, count in (("a", 70), ("b", 71)):
        np.save(tmp_path / "features" / f"{name}.npy", np.ones((count, 3), np.float32))
    sp.convert(bags, "torchmil", out, features=tmp_path / "features")
    np.save(tmp_path / "features" / "a.npy", np.zeros((70, 3), np.float32))
    with pytest.warns(SkippedWarning):
        done = sp.convert(bags, "torchmil", out, features=tmp_path / "features")
    assert (done.kept, "of another bag, or was made with other settings" in failing(done)["a"]) == (1, True)
    assert sp.convert(bags, "torchmil", out, features=tmp_path / "features", overwrite=True).kept == 1
    assert not np.load(out / "features" / "a.npy").any()


def test_bags_in_memory_are_recognised_in_a_second_run(tmp_path: Path) -> None:
    """By their provenance."""
    bags = [MemoryBag(3), MemoryBag(4)]
    bags[1].name = "b.svs"
    sp.convert(bags, "webdataset", tmp_path)
    assert sp.convert(bags, "webdataset", tmp_path).kept == 2
    bags[1].label = 0
    with pytest.warns(SkippedWarning):
        assert list(failing(sp.convert(bags, "webdataset", tmp_path))) == ["b"]


@pytest.mark.system
def test_worker_processes_write_the_same(tmp_path: Path) -> None:
    """Two processes write the same bytes as one."""
    bags = stored(tmp_path / "bags", "a", "b", "c")
    sp.convert(bags, "webdataset", tmp_path / "here")
    done = sp.convert(bags, "webdataset", tmp_path / "there", workers=2)
    assert (done.bags, tree(tmp_path / "there")) == (3, tree(tmp_path / "here"))


def test_faults_of_a_study_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    """Two bags of one name, an invalid encoder name, a bag outside the root."""
    bags = stored(tmp_path / "bags", "a", "b")
    with pytest.raises(ConfigError, match="several bags are called a"):
        sp.convert([MemoryBag(), MemoryBag()], "webdataset", tmp_path / "out")
    with pytest.raises(ConfigError, match="cannot name a folder"):
        sp.convert(bags, "clam", tmp_path / "out", encoder="../x")
    with pytest.raises(ConfigError, match="is outside of"):
        sp.convert(bags, "clam", tmp_path / "out", root=tmp_path / "elsewhere")
    assert not (tmp_path / "out").exists()


@pytest.mark.system
@pytest.mark.parametrize("layout", ["torchmil", "hf"])
def test_a_killed_and_resumed_conversion_writes_the_same_bytes(tmp_path: Path, layout: str) -> None:
    """Kill -9 at several moments: no incomplete file has a final name."""
    bags = stored(tmp_path / "bags", *(f"s{k}" for k in range(6)), count=1500)
    command = [sys.executable, "-m", "slideio_pipe", "convert", str(bags), "--to", layout, "--out"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sp.convert(bags, layout, tmp_path / "whole")
    expected, out = tree(tmp_path / "whole"), tmp_path / "out"
    for seen in (1, 3, 6):
        process = subprocess.Popen([*command, str(out)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(tree(out) if out.exists() else {}) < seen:
            time.sleep(0.005)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        found = {name: content for name, content in tree(out).items() if not name.endswith(".partial")}
        assert found.items() <= expected.items()
    subprocess.run([*command, str(out)], cwd=ROOT, check=True, capture_output=True)
    assert tree(out) == expected


# --- the command


def test_the_command_lists_failures(tmp_path: Path) -> None:
    """Its exit code is 1; with JSON too."""
    bags = stored(tmp_path / "bags", "a", "b", "c")
    (bags / "b.bag.zarr" / "zarr.json").write_bytes(b"{}")
    text = run("convert", bags, "--to", "webdataset", "--out", tmp_path / "out", code=1).stdout
    assert "webdataset: 142 tiles of 2 bags" in text
    assert "✗ b.bag.zarr: " in text
    assert f"failures: {tmp_path / 'out' / '.convert-webdataset' / 'failures.csv'}" in text
    reported = json.loads(
        run("convert", bags, "--to", "webdataset", "--out", tmp_path / "out", "--json", code=1).stdout
    )
    assert (reported["bags"], reported["kept"], list(reported["failed"])) == (2, 2, ["b.bag.zarr"])


@pytest.mark.system
def test_coordinates_of_a_study_become_bags(tmp_path: Path) -> None:
    """A file without a slide fails alone; a second run keeps existing bags."""
    pytest.importorskip("h5py")
    (tmp_path / "slides").mkdir()
    for k in range(2):
        made_slide(tmp_path / "slides" / f"s{k}.svs", size=(1024, 768), seed=k)
        with sp.open_slide(tmp_path / "slides" / f"s{k}.svs") as slide:
            bag = sp.TileBag(slide.view(), sp.TileGrid(slide.view(), tile_size=128))
            sp.convert(bag, "clam", tmp_path / "clam")
    (tmp_path / "clam" / "patches" / "gone.h5").write_bytes((tmp_path / "clam/patches/s0.h5").read_bytes())
    command = ("convert", tmp_path / "clam" / "patches", "--from", "clam", "--slides", tmp_path / "slides")
    text = run(*command, "--out", tmp_path / "bags", code=1).stdout
    assert "3 slides: 2 made, 1 failed" in text
    assert "no slide in" in text
    with sp.open_bag(tmp_path / "bags" / "s1.bag.zarr") as again:
        assert again.shape == (48, 128, 128, 3)
    reported = json.loads(run(*command, "--out", tmp_path / "bags", "--json", code=1).stdout)
    assert (reported["done"], reported["kept"], reported["failed"]) == (0, 2, 1)


@pytest.mark.system
@pytest.mark.parametrize("workers", [None, 1])
def test_progress_counts_tiles(tmp_path: Path, workers: int | None) -> None:
    """Of all bags: none at first, then those of kept bags, at the end all, including failed bags."""
    bags = [MemoryBag(count) for count in (5, 20, 300)]
    for number, bag in enumerate(bags):
        bag.name = f"b{number}"
    if workers is not None:
        bags = [sp.save_bag(bag, tmp_path / f"{bag.name}.bag.zarr", progress=False) for bag in bags]
    seen: list[tuple[int, int]] = []
    out = tmp_path / "out"
    options: dict[str, Any] = {"workers": workers, "progress": lambda done, total: seen.append((done, total))}
    sp.convert(bags, "webdataset", out, **options)
    assert seen == [(0, 325), (5, 325), (25, 325), (325, 325)]
    seen.clear()
    (out / "b1-000000.tar").unlink()
    assert sp.convert(bags, "webdataset", out, **options).kept == 2
    assert (seen[0], seen[-1]) == ((0, 325), (325, 325))
    assert {done for done, _ in seen} <= {0, 5, 25, 305, 325}
