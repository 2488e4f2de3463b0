"""The benchmark compares the right cases, and continues if readers are missing, broken or wrong."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from made_slides import made_slide
from pyramids import coordinate_pixels, write_pyramid
from typer.testing import CliRunner

import slideio_pipe as sp
from slideio_pipe.commands import app as cli
from slideio_pipe.commands.bench import measure, memory, peers, run
from slideio_pipe.commands.bench.cases import CASES, OFF_GRID, READING, Tiles, tiles_of, tissue_of
from slideio_pipe.commands.bench.measure import Ratio, Row, difference, job_of, race, race_threads, row_of, take_turns
from slideio_pipe.commands.bench.peers import OURS, PEERS, Worker
from slideio_pipe.commands.bench.run import THREADED, Comparison, compare_readers
from slideio_pipe.commands.bench.tables import in_words
from slideio_pipe.commands.bench.worker import READERS
from slideio_pipe.errors import ConfigError
from slideio_pipe.synthetic.slide import SyntheticSlide

pytestmark = pytest.mark.system  # readers run in processes of their own
HERE = ("simplejpeg", "openslide", "pyvips")  # dependencies of ours: always installed
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    """A generated slide of 2600×2000 px, levels 1 and 4, JPEG tiles of 256 px."""
    path = tmp_path_factory.mktemp("slides") / "ä b.svs"
    return made_slide(path, size=(2600, 2000), seed=3, lesions=1, pieces=1, levels=(1, 4))


@pytest.fixture(scope="module")
def compared(truth: SyntheticSlide) -> Comparison:
    """Every reading case, one round, with the readers that are always installed."""
    cases = (*READING, "threads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "LEAST_TILES", 1)
        return compare_readers(truth.path, cases=cases, peers=HERE, rounds=1, tiles=12, progress=False)


@pytest.fixture(autouse=True)
def short_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeat nothing for precise times: no test uses the times."""
    monkeypatch.setattr(measure, "LEAST_TILES", 1)


def fake_python(path: Path, script: str) -> Path:
    """Return an interpreter that runs ``script`` in place of every program."""
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_help_peers_and_worker_have_the_same_cases_and_readers() -> None:
    """Targets exist only for readers that exist."""
    assert set(PEERS) == set(READERS)
    assert set(THREADED) <= set(PEERS)
    assert {name for case in CASES.values() for name in case.wanted} <= set(PEERS)
    text = " ".join(CliRunner().invoke(cli.app, ["bench", "--help"], env={"COLUMNS": "200"}).stdout.split())
    for name in (*CASES, *(name for name in PEERS if name != OURS)):
        assert re.search(rf"[ ,]{re.escape(name)}\b", text), name


def test_tiles_are_at_the_positions_of_the_case(truth: SyntheticSlide) -> None:
    """Aligned ones on the stored grid, the others off it; inside the slide, on tissue, unique, reproducible."""
    with sp.open_slide(truth.path) as slide:
        tissue = tissue_of(slide)
        for case in READING:
            tiles = tiles_of(case, slide, tissue, 1000)
            shift = np.array(OFF_GRID if case in ("off-grid", "sparse") else (0, 0))
            side = tiles.tile * tiles.shrink
            assert ((tiles.origins - shift) % side == 0).all()
            assert (tiles.origins >= 0).all()
            assert (tiles.origins + side <= np.array(slide.dimensions)).all()
            assert len(np.unique(tiles.origins, axis=0)) == len(tiles.origins)
            rects = np.hstack([tiles.origins, np.full_like(tiles.origins, side)])
            assert (tissue.fractions(rects) >= 0.5).all()
            assert np.array_equal(tiles.origins, tiles_of(case, slide, tissue, 1000).origins)
        dense, sparse = (tiles_of(case, slide, tissue, 1000).origins for case in ("off-grid", "sparse"))
        assert len(sparse) == len(dense) // 10
        assert {tuple(o) for o in sparse.tolist()} <= {tuple(o) for o in dense.tolist()}
        few = tiles_of("off-grid", slide, tissue, 5).origins.tolist()
        start = dense.tolist().index(few[0])
        assert dense.tolist()[start : start + 5] == few


def test_a_slide_of_glass_has_tiles(tmp_path: Path) -> None:
    """Where no tissue is found, tiles come from the whole slide, without a warning."""
    path = write_pyramid(tmp_path / "glass.tif", np.full((600, 700, 3), 240, np.uint8), (1,))
    with sp.open_slide(path) as slide:
        assert len(tiles_of("aligned", slide, tissue_of(slide), 100).origins) == 4


