"""Tasks for workers that end well, with an error, or not at all."""

from __future__ import annotations

import os
import signal
import time
import warnings
from pathlib import Path
from typing import Any

from slideio_pipe.errors import CorruptSlideError


def work(task: Any, on_stage: Any) -> Any:
    """Run the task."""
    on_stage("begin")
    kind, *more = task
    if kind == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif kind == "die once":
        mark = Path(more[0])
        if not mark.exists():
            mark.touch()
            os._exit(3)
    elif kind == "hang":
        time.sleep(600)
    elif kind == "swell":
        hoard = bytearray(1_000_000_000)
        hoard[::4096] = b"x" * len(hoard[::4096])
        time.sleep(600)
    elif kind == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)  # a handler in Python runs now
    elif kind == "say and hang":
        print("begun", flush=True)
        time.sleep(600)
    elif kind == "ours":
        raise CorruptSlideError("damaged", slide="a.svs", remedy="copy it again")
    elif kind == "theirs":
        raise KeyError("odd")
    elif kind == "warn":
        warnings.warn("beware", UserWarning, stacklevel=1)
    return os.getpid()


def unimportable(task: Any, on_stage: Any) -> None:
    """Be replaced by an object that no worker can import."""
