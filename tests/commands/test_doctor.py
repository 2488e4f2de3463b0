"""The doctor reads real files with every reader, and finds broken readers."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest

from slideio_pipe.commands import doctor


def test_a_healthy_installation_has_no_problem() -> None:
    """Every reader reads the written files, and versions are the installed ones."""
    findings = doctor.examine()
    assert not [finding for finding in findings if finding.status == "problem"]
    formats = [finding for finding in findings if finding.group == "formats"]
    assert len(formats) == 5
    assert all("reads what was written" in finding.found for finding in formats)
    versions = {finding.what: finding.found for finding in findings if finding.group == "packages"}
    assert versions["numpy"] == importlib.metadata.version("numpy")
    report = json.loads(json.dumps(doctor.report_of(findings)))
    assert report["healthy"] is True
    assert len(report["findings"]) == len(findings)


@pytest.mark.parametrize("prove", ["_prove_tiff", "_prove_jpeg2000", "_prove_openslide", "_prove_zarr", "_prove_png"])
def test_a_broken_reader_is_found(prove: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any exception is one problem with a remedy; the other readers are still tested."""

    def broken(folder: Path) -> str:
        raise RuntimeError("symbol not found")

    monkeypatch.setattr(doctor, prove, broken)
    problems = [finding for finding in doctor._formats() if finding.status == "problem"]
    assert len(problems) == 1
    assert "fails: symbol not found" in problems[0].found
    assert problems[0].remedy
    assert doctor.report_of(problems)["healthy"] is False


def test_wrong_pixels_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that opens the file and returns other pixels is broken."""
    right = doctor._gradient()
    turns = iter([right, 255 - right])
    monkeypatch.setattr(doctor, "_gradient", lambda: next(turns, right))
    problems = [finding for finding in doctor._formats() if finding.status == "problem"]
    assert ["reads other pixels than were written" in finding.found for finding in problems] == [True]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the install command; it is no problem by itself, because it may have another name."""
    monkeypatch.setattr(doctor, "PACKAGES", ("numpy", "no-such-package"))
    missing = doctor._packages()[1]
    assert (missing.status, missing.remedy) == ("optional", "pip install no-such-package")


def test_no_gpu_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything runs on the CPU; the report says how to use a GPU."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (finding,) = doctor._gpu()
    assert finding.status == "optional"
    assert "CUDA build of torch" in finding.remedy


def test_compiled_tile_programs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the instruction set; without them the package works, slower."""
    (found,) = [finding for finding in doctor.examine() if finding.what == "tile programs"]
    assert found.found.startswith("compiled")
    monkeypatch.setenv("SLIDEIO_PIPE_COMPILED", "0")
    (found,) = [finding for finding in doctor.examine() if finding.what == "tile programs"]
    assert (found.status, found.remedy) == ("optional", "unset SLIDEIO_PIPE_COMPILED")
