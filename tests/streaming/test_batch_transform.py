"""Modules on batches of tiles, as torchvision's v2 behaves: random by torch's global generator, seeded by us."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from slideio_pipe import BagDataset, BagLoader, MultiCrop, Normalize, TileBag, TileGrid, open_slide, stream
from slideio_pipe.errors import ConfigError


class Darker(nn.Module):
    """One factor per call, from torch's global generator, as v2's transforms draw."""

    def forward(self, tiles: Tensor) -> Tensor:
        return (tiles * torch.rand(1)).to(torch.uint8)


def bag_of(seed: int = 1, epoch: int = 0) -> TileBag:
    pixels = np.random.default_rng(0).integers(50, 255, (400, 500, 3), dtype=np.uint8)
    view = open_slide(pixels, slide_mpp=0.5).view()
    return TileBag(view, TileGrid(view, tile_size=100), seed=seed, epoch=epoch)


def batches(bag: TileBag, transform: Any, normalize: Normalize | None = None, **more: Any) -> list[Tensor]:
    return [each.tiles for each in stream(bag, device="cpu", normalize=normalize, batch_transform=transform, **more)]


def test_one_draw_for_each_batch_the_same_for_the_same_seed() -> None:
    """All tiles of a batch are the plain ones times one factor; another seed, epoch or batch has another factor."""
    bag, plain = bag_of(), torch.from_numpy(bag_of()[:]).permute(0, 3, 1, 2)
    made = batches(bag, Darker(), batch_size=5)
    factors = []
    for number, tiles in enumerate(made):
        before = plain[5 * number : 5 * number + 5]
        factor = float((tiles.float() / before).mean()) + 0.5 / float(before.float().mean())
        assert (tiles - (before * factor)).abs().max() <= 2
        factors.append(round(factor, 3))
    assert len(set(factors)) == 4
    again = batches(bag, Darker(), batch_size=5, threads=2, prefetch=1)
    assert all(torch.equal(one, other) for one, other in zip(made, again, strict=True))
    for other in (bag_of(seed=2), bag_of(epoch=1)):
        assert not torch.equal(batches(other, Darker(), batch_size=5)[0], made[0])


def test_the_callers_generator_is_as_before() -> None:
    """A training draws the same numbers with and without the transform."""
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    batches(bag_of(), Darker(), batch_size=5)
    assert torch.equal(torch.rand(3), expected)


def test_normalised_once_afterwards() -> None:
    """With the values of the formula on the transformed bytes; the size may change."""
    plain = torch.from_numpy(bag_of()[:]).permute(0, 3, 1, 2)
    (tiles,) = batches(bag_of(), lambda tiles: tiles[..., ::2, ::2].flip(-1), Normalize.imagenet())
    assert tiles.dtype == torch.float16
    mean, std = (
        torch.tensor(each, dtype=torch.float64).view(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    expected = (plain[..., ::2, ::2].flip(-1).double() / 255 - mean) / std
    assert (tiles.double() - expected).abs().max() <= 0.00098
    assert tiles.is_contiguous(memory_format=torch.channels_last)


def test_a_pipeline_that_normalises_itself() -> None:
    """Its numbers are rounded to the dtype of the stream; a second normalisation is refused."""
    plain = torch.from_numpy(bag_of()[:]).permute(0, 3, 1, 2)

    def pipeline(tiles: Tensor) -> Tensor:
        return (tiles.float() / 255 - 0.5) / 0.5

    (tiles,) = batches(bag_of(), pipeline)
    assert torch.equal(tiles, pipeline(plain).half())
    with pytest.raises(
        ConfigError, match=r"returned torch\.float32, which normalize would normalise again; pass normali"
    ):
        batches(bag_of(), pipeline, Normalize.half())


def test_each_tile_by_itself() -> None:
    """As the documentation writes it: draws differ within a batch."""
    darker = Darker()
    (tiles,) = batches(bag_of(), lambda tiles: torch.stack([darker(tile) for tile in tiles]))
    plain = torch.from_numpy(bag_of()[:]).permute(0, 3, 1, 2)
    factors = (tiles.float() / plain).mean(dim=(1, 2, 3))
    assert len(np.unique(factors.numpy().round(3))) > 10


def test_what_is_refused() -> None:
    """Results that are no batch, and arguments that give a tile more than one picture."""
    with pytest.raises(
        ConfigError, match=r"returned the shape \(3, 100, 100\) for tiles of the shape \(20, 3, 100, 100\)"
    ):
        batches(bag_of(), lambda tiles: tiles[0])
    with pytest.raises(ConfigError, match="returned a NoneType"):
        batches(bag_of(), lambda tiles: None)
    with pytest.raises(ConfigError, match="the batch transform is a int"):
        batches(bag_of(), 5)
    with pytest.raises(ConfigError, match="a batch transform with views"):
        batches(bag_of(), Darker(), views=MultiCrop(global_=1, local=1))


def test_with_the_real_torchvision() -> None:
    """The same seed gives the same batches, and v2's flip is what it says."""
    try:
        from torchvision.transforms import v2
    except (ImportError, RuntimeError):  # RuntimeError: one of another torch
        pytest.skip("torchvision cannot be imported")
    plain = torch.from_numpy(bag_of()[:]).permute(0, 3, 1, 2)
    (flipped,) = batches(bag_of(), v2.RandomHorizontalFlip(p=1))
    assert torch.equal(flipped, plain.flip(-1))
    jitter = v2.Compose([v2.ColorJitter(0.3, 0.3), v2.RandomRotation(20)])
    one, other = batches(bag_of(), jitter, batch_size=7), batches(bag_of(), jitter, batch_size=7)
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
    assert not torch.equal(one[0], plain[:7])


