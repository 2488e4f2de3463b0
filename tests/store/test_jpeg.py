"""Bags of JPEG bytes: the slide's own, unchanged, or ours of a stated quality."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tomllib
import types
import warnings
from pathlib import Path

import albumentationsxl as A
import imagecodecs
import numpy as np
import pytest
import simplejpeg
import tifffile
import zarr
import zarr.registry
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import examples
from made_slides import made_slide
from memory_bag import MemoryBag, StoppingBag, contents, corrupt
from paths import ROOT
from skimage.metrics import peak_signal_noise_ratio

from slideio_pipe.errors import BagFormatError, ConfigError, CorruptSlideError, SkippedWarning
from slideio_pipe.slides.slide import open_slide
from slideio_pipe.store import metadata, open_bag, save_bag, zarr_jpeg
from slideio_pipe.store.shards import write_shard
from slideio_pipe.tiles.grid import TileGrid
from slideio_pipe.tiles.tile_bag import TileBag

SOS = b"\xff\xda"
MUTATED = simplejpeg.encode_jpeg(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), quality=30)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of 4 × 3 stored JPEG tiles of 256 px at level 0, with an incomplete last row and column."""
    path = tmp_path_factory.mktemp("slides") / "a.svs"
    made_slide(path, size=(1100, 820), seed=4)
    return path


def bag_of(slide: Path, *, mpp: float | None = None, transform=None, tile_transform=None, **grid) -> TileBag:
    view = open_slide(slide).view(mpp=mpp, transform=transform)
    return TileBag(view, TileGrid(view, **grid), label=1, tile_transform=tile_transform)


def chunks_of(store: Path, shard: int = 0) -> list[bytes]:
    """The chunks of a shard, by the specification."""
    slots = json.loads((store / "tiles/zarr.json").read_text())["chunk_grid"]["configuration"]["chunk_shape"][0]
    data = (store / f"tiles/c/{shard}/0/0/0").read_bytes()
    index = np.frombuffer(data[-slots * 16 - 4 : -4], "<u8").reshape(slots, 2)
    return [data[offset : offset + size] for offset, size in index.tolist() if size != 2**64 - 1]


def replace_chunk(store: Path, number: int, chunk: bytes) -> None:
    """Write shard 0 again with one chunk replaced: the index is right, the chunk is not."""
    chunks = chunks_of(store)
    slots = json.loads((store / "tiles/zarr.json").read_text())["chunk_grid"]["configuration"]["chunk_shape"][0]
    write_shard(store / "tiles/c/0/0/0/0", [*chunks[:number], chunk, *chunks[number + 1 :]], slots)


