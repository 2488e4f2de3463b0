"""The networks of known encoders, with their weights: of timm, of transformers, and of their authors' packages."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from slideio_pipe.errors import ConfigError, EncoderSettingsWarning, MissingExtraError, require, warn_caller
from slideio_pipe.features.encoders.conv_stem import ConvStem
from slideio_pipe.features.encoders.facts import EncoderFacts, weights_digest
from slideio_pipe.features.encoders.files import read_weights
from slideio_pipe.features.encoders.hubs import PREPROCESSOR, load_state, preprocessor, quiet_transformers
from slideio_pipe.features.encoders.known import KnownEncoder
from slideio_pipe.features.encoders.weight_files import (
    TIMM_SETTINGS,
    cached_file,
    fetch_settings,
    first_line,
    has_weights,
    install_command,
    refuse_others,
    unavailable,
    weights_file,
)

_NORMS = ("mean", "std")


class Selected(nn.Module):
    """A transformers model that returns one of its outputs."""

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__()
        self.model, self._output = model, output

    def forward(self, tiles: Tensor) -> Any:
        """Return (n, tokens, D) or (n, D)."""
        return getattr(self.model(pixel_values=tiles), self._output)


class ImageTower(nn.Module):
    """The image encoder of CONCH: its features before the projection to those of texts, not normalised."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tiles: Tensor) -> Any:
        """Return (n, D)."""
        return self.model.encode_image(tiles, proj_contrast=False, normalize=False)  # type: ignore[operator]


def from_known(encoder: KnownEncoder, weights: str = "", *, trust_remote_code: bool = False) -> EncoderFacts:
    """Return a known encoder, with weights of the hub or of a file or folder, and the settings of its tiles.

    Raise ConfigError if its weights cannot be had, with the ways to get them, or are of another network, or if it runs
    code of the hub and this is not allowed; MissingExtraError if what builds it is not installed.
    """
    if encoder.remote_code and not trust_remote_code:
        reason = f"its network is code in the repository {encoder.hub}, which would run on this machine"
        remedy = f"read it at {encoder.url}, then pass {{trust_remote_code=True}}"
        raise ConfigError(reason, slide=encoder.name, remedy=remedy)
    build = {"timm": _timm, "transformers": _transformers, "conch": _conch, "titan": _titan}[encoder.library]
    module, digest = build(encoder, weights)
    source = f"{encoder.name}@{weights}" if weights else encoder.name
    return EncoderFacts(module, encoder.name, source, digest, encoder.settings(), width=encoder.width)


