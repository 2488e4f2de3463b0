"""Features equal a plain loop over tiles, for every batch size."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import torch
from counted_operations import CountedOperations
from cuda_device import CUDA, DEVICES, simulated
from made_slides import made_slide
from memory_bag import MemoryBag
from tiny_encoders import DIM, Reciprocal, Watched, network, reference
from torch import nn

from slideio_pipe import TileBag, TileGrid, encode_bag, load_encoder, open_slide
from slideio_pipe.errors import ConfigError
from slideio_pipe.features.encode_bag import Encoding
from slideio_pipe.features.encoders.encoder import EncoderOnDevice
from slideio_pipe.streaming.device import check_device
from slideio_pipe.streaming.normalize import IMAGENET_MEAN, IMAGENET_STD

# Half the distance of two float16 numbers below 1, and rounding of float32 before.
TOLERANCE = 6e-4


@pytest.fixture(autouse=True)
def _skip_without_cuda(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small slide with tissue."""
    path = tmp_path_factory.mktemp("slides") / "a.svs"
    made_slide(path, size=(1536, 1024), seed=3)
    return path


def bag_of(path: Path, **view: object) -> TileBag:
    """Return all tiles of 64 px of a slide."""
    seen = open_slide(path).view(**view)  # type: ignore[arg-type]
    return TileBag(seen, TileGrid(seen, tile_size=64))


def tiny(size: int = 64, name: str = "tiny", **settings: object) -> object:
    """Return an encoder of 8 features."""
    return load_encoder(network(), name=name, **{"normalize": "imagenet", "input_size": size, **settings})  # type: ignore[arg-type]


def test_features_equal_those_of_openslides_pixels(slide: Path) -> None:
    """Tile by tile, normalised in float64: in the bag's order, to the precision of float16."""
    bag = bag_of(slide)
    found = encode_bag(bag, tiny(), device="cpu", batch_size=50)["tiny"]
    assert (found.shape, found.dtype) == ((len(bag), DIM), np.float16)
    model, reported = network(), openslide.OpenSlide(slide)
    for k in range(0, len(bag), 37):
        x, y = (int(value) for value in bag.coords[k])
        tile = np.asarray(reported.read_region((x, y), 0, (64, 64)).convert("RGB"))
        assert np.abs(found[k] - reference(tile, model, IMAGENET_MEAN, IMAGENET_STD)).max() < TOLERANCE


