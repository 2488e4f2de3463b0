"""Several draws of each tile: each view is the tile of its own bag, sampled from the slide, decoded once for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import albumentationsxl as A
import numpy as np
import pytest
import scipy.ndimage
import torch
from cuda_device import DEVICES
from pyramids import write_pyramid

import slideio_pipe as sp
from slideio_pipe.errors import ConfigError, SkippedWarning
from slideio_pipe.slides.stored_run import StoredRuns

SMALL = {"global_size": 56, "local_size": 24}
TILE = 64
rows, columns = np.mgrid[:384, :448]
SMOOTH = np.stack([127 + 90 * np.sin(columns / 23), 127 + 90 * np.cos(rows / 17), (rows + columns) / 5 + 20], axis=-1)
NORMALIZE = sp.Normalize.imagenet()


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JPEG slide with stored tiles of 64 px."""
    path = tmp_path_factory.mktemp("views") / "a.tif"
    return write_pyramid(path, SMOOTH.astype(np.uint8), (1, 4), mpp=0.5, tile=64, compression="jpeg")


def bag_of(slide: Path, *, stride: int | None = None, **options: Any) -> sp.TileBag:
    view = sp.open_slide(slide).view()
    return sp.TileBag(view, sp.TileGrid(view, TILE, stride=stride), seed=7, **options)


def streamed(bag: Any, views: sp.MultiCrop, **options: Any) -> dict[str, torch.Tensor]:
    """Return the views of all tiles, bytes unless they are normalised."""
    given = {"device": "cpu", "normalize": None, "batch_size": 10} | options
    batches = list(sp.stream(bag, views=views, **given))
    return {name: torch.cat([batch.views[name] for batch in batches]) for name in batches[0].views}


def alone(bag: Any, views: sp.MultiCrop, kind: str, number: int) -> torch.Tensor:
    """Return the tiles of one view by its own bag."""
    tiles = views.bag_of(bag, kind, number)[:]
    return torch.from_numpy(tiles).permute(0, 3, 1, 2)


@pytest.mark.parametrize("threads", [1, 3])
def test_each_view_is_the_tile_of_its_own_bag(slide: Path, executor: str, threads: int) -> None:
    """Bit for bit, for any batches and order of tiles: geometry, stains and colours."""
    views, bag = sp.MultiCrop(2, 3, **SMALL), bag_of(slide)
    found = streamed(bag, views, threads=threads)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        "global": (42, 2, 3, 56, 56),
        "local": (42, 3, 3, 24, 24),
    }
    for kind, count in (("global", 2), ("local", 3)):
        for number in range(count):
            assert torch.equal(found[kind][:, number], alone(bag, views, kind, number))
    order = np.random.default_rng(3).permutation(42)[:20]
    some = streamed(bag, views, threads=threads, indices=order, batch_size=7)
    assert torch.equal(some["local"], found["local"][order])


def test_a_picture_shows_the_views_of_a_tile(slide: Path) -> None:
    """The tile and the large views in a row, the small ones below; with their pixels."""
    views, bag = sp.MultiCrop(2, 3, **SMALL), bag_of(slide)
    shown = np.asarray(views.plot(bag, 9))
    for kind in ("global", "local"):
        for number in range(2):
            tile = views.bag_of(bag, kind, number)[9]
            side = len(tile)
            places = np.argwhere((shown == tile[0, 0]).all(axis=2))
            assert any(np.array_equal(shown[y : y + side, x : x + side], tile) for y, x in places)


def test_views_of_a_tile_differ(slide: Path) -> None:
    """No two of its draws are alike, and those of an epoch are not those of another."""
    views, bag = sp.MultiCrop(2, 4, **SMALL), bag_of(slide)
    draws = [views.bag_of(bag, "local", number).draw(9) for number in range(4)]
    assert len({draw.affine for draw in draws}) == len({draw.operations for draw in draws}) == 4
    first, second = streamed(bag, views), streamed(bag_of(slide, epoch=1), views)
    assert not (first["local"] == second["local"]).all(dim=(1, 2, 3, 4)).any()
    assert torch.equal(first["global"], streamed(bag_of(slide), views)["global"])