def test_a_slide_too_small_is_refused(tmp_path: Path) -> None:
    """The message names the case that does not fit."""
    path = write_pyramid(tmp_path / "small.tif", coordinate_pixels(300, 300), (1,))
    with pytest.raises(ConfigError, match='"half"'):
        compare_readers(path, cases=["half"], peers=[OURS], rounds=1)


def test_readers_deliver_the_same_pixels(compared: Comparison) -> None:
    """At native resolution every reader's checksum is that of ours; shrunk, they differ by filters only."""
    for table in compared.tables[:-1]:
        assert [row.reader for row in table.rows] == [OURS, *HERE]
        done = [row for row in table.rows if row.tiles_per_cpu_s is not None]
        if table.case.name not in ("half", "fractional"):
            assert len({row.sha256 for row in done}) == 1
            assert all(row.largest_difference == 0 for row in done[1:])
        else:
            most = 1 if table.case.name == "half" else 1.5
            assert all(row.mean_difference < most for row in done[1:])  # type: ignore[operator]
        for row in table.rows:
            if row.reader == "simplejpeg" and table.case.name in ("fractional", "off-grid", "sparse"):
                assert row.note == "not for this: tiles off the stored grid"
                assert row.ratio is None
            else:
                assert row.note == ""
                assert (row.ratio is None) == (row.reader == OURS)


def test_checksums_are_of_the_slides_pixels(truth: SyntheticSlide, tmp_path: Path) -> None:
    """Of tifffile's pixels at the same places, in the requested order."""
    level = tifffile.imread(truth.path, key=0)
    origins = np.array([[512, 256], [0, 0], [768, 1024]])
    expected = np.stack([level[y : y + 256, x : x + 256] for x, y in origins])
    for name in (OURS, *HERE):
        with Worker(PEERS[name], sys.executable) as worker:
            job = job_of(Tiles(256, 1, origins), truth.path, tmp_path) | {"pixels": str(tmp_path / "out.npy")}
            for threads in (1, 2):
                answer = worker.ask(job | {"threads": threads})
                assert answer["cpu_s"] > 0, answer
                assert np.array_equal(np.load(tmp_path / "out.npy"), expected)


def test_threads_are_compared_with_one_thread(compared: Comparison) -> None:
    """Each reader with itself; two threads read the same pixels as one."""
    table = compared.tables[-1]
    assert [row.reader for row in table.rows] == [OURS, "simplejpeg"]
    for row in table.rows:
        assert row.threads == 2
        assert row.note == "" or "no second core" in row.note
        assert row.ratio is not None
    assert table.rows[0].wanted == 1.8


def test_a_busy_machine_is_noted(truth: SyntheticSlide, tmp_path: Path) -> None:
    """If the bare loop is not faster with a second thread either, our row has a note."""

    class Clock:
        """A worker that returns the seconds it was constructed with."""

        version = ""

        def __init__(self, two: float) -> None:
            self.two = two

        def ask(self, job: dict[str, int]) -> dict[str, object]:
            return {"cpu_s": 1.0, "wall_s": 1.0 if job["threads"] == 1 else self.two, "sha256": "a"}

    def note(ours: float, bare: float) -> str:
        workers = {OURS: Clock(ours), "simplejpeg": Clock(bare)}
        tiles = Tiles(256, 1, np.zeros((4, 2), np.int64))
        table = race_threads(CASES["threads"], tiles, truth.path, workers, rounds=2, folder=tmp_path)  # type: ignore[arg-type]
        assert [row.note for row in table.rows[1:]] == [""]
        return table.rows[0].note

    assert note(0.9, 1.0) == "a minimal loop gained 1.00×: no second core was free"
    assert note(0.9, 0.5) == ""
    assert note(0.5, 0.5) == ""


def test_ratios_are_taken_round_by_round() -> None:
    """The median of the ratios, not the ratio of the medians; the target is compared with the median."""
    ratio = Ratio.of([2.0, 9.0, 4.0], [1.0, 3.0, 4.0])
    assert (ratio.median, ratio.least, ratio.most) == (2.0, 1.0, 3.0)
    assert Row("a", ratio=ratio, wanted=1.5).reached is True
    assert Row("a", ratio=ratio, wanted=2.5).reached is False
    assert Row("a", ratio=ratio).reached is None
    assert Row("a", wanted=1.0).reached is None


