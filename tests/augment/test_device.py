"""The torch executor against float64 formulas, scikit-image, OpenCV and SciPy."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pytest
import pyvips
import torch
from batch_colours import apply_cpu
from cuda_device import DEVICES
from device_warp import warp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import examples
from numpy.typing import NDArray
from scipy import ndimage, stats
from skimage import color

from slideio_pipe.augment.draw import Draw
from slideio_pipe.augment.executors.device import CHUNK_PX, DeviceProgram
from slideio_pipe.augment.executors.lazy import apply_lazy
from slideio_pipe.augment.operations import Hsv, Lab, Noise, Opaque, Operation, Saturation, Stain, Tone
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Affine, Size
from slideio_pipe.streaming.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize

MIXED = ((1.08, -0.03, 0.02), (0.04, 0.9, -0.02), (0.01, 0.05, 1.1))

OPERATIONS: dict[str, Operation] = {
    "brightness": Tone(brightness=1.2),
    "contrast": Tone(contrast=0.7, pivot=0.6),
    "gamma": Tone(brightness=0.9, contrast=1.3, gamma=0.5),
    "grey": Saturation(factor=0),
    "saturation": Saturation(factor=1.6),
    "hue": Hsv(turn=0.3),
    "hue backwards": Hsv(turn=-0.1),
    "hsv": Hsv(turn=0.05, saturation=0.2, value=-0.1),
    "hsv up": Hsv(saturation=-0.3, value=0.3),
    "stain": Stain(matrix=MIXED),
    "stain offset": Stain(matrix=MIXED, offset=(0.05, -0.04, 0.02)),
    "lab": Lab(gain=(1.1, 0.8, 1.3), bias=(-3, 4, 2)),
    "lab dark": Lab(gain=(0.5, 1.4, 1.4), bias=(-10, 0, 40)),
}
CHAINS: dict[str, tuple[Operation, ...]] = {
    **{name: (operation,) for name, operation in OPERATIONS.items()},
    "none": (),
    "light": (OPERATIONS["brightness"], OPERATIONS["hue"], OPERATIONS["stain"]),
    "twice": (OPERATIONS["contrast"], OPERATIONS["gamma"], OPERATIONS["saturation"]),
    "all": tuple(OPERATIONS[k] for k in ("stain offset", "gamma", "saturation", "hue", "lab")),
}


@pytest.fixture(autouse=True)
def _skip_without_cuda(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def reference_step(operation: Operation, rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return one operation on (..., 3) float64 levels, not clipped, from its definition."""
    if isinstance(operation, Tone):
        return operation.curve(rgb)
    if isinstance(operation, Saturation):
        return rgb @ operation.matrix().T
    if isinstance(operation, Stain):
        density = -np.log((rgb + 1) / 256) @ np.array(operation.matrix).T + operation.offset
        return 256 * np.exp(-density) - 1
    if isinstance(operation, Hsv):
        hsv = color.rgb2hsv(rgb / 255)
        turned = (hsv[..., 0] + operation.turn) % 1
        shifted = np.clip(hsv[..., 1:] + (operation.saturation, operation.value), 0, 1)
        return 255 * color.hsv2rgb(np.concatenate((turned[..., None], shifted), axis=-1))
    assert isinstance(operation, Lab)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # colours outside sRGB are intended
        return 255 * color.lab2rgb(color.rgb2lab(rgb / 255) * operation.gain + operation.bias)


def reference(operations: tuple[Operation, ...], tiles: torch.Tensor) -> NDArray[np.float64]:
    """Return (n, H, W, 3) float64 levels after all operations, clipped after each, not rounded."""
    rgb = tiles.permute(0, 2, 3, 1).cpu().numpy().astype(np.float64)
    for operation in operations:
        rgb = np.clip(reference_step(operation, rgb), 0, 255)
    return rgb


