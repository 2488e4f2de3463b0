"""With on_error="white", slides with undecodable tiles become bags, and the bags list these tiles."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
from command_line import run
from made_slides import made_slide
from memory_bag import MemoryBag, contents

from slideio_pipe.errors import ConfigError, CorruptSlideError, SkippedWarning
from slideio_pipe.export.config import ExportConfig
from slideio_pipe.export.slide import export_slide
from slideio_pipe.slides.config import ViewConfig
from slideio_pipe.slides.slide import open_slide
from slideio_pipe.store import metadata, open_bag, save_bag
from slideio_pipe.store.config import StoreConfig
from slideio_pipe.tiles.config import GridConfig, TissueConfig
from slideio_pipe.tiles.find_tissue import find_tissue
from slideio_pipe.tiles.grid import TileGrid
from slideio_pipe.tiles.tile_bag import TileBag

SHARD = 4


class DamagedBag(MemoryBag):
    """A bag with some tiles that cannot be read."""

    def __init__(self, *bad: int, count: int = 40) -> None:
        super().__init__(count)
        self.bad = set(bad)
        self.requested: list[int] = []

    def read(self, indices, out=None, *, threads: int = 1):
        self.requested += list(indices)
        for k in indices:
            if int(k) in self.bad:
                raise CorruptSlideError(f"tile {k} is damaged", slide=self.name)
        return super().read(indices, out, threads=threads)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "MAX_SHARD_TILES", SHARD)


def damage(path: Path, page: int, *tiles: int) -> None:
    """Overwrite stored tiles of a page with zeros."""
    with tifffile.TiffFile(path) as tif:
        where = [(tif.pages[page].dataoffsets[k], tif.pages[page].databytecounts[k]) for k in tiles]
    with path.open("r+b") as file:
        for offset, count in where:
            file.seek(offset)
            file.write(bytes(count))


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("pixels", ["zstd", "jpeg:90", "none"])
def test_bad_tiles_are_white_and_listed(tmp_path: Path, pixels: str) -> None:
    """All others are unchanged; the store lists the failed tiles with their reasons."""
    with pytest.warns(SkippedWarning, match=r"a.svs: 3 of 40 tiles could not be read and are white, such as tile 5"):
        stored = save_bag(DamagedBag(5, 6, 39), tmp_path / "a", pixels=pixels, on_error="white")
    assert stored.attributes["failures"] == [{"tile": k, "error": f"tile {k} is damaged"} for k in (5, 6, 39)]
    assert (stored[[5, 6, 39]] == 255).all()
    if pixels != "jpeg:90":
        good = [k for k in range(40) if k not in (5, 6, 39)]
        np.testing.assert_array_equal(stored[good], MemoryBag(40).tiles[good])
    assert not list((tmp_path / "a").rglob("failures.json"))
    with pytest.raises(CorruptSlideError, match="tile 5 is damaged"):
        save_bag(DamagedBag(5, 6, 39), tmp_path / "b", pixels=pixels)


def test_the_warning_points_at_the_caller(tmp_path: Path) -> None:
    """Not at a line of the package."""
    with pytest.warns(SkippedWarning) as caught:
        save_bag(DamagedBag(5), tmp_path / "a", on_error="white")
    assert caught[0].filename == __file__


def test_on_error_changes_no_byte_of_a_bag_without_bad_tiles(tmp_path: Path) -> None:
    """The store equals one written with on_error="raise"."""
    first = save_bag(MemoryBag(), tmp_path / "a", on_error="white")
    assert contents(first.path) == contents(save_bag(MemoryBag(), tmp_path / "b").path)
    assert "failures" not in first.attributes


@pytest.mark.usefixtures("small_shards")
def test_a_resumed_run_writes_the_same_bytes(tmp_path: Path) -> None:
    """Failures in finished shards are known without reading these again."""

    def stop(done: int, total: int) -> None:
        if done == 5 * SHARD:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_bag(DamagedBag(5, 39), tmp_path / "a", on_error="white", progress=stop)
    again = DamagedBag(5, 39)
    with pytest.warns(SkippedWarning, match="2 of 40"):
        stored = save_bag(again, tmp_path / "a", on_error="white")
    assert 5 not in again.requested
    with pytest.warns(SkippedWarning):
        whole = save_bag(DamagedBag(5, 39), tmp_path / "b", on_error="white")
    assert contents(stored.path) == contents(whole.path)


@pytest.mark.usefixtures("small_shards")
def test_too_many_bad_tiles_are_an_error_also_over_several_runs(tmp_path: Path) -> None:
    """Above a tenth the slide is broken, and further runs do not change that."""
    for _ in range(2):
        with pytest.raises(CorruptSlideError, match="5 of 40 tiles cannot be decoded"):
            save_bag(DamagedBag(1, 2, 9, 10, 30), tmp_path / "a", on_error="white")
    assert not (tmp_path / "a").exists()


def test_a_copy_of_a_stored_bag_keeps_the_list_of_failures(tmp_path: Path) -> None:
    """And adds its own failures."""
    with pytest.warns(SkippedWarning):
        first = save_bag(DamagedBag(5), tmp_path / "a", on_error="white")
    again = save_bag(first, tmp_path / "b", pixels="none")
    assert again.attributes["failures"] == first.attributes["failures"]
    assert open_bag(tmp_path / "b").provenance()["failures"][0]["tile"] == 5


def test_tiles_are_not_left_out_of_a_store(tmp_path: Path) -> None:
    """The number of tiles is written before they are read."""
    with pytest.raises(ConfigError, match='pass on_error="white"'):
        save_bag(MemoryBag(), tmp_path / "a", on_error="skip")
    with pytest.raises(ConfigError, match="on_error is 'ignore'"):
        save_bag(MemoryBag(), tmp_path / "a", on_error="ignore")


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["jpeg", "deflate"])
def test_tissue_is_found_around_undecodable_tiles(tmp_path: Path, compression: str) -> None:
    """They count as glass; the rest is as without damage."""
    rng = np.random.default_rng(0)
    pixels = np.full((2048, 2048, 3), 240, np.uint8)
    pixels[300:1700, 300:1700] = (180, 90, 160)
    pixels = np.clip(pixels + rng.integers(-8, 9, pixels.shape), 0, 250).astype(np.uint8)
    path = tmp_path / "a.tif"
    resolution = {"resolution": (1e4 / 2.0, 1e4 / 2.0), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", compression=compression, **resolution)
    with open_slide(path) as slide:
        whole = find_tissue(slide, on_error="white")  # no warning
    damage(path, 0, 8 * 3 + 3, 8 * 0 + 0)  # inside of the tissue, and on glass
    with open_slide(path) as slide, pytest.raises(CorruptSlideError, match='pass on_error="white"'):
        find_tissue(slide)
    with open_slide(path) as slide, pytest.warns(SkippedWarning, match="2 places are treated as glass"):
        tissue = find_tissue(slide, on_error="white")
    assert tissue.settings["unread_places"] == 2
    assert "unread_places" not in whole.settings
    lost = whole.mask & ~tissue.mask
    row, column = (slice(192, 256),) * 2  # px of 8 µm
    assert lost[row, column].mean() > 0.9
    outside = lost.copy()
    outside[184:264, 184:264] = False  # the reach of the filter of an overview
    assert outside.sum() < 0.01 * whole.mask.sum()


def test_a_slide_with_over_a_quarter_lost_has_no_tissue_mask(tmp_path: Path) -> None:
    """The missing part would not be visible."""
    path = made_slide(tmp_path / "a.svs", size=(2048, 1536), seed=1).path
    with tifffile.TiffFile(path) as tif:
        counts = {k: len(page.dataoffsets) for k, page in enumerate(tif.pages) if page.is_tiled}
    for page, count in counts.items():
        damage(path, page, *range(0, count, 3))
    with open_slide(path) as slide, pytest.raises(CorruptSlideError, match="tissue cannot be found"):
        find_tissue(slide, on_error="white")


@pytest.mark.slow
@pytest.mark.parametrize(("pixels", "align"), [("zstd", False), ("source", True)])
def test_a_damaged_slide_is_exported(tmp_path: Path, pixels: str, align: bool) -> None:
    """Lost tiles are white, and all other pixels equal those of the undamaged slide."""
    path = made_slide(tmp_path / "a.svs", size=(4096, 3072), seed=3).path
    config = ExportConfig(
        view=ViewConfig(mpp=None),
        tissue=TissueConfig(method="none"),
        grid=GridConfig(align=align),
        store=StoreConfig(pixels=pixels),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = export_slide(path, tmp_path / "whole.bag.zarr", config).bag[:]
        with tifffile.TiffFile(path) as tif, path.open("r+b") as file:
            page, stored = tif.pages[0], 5
            file.seek(page.dataoffsets[stored])
            file.write(bytes(page.databytecounts[stored]))
        with pytest.raises(CorruptSlideError):
            export_slide(path, tmp_path / "no.bag.zarr", config)
        done = export_slide(path, tmp_path / "a.bag.zarr", config, on_error="white")
    bad = [each["tile"] for each in done.bag.attributes["failures"]]
    assert done.summary()["failed_tiles"] == len(bad) >= 1
    assert (done.bag[bad] > 250).all()
    good = np.setdiff1d(np.arange(len(whole)), bad)
    np.testing.assert_array_equal(done.bag[good], whole[good])


def test_tiles_beside_a_damaged_one_are_right(tmp_path: Path) -> None:
    """A fetch that fails for one stored tile leaves no black in the others."""
    pixels = np.random.default_rng(1).integers(1, 250, (1536, 1536, 3), np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", compression="deflate")
    damage(path, 0, 7)
    with open_slide(path) as slide:
        view = slide.view()
        bag = TileBag(view, TileGrid(view, tile_size=200))
        with pytest.warns(SkippedWarning):
            stored = save_bag(bag, tmp_path / "a.bag.zarr", on_error="white", threads=2)
    bad = [each["tile"] for each in stored.attributes["failures"]]
    for k, ((x, y), tile) in enumerate(zip(bag.coords.tolist(), stored[:], strict=True)):
        touches = x < 512 and x + 200 > 256 and y < 512 and y + 200 > 256
        assert (k in bad) == touches
        np.testing.assert_array_equal(tile, 255 if touches else pixels[y : y + 200, x : x + 200])


@pytest.mark.system
def test_the_command_exports_a_damaged_slide_with_on_error(tmp_path: Path) -> None:
    """One slide or a cohort; remedies name the option, and unknown values are refused first."""
    (tmp_path / "slides").mkdir()
    path = made_slide(tmp_path / "slides" / "a.svs", size=(4096, 3072), seed=3).path
    damage(path, 0, 5)
    options = ("--mpp", "native", "--tissue", "none", "--out", tmp_path / "bags")
    assert "could not be read and is white" in run("export", path, *options, "--on-error", "white").stderr
    reported = json.loads(
        run("export", tmp_path / "slides", *options[:4], "--out", tmp_path / "b", "--json", code=1).stdout
    )
    assert (reported["done"], reported["failed"]) == (0, 1)
    again = ("export", tmp_path / "slides", *options[:4], "--out", tmp_path / "b", "--json", "--on-error", "white")
    reported = json.loads(run(*again).stdout)
    assert (reported["done"], reported["failed"]) == (1, 0)
    assert contents(tmp_path / "b" / "a.bag.zarr") == contents(tmp_path / "bags" / "a.bag.zarr")
    assert "--on-error is 'skp'" in run("export", path, *options, "--on-error", "skp", code=2).stderr
