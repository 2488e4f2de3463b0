"""Encoders from networks, files and names, with the description of their tiles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cuda_device import CUDA
from PIL import Image
from tiny_encoders import DIM, network, write_program, write_torchscript
from torch import nn

from slideio_pipe import Normalize, load_encoder
from slideio_pipe.errors import ConfigError, MissingExtraError
from slideio_pipe.features.encoders import Encoder, EncoderOnDevice, load_encoders
from slideio_pipe.features.encoders.encoder import fitted, resized, resized_in_float
from slideio_pipe.streaming.device import check_device

CPU = torch.device("cpu")
SAID = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "input_size": 32}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of networks as files."""
    folder = tmp_path_factory.mktemp("encoders")
    write_torchscript(folder / "script.pt")
    write_program(folder / "program.pt2")
    write_program(folder / "pairs.pt2", fixed=True)
    torch.save(network().state_dict(), folder / "weights.pt")
    torch.save(network(), folder / "pickled.pt")
    return folder


def encode(encoder: Any, tiles: torch.Tensor) -> np.ndarray:
    """Return float32 features on the CPU."""
    return EncoderOnDevice(encoder, CPU, torch.float32)(tiles).numpy()


def some_tiles(count: int = 5, side: int = 32) -> torch.Tensor:
    """Return (n, 3, H, W) uint8 noise."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8))


@pytest.mark.parametrize("file", ["script.pt", "program.pt2", "pairs.pt2"])
def test_a_file_computes_the_same_as_its_network(files: Path, file: str) -> None:
    """For any batch size, or for a fixed batch of two."""
    encoder = load_encoder(files / file, normalize="imagenet", input_size=32)
    tiles = some_tiles()
    expected = network()(Normalize.imagenet(dtype=torch.float32)(tiles)).detach().numpy()
    assert np.allclose(encode(encoder, tiles), expected, atol=1e-6)
    assert encoder.dim == DIM
    assert encoder.name == Path(file).stem


@pytest.mark.parametrize(("beside", "text"), [("script.pt.json", json.dumps(SAID)), ("script.yaml", str(SAID))])
def test_a_description_beside_the_file_is_read(files: Path, tmp_path: Path, beside: str, text: str) -> None:
    """Mean, deviation, size, mpp and name, as JSON or YAML; arguments have priority."""
    file = tmp_path / "script.pt"
    file.write_bytes((files / "script.pt").read_bytes())
    (tmp_path / beside).write_text(text.replace("}", ', "mpp": 0.5, "name": "mine"}').replace("'", '"'))
    encoder = load_encoder(file)
    assert (encoder.name, encoder.input_size, encoder.mpp, encoder.normalize.std) == ("mine", 32, 0.5, (0.2,) * 3)
    assert load_encoder(file, normalize="half", name="other").name == "other"
    assert load_encoder(file, normalize="half").normalize.std == (0.5,) * 3


def test_a_network_without_a_description_is_refused(files: Path) -> None:
    """The error lists every way to describe its tiles."""
    with pytest.raises(ConfigError, match=r"the normalisation of tiles and the size.*normalize=.*script\.pt\.json"):
        load_encoder(files / "script.pt")
    with pytest.raises(ConfigError, match="the normalisation of tiles is unknown"):
        load_encoder(files / "program.pt2")  # its size is in it
    with pytest.raises(ConfigError, match="the size of tiles is unknown"):
        load_encoder(network(), normalize="imagenet")


@pytest.mark.parametrize("file", ["weights.pt", "pickled.pt"])
def test_pickles_are_not_opened(files: Path, file: str) -> None:
    """Opening one could run any code."""
    with pytest.raises(ConfigError, match=r"neither TorchScript nor an exported program.*pickled networks are not"):
        load_encoder(files / file, normalize="imagenet", input_size=32)


def test_missing_and_damaged_files_have_different_errors(tmp_path: Path) -> None:
    """Both name the file."""
    with pytest.raises(ConfigError, match="no encoder is there"):
        load_encoder(tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="neither TorchScript"):
        load_encoder(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda x: (x.mean((2, 3)), x), "returns a tuple"),
        (lambda x: {"features": x}, "returns a dict"),
        (lambda x: x.mean(), r"returns \(\) float32 for 1 tiles"),
        (lambda x: x.flatten(2), r"returns 3 tokens per tile.*pooling="),
        (lambda x: x.mean((2, 3)).long(), "int64"),
        (lambda x: x @ torch.zeros(5, 5), "does not take 1 tiles of 32×32 px"),
    ],
)
def test_networks_with_other_outputs_are_refused(forward: Any, message: str) -> None:
    """Before a slide is opened, with a remedy."""

    class Odd(nn.Module):
        def forward(self, tiles: torch.Tensor) -> Any:
            return forward(tiles)

    with pytest.raises(ConfigError, match=message):
        load_encoder(Odd(), normalize="imagenet", input_size=32)


@pytest.mark.parametrize(("pooling", "expected"), [("class", 0.0), ("mean", 1.5)])
def test_tokens_are_pooled(pooling: str, expected: float) -> None:
    """The first one, or their mean."""

    class Tokens(nn.Module):
        def forward(self, tiles: torch.Tensor) -> torch.Tensor:
            return torch.arange(4.0)[None, :, None].expand(len(tiles), 4, 6)

    encoder = load_encoder(Tokens(), normalize="identity", input_size=32, pooling=pooling)
    assert (encode(encoder, some_tiles(2)) == expected).all()


class Numbered(nn.Module):
    """Returns six tokens per tile: the k-th is k times the tile's mean."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return tiles.mean((1, 2, 3))[:, None, None] * torch.arange(6.0)[None, :, None].expand(1, 6, 2)


