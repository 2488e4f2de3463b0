"""A file that has its name survives a power cut: files, then renames, then folders are synchronised in that order.

The real calls are made and recorded; ``Disk`` keeps what a disk would have after a power cut at any moment: the bytes a
file had when it was last synchronised, and the names a folder had.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_bag import MemoryBag, contents

from slideio_pipe import convert, open_slide, write_synthetic_slide
from slideio_pipe.cohort.ledger import fingerprint
from slideio_pipe.cohort.table import write_table
from slideio_pipe.errors import CorruptSlideError, OutputError, SkippedWarning
from slideio_pipe.locks import WriterLock
from slideio_pipe.store import open_bag, save_bag
from slideio_pipe.store.feature_arrays import add_features, create_feature_store, stored_features
from slideio_pipe.store.shards import write_shard


class Disk:
    """What was synchronised, by inode: bytes of files, names in folders."""

    def __init__(self) -> None:
        self.files: dict[int, bytes] = {}
        self.names: dict[int, set[str]] = {}
        self.renamed: list[Path] = []

    def sync(self, fd: int) -> None:
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            self.names[found.st_ino] = set(os.listdir(fd))
        else:
            self.files[found.st_ino] = Path(f"/proc/self/fd/{fd}").read_bytes()

    def rename(self, source: Path, target: Path) -> None:
        """Check that what gets its name is on the disk already."""
        if not target.name.endswith(".replaced"):
            self.check(source)
            self.renamed.append(target)

    def check(self, path: Path) -> None:
        """Check that a file, or all of a folder, is on the disk as it is now."""
        inode = path.stat().st_ino
        if not path.is_dir():
            assert self.files.get(inode) == path.read_bytes(), f"{path} was not synchronised"
            return
        assert self.names.get(inode, set()) >= set(os.listdir(path)), f"names in {path} were not synchronised"
        for child in path.iterdir():
            self.check(child)

    def check_name(self, path: Path) -> None:
        """Check that a name is on the disk."""
        assert path.name in self.names.get(path.parent.stat().st_ino, set()), f"the name {path} was not synchronised"


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """Record the real calls."""
    made, fsync = Disk(), os.fsync

    def watched_fsync(fd: int) -> None:
        fsync(fd)
        made.sync(fd)

    def watched(call: Callable[..., None]) -> Callable[..., None]:
        def rename(source: Any, target: Any, **options: Any) -> None:
            made.rename(Path(source), Path(target))
            call(source, target, **options)

        return rename

    monkeypatch.setattr(os, "fsync", watched_fsync)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    yield made
    monkeypatch.undo()


class Damaged(MemoryBag):
    """A bag with one tile that cannot be decoded."""

    def read(self, indices: Any, out: Any = None, *, threads: int = 1) -> Any:
        if 3 in indices:
            raise CorruptSlideError("is damaged", slide=self.name)
        return super().read(indices, out, threads=threads)


def test_a_shard_is_on_the_disk_when_it_is_written(disk: Disk, tmp_path: Path) -> None:
    """First its bytes, then its name, before the call returns: a run resumes after it."""
    shard = tmp_path / "c" / "0"
    write_shard(shard, [b"one", b"two"], 4)
    assert disk.renamed == [shard]
    disk.check(shard)
    disk.check_name(shard)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("bag", [MemoryBag(1300), Damaged(1300)], ids=["whole", "with a white tile"])
def test_a_bag_is_on_the_disk_when_it_has_its_name(bag: MemoryBag, overwrite: bool, disk: Disk, tmp_path: Path) -> None:
    """First every file and folder in it, also metadata that change at the end, then its own name."""
    target = tmp_path / "a.bag.zarr"
    if overwrite:
        save_bag(MemoryBag(7), target)
    if isinstance(bag, Damaged):
        with pytest.warns(SkippedWarning):
            save_bag(bag, target, on_error="white", overwrite=overwrite)
    else:
        save_bag(bag, target, overwrite=overwrite)
    assert target in disk.renamed
    assert sum("c" in path.parts for path in disk.renamed) >= 3  # shards
    disk.check(target)
    disk.check_name(target)
    with open_bag(target) as stored:
        assert len(stored) == 1300


def test_features_are_on_the_disk_when_they_have_their_name(disk: Disk, tmp_path: Path) -> None:
    """In a bag, and in a feature store."""
    bag, values = MemoryBag(7), np.ones((7, 3), np.float32)
    save_bag(bag, tmp_path / "a")
    add_features(tmp_path / "a", "uni", values, {})
    create_feature_store(tmp_path / "b", bag, bag.provenance(), {"uni": (values, {})})
    for path in (tmp_path / "a" / "features" / "uni", tmp_path / "a" / "features", tmp_path / "b"):
        disk.check(path)
        disk.check_name(path)
    assert {tmp_path / "a" / "features" / "uni", tmp_path / "b"} <= set(disk.renamed)


@contextmanager
def failing_on(source: Path, *, done: bool = False) -> Iterator[None]:
    """Make the system refuse to rename one path, or rename it and report a failure."""

    def refusing(call: Callable[..., None]) -> Callable[..., None]:
        def rename(this: Any, target: Any, **options: Any) -> None:
            if Path(this) == source:
                if done:
                    call(this, target, **options)
                raise OSError(errno.EIO, "Input/output error")
            call(this, target, **options)

        return rename

    with pytest.MonkeyPatch.context() as patch:
        for name in ("rename", "replace"):
            patch.setattr(os, name, refusing(getattr(os, name)))
        yield


def test_a_bag_that_cannot_be_replaced_is_kept(tmp_path: Path) -> None:
    """If the second of two renames fails, the former bag has its name again, and the next run resumes."""
    target = tmp_path / "a.bag.zarr"
    save_bag(MemoryBag(7), target)
    before = contents(target)
    failing = failing_on(tmp_path / "a.bag.zarr.partial")
    with failing, pytest.raises(OutputError, match="Input/output error"):
        save_bag(MemoryBag(9), target, overwrite=True)
    assert contents(target) == before
    assert not list(tmp_path.glob("*.replaced*"))
    save_bag(MemoryBag(9), target, overwrite=True)
    assert contents(target) != before
    assert [path.name for path in tmp_path.iterdir()] == ["a.bag.zarr"]


def test_features_that_cannot_be_replaced_are_kept(tmp_path: Path) -> None:
    """A rename that fails does not lose the former features."""
    save_bag(MemoryBag(7), tmp_path / "a")
    old, new = np.ones((7, 3), np.float32), np.zeros((7, 3), np.float32)
    add_features(tmp_path / "a", "uni", old, {})
    with failing_on(tmp_path / "a.uni.partial"), pytest.raises(OutputError, match="Input/output error"):
        add_features(tmp_path / "a", "uni", new, {}, overwrite=True)
    np.testing.assert_array_equal(stored_features(tmp_path / "a", "uni", 7)[0], old)
    add_features(tmp_path / "a", "uni", new, {}, overwrite=True)
    np.testing.assert_array_equal(stored_features(tmp_path / "a", "uni", 7)[0], new)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_lock_that_is_taken_over_names_its_new_owner(tmp_path: Path) -> None:
    """The longer entry of a killed process is removed completely, and the file is deleted with the lock."""
    path = tmp_path / "a.lock"
    path.write_text(json.dumps({"pid": 2**30, "host": socket.gethostname(), "run": "r" * 500}))
    lock = WriterLock(path)
    lock.acquire()
    assert json.loads(path.read_text()) == {"pid": os.getpid(), "host": socket.gethostname(), "run": None}
    lock.release()
    assert not path.exists()


def test_the_fingerprint_of_a_folder_does_not_depend_on_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems list names in any order; names and sizes count, features in a bag do not."""
    for number in range(20):
        (tmp_path / f"{number}.dcm").write_bytes(b"x" * number)
    (tmp_path / "deeper").mkdir()
    usual, scandir = fingerprint(tmp_path), os.scandir

    class Reversed:
        def __init__(self, path: Any) -> None:
            with scandir(path) as found:
                self.entries = sorted(found, key=lambda entry: entry.name, reverse=self.backwards)

        backwards = False

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            return iter(self.entries)

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Reversed)
    found = [fingerprint(tmp_path)]
    monkeypatch.setattr(Reversed, "backwards", True)
    found.append(fingerprint(tmp_path))
    assert found == [usual, usual]
    monkeypatch.undo()
    (tmp_path / "features").mkdir()
    assert fingerprint(tmp_path) == usual
    (tmp_path / "1.dcm").write_bytes(b"xy")
    assert fingerprint(tmp_path) != usual


