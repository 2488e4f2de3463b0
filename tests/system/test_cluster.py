"""A run on Dask behaves as a local one, with real schedulers and workers, which are really killed."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_slides import made_slide
from paths import CONFIGS, SEARCHED

pytest.importorskip("distributed", reason="the extra [cluster] is not installed")

from cluster_tasks import pool, work
from cohort_runs import tree
from command_line import run as command

import slideio_pipe as sp
from slideio_pipe.cohort.workers.config import load_cluster_config
from slideio_pipe.cohort.workers.dask_pool import pool_for
from slideio_pipe.cohort.workers.pool import Outcome, WorkerPool
from slideio_pipe.errors import ClusterWarning, ConfigError, CorruptSlideError, MissingExtraError, WorkerError

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": SEARCHED,
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
}


class Dask:
    """A scheduler and its workers, as programs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._programs: list[subprocess.Popen[bytes]] = []
        # The address is read from the file.
        self.scheduler = self.start("scheduler", "--port", "0", "--dashboard-address", ":0")
        facts = folder / "scheduler.json"
        until(facts.exists)
        self.address = str(json.loads(facts.read_text())["address"])

    def start(self, *arguments: str, before: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """Start a program of Dask's."""
        place = ("--scheduler-file", str(self.folder / "scheduler.json"))
        program = subprocess.Popen(
            [*before, sys.executable, "-m", "distributed.cli.dask_" + arguments[0], *arguments[1:], *place],
            cwd=self.folder,
            env=ENVIRONMENT,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._programs.append(program)
        return program

    def worker(self, *arguments: str, before: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """Start a worker."""
        place = ("--local-directory", str(self.folder), "--no-dashboard")
        return self.start("worker", *place, *arguments, before=before)

    def close(self) -> None:
        """End all programs."""
        for program in self._programs:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            program.wait()


def until(holds: Any, seconds: float = 30.0) -> None:
    """Wait for a condition that other processes fulfil."""
    for _ in range(round(seconds / 0.05)):
        if holds():
            return
        time.sleep(0.05)
    pytest.fail("waited in vain")


def is_gone(pid: int) -> bool:
    """Return whether a process has ended."""
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dask]:
    """A scheduler with two workers, one of two threads."""
    started = Dask(tmp_path_factory.mktemp("dask"))
    started.worker("--nthreads", "1")
    started.worker("--nthreads", "2")
    yield started
    started.close()


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three small slides."""
    folder = tmp_path_factory.mktemp("slides")
    for k in range(3):
        made_slide(folder / f"s{k}.svs", size=(1024, 768), seed=k)
    return folder


def by_kind(outcomes: Iterator[Outcome]) -> dict[str, Outcome]:
    """Return the outcomes of the tasks by their kind."""
    return {outcome.task[0]: outcome for outcome in outcomes}


def test_a_task_that_fails_or_crashes_does_not_stop_the_others(dask: Dask, tmp_path: Path) -> None:
    """Errors are returned complete; crashes and limits end the task's process, not Dask's worker."""
    tasks = [("die",), ("ours",), ("hang", str(tmp_path / "pid")), ("swell",), ("fine",)]
    found = by_kind(pool(dask.address, tmp_path / "out", time_s=3.0, memory_bytes=300_000_000).outcomes(tasks))
    assert set(found) == {task[0] for task in tasks}
    assert found["fine"].error is None
    assert found["fine"].stage == "begin"
    assert type(found["ours"].error) is CorruptSlideError
    assert not found["ours"].quarantined
    for kind, why in (("die", "SIGSEGV"), ("hang", "longer than 3 s"), ("swell", "more than 0.3 GB")):
        assert found[kind].quarantined
        assert why in str(found[kind].error)
        assert found[kind].stage == "begin"


def test_a_task_that_kills_dask_workers_is_retried_once(dask: Dask, tmp_path: Path) -> None:
    """If it kills a second one it has failed, and the others are done."""
    mark = str(tmp_path / "mark")  # the second waits for the first, which would otherwise lose an attempt because of it
    tasks = [("kill its worker once", mark), ("kill its worker", mark), *[("fine", str(n)) for n in range(20)]]
    found = list(pool(dask.address, tmp_path / "out").outcomes(tasks))
    assert len(found) == 22
    first = next(outcome for outcome in found if outcome.task[0] == "kill its worker once")
    assert (first.error, first.attempts) == (None, 2)
    fatal = next(outcome for outcome in found if outcome.task[0] == "kill its worker")
    assert fatal.quarantined
    assert "was lost, twice" in str(fatal.error)
    assert all(outcome.error is None for outcome in found if outcome is not fatal)


def test_no_more_tasks_are_taken_than_threads(dask: Dask, tmp_path: Path) -> None:
    """Of any number; Ctrl-C ends running ones at once."""
    taken = 0

    def tasks() -> Iterator[tuple[str, ...]]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield ("hang", str(tmp_path / f"pid{number}"))

    def interrupt() -> None:
        until(lambda: len(pids()) == 3)
        os.kill(os.getpid(), signal.SIGINT)

    def pids() -> list[int]:
        return [int(text) for path in tmp_path.glob("pid*") if (text := path.read_text())]

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        list(pool(dask.address, tmp_path / "out").outcomes(tasks()))
    assert taken == 3
    assert all(is_gone(pid) for pid in pids())
    thread.join()


def test_a_killed_run_leaves_no_running_task(dask: Dask, tmp_path: Path) -> None:
    """Dask releases its tasks and kills their processes, which would hold locks of bags."""
    code = (
        "from pathlib import Path\n"
        "from cluster_tasks import pool\n"
        f"tasks = [('hang', {str(tmp_path / 'pid')!r})]\n"
        f"list(pool({dask.address!r}, Path({str(tmp_path / 'out')!r})).outcomes(tasks))\n"
    )
    client = subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT, start_new_session=True)
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    pid = int((tmp_path / "pid").read_text())
    os.killpg(client.pid, signal.SIGKILL)
    client.wait()
    until(lambda: is_gone(pid), 10)


def test_bags_equal_those_of_a_local_run(dask: Dask, slides: Path, tmp_path: Path) -> None:
    """Byte by byte; a second run keeps them; failures are listed with their stage."""
    shutil.copytree(slides, tmp_path / "slides")
    (tmp_path / "slides" / "broken.svs").write_bytes(b"II*\0no slide")
    here = sp.export_cohort(tmp_path / "slides", tmp_path / "here", progress=False)
    there = sp.export_cohort(tmp_path / "slides", tmp_path / "there", cluster=dask.address, progress=False)
    assert (here.done, len(here.failed)) == (there.done, len(there.failed)) == (3, 1)
    assert tree(tmp_path / "here") == tree(tmp_path / "there") != {}
    assert [str(failure) for failure in here.failed] == [str(failure) for failure in there.failed]
    again = sp.export_cohort(tmp_path / "slides", tmp_path / "there", cluster=dask.address, progress=False)
    assert (again.done, again.kept, len(again.failed)) == (0, 3, 1)
    noted = json.loads((tmp_path / "there" / "run.json").read_text())
    assert noted["cluster"] == dask.address


def test_a_run_ends_if_the_scheduler_ends(slides: Path, tmp_path: Path) -> None:
    """With one sentence; running tasks are killed."""
    lost = Dask(tmp_path)
    try:
        worker = lost.worker("--nthreads", "1", "--no-nanny")
        outcomes = pool(lost.address, tmp_path / "out").outcomes([("fine",), ("hang", str(tmp_path / "pid"))])
        next(outcomes)
        os.killpg(lost.scheduler.pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match="the Dask scheduler was lost") as refused:
            next(outcomes)
        assert "run again" in str(refused.value)
        if (tmp_path / "pid").exists():
            until(lambda: is_gone(int((tmp_path / "pid").read_text())))
        del worker
    finally:
        lost.close()


def test_unusable_workers_are_an_error(tmp_path: Path) -> None:
    """None at all, another version, another disk: one sentence each."""
    other = Dask(tmp_path)
    try:
        empty = pool(other.address, tmp_path / "out")
        empty.cluster.wait_s = 0.5
        with pytest.raises(WorkerError, match=r"no workers for 0.5 s; start workers"):
            list(empty.outcomes([("fine",)]))
        (tmp_path / "older.py").write_text("import slideio_pipe\nslideio_pipe.__version__ = '0.0.1'\n")
        other.worker("--nthreads", "1", "--no-nanny", "--preload", str(tmp_path / "older.py"))
        with pytest.raises(WorkerError, match=r"slideio_pipe 0\.0\.1 instead of"):
            list(pool(other.address, tmp_path / "out").outcomes([("fine",)]))
        other.worker("--nthreads", "1", "--no-nanny")
        until(lambda: _workers(other.address) == 2)
        with pytest.warns(ClusterWarning, match=r"is not used: it has slideio_pipe 0\.0\.1"):
            assert by_kind(pool(other.address, tmp_path / "out").outcomes([("fine",)]))["fine"].error is None
    finally:
        other.close()


def _workers(address: str) -> int:
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        return len(client.nthreads())


@pytest.mark.skipif(shutil.which("unshare") is None or os.getuid() != 0, reason="only root may mount")
def test_a_worker_with_another_disk_is_not_used(tmp_path: Path) -> None:
    """Its outputs would be lost."""
    other, out = Dask(tmp_path), tmp_path / "out"
    try:
        out.mkdir()
        hidden = f'mount -t tmpfs none {out} && exec "$@"'
        other.worker("--nthreads", "1", "--no-nanny", before=("unshare", "-m", "sh", "-c", hidden, "sh"))
        with pytest.raises(WorkerError, match=r"out cannot be seen on .*; check that all workers"):
            list(pool(other.address, out).outcomes([("fine",)]))
    finally:
        other.close()


def test_a_missing_scheduler_is_an_error(slides: Path, tmp_path: Path) -> None:
    """One sentence, on the command line, too."""
    reported = command("export", slides, "--out", tmp_path / "out", "--cluster", "tcp://127.0.0.1:9", code=2).stderr
    assert "no Dask scheduler answers at tcp://127.0.0.1:9; check the address" in " ".join(reported.split())
    assert not (tmp_path / "out" / "run.lock").exists()


def test_an_invalid_cluster_is_refused(slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything starts; without Dask the sentence has the install command."""
    with pytest.raises(ConfigError, match=r"slurmy: no file and no preset has this name; did you mean \"slurm\""):
        pool_for("slurmy", work, folder=tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        pool_for("nowhere.yaml", work, folder=tmp_path)
    assert isinstance(pool_for(None, work, folder=tmp_path), WorkerPool)
    refused = command("export", slides, "--out", tmp_path, "--cluster", "tcp://a:1", "--workers", 2, code=2).stderr
    assert "--workers and --cluster" in refused
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtraError, match=r"slideio-pipe\[cluster\]"):
        pool_for("tcp://127.0.0.1:9", work, folder=tmp_path)


# --- SLURM

# They replace SLURM on this machine: run the script, end it.
SBATCH = """#!/bin/sh
grep -q refused "$1" && { echo "sbatch: error: Batch job submission failed: Invalid account" >&2; exit 1; }
cp "$1" "$JOBS/script.$$"
setsid sh "$JOBS/script.$$" > "$JOBS/$$.log" 2>&1 &
echo $! >> "$JOBS/submitted"
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/sh
for job in "$@"; do kill -KILL -- "-$job"; echo "$job" >> "$JOBS/cancelled"; done
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which programs in place of SLURM's record submitted and cancelled jobs."""
    if (
        importlib.util.find_spec("dask_jobqueue") is None
    ):  # not imported: it would replace the process's handler of Ctrl-C
        pytest.skip("the extra [cluster] is not installed")
    programs, jobs = tmp_path / "bin", tmp_path / "jobs"
    programs.mkdir()
    jobs.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("JOBS", str(jobs))
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    yield jobs
    for line in (jobs / "submitted").read_text().split() if (jobs / "submitted").exists() else []:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(line), signal.SIGKILL)


def cluster_file(tmp_path: Path, **more: Any) -> Path:
    """Write the configuration of a SLURM cluster."""
    config = {
        "jobs": 2,
        "cores": 1,
        "memory": "2GB",
        "interface": "lo",
        "local_directory": str(tmp_path),
        "wait_s": 60,
        **more,
    }
    path = tmp_path / "slurm.yaml"
    path.write_text(json.dumps(config))
    return path


def test_the_example_for_slurm_loads() -> None:
    """With the values of the file."""
    config = load_cluster_config(CONFIGS / "slurm.yaml")
    assert (config.jobs, config.cores, config.memory) == (8, 8, "32GB")


def test_the_job_has_the_settings_of_the_file(slurm: Path, tmp_path: Path) -> None:
    """Directives, limits, lines before the worker, and one Dask worker with a thread per core."""
    from slideio_pipe.cohort.workers.slurm import SlurmJobs

    more = {"queue": "cpu", "account": "lab", "walltime": "02:00:00", "cores": 4, "memory": "8GB"}
    lines = {"job_extra_directives": ["--constraint=ssd"], "job_script_prologue": ["module load python"]}
    config = load_cluster_config(
        cluster_file(tmp_path, **more, **lines, options={"worker_extra_args": ["--lifetime", "1h"]})
    )
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # which dask-jobqueue would replace
    script = SlurmJobs(config, "slurm.yaml").job_script()
    for line in ("-p cpu", "-A lab", "-t 02:00:00", "--cpus-per-task=4", "--mem=8G", "--constraint=ssd"):
        assert f"#SBATCH {line}\n" in script
    assert "module load python\n" in script
    assert "--nthreads 4 " in script
    assert "--lifetime 1h" in script
    assert not list(slurm.iterdir())


def test_an_export_on_slurm_submits_and_cancels_jobs(slurm: Path, slides: Path, tmp_path: Path) -> None:
    """The jobs export all slides."""
    report = sp.export_cohort(slides, tmp_path / "out", cluster=cluster_file(tmp_path), progress=False)
    assert (report.done, len(report.failed)) == (3, 0)
    sp.export_cohort(slides, tmp_path / "here", progress=False)
    assert tree(tmp_path / "here") == tree(tmp_path / "out")
    submitted = (slurm / "submitted").read_text().split()
    assert len(submitted) == 2
    assert sorted((slurm / "cancelled").read_text().split()) == sorted(submitted)


def slurm_answers() -> bool:
    """Return whether a SLURM cluster is running here."""
    return shutil.which("sinfo") is not None and subprocess.run(["sinfo"], capture_output=True).returncode == 0


@pytest.mark.skipif(not slurm_answers(), reason="no SLURM answers here")
def test_an_export_on_a_real_slurm(slides: Path, tmp_path: Path) -> None:
    """One with a node here, as Debian's slurmctld, slurmd and munge make it; a job is cancelled under way."""

    def cancel() -> None:
        until(lambda: subprocess.check_output(["squeue", "-h", "-t", "R", "-o", "%i"]).split())
        job = subprocess.check_output(["squeue", "-h", "-t", "R", "-o", "%i"], text=True).split()[0]
        subprocess.check_call(["scancel", job])

    config = cluster_file(tmp_path, log_directory=str(tmp_path / "logs"))
    canceller = threading.Thread(target=cancel)
    canceller.start()
    report = sp.export_cohort(slides, tmp_path / "out", cluster=config, progress=False)
    canceller.join()
    assert (report.done, len(report.failed)) == (3, 0)
    sp.export_cohort(slides, tmp_path / "here", progress=False)
    assert tree(tmp_path / "here") == tree(tmp_path / "out")


# dask-jobqueue leaves a cluster, never started, if it gets unknown arguments.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_reason_of_sbatch_is_in_the_error(
    slurm: Path, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if sbatch is missing; unknown keys are named."""
    with pytest.raises(WorkerError, match=r"SLURM refuses the jobs \(.*Invalid account"):
        sp.export_cohort(slides, tmp_path / "out", cluster=cluster_file(tmp_path, account="refused"), progress=False)
    with pytest.raises(ConfigError, match='unknown key "nodes"'):
        sp.export_cohort(slides, tmp_path / "out", cluster=cluster_file(tmp_path, nodes=3), progress=False)
    with pytest.raises(ConfigError, match="wall_time"):
        sp.export_cohort(
            slides, tmp_path / "out", cluster=cluster_file(tmp_path, options={"wall_time": 1}), progress=False
        )
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WorkerError, match="there is no sbatch here"):
        sp.export_cohort(slides, tmp_path / "out", cluster=cluster_file(tmp_path), progress=False)


def test_slurm_in_a_thread_needs_dask_jobqueue_imported(tmp_path: Path) -> None:
    """It sets a signal handler at import; afterwards, any thread may use it."""
    program = f"""
import importlib, sys, threading
from concurrent.futures import ThreadPoolExecutor
from slideio_pipe.cohort.workers.dask_pool import access
from slideio_pipe.errors import ConfigError
with ThreadPoolExecutor(1) as threads:
    print(threads.submit(access, {str(CONFIGS / "slurm.yaml")!r}).exception())
    importlib.import_module("slideio_pipe.cohort.workers.slurm")
    print(type(threads.submit(access, {str(CONFIGS / "slurm.yaml")!r}).result()).__name__)
"""
    output = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    first, second = output.stdout.splitlines()
    assert "cannot be imported; import slideio_pipe.cohort.workers.slurm in the main thread" in first
    assert second == "SlurmJobs"
