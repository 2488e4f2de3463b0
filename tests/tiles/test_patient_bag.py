"""The bag of a patient is the bags of its slides, one after another, and every tile knows its slide."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyramids import coordinate_pixels, write_pyramid

import slideio_pipe as sp
from slideio_pipe.errors import BagFormatError, ConfigError, OutputExistsError
from slideio_pipe.mil.models.small_encoder import SmallEncoder

SIDE = 64


def slide_bag(folder: Path, number: int, mpp: float, **options: Any) -> sp.TileBag:
    """Return the bag of a slide that was scanned at ``mpp``, read at 0.5 µm."""
    path = folder / f"s{number}.tif"
    if not path.exists():
        write_pyramid(path, coordinate_pixels(500 + 10 * number, 400), (1,), mpp=mpp)
    view = sp.open_slide(path).view(mpp=0.5)
    return sp.TileBag(view, sp.TileGrid(view, tile_size=SIDE), label=1, patient="P01", **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slides")


@pytest.fixture(scope="module")
def slides(folder: Path) -> list[sp.TileBag]:
    """Two slides scanned at two resolutions, and one of them augmented tile by tile."""
    return [
        slide_bag(folder, 0, 0.5),
        slide_bag(folder, 1, 0.25, tile_transform=sp.Flip(), seed=3, epoch=2),
        slide_bag(folder, 2, 0.5),
    ]


@pytest.fixture(scope="module")
def bag(slides: list[sp.TileBag]) -> sp.PatientBag:
    return sp.PatientBag(slides)


@pytest.fixture(scope="module")
def pixels(slides: list[sp.TileBag]) -> np.ndarray:
    """The oracle: the tiles of each slide's own bag."""
    return np.concatenate([slide[:] for slide in slides])


def test_tiles_coordinates_and_slides_are_those_of_the_slides(
    bag: sp.PatientBag, slides: list[sp.TileBag], pixels: np.ndarray
) -> None:
    assert bag.shape == pixels.shape
    assert (bag[:] == pixels).all()
    assert (bag.coords == np.concatenate([slide.coords for slide in slides])).all()
    assert (bag.grid_index == np.concatenate([slide.grid_index for slide in slides])).all()
    assert bag.slide_index.tolist() == [k for k, slide in enumerate(slides) for _ in range(len(slide))]
    assert (bag.name, bag.patient, bag.label, bag.slide_names) == ("P01", "P01", 1, ("s0.tif", "s1.tif", "s2.tif"))
    assert [list(bag.span(k)) for k in range(3)] == [np.flatnonzero(bag.slide_index == k).tolist() for k in range(3)]


def test_it_is_indexed_as_an_array(bag: sp.PatientBag, pixels: np.ndarray) -> None:
    edge = len(bag.slides[0])
    mixed = [edge, 0, len(bag) - 1, edge - 1, edge, 1]
    for key in (0, -1, edge, slice(edge - 2, edge + 2), mixed, bag.tissue != bag.tissue, (slice(0, 4), 5)):
        assert np.array_equal(bag[key], pixels[key])
    assert np.array_equal(np.asarray(bag), pixels)
    out = np.empty((len(mixed), SIDE, SIDE, 3), np.uint8)
    assert bag.read(mixed, out) is out
    assert np.array_equal(out, pixels[mixed])
    with pytest.raises(IndexError, match="tile"):
        bag.read([len(bag)])
    with pytest.raises(ConfigError, match="out is"):
        bag.read([0, 1], out)


def test_it_pickles_and_is_drawn(bag: sp.PatientBag, pixels: np.ndarray) -> None:
    copy = pickle.loads(pickle.dumps(bag))
    assert (copy.name, copy.label) == ("P01", 1)
    assert np.array_equal(copy[3:6], pixels[3:6])
    assert "P01" in repr(copy)
    assert "3 slides" in repr(copy)
    assert bag.plot(9).width > SIDE
    assert "P01" in bag._repr_html_()
    assert json.loads(json.dumps(bag.provenance()))["slides"][1]["slide"]["name"] == "s1.tif"


def test_storage_order_decodes_slide_after_slide(bag: sp.PatientBag) -> None:
    order = bag.storage_order(np.arange(len(bag))[::-1])
    assert sorted(order.tolist()) == list(range(len(bag)))
    assert (np.diff(bag.slide_index[order]) >= 0).all()


@pytest.mark.parametrize("colours", ["host", "device"])
def test_a_stream_gives_the_tiles_and_their_slides(bag: sp.PatientBag, pixels: np.ndarray, colours: str) -> None:
    found = list(sp.stream(bag, device="cpu", normalize=None, batch_size=7, colours=colours))
    tiles = torch.cat([batch.tiles for batch in found]).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(tiles, pixels)
    assert np.array_equal(np.concatenate([batch.slide_index for batch in found]), bag.slide_index)
    assert found[0].slides == bag.slide_names


def test_colours_of_each_slide_are_drawn_on_the_device_as_on_the_host(folder: Path) -> None:
    view = sp.open_slide(folder / "s0.tif").view(mpp=0.5, transform=sp.ColorJitter(p=1), seed=4)
    drawn = sp.TileBag(view, sp.TileGrid(view, tile_size=SIDE))
    bag = sp.PatientBag([drawn, slide_bag(folder, 2, 0.5)], patient="P01")
    host, device = (
        torch.cat([batch.tiles for batch in sp.stream(bag, device="cpu", normalize=None, colours=colours)]).int()
        for colours in ("host", "device")
    )
    assert (host - device).abs().max() <= 1


