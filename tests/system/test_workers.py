"""A worker that ends, hangs or takes too much memory fails its task; the others are done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT, SEARCHED
from pool_tasks import unimportable, work

from slideio_pipe.cohort.workers import process
from slideio_pipe.cohort.workers.pool import Outcome, WorkerPool
from slideio_pipe.cohort.workers.process import Limits
from slideio_pipe.errors import ConfigError, CorruptSlideError, SlideioPipeError, WorkerError


def done(tasks: list[tuple[Any, ...]], workers: int = 1, **limits: Any) -> dict[str, Outcome]:
    """Return the outcomes of the tasks by their kind."""
    return {outcome.task[0]: outcome for outcome in WorkerPool(work, workers, **limits).outcomes(tasks)}


def test_a_task_that_fails_or_crashes_does_not_stop_the_others(tmp_path: Path) -> None:
    """Our errors are returned complete, others as text; a crash is retried once in another process."""
    tasks = [("die",), ("die once", str(tmp_path / "mark")), ("ours",), ("theirs",), ("warn",), ("fine",)]
    found = done(tasks, workers=2)
    assert set(found) == {task[0] for task in tasks}
    assert found["fine"].error is None
    assert found["die once"].error is None
    died = found["die"]
    assert isinstance(died.error, WorkerError)
    assert died.quarantined
    assert "SIGSEGV" in died.error.reason
    assert died.stage == "begin"
    assert type(found["ours"].error) is CorruptSlideError
    assert found["ours"].error.remedy == "copy it again"
    assert type(found["theirs"].error) is SlideioPipeError
    assert found["theirs"].error.reason == "KeyError: 'odd'"
    assert not any(found[name].quarantined for name in ("ours", "theirs", "die once"))
    assert found["warn"].warnings == ("beware",)


def test_a_task_that_hangs_fails() -> None:
    """At the time limit, after two attempts."""
    found = done([("hang",), ("fine",)], time_limit_s=0.3)
    assert found["fine"].error is None
    assert found["hang"].quarantined
    assert "longer than 0.3 s" in str(found["hang"].error)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is watched on Linux")
def test_a_task_that_takes_too_much_memory_fails() -> None:
    """At the memory limit."""
    found = done([("swell",), ("fine",)], memory_limit_bytes=700_000_000)
    assert found["fine"].error is None
    assert "more than 0.7 GB" in str(found["swell"].error)


def test_tasks_are_taken_when_a_worker_is_free() -> None:
    """Of any number, only running ones have been taken."""
    taken = 0

    def tasks() -> Any:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield ("fine",)

    outcomes = WorkerPool(work, 2).outcomes(tasks())
    next(outcomes)
    assert taken <= 4
    outcomes.close()  # type: ignore[attr-defined]


def test_a_worker_does_many_tasks() -> None:
    """To start a process takes seconds."""
    outcomes = WorkerPool(work, 1).outcomes([("fine",)] * 20)
    assert len({outcome.value for outcome in outcomes}) == 1


def test_a_task_that_cannot_be_imported_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A function in no module; it is not retried."""
    monkeypatch.setattr(unimportable, "__qualname__", "unimportable_there")
    monkeypatch.setattr(unimportable, "__name__", "unimportable_there")
    monkeypatch.setattr(sys.modules[unimportable.__module__], "unimportable_there", unimportable, raising=False)
    with pytest.raises(WorkerError, match="do not start"):
        list(WorkerPool(unimportable, 1).outcomes([1, 2, 3]))
    capfd.readouterr()


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """Kill -9 of the run leaves no process that continues to write."""
    code = (
        "from pool_tasks import work\n"
        "from slideio_pipe.cohort.workers.pool import WorkerPool\n"
        "if __name__ == '__main__':\n"
        "    outcomes = WorkerPool(work, 1).outcomes([('fine',), ('hang',)])\n"
        "    print(next(outcomes).value, flush=True)\n"
        "    next(outcomes)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    run = subprocess.Popen(
        [sys.executable, str(script)], cwd=ROOT, env={**os.environ, "PYTHONPATH": SEARCHED}, stdout=subprocess.PIPE
    )
    assert run.stdout is not None
    pid = int(run.stdout.readline())
    run.kill()
    run.wait()
    run.stdout.close()
    for _ in range(200):
        try:
            if "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return
        except FileNotFoundError:
            return
        time.sleep(0.05)
    pytest.fail("the worker lives on")


def script(folder: Path, body: str) -> subprocess.Popen[str]:
    """Start a program in its own session, so that its workers are the first processes it starts."""
    file = folder / "script.py"
    head = (
        "from pool_tasks import work\n"
        "from slideio_pipe.cohort.workers.pool import WorkerPool\n"
        "if __name__ == '__main__':\n"
    )
    file.write_text(head + "".join(f"    {line}\n" for line in body.splitlines()))
    return subprocess.Popen(
        [sys.executable, str(file)], cwd=ROOT, env={**os.environ, "PYTHONPATH": SEARCHED}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("start", ["spawned", "program"])
def test_workers_ignore_ctrl_c(start: str, tmp_path: Path) -> None:
    """For every way to start them, also the first one of a program: the parent ends them."""
    body = (
        "import pickle\n"
        "from slideio_pipe.cohort.workers.process import Worker, program, spawned\n"
        f"worker = Worker(lambda: spawned(work) if {start!r} == 'spawned' else program(pickle.dumps(work)))\n"
        "worker.begin(('interrupt',))\n"
        "while (ended := worker.receive()) is None: pass\n"
        "print(ended.value == worker.process.pid)\n"
        "worker.dismiss()"
    )
    if start == "program":  # it does not import the script
        body = "import pool_tasks; work = pool_tasks.work\n" + body
    output, err = script(tmp_path, body).communicate(timeout=120)
    assert (output, err) == ("True\n", "")


def test_ctrl_c_ends_running_workers_without_output(tmp_path: Path) -> None:
    """A terminal sends it to the whole group: only the program's own output is seen."""
    body = (
        "try:\n"
        "    next(WorkerPool(work, 2).outcomes([('say and hang',)] * 2))\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')"
    )
    running = script(tmp_path, body)
    assert running.stdout is not None
    assert [running.stdout.readline() for _ in range(2)] == ["begun\n"] * 2
    os.killpg(running.pid, signal.SIGINT)
    assert running.communicate(timeout=60) == ("interrupted\n", "")
    assert running.returncode == 0


@pytest.mark.parametrize("limits", [{"workers": 0}, {"workers": 1, "time_limit_s": 0.0}])
def test_invalid_limits_are_refused(limits: Any) -> None:
    """At once."""
    with pytest.raises(ConfigError):
        WorkerPool(work, **limits)


def test_a_memory_limit_that_cannot_be_kept_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """macOS and Windows have no /proc: the limit would have no effect."""
    monkeypatch.setattr(process, "_PROC", tmp_path)
    with pytest.raises(ConfigError, match="/proc"):
        Limits(memory_bytes=10**9)
    assert Limits(time_s=1.0).memory_bytes is None
