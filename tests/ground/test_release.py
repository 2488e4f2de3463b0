"""Version, licence and citation: what a release states about itself, in every place the same."""

from __future__ import annotations

import hashlib
import json
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
from slideio_pipe.compiled.compile_programs import TARGETS
from slideio_pipe.files import package_versions

# Of the text at https://www.apache.org/licenses/LICENSE-2.0.txt, as Debian ships it in /usr/share/common-licenses.
APACHE_2_SHA256 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
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
    # Without site-packages: an editable installation would find the module that is missing here.
    command = [sys.executable, "-S", "-c", "import slideio_pipe; print(slideio_pipe.__version__)"]
    assert subprocess.check_output(command, cwd=tmp_path, text=True).strip() == version == str(Version(version))


def test_files_state_the_version_of_this_package() -> None:
    """Not that of another copy, whose metadata Python may find first."""
    assert package_versions()["slideio-pipe"] == slideio_pipe.__version__


def steps(job: str) -> str:
    """Return the commands of a job of the workflow."""
    return "\n".join(step.get("run", "") for step in WORKFLOW["jobs"][job]["steps"])


def test_every_python_that_is_claimed_is_tested() -> None:
    """By the workflow, from the oldest that is required."""
    claimed = re.findall(
        r"^Programming Language :: Python :: (3\.\d+)$", "\n".join(PYPROJECT["project"]["classifiers"]), re.M
    )
    assert set(claimed) <= set(WORKFLOW["jobs"]["quick-tests"]["strategy"]["matrix"]["python"])
    assert PYPROJECT["project"]["requires-python"] == f">={claimed[0]}"


def test_the_workflow_runs_all_tests_and_builds_all_wheels() -> None:
    """The script of continuous integration, and a wheel for each target of the compiler."""
    assert "bash .ci/run" in steps("all-tests")
    (listed,) = re.findall(r"for target in (.*); do", steps("distributions"))
    assert listed.split() == list(TARGETS)
    assert f'wc -l)" -eq {len(TARGETS)}\n' in steps("distributions")


def test_only_a_tag_is_published_when_all_else_passed() -> None:
    """And without a stored password."""
    publish = WORKFLOW["jobs"]["publish"]
    assert publish["if"] == "startsWith(github.ref, 'refs/tags/v')"
    assert set(publish["needs"]) == set(WORKFLOW["jobs"]) - {"publish"}
    assert publish["permissions"] == {"id-token": "write"}
    assert "secrets" not in str(WORKFLOW)


@pytest.mark.skipif(sys.platform != "linux", reason="the workflow runs GNU sed")
def test_links_of_the_readme_work_on_pypi(tmp_path: Path) -> None:
    """Pictures and pages of the checkout are addressed by the repository that the workflow runs in."""
    (command,) = re.findall(r"^sed .* README.md$", steps("distributions"), re.M)
    (tmp_path / "README.md").write_text(
        "![A view](examples/a.jpg) and [a page](examples/guide/b.md#part), [`c`](c.py)"
        " [out](https://d.e/f) [here](#g)\n"
        "![Far](https://h.i/j.png)\n[k](k.md)\n"
    )
    where = {"GITHUB_SERVER_URL": "https://git.example", "GITHUB_REPOSITORY": "me/it", "GITHUB_SHA": "12ab"}
    subprocess.run(["bash", "-euc", command], cwd=tmp_path, check=True, env=where)
    raw, blob = "https://git.example/me/it/raw/12ab", "https://git.example/me/it/blob/12ab"
    assert (tmp_path / "README.md").read_text() == (
        f"![A view]({raw}/examples/a.jpg) and [a page]({blob}/examples/guide/b.md#part), [`c`]({blob}/c.py)"
        f" [out](https://d.e/f) [here](#g)\n![Far](https://h.i/j.png)\n[k]({blob}/k.md)\n"
    )
    (tmp_path / "README.md").write_text((ROOT / "README.md").read_text(encoding="utf-8"))
    subprocess.run(["bash", "-euc", command], cwd=tmp_path, check=True, env=where)
    links = re.findall(r"\]\(([^)]*)\)", (tmp_path / "README.md").read_text())
    assert links
    assert not [link for link in links if not link.startswith(("https://", "#"))]


def test_the_container_is_built_from_what_the_wheel_needs() -> None:
    """Every copied path exists; the files of the licence, the README, presets and pages are among them."""
    text = (ROOT / "configs" / "Dockerfile").read_text(encoding="utf-8")
    copied = [name for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.M) for name in line.split()[:-1]]
    assert not [name for name in copied if not (ROOT / name).exists()]
    licences = {file.relative_to(ROOT).parts[0] for file in licence_files()}
    assert {"pyproject.toml", PYPROJECT["project"]["readme"], "configs", "slideio_pipe"} | licences <= set(copied)
    (pages,) = re.findall(r"^docs_dir: \.\./(.*)$", (ROOT / "configs" / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    assert pages in copied
    assert re.findall(r"^USER (\d+)$", text, re.M) == ["1000"]
    assert re.findall(r"^ENTRYPOINT (.*)$", text, re.M) == [json.dumps(list(PYPROJECT["project"]["scripts"]))]


def licence_files() -> list[Path]:
    """Return the files that go into the distributions' metadata."""
    return [file for pattern in PYPROJECT["project"]["license-files"] for file in ROOT.glob(pattern)]
