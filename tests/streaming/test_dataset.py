"""A cohort as bags: opened on access, tissue found once, drawn again in every epoch, and released."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import albumentationsxl as A
import numpy as np
import pytest
import torch
import yaml
from made_slides import made_slide
from paths import CONFIGS
from PIL import Image
from pyramids import coordinate_pixels, write_pyramid

import slideio_pipe as sp
from slideio_pipe.errors import ConfigError, EmptyTissueWarning, NoTissueError, RepeatedDrawsWarning, SlideNotFoundError
from slideio_pipe.slides import slide as slide_module
from slideio_pipe.streaming.config import TRAINING_SECTIONS, LoaderConfig, load_loader_config
from slideio_pipe.tiles import find_tissue as tissue_finding

PLAIN = {"view": {"mpp": "native"}, "tissue": {"method": "none"}, "grid": {"tile_size": 100}}


@pytest.fixture
def slides(tmp_path: Path) -> list[Path]:
    """Two slides whose pixels encode their coordinates."""
    pixels = coordinate_pixels(640, 420)
    return [write_pyramid(tmp_path / name, pixels, (1,), mpp=0.5) for name in ("a.tif", "b.tif")]


def test_a_slide_becomes_a_bag(slides: list[Path]) -> None:
    """All tiles as uint8, channels first in channels_last memory, with coordinates."""
    whole = sp.BagDataset(slides, PLAIN)[1]
    assert (whole.bag, whole.tiles.shape, whole.tiles.dtype) == ("b.tif", (24, 3, 100, 100), torch.uint8)
    assert whole.tiles.is_contiguous(memory_format=torch.channels_last)
    pixels = coordinate_pixels(640, 420)
    for tile, (x, y) in zip(whole.tiles, whole.coords, strict=True):
        np.testing.assert_array_equal(tile.permute(1, 2, 0).numpy(), pixels[y : y + 100, x : x + 100])
    assert repr(whole) == "WholeBag(b.tif: (24, 3, 100, 100) uint8 on cpu)"


def test_mpp_label_and_mask_of_a_manifest_are_used(slides: list[Path], tmp_path: Path) -> None:
    """The mask selects the tiles."""
    mask = np.zeros((42, 64), np.uint8)
    mask[:20, :20] = 255
    Image.fromarray(mask).save(tmp_path / "a.png")
    (tmp_path / "cohort.csv").write_text("slide,label,mpp,mask\na.tif,1,0.25,a.png\nb.tif,0,,\n")
    config = {"view": {"mpp": 0.5}, "tissue": {"method": "none"}, "grid": {"tile_size": 50}}
    dataset = sp.BagDataset(tmp_path / "cohort.csv", config)
    first, second = dataset[0], dataset[1]
    assert (first.label, second.label) == (1, 0)
    assert first.coords.tolist() == [[0, 0], [100, 0], [0, 100], [100, 100]]  # 50 px at twice the slide's pixel
    assert second.coords[1].tolist() == [50, 0]


def test_bags_and_stores_are_items_of_a_dataset(slides: list[Path], tmp_path: Path) -> None:
    """A store is opened, a bag is returned; its own label is used if the cohort has none."""
    view = sp.open_slide(slides[0]).view()
    bag = sp.TileBag(view, sp.TileGrid(view, tile_size=100), label=3)
    sp.save_bag(bag, tmp_path / "stored.bag.zarr", progress=False)
    dataset = sp.BagDataset([bag, tmp_path / "stored.bag.zarr"])
    assert dataset.tile_shape == (100, 100, 3)
    assert (dataset[0].label, dataset[1].label) == (3, 3)
    assert torch.equal(dataset[0].tiles, dataset[1].tiles)
    assert sp.open_slide(slides[0]).view() == bag.view
    bag.read([0])  # still open


def test_the_tile_shape_of_stores_is_their_own(slides: list[Path], tmp_path: Path) -> None:
    """The configuration's tile size is not used."""
    view = sp.open_slide(slides[0]).view()
    sp.save_bag(sp.TileBag(view, sp.TileGrid(view, tile_size=60)), tmp_path / "s.zarr", progress=False)
    assert sp.BagDataset([tmp_path / "s.zarr"]).tile_shape == (60, 60, 3)


