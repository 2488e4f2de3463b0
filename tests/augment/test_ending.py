"""A transform that ends in Normalize and ToTensor: the end is done on the device, as albumentationsxl would do it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import albumentationsxl as A
import numpy as np
import pytest
import pyvips
import torch
from numpy.typing import NDArray

import slideio_pipe as sp
from slideio_pipe.augment.ending import split_end
from slideio_pipe.errors import ConfigError, NormalizationMovedWarning

MEAN, STD = [0.7, 0.6, 0.75], [0.1, 0.2, 0.15]


def ends() -> dict[str, list[Any]]:
    """Return the ends that albumentationsxl allows, new objects each time."""
    return {
        "scaled": [A.ToDtype("float", scale=True), A.Normalize(mean=MEAN, std=STD), A.ToTensor()],
        "of bytes": [A.Normalize(mean=[178.0, 153.0, 191.0], std=[25.0, 51.0, 38.0]), A.ToTensor()],
        "only scaled": [A.ToDtype("float", scale=True), A.ToTensor()],
        "only a tensor": [A.ToTensor()],
        "nested": [A.Sequential([A.ToDtype("float", scale=True), A.Compose([A.Normalize(mean=MEAN, std=STD)])])],
        "cast afterwards": [A.Normalize(mean=MEAN, std=STD), A.ToDtype("float", scale=True), A.ToTensor()],
    }


@pytest.fixture
def view() -> sp.SlideView:
    """A view of random pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (256, 384, 3), np.uint8)
    return sp.open_slide(pixels, slide_mpp=0.5).view()


def bag_of(view: sp.SlideView, transform: Any) -> sp.TileBag:
    """Return the bag of tiles of 64 px with a transform."""
    return sp.TileBag(view, sp.TileGrid(view, tile_size=64), tile_transform=transform)


def theirs(tile: NDArray[np.uint8], steps: list[Any]) -> torch.Tensor:
    """Return what albumentationsxl makes of a tile."""
    made = A.Compose([*steps, A.ToTensor()] if type(steps[-1]).__name__ != "ToTensor" else steps)(
        image=pyvips.Image.new_from_array(tile)
    )
    tensor: torch.Tensor = made["image"]
    return tensor


@pytest.mark.parametrize("name", ends())
def test_batches_are_what_the_transform_says(view: sp.SlideView, name: str) -> None:
    """Equal to albumentationsxl's own result, to a rounding of float32; a tensor of bytes is one."""
    tiles = bag_of(view, A.HorizontalFlip(p=1)).read(range(4))
    with pytest.warns(NormalizationMovedWarning, match="runs on the device"):
        bag = bag_of(view, A.Compose([A.HorizontalFlip(p=1), *ends()[name]]))
    assert np.array_equal(bag.read(range(4)), tiles)  # the bag itself stays bytes
    batch = next(iter(sp.stream(bag, device="cpu", batch_size=4, dtype=torch.float32)))
    wanted = torch.stack([theirs(tile, ends()[name]) for tile in tiles])
    assert batch.tiles.dtype == wanted.dtype
    assert torch.allclose(batch.tiles.double(), wanted.double(), atol=2e-6)


def test_a_transform_of_the_slide_may_have_the_end(view: sp.SlideView, coordinate_slide: Path) -> None:
    """So may one that is nothing else; a pickled bag keeps it; loaders take it from the data set."""
    with pytest.warns(NormalizationMovedWarning):
        ended = view.slide.view(transform=A.Compose(ends()["scaled"]))  # type: ignore[attr-defined]
    assert ended.draw is None
    bag = pickle.loads(pickle.dumps(bag_of(ended, None)))
    plain = sp.stream(bag_of(view, None), device="cpu", normalize=sp.Normalize(MEAN, STD))
    assert torch.equal(next(iter(sp.stream(bag, device="cpu"))).tiles, next(iter(plain)).tiles)
    with pytest.warns(NormalizationMovedWarning):
        dataset = sp.BagDataset([coordinate_slide], {"grid": {"tile_size": 64}, "tissue": {"method": "none"}},
                                tile_transform=A.Compose(ends()["scaled"]))  # fmt: skip
    chunk = next(iter(sp.BagLoader(dataset, device="cpu")))
    assert chunk.tiles.dtype == torch.float16
    assert float(chunk.tiles.min()) < -3  # of bytes it is 0 or more


def test_two_normalisations_are_refused(view: sp.SlideView) -> None:
    """An equal one is not; None is bytes."""
    with pytest.warns(NormalizationMovedWarning):
        bag = bag_of(view, A.Compose(ends()["scaled"]))
    with pytest.raises(ConfigError, match="ends in another normalisation"):
        sp.stream(bag, device="cpu", normalize=sp.Normalize.imagenet())
    assert next(iter(sp.stream(bag, device="cpu", normalize=sp.Normalize(MEAN, STD)))).tiles.dtype == torch.float16
    assert next(iter(sp.stream(bag, device="cpu", normalize=None))).tiles.dtype == torch.uint8
    with pytest.warns(NormalizationMovedWarning):
        ended = view.slide.view(transform=A.Compose(ends()["of bytes"]))  # type: ignore[attr-defined]
    with pytest.warns(NormalizationMovedWarning), pytest.raises(ConfigError, match="normalise, each otherwise"):
        bag_of(ended, A.Compose(ends()["scaled"]))


def test_without_any_normalisation_the_call_says_so(view: sp.SlideView) -> None:
    """Bytes must be asked for."""
    with pytest.raises(ConfigError, match="no normalisation is given; pass normalize"):
        sp.stream(bag_of(view, None), device="cpu")


@pytest.mark.parametrize(
    "transform",
    [
        A.Compose([A.Normalize(mean=MEAN, std=STD), A.HorizontalFlip(p=1)]),
        A.Compose([A.HorizontalFlip(), A.Normalize(mean=MEAN, std=STD, p=0.5)]),
        A.Compose([A.OneOf([A.Normalize(mean=MEAN, std=STD), A.ToTensor()])]),
        A.Compose([A.Normalize(mean=MEAN, std=STD)], p=0.5),
    ],
    ids=["in the middle", "sometimes", "one of", "a random compose"],
)
def test_an_end_that_is_none_is_refused_as_before(view: sp.SlideView, transform: Any) -> None:
    """With the remedy."""
    assert split_end(transform) == (transform, None)
    with pytest.raises(ConfigError, match=r"Normalize: needs pixels.*put it last"):
        bag_of(view, transform)


def test_normalising_twice_in_one_transform_is_refused(view: sp.SlideView) -> None:
    """It is a mistake."""
    twice = A.Compose([A.Normalize(mean=MEAN, std=STD), A.Normalize(mean=MEAN, std=STD)])
    with pytest.raises(ConfigError, match="Normalize: twice"):
        bag_of(view, twice)


def test_explain_says_where_the_end_runs() -> None:
    """Without a warning."""
    found = sp.explain(A.Compose([A.HorizontalFlip(), *ends()["scaled"]]))
    assert [step.runs for step in found.steps][1:] == ["on the device"] * 3
    assert not any("normalisation" in warning for warning in found.warnings)
