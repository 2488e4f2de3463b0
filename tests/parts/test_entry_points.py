"""Parts of installed packages: found without an import, a broken one names its package, clashes are said."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_modules import imports_from, write_distribution

from slideio_pipe.errors import ConfigError, PartNameWarning
from slideio_pipe.parts.entry_points import clashes, part_named, parts_of

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "{version}"

[project.entry-points."slideio_pipe.tissue"]
{tissue}

[tool.setuptools]
py-modules = ["{module}"]
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    """A folder of installed packages."""
    with imports_from(tmp_path):
        yield tmp_path


def test_found_by_name_and_loaded_on_use(site: Path) -> None:
    """With the package and its version; the module is imported by ``load``."""
    write_distribution(site, "her-package", {"tissue": {"grey": "her_module:find"}}, "2.1")
    (site / "her_module.py").write_text("def find(rgb):\n    return rgb[..., 0] < 200\n")
    part = part_named("tissue", "grey")
    assert part is not None
    assert (part.origin, part.value) == ("her-package 2.1", "her_module:find")
    assert "her_module" not in sys.modules
    assert part.load().__name__ == "find"
    assert part_named("tissue", "gray") is None
    assert part_named("layouts", "grey") is None


def test_a_broken_one_names_its_package_and_stops_no_other(site: Path) -> None:
    """Its module is missing, raises, or has no such attribute."""
    points = {"gone": "not_there_at_all:x", "raises": "her_raising:x", "lacks": "her_fine:y", "fine": "her_fine:x"}
    write_distribution(site, "her-package", {"layouts": points})
    (site / "her_raising.py").write_text("raise RuntimeError('no licence')\n")
    (site / "her_fine.py").write_text("x = 1\n")
    reasons = {"gone": "ModuleNotFoundError", "raises": "RuntimeError: no licence", "lacks": "AttributeError"}
    for part in parts_of("layouts"):
        if part.name in reasons:
            message = (
                rf"{part.name}: the layout of her-package 1.0 cannot be loaded .*{reasons[part.name]}.*pip install"
            )
            with pytest.raises(ConfigError, match=message):
                part.load()
        elif part.name == "fine":
            assert part.load() == 1


def test_names_of_ours_win_and_a_clash_is_said(site: Path) -> None:
    """Of two packages the first in alphabetical order is used."""
    write_distribution(site, "b-package", {"layouts": {"clam": "m:x", "twice": "m:b"}})
    write_distribution(site, "a-package", {"layouts": {"twice": "m:a"}})
    with pytest.warns(PartNameWarning, match='b-package 1.0 brings the layout "clam"; the one of slideio-pipe is used'):
        assert part_named("layouts", "clam", ["clam", "stamp"]) is None
    with pytest.warns(PartNameWarning, match='and b-package 1.0 bring the layout "twice"; that of a-package 1.0 is'):
        part = part_named("layouts", "twice", ["clam"])
    assert part is not None
    assert part.value == "m:a"
    hidden = [(each.name, each.package) for each in clashes(parts_of("layouts"), ["clam"])]
    assert hidden == [("clam", "b-package"), ("twice", "b-package")]


@pytest.mark.system
def test_of_a_package_that_pip_installed(tmp_path: Path) -> None:
    """A project with an entry point in its pyproject.toml, built and installed by pip."""
    pytest.importorskip("setuptools")
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "pip_installed_part.py").write_text("def find(rgb):\n    return rgb[..., 0] < 200\n")
    tissue = 'grey = "pip_installed_part:find"'
    project = PROJECT.format(name="pip-installed", version="0.3", tissue=tissue, module="pip_installed_part")
    (source / "pyproject.toml").write_text(project)
    command = [
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--quiet",
        "--target",
        str(target),
        str(source),
    ]
    done = subprocess.run([sys.executable, "-m", "pip", *command], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot build a project here: {done.stderr.strip().splitlines()[-1:]}")
    with imports_from(target):
        part = part_named("tissue", "grey")
        assert part is not None
        assert part.origin == "pip-installed 0.3"
        assert callable(part.load())