def test_tissue_is_found_once(slides: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The second epoch does not decode the overview again, and keeps the same tiles."""
    calls: list[str] = []
    find = tissue_finding.find_tissue

    def counted(slide: Any, **options: Any) -> Any:
        calls.append(slide.name)
        return find(slide, **options)

    monkeypatch.setattr(tissue_finding, "find_tissue", counted)
    dataset = sp.BagDataset(slides, {"view": {"mpp": "native"}, "grid": {"tile_size": 64, "min_tissue": 0.1}})
    first = dataset[0].index
    dataset.set_epoch(1)
    np.testing.assert_array_equal(dataset[0].index, first)
    dataset[1]
    assert calls == ["a.tif", "b.tif"]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["slide_transform", "tile_transform"])
def test_stains_are_measured_once(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second epoch jitters a slide's own stains without measuring them again, with the same pixels."""
    calls: list[str] = []
    measure = slide_module.slide_colour

    def counted(slide: Any, **options: Any) -> Any:
        calls.append(slide.name)
        return measure(slide, **options)

    path = tmp_path / "a.svs"
    made_slide(path, size=(1024, 768), seed=3, pieces=1)
    alone, epochs = (sp.BagDataset([path], PLAIN, **{part: sp.StainJitter(basis="slide")}) for _ in range(2))
    alone.set_epoch(1)
    expected = alone[0].tiles
    monkeypatch.setattr(slide_module, "slide_colour", counted)
    for epoch in (0, 1):
        epochs.set_epoch(epoch)
        found = epochs[0].tiles
    assert calls == ["a.svs"]
    assert torch.equal(found, expected)


def test_each_epoch_has_its_own_draws(slides: list[Path]) -> None:
    """Other tiles and transforms; the same epoch has the same ones, also in another process."""
    config = PLAIN | {"max_tiles": 5, "seed": 4}
    dataset = sp.BagDataset(slides, config, tile_transform=A.Compose([sp.ColorJitter(0.3, 0.3, 0.3, 0.1)]))
    first = dataset[0]
    assert len(first) == 5
    again = pickle.loads(pickle.dumps(dataset))[0]
    assert torch.equal(first.tiles, again.tiles)
    np.testing.assert_array_equal(first.index, again.index)
    dataset.set_epoch(1)
    assert dataset[0].index.tolist() != first.index.tolist()
    same = np.intersect1d(dataset[0].index, first.index)
    for k in same:
        a, b = (tiles.tiles[tiles.index.tolist().index(k)] for tiles in (first, dataset[0]))
        assert not torch.equal(a, b)


def test_a_slide_transform_is_drawn_per_epoch(slides: list[Path]) -> None:
    """One draw for all tiles of a slide, replayed exactly."""
    dataset = sp.BagDataset(slides, PLAIN, slide_transform=A.Compose([sp.Rotate90(p=1), sp.ColorJitter(0.4)]))
    draws = [dataset.open(0, epoch).view.draw for epoch in (0, 0, 1, 2)]  # type: ignore[attr-defined]
    assert draws[0] == draws[1]
    assert len({draw.model_dump_json() for draw in draws}) == 3


def test_the_canvas_of_a_tile_transform_is_the_tile_shape(slides: list[Path]) -> None:
    """Known before any slide is opened."""
    transform = A.Compose([sp.RandomResizedCrop((64, 48))])
    dataset = sp.BagDataset(slides, PLAIN, tile_transform=transform)
    assert dataset.tile_shape == dataset.open(0).shape[1:] == (48, 64, 3)


def test_a_bags_own_tile_transform_is_drawn_per_epoch(slides: list[Path]) -> None:
    """For a bag in the cohort that has a tile transform."""
    view = sp.open_slide(slides[0]).view()
    bag = sp.TileBag(view, sp.TileGrid(view, tile_size=50), tile_transform=A.Compose([sp.ColorJitter(0.5)]))
    dataset = sp.BagDataset([bag])
    first = dataset[0].tiles
    assert torch.equal(first, torch.from_numpy(bag[:]).permute(0, 3, 1, 2))
    dataset.set_epoch(1)
    assert not torch.equal(first, dataset[0].tiles)


def test_transforms_are_refused_for_stored_pixels(slides: list[Path], tmp_path: Path) -> None:
    """They could not be applied."""
    view = sp.open_slide(slides[0]).view()
    bag = sp.TileBag(view, sp.TileGrid(view, tile_size=100))
    with pytest.raises(ConfigError, match="has its pixels already"):
        sp.BagDataset([slides[1], bag], tile_transform=A.Compose([sp.Flip()]))


@pytest.mark.parametrize("part", ["slide_transform", "tile_transform"])
def test_a_refused_transform_is_refused_before_a_slide_is_opened(tmp_path: Path, part: str) -> None:
    """Not at the first item of a long training."""
    (tmp_path / "a.svs").touch()
    with pytest.raises(ConfigError, match="instead: "):
        sp.BagDataset([tmp_path / "a.svs"], **{part: A.Compose([A.AdvancedBlur(p=0.01)])})


def test_a_slide_without_tiles_is_an_error(slides: list[Path], tmp_path: Path) -> None:
    """A slide of glass; so is a file that was deleted."""
    white = write_pyramid(tmp_path / "white.tif", np.full((300, 300, 3), 244, np.uint8), (1,), mpp=0.5)
    dataset = sp.BagDataset([white, slides[0]], {"grid": {"tile_size": 100}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptyTissueWarning)
        with pytest.raises(NoTissueError, match=r"white\.tif"):
            dataset[0]
    slides[0].unlink()
    with pytest.raises(SlideNotFoundError):
        dataset[1]


def test_an_index_beyond_the_cohort_is_an_index_error(slides: list[Path]) -> None:
    """As for a list, so that iteration ends."""
    dataset = sp.BagDataset(slides, PLAIN)
    assert dataset[-1].bag == "b.tif"
    assert [whole.bag for whole in dataset] == ["a.tif", "b.tif"]  # type: ignore[attr-defined]
    with pytest.raises(IndexError):
        dataset[2]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.system)])
