"""Known encoders of timm compute what a plain loop with timm computes, of the same architectures with random weights.

The loop's architecture, pixels and pooling are written here as the authors' pages state them, and not read from the
table. Networks have two blocks of each kind: the rest of them is the same layer again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from slideio_pipe import load_encoder
from slideio_pipe.errors import ConfigError, EncoderSettingsWarning
from slideio_pipe.features.encoders import EncoderOnDevice, known
from slideio_pipe.features.encoders.known import known_encoders
from slideio_pipe.features.encoders.known_networks import timm_arguments

try:
    import timm
    from timm.layers import SwiGLUPacked
except (ImportError, RuntimeError):  # RuntimeError: a torchvision of another torch
    pytest.skip("timm needs a torchvision that belongs to this torch", allow_module_level=True)

pytestmark = pytest.mark.system  # two minutes
BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5,) * 3, (0.5,) * 3
H_OPTIMUS = (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)
LUNIT = (0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464)
SWIGLU = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
VIRCHOW = {"img_size": 224, "init_values": 1e-5, "num_classes": 0, "mlp_ratio": 5.3375, "global_pool": "", **SWIGLU}
TWO = {"depth": 2}

Pool = Callable[[torch.Tensor], torch.Tensor]


def rows(found: torch.Tensor) -> torch.Tensor:
    """Return the output of a network that pools its tokens itself."""
    return found


def class_token(found: torch.Tensor) -> torch.Tensor:
    """Return the first token."""
    return found[:, 0]


def class_and_patches(first: int) -> Pool:
    """Return a function for the class token followed by the mean of the tokens from ``first`` on."""
    return lambda found: torch.cat([found[:, 0], found[:, first:].mean(1)], dim=-1)


@dataclass(frozen=True)
class Plain:
    """An encoder as its authors use it."""

    architecture: str
    arguments: dict[str, Any]
    tile: int
    norm: tuple[tuple[float, ...], tuple[float, ...]]
    how: Image.Resampling
    width: int
    pool: Pool = rows
    resize: int = 224
    fewer: dict[str, Any] = field(default_factory=lambda: TWO)

    def network(self) -> nn.Module:
        """Return the network with random weights, none of which is the same in two blocks."""
        torch.manual_seed(0)
        model = timm.create_model(self.architecture, pretrained=False, **self.arguments, **self.fewer)
        for name, value in model.named_parameters():
            if name.endswith("gamma"):  # LayerScale begins at 1e-5, which would hide what the blocks do
                nn.init.uniform_(value, 0.5, 1.5)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.1, 0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        return model.eval()

    def pixels(self, tiles: np.ndarray) -> torch.Tensor:
        """Return tiles resized with Pillow, cropped in the middle and normalised in float64."""
        start = (self.resize - 224) // 2
        found = []
        for tile in tiles:
            picture = Image.fromarray(tile)
            picture = picture if picture.width == self.resize else picture.resize((self.resize,) * 2, self.how)
            pixels = np.asarray(picture)[start : start + 224, start : start + 224].astype(np.float64) / 255
            found.append((pixels - np.array(self.norm[0])) / np.array(self.norm[1]))
        return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float()


LARGE = {"img_size": 224, "init_values": 1e-5, "num_classes": 0, "dynamic_img_size": True}
OPTIMUS = {"img_size": 224, "init_values": 1e-5, "num_classes": 0, "dynamic_img_size": False}
KAIKO = {"num_classes": 0, "dynamic_img_size": True}
PLAIN = {
    "uni": Plain("vit_large_patch16_224", LARGE, 256, IMAGENET, BILINEAR, 1024),
    "uni2-h": Plain(
        "vit_giant_patch14_224",
        {
            "img_size": 224,
            "patch_size": 14,
            "num_heads": 24,
            "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2,
            "reg_tokens": 8,
            "no_embed_class": True,
            "init_values": 1e-5,
            "num_classes": 0,
            "dynamic_img_size": True,
            **SWIGLU,
        },
        256, IMAGENET, BILINEAR, 1536,
    ),
    "virchow": Plain("vit_huge_patch14_224", VIRCHOW, 224, IMAGENET, BICUBIC, 2560, class_and_patches(1)),
    "virchow2": Plain(
        "vit_huge_patch14_224", {**VIRCHOW, "reg_tokens": 4}, 224, IMAGENET, BICUBIC, 2560, class_and_patches(5)
    ),
    "h-optimus-0": Plain("vit_giant_patch14_reg4_dinov2", OPTIMUS, 224, H_OPTIMUS, BICUBIC, 1536),
    "h-optimus-1": Plain("vit_giant_patch14_reg4_dinov2", OPTIMUS, 224, H_OPTIMUS, BICUBIC, 1536),
    "h0-mini": Plain(
        "vit_base_patch14_reg4_dinov2",
        {"img_size": 224, "init_values": 1e-5, "num_classes": 0, "mlp_ratio": 5.33334, "global_pool": "", **SWIGLU},
        224, H_OPTIMUS, BICUBIC, 768, class_token,
    ),
    "prov-gigapath": Plain(
        "vit_giant_patch14_dinov2",
        {"patch_size": 16, "img_size": 224, "embed_dim": 1536, "num_heads": 24, "mlp_ratio": 5.33334, "num_classes": 0},
        256, IMAGENET, BICUBIC, 1536, resize=256,
    ),
    "kaiko-s8": Plain("vit_small_patch8_224", KAIKO, 224, HALF, BILINEAR, 384),
    "kaiko-s16": Plain("vit_small_patch16_224", KAIKO, 224, HALF, BILINEAR, 384),
    "kaiko-b8": Plain("vit_base_patch8_224", KAIKO, 224, HALF, BILINEAR, 768),
    "kaiko-b16": Plain("vit_base_patch16_224", KAIKO, 224, HALF, BILINEAR, 768),
    "kaiko-l14": Plain("vit_large_patch14_reg4_dinov2", KAIKO, 224, HALF, BILINEAR, 1024),
    "gpfm": Plain(
        "vit_large_patch14_dinov2",
        {"img_size": 224, "init_values": 1e-5, "num_classes": 0},
        224, IMAGENET, BICUBIC, 1024,
    ),
    "mstar": Plain("vit_large_patch16_224", LARGE, 256, IMAGENET, BILINEAR, 1024),
    "lunit-s8": Plain("vit_small_patch8_224", {"num_classes": 0}, 224, LUNIT, BILINEAR, 384),
    "lunit-s16": Plain("vit_small_patch16_224", {"num_classes": 0}, 224, LUNIT, BILINEAR, 384),
    "dinov2-b": Plain("vit_base_patch14_dinov2", KAIKO, 224, IMAGENET, BICUBIC, 768),
    "dinov2-l": Plain("vit_large_patch14_dinov2", KAIKO, 224, IMAGENET, BICUBIC, 1024),
}  # fmt: skip


@pytest.fixture
def fewer_blocks(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, dict[str, Any]], None]:
    """Give a network of the table fewer blocks."""

    def change(name: str, fewer: dict[str, Any]) -> None:
        table = known._table()
        record = table[name].model_copy(update={"arguments": {**table[name].arguments, **fewer}})
        monkeypatch.setattr(known, "_table", lambda: {**table, name: record})

    return change


def some_tiles(side: int, count: int = 3) -> np.ndarray:
    """Return (n, H, W, 3) uint8 tiles with edges, so that the interpolations differ."""
    y, x = np.mgrid[:side, :side]
    tile = np.stack([(x * 5 + y) % 256, 255 - (y * 3) % 200, 128 + 120 * np.sin(x / 3) * np.cos(y / 5)], -1)
    return np.stack([np.roll(tile, 40 * k, axis=1) for k in range(count)]).astype(np.uint8)


def features_of(name: str, tiles: np.ndarray) -> np.ndarray:
    """Return float32 features on the CPU."""
    encoder = load_encoder(name)
    batch = torch.from_numpy(tiles).permute(0, 3, 1, 2)
    return EncoderOnDevice(encoder, torch.device("cpu"), torch.float32)(batch).numpy()


def test_every_encoder_of_timm_has_a_plain_loop() -> None:
    """Three more have tests of their own."""
    of_timm = {encoder.name for encoder in known_encoders() if encoder.library == "timm"}
    assert of_timm == {*PLAIN, "ctranspath", "resnet50", "retccl"}


@pytest.mark.parametrize("side", ["meant", "larger"])
@pytest.mark.parametrize("name", PLAIN)
def test_features_equal_a_plain_loop(name: str, side: str, tmp_path: Path, fewer_blocks: Any) -> None:
    """For tiles that the encoder is meant for, and for larger ones; where tiles are resized, to one grey level.

    With the other interpolation features would differ by 0.05, without a crop by 1.
    """
    plain = PLAIN[name]
    network, tiles = plain.network(), some_tiles(plain.tile if side == "meant" else 300)
    torch.save(network.state_dict(), tmp_path / "w.bin")
    fewer_blocks(name, plain.fewer)
    with torch.no_grad():
        expected = plain.pool(network(plain.pixels(tiles))).numpy()
    found = features_of(f"{name}@{tmp_path / 'w.bin'}", tiles)
    assert found.shape == expected.shape == (len(tiles), plain.width)
    resized = tiles.shape[1] != plain.resize
    np.testing.assert_allclose(found, expected, atol=1e-2 if resized else 2e-5, rtol=1e-4)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 1 - (2e-6 if resized else 1e-11)


def test_the_table_says_what_the_authors_do() -> None:
    """Size and mpp of the tiles, input, interpolation, statistics, width: of every encoder with a plain loop."""
    for name, plain in PLAIN.items():
        encoder = known.known_encoder(name)
        assert encoder is not None
        assert (encoder.tile_size, encoder.resize or 224, encoder.width) == (plain.tile, plain.resize, plain.width)
        assert (encoder.mean, encoder.std) == plain.norm
        assert encoder.interpolation == {BILINEAR: "bilinear", BICUBIC: "bicubic"}[plain.how]


class Stem(nn.Module):
    """The stem of CTransPath: two convolutions that halve the tile, then one of 1 px."""

    def __init__(self, embed_dim: int = 96, norm_layer: Any = None, **_: Any) -> None:
        super().__init__()
        self.grid_size, self.img_size, self.patch_size = (56, 56), (224, 224), (4, 4)
        self.proj = nn.Sequential(
            nn.Conv2d(3, 12, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 24, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.Conv2d(24, embed_dim, 1),
        )
        self.norm = norm_layer(embed_dim)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return self.norm(self.proj(tiles).permute(0, 2, 3, 1))


CTRANSPATH = Plain(
    "swin_tiny_patch4_window7_224", {"embed_layer": Stem}, 224, IMAGENET, BILINEAR, 768,
    fewer={"depths": (1, 1, 2, 1)},
)  # fmt: skip


def as_the_authors_write_it(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return weights with the names of timm 0.5: a stage ends with its downsampling, and buffers are stored."""
    older = {}
    for key, value in state.items():
        parts = key.split(".")
        if "downsample" in parts:
            parts[1] = str(int(parts[1]) - 1)
        older[".".join(parts)] = value
    older["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    older["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    return {"model": {key: value for key, value in older.items() if not key.startswith("head.")}}


@pytest.mark.parametrize("form", ["of the mirror", "of the authors"])
def test_ctranspath_is_a_swin_transformer_with_a_stem(form: str, tmp_path: Path, fewer_blocks: Any) -> None:
    """Its features are the mean of the last maps; both files of its weights can be read."""
    network = CTRANSPATH.network()
    state = {key: value for key, value in network.state_dict().items() if not key.startswith("head.")}
    torch.save(state if form == "of the mirror" else as_the_authors_write_it(state), tmp_path / "w.pth")
    fewer_blocks("ctranspath", CTRANSPATH.fewer)
    tiles = some_tiles(224)
    with torch.no_grad():
        expected = network.forward_features(CTRANSPATH.pixels(tiles)).mean((1, 2)).numpy()
    found = features_of(f"ctranspath@{tmp_path / 'w.pth'}", tiles)
    assert found.shape == (3, 768)
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-4)


