"""Long runs: slides that end their process, full disks, folders that cannot be written, NFS.

Each is done for real; kill -9 a hundred times is ``tests/benchmarks/kills.py``, three times
``tests/system/test_run_kills.py``.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cohort_runs import counts, exporting, failures, run, slides, tree
from made_slides import made_slide
from paths import ROOT, SUPPORT

import slideio_pipe as sp
from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.run import run_cohort
from slideio_pipe.errors import ConfigError, OutputError
from slideio_pipe.export.config import ExportConfig
from slideio_pipe.locks import WriterLock, within_run
from slideio_pipe.slides.config import ViewConfig
from slideio_pipe.store.config import StoreConfig
from slideio_pipe.tiles.config import GridConfig, TissueConfig

RAW = ExportConfig(
    view=ViewConfig(mpp=None),
    tissue=TissueConfig(method="none"),
    grid=GridConfig(tile_size=64),
    store=StoreConfig(pixels="none"),
)
needs_root = pytest.mark.skipif(os.getuid() != 0 or sys.platform != "linux", reason="only root may do this, on Linux")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three slides, and their bags in ``whole`` and ``zstd``."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "slides").mkdir()
    for k in range(3):
        made_slide(folder / "slides" / f"s{k}.svs", size=(1024, 768), seed=k)
    sp.export_cohort(folder / "slides", folder / "whole", RAW, progress=False)
    zstd = RAW.model_copy(update={"store": StoreConfig()})
    sp.export_cohort(folder / "slides", folder / "zstd", zstd, progress=False)
    return folder


def export(study: Path, out: Path, **more: Any) -> sp.RunReport:
    """Export the slides."""
    return sp.export_cohort(study / "slides", out, RAW, progress=False, **more)


def is_whole(study: Path, out: Path) -> bool:
    """Return whether all bags equal those of an undisturbed run, and no other file is beside them."""
    left = [path.name for path in out.glob("*.bag.zarr.*")]
    return tree(out) == tree(study / "whole") and not left


# --- slides that end their process


@pytest.mark.parametrize(
    ("fatal", "limits"),
    [
        # How long 1 GB takes depends on the machine, so only the slide that hangs has a limit of time.
        ({"crash": "was killed by SIGSEGV", "swell": "more than 1 GB"}, {"memory_limit_bytes": 10**9}),
        ({"hang": "took longer than 8 s"}, {"time_limit_s": 8}),
    ],
    ids=["crash and swell", "hang"],
)
def test_slides_that_crash_hang_or_take_all_memory_fail_alone(
    tmp_path: Path, fatal: dict[str, str], limits: dict[str, Any]
) -> None:
    """In the reader: after two attempts they are listed with their stage, and the others are done."""
    from fatal_slides import FatalExport, write_fatal_slide

    whys = {f"{how}.zarr": why for how, why in fatal.items()}
    cohort = Cohort.of([write_fatal_slide(tmp_path / f"{how}.zarr", how) for how in (*fatal, "fine", "good")])
    out = tmp_path / "out"
    report = run_cohort(FatalExport(out, RAW, 1), cohort, out, workers=2, progress=False, **limits)
    assert counts(report) == (2, 0, len(fatal))
    listed = {row["slide"]: row for row in failures(out)}
    for name, why in whys.items():
        assert why in listed[name]["error"]
        assert listed[name]["stage"] in ("tissue", "tiles")  # whichever reads first
        assert "retry" in listed[name]["remedy"]
    events = [json.loads(line) for line in (out / "run.jsonl").read_text().splitlines() if line]
    assert {event["slide"] for event in events if event["event"] == "quarantined"} == set(whys)
    assert sorted(path.name for path in out.glob("*.bag.zarr")) == ["fine.bag.zarr", "good.bag.zarr"]


def test_a_pipe_in_place_of_a_slide_fails_alone(study: Path, tmp_path: Path) -> None:
    """Opening it would wait for ever; it is listed, and the others are done."""
    shutil.copytree(study / "slides", tmp_path / "slides")
    os.mkfifo(tmp_path / "slides" / "pipe.svs")
    cohort = [tmp_path / "slides" / name for name in ("pipe.svs", "s0.svs")]
    report = sp.export_cohort(cohort, tmp_path / "out", RAW, progress=False)
    assert counts(report) == (1, 0, 1)
    assert "it is no file" in failures(tmp_path / "out")[0]["error"]


def test_an_output_whose_worker_ended_before_its_report_is_done(tmp_path: Path) -> None:
    """The second attempt finds it and keeps it."""
    cohort, out = slides(tmp_path, a="1", b="last words"), tmp_path / "out"
    assert counts(run(cohort, out)) == (2, 0, 0)
    assert (out / "b.out").read_text() == "last words"


# --- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB; a bag has 2.4."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)]
    if os.getuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_run_resumes_after_a_full_disk(study: Path, small_disk: Path) -> None:
    """An error without an incomplete bag; with more space, the same bytes."""
    out = small_disk / "out"
    try:
        report = export(study, out)
        reported = str(report.failed[0].error)
    except OutputError as error:
        reported = str(error)
    assert "No space left on device" in reported
    assert "free some space and run again" in reported
    assert tree(out).items() <= tree(study / "whole").items()
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    assert export(study, out).failed == []
    assert is_whole(study, out)


def test_a_run_resumes_after_a_file_size_limit(study: Path, tmp_path: Path) -> None:
    """ulimit -f, which also cuts a line of the ledger."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    options = ["--pixels", "none", "--workers", "1"]
    command, out = exporting(study / "slides", tmp_path / "out"), tmp_path / "out"
    done = subprocess.run([*command, *options], cwd=ROOT, preexec_fn=limit, capture_output=True, text=True)
    assert done.returncode in (1, 2)
    assert "File too large" in done.stdout + done.stderr
    assert "ulimit -f" in done.stdout + done.stderr
    assert tree(out) == {}
    subprocess.run([*command, *options], cwd=ROOT, check=True, capture_output=True)
    assert is_whole(study, out)


