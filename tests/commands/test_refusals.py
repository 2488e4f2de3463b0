"""Bad input on the command line: exit code 2, one line with slide, reason and remedy, no partial output."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from made_slides import made_slide
from paths import ROOT
from pyramids import coordinate_pixels, write_pyramid
from typer.testing import CliRunner

import slideio_pipe as sp
from slideio_pipe.commands.app import app


@pytest.fixture(scope="session")
def svs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated slide of 1600×1200 px at 0.25 µm, in the layout of a scanner."""
    path = tmp_path_factory.mktemp("slides") / "whole.svs"
    made_slide(path, size=(1600, 1200), seed=3, lesions=0, pieces=1)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder of the bags."""
    return tmp_path / "out"


def refused(*arguments: object) -> str:
    """Run a command that has to fail, and return its one line, without its ``error: ``."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2, (result.output, result.exception)
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert not result.stdout
    return lines[0].removeprefix("error: ")


# --- slides


def _truncated(percent: int) -> Callable[[Path, Path], Path]:
    def make(folder: Path, svs: Path) -> Path:
        data = svs.read_bytes()
        path = folder / f"cut at {percent}.svs"
        path.write_bytes(data[: len(data) * percent // 100])
        return path

    return make


def _directory(folder: Path, svs: Path) -> Path:
    (folder / "a folder").mkdir()
    shutil.copy(svs, folder / "a folder")
    return folder / "a folder"


def _empty_directory(folder: Path, svs: Path) -> Path:
    (folder / "an empty folder").mkdir()
    return folder / "an empty folder"


def _text(folder: Path, svs: Path) -> Path:
    (folder / "text.svs").write_text("Dear reviewer, the slide is attached.\n" * 100)
    return folder / "text.svs"


def _empty(folder: Path, svs: Path) -> Path:
    (folder / "empty.svs").touch()
    return folder / "empty.svs"


def _zero_size(folder: Path, svs: Path) -> Path:
    """Return a TIFF whose header states a width of 0 px."""
    path = folder / "nothing.tif"
    tifffile.imwrite(path, coordinate_pixels(64, 64), photometric="rgb")
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tif.pages.first.tags["ImageWidth"].overwrite(0)
    return path


def _zero_zarr(folder: Path, svs: Path) -> Path:
    path = folder / "nothing.zarr"
    zarr.save_array(str(path), np.zeros((0, 0, 3), np.uint8), zarr_format=3)
    return path


def _sixteen_bit(folder: Path, svs: Path) -> Path:
    path = folder / "sixteen.tif"
    tifffile.imwrite(path, np.zeros((512, 512, 3), np.uint16), tile=(256, 256), photometric="rgb")
    return path


def _fluorescence(folder: Path, svs: Path) -> Path:
    path = folder / "five-channels.ome.tif"
    tifffile.imwrite(path, np.zeros((5, 512, 512), np.uint8), tile=(256, 256), metadata={"axes": "CYX"})
    return path


def _no_mpp(folder: Path, svs: Path) -> Path:
    return write_pyramid(folder / "no-mpp.tif", coordinate_pixels(600, 500), levels=(1,), mpp=None)


def _72_dpi(folder: Path, svs: Path) -> Path:
    return write_pyramid(folder / "72dpi.tif", coordinate_pixels(3000, 300), levels=(1,), mpp=25_400 / 72)


def _glass(folder: Path, svs: Path) -> Path:
    return write_pyramid(folder / "glass.tif", np.full((1200, 1200, 3), 243, np.uint8), levels=(1,))


@dataclass(frozen=True)
class Bad:
    """A slide that cannot be exported, its name in the message, and words of reason and remedy."""

    make: Callable[[Path, Path], Path]
    name: str
    words: tuple[str, ...]
    opens: bool = False  # info works


SLIDES = {
    "missing": Bad(lambda folder, svs: folder / "missing.svs", "missing.svs", ("no such file", "check the path")),
    "directory": Bad(_directory, "a folder", ("a directory, not a slide", "pass one slide file")),
    "text": Bad(_text, "text.svs", ("no reader can open this format", "check that it is a slide")),
    "empty": Bad(_empty, "empty.svs", ("the file is empty", "again")),
    "cut at 10": Bad(_truncated(10), "cut at 10.svs", ("truncated", "again")),
    "cut at 50": Bad(_truncated(50), "cut at 50.svs", ("truncated", "again")),
    "cut at 99": Bad(_truncated(99), "cut at 99.svs", ("truncated", "again")),
    "zero size": Bad(_zero_size, "nothing.tif", ("zero size", "again")),
    "zero zarr": Bad(_zero_zarr, "nothing.zarr", ("zero size", "again")),
    "16 bit": Bad(_sixteen_bit, "sixteen.tif", ("uint16", "8-bit RGB")),
    "fluorescence": Bad(_fluorescence, "five-channels.ome.tif", ("several planes (C=5)", "rendered to one RGB")),
    "no mpp": Bad(_no_mpp, "no-mpp.tif", ("no mpp", "none stated", "--slide-mpp"), opens=True),
    "mpp 352.78": Bad(_72_dpi, "72dpi.tif", ("352.8 µm stated", "--slide-mpp"), opens=True),
    "no tissue": Bad(_glass, "glass.tif", ("no tissue was found", "--tissue none", "--allow-empty"), opens=True),
}
CLOSED = {name: bad for name, bad in SLIDES.items() if not bad.opens}
# A folder is a cohort.
EXPORTED = SLIDES | {"directory": Bad(_empty_directory, "an empty folder", ("no slides are there", "check the path"))}


@pytest.mark.parametrize("bad", EXPORTED.values(), ids=EXPORTED)
def test_a_bad_slide_is_refused_in_one_line(bad: Bad, svs: Path, tmp_path: Path, out: Path) -> None:
    """With slide, reason and remedy, and without a bag."""
    error = refused("export", bad.make(tmp_path, svs), "--out", out)
    assert bad.name in error
    assert not [word for word in bad.words if word not in error], error
    assert not list(tmp_path.rglob("*.bag.zarr"))


@pytest.mark.parametrize("command", ["export", "tissue", "features"])
def test_workers_and_a_cluster_exclude_each_other(command: str, svs: Path, tmp_path: Path) -> None:
    """Every command that takes both says so, before it starts anything."""
    more = ["--encoder", "small"] if command == "features" else []
    error = refused(command, svs, "--out", tmp_path / "out", "--workers", 2, "--cluster", "tcp://a:1", *more)
    assert "--workers and --cluster are both given; leave out --workers" in error
    assert not (tmp_path / "out").exists()


def test_tissue_of_a_folder_needs_a_folder_for_masks(svs: Path, tmp_path: Path) -> None:
    """A folder is a cohort; the error says where masks are written."""
    error = refused("tissue", _directory(tmp_path, svs))
    assert "a folder: a cohort, and there is no --out for its masks; pass --out masks/, or one slide file" in error


FOUND = [("info", name) for name in CLOSED] + [("tissue", name) for name in CLOSED if name != "directory"]


@pytest.mark.parametrize(("command", "name"), FOUND)
def test_other_commands_refuse_a_bad_slide_alike(command: str, name: str, svs: Path, tmp_path: Path) -> None:
    """Those that open slides."""
    bad = EXPORTED[name]
    error = refused(command, bad.make(tmp_path, svs))
    assert bad.name in error
    assert not [word for word in bad.words if word not in error], error


@pytest.mark.parametrize("mpp", ["native", "1.0", "4.0"])
@pytest.mark.parametrize("percent", [10, 50, 99])
def test_a_truncated_slide_is_never_exported_as_blank_tiles(
    percent: int, mpp: str, svs: Path, tmp_path: Path, out: Path
) -> None:
    """It is an error, or a complete level is exported."""
    path = _truncated(percent)(tmp_path, svs)
    options = ["--out", str(out), "--tissue", "none", "--mpp", mpp, "--tile-size", "64"]
    result = CliRunner().invoke(app, ["export", str(path), *options])
    if result.exit_code:
        assert path.name in result.stderr
        assert not list(out.glob("*.bag.zarr"))
        return
    bag = sp.open_bag(out / f"{path.stem}.bag.zarr")
    view = sp.open_slide(svs).view(mpp=None if mpp == "native" else float(mpp))
    assert np.array_equal(bag[:], sp.TileBag(view, sp.TileGrid(view, tile_size=64))[:])


@pytest.mark.parametrize("name", ["unopenable.tiff", "unreadable.svs"])
def test_broken_tiffs_of_other_tools_are_refused(name: str, shared_data: Path, out: Path) -> None:
    """One of an unknown compression, and one that opens and fails when it is read."""
    path = shared_data / "broken" / name
    error = refused("export", path, "--out", out, "--tissue", "none", "--mpp", "native", "--tile-size", 16)
    assert name in error
    assert "; " in error
    assert not list(out.rglob("*.bag.zarr"))


# --- settings


SETTINGS = {
    "tile larger than the slide": (("--tile-size", 4096), ("larger than the slide", "--edge pad", "--tile-size")),
    "stride 0": (("--stride", 0), ("grid.stride=0", "at least 1", "export --help")),
    "negative stride": (("--stride", -5), ("grid.stride=-5", "at least 1")),
    "overlap of the whole tile": (("--overlap", 256), ("overlap must be smaller than tile_size",)),
    "no such edge": (("--edge", "wrap"), ("grid.edge='wrap'", "'drop', 'shift' or 'pad'")),
    "no such method": (("--tissue", "magic"), ("tissue.method='magic'", "'otsu', 'threshold' or 'none'")),
    "no such codec": (("--pixels", "gif"), ("--pixels: 'gif'", '"jpeg:Q"')),
    "no such reader": (("--backend", "magic"), ("slide.backend='magic'", "'openslide'")),
    "tissue of 150 %": (("--min-tissue", 1.5), ("grid.min_tissue=1.5", "at most 1")),
    "mpp 0": (("--mpp", 0), ("view.mpp='0'", "more than 0")),
    "mpp in words": (("--mpp", "20x"), ("view.mpp='20x'", "should be a number")),
    "slide mpp infinite": (("--slide-mpp", "inf"), ("slide.slide_mpp=inf", "finite")),
    "missing mask": (("--mask", "missing.geojson"), ("missing.geojson", "no such file")),
    "mask that is none": (("--mask", ROOT / "pyproject.toml"), ("pyproject.toml", "mask cannot be read")),
    "picture of no format": (("--picture", "a.docx"), ("a.docx", "end it in .png")),
    "missing configuration": (("--config", "missing.yaml"), ("missing.yaml", "check the path")),
    "configuration of something else": (
        ("--config", ROOT / "environment.yml"),
        ('unknown key "name"', "see slideio-pipe config show export"),
    ),
}


@pytest.mark.parametrize(("options", "words"), SETTINGS.values(), ids=SETTINGS)
def test_an_invalid_setting_is_refused(
    options: tuple[object, ...], words: tuple[str, ...], svs: Path, out: Path
) -> None:
    """With the given value and the allowed ones, before anything is written."""
    error = refused("export", svs, "--out", out, *options)
    assert not [word for word in words if word not in error], error
    assert "whole.svs" in error or str(options[1]) in error
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Präparat Ä (1) [2].svs", "组织 切片.svs", "a'b\"c$d.svs", "-dash.svs", "x.y.svs"])
def test_unusual_file_names_work(name: str, svs: Path, tmp_path: Path, out: Path) -> None:
    """Spaces, brackets, quotes, other alphabets: info, tissue and export work, and the bag has the slide's name."""
    path = tmp_path / name
    shutil.copy(svs, path)
    for arguments in (
        ["info", str(path)],
        ["tissue", str(path), "--picture", str(out / "pictures" / f"{name}.png")],
        ["export", str(path), "--out", str(out), "--picture", str(out / f"{name}.png")],
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert name in result.stdout
    assert sp.open_bag(out / f"{path.stem}.bag.zarr").name == name


# --- outputs


def test_a_file_at_the_path_of_the_output_is_not_changed(svs: Path, tmp_path: Path) -> None:
    """In place of the folder or of the bag."""
    file, named = tmp_path / "file", tmp_path / "a.zarr"
    file.write_text("mine")
    named.write_text("mine")
    assert "the output is a file" in refused("export", svs, "--out", file)
    assert "a file is in the way" in refused("export", svs, "--out", file / "bags")
    assert "pass --overwrite" in refused("export", svs, "--out", named)
    assert "is no bag store" in refused("export", svs, "--out", named, "--overwrite")
    assert "the folder cannot be made" in refused("tissue", svs, "--picture", file / "a.png")
    assert "the folder cannot be made" in refused("demo", "--out", file)
    assert (file.read_text(), named.read_text()) == ("mine", "mine")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small file system, or skips where that is not allowed."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        if sys.platform != "linux" or shutil.which("mount") is None:
            pytest.skip("no tmpfs on this system")
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {result.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


Arguments = Callable[[Path, Path], tuple[object, ...]]
WRITERS: dict[str, Arguments] = {
    "export": lambda svs, disk: ("export", svs, "--out", disk / "bags", "--tissue", "none", "--pixels", "none"),
    "picture": lambda svs, disk: ("tissue", svs, "--picture", disk / "a.png"),
    "demo": lambda svs, disk: ("demo", "--out", disk / "demo"),
}


@pytest.mark.parametrize("arguments", WRITERS.values(), ids=WRITERS)
def test_a_read_only_disk_is_an_error(arguments: Arguments, disk: Callable[[str], Path], svs: Path) -> None:
    """With the path and the system's reason; the folder is unchanged."""
    folder = disk("ro,size=64k")
    error = refused(*arguments(svs, folder))
    assert str(folder) in error
    assert "Read-only file system" in error
    assert not list(folder.iterdir())


@pytest.mark.parametrize("command", ["export", "picture"])
def test_a_full_disk_is_an_error(command: str, disk: Callable[[str], Path], svs: Path) -> None:
    """With the path, the reason and the remedy; nothing has the final name."""
    folder = disk("size=256k")
    error = refused(*WRITERS[command](svs, folder))
    assert str(folder) in error
    assert "No space left on device" in error
    assert not [path for path in folder.rglob("*") if path.suffix in (".zarr", ".png")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_an_error(svs: Path, tmp_path: Path) -> None:
    """With the path and the reason."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    assert "Permission denied" in refused("export", svs, "--out", folder)
    assert not list(folder.iterdir())


@pytest.mark.system
@pytest.mark.parametrize("make", [_text, _truncated(10), _truncated(50), _truncated(99)])
def test_the_program_in_its_own_process_prints_one_line(
    make: Callable[[Path, Path], Path], svs: Path, tmp_path: Path
) -> None:
    """Also where decoders write to standard error."""
    path = make(tmp_path, svs)
    command = [sys.executable, "-m", "slideio_pipe", "export", str(path), "--out", str(tmp_path), "--tissue", "none"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"error: {path.name}: ")