def test_a_reader_of_other_pixels_has_no_ratio() -> None:
    """A reader with wrong or varying pixels gets a note instead."""
    tiles = Tiles(256, 1, np.zeros((4, 2), np.int64))
    one = {"cpu_s": 1.0, "wall_s": 1.0, "sha256": "a"}
    answers = {OURS: [one, one], "near": [one, one], "far": [one, one], "moody": [one, one | {"sha256": "b"}]}
    rows = {
        name: row_of(name, "", CASES["aligned"], tiles, answers, apart)
        for name, apart in (("near", (6, 0.8)), ("far", (255, 40.0)), ("moody", (0, 0.0)))
    }
    assert rows["near"].ratio == Ratio(1.0, 1.0, 1.0)
    assert (rows["far"].ratio, rows["far"].note) == (None, "reads other pixels: not comparable")
    assert (rows["moody"].ratio, rows["moody"].note) == (None, "its pixels change from round to round")


def test_difference_equals_numpy() -> None:
    """Largest and mean difference, computed in float64."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8) for _ in range(2))
    apart = np.abs(a.astype(np.float64) - b)
    assert difference(a, b) == (int(apart.max()), pytest.approx(apart.mean()))


def test_a_missing_reader_is_listed(truth: SyntheticSlide, tmp_path: Path) -> None:
    """With what is missing and the install command for the given interpreter; ours still runs."""
    python = fake_python(tmp_path / "python", """echo '{"missing": "No module named cucim"}'""")
    found = compare_readers(
        truth.path, cases=["aligned"], peers=["cucim"], rounds=1, tiles=2, python=python, progress=False
    )
    assert [row.reader for row in found.tables[0].rows] == [OURS]
    (missing,) = found.missing
    assert missing.reason == "No module named cucim"
    assert missing.remedy.startswith(f"{python} -m pip install cucim-cu12 click lazy_loader")


def test_a_failed_import_in_the_worker_is_reported(tmp_path: Path) -> None:
    """In its first message, not as a traceback."""
    from slideio_pipe.commands.bench import worker

    hidden = {"none": (READERS["openslide"][0], "none", ("no_such_module",))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "READERS", hidden)
        assert worker.hello("none") == {"missing": "No module named 'no_such_module'"}


def test_a_reader_whose_process_ends_gets_a_note(truth: SyntheticSlide, tmp_path: Path) -> None:
    """With its exit status and last line; the other readers have results."""
    script = 'echo \'{"version": "1"}\'; read line; echo "double free" >&2; kill -SEGV $$'
    python = fake_python(tmp_path / "python", script)
    with Worker(PEERS[OURS], sys.executable) as ours, Worker(PEERS["cucim"], python) as dying:
        tiles = Tiles(256, 1, np.array([[0, 0]]))
        table = race(CASES["aligned"], tiles, truth.path, {OURS: ours, "cucim": dying}, rounds=2, folder=tmp_path)
        jobs = {"cucim": job_of(tiles, truth.path, tmp_path)}
        again = take_turns({"cucim": dying}, jobs, 3, lambda: None)
    assert table.rows[0].tiles_per_cpu_s is not None
    assert "ended by SIGSEGV: double free" in table.rows[1].note
    assert table.rows[1].ratio is None
    assert len(again["cucim"]) == 1  # a failed reader gets no more jobs


def test_a_reader_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time limit it is killed, and its row has a note."""
    monkeypatch.setattr(peers, "JOB_LIMIT_S", 0.2)
    with Worker(PEERS["cucim"], fake_python(tmp_path / "python", "exec sleep 600")) as worker:
        assert worker.missing == "ended by SIGKILL"


def test_a_program_that_is_no_python_is_no_reader(tmp_path: Path) -> None:
    """The reader counts as missing, with what the program printed."""
    with Worker(PEERS["cucim"], fake_python(tmp_path / "python", "echo hello")) as worker:
        assert worker.missing == "answered 'hello'"


