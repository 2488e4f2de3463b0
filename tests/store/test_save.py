"""Saved bags are read by zarr-python, and survive kills, full disks and damage."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import examples
from memory_bag import SLOTS, MemoryBag, StoppingBag, contents, corrupt
from paths import SEARCHED

from slideio_pipe.errors import BagFormatError, ConfigError, CorruptSlideError, OutputError, OutputExistsError
from slideio_pipe.geometry import Mpp
from slideio_pipe.slides.slide import open_slide
from slideio_pipe.store import StoredBag, open_bag, save_bag
from slideio_pipe.store.metadata import tiles_per_shard
from slideio_pipe.tiles.bag import Bag
from slideio_pipe.tiles.grid import TileGrid
from slideio_pipe.tiles.tile_bag import TileBag


def edit_json(file: Path, edit) -> None:
    data = json.loads(file.read_text())
    edit(data)
    file.write_text(json.dumps(data))


@pytest.fixture(params=["none", "zstd"])
def pixels(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def zarrs_pipeline() -> Iterator[None]:
    pytest.importorskip("zarrs", reason="the zarrs codec pipeline is not installed")
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        yield


# --- other zarr readers


@pytest.mark.parametrize("count", [0, 1, SLOTS, 2 * SLOTS + 3])
def test_zarr_reads_the_same_arrays(tmp_path: Path, pixels: str, count: int) -> None:
    """zarr-python reads every array, bit for bit, for no tile, part of a shard and several shards."""
    bag = MemoryBag(count)
    save_bag(bag, tmp_path / "a.bag.zarr", pixels=pixels)
    group = zarr.open_group(tmp_path / "a.bag.zarr", mode="r")
    assert sorted(group.array_keys()) == ["coords", "grid_index", "tiles", "tissue"]
    for name, expected in {
        "tiles": bag.tiles,
        "coords": bag.coords,
        "grid_index": bag.grid_index,
        "tissue": bag.tissue,
    }.items():
        assert group[name].dtype == expected.dtype
        np.testing.assert_array_equal(group[name][...], expected)
    assert group["tiles"].chunks == (1, 4, 6, 3)
    assert group["tiles"].shards == (SLOTS, 4, 6, 3)


@pytest.mark.usefixtures("zarrs_pipeline")
def test_zarrs_reads_the_same_tiles(tmp_path: Path, pixels: str) -> None:
    """The Rust pipeline reads the same tiles, and saving does not depend on the selected pipeline."""
    bag = MemoryBag(SLOTS + 3)
    save_bag(bag, tmp_path / "a.bag.zarr", pixels=pixels)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a.bag.zarr/tiles", mode="r")[...], bag.tiles)


@pytest.mark.slow
@pytest.mark.parametrize("write_empty_chunks", [False, True])
def test_a_bag_that_zarr_wrote_is_read(tmp_path: Path, pixels: str, write_empty_chunks: bool) -> None:
    """zarr omits tiles that equal the fill value, single ones or a whole shard: they are read as such."""
    bag = MemoryBag(3 * SLOTS + 3)
    bag.tiles[4:6] = 0
    bag.tiles[SLOTS : 2 * SLOTS] = 0
    ours = save_bag(bag, tmp_path / "ours.bag.zarr", pixels=pixels)
    group = zarr.create_group(tmp_path / "theirs.bag.zarr", zarr_format=3)
    group.attrs["tile_bag"] = {**ours.attributes, "pixels": {"codec": pixels}}
    for name, array in zarr.open_group(ours.path, mode="r").arrays():
        copy = group.create_array(
            name,
            shape=array.shape,
            dtype=array.dtype,
            chunks=array.chunks,
            shards=array.shards,
            compressors=array.compressors,
            filters=None,
            fill_value=0,
            config={"write_empty_chunks": write_empty_chunks},
        )
        copy[...] = array[...]
    assert (tmp_path / "theirs.bag.zarr/tiles/c/1").exists() == write_empty_chunks
    theirs = open_bag(tmp_path / "theirs.bag.zarr")
    np.testing.assert_array_equal(theirs[:], bag.tiles)
    np.testing.assert_array_equal(theirs[[SLOTS + 7, 5, 0]], bag.tiles[[SLOTS + 7, 5, 0]])


# --- the opened bag


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[StoredBag, MemoryBag]:
    """A bag of three shards, the last one incomplete, and its source."""
    bag = MemoryBag(2 * SLOTS + 9)
    return save_bag(bag, tmp_path_factory.mktemp("saved") / "a.bag.zarr", pixels="zstd"), bag


KEYS = [0, -1, 600, np.int32(5), (3, 2), (slice(3, 5), 0), slice(None), slice(510, 515), slice(700, 3, -97)]


@pytest.mark.parametrize("key", [*KEYS, [3, -1, 3], [], np.arange(4) * 7])
def test_indexing_equals_numpy_indexing(saved: tuple[StoredBag, MemoryBag], key: object) -> None:
    """Numbers, slices and lists of tiles, and further axes in a tuple."""
    stored, bag = saved
    np.testing.assert_array_equal(stored[key], bag.tiles[key], strict=True)


def test_a_boolean_mask_selects_tiles(saved: tuple[StoredBag, MemoryBag]) -> None:
    """It has one element per tile."""
    stored, bag = saved
    np.testing.assert_array_equal(stored[stored.tissue > 0.5], bag.tiles[bag.tissue > 0.5], strict=True)


@pytest.mark.parametrize("key", [2 * SLOTS + 9, -2 * SLOTS - 10, [0, 2 * SLOTS + 9], np.ones(3, bool), 1.5])
def test_an_index_out_of_range_is_an_index_error(saved: tuple[StoredBag, MemoryBag], key: object) -> None:
    """As in numpy; so is a mask of another length."""
    with pytest.raises((IndexError, TypeError)):
        saved[0][key]


@examples(30)
@given(numbers=st.lists(st.integers(0, 2 * SLOTS + 8), max_size=40), threads=st.integers(1, 4))
def test_any_tiles_in_any_order(saved: tuple[StoredBag, MemoryBag], numbers: list[int], threads: int) -> None:
    """``read`` fills the caller's slots with any tiles, in any order, by any number of threads."""
    stored, bag = saved
    out = np.full((len(numbers), 4, 6, 3), 77, np.uint8)
    assert stored.read(np.array(numbers, np.int64), out, threads=threads) is out
    np.testing.assert_array_equal(out, bag.tiles[np.array(numbers, np.int64)])


