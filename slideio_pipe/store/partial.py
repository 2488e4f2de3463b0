"""Write a store into ``<name>.partial`` and rename it when it is complete; one writer at a time.

These may exist beside the output ``a.bag.zarr`` while it is written or after a kill:

- ``a.bag.zarr.partial``   the unfinished store; the next run continues it if it is the same work
- ``a.bag.zarr.lock``      the writer: pid and host
- ``a.bag.zarr.replaced``  the former store, between two renames; with a number appended if NFS remnants of a removed
  folder (``.nfs…``, while a process has the file open) still have that name
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from slideio_pipe.errors import OutputExistsError
from slideio_pipe.files import disk_errors, put_folder_in_place, put_in_place, rename, write_durably
from slideio_pipe.locks import WriterLock
from slideio_pipe.store.metadata import TOP_LEVEL, is_bag_store


class PartialStore:
    """The exclusive right to write one bag store, and the folder to write into, as a context manager.

    Entering raises OutputExistsError if ``target`` exists and may not be replaced, OutputError if the folder is not
    writable or another process is writing this bag.

    Parameters
    ----------
    target : Path
        The final name.
    overwrite : bool
        Whether a bag store of that name may be replaced. Anything else there is always refused.
    """

    def __init__(self, target: Path, *, overwrite: bool) -> None:
        self.target, self._overwrite = target, overwrite
        self.folder = target.with_name(target.name + ".partial")
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

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def begin(self, files: Mapping[str, bytes]) -> None:
        """Make the partial store contain ``files``; existing shards are kept if it already contained exactly these."""
        with disk_errors(self.folder):
            if all(_holds(self.folder / name, data) for name, data in files.items()):
                return
            if self.folder.exists():
                self._clear()
            for name, data in files.items():
                write_durably(self.folder / name, data)

    def replace_metadata(self, files: Mapping[str, bytes]) -> None:
        """Replace the group's metadata by those in ``files``."""
        file = self.folder / "zarr.json"
        beside = self.folder / "tiles" / "zarr.json.partial"  # inside tiles, so that a leftover is removed with it
        with disk_errors(file):
            beside.write_bytes(files["zarr.json"])
            put_in_place(beside, file)

    def publish(self) -> None:
        """Rename the partial store to its final name; a replaced store exists until then and is removed afterwards."""
        with disk_errors(self.target):
            replaced = self._free_name()
            put_folder_in_place(self.folder, self.target, replaced)
            _remove(replaced)

    def _refuse_existing(self) -> None:
        if not os.path.lexists(self.target):
            return
        if not self._overwrite:
            remedy = "open it with open_bag, or pass {overwrite=True} or another path"
            raise OutputExistsError("already exists", slide=str(self.target), remedy=remedy)
        if not is_bag_store(self.target):
            reason = "exists and is no bag store, so it is not overwritten"
            raise OutputExistsError(reason, slide=str(self.target), remedy="remove it or pass another path")

    def _finish_interrupted_swap(self) -> None:
        """Undo or complete a swap that was killed between its renames."""
        for replaced in self._replaced():
            if os.path.lexists(self.target):
                if _is_of_store(replaced):
                    _remove(replaced)
            elif is_bag_store(replaced):
                rename(replaced, self.target)

    def _replaced(self) -> list[Path]:
        """Return the renamed former stores that still exist."""
        name = re.compile(rf"{re.escape(self.target.name)}\.replaced\d*")
        return sorted(path for path in self.target.parent.iterdir() if name.fullmatch(path.name))

    def _free_name(self) -> Path:
        """Return an unused name for the former store while it is replaced."""
        used = {path.name for path in self._replaced()}
        name = f"{self.target.name}.replaced"
        names = itertools.chain([name], (f"{name}{number}" for number in itertools.count(1)))
        return self.target.with_name(next(name for name in names if name not in used))

    def _clear(self) -> None:
        if not _is_of_store(self.folder):
            reason = "exists and is no unfinished bag store, so it is not removed"
            raise OutputExistsError(reason, slide=str(self.folder), remedy="remove it or pass another path")
        shutil.rmtree(self.folder)


def _is_of_store(folder: Path) -> bool:
    """Return whether a folder has only parts of a store and NFS remnants of removed files."""
    if not folder.is_dir():
        return False
    return {entry.name for entry in folder.iterdir() if not entry.name.startswith(".nfs")} <= TOP_LEVEL


def _remove(folder: Path) -> None:
    """Remove a former store as far as possible; NFS remnants disappear when their readers close them."""
    with suppress(OSError):
        # Its metadata first, so that a half-removed store is never read as a store.
        (folder / "zarr.json").unlink(missing_ok=True)
        shutil.rmtree(folder)


def _holds(file: Path, data: bytes) -> bool:
    try:
        return file.stat().st_size == len(data) and file.read_bytes() == data
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
