"""Normalisation compared with a float64 table, and valid devices, dtypes and configurations."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cuda_device import CUDA, DEVICES
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import examples
from torch import nn

from slideio_pipe.errors import ConfigError
from slideio_pipe.streaming.device import Sender, check_device
from slideio_pipe.streaming.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize, check_dtype

HALF = (0.5, 0.5, 0.5)
LAYOUTS = [torch.channels_last, torch.contiguous_format]
HUGGING_FACE = {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}


@pytest.fixture(autouse=True)
def _skip_without_cuda(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def reference(mean: Any, std: Any, rescale: float = 1 / 255) -> np.ndarray:
    """Return the (256, 3) float64 table of the formula."""
    return (np.arange(256.0)[:, None] * rescale - np.array(mean)) / np.array(std)


def plain(tiles: torch.Tensor, mean: Any, std: Any, dtype: torch.dtype) -> torch.Tensor:
    """Return the formula in float32, step by step: the reference of the kernels."""
    statistics = (torch.tensor(s, dtype=torch.float32, device=tiles.device).view(3, 1, 1) for s in (mean, std))
    mean, std = statistics
    return ((tiles.float() / 255 - mean) / std).to(dtype)


def every_byte(device: str = "cpu", layout: torch.memory_format = torch.channels_last) -> torch.Tensor:
    """Return (2, 3, 8, 16) tiles in which each channel holds each byte once."""
    nhwc = torch.arange(256, dtype=torch.uint8).reshape(2, 8, 16, 1).expand(-1, -1, -1, 3)
    return nhwc.permute(0, 3, 1, 2).contiguous(memory_format=layout).to(device)


def by_byte(normalised: torch.Tensor) -> np.ndarray:
    """Return the (256, 3) float64 results of every_byte."""
    return normalised.permute(0, 2, 3, 1).reshape(256, 3).double().cpu().numpy()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("mean", "std"), [(IMAGENET_MEAN, IMAGENET_STD), (HALF, HALF)])
def test_float16_is_within_a_thousandth(device: str, layout: torch.memory_format, mean: Any, std: Any) -> None:
    """Every byte in every channel is within 0.001 of the float64 formula, on each device and in each layout."""
    result = Normalize(mean, std).to(device)(every_byte(device, layout))
    assert result.dtype == torch.float16
    assert np.abs(by_byte(result) - reference(mean, std)).max() <= 0.001


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_kernels_equal_the_plain_formula(device: str, layout: torch.memory_format, dtype: torch.dtype) -> None:
    """Table and arithmetic round to the same numbers as the formula written out in float32."""
    tiles = every_byte(device, layout)
    expected = plain(tiles, IMAGENET_MEAN, IMAGENET_STD, dtype)
    torch.testing.assert_close(Normalize.imagenet(dtype=dtype).to(device)(tiles), expected, rtol=0, atol=1e-6)


@examples(50)
@given(
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(0.05, 2)] * 3),
)
def test_any_statistics_are_rounded_once(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """The error is half a float16 step, plus that of float32 arithmetic."""
    expected = reference(mean, std)
    step = np.spacing(np.abs(expected).astype(np.float16)).astype(np.float64)
    assert (np.abs(by_byte(Normalize(mean, std)(every_byte())) - expected) <= 0.5 * step + 5e-6).all()


@pytest.mark.parametrize("size", [(0, 4, 4), (1, 1, 1), (3, 5, 7), (2, 1, 9)])
def test_shape_and_layout_are_kept(size: tuple[int, int, int]) -> None:
    """Odd and empty sizes keep their shape, and channels_last memory stays channels_last."""
    n, height, width = size
    tiles = torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    result = Normalize.imagenet()(tiles)
    assert result.shape == (n, 3, height, width)
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, plain(tiles, IMAGENET_MEAN, IMAGENET_STD, torch.float16), rtol=0, atol=1e-6)


def test_overlapping_tiles_are_not_changed() -> None:
    """Tiles that are overlapping views of one image are all right, and the image is unchanged."""
    image = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8)
    before = image.clone()
    views = image.unfold(0, 32, 8).unfold(1, 32, 8).flatten(0, 1)  # (25, 3, 32, 32), overlapping memory
    result = Normalize.half()(views)
    assert torch.equal(image, before)
    assert torch.equal(result, plain(views.clone(), HALF, HALF, torch.float16))


def test_named_statistics() -> None:
    """half maps bytes to −1…1, and identity maps them to 0…1."""
    assert by_byte(Normalize.half()(every_byte()))[[0, 255]].tolist() == [[-1] * 3, [1] * 3]
    assert by_byte(Normalize.identity()(every_byte()))[[0, 255]].tolist() == [[0] * 3, [1] * 3]


def test_half_of_an_instance_is_the_module_method() -> None:
    """normalize.half() keeps the statistics; only Normalize.half() means 0.5/0.5."""
    normalize = Normalize.imagenet()
    assert normalize.half() is normalize
    assert normalize.mean == IMAGENET_MEAN
    assert Normalize.half().mean == HALF


def test_a_model_in_half_precision_keeps_float32_statistics() -> None:
    """In a model cast to half, results do not change and the state dict has no new keys."""
    model = nn.Sequential(Normalize.imagenet(), nn.Conv2d(3, 1, 1))
    before = model[0](every_byte())
    model.half()
    assert torch.equal(model[0](every_byte()), before)
    assert sorted(model.state_dict()) == ["1.bias", "1.weight"]


def test_copies_and_pickles_normalise_the_same() -> None:
    """Bit for bit."""
    normalize = Normalize(IMAGENET_MEAN, IMAGENET_STD, dtype=torch.float32)
    for other in (copy.deepcopy(normalize), pickle.loads(pickle.dumps(normalize))):
        assert torch.equal(other(every_byte()), normalize(every_byte()))


@pytest.mark.parametrize("rescale", [0, -0.5, float("nan")])
def test_the_scale_must_be_positive(rescale: float) -> None:
    """With 0 all tiles would be alike."""
    with pytest.raises(ConfigError, match="rescale"):
        Normalize((0.0,) * 3, (1.0,) * 3, rescale=rescale)


@pytest.mark.parametrize(
    ("config", "mean", "std", "rescale"),
    [
        ({"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "input_size": (3, 8, 8)}, IMAGENET_MEAN, IMAGENET_STD, 1 / 255),
        ({"architecture": "vit", "pretrained_cfg": {"mean": HALF, "std": HALF}}, HALF, HALF, 1 / 255),
        (HUGGING_FACE, IMAGENET_MEAN, IMAGENET_STD, 1 / 255),
        ({**HUGGING_FACE, "do_normalize": False, "rescale_factor": 0.00392156862745098}, (0,) * 3, (1,) * 3, 1 / 255),
        ({"do_normalize": False, "do_rescale": False}, (0,) * 3, (1,) * 3, 1),
        ({"image_mean": [123.675, 116.28, 103.53], "image_std": [58.395, 57.12, 57.375], "do_rescale": False},
         IMAGENET_MEAN, IMAGENET_STD, 1 / 255),
        ({"image_mean": 0.5, "image_std": 0.5, "do_rescale": True, "rescale_factor": 1 / 255}, HALF, HALF, 1 / 255),
    ],
)  # fmt: skip
def test_published_configurations_follow_their_formula(
    config: dict[str, Any], mean: Any, std: Any, rescale: float
) -> None:
    """Of timm and Hugging Face."""
    result = Normalize.from_config(config, dtype=torch.float32)(every_byte())
    np.testing.assert_allclose(by_byte(result), reference(mean, std, rescale), atol=2e-6)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "'mean'"),
        ({"mean": HALF}, "'std'"),
        ({"size": 224, "crop": True}, "size, crop"),
        ({"do_rescale": True}, "'image_mean'"),
        ({"mean": HALF, "image_mean": HALF}, "both"),
        ({"mean": HALF, "std": HALF, "input_size": (1, 224, 224)}, "1 channels"),
        ({**HUGGING_FACE, "rescale_offset": True}, "rescale_offset"),
        ({**HUGGING_FACE, "rescale_factor": 0}, "rescale"),
        ([0.5, 0.5, 0.5], "list"),
    ],
)
def test_configurations_without_normalisation_are_refused(config: Any, words: str) -> None:
    """With the reason."""
    with pytest.raises(ConfigError, match=words):
        Normalize.from_config(config)


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        (HALF, (0.5, 0.0, 0.5), "not positive"),
        (HALF, (0.5, -0.1, 0.5), "not positive"),
        (HALF, (0.5, math.nan, 0.5), "nan"),
        ((0.5, math.inf, 0.5), HALF, "inf"),
        ((0.5, 0.5), HALF, "2 values"),
        (HALF, (0.5,) * 4, "4 values"),
        (("0.5",) * 3, HALF, "'0.5'"),
        (None, HALF, "None"),
        ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), "divide mean and std by 255"),
        (HALF, 1e-6, "float16"),
    ],
)
def test_impossible_statistics_are_refused(mean: Any, std: Any, words: str) -> None:
    """With the reason."""
    with pytest.raises(ConfigError, match=words):
        Normalize(mean, std)


@pytest.mark.parametrize(
    "tiles", [torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, 3).byte(), torch.zeros(3, 4, 4).byte()]
)
def test_only_uint8_planes_are_normalised(tiles: torch.Tensor) -> None:
    """Float tiles, which may be normalised already, and other layouts are refused."""
    with pytest.raises(ConfigError, match="tiles"):
        Normalize.imagenet()(tiles)


@pytest.mark.slow
def test_onnx_gives_the_same_numbers(tmp_path: Path) -> None:
    """The exported module, run by onnxruntime on another batch size, equals the module."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    normalize, path, batch = Normalize.imagenet().eval(), tmp_path / "normalize.onnx", torch.export.Dim("batch")
    with warnings.catch_warnings():
        # torch.export pickles a class of its own that it has deprecated.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        torch.onnx.export(normalize, (every_byte(),), path, dynamo=True, verbose=False, dynamic_shapes=({0: batch},))
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    tiles = every_byte()[[1, 0, 1]]
    (result,) = session.run(None, {session.get_inputs()[0].name: tiles.numpy()})
    assert result.dtype == np.float16
    np.testing.assert_array_equal(result, normalize(tiles).numpy())