@pytest.mark.parametrize(
    "out",
    [
        pytest.param(np.empty((2, 4, 6, 3), np.int8), id="another type"),
        pytest.param(np.empty((3, 4, 6, 3), np.uint8), id="another length"),
        pytest.param(np.empty((4, 4, 6, 3), np.uint8)[::2], id="not contiguous"),
        pytest.param(np.frombuffer(bytes(2 * 72), np.uint8).reshape(2, 4, 6, 3), id="read-only"),
    ],
)
def test_slots_that_do_not_fit_are_refused(saved: tuple[StoredBag, MemoryBag], out: np.ndarray) -> None:
    """Slots of the wrong type or shape, or that cannot be written in place, are an error and not a hidden copy."""
    with pytest.raises(ConfigError, match="pass a writable C-contiguous uint8 array"):
        saved[0].read([0, 1], out)


def test_an_opened_bag_has_what_was_saved(saved: tuple[StoredBag, MemoryBag]) -> None:
    """Name, label, resolution, coordinates and provenance; the store adds two keys of its own."""
    stored, bag = saved
    assert isinstance(stored, Bag)
    assert (stored.name, stored.label, stored.view_mpp, stored.shape) == ("a.svs", 1, Mpp(0.5, 0.5), bag.shape)
    for name in ("coords", "grid_index", "tissue"):
        np.testing.assert_array_equal(getattr(stored, name), getattr(bag, name), strict=True)
    assert stored.provenance() == bag.provenance()
    assert stored.attributes["version"] == 1
    assert stored.attributes["pixels"]["codec"] == "zstd"
    assert repr(stored) == "StoredBag(a.svs: 1,033 tiles of 6×4 px at 0.5 µm, zstd, label 1)"


