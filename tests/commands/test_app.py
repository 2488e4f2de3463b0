"""The command line reports its results, as text and as JSON, and takes every setting by option or by file."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from command_line import run
from made_slides import made_slide
from paths import ROOT
from PIL import Image
from pyramids import coordinate_pixels, write_pyramid

import slideio_pipe as sp
from slideio_pipe.commands import export
from slideio_pipe.export.config import ExportConfig
from slideio_pipe.synthetic.slide import SyntheticSlide

COMMANDS = ("info", "tissue", "export", "split", "demo", "doctor", "bench", "convert")


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    """A generated slide of 3000×2400 px at 0.25 µm with one lesion."""
    path = tmp_path_factory.mktemp("slides") / "a.svs"
    return made_slide(path, size=(3000, 2400), seed=3, lesions=1, pieces=1)


def exported(*arguments: object) -> tuple[dict[str, Any], sp.StoredBag]:
    """Run an export with --json and return its summary and the bag."""
    summary = json.loads(run("export", *arguments, "--json").stdout)
    return summary, sp.open_bag(summary["bag"])


def picture_size(file: Path) -> tuple[int, int]:
    """Return width and height of a picture on disk."""
    with Image.open(file) as picture:
        return picture.size


def contents(bag: Path) -> dict[str, bytes]:
    """Return every file of a bag."""
    return {str(file.relative_to(bag)): file.read_bytes() for file in bag.rglob("*") if file.is_file()}


# --- the program as a whole


def test_help_is_not_broken_within_its_paragraphs() -> None:
    """By the terminal's width alone: in a wide one, each paragraph of a command is one line."""
    text = run("train", "--help", columns=400).stdout
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert any(line.startswith("Run it again") and line.endswith("TensorBoard's events.") for line in lines)