def colours(device: str = "cpu", n: int = 2) -> torch.Tensor:
    """Return (n, 3, 64, 96) tiles: random colours, then greys, primaries and the darkest ones."""
    rng = np.random.default_rng(3)
    tiles = rng.integers(0, 256, (n, 64, 96, 3), dtype=np.uint8)
    tiles[:, 0] = np.linspace(0, 255, 96, dtype=np.uint8)[:, None]
    tiles[:, 1] = rng.choice(np.array([0, 255], np.uint8), (96, 3))
    tiles[:, 2] = rng.integers(0, 4, (96, 3), dtype=np.uint8)
    return torch.from_numpy(tiles).permute(0, 3, 1, 2).to(device)


def levels(tiles: torch.Tensor) -> NDArray[np.float64]:
    """Return the output as (n, H, W, 3) float64."""
    return tiles.permute(0, 2, 3, 1).double().cpu().numpy()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CHAINS)
def test_bytes_are_within_a_level_of_the_float64_definition(device: str, name: str) -> None:
    """They differ only where the definition is near a half."""
    tiles = colours(device)
    result = DeviceProgram(CHAINS[name], normalize=None)(tiles)
    exact = reference(CHAINS[name], tiles)
    assert result.dtype == torch.uint8
    assert np.abs(levels(result) - np.floor(exact + 0.5)).max() <= 1
    assert np.abs(levels(result) - exact).max() <= 0.51


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CHAINS)
def test_normalised_tiles_are_rounded_once(device: str, name: str) -> None:
    """float32 output is within 0.01 level of float64; float16 adds its own rounding only."""
    tiles = colours(device)
    std = np.array(IMAGENET_STD)
    exact = (reference(CHAINS[name], tiles) / 255 - IMAGENET_MEAN) / std
    single = DeviceProgram(CHAINS[name], normalize=Normalize.imagenet(), dtype=torch.float32)(tiles)
    assert (np.abs(levels(single) - exact) * 255 * std).max() <= 0.01
    half = DeviceProgram(CHAINS[name], normalize=Normalize.imagenet())(tiles)
    assert half.dtype == torch.float16
    assert torch.equal(half, single.half())


@pytest.mark.parametrize("device", DEVICES)
def test_layout_and_device_are_kept(device: str) -> None:
    """The result is channels_last, in new memory, on the device of the tiles, whatever their layout."""
    for layout in (torch.channels_last, torch.contiguous_format):
        tiles = colours(device).contiguous(memory_format=layout)
        for normalize in (None, Normalize.imagenet()):
            for operations in ((), [(), CHAINS["light"]]):
                result = DeviceProgram(operations, normalize=normalize)(tiles)
                assert result.shape == tiles.shape
                assert result.device == tiles.device
                assert result.is_contiguous(memory_format=torch.channels_last)
                assert result.data_ptr() != tiles.data_ptr()


@pytest.mark.parametrize("device", DEVICES)
def test_each_tile_has_its_own_operations(device: str) -> None:
    """A batch of different chains in mixed order is, bit for bit, each tile on its own."""
    chains = [CHAINS[name] for name in (*CHAINS, *reversed(CHAINS))]
    tiles = colours(device, len(chains))
    together = DeviceProgram(chains, normalize=Normalize.imagenet())(tiles)
    for k, chain in enumerate(chains):
        alone = DeviceProgram(chain, normalize=Normalize.imagenet())(tiles[k : k + 1])
        torch.testing.assert_close(together[k : k + 1], alone, rtol=0, atol=2**-9)
    if device == "cpu":
        chunked = [DeviceProgram([c], normalize=None)(tiles[k : k + 1]) for k, c in enumerate(chains)]
        assert torch.equal(DeviceProgram(chains, normalize=None)(tiles), torch.cat(chunked))


def test_tiles_of_one_kind_each_use_their_own_parameters() -> None:
    """Also if there are more tiles than fit in one pass."""
    side = 160
    count = 3 * CHUNK_PX["cpu"] // side**2 + 1
    tiles = torch.full((count, 3, side, side), 100, dtype=torch.uint8)
    result = DeviceProgram([(Tone(brightness=k / 8),) for k in range(count)], normalize=None)(tiles)
    assert result[:, 0, 5, 7].tolist() == [min(255, int(100 * k / 8 + 0.5)) for k in range(count)]
    assert (result == result[:, :1, :1, :1]).all()


