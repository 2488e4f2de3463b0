"""Records of slides are read from the events of all runs, and sorted with the worst first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from run_events import done, failed, start

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.records import Records, SlideRecord


def records(folder: Path, *events: dict[str, Any], cohort: Cohort | None = None) -> list[SlideRecord]:
    """Write the events and read them."""
    (folder / "run.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return list(Records(folder, cohort))


def test_the_worst_slides_are_first(tmp_path: Path) -> None:
    """Failed, quarantined, with warnings, few tiles or low coverage, the rest from few tiles to many, not done."""
    good = [event for k in range(5) for event in (start(f"good{k}"), done(f"good{k}", 100 + k))]
    found = records(
        tmp_path,
        *reversed(good),
        *(start("low"), done("low", 90, covered=0.2)),
        *(start("few"), done("few", 3)),
        *(start("warned"), done("warned", 500, warnings=["odd"])),
        *(start("killer"), {**start("killer"), "event": "quarantined"}, failed("killer", "was killed", attempts=2)),
        *(start("bad"), failed("bad")),
        start("unfinished"),
    )
    names = [record.slide for record in found]
    assert names == ["bad", "killer", "warned", "few", "low", *(f"good{k}" for k in range(5)), "unfinished"]
    assert [record.status for record in found[:3]] == ["failed", "quarantined", "done"]
    assert [record.notable for record in found[3:6]] == [("few tiles",), ("low coverage",), ()]
    assert (found[0].stage, found[0].error, found[0].remedy) == ("tiles", "damaged", "copy it again")
    assert found[1].attempts == 2
    assert found[-1].status == "not done yet"


def test_the_last_run_decides_the_record(tmp_path: Path) -> None:
    """Failed then done is done, in two attempts; notes and warnings of a finished slide are kept."""
    (found,) = records(
        tmp_path, start("a"), failed("a"), start("a"), done("a", 7, seconds=2.5), failed("a", "another file"), done("a")
    )
    assert (found.status, found.made["tiles"], found.seconds, found.attempts) == ("done", 7, 2.5, 2)
    assert found.error == ""


def test_a_quarantined_slide_keeps_its_error(tmp_path: Path) -> None:
    """Later runs, which skip it, do not replace the error."""
    (found,) = records(
        tmp_path, start("a"), {**start("a"), "event": "quarantined"}, failed("a", "SIGSEGV"), failed("a", "before")
    )
    assert (found.status, found.error) == ("quarantined", "SIGSEGV")


def test_records_include_slides_not_begun(tmp_path: Path) -> None:
    """Labels and splits come from the cohort, or from the events if the cohort was another one."""
    cohort = Cohort.unchecked(
        [CohortSlide(tmp_path / "a", "a", label=1), CohortSlide(tmp_path / "b", "b", split="val")]
    )
    found = {r.slide: r for r in records(tmp_path, start("z", label=0, patient="p"), done("z", 1), cohort=cohort)}
    assert {name: dict(record.about) for name, record in found.items()} == {
        "a": {"label": 1},
        "b": {"split": "val"},
        "z": {"label": 0, "patient": "p"},
    }
    assert found["a"].status == "not done yet"


def test_a_folder_without_events_has_all_slides_not_done(tmp_path: Path) -> None:
    """Those of the cohort."""
    cohort = Cohort.unchecked([CohortSlide(tmp_path / "a", "a")])
    assert [record.status for record in Records(tmp_path, cohort)] == ["not done yet"]


def test_incomplete_lines_are_skipped(tmp_path: Path) -> None:
    """As a killed run leaves them."""
    (tmp_path / "run.jsonl").write_text(json.dumps(done("a", 5))[:40] + "\n\n" + json.dumps(done("b", 6)) + "\n[1]\n{")
    assert [(record.slide, record.made["tiles"]) for record in Records(tmp_path)] == [("b", 6)]


def test_totals_count_finished_slides(tmp_path: Path) -> None:
    """Tiles and bytes; columns in order of appearance, without values that no table can hold."""
    made = {"tiles": 3, "bytes": 10, "dim": 768, "pixels": {"codec": "zstd"}}
    events = [{**done(name), "made": made} for name in "ab"] + [failed("c")]
    (tmp_path / "run.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    found = Records(tmp_path)
    assert (len(found), found.tiles, found.bytes) == (3, 6, 20)
    assert found.columns == ["tiles", "bytes", "dim"]
    assert found.counts == {"failed": 1, "quarantined": 0, "done": 2, "not done yet": 0, "warned": 0}
