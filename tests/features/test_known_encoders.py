"""Encoders by name: the table, where weights are found, and what is said without them."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import run
from safetensors.torch import load_file, save_file
from tiny_encoders import write_torchscript
from torch import nn

from slideio_pipe import TileBag, TileGrid, load_encoder, open_features, open_slide
from slideio_pipe.commands.train import train
from slideio_pipe.commands.words import command_words
from slideio_pipe.errors import ConfigError, EncoderSettingsWarning, MissingExtraError, worded
from slideio_pipe.features.cohort_work import FeatureWork
from slideio_pipe.features.encoders import EncoderOnDevice, known
from slideio_pipe.features.encoders.conv_stem import ConvStem
from slideio_pipe.features.encoders.known import known_encoder, known_encoders
from slideio_pipe.features.encoders.weight_files import has_weights, weights_file
from slideio_pipe.mil.config import load_train_config
from slideio_pipe.mil.models.tile_encoder import tile_encoder
from slideio_pipe.synthetic.slide import write_synthetic_slide

CPU = torch.device("cpu")
ASKED_FOR = {
    "uni",
    "uni2-h",
    "virchow",
    "virchow2",
    "conch",
    "conch-v1.5",
    "h-optimus-0",
    "h-optimus-1",
    "h0-mini",
    "prov-gigapath",
    "phikon",
    "phikon-v2",
    "hibou-b",
    "hibou-l",
    "ctranspath",
    "retccl",
    "kaiko-s8",
    "kaiko-s16",
    "kaiko-b8",
    "kaiko-b16",
    "kaiko-l14",
    "midnight",
    "gpfm",
    "lunit-s8",
    "lunit-s16",
    "resnet50",
    "mstar",
    "plip",
    "dinov2-b",
    "dinov2-l",
}


# --- the table


def test_the_encoders_of_the_field_have_names() -> None:
    """As people write them."""
    assert {e.name for e in known_encoders()} == ASKED_FOR
    for written, name in {
        "UNI": "uni",
        "uni_v2": "uni2-h",
        "Gigapath": "prov-gigapath",
        "conch_v15": "conch-v1.5",
        "conchv1_5": "conch-v1.5",
        "H_optimus_0": "h-optimus-0",
        "phikon_v2": "phikon-v2",
        "kaiko-vitb8": "kaiko-b8",
        "midnight-12k": "midnight",
    }.items():
        found = known_encoder(written)
        assert found is not None
        assert found.name == name


def test_every_record_is_complete() -> None:
    """Names are of one encoder; checksums are SHA-256; every value that only some sources state has a note."""
    names = [name for encoder in known_encoders() for name in (encoder.name, *encoder.aliases)]
    assert len(names) == len({known._plain(name) for name in names})
    for encoder in known_encoders():
        assert encoder.sources, encoder.name
        assert encoder.files, encoder.name
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in encoder.sha256.values()), encoder.name
        assert bool(encoder.sha256) == ("sha256" in encoder.notes), encoder.name
        assert encoder.resize is None or encoder.resize > encoder.input_size, encoder.name
        assert ("mean" in encoder.pooling) <= (encoder.prefix_tokens >= 1), encoder.name
        assert (encoder.gated is not None) or "gated" in encoder.notes, encoder.name
        assert (encoder.licence != "unclear") or "licence" in encoder.notes, encoder.name
        assert (encoder.mpp is not None) or "mpp" in encoder.notes, encoder.name
        assert set(encoder.notes) <= {*type(encoder).model_fields, "library", "address"}, encoder.name


def test_similar_names_are_suggested(tmp_path: Path) -> None:
    """And a file of this name, of any kind, has precedence over the table."""
    with pytest.raises(ConfigError, match=r"phikon2v: no encoder has this name, and no file; did you mean phikon-v2"):
        load_encoder("phikon2v")
    with pytest.raises(ConfigError, match=r"no encoder is there.*slideio-pipe encoders lists"):
        load_encoder(tmp_path / "nowhere.pt2")


def test_a_file_with_the_name_of_an_encoder_is_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in earlier versions."""
    monkeypatch.chdir(tmp_path)
    Path("uni").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="uni: neither TorchScript nor an exported program"):
        load_encoder("uni")