def test_identities_return_the_same_bytes() -> None:
    """Operations that change nothing return identical bytes, skipped or computed."""
    tiles = colours()
    nothing = (Tone(), Saturation(factor=1), Hsv(turn=2.0), Stain(), Lab(), Noise(sigma=0, seed=1))
    assert torch.equal(DeviceProgram(nothing, normalize=None)(tiles), tiles)
    almost = 1 + 1e-12
    formula = (
        Tone(gamma=almost),
        Saturation(factor=almost),
        Hsv(turn=1e-12),
        Stain(offset=(1e-12, 0, 0)),
        Lab(gain=(almost, 1.0, 1.0)),
    )
    assert torch.equal(DeviceProgram(formula, normalize=None)(tiles), tiles)


@examples(50)
@given(entries=st.lists(st.floats(-3, 3, width=32), min_size=9, max_size=9))
def test_glass_stays_white_under_any_stain(entries: list[float]) -> None:
    """A stain matrix without offset leaves (255, 255, 255) exactly as it is, also before normalisation."""
    matrix: Any = tuple(tuple(entries[3 * row : 3 * row + 3]) for row in range(3))
    white = torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    assert (DeviceProgram((Stain(matrix=matrix),), normalize=None)(white) == 255).all()
    unit = Normalize(0.0, 1.0, rescale=1.0)
    assert (DeviceProgram((Stain(matrix=matrix),), normalize=unit, dtype=torch.float32)(white) == 255).all()


def noise(count: int, seeds: list[int], sigma: float = 10.0, side: int = 256, device: str = "cpu") -> torch.Tensor:
    """Return (count, 3, side, side) float32: the noise added to mid-grey, in units of its sigma."""
    grey = torch.full((count, 3, side, side), 128, dtype=torch.uint8, device=device)
    operations = [(Noise(sigma=sigma, seed=seed),) for seed in seeds]
    unit = Normalize(0.0, 1.0, rescale=1.0)
    return (DeviceProgram(operations, normalize=unit, dtype=torch.float32)(grey) - 128) / sigma


def test_noise_is_normal() -> None:
    """Mean, deviation, tails and the whole distribution are those of a normal one, in each channel."""
    values = noise(4, [0, 1, 2, 2**31 - 1])
    for channel in range(3):
        sample = values[:, channel].double().numpy().ravel()
        assert abs(sample.mean()) < 5 / np.sqrt(sample.size)
        assert abs(sample.std() - 1) < 5 / np.sqrt(2 * sample.size)
        assert stats.kstest(sample, "norm").pvalue > 1e-4


def test_the_tails_of_noise_are_normal() -> None:
    """Counts beyond one to four deviations, above and below, in three million values."""
    values = noise(16, [7 * k + 3 for k in range(16)]).double().numpy().ravel()
    for limit in (1, 2, 3, 3.5, 4):
        expected = stats.norm.sf(limit)
        bound = 5 * np.sqrt(expected / values.size)
        assert abs((values > limit).mean() - expected) < bound
        assert abs((values < -limit).mean() - expected) < bound


def test_noise_is_independent() -> None:
    """No correlation between neighbours, channels, near or far seeds, nor between their magnitudes."""
    values = noise(4, [5, 6, 5 + 2**16, 2**30]).double()
    flat = [values[tile, channel] for tile in range(4) for channel in range(3)]
    first = flat[0]
    shifts = [first.roll(s, d) for d in (0, 1) for s in (1, 2, 3, 16, 128)]
    bound = 5 / np.sqrt(first.numel())
    for transform in (lambda x: x, torch.abs, torch.square):
        rows = torch.stack([transform(x).ravel() for x in (*flat, *shifts)])
        correlation = torch.corrcoef(rows) - torch.eye(len(rows))
        assert correlation[0].abs().max() < bound
        assert correlation[:12, :12].abs().max() < bound