def a_table(path: Path, value: int) -> None:
    write_table(path, ["slide"], [{"slide": f"{value}.svs"}])


def a_slide(path: Path, value: int) -> None:
    write_synthetic_slide(path, size=(512, 512), seed=value, pieces=1, overwrite=True)


def a_pyramid(path: Path, value: int) -> None:
    view = open_slide(np.full((300, 300, 3), value, np.uint8), slide_mpp=0.5).view()
    view.save(path, overwrite=True, progress=False)


def converted(layout: str) -> Callable[[Path, int], None]:
    def convert_one(path: Path, value: int) -> None:
        bag = MemoryBag(3 + value)
        bag.name = "a"
        convert(bag, layout, path.parents[1] if layout in ("torchmil", "hf") else path.parent, overwrite=True)

    return convert_one


def features_of_a_bag(path: Path, value: int) -> None:
    bag = MemoryBag(3)
    create_feature_store(path, bag, bag.provenance(), {"uni": (np.full((3, 2), value, np.float32), {})}, overwrite=True)


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "a.csv": a_table,
    "a.svs": a_slide,
    "a.tif": a_pyramid,
    "features/a.npy": converted("torchmil"),
    "a-000000.tar": converted("webdataset"),
    "data/a.parquet": converted("hf"),
    "a": converted("memmap"),
    "a.features.zarr": features_of_a_bag,
}