def test_torch_export_gives_the_same_numbers() -> None:
    """The traced graph has the arithmetic, not the numbers of the example."""
    normalize = Normalize.imagenet()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        graph = torch.export.export(normalize, (torch.zeros(2, 3, 8, 16, dtype=torch.uint8),)).module()
    assert torch.equal(graph(every_byte(layout=torch.contiguous_format)), normalize(every_byte()))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("normalize", [None, Normalize.half()])
def test_sent_tiles_do_not_share_host_memory(device: str, normalize: Normalize | None) -> None:
    """Overwriting the host buffer after the copy does not change what was sent."""
    sender = Sender(check_device(device), normalize, torch.float16)
    host = sender.host_buffer((2, 8, 16, 3))
    host.copy_(every_byte().permute(0, 2, 3, 1))
    sent = sender.send(host)
    sender.drain()
    host.zero_()
    expected = every_byte() if normalize is None else normalize(every_byte())
    assert torch.equal(sent.receive().cpu(), expected)


@pytest.mark.cuda
def test_sending_does_not_move_the_module() -> None:
    """A stream uses a copy, so that two devices can share one module."""
    normalize = Normalize.imagenet()
    Sender(check_device(CUDA), normalize, torch.float16)
    assert normalize.scale.device.type == "cpu"


