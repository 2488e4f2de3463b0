"""Streams, data sets and loaders of tiles at several magnifications."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import albumentationsxl as A
import numpy as np
import pytest
import torch
from cuda_device import DEVICES
from pyramids import write_pyramid

import slideio_pipe as sp
from slideio_pipe.errors import ConfigError, NoTissueError

SIDE, CONTEXT = 48, [2.0, 3.5]
SOFT = np.kron(np.random.default_rng(3).integers(0, 256, (40, 50, 3), np.uint8), np.ones((20, 20, 1), np.uint8))
COLOURS = A.Compose([sp.StainJitter(), sp.ColorJitter()])
READ = {"view": {"mpp": 0.5, "context": CONTEXT}, "grid": {"tile_size": SIDE}, "tissue": {"method": "none"}}
BYTES = sp.Normalize(0.0, 1.0, rescale=1.0)  # normalised in this way, values are grey levels


@pytest.fixture(autouse=True)
def _device(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides of two patients, scanned at two resolutions, with a manifest."""
    folder = tmp_path_factory.mktemp("study")
    for name, mpp in (("a", 0.25), ("b", 0.5)):
        write_pyramid(folder / f"{name}.tif", SOFT, (1, 4), mpp=mpp, tile=64, compression="jpeg")
    (folder / "cohort.csv").write_text("slide,label,patient\na.tif,0,P\nb.tif,1,Q\n")
    (folder / "one.csv").write_text("slide,label,patient\na.tif,1,P\nb.tif,1,P\n")
    return folder


def context_bag(folder: Path, name: str = "a", **options: Any) -> sp.ContextBag:
    view = sp.open_slide(folder / f"{name}.tif").view(mpp=0.5)
    return sp.ContextBag(view, sp.TileGrid(view, SIDE), mpp=[0.5, *CONTEXT], **options)


@pytest.mark.parametrize("device", DEVICES)
def test_batches_are_normalised_tiles_with_an_axis_of_magnifications(study: Path, device: str) -> None:
    """By the formula in float64, rounded to float16 once; one call of a network takes all of them without a copy."""
    bag, normalize = context_bag(study, label=3), sp.Normalize.imagenet()
    mean, std = (np.array(numbers).reshape(3, 1, 1) for numbers in (normalize.mean, normalize.std))
    count = 0
    for batch in sp.stream(bag, device=device, normalize=normalize, batch_size=7, threads=2):
        assert tuple(batch.tiles.shape) == (len(batch), 3, 3, SIDE, SIDE)
        assert batch.tiles.dtype == torch.float16
        pixels = bag[batch.index].transpose(0, 1, 4, 2, 3)
        assert np.abs(batch.tiles.cpu().double().numpy() - (pixels / 255 - mean) / std).max() < 0.001
        flat = batch.tiles.flatten(0, 1)
        assert flat.data_ptr() == batch.tiles.data_ptr()
        assert flat.is_contiguous(memory_format=torch.channels_last)
        assert batch.nominal_mpps == (0.5, *CONTEXT)
        assert list(batch.by_mpp()) == [0.5, *CONTEXT]
        assert torch.equal(batch.by_mpp()[2.0], batch.tiles[:, 1])
        assert np.array_equal(batch.coords, bag.coords[batch.index])
        count += len(batch)
    assert count == len(bag)


def test_uint8_and_selected_tiles_are_the_bag_s(study: Path) -> None:
    bag, chosen = context_bag(study), [9, 2, 2, 30]
    batch = next(iter(sp.stream(bag, device="cpu", normalize=None, indices=chosen)))
    assert np.array_equal(batch.tiles.permute(0, 1, 3, 4, 2).numpy(), bag[chosen])


def test_one_magnification_has_no_dictionary(study: Path) -> None:
    batch = next(iter(sp.stream(context_bag(study).at(0), device="cpu", normalize=None)))
    assert batch.nominal_mpps == ()
    with pytest.raises(ConfigError, match="tiles of one magnification"):
        batch.by_mpp()


