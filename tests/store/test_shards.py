"""Shard files compared with a reader written from the specification, and with zarr-python."""

from __future__ import annotations

import struct
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from slideio_pipe.errors import BagFormatError, ConfigError
from slideio_pipe.store import shards
from slideio_pipe.store.codecs import codec_for, codec_from_zarr
from slideio_pipe.store.shards import ShardGrid, ShardReader, is_finished, write_shard

MISSING = 2**64 - 1


def parse(data: bytes, slots: int) -> list[bytes | None]:
    """A plain reader of a sharding_indexed file with its index at the end, by the specification."""
    index, crc = data[-slots * 16 - 4 : -4], data[-4:]
    assert google_crc32c.value(index) == struct.unpack("<I", crc)[0]
    pairs = struct.iter_unpack("<QQ", index)
    return [None if pair == (MISSING, MISSING) else data[pair[0] : pair[0] + pair[1]] for pair in pairs]


def sealed(index: list[tuple[int, int]]) -> bytes:
    """Return the bytes of an index with a correct checksum."""
    data = b"".join(struct.pack("<QQ", *pair) for pair in index)
    return data + struct.pack("<I", google_crc32c.value(data))


def raw_reader(folder: Path, count: int, slots: int, **kwargs: object) -> ShardReader:
    return ShardReader(ShardGrid(folder, count, slots, **kwargs), codec_for("none"))


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """The folder of an array of one shard with four slots: three chunks of 12 bytes, the last slot missing."""
    write_shard(tmp_path / "c/0/0/0/0", [bytes([k] * 12) for k in (1, 2, 3)], 4)
    return tmp_path


@given(chunks=st.lists(st.binary(min_size=1, max_size=40), max_size=6), spare=st.integers(0, 3))
def test_any_chunks_are_found_by_a_plain_reader(chunks: list[bytes], spare: int, tmp_path_factory) -> None:
    """For any chunks; spare slots are missing."""
    slots = len(chunks) + spare or 1
    path = tmp_path_factory.mktemp("shard") / "c/0/0/0/0"
    write_shard(path, chunks, slots)
    assert parse(path.read_bytes(), slots) == chunks + [None] * (slots - len(chunks))


def test_a_failing_encoder_leaves_no_file(tmp_path: Path) -> None:
    """Neither the shard nor its temporary file."""

    def chunks():
        yield b"abc"
        raise RuntimeError("encoder")

    with pytest.raises(RuntimeError, match="encoder"):
        write_shard(tmp_path / "shard", chunks(), 4)
    assert list(tmp_path.iterdir()) == []


def test_a_shard_replaces_an_unfinished_one(tmp_path: Path) -> None:
    """A temporary file of a killed run is overwritten, and does not remain."""
    (tmp_path / "shard.partial").write_bytes(b"x" * 1000)
    write_shard(tmp_path / "shard", [b"abc"], 2)
    assert parse((tmp_path / "shard").read_bytes(), 2) == [b"abc", None]
    assert [file.name for file in tmp_path.iterdir()] == ["shard"]


@pytest.mark.parametrize("numbers", [[0], [2, 1, 0], [0, 1, 2], [1, 1, 2, 2, 0], []])
@pytest.mark.parametrize("threads", [1, 3])
def test_chunks_are_read_in_the_requested_order(three: Path, numbers: list[int], threads: int) -> None:
    """Neighbours, repetitions and any order; each is in its slot."""
    out = np.full((len(numbers), 12), 99, np.uint8)
    raw_reader(three, 3, 4).read(np.array(numbers, np.int64), out, threads)
    assert out.tolist() == [[number + 1] * 12 for number in numbers]


