"""pyproject.toml, environment.yml, the recipe for conda and the tested pins agree."""

from __future__ import annotations

import re
import tomllib

import yaml
from paths import CONFIGS, ROOT

# Names on conda-forge of packages with another name on PyPI.
CONDA_NAMES = {
    "pyvips-binary": "libvips",
    "opencv-python-headless": "opencv",
    "openslide-bin": "openslide",
    "torch": "pytorch",
}


def split(requirement: str) -> tuple[str, str]:
    """Return the lower-case name and the version bounds of a requirement."""
    name, bounds = re.fullmatch(r"([A-Za-z0-9_.-]+)\s*(.*)", requirement.strip()).groups()  # type: ignore[union-attr]
    return name.lower(), bounds.replace(" ", "")


def declared() -> dict[str, str]:
    """Return the core dependencies of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return dict(split(requirement) for requirement in project["dependencies"])


def test_conda_environment_has_the_same_packages_and_bounds() -> None:
    """environment.yml has every core dependency with the same bounds, and no others."""
    listed = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    pip = next(entry["pip"] for entry in listed if isinstance(entry, dict))
    conda = dict(split(entry) for entry in [*pip, *(e for e in listed if isinstance(e, str))])
    assert conda.pop("python") == ">=3.11"
    conda.pop("pip")
    assert conda == {CONDA_NAMES.get(name, name): bounds for name, bounds in declared().items()}


def test_the_conda_recipe_has_the_same_packages_and_bounds() -> None:
    """But albumentationsxl, which is not on conda-forge; and it is built with what pyproject.toml builds with."""
    recipe = yaml.safe_load((CONFIGS / "conda" / "recipe.yaml").read_text(encoding="utf-8"))
    run = dict(split(entry) for entry in recipe["requirements"]["run"])
    assert run.pop("python") == ">=3.11"
    expected = {CONDA_NAMES.get(name, name): bounds for name, bounds in declared().items()}
    del expected["albumentationsxl"]
    assert run == expected
    host = dict(split(entry) for entry in recipe["requirements"]["host"])
    assert (host.pop("python"), host.pop("pip")) == (">=3.11", "")
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed = dict(split(requirement) for requirement in pyproject["build-system"]["requires"])
    del needed["ziglang"]
    assert host == needed
    project = pyproject["project"]
    assert recipe["about"]["summary"] == project["description"]
    assert recipe["about"]["license"] == project["license"]
    (script,) = recipe["build"]["python"]["entry_points"]
    assert dict([script.split(" = ")]) == project["scripts"]


def test_every_dependency_has_a_tested_pin() -> None:
    """The file of tested pins pins every core dependency to one version, torch to the CPU-capable 2.13.0."""
    lines = (CONFIGS / "tested.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if line and not line.startswith("#"))
    missing = {name for name in declared() if name.replace("_", "-") not in pins}
    assert not missing
    assert pins["torch"] == "2.13.0"


def test_files_that_are_no_python_are_in_the_wheel() -> None:
    """Every such file is declared as package data, but the library that is compiled into the wheel."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    package = ROOT / "slideio_pipe"
    declared_files = {path for pattern in setuptools["package-data"]["slideio_pipe"] for path in package.glob(pattern)}
    files = {path for path in package.rglob("*.*") if path.is_file() and path.suffix not in (".py", ".pyc", ".md")}
    assert package / "cohort" / "report_page.html" in files
    assert {path for path in files if path.stem != "tile_program" or path.suffix in (".c", ".h")} == declared_files