def test_noise_streams_do_not_repeat() -> None:
    """No tile of sixty-four seeds is a shift of another: their spectra do not correlate anywhere."""
    values = noise(64, list(range(64)), side=64)[:, 0].double()
    spectrum = torch.fft.fft2(values)
    for k in range(1, 64):
        correlation = torch.fft.ifft2(spectrum[0].conj() * spectrum[k]).real / 64**2
        assert correlation.abs().max() < 6.5 / 64


@pytest.mark.parametrize("device", DEVICES)
def test_noise_depends_on_its_seed_alone(device: str) -> None:
    """A tile's noise is the same alone, in another batch, beside other kinds, and on every device."""
    alone = noise(1, [7], device=device)
    among = noise(40, [*range(40)], device=device)[7:8]
    assert torch.equal(alone, among)
    torch.testing.assert_close(alone.cpu(), noise(1, [7]), rtol=0, atol=1e-5)
    tiles = torch.full((2, 3, 256, 256), 128, dtype=torch.uint8, device=device)
    mixed = DeviceProgram([(Tone(brightness=0.5),), (Noise(sigma=10, seed=7),)], normalize=None)(tiles)
    assert torch.equal(mixed[1:], torch.floor(alone * 10 + 128 + 0.5).clamp(0, 255).to(torch.uint8))


@pytest.mark.parametrize("device", DEVICES)
def test_one_noise_operation_differs_between_tiles(device: str) -> None:
    """One draw for a whole bag gives each tile its own noise, by its bytes or by its place, in any batch and layout."""
    program = DeviceProgram(program_operations(3), normalize=Normalize.imagenet())
    tiles = torch.full((3, 3, 64, 64), 128, dtype=torch.uint8, device=device)
    tiles[1, 0, 5, 6] += 1
    tiles[2, 0, 6, 5] += 1
    by_bytes, by_place = program(tiles), program(tiles, places=[4, 2**33, 9])
    for result in (by_bytes, by_place):
        noise_of = result[:, 1].double().flatten(1)
        assert torch.corrcoef(noise_of).fill_diagonal_(0).abs().max() < 0.1
    assert torch.equal(program(tiles[[2]].contiguous(memory_format=torch.channels_last)), by_bytes[2:])
    assert torch.equal(program(tiles.flip(0), places=[9, 2**33, 4]).flip(0)[::2], by_place[::2])
    per_tile = DeviceProgram([(), program_operations(3), ()], normalize=Normalize.imagenet())
    assert torch.equal(per_tile(tiles, places=[0, 2**33, 0])[1], by_place[1])


def program_operations(seed: int) -> tuple[Operation, ...]:
    """Return the operations of the test above."""
    return (Tone(brightness=0.9), Noise(sigma=10, seed=seed))


def test_opaque_operations_are_refused_by_name() -> None:
    """A transform that was not lowered is named, in whichever tile it is."""
    opaque = Opaque(name="CoarseDropout", transform={}, seed=0)
    for operations in ((opaque,), [(), (Tone(gamma=2.0), opaque)]):
        with pytest.raises(ConfigError, match="CoarseDropout cannot run on a batch"):
            DeviceProgram(operations, normalize=None)


def test_bad_tiles_are_refused() -> None:
    """Floats, greys, HWC tiles and a wrong number of tiles are errors that say what was found."""
    program = DeviceProgram([()], normalize=None)
    for tiles, reason in (
        (torch.zeros(1, 3, 4, 4), "float32"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.uint8), "shape"),
        (torch.zeros(1, 4, 4, 3, dtype=torch.uint8), "shape"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "2 tiles and the operations of 1"),
    ):
        with pytest.raises(ConfigError, match=reason):
            program(tiles)
    with pytest.raises(ConfigError, match="2 places for 1 tiles"):
        program(colours(n=1), places=[1, 2])
    with pytest.raises(ConfigError, match="int8"):
        DeviceProgram((), normalize=None, dtype=torch.int8)


def test_an_empty_batch_returns_an_empty_batch() -> None:
    """No tiles in, no tiles out."""
    nothing = torch.empty((0, 3, 8, 8), dtype=torch.uint8)
    assert DeviceProgram([], normalize=Normalize.imagenet())(nothing).shape == (0, 3, 8, 8)
    assert DeviceProgram(CHAINS["light"], normalize=None)(nothing).shape == (0, 3, 8, 8)
    assert warp(nothing, np.empty((0, 6)), Size(5, 4)).shape == (0, 3, 4, 5)