@pytest.mark.parametrize(("name", "write"), WRITERS.items(), ids=list(WRITERS))
def test_every_output_is_on_the_disk_when_it_has_its_name(
    name: str, write: Callable[[Path, int], None], disk: Disk, tmp_path: Path
) -> None:
    """First the bytes, then the name; new files and replaced ones."""
    path = tmp_path / name
    for value in (1, 2):
        write(path, value)
        assert disk.renamed.count(path) == value
        disk.check(path)
        disk.check_name(path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "write"), WRITERS.items(), ids=list(WRITERS))
def test_every_output_that_cannot_be_replaced_is_kept(
    name: str, write: Callable[[Path, int], None], tmp_path: Path
) -> None:
    """If the rename fails, the former file is unchanged, no other file is left, and the next attempt succeeds."""
    path = tmp_path / name
    write(path, 1)
    before, beside = contents_of(path), set(tmp_path.rglob("*"))
    with failing_on(path.with_name(path.name + ".partial")), pytest.raises(OutputError, match="Input/output error"):
        write(path, 2)
    assert contents_of(path) == before
    assert set(tmp_path.rglob("*")) == beside
    write(path, 2)
    assert contents_of(path) != before


@pytest.mark.parametrize(("name", "write"), WRITERS.items(), ids=list(WRITERS))
def test_a_rename_that_is_wrongly_reported_as_failed_is_no_error(
    name: str, write: Callable[[Path, int], None], tmp_path: Path
) -> None:
    """As NFS reports it if an answer is lost."""
    path = tmp_path / name
    write(path, 1)
    before = contents_of(path)
    with failing_on(path.with_name(path.name + ".partial"), done=True):
        write(path, 2)
    assert contents_of(path) != before
    assert not [found for found in tmp_path.rglob("*") if found.suffix in (".partial", ".replaced")]


@pytest.mark.parametrize(("name", "write"), [item for item in WRITERS.items() if "zarr" in item[0] or item[0] == "a"])
def test_a_folder_killed_between_two_renames_has_its_name_again(
    name: str, write: Callable[[Path, int], None], tmp_path: Path
) -> None:
    """It is restored first, because later steps may fail."""
    path = tmp_path / name
    write(path, 1)
    before = contents_of(path)
    path.rename(path.with_name(path.name + ".replaced"))  # as a kill leaves it
    (path.with_name(path.name + ".partial")).mkdir()
    with failing_on(path.with_name(path.name + ".partial")), pytest.raises(OutputError):
        write(path, 2)
    assert contents_of(path) == before
    assert [found.name for found in tmp_path.iterdir()] == [name]


def contents_of(path: Path) -> Any:
    return contents(path) if path.is_dir() else path.read_bytes()