@needs_root
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
def test_an_export_writes_only_to_its_output(study: Path, tmp_path: Path) -> None:
    """Home, caches and temporary folders cannot be written to."""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    places = dict.fromkeys(("HOME", "TMPDIR", "MPLCONFIGDIR", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"), str(locked))
    # Root without the right to ignore permissions; all of /tmp but the output is read-only to it.
    command = [
        "setpriv",
        "--bounding-set=-dac_override,-dac_read_search,-fowner",
        *exporting(study / "slides", tmp_path / "out"),
    ]
    probe = subprocess.run(["setpriv", "--bounding-set=-dac_override", "touch", str(locked / "a")], capture_output=True)
    if probe.returncode == 0:
        pytest.skip("permissions do not bind here")
    done = subprocess.run(
        [*command, "--pixels", "none", "--workers", "1"],
        cwd=ROOT,
        env={**os.environ, **places},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert is_whole(study, tmp_path / "out")
    locked.chmod(0o700)
    assert not list(locked.iterdir())


# --- clocks, hosts and network file systems


def test_clocks_of_hosts_may_differ(study: Path, tmp_path: Path) -> None:
    """The age of locks, ledgers and unfinished bags is not used: a run killed on one host resumes on another."""
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*exporting(study / "slides", out), "--pixels", "none", "--workers", "1"],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not list(out.glob("*.partial")) and process.poll() is None:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    decade = 10 * 365 * 86400
    for path, years in zip([out, *sorted(out.rglob("*"))], itertools.cycle((decade, -decade)), strict=False):
        os.utime(path, (time.time() + years,) * 2)
    assert export(study, out).failed == []
    assert is_whole(study, out)


def locked_elsewhere(out: Path, **more: object) -> Path:
    """Leave the lock of a bag as a process of another host would."""
    out.mkdir()
    lock = out / "s0.bag.zarr.lock"
    lock.write_text(json.dumps({"pid": 4711, "host": "another-host", **more}))
    return lock


def test_a_lock_of_a_lost_worker_is_taken_over(study: Path, tmp_path: Path) -> None:
    """The run of another host that left it is over: this run has the folder's lock."""
    locked_elsewhere(tmp_path / "out", run=str(tmp_path / "out"))
    assert export(study, tmp_path / "out").failed == []
    assert is_whole(study, tmp_path / "out")


def test_bags_killed_before_their_lock_was_removed_are_done(study: Path, tmp_path: Path) -> None:
    """They have their names but no ledger entry; the locks are removed."""
    out = tmp_path / "out"
    export(study, out)
    events = (out / "run.jsonl").read_text().splitlines(keepends=True)
    (out / "run.jsonl").write_text("".join(line for line in events if '"done"' not in line))
    for number, left in (("0", ""), ("1", json.dumps({"pid": 4711, "host": "another-host", "run": str(out)}))):
        (out / f"s{number}.bag.zarr.lock").write_text(left)
    assert counts(export(study, out)) == (0, 3, 0)
    assert is_whole(study, out)


def test_a_lock_of_another_host_is_respected(study: Path, tmp_path: Path) -> None:
    """If no run took it; the error says how to remove it, also for a single export."""
    lock = locked_elsewhere(tmp_path / "out")
    report = export(study, tmp_path / "out")
    assert counts(report) == (2, 0, 1)
    assert f"process 4711 on another-host; wait for it; if it no longer runs, remove {lock}" in str(
        report.failed[0].error
    )
    lock.write_text(json.dumps({"pid": 4711, "host": "another-host", "run": str(tmp_path / "other")}))
    assert len(export(study, tmp_path / "out").failed) == 1
    lock.write_text(json.dumps({"pid": 4711, "host": "another-host", "run": str(tmp_path / "out")}))
    with pytest.raises(OutputError, match="another-host"):
        WriterLock(lock).acquire()


def test_the_worker_of_a_killed_run_is_waited_for(tmp_path: Path) -> None:
    """It ends soon; one that does not cannot remove the lock of its successor."""
    code = (
        "import sys, time; from pathlib import Path; from slideio_pipe.locks import WriterLock, within_run\n"
        "with within_run(Path('a')): WriterLock(Path(sys.argv[1])).acquire()\n"
        "print('locked', flush=True); time.sleep(1.5)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.lock")]
    orphan = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert orphan.stdout is not None
    assert orphan.stdout.readline() == "locked\n"
    with within_run(Path("a")):
        ours = WriterLock(tmp_path / "a.lock")
        ours.acquire()
    orphan.communicate()
    (tmp_path / "a.lock").write_text(json.dumps({"pid": 1, "host": "another-host", "run": "a"}))
    ours.release()
    assert (tmp_path / "a.lock").exists()


@pytest.fixture(scope="module")
def nfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that makes renames and removals behave as on NFS."""
    if sys.platform != "linux" or shutil.which("gcc") is None:
        pytest.skip("needs gcc, on Linux")
    library = tmp_path_factory.mktemp("nfs") / "renames.so"
    source = str(SUPPORT / "renames.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), source, "-ldl"], check=True)
    return library


def overwriting(out: Path, nfs: Path, study: Path, *more: str, **how: str) -> subprocess.CompletedProcess[str]:
    """Replace every existing bag, on such a file system."""
    command = [*exporting(study / "slides", out), "--workers", "1", "--overwrite", *more]
    environment = {**os.environ, "LD_PRELOAD": str(nfs), **how}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_renames_that_are_wrongly_reported_as_failed_are_no_error(nfs: Path, study: Path, tmp_path: Path) -> None:
    """All of them: no bag is lost, and none fails."""
    out = tmp_path / "out"
    shutil.copytree(study / "whole", out)
    done = overwriting(out, nfs, study, LIES="1")
    assert "3 slides: 3 exported" in done.stdout, done.stdout + done.stderr
    assert tree(out) == tree(study / "zstd")


def test_files_that_cannot_be_removed_while_open_are_removed_later(nfs: Path, study: Path, tmp_path: Path) -> None:
    """They are left beside the new bag until a later run."""
    out = tmp_path / "out"
    shutil.copytree(study / "whole", out)
    for pixels in ("zstd", "none"):
        done = overwriting(out, nfs, study, "--pixels", pixels, KEPT="0")
        assert "3 slides: 3 exported" in done.stdout, done.stdout + done.stderr
    assert any(path.name.startswith(".nfs") for path in out.rglob("*"))
    assert overwriting(out, nfs, study).returncode == 0
    assert tree(out) == tree(study / "zstd")
    assert not list(out.glob("*.replaced*"))


# --- a hostile manifest


def everything(folder: Path) -> dict[str, object]:
    """Return the content of a folder, links not followed."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
    }


