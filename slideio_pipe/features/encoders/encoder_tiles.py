"""The tiles that encoders are meant for: their side and µm per px, of one encoder or of several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from slideio_pipe.errors import ConfigError, EncoderSettingsWarning, warn_caller
from slideio_pipe.features.encoders.encoder import Encoder
from slideio_pipe.features.encoders.known import KnownEncoder
from slideio_pipe.streaming.config import LoaderConfig

# Tiles may have this many times the scale that an encoder is meant for, or one part of it, without a warning.
_SCALE = 1.25

AnyEncoder = Encoder | KnownEncoder
Tiling = TypeVar("Tiling", bound=LoaderConfig)


def with_tiles_of(config: Tiling, encoders: Iterable[AnyEncoder]) -> Tiling:
    """Return settings whose tiles have the size and the mpp that encoders are meant for, where they are not set.

    Encoders that state no tile size change nothing. Raise ConfigError if they are meant for different mpp.

    Examples
    --------
    >>> from slideio_pipe.features.encoders.known import named_encoder
    >>> from slideio_pipe.streaming.config import load_loader_config
    >>> tiles = with_tiles_of(load_loader_config({"view": {"mpp": 1.0}}), [named_encoder("virchow")])
    >>> tiles.grid.tile_size, tiles.view.mpp
    (224, 1.0)
    """
    known = list(encoders)
    if all(encoder.tile_size is None for encoder in known):
        return config
    update: dict[str, Any] = {}
    if "tile_size" not in config.grid.model_fields_set:
        update["grid"] = config.grid.model_copy(update={"tile_size": common_size(known)})
    if "mpp" not in config.view.model_fields_set and (mpp := common_mpp(known)) is not None:
        update["view"] = config.view.model_copy(update={"mpp": mpp})
    return config.model_copy(update=update)


def common_size(encoders: Iterable[AnyEncoder]) -> int:
    """Return the side of the tiles that encoders are meant for, px: of several the largest."""
    return max((e.tile_size or e.input_size for e in encoders), default=256)


def common_mpp(encoders: Iterable[AnyEncoder]) -> float | None:
    """Return the µm per px that encoders are meant for, None if they state none.

    Raise ConfigError if they are meant for different ones: the same tiles cannot suit both.
    """
    stated = {e.mpp: e.name for e in encoders if e.mpp is not None}
    if len(stated) > 1:
        meant = " and ".join(f"{name} at {mpp:g} µm" for mpp, name in stated.items())
        mpp = next(iter(stated))
        remedy = f"compute their features one after the other, or pass {{mpp={mpp:g}}} for all"
        raise ConfigError(f"the encoders read tiles of different resolutions, {meant}", remedy=remedy)
    return next(iter(stated), None)


def warn_scale(encoders: Iterable[AnyEncoder], tile_size: int, mpp: Any) -> None:
    """Warn of encoders whose tiles have another scale than they are meant for: they see cells of another size.

    Without a warning if ``mpp`` is no number: it is unknown, or that of each slide's level 0.
    """
    if not isinstance(mpp, int | float):
        return
    for encoder in encoders:
        if encoder.mpp is None:
            continue
        side, input_side = encoder.tile_size or encoder.input_size, encoder.resize or encoder.input_size
        seen = mpp * tile_size / input_side
        meant = [known * side / input_side for known in (encoder.mpp, *encoder.other_mpps)]
        if all(not 1 / _SCALE <= seen / known <= _SCALE for known in meant):
            remedy = f"use tiles of {side} px at {encoder.mpp:g} µm"
            text = f"{encoder.name} sees {seen:.2g} µm per px and is meant for {meant[0]:.2g}: {remedy}"
            warn_caller(EncoderSettingsWarning(text))


def warn_scale_of_bag(encoders: Iterable[Encoder], provenance: Mapping[str, Any]) -> None:
    """Warn as ``warn_scale`` for the tiles of a bag, as far as its provenance states their size and mpp."""
    side, mpp = (provenance.get("grid") or {}).get("tile_size"), (provenance.get("view") or {}).get("mpp")
    if isinstance(side, int) and mpp is not None:
        warn_scale(encoders, side, sum(mpp) / len(mpp))
