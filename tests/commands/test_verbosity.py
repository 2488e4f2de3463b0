"""-v and -q say how much is printed; environment variables give options; the library itself prints and reads none."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from command_line import run
from made_slides import made_slide
from paths import ROOT

import slideio_pipe as sp
from slideio_pipe.commands import app as cli
from slideio_pipe.compiled.library import is_compiled_used, use_compiled

COMMANDS = [name for name in typer.main.get_command(cli.app).commands if name != "config"]
GRID = ("--tile-size", 64, "--mpp", "native")


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small slide with tissue."""
    return made_slide(tmp_path_factory.mktemp("slides") / "a.svs", size=(900, 700), seed=3, pieces=1).path


# --- the log


@pytest.mark.parametrize("before", [True, False], ids=["before the command", "after it"])
def test_v_prints_what_is_done(slide: Path, tmp_path: Path, before: bool) -> None:
    """With times and the parts of the package; the result stays alone on standard output."""
    words = ("export", slide, "--out", tmp_path, *GRID, "--json")
    result = run("-v", *words) if before else run(*words, "-v")
    assert "export.slide: a.svs: tissue and" in result.stderr
    assert "reader" not in result.stderr
    assert json.loads(result.stdout)["tiles"] > 0
    assert "export.slide: " not in run("export", slide, "--out", tmp_path / "other", *GRID).stderr


def test_vv_prints_details(slide: Path) -> None:
    """Such as the reader of each slide; once before and once after the command is twice."""
    for result in (run("info", slide, "-vv"), run("-v", "info", slide, "-v")):
        assert "a.svs: reader tiff" in result.stderr


def test_a_kept_bag_is_said(slide: Path, tmp_path: Path) -> None:
    """What a run keeps, and why."""
    run("export", slide, "--out", tmp_path, *GRID)
    assert "kept" in run("export", slide, "--out", tmp_path, *GRID, "-v").stderr


def test_q_leaves_errors_and_results(slide: Path, tmp_path: Path) -> None:
    """No warnings, no notes."""
    empty = ("export", slide, "--out", tmp_path, "--mag", 20, "--min-tissue", 1, "--tile-size", 256, "--allow-empty")
    assert "warning" in run(*empty).stderr
    quiet = run(*empty, "--overwrite", "-q")
    assert quiet.stderr == ""
    assert "0 tiles" in quiet.stdout
    assert run("-q", "info", tmp_path / "none.svs", code=2).stderr.startswith("error")


def test_the_log_is_as_before_after_a_command(slide: Path) -> None:
    """A notebook that calls commands keeps its own settings."""
    logger = logging.getLogger("slideio_pipe")
    before = (logger.level, list(logger.handlers))
    run("-vv", "info", slide)
    assert (logger.level, logger.handlers) == before


@pytest.mark.system
def test_the_library_prints_nothing_by_itself(slide: Path) -> None:
    """Python's handler of last resort would print warnings without a handler of ours."""
    code = (
        "import logging, slideio_pipe as sp, sys\n"
        f"sp.open_slide({str(slide)!r}).close()\n"
        "logging.getLogger('slideio_pipe.anything').warning('not shown')\n"
        "handlers = logging.getLogger('slideio_pipe').handlers\n"
        "assert [type(each).__name__ for each in handlers] == ['NullHandler'], handlers\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_program_can_show_the_log(slide: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With Python's logging."""
    with caplog.at_level(logging.DEBUG, "slideio_pipe"), sp.open_slide(slide):
        pass
    assert any("reader tiff" in record.getMessage() for record in caplog.records)


# --- options of every command


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_json_and_takes_v_and_q(name: str) -> None:
    """With the same names everywhere."""
    options = {name for parameter in typer.main.get_command(cli.app).commands[name].params for name in parameter.opts}
    assert {"--json", "--verbose", "-v", "--quiet", "-q"} <= options


# --- environment variables


def test_options_are_taken_from_the_environment(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named after the command and the option; the command line has precedence."""
    monkeypatch.setenv("SLIDEIO_PIPE_EXPORT_TILE_SIZE", "32")
    monkeypatch.setenv("SLIDEIO_PIPE_EXPORT_JSON", "1")
    monkeypatch.setenv("SLIDEIO_PIPE_EXPORT_OUT", str(tmp_path))
    made = json.loads(run("export", slide, "--mpp", "native").stdout)
    assert sp.open_bag(made["bag"]).shape[1] == 32
    assert Path(made["bag"]).parent == tmp_path
    made = json.loads(run("export", slide, "--mpp", "native", "--tile-size", 64, "--overwrite").stdout)
    assert sp.open_bag(made["bag"]).shape[1] == 64


def test_variables_of_commands_below_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both names are in them."""
    monkeypatch.setenv("SLIDEIO_PIPE_CONFIG_LIST_JSON", "true")
    assert json.loads(run("config", "list").stdout)


WRONG = {
    "no number": ("SLIDEIO_PIPE_EXPORT_TILE_SIZE", "large"),
    "an impossible value": ("SLIDEIO_PIPE_EXPORT_TILE_SIZE", "0"),
    "a wrong choice": ("SLIDEIO_PIPE_EXPORT_EDGE", "wrap"),
    "no such preset": ("SLIDEIO_PIPE_EXPORT_CONFIG", "uni-244"),
    "neither on nor off": ("SLIDEIO_PIPE_COMPILED", "maybe"),
}


@pytest.mark.parametrize(("variable", "value"), WRONG.values(), ids=WRONG)
def test_a_wrong_value_is_refused_with_the_name_of_the_variable(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """The user may have set it long ago."""
    monkeypatch.setenv(variable, value)
    assert variable in run("export", slide, "--out", tmp_path, code=2).stderr


def test_a_misspelt_variable_is_a_warning(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the name that was meant; variables of other commands are left alone."""
    monkeypatch.setenv("SLIDEIO_PIPE_INFO_MPPP", "1")
    monkeypatch.setenv("SLIDEIO_PIPE_EXPORT_WROKERS", "1")
    error = run("info", slide).stderr
    assert "SLIDEIO_PIPE_INFO_MPPP is no option of this command, did you mean SLIDEIO_PIPE_INFO_MPP?" in error
    assert "WROKERS" not in error


def test_the_variable_of_compiled_programs(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 turns them off for the command."""
    monkeypatch.setenv("SLIDEIO_PIPE_COMPILED", "0")
    try:
        run("info", slide)
        assert not is_compiled_used()
    finally:
        use_compiled(True)