def test_an_opened_bag_pickles_as_its_path(saved: tuple[StoredBag, MemoryBag]) -> None:
    """Whatever was read before; the copy reads the same tiles."""
    stored, bag = saved
    stored[3]
    data = pickle.dumps(stored)
    assert len(data) < 500
    np.testing.assert_array_equal(pickle.loads(data)[::100], bag.tiles[::100])


def test_a_closed_bag_can_be_read_again(saved: tuple[StoredBag, MemoryBag]) -> None:
    """The end of a with block closes files only."""
    stored, bag = saved
    with stored:
        stored[3]
    np.testing.assert_array_equal(stored[4], bag.tiles[4])


@pytest.mark.slow
def test_many_threads_share_a_bag_of_many_shards(tmp_path: Path, pixels: str) -> None:
    """Eight threads read all over 40 shards, while files are opened and closed: each gets its tiles."""
    bag = MemoryBag(40 * SLOTS, 2, 2)
    stored = save_bag(bag, tmp_path / "a.bag.zarr", pixels=pixels)

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(20):
            numbers = rng.integers(0, len(bag), 30)
            np.testing.assert_array_equal(stored.read(numbers), bag.tiles[numbers])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))


def test_a_stored_bag_is_stored_again_with_other_pixels(tmp_path: Path) -> None:
    """Saved over itself, only the storage of pixels changes."""
    bag = MemoryBag(SLOTS + 3)
    old = save_bag(bag, tmp_path / "a.bag.zarr", pixels="zstd")
    new = save_bag(old, tmp_path / "a.bag.zarr", pixels="none", overwrite=True)
    fresh = save_bag(bag, tmp_path / "fresh.bag.zarr", pixels="none")
    assert contents(new.path) == contents(fresh.path)
    old.close()
    with pytest.raises(BagFormatError, match="replaced since it was opened; open it again"):
        old[0]


@pytest.mark.parametrize("label", [None, 0, 0.25, "tumour", "µ"])
def test_labels_keep_their_type(tmp_path: Path, label: object) -> None:
    """A number, text or None is read as such."""
    stored = save_bag(MemoryBag(label=label), tmp_path / "a.bag.zarr", pixels="none")
    assert stored.label == label
    assert type(stored.label) is type(label)
    assert repr(stored).endswith("none)" if label is None else f"none, label {label})")


def test_a_stored_bag_of_a_slide_has_tiles_at_its_coordinates(
    coordinate_slide: Path, tmp_path: Path, pixels: str
) -> None:
    """The pixels of the slide encode their position."""
    view = open_slide(coordinate_slide).view()
    bag = TileBag(view, TileGrid(view, tile_size=64, edge="pad"), label="tumour")
    stored = save_bag(bag, tmp_path / "a.bag.zarr", pixels=pixels)
    assert (stored.name, stored.label, stored.view_mpp, stored.shape) == (bag.name, "tumour", bag.view_mpp, bag.shape)
    assert stored.provenance() == json.loads(json.dumps(bag.provenance()))
    np.testing.assert_array_equal(stored[:], bag[:])
    np.testing.assert_array_equal(stored[:, 0, 0, :2], stored.coords % 256)
    np.testing.assert_array_equal(stored.tissue, bag.tissue)  # NaN: there was no mask


# --- writing