def test_a_missing_chunk_has_the_fill_value(tmp_path: Path) -> None:
    """A missing entry or a missing file, beside existing chunks."""
    data = b"\x07" * 12 + b"\x08" * 12
    path = tmp_path / "c/0/0/0/0"
    path.parent.mkdir(parents=True)
    path.write_bytes(data + sealed([(MISSING, MISSING), (0, 12), (MISSING, MISSING), (12, 12)]))
    out = np.zeros((8, 12), np.uint8)
    raw_reader(tmp_path, 8, 4, fill_value=5).read(np.arange(8), out)
    assert out[:, 0].tolist() == [5, 7, 5, 8, 5, 5, 5, 5]


def test_chunks_out_of_file_order_are_read(tmp_path: Path) -> None:
    """zarr v3 allows any order of chunks, and gaps."""
    path = tmp_path / "c/0/0/0/0"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x02" * 12 + b"gap" + b"\x01" * 12 + sealed([(15, 12), (0, 12)]))
    out = np.zeros((2, 12), np.uint8)
    raw_reader(tmp_path, 2, 2).read(np.arange(2), out)
    assert out[:, 0].tolist() == [1, 2]


def test_a_missing_chunk_is_no_neighbour(tmp_path: Path) -> None:
    """Its offset of -1 must not join it with the chunk that begins where such a chunk would end."""
    path = tmp_path / "c/0/0/0/0"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"gap" * 3 + b"xx" + b"\x01" * 12 + sealed([(MISSING, MISSING), (11, 12)]))
    out = np.full((2, 12), 9, np.uint8)
    raw_reader(tmp_path, 2, 2).read(np.arange(2), out)
    assert out.tolist() == [[0] * 12, [1] * 12]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        pytest.param([(0, 12), (13, 12)], "chunk 1 is outside", id="behind the end"),
        pytest.param([(0, 12), (2**64 - 6, 12)], "chunk 1 is outside", id="offset that wraps around"),
        pytest.param([(0, 2**63 + 5), (12, 12)], "chunk 0 is outside", id="endless chunk"),
        pytest.param([(MISSING, 12), (12, 12)], "chunk 0 is outside", id="half missing"),
        pytest.param([(0, 11), (12, 12)], "tile 0 has 11 bytes, not 12", id="short chunk"),
    ],
)
def test_an_index_with_wrong_ranges_is_refused(tmp_path: Path, index: list[tuple[int, int]], message: str) -> None:
    """The checksum is right, but entries are outside the file, or have too few bytes."""
    path = tmp_path / "c/0/0/0/0"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x01" * 24 + sealed(index))
    with pytest.raises(BagFormatError, match=message):
        raw_reader(tmp_path, 2, 2).read(np.arange(2), np.zeros((2, 12), np.uint8))


@pytest.mark.parametrize(
    ("keep", "message"), [(slice(None, -1), "checksum"), (slice(1, None), "outside"), (slice(0, 30), "shorter")]
)
def test_a_truncated_shard_is_refused(three: Path, keep: slice, message: str) -> None:
    """Without its end, its start, or most of it: the error has the path and the reason."""
    path = three / "c/0/0/0/0"
    path.write_bytes(path.read_bytes()[keep])
    assert not is_finished(path, 3, 4)
    with pytest.raises(BagFormatError, match=message) as error:
        raw_reader(three, 3, 4).read(np.arange(3), np.zeros((3, 12), np.uint8))
    assert str(path) in str(error.value)


def test_only_a_complete_shard_counts_as_finished(three: Path) -> None:
    """With the right number of chunks and no gaps."""
    path = three / "c/0/0/0/0"
    assert is_finished(path, 3, 4)
    assert not is_finished(path, 2, 4)
    assert not is_finished(path, 4, 4)
    assert not is_finished(three / "c/1/0/0/0", 3, 4)


def test_a_lost_chunk_of_a_complete_array_is_an_error(three: Path) -> None:
    """If every chunk was written, a missing one is not the fill value."""
    reader = raw_reader(three, 8, 4, complete=True)
    with pytest.raises(BagFormatError, match="tile 3 is not there"):
        reader.read(np.array([3]), np.zeros((1, 12), np.uint8))
    with pytest.raises(BagFormatError, match="shard 1 of 2 is not there"):
        reader.read(np.array([4]), np.zeros((1, 12), np.uint8))
    assert reader.encoded(1) == b"\x02" * 12
    with pytest.raises(BagFormatError, match="tile 3 is not there"):
        reader.encoded(3)


