"""Cohorts of stored bags with transforms: the draws of slides, in datasets, loaders and trainings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import albumentationsxl as A
import numpy as np
import pytest
import torch
from pyramids import write_pyramid

import slideio_pipe as sp
from slideio_pipe.errors import ConfigError, RepeatedDrawsWarning
from slideio_pipe.store import config as store_config
from slideio_pipe.streaming.config import LoaderConfig

PLAIN = {"view": {"mpp": "native"}, "tissue": {"method": "none"}, "grid": {"tile_size": 64}, "seed": 3}
COLOURS = A.Compose([sp.StainJitter(alpha=0.3), sp.ColorJitter(0.2, 0.2, 0.2, 0.05)])
TURNED = A.Compose([sp.RandomAffine(rotate=25), sp.RandomResizedCrop((48, 48), scale=(0.5, 1.0)), sp.ColorJitter(0.2)])


@pytest.fixture
def slides(tmp_path: Path) -> list[Path]:
    """Two JPEG slides of one level."""
    rows, columns = np.mgrid[:320, :448]
    found = []
    for name, wave in (("a.tif", 23), ("b.tif", 31)):
        bands = [127 + 90 * np.sin(columns / wave), 127 + 90 * np.cos(rows / 17), (rows + columns) / 4]
        pixels = np.stack(bands, axis=-1).astype(np.uint8)
        found.append(write_pyramid(tmp_path / name, pixels, (1,), mpp=0.5, tile=64, compression="jpeg"))
    return found


@pytest.fixture
def stores(slides: list[Path], tmp_path: Path) -> list[Path]:
    """Their tiles, as the slides' own JPEG bytes."""
    for slide in slides:
        view = sp.open_slide(slide).view()
        bag = sp.TileBag(view, sp.TileGrid(view, 64), label=1, patient="p")
        sp.save_bag(bag, tmp_path / f"{slide.stem}.bag.zarr", pixels="source", progress=False)
    return [tmp_path / "a.bag.zarr", tmp_path / "b.bag.zarr"]


def inner(coords: np.ndarray) -> np.ndarray:
    """Return the tiles whose surroundings are in the slide."""
    return np.flatnonzero(((coords >= 64) & (coords + 128 <= (448, 320))).all(axis=1))


@pytest.mark.parametrize("opened", [False, True])
def test_tiles_are_those_of_a_dataset_of_slides(slides: list[Path], stores: list[Path], opened: bool) -> None:
    """With the same seed and epoch; by path, and as bags that are open."""
    transforms = {"slide_transform": COLOURS, "tile_transform": TURNED}
    cohort: list[Any] = [sp.open_bag(path) for path in stores] if opened else list(stores)
    stored, direct = sp.BagDataset(cohort, PLAIN, **transforms), sp.BagDataset(slides, PLAIN, **transforms)
    assert stored.tile_shape == direct.tile_shape == (48, 48, 3)
    before = None
    for epoch in (0, 2):
        for number in (0, 1):
            stored.set_epoch(epoch)
            direct.set_epoch(epoch)
            ours, theirs = stored[number], direct[number]
            inside = inner(theirs.coords)
            assert len(inside) == 15
            assert torch.equal(ours.tiles[inside], theirs.tiles[inside])
            np.testing.assert_array_equal(ours.coords, theirs.coords)
            assert (ours.label, ours.patient, ours.bag) == (1, "p", stored.cohort[number].name)
        assert before is None or not torch.equal(ours.tiles, before)
        before = ours.tiles
    if opened:
        cohort[0].read([0])  # the caller's stays open


@pytest.mark.parametrize("colours", ["host", "device"])
def test_a_loader_delivers_augmented_tiles(stores: list[Path], colours: str) -> None:
    """Those of the dataset, to one level if the device computes colours; threads do not matter."""
    config = PLAIN | {"max_tiles": 20}
    dataset = sp.BagDataset(stores, config, slide_transform=COLOURS, tile_transform=TURNED)
    expected = {whole.bag: whole for whole in (dataset[0], dataset[1])}
    for threads in (1, 2, 4):
        loader = sp.BagLoader(dataset, device="cpu", normalize=None, threads=threads, chunk_size=8, colours=colours)
        with loader:
            for whole in loader.bags():
                other = expected[whole.bag]
                np.testing.assert_array_equal(np.sort(whole.index), other.index)
                order = np.argsort(whole.index)
                difference = whole.tiles[torch.from_numpy(order)].int() - other.tiles.int()
                assert int(difference.abs().max()) <= (0 if colours == "host" else 1)


@pytest.mark.system
def test_a_data_loader_with_spawned_workers(stores: list[Path]) -> None:
    """Workers open the stores by path, with the same draws."""
    dataset = sp.BagDataset(stores, PLAIN, slide_transform=COLOURS, tile_transform=TURNED)
    expected = [dataset[0].tiles, dataset[1].tiles]
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    for whole, tiles in zip(loader, expected, strict=True):
        assert torch.equal(whole.tiles, tiles)


def test_repeated_draws_are_warned_of(stores: list[Path]) -> None:
    """In a DataLoader without set_epoch."""
    loader = torch.utils.data.DataLoader(
        sp.BagDataset([sp.AugmentedBag(sp.open_bag(stores[0]), slide_transform=COLOURS)]), batch_size=None
    )
    list(loader)
    with pytest.warns(RepeatedDrawsWarning):
        list(loader)


def test_an_augmented_bag_of_the_cohort_is_drawn_per_epoch(stores: list[Path]) -> None:
    """Its own epoch counts from 0; another transform is refused."""
    bag = sp.AugmentedBag(sp.open_bag(stores[0]), tile_transform=TURNED, slide_transform=COLOURS, seed=5, epoch=2)
    dataset = sp.BagDataset([bag])
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        expected = torch.from_numpy(bag.at_epoch(2 + epoch)[:]).permute(0, 3, 1, 2)
        assert torch.equal(dataset[0].tiles, expected)
    with pytest.raises(ConfigError, match="has its pixels already"):
        sp.BagDataset([bag], tile_transform=sp.Flip())


