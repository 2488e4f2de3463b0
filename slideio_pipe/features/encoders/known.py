"""``known_encoders``: the encoders that have a name, with the tiles they need and the source of every value."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from slideio_pipe.config import Record, checked, read_yaml
from slideio_pipe.errors import ConfigError

TABLE = Path(__file__).with_name("known.yaml")
Statistic = tuple[float, float, float]


class KnownEncoder(Record):
    """What is known of an encoder by name; ``known.yaml`` says what each value means."""

    name: str
    aliases: tuple[str, ...] = ()
    hub: str  # repository on huggingface.co with the weights
    page: str | None = None  # repository with the licence, if another
    files: tuple[str, ...]  # of the weights; the first that exists
    address: str | None = None  # where else they are
    licence: str
    gated: bool | None  # None: sources disagree
    library: Literal["timm", "transformers", "conch", "titan"]
    architecture: str
    arguments: Mapping[str, Any] = Field(default_factory=dict)
    removed: tuple[str, ...] = ()  # layers replaced by the identity
    output: str | None = None  # of a transformers model
    remote_code: bool = False
    mpp: float | None  # µm per px of the tiles
    other_mpps: tuple[float, ...] = ()
    tile_size: int  # px
    resize: int | None = None  # px, before the centre is cropped to input_size
    input_size: int  # px
    interpolation: Literal["bilinear", "bicubic"]
    normalize: str  # name of the statistics
    mean: Statistic
    std: Statistic
    width: int  # features per tile
    pooling: Literal["none", "class", "mean", "class+mean"]
    prefix_tokens: int = 1  # tokens before those of patches
    precision: Literal["float16", "bfloat16", "float32"]
    parameters: int | None = None  # millions
    sha256: Mapping[str, str] = Field(default_factory=dict)
    others_sha256: Mapping[str, str] = Field(default_factory=dict)
    sources: tuple[str, ...]
    notes: Mapping[str, str] = Field(default_factory=dict)

    @property
    def url(self) -> str:
        """Address of the model's page, where its licence is accepted."""
        return f"https://huggingface.co/{self.page or self.hub}"

    def settings(self) -> dict[str, Any]:
        """Return the settings of its tiles and of its output, with the keys of a configuration beside a file."""
        names = ("mean", "std", "input_size", "resize", "interpolation", "pooling", "prefix_tokens")
        return {name: getattr(self, name) for name in (*names, "mpp", "other_mpps", "tile_size", "precision")}


def known_encoders() -> list[KnownEncoder]:
    """Return the encoders that ``load_encoder`` loads by name, with the source of every value.

    Examples
    --------
    >>> uni = next(encoder for encoder in known_encoders() if encoder.name == "uni")
    >>> uni.mpp, uni.tile_size, uni.input_size, uni.width, uni.licence
    (0.5, 256, 224, 1024, 'CC-BY-NC-ND-4.0')
    """
    return list(_table().values())


def known_encoder(name: str) -> KnownEncoder | None:
    """Return the encoder of a name or an alias, None if there is none; case, and - or _, make no difference.

    Examples
    --------
    >>> known_encoder("Uni_V2").name
    'uni2-h'
    """
    return _table().get(_names().get(_plain(name), ""))


def named_encoder(name: str) -> KnownEncoder:
    """Return the encoder of a name; raise ConfigError with similar names if there is none."""
    found = known_encoder(name)
    if found is None:
        similar = similar_names(name)
        remedy = f"did you mean {similar}?" if similar else "slideio-pipe encoders lists the names"
        raise ConfigError("no encoder has this name", slide=name, remedy=remedy)
    return found


def similar_names(name: str) -> str:
    """Return names of encoders similar to a name, "" if there are none."""
    close = difflib.get_close_matches(_plain(name), _names(), 3, 0.6)
    return " or ".join(dict.fromkeys(_names()[key] for key in close))


def split_weights(source: str) -> tuple[KnownEncoder | None, str]:
    """Return the encoder named by "NAME" or "NAME@WEIGHTS", and the path of the weights; None for other sources.

    Examples
    --------
    >>> encoder, weights = split_weights("uni@/data/pytorch_model.bin")
    >>> encoder.name, weights
    ('uni', '/data/pytorch_model.bin')
    >>> split_weights("uni.pt2")
    (None, '')
    """
    name, _, weights = source.partition("@")
    found = known_encoder(name)
    if found is None or Path(source).expanduser().is_file():  # a file of the caller's has precedence
        return None, ""
    return found, weights


def known_source(source: str | None) -> KnownEncoder | None:
    """Return the known encoder that a source of ``load_encoder`` names, None for other sources.

    Examples
    --------
    >>> known_source("mine=uni@/data/pytorch_model.bin").name
    'uni'
    """
    if source is None:
        return None
    return split_weights(source)[0] or split_weights(source.partition("=")[2])[0]


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "-")


@cache
def _table() -> dict[str, KnownEncoder]:
    """Return the records of the table by name."""
    table = read_yaml(TABLE, "install slideio-pipe again")
    statistics = table["normalizations"]
    return {
        name: checked(KnownEncoder, f"{TABLE.name}, {name}", name=name, **values, **statistics[values["normalize"]])
        for name, values in table["encoders"].items()
    }


@cache
def _names() -> dict[str, str]:
    """Return the name of an encoder by each of its names, in lower case."""
    return {_plain(alias): name for name, record in _table().items() for alias in (name, *record.aliases)}