@pytest.mark.parametrize("of_tiles", [None, COLOURS], ids=["slide", "tiles"])
def test_colours_computed_on_the_device_are_those_of_the_host(study: Path, of_tiles: Any) -> None:
    """To a level and a rounding, at each magnification."""
    view = sp.open_slide(study / "a.tif").view(mpp=0.5, transform=None if of_tiles else COLOURS, seed=3)
    bag = sp.ContextBag(view, sp.TileGrid(view, SIDE), mpp=[0.5, *CONTEXT], tile_transform=of_tiles, seed=5)
    settings = {"device": "cpu", "normalize": BYTES, "dtype": torch.float32, "batch_size": 11}
    found = [torch.cat([b.tiles for b in sp.stream(bag, colours=where, **settings)]) for where in ("host", "device")]
    assert np.array_equal(found[0].permute(0, 1, 3, 4, 2).numpy(), bag[:])
    assert (found[0] - found[1]).abs().max() <= 1.6
    plain = torch.from_numpy(sp.ContextBag(view.slide.view(mpp=0.5), plain_grid(view), mpp=[0.5, *CONTEXT])[:])
    assert (plain.movedim(-1, 2) - found[1]).abs().mean() > 3


def plain_grid(view: sp.SlideView) -> sp.TileGrid:
    return sp.TileGrid(view.slide.view(mpp=0.5), SIDE)


@pytest.mark.slow
@pytest.mark.parametrize("mix", [0, 2])
def test_a_cohort_streams_bags_of_several_magnifications(study: Path, mix: int) -> None:
    """Slides of two scan resolutions are read at the same three; chunks and whole bags."""
    dataset = sp.BagDataset(study / "cohort.csv", READ, tile_transform=sp.Flip())
    assert dataset.tile_shape == (3, SIDE, SIDE, 3)
    loader = sp.BagLoader(
        dataset, device="cpu", normalize=BYTES, dtype=torch.float32, chunk_size=10, mix=mix, ordered=True, threads=2
    )
    for epoch in range(2):
        for chunk in loader:
            number = chunk.label
            expected = context_bag(study, "ab"[number], tile_transform=sp.Flip(), epoch=epoch)
            assert chunk.nominal_mpps == (0.5, *CONTEXT)
            assert np.array_equal(chunk.tiles.permute(0, 1, 3, 4, 2).numpy(), expected[chunk.index])
    for whole in loader.bags():
        expected = context_bag(study, "ab"[whole.label], tile_transform=sp.Flip(), epoch=2)
        assert np.array_equal(whole.tiles.permute(0, 1, 3, 4, 2).numpy(), expected[:])
        assert torch.equal(whole.by_mpp()[3.5], whole.tiles[:, 2])
    dataset.set_epoch(1)
    alone = context_bag(study, "a", tile_transform=sp.Flip(), epoch=1)
    assert np.array_equal(dataset[0].tiles.permute(0, 1, 3, 4, 2).numpy(), alone[:])
    assert dataset[0].nominal_mpps == (0.5, *CONTEXT)
    loader.close()


@pytest.mark.system
def test_worker_processes_read_the_same_tiles(study: Path) -> None:
    dataset = sp.BagDataset(study / "cohort.csv", READ, tile_transform=sp.RandomAffine(rotate=30))
    settings = {"device": "cpu", "normalize": None, "chunk_size": 9, "ordered": True}
    found = []
    for how in ({"threads": 1}, {"workers": 2}):
        with sp.BagLoader(dataset, **settings, **how) as loader:
            found.append([(chunk.bag, chunk.tiles) for chunk in loader])
    assert [name for name, _ in found[0]] == [name for name, _ in found[1]]
    assert all(torch.equal(one, two) for (_, one), (_, two) in zip(*found, strict=True))