@pytest.mark.parametrize("device", ["tpu?", "meta", 3.5, "cpu:x"])
def test_unknown_devices_are_refused(device: Any) -> None:
    """The remedy is one of the valid ones."""
    with pytest.raises(ConfigError, match="pass 'cpu'"):
        check_device(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")
def test_cuda_without_a_device_is_refused() -> None:
    """With a remedy."""
    with pytest.raises(ConfigError, match="no CUDA device; pass device='cpu'"):
        check_device("cuda")


@pytest.mark.cuda
def test_a_missing_cuda_device_is_refused() -> None:
    """ "cuda" means the current one."""
    assert check_device("cuda") == torch.device("cuda", torch.cuda.current_device())
    with pytest.raises(ConfigError, match="CUDA devices"):
        check_device(f"cuda:{torch.cuda.device_count()}")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64, "float16", None])
def test_unknown_dtypes_are_refused(dtype: Any) -> None:
    """Only float16, bfloat16 and float32 are delivered."""
    with pytest.raises(ConfigError, match=r"torch\.float16"):
        check_dtype(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_convert_returns_the_dtype_of_the_encoder(dtype: torch.dtype, layout: torch.memory_format) -> None:
    """Double precision as well."""
    found = Normalize.imagenet().convert(every_byte(layout=layout), dtype)
    assert found.dtype == dtype
    assert np.abs(by_byte(found) - reference(IMAGENET_MEAN, IMAGENET_STD)).max() < 1e-5


@pytest.mark.parametrize("mean", [0.0, 0.25, 0.75, 1.0])
@pytest.mark.parametrize("side", ["finite", "beyond"])
def test_statistics_that_leave_float16_are_refused(mean: float, side: str) -> None:
    """Black or white must stay finite, by one part in a hundred; numpy's float16 is the oracle."""
    farthest = max(mean, 1 - mean)
    std = farthest / 65504 * (1.01 if side == "finite" else 0.99)
    with np.errstate(over="ignore"):
        ends = np.array([(0 - mean) / std, (1 - mean) / std]).astype(np.float16)
    if side == "finite":
        assert np.isfinite(ends).all()
        tiles = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1)
        values = Normalize((mean,) * 3, (std,) * 3)(tiles).numpy()[:, 0, 0, 0]
        assert np.isfinite(values).all()
        assert values == pytest.approx(ends.astype(float), rel=2e-3, abs=1)
    else:
        with pytest.raises(ConfigError, match="beyond float16"):
            Normalize((mean,) * 3, (std,) * 3)
