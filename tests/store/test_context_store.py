"""Bags of several magnifications are stored as one array with an axis of them, and read back as they were."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from memory_bag import MemoryBag, contents
from pyramids import coordinate_pixels, write_pyramid

import slideio_pipe as sp
from slideio_pipe.errors import BagFormatError, ConfigError, CorruptSlideError, SkippedWarning
from slideio_pipe.store import zarr_jpeg

SIDE = 16


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> sp.Slide:
    path = tmp_path_factory.mktemp("context") / "a.tif"
    return sp.open_slide(write_pyramid(path, coordinate_pixels(1100, 900), (1, 4), tile=64, compression="jpeg"))


@pytest.fixture(scope="module")
def bag(slide: sp.Slide) -> sp.ContextBag:
    """Of more tiles than a shard has: 512."""
    view = slide.view(mpp=0.25)
    return sp.ContextBag(view, sp.TileGrid(view, SIDE, stride=32), mpp=[0.25, 1.0, 3.0], label=1, patient="P1")


@pytest.fixture(scope="module", params=["zstd", "none", "jpeg:90"])
def stored(request: pytest.FixtureRequest, bag: sp.ContextBag, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with sp.save_bag(bag, tmp_path_factory.mktemp("stores") / "a.bag.zarr", pixels=request.param) as opened:
        yield opened


def test_an_opened_bag_is_the_bag(stored: sp.StoredBag, bag: sp.ContextBag) -> None:
    assert stored.shape == bag.shape
    assert (stored.mpps, stored.nominal_mpps, stored.view_mpp) == (bag.mpps, bag.nominal_mpps, bag.view_mpp)
    assert (stored.label, stored.patient, stored.name) == (1, "P1", "a.tif")
    for name in ("coords", "grid_index", "tissue"):
        assert np.array_equal(getattr(stored, name), getattr(bag, name), equal_nan=name == "tissue")
    pixels, expected = stored[:], bag[:]
    difference = np.abs(pixels.astype(int) - expected)
    assert difference.mean() < 4 if stored.holds_jpeg else not difference.any()
    for key in (5, slice(510, 514), [700, 3, 3], (slice(0, 2), 1)):
        assert np.array_equal(stored[key], pixels[key])
    assert np.array_equal(stored.read([600, 1], threads=2), pixels[[600, 1]])
    again = pickle.loads(pickle.dumps(stored))
    assert np.array_equal(again[3], pixels[3])
    assert repr(stored).startswith(f"StoredBag(a.tif: {len(bag)} tiles of 16×16 px at 0.25, 1 and 3 µm, ")


def test_zarr_reads_the_same_array(stored: sp.StoredBag) -> None:
    """The oracle: any reader of zarr v3."""
    zarr_jpeg.register()
    array = zarr.open_group(stored.path, mode="r")["tiles"]
    assert isinstance(array, zarr.Array)
    assert array.shape == stored.shape
    assert array.metadata.dimension_names == ("tile", "scale", "y", "x", "channel")
    assert np.array_equal(array[509:515], stored[509:515])


def test_each_magnification_is_a_bag(stored: sp.StoredBag, bag: sp.ContextBag) -> None:
    pixels = stored[:]
    for number in range(3):
        scale, of_slide = stored.at(number), bag.at(number)
        assert scale.shape == of_slide.shape
        assert scale.view_mpp == bag.mpps[number]
        assert np.array_equal(scale[:], pixels[:, number])
        assert np.array_equal(scale.coords, of_slide.coords)
        assert np.array_equal(pickle.loads(pickle.dumps(scale))[7], pixels[7, number])
        assert scale.provenance()["view"]["mpp"] == list(bag.mpps[number])
        if scale.holds_jpeg:
            assert next(scale.encoded([3])) == list(stored.encoded([3]))[number]
    with pytest.raises(ConfigError, match="no magnification 3"):
        stored.at(3)


def test_one_magnification_is_augmented(stored: sp.StoredBag) -> None:
    flip = sp.Flip(p=1)
    for number in range(2):
        drawn = sp.AugmentedBag(stored.at(number), tile_transform=flip, seed=1)
        plain = stored[4, number]
        images = [plain, plain[::-1], plain[:, ::-1], plain[::-1, ::-1]]
        assert any(np.array_equal(drawn[4], image) for image in images)


def test_the_same_bag_gives_the_same_bytes_after_an_interruption(
    bag: sp.ContextBag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sp.save_bag(bag, tmp_path / "whole.bag.zarr").path
    read, target = sp.ContextBag.read, tmp_path / "a.bag.zarr"

    def stopping(self: sp.ContextBag, indices: Any, out: Any = None, *, threads: int = 1) -> Any:
        if 600 in np.asarray(indices):
            raise KeyboardInterrupt
        return read(self, indices, out, threads=threads)

    monkeypatch.setattr(sp.ContextBag, "read", stopping)
    with pytest.raises(KeyboardInterrupt):
        sp.save_bag(bag, target)
    partial = Path(f"{target}.partial")
    shard = next(file for file in partial.rglob("*") if file.is_file() and file.match("tiles/c/0/0/0/0/0"))
    written = os.stat(shard).st_mtime_ns
    monkeypatch.setattr(sp.ContextBag, "read", read)
    assert contents(sp.save_bag(bag, target).path) == contents(whole)
    assert os.stat(target / shard.relative_to(partial)).st_mtime_ns == written


def test_an_undecodable_tile_is_white_at_all_magnifications(
    bag: sp.ContextBag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if only a further one cannot be decoded: tiles of a batch are whole."""
    read = sp.TileBag._read

    def failing(self: sp.TileBag, indices: Any, *rest: Any, **options: Any) -> Any:
        if self is bag.at(1) and 5 in np.asarray(indices):
            raise CorruptSlideError("cannot be decoded", slide="a.tif")
        return read(self, indices, *rest, **options)

    monkeypatch.setattr(type(bag.at(1)), "_read", failing)
    with pytest.warns(SkippedWarning, match="tile 5"):
        stored = sp.save_bag(bag, tmp_path / "a.bag.zarr", on_error="white")
    assert (stored[5] == 255).all()
    assert np.array_equal(stored[4], bag[4])
    assert [failure["tile"] for failure in stored.attributes["failures"]] == [5]


