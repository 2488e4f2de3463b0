"""The quality of tiles is that of their places on the slide; it is kept with bags, and bad tiles are dropped."""

from __future__ import annotations

import json
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import albumentationsxl as A
import cv2
import numpy as np
import pyarrow.parquet
import pytest
import tifffile
import torch
import zarr
from command_line import run
from pyramids import write_pyramid
from tensordict import TensorDict

import slideio_pipe as sp
from slideio_pipe.errors import BagFormatError, ConfigError, CorruptSlideError, NoTissueError, SkippedWarning
from slideio_pipe.store.metadata import QUALITY
from slideio_pipe.tiles.config import QualityConfig

SIDE = 128  # px at 1 µm: whole cells of the focus
INK = (30, 60, 190)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """A picture at 0.5 µm of 4 × 3 tiles: sharp texture, blurred in column 1, ink in column 2, glass in column 3."""
    rng = np.random.default_rng(5)
    grain = cv2.GaussianBlur(rng.normal(0, 90, (768, 1024)), (0, 0), 1.2)
    rgb = np.clip(np.array([200, 130, 190]) + grain[..., None], 0, 255)
    rgb[:, 256:512] = cv2.GaussianBlur(rgb[:, 256:512], (0, 0), 5)
    rgb[:, 768:] = 243
    rgb[:150, 530:740] = INK
    return rgb.astype(np.uint8)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, pixels: np.ndarray) -> Path:
    return write_pyramid(tmp_path_factory.mktemp("slides") / "a.tif", pixels, (1, 2, 4), mpp=0.5)


def grid_of(path: Path, mpp: float = 0.5, **options: Any) -> sp.TileGrid:
    view = sp.open_slide(path).view(mpp=mpp, **options)
    return sp.TileGrid(view, round(SIDE / mpp))


def bag_of(path: Path, **options: Any) -> sp.TileBag:
    grid = grid_of(path)
    return sp.TileBag(grid.view, grid, **options)


def test_each_number_tells_its_tiles_apart(path: Path) -> None:
    """By column: sharp, blurred, ink, glass."""
    bag = bag_of(path)
    quality = sp.tile_quality(bag)
    focus, pen, white = (getattr(quality, name).reshape(3, 4) for name in ("focus", "pen", "white"))
    assert (focus[:, 0] > 20 * focus[:, 1]).all()
    assert (focus[:, 3] < 0.05 * focus[:, 0]).all()  # the edge beside it is in its first column
    assert (white[:, 3] > 0.85).all()
    assert white[:, :3].max() < 0.05
    assert pen[0, 2] > 0.1
    assert pen[1:].max() < 0.05
    assert bag.quality is quality


@pytest.mark.parametrize("mpp", [0.5, 1.0, 2.0])
def test_focus_is_that_of_the_level_at_one_micrometre(path: Path, mpp: float) -> None:
    """Compared with OpenCV's Laplacian of the whole level, whatever the resolution of the tiles."""
    grid = grid_of(path, mpp)
    level = np.asarray(sp.open_slide(path).region(0, 0, mpp=1.0, size=(512, 384)))
    values = cv2.Laplacian(cv2.cvtColor(level, cv2.COLOR_RGB2GRAY), cv2.CV_64F)
    for first in (0, 255):  # the border of blocks of 256 px is not counted
        values[first::256], values[:, first::256] = np.nan, np.nan
    values[-1], values[:, -1] = np.nan, np.nan  # nor that of the slide
    found = sp.tile_quality(sp.TileBag(grid.view, grid), ["focus"]).focus
    corners = (grid.coords / 2).astype(int).tolist()
    expected = [np.nanvar(values[y : y + SIDE, x : x + SIDE]) for x, y in corners]
    np.testing.assert_allclose(found, expected, rtol=0.03)


def test_a_turned_slide_has_the_same_quality(path: Path) -> None:
    """Tiles of a view turned by a quarter are the same places in another order."""
    plain = grid_of(path)
    turned = grid_of(path, transform=A.Compose([sp.Rotate90(p=1)]), seed=3)
    assert turned.view.moves
    centres = [grid.corners_level0().mean(axis=1).round() for grid in (plain, turned)]
    order = [np.lexsort(each.T) for each in centres]
    np.testing.assert_array_equal(centres[0][order[0]], centres[1][order[1]])
    one, other = (sp.tile_quality(sp.TileBag(grid.view, grid)) for grid in (plain, turned))
    np.testing.assert_allclose(one.focus[order[0]], other.focus[order[1]], rtol=1e-3)
    np.testing.assert_allclose(one.pen[order[0]], other.pen[order[1]], atol=1e-6)