def test_a_loader_transforms_each_chunk_of_a_cohort() -> None:
    """In any number of threads the same, in another epoch and slide others; whole bags and ended bags, too."""
    bags = [bag_of(), bag_of()]
    bags[1].name = "other"
    plain = torch.from_numpy(bag_of()[:]).permute(0, 3, 1, 2)
    loader = BagLoader(
        BagDataset(bags),
        device="cpu",
        normalize=Normalize.identity(),
        chunk_size=8,
        batch_transform=Darker(),
        threads=1,
    )
    first = list(loader)
    chunks = {(chunk.bag, int(chunk.index[0])): chunk.tiles for chunk in first}
    again = BagLoader(
        BagDataset(bags),
        device="cpu",
        normalize=Normalize.identity(),
        chunk_size=8,
        batch_transform=Darker(),
        threads=3,
    )
    for chunk in again:
        assert torch.equal(chunk.tiles, chunks[chunk.bag, int(chunk.index[0])])
        assert chunk.tiles.dtype == torch.float16
        before = plain[torch.from_numpy(chunk.index)].float() / 255
        factors = chunk.tiles.float() / before
        assert float(factors.std()) < 0.02  # one factor for the chunk
    means = [float(tiles.float().mean()) for tiles in chunks.values()]
    assert len({round(mean, 3) for mean in means}) == len(chunks)
    loader.set_epoch(1)
    assert not torch.equal(next(iter(loader)).tiles, next(iter(chunks.values())))
    loader.set_epoch(0)
    whole = {bag.bag: bag.tiles for bag in loader.bags()}
    for chunk in first:
        assert torch.equal(whole[chunk.bag][torch.from_numpy(chunk.index)], chunk.tiles)


def test_a_loader_refuses_views_and_magnifications_with_a_batch_transform() -> None:
    """Before anything is read."""
    views = BagDataset([bag_of()], views=MultiCrop())
    with pytest.raises(ConfigError, match="a batch transform with views"):
        BagLoader(views, device="cpu", normalize=None, batch_transform=Darker())
    several = BagDataset([bag_of()], {"view": {"mpp": 0.5, "context": [2.0]}})
    with pytest.raises(ConfigError, match="a batch transform with several magnifications"):
        BagLoader(several, device="cpu", normalize=None, batch_transform=Darker())