HOSTILE = {
    "a path that leaves the root": "../secret.svs,a",
    "an absolute path": "/etc/passwd,a",
    "a link that leaves the root": "link.svs,a",
    "a name above": "s0.svs,../a",
    "a name far above": "s0.svs,../../../../../../../../tmp/a",
    "an absolute name": "s0.svs,/tmp/a",
    "a name of another system": "s0.svs,..\\a",
    "a hidden name": "s0.svs,.a",
    "the ledger's own name": "s0.svs,run.jsonl/a",
    "a zero byte in a name": "s0.svs,a\0b",
    "a zero byte in a path": "s0\0.svs,a",
    "a name longer than a file's": f"s0.svs,{'n' * 300}",
    "a path longer than a file's": f"{'n' * 300}.svs,a",
}


@pytest.mark.parametrize("row", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_malicious_manifest_is_refused(study: Path, tmp_path: Path, row: str) -> None:
    """With one of our errors; nothing is written elsewhere."""
    root = tmp_path / "root"
    root.mkdir()
    for name in ("secret.svs", "root/s0.svs"):
        shutil.copy(study / "slides" / "s0.svs", tmp_path / name)
    (root / "link.svs").symlink_to(tmp_path / "secret.svs")
    (root / "cohort.csv").write_text(f"slide,name\n{row}\n")
    before = everything(tmp_path)
    with pytest.raises(ConfigError):
        sp.export_cohort(Cohort.of(root / "cohort.csv", root=root), root / "out", RAW, progress=False)
    assert everything(tmp_path) == before


def test_cells_that_a_spreadsheet_would_evaluate_are_escaped(tmp_path: Path) -> None:
    """In lists of failures, for any valid file name."""
    names = ['=HYPERLINK("http://a.b","x").svs', "@SUM(A1).svs", "-1+1.svs", "+a,b.svs", "a\nb.svs"]
    for name in names:
        (tmp_path / name.replace("/", "_")).write_text("no slide")
    cohort = Cohort([CohortSlide(tmp_path / n.replace("/", "_"), n.replace("/", "_")) for n in names])
    report = sp.export_cohort(cohort, tmp_path / "out", RAW, progress=False)
    assert len(report.failed) == len(names)
    with (tmp_path / "out" / "failures.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert len(rows) == len(names) + 1
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