def test_warp_mirrors() -> None:
    """A tile mirrored onto a wider canvas, with white beyond its edge."""
    tile = torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2)
    assert warp(tile, [[-1, 0, 2, 0, 1, 0]], Size(3, 2))[0, 0].tolist() == [[1, 0, 255], [3, 2, 255]]


@pytest.mark.parametrize("name", CHAINS)
def test_numpy_executor_agrees(name: str) -> None:
    """The executor of decoded tiles on the CPU is within one level, for one draw and for one per tile."""
    tiles = colours(n=2)
    pixels = tiles.permute(0, 2, 3, 1).numpy()
    for operations in (CHAINS[name], [CHAINS[name], CHAINS["light"]]):
        ours = DeviceProgram(operations, normalize=None)(tiles)
        assert np.abs(levels(ours) - apply_cpu(pixels, operations)).max() <= 1


@pytest.mark.parametrize("name", CHAINS)
def test_lazy_executor_agrees(name: str) -> None:
    """The lazy executor is within one level."""
    tiles = colours(n=1)
    image = pyvips.Image.new_from_array(levels(tiles)[0].astype(np.uint8)).copy(interpretation="srgb")
    size = Size(96, 64)
    flat = apply_lazy(image, Draw(size=size, canvas=size, operations=CHAINS[name])).numpy()
    assert np.abs(levels(DeviceProgram(CHAINS[name], normalize=None)(tiles))[0] - flat).max() <= 1


def test_the_lazy_executor_turns_tiles_to_within_a_level() -> None:
    """Its borders included."""
    tiles = colours(n=1)
    image = pyvips.Image.new_from_array(levels(tiles)[0].astype(np.uint8)).copy(interpretation="srgb")
    turned = Draw(size=Size(96, 64), canvas=Size(90, 70), affine=ROTATION.as_tuple())
    ours = warp(tiles, [turned.affine], turned.canvas)
    assert np.abs(levels(ours)[0] - apply_lazy(image, turned).numpy()).max() <= 1


@pytest.mark.system  # a C++ compiler takes 20 s
@pytest.mark.filterwarnings("ignore")  # torch's own, of its compiler
@pytest.mark.parametrize("device", DEVICES)
def test_compiled_programs_give_the_same_result(device: str) -> None:
    """torch.compile changes the order of float32 operations only."""
    if device == "cpu" and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    operations = [CHAINS["light"], CHAINS["hue"], CHAINS["light"], ()]
    tiles = colours(device, 4)
    plain = DeviceProgram(operations, normalize=Normalize.imagenet())(tiles)
    fused = DeviceProgram(operations, normalize=Normalize.imagenet(), compile=True)(tiles)
    assert fused.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(fused, plain, rtol=0, atol=2**-9)


@dataclass(frozen=True)
class Case:
    """An affine, plain px → augmented px, and the size of the output."""

    name: str
    affine: Affine
    size: Size


ROTATION = Affine(a=0.9, b=-0.4, c=25.5, d=0.4, e=0.9, f=-8.25)
CASES = [
    Case("identity", Affine(), Size(96, 64)),
    Case("shift", Affine.translation(3.5, -2.25), Size(90, 70)),
    Case("rotation", ROTATION, Size(90, 70)),
    Case("magnified", Affine.scaling(1.7, 2.3), Size(200, 180)),
    Case("sheared", Affine(a=1, b=0.3, c=-5, d=0, e=1, f=2), Size(90, 70)),
]


def smooth(n: int, device: str = "cpu") -> torch.Tensor:
    """Return (n, 3, 64, 96) tiles without steps, so that a 1/32 px of OpenCV's is less than half a level."""
    rng = np.random.default_rng(5)
    tiles = ndimage.gaussian_filter(rng.uniform(0, 255, (n, 64, 96, 3)), (0, 4, 4, 0), mode="wrap")
    tiles = (tiles - tiles.min()) / np.ptp(tiles) * 255
    return torch.from_numpy(tiles.round().astype(np.uint8)).permute(0, 3, 1, 2).to(device)


