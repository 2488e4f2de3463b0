"""What an export of a cohort shows of itself, and that showing it costs no slide."""

from __future__ import annotations

import json
import os
from pathlib import Path

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


def told(folder: Path) -> dict[str, str]:
    """Return what the page says of each slide."""
    return {row.split()[0]: row for row in Page((folder / "report.html").read_text()).rows[1:]}


def test_pictures_and_warnings(study: Path, tmp_path: Path) -> None:
    """Slide, tissue and tiles side by side; a warning is on the page and counted; a kept slide stays on it."""
    report = sp.export_cohort(study, tmp_path, progress=False)
    assert (report.done, report.warned, report.page) == (2, 1, tmp_path / "report.html")
    with Image.open(picture_file(tmp_path, "a.svs")) as drawn:
        assert drawn.size == (3 * 320 + 2 * 6, 240)
    assert "estimated from the 40× objective" in told(tmp_path)["b.svs"]
    before = told(tmp_path)
    again = sp.export_cohort(study, tmp_path, progress=False)
    assert (again.kept, again.warned) == (2, 1)
    assert told(tmp_path) == before
    assert json.loads((tmp_path / "run.json").read_text())["report"] == str(tmp_path / "report.html")


def test_a_picture_that_cannot_be_written(study: Path, tmp_path: Path) -> None:
    """Costs no slide, only a warning, and the bag is the same."""
    (tmp_path / "report").touch()
    report = sp.export_cohort([study / "a.svs"], tmp_path, progress=False)
    assert (report.done, report.warned) == (1, 1)
    assert "no picture for the report" in told(tmp_path)["a.svs"]


def test_killed_between_the_bag_and_its_note(study: Path, tmp_path: Path) -> None:
    """The numbers that the bag has are on the page all the same."""
    sp.export_cohort([study / "a.svs"], tmp_path, progress=False)
    row = told(tmp_path)["a.svs"]
    lines = (tmp_path / "run.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "run.jsonl").write_bytes(b"".join(lines[:-1]))
    assert sp.export_cohort([study / "a.svs"], tmp_path, progress=False).kept == 1
    tiles = str(len(sp.open_bag(tmp_path / "a.bag.zarr")))
    found = told(tmp_path)["a.svs"].split()
    assert tiles in row.split()
    assert tiles in found
    assert "nan" not in found


def test_any_work_has_a_page(tmp_path: Path) -> None:
    """With what it noted as columns, also when it is interrupted: then it says what is not done yet."""
    cohort, out = slides(tmp_path, a="1", b=f"interrupt {os.getpid()}", c="3"), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(cohort, out)
    rows = told(out)
    assert "length" in (out / "report.html").read_text()
    assert "was interrupted" in (out / "report.html").read_text()
    assert "not done yet" in rows["b"]
    assert "not done yet" in rows["c"]


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    """Is a warning of a run that went well, and silent where there is an error to be told."""
    out = tmp_path / "out"
    (out / "report.html.partial").mkdir(parents=True)
    with pytest.warns(SlideioPipeWarning, match=r"report\.html was not written"):
        report = run_cohort(Copying(out), slides(tmp_path, a="1"), out, progress=False)
    assert (report.done, report.page) == (1, None)
    full = slides(tmp_path, **{f"s{k}": "full" for k in range(4)})
    with pytest.raises(OutputError, match="no space"):  # a warning here would be an error of this test
        run_cohort(Copying(out), full, out, progress=False)


def test_a_file_that_comes_back(tmp_path: Path) -> None:
    """Another file under the name fails; the old one back, the slide is done again, without being done."""
    cohort, out = slides(tmp_path, a="1"), tmp_path / "out"
    run(cohort, out)
    kept = (tmp_path / "a").stat()
    (tmp_path / "a").write_text("other")
    run(cohort, out)
    assert "another file" in told(out)["a"]
    (tmp_path / "a").write_text("1")
    os.utime(tmp_path / "a", ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert run(cohort, out).kept == 1
    assert "another file" not in told(out)["a"]
