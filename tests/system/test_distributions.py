"""The wheel and the sdist: version, metadata, contents, and that an installed wheel runs.

They are built from a copy of this checkout that has been littered with what a used checkout has.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# What an installed package needs besides its Python files: the folder, and a pattern of which some files are there.
SHIPPED = [
    "py.typed",
    "images/DejaVuSans-subset.ttf",
    "cohort/report_page.html",
    "viewer/page/index.html",
    "viewer/page/openseadragon.min.js",
    "compiled/tile_program.c",
    "compiled/tile_program.so",
    "configs/mil.yaml",
    "features/encoders/known.yaml",
    "configs/schema.json",
    "commands/documentation/site/index.html",
    "commands/documentation/site/search/search_index.json",
]
PLATFORM_BUILD = f"build/lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}/slideio_pipe"
LITTER = [
    "slideio_pipe/compiled/tile_program.dll",
    "slideio_pipe/compiled/__pycache__/records.cpython-311.pyc",
    "build/lib/slideio_pipe/removed.py",
    f"{PLATFORM_BUILD}/removed.py",
    f"{PLATFORM_BUILD}/compiled/tile_program.dylib",
    ".venv/bin/python",
    "slideio-pipe-demo/demo.png",
    "bags/a.bag.zarr/zarr.json",
]


@dataclass(frozen=True)
class Built:
    """Both distributions of version 9.8.7, and the checkout that they are built from."""

    checkout: Path
    wheel: Path
    sdist: Path

    def in_wheel(self) -> set[str]:
        """Return the names of the files in the wheel."""
        with zipfile.ZipFile(self.wheel) as opened:
            return set(opened.namelist())

    def in_sdist(self) -> set[str]:
        """Return the names of the files in the sdist, without its folder."""
        with tarfile.open(self.sdist) as opened:
            return {name.partition("/")[2] for name in opened.getnames()}

    def metadata(self) -> Message:
        """Return METADATA of the wheel."""
        with zipfile.ZipFile(self.wheel) as opened:
            return HeaderParser().parsestr(opened.read("slideio_pipe-9.8.7.dist-info/METADATA").decode())


def git(folder: Path, *arguments: str) -> str:
    """Run git as somebody without settings, and return what it prints."""
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    return subprocess.check_output(["git", *who, *arguments], cwd=folder, text=True)


def copied_checkout(folder: Path) -> Path:
    """Copy the files that git tracks or could add, as they are now, into a new repository with one commit."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout")
    for name in git(ROOT, "ls-files", "-co", "--exclude-standard", "-z").split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "all")
    return folder


def build(checkout: Path, out: Path, *options: str) -> list[Path]:
    """Build, and return the files."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", str(out), str(checkout)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return sorted(out.iterdir())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The wheel is built from the sdist, so that this is tested as well."""
    folder = tmp_path_factory.mktemp("distributions")
    checkout = copied_checkout(folder / "checkout")
    git(checkout, "tag", "v9.8.7")
    for name in LITTER:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("")
    (checkout / ".git/info/exclude").write_text("bags/\n")  # else git calls the checkout changed
    wheel, sdist = build(checkout, folder / "dist")
    return Built(checkout, wheel, sdist)


def test_the_tag_is_the_version(built: Built) -> None:
    """Of both; the wheel is for every Python on this system."""
    assert built.sdist.name == "slideio_pipe-9.8.7.tar.gz"
    assert built.wheel.name.startswith("slideio_pipe-9.8.7-py3-none-")
    assert str(Metadata.from_email(built.metadata().as_string(), validate=False).version) == "9.8.7"


def test_metadata_are_valid_and_those_of_the_project(built: Built) -> None:
    """As an index checks them; every dependency and extra of pyproject.toml is in them."""
    found = built.metadata()
    valid = Metadata.from_email(found.as_string(), validate=True)
    assert valid.description_content_type == "text/markdown"
    assert valid.description == (ROOT / "README.md").read_text(encoding="utf-8")
    assert valid.license_expression == "Apache-2.0"
    assert str(valid.requires_python) == PROJECT["requires-python"]
    assert set(valid.provides_extra or ()) == set(PROJECT["optional-dependencies"])
    plain = {str(needed) for needed in valid.requires_dist or () if needed.marker is None}
    assert plain == {str(Requirement(line)) for line in PROJECT["dependencies"]}


