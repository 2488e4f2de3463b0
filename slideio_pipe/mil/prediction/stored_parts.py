"""Model and encoder of a checkpoint, with its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slideio_pipe.errors import ConfigError, SlideioPipeWarning, warn_caller
from slideio_pipe.features.encoders import Encoder
from slideio_pipe.mil.config import TrainConfig, is_passed
from slideio_pipe.mil.models.mil_model import build_model
from slideio_pipe.mil.models.own_model import own_model
from slideio_pipe.mil.models.tile_encoder import TileEncoder, tile_encoder
from slideio_pipe.mil.own_parts import modules_of
from slideio_pipe.parts.import_path import code_digest, import_object, is_imported
from slideio_pipe.streaming.normalize import Normalize


def stored_model(path: Path, config: TrainConfig, given: Any, width: int, outputs: int) -> nn.Module:
    """Return the model without its weights."""
    name = config.model.name
    if given is None and is_passed(name):
        reason = f"the training was given a model of its own, {name.strip('<>')}, which no checkpoint can make"
        raise ConfigError(reason, slide=str(path), remedy="pass it, its class, or its import path as {model=…}")
    if given is None and not config.model.is_own:
        return build_model(name, width, outputs, **config.model.arguments())
    if not config.model.is_own:
        reason = f"its model is {name}, and another one is passed"
        raise ConfigError(reason, slide=str(path), remedy="leave {model=} out")
    if isinstance(given, str | None):
        given = import_object(given or name, modules_of(config))
    settings = {} if isinstance(given, nn.Module) else config.model.arguments()
    return own_model(given, width, outputs, settings, name)


def warn_changed(path: Path, config: TrainConfig, recorded: Mapping[str, Any]) -> None:
    """Warn if the code of a model or an encoder by import path has changed since the training."""
    now: dict[str, str] = {}
    for key in ("model.name", "encoder.source"):
        if key in config.import_paths and is_imported(config.import_paths[key]):
            now |= code_digest(config.import_paths[key])
    before = recorded.get("code") or {}
    others = sorted(file for file, digest in now.items() if before.get(file, digest) != digest)
    if others:
        reason = f"{path}: {', '.join(others)} has changed since the training: predictions may be others"
        warn_caller(SlideioPipeWarning(reason))


def stored_encoder(
    path: Path,
    recorded: Mapping[str, Any],
    known: Mapping[str, Any],
    given: nn.Module | Encoder | str | Path | None,
    normalize: Normalize | None,
    trust_remote_code: bool,
    folders: Sequence[Path] = (),
) -> TileEncoder | None:
    """Return the encoder, with its trained weights."""
    network = given if isinstance(given, nn.Module | Encoder) else None
    source = None if given is None or network is not None else str(given)
    about = recorded.get("encoder")
    if about is None:
        if given is None:
            return None
        if recorded.get("scale") is not None:
            reason = f"the model takes features of one of several magnifications, {recorded.get('features')}"
            raise ConfigError(reason, slide=str(path), remedy="compute the features, and leave {encoder=} out")
        return tile_encoder(network, source, normalize, trust_remote_code=trust_remote_code, folders=folders)
    if given is None and about["source"] is None:
        reason = f"the training was given a network of its own, {about['name']}, which no checkpoint can make"
        raise ConfigError(reason, slide=str(path), remedy="pass that network as {encoder=…}")
    facts = about["normalize"]
    stated = Normalize(facts["mean"], facts["std"], rescale=facts["rescale"])
    place = source or about["source"]
    found = tile_encoder(network, place, stated, trust_remote_code=trust_remote_code, folders=folders)
    fill(found.module, known["encoder"], path, f"encoder {about['name']}")
    tiles = about["input_size"], about["interpolation"]
    return TileEncoder(found.module, stated, about["name"], *tiles, about["source"], about.get("resize"))


def check_maker(
    path: Path, tiles: TileEncoder, recorded: Mapping[str, Any], config: TrainConfig, device: torch.device
) -> None:
    """Refuse an encoder that did not compute the training's features, as far as this can be detected."""
    width = tiles.width(tiles.input_size or config.grid.tile_size, device) * max(1, len(recorded.get("context") or ()))
    if width != recorded["width"]:
        reason = f"{tiles.name} makes {width:,} features per tile, the model takes {recorded['width']:,}"
        raise ConfigError(reason, slide=str(path), remedy="pass the encoder of the training")


def fill(module: nn.Module, weights: Mapping[str, Any], path: Path, what: str) -> None:
    """Load weights into a module; raise ConfigError if they are of another one."""
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        message = " ".join(str(error).split())[:300]
        reason = f"its weights are not those of {what} ({message})"
        raise ConfigError(
            reason, slide=str(path), remedy="pass the checkpoint, and the encoder, of one training"
        ) from None