def test_a_stored_bag_keeps_its_numbers(path: Path, tmp_path: Path) -> None:
    """Through the store, an augmented bag, a pickle and a patient; zarr reads them as well."""
    bag = bag_of(path, patient="p")
    quality = sp.tile_quality(bag)
    stored = sp.save_bag(bag, tmp_path / "a.bag.zarr", progress=False)
    for kept in (
        stored,
        sp.AugmentedBag(stored, tile_transform=sp.Flip()),
        pickle.loads(pickle.dumps(bag)),
        sp.PatientBag([stored]),
        sp.save_bag(stored, tmp_path / "b.bag.zarr", progress=False),
    ):
        assert kept.quality is not None
        for name, values in quality.columns.items():
            np.testing.assert_array_equal(kept.quality.columns[name], values)
    array = zarr.open_array(tmp_path / "a.bag.zarr" / QUALITY / "focus", mode="r")
    np.testing.assert_array_equal(array[:], quality.focus)


def test_only_what_was_measured_is_stored(path: Path, tmp_path: Path) -> None:
    """A bag without numbers has no folder for them; one number alone is one array."""
    plain = sp.save_bag(bag_of(path), tmp_path / "a.bag.zarr", progress=False)
    assert plain.quality is None
    assert not (plain.path / QUALITY).exists()
    bag = bag_of(path)
    sp.tile_quality(bag, "white")
    some = sp.save_bag(bag, tmp_path / "b.bag.zarr", progress=False)
    assert some.quality is not None
    assert list(some.quality.measured) == ["white"]
    assert [each.name for each in (some.path / QUALITY).iterdir() if each.is_dir()] == ["white"]


def test_a_damaged_number_is_refused(path: Path, tmp_path: Path) -> None:
    sp.tile_quality(bag := bag_of(path))
    stored = sp.save_bag(bag, tmp_path / "a.bag.zarr", progress=False)
    (stored.path / QUALITY / "pen" / "c" / "0").write_bytes(b"half")
    with pytest.raises(BagFormatError, match="quality/pen: cannot be read"):
        sp.open_bag(stored.path)
    shutil.rmtree(stored.path / QUALITY / "pen")
    zarr.create_array(stored.path / QUALITY / "pen", data=np.ones(3, np.float32))
    with pytest.raises(BagFormatError, match=r"quality/pen has the shape \(3,\), not \(12,\)"):
        sp.open_bag(stored.path)


def test_pixels_of_a_stored_bag_have_about_the_numbers_of_the_slide(tmp_path: Path, pixels: np.ndarray) -> None:
    """Without numbers in the store, they are measured in the tiles' own pixels."""
    path = write_pyramid(tmp_path / "a.tif", pixels, (1,), mpp=0.5)
    stored = sp.save_bag(bag_of(path), tmp_path / "a.bag.zarr", progress=False)
    of_slide, of_pixels = sp.tile_quality(bag_of(path)), sp.tile_quality(stored)
    is_texture = of_slide.focus > 100  # what is beside a tile is not in its pixels
    assert np.count_nonzero(is_texture) == 6
    np.testing.assert_allclose(of_pixels.focus[is_texture], of_slide.focus[is_texture], rtol=0.1)
    assert (of_pixels.focus[~is_texture] < 20).all()
    np.testing.assert_allclose(of_pixels.white, of_slide.white, atol=0.08)
    np.testing.assert_allclose(of_pixels.pen, of_slide.pen, atol=0.08)


def test_bad_tiles_are_dropped_and_counted(path: Path) -> None:
    grid = grid_of(path)
    good = sp.good_tiles(grid, min_focus=100, max_pen=0.05, max_white=0.5)
    assert sorted(map(tuple, good.index.tolist())) == [(0, 0), (0, 1), (0, 2), (2, 1), (2, 2)]
    assert good.refused is not None
    assert dict(good.refused.counts) == {"min_focus": 6, "max_pen": 3, "max_white": 3}
    assert len(good.refused) == 7
    assert good.quality is not None
    assert len(good.quality) == len(good) == 5
    assert len(good.dropped()) == 0
    assert "6 under min_focus 100, 3 over max_pen 0.05, 3 over max_white 0.5" in repr(good)
    assert any("7 dropped" in key.text for key in good.legend())
    assert good.plot(300).width
    bag = sp.TileBag(good.view, good)
    known = json.loads(json.dumps(bag.provenance()))["grid"]["quality"]
    assert known["dropped"] == 7
    assert known["mpp"] == {"focus": 1.0, "pen": 8.0, "white": 8.0}


def test_overviews_alone_suffice_without_a_limit_of_focus(path: Path) -> None:
    """The slide is not read at 1 µm for a limit of pen."""
    grid = grid_of(path)
    good = sp.good_tiles(grid, max_pen=0.05)
    assert good.quality is not None
    assert set(good.quality.measured) == {"pen", "fold", "bubble", "white"}


