"""A run over many slides continues after every kind of failure, and lists the failures."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from cohort_runs import Copying, counts, failures, run, slides
from rich.progress import Progress

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.run import run_cohort
from slideio_pipe.errors import ConfigError, OutputError
from slideio_pipe.progress import Bar


@pytest.mark.slow
def test_failed_slides_are_listed_and_the_others_are_done(tmp_path: Path) -> None:
    """With stage, error and remedy, in cells that no spreadsheet evaluates; the next run tries them again."""
    cohort, out = slides(tmp_path, a="1", b="damaged", c="3"), tmp_path / "out"
    assert counts(run(cohort, out)) == (2, 0, 1)
    assert failures(out) == [{"slide": "b", "stage": "copying", "error": "damaged", "remedy": "'=copy it again"}]
    (tmp_path / "b").write_text("2")
    assert counts(run(cohort, out)) == (1, 2, 0)
    assert not (out / "failures.csv").exists()
    noted = json.loads((out / "run.json").read_text())
    assert (noted["state"], noted["slides"], noted["done"], noted["kept"]) == ("finished", 3, 1, 2)
    assert noted["packages"]
    assert noted["settings"] == {"scale": 1}


class Watched(Bar):
    """A bar that records the names it shows."""

    def __init__(self) -> None:
        super().__init__(Progress(disable=True), "slides")
        self.shown: list[list[str]] = []

    def name(self, names: Sequence[str]) -> None:
        self.shown.append(list(names))
        super().name(names)


@pytest.mark.slow
def test_the_bar_names_the_slides_in_progress(tmp_path: Path) -> None:
    """Those of the workers, and none that was done before."""
    bar = Watched()
    shown = bar.shown
    cohort, out = slides(tmp_path, a="1", b="2", c="damaged"), tmp_path / "out"
    run(cohort, out, progress=bar)
    assert shown[0] == ["a"]
    assert {name for names in shown for name in names} == {"a", "b", "c"}
    assert shown[-1] == []
    shown.clear()
    run(cohort, out, progress=bar)
    assert {name for names in shown for name in names} == {"c"}


@pytest.mark.slow
def test_the_list_of_failures_is_of_the_last_run(tmp_path: Path) -> None:
    """A slide that failed before and is done now is not in it."""
    cohort, out = slides(tmp_path, a="damaged", b="2", c="damaged"), tmp_path / "out"
    run(cohort, out)
    assert [row["slide"] for row in failures(out)] == ["a", "c"]
    (tmp_path / "a").write_text("1")
    run(cohort, out)
    assert [row["slide"] for row in failures(out)] == ["c"]
    (tmp_path / "c").write_text("3")
    run(cohort, out)
    assert not (out / "failures.csv").exists()


@pytest.mark.system
def test_a_slide_that_kills_two_workers_is_left_out_of_later_runs(tmp_path: Path) -> None:
    """Unless with ``retry=True``; the other slides are done."""
    cohort, out = slides(tmp_path, a="1", b="fatal", c="3"), tmp_path / "out"
    assert counts(run(cohort, out, workers=2)) == (2, 0, 1)
    assert "SIGSEGV" in failures(out)[0]["error"]
    begun = run(cohort, out)
    assert counts(begun) == (0, 2, 1)
    assert "before" in failures(out)[0]["error"]
    assert "SIGSEGV" in str(run(cohort, out, retry=True).failed[0].error)


@pytest.mark.slow
def test_other_settings_are_refused_before_anything_starts(tmp_path: Path) -> None:
    """The error names them; overwrite repeats only the slides that differ."""
    cohort, out = slides(tmp_path, a="1", b="2"), tmp_path / "out"
    run(cohort, out)
    with pytest.raises(ConfigError, match=r"2 of 2 slides.*scale was 1, is 2.*a, b"):
        run(cohort, out, scale=2)
    assert counts(run(cohort, out, scale=2, overwrite=True)) == (2, 0, 0)
    assert (out / "a.out").read_text() == "11"
    assert counts(run(cohort, out, scale=2, overwrite=True)) == (0, 2, 0)


@pytest.mark.slow
def test_a_changed_label_is_a_changed_setting(tmp_path: Path) -> None:
    """Labels are stored in the outputs."""
    (slide,), out = slides(tmp_path, a="1"), tmp_path / "out"
    run(Cohort([slide]), out)
    with pytest.raises(ConfigError, match="labels, mpp, masks or cells"):
        run(Cohort([CohortSlide(slide.source, slide.name, label=1)]), out)


@pytest.mark.slow
def test_a_file_that_cannot_be_read_fails_only_its_slide(tmp_path: Path) -> None:
    """So does a mask that was deleted after the cohort was checked."""
    cohort, out = slides(tmp_path, a="1", b="2", c="3"), tmp_path / "out"
    (tmp_path / "mask.png").touch()
    masked = CohortSlide(tmp_path / "c", "c", mask=tmp_path / "mask.png")
    cohort = Cohort([*cohort[:2], masked])
    (tmp_path / "a").unlink()
    (tmp_path / "mask.png").unlink()
    assert counts(run(cohort, out)) == (2, 0, 1)
    assert "No such file" in failures(out)[0]["error"]


@pytest.mark.slow
def test_a_replaced_file_fails_its_slide(tmp_path: Path) -> None:
    """Unless its output may be overwritten."""
    cohort, out = slides(tmp_path, a="1", b="2"), tmp_path / "out"
    run(cohort, out)
    (tmp_path / "a").write_text("9")
    assert counts(run(cohort, out)) == (0, 1, 1)
    assert "another file" in failures(out)[0]["error"]
    assert counts(run(cohort, out, overwrite=True)) == (1, 1, 0)
    assert (out / "a.out").read_text() == "9"


@pytest.mark.slow
def test_an_output_that_was_removed_is_made_again(tmp_path: Path) -> None:
    """An entry in the ledger is not enough."""
    cohort, out = slides(tmp_path, a="1", b="2"), tmp_path / "out"
    run(cohort, out)
    (out / "a.out").unlink()
    assert counts(run(cohort, out)) == (1, 1, 0)


@pytest.mark.slow
def test_an_output_that_this_run_did_not_write_is_not_replaced(tmp_path: Path) -> None:
    """Neither by the first run nor by later ones."""
    cohort, out = slides(tmp_path, a="1"), tmp_path / "out"
    out.mkdir()
    (out / "a.out").write_text("theirs")
    for _ in range(2):
        assert counts(run(cohort, out)) == (0, 0, 1)
    assert (out / "a.out").read_text() == "theirs"


@pytest.mark.slow
def test_a_run_killed_before_its_ledger_entry_keeps_its_output(tmp_path: Path) -> None:
    """The output was begun under the same settings, and did not exist before."""
    cohort, out = slides(tmp_path, a="1", b="2"), tmp_path / "out"
    run(cohort, out)
    lines = (out / "run.jsonl").read_bytes().splitlines(keepends=True)
    (out / "run.jsonl").write_bytes(b"".join(lines[:-1]) + lines[-1][:17])  # and the last line is incomplete
    assert counts(run(cohort, out)) == (0, 2, 0)
    assert counts(run(cohort, out)) == (0, 2, 0)


@pytest.mark.slow
def test_a_second_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    """The error names the process that writes; the first run is not disturbed."""
    cohort, out = slides(tmp_path, a="1"), tmp_path / "out"
    reported: list[str] = []

    def second(done: int, total: int) -> None:
        if not done and not reported:
            with pytest.raises(OutputError, match=f"process {os.getpid()}") as refused:
                run(cohort, out)
            reported.append(str(refused.value))

    run_cohort(Copying(out), cohort, out, progress=second)
    assert "run.lock" in reported[0]
    assert not (out / "run.lock").exists()


def test_a_full_disk_ends_the_run(tmp_path: Path) -> None:
    """After three slides that cannot be written; the next run does the rest."""
    cohort, out = slides(tmp_path, **{f"s{k}": "full" for k in range(9)}), tmp_path / "out"
    with pytest.raises(OutputError, match="no space"):
        run(cohort, out)
    assert len(failures(out)) == 3
    assert json.loads((out / "run.json").read_text())["state"] == "interrupted"


@pytest.mark.slow
def test_an_interrupted_run_ends_at_once_and_can_be_resumed(tmp_path: Path) -> None:
    """Ctrl-C is raised at once, and no lock is left."""
    cohort, out = slides(tmp_path, a="1", b=f"interrupt {os.getpid()}"), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(cohort, out)
    assert json.loads((out / "run.json").read_text())["state"] == "interrupted"
    (tmp_path / "b").write_text("2")
    assert counts(run(cohort, out)) == (1, 1, 0)


@pytest.mark.parametrize("name", ["../a", "x/a", "..\\a", ".hidden", "/a"])
def test_names_that_lead_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    """A malicious manifest cannot write elsewhere."""
    (tmp_path / "a").write_text("1")
    with pytest.raises(ConfigError, match="no name for a file"):
        run(Cohort([CohortSlide(tmp_path / "a", name)]), tmp_path / "out")


def test_two_slides_with_one_output_are_refused(tmp_path: Path) -> None:
    """The error names them."""
    from slideio_pipe.export.cohort import export_cohort

    cohort = slides(tmp_path, **{"a.svs": "1", "a.tif": "2"})
    with pytest.raises(ConfigError, match=r"a\.svs and a\.tif would both become a\.bag\.zarr"):
        export_cohort(cohort, tmp_path / "out")