def test_a_view_does_not_depend_on_the_others(slide: Path) -> None:
    """Its draw is made from seed, epoch, slide, tile and view: more views leave it as it is."""
    few, many = (
        streamed(bag_of(slide), sp.MultiCrop(1, 2, **SMALL)),
        streamed(bag_of(slide), sp.MultiCrop(3, 5, **SMALL)),
    )
    assert torch.equal(few["global"], many["global"][:, :1])
    assert torch.equal(few["local"], many["local"][:, :2])


@pytest.mark.parametrize("scale", [(0.32, 0.8), (1.2, 2.5)], ids=["enlarged", "shrunk"])
def test_views_equal_scipy_on_the_slide(scale: tuple[float, float], executor: str) -> None:
    """Float64, bilinear, behind scikit-image's Gaussian where they shrink: to 1.5 levels, beside the slide's edge too.

    Crops are turned by any angle: their corners show the neighbouring pixels, none of them black or white.
    """
    view = sp.open_slide(SMOOTH.astype(np.uint8), slide_mpp=0.5).view()
    bag = sp.TileBag(view, sp.TileGrid(view, TILE), seed=2)
    turned = sp.RandomAffine(rotate=180)
    views = sp.MultiCrop(2, 0, global_size=TILE, global_scale=scale, global_transform=turned)
    found = streamed(bag, views)["global"].permute(0, 1, 3, 4, 2).numpy()
    inner = np.flatnonzero(((bag.coords >= 2 * TILE) & (bag.coords <= (448 - 3 * TILE, 384 - 3 * TILE))).all(axis=1))
    assert len(inner) == 6
    for number in range(2):
        drawn = views.bag_of(bag, "global", number)
        for tile in inner:
            expected = by_scipy(drawn, int(tile))
            assert np.abs(found[tile, number] - expected).max() <= 1.5
    assert found[inner].min() > 10
    assert found[inner].max() < 245


def by_scipy(bag: sp.TileBag, tile: int) -> np.ndarray:
    """Return a drawn tile in float64, from its draw alone."""
    draw = bag.draw(tile)
    y, x = np.mgrid[: draw.canvas.height, : draw.canvas.width] + 0.5
    affine = np.linalg.inv(np.array([*draw.affine, 0, 0, 1]).reshape(3, 3))
    places = affine @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    at = places[[1, 0]] + bag.coords[tile][::-1, None] - 0.5
    mean = np.sqrt(abs(np.linalg.det(affine)))
    least = np.linalg.svd(affine[:2, :2], compute_uv=False).min()
    shrink = min(mean, least * 1.2)  # tile_plan: an uneven shrink
    sigma = (shrink - 1) / 2 if shrink > 1.56 else 0.0
    pixels = SMOOTH.astype(np.uint8).astype(float)
    bands = [scipy.ndimage.gaussian_filter(pixels[..., k], sigma) if sigma else pixels[..., k] for k in range(3)]
    sampled = [scipy.ndimage.map_coordinates(band, at, order=1, mode="grid-constant", cval=255) for band in bands]
    return np.stack(sampled, axis=-1).reshape(draw.canvas.height, draw.canvas.width, 3)


@pytest.mark.parametrize("device", DEVICES)
def test_views_are_normalised_on_the_device(slide: Path, device: str) -> None:
    """By the formula in float64, rounded once; each view is channels_last, and ``tiles`` are the first views."""
    if device != "cpu" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    views, bag = sp.MultiCrop(2, 3, **SMALL), bag_of(slide)
    raw = streamed(bag, views)["local"].double()
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (NORMALIZE.mean, NORMALIZE.std))
    made = streamed(bag, views, device=device, normalize=NORMALIZE)["local"]
    assert made.dtype == torch.float16
    assert made.device.type == torch.device(device).type
    assert (made.cpu().double() - (raw / 255 - mean) / std).abs().max() <= 0.00098
    batch = next(sp.stream(bag, views=views, device=device, normalize=NORMALIZE))
    assert torch.equal(batch.tiles, batch.views["global"][:, 0])
    assert batch.views["local"].stride()[2:] == (1, 3 * 24, 3)