def test_version_and_help_load_no_heavy_packages() -> None:
    """--help, --version and the help of every command do without torch, libvips, zarr and scikit-image."""
    code = (
        "import sys; from slideio_pipe.commands.app import app\n"
        "from typer.testing import CliRunner\n"
        f"for arguments in (['--help'], ['--version'], *([name, '--help'] for name in {COMMANDS!r})):\n"
        "    assert CliRunner().invoke(app, arguments).exit_code == 0\n"
        "print([name for name in ('torch', 'pyvips', 'zarr', 'skimage', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_info_loads_only_what_its_slide_needs(truth: SyntheticSlide) -> None:
    """Not torch, albumentationsxl, zarr and scikit-image: they take longer than opening a slide."""
    code = (
        "import sys; from slideio_pipe.commands.app import app\n"
        "from typer.testing import CliRunner\n"
        f"assert CliRunner().invoke(app, ['info', {str(truth.path)!r}]).exit_code == 0\n"
        "print([name for name in ('torch', 'albumentationsxl', 'zarr', 'skimage', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_version() -> None:
    """The version of the package is printed."""
    assert run("--version").stdout == f"slideio-pipe {sp.__version__}\n"


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_every_help_shows_an_example(command: str | None) -> None:
    """A new user can start from it; names in it are those of the program."""
    text = run(*(() if command is None else (command,)), "--help").stdout
    assert re.search(rf"Example: slideio-pipe {command or ''}", text)


def test_the_help_of_export_states_the_defaults() -> None:
    """The default of every setting is that of the configuration."""
    text = " ".join(run("export", "--help").stdout.replace("│", " ").split())
    config = ExportConfig()
    shown = {
        r"--mpp µm\|native": config.view.mpp,
        "--patch-size px": config.grid.tile_size,
        r"--edge drop\|shift\|pad": config.grid.edge,
        r"--tissue otsu\|threshold\|none": config.tissue.method,
        "--min-tissue 0…1": config.grid.min_tissue,
        r"--pixels zstd\|source\|jpeg:Q\|none": config.store.pixels,
        "--backend NAME": config.slide.backend,
    }
    for option, default in shown.items():
        assert re.search(rf"{option} [^\[]*\[default: {default}\]", text), option


@pytest.mark.system
def test_a_terminal_that_cannot_write_a_character_gets_question_marks(truth: SyntheticSlide) -> None:
    """For µ and ×; the command works."""
    command = [sys.executable, "-m", "slideio_pipe", "info", str(truth.path)]
    env = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(command, capture_output=True, env=env, check=True)
    assert b"3,000 ? 2,400 px" in done.stdout


# --- info


def test_info_as_text(truth: SyntheticSlide) -> None:
    """Size, resolution with its source, every level with its own, and memory."""
    text = run("info", truth.path).stdout
    for part in ("3,000 × 2,400 px", "0.25 µm (file)", "1: 750 × 600 px at 1 µm", "40×", "aperio"):
        assert part in text
    assert "memory at level 0  3,000 × 2,400 px: 21.6 MB in uint8, 43.2 MB in float16, 86.4 MB in float32" in text


def test_info_as_json(truth: SyntheticSlide) -> None:
    """The same content for a program, with nothing else on standard output."""
    reported = json.loads(run("info", truth.path, "--json").stdout)
    assert reported["dimensions"] == [3000, 2400]
    assert reported["mpp"] == [0.25, 0.25]
    assert reported["mpp_source"] == "file"
    assert [level["size"] for level in reported["levels"]] == [[3000, 2400], [750, 600], [187, 150]]
    assert reported["levels"][1] == {"size": [750, 600], "downsample": [4.0, 4.0], "tile": [256, 256]}
    assert reported["associated"] == ["thumbnail", "label", "macro"]
    assert re.fullmatch("[0-9a-f]{16}", reported["fingerprint"])


def test_info_states_the_memory_of_a_resolution(truth: SyntheticSlide) -> None:
    """At 0.5 µm a slide of 3000×2400 px at 0.25 µm is 1500×1200 px of three channels: 5.4 MB as bytes."""
    reported = json.loads(run("info", truth.path, "--mpp", 0.5, "--json").stdout)
    assert reported["view"] == {"size": [1500, 1200], "mpp": [0.5, 0.5]}
    assert reported["memory_bytes"] == {"uint8": 5_400_000, "float16": 10_800_000, "float32": 21_600_000}
    assert "5.4 MB in uint8, 10.8 MB in float16" in run("info", truth.path, "--mpp", 0.5).stdout


def test_info_of_a_slide_without_resolution(tmp_path: Path) -> None:
    """It is stated; --slide-mpp is used; a requested resolution needs it."""
    path = write_pyramid(tmp_path / "plain.tif", coordinate_pixels(300, 200), levels=(1,), mpp=None)
    assert re.search(r"mpp +unknown", run("info", path).stdout)
    assert json.loads(run("info", path, "--slide-mpp", 0.5, "--json").stdout)["mpp_source"] == "slide_mpp argument"
    assert "error: plain.tif: no mpp" in run("info", path, "--mpp", 0.5, code=2).stderr


def test_the_reader_can_be_chosen(truth: SyntheticSlide) -> None:
    """By its name."""
    assert json.loads(run("info", truth.path, "--backend", "openslide", "--json").stdout)["backend"] == "openslide"


# --- tissue


def test_tissue_is_written_for_qupath_as_mask_and_as_picture(truth: SyntheticSlide, tmp_path: Path) -> None:
    """All three files show the same tissue, close to the truth; folders are created."""
    outlines, mask, picture = tmp_path / "new" / "a.geojson", tmp_path / "a.png", tmp_path / "pictures" / "a.jpg"
    text = run("tissue", truth.path, "--out", outlines, "--picture", picture).stdout
    assert re.search(r"a\.svs: \d\d\.\d% of the slide is tissue, 0\.\d\d mm² \(otsu\)", text)
    reported = json.loads(run("tissue", truth.path, "--out", mask, "--json").stdout)
    assert reported["fraction"] == pytest.approx(truth.tissue_fraction, abs=0.08)
    assert reported["area_mm2"] == pytest.approx(reported["fraction"] * 0.75 * 0.6, abs=0.002)
    assert reported["mask"] == str(mask)
    assert reported["picture"] is None
    drawn = json.loads(outlines.read_text())
    assert {feature["geometry"]["type"] for feature in drawn["features"]} == {"Polygon"}
    with Image.open(mask) as opened:
        pixels = np.asarray(opened)
    assert set(np.unique(pixels)) == {0, 255}
    assert (pixels > 0).mean() == pytest.approx(reported["fraction"], abs=0.01)
    assert picture_size(picture) == (1024 + 38, 819 + 113)  # with margins, title and legend


def test_tissue_takes_method_resolution_and_file(truth: SyntheticSlide, tmp_path: Path) -> None:
    """Options, and the tissue section of a configuration."""
    whole = json.loads(run("tissue", truth.path, "--method", "none", "--json").stdout)
    assert (whole["fraction"], whole["method"]) == (1.0, "none")
    run("tissue", truth.path, "--mpp", 16, "--out", tmp_path / "coarse.png")
    assert picture_size(tmp_path / "coarse.png") == (47, 38)
    strict = tmp_path / "strict.yaml"
    strict.write_text("tissue: {threshold: 3.0}")
    assert "no tissue found" in run("tissue", truth.path, "--config", strict, code=2).stderr


def test_tissue_refuses_unknown_endings_and_existing_files(truth: SyntheticSlide, tmp_path: Path) -> None:
    """Existing files are unchanged."""
    assert "end it in .geojson or .png" in run("tissue", truth.path, "--out", tmp_path / "a.tif", code=2).stderr
    assert "end it in .png" in run("tissue", truth.path, "--picture", tmp_path / "a.gifx", code=2).stderr
    for option in ("--out", "--picture"):
        there = tmp_path / "there.png"
        there.write_bytes(b"mine")
        assert "pass --overwrite" in run("tissue", truth.path, option, there, code=2).stderr
        assert there.read_bytes() == b"mine"
        run("tissue", truth.path, option, there, "--overwrite")
        assert picture_size(there)[0] > 90


# --- export


def test_export_as_text(truth: SyntheticSlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default into the current folder; the bag, its path and how to open it, on lines that can be copied."""
    monkeypatch.chdir(tmp_path)
    lines = run("export", truth.path).stdout.splitlines()
    bag = tmp_path / "a.bag.zarr"
    assert re.match(r"a\.svs: \d+ tiles of 256 px at 0\.5 µm per pixel \([\d.]+ MB, ", lines[0])
    assert re.match(r"\d+% of the tissue is in no tile; --edge ", lines[1])
    assert lines[2] == f"bag: {bag}"
    assert lines[3] == f'in Python: import slideio_pipe as sp; bag = sp.open_bag("{bag}")'
    assert len(sp.open_bag(bag)) > 5


def test_export_as_json(truth: SyntheticSlide, tmp_path: Path) -> None:
    """The numbers; the tiles are those of the Python API."""
    summary, bag = exported(truth.path, "--out", tmp_path, "--label", 1)
    assert summary["tiles"] == len(bag)
    assert summary["bytes"] == sum(len(data) for data in contents(bag.path).values())
    assert (summary["tile_size"], summary["mpp"], bag.label) == (256, [0.5, 0.5], 1)
    slide = sp.open_slide(truth.path)
    view = slide.view(mpp=0.5)
    by_hand = sp.TileBag(view, sp.TileGrid(view, tissue=sp.find_tissue(slide)), label=1)
    assert np.array_equal(bag.coords, by_hand.coords)
    assert np.array_equal(bag[:], by_hand[:])


def test_export_takes_every_setting(truth: SyntheticSlide, tmp_path: Path) -> None:
    """The bag records each option, its picture is drawn, and the whole path may be given."""
    options = {
        "--mpp": 1.0, "--tile-size": 100, "--stride": 80, "--edge": "shift", "--tissue": "threshold",
        "--min-tissue": 0.2, "--pixels": "none", "--label": "tumour", "--backend": "openslide", "--slide-mpp": 0.5,
        "--threads": 2, "--out": tmp_path / "mine.zarr", "--picture": tmp_path / "drawn" / "mine.png",
    }  # fmt: skip
    _, bag = exported(truth.path, *(part for pair in options.items() for part in pair))
    attributes = bag.attributes
    assert bag.path == tmp_path / "mine.zarr"
    assert attributes["view"]["mpp"] == [1.0, 1.0]
    assert attributes["grid"] == {
        "tile_size": 100, "stride": 80, "edge": "shift", "min_tissue": 0.2, "shape": [19, 15], "align": False,
        "changes": {},
    }  # fmt: skip
    assert attributes["tissue"]["method"] == "threshold"
    assert attributes["slide"]["reader"] == "openslide"
    assert attributes["slide"]["mpp"] == [0.5, 0.5]
    assert attributes["pixels"]["codec"] == "none"
    assert bag.label == "tumour"
    assert picture_size(tmp_path / "drawn" / "mine.png")[0] > 1000


def test_export_of_source_bytes(truth: SyntheticSlide, tmp_path: Path) -> None:
    """The slide's own bytes are kept on an aligned grid; a warning says what alignment changes."""
    args = ("export", truth.path, "--out", tmp_path, "--mpp", "native", "--tile-size", 200, "--pixels", "source")
    refused = run(*args, code=2).stderr
    remedy = "create the grid with --align, or pass --pixels jpeg:90 or --pixels zstd"
    assert f"--pixels source is not possible: tiles are 200 px, stored ones 256 px; {remedy}" in refused
    aligned = run(*args, "--align", "--json")
    assert "grid aligned to the stored tiles with tile_size 256 in place of 200" in aligned.stderr
    summary = json.loads(aligned.stdout)
    assert (summary["tile_size"], summary["pixels"]["codec"], summary["pixels"]["source"]) == (256, "jpeg", True)
    resampled = run("export", truth.path, "--pixels", "source", "--align", code=2).stderr
    assert re.search(r"resampled from level 0 \(2×\), .*; pass --mpp 0.25, 1 or 4\S*, or leave out --align", resampled)
    plain = run(*args, "--align", "--overwrite").stdout
    assert "pixels: the JPEG bytes of the slide, unchanged" in plain
    assert "--edge" not in plain  # it would be dropped
    unknown = run("export", truth.path, "--pixels", "png", code=2).stderr
    assert "--pixels: 'png' should be \"source\"" in unknown


def test_export_prints_the_loss_of_jpeg(truth: SyntheticSlide, tmp_path: Path) -> None:
    """Size and PSNR are in the text and in the JSON."""
    output = run("export", truth.path, "--out", tmp_path, "--pixels", "jpeg:80").stdout
    assert re.search(r"JPEG of quality 80, 4:4:4: \d\d\.\d dB PSNR against the tiles \(over \d+ of them\)", output)
    again = run("export", truth.path, "--out", tmp_path, "--pixels", "jpeg:80", "--overwrite", "--json").stdout
    pixels = json.loads(again)["pixels"]
    assert f"{pixels['psnr_db']:.1f} dB" in output


def test_magnification_is_converted_to_a_resolution_and_printed(truth: SyntheticSlide, tmp_path: Path) -> None:
    """20 means 0.5 µm; with --mpp, or as an invalid number, it is refused."""
    result = run("export", truth.path, "--out", tmp_path, "--mag", 20, "--json")
    assert result.stderr == "--mag 20 means 0.5 µm per pixel\n"
    assert json.loads(result.stdout)["mpp"] == [0.5, 0.5]
    assert "give one of them" in run("export", truth.path, "--mag", 20, "--mpp", 0.5, code=2).stderr
    for wrong in (0, -20, "nan", "inf"):
        assert "is no magnification" in run("export", truth.path, "--mag", wrong, code=2).stderr


def test_native_resolution_is_level_0(truth: SyntheticSlide, tmp_path: Path) -> None:
    """Stored pixels without resampling."""
    _, bag = exported(truth.path, "--out", tmp_path, "--mpp", "native")
    assert bag.attributes["view"]["affine"] == [1, 0, 0, 0, 1, 0]
    x, y = bag.coords[0]
    assert np.array_equal(bag[0], sp.open_slide(truth.path).read_region((x, y), 0, (256, 256)))


def test_overlap_is_the_tile_size_minus_the_stride(truth: SyntheticSlide, tmp_path: Path) -> None:
    """Both options give the same grid; contradicting ones are refused."""
    grid = ("--tile-size", 128, "--tissue", "none")
    _, by_overlap = exported(truth.path, "--out", tmp_path / "a", *grid, "--overlap", 32)
    _, by_stride = exported(truth.path, "--out", tmp_path / "b", *grid, "--stride", 96)
    assert np.array_equal(by_overlap.coords, by_stride.coords)
    assert contents(by_overlap.path) == contents(by_stride.path)
    error = run("export", truth.path, *grid, "--stride", 96, "--overlap", 96, code=2).stderr
    assert "stride and overlap contradict each other" in error


def test_options_override_the_file(truth: SyntheticSlide, tmp_path: Path) -> None:
    """Other settings of the file remain; a stride replaces the file's overlap."""
    config = tmp_path / "mine.yaml"
    settings = {"view": {"mpp": 1.0}, "grid": {"tile_size": 64, "overlap": 32}, "tissue": {"method": "none"}}
    config.write_text(yaml.safe_dump(settings))
    _, plain = exported(truth.path, "--out", tmp_path / "a", "--config", config)
    assert plain.provenance()["grid"] | {"tile_size": 64, "stride": 32} == plain.provenance()["grid"]
    assert plain.provenance()["tissue"] is None
    _, changed = exported(truth.path, "--out", tmp_path / "b", "--config", config, "--mpp", 2, "--stride", 64)
    assert changed.view_mpp == (2.0, 2.0)
    assert changed.provenance()["grid"]["stride"] == 64
    config.write_text("view: {mpp: native}")
    _, native = exported(truth.path, "--out", tmp_path / "c", "--config", config)
    assert native.view_mpp == (0.25, 0.25)


@pytest.mark.parametrize("ending", ["geojson", "png"])
def test_a_given_mask_is_used(truth: SyntheticSlide, tmp_path: Path, ending: str) -> None:
    """A mask of another run, or of QuPath, selects the same tiles as the tissue that is found."""
    mask = tmp_path / f"mask.{ending}"
    run("tissue", truth.path, "--out", mask)
    _, bag = exported(truth.path, "--out", tmp_path / "a", "--mask", mask)
    _, found = exported(truth.path, "--out", tmp_path / "b")
    assert np.array_equal(bag.coords, found.coords)
    assert bag.provenance()["tissue"]["method"] == ending


@pytest.mark.parametrize(
    ("given", "label"),
    [
        ("1", 1), ("-3", -3), ("0.5", 0.5), ("1.0", 1.0), ("2.5e-3", 0.0025), ("tumour", "tumour"), ("007", "007"),
        ("nan", "nan"), ("inf", "inf"), ("1_000", "1_000"), ("", ""), ("Ductal, in situ", "Ductal, in situ"),
    ],
)  # fmt: skip
def test_labels_written_as_numbers_are_numbers(given: str, label: object) -> None:
    """Integers, decimal numbers, and text for everything else."""
    found = export._number_or_text(given)
    assert found == label
    assert type(found) is type(label)


@pytest.mark.slow
def test_a_finished_export_is_kept(truth: SyntheticSlide, tmp_path: Path) -> None:
    """As in a cohort: exit code 0, no byte changed; a missing picture is drawn."""
    command = ("export", truth.path, "--out", tmp_path, "--label", 1, "--mpp", 1.0, "--tile-size", 128)
    _, bag = exported(*command[1:])
    before = contents(bag.path)
    assert "(there already, kept)" in run(*command).stdout
    for _ in range(2):
        run(*command, "--picture", tmp_path / "a.png")
        assert (tmp_path / "a.png").exists()
    reported = json.loads(run(*command, "--json").stdout)
    assert (reported["kept"], reported["tiles"], reported["tiles_per_second"]) == (True, len(bag), 0.0)
    assert contents(bag.path) == before
    for option, value in (("--mpp", 2.0), ("--tile-size", 64), ("--pixels", "none"), ("--patient", "p")):
        assert "already exists" in run(*command, option, value, code=2).stderr
    (tmp_path / "other").mkdir()
    other = made_slide(tmp_path / "other" / truth.path.name, size=(2048, 1536), seed=99)
    assert "already exists" in run("export", other.path, *command[2:], code=2).stderr
    (bag.path / "zarr.json").unlink()
    assert "already exists" in run(*command, code=2).stderr


def test_an_existing_bag_is_kept_without_overwrite(truth: SyntheticSlide, tmp_path: Path) -> None:
    """Exit code 2 and no byte changed; --overwrite replaces it."""
    _, bag = exported(truth.path, "--out", tmp_path, "--label", 1)
    before = contents(bag.path)
    error = run("export", truth.path, "--out", tmp_path, "--label", 0, code=2).stderr
    assert error == f"error: {bag.path}: already exists; pass --overwrite or another path\n"
    assert contents(bag.path) == before
    _, bag = exported(truth.path, "--out", tmp_path, "--label", 0, "--overwrite")
    assert bag.label == 0


def test_a_slide_without_tissue_is_an_error(tmp_path: Path) -> None:
    """With remedies; --allow-empty writes a bag of no tiles, with a warning."""
    glass = write_pyramid(tmp_path / "glass.tif", np.full((1500, 1500, 3), 243, np.uint8), levels=(1,))
    result = run("export", glass, "--out", tmp_path, code=2)
    assert result.stderr.startswith("error: glass.tif: no tile of 256 px has 50% tissue (no tissue was found)")
    assert "--allow-empty" in result.stderr
    assert not list(tmp_path.glob("*.zarr*"))
    result = run("export", glass, "--out", tmp_path, "--allow-empty", "--label", 0)
    assert result.stderr == "warning: glass.tif: no tissue (otsu)\n"
    bag = sp.open_bag(tmp_path / "glass.bag.zarr")
    assert (len(bag), bag.label) == (0, 0)
    run("export", glass, "--out", tmp_path, "--tissue", "none", "--overwrite")
    assert len(sp.open_bag(tmp_path / "glass.bag.zarr")) == 4


def test_warnings_are_one_line_each(truth: SyntheticSlide, tmp_path: Path) -> None:
    """On standard error, without a traceback or a position in the source."""
    result = run("export", truth.path, "--out", tmp_path, "--mpp", 0.2)
    assert re.fullmatch(r"warning: a\.svs: [^\n]*\n", result.stderr)
    assert ".py" not in result.stderr


# --- doctor


@pytest.mark.system
def test_doctor_reports_installed_parts_and_broken_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """As text and as JSON; a broken part is marked and the exit code is 2."""
    assert "reads what was written" in run("doctor").stdout
    assert json.loads(run("doctor", "--json").stdout)["healthy"] is True

    def broken(folder: Path) -> str:
        raise OSError("libvips is [not] there")

    monkeypatch.setattr("slideio_pipe.commands.doctor.formats._prove_tiff", broken)
    result = run("doctor", code=2)
    assert re.search(r"✗ Aperio SVS.*libvips fails: libvips is \[not\] there", result.stdout)
    assert json.loads(run("doctor", "--json", code=2).stdout)["healthy"] is False


# --- interrupted


def finished_shards(bag: Path) -> list[Path]:
    """Return the shards that were written completely."""
    return [file for file in bag.glob("tiles/c/*/*/*/*") if file.suffix != ".partial"]


@pytest.mark.system
def test_ctrl_c_ends_without_a_traceback_and_the_next_run_resumes(tmp_path: Path) -> None:
    """Exit code 130, nothing under the final name; the resumed bag has the same bytes."""
    noise = np.random.default_rng(0).integers(0, 256, (6000, 6000, 3), dtype=np.uint8)
    slide = write_pyramid(tmp_path / "noise.tif", noise, levels=(1,), compression=None)
    grid = ("--tissue", "none", "--mpp", "native", "--tile-size", "128", "--threads", "1")
    command = [sys.executable, "-m", "slideio_pipe", "export", str(slide), "--out", str(tmp_path / "bags"), *grid]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    partial = tmp_path / "bags" / "noise.bag.zarr.partial"
    try:
        while not finished_shards(partial) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, error
    assert error == "interrupted; run the same command again to resume\n"
    assert [entry.name for entry in (tmp_path / "bags").iterdir()] == [partial.name]

    kept = {file: file.stat().st_mtime_ns for file in finished_shards(partial)}
    assert kept
    run("export", slide, "--out", tmp_path / "bags", *grid)
    undisturbed = exported(slide, "--out", tmp_path / "again", *grid)[1]
    resumed = tmp_path / "bags" / "noise.bag.zarr"
    assert contents(resumed) == contents(undisturbed.path)
    for file, written in kept.items():
        assert (resumed / file.relative_to(partial)).stat().st_mtime_ns == written
