"""Bags in the layouts of other tools, opened by those tools where they can be installed."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from made_slides import made_slide
from memory_bag import MemoryBag
from pyramids import coordinate_pixels, write_pyramid
from typer.testing import CliRunner

from slideio_pipe.augment.geometric_transforms import Flip
from slideio_pipe.commands.app import app
from slideio_pipe.errors import (
    BagFormatError,
    ConfigError,
    MissingExtraError,
    MissingResolutionError,
    OutputError,
    OutputExistsError,
    SkippedWarning,
)
from slideio_pipe.export.convert import convert
from slideio_pipe.export.layouts import LAYOUTS, from_clam, from_trident
from slideio_pipe.export.layouts.hdf5 import read_coords
from slideio_pipe.slides.slide import Slide, open_slide
from slideio_pipe.store import open_bag, save_bag
from slideio_pipe.streaming.normalize import Normalize
from slideio_pipe.streaming.stream import stream
from slideio_pipe.tiles.grid import TileGrid
from slideio_pipe.tiles.tile_bag import TileBag

TILE = 64
# webdataset closes its shards when they are collected.
LEAVES_FILES_OPEN = pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def slide(tmp_path: Path) -> Iterator[Slide]:
    """A 40× slide (0.25 µm) with levels 1, 4, 16: it has no 20× level."""
    path = write_pyramid(tmp_path / "a.b.tif", coordinate_pixels(1000, 700), mpp=0.25, tile=128)
    with open_slide(path) as opened:
        yield opened


def bag_of(slide: Slide, mpp: float | None, label: Any = 1, **grid: Any) -> TileBag:
    view = slide.view(mpp=mpp)
    return TileBag(view, TileGrid(view, **{"tile_size": TILE} | grid), label=label)


def empty_bag(slide: Slide, label: Any = 0) -> TileBag:
    return TileBag.from_coords(slide.view(mpp=0.5), np.empty((0, 2), int), TILE, label=label)


def columns(bag: TileBag) -> np.ndarray:
    """Return tiles in the order of CLAM and TRIDENT, by sorting tuples."""
    return np.array(sorted(range(len(bag)), key=lambda k: tuple(bag.coords[k])))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- what all layouts share


@pytest.mark.parametrize("to", sorted(set(LAYOUTS) - {"stamp"}))
def test_nothing_is_replaced_without_overwrite(slide: Slide, tmp_path: Path, to: str) -> None:
    """A second conversion is refused, or replaces its files with the same bytes or pixels."""
    bag = bag_of(slide, 0.5)
    first = convert(bag, to, tmp_path / "out")
    assert all(path.exists() for path in first.paths)
    with pytest.raises(OutputExistsError, match="overwrite=True"):
        convert(bag, to, tmp_path / "out")
    assert convert(bag, to, tmp_path / "out", overwrite=True) == first
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_stored_bags_convert_like_bags_in_memory(slide: Slide, tmp_path: Path) -> None:
    """The path of a bag store may be passed."""
    bag = bag_of(slide, 0.5)
    save_bag(bag, tmp_path / "a.bag.zarr", progress=False)
    for name, source in (("stored", tmp_path / "a.bag.zarr"), ("planned", bag)):
        convert(source, "torchmil", tmp_path / name)
    for kind in ("features", "coords", "labels"):
        files = [(tmp_path / name / kind / "a.b.npy").read_bytes() for name in ("stored", "planned")]
        assert files[0] == files[1]


def test_two_bags_of_one_name_are_refused(slide: Slide, tmp_path: Path) -> None:
    """They would have the same file."""
    with pytest.raises(ConfigError, match=r"several bags are called a\.b"):
        convert([bag_of(slide, 0.5), bag_of(slide, None)], "clam", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../a.svs", "..", "x/y", "..\\a.svs"])
def test_a_bag_named_by_a_path_is_refused(tmp_path: Path, name: str) -> None:
    """It would be written to another folder."""
    bag = MemoryBag()
    bag.name = name
    with pytest.raises(ConfigError, match="no file name"):
        convert(bag, "webdataset", tmp_path / "out")


def test_unknown_layouts_and_no_bag_are_refused(tmp_path: Path) -> None:
    """The error lists the layouts."""
    with pytest.raises(ConfigError, match="clam, clam-pixels, trident, stamp"):
        convert(MemoryBag(), "slideflow", tmp_path)
    with pytest.raises(ConfigError, match="no bag to convert"):
        convert([], "clam", tmp_path)


def test_a_missing_package_is_named_with_its_command(
    slide: Slide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence with the install command, before anything is written."""
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r'h5py is needed.*pip install "slideio-pipe\[hdf5\]"'):
        convert(bag_of(slide, 0.5), "clam", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way_is_an_output_error(slide: Slide, tmp_path: Path) -> None:
    """An error of the disk is an OutputError with the path."""
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        convert(bag_of(slide, 0.5), "torchmil", tmp_path / "out")


@pytest.mark.slow
def test_importing_loads_no_optional_package() -> None:
    """A conversion to one layout does not load the packages of the others."""
    names = "{'h5py', 'tensordict', 'pyarrow', 'datasets', 'webdataset', 'torch'}"
    code = f"import sys, slideio_pipe.export.layouts; print(sorted({names} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


# --- CLAM


def test_clam_has_its_names_types_and_attributes(slide: Slide, tmp_path: Path) -> None:
    """20× tiles of a slide with 40× and 10× levels are squares of level 0, twice as large."""
    h5py = pytest.importorskip("h5py")
    bag = bag_of(slide, 0.5)
    done = convert(bag, "clam", tmp_path / "out")
    with h5py.File(tmp_path / "out" / "patches" / "a.b.h5") as file:
        coords, found = file["coords"], dict(file["coords"].attrs)
        assert coords.dtype == np.int64
        np.testing.assert_array_equal(coords, bag.coords[columns(bag)])
    assert (found["patch_size"], found["patch_level"], found["custom_downsample"]) == (2 * TILE, 0, 2)
    assert found["level_dim"].tolist() == found["downsampled_level_dim"].tolist() == [1000, 700]
    assert (found["downsample"].tolist(), found["name"]) == ([1, 1], "a.b")
    assert found["save_path"] == str(tmp_path / "out" / "patches")
    assert rows(done.paths[-1]) == [{"case_id": "a.b", "slide_id": "a.b", "label": "1"}]


def test_clam_reads_the_same_pixels_through_openslide(slide: Slide, tmp_path: Path) -> None:
    """CLAM reads ``patch_size`` px of ``patch_level``: the tiles of a stored level."""
    h5py, openslide = pytest.importorskip("h5py"), pytest.importorskip("openslide")
    bag = bag_of(slide, 1.0)
    convert(bag, "clam", tmp_path / "out")
    with h5py.File(tmp_path / "out" / "patches" / "a.b.h5") as file, openslide.OpenSlide(slide.path) as opened:
        attributes, coords = dict(file["coords"].attrs), file["coords"][:]
        assert tuple(attributes["level_dim"]) == opened.level_dimensions[attributes["patch_level"]]
        assert "custom_downsample" not in attributes
        size = (int(attributes["patch_size"]),) * 2
        for (x, y), tile in zip(coords, bag[columns(bag)], strict=True):
            region = opened.read_region((int(x), int(y)), int(attributes["patch_level"]), size)
            np.testing.assert_array_equal(np.asarray(region)[..., :3], tile)


def test_clam_has_no_file_for_an_empty_bag(slide: Slide, tmp_path: Path) -> None:
    """And no row among the labels; a warning says so."""
    pytest.importorskip("h5py")
    with pytest.warns(SkippedWarning, match=r"without a tile.*a\.b\.tif"):
        done = convert(empty_bag(slide), "clam", tmp_path / "out")
    assert (done.paths, done.left_out, done.bags) == ((), ("a.b.tif",), 0)
    assert not (tmp_path / "out").exists()


def test_clam_features_have_the_order_of_the_coordinates(slide: Slide, tmp_path: Path) -> None:
    """As HDF5 and as a tensor."""
    h5py = pytest.importorskip("h5py")
    bag = bag_of(slide, 0.5)
    features = np.arange(len(bag) * 3, dtype=np.float64).reshape(-1, 3)
    convert(bag, "clam", tmp_path / "out", features=features)
    with h5py.File(tmp_path / "out" / "h5_files" / "a.b.h5") as file:
        assert (file["features"].dtype, file["coords"].dtype) == (np.float32, np.int32)
        np.testing.assert_array_equal(file["features"], features[columns(bag)])
        np.testing.assert_array_equal(file["coords"], bag.coords[columns(bag)])
    saved = torch.load(tmp_path / "out" / "pt_files" / "a.b.pt", weights_only=True)
    np.testing.assert_array_equal(saved, features[columns(bag)].astype(np.float32))


def test_labels_of_later_conversions_are_added_to_the_table(slide: Slide, tmp_path: Path) -> None:
    """Rows of earlier slides are kept; those of slides converted again are replaced."""
    pytest.importorskip("h5py")
    other = write_pyramid(tmp_path / "c.tif", coordinate_pixels(300, 200))
    convert(bag_of(slide, 0.5, label=0), "clam", tmp_path / "out")
    with open_slide(other) as second:
        convert(bag_of(second, 0.5, label=1), "clam", tmp_path / "out")
    convert(bag_of(slide, 0.5, label=2), "clam", tmp_path / "out", overwrite=True)
    assert {row["slide_id"]: row["label"] for row in rows(tmp_path / "out" / "labels.csv")} == {"c": "1", "a.b": "2"}


@pytest.mark.parametrize("mpp", [None, 0.5, 1.0, 0.6, 2.0])
@pytest.mark.parametrize("layout", ["clam", "trident"])
def test_imported_coordinates_give_the_same_pixels(
    slide: Slide, tmp_path: Path, mpp: float | None, layout: str
) -> None:
    """At stored levels and between them."""
    pytest.importorskip("h5py")
    bag = bag_of(slide, mpp, stride=TILE // 2)
    done = convert(bag, layout, tmp_path / "out")
    again = {"clam": from_clam, "trident": from_trident}[layout](done.paths[0], slide, label=7)
    order = columns(bag)
    np.testing.assert_array_equal(again.coords, bag.coords[order])
    assert again.label == 7
    assert again.view_mpp == pytest.approx(bag.view_mpp, rel=0.01)
    np.testing.assert_array_equal(again[:], bag[order])


def test_augmented_tiles_have_no_coordinates(slide: Slide, tmp_path: Path) -> None:
    """An augmented view is refused for layouts of coordinates, and not for those of pixels."""
    import albumentationsxl as A

    pytest.importorskip("h5py")
    view = slide.view(mpp=0.5, transform=A.Compose([Flip(p=1.0)]), seed=3)
    bag = TileBag(view, TileGrid(view, tile_size=TILE))
    for layout in ("clam", "trident"):
        with pytest.raises(ConfigError, match="augmented"):
            convert(bag, layout, tmp_path / "out")
    assert convert(bag, "torchmil", tmp_path / "out").tiles == len(bag)


def test_published_coordinates_become_a_bag(shared_data: Path, tmp_path: Path) -> None:
    """A published file of features without attributes: with the tile size, every row is a tile of the slide."""
    h5py = pytest.importorskip("h5py")
    path = shared_data / "bags" / "TCGA-AD-6964-01Z-00-DX1.features.h5"
    with h5py.File(path) as file:
        coords = file["coords"][:]
    store = zarr.create_array(
        tmp_path / "s.zarr", shape=(90_000, 90_000, 3), chunks=(512, 512, 3), dtype="uint8", fill_value=200
    )
    x, y = coords[5]
    store[y : y + 512, x : x + 512] = 17
    with open_slide(tmp_path / "s.zarr", slide_mpp=0.25) as big:
        with pytest.raises(ConfigError, match=r"does not state how large tiles are; pass tile_size"):
            from_clam(path, big)
        bag = from_clam(path, big, tile_size=256, tile_size_level0=512)
        np.testing.assert_array_equal(bag.coords, coords)
        assert bag.shape == (777, 256, 256, 3)
        assert np.unique(bag[5][1:-1, 1:-1]).tolist() == [17]
        assert np.unique(bag[100]).tolist() == [200]


def test_files_without_valid_coordinates_are_refused(slide: Slide, tmp_path: Path) -> None:
    """No file, no HDF5, no corners, µm: each with the reason."""
    h5py = pytest.importorskip("h5py")
    (tmp_path / "text.h5").write_text("nothing")
    for name, values, unit in (("three.h5", np.zeros((4, 3)), ""), ("um.h5", np.zeros((4, 2)), "um")):
        with h5py.File(tmp_path / name, "w") as file:
            file["coords"] = values
            file.attrs["unit"] = unit
    cases = {"no.h5": "no such file", "text.h5": "no HDF5", "three.h5": r"not \(N, 2\)", "um.h5": "µm"}
    for name, message in cases.items():
        with pytest.raises(BagFormatError, match=message):
            from_trident(tmp_path / name, slide)


@pytest.mark.parametrize("known", [{}, {"patch_size": 64}, {"patch_size_level0": 128}], ids=str)
def test_coordinates_without_the_size_of_their_tiles_are_refused(
    slide: Slide, tmp_path: Path, known: dict[str, int]
) -> None:
    """The side of a tile and its extent at level 0 are both needed."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["coords"] = np.zeros((2, 2), np.int64)
        file["coords"].attrs.update(known)
    with pytest.raises(ConfigError, match="tile_size"):
        from_trident(tmp_path / "a.h5", slide)
    bag = from_trident(tmp_path / "a.h5", slide, tile_size=64, tile_size_level0=128)
    assert bag.shape == (2, 64, 64, 3)


def test_coordinates_of_a_missing_level_are_refused(slide: Slide, tmp_path: Path) -> None:
    """They are of another slide."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("coords", data=np.zeros((1, 2), int)).attrs.update({"patch_size": 64, "patch_level": 7})
    with pytest.raises(ConfigError, match="of level 7, and the slide has 3"):
        from_clam(tmp_path / "x.h5", slide)


def test_pixels_that_are_no_squares_are_refused(tmp_path: Path) -> None:
    """Squares of a slide at 0.25 × 0.3 µm are no squares of level 0 after resampling."""
    pytest.importorskip("h5py")
    with open_slide(coordinate_pixels(1000, 700), slide_mpp=(0.25, 0.3)) as opened:
        with pytest.raises(ConfigError, match="128 × 107 px at level 0"):
            convert(bag_of(opened, 0.5), "clam", tmp_path)
        assert convert(bag_of(opened, None), "clam", tmp_path).bags == 1


# --- TRIDENT


def test_trident_has_its_names_types_and_attributes(slide: Slide, tmp_path: Path) -> None:
    """20× tiles of a 40× slide."""
    h5py = pytest.importorskip("h5py")
    bag = bag_of(slide, 0.5, stride=48)
    convert(bag, "trident", tmp_path / "out")
    job = tmp_path / "out" / "20x_64px_16px_overlap"
    with h5py.File(job / "patches" / "a.b_patches.h5") as file:
        assert file["coords"].dtype == np.int64
        np.testing.assert_array_equal(file["coords"], bag.coords[columns(bag)])
        assert dict(file["coords"].attrs) == {
            "patch_size": 64,
            "patch_size_level0": 128,
            "level0_magnification": 40,
            "target_magnification": 20,
            "overlap": 16,
            "name": "a.b",
            "savetodir": str(job),
            "level0_width": 1000,
            "level0_height": 700,
        }
    assert rows(tmp_path / "out" / "labels.csv") == [{"wsi": "a.b.tif", "label": "1"}]


@pytest.mark.parametrize(("slide_mpp", "mpp"), [(0.2528, 0.5), (0.228, 0.5), (0.5, 2.0), (0.25, 0.25), (0.11, 0.44)])
def test_trident_reads_squares_of_the_right_size(tmp_path: Path, slide_mpp: float, mpp: float) -> None:
    """TRIDENT takes tile size × level-0 magnification / target magnification px of level 0: our footprint."""
    h5py = pytest.importorskip("h5py")
    with open_slide(coordinate_pixels(1000, 700), slide_mpp=slide_mpp) as opened:
        bag = bag_of(opened, mpp)
        done = convert(bag, "trident", tmp_path)
    with h5py.File(done.paths[0]) as file:
        reported = file["coords"].attrs
        taken = round(reported["patch_size"] * reported["level0_magnification"] / reported["target_magnification"])
        assert taken == reported["patch_size_level0"]
        assert taken == pytest.approx(TILE * bag.view_mpp.mean / slide_mpp, abs=0.5)


def test_nearly_whole_corners_are_rounded(tmp_path: Path) -> None:
    """In float64, as pandas writes them, or off by 1e-7: the same pixels as integers."""
    h5py = pytest.importorskip("h5py")
    for name, corners in {"beside": [[2.0000001, 3], [10, 20]], "between": [[2.5, 3], [10, 20]]}.items():
        with h5py.File(tmp_path / name, "w") as file:
            file["coords"] = np.array(corners)
    beside, between = (read_coords(tmp_path / name)[0] for name in ("beside", "between"))
    assert (beside.dtype, beside.tolist()) == (np.int64, [[2, 3], [10, 20]])
    assert (between.dtype, between.tolist()) == (np.float64, [[2.5, 3], [10, 20]])


def test_coordinates_without_a_resolution_are_refused(tmp_path: Path) -> None:
    """Without patch_size they may be of any level: the error says what to pass."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["coords"] = np.array([[64, 0], [0, 128]])
    with (
        open_slide(coordinate_pixels(400, 300), slide_mpp=0.25) as opened,
        pytest.raises(ConfigError, match=r"what resolution tiles have; pass tile_size=… and tile_size_level0=…"),
    ):
        from_clam(tmp_path / "a.h5", opened, tile_size=64)


@pytest.mark.parametrize(
    ("mpp", "named"),
    [
        (0.5, "20x"),
        (0.46, "20x"),
        (0.4, "25x"),
        (0.667, "15x"),
        (0.68, "15x"),
        (0.34, "30x"),
        (0.29, "35x"),
        (0.77, "13x"),
    ],
)
def test_trident_folders_have_the_magnification_of_their_tiles(tmp_path: Path, mpp: float, named: str) -> None:
    """10 µm over the µm per px: the objective within a tenth of it, else the five within 2 %, else the whole number."""
    pytest.importorskip("h5py")
    with open_slide(coordinate_pixels(1000, 700), slide_mpp=0.25) as opened:
        done = convert(bag_of(opened, mpp), "trident", tmp_path)
    assert done.paths[0].parts[-3].split("_")[0] == named


@pytest.mark.parametrize(("slide_mpp", "near"), [(0.25, 20), (0.2496, 20), (0.24, 40 / (0.5 / 0.24))])
def test_a_magnification_near_an_objective_is_rounded_to_it(tmp_path: Path, slide_mpp: float, near: float) -> None:
    """Within 2 %, as at a level 2.0005 times smaller; else the quotient, so that TRIDENT reads the same pixels."""
    h5py = pytest.importorskip("h5py")
    with open_slide(coordinate_pixels(1000, 700), slide_mpp=slide_mpp) as opened:
        done = convert(bag_of(opened, 0.5), "trident", tmp_path)
    with h5py.File(next(path for path in done.paths if path.parent.name == "patches")) as file:
        assert file["coords"].attrs["target_magnification"] == pytest.approx(near)


@pytest.mark.parametrize("layout", ["trident", "clam"])
def test_features_keep_single_precision(slide: Slide, tmp_path: Path, layout: str) -> None:
    """TRIDENT and CLAM store float32: values that float16 would round or overflow are unchanged."""
    h5py = pytest.importorskip("h5py")
    bag = bag_of(slide, 0.5)
    features = (np.arange(len(bag) * 3).reshape(-1, 3) + 1 / 3).astype(np.float32)
    features[:, 2] = 1e6
    done = convert(bag, layout, tmp_path / "out", features=features, encoder="uni")
    with h5py.File(next(path for path in done.paths if path.suffix == ".h5" and "patches" not in path.parts)) as file:
        assert file["features"].dtype == np.float32
        np.testing.assert_array_equal(file["features"], features[columns(bag)])


def test_trident_keeps_empty_bags(slide: Slide, tmp_path: Path) -> None:
    """A slide without tissue has files without rows, which are imported as a bag without tiles."""
    h5py = pytest.importorskip("h5py")
    done = convert(empty_bag(slide), "trident", tmp_path, features=np.empty((0, 5)), encoder="uni_v1")
    coords, features = done.paths[:2]
    assert features == coords.parents[1] / "features_uni_v1" / "a.b.h5"
    with h5py.File(features) as file:
        assert (file["features"].shape, file["coords"].shape) == ((0, 5), (0, 2))
        assert file["features"].attrs["encoder"] == "uni_v1"
    assert len(from_trident(coords, slide)) == 0


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_torchmil_reads_our_trident_folder(slide: Slide, tmp_path: Path) -> None:
    """Features, labels and the graph of a TRIDENT job: 20× tiles of a 40× slide have their eight neighbours."""
    module = pytest.importorskip("torchmil.datasets", reason="torchmil is not installed")
    bag = bag_of(slide, 0.5)
    features = np.arange(len(bag) * 2, dtype=np.float32).reshape(-1, 2)
    done = convert(bag, "trident", tmp_path, features=features, encoder="uni_v1")
    names = {"wsi_name_col": "wsi", "wsi_label_col": "label"}
    (found,) = module.TridentWSIDataset(
        f"{done.paths[0].parents[1]}/",
        str(tmp_path / "labels.csv"),
        "uni_v1",
        bag_keys=["X", "Y", "adj", "coords"],
        patch_size=2 * TILE,
        norm_adj=False,
        **names,
    )
    np.testing.assert_array_equal(found["X"], features[columns(bag)])
    assert found["Y"].tolist() == [1]
    places = bag.grid_index[columns(bag)]
    steps = np.abs(places[:, None] - places[None]).max(axis=-1)
    np.testing.assert_array_equal(found["adj"].to_dense().numpy() > 0, steps == 1)


def test_trident_needs_a_resolution(tmp_path: Path) -> None:
    """Magnifications of a slide without mpp would be guesses."""
    pytest.importorskip("h5py")
    with open_slide(coordinate_pixels(300, 200)) as opened, pytest.raises(MissingResolutionError, match="slide_mpp"):
        convert(bag_of(opened, None), "trident", tmp_path)


# --- STAMP


def test_stamp_has_its_names_types_and_attributes(slide: Slide, tmp_path: Path) -> None:
    """Corners in µm of a 40× slide at 20×, features in float16, in a folder of the extractor's name."""
    h5py = pytest.importorskip("h5py")
    bag = bag_of(slide, 0.5)
    np.save(tmp_path / "a.b.npy", np.arange(len(bag) * 2).reshape(-1, 2) / 8)
    convert(bag, "stamp", tmp_path / "out", features=tmp_path, encoder="uni")
    with h5py.File(tmp_path / "out" / "uni" / "a.b.h5") as file:
        assert (file["coords"].dtype, file["feats"].dtype) == (np.float32, np.float16)
        np.testing.assert_allclose(file["coords"], bag.coords * 0.25, rtol=1e-6)
        np.testing.assert_array_equal(file["feats"], np.arange(len(bag) * 2).reshape(-1, 2) / 8)
        reported = dict(file.attrs)
    assert (reported["stamp_version"], reported["extractor"], reported["unit"], reported["feat_type"]) == (
        "2.1.0",
        "uni",
        "um",
        "tile",
    )
    assert (reported["tile_size_px"], reported["tile_size_um"]) == (TILE, pytest.approx(TILE * 0.5))
    assert "code_hash" in reported


def test_stamp_keeps_empty_bags_and_needs_features(slide: Slide, tmp_path: Path) -> None:
    """An array without rows is accepted as features; missing features are refused."""
    h5py = pytest.importorskip("h5py")
    done = convert(empty_bag(slide), "stamp", tmp_path, features=np.empty((0, 4), np.float32))
    with h5py.File(done.paths[0]) as file:
        assert file["feats"].shape == (0, 4)
    with pytest.raises(ConfigError, match="holds features, and none are given"):
        convert(bag_of(slide, 0.5), "stamp", tmp_path / "other")
    bag = bag_of(slide, 0.5)
    with pytest.raises(ConfigError, match="float16"):
        convert(bag, "stamp", tmp_path / "o", features=np.full((len(bag), 1), 1e6))
    with pytest.raises(ConfigError, match="does not record the positions"):
        convert(MemoryBag(), "stamp", tmp_path / "o", features=np.ones((5, 1)))


@pytest.mark.parametrize("ending", [".npy", ".pt", ".h5"])
def test_features_are_read_from_a_folder(slide: Slide, tmp_path: Path, ending: str) -> None:
    """In every format; a wrong number of rows, or one file for two bags, is refused."""
    h5py = pytest.importorskip("h5py")
    bag, file = bag_of(slide, 0.5), tmp_path / f"a.b{ending}"
    values = np.ones((len(bag), 2), np.float32)
    if ending == ".npy":
        np.save(file, values)
    elif ending == ".pt":
        torch.save(torch.from_numpy(values), file)
    else:
        with h5py.File(file, "w") as opened:
            opened["feats"] = values
    for name, source in (("folder", tmp_path), ("file", file)):
        convert(bag, "torchmil", tmp_path / name, features=source)
        found = np.load(tmp_path / name / "features" / "a.b.npy")
        np.testing.assert_array_equal(found, values)
    with pytest.raises(ConfigError, match=r"the bag has 5 tiles"):
        convert(MemoryBag(), "torchmil", tmp_path / "x", features=file)
    with pytest.raises(ConfigError, match="no features in"):
        convert(MemoryBag(), "torchmil", tmp_path / "x", features=tmp_path)
    with pytest.warns(SkippedWarning, match="2 of 2 bags could not be converted"):
        done = convert([bag, MemoryBag()], "torchmil", tmp_path / "x", features=file)
    assert all("one set of features for several bags" in str(failure.error) for failure in done.failed)


# --- torchmil


def torchmil_dataset(folder: Path, keys: list[str], **options: Any) -> Any:
    module = pytest.importorskip("torchmil.datasets", reason="torchmil is not installed")
    parts = {f"{kind}_path": str(folder / kind) for kind in ("features", "coords", "labels")}
    return module.ProcessedMILDataset(**parts, bag_keys=keys, verbose=False, **options)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_torchmil_reads_pixels_labels_and_a_graph(slide: Slide, tmp_path: Path) -> None:
    """20× tiles of a 40× slide are connected with all eight neighbours, and with no others."""
    bag = bag_of(slide, 0.5)
    convert(bag, "torchmil", tmp_path)
    dataset = torchmil_dataset(tmp_path, ["X", "Y", "adj", "coords"], dist_thr=1.5 * TILE, norm_adj=False)
    found = dataset[0]
    np.testing.assert_array_equal(found["X"].numpy().transpose(0, 2, 3, 1), bag[:])
    assert (found["Y"].shape, found["Y"].item()) == ((), 1)
    steps = np.abs(bag.grid_index[:, None] - bag.grid_index[None]).max(axis=-1)
    np.testing.assert_array_equal(found["adj"].to_dense().numpy() > 0, steps == 1)


def test_torchmil_reads_empty_bags_and_bags_without_a_label(slide: Slide, tmp_path: Path) -> None:
    """A bag without tiles is an array without rows; a bag without a label has no label file."""
    convert(empty_bag(slide), "torchmil", tmp_path / "empty")
    found = torchmil_dataset(tmp_path / "empty", ["X", "Y"])[0]
    assert (tuple(found["X"].shape), found["Y"].tolist()) == ((0, 3, TILE, TILE), 0)
    convert(bag_of(slide, 0.5, label=None), "torchmil", tmp_path / "unknown")
    assert not (tmp_path / "unknown" / "labels").exists()
    with pytest.raises(ConfigError, match="labels are numbers"):
        convert(bag_of(slide, 0.5, label="tumour"), "torchmil", tmp_path / "text")


def test_torchmil_reads_labels_of_tiles(slide: Slide, tmp_path: Path) -> None:
    """One integer per tile, in the bag's order; others are refused."""
    torchmil = pytest.importorskip("torchmil.datasets")
    bag = bag_of(slide, 0.5)
    labels = np.arange(len(bag)) % 2
    convert(bag, "torchmil", tmp_path, instance_labels=labels)
    folders = {f"{kind}_path": str(tmp_path / kind) for kind in ("features", "labels", "inst_labels", "coords")}
    dataset = torchmil.ProcessedMILDataset(**folders, bag_keys=["X", "Y", "y_inst"])
    np.testing.assert_array_equal(dataset[0]["y_inst"], labels)
    for wrong in (labels[1:], labels / 2):
        with pytest.raises(ConfigError, match="labels of tiles are"):
            convert(bag, "torchmil", tmp_path / "no", instance_labels=wrong)
    with pytest.raises(ConfigError, match="clam has no place for instance_labels"):
        convert(bag, "clam", tmp_path / "no", instance_labels=labels)


# --- WebDataset


@LEAVES_FILES_OPEN
def test_webdataset_reads_what_was_written(slide: Slide, tmp_path: Path) -> None:
    """Every tile once, bit for bit, in order, with its position and label."""
    webdataset = pytest.importorskip("webdataset")
    bag = bag_of(slide, 0.5)
    done = convert(bag, "webdataset", tmp_path)
    stream = webdataset.WebDataset([str(path) for path in done.paths], shardshuffle=False)
    samples = list(stream.decode("rgb8"))
    assert len(samples) == len(bag)
    for k, sample in enumerate(samples):
        np.testing.assert_array_equal(sample["png"], bag[k])
        reported = sample["json"]
        assert (reported["x"], reported["y"], reported["index"], reported["slide"]) == (
            *bag.coords[k].tolist(),
            k,
            "a.b.tif",
        )
        assert (sample["cls"], reported["label"], reported["mpp"], reported["tissue"]) == (1, 1, 0.5, None)
    assert len({sample["__key__"] for sample in samples}) == len(bag)


@LEAVES_FILES_OPEN
def test_webdataset_splits_shards_and_removes_stale_ones(tmp_path: Path) -> None:
    """512 tiles per shard; if a shorter bag replaces a longer one, no tile of the longer one remains."""
    webdataset = pytest.importorskip("webdataset")
    (tmp_path / "a-notes.tar").touch()
    done = convert(MemoryBag(1030, label="tumour"), "webdataset", tmp_path)
    assert [path.name for path in done.paths] == ["a-000000.tar", "a-000001.tar", "a-000002.tar"]
    urls = [str(path) for path in done.paths]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(samples) == 1030
    assert not any("cls" in sample for sample in samples)
    convert(MemoryBag(5), "webdataset", tmp_path, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-000000.tar", "a-notes.tar"]


def test_webdataset_has_no_shard_for_an_empty_bag(tmp_path: Path) -> None:
    """A warning says so."""
    with pytest.warns(SkippedWarning, match="without a tile"):
        assert convert([MemoryBag(0)], "webdataset", tmp_path).left_out == ("a.svs",)


# --- JPEG as it is stored


@LEAVES_FILES_OPEN
@pytest.mark.parametrize("pixels", ["jpeg:80", "source"])
def test_jpeg_bytes_are_written_unchanged(tmp_path: Path, pixels: str) -> None:
    """As the store holds them; WebDataset and datasets read the same pixels."""
    webdataset, datasets = pytest.importorskip("webdataset"), pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    made_slide(tmp_path / "a.svs", size=(1024, 768), seed=1)
    with open_slide(tmp_path / "a.svs") as opened:
        view = opened.view()
        bag = save_bag(TileBag(view, TileGrid(view, align=True)), tmp_path / "a.bag.zarr", pixels=pixels)
    done = convert(bag, "webdataset", tmp_path / "tar")
    samples = list(webdataset.WebDataset([str(path) for path in done.paths], shardshuffle=False))
    assert [sample["jpg"] for sample in samples] == list(bag.encoded(range(len(bag))))
    assert all(sample["jpg"].startswith(b"\xff\xd8") and "png" not in sample for sample in samples)
    convert(bag, "hf", tmp_path / "hf")
    rows = datasets.load_dataset(str(tmp_path / "hf"), cache_dir=str(tmp_path / "cache"))["train"]
    for k in (0, len(bag) - 1):
        seen = np.asarray(rows[k]["image"]).astype(int)
        assert np.abs(seen - bag[k]).max() <= 2  # another decoder
    raw = rows.cast_column("image", datasets.Image(decode=False))
    assert raw[1]["image"]["bytes"] == next(bag.encoded([1]))


# --- CLAM's pixels


def test_pixels_for_clam_can_be_imported(slide: Slide, tmp_path: Path) -> None:
    """Names, types and attributes of CLAM's older versions; the slide is not needed."""
    h5py = pytest.importorskip("h5py")
    bag = bag_of(slide, 1.0)
    done = convert(bag, "clam-pixels", tmp_path / "out")
    assert [path.name for path in done.paths] == ["a.b.h5", "labels.csv"]
    with h5py.File(done.paths[0]) as file:
        assert (file["imgs"].dtype, file["coords"].dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(file["imgs"], bag[:])
        np.testing.assert_array_equal(file["coords"], bag.coords)
        found = dict(file["imgs"].attrs)
    assert (found["patch_level"], found["wsi_name"], found["downsample"].tolist()) == (1, "a.b", [4, 4])
    assert found["level_dim"].tolist() == found["downsampled_level_dim"].tolist() == [250, 175]
    again = from_clam(done.paths[0], label=1)
    np.testing.assert_array_equal(again[:], bag[:])
    np.testing.assert_array_equal(again.grid_index, bag.grid_index)
    stored = save_bag(again, tmp_path / "a.bag.zarr", pixels="none")
    np.testing.assert_array_equal(stored.coords, bag.coords)
    twice = convert(stored, "clam-pixels", tmp_path / "twice")
    with h5py.File(twice.paths[0]) as file:
        np.testing.assert_array_equal(file["imgs"], bag[:])
        assert dict(file["imgs"].attrs)["downsample"].tolist() == [4, 4]


def test_coordinates_without_pixels_need_a_slide(slide: Slide, tmp_path: Path) -> None:
    """A file of coordinates only is distinguished from one with pixels."""
    pytest.importorskip("h5py")
    done = convert(bag_of(slide, 1.0), "clam", tmp_path / "out")
    with pytest.raises(BagFormatError, match=r"not \(N, H, W, 3\) uint8"):
        from_clam(done.paths[0])


# --- TensorDict


def test_tensordict_maps_what_was_written(slide: Slide, tmp_path: Path) -> None:
    """Pixels, positions, features and label, memory-mapped."""
    tensordict = pytest.importorskip("tensordict")
    bag = bag_of(slide, 0.5, label="tumour")
    features = np.arange(len(bag) * 2, dtype=np.float32).reshape(-1, 2)
    (path,) = convert(bag, "memmap", tmp_path, features=features).paths
    found = tensordict.TensorDict.load_memmap(path)
    assert found.batch_size == (len(bag),)
    np.testing.assert_array_equal(found["tiles"].numpy().transpose(0, 2, 3, 1), bag[:])
    np.testing.assert_array_equal(found["coords"], bag.coords)
    np.testing.assert_array_equal(found["features"], features)
    np.testing.assert_array_equal(found["tissue"], bag.tissue)
    assert found[3]["label"] == "tumour"
    assert tuple(found[2:5]["tiles"].shape) == (3, 3, TILE, TILE)


@pytest.mark.parametrize("stored", [False, True])
def test_normalised_maps_are_what_a_stream_gives(slide: Slide, tmp_path: Path, stored: bool) -> None:
    """Bit for bit, by TensorDict, NumPy and torch; mean and deviation are beside them."""
    tensordict = pytest.importorskip("tensordict")
    bag: Any = bag_of(slide, 0.5)
    if stored:
        bag = save_bag(bag, tmp_path / "a.bag.zarr", pixels="jpeg:90", progress=False)
    normalize = Normalize((0.7, 0.6, 0.65), (0.21, 0.25, 0.17))
    (path,) = convert(bag, "memmap", tmp_path / "out", normalize=normalize).paths
    batches = stream(bag, device="cpu", normalize=normalize, batch_size=7)
    expected = torch.cat([batch.tiles for batch in batches]).contiguous()
    known = json.loads((path / "normalize.json").read_text())
    assert known["mean"] == [0.7, 0.6, 0.65]
    assert known["std"] == [0.21, 0.25, 0.17]
    mapped = np.memmap(path / known["file"], known["dtype"], mode="r", shape=tuple(known["shape"]))
    np.testing.assert_array_equal(mapped.view(np.int16), expected.view(torch.int16).numpy())
    of_file = torch.from_file(str(path / known["file"]), size=expected.numel(), dtype=torch.float16)
    assert torch.equal(of_file.view(known["shape"]), expected)
    assert torch.equal(tensordict.TensorDict.load_memmap(path)["tiles"], expected)
    exact = (bag[:].transpose(0, 3, 1, 2) / 255 - np.array(normalize.mean).reshape(3, 1, 1)) / np.array(
        normalize.std
    ).reshape(3, 1, 1)
    assert np.abs(mapped - exact).max() <= 0.002  # half the distance of two float16 numbers above 2


def test_a_normalised_map_is_whole_or_not_there(slide: Slide, tmp_path: Path) -> None:
    """An error while it is written leaves nothing; other layouts are refused before."""
    pytest.importorskip("tensordict")
    bag = save_bag(bag_of(slide, 0.5), tmp_path / "a.bag.zarr", progress=False)

    class Failing(Normalize):
        def convert(self, *_: object) -> torch.Tensor:
            raise RuntimeError("the power is off")

    with pytest.raises(RuntimeError, match="the power is off"):
        convert(bag, "memmap", tmp_path / "out", normalize=Failing(0.5, 0.5))
    assert not list((tmp_path / "out").glob("*"))
    with pytest.raises(ConfigError, match="webdataset has no place for pixels of"):
        convert(bag, "webdataset", tmp_path / "out", normalize=Normalize.half())


def test_normalised_maps_of_a_study_by_the_command(tmp_path: Path) -> None:
    """Continued when it is run again; not over maps of other statistics."""
    pytest.importorskip("tensordict")
    for name in ("a", "b"):
        path = write_pyramid(tmp_path / f"{name}.tif", coordinate_pixels(300, 200), (1,), mpp=0.5)
        save_bag(bag_of(open_slide(path), 0.5), tmp_path / "bags" / f"{name}.bag.zarr", progress=False)
    command = ["convert", str(tmp_path / "bags"), "--to", "memmap", "--out", str(tmp_path / "out"), "--normalize"]
    for _ in range(2):
        done = CliRunner().invoke(app, [*command, "imagenet"])
        assert done.exit_code == 0, done.output
    assert "(2 there before)" in done.stdout
    assert json.loads((tmp_path / "out" / "b" / "normalize.json").read_text())["mean"] == [0.485, 0.456, 0.406]
    other = CliRunner().invoke(app, [*command, "half"])
    assert other.exit_code == 1
    assert "was made with other settings" in other.stdout
    unknown = CliRunner().invoke(app, [*command, "mine"])
    assert unknown.exit_code == 2
    assert "no normalisation is called 'mine'; pass imagenet, half, identity" in unknown.stderr


def test_tensordict_has_no_folder_for_an_empty_bag(slide: Slide, tmp_path: Path) -> None:
    """An empty array cannot be memory-mapped."""
    pytest.importorskip("tensordict")
    with pytest.warns(SkippedWarning, match="without a tile"):
        convert(empty_bag(slide), "memmap", tmp_path)


# --- Hugging Face datasets


def test_datasets_loads_the_folder(slide: Slide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one split, for all slide names; images bit for bit; also an empty bag and one without a label."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    bag = bag_of(slide, 0.5)
    empty, unknown = MemoryBag(0), MemoryBag(5, label=None)
    empty.name, unknown.name = "test-empty.svs", "validation.svs"
    done = convert([bag, empty, unknown], "hf", tmp_path / "out")
    assert (done.bags, done.left_out) == (3, ())
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    rows = loaded["train"]
    assert len(rows) == len(bag) + 5
    for k in (0, 7, len(bag) - 1):
        np.testing.assert_array_equal(np.asarray(rows[k]["image"]), bag[k])
        assert (rows[k]["x"], rows[k]["y"], rows[k]["label"]) == (*bag.coords[k].tolist(), 1)
    assert rows[len(bag)]["label"] is None
    assert rows[len(bag)]["slide"] == "validation.svs"


@pytest.mark.parametrize(("labels", "read"), [((1, 0.5), [1.0, 0.5]), ((1, "tumour"), ["1", "tumour"])])
def test_labels_of_one_dataset_have_one_type(tmp_path: Path, labels: tuple[Any, Any], read: list[Any]) -> None:
    """Numbers and text together are text; integers and fractions are float."""
    parquet = pytest.importorskip("pyarrow.parquet")
    bags = [MemoryBag(1, label=label) for label in labels]
    bags[0].name, bags[1].name = "a.svs", "b.svs"
    done = convert(bags, "hf", tmp_path)
    assert [parquet.read_table(path)["label"][0].as_py() for path in done.paths[:2]] == read


def test_imported_coordinates_can_be_stored_as_a_bag(slide: Slide, tmp_path: Path) -> None:
    """Of pixels, like any other bag."""
    pytest.importorskip("h5py")
    done = convert(bag_of(slide, 0.5), "clam", tmp_path / "clam")
    bag = from_clam(done.paths[0], slide)
    save_bag(bag, tmp_path / "b.bag.zarr", progress=False)
    np.testing.assert_array_equal(open_bag(tmp_path / "b.bag.zarr")[:], bag[:])


# --- the command


def run(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)], env={"COLUMNS": "120"})
    assert result.exit_code == code, result.output
    return result


def test_the_command_converts_to_trident_and_back(slide: Slide, tmp_path: Path) -> None:
    """The same tiles, column by column."""
    pytest.importorskip("h5py")
    bag = bag_of(slide, 0.5)
    save_bag(bag, tmp_path / "bags" / "a.b.bag.zarr", progress=False)
    reported = json.loads(run(tmp_path / "bags" / "a.b.bag.zarr", "--to", "trident", "-o", tmp_path, "--json").stdout)
    assert (reported["layout"], reported["bags"], reported["tiles"]) == ("trident", 1, len(bag))
    (tmp_path / "slides").mkdir()
    slide.path.rename(tmp_path / "slides" / "a.b.tif")
    arguments = (reported["paths"][0], "--from", "trident", "--slides", tmp_path / "slides", "-o", tmp_path / "again")
    assert "a.b.tif: " in run(*arguments).stdout
    with open_bag(tmp_path / "again" / "a.b.bag.zarr") as again:
        np.testing.assert_array_equal(again[:], open_bag(tmp_path / "bags" / "a.b.bag.zarr")[:][columns(bag)])
    assert "pass --overwrite" in run(*arguments, code=2).stderr


def test_errors_of_the_command_name_its_options(slide: Slide, tmp_path: Path) -> None:
    """If something is missing."""
    save_bag(bag_of(slide, 0.5), tmp_path / "s.bag.zarr", progress=False)
    assert "pass --features, or" in run(tmp_path / "s.bag.zarr", "--to", "stamp", "-o", tmp_path, code=2).stderr
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.b.h5", "w") as file:
        file["coords"] = np.zeros((1, 2), int)
    coords, out = tmp_path / "a.b.h5", ("-o", tmp_path / "out")
    assert "one of --to and --from" in run(coords, *out, code=2).stderr
    assert "--tile-size with --to" in run(coords, "--to", "clam", "--tile-size", 64, *out, code=2).stderr
    assert "pass --slides" in run(coords, "--from", "clam", *out, code=2).stderr
    assert "pass --from clam or" in run(coords, "--from", "stamp", "--slide", slide.path, *out, code=2).stderr
    (tmp_path / "none").mkdir()
    assert "no slide in" in run(coords, "--from", "clam", "--slides", tmp_path / "none", *out, code=2).stderr
    error = run(coords, "--from", "clam", "--slide", slide.path, *out, code=2).stderr
    assert "pass --tile-size and --tile-size-level0" in error
    sizes = ("--tile-size", 64, "--tile-size-level0", 128)
    run(coords, "--from", "clam", "--slide", slide.path, *out, *sizes)
    assert open_bag(tmp_path / "out" / "a.b.bag.zarr").shape == (1, 64, 64, 3)
