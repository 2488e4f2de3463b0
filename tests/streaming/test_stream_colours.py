"""Colours of streams computed on the device, compared with those computed by decoding threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import albumentationsxl as A
import numpy as np
import pytest
import torch
from array_bag import ArrayBag, numbered_bag, stream_threads
from augment_reference import COLOURS as EVERY_COLOUR
from cuda_device import DEVICES

from slideio_pipe import (
    ColorJitter,
    GaussianNoise,
    Normalize,
    RandomAffine,
    RandomResizedCrop,
    StainJitter,
    TileBag,
    TileGrid,
    open_bag,
    open_slide,
    save_bag,
    stream,
)
from slideio_pipe.augment.executors.device import DeviceProgram
from slideio_pipe.errors import ConfigError

LEVELS = Normalize(0.0, 1.0, rescale=1.0)  # normalised in this way, values are grey levels, not rounded to bytes
PIXELS = np.tile(EVERY_COLOUR, (5, 7, 1))
STRONG = A.Compose([StainJitter(alpha=0.3, beta=0.1), ColorJitter(0.3, 0.3, 0.3, 0.1)])
SOMETIMES = A.Compose([RandomAffine(rotate=30), StainJitter(p=0.5), A.OneOf([ColorJitter(p=1), A.RandomGamma(p=1)])])


@pytest.fixture(autouse=True)
def _device_and_threads(request: pytest.FixtureRequest) -> Any:
    """Skip CUDA tests without a device, and check that no test leaves a thread running."""
    if request.node.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    yield
    assert not stream_threads()


def bag_of(slide_wide: Any = None, tile_transform: Any = None) -> TileBag:
    view = open_slide(PIXELS, slide_mpp=0.5).view(transform=slide_wide, seed=3)
    return TileBag(view, TileGrid(view, 48), tile_transform=tile_transform, seed=4)


def delivered(bag: Any, **changes: Any) -> torch.Tensor:
    settings = {"device": "cpu", "normalize": LEVELS, "batch_size": 7, "dtype": torch.float32, "threads": 1}
    with stream(bag, **(settings | changes)) as batches:
        return torch.cat([batch.tiles.cpu() for batch in batches])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("slide_wide", "tile_transform"),
    [(STRONG, None), (None, STRONG), (None, SOMETIMES), (A.Rotate(p=1), STRONG), (STRONG, SOMETIMES)],
    ids=["slide", "tiles", "some tiles", "turned slide", "both"],
)
def test_device_and_host_agree_to_one_level(device: str, slide_wide: Any, tile_transform: Any) -> None:
    """Before normalisation: the device does not round."""
    bag = bag_of(slide_wide, tile_transform)
    host = delivered(bag, device=device)
    ours = delivered(bag, device=device, colours="device")
    assert (ours - host).abs().max() <= 1
    assert (ours - ours.round()).abs().max() > 0.1  # they were not rounded on the way
    assert (host - torch.from_numpy(bag[:]).permute(0, 3, 1, 2)).abs().max() == 0


def test_without_normalisation_batches_are_uint8() -> None:
    """To one level of the host's, in the layout of every batch."""
    bag = bag_of(STRONG)
    with stream(bag, device="cpu", normalize=None, batch_size=7, colours="device") as batches:
        batch = next(batches)
    assert batch.tiles.dtype == torch.uint8
    assert batch.tiles.is_contiguous(memory_format=torch.channels_last)
    assert (batch.tiles.int() - delivered(bag, normalize=None)[:7].int()).abs().max() <= 1


def test_half_precision_is_rounded_once() -> None:
    """float16 is the rounded float32 result."""
    bag = bag_of(None, STRONG)
    halves = delivered(bag, normalize=Normalize.imagenet(), dtype=torch.float16, colours="device")
    floats = delivered(bag, normalize=Normalize.imagenet(), colours="device")
    assert torch.equal(halves, floats.half())


@pytest.mark.parametrize("indices", [[5, 1, 9, 1], list(range(20))[::-1]])
def test_every_tile_has_its_own_draw_in_any_order(indices: list[int]) -> None:
    """In every batch and position, noise included."""
    bag = bag_of(None, A.Compose([STRONG, GaussianNoise(sigma=(5, 10), p=1)]))
    whole = delivered(bag, colours="device")
    assert torch.equal(delivered(bag, colours="device", indices=indices, batch_size=3), whole[indices])