def test_a_slide_coarser_than_one_micrometre_has_no_focus(tmp_path: Path, pixels: np.ndarray) -> None:
    coarse = write_pyramid(tmp_path / "b.tif", pixels, (1,), mpp=2.0)
    view = sp.open_slide(coarse).view()
    grid = sp.TileGrid(view, 128)
    assert np.isnan(sp.tile_quality(sp.TileBag(view, grid)).focus).all()
    with pytest.raises(ConfigError, match="focus is measured at 1 µm per px, and the slide is scanned at 2 µm"):
        sp.good_tiles(grid, min_focus=1)


def test_wrong_names_and_limits_are_refused(path: Path) -> None:
    grid = grid_of(path)
    with pytest.raises(ConfigError, match="no quality is called 'sharpness'"):
        sp.tile_quality(sp.TileBag(grid.view, grid), ["sharpness"])
    with pytest.raises(ConfigError, match="max_pen=2"):
        sp.good_tiles(grid, max_pen=2)
    with pytest.raises(ConfigError, match="no grid"):
        sp.good_tiles(sp.TileBag(grid.view, grid))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="different numbers of tiles"):
        sp.TileQuality.of(focus=[1, 2], pen=[0])


def test_what_limits_need_is_measured() -> None:
    assert QualityConfig().names == ()
    assert QualityConfig(max_fold=0.1).names == ("pen", "fold", "bubble", "white")
    assert QualityConfig(min_focus=3).names == ("focus",)
    assert QualityConfig(measure=True).names == ("focus", "pen", "fold", "bubble", "white")


def test_a_data_set_drops_the_same_tiles_in_each_epoch(path: Path) -> None:
    """Measured once; of a turned slide where its tiles are in that epoch."""
    limits = {"min_focus": 100, "max_white": 0.5}
    config = {"tissue": {"method": "none"}, "quality": limits}
    dataset = sp.BagDataset([path], config)
    expected = sp.good_tiles(grid_of(path), **limits).coords
    for epoch in range(2):
        bag = dataset.open(0, epoch)
        np.testing.assert_array_equal(bag.coords, expected)
        dataset.close(0, bag)
    turned = sp.BagDataset([path], config, slide_transform=A.Compose([sp.Rotate90(p=0.7)]))
    moved = set()
    for epoch in range(4):
        bag = turned.open(0, epoch)
        assert isinstance(bag, sp.TileBag)
        moved.add(bag.view.moves)
        centres = bag.grid.corners_level0().mean(axis=1).round()
        assert sorted(map(tuple, centres.tolist())) == sorted(map(tuple, (expected + 128.0).tolist()))
        turned.close(0, bag)
    assert moved == {True, False}


def test_a_log_says_what_a_data_set_dropped(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = {"tissue": {"method": "none"}, "quality": {"min_focus": 100}}
    with caplog.at_level("INFO", logger="slideio_pipe.tiles.quality.good_tiles"):
        sp.BagDataset([path], config).open(0)
    assert "a.tif: 6 of 12 tiles dropped for their quality: 6 under min_focus 100" in caplog.text


def test_several_magnifications_have_the_quality_of_the_first(path: Path, tmp_path: Path) -> None:
    """Also of their pixels alone, in a store."""
    grid = grid_of(path)
    bag = sp.ContextBag(grid.view, grid, mpp=[0.5, 2.0])
    expected = sp.tile_quality(bag_of(path))
    found = sp.tile_quality(bag)
    np.testing.assert_array_equal(found.focus, expected.focus)
    stored = sp.save_bag(bag, tmp_path / "a.bag.zarr", progress=False)
    assert stored.quality is not None
    np.testing.assert_array_equal(stored.quality.pen, expected.pen)
    plain = sp.save_bag(
        sp.ContextBag(grid.view, grid_of(path), mpp=[0.5, 2.0]), tmp_path / "b.bag.zarr", progress=False
    )
    assert plain.quality is None
    np.testing.assert_allclose(sp.tile_quality(plain, ["white"]).white, expected.white, atol=0.08)


def test_places_that_cannot_be_decoded(tmp_path: Path, pixels: np.ndarray) -> None:
    """They raise, or are glass, with a warning: their tiles are dropped by a limit of focus."""
    damaged = write_pyramid(tmp_path / "a.tif", pixels, (1, 2, 4), mpp=0.5)
    with tifffile.TiffFile(damaged) as tif:
        offset, size = tif.pages[1].dataoffsets[0], tif.pages[1].databytecounts[0]
    with damaged.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(size))
    with pytest.raises(CorruptSlideError):
        sp.tile_quality(bag_of(damaged), ["focus"])
    with pytest.warns(SkippedWarning, match="1 place is treated as glass when focus was measured"):
        good = sp.good_tiles(grid_of(damaged), min_focus=100, on_error="white")
    expected = sp.good_tiles(grid_of(write_pyramid(tmp_path / "b.tif", pixels, (1, 2, 4), mpp=0.5)), min_focus=100)
    inside = (expected.coords < 512).all(axis=1)
    assert 0 < inside.sum() < len(inside)
    np.testing.assert_array_equal(good.coords, expected.coords[~inside])


