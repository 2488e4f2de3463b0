"""Progress bars on terminals and lines in logs; silence elsewhere."""

from __future__ import annotations

import importlib.util
import io
import re
import sys

import pytest
from rich.console import Console
from rich.progress import Progress

from slideio_pipe import progress
from slideio_pipe.progress import Bar, name_work, narrated, note_kept, rated, reporting


def counted(progress: object) -> None:
    with reporting(progress, "counting") as report:  # type: ignore[arg-type]
        for done in range(3):
            report(done + 1, 3)


def test_a_callback_gets_done_and_total() -> None:
    """Of each step."""
    calls: list[tuple[int, int]] = []
    counted(lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("progress", [False, None])
def test_without_a_terminal_nothing_is_printed(progress: bool | None, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor if progress is False."""
    counted(progress)
    assert capsys.readouterr() == ("", "")


def test_true_shows_a_bar_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal its last line is printed; standard output has results only."""
    counted(True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "counting" in err
    assert "3/3" in err


def test_a_terminal_shows_a_bar_by_default(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Unless progress is False."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any stream for a terminal
    counted(None)
    assert "counting" in capsys.readouterr().err
    counted(False)
    assert capsys.readouterr().err == ""


def test_the_bar_ends_when_the_work_fails() -> None:
    """The error is raised, and the next bar can start."""
    with pytest.raises(ValueError, match="broken"), reporting(True, "first"):
        raise ValueError("broken")
    counted(True)


def test_a_rate_is_shown_after_the_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a second count; callbacks get the same numbers as without it."""
    monkeypatch.setenv("COLUMNS", "120")
    with rated(True, "4 slides", "tiles") as (report, count):
        for done in range(3):
            count(100)
            report(done + 1, 4)
    reported = capsys.readouterr().err
    assert "4 slides" in reported
    assert "tiles/s" in reported
    calls: list[tuple[int, int]] = []
    with rated(lambda done, total: calls.append((done, total)), "slides", "tiles") as (report, count):
        count(100)
        report(1, 4)
    assert calls == [(1, 4)]


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make rich take this process for a notebook without ipywidgets."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ipywidgets" else found(name))
    monkeypatch.setitem(sys.modules, "ipywidgets", None)


@pytest.mark.usefixtures("notebook")
def test_a_notebook_without_widgets_has_no_warning(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing by default; with ``progress=True`` one line without rich's warning that it lacks ipywidgets."""
    counted(None)
    assert capsys.readouterr() == ("", "")
    counted(True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "3/3" in err
    assert "ipywidgets" not in err


def test_kept_work_does_not_count_for_the_rate() -> None:
    """10 of 1,000 in a second, though 900 were kept; the estimate is rich's own."""
    now = 0.0
    shown = Progress(get_time=lambda: now, disable=True)
    bar = Bar(shown, "saving")
    bar(900, 1000)
    for done in (910, 920, 930):
        now += 1.0
        bar(done, 1000)
    (task,) = shown.tasks
    assert task.completed == 930
    assert task.speed == pytest.approx(10)
    note_kept(bar, 960, 1000)
    now += 1.0
    bar(970, 1000)
    assert task.completed == 970


def test_the_bar_names_the_work_in_progress() -> None:
    """The first slide and the number of others; long names are cut in their middle."""
    shown = Progress(disable=True, console=Console(width=120))
    bar = Bar(shown, "3 slides")
    (task,) = shown.tasks
    for names, text in (
        (["a.svs"], "3 slides · a.svs"),
        (["a.svs", "b.svs", "c.svs"], "3 slides · a.svs +2"),
        (["x" * 40 + ".svs"], "3 slides · " + "x" * 15 + "…" + "x" * 10 + ".svs"),
        ([], "3 slides"),
    ):
        name_work(bar, names)
        assert task.description == text
    name_work(lambda done, total: None, ["a.svs"])  # a callback gets only numbers


def test_a_line_of_80_columns_has_the_counts_and_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also beside a long name: they are not cut."""
    screen = io.StringIO()
    console = Console(file=screen, width=80, force_terminal=True, color_system=None)
    monkeypatch.setattr(progress, "_console", lambda: (console, True))
    with rated(None, "240 slides", "tiles") as (report, count):
        report(3, 240)
        name_work(report, ["TCGA-CR-7395-01A-01-TS1.8b0a5bb0-cc23-4ee6-9f60.svs", "b.svs"])
        count(1)
        report._progress.update(report._task, rate="1,234 tiles/s")  # type: ignore[attr-defined]
        report._progress.refresh()  # type: ignore[attr-defined]
    line = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "\n", screen.getvalue()).rstrip())[-1]
    assert line.startswith("240 slides · TCGA-CR-7…")
    assert ".svs +1" in line
    assert "3/240" in line
    assert line.rstrip().endswith("1,234 tiles/s")
    assert len(line.rstrip()) <= 80


def reported(progress: object) -> None:
    with narrated(progress, "training") as (report, note):  # type: ignore[arg-type]
        for done in range(3):
            note(f"step {done} [0.5]")
            report(done + 1, 3)
            note(f"epoch {done}: loss [0.5]", lasting=True)


def test_notes_are_lines_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    """Only lasting ones, unchanged, on standard error; no bar and no codes of a terminal."""
    reported(True)
    assert capsys.readouterr() == ("", "".join(f"training: epoch {k}: loss [0.5]\n" for k in range(3)))
    reported(None)
    reported(False)
    reported(lambda done, total: None)
    assert capsys.readouterr() == ("", "")


def test_notes_are_in_the_row_of_the_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one row at any width: the row is drawn again, and cleared at the end."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    for width in ("110", "60"):
        monkeypatch.setenv("COLUMNS", width)
        reported(True)
        out, err = capsys.readouterr()
        assert out == ""
        assert "training" in err
        assert "\n\n" not in err
        rows = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", row) for row in re.split(r"[\r\n]", err)]
        assert max(len(row) for row in rows) <= int(width)
        assert any("epoch" in row for row in rows) or width == "60"
