"""The readers of the benchmark, each in its own process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slideio_pipe.commands.bench.memory import importing_this_package
from slideio_pipe.errors import ConfigError
from slideio_pipe.files import Closable

WORKER = Path(__file__).with_name("worker.py")
OURS, BARE = "slideio_pipe", "simplejpeg"
# Longer than any job: a reader that hangs is killed.
JOB_LIMIT_S = 900.0


@dataclass(frozen=True)
class Peer:
    """A reader, and its install command."""

    name: str
    what: str
    pip: str


PEERS = {
    peer.name: peer
    for peer in (
        Peer(OURS, "TileBag.read", "slideio-pipe"),
        Peer(BARE, "a minimal loop: pread, simplejpeg", "simplejpeg tifffile"),
        Peer("openslide", "openslide-python, Pillow", "openslide-python openslide-bin"),
        Peer("cucim", "cuCIM on the CPU", "cucim-cu12 click lazy_loader opencv-python-headless"),
        Peer("fastslide", "fastslide", "fastslide opencv-python-headless"),
        Peer("tiffslide", "tiffslide", "tiffslide opencv-python-headless"),
        Peer("microtome", "microtome-wsi (Rust), whole stored tiles", "microtome-wsi"),
        Peer("pyvips", "pyvips Region.fetch", "pyvips pyvips-binary opencv-python-headless"),
    )
}


class Worker(Closable):
    """A reader in its own process, with one job at a time; a context manager that ends the process.

    A missing, dying or hanging reader is a result, not an error: ``ask`` returns ``{"error": …}``.

    Parameters
    ----------
    peer : Peer
    python : path
        The interpreter with the reader installed; ours always runs in this one.
    """

    def __init__(self, peer: Peer, python: str | os.PathLike[str]) -> None:
        self.peer = peer
        # Exactly one thread: by default libvips uses one per core.
        environment = dict(os.environ)
        command = [os.fspath(python), str(WORKER), peer.name]
        if peer.name == OURS:
            command[0] = sys.executable
            environment = importing_this_package()
        environment |= {"VIPS_CONCURRENCY": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - kept with the process: its last line is the cause
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=environment,
                text=True,
                encoding="utf-8",
            )
        except OSError as error:
            self._stderr.close()
            raise ConfigError(
                f"cannot be run ({error.strerror})",
                slide=os.fspath(python),
                remedy="pass {python=…} the Python that has the readers installed",
            ) from error
        self.greeting = self._answer()

    @property
    def missing(self) -> str:
        """Why the reader cannot be used; "" if it can."""
        return str(self.greeting.get("missing") or self.greeting.get("error") or "")

    @property
    def version(self) -> str:
        """Version of the reader, "" if unknown."""
        return str(self.greeting.get("version", ""))

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        """Return the worker's answer to a job."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        except OSError:  # it ended; the answer has the cause
            pass
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        watch = threading.Timer(JOB_LIMIT_S, self._process.kill)
        watch.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watch.cancel()
        if not line:
            return {"error": self._cause_of_death()}
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:  # not a Python that can run the worker
            return {"error": f"answered {line.strip()[:80]!r}"}
        return answer

    def _cause_of_death(self) -> str:
        code = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", "replace").strip().splitlines()
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"{how}: {lines[-1].strip()}" if lines else how

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # an unread job
                    pipe.close()
        self._stderr.close()