def test_a_torch_data_loader_reads_the_dataset(slides: list[Path], workers: int) -> None:
    """In spawned workers too; errors keep their class."""
    dataset = sp.BagDataset(slides, PLAIN | {"max_tiles": 6})
    options: dict[str, Any] = {"multiprocessing_context": "spawn"} if workers else {}
    loaded = list(torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers, **options))
    assert [whole.bag for whole in loaded] == ["a.tif", "b.tif"]
    for number, whole in enumerate(loaded):
        assert torch.equal(whole.tiles, dataset[number].tiles)
        np.testing.assert_array_equal(whole.coords, dataset[number].coords)
    slides[1].write_bytes(b"no slide")
    dataset.set_epoch(1)
    with pytest.raises(sp.SlideioPipeError):
        list(torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers, **options))


def drawing(slides: list[Path]) -> sp.BagDataset:
    """Return a dataset that draws tiles and their colours."""
    return sp.BagDataset(slides, PLAIN | {"max_tiles": 6}, tile_transform=A.Compose([sp.ColorJitter(0.4)]))


def tiles_of(items: Iterable[sp.WholeBag]) -> dict[str, torch.Tensor]:
    return {whole.bag: whole.tiles for whole in items}


@pytest.mark.system
@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}])
def test_set_epoch_reaches_persistent_workers(slides: list[Path], options: dict[str, Any]) -> None:
    """Each epoch equals the dataset's own."""
    dataset, plain = drawing(slides), drawing(slides)
    spawn: dict[str, Any] = {"multiprocessing_context": "spawn"} if options else {}
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, **options, **spawn)
    for epoch in (0, 1, 7):
        dataset.set_epoch(epoch)
        plain.set_epoch(epoch)
        expected = tiles_of(plain[k] for k in range(2))
        assert {name: torch.equal(t, expected[name]) for name, t in tiles_of(loader).items()} == dict.fromkeys(
            ("a.tif", "b.tif"), True
        )
    dataset.set_epoch(7)
    assert torch.equal(tiles_of(loader)["a.tif"], expected["a.tif"])  # on request: no warning