def test_what_is_beyond_a_tile_is_a_setting(stores: list[Path]) -> None:
    """Of the dataset; by default left out of what a run records, so that it equals older runs."""
    white = PLAIN | {"stored": {"neighbours": False, "beyond": "white"}}
    dataset = sp.BagDataset(stores, white, tile_transform=TURNED)
    bag = dataset.open(0)
    assert isinstance(bag, sp.AugmentedBag)
    assert (bag.neighbours, bag.beyond) == (False, "white")
    assert "stored" not in LoaderConfig().model_dump()
    assert LoaderConfig(**white).model_dump()["stored"] == {"neighbours": False, "beyond": "white"}
    assert store_config.StoredConfig().model_dump() == {"neighbours": True, "beyond": "reflect"}
    assert dataset.digest() != sp.BagDataset(stores, PLAIN, tile_transform=TURNED).digest()
    with pytest.raises(ConfigError, match=r"stored\.beyond"):
        sp.BagDataset(stores, {"stored": {"beyond": "black"}})


@pytest.mark.parametrize(
    ("transform", "reason"),
    [(sp.RandomAffine(p=0.01), "RandomAffine of slide_transform cannot move stored tiles; pass it as tile_tran"),
     (A.Blur(), "Blur of slide_transform runs only on a whole slide")],
)  # fmt: skip
def test_geometry_of_a_bag_is_refused_before_it_is_opened(stores: list[Path], transform: Any, reason: str) -> None:
    """Not in the first epoch in which it is drawn."""
    with pytest.raises(ConfigError, match=reason):
        sp.BagDataset(stores, slide_transform=A.Compose([sp.StainJitter(), transform]))


def test_stains_of_a_bag_are_measured_once(stores: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The second epoch does not measure them again."""
    from slideio_pipe.store import stored_slide

    calls: list[str] = []
    measure = stored_slide.colour_of

    def counted(tiles: Any, slide: str, **options: Any) -> Any:
        calls.append(slide)
        return measure(tiles, slide, **options)

    monkeypatch.setattr(stored_slide, "colour_of", counted)
    dataset = sp.BagDataset(stores[:1], PLAIN, tile_transform=sp.StainJitter(basis="slide"))
    first = dataset[0].tiles
    dataset.set_epoch(1)
    assert not torch.equal(dataset[0].tiles, first)
    assert calls == ["a.tif"]


def test_features_are_of_stored_pixels(stores: list[Path], tmp_path: Path) -> None:
    """A transform of the slide is refused for a bag store, as its features are kept beside its pixels."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 16, 16), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    encoder = sp.load_encoder(network, name="tiny", normalize="imagenet", input_size=64)
    with pytest.raises(ConfigError, match="has its pixels already"):
        sp.encode_cohort(stores, encoder, tmp_path / "f", device="cpu", slide_transform=COLOURS)


def test_no_file_stays_open(stores: list[Path]) -> None:
    """Neither of a store nor of its smaller copies, after its bag was read."""

    def opened() -> list[str]:
        paths = (os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
        return [path for path in paths if ".bag.zarr" in path]

    sp.add_reduced(sp.open_bag(stores[0]), 2, progress=False).close()
    small = A.Compose([sp.RandomResizedCrop((24, 24), scale=(0.9, 1.0))])
    dataset = sp.BagDataset(stores, PLAIN, tile_transform=small)
    bag = dataset.open(0)
    bag.read([0])
    assert any("/reduced/2/" in path for path in opened())
    dataset.close(0, bag)
    assert opened() == []
    assert len(dataset[1].tiles) == 35
    assert opened() == []


def test_stages_of_stored_bags_are_measured(stores: list[Path]) -> None:
    """Decoding and augmentation of tiles, as of slides: ``profile`` shows them."""
    dataset = sp.BagDataset(stores, PLAIN, tile_transform=TURNED, slide_transform=COLOURS)
    stages: set[str] = set()
    dataset.on_stage = lambda name, start, end: stages.add(name)
    dataset[0]
    assert {"open", "decode", "augment"} <= stages


def test_a_damaged_store_costs_one_tile_of_a_loader(stores: list[Path]) -> None:
    """White or skipped, with a warning; the others have the tiles of the whole store."""
    turned = A.Compose([sp.RandomAffine(rotate=10, flip=False)])
    with sp.open_bag(stores[0]) as bag:
        whole, encoded = sp.AugmentedBag(bag, tile_transform=turned, seed=3)[:], next(bag.encoded([17]))
    (shard,) = (file for file in (stores[0] / "tiles" / "c").rglob("*") if file.is_file())
    content = shard.read_bytes()
    shard.write_bytes(content.replace(encoded, encoded[:200] + bytes(len(encoded) - 200)))
    dataset = sp.BagDataset(stores[:1], PLAIN, tile_transform=turned)
    loader = sp.BagLoader(dataset, device="cpu", normalize=None, on_error="skip", ordered=True, chunk_size=8)
    with loader, pytest.warns(sp.SlideioPipeWarning, match="1 tile could not be read"):
        (found,) = list(loader.bags())
    assert 17 not in found.index
    assert len(found.index) == 34
    column, row = np.divmod(found.index, 7)[::-1]
    far = (np.abs(column - 17 % 7) > 1) | (np.abs(row - 17 // 7) > 1)
    tiles = found.tiles.permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(tiles[far], whole[found.index[far]])
    assert (tiles[~far] != whole[found.index[~far]]).any()
