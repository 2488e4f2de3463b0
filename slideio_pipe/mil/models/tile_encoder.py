"""A trainable encoder with its preprocessing and the pooling of its output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slideio_pipe.errors import ConfigError
from slideio_pipe.features.encoders import Encoder, load_encoder
from slideio_pipe.features.encoders.encoder import Interpolation, Pooling, fitted, parameter_dtype, pooled
from slideio_pipe.features.encoders.own_encoder import is_own_encoder, own_encoder
from slideio_pipe.mil.models.small_encoder import SmallEncoder
from slideio_pipe.streaming.normalize import Normalize

SMALL = "small"


class TokenPooler(nn.Module):
    """A network with its output reduced to one row per tile: tokens pooled, maps averaged.

    Parameters
    ----------
    network : nn.Module
    name : str
        For messages.
    pooling : {"none", "class", "mean", "class+mean"}
        Pooling of tokens.
    prefix_tokens : int
        Tokens before those of patches.
    """

    def __init__(self, network: nn.Module, name: str, pooling: Pooling = "none", prefix_tokens: int = 1) -> None:
        super().__init__()
        self.network = network
        self._name, self._pooling, self._prefix_tokens = name, pooling, prefix_tokens

    def forward(self, tiles: Tensor) -> Tensor:
        """Return (n, D) features of normalised tiles; of (n, S, 3, H, W), their S magnifications side by side."""
        if tiles.ndim == 5:
            return self.forward(tiles.flatten(0, 1)).reshape(len(tiles), -1)
        found = self.network(tiles)
        return pooled(self._name, found, len(tiles), self._pooling, tiles.shape[-1], self._prefix_tokens)


@dataclass(frozen=True, slots=True)
class TileEncoder:
    """A network and the tiles it needs, for training: ``prepare``, then ``module``."""

    module: TokenPooler
    normalize: Normalize
    name: str
    input_size: int | None = None  # side of its square input; None: any
    interpolation: Interpolation = "bicubic"
    source: str | None = None  # None: the caller's own network
    resize: int | None = None  # side to which tiles are resized, px, before the centre is cropped; None: input_size

    def prepare(self, tiles: Tensor) -> Tensor:
        """Return (n, 3, H, W) or (n, S, 3, H, W) uint8 tiles resized for the network and normalised."""
        if tiles.ndim == 5:
            prepared = self.prepare(tiles.flatten(0, 1))
            return prepared.view(*tiles.shape[:2], *prepared.shape[1:])
        side = self.input_size
        sized = tiles if side is None else fitted(tiles, side, self.interpolation, self.resize)
        normalize = self.normalize
        if normalize.scale.device != tiles.device:  # a move of the statistics waits for the device
            normalize.to(tiles.device)
        return normalize.convert(sized, parameter_dtype(self.module))

    def width(self, side: int, device: torch.device) -> int:
        """Return the number of features per tile, from a white tile.

        Raise ConfigError if the network does not accept such tiles.
        """
        white = torch.full((2, 3, side, side), 255, dtype=torch.uint8, device=device)
        module = self.module.to(device)
        was_training = module.training
        try:
            with torch.no_grad():
                found = module.eval()(self.prepare(white.contiguous(memory_format=torch.channels_last)))
        except RuntimeError as error:
            reason = f"{self.name} does not take tiles of {side}×{side} px ({error})"
            raise ConfigError(reason, remedy="set grid.tile_size to what it takes") from error
        finally:
            module.train(was_training)
        if not bool(torch.isfinite(found).any()):
            reason = f"{self.name} returns no finite number for a white tile"
            raise ConfigError(reason, remedy="look for a division by 0 or by a standard deviation of 0")
        return int(found.shape[1])

    def about(self) -> dict[str, Any]:
        """Return the encoder's entries for a checkpoint, as JSON values."""
        normalize = self.normalize
        cropped = {} if self.resize is None else {"resize": self.resize}
        return cropped | {
            "name": self.name,
            "source": self.source,
            "input_size": self.input_size,
            "interpolation": self.interpolation,
            "normalize": {"mean": list(normalize.mean), "std": list(normalize.std), "rescale": normalize.rescale},
        }


def tile_encoder(
    network: nn.Module | Encoder | None,
    source: str | None,
    normalize: Normalize | None,
    *,
    trust_remote_code: bool = False,
    folders: Sequence[Path] = (),
) -> TileEncoder:
    """Return the encoder of a training: the caller's network, the small one, or one from ``load_encoder``.

    ``folders`` are searched first for an encoder by import path. Raise ConfigError if it cannot be loaded.
    """
    if isinstance(network, Encoder):
        return from_encoder(network)
    if network is not None:
        name = type(network).__name__
        _check_network(network, name)
        return TileEncoder(TokenPooler(network, name), normalize or Normalize.imagenet(), name)
    assert source is not None
    if source == SMALL:
        return TileEncoder(TokenPooler(SmallEncoder(), SMALL), normalize or Normalize.imagenet(), SMALL, source=SMALL)
    if is_own_encoder(source):
        made = own_encoder(source, folders)
        if isinstance(made, nn.Module):
            name = source.rpartition(":")[2]
            return TileEncoder(TokenPooler(made, name), normalize or Normalize.imagenet(), name, source=source)
        return from_encoder(made, source)
    return from_encoder(load_encoder(source, normalize=normalize, trust_remote_code=trust_remote_code), source)


def _check_network(network: Any, name: str) -> None:
    """Raise ConfigError if an encoder that was passed is no network, or has no values."""
    if not isinstance(network, nn.Module):
        remedy = "pass an nn.Module, or what load_encoder returns"
        raise ConfigError(f"the encoder is of type {name}", slide=f"<{name}>", remedy=remedy)
    if any(value.is_meta for value in (*network.parameters(), *network.buffers())):
        remedy = "make it without torch.device('meta'), or call to_empty"
        raise ConfigError("its parameters are on no device (meta)", slide=f"<{name}>", remedy=remedy)


def from_encoder(loaded: Encoder, source: str | None = None) -> TileEncoder:
    """Return a loaded encoder in the form for training and prediction.

    Raise ConfigError if it accepts only one batch size.
    """
    if loaded.batch is not None:
        reason = f"{loaded.name} takes batches of {loaded.batch} tiles and no others"
        raise ConfigError(reason, remedy="export it with a dynamic batch size")
    return TileEncoder(
        TokenPooler(loaded.module, loaded.name, loaded.pooling, loaded.prefix_tokens),
        loaded.normalize,
        loaded.name,
        loaded.input_size,
        loaded.interpolation,
        source,
        loaded.resize,
    )