@pytest.mark.parametrize(("prefix", "mean"), [(1, 3.0), (2, 3.5), (5, 5.0)])
def test_the_class_token_is_followed_by_the_mean_of_the_patches(tmp_path: Path, prefix: int, mean: float) -> None:
    """Registers, which are between them, are skipped: their number is in the configuration."""
    encoder = Encoder("a", Numbered(), Normalize.identity(), 32, 4, pooling="class+mean", prefix_tokens=prefix)
    grey = some_tiles(2).numpy().astype(np.float64).mean((1, 2, 3)) / 255
    expected = np.stack([0 * grey, 0 * grey, mean * grey, mean * grey], 1)
    np.testing.assert_allclose(encode(encoder, some_tiles(2)), expected, rtol=1e-5)
    write_torchscript(tmp_path / "a.pt", model=Numbered())
    (tmp_path / "a.json").write_text(json.dumps(SAID | {"pooling": "class+mean", "prefix_tokens": prefix}))
    assert load_encoder(tmp_path / "a.pt").prefix_tokens == prefix


def test_tokens_of_which_none_is_a_patch_are_refused() -> None:
    """All six are class token and registers."""
    encoder = Encoder("a", Numbered(), Normalize.identity(), 32, 4, pooling="class+mean", prefix_tokens=6)
    with pytest.raises(ConfigError, match=r"a returns 6 tokens per tile, 6 of which are not of patches"):
        encode(encoder, some_tiles(2))


class Maps(nn.Module):
    """Returns maps: each px is the mean of its part of the tile, times a number for the channel."""

    def __init__(self, dim: int, stride: int, *, channels_last: bool = False) -> None:
        super().__init__()
        self.dim, self.stride, self.channels_last = dim, stride, channels_last

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        grey = nn.functional.avg_pool2d(tiles.mean(1, keepdim=True), self.stride)
        maps = grey * torch.arange(1, self.dim + 1)[None, :, None, None]
        return maps.permute(0, 2, 3, 1) if self.channels_last else maps


def expected_of_maps(dim: int, tiles: torch.Tensor) -> np.ndarray:
    """Return the means of these maps, in float64."""
    means = tiles.numpy().astype(np.float64).mean(axis=(1, 2, 3)) / 255
    return means[:, None] * np.arange(1, dim + 1)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("dim", "stride"), [(4, 8), (1, 16), (40, 32), (3, 32)])
