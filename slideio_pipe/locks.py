"""Locks for one writer at a time, which end with their process, also on file systems without locks."""

from __future__ import annotations

import errno
import importlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from slideio_pipe.errors import OutputError, SlideioPipeError


def _module_of_platform(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


# Linux and macOS have fcntl, Windows has msvcrt; without either, the process id decides.
_FCNTL, _MSVCRT = _module_of_platform("fcntl"), _module_of_platform("msvcrt")
# Windows locks a range of bytes against reading, too: this one is far behind the content of the file.
_LOCKED_BYTE = 1 << 30
# flock is missing on some network file systems (Lustre mounted without it); then the process id decides, too.
NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}
# How long a run waits for the lock of another run: workers of a killed run take a moment to end.
_ORPHANS_S = 10.0
_RUN: ContextVar[str | None] = ContextVar("run", default=None)


@contextmanager
def within_run(folder: Path) -> Iterator[None]:
    """Mark locks as taken by runs of a folder, and take over the locks that lost workers of these runs left.

    For workers of the run that holds the ``run.lock`` of the folder: no other run can work there, so such a lock was
    left by a lost worker, on any host. Elsewhere, a lock of another host is respected.
    """
    token = _RUN.set(str(folder))
    try:
        yield
    finally:
        _RUN.reset(token)


def remove_left_lock(target: Path) -> None:
    """Remove the lock of a process that was killed after ``target`` got its name; locks of running processes stay."""
    lock = target.with_name(target.name + ".lock")
    if lock.exists():
        with suppress(SlideioPipeError, OSError):
            left = WriterLock(lock)
            left.acquire()
            left.release()


class WriterLock:
    """A file with the pid and host of the one writer, under an ``flock`` that ends with the process (see ``_locked``).

    On this host the ``flock`` decides, so a lock left by a killed process is taken over. A lock of another host is
    respected, because not every network file system shares an ``flock`` between hosts; but see ``within_run``. Times
    are not compared, because clocks of two hosts differ.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._mine: dict[str, object] = {}

    def acquire(self) -> None:
        """Take the lock, or raise an OutputError with its owner."""
        run, begun = _RUN.get(), time.monotonic()
        while self._fd is None:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                owner = _owner(fd)
                of_run = run is not None and owner.get("run") == run
                busy = self._is_busy(fd, owner, respected=not of_run)
                if busy and (not of_run or time.monotonic() > begun + _ORPHANS_S):
                    raise self._refusal(owner)
                if not busy and self._is_current(fd):  # else its owner has finished and removed it: try again
                    self._mine = {"pid": os.getpid(), "host": socket.gethostname(), "run": run}
                    os.ftruncate(fd, 0)
                    os.lseek(fd, 0, os.SEEK_SET)
                    os.write(fd, json.dumps(self._mine).encode())
                    self._fd = fd
            finally:
                if self._fd is None:
                    os.close(fd)
            if busy:
                time.sleep(0.1)

    def release(self) -> None:
        """Remove the file and release the lock."""
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        own = _owner(fd) == self._mine  # else the lock was taken over by another process
        if own and _FCNTL is not None:
            self._path.unlink(missing_ok=True)
        os.close(fd)
        if own and _FCNTL is None:  # Windows does not remove an open file, so another process's lock stays
            with suppress(OSError):
                self._path.unlink()

    def _is_busy(self, fd: int, owner: Mapping[str, object], *, respected: bool) -> bool:
        """Return whether another process has the lock; else lock the file, if the file system supports locks."""
        here = owner.get("host") == socket.gethostname()
        elsewhere = respected and bool(owner) and not here
        locked = _locked(fd)
        if locked is None:
            return elsewhere or (here and _is_alive(owner.get("pid")))
        return elsewhere or not locked

    def _refusal(self, owner: Mapping[str, object]) -> OutputError:
        who = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
        remedy = f"wait for it; if it no longer runs, remove {self._path}"
        return OutputError(f"is being written by {who}", slide=str(self._path.with_suffix("")), remedy=remedy)

    def _is_current(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), self._path.stat())
        except FileNotFoundError:
            return False


def _locked(fd: int) -> bool | None:
    """Lock a file until it is closed; False if another process has locked it, None if locks are not supported."""
    try:
        if _FCNTL is not None:
            _FCNTL.flock(fd, _FCNTL.LOCK_EX | _FCNTL.LOCK_NB)
        elif _MSVCRT is not None:
            os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
            _MSVCRT.locking(fd, _MSVCRT.LK_NBLCK, 1)
        else:
            return None
    except BlockingIOError:
        return False
    except OSError as error:
        if _FCNTL is None and error.errno in (errno.EACCES, errno.EDEADLK):
            return False
        if error.errno not in NO_FLOCK:
            raise
        return None
    return True


def _owner(fd: int) -> dict[str, object]:
    os.lseek(fd, 0, os.SEEK_SET)
    try:
        owner = json.loads(os.read(fd, 4096))
    except ValueError:
        return {}  # the owner was killed before it wrote the file
    return owner if isinstance(owner, dict) else {}


def _is_alive(pid: object) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    if os.name == "nt":  # on Windows, signal 0 is Ctrl-C
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # a running process of another user
    return True