@pytest.mark.filterwarnings("ignore::slideio_pipe.SlideioPipeWarning")
def test_tiles_of_an_augmented_view_are_encoded_augmented(slide: Path) -> None:
    """Turned and stained."""
    import albumentationsxl as A

    from slideio_pipe import RandomAffine, StainJitter

    drawn = A.Compose([StainJitter(alpha=0.2), RandomAffine(rotate=90)])
    bag = bag_of(slide, transform=drawn, seed=3)
    found = encode_bag(bag, tiny(), device="cpu")["tiny"]
    model = network()
    for k in (0, len(bag) // 2, len(bag) - 1):
        assert np.abs(found[k] - reference(bag[k], model, IMAGENET_MEAN, IMAGENET_STD)).max() < TOLERANCE


def test_two_encoders_of_different_sizes_share_one_pass() -> None:
    """Each has its own pixels, and the tiles are read once."""
    bag = MemoryBag(20, 40, 40)
    reads: list[int] = []
    read = bag.read
    bag.read = lambda indices, out=None, **more: (reads.extend(indices), read(indices, out, **more))[1]  # type: ignore[method-assign]
    both = encode_bag(bag, [tiny(40, "same"), tiny(24, "small", normalize="half")], device="cpu", batch_size=6)
    assert sorted(reads) == list(range(20))
    assert {name: values.shape for name, values in both.items()} == {"same": (20, DIM), "small": (20, DIM)}
    for name, encoder in {"same": tiny(40, "same"), "small": tiny(24, "small", normalize="half")}.items():
        assert np.array_equal(encode_bag(bag, encoder, device="cpu", batch_size=6)[name], both[name])


@pytest.mark.parametrize("device", DEVICES)
def test_rows_of_features_belong_to_their_tiles_on_any_device(device: str) -> None:
    """With several batches in flight and two encoders; against float64, to the precision of a GPU's products."""
    bag = levelled_bag(61)
    encoders = [tiny(40, "one"), tiny(40, "other", normalize="half")]
    found = encode_bag(bag, encoders, device=device, batch_size=6, dtype="float32")
    model = network()
    for k, tile in enumerate(bag.tiles):
        one = reference(tile, model, IMAGENET_MEAN, IMAGENET_STD)
        other = reference(tile, model, (0.5,) * 3, (0.5,) * 3)
        assert np.abs(found["one"][k] - one).max() < 5e-3
        assert np.abs(found["other"][k] - other).max() < 5e-3


def levelled_bag(count: int) -> MemoryBag:
    """Return a bag whose tiles each have their own brightness, far from that of their neighbours."""
    bag = MemoryBag(count, 40, 40)
    bag.tiles[:] = (np.arange(count) * 37 % 256)[:, None, None, None]
    return bag


class Careless(nn.Module):
    """A network that uses the current device instead of that of its tiles, as some custom kernels do."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3), requires_grad=False)
        self.devices: list[int] = []

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        if tiles.device.type == "cuda":
            self.devices.append(torch.cuda.current_device())
        return tiles.mean((2, 3)) * self.scale


@pytest.mark.cuda
def test_networks_run_with_their_device_current() -> None:
    """Kernels launched without a device run on that of the tiles; the caller's current device does not change."""
    network, before = Careless(), torch.cuda.current_device()
    encoder = load_encoder(network, normalize="identity", input_size=40)
    network.devices.clear()
    encode_bag(levelled_bag(9), encoder, device=CUDA, batch_size=4, dtype="float32")
    assert set(network.devices) == {check_device(CUDA).index}
    assert torch.cuda.current_device() == before


@pytest.mark.parametrize("count", [0, 1])
def test_bags_of_no_tile_and_of_one_tile_are_encoded(count: int) -> None:
    """An empty bag has features without rows."""
    found = encode_bag(MemoryBag(count, 40, 40), tiny(40), device="cpu")
    assert found["tiny"].shape == (count, DIM)


def test_batches_contain_tiles_of_several_bags() -> None:
    """All but the last are full, for bags of any size; rows are assigned to their bag."""
    watched = Watched(network())
    encoder = load_encoder(watched, name="tiny", normalize="imagenet", input_size=40)
    watched.batches.clear()
    encoding = Encoding([encoder], device="cpu", batch_size=32, dtype="float32")
    bags = [MemoryBag(count, 40, 40) for count in (3, 50, 1, 1, 70, 20, 5)]
    rows = [encoding.rows(bag.name, bag.coords, ["tiny"]) for bag in bags]
    for bag, own in zip(bags, rows, strict=True):
        for start in range(0, len(bag), 16):
            index = np.arange(start, min(start + 16, len(bag)))
            encoding.add(torch.from_numpy(bag.read(index)).permute(0, 3, 1, 2), own, index)
    encoding.flush()
    assert watched.batches == [32] * 4 + [22]
    assert [own.left for own in rows] == [0] * 7
    for bag, own in zip(bags, rows, strict=True):
        alone = encode_bag(bag, encoder, device="cpu", dtype="float32")["tiny"]
        assert np.allclose(own.features["tiny"], alone, atol=1e-6)


def test_features_that_are_not_finite_are_an_error() -> None:
    """With slide, tile, position and remedy."""
    bag = MemoryBag(9, 40, 40)
    bag.tiles[5] = 0
    encoder = load_encoder(Reciprocal(), name="odd", normalize="identity", input_size=40)
    with pytest.raises(ConfigError, match=r"a\.svs: 3 of 3 features of odd are no numbers.*at tile 5 \(x .*float32"):
        encode_bag(bag, encoder, device="cpu", batch_size=4)
    with pytest.raises(ConfigError, match="look at the tile"):
        encode_bag(bag, encoder, device="cpu", dtype="float32")


def test_features_beyond_float16_are_refused() -> None:
    """float32 holds them."""

    class Large(nn.Module):
        def forward(self, tiles: torch.Tensor) -> torch.Tensor:
            return tiles.mean((2, 3)) * 1e9

    encoder = load_encoder(Large(), normalize="identity", input_size=40)
    with pytest.raises(ConfigError, match=r'beyond float16 at tile 0.*dtype="float32"'):
        encode_bag(MemoryBag(2, 40, 40), encoder, device="cpu")
    found = encode_bag(MemoryBag(2, 40, 40), encoder, device="cpu", dtype="float32")["Large"]
    assert found.dtype == np.float32


def test_an_encoder_out_of_memory_is_an_error_with_a_remedy() -> None:
    """Which says what to make smaller."""

    class Greedy(nn.Module):
        def forward(self, tiles: torch.Tensor) -> torch.Tensor:
            if len(tiles) > 1:
                raise torch.OutOfMemoryError("of memory")
            return tiles.mean((2, 3))

    encoder = load_encoder(Greedy(), normalize="identity", input_size=40)
    with pytest.raises(ConfigError, match="no memory for batches of 8 tiles; pass batch_size=4"):
        encode_bag(MemoryBag(9, 40, 40), encoder, device="cpu", batch_size=8)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"dtype": "float64"}, {"device": "tpu"}])
