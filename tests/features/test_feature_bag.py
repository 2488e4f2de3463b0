"""Features from stores and from files of other tools have one interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from memory_bag import MemoryBag, contents

from slideio_pipe import (
    FeatureBag,
    TileBag,
    TileGrid,
    convert,
    from_clam,
    open_bag,
    open_features,
    open_slide,
    save_bag,
)
from slideio_pipe.cohort.ledger import fingerprint
from slideio_pipe.errors import BagFormatError, ConfigError, OutputExistsError
from slideio_pipe.store.feature_arrays import add_features, create_feature_store

FACTS = {"name": "uni", "digest": "0c1e", "input_size": 224}


def rows(count: int, dim: int = 3, kind: Any = np.float16) -> np.ndarray:
    """Return (N, D) distinct numbers."""
    return (np.arange(count * dim).reshape(count, dim) / 8).astype(kind)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A bag store of 5 tiles with features of one encoder."""
    save_bag(MemoryBag(), tmp_path / "a.bag.zarr", progress=False).close()
    add_features(tmp_path / "a.bag.zarr", "uni", rows(5), FACTS)
    return tmp_path / "a.bag.zarr"


def test_features_in_a_bag_store_open_with_its_coordinates(stored: Path) -> None:
    """And all else of the bag, which is unchanged."""
    bag = open_features(stored)
    assert isinstance(bag, FeatureBag)
    assert np.array_equal(bag.features, rows(5))
    assert bag.features.dtype == np.float16
    assert np.array_equal(bag.coords, MemoryBag().coords)
    assert (bag.name, bag.label, bag.encoder, len(bag)) == ("a.svs", 1, "uni", 5)
    assert bag.view_mpp is not None
    assert bag.view_mpp.x == 0.5
    assert bag.encoder_facts == FACTS
    with open_bag(stored) as opened:
        assert opened.encoders == ("uni",)
        assert np.array_equal(opened.features("uni"), rows(5))
        assert np.array_equal(opened[:], MemoryBag().tiles)


def test_added_features_do_not_change_the_bags_fingerprint(tmp_path: Path) -> None:
    """A run over bags does not take it for another bag, and no byte changes."""
    path = tmp_path / "a.bag.zarr"
    save_bag(MemoryBag(), path, progress=False).close()
    before, files = fingerprint(path), contents(path)
    add_features(path, "uni", rows(5), FACTS)
    assert fingerprint(path) == before
    assert files.items() <= contents(path).items()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.bag.zarr"]


def test_zarr_opens_features(stored: Path) -> None:
    """zarr-python finds the array in the group, with its attributes."""
    group = zarr.open_group(stored, mode="r")
    assert sorted(name for name, _ in group.members()) == ["coords", "features", "grid_index", "tiles", "tissue"]
    array = group["features/uni"]
    assert np.array_equal(array[:], rows(5))
    assert array.attrs["encoder"]["digest"] == "0c1e"


def test_features_can_be_stored_without_pixels(tmp_path: Path) -> None:
    """With coordinates and tissue; further encoders can be added."""
    bag, path = MemoryBag(), tmp_path / "a.features.zarr"
    create_feature_store(path, bag, bag.provenance(), {"uni": (rows(5), FACTS)})
    add_features(path, "conch", rows(5, 2, np.float32), {"name": "conch"})
    with pytest.raises(ConfigError, match=r'conch, uni.*encoder="conch"'):
        open_features(path)
    assert np.array_equal(open_features(path, "uni").features, rows(5))
    assert open_features(path, "conch").features.dtype == np.float32
    assert np.array_equal(open_features(path, "uni").coords, bag.coords)
    assert np.array_equal(zarr.open_group(path, mode="r")["tissue"][:], bag.tissue, equal_nan=True)
    with pytest.raises(BagFormatError, match=r"no bag store|tile_bag"):
        open_bag(path)


def test_an_empty_bag_has_features_without_rows(tmp_path: Path) -> None:
    """For this package and for zarr."""
    bag, path = MemoryBag(0), tmp_path / "a.features.zarr"
    create_feature_store(path, bag, bag.provenance(), {"uni": (rows(0), FACTS)})
    assert open_features(path).features.shape == (0, 3)
    assert zarr.open_group(path, mode="r")["features/uni"].shape == (0, 3)


