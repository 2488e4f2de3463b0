"""Tasks for workers of a Dask cluster in tests; a module of its own, which imports little."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from slideio_pipe.cohort.workers.dask_pool import DaskPool, access
from slideio_pipe.cohort.workers.process import Limits
from slideio_pipe.errors import CorruptSlideError


def work(task: Any, on_stage: Any) -> Any:
    """Run the task, in a process whose parent is the Dask worker."""
    on_stage("begin")
    kind, *more = task
    mark = Path(more[0]) if more else None
    if kind == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif kind == "kill its worker" and mark is not None:
        while not mark.exists():
            time.sleep(0.01)
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    elif kind == "kill its worker once" and mark is not None and not mark.exists():
        mark.touch()
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    elif kind == "hang" and mark is not None:
        mark.write_text(str(os.getpid()))
        time.sleep(600)
    elif kind == "swell":
        hoard = bytearray(500_000_000)
        hoard[::4096] = b"x" * len(hoard[::4096])
        time.sleep(600)
    elif kind == "ours":
        raise CorruptSlideError("damaged", slide="a.svs", remedy="copy it again")
    return os.getppid()


def pool(address: str, folder: Path, **limits: Any) -> DaskPool:
    """Return a pool for a folder that a run has locked."""
    folder.mkdir(exist_ok=True)
    (folder / "run.lock").write_text(str(folder))
    return DaskPool(work, access(address), folder, Limits(**limits))
