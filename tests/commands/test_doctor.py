"""The doctor reads real files with every reader, and finds broken readers."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import NamedTuple

import pytest
from made_metadata import write_metadata

from slideio_pipe.commands.doctor import command, extras, findings, formats, machine, packages


@pytest.mark.system
def test_a_healthy_installation_has_no_problem() -> None:
    """Every reader reads the written files, and versions are the installed ones."""
    found = command.examine()
    assert not [finding for finding in found if finding.status in ("problem", "broken")]
    read = [finding for finding in found if finding.group == "formats"]
    assert len(read) == 5
    assert all("reads what was written" in finding.found for finding in read)
    versions = {finding.what: finding.found for finding in found if finding.group == "packages"}
    assert versions["numpy"] == importlib.metadata.version("numpy")
    report = json.loads(json.dumps(findings.report_of(found)))
    assert report["healthy"] is True
    assert len(report["findings"]) == len(found)


@pytest.mark.parametrize("prove", ["_prove_tiff", "_prove_jpeg2000", "_prove_openslide", "_prove_zarr", "_prove_png"])
def test_a_broken_reader_is_found(prove: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any exception is one problem with a remedy; the other readers are still tested."""

    def broken(folder: Path) -> str:
        raise RuntimeError("symbol not found")

    monkeypatch.setattr(formats, prove, broken)
    problems = [finding for finding in formats.examine_formats() if finding.status == "problem"]
    assert len(problems) == 1
    assert "fails: symbol not found" in problems[0].found
    assert problems[0].remedy
    assert findings.report_of(problems)["healthy"] is False


def test_wrong_pixels_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that opens the file and returns other pixels is broken."""
    right = formats.gradient()
    turns = iter([right, 255 - right])
    monkeypatch.setattr(formats, "gradient", lambda: next(turns, right))
    problems = [finding for finding in formats.examine_formats() if finding.status == "problem"]
    assert ["reads other pixels than were written" in finding.found for finding in problems] == [True]


def test_packages_are_those_of_the_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing one may have another name, and a version that is not allowed may work: neither is a problem."""
    needed = ("numpy>=1", "no-such-package>=2", "pillow>=999", "zarr; python_version<'3'", "pyarrow; extra=='more'")
    write_metadata(tmp_path, monkeypatch, *(f"Requires-Dist: {line}" for line in needed), "Provides-Extra: more")
    good, missing, old = packages.examine_packages()
    assert (good.what, good.status, good.found) == ("numpy", "ok", importlib.metadata.version("numpy"))
    assert (missing.status, missing.remedy) == ("optional", "pip install no-such-package")
    assert (old.status, old.remedy) == ("optional", 'pip install "pillow>=999"')
    assert old.found == f"{importlib.metadata.version('pillow')}, which is not >=999"


def test_files_without_metadata_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a checkout that was never installed."""
    monkeypatch.setattr(packages, "PROJECT", "slideio-pipe-of-another-name")
    (only,) = packages.examine_packages()
    assert "is not installed" in only.found
    assert extras.examine_extras(every=False) == []


@pytest.mark.system
def test_a_group_that_cannot_be_examined_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other groups are still examined."""

    def broken() -> list[findings.Finding]:
        raise RuntimeError("symbol\nnot found")

    monkeypatch.setattr(machine, "examine_gpu", broken)
    found = command.examine()
    (problem,) = [line for line in found if line.status == "problem"]
    assert (problem.what, problem.found) == ("GPU", "fails: symbol not found")
    assert {line.group for line in found} == {"machine", "packages", "formats", "extras", "GPU"}


class Usage(NamedTuple):
    """What shutil.disk_usage returns."""

    total: int
    used: int
    free: int


def test_small_disks_and_shared_memory_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker's 64 MB of shared memory, and a full disk, with what to do."""
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: Usage(64 * 2**20, 0, 5 * 10**6))
    found = {finding.what: finding for finding in machine.examine_machine()}
    assert (found["disk"].status, found["temporary files"].status) == ("optional", "optional")
    assert found["disk"].found.startswith("5 MB free")
    assert "TMPDIR" in found["temporary files"].remedy
    if machine._SHARED_MEMORY.is_dir():
        assert "--shm-size" in found["shared memory"].remedy
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: Usage(10**11, 0, 10**11))
    found = {finding.what: finding for finding in machine.examine_machine()}
    assert {found["disk"].status, found["temporary files"].status, found["shared memory"].status} == {"ok"}


def test_the_copy_of_the_documentation_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a wheel; a checkout builds it, and an installation that has neither says so."""

    def found() -> tuple[str, str]:
        (line,) = [finding for finding in machine.examine_machine() if finding.what == "documentation"]
        return line.status, line.found

    built = "slideio_pipe.commands.documentation.site_build"
    monkeypatch.setattr(f"{built}.SHIPPED", tmp_path)
    assert found() == ("untried", "built from this checkout when it is first opened")
    monkeypatch.setattr(f"{built}.SETTINGS", tmp_path / "mkdocs.yml")
    assert found() == ("optional", "this installation has none")
    (tmp_path / "index.html").touch()
    assert found() == ("ok", f"a copy is in {tmp_path}")


def test_a_viewer_without_its_page_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an incomplete installation."""
    monkeypatch.setattr("slideio_pipe.__file__", str(tmp_path / "__init__.py"))
    (viewer,) = [finding for finding in machine.examine_machine() if finding.what == "viewer"]
    assert viewer.status == "broken"
    assert "index.html" in viewer.found


def test_no_gpu_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything runs on the CPU; the report says how to use a GPU."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (finding,) = machine.examine_gpu()
    assert finding.status == "optional"
    assert "CUDA build of torch" in finding.remedy


def test_compiled_tile_programs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the instruction set; without them the package works, slower."""
    (found,) = [finding for finding in machine.examine_machine() if finding.what == "tile programs"]
    assert found.found.startswith("compiled")
    monkeypatch.setattr("slideio_pipe.compiled.library._in_use", False)
    (found,) = [finding for finding in machine.examine_machine() if finding.what == "tile programs"]
    assert (found.status, found.remedy) == ("optional", "unset SLIDEIO_PIPE_COMPILED")