def test_an_interruption_leaves_no_process(truth: SyntheticSlide, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends every reader, and no files of pixels remain."""
    workers: list[Worker] = []
    folders: list[Path] = []

    class Watched(Worker):
        def __init__(self, *arguments: Any) -> None:
            workers.append(self)
            super().__init__(*arguments)

        def ask(self, job: dict[str, Any]) -> dict[str, Any]:
            folders.append(Path(job["origins"]).parent)
            return super().ask(job)

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(run, "Worker", Watched)
    with pytest.raises(KeyboardInterrupt):
        compare_readers(truth.path, cases=["aligned"], peers=["openslide"], rounds=3, tiles=2, progress=interrupt)
    assert len(workers) == 2
    assert all(worker._process.poll() is not None for worker in workers)
    assert len(folders) == 2
    assert not folders[0].exists()


def test_an_error_of_a_reader_is_a_note(tmp_path: Path) -> None:
    """If a reader cannot open a slide, its row says so; its process continues."""
    broken = tmp_path / "broken.svs"
    broken.write_bytes(b"II*\x00" + bytes(100))
    with Worker(PEERS["openslide"], sys.executable) as worker:
        job = job_of(Tiles(256, 1, np.array([[0, 0]])), broken, tmp_path)
        for _ in range(2):
            assert "Error" in worker.ask(job)["error"]


def test_a_stored_level_is_not_compared(tmp_path: Path) -> None:
    """If the half resolution is stored, we would read it and the others level 0: a note says so."""
    path = write_pyramid(tmp_path / "a.tif", coordinate_pixels(1100, 1100), (1, 2))
    found = compare_readers(path, cases=["half"], peers=["openslide"], rounds=1, progress=False)
    ours, theirs = found.tables[0].rows
    assert ours.note.startswith("not for this: level 1 stores these pixels")
    assert theirs.ratio is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cases": ["fast"]}, 'no case "fast"; choose from aligned, half'),
        ({"peers": ["openslid"]}, 'no reader "openslid"; choose from slideio_pipe, simplejpeg'),
        ({"rounds": 0}, "rounds is 0"),
        ({"tiles": 0}, "tiles is 0"),
        ({"python": "/no/python", "cases": ["aligned"], "peers": ["openslide"]}, "/no/python: cannot be run"),
    ],
)
def test_invalid_arguments_are_refused(truth: SyntheticSlide, options: dict[str, object], message: str) -> None:
    """With what is wrong and what to pass instead."""
    with pytest.raises(ConfigError) as error:
        compare_readers(truth.path, **options)  # type: ignore[arg-type]
    assert message in str(error.value)


@LINUX
def test_memory_of_a_huge_bag_is_bounded(truth: SyntheticSlide) -> None:
    """In a new process with a bag of 20,000 tiles: the peak is below buffers, caches and 500 MB."""
    found = memory.in_own_process("memory", truth.path, 96)
    assert found["bag"] >= memory.BAG
    assert found["tiles_read"] == 96
    assert found["before_mb"] < found["peak_mb"]
    assert found["reached"] is True, found


@LINUX
def test_closed_slides_leave_no_open_files_and_no_memory(truth: SyntheticSlide) -> None:
    """Counted after many slides."""
    found = memory.in_own_process("slides", truth.path, 30)
    assert found["open_files_grown"] == 0
    assert found["reached"] is True, found


def test_a_slide_that_does_not_open_is_reported_by_the_memory_case(tmp_path: Path) -> None:
    """The table has the reason."""
    found = memory.in_own_process("slides", tmp_path / "no.svs", 3)
    assert "no.svs" in found["error"]


def test_the_command_prints_a_table(truth: SyntheticSlide) -> None:
    """Slide, readers with their figures, targets and pixels."""
    arguments = ["bench", str(truth.path), "--case", "aligned", "--peer", "openslide", "--rounds", "1", "--tiles", "4"]
    result = CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    assert "2,600 × 2,000 px" in result.stdout
    assert re.search(r"openslide 4?[\d.]+ .*× .*≥ 8× .*the same", result.stdout)


def test_the_command_prints_json(truth: SyntheticSlide) -> None:
    """The same figures, and nothing else on standard output."""
    arguments = ["bench", str(truth.path), "--case", "aligned", "--peer", "simplejpeg", "--rounds", "2", "--tiles", "4"]
    result = CliRunner().invoke(cli.app, [*arguments, "--json"])
    report = json.loads(result.stdout)
    (case,) = report["cases"]
    assert (case["case"], case["tiles"], case["rounds"]) == ("aligned", 4, 2)
    ours, bare = case["rows"]
    assert ours["sha256"] == bare["sha256"]
    assert bare["ratio"]["least"] <= bare["ratio"]["median"] <= bare["ratio"]["most"]
    assert bare["reached"] == (bare["ratio"]["median"] >= 0.95)


def test_errors_of_the_command_name_its_options(truth: SyntheticSlide) -> None:
    """In one line, with exit code 2."""
    arguments = ["bench", str(truth.path), "--case", "aligned", "--peer", "cucim", "--python", "/no/python"]
    result = CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "120"})
    assert result.exit_code == 2
    assert "pass --python" in result.stderr


def test_memory_cases_are_one_line() -> None:
    """Memory, limit and whether it was kept; or why there is no figure."""
    from slideio_pipe.commands.bench.measure import Table

    facts = {"slides": 200, "growth_mb": 0.5, "allowed_mb": 20.0, "warm_mb": 300.0, "open_files_grown": 0}
    assert "+0.5 MB and +0 open files" in str(in_words(Table(CASES["slides"], facts | {"reached": True})))
    assert "short" in str(in_words(Table(CASES["slides"], facts | {"reached": False})))
    assert str(in_words(Table(CASES["memory"], {"error": "no /proc"}))).endswith("no /proc")
