"""Version, licence and citation: what a release states about itself, in every place the same."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.version import Version
from paths import ROOT

import slideio_pipe
from slideio_pipe.files import package_versions

# Of the text at https://www.apache.org/licenses/LICENSE-2.0.txt, as Debian ships it in /usr/share/common-licenses.
APACHE_2_SHA256 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_licence_is_the_standard_text() -> None:
    """Of the licence that pyproject.toml and the citation name."""
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2_SHA256
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert PYPROJECT["project"]["license"] == citation["license"] == "Apache-2.0"
    assert PYPROJECT["project"]["authors"] == citation["authors"]
    for pattern in PYPROJECT["project"]["license-files"]:
        assert list(ROOT.glob(pattern)), pattern


def test_the_citation_has_what_the_format_requires() -> None:
    """Its four required keys, and no version or date: they would be wrong after the next tag."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert not {"version", "date-released"} & set(citation)


def test_the_version_without_tags_is_later_than_the_last_release() -> None:
    """Those of the changelog and 0.1.0, which wrote the oldest files that are read."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = [Version(found) for found in re.findall(r"^## \[?v?(\d[\w.]*)", changelog, flags=re.MULTILINE)]
    fallback = Version(PYPROJECT["tool"]["setuptools_scm"]["fallback_version"])
    assert fallback.is_devrelease
    assert fallback > max([*released, Version("0.1.0")])


@pytest.mark.parametrize(("built", "version"), [(True, "9.8.7.dev6+g1234567"), (False, "0+unknown")])
def test_the_version_is_that_of_the_build(built: bool, version: str, tmp_path: Path) -> None:
    """A checkout that was never installed says so; the value can be compared, as PEP 440 requires."""
    package = tmp_path / "slideio_pipe"
    package.mkdir()
    for name in ("__init__.py", "version.py"):
        shutil.copy(Path(slideio_pipe.__file__).with_name(name), package)
    if built:
        template = PYPROJECT["tool"]["setuptools_scm"]["version_file_template"]
        (package / "_version.py").write_text(template.format(version=version))
    command = [sys.executable, "-c", "import slideio_pipe; print(slideio_pipe.__version__)"]
    assert subprocess.check_output(command, cwd=tmp_path, text=True).strip() == version == str(Version(version))


def test_files_state_the_version_of_this_package() -> None:
    """Not that of another copy, whose metadata Python may find first."""
    assert package_versions()["slideio-pipe"] == slideio_pipe.__version__
