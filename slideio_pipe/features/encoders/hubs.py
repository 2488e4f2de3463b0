"""Networks by name: timm's and those of Hugging Face, from their caches or from local weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from slideio_pipe.errors import ConfigError, import_remedy, require
from slideio_pipe.features.encoders.facts import EncoderFacts, weights_digest
from slideio_pipe.features.encoders.files import read_weights

PREPROCESSOR = "preprocessor_config.json"
# Names of the class token in networks that have one.
_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")


class Tokens(nn.Module):
    """A transformers model: returns its hidden states if it has a class token, in front, else its pooled output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        names = (name.rsplit(".", 1)[-1] for name, _ in model.named_parameters())
        self.has_class_token = any(name in _CLASS_TOKENS for name in names)

    def forward(self, tiles: Tensor) -> Any:
        """Return (n, tokens, D), (n, D) or (n, D, h, w)."""
        found = self.model(pixel_values=tiles)
        hidden, summary = getattr(found, "last_hidden_state", None), getattr(found, "pooler_output", None)
        if summary is None or self.has_class_token:
            return found if hidden is None else hidden
        return summary.flatten(1)


def from_timm(name: str) -> EncoderFacts:
    """Return ``NAME`` of timm with weights from its hub, or ``NAME@weights.safetensors`` with local weights.

    Raise MissingExtraError if timm cannot be imported, ConfigError if timm has no such network, or the weights are of
    another network.
    """
    timm = require("timm", "timm")
    called, _, file = name.partition("@")
    try:
        module = timm.create_model(called, pretrained=not file, num_classes=0)
    except Exception as error:  # timm, its hub and torch raise a dozen classes for a wrong name or weights
        raise _unavailable(f"timm:{name}", error) from error
    config = dict(module.pretrained_cfg)
    if file:
        weights = Path(file).expanduser()
        load_state(module, read_weights(weights), weights, str(config.get("classifier") or "head"))
    return EncoderFacts(module, _last(called), f"timm:{name}", weights_digest(module), config)


def load_state(module: nn.Module, state: Mapping[str, Any], file: Path, head: str = "head") -> None:
    """Load the weights of a file into a network: all must be present, and only those of a classifier may be unused.

    Without the classifier, timm would leave weights that a file lacks at random values.
    """
    try:
        found = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # other shapes
        raise ConfigError(f"weights of another network ({error})", slide=str(file), remedy="check the name") from error
    unused = [key for key in found.unexpected_keys if not key.startswith((f"{head}.", "head.", "fc."))]
    for what, keys in (("lack", found.missing_keys), ("have the unused", unused)):
        if keys:
            reason = f"the weights {what} {', '.join(keys[:3])}" + (f" and {len(keys) - 3} more" if keys[3:] else "")
            remedy = "check the name; or make the network with timm.create_model and pass it to load_encoder"
            raise ConfigError(reason, slide=str(file), remedy=remedy)


def from_hugging_face(name: str) -> EncoderFacts:
    """Return the model in a folder written by ``save_pretrained``, or with a name on the hub.

    Raise MissingExtraError if transformers is not installed, ConfigError if there is no such model, or it cannot be
    read.
    """
    transformers = require("transformers", "transformers")
    folder = Path(name).expanduser()
    place = str(folder) if folder.is_dir() else name
    try:
        with quiet_transformers():
            model = transformers.AutoModel.from_pretrained(place)
    except Exception as error:  # as with timm
        raise _unavailable(f"hf:{name}", error) from error
    module = Tokens(model)
    pooling = "class" if module.has_class_token else "none"
    return EncoderFacts(module, _last(place), f"hf:{name}", weights_digest(model), preprocessor(place), pooling)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Load models without progress bars, which transformers shows for weights on disk as well."""
    log = require("transformers", "transformers").utils.logging
    shown = log.is_progress_bar_enabled()
    log.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            log.enable_progress_bar()


def preprocessor(place: str) -> Mapping[str, Any]:
    """Return the configuration of a model's image processor; {} without one."""
    file = Path(place) / PREPROCESSOR
    if not Path(place).is_dir():
        hub = require("huggingface_hub", "transformers")
        try:
            file = Path(hub.hf_hub_download(place, PREPROCESSOR))
        except Exception:  # a model without one: missing values are reported by name
            return {}
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be read ({error})", slide=str(file), remedy="copy the model again") from error
    return found if isinstance(found, dict) else {}


def _unavailable(source: str, error: Exception) -> ConfigError:
    message = next(iter(str(error).strip().splitlines()), type(error).__name__)
    remedy = (
        "check the name, download it on a machine with a network, or pass local weights (timm:NAME@FILE, hf:FOLDER)"
    )
    if "torchvision" in message:
        return ConfigError(f"cannot be loaded ({message})", slide=source, remedy=import_remedy("torchvision", error))
    return ConfigError(f"no such encoder ({message})", slide=source, remedy=remedy)


def _last(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].rsplit(":", 1)[-1]