def test_maps_are_averaged(dim: int, stride: int, channels_last: bool) -> None:
    """(n, D, h, w), or (n, h, w, D), becomes (n, D)."""
    encoder = load_encoder(Maps(dim, stride, channels_last=channels_last), normalize="identity", input_size=64)
    assert encoder.dim == dim
    np.testing.assert_allclose(encode(encoder, some_tiles(2, 64)), expected_of_maps(dim, some_tiles(2, 64)), rtol=1e-5)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_maps_of_a_segmentation_are_refused(stride: int, channels_last: bool) -> None:
    """A network that segments three classes has not three features, unless their mean is requested."""
    network = Maps(3, stride, channels_last=channels_last)
    with pytest.raises(ConfigError, match=r'returns maps of .* for a tile of 64 px, not features; pass pooling="mean"'):
        load_encoder(network, normalize="identity", input_size=64)
    encoder = load_encoder(network, normalize="identity", input_size=64, pooling="mean")
    np.testing.assert_allclose(encode(encoder, some_tiles(2, 64)), expected_of_maps(3, some_tiles(2, 64)), rtol=1e-5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("side", [24, 48])
@pytest.mark.parametrize("resize", [resized, resized_in_float])
def test_tiles_of_another_size_are_resized_as_pillow_does(resize: Any, interpolation: str, side: int) -> None:
    """Antialiased, on the CPU and on CUDA, within one level: rounding between the two passes."""
    y, x = np.mgrid[:36, :36]
    tile = np.stack([x * 5 + y, 255 - y * 6, 90 + 60 * np.sin(x / 3)], -1).clip(0, 255).astype(np.uint8)
    found = resize(torch.from_numpy(tile).permute(2, 0, 1)[None], side, interpolation)
    how = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    expected = np.asarray(Image.fromarray(tile).resize((side, side), how)).astype(int)
    assert np.abs(found[0].permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("side", "resize", "crop"), [(48, 40, 32), (40, 40, 32), (48, 41, 32), (48, 32, 32)])
def test_the_centre_is_cropped_after_a_resize(side: int, resize: int, crop: int) -> None:
    """The same px as with Pillow and torchvision's rule for the middle; layouts in memory do not matter."""
    tiles = some_tiles(2, side)
    for order in (torch.contiguous_format, torch.channels_last):
        found = fitted(tiles.contiguous(memory_format=order), crop, "bilinear", resize)
        top = round((resize - crop) / 2.0)
        for tile, seen in zip(tiles, found, strict=True):
            picture = Image.fromarray(tile.permute(1, 2, 0).numpy()).resize((resize,) * 2, Image.Resampling.BILINEAR)
            expected = np.asarray(picture)[top : top + crop, top : top + crop].astype(int)
            assert np.abs(seen.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1


def test_cropped_tiles_are_encoded_as_crops_of_the_caller(tmp_path: Path) -> None:
    """A resize in the configuration is that of its input size: with another input size tiles are resized whole."""
    write_torchscript(tmp_path / "a.pt")
    (tmp_path / "a.json").write_text(json.dumps(SAID | {"resize": 40}))
    cropping = load_encoder(tmp_path / "a.pt")
    whole = load_encoder(network(), normalize=cropping.normalize, input_size=32)
    assert np.allclose(
        encode(cropping, some_tiles(3, 40)), encode(whole, some_tiles(3, 40)[:, :, 4:36, 4:36]), atol=1e-6
    )
    assert load_encoder(tmp_path / "a.pt", input_size=48).resize is None


def test_tiles_of_its_size_are_not_resized() -> None:
    """They are not even copied."""
    tiles = some_tiles()
    assert resized(tiles, 32, "bicubic") is tiles


def test_tiles_that_are_not_square_are_refused() -> None:
    """Encoders take squares."""
    with pytest.raises(ConfigError, match="take squares"):
        resized(torch.zeros(1, 3, 4, 5, dtype=torch.uint8), 4, "bicubic")


def test_the_digest_depends_on_weights_and_tiles() -> None:
    """And not on the name."""
    base = load_encoder(network(), normalize="imagenet", input_size=32)
    same = load_encoder(network(), normalize="imagenet", input_size=32, name="other")
    others = [
        load_encoder(network(seed=1), normalize="imagenet", input_size=32),
        load_encoder(network(), normalize="half", input_size=32),
        load_encoder(network(), normalize="imagenet", input_size=48),
        load_encoder(network(), normalize="imagenet", input_size=32, interpolation="bilinear"),
    ]
    assert base.digest == same.digest
    assert len({base.digest, *(encoder.digest for encoder in others)}) == 5


def test_newer_settings_change_the_digest_only_where_they_are_used() -> None:
    """Features of earlier versions keep their digest; where tiles are read from is no part of it."""
    base = load_encoder(network(), normalize="imagenet", input_size=32)
    assert not {"resize", "precision", "prefix_tokens"} & set(base.describe())
    assert replace(base, tile_size=64, other_mpps=(0.5,), prefix_tokens=5).digest == base.digest
    changed = [{"resize": 40}, {"precision": "bfloat16"}, {"pooling": "class+mean"}]
    changed.append({"pooling": "class+mean", "prefix_tokens": 5})
    assert len({base.digest, *(replace(base, **change).digest for change in changed)}) == 5


def test_names_of_encoders(files: Path) -> None:
    """A name before the source; equal names are refused; a name must be a valid folder name."""
    otherwise = {"normalize": "imagenet", "input_size": 32}
    (encoder,) = load_encoders(f"uni={files / 'script.pt'}", otherwise)
    assert encoder.name == "uni"
    with pytest.raises(ConfigError, match="two encoders are called script"):
        load_encoders([files / "script.pt"] * 2, otherwise)
    with pytest.raises(ConfigError, match="cannot name a folder"):
        load_encoder(network(), name="../a", **otherwise)


@pytest.mark.parametrize(
    "wrong",
    [
        {"input_size": 0},
        {"input_size": (3, 32, 48)},
        {"mpp": -1},
        {"normalize": "imagenette"},
        {"pooling": "max"},
        {"precision": "float8"},
    ],
)
def test_invalid_settings_are_refused(wrong: dict[str, Any]) -> None:
    """Each is named."""
    with pytest.raises(ConfigError, match=r"input_size|mpp|imagenette|pooling|precision"):
        load_encoder(network(), **{"normalize": "imagenet", "input_size": 32, **wrong})


# --- names of hubs


PROCESSOR = {
    "do_normalize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
    "size": {"height": 32, "width": 32},
}


def saved(transformers: Any, folder: Path, kind: str) -> Any:
    """Save a tiny model of transformers with its processor, and return it."""
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    if kind == "vit":
        model = transformers.ViTModel(transformers.ViTConfig(intermediate_size=32, **small))
    elif kind == "dinov2":
        model = transformers.Dinov2Model(transformers.Dinov2Config(**small))
    else:  # no class token
        shape = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
        model = transformers.SwinModel(transformers.SwinConfig(image_size=32, patch_size=4, **shape))
    model.eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return model


@pytest.mark.parametrize("kind", ["vit", "dinov2", "swin"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_models_of_transformers_follow_their_processor(tmp_path: Path, kind: str) -> None:
    """Normalisation and size; the class token, or the model's own pooling if there is none."""
    transformers = pytest.importorskip("transformers")
    model = saved(transformers, tmp_path / kind, kind)
    encoder = load_encoder(f"hf:{tmp_path / kind}")
    assert (encoder.name, encoder.input_size, encoder.interpolation) == (kind, 32, "bilinear")
    assert encoder.normalize.mean == (0.5,) * 3
    tiles = some_tiles()
    with torch.no_grad():
        output = model(pixel_values=tiles.float() / 127.5 - 1)
    expected = output.pooler_output if kind == "swin" else output.last_hidden_state[:, 0]
    assert np.allclose(encode(encoder, tiles), expected.numpy(), atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_crop_of_a_processor_is_the_tile_size(tmp_path: Path) -> None:
    """Tiles are not cropped: resized to 256 and cropped to 224 means 224."""
    transformers = pytest.importorskip("transformers")
    saved(transformers, tmp_path, "vit")
    cropped = {"do_center_crop": True, "crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 40}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | cropped))
    assert load_encoder(f"hf:{tmp_path}").input_size == 32


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_model_without_a_processor_is_refused(tmp_path: Path) -> None:
    """The normalisation of its tiles is unknown."""
    transformers = pytest.importorskip("transformers")
    saved(transformers, tmp_path, "vit")
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match="the normalisation of tiles and the size of tiles are unknown"):
        load_encoder(f"hf:{tmp_path}")


def has_timm() -> bool:
    """Return whether timm can be imported, which needs the torchvision of this torch."""
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError):
        return False
    return True


@pytest.mark.skipif(not has_timm(), reason="timm needs a torchvision that belongs to this torch")
def test_networks_of_timm_follow_their_configuration(tmp_path: Path) -> None:
    """With the user's weights; normalisation and size are timm's."""
    import timm

    model = timm.create_model("test_vit", pretrained=False).eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    encoder = load_encoder(f"timm:test_vit@{tmp_path / 'w.pth'}")
    assert (encoder.name, encoder.input_size) == ("test_vit", model.pretrained_cfg["input_size"][-1])
    tiles = some_tiles(2, encoder.input_size)
    pixels = encoder.normalize.convert(tiles, torch.float32)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(pixels), pre_logits=True)
    assert np.allclose(encode(encoder, tiles), expected.numpy(), atol=1e-5)
    with pytest.raises(ConfigError, match="the weights lack"):  # and not a network left at random
        load_encoder(f"timm:test_resnet@{tmp_path / 'w.pth'}")


@pytest.mark.system
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            {
                "timm": "import torchvision",
                "torchvision": "raise RuntimeError('operator torchvision::nms does not exist')",
            },
            "timm is needed and installed, but cannot be imported (RuntimeError: operator "
            "torchvision::nms does not exist); install the torchvision that belongs to this torch, or remove it",
        ),
        ({"timm": "import of_another_package"}, "pip install of_another_package"),
        ({"timm": "raise ImportError('cannot import name x')"}, "install it again: pip install --force-reinstall timm"),
        (
            {
                "timm": "def create_model(*a, **k):\n    import torchvision\n",
                "torchvision": "raise RuntimeError('torchvision')",
            },
            "timm:resnet18: cannot be loaded (torchvision); install the torchvision that belongs to this torch",
        ),
    ],
    ids=["torchvision", "something else", "itself", "later"],
)
def test_a_broken_package_is_not_called_missing(tmp_path: Path, broken: dict[str, str], message: str) -> None:
    """The remedy is to repair it, not to install it."""
    for name, code in broken.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
    code = "import slideio_pipe as sp; sp.load_encoder('timm:resnet18')"
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        timeout=300,
    )
    assert message in done.stderr
    assert "[timm]" not in done.stderr


@pytest.mark.skipif(has_timm(), reason="timm is there")
def test_a_missing_timm_is_an_error_with_the_install_command() -> None:
    """In one sentence."""
    with pytest.raises(MissingExtraError, match=r"slideio-pipe\[timm\]"):
        load_encoder("timm:resnet18")


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("precision", "atol"), [(None, 5e-3), ("float16", 5e-3), ("bfloat16", 4e-2), ("float32", 1e-3)]
)
def test_cuda_computes_in_the_precision_of_the_encoder(precision: str | None, atol: float) -> None:
    """Within the precision of its dtype; features are float16 in any case."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    encoder = load_encoder(network(), normalize="imagenet", input_size=32, precision=precision)
    expected = encode(encoder, some_tiles())
    device = check_device(CUDA)
    found = EncoderOnDevice(encoder, device, torch.float16)(some_tiles().to(device))
    assert found.dtype == torch.float16
    assert np.allclose(found.float().cpu().numpy(), expected, atol=atol)