def test_a_patient_s_bag_has_them(study: Path) -> None:
    dataset = sp.BagDataset(study / "one.csv", READ | {"unit": "patient"})
    with sp.BagLoader(dataset, device="cpu", normalize=None, chunk_size=16, threads=1) as loader:
        whole = next(iter(loader.bags()))
    expected = np.concatenate([context_bag(study, name)[:] for name in "ab"])
    assert np.array_equal(whole.tiles.permute(0, 1, 3, 4, 2).numpy(), expected)
    assert whole.nominal_mpps == (0.5, *CONTEXT)
    assert whole.slides == ("a.tif", "b.tif")


def test_stored_bags_are_streamed_as_slides(study: Path, tmp_path: Path) -> None:
    bag = context_bag(study, label=1)
    sp.save_bag(bag, tmp_path / "a.bag.zarr")
    dataset = sp.BagDataset([tmp_path / "a.bag.zarr"])
    with sp.BagLoader(dataset, device="cpu", normalize=None, threads=1) as loader:
        whole = next(iter(loader.bags()))
    assert np.array_equal(whole.tiles.permute(0, 1, 3, 4, 2).numpy(), bag[:])
    assert whole.by_mpp().keys() == {0.5, *CONTEXT}
    drawn = sp.BagDataset([tmp_path / "a.bag.zarr"], tile_transform=sp.Flip())
    with pytest.raises(ConfigError, match="draws of tiles at 3 magnifications"):
        drawn.open(0)


def test_other_magnifications_among_them_are_refused(study: Path, tmp_path: Path) -> None:
    sp.save_bag(context_bag(study).at(0), tmp_path / "b.bag.zarr")
    dataset = sp.BagDataset([study / "a.tif", tmp_path / "b.bag.zarr"], READ)
    loader = sp.BagLoader(dataset, device="cpu", normalize=None, threads=1)
    with loader, pytest.raises(ConfigError, match=r"tiles of 48×48 px among those of 48×48 px at 3 magnifications"):
        list(loader)


def test_views_for_self_supervision_are_refused(study: Path) -> None:
    with pytest.raises(ConfigError, match="views of tiles at several magnifications"):
        sp.stream(context_bag(study), views=sp.MultiCrop(), device="cpu", normalize=None)


@pytest.mark.parametrize(
    ("view", "reason"),
    [
        ({"mpp": 0.5, "context": [0.5]}, "not coarser"),
        ({"mpp": 0.5, "context": [4.0, 2.0]}, "not coarser"),
        ({"context": [-1.0]}, "more than 0"),
        ({"mpp": None, "context": [2.0, 2.0]}, "not coarser"),
        ({"context": [float("inf")]}, "finite"),
    ],
)
def test_impossible_settings_are_refused(study: Path, view: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        sp.BagDataset(study / "cohort.csv", READ | {"view": view})


def test_level_0_as_stored_is_the_first_of_them(study: Path) -> None:
    bag = sp.BagDataset([study / "a.tif"], READ | {"view": {"mpp": None, "context": [1.0]}}).open(0)
    assert isinstance(bag, sp.ContextBag)
    assert bag.nominal_mpps == (0.25, 1.0)
    with pytest.raises(ConfigError, match="same as"):
        sp.BagDataset([study / "a.tif"], READ | {"view": {"mpp": None, "context": [0.25]}}).open(0)


def test_an_empty_bag_streams_nothing(study: Path) -> None:
    view = sp.open_slide(study / "a.tif").view(mpp=0.5)
    bag = sp.ContextBag.from_coords(view, [], SIDE, mpp=[0.5, 2.0])
    assert bag.shape == (0, 2, SIDE, SIDE, 3)
    assert list(sp.stream(bag, device="cpu", normalize=None)) == []
    with pytest.raises(NoTissueError):
        sp.BagDataset([bag]).open(0)


def test_settings_without_further_magnifications_are_those_of_older_runs() -> None:
    """Fingerprints of runs are made from these values."""
    assert sp.LoaderConfig().model_dump()["view"] == {"mpp": 0.5}
