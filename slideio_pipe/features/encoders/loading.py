"""``load_encoder``: any network and the tiles it needs, tested on one tile."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from slideio_pipe.errors import ConfigError
from slideio_pipe.features.encoders.encoder import (
    Encoder,
    EncoderOnDevice,
    Interpolation,
    Pooling,
    Precision,
    module_device,
)
from slideio_pipe.features.encoders.facts import EncoderFacts, weights_digest
from slideio_pipe.features.encoders.files import from_file
from slideio_pipe.features.encoders.hubs import from_hugging_face, from_timm
from slideio_pipe.features.encoders.known import known_encoder, similar_names, split_weights
from slideio_pipe.features.encoders.known_networks import from_known
from slideio_pipe.features.encoders.own_encoder import encoder_of_package, is_own_encoder, own_encoder
from slideio_pipe.streaming.normalize import Normalize

NORMALIZATIONS = {"imagenet": Normalize.imagenet, "half": Normalize.half, "identity": Normalize.identity}
# "uni=timm:…" sets a name; a path has a slash before its first "=", or exists.
_NAMED = re.compile(r"([\w+-][\w.+-]*)=(.+)")
_NAME = re.compile(r"[\w+-][\w.+-]*")
# Pillow's numbers, used in Hugging Face's files.
_PILLOW = {2: "bilinear", 3: "bicubic"}

# Numbers of px or tokens that only some configurations state.
_SIZES = ("resize", "tile_size", "prefix_tokens")

Source = str | Path | nn.Module | Encoder


def load_encoder(
    source: Source,
    *,
    name: str | None = None,
    normalize: Normalize | str | None = None,
    input_size: int | None = None,
    mpp: float | None = None,
    interpolation: str | None = None,
    pooling: str | None = None,
    precision: str | None = None,
    trust_remote_code: bool = False,
) -> Encoder:
    """Return an encoder from a network, a file or a name, tested on one white tile.

    Parameters
    ----------
    source : nn.Module, str or Path
        The name of a known encoder, such as ``uni``, with weights of the hub's cache or of the hub, or
        ``uni@weights.bin`` (see ``known_encoders``); a network, which is set to evaluation mode, or the import path
        of one, ``my_module:network``, or of a function that makes one or an ``Encoder``; the name that an installed
        package gives to one (entry points ``slideio_pipe.encoders``); a file of TorchScript
        or of an exported program (``.pt2``); or ``timm:NAME``, ``timm:NAME@weights.safetensors``, ``hf:NAME`` or
        ``hf:FOLDER``. ``mine=timm:NAME`` sets a name.
        TorchScript and exported programs are code: load only those you trust. Pickled networks are never loaded.
    name : str, optional
        Name of its features; by default the file's name, or the model's.
    normalize : Normalize, "imagenet", "half" or "identity", optional
        By default from its configuration: timm's ``pretrained_cfg``, Hugging Face's ``preprocessor_config.json``,
        ``mean`` and ``std`` in ``<file>.json`` or ``<file>.yaml``.
    input_size : int, optional
        Side of its square input in px; by default from its configuration. Tiles of another size are resized whole,
        and cropped only if the authors of a known encoder do so.
    mpp : float, optional
        µm per px it was trained at.
    interpolation : "bilinear" or "bicubic", optional
        Interpolation for resizing tiles, antialiased; by default from its configuration, else bicubic.
    pooling : "class", "mean" or "class+mean", optional
        For (n, tokens, D) outputs: the first token, the mean, or the first token followed by the mean of the patch
        tokens. By default the class token for transformers models that have one (others return their pooled output).
        (n, D, h, w) outputs are averaged; maps finer than 8 px of the tile, as in segmentation, only with "mean".
    precision : "float16", "bfloat16" or "float32", optional
        Of the computation on CUDA when features are float16; by default that of a known encoder, else float16.
    trust_remote_code : bool
        Run the code in a known encoder's repository on the hub, if its network is code there.

    Raises
    ------
    ConfigError
        It cannot be loaded, the tiles it needs are unknown, or it does not return one row of numbers per tile.
    MissingExtraError
        timm, transformers or a package of the encoder's authors is not installed.

    Warns
    -----
    EncoderSettingsWarning
        A known encoder's configuration on the hub contradicts that of its authors, which is used.

    Examples
    --------
    >>> network = nn.Sequential(nn.Conv2d(3, 8, 7, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> load_encoder(network, name="tiny", normalize="imagenet", input_size=64)
    Encoder(tiny: 64×64 px to 8 features)
    """
    given = {"normalize": normalize, "input_size": input_size, "mpp": mpp, "name": name, "precision": precision}
    given |= {"interpolation": interpolation, "pooling": pooling}
    return _loaded(source, given, {}, trust_remote_code)


def load_encoders(
    sources: Source | Iterable[Source],
    otherwise: Mapping[str, Any] | None = None,
    *,
    precision: str | None = None,
    trust_remote_code: bool = False,
) -> list[Encoder]:
    """Return encoders with different names; ``otherwise`` holds defaults for missing configuration values.

    Raise ConfigError if two have the same name, and what ``load_encoder`` raises.
    """
    several = [sources] if isinstance(sources, Source) else list(sources)
    if not several:
        raise ConfigError("no encoder", remedy='pass encoders, such as "uni" or "timm:NAME"')
    given = {"precision": precision}
    encoders = [_loaded(source, given, otherwise or {}, trust_remote_code) for source in several]
    names = [encoder.name for encoder in encoders]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        remedy = "name them: first=timm:NAME, second=…"
        raise ConfigError(f"two encoders are called {' and '.join(twice)}", remedy=remedy)
    return encoders


def _loaded(source: Source, given: Mapping[str, Any], otherwise: Mapping[str, Any], trust_remote_code: bool) -> Encoder:
    path = source if isinstance(source, str) and is_own_encoder(source) else None
    brought = encoder_of_package(source, known_encoder(source) is not None) if isinstance(source, str) else None
    if path is not None:
        source = own_encoder(path)
    elif brought is not None:
        path, source = str(source), brought
    if isinstance(source, Encoder):
        return source
    called, facts = _facts(source, trust_remote_code) if path is None else _of_path(path, source, trust_remote_code)
    config = facts.config.get("pretrained_cfg", facts.config)
    chosen = {key: value for key, value in given.items() if value is not None}

    def choose(key: str, found: Any) -> Any:
        return chosen.get(key, otherwise.get(key) if found is None else found)

    name = chosen.get("name") or called or config.get("name") or re.sub(r"[^\w.+-]+", "-", facts.name)
    normalize = choose("normalize", _normalize(config))
    size = choose("input_size", _size(config))
    _refuse_unknown(facts, normalize, size)
    size = _check_size("input_size", size, facts.source)
    precision = choose("precision", config.get("precision"))
    encoder = Encoder(
        name=_check_name(str(name)),
        module=facts.module.eval(),
        normalize=named_normalize(normalize),
        input_size=size,
        dim=0,
        mpp=_check_mpp(choose("mpp", config.get("mpp")), facts.source),
        interpolation=_check(
            "interpolation", choose("interpolation", _interpolation(config)) or "bicubic", Interpolation
        ),
        pooling=_check("pooling", choose("pooling", config.get("pooling")) or facts.pooling, Pooling),
        source=facts.source,
        weights=facts.weights,
        batch=facts.batch,
        dtype=facts.dtype,
        autocast=facts.autocast,
        precision=None if precision is None else _check("precision", precision, Precision),
        **_tile_facts(config, size, facts.source),
    )
    return _checked_width(replace(encoder, dim=_output_width(encoder)), facts, chosen)


def _tile_facts(config: Mapping[str, Any], input_size: int, source: str) -> dict[str, Any]:
    """Return what only some configurations state; a resize before a crop is that for their own input size."""
    found = {key: _check_size(key, config[key], source) for key in _SIZES if config.get(key) is not None}
    if found.get("resize") is not None and _size(config) != input_size:
        del found["resize"]
    others = tuple(_check_mpp(value, source) for value in config.get("other_mpps") or ())
    return found | {"other_mpps": others}


def _checked_width(encoder: Encoder, facts: EncoderFacts, chosen: Mapping[str, Any]) -> Encoder:
    """Return an encoder; raise ConfigError if it is a known one, as it stands, with another number of features."""
    if facts.width is not None and "pooling" not in chosen and encoder.dim != facts.width:
        reason = f"{encoder.name} has {facts.width:,} features per tile, and these weights give {encoder.dim:,}"
        raise ConfigError(reason, slide=facts.source, remedy="pass the weights of this encoder")
    return encoder


def _facts(source: str | Path | nn.Module, trust_remote_code: bool) -> tuple[str | None, EncoderFacts]:
    """Return the name before a source's "=", and the network's facts."""
    if isinstance(source, nn.Module):
        config = getattr(source, "pretrained_cfg", None)  # timm
        kind = type(source).__name__
        config = config if isinstance(config, Mapping) else {}
        return None, EncoderFacts(source, kind, f"{type(source).__module__}.{kind}", weights_digest(source), config)
    text, named = str(source), _NAMED.fullmatch(str(source))
    if named and not Path(text).expanduser().exists():
        return named[1], _facts(named[2], trust_remote_code)[1]
    for prefix, load in (("timm:", from_timm), ("hf:", from_hugging_face)):
        if text.startswith(prefix):
            return None, load(text.removeprefix(prefix))
    if is_own_encoder(text):
        made = own_encoder(text)
        if isinstance(made, Encoder):
            raise ConfigError("makes an Encoder, which has a name", slide=text, remedy="leave the name before = out")
        return _of_path(text, made, trust_remote_code)
    known, weights = split_weights(text)
    if known is not None:
        return None, from_known(known, weights, trust_remote_code=trust_remote_code)
    file = Path(text).expanduser()
    if not file.exists() and (similar := similar_names(text.partition("@")[0])):
        remedy = f"did you mean {similar}? slideio-pipe encoders lists the names"
        raise ConfigError("no encoder has this name, and no file", slide=text, remedy=remedy)
    return None, from_file(file)


def _of_path(path: str, network: Any, trust_remote_code: bool) -> tuple[str, EncoderFacts]:
    """Return the name and the facts of a network by import path."""
    name = path.rpartition(":")[2]
    return name, replace(_facts(network, trust_remote_code)[1], name=name, source=path)


def _output_width(encoder: Encoder) -> int:
    """Return the number of features per tile, from a white tile."""
    white = torch.full((1, 3, encoder.input_size, encoder.input_size), 255, dtype=torch.uint8)
    device = module_device(encoder.module)
    found = EncoderOnDevice(encoder, device, torch.float32)(white.to(device, memory_format=torch.channels_last))
    return int(found.shape[1])


def _normalize(config: Mapping[str, Any]) -> Normalize | None:
    if not any(key in config for key in ("mean", "std", "image_mean", "image_std", "do_normalize")):
        return None
    return Normalize.from_config({key: value for key, value in config.items() if key != "input_size"})


def named_normalize(value: Any) -> Normalize:
    """Return a normalisation by its name: imagenet, half or identity; one that is given stays."""
    if isinstance(value, Normalize):
        return value
    if value not in NORMALIZATIONS:
        remedy = f"pass {', '.join(NORMALIZATIONS)}, or a Normalize"
        raise ConfigError(f"no normalisation is called {value!r}", remedy=remedy)
    return NORMALIZATIONS[value]()


def _size(config: Mapping[str, Any]) -> Any:
    """Return the input side stated in a configuration, after its crop."""
    if config.get("input_size") is not None:
        return config["input_size"]
    found = config.get("crop_size") if config.get("do_center_crop") and config.get("crop_size") else config.get("size")
    if isinstance(found, Mapping):
        sides = [found[key] for key in ("height", "width", "shortest_edge") if key in found]
        return sides or None
    return found


def _interpolation(config: Mapping[str, Any]) -> Any:
    stated = config.get("interpolation")
    return _PILLOW.get(config["resample"], config["resample"]) if stated is None and "resample" in config else stated


def _refuse_unknown(facts: EncoderFacts, normalize: Any, size: Any) -> None:
    """Raise if a setting is unknown: with another normalisation an encoder gives other features without an error."""
    lacking = {"the normalisation of tiles": '{normalize="imagenet"}'} if normalize is None else {}
    lacking |= {"the size of tiles": "{input_size=224}"} if size is None else {}
    if lacking:
        what, remedy = " and ".join(lacking), f"pass {' and '.join(lacking.values())}"
        if not facts.source.startswith(("timm:", "hf:")) and Path(facts.source).is_file():
            remedy += f", or put it into {facts.source}.json"
        verb = "are" if len(lacking) > 1 else "is"
        raise ConfigError(f"{what} {verb} unknown", slide=facts.source, remedy=remedy)


def _check_size(name: str, value: Any, source: str) -> int:
    sides = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    sides = sides[-2:]  # timm: channels, height, width
    if any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in sides) or len(set(sides)) != 1:
        reason = f"{name} is {value!r}, no side of a square"
        raise ConfigError(reason, slide=source, remedy="pass {input_size=224}")
    return int(sides[0])


def _check_mpp(value: Any, source: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{{mpp=}} is {value!r}", slide=source, remedy="pass µm per px, such as {mpp=0.5}")
    return float(value)


def _check(what: str, value: Any, kinds: Any) -> Any:
    if value not in get_args(kinds):
        names = ", ".join(get_args(kinds))
        raise ConfigError(f"{{{what}=}} is {value!r}", remedy=f"pass {{{what}=}} as one of {names}")
    return value


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name) or name == "zarr.json":
        raise ConfigError(f"the encoder {name!r} cannot name a folder", remedy="pass letters, digits, - and _")
    return name