def test_a_slide_without_a_good_tile_fails_with_the_reasons(path: Path) -> None:
    config = {"tissue": {"method": "none"}, "quality": {"min_focus": 1e6}}
    with pytest.raises(NoTissueError, match=r"all 12 tiles .* \(12 under min_focus 1e\+06\); .*lower min_focus"):
        sp.BagDataset([path], config).open(0)


def test_settings_without_quality_are_those_of_older_runs(path: Path) -> None:
    """Their digests and fingerprints do not change."""
    from slideio_pipe.export.config import ExportConfig

    for record in (ExportConfig(), sp.LoaderConfig(), sp.TrainConfig()):
        assert "quality" not in record.model_dump(mode="json")
    assert "quality" in sp.LoaderConfig(quality={"max_pen": 0.1}).model_dump(mode="json")
    assert "quality" not in grid_of(path).provenance()


@pytest.mark.slow
def test_export_says_what_it_dropped(path: Path, tmp_path: Path) -> None:
    """In a terminal, as JSON, and in the report of a cohort."""
    how = ("--tissue", "none", "--min-focus", 100, "--max-white", 0.5, "--quality")
    done = run("export", path, "--out", tmp_path / "one", *how)
    assert "6 tiles dropped for their quality: 6 under min_focus 100, 3 over max_white 0.5" in done.output
    bag = sp.open_bag(tmp_path / "one" / "a.bag.zarr")
    assert bag.quality is not None
    assert set(bag.quality.measured) == {"focus", "pen", "fold", "bubble", "white"}
    again = json.loads(run("export", path, "--out", tmp_path / "one", *how, "--json").stdout)
    assert again["kept"]
    assert (again["dropped"], again["dropped_for"]) == (6, "6 under min_focus 100, 3 over max_white 0.5")
    assert again["focus"] == pytest.approx(float(np.median(bag.quality.focus)), abs=1e-3)
    run("export", path.parent, "--out", tmp_path / "many", *how)
    page = (tmp_path / "many" / "report.html").read_text()
    for title in ("dropped for", "focus", "pen %", "white %", "6 under min_focus 100"):
        assert title in page


@pytest.mark.system
def test_features_have_the_numbers_of_their_tiles(path: Path, tmp_path: Path) -> None:
    """Of slides without the tiles that were dropped; the ledger says how many."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 7, 4), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    encoder = sp.load_encoder(network, name="tiny", normalize="imagenet", input_size=256)
    config = {"tissue": {"method": "none"}, "quality": {"min_focus": 100, "max_white": 0.5}}
    report = sp.encode_cohort([path], encoder, tmp_path, config, device="cpu", threads=1, progress=False)
    assert report.done == 1
    features = sp.open_features(tmp_path / "a.features.zarr")
    expected = sp.good_tiles(grid_of(path), min_focus=100, max_white=0.5)
    np.testing.assert_array_equal(features.coords, expected.coords)
    assert features.quality is not None
    assert expected.quality is not None
    np.testing.assert_array_equal(features.quality.focus, expected.quality.focus)
    assert "6 under min_focus 100" in (tmp_path / "report.html").read_text()


@pytest.mark.system
def test_other_layouts_have_the_numbers_as_columns(path: Path, tmp_path: Path) -> None:
    """Those that hold columns: Hugging Face datasets, WebDataset and TensorDict."""
    sp.tile_quality(bag := bag_of(path), ["focus"])
    expected = bag.quality.focus.tolist()
    sp.convert(bag, "hf", tmp_path / "hf", progress=False)
    rows = pyarrow.parquet.read_table(next((tmp_path / "hf").rglob("*.parquet")))
    assert rows.column("focus").to_pylist() == expected
    sp.convert(bag, "memmap", tmp_path / "memmap", progress=False)
    assert TensorDict.load_memmap(tmp_path / "memmap" / "a")["focus"].tolist() == expected
    sp.convert(bag, "webdataset", tmp_path / "wds", progress=False)
    with tarfile.open(next((tmp_path / "wds").rglob("*.tar"))) as archive:
        facts = [json.load(archive.extractfile(each)) for each in archive if each.name.endswith(".json")]
    assert [each["focus"] for each in facts] == expected