# --- weights


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, without a network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put(hub: Path, repository: str, name: str, content: bytes = b"weights") -> Path:
    """Write a file into the hub's cache as its client does."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text("0" * 40)
    file = folder / "snapshots" / ("0" * 40) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def test_weights_in_the_cache_of_the_hub_are_found(hub: Path) -> None:
    """The first of the files that an encoder may have; nothing is downloaded."""
    virchow = known_encoder("virchow")
    assert virchow is not None
    assert not has_weights(virchow)
    bin_ = put(hub, "paige-ai/Virchow", "pytorch_model.bin")
    assert has_weights(virchow)
    assert weights_file(virchow, "") == bin_
    assert weights_file(virchow, "") != put(hub, "paige-ai/Virchow", "model.safetensors") == weights_file(virchow, "")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "uni",
            r"uni: its weights are not on this machine.*accept the licence \(CC-BY-NC-ND-4.0\) at "
            r"https://huggingface.co/MahmoodLab/UNI and log in \(hf auth login\); or download pytorch_model.bin from "
            r".* and pass uni@FILE",
        ),
        ("conch", r"at https://huggingface.co/MahmoodLab/CONCH and log in"),
        ("kaiko-s8", r"run it once on a machine with a network, or .*kaiko-s8@FILE \(also: vits8.pth of release"),
        ("phikon", r"run it once on a machine with a network, or .*phikon@FOLDER of a copy of owkin/phikon"),
    ],
)
def test_missing_weights_are_an_error_with_the_ways_to_get_them(hub: Path, name: str, words: str) -> None:
    """The licence to accept, the login, the file to download."""
    encoder = known_encoder(name)
    assert encoder is not None
    load = load_encoder if encoder.library == "transformers" else lambda _: weights_file(encoder, "")
    with pytest.raises(ConfigError, match=words):
        load(name)
    assert not hub.exists()


def test_weights_of_the_caller_must_be_there(tmp_path: Path) -> None:
    """A file, or a folder with the file of the hub."""
    uni = known_encoder("uni")
    assert uni is not None
    with pytest.raises(ConfigError, match=r"w\.bin: no weights are there"):
        weights_file(uni, str(tmp_path / "w.bin"))
    (tmp_path / "pytorch_model.bin").write_bytes(b"weights")
    assert weights_file(uni, str(tmp_path)) == tmp_path / "pytorch_model.bin"


def test_a_file_known_to_be_of_another_encoder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known by its checksum: the first digits, as of CHIEF's file, or all."""
    file = tmp_path / "w.pth"
    file.write_bytes(b"weights")
    ctranspath = known_encoder("ctranspath")
    assert ctranspath is not None
    assert weights_file(ctranspath, str(file)) == file
    start = hashlib.sha256(b"weights").hexdigest()[:8]
    other = ctranspath.model_copy(update={"others_sha256": {"CHIEF": start}})
    with pytest.raises(ConfigError, match=rf"w\.pth: has the weights of CHIEF, not of ctranspath \(SHA-256 {start}"):
        weights_file(other, str(file))


@pytest.mark.skipif(find_spec("timm") is not None, reason="timm is there")
def test_a_missing_timm_is_an_error_with_the_install_command(tmp_path: Path) -> None:
    """Before weights are looked for."""
    with pytest.raises(
        MissingExtraError, match=r"timm is needed and not installed; pip install \"slideio-pipe\[timm\]"
    ):
        load_encoder(f"uni@{tmp_path / 'nowhere.bin'}")


# --- networks of transformers


