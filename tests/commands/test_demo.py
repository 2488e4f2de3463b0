"""The demo exports and streams slides, can be run again, and prints true numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from slideio_pipe import open_bag, open_slide
from slideio_pipe.commands.app import app
from slideio_pipe.commands.demos import slides as demo
from slideio_pipe.errors import ConfigError, OutputError

pytestmark = pytest.mark.slow

SIZE = (1600, 1200)
Made = tuple[Path, dict[str, object], list[str]]


def run(folder: Path) -> tuple[dict[str, object], list[str]]:
    """Run a small demo on the CPU and return its report and its output."""
    lines: list[str] = []
    return demo.run_demo(folder, size=SIZE, device="cpu", say=lines.append), lines


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The folder of a demo, its report and its output."""
    folder = tmp_path_factory.mktemp("demo") / "new" / "demo"
    return folder, *run(folder)


def test_the_demo_writes_the_files_of_its_report(made: Made) -> None:
    """Two slides with their labels, bags that open, a picture, and a report that is valid JSON."""
    folder, report, lines = made
    names = {"healthy.svs", "tumour.svs", "healthy.bag.zarr", "tumour.bag.zarr", "demo.png"}
    assert {path.name for path in folder.iterdir()} == names
    slides = json.loads(json.dumps(report))["slides"]
    for reported, label in zip(slides, (0, 1), strict=True):
        bag = open_bag(reported["bag"])
        assert (len(bag), bag.label) == (reported["tiles"], label)
        assert open_slide(folder / bag.name).dimensions == SIZE
        assert reported["streamed_tiles_per_second"] > 0
    with Image.open(folder / "demo.png") as drawn:
        assert drawn.size[0] > 1500
    text = "\n".join(lines)
    assert "made tumour.svs: 1,600 × 1,200 px at 0.25 µm, 3 lesions" in text
    assert text.count("streamed them to cpu as float16 batches") == 2
    assert text.count("tiles/s") == 4


def test_the_demo_can_be_run_again(made: Made, tmp_path: Path) -> None:
    """In a folder with other files: slides are kept, bags are made again with the same bytes, the rest is unchanged."""
    shutil.copytree(made[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "notes.txt").write_text("mine")
    slide = (tmp_path / "tumour.svs").stat().st_mtime_ns
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    _, lines = run(tmp_path)
    assert lines[0] == "healthy.svs is there already"
    assert (tmp_path / "tumour.svs").stat().st_mtime_ns == slide
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_the_printed_error_is_one_rounding_to_float16(made: Made) -> None:
    """At most half the distance of two float16 numbers between 2 and 4, and not zero."""
    report = made[1]
    bag = open_bag(report["slides"][1]["bag"])  # type: ignore[index]
    streamed = demo._stream(bag, torch.device("cpu"))
    assert streamed.tiles == len(bag)
    assert 0 < streamed.largest_error <= 0.001


def test_a_folder_that_cannot_be_made_is_refused_first(tmp_path: Path) -> None:
    """Before any slide is generated."""
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file.*cannot be made"):
        run(tmp_path / "file")


def test_a_missing_device_is_refused_first(tmp_path: Path) -> None:
    """Before anything is written."""
    with pytest.raises(ConfigError, match="tpu"):
        demo.run_demo(tmp_path / "new", device="tpu", say=print)
    assert not (tmp_path / "new").exists()


def test_the_command_prints_the_next_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They can be copied and their files exist; with --json only the report is printed."""
    monkeypatch.chdir(tmp_path)
    whole = demo.run_demo
    monkeypatch.setattr(demo, "run_demo", lambda folder, **given: whole(folder, size=SIZE, **given))
    result = CliRunner().invoke(app, ["demo", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    code = next(line for line in result.stdout.splitlines() if "in Python:" in line).split(": ", 1)[1]
    exec(code)
    result = CliRunner().invoke(app, ["demo", "--device", "cpu", "--json"])
    assert json.loads(result.stdout)["device"] == "cpu"