def test_an_index_accepts_them(built: Built) -> None:
    """As ``twine check --strict`` says, which also renders the README."""
    command = [sys.executable, "-m", "twine", "check", "--strict", str(built.wheel), str(built.sdist)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2


def test_the_wheel_has_all_that_it_needs_and_nothing_else(built: Built) -> None:
    """The package, its metadata and licences; no other library, no leftovers of a used checkout."""
    names, about = built.in_wheel(), "slideio_pipe-9.8.7.dist-info"
    missing = [name for name in SHIPPED if f"slideio_pipe/{name}" not in names]
    assert not missing
    assert {f"{about}/licenses/{name}" for name in ("LICENSE", "CITATION.cff")} <= names
    assert {name.partition("/")[0] for name in names} == {"slideio_pipe", about}
    tracked = set(git(built.checkout, "ls-files").splitlines())
    made = {"slideio_pipe/_version.py", "slideio_pipe/compiled/tile_program.so"}
    presets = {file.name for file in (ROOT / "configs").iterdir() if file.suffix in (".yaml", ".json")}
    assert {name for name in names if "/configs/" in name} == {f"slideio_pipe/configs/{name}" for name in presets}
    made |= {f"slideio_pipe/configs/{name}" for name in presets}
    made |= {name for name in names if name.startswith("slideio_pipe/commands/documentation/site/")}
    assert {name for name in names if name.startswith("slideio_pipe/")} - made <= tracked
    python = {name for name in tracked if name.startswith("slideio_pipe/") and name.endswith(".py")}
    assert python <= names


def test_the_sdist_is_the_checkout(built: Built) -> None:
    """What git tracks, so that tests can run from it, and the version; nothing compiled."""
    tracked = set(git(built.checkout, "ls-files").splitlines())
    names = built.in_sdist()
    assert tracked <= names
    folders = {str(parent) for name in names for parent in Path(name).parents}
    made = {name for name in names - tracked - folders if not name.startswith("slideio_pipe.egg-info")}
    assert made == {"", "PKG-INFO", "setup.cfg", "slideio_pipe/_version.py"} - folders


def test_a_wheel_of_the_checkout_has_the_same_files(built: Built, tmp_path: Path) -> None:
    """As ``pip install .`` builds it: leftovers of an earlier build in the same folder are not in it."""
    (wheel,) = build(built.checkout, tmp_path, "--wheel")
    assert Built(built.checkout, wheel, built.sdist).in_wheel() == built.in_wheel()


def test_an_installed_wheel_runs(built: Built, tmp_path: Path) -> None:
    """The demo, in another folder, from the installed files alone, with compiled tile programs."""
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, str(built.wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    program = [sys.executable, str(site / "bin" / "slideio-pipe")]
    version = subprocess.check_output([*program, "--version"], env=environment, cwd=tmp_path, text=True)
    assert version == "slideio-pipe 9.8.7\n"
    subprocess.run([*program, "demo"], env=environment, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "slideio-pipe-demo" / "demo.png").stat().st_size > 10_000
    shown = subprocess.check_output([*program, "config", "show", "uni-224"], env=environment, cwd=tmp_path, text=True)
    assert "tile_size: 224" in shown
    code = "from slideio_pipe.compiled.library import load; print(load().path)"
    loaded = subprocess.check_output([sys.executable, "-c", code], env=environment, cwd=tmp_path, text=True)
    assert Path(loaded.strip()).is_relative_to(site)


def test_checkouts_without_a_tag_have_a_version(tmp_path: Path) -> None:
    """Of no git, no tag, a shallow clone, a tag and a commit after it; none of them fails, and they are in order."""
    checkout = tmp_path / "checkout"
    (checkout / "slideio_pipe").mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", checkout)

    def version(folder: Path = checkout) -> str:
        command = [sys.executable, "-m", "setuptools_scm", "--root", str(folder)]
        return subprocess.check_output(command, cwd=folder, text=True, stderr=subprocess.DEVNULL).strip()

    assert version() == "0.2.0.dev0"
    git(checkout, "init", "-q")
    git(checkout, "add", "-A")
    git(checkout, "commit", "-q", "-m", "one")
    git(checkout, "commit", "-q", "-m", "two", "--allow-empty")
    assert version().startswith("0.2.0.dev2+g")
    git(tmp_path, "clone", "-q", "--depth=1", checkout.as_uri(), "shallow")
    assert version(tmp_path / "shallow").startswith("0.2.0.dev1+g")
    git(checkout, "tag", "v0.2.0")
    assert version() == "0.2.0"
    git(checkout, "commit", "-q", "-m", "three", "--allow-empty")
    assert version().startswith("0.2.1.dev1+g")