def test_resnet50_ends_after_its_third_stage(tmp_path: Path) -> None:
    """The mean of its maps, as CLAM takes it."""
    plain = Plain("resnet50", {}, 256, IMAGENET, BILINEAR, 1024, fewer={})
    network, tiles = plain.network(), some_tiles(256)
    torch.save(network.state_dict(), tmp_path / "w.bin")
    stages = timm.create_model("resnet50", pretrained=False, features_only=True, out_indices=(3,)).eval()
    stages.load_state_dict(network.state_dict(), strict=False)
    with torch.no_grad():
        expected = stages(plain.pixels(tiles))[0].mean((2, 3)).numpy()
    found = features_of(f"resnet50@{tmp_path / 'w.bin'}", tiles)
    assert found.shape == (3, 1024)
    np.testing.assert_allclose(found, expected, atol=2e-2, rtol=1e-3)


def test_retccl_takes_tiles_of_256_px_whole(tmp_path: Path) -> None:
    """All stages, and the mean of the last maps."""
    network = Plain("resnet50", {"num_classes": 0}, 256, IMAGENET, BILINEAR, 2048, fewer={}).network()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    tiles = some_tiles(256)
    pixels = (tiles / 255 - np.array(IMAGENET[0])) / np.array(IMAGENET[1])
    with torch.no_grad():
        maps = network.forward_features(torch.from_numpy(pixels).permute(0, 3, 1, 2).float())
    found = features_of(f"retccl@{tmp_path / 'w.pth'}", tiles)
    np.testing.assert_allclose(found, maps.mean((2, 3)).numpy(), atol=1e-4, rtol=1e-3)