def test_features_of_another_bag_are_refused(stored: Path) -> None:
    """Not one row per tile: refused when opened."""
    add_features(stored, "other", rows(4), FACTS)
    with pytest.raises(BagFormatError, match="4 rows, and there are 5 tiles"):
        open_features(stored, "other")


def test_features_are_replaced_only_with_overwrite(stored: Path) -> None:
    """And a feature store does not replace a bag."""
    with pytest.raises(OutputExistsError, match="features of uni are there"):
        add_features(stored, "uni", rows(5) + 1, FACTS)
    add_features(stored, "uni", rows(5) + 1, FACTS, overwrite=True)
    assert np.array_equal(open_features(stored).features, rows(5) + 1)
    with pytest.raises(OutputExistsError, match="already exists"):
        create_feature_store(stored, MemoryBag(), {}, {}, overwrite=True)  # a bag is no store of features


def test_remains_of_a_killed_run_are_removed(stored: Path) -> None:
    """An incomplete array or a lock blocks nothing, and was not visible."""
    left = stored.with_name("a.bag.zarr.conch.partial")
    (left / "c").mkdir(parents=True)
    stored.with_name("a.bag.zarr.conch.lock").write_text('{"pid": 1, "host": "')
    assert open_features(stored).encoder == "uni"
    add_features(stored, "conch", rows(5), FACTS)
    assert sorted(file.name for file in stored.parent.iterdir()) == ["a.bag.zarr"]
    with open_bag(stored) as bag:
        assert bag.encoders == ("conch", "uni")


def test_files_without_features_are_refused(tmp_path: Path, stored: Path) -> None:
    """The error describes each."""
    save_bag(MemoryBag(), tmp_path / "b.bag.zarr", progress=False).close()
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").touch()
    (tmp_path / "a.h5").write_bytes(b"nothing")
    (tmp_path / "a.pt").write_bytes(b"nothing")
    cases = {
        tmp_path / "none.features.zarr": "nothing is there",
        tmp_path / "b.bag.zarr": "no features are stored here",
        tmp_path / "empty": "no store of features",
        tmp_path / "a.txt": "no features can be read",
        tmp_path / "a.h5": "no features",
        tmp_path / "a.pt": "no tensor of features",
    }
    for path, message in cases.items():
        with pytest.raises(BagFormatError, match=message):
            open_features(path)
    with pytest.raises(BagFormatError, match=r"no features of conch \(there are: uni\)"):
        open_features(stored, "conch")
    (stored / "features" / "uni" / "c" / "0" / "0").write_bytes(b"short")
    with pytest.raises(BagFormatError, match="damaged"):
        open_features(stored)


# --- of other tools


@pytest.fixture
def bag(tmp_path: Path) -> Any:
    """A bag store of a slide at half its resolution, with features."""
    view = open_slide(np.full((600, 1000, 3), 90, np.uint8), slide_mpp=0.25).view(mpp=0.5)
    path = tmp_path / "array.bag.zarr"
    save_bag(TileBag(view, TileGrid(view, tile_size=50), label=1), path, progress=False).close()
    with open_bag(path) as stored:
        add_features(path, "uni", rows(len(stored)), FACTS)
        yield stored


@pytest.mark.parametrize(
    ("layout", "pattern"),
    [("trident", "*/features_uni/*.h5"), ("clam", "h5_files/*.h5"), ("clam", "pt_files/*.pt"), ("stamp", "uni/*.h5")],
)
def test_files_of_other_tools_open_as_features(bag: Any, tmp_path: Path, layout: str, pattern: str) -> None:
    """TRIDENT, CLAM and STAMP files with features of a bag open with their coordinates."""
    pytest.importorskip("h5py")
    convert(bag, layout, tmp_path / layout, encoder="uni", progress=False)
    (file,) = (tmp_path / layout).glob(pattern)
    found = open_features(file, slide_mpp=0.25 if layout == "stamp" else None)
    order = np.lexsort((bag.coords[:, 1], bag.coords[:, 0])) if layout != "stamp" else np.arange(len(bag))
    assert np.array_equal(found.features, rows(len(bag))[order])
    assert found.coords is not None
    assert np.array_equal(found.coords, bag.coords[order])
    assert found.encoder == {"trident": "uni", "stamp": "uni"}.get(layout)
    assert found.tile_size_level0 == (None if layout == "clam" else 100)
    assert open_features(bag.path).tile_size_level0 == 100