def timm_arguments(encoder: KnownEncoder, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of an encoder for ``timm.create_model``, with layers in place of their names.

    The grid of positions is that of the weights if the network resamples it for its input.
    """
    layers = {"SwiGLUPacked": require("timm.layers", "timm").SwiGLUPacked, "SiLU": nn.SiLU, "ConvStem": ConvStem}
    found = {
        key: layers.get(value, value) if isinstance(value, str) else value for key, value in encoder.arguments.items()
    }
    if found.get("dynamic_img_size") and "img_size" not in found:
        side = _native_side(state)
        found |= {} if side is None else {"img_size": side}
    return found


def _native_side(state: Mapping[str, Any]) -> int | None:
    """Return the side of the tiles of a vision transformer's positions, px."""
    positions, kernel = state.get("pos_embed"), state.get("patch_embed.proj.weight")
    if positions is None or kernel is None:
        return None
    counts = (positions.shape[1], positions.shape[1] - 1)  # without and with one of the class token
    sides = [math.isqrt(count) for count in counts if math.isqrt(count) ** 2 == count]
    return sides[0] * int(kernel.shape[-1]) if sides else None


def _timm(encoder: KnownEncoder, weights: str) -> tuple[nn.Module, str]:
    timm = require("timm", "timm")
    file = weights_file(encoder, weights)
    state = read_weights(file)
    try:
        module = timm.create_model(encoder.architecture, pretrained=False, **timm_arguments(encoder, state))
    except Exception as error:  # an older timm raises whatever its networks do
        reason = f"timm {timm.__version__} cannot build it ({first_line(error)})"
        raise ConfigError(reason, slide=encoder.name, remedy="pip install --upgrade timm") from error
    load_state(module, _renamed(module, state, file), file)
    for name in encoder.removed:
        setattr(module, name, nn.Identity())
    _warn_other_settings(encoder, _timm_settings(file.with_name(TIMM_SETTINGS)), TIMM_SETTINGS)
    return module, weights_digest(module)


def _renamed(module: nn.Module, state: Mapping[str, Any], file: Path) -> Mapping[str, Any]:
    """Return weights with the names of the network's parameters, by timm's own rules for files of other programs."""
    rename = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if rename is None or set(module.state_dict()) == set(state):
        return state
    try:
        found: Mapping[str, Any] = rename(dict(state), module)
    except Exception as error:  # it reshapes what it finds
        reason = f"weights of another network ({first_line(error)})"
        raise ConfigError(reason, slide=str(file), remedy="check the name") from error
    return found


def _transformers(encoder: KnownEncoder, weights: str) -> tuple[nn.Module, str]:
    kind = getattr(require("transformers", "transformers"), encoder.architecture)
    place = _folder(encoder, weights)
    model = _pretrained(encoder, kind, place, **encoder.arguments)
    folder = Path(place) if Path(place).is_dir() else None
    file = cached_file(encoder, PREPROCESSOR) if folder is None else folder / PREPROCESSOR
    said = {} if file is None else preprocessor(str(file.parent))
    _warn_other_settings(encoder, _processor_settings(said), PREPROCESSOR)
    assert encoder.output is not None
    return Selected(model, encoder.output), weights_digest(model)


def _conch(encoder: KnownEncoder, weights: str) -> tuple[nn.Module, str]:
    package = _authors_package(encoder, "conch.open_clip_custom")
    file = weights_file(encoder, weights)
    model, _ = package.create_model_from_pretrained(encoder.architecture, checkpoint_path=str(file))
    return ImageTower(model), weights_digest(model.visual)


def _titan(encoder: KnownEncoder, weights: str) -> tuple[nn.Module, str]:
    model = _pretrained(encoder, require("transformers", "transformers").AutoModel, _folder(encoder, weights))
    module, _ = model.return_conch()
    return module, weights_digest(module)


def _authors_package(encoder: KnownEncoder, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        reason = f"{encoder.library} is needed for {encoder.name} and cannot be imported ({error})"
        raise MissingExtraError(reason, remedy=install_command(encoder)) from error


def _folder(encoder: KnownEncoder, weights: str) -> str:
    """Return the folder of a transformers model, or its name on the hub."""
    if not weights:
        return encoder.hub
    given = Path(weights).expanduser()
    folder = given.parent if given.is_file() else given
    if not (folder / "config.json").is_file():
        remedy = f"pass {encoder.name}@FOLDER of a copy of {encoder.hub}, with config.json and the weights"
        raise ConfigError("no transformers model is there", slide=str(given), remedy=remedy)
    for name in encoder.files:
        if (folder / name).is_file():
            refuse_others(encoder, folder / name)
    return str(folder)


def _pretrained(encoder: KnownEncoder, kind: Any, place: str, **arguments: Any) -> Any:
    """Return a transformers model from a folder, the hub's cache or the hub."""
    more = arguments | ({"trust_remote_code": True} if encoder.remote_code else {}) | {"output_loading_info": True}
    with quiet_transformers():
        try:
            return _complete(encoder, place, *kind.from_pretrained(place, local_files_only=True, **more))
        except ConfigError:
            raise
        except Exception as error:  # transformers and the hub raise a dozen classes
            if Path(place).is_dir() or (has_weights(encoder) and not isinstance(error, OSError)):  # OSError: no file
                raise _not_built(encoder, place, error) from error
        try:
            model, loading = kind.from_pretrained(place, **more)
        except Exception as error:
            here = has_weights(encoder)
            raise (_not_built(encoder, place, error) if here else unavailable(encoder, error)) from error
    fetch_settings(encoder, PREPROCESSOR)
    return _complete(encoder, place, model, loading)


def _complete(encoder: KnownEncoder, place: str, model: Any, loading: Mapping[str, Any]) -> Any:
    """Return a transformers model; raise ConfigError if some of its weights are missing, which are then random."""
    missing = sorted(loading["missing_keys"])
    if missing and not encoder.remote_code:  # code of a repository may compute some of its parameters
        reason = f"the weights lack {', '.join(missing[:3])}" + (f" and {len(missing) - 3} more" if missing[3:] else "")
        raise ConfigError(reason, slide=place, remedy=f"pass the weights of {encoder.name}: {encoder.url}")
    return model


def _not_built(encoder: KnownEncoder, place: str, error: Exception) -> ConfigError:
    version = require("transformers", "transformers").__version__
    reason = f"transformers {version} cannot build {encoder.name} from this ({first_line(error)})"
    hint = encoder.notes.get("library", "").removesuffix(".")
    return ConfigError(reason, slide=place, remedy=hint or f"copy {encoder.hub} again")


def _timm_settings(file: Path) -> dict[str, Any]:
    """Return what timm's configuration beside weights of the hub says of tiles; {} without one."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["pretrained_cfg"]
        size = found["input_size"][-1]
        said = {key: found[key] for key in (*_NORMS, "interpolation") if key in found} | {"input_size": size}
        if "crop_pct" in found:
            said["resize"] = math.floor(size / found["crop_pct"])
    except (OSError, ValueError, KeyError, TypeError, IndexError, ZeroDivisionError):  # a configuration of another kind
        return {}
    return said


def _processor_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a processor of transformers says of tiles."""
    names = {"image_mean": "mean", "image_std": "std"}
    return {ours: config[theirs] for theirs, ours in names.items() if config.get(theirs) is not None}


def _warn_other_settings(encoder: KnownEncoder, said: Mapping[str, Any], file: str) -> None:
    """Warn of settings on the hub that contradict the table's, which are used."""
    ours = encoder.settings() | {"resize": encoder.resize or encoder.input_size}
    others = {key: value for key, value in said.items() if not _alike(value, ours[key])}
    if others:
        theirs = ", ".join(f"{key} {_shown(value)}" for key, value in others.items())
        used = ", ".join(f"{key} {_shown(ours[key])}" for key in others)
        warn_caller(
            EncoderSettingsWarning(
                f"{encoder.name}: {file} of {encoder.hub} says {theirs}; used is {used} (slideio-pipe encoders "
                f"{encoder.name} says why)"
            )
        )


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(math.isclose(a, b, abs_tol=1e-3) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def _shown(value: Any) -> str:
    return " ".join(f"{number:.4g}" for number in value) if isinstance(value, list | tuple) else str(value)