def tiles(count: int = 3, side: int = 224) -> torch.Tensor:
    """Return (n, 3, H, W) uint8 noise."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8))


def encode(encoder: Any, batch: torch.Tensor) -> np.ndarray:
    """Return float32 features on the CPU."""
    return EncoderOnDevice(encoder, CPU, torch.float32)(batch).numpy()


def normalised(batch: torch.Tensor, mean: Any, std: Any) -> torch.Tensor:
    """Return tiles normalised in float64."""
    pixels = batch.double() / 255
    return ((pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]).float()


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
ONE_LAYER = {"num_hidden_layers": 1, "image_size": 224}


def plain_model(transformers: Any, name: str) -> tuple[Any, Any]:
    """Return a network with one layer and random weights, and the plain loop over it."""
    torch.manual_seed(0)
    if name == "phikon":
        config = transformers.ViTConfig(hidden_size=768, patch_size=16, **ONE_LAYER)
        model = transformers.ViTModel(config, add_pooling_layer=False)
        norm, pool = IMAGENET, lambda out: out.last_hidden_state[:, 0]
    elif name == "phikon-v2":
        sizes = {"hidden_size": 1024, "num_attention_heads": 16, "patch_size": 16}
        model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes, **ONE_LAYER))
        norm, pool = IMAGENET, lambda out: out.last_hidden_state[:, 0]
    elif name == "midnight":
        sizes = {"hidden_size": 1536, "num_attention_heads": 24, "patch_size": 14, "use_swiglu_ffn": True}
        model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes, **ONE_LAYER))

        def pool(out: Any) -> Any:
            tokens = out.last_hidden_state
            return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1)

        norm = (0.5,) * 3, (0.5,) * 3
    else:  # plip
        config = transformers.CLIPConfig(
            vision_config={"patch_size": 32, "hidden_size": 768, "num_attention_heads": 12, **ONE_LAYER},
            text_config={"num_hidden_layers": 1, "vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2},
        )
        model = transformers.CLIPModel(config)
        norm = CLIP

        def run(batch: torch.Tensor) -> Any:
            states = model.vision_model(pixel_values=normalised(batch, *norm))
            return model.visual_projection(states.pooler_output)

        return model.eval(), run
    return model.eval(), lambda batch: pool(model(pixel_values=normalised(batch, *norm)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["phikon", "phikon-v2", "midnight", "plip"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_networks_of_transformers_equal_a_plain_loop(name: str, tmp_path: Path) -> None:
    """Architectures, statistics and pooling as their authors state them; one layer, random weights."""
    transformers = pytest.importorskip("transformers")
    model, run = plain_model(transformers, name)
    model.save_pretrained(tmp_path)
    encoder = load_encoder(f"{name}@{tmp_path}")
    with torch.no_grad():
        expected = run(tiles()).numpy()
    found = encode(encoder, tiles())
    assert (encoder.name, encoder.dim, encoder.source) == (name, expected.shape[1], f"{name}@{tmp_path}")
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_processor_that_says_otherwise_is_not_used(tmp_path: Path) -> None:
    """A warning names its statistics and those of the table."""
    transformers = pytest.importorskip("transformers")
    plain_model(transformers, "phikon")[0].save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.229, 0.224, 0.225]}'
    )
    words = r"phikon: preprocessor_config.json of owkin/phikon says mean 0.5 0.5 0.5; used is mean 0.485 0.456 0.406 "
    with pytest.warns(EncoderSettingsWarning, match=words):
        assert load_encoder(f"phikon@{tmp_path}").normalize.mean == IMAGENET[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_model_of_another_width_is_refused(tmp_path: Path) -> None:
    """Phikon has 768 features; with a pooling of the caller the width is that of the caller."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(hidden_size=48, num_attention_heads=2, patch_size=16, **ONE_LAYER)
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="phikon has 768 features per tile, and these weights give 48"):
        load_encoder(f"phikon@{tmp_path}")
    with pytest.raises(ConfigError, match=r"no transformers model is there.*phikon@FOLDER"):
        load_encoder(f"phikon@{tmp_path / 'nothing'}")
    assert load_encoder(f"phikon@{tmp_path}", pooling="class+mean").dim == 96


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_model_in_the_cache_of_the_hub_needs_no_network(hub: Path, phikon: Path) -> None:
    """Only its name is passed; features are those of the same folder."""
    for file in phikon.iterdir():
        put(hub, "owkin/phikon", file.name, file.read_bytes())
    encoder = load_encoder("phikon")
    assert (encoder.name, encoder.source) == ("phikon", "phikon")
    np.testing.assert_array_equal(encode(encoder, tiles(1)), encode(load_encoder(f"phikon@{phikon}"), tiles(1)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_model_with_missing_weights_is_refused(tmp_path: Path, phikon: Path) -> None:
    """Which transformers would leave at random values."""
    state = load_file(phikon / "model.safetensors")
    lost = next(key for key in state if "layernorm" in key and key.endswith("weight"))
    save_file(
        {key: value for key, value in state.items() if key != lost}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    (tmp_path / "config.json").write_bytes((phikon / "config.json").read_bytes())
    with pytest.raises(ConfigError, match=r"the weights lack .*layernorm.*weight; pass the weights of phikon"):
        load_encoder(f"phikon@{tmp_path}")


REMOTE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

class HibouConfig(PretrainedConfig):
    model_type = "hibou_test"

class Hibou(PreTrainedModel):
    config_class = HibouConfig
    def __init__(self, config):
        super().__init__(config)
        self.layer = torch.nn.Linear(3, 768)
        self.post_init()
    def forward(self, pixel_values):
        return BaseModelOutputWithPooling(pooler_output=self.layer(pixel_values.mean((2, 3))))
"""


def remote_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> Path:
    """Return a copy of a repository whose network is code."""
    pytest.importorskip("transformers")
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder / "modules"))
    copy = folder / "repository"
    copy.mkdir()
    (copy / "modeling_hibou.py").write_text(code)
    auto = {"AutoConfig": "modeling_hibou.HibouConfig", "AutoModel": "modeling_hibou.Hibou"}
    (copy / "config.json").write_text(json.dumps({"model_type": "hibou_test", "auto_map": auto}))
    state = {"layer.weight": torch.randn(768, 3), "layer.bias": torch.zeros(768)}
    save_file(state, copy / "model.safetensors", {"format": "pt"})
    return copy


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_code_of_a_repository_runs_only_if_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hibou's network is code in its repository."""
    folder = remote_folder(tmp_path, monkeypatch, REMOTE)
    weight = load_file(folder / "model.safetensors")["layer.weight"]
    with pytest.raises(
        ConfigError, match=r"hibou-b: its network is code in the repository histai/hibou-b.*trust_remote"
    ):
        load_encoder(f"hibou-b@{folder}")
    encoder = load_encoder(f"hibou-b@{folder}", trust_remote_code=True)
    statistics = (0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816)
    expected = normalised(tiles(), *statistics).mean((2, 3)) @ weight.T
    np.testing.assert_allclose(encode(encoder, tiles()), expected.numpy(), atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_code_that_fails_is_not_called_missing_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the message of transformers, and what is known of its versions."""
    folder = remote_folder(tmp_path, monkeypatch, "import of_an_older_version\n" + REMOTE)
    words = (
        r"cannot build hibou-b from this \(.*of_an_older_version.*the code is the repository's; transformers before 5"
    )
    with pytest.raises(ConfigError, match=words):
        load_encoder(f"hibou-b@{folder}", trust_remote_code=True)


TITAN = (
    REMOTE
    + """
    def return_conch(self):
        class Conch(torch.nn.Module):
            def __init__(self, layer):
                super().__init__()
                self.layer = layer
            def forward(self, tiles):
                return self.layer(tiles.mean((2, 3)))
        return Conch(self.layer), None
"""
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_conch_is_a_part_of_titan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 512 px are resized to 448, and normalised with ImageNet's statistics, not those of CLIP."""
    folder = remote_folder(tmp_path, monkeypatch, TITAN)
    encoder = load_encoder(f"conch-v1.5@{folder}", trust_remote_code=True)
    grey = torch.full((2, 3, 512, 512), 90, dtype=torch.uint8)
    weight = load_file(folder / "model.safetensors")["layer.weight"]
    expected = normalised(grey[:, :, :448, :448], *IMAGENET).mean((2, 3)) @ weight.T
    np.testing.assert_allclose(encode(encoder, grey), expected.numpy(), atol=1e-4)
    assert (encoder.tile_size, encoder.input_size, encoder.dim) == (512, 448, 768)


# --- networks of their authors


CONCH = """
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.visual = torch.nn.Linear(3, 512)
        self.proj = torch.nn.Linear(512, 4)

    def encode_image(self, image, proj_contrast=True, normalize=True):
        found = self.visual(image.mean((2, 3)))
        found = self.proj(found) if proj_contrast else found
        return torch.nn.functional.normalize(found, dim=1) if normalize else found


def create_model_from_pretrained(name, checkpoint_path):
    assert name == "conch_ViT-B-16"
    model = Model()
    model.load_state_dict(torch.load(checkpoint_path, weights_only=True))
    return model.eval(), None
"""


def test_conch_is_built_by_its_authors_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with the same functions, as the real one cannot be installed: neither projected nor normalised."""
    with pytest.raises(
        MissingExtraError, match=r"conch is needed.*pip install git\+https://github.com/mahmoodlab/CONCH"
    ):
        load_encoder(f"conch@{tmp_path / 'w.bin'}")
    (tmp_path / "conch").mkdir()
    (tmp_path / "conch" / "__init__.py").write_text("")
    (tmp_path / "conch" / "open_clip_custom.py").write_text(CONCH)
    monkeypatch.syspath_prepend(tmp_path)
    weight = torch.randn(512, 3)
    state = {"visual.weight": weight, "visual.bias": torch.zeros(512)}
    state |= {"proj.weight": torch.randn(4, 512), "proj.bias": torch.zeros(4)}
    torch.save(state, tmp_path / "w.bin")
    encoder = load_encoder(f"conch@{tmp_path / 'w.bin'}")
    expected = normalised(tiles(2, 448), *CLIP).mean((2, 3)) @ weight.T
    np.testing.assert_allclose(encode(encoder, tiles(2, 448)), expected.numpy(), atol=1e-4)
    assert (encoder.tile_size, encoder.mpp, encoder.precision) == (512, 0.5, "float32")


def test_the_stem_of_ctranspath_halves_a_tile_twice() -> None:
    """Convolutions of 12 and 24 channels, then 96 channels per token."""
    stem = ConvStem(norm_layer=nn.LayerNorm, output_fmt="NHWC", strict_img_size=True).eval()
    shapes = {name: tuple(value.shape) for name, value in stem.named_parameters() if value.ndim == 4}
    assert shapes == {"proj.0.weight": (12, 3, 3, 3), "proj.3.weight": (24, 12, 3, 3), "proj.6.weight": (96, 24, 1, 1)}
    assert stem(torch.zeros(2, 3, 224, 224)).shape == (2, 56, 56, 96)
    assert stem.grid_size == (56, 56)


# --- features


@pytest.fixture(scope="module")
def phikon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the network of phikon, of one layer with random weights."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("phikon")
    plain_model(transformers, "phikon")[0].save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_encoders_by_name_are_loaded_again_in_worker_processes(phikon: Path) -> None:
    """What is sent is the name, not the weights; the settings given here are those there."""
    encoder = load_encoder(f"mine=phikon@{phikon}", mpp=0.25, precision="bfloat16")
    work = FeatureWork((encoder,), None, None, None, "float32")
    sent = pickle.dumps(work)
    assert len(sent) < 10_000
    (found,) = pickle.loads(sent).encoders
    assert (found.name, found.digest, found.mpp, found.precision) == ("mine", encoder.digest, 0.25, "bfloat16")
    np.testing.assert_array_equal(encode(found, tiles(1)), encode(encoder, tiles(1)))


@pytest.mark.system
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_slides_are_read_as_the_encoder_needs_them(phikon: Path, tmp_path: Path) -> None:
    """A slide at 0.25 µm is read in tiles of 224 px at 0.5 µm; two encoders for different mpp are refused."""
    transformers = pytest.importorskip("transformers")
    model, run_plain = plain_model(transformers, "phikon")
    model.save_pretrained(tmp_path / "phikon")
    write_synthetic_slide(tmp_path / "a.svs", size=(1024, 1024), seed=3, mpp=0.25)
    out, source = tmp_path / "f", f"phikon@{tmp_path / 'phikon'}"
    run("features", tmp_path / "a.svs", "--encoder", source, "--out", out, "--device", "cpu", "--tissue", "none")
    found = open_features(out / "a.features.zarr", "phikon")
    assert found.tile_size_level0 == pytest.approx(448)
    view = open_slide(tmp_path / "a.svs").view(mpp=0.5)
    batch = torch.from_numpy(TileBag(view, TileGrid(view, tile_size=224))[:]).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = run_plain(batch).numpy()
    np.testing.assert_allclose(found.features.astype(np.float32), expected, atol=5e-3)
    (tmp_path / "b.pt.json").write_text('{"mean": 0.5, "std": 0.5, "input_size": 32, "mpp": 1.0}')
    write_torchscript(tmp_path / "b.pt")
    done = run(
        *("features", tmp_path / "a.svs", "--encoder", source, "--encoder", tmp_path / "b.pt", "--out", tmp_path / "g"),
        code=2,
    )
    text = " ".join(done.output.split())
    assert "phikon at 0.5 µm and b at 1 µm; compute their features one after the other, or pass --mpp 0.5" in text


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_training_runs_code_of_a_repository_only_if_its_settings_allow_it() -> None:
    """The setting is named by the error, and is not written where it is not used."""
    with pytest.raises(ConfigError, match="trust_remote_code=True"):
        tile_encoder(None, "hibou-b", None)
    assert "trust_remote_code" not in load_train_config({}).model_dump()["encoder"]
    allowed = load_train_config({"encoder": {"source": "hibou-b", "trust_remote_code": True}})
    assert allowed.model_dump()["encoder"]["trust_remote_code"] is True
    with (
        worded(lambda _: command_words(train)),
        pytest.raises(ConfigError, match=r"--set encoder\.trust_remote_code=True"),
    ):
        tile_encoder(None, "hibou-b", None)