def with_size(jpeg: bytes, width: int, height: int) -> bytes:
    """Return a JPEG whose frame header states another size."""
    at = jpeg.find(b"\xff\xc0") + 5
    return jpeg[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + jpeg[at + 4 :]


# --- the slide's own bytes


def test_source_bytes_equal_the_slides(slide: Path, tmp_path: Path) -> None:
    """After its headers every chunk equals, byte for byte, what tifffile reads from the slide at its position."""
    bag = bag_of(slide)
    stored = save_bag(bag, tmp_path / "a.bag.zarr", pixels="source")
    assert len(stored) == 12
    with tifffile.TiffFile(slide) as tif:
        page = tif.pages[0]
        columns = -(-page.imagewidth // page.tilewidth)
        for chunk, (x, y) in zip(chunks_of(stored.path), bag.grid.origins.tolist(), strict=True):
            number = y // 256 * columns + x // 256
            tif.filehandle.seek(page.dataoffsets[number])
            own = tif.filehandle.read(page.databytecounts[number])
            assert chunk[chunk.rindex(SOS) :] == own[own.rindex(SOS) :]


def test_source_pixels_equal_the_bags(slide: Path, tmp_path: Path) -> None:
    """Read by us, by zarr-python and, chunk by chunk, by imagecodecs."""
    bag = bag_of(slide)
    stored = save_bag(bag, tmp_path / "a.bag.zarr", pixels="source")
    tiles = bag[:]
    np.testing.assert_array_equal(stored[:], tiles)
    np.testing.assert_array_equal(stored.read([5, 0, 5, 11], threads=3), tiles[[5, 0, 5, 11]])
    np.testing.assert_array_equal(zarr.open_group(stored.path, mode="r")["tiles"][...], tiles)
    np.testing.assert_array_equal([imagecodecs.jpeg8_decode(chunk) for chunk in chunks_of(stored.path)], tiles)
    assert stored.attributes["pixels"] == {
        "codec": "jpeg", "source": True, "lossless": True, "quality": None, "chroma": "4:2:0", "complete": True
    }  # fmt: skip
    assert repr(stored).endswith("12 tiles of 256×256 px at 0.25 µm, source, label 1)")


def test_source_bytes_of_a_coarser_level(tmp_path: Path) -> None:
    """At the resolution of level 1 they are those of level 1."""
    made_slide(tmp_path / "a.svs", size=(2100, 1100), seed=5)
    bag = bag_of(tmp_path / "a.svs", mpp=1.0)
    assert bag.view.level == 1
    stored = save_bag(bag, tmp_path / "a.bag.zarr", pixels="source")
    assert len(stored) == 2
    np.testing.assert_array_equal(stored[:], bag[:])


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "OS-2-ndpi.ome.tif"])
def test_source_bytes_of_real_slides_have_the_right_colours(shared_data: Path, tmp_path: Path, name: str) -> None:
    """JPEG with RGB without a mark, and YCbCr that the file tags as RGB, in every reader."""
    view = open_slide(shared_data / "slides" / name).view()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bag = TileBag(view, TileGrid(view, align=True))
    stored = save_bag(bag, tmp_path / "a.bag.zarr", pixels="source")
    some = [0, len(bag) // 2, len(bag) - 1]
    np.testing.assert_array_equal(stored[some], bag[some])
    array = zarr.open_group(stored.path, mode="r")["tiles"]
    np.testing.assert_array_equal([array[k] for k in some], bag[some])
    shards = sum(file.stat().st_size for file in (stored.path / "tiles/c").rglob("*") if file.is_file())
    with tifffile.TiffFile(shared_data / "slides" / name) as tif:
        page = tif.pages[0]
        columns = -(-page.imagewidth // page.tilewidth)
        numbers = bag.grid.origins[:, 1] // page.tilelength * columns + bag.grid.origins[:, 0] // page.tilewidth
        assert shards < stored.stored_bytes()
        assert shards < 1.1 * sum(page.databytecounts[k] for k in numbers)


def test_sparse_tiles_are_white(slide: Path, tmp_path: Path) -> None:
    """Where the slide has no tile, the bag has a white JPEG."""
    sparse = tmp_path / "sparse.svs"
    sparse.write_bytes(slide.read_bytes())
    with tifffile.TiffFile(sparse, mode="r+b") as tif:
        page = tif.pages[0]
        for tag in ("TileOffsets", "TileByteCounts"):
            page.tags[tag].overwrite([0 if k == 6 else value for k, value in enumerate(page.tags[tag].value)])
    with pytest.warns(SkippedWarning, match="1 of 20 stored tiles of level 0 are empty"):
        bag = bag_of(sparse)
    stored = save_bag(bag, tmp_path / "a.bag.zarr", pixels="source")
    np.testing.assert_array_equal(stored[:], bag[:])
    assert stored[5].min() == 255  # tile 6 of five columns is tile 5 of four
    np.testing.assert_array_equal(zarr.open_group(stored.path, mode="r")["tiles"][5], stored[5])


def test_a_bag_without_tiles_is_stored(slide: Path, tmp_path: Path) -> None:
    """As an empty array of the same codec."""
    view = open_slide(slide).view()
    bag = TileBag.from_coords(view, np.zeros((0, 2), np.int64))
    for pixels in ("source", "jpeg:90"):
        assert len(save_bag(bag, tmp_path / f"{pixels}.bag.zarr", pixels=pixels)) == 0


REFUSED = {
    "tile size": (
        {"tile_size": 128},
        "tiles are 128 px, stored ones 256 px; create the grid with align=True, or pass pixels=",
    ),
    "stride": (
        {"stride": 100},
        r"\d+ of \d+ tiles are not aligned with the stored ones; create the grid with align=True, or",
    ),
    "edge": ({"edge": "pad"}, '8 of 20 tiles reach over the edge of the slide; create the grid with edge="drop", or'),
    "resampled": ({"mpp": 0.5}, r"resampled from level 0 \(2×\); pass mpp=0.25, 1 or 4.*, or pixels="),
    "slide transform": (
        {"transform": A.Compose([A.HorizontalFlip(p=1)])},
        "a transform changes the pixels; leave",
    ),
    "tile transform": ({"tile_transform": A.Compose([A.HorizontalFlip(p=1)])}, "a transform changes the pixels"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_source_bytes_of_tiles_that_are_not_stored_are_refused(
    slide: Path, tmp_path: Path, options: dict, message: str
) -> None:
    """With the reason and the remedy, before anything is written."""
    with pytest.raises(ConfigError, match=f'pixels="source" is not possible: .*{message}'):
        save_bag(bag_of(slide, **options), tmp_path / "a.bag.zarr", pixels="source")
    assert list(tmp_path.iterdir()) == []


def test_tiles_that_are_no_jpeg_are_refused(coordinate_slide: Path, tmp_path: Path) -> None:
    """A slide of another compression, an opened bag and unknown values are refused by name."""
    with pytest.raises(ConfigError, match='level 0 holds no JPEG tiles; pass pixels="jpeg:90" or pixels="zstd"'):
        save_bag(bag_of(coordinate_slide), tmp_path / "a.bag.zarr", pixels="source")
    with pytest.raises(ConfigError, match='needs the tiles of a slide, not a MemoryBag; pass pixels="jpeg:90"'):
        save_bag(MemoryBag(), tmp_path / "a.bag.zarr", pixels="source")
    for unknown in ("jpeg", "jpeg:0", "jpeg:101", "jpeg:9x", "gzip", 90):
        with pytest.raises(ConfigError, match='is not a way to store tiles; pass pixels="source", "jpeg:90"'):
            save_bag(MemoryBag(), tmp_path / "a.bag.zarr", pixels=unknown)


def test_a_truncated_tile_of_the_slide_is_an_error(slide: Path, tmp_path: Path) -> None:
    """With its position; no undecodable chunk is written."""
    damaged = tmp_path / "cut.svs"
    damaged.write_bytes(slide.read_bytes())
    with tifffile.TiffFile(damaged, mode="r+b") as tif:
        counts = tif.pages[0].tags["TileByteCounts"]
        counts.overwrite([value - 200 if k == 6 else value for k, value in enumerate(counts.value)])
    with pytest.raises(CorruptSlideError, match=r"tile \(1, 1\) of level 0, at \(256, 256\) px there.*[Pp]remature"):
        save_bag(bag_of(damaged), tmp_path / "a.bag.zarr", pixels="source")
    assert not (tmp_path / "a.bag.zarr").exists()


def test_jpeg_streams_of_one_channel_are_refused(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written; one damaged tile among the first is another error."""
    grey = simplejpeg.encode_jpeg(np.zeros((256, 256, 1), np.uint8), colorspace="GRAY", colorsubsampling="Gray")
    bag = bag_of(slide)
    tiles = bag.view.slide.stored_tiles(0)
    own = tiles.stream
    monkeypatch.setattr(tiles, "stream", lambda column, row: grey)
    with pytest.raises(ConfigError, match=r"no reader takes the slide's JPEG as it is \(its colours are Gray\); pass"):
        save_bag(bag, tmp_path / "a.bag.zarr", pixels="source")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(tiles, "stream", lambda x, y: own(x, y)[:-9] if x == y == 0 else own(x, y))
    with pytest.raises(CorruptSlideError, match=r"the stored tile \(0, 0\) of level 0"):
        save_bag(bag, tmp_path / "a.bag.zarr", pixels="source")


@pytest.mark.parametrize("pixels", ["source", "jpeg:80"])
def test_an_interrupted_run_ends_with_the_same_bytes(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixels: str
) -> None:
    """After a failure in its third shard a run keeps the first two; the files equal those of an undisturbed run."""
    monkeypatch.setattr(metadata, "MAX_SHARD_TILES", 3)
    bag, path = bag_of(slide), tmp_path / "a.bag.zarr"

    def stop(done: int, total: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_bag(bag, path, pixels=pixels, progress=stop)
    kept = (tmp_path / "a.bag.zarr.partial/tiles/c/0/0/0/0").stat().st_ino
    calls: list[int] = []
    stored = save_bag(bag, path, pixels=pixels, threads=3, progress=lambda done, total: calls.append(done))
    assert calls[0] >= 6
    assert (path / "tiles/c/0/0/0/0").stat().st_ino == kept
    assert contents(stored.path) == contents(save_bag(bag, tmp_path / "b", pixels=pixels, threads=1).path)


def test_an_unfinished_store_of_another_codec_is_restarted(tmp_path: Path) -> None:
    """Shards of quality 80 are not mixed with those of quality 90."""
    path, bag = tmp_path / "a.bag.zarr", MemoryBag(1030, 16, 16)
    with pytest.raises(CorruptSlideError):
        save_bag(StoppingBag(1026, corrupt, count=1030, height=16, width=16), path, pixels="zstd")
    assert (tmp_path / "a.bag.zarr.partial/tiles/c/0/0/0/0").exists()
    stored = save_bag(bag, path, pixels="jpeg:90")
    assert contents(stored.path) == contents(save_bag(bag, tmp_path / "b", pixels="jpeg:90").path)


# --- JPEG of ours


@pytest.mark.parametrize("quality", [1, 50, 90, 100])
def test_the_stated_psnr_equals_scikit_image(slide: Path, tmp_path: Path, quality: int) -> None:
    """Between the store's tiles and the bag's."""
    bag = bag_of(slide, mpp=0.5, tile_size=100)
    stored = save_bag(bag, tmp_path / "a.bag.zarr", pixels=f"jpeg:{quality}")
    output = stored.attributes["pixels"]
    assert (output["codec"], output["source"], output["quality"], output["chroma"]) == ("jpeg", False, quality, "4:4:4")
    assert output["lossless"] is False
    assert output["psnr_tiles"] == len(bag)
    expected = peak_signal_noise_ratio(bag[:].astype(np.float64), stored[:].astype(np.float64), data_range=255)
    assert output["psnr_db"] == pytest.approx(expected, abs=0.006)
    np.testing.assert_array_equal(zarr.open_group(stored.path, mode="r")["tiles"][...], stored[:])


def test_tiles_without_loss_have_no_psnr(tmp_path: Path) -> None:
    """White tiles are exact; an infinite PSNR is no JSON number."""
    bag = MemoryBag(3, 32, 32)
    bag.tiles[:] = 255
    output = save_bag(bag, tmp_path / "a.bag.zarr", pixels="jpeg:90").attributes["pixels"]
    assert (output["psnr_db"], output["psnr_tiles"]) == (None, 3)


def test_the_psnr_of_a_large_bag_is_of_a_sample(tmp_path: Path) -> None:
    """Of 8 megapixels; the store has the number of tiles."""
    bag = MemoryBag(20, 1024, 1024)
    assert save_bag(bag, tmp_path / "a.bag.zarr", pixels="jpeg:50").attributes["pixels"]["psnr_tiles"] == 8


def test_jpeg_is_written_as_zarr_writes_it(slide: Path, tmp_path: Path) -> None:
    """zarr-python, by the codec of our metadata, writes the same chunks, and its array opens as a bag."""
    bag = bag_of(slide)
    ours = save_bag(bag, tmp_path / "ours.bag.zarr", pixels="jpeg:75")
    theirs = tmp_path / "theirs.bag.zarr"
    group = zarr.create_group(theirs, zarr_format=3, attributes={"tile_bag": ours.attributes})
    for name, array in zarr.open_group(ours.path, mode="r").arrays():
        codec = {"compressors": array.compressors, "serializer": array.serializer, "filters": None, "fill_value": 0}
        options = {"shape": array.shape, "dtype": array.dtype, "chunks": array.chunks, "shards": array.shards}
        group.create_array(name, **options, **codec)[...] = bag[:] if name == "tiles" else array[...]
    assert sorted(chunks_of(theirs)) == sorted(chunks_of(ours.path))
    np.testing.assert_array_equal(open_bag(theirs)[:], ours[:])


# --- damaged chunks


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(lambda jpeg: jpeg[:-300], "[Pp]remature end", id="cut"),
        pytest.param(lambda jpeg: bytes(len(jpeg)), "JPEG", id="zeros"),
        pytest.param(lambda jpeg: with_size(jpeg, 65500, 65500), "a JPEG of 65500×65500 px, not 256×256", id="bomb"),
        pytest.param(lambda jpeg: with_size(jpeg, 512, 128), "a JPEG of 512×128 px", id="another shape"),
        pytest.param(lambda jpeg: with_size(jpeg, 64, 64), "a JPEG of 64×64 px", id="smaller"),
        pytest.param(lambda jpeg: jpeg.replace(b"\xff\xda", b"\xff\xfe", 1), "JPEG", id="no scan"),
    ],
)
def test_a_damaged_chunk_is_an_error_of_one_tile(slide: Path, tmp_path: Path, damage, message: str) -> None:
    """With its number; the others are read."""
    bag = bag_of(slide)
    stored = save_bag(bag, tmp_path / "a.bag.zarr", pixels="source")
    replace_chunk(stored.path, 5, damage(chunks_of(stored.path)[5]))
    damaged = open_bag(stored.path)
    with pytest.raises(BagFormatError, match=f"c/0/0/0/0: tile 5 cannot be decoded .*{message}"):
        damaged.read(np.arange(12), threads=2)
    np.testing.assert_array_equal(damaged[[4, 6]], bag[[4, 6]])


@pytest.mark.parametrize("configuration", [{"tables": "AAAA"}, {"level": 0}, {"colorspace_jpeg": "RGB"}])
def test_jpeg_that_is_not_complete_is_refused(slide: Path, tmp_path: Path, configuration: dict) -> None:
    """Chunks that need tables from elsewhere are an error, not wrong pixels."""
    stored = save_bag(bag_of(slide), tmp_path / "a.bag.zarr", pixels="source")
    file = stored.path / "tiles/zarr.json"
    described = json.loads(file.read_text())
    described["codecs"][0]["configuration"]["codecs"][0]["configuration"] = configuration
    file.write_text(json.dumps(described))
    with pytest.raises(BagFormatError, match="tiles are stored as imagecodecs_jpeg"):
        open_bag(stored.path)


# --- readers


READ = "import sys, zarr; print(int(zarr.open_group(sys.argv[1], mode='r')['tiles'][...].astype('i8').sum()))"


@pytest.mark.system
@pytest.mark.parametrize("pixels", ["source", "jpeg:90"])
def test_zarr_reads_it_in_another_process(slide: Path, tmp_path: Path, pixels: str) -> None:
    """If this package is installed, zarr needs no import to read such a bag, and does not warn."""
    stored = save_bag(bag_of(slide), tmp_path / "a.bag.zarr", pixels=pixels)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["zarr.codecs"]
    installed = tmp_path / "site/slideio_pipe-0.1.0.dist-info"  # installed files: the package and this
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: slideio-pipe\nVersion: 0.1.0\n")
    lines = [f"{name} = {where}" for name, where in points.items()]
    (installed / "entry_points.txt").write_text("\n".join(["[zarr.codecs]", *lines, ""]))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(installed.parent)])}
    for code in (READ, f"import slideio_pipe.store; {READ}"):
        command = [sys.executable, "-W", "error", "-c", code, str(stored.path)]
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert found.stderr == ""
        assert int(found.stdout) == int(stored[:].astype(np.int64).sum())


@pytest.mark.slow
def test_a_checkout_registers_the_codec_on_import(slide: Path, tmp_path: Path) -> None:
    """If the package is not installed, it is enough to import its stores."""
    stored = save_bag(bag_of(slide), tmp_path / "a.bag.zarr", pixels="source")
    code = f"import slideio_pipe.store; {READ}"
    command = [sys.executable, "-c", code, str(stored.path)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(found.stdout) == int(stored[:].astype(np.int64).sum())


def test_registering_twice_leaves_one_codec() -> None:
    """With two, zarr would warn."""
    zarr_jpeg.register()
    zarr_jpeg.register()
    assert zarr.registry.get_codec_class(zarr_jpeg.NAME) is zarr_jpeg.Jpeg


def test_the_codec_of_imagecodecs_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    """If imagecodecs has the codec, ours is not registered, because zarr would warn of two."""
    theirs = types.ModuleType("imagecodecs.zarr")
    theirs.Jpeg = type("Jpeg", (zarr_jpeg._Jpeg,), {})
    monkeypatch.setitem(sys.modules, "imagecodecs.zarr", theirs)
    monkeypatch.setattr(imagecodecs, "zarr", theirs, raising=False)
    assert zarr_jpeg._chosen() is theirs.Jpeg


def test_the_codec_refuses_unknown_configurations() -> None:
    """Those that only imagecodecs reads: the error names the package to install."""
    codec = {"name": zarr_jpeg.NAME, "configuration": {"level": 90, "subsampling": "444"}}
    assert zarr_jpeg._Jpeg.from_dict(codec).to_dict() == codec
    assert zarr_jpeg._Jpeg.from_dict({"name": zarr_jpeg.NAME}).to_dict() == {"name": zarr_jpeg.NAME}
    with pytest.raises(ValueError, match=re.escape("imagecodecs_jpeg with tables needs imagecodecs-zarr")):
        zarr_jpeg._Jpeg.from_dict({"name": zarr_jpeg.NAME, "configuration": {"tables": "AAAA"}})


def test_decoding_writes_only_to_its_slot() -> None:
    """A JPEG of another size is refused by its header; slot and neighbours do not change."""
    jpeg = simplejpeg.encode_jpeg(np.zeros((64, 64, 3), np.uint8), quality=90)
    around = np.full((3, 32, 32, 3), 7, np.uint8)
    for claimed in (jpeg, with_size(jpeg, 65500, 65500), with_size(jpeg, 27354, 52339)):  # the last wraps 2³²
        with pytest.raises(ValueError, match="not 32×32"):
            zarr_jpeg.decode_into(claimed, around[1])
    assert (around == 7).all()


@examples(150)
@given(data=st.data())
def test_damaged_jpeg_never_writes_outside_its_slot(data: st.DataObject) -> None:
    """For any bytes of a chunk: pixels or a ValueError, and no other slot changes."""
    jpeg = bytearray(MUTATED)
    for _ in range(data.draw(st.integers(1, 6))):
        # Headers are the first 600 bytes of about 3,000; damage there has the largest effect.
        at = data.draw(st.one_of(st.integers(0, 600), st.integers(0, len(jpeg) - 1)))
        jpeg[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(jpeg)), st.integers(0, len(jpeg))))
    around = np.full((3, 64, 64, 3), 7, np.uint8)
    with contextlib.suppress(ValueError):
        zarr_jpeg.decode_into(bytes(jpeg[:cut]), around[1])
    assert (around[[0, 2]] == 7).all()