@pytest.mark.parametrize("device", DEVICES)
def test_colours_of_views_can_be_computed_on_the_device(slide: Path, device: str) -> None:
    """At most a level from the host's, with stains of the slide as well; normalised with one rounding."""
    if device != "cpu" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    views = sp.MultiCrop(2, 3, local_transform=[A.NoOp(), sp.StainJitter(), sp.ColorJitter()], **SMALL)
    view = sp.open_slide(slide).view(transform=sp.StainJitter(), seed=5)
    bag = sp.TileBag(view, sp.TileGrid(view, TILE), seed=7)
    host = streamed(bag, views)
    levels = streamed(bag, views, device=device, colours="device")
    made = streamed(bag, views, device=device, colours="device", normalize=NORMALIZE)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (NORMALIZE.mean, NORMALIZE.std))
    for kind in ("global", "local"):
        assert (levels[kind].cpu().int() - host[kind].int()).abs().max() <= 1
        back = (made[kind].cpu().double() * std + mean) * 255
        assert (back - host[kind]).abs().max() <= 1.1
    assert (host["local"][:, 0].int() - host["local"][:, 1].int()).abs().max() > 20


def test_colours_on_the_device_of_a_loader_and_of_a_patient(slide: Path) -> None:
    """The loader reads without colours; those of a patient are computed on the host."""
    views = sp.MultiCrop(1, 2, **SMALL)
    expected = streamed(bag_of(slide), views)["local"].int()
    (whole,) = loader_of([slide], views, colours="device").bags()
    assert 0 < (whole.views["local"].int() - expected).abs().max() <= 1
    patient = sp.PatientBag([bag_of(slide)], patient="p")
    assert torch.equal(streamed(patient, views, colours="device")["local"].int(), expected)


