"""The small demo cohort: killed and resumed it has the same bytes, in every layout and in the report."""

from __future__ import annotations

import csv
import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cohort_runs import tree
from page_reader import Page
from paths import ROOT
from typer.testing import CliRunner

import slideio_pipe as sp
from slideio_pipe.commands.app import app
from slideio_pipe.commands.demos.cohort import make_cohort, run_cohort_demo
from slideio_pipe.errors import ConfigError

SIZE = (1024, 768)
BROKEN = {"S07-truncated.svs": "open", "S13-no-slide.svs": "open", "S19-glass.svs": "tissue"}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of the 24 slides, with bags of an undisturbed export beside it."""
    folder = tmp_path_factory.mktemp("study")
    make_cohort(folder, size=SIZE)
    assert exporting(folder, "whole").wait(timeout=120) == 1  # slides failed
    return folder


def exporting(folder: Path, out: str) -> subprocess.Popen[bytes]:
    """Start to export the cohort, in its own process group."""
    command = ["-m", "slideio_pipe", "export", folder / "cohort.csv", "--out", folder / out, "--workers", "2"]
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def rows(folder: Path) -> dict[str, str]:
    """Return the row of each slide in report.html."""
    found = Page((folder / "report.html").read_text(encoding="utf-8")).rows
    return {row.split()[0]: row for row in found if row.split()[0] != "slide"}


def test_an_export_killed_twice_writes_the_same_bytes(study: Path) -> None:
    """Kill -9 of the process group at random moments; then all seven layouts and the report."""
    out, rng = study / "bags", random.Random(24)
    expected = tree(study / "whole")
    for _ in range(2):
        process = exporting(study, "bags")
        begun = time.monotonic()
        while process.poll() is None and not (out / "run.jsonl").exists() and time.monotonic() < begun + 30:
            time.sleep(0.05)
        time.sleep(rng.uniform(0.8, 2.5))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert tree(out).items() <= expected.items()
    assert exporting(study, "bags").wait(timeout=120) == 1
    assert tree(out) == expected
    assert not [path for path in out.rglob("*") if path.name.endswith((".partial", ".lock"))]
    with (out / "failures.csv").open(newline="") as file:
        assert {row["slide"]: row["stage"] for row in csv.DictReader(file)} == BROKEN
    check_report(study)


def check_report(study: Path) -> None:
    """Every slide is on the page, the broken first, with the numbers of its bag and its picture."""
    found, names = rows(study / "bags"), [slide.name for slide in sp.Cohort.of(study / "cohort.csv")]
    assert sorted(found) == sorted(names)
    assert set(list(found)[:3]) == set(BROKEN)
    assert "1 warning" in found["S02.svs"]
    assert "the cohort" in found["S04.svs"]
    page = Page((study / "bags" / "report.html").read_text(encoding="utf-8"))
    pictures = {str(image["src"]) for image in page.all("img")}
    assert pictures == {f"report/{name}.jpg" for name in names if BROKEN.get(name) != "open"}
    assert all((study / "bags" / picture).stat().st_size > 1000 for picture in pictures)
    for name in set(names) - set(BROKEN):
        bag = sp.open_bag(study / "bags" / f"{Path(name).stem}.bag.zarr")
        cells = found[name].split()
        assert str(len(bag)) in cells, (name, cells)
        assert not re.search(r"nan|None", found[name])


def test_every_layout_has_all_bags(study: Path) -> None:
    """All tiles of 21 bags; STAMP with random features."""
    bags = sorted((study / "whole").glob("*.bag.zarr"))
    tiles = {bag.name.removesuffix(".bag.zarr"): len(sp.open_bag(bag)) for bag in bags}
    (study / "features").mkdir()
    for name, count in tiles.items():
        np.save(study / "features" / f"{name}.npy", np.full((count, 4), 0.5, np.float16))
    for layout in ("clam", "trident", "stamp", "torchmil", "webdataset", "memmap", "hf"):
        features = {"features": study / "features"} if layout == "stamp" else {}
        done = sp.convert(bags, layout, study / layout, **features, progress=False)
        assert (done.bags, done.tiles) == (21, sum(tiles.values())), layout
        assert all(path.exists() for path in done.paths)


def test_the_cohort_is_reproducible(study: Path, tmp_path: Path) -> None:
    """The same bytes; its slides differ in size, label, patient and mpp."""
    cohort = sp.Cohort.of(study / "cohort.csv")
    again = make_cohort(tmp_path, 8, size=SIZE)
    assert again.name == "cohort.csv"
    for name in ("S01.svs", "S02.svs"):
        assert (tmp_path / "slides" / name).read_bytes() == (study / "slides" / name).read_bytes()
    assert {slide.label for slide in cohort} == {0, 1}
    assert len({slide.patient for slide in cohort}) == 12
    assert sorted({slide.mpp for slide in cohort}, key=str) == [0.25, None]
    sizes = {sp.open_slide(slide.source, slide_mpp=0.25).dimensions for slide in cohort[:6]}
    assert len(sizes) > 3


def test_too_few_slides_are_refused(tmp_path: Path) -> None:
    """Three of them are broken."""
    with pytest.raises(ConfigError, match="3 slides"):
        make_cohort(tmp_path, 3)


def test_the_demo_prints_failures_that_are_intended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three, with exit code 0; a second run resumes; --json prints numbers only."""
    from slideio_pipe.commands.demos import cohort as demo_cohort

    smaller = functools.partial(run_cohort_demo, slides=8, size=SIZE)
    monkeypatch.setattr(demo_cohort, "run_cohort_demo", smaller)
    result = CliRunner().invoke(app, ["demo", "--cohort", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert result.stdout.count("as intended") == 3
    assert "UNEXPECTEDLY" not in result.stdout
    assert f"open {tmp_path}/bags/report.html in a browser" in result.stdout
    assert (tmp_path / "bags" / "report.html").exists()
    again = json.loads(CliRunner().invoke(app, ["demo", "--cohort", "--out", str(tmp_path), "--json"]).stdout)
    assert (again["done"], again["kept"], again["failed"]) == (0, 5, 3)
    assert again["layouts"] == ["clam", "torchmil", "webdataset"]
    assert "--device" in CliRunner().invoke(app, ["demo", "--cohort", "--device", "cpu"]).stderr