def test_noise_of_a_whole_slide_differs_between_tiles() -> None:
    """One operation, seeded by the tile's position, with the stated deviation."""
    view = open_slide(np.full((96, 480, 3), 128, np.uint8)).view(transform=GaussianNoise(sigma=(8, 8), p=1), seed=1)
    noise = delivered(TileBag(view, TileGrid(view, 48)), colours="device") - 128
    assert abs(float(noise.std()) - 8) < 0.1
    assert abs(float(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1])) < 0.05


def test_geometry_is_applied_by_the_reader() -> None:
    """Without colours the device does nothing, and bytes are the same."""
    bag = bag_of(None, A.Compose([RandomAffine(rotate=40), RandomResizedCrop(32)]))
    assert torch.equal(delivered(bag, colours="device"), delivered(bag))


def test_a_bag_without_a_transform_is_delivered_as_it_is() -> None:
    """Also one without the method ``operations``."""
    assert torch.equal(delivered(bag_of(), colours="device"), delivered(bag_of()))
    assert torch.equal(delivered(numbered_bag(9), colours="device"), delivered(numbered_bag(9)))


def test_colours_of_a_stored_bag_are_not_applied_again(tmp_path: Path) -> None:
    """The saved pixels are delivered."""
    save_bag(bag_of(STRONG), tmp_path / "bag.zarr")
    stored = open_bag(tmp_path / "bag.zarr")
    assert torch.equal(delivered(stored, colours="device"), delivered(bag_of(STRONG)))


@pytest.mark.parametrize(
    ("slide_wide", "tile_transform", "name"),
    [(A.MedianBlur(p=1), None, "MedianBlur"), (None, A.Compose([STRONG, A.MotionBlur(p=0.01)]), "MotionBlur")],
)
def test_opaque_transforms_cannot_run_on_a_device(slide_wide: Any, tile_transform: Any, name: str) -> None:
    """Refused by name at the call, for any probability; the host can run them."""
    bag = bag_of(slide_wide, tile_transform)
    with pytest.raises(ConfigError, match=f'array: {name} cannot run on a device.*pass colours="host"'):
        delivered(bag, colours="device")
    assert len(delivered(bag)) == len(bag)


def test_colours_are_host_or_device() -> None:
    """Anything else is refused, before a thread starts."""
    with pytest.raises(ConfigError, match='colours is \'gpu\'; pass "host" or "device"'):
        delivered(bag_of(), colours="gpu")


def test_colours_of_a_view_are_sent_as_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row of numbers per batch, not one per tile."""
    counts = []
    made = DeviceProgram.__init__

    def counted(self: DeviceProgram, *arguments: Any, **options: Any) -> None:
        made(self, *arguments, **options)
        counts.append(len(self.columns.numbers))

    monkeypatch.setattr(DeviceProgram, "__init__", counted)
    delivered(bag_of(STRONG), colours="device", batch_size=16)
    assert set(counts) == {1}


class RecordsBag(ArrayBag):
    """A bag of another package: it has the records of its colours, not their arrays."""

    host_only = ()

    def __init__(self, bag: TileBag) -> None:
        super().__init__(bag.read_uncoloured(np.arange(len(bag))))
        self.operations = bag.operations

    def read_uncoloured(self, indices: Any, out: Any = None, *, threads: int = 1) -> Any:
        """Return the tiles, which have no colours yet."""
        return self.read(indices, out, threads=threads)


def test_colours_are_sent_as_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """No record is made per operation and tile; a bag of another package, which has records only, is the same."""
    bag = bag_of(STRONG, STRONG)
    wanted = delivered(bag, colours="device", batch_size=16)
    monkeypatch.setattr(TileBag, "operations", lambda self, index: pytest.fail("a record"))
    assert torch.equal(delivered(bag, colours="device", batch_size=16), wanted)
    monkeypatch.undo()
    assert torch.equal(delivered(RecordsBag(bag), colours="device", batch_size=16), wanted)


@pytest.mark.parametrize("colours", ["host", "device"])
def test_a_tile_is_drawn_once(colours: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels and colours share one draw; another epoch has another one."""
    bag, drawn = bag_of(None, STRONG), []
    made = TileBag._draw
    monkeypatch.setattr(TileBag, "_draw", lambda self, tiles: (drawn.extend(tiles), made(self, tiles))[1])
    delivered(bag, colours=colours)
    assert sorted(drawn) == list(range(len(bag)))  # the first, drawn for the bag's shape, again with its run
    before = bag.operations(0)
    bag.epoch = 1
    assert bag.operations(0) != before