def test_positions_have_the_grid_of_the_weights(tmp_path: Path, fewer_blocks: Any) -> None:
    """A mirror may have those of 224 px in place of 518; a file of DINOv2's own program has other names."""
    plain, tiles = PLAIN["kaiko-l14"], some_tiles(224)
    small = Plain(plain.architecture, {**plain.arguments, "img_size": 224}, 224, HALF, BILINEAR, 1024)
    fewer_blocks("kaiko-l14", plain.fewer)
    for number, network in enumerate((small.network(), plain.network())):
        state = network.state_dict()
        if number:  # as DINOv2 writes it: the class token has a position, which is zero
            state["register_tokens"] = state.pop("reg_token")
            state["pos_embed"] = torch.cat([torch.zeros(1, 1, 1024), state["pos_embed"]], 1)
            state["mask_token"] = torch.zeros(1, 1024)
        torch.save(state, tmp_path / "w.pth")
        with torch.no_grad():
            expected = network(plain.pixels(tiles)).numpy()
        np.testing.assert_allclose(
            features_of(f"kaiko-l14@{tmp_path / 'w.pth'}", tiles), expected, atol=2e-5, rtol=1e-4
        )


def test_weights_of_another_network_are_refused(
    tmp_path: Path, fewer_blocks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the shapes or the names of their arrays; of the same architecture by the checksum of their file."""
    torch.save(PLAIN["virchow"].network().state_dict(), tmp_path / "virchow.bin")
    torch.save(PLAIN["mstar"].network().state_dict(), tmp_path / "mstar.bin")
    fewer_blocks("uni", TWO)
    with pytest.raises(ConfigError, match="weights of another network"):
        load_encoder(f"uni@{tmp_path / 'virchow.bin'}")
    load_encoder(f"uni@{tmp_path / 'mstar.bin'}")  # nothing tells them apart, unless their checksum is known
    table = known._table()
    digest = hashlib.sha256((tmp_path / "mstar.bin").read_bytes()).hexdigest()
    mstar = table["mstar"].model_copy(update={"sha256": {"model.safetensors": digest}})
    monkeypatch.setattr(known, "_table", lambda: {**table, "mstar": mstar})
    with pytest.raises(ConfigError, match=r"has the weights of mstar, not of uni .*MahmoodLab/UNI"):
        load_encoder(f"uni@{tmp_path / 'mstar.bin'}")


STATED = [encoder.name for encoder in known_encoders() if encoder.library == "timm" and encoder.parameters]


@pytest.mark.parametrize("name", STATED)
def test_the_number_of_parameters_is_the_published_one(name: str) -> None:
    """To two percent, of the whole network; no memory is used."""
    encoder = known.known_encoder(name)
    assert encoder is not None
    assert encoder.parameters is not None
    with torch.device("meta"):
        network = timm.create_model(encoder.architecture, pretrained=False, **timm_arguments(encoder, {}))
    assert sum(value.numel() for value in network.parameters()) == pytest.approx(encoder.parameters * 1e6, rel=0.02)


def test_weights_in_the_cache_of_the_hub_need_no_network(
    tmp_path: Path, fewer_blocks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the name is passed; also the configuration beside the weights is read from there."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "models--Wangyh--mSTAR"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("1" * 40)
    snapshot = folder / "snapshots" / ("1" * 40)
    snapshot.mkdir(parents=True)
    hub_folder(snapshot, "mstar", mean=[0.5] * 3).rename(snapshot / "pytorch_model.bin")
    fewer_blocks("mstar", TWO)
    with pytest.warns(EncoderSettingsWarning, match=r"config\.json of Wangyh/mSTAR says mean 0\.5 0\.5 0\.5"):
        encoder = load_encoder("mstar")
    assert (encoder.source, encoder.dim) == ("mstar", 1024)


def hub_folder(folder: Path, name: str, **said: Any) -> Path:
    """Write weights of a plain network with a configuration of timm, as on the hub; return the weights."""
    torch.save(PLAIN[name].network().state_dict(), folder / "w.bin")
    config = {"architecture": PLAIN[name].architecture, "pretrained_cfg": {"input_size": [3, 224, 224], **said}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "w.bin"


def test_the_table_has_precedence_over_the_hub(tmp_path: Path, fewer_blocks: Any) -> None:
    """A warning says which value of the hub is not used; equal ones are not mentioned."""
    fewer_blocks("mstar", TWO)
    file = hub_folder(tmp_path, "mstar", mean=[0.5] * 3, std=[0.5] * 3, interpolation="bilinear", crop_pct=0.9)
    words = r"mstar: config.json of Wangyh/mSTAR says mean 0.5 0.5 0.5, std .*, resize 248; used is mean 0.485"
    with pytest.warns(EncoderSettingsWarning, match=words) as seen:
        encoder = load_encoder(f"mstar@{file}")
    assert "interpolation" not in str(seen[0].message)
    assert (encoder.normalize.mean, encoder.resize) == (IMAGENET[0], None)
    file = hub_folder(tmp_path, "mstar", mean=IMAGENET[0], std=IMAGENET[1], interpolation="bilinear", crop_pct=1.0)
    load_encoder(f"mstar@{file}")  # warnings are errors
