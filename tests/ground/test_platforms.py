"""Without fcntl, pread, preadv and signal masks, as on Windows, the same bags are written and read."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import slideio_pipe as sp
from slideio_pipe.files import _pread, _preadv

# Before the package is imported. libvips' binding needs its own modules.
HIDE = """
import os, signal, sys
sys.modules["fcntl"] = None
del os.pread, os.preadv, os.pwrite, signal.pthread_sigmask, os.sched_getaffinity, os.sysconf
"""
WORK = """
import numpy as np
import slideio_pipe as sp
from pathlib import Path
folder = Path(sys.argv[1])
if __name__ == "__main__":
    with sp.open_slide(folder / "a.svs") as slide:
        bag = sp.TileBag(view := slide.view(mpp=0.5), sp.TileGrid(view, tile_size=128))
        sp.save_bag(bag, folder / "hidden.bag.zarr")
        np.save(folder / "tiles.npy", bag[0])
    stored = sp.open_bag(folder / "hidden.bag.zarr")
    np.save(folder / "stored.npy", np.stack([stored[k] for k in range(len(stored))]))
    report = sp.export_cohort([folder / "a.svs"], folder / "bags", workers=2, progress=False)
    assert report.done == 1, report.failed
    print(len(sp.BagDataset([folder / "hidden.bag.zarr"])[0].tiles))
"""
HOLD = """
from pathlib import Path
from slideio_pipe.locks import WriterLock
lock = WriterLock(Path(sys.argv[1]))
try:
    lock.acquire()
    print("locked", flush=True)
    if sys.argv[2] == "hold":
        sys.stdin.read()
    lock.release()
except Exception as error:
    print(error)
"""
# As flock on Windows: a range of bytes that only its owner may read or write. A replacement with POSIX
# locks of ranges, which also end with the process; it fails as on Windows if others read the range.
MSVCRT = """
import errno, fcntl, types
def locking(fd, mode, count):
    place = os.lseek(fd, 0, os.SEEK_CUR)
    assert mode == 2 and place > os.fstat(fd).st_size
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, count, 0, os.SEEK_CUR)
    except BlockingIOError:
        raise PermissionError(errno.EACCES, "Permission denied") from None
sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=locking)
"""


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a program that prints text."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.system
def test_bags_are_the_same_without_fcntl_and_pread(tmp_path: Path) -> None:
    """Saved, opened and read in a data set; pixels equal those with them."""
    sp.write_synthetic_slide(tmp_path / "a.svs", size=(1024, 768), seed=3)
    program = python(HIDE + WORK, tmp_path)
    output, _ = program.communicate()
    assert program.returncode == 0
    stored = sp.open_bag(tmp_path / "hidden.bag.zarr")
    ours = np.stack([stored[k] for k in range(len(stored))])
    assert int(output) == len(ours) > 4
    np.testing.assert_array_equal(np.load(tmp_path / "stored.npy"), ours)
    with sp.open_slide(tmp_path / "a.svs") as slide:
        view = slide.view(mpp=0.5)
        np.testing.assert_array_equal(
            np.load(tmp_path / "tiles.npy"), sp.TileBag(view, sp.TileGrid(view, tile_size=128))[0]
        )
    assert not list(tmp_path.glob("*.lock"))


@pytest.mark.parametrize("platform", ["Windows", "no locks"])
def test_a_folder_has_one_writer_without_fcntl(tmp_path: Path, platform: str) -> None:
    """The refusal names pid and host of the owner; the lock of a killed process is taken over."""
    code = "import os, sys\n" + (MSVCRT if platform == "Windows" else "") + 'sys.modules["fcntl"] = None\n' + HOLD
    path = tmp_path / "a.lock"
    first = python(code, path, "hold")
    assert first.stdout is not None
    assert first.stdout.readline() == "locked\n"
    assert json.loads(path.read_text()) == {"pid": first.pid, "host": socket.gethostname(), "run": None}
    output, _ = python(code, path, "try").communicate()
    assert f"is being written by process {first.pid} on {socket.gethostname()}" in output
    first.kill()
    first.communicate()
    assert path.exists()
    assert python(code, path, "try").communicate()[0] == "locked\n"
    assert not path.exists()


def test_reading_at_an_offset_equals_pread(tmp_path: Path) -> None:
    """And preadv, also past the end; the file's own position does not change."""
    (tmp_path / "a").write_bytes(bytes(range(100)))
    fd = os.open(tmp_path / "a", os.O_RDONLY)
    try:
        os.lseek(fd, 7, os.SEEK_SET)
        for offset in (0, 50, 95, 100, 200):
            assert _pread(fd, 10, offset) == os.pread(fd, 10, offset)
            ours, theirs = bytearray(10), bytearray(10)
            assert _preadv(fd, [memoryview(ours)], offset) == os.preadv(fd, [theirs], offset)
            assert ours == theirs
        assert os.lseek(fd, 0, os.SEEK_CUR) == 7
    finally:
        os.close(fd)
