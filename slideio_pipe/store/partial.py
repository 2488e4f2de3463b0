"""Writing into ``<name>.partial`` and giving it its name when it is whole; one writer at a time.

Beside the output ``a.bag.zarr`` may lie, while it is written or after a kill:

- ``a.bag.zarr.partial``   the unfinished store; the next run goes on with it when it is the same work
- ``a.bag.zarr.lock``      who writes: pid and host
- ``a.bag.zarr.replaced``  the former store, for the moment between two renames
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from slideio_pipe.errors import OutputError, OutputExistsError, SlideioPipeError
from slideio_pipe.store.layout import TOP_LEVEL, is_bag_store
from slideio_pipe.store.shards import sync_folder

REMEDIES = {
    errno.ENOSPC: "free some space and run again: finished shards are kept",
    errno.EDQUOT: "free some of your quota and run again: finished shards are kept",
    errno.EFBIG: "lift the file size limit (ulimit -f) and run again: finished shards are kept",
    errno.EROFS: "choose a folder on a writable disk",
    errno.EACCES: "choose a folder you may write to",
    errno.EPERM: "choose a folder you may write to",
    errno.EEXIST: "choose a folder: a file is in the way",
    errno.ENOTDIR: "choose a folder: a file is in the way",
}
# flock is missing on some network file systems (Lustre mounted without it); then the pid alone has to tell.
NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into an OutputError that names ``path``, the reason and the remedy."""
    try:
        yield
    except SlideioPipeError:  # some are OSErrors: a tile of the slide that cannot be read is no fault of this disk
        raise
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "see to the disk and run again: finished shards are kept")
        raise OutputError(f"cannot be written ({error.strerror})", slide=str(path), remedy=remedy) from error


class PartialStore:
    """The right to write one bag store, and the folder to write it into, as a context manager.

    Parameters
    ----------
    target : Path
        The final name.
    overwrite : bool
        Whether a bag store of that name may be replaced. Anything else there is refused in any case.

    Raises
    ------
    OutputExistsError
        On entering, when something is at ``target`` and may not be replaced.
    OutputError
        On entering, when the folder is not writable or another process is writing this bag.
    """

    def __init__(self, target: Path, *, overwrite: bool) -> None:
        self.target, self._overwrite = target, overwrite
        self.folder = target.with_name(target.name + ".partial")
        self._replaced = target.with_name(target.name + ".replaced")
        self._lock = WriterLock(target.with_name(target.name + ".lock"))

    def __enter__(self) -> PartialStore:
        self._refuse_existing()
        with disk_errors(self.target):
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            try:
                self._finish_interrupted_swap()
                self._refuse_existing()
            except BaseException:
                self._lock.release()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()

    def begin(self, files: Mapping[str, bytes]) -> None:
        """Make the partial store hold ``files``; shards in it stay when it held exactly these already."""
        with disk_errors(self.folder):
            if all(_holds(self.folder / name, data) for name, data in files.items()):
                return
            if self.folder.exists():
                self._clear()
            for name, data in files.items():
                file = self.folder / name
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("wb") as out:
                    out.write(data)
                    out.flush()
                    os.fsync(out.fileno())

    def publish(self) -> None:
        """Give the partial store its final name; the one it replaces stays until then and is removed afterwards."""
        with disk_errors(self.target):
            for folder, _, _ in os.walk(self.folder, topdown=False):
                sync_folder(Path(folder))
            replaces = self.target.exists()
            if replaces:
                self.target.rename(self._replaced)
            try:
                self.folder.rename(self.target)
            except OSError:
                if replaces:
                    self._replaced.rename(self.target)
                raise
            sync_folder(self.target.parent)
            if replaces:
                shutil.rmtree(self._replaced)

    def _refuse_existing(self) -> None:
        if not os.path.lexists(self.target):
            return
        if not self._overwrite:
            remedy = "open it with open_bag, or pass overwrite=True or another path"
            raise OutputExistsError("already exists", slide=str(self.target), remedy=remedy)
        if not is_bag_store(self.target):
            reason = "exists and is no bag store, so it is not overwritten"
            raise OutputExistsError(reason, slide=str(self.target), remedy="remove it or pass another path")

    def _finish_interrupted_swap(self) -> None:
        """Undo or complete a swap that was killed between its renames."""
        if not is_bag_store(self._replaced):
            return
        if os.path.lexists(self.target):
            shutil.rmtree(self._replaced)
        else:
            self._replaced.rename(self.target)

    def _clear(self) -> None:
        if not self.folder.is_dir() or not {entry.name for entry in self.folder.iterdir()} <= TOP_LEVEL:
            reason = "exists and is no unfinished bag store, so it is not removed"
            raise OutputExistsError(reason, slide=str(self.folder), remedy="remove it or pass another path")
        shutil.rmtree(self.folder)


def _holds(file: Path, data: bytes) -> bool:
    try:
        return file.stat().st_size == len(data) and file.read_bytes() == data
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False


class WriterLock:
    """A file with the pid and host of the one writer, under an ``flock`` that ends with the process.

    On this host the ``flock`` decides, so a lock left by a killed process is taken over. A lock of another host is
    respected, because not every network file system carries an ``flock`` over.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock, or raise OutputError naming who has it."""
        while self._fd is None:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._claim(fd)
                if not self._is_current(fd):
                    os.close(fd)  # its owner finished and removed it in between: look again
                    continue
                os.truncate(fd, 0)
                os.pwrite(fd, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
            except BaseException:
                os.close(fd)
                raise
            self._fd = fd

    def release(self) -> None:
        """Remove the file, then let go."""
        if self._fd is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = None

    def _claim(self, fd: int) -> None:
        owner = _owner(fd)
        elsewhere = bool(owner) and owner.get("host") != socket.gethostname()
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            busy = elsewhere
        except BlockingIOError:
            busy = True
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            busy = elsewhere or _is_alive(owner.get("pid"))
        if busy:
            who = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
            remedy = f"wait for it; if it no longer runs, remove {self._path}"
            raise OutputError(f"is being written by {who}", slide=str(self._path.with_suffix("")), remedy=remedy)

    def _is_current(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), self._path.stat())
        except FileNotFoundError:
            return False


def _owner(fd: int) -> dict[str, object]:
    try:
        owner = json.loads(os.pread(fd, 4096, 0))
    except ValueError:
        return {}  # killed between making the file and writing it
    return owner if isinstance(owner, dict) else {}


def _is_alive(pid: object) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's, but alive
    return True