def test_a_stored_tile_is_decoded_once(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For all views of all tiles that reach it, at each scale; a crop that shrinks to a half needs another."""
    decoded: list[tuple[int, ...]] = []
    plain = StoredRuns._decoded

    def counted(self: StoredRuns, keys: Any, rows: Any) -> Any:
        decoded.extend(keys)
        return plain(self, keys, rows)

    monkeypatch.setattr(StoredRuns, "_decoded", counted)
    streamed(bag_of(slide), sp.MultiCrop(2, 8, **SMALL), batch_size=8, threads=1)
    assert len(decoded) == len(set(decoded)) == 42
    assert {key[:2] for key in decoded} == {(0, 1)}


@pytest.mark.parametrize("pixels", ["source", "zstd"])
def test_a_stored_bag_has_views(slide: Path, tmp_path: Path, pixels: str) -> None:
    """Across its stored neighbours, as ``AugmentedBag`` reads them; of the slide's own bytes, the slide's views."""
    views, bag = sp.MultiCrop(2, 3, **SMALL), bag_of(slide)
    stored = sp.save_bag(bag, tmp_path / "a.bag.zarr", pixels=pixels, progress=False)
    augmented = sp.AugmentedBag(stored, seed=7)
    found = streamed(augmented, views)
    for number in range(3):
        assert torch.equal(found["local"][:, number], alone(augmented, views, "local", number))
    inner = ((bag.coords >= TILE) & (bag.coords <= (448 - 2 * TILE, 384 - 2 * TILE))).all(axis=1)
    direct = streamed(bag, views)
    assert torch.equal(found["local"][inner], direct["local"][inner])
    assert torch.equal(streamed(stored, views)["local"], streamed(sp.AugmentedBag(stored), views)["local"])


def test_views_of_a_patient_are_those_of_the_slides(slide: Path, tmp_path: Path) -> None:
    """Tile by tile, also in turns."""
    other = write_pyramid(
        tmp_path / "b.tif", SMOOTH[:, ::-1].astype(np.uint8), (1,), mpp=0.5, tile=64, compression="jpeg"
    )
    views, bags = sp.MultiCrop(1, 2, **SMALL), [bag_of(slide), bag_of(other)]
    patient = sp.PatientBag(bags, patient="P1")
    found = streamed(patient, views, indices=[0, 49, 3, 81, 43])["local"]
    one, two = (streamed(bag, views)["local"] for bag in bags)
    assert torch.equal(found, torch.stack([one[0], two[7], one[3], two[39], two[1]]))


def test_a_transform_of_libvips_runs_on_views(slide: Path) -> None:
    """Such as a blur of DINO: it is seeded, and the same in a bag of its own."""
    blur = A.Compose([A.HorizontalFlip(), A.GaussianBlur(sigma_limit=(0.5, 2.0), p=0.5)])
    views, bag = sp.MultiCrop(2, 0, global_transform=blur, **SMALL), bag_of(slide)
    found = streamed(bag, views, indices=range(12))["global"]
    for number in range(2):
        assert torch.equal(found[:, number], alone(bag, views, "global", number)[:12])


def test_each_view_may_have_a_transform_of_its_own(slide: Path) -> None:
    """A list: the first is turned by quarters, the second is grey."""
    grey = sp.ColorJitter(brightness=0, contrast=0, saturation=(0, 0), hue=0)
    views = sp.MultiCrop(2, 0, global_transform=[sp.Rotate90(), grey], **SMALL)
    found = streamed(bag_of(slide), views)["global"]
    first, second = found[:, 0].int(), found[:, 1].int()
    assert (second.amax(1) - second.amin(1)).max() <= 1
    assert (first.amax(1) - first.amin(1)).float().mean() > 20


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """The slide with zeros for the bytes of one stored tile."""
    import tifffile

    path = write_pyramid(tmp_path / "a.tif", SMOOTH.astype(np.uint8), (1,), mpp=0.5, tile=64, compression="jpeg")
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[0]
        offset, count = page.dataoffsets[20], page.databytecounts[20]  # type: ignore[union-attr]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(count))
    return path


def test_tiles_that_cannot_be_decoded_are_white_or_left_out(damaged: Path, slide: Path) -> None:
    """All views of them, and no view of another tile."""
    still = sp.MultiCrop(1, 1, global_scale=(0.5, 0.5), global_transform=A.NoOp(), local_transform=A.NoOp(), **SMALL)
    with pytest.warns(SkippedWarning, match=r"tiles? could not be read"):
        white = streamed(bag_of(damaged), still, on_error="white")
    bad = (white["global"] == 255).all(dim=(1, 2, 3, 4))
    assert 20 in bad.nonzero().flatten().tolist()
    assert bad.sum() <= 5
    whole = streamed(bag_of(slide), still)
    assert torch.equal(white["global"][~bad], whole["global"][~bad])
    assert torch.equal((white["local"] == 255).all(dim=(1, 2, 3, 4)), bad)
    with pytest.warns(SkippedWarning):
        left = streamed(bag_of(damaged), still, on_error="skip")
    assert torch.equal(left["local"], whole["local"][~bad])


def loader_of(cohort: list[Any], views: sp.MultiCrop, **options: Any) -> sp.BagLoader:
    config = {"view": {"mpp": "native"}, "tissue": {"method": "none"}, "grid": {"tile_size": TILE}, "seed": 7}
    dataset = sp.BagDataset(cohort, config, views=views)
    return sp.BagLoader(dataset, device="cpu", normalize=None, chunk_size=16, ordered=True, **options)


def test_a_loader_gives_the_views_of_a_cohort(slide: Path) -> None:
    """Chunk by chunk those of the stream, and others in the next epoch; from slides and from bags."""
    views = sp.MultiCrop(1, 2, **SMALL)
    for cohort in ([slide], [bag_of(slide)]):
        loader = loader_of(cohort, views)
        for epoch in range(2):
            chunks = list(loader)
            order = np.argsort(np.concatenate([chunk.index for chunk in chunks]))
            found = torch.cat([chunk.views["local"] for chunk in chunks])[order]
            assert torch.equal(found, streamed(bag_of(slide, epoch=epoch), views)["local"])
            assert chunks[0].tiles.shape == (16, 3, 56, 56)


def test_the_draw_of_a_slide_is_that_of_all_its_views(slide: Path) -> None:
    """Its stains, in each epoch others; beside those of each view."""
    views, stains = sp.MultiCrop(1, 2, **SMALL), sp.StainJitter(alpha=0.3)
    config = {"view": {"mpp": "native"}, "tissue": {"method": "none"}, "grid": {"tile_size": TILE}, "seed": 7}
    dataset = sp.BagDataset([slide], config, slide_transform=stains, views=views)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        view = sp.open_slide(slide).view(transform=stains, seed=7, epoch=epoch)
        bag = sp.TileBag(view, sp.TileGrid(view, TILE), seed=7, epoch=epoch)
        assert torch.equal(dataset[0].views["local"], streamed(bag, views)["local"])


def test_stored_bags_and_patients_of_a_cohort_have_views(slide: Path, tmp_path: Path) -> None:
    """In every epoch those of ``AugmentedBag``; a patient has those of its slides."""
    views, config = sp.MultiCrop(1, 2, **SMALL), {"seed": 7}
    stored = sp.save_bag(bag_of(slide), tmp_path / "a.bag.zarr", pixels="source", progress=False)
    dataset = sp.BagDataset([tmp_path / "a.bag.zarr"], config, views=views)
    dataset.set_epoch(2)
    expected = streamed(sp.AugmentedBag(stored, seed=7, epoch=2), views)["local"]
    assert torch.equal(dataset[0].views["local"], expected)
    rows = [{"slide": tmp_path / "a.bag.zarr", "patient": "p"}, {"slide": slide, "patient": "p"}]
    settings = {"unit": "patient", "view": {"mpp": "native"}, "tissue": {"method": "none"}, "grid": {"tile_size": TILE}}
    both = sp.BagDataset(sp.Cohort.of(rows), settings | config, views=views)
    both.set_epoch(2)
    assert torch.equal(both[0].views["local"][:42], expected)
    assert torch.equal(both[0].views["local"][42:], streamed(bag_of(slide, epoch=2), views)["local"])


def test_whole_bags_have_views(slide: Path) -> None:
    """Of a loader, mixed over chunks on the way, and of the dataset itself."""
    views = sp.MultiCrop(1, 2, **SMALL)
    loader = loader_of([slide], views, mix=2)
    expected = streamed(bag_of(slide), views)
    (whole,) = loader.bags()
    loader.dataset.set_epoch(0)
    for bag in (whole, loader.dataset[0]):
        assert torch.equal(bag.views["local"], expected["local"])
        assert torch.equal(bag.tiles, expected["global"][:, 0])


@pytest.mark.system
def test_worker_processes_give_the_same_views(slide: Path) -> None:
    """Through shared memory."""
    views = sp.MultiCrop(1, 2, **SMALL)
    with loader_of([slide], views, workers=2) as loader:
        chunks = list(loader)
    order = np.argsort(np.concatenate([chunk.index for chunk in chunks]))
    found = torch.cat([chunk.views["local"] for chunk in chunks])[order]
    assert torch.equal(found, streamed(bag_of(slide), views)["local"])


def test_views_are_part_of_the_state_of_a_loader(slide: Path) -> None:
    """A state of other views is refused."""
    state = loader_of([slide], sp.MultiCrop(1, 2, **SMALL)).state_dict()
    loader_of([slide], sp.MultiCrop(1, 2, **SMALL)).load_state_dict(state)
    with pytest.raises(ConfigError, match="the state is of another loader"):
        loader_of([slide], sp.MultiCrop(1, 2, local_scale=(0.1, 0.2), **SMALL)).load_state_dict(state)


MISTAKES: dict[str, tuple[Any, str]] = {
    "no view": (lambda _: sp.MultiCrop(0, 0), "no view"),
    "half a view": (lambda _: sp.MultiCrop(1.5), "global_=1.5"),
    "a wrong number of transforms": (lambda _: sp.MultiCrop(2, 0, global_transform=[A.NoOp()]), "1 transforms for 2"),
    "another size": (
        lambda bag: streamed(bag, sp.MultiCrop(1, 0, global_transform=A.Resize(30, 30), **SMALL)),
        "makes 30×30 px of 56×56",
    ),
    "a transform of the tiles": (
        lambda bag: streamed(sp.TileBag(bag.view, bag.grid, tile_transform=sp.Flip()), sp.MultiCrop()),
        "a transform of their own",
    ),
    "a graph on the device": (
        lambda bag: streamed(bag, sp.MultiCrop(2, 1, local_transform=A.Blur(), **SMALL), colours="device"),
        "Blur cannot run on a device",
    ),
    "several magnifications": (
        lambda bag: streamed(sp.ContextBag(bag.view, bag.grid, mpp=[0.5, 1.0]), sp.MultiCrop()),
        "views of tiles at several magnifications",
    ),
    "no MultiCrop": (lambda bag: streamed(bag, 8), "views are a int"),  # type: ignore[arg-type]
    "both in a dataset": (
        lambda bag: sp.BagDataset([bag], tile_transform=sp.Flip(), views=sp.MultiCrop()),
        "a transform per tile",
    ),
    "no such view": (lambda bag: sp.MultiCrop(2, 8).bag_of(bag, "local", 8), "there are 2 global, 8 local"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_refused(slide: Path, mistake: str) -> None:
    """Before anything is read."""
    call, message = MISTAKES[mistake]
    with pytest.raises(ConfigError, match=message):
        call(bag_of(slide))