def test_the_same_bag_gives_the_same_bytes(tmp_path: Path, pixels: str) -> None:
    """With one thread or four, at any time: every file is the same."""
    bag = MemoryBag(2 * SLOTS + 3)
    first = save_bag(bag, tmp_path / "1.bag.zarr", pixels=pixels, threads=1)
    second = save_bag(bag, tmp_path / "4.bag.zarr", pixels=pixels, threads=4)
    assert contents(first.path) == contents(second.path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["1.bag.zarr", "4.bag.zarr"]


def test_progress_counts_tiles(tmp_path: Path) -> None:
    """It starts at the number of existing tiles and ends at all tiles, also for an empty bag."""
    calls: list[tuple[int, int]] = []
    save_bag(MemoryBag(SLOTS + 3), tmp_path / "a.bag.zarr", progress=lambda done, total: calls.append((done, total)))
    assert calls == [(0, 515), (512, 515), (515, 515)]
    calls.clear()
    save_bag(MemoryBag(0), tmp_path / "b.bag.zarr", progress=lambda done, total: calls.append((done, total)))
    assert calls == [(0, 0)]


@pytest.mark.parametrize(
    ("side", "tiles"), [(1, 512), (224, 512), (256, 512), (512, 170), (1024, 42), (4096, 2), (8192, 1)]
)
def test_shards_stay_below_128_mib(side: int, tiles: int) -> None:
    """512 tiles, or as many as fit into 128 MiB, and at least one."""
    assert tiles_per_shard(side * side * 3) == tiles
    assert tiles == 1 or tiles * side * side * 3 <= 128 * 2**20


def test_a_reading_error_leaves_no_output(tmp_path: Path) -> None:
    """The slide's own error is raised, nothing has the final name, and the next run reads only the rest."""
    path = tmp_path / "a.bag.zarr"
    with pytest.raises(CorruptSlideError, match="tile 3 cannot be decoded"):
        save_bag(StoppingBag(SLOTS + 1, corrupt, count=3 * SLOTS), path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bag.zarr.partial"]
    calls: list[int] = []
    save_bag(MemoryBag(3 * SLOTS), path, progress=lambda done, total: calls.append(done))
    assert calls == [512, 1024, 1536]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bag.zarr"]


def test_an_interrupt_leaves_a_resumable_state(tmp_path: Path) -> None:
    """Ctrl-C ends the run, releases the lock and keeps finished shards."""
    path = tmp_path / "a.bag.zarr"

    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_bag(MemoryBag(4 * SLOTS), path, progress=interrupt)
    assert not path.exists()
    np.testing.assert_array_equal(save_bag(MemoryBag(4 * SLOTS), path)[:], MemoryBag(4 * SLOTS).tiles)


@pytest.mark.parametrize("change", ["coords", "label", "pixels"])
def test_finished_shards_of_another_bag_are_not_used(tmp_path: Path, change: str) -> None:
    """If it differs in one coordinate or the label, for example."""
    path = tmp_path / "a.bag.zarr"
    with pytest.raises(CorruptSlideError):
        save_bag(StoppingBag(SLOTS + 1, corrupt, count=2 * SLOTS), path, pixels="none")
    other = MemoryBag(2 * SLOTS, label=2 if change == "label" else 1)
    other.coords[-1, -1] += change == "coords"
    calls: list[int] = []
    pixels = "zstd" if change == "pixels" else "none"
    save_bag(other, path, pixels=pixels, progress=lambda done, total: calls.append(done))
    assert calls == [0, 512, 1024]


HANGING = """
import sys, time
from pathlib import Path
from memory_bag import SLOTS, StoppingBag
from slideio_pipe.store import save_bag

def hang():
    while not Path(sys.argv[1] + ".partial/tiles/c/2/0/0/0").exists():
        time.sleep(0.01)
    print("hanging", flush=True)
    time.sleep(600)

save_bag(StoppingBag(4 * SLOTS, hang, count=6 * SLOTS + 5), sys.argv[1], pixels=sys.argv[2])
"""


@pytest.fixture
def hanging(tmp_path: Path, pixels: str) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A path that another process is writing to; it stops in its fifth shard and waits."""
    path = tmp_path / "a.bag.zarr"
    environment = {**os.environ, "PYTHONPATH": SEARCHED}
    command = [sys.executable, "-c", HANGING, str(path), pixels]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "hanging\n"
            yield path, process
        finally:
            process.kill()


@pytest.mark.system
def test_a_killed_and_resumed_run_writes_the_same_bytes(
    hanging: tuple[Path, subprocess.Popen[str]], tmp_path: Path, pixels: str
) -> None:
    """After SIGKILL, with incomplete and damaged shards: complete ones are kept."""
    path, process = hanging
    bag = MemoryBag(6 * SLOTS + 5)
    with pytest.raises(OutputError, match=f"is being written by process {process.pid} on {socket.gethostname()}"):
        save_bag(bag, path, pixels=pixels)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not path.exists()
    partial = tmp_path / "a.bag.zarr.partial"
    torn = partial / "tiles/c/1/0/0/0"
    torn.write_bytes(torn.read_bytes()[:-1])
    unfinished = partial / "tiles/c/4/0/0/0.partial"
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    unfinished.write_bytes(b"half a shard")
    kept = (partial / "tiles/c/0/0/0/0").stat().st_ino
    calls: list[int] = []
    stored = save_bag(bag, path, pixels=pixels, progress=lambda done, total: calls.append(done))
    assert calls[0] in (2 * SLOTS, 3 * SLOTS)  # the fourth shard may have been under way
    assert (path / "tiles/c/0/0/0/0").stat().st_ino == kept
    undisturbed = save_bag(bag, tmp_path / "b.bag.zarr", pixels=pixels)
    assert contents(stored.path) == contents(undisturbed.path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.bag.zarr", "b.bag.zarr"]


@pytest.mark.parametrize("pixels", ["none"], indirect=True)
def test_only_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path, pixels: str) -> None:
    """A lock of another host is respected and named; one of a process that ended here is removed."""
    path, lock = tmp_path / "a.bag.zarr", tmp_path / "a.bag.zarr.lock"
    lock.write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
    with pytest.raises(OutputError, match=f"process 7 on elsewhere.*remove {re.escape(str(lock))}"):
        save_bag(MemoryBag(), path)
    assert lock.exists()
    lock.write_text(json.dumps({"pid": 2**22 + 1, "host": socket.gethostname()}))
    save_bag(MemoryBag(), path)
    lock.write_text("")
    save_bag(MemoryBag(), path, overwrite=True)
    assert not lock.exists()


def test_two_threads_cannot_write_one_bag(tmp_path: Path) -> None:
    """The lock also holds within a process."""
    reading, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        reading.set()
        assert go_on.wait(60)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(save_bag, StoppingBag(0, wait), tmp_path / "a.bag.zarr")
        assert reading.wait(60)
        with pytest.raises(OutputError, match="is being written"):
            save_bag(MemoryBag(), tmp_path / "a.bag.zarr")
        go_on.set()
        assert len(first.result()) == 5


# --- existing outputs


def test_an_existing_bag_is_kept_without_overwrite(tmp_path: Path) -> None:
    """No byte of it changes."""
    stored = save_bag(MemoryBag(), tmp_path / "a.bag.zarr")
    before = contents(stored.path)
    with pytest.raises(OutputExistsError, match="already exists; open it with open_bag, or pass overwrite=True"):
        save_bag(MemoryBag(label=2), stored.path)
    assert contents(stored.path) == before


def test_the_old_bag_is_kept_until_the_new_one_is_complete(tmp_path: Path) -> None:
    """While it is overwritten it can be opened, also after the new one failed."""
    path = tmp_path / "a.bag.zarr"
    save_bag(MemoryBag(), path)
    labels: list[object] = []
    with pytest.raises(CorruptSlideError):
        save_bag(StoppingBag(0, corrupt, label=2), path, overwrite=True)
    save_bag(MemoryBag(label=2), path, overwrite=True, progress=lambda *_: labels.append(open_bag(path).label))
    assert labels == [1, 1]
    assert open_bag(path).label == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bag.zarr"]


def test_a_swap_that_was_killed_in_the_middle_is_undone(tmp_path: Path) -> None:
    """Killed between the two renames, the old bag first gets its name back."""
    path = tmp_path / "a.bag.zarr"
    save_bag(MemoryBag(label="old"), path).path.rename(tmp_path / "a.bag.zarr.replaced")
    with pytest.raises(OutputExistsError):
        save_bag(MemoryBag(label="new"), path)
    assert open_bag(path).label == "old"


def test_a_swap_that_was_killed_at_its_end_is_completed(tmp_path: Path) -> None:
    """Killed after both renames, the next run removes the old bag."""
    path = tmp_path / "a.bag.zarr"
    save_bag(MemoryBag(label="oldest"), tmp_path / "a.bag.zarr.replaced")
    save_bag(MemoryBag(label="old"), tmp_path / "old").path.rename(path)
    assert save_bag(MemoryBag(label="new"), path, overwrite=True).label == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bag.zarr"]


@pytest.mark.parametrize("where", ["a.bag.zarr", "a.bag.zarr.partial"])
@pytest.mark.parametrize("kind", ["folder", "file", "zarr array"])
def test_a_path_that_is_no_bag_is_never_removed(tmp_path: Path, where: str, kind: str) -> None:
    """A folder of other files, a file or another zarr, even with overwrite=True."""
    victim = tmp_path / where
    if kind == "folder":
        victim.mkdir()
        (victim / "thesis.tex").write_text("years of work")
    elif kind == "file":
        victim.write_text("years of work")
    else:
        zarr.create_array(victim, shape=(3,), dtype="i4")[...] = 1
        (victim / "notes.txt").write_text("years of work")
    before = victim.read_bytes() if victim.is_file() else contents(victim)
    with pytest.raises(OutputExistsError, match="remove it or pass another path"):
        save_bag(MemoryBag(), tmp_path / "a.bag.zarr", overwrite=True)
    assert before == (victim.read_bytes() if victim.is_file() else contents(victim))


# --- disks and folders that cannot be written


@pytest.fixture
def tmpfs(tmp_path: Path):
    """Mounts a small file system, or skips where that is not allowed."""
    mounted: list[Path] = []

    def mount(options: str, folder: Path = tmp_path / "disk") -> Path:
        folder.mkdir(exist_ok=True)
        if sys.platform != "linux" or shutil.which("mount") is None:
            pytest.skip("no tmpfs on this system")
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {result.stderr.strip()}")
        if "remount" not in options:
            mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.system
def test_a_run_resumes_after_a_full_disk(tmpfs, tmp_path: Path, pixels: str) -> None:
    """The error is an OutputError with a remedy; nothing has the final name."""
    bag = MemoryBag(30 * SLOTS, 8, 8)
    disk = tmpfs("size=1m")
    with pytest.raises(OutputError, match=r"No space left on device.*free some space and run again"):
        save_bag(bag, disk / "a.bag.zarr", pixels=pixels)
    assert [entry.name for entry in disk.iterdir()] == ["a.bag.zarr.partial"]
    tmpfs("remount,size=16m")
    calls: list[int] = []
    stored = save_bag(bag, disk / "a.bag.zarr", pixels=pixels, progress=lambda done, total: calls.append(done))
    assert calls[0] >= SLOTS
    assert contents(stored.path) == contents(save_bag(bag, tmp_path / "b.bag.zarr", pixels=pixels).path)


def test_a_disk_without_room_for_coordinates_is_full(tmpfs) -> None:
    """The same error."""
    disk = tmpfs("size=16k")
    with pytest.raises(OutputError, match=f"{disk}.*No space left on device"):
        save_bag(MemoryBag(10_000, 2, 2), disk / "a.bag.zarr")


def test_a_read_only_disk_is_an_output_error(tmpfs) -> None:
    """With path, reason and remedy."""
    disk = tmpfs("ro,size=16k")
    with pytest.raises(OutputError, match=f"{disk}/a.bag.zarr.*Read-only file system.*writable disk"):
        save_bag(MemoryBag(), disk / "a.bag.zarr")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_an_output_error(tmp_path: Path) -> None:
    """With path, reason and remedy."""
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match=r"Permission denied.*you may write to"):
        save_bag(MemoryBag(), tmp_path / "a.bag.zarr")
    tmp_path.chmod(0o700)


def test_a_file_in_place_of_a_parent_folder_is_an_output_error(tmp_path: Path) -> None:
    """Missing parents are created."""
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="a file is in the way"):
        save_bag(MemoryBag(), tmp_path / "file/a.bag.zarr")
    assert len(save_bag(MemoryBag(), tmp_path / "new/folders/a.bag.zarr")) == 5


# --- arguments


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (7, 1)])
def test_tiles_of_one_pixel_are_stored(tmp_path: Path, height: int, width: int) -> None:
    """The smallest tiles."""
    with save_bag(MemoryBag(3, height, width), tmp_path / "a", progress=False) as bag:
        assert np.array_equal(bag[:], MemoryBag(3, height, width).tiles)


@pytest.mark.parametrize("shape", [(3, 0, 4, 3), (3, 4, 4, 4)], ids=str)
def test_invalid_tile_shapes_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Of no height, or of four channels."""
    bag = MemoryBag(3)
    bag.shape = shape
    with pytest.raises(ConfigError, match=r"not \(height, width, 3\)"):
        save_bag(bag, tmp_path / "a", progress=False)
    assert not list(tmp_path.iterdir())


def test_invalid_arguments_are_refused(tmp_path: Path) -> None:
    """Unknown pixels, no threads, arrays that do not fit, labels that are no JSON; before writing."""
    with pytest.raises(ConfigError, match="pixels='webp'"):
        save_bag(MemoryBag(), tmp_path / "a", pixels="webp")
    with pytest.raises(ConfigError, match="threads is 0"):
        save_bag(MemoryBag(), tmp_path / "a", threads=0)
    short = MemoryBag()
    short.tissue = short.tissue[:-1]
    with pytest.raises(ConfigError, match=r"tissue has the shape \(4,\), not \(5,\)"):
        save_bag(short, tmp_path / "a")
    with pytest.raises(ConfigError, match="label"):
        save_bag(MemoryBag(label=np.int64(3)), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


# --- damage


def no_label(data: dict) -> None:
    del data["attributes"]["tile_bag"]["label"]


DAMAGES = {
    "not there": (lambda path: shutil.rmtree(path), "no bag store"),
    "no group": (lambda path: (path / "zarr.json").unlink(), "no bag store"),
    "torn metadata": (lambda path: (path / "zarr.json").write_text('{"zarr_fo'), "zarr.json cannot be read"),
    "an array": (lambda path: shutil.copy(path / "tiles/zarr.json", path), "describes no zarr v3 group"),
    "another group": (
        lambda path: edit_json(path / "zarr.json", lambda data: data["attributes"].clear()),
        'without the attribute "tile_bag"',
    ),
    "the future": (
        lambda path: edit_json(path / "zarr.json", lambda data: data["attributes"]["tile_bag"].update(version=2)),
        "version 2; this package reads version 1; upgrade",
    ),
    "no version": (
        lambda path: edit_json(path / "zarr.json", lambda data: data["attributes"]["tile_bag"].pop("version")),
        "version None",
    ),
    "no label": (lambda path: edit_json(path / "zarr.json", no_label), 'lacks "label"'),
    "no name": (
        lambda path: edit_json(path / "zarr.json", lambda data: data["attributes"]["tile_bag"].update(slide={})),
        "name of the slide",
    ),
    "no tiles": (lambda path: shutil.rmtree(path / "tiles"), "tiles: no zarr v3 array"),
    "no coords": (lambda path: shutil.rmtree(path / "coords"), "coords: no zarr v3 array"),
    "no values": (lambda path: (path / "tissue/c/0").unlink(), "tissue: chunks are not there"),
    "torn values": (lambda path: os.truncate(path / "coords/c/0/0", 8), "coords: cannot be read"),
    "other length": (
        lambda path: edit_json(path / "tissue/zarr.json", lambda data: data.update(shape=[4])),
        r"tissue has the shape \(4,\), not \(5,\)",
    ),
    "other type": (
        lambda path: edit_json(path / "coords/zarr.json", lambda data: data.update(data_type="uint64")),
        "coords is uint64, not int64",
    ),
    "other tiles": (
        lambda path: edit_json(path / "tiles/zarr.json", lambda data: data.update(data_type="int8")),
        "has not the layout of a bag: data_type",
    ),
    "torn description": (
        lambda path: edit_json(path / "tiles/zarr.json", lambda data: data.update(codecs=[])),
        "not described as a bag's",
    ),
    "other codec": (
        lambda path: edit_json(
            path / "tiles/zarr.json",
            lambda data: data["codecs"][0]["configuration"]["codecs"].append({"name": "blosc"}),
        ),
        "tiles are stored as bytes.*blosc; upgrade",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_store_is_refused(tmp_path: Path, damage: str) -> None:
    """For every fault of the metadata, with the path and a remedy, when the bag is opened."""
    path = save_bag(MemoryBag(), tmp_path / "a.bag.zarr").path
    break_it, message = DAMAGES[damage]
    break_it(path)
    with pytest.raises(BagFormatError, match=message) as error:
        open_bag(path)
    assert str(error.value).startswith(str(path))
    assert error.value.remedy


OTHER_LAYOUTS = {
    "rows of chunks": ("chunk_grid", lambda data: data["chunk_grid"].update(name="rectangular")),
    "part of a tile": ("chunk_grid", lambda data: data["chunk_grid"]["configuration"]["chunk_shape"].__setitem__(1, 1)),
    "over a tile": ("chunk_grid", lambda data: data["chunk_grid"]["configuration"]["chunk_shape"].__setitem__(2, 99)),
    "no slots": ("chunk_grid", lambda data: data["chunk_grid"]["configuration"]["chunk_shape"].__setitem__(0, 0)),
    "four channels": ("shape", lambda data: data["shape"].__setitem__(3, 4)),
    "a negative count": ("shape", lambda data: data["shape"].__setitem__(0, -1)),
    "other names": ("chunk_key_encoding", lambda data: data["chunk_key_encoding"].update(name="v2")),
    "names with dots": (
        "chunk_key_encoding",
        lambda data: data["chunk_key_encoding"].update(configuration={"separator": "."}),
    ),
    "no shards": ("sharding", lambda data: data["codecs"][0].update(name="zstd")),
    "chunks of two tiles": (
        "sharding",
        lambda data: data["codecs"][0]["configuration"]["chunk_shape"].__setitem__(0, 2),
    ),
    "index first": ("sharding", lambda data: data["codecs"][0]["configuration"].update(index_location="start")),
    "no checksum": ("index_codecs", lambda data: data["codecs"][0]["configuration"]["index_codecs"].pop()),
    "big endian": (
        "index_codecs",
        lambda data: data["codecs"][0]["configuration"]["index_codecs"][0].update(configuration={"endian": "big"}),
    ),
}


@pytest.mark.parametrize("layout", OTHER_LAYOUTS)
def test_another_layout_of_tiles_is_refused(tmp_path: Path, layout: str) -> None:
    """zarr allows layouts that this reader does not: each is refused by its name in zarr."""
    path = save_bag(MemoryBag(), tmp_path / "a.bag.zarr").path
    field, change = OTHER_LAYOUTS[layout]
    edit_json(path / "tiles/zarr.json", change)
    with pytest.raises(BagFormatError, match=f"has not the layout of a bag: .*{field}"):
        open_bag(path)


def test_a_slide_in_place_of_a_bag_is_refused(tmp_path: Path) -> None:
    """With what to pass instead."""
    (tmp_path / "a.svs").write_bytes(b"II*\0")
    with pytest.raises(BagFormatError, match=r"no bag store.*pass the .bag.zarr folder"):
        open_bag(tmp_path / "a.svs")


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    """Any wrong bit in a compressed tile is an error with the tile's number; other tiles are read."""
    bag = MemoryBag(5, 16, 16)
    shard = save_bag(bag, tmp_path / "a.bag.zarr", pixels="zstd").path / "tiles/c/0/0/0/0"
    data = bytearray(shard.read_bytes())
    start, size = np.frombuffer(data[-SLOTS * 16 - 4 : -4], "<u8")[8:10].tolist()  # of the last tile
    assert start + size == len(data) - SLOTS * 16 - 4
    for position in range(start, start + size, 5):
        data[position] ^= 4
        shard.write_bytes(data)
        data[position] ^= 4
        stored = open_bag(tmp_path / "a.bag.zarr")
        with pytest.raises(BagFormatError, match="tile 4 "):
            stored.read(np.arange(5), threads=2)
        np.testing.assert_array_equal(stored[:4], bag.tiles[:4])


def test_a_missing_shard_is_an_error(tmp_path: Path, pixels: str) -> None:
    """zarr would return the fill value, black."""
    stored = save_bag(MemoryBag(2 * SLOTS), tmp_path / "a.bag.zarr", pixels=pixels)
    shutil.rmtree(stored.path / "tiles/c/1")
    assert stored[0].shape == (4, 6, 3)
    with pytest.raises(BagFormatError, match="shard 1 of 2 is not there; copy or write the bag again"):
        stored[SLOTS]