def scipy_warp(tile: NDArray[Any], affine: Affine, size: Size, fill: float) -> NDArray[np.float64]:
    """Return (height, width, 3) float64, bilinear, of an affine between corner-based frames."""
    centres = Affine.translation(-0.5, -0.5) @ affine.inverse() @ Affine.translation(0.5, 0.5)
    a, b, c, d, e, f = centres.as_tuple()
    planes = [
        ndimage.affine_transform(
            tile[..., k].astype(float),
            np.array([[e, d], [b, a]]),
            (f, c),
            (size.height, size.width),
            order=1,
            mode="grid-constant",
            cval=fill,
        )
        for k in range(3)
    ]
    return np.stack(planes, axis=-1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("fill", [255, 0])
def test_warp_is_bilinear_sampling(device: str, case: Case, fill: int) -> None:
    """Every pixel, borders included, is SciPy's bilinear sample in float64, rounded: to 0.51 level."""
    tiles = colours(device, 2)
    result = levels(warp(tiles, [case.affine.as_tuple()] * 2, case.size, fill=fill))
    for k in range(2):
        exact = scipy_warp(levels(tiles)[k], case.affine, case.size, fill)
        assert np.abs(result[k] - exact).max() <= 0.52


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_warp_agrees_with_opencv(case: Case) -> None:
    """Away from borders, and without steps, warpAffine of float32 is within one level."""
    tiles = smooth(1)
    result = levels(warp(tiles, [case.affine.as_tuple()], case.size))[0]
    half = Affine.translation(-0.5, -0.5) @ case.affine @ Affine.translation(0.5, 0.5)
    plain = levels(tiles)[0].astype(np.float32)
    # Inside: pixels that are not mixed with the outside, by the same affine of a mask of ones.
    args: dict[str, Any] = {"dsize": tuple(case.size), "flags": cv2.INTER_LINEAR, "borderMode": cv2.BORDER_CONSTANT}
    expected = cv2.warpAffine(plain, half.matrix()[:2], borderValue=(255,) * 3, **args)
    inside = cv2.warpAffine(np.ones_like(plain), half.matrix()[:2], borderValue=(0,) * 3, **args) > 0.999
    assert inside.mean() > 0.2
    assert np.abs(result - expected)[inside].max() <= 1


@pytest.mark.parametrize("device", DEVICES)
def test_warp_follows_the_direction_of_a_draw(device: str) -> None:
    """Flips, quarter turns and whole-pixel shifts are exact, each tile by its own affine, in a draw's direction."""
    tiles = colours(device, 4)[..., :64].contiguous(memory_format=torch.channels_last)
    size = Size(64, 64)
    affines = [
        (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        (-1.0, 0.0, 64.0, 0.0, 1.0, 0.0),
        (0.0, -1.0, 64.0, 1.0, 0.0, 0.0),
        (1.0, 0.0, 5.0, 0.0, 1.0, 0.0),
    ]
    draws = [Draw(size=size, canvas=size, affine=affine) for affine in affines]
    result = warp(tiles, [draw.affine for draw in draws], size)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(result[0], tiles[0])
    assert torch.equal(result[1], tiles[1].flip(-1))
    assert torch.equal(result[2], tiles[2].rot90(-1, (-2, -1)))  # x to y is clockwise on a screen
    assert torch.equal(result[3, :, :, 5:], tiles[3, :, :, :-5])
    assert (result[3, :, :, :5] == 255).all()


def test_singular_affines_are_refused() -> None:
    """An affine onto a line, or a wrong number of affines, is an error."""
    with pytest.raises(ConfigError, match="singular"):
        warp(colours(), [Affine().as_tuple(), (1, 1, 0, 1, 1, 0)], Size(4, 4))
    with pytest.raises(ConfigError, match="for 2 tiles"):
        warp(colours(), [Affine().as_tuple()], Size(4, 4))
