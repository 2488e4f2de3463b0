"""Pictures and report of an export of a cohort; a failure to write them fails no slide."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from cohort_runs import Copying, run, slides
from made_slides import made_slide
from page_reader import Page
from PIL import Image

import slideio_pipe as sp
from slideio_pipe.cohort.report_page import picture_file
from slideio_pipe.cohort.run import run_cohort
from slideio_pipe.errors import OutputError, SlideioPipeWarning


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two slides; of one, the resolution is an estimate."""
    folder = tmp_path_factory.mktemp("study")
    for name in ("a.svs", "b.svs"):
        made_slide(folder / name, size=(2048, 1536), seed=3)
    content = (folder / "b.svs").read_bytes()
    (folder / "b.svs").write_bytes(content.replace(b"|MPP = ", b"|Xpp = "))
    return folder


def rows_of(folder: Path) -> dict[str, str]:
    """Return the page's row of each slide."""
    return {row.split()[0]: row for row in Page((folder / "report.html").read_text()).rows[1:]}


@pytest.mark.slow
def test_the_page_shows_pictures_and_warnings(study: Path, tmp_path: Path) -> None:
    """Slide, tissue and tiles side by side; warnings are counted; a kept slide remains on the page."""
    report = sp.export_cohort(study, tmp_path, progress=False)
    assert (report.done, report.warned, report.page) == (2, 1, tmp_path / "report.html")
    with Image.open(picture_file(tmp_path, "a.svs")) as drawn:
        assert drawn.size == (3 * 320 + 2 * 6, 240)
    assert "estimated from the 40× objective" in rows_of(tmp_path)["b.svs"]
    before = rows_of(tmp_path)
    again = sp.export_cohort(study, tmp_path, progress=False)
    assert (again.kept, again.warned) == (2, 1)
    assert rows_of(tmp_path) == before
    assert json.loads((tmp_path / "run.json").read_text())["report"] == str(tmp_path / "report.html")


@pytest.mark.slow
def test_a_picture_that_cannot_be_written_is_a_warning(study: Path, tmp_path: Path) -> None:
    """The slide does not fail, and the bag is the same."""
    (tmp_path / "report").touch()
    report = sp.export_cohort([study / "a.svs"], tmp_path, progress=False)
    assert (report.done, report.warned) == (1, 1)
    assert "no picture for the report" in rows_of(tmp_path)["a.svs"]


@pytest.mark.slow
@pytest.mark.parametrize("run_over", [sp.export_cohort, sp.tissue_cohort], ids=lambda run: run.__name__)
def test_an_output_without_a_ledger_entry_is_on_the_page(study: Path, tmp_path: Path, run_over: Any) -> None:
    """After a kill between the two, its numbers are read from the output; the warning of the slide is there again."""
    run_over([study / "b.svs"], tmp_path, progress=False)
    row = rows_of(tmp_path)["b.svs"]
    lines = (tmp_path / "run.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "run.jsonl").write_bytes(b"".join(lines[:-1]))
    again = run_over([study / "b.svs"], tmp_path, progress=False)
    assert (again.kept, again.warned) == (1, 1)
    found = rows_of(tmp_path)["b.svs"]
    assert "1 warning" in row
    assert "1 warning" in found
    assert "estimated from the 40× objective" in found
    assert "nan" not in found.split()
    if run_over is sp.export_cohort:
        tiles = str(len(sp.open_bag(tmp_path / "b.bag.zarr")))
        assert tiles in row.split()
        assert tiles in found.split()


@pytest.mark.slow
def test_every_run_has_a_page(tmp_path: Path) -> None:
    """Its notes are columns; an interrupted run lists what is not done."""
    cohort, out = slides(tmp_path, a="1", b=f"interrupt {os.getpid()}", c="3"), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(cohort, out)
    rows = rows_of(out)
    assert "length" in (out / "report.html").read_text()
    assert "was interrupted" in (out / "report.html").read_text()
    assert "not done yet" in rows["b"]
    assert "not done yet" in rows["c"]


@pytest.mark.slow
def test_a_page_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    """If the run also ends with an error, only the error is reported."""
    out = tmp_path / "out"
    (out / "report.html.partial").mkdir(parents=True)
    with pytest.warns(SlideioPipeWarning, match=r"report\.html was not written"):
        report = run_cohort(Copying(out), slides(tmp_path, a="1"), out, progress=False)
    assert (report.done, report.page) == (1, None)
    full = slides(tmp_path, **{f"s{k}": "full" for k in range(4)})
    with pytest.raises(OutputError, match="no space"):  # a warning here would be an error of this test
        run_cohort(Copying(out), full, out, progress=False)


@pytest.mark.slow
def test_a_file_that_was_replaced_and_restored(tmp_path: Path) -> None:
    """The other file fails; after the first one is restored, the slide counts as done."""
    cohort, out = slides(tmp_path, a="1"), tmp_path / "out"
    run(cohort, out)
    kept = (tmp_path / "a").stat()
    (tmp_path / "a").write_text("other")
    run(cohort, out)
    assert "another file" in rows_of(out)["a"]
    (tmp_path / "a").write_text("1")
    os.utime(tmp_path / "a", ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert run(cohort, out).kept == 1
    assert "another file" not in rows_of(out)["a"]