def test_a_shard_that_cannot_be_opened_is_an_error(three: Path) -> None:
    """With the system's reason: here a link to itself."""
    path = three / "c/0/0/0/0"
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(BagFormatError, match=r"shard 0 cannot be opened \(Too many levels of symb") as error:
        raw_reader(three, 3, 4, complete=True).read(np.array([0]), np.zeros((1, 12), np.uint8))
    assert error.value.slide == str(path)


def test_a_zstd_frame_of_another_size_is_refused(tmp_path: Path) -> None:
    """One that decodes to fewer or more bytes than a tile never leaves a partly filled slot."""
    codec = codec_for("zstd")
    for size in (11, 13):
        write_shard(tmp_path / "c/0/0/0/0", [codec.encode(np.ones(size, np.uint8))], 1)
        with pytest.raises(BagFormatError, match="tile 0"):
            ShardReader(ShardGrid(tmp_path, 1, 1), codec).read(np.array([0]), np.zeros((1, 12), np.uint8))


def test_zarr_reads_the_frames_of_our_codec() -> None:
    """zarr's codec of the same metadata decodes the bytes of our zstd codec."""
    tile = np.random.default_rng(0).integers(0, 9, (16, 24, 3), dtype=np.uint8)
    codec = codec_for("zstd")
    store = zarr.storage.MemoryStore()
    array = zarr.create_array(
        store, shape=tile.shape, dtype="uint8", chunks=tile.shape, compressors=list(codec.zarr), filters=None
    )
    array[...] = 1
    key = next(key for key in store._store_dict if key.endswith("c/0/0/0"))
    store._store_dict[key] = type(store._store_dict[key]).from_bytes(codec.encode(tile))
    np.testing.assert_array_equal(array[...], tile)


def test_unknown_codecs_are_refused() -> None:
    """An unknown way to store pixels by its name; another codec chain has no codec."""
    with pytest.raises(ConfigError, match="'lzma' is not a way"):
        codec_for("lzma")
    assert codec_from_zarr([{"name": "bytes"}, {"name": "blosc"}]) is None


def test_the_shard_read_longest_ago_is_closed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is read again and again remains open."""
    monkeypatch.setattr(shards, "OPEN_SHARDS", 2)
    for shard in range(4):
        write_shard(tmp_path / f"c/{shard}/0/0/0", [bytes([shard] * 12)], 1)
    reader = raw_reader(tmp_path, 4, 1)
    opened: list[int] = []
    plain = reader._open

    def watched(shard: int) -> object:
        opened.append(shard)
        return plain(shard)

    monkeypatch.setattr(reader, "_open", watched)
    out = np.zeros((1, 12), np.uint8)
    for shard in (0, 1, 0, 2, 0, 3, 0):
        reader.read(np.array([shard]), out)
        assert out[0, 0] == shard
    assert opened == [0, 1, 2, 3]
    reader.close()


def test_open_files_are_limited(tmp_path: Path) -> None:
    """At most 16 while 40 shards are read, none after close()."""
    for shard in range(40):
        write_shard(tmp_path / f"c/{shard}/0/0/0", [bytes([shard] * 12)], 1)
    reader = raw_reader(tmp_path, 40, 1)

    def held() -> int:
        files = [fd.resolve() for fd in Path("/proc/self/fd").iterdir()]
        return sum(tmp_path in file.parents for file in files)

    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc on this system to count descriptors")
    out = np.zeros((40, 12), np.uint8)
    reader.read(np.arange(40), out, threads=4)
    assert out[:, 0].tolist() == list(range(40))
    assert held() == 16
    reader.close()
    assert held() == 0
    reader.read(np.arange(40), out)
    del reader
    assert held() == 0