def test_a_loop_without_set_epoch_is_warned_once(slides: list[Path]) -> None:
    """A DistributedSampler's set_epoch is not enough; dataset[k] may be repeated by hand."""
    dataset = drawing(slides)
    sampler = torch.utils.data.distributed.DistributedSampler(dataset, 1, 0)
    loader = torch.utils.data.DataLoader(torch.utils.data.Subset(dataset, [0, 1]), batch_size=None, sampler=sampler)
    first = tiles_of(loader)
    sampler.set_epoch(1)
    with pytest.warns(RepeatedDrawsWarning, match=r"read again in epoch 0.*dataset\.set_epoch") as caught:
        assert torch.equal(tiles_of(loader)["a.tif"], first["a.tif"])
    assert len(caught) == 1
    list(loader)  # warned of once
    assert torch.equal(drawing(slides)[0].tiles, first["a.tif"])
    by_hand = drawing(slides)
    assert torch.equal(by_hand[0].tiles, by_hand[0].tiles)
    plain = torch.utils.data.DataLoader(sp.BagDataset(slides, PLAIN), batch_size=None)
    assert len(list(plain)) == len(list(plain)) == 2  # without draws nothing is repeated


@pytest.mark.system
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_warn_of_repeated_draws_once(
    slides: list[Path], persistent: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also workers started in each epoch; one of them warns."""
    loader = torch.utils.data.DataLoader(
        drawing(slides), batch_size=None, num_workers=2, persistent_workers=persistent, multiprocessing_context="spawn"
    )
    list(loader)
    assert "RepeatedDrawsWarning" not in capfd.readouterr().err
    list(loader)
    del loader
    assert capfd.readouterr().err.count("RepeatedDrawsWarning") == 1


def test_copies_of_a_dataset_have_an_epoch_of_their_own(slides: list[Path]) -> None:
    """A deep copy, or a pickle for another machine, shares no memory with the original."""
    dataset = drawing(slides)
    dataset.set_epoch(3)
    copies = [pickle.loads(pickle.dumps(dataset)), copy.deepcopy(dataset)]
    dataset.epoch = 5
    assert [other.epoch for other in (*copies, dataset)] == [3, 3, 5]
    for other in copies:
        other.set_epoch(4)
    assert dataset.epoch == 5


def test_configs_mil_yaml_shows_every_key_of_a_loader() -> None:
    """With its default; a loader ignores keys of training."""
    file = CONFIGS / "mil.yaml"
    assert load_loader_config(file) == LoaderConfig()
    shown = set(yaml.safe_load(file.read_text(encoding="utf-8")))
    assert shown - set(TRAINING_SECTIONS) == set(LoaderConfig.model_fields)


def test_paths_of_transforms_are_relative_to_the_configuration(slides: list[Path], tmp_path: Path) -> None:
    """From any current folder."""
    (tmp_path / "light.yaml").write_text((CONFIGS / "stain-light.yaml").read_text(encoding="utf-8"))
    (tmp_path / "my.yaml").write_text("slide_transform: light.yaml\ngrid: {tile_size: 50}\n")
    dataset = sp.BagDataset(slides, tmp_path / "my.yaml")
    assert isinstance(dataset.slide_transform, A.Compose)
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        sp.BagDataset(slides, {"slide_transform": "nowhere.yaml"})


def test_the_tile_shape_may_depend_on_the_slide(slides: list[Path]) -> None:
    """With aligned grids, or draws from the slide's own stains, the first slide decides."""
    write_pyramid(slides[0], coordinate_pixels(640, 420), (1,), mpp=0.5, tile=128, compression="jpeg")
    aligned = PLAIN | {"grid": {"tile_size": 128, "align": True}}
    assert sp.BagDataset(slides[:1], aligned).tile_shape == (128, 128, 3)
    own = A.Compose([sp.StainJitter(basis="slide")])
    assert sp.BagDataset(slides[1:], PLAIN, tile_transform=own).tile_shape == (100, 100, 3)


@pytest.mark.parametrize("config", [{"seeds": 1}, {"max_tiles": 0}, {"grid": {"tile": 2}}, {"seed": -1}])
def test_invalid_configurations_are_refused(slides: list[Path], config: dict[str, Any]) -> None:
    """Unknown keys and impossible values by name."""
    with pytest.raises(ConfigError):
        sp.BagDataset(slides, config)


def test_the_digest_depends_on_cohort_and_configuration(slides: list[Path]) -> None:
    """Of everything that changes tiles."""
    digests = [
        sp.BagDataset(slides, PLAIN).digest(),
        sp.BagDataset(slides, PLAIN).digest(),
        sp.BagDataset(slides[:1], PLAIN).digest(),
        sp.BagDataset(slides, PLAIN | {"seed": 1}).digest(),
        sp.BagDataset(slides, PLAIN, tile_transform=sp.Flip()).digest(),
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4