def test_slides_that_cannot_be_one_bag_are_refused(folder: Path, slides: list[sp.TileBag]) -> None:
    native = sp.open_slide(folder / "s1.tif").view()
    finer = sp.TileBag(native, sp.TileGrid(native, tile_size=SIDE))
    with pytest.raises(ConfigError, match=r"different resolutions: 0.5 µm \(s0.tif\), 0.25 µm \(s1.tif\)"):
        sp.PatientBag([slides[0], finer])
    view = slides[0].view
    with pytest.raises(ConfigError, match=r"different sizes: 64×64 px \(s0.tif\), 32×32 px"):
        sp.PatientBag([slides[0], sp.TileBag(view, sp.TileGrid(view, tile_size=32))])
    other = sp.TileBag(view, slides[0].grid, label=0, patient="P01")
    with pytest.raises(ConfigError, match="several labels"):
        sp.PatientBag([slides[0], other])
    assert sp.PatientBag([slides[0], other], label=2).label == 2
    with pytest.raises(ConfigError, match=r"several patients: P01 \(s0.tif\), P02"):
        sp.PatientBag([slides[0], sp.TileBag(view, slides[0].grid, patient="P02")])
    for nothing in ([], slides[0]):
        with pytest.raises(ConfigError, match="without slides"):
            sp.PatientBag(nothing)


@pytest.fixture
def stored(slides: list[sp.TileBag], tmp_path: Path) -> sp.PatientBag:
    bags = [sp.save_bag(slide, tmp_path / "bags" / f"{slide.name}.bag.zarr", progress=False) for slide in slides]
    return sp.PatientBag(bags)


def test_a_stored_patient_is_a_small_file_over_its_slides_bags(
    stored: sp.PatientBag, pixels: np.ndarray, tmp_path: Path
) -> None:
    file = tmp_path / "bags" / "P01.patient.json"
    written = sp.save_bag(stored, file)
    assert file.stat().st_size < 1000
    with sp.open_bag(file) as opened:
        assert (opened.name, opened.label, opened.slide_names) == ("P01", 1, stored.slide_names)
        assert np.array_equal(opened[:], pixels)
        assert np.array_equal(written.slide_index, opened.slide_index)
    with pytest.raises(OutputExistsError):
        sp.save_bag(stored, file)
    sp.save_bag(stored, file, overwrite=True)
    (tmp_path / "bags").rename(tmp_path / "moved")
    assert len(sp.open_bag(tmp_path / "moved" / file.name)) == len(pixels)


def test_a_bag_of_a_slide_that_is_gone_or_another_is_said(stored: sp.PatientBag, tmp_path: Path) -> None:
    file = tmp_path / "P01.patient.json"
    sp.save_bag(stored, file)
    place = stored.slides[1].path
    place.rename(tmp_path / "elsewhere")
    with pytest.raises(BagFormatError, match=r"the bag of slide s1.tif is not there: .*s1.tif.bag.zarr"):
        sp.open_bag(file)
    stored.slides[0].path.rename(place)
    with pytest.raises(BagFormatError, match=r"not there|and had"):
        sp.open_bag(file)


def test_a_bag_that_was_stored_again_with_other_tiles_is_said(
    stored: sp.PatientBag, slides: list[sp.TileBag], tmp_path: Path
) -> None:
    file = tmp_path / "P01.patient.json"
    sp.save_bag(stored, file)
    smaller = sp.TileBag.from_coords(slides[0].view, slides[0].coords[:3], SIDE)
    sp.save_bag(smaller, stored.slides[0].path, overwrite=True, progress=False)
    with pytest.raises(BagFormatError, match="has 3 tiles, and had"):
        sp.open_bag(file)


def test_pixels_are_never_copied(bag: sp.PatientBag, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="copies no pixels"):
        sp.save_bag(bag, tmp_path / "P01.patient.json")
    assert not (tmp_path / "P01.patient.json").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"patient_bag": {"version": 9}}', "version 9"),
        ('{"patient_bag": {"version": 1, "slides": [{"name": "a"}]}}', "damaged"),
        ('{"patient_bag": 3}', "no bag store"),
        ("nothing", "no bag store"),
    ],
)
def test_files_that_are_no_patients_bag_are_refused(content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "P01.patient.json").write_text(content)
    with pytest.raises(BagFormatError, match=reason):
        sp.open_bag(tmp_path / "P01.patient.json")


def test_stored_bags_of_a_patient_are_augmented_slide_by_slide(stored: sp.PatientBag) -> None:
    drawn = [sp.AugmentedBag(slide, tile_transform=sp.Flip(), seed=1) for slide in stored.slides]
    bag = sp.PatientBag(drawn)
    assert np.array_equal(bag[:], np.concatenate([slide[:] for slide in drawn]))


def test_the_features_of_a_patient_are_those_of_its_slides(bag: sp.PatientBag, slides: list[sp.TileBag]) -> None:
    torch.manual_seed(0)
    encoder = sp.load_encoder(SmallEncoder(8), normalize="imagenet", input_size=SIDE)
    found, *apart = (sp.encode_bag(each, encoder, device="cpu", progress=False) for each in (bag, *slides))
    for name, values in found.items():
        np.testing.assert_allclose(values, np.concatenate([each[name] for each in apart]), atol=1e-2)
    assert found