def test_what_has_no_place_for_magnifications_refuses_them(
    stored: sp.StoredBag, bag: sp.ContextBag, tmp_path: Path
) -> None:
    for layout in ("clam-pixels", "memmap", "torchmil", "webdataset"):
        with pytest.raises(ConfigError, match=f"files of {layout} of tiles at 3 magnifications"):
            sp.convert(stored, layout, tmp_path / layout)
    for refused in (
        lambda: sp.AugmentedBag(stored, tile_transform=sp.Flip()),
        lambda: sp.add_reduced(stored, 2),
    ):
        with pytest.raises(ConfigError, match="at 3 magnifications"):
            refused()
    with pytest.raises(ConfigError, match="further magnifications are not stored tiles"):
        sp.save_bag(bag, tmp_path / "s.bag.zarr", pixels="source")


def test_layouts_of_coordinates_take_them(stored: sp.StoredBag, tmp_path: Path) -> None:
    features = np.zeros((len(stored), 4), np.float32)
    assert sp.convert(stored, "clam", tmp_path / "clam", features=features).tiles == len(stored)


@pytest.mark.parametrize(
    "damage", [{"mpp": [0.25]}, {"mpps": [[0.25, 0.25]]}, {"mpp": None}, None, {"mpps": [["a"], [1, 1], [2, 2]]}]
)
def test_damaged_resolutions_are_refused(bag: sp.ContextBag, tmp_path: Path, damage: Any) -> None:
    path = sp.save_bag(sp.ContextBag(bag.view, bag.grid, mpp=[0.25, 1.0, 3.0]), tmp_path / "a.bag.zarr").path
    about = json.loads((path / "zarr.json").read_text())
    known = about["attributes"]["tile_bag"]
    if damage is None:
        del known["context"]
    else:
        known["context"] |= damage
    (path / "zarr.json").write_text(json.dumps(about))
    with pytest.raises(BagFormatError, match="magnifications"):
        sp.open_bag(path)


def test_five_axes_without_resolutions_are_refused(tmp_path: Path) -> None:
    other = MemoryBag(3)
    other.shape = (3, 2, 4, 4, 3)
    with pytest.raises(ConfigError, match="nor those of a ContextBag"):
        sp.save_bag(other, tmp_path / "a", progress=False)  # type: ignore[call-overload]
    assert not list(tmp_path.iterdir())