def test_invalid_arguments_are_refused(wrong: dict[str, object]) -> None:
    """Each of them."""
    with pytest.raises(ConfigError):
        encode_bag(MemoryBag(2, 40, 40), tiny(40), **{"device": "cpu", **wrong})  # type: ignore[arg-type]


@pytest.mark.cuda
def test_the_host_waits_for_the_device_at_the_end_only() -> None:
    """However many batches there are; rows are stored meanwhile."""
    sim, me, waits = simulated(), threading.current_thread().name, []
    for count in (24, 240):
        sim.host_waits.clear()
        encode_bag(levelled_bag(count), tiny(40, "one"), device=CUDA, batch_size=6, dtype="float32")
        waits.append(sim.host_waits[me])
    assert waits[1] <= waits[0] + 1  # the last batch may have arrived or not


class Noting(nn.Module):
    """A network that notes the tiles it gets."""

    def __init__(self, layout: torch.memory_format = torch.contiguous_format) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3).to(memory_format=layout)
        self.seen: list[tuple[torch.dtype, bool, int]] = []
        self.counted: CountedOperations | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Noting:
        return self  # so that notes of the copy are found

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        last = tiles.is_contiguous(memory_format=torch.channels_last)
        kernels = 0 if self.counted is None else self.counted.kernels
        self.seen.append((tiles.dtype, last, kernels))
        return tiles.float().mean((2, 3))


@pytest.mark.cuda
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_tiles_are_normalised_straight_into_what_the_network_takes(layout: torch.memory_format, dtype: str) -> None:
    """One kernel from bytes to its dtype and its order of memory: no second pass over the tiles."""
    network = Noting(layout)
    encoder = load_encoder(network, normalize="imagenet", input_size=40)
    device = EncoderOnDevice(encoder, check_device(CUDA), getattr(torch, dtype))
    tiles = torch.randint(0, 256, (5, 40, 40, 3), dtype=torch.uint8).to(CUDA).permute(0, 3, 1, 2)
    network.seen.clear()
    with CountedOperations() as network.counted:
        device(tiles)
    assert network.seen == [(getattr(torch, dtype), layout is torch.channels_last, 1)]