def test_stamp_coordinates_need_the_slides_mpp(bag: Any, tmp_path: Path) -> None:
    """They are µm: level-0 pixels need the resolution."""
    pytest.importorskip("h5py")
    convert(bag, "stamp", tmp_path, encoder="uni", progress=False)
    found = open_features(tmp_path / "uni" / "array.h5")
    assert found.coords is None
    assert found.view_mpp is not None
    assert found.view_mpp.x == 0.5
    with pytest.raises(BagFormatError, match="of uni, not of conch"):
        open_features(tmp_path / "uni" / "array.h5", "conch")


@pytest.mark.parametrize(
    ("coords", "message"),
    [
        (np.arange(12).reshape(2, 6), r"coordinates are \(2, 6\)"),
        (np.arange(12), r"coordinates are \(12,\)"),
        (np.arange(12).reshape(6, 2, 1), r"coordinates are \(6, 2, 1\)"),
        (np.arange(18).reshape(6, 3), r"coordinates are \(6, 3\)"),
        (np.where(np.arange(12).reshape(6, 2) == 5, np.nan, 1.0), "coordinates are not finite"),
        (np.full((6, 2), np.inf), "coordinates are not finite"),
        (np.full((6, 2), True), "coordinates are .* bool"),
        (np.zeros((5, 2)), "6 features and 5 coordinates"),
    ],
)
def test_invalid_coordinates_are_refused(coords: np.ndarray, message: str, tmp_path: Path) -> None:
    """Transposed or damaged ones, by all readers of them."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"], file["coords"] = rows(6), coords
    with pytest.raises(BagFormatError, match=message):
        open_features(tmp_path / "a.h5")
    if "6 features" not in message:
        slide = open_slide(np.full((600, 1000, 3), 90, np.uint8), slide_mpp=0.25)
        with pytest.raises(BagFormatError, match=message.replace("coordinates are", "coords (is|are)")):
            from_clam(tmp_path / "a.h5", slide, tile_size=64)


def test_a_leading_axis_of_one_bag_is_removed(tmp_path: Path) -> None:
    """Some tools keep it, for features and coordinates."""
    h5py = pytest.importorskip("h5py")
    places = np.arange(12).reshape(6, 2) * 256
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"], file["coords"] = rows(6)[None], places[None]
    assert np.array_equal(open_features(tmp_path / "a.h5").coords, places)


@pytest.mark.parametrize("kind", ["bfloat16", "gradient", "half"])
def test_tensors_of_any_dtype_or_with_a_gradient_are_read(kind: str, tmp_path: Path) -> None:
    """In half precision or with a gradient, they are the same features."""
    values = torch.arange(18.0).reshape(6, 3) / 8
    made = {"bfloat16": values.bfloat16(), "gradient": values.clone().requires_grad_(), "half": values.half()}[kind]
    torch.save(made, tmp_path / "a.pt")
    assert np.array_equal(open_features(tmp_path / "a.pt").features, values.numpy())


def test_a_conversion_without_the_requested_features_is_refused(bag: Any, tmp_path: Path) -> None:
    """Coordinates alone are not written instead."""
    with pytest.raises(ConfigError, match=r"no features of conch beside the pixels \(there are: uni\)"):
        convert(bag, "trident", tmp_path, encoder="conch", progress=False)


def test_a_tensor_file_has_no_coordinates(tmp_path: Path) -> None:
    """A batch of one bag is that bag; other tensors are refused."""
    torch.save(torch.ones(1, 4, 3), tmp_path / "a.pt")
    assert open_features(tmp_path / "a.pt").features.shape == (4, 3)
    assert open_features(tmp_path / "a.pt").coords is None
    torch.save(torch.ones(4), tmp_path / "a.pt")
    with pytest.raises(BagFormatError, match="should be"):
        open_features(tmp_path / "a.pt")
