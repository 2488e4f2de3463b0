"""``Encoder``: a network and the tiles it needs; ``EncoderOnDevice``: the same on a device, from uint8 to features."""

from __future__ import annotations

import contextlib
import hashlib
import json
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from slideio_pipe.errors import ConfigError
from slideio_pipe.features.encoders.cast_weights import with_cast_weights
from slideio_pipe.files import package_versions
from slideio_pipe.streaming.device import on_device, release_activations
from slideio_pipe.streaming.normalize import TILE_DTYPES, Normalize

Interpolation = Literal["bilinear", "bicubic"]
Pooling = Literal["none", "class", "mean", "class+mean"]
Precision = Literal["float16", "bfloat16", "float32"]
# Minimum px of a tile per px of maps used as features: those of backbones are 16 or 32.
_LEAST_STRIDE = 8
DTYPES = {"float16": torch.float16, "float32": torch.float32}
_COMPUTED = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": None}  # dtype of autocast


@dataclass(frozen=True, slots=True, eq=False)
class Encoder:
    """A network and the tiles it needs; made by ``load_encoder``.

    Its module is in evaluation mode, and is moved to the device of the encoding. Tiles have the order of memory of its
    convolutions, which ``module.to(memory_format=torch.channels_last)`` changes.

    Examples
    --------
    >>> from slideio_pipe import load_encoder
    >>> network = nn.Sequential(nn.Conv2d(3, 8, 7, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> encoder = load_encoder(network, name="tiny", normalize="imagenet", input_size=64)
    >>> encoder.name, encoder.dim, encoder.input_size
    ('tiny', 8, 64)
    """

    name: str  # name of its features
    module: nn.Module
    normalize: Normalize
    input_size: int  # side of its square input, px
    dim: int  # features per tile
    mpp: float | None = None  # µm per px it was trained at, if known
    interpolation: Interpolation = "bicubic"  # for resizing tiles to input_size; antialiased
    pooling: Pooling = "none"  # for (n, tokens, D) outputs: the first token, their mean, or first and mean of patches
    source: str = ""  # source it was loaded from
    weights: str = ""  # digest of its weights
    batch: int | None = None  # fixed batch size of an exported program
    dtype: torch.dtype | None = None  # input dtype; None: that of its parameters
    autocast: bool = True  # whether it may compute in float16 on CUDA
    prefix_tokens: int = 1  # tokens before those of patches, such as the class token and registers
    resize: int | None = None  # side to which tiles are resized, px, before the centre is cropped; None: input_size
    precision: Precision | None = None  # of computation on CUDA for float16 features; None: float16
    tile_size: int | None = None  # side of the tiles it is meant for, px at mpp; None: input_size
    other_mpps: tuple[float, ...] = ()  # other µm per px it was trained at

    @property
    def digest(self) -> str:
        """Sixteen hex digits over everything its features depend on."""
        known = {key: value for key, value in self.describe().items() if key not in ("name", "source", "packages")}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """Return the encoder's attributes for its features, as JSON values."""
        normalize = self.normalize
        described = {
            "name": self.name,
            "source": self.source,
            "weights": self.weights,
            "normalize": {"mean": list(normalize.mean), "std": list(normalize.std), "rescale": normalize.rescale},
            "input_size": self.input_size,
            "interpolation": self.interpolation,
            "pooling": self.pooling,
            "mpp": self.mpp,
            "dim": self.dim,
            "packages": {**package_versions(), "torch": torch.__version__},
        }
        # Left out where they are not used, so that digests equal those of earlier versions.
        if self.pooling == "class+mean":
            described["prefix_tokens"] = self.prefix_tokens
        newer = {"resize": self.resize, "precision": self.precision}
        return described | {key: value for key, value in newer.items() if value is not None}

    def __repr__(self) -> str:
        at = "" if self.mpp is None else f" at {self.mpp:g} µm"
        side = self.tile_size or self.input_size
        resized = "" if side == self.input_size else f", as {self.input_size}×{self.input_size},"
        return f"Encoder({self.name}: {side}×{side} px{at}{resized} to {self.dim:,} features)"


class EncoderOnDevice:
    """An encoder on a device, from uint8 tiles to features; all encoding is done here.

    Parameters
    ----------
    encoder : Encoder
        Its module is moved to the device.
    device : torch.device
        From ``check_device``.
    dtype : torch.dtype
        Dtype of the features. With float16 CUDA also computes in it (autocast); the CPU uses the module's dtype.
    """

    def __init__(self, encoder: Encoder, device: torch.device, dtype: torch.dtype) -> None:
        self.encoder, self.device, self.dtype = encoder, device, dtype
        self._module = encoder.module.to(device)
        self._normalize = deepcopy(encoder.normalize).to(device)
        lowers = encoder.autocast and device.type == "cuda" and dtype == torch.float16
        self._lower = _COMPUTED[encoder.precision or "float16"] if lowers else None
        self._takes = encoder.dtype or parameter_dtype(encoder.module)
        self._layout = memory_layout(encoder.module)
        if self._lower is not None:
            self._module = with_cast_weights(self._module, self._lower)
            self._takes = self._lower if self._takes == torch.float32 else self._takes

    def __call__(self, tiles: Tensor) -> Tensor:
        """Return (n, D) features of (n, 3, H, W) uint8 tiles, on the device.

        Of tiles at several magnifications, (n, S, 3, H, W), the features are (n, S·D), magnification by magnification;
        at most n of the n·S tiles are encoded at a time.

        Raise ConfigError if the network does not accept the tiles, returns another shape, or runs out of memory.
        """
        autocast = contextlib.nullcontext() if self._lower is None else torch.autocast("cuda", self._lower)
        with on_device(self.device), torch.inference_mode(), autocast:
            single = tiles.flatten(0, 1) if tiles.ndim == 5 else tiles
            size = self.encoder.batch or len(tiles)
            found = [self._encoded(single[start : start + size]) for start in range(0, len(single), size)]
            joined = (found[0] if len(found) == 1 else torch.cat(found)).to(self.dtype)
            return joined.reshape(len(tiles), -1) if tiles.ndim == 5 else joined

    def _encoded(self, tiles: Tensor) -> Tensor:
        pixels, count = self._pixels(tiles), len(tiles)
        if self.encoder.batch is not None and count < self.encoder.batch:  # padding rows
            pixels = torch.cat([pixels, pixels[:1].expand(self.encoder.batch - count, -1, -1, -1)])
        found = self._run(pixels)
        encoder, side = self.encoder, pixels.shape[-1]
        return pooled(encoder.name, found, len(pixels), encoder.pooling, side, encoder.prefix_tokens)[:count]

    def _pixels(self, tiles: Tensor) -> Tensor:
        """Return tiles of the encoder's size, normalised straight into its dtype and its order of memory."""
        encoder = self.encoder
        sized = fitted(tiles, encoder.input_size, encoder.interpolation, encoder.resize)
        kind = self._takes if self._takes in TILE_DTYPES else torch.float32
        return self._normalize.convert(sized, kind, self._layout).to(self._takes)

    def _run(self, pixels: Tensor) -> Any:
        name, (n, _, height, width) = self.encoder.name, pixels.shape
        try:
            return self._module(pixels)
        except torch.OutOfMemoryError as error:
            release_activations(error)
            reason = f"{name} has no memory for batches of {n:,} tiles"
            raise ConfigError(reason, remedy=f"pass {{batch_size={max(1, n // 2)}}}") from error
        except Exception as error:  # a network may raise anything for unsuitable tiles
            message = next(iter(str(error).strip().splitlines()), "")
            reason = f"{name} does not take {n} tiles of {width}×{height} px ({type(error).__name__}: {message})"
            raise ConfigError(
                reason, remedy="check {input_size=}, or wrap it in a module that takes (n, 3, H, W)"
            ) from error


def fitted(tiles: Tensor, input_size: int, interpolation: Interpolation, resize: int | None = None) -> Tensor:
    """Return (n, 3, H, W) uint8 tiles as a network's input: resized whole, or to ``resize`` px and cropped.

    The crop begins where torchvision's CenterCrop does.
    """
    if resize is None or resize == input_size:
        return resized(tiles, input_size, interpolation)
    found = resized(tiles, resize, interpolation)
    start = round((resize - input_size) / 2)
    return found[:, :, start : start + input_size, start : start + input_size]


def resized(tiles: Tensor, side: int, interpolation: Interpolation) -> Tensor:
    """Return (n, 3, H, W) uint8 tiles as (n, 3, side, side), antialiased; unchanged if they have that size.

    The CPU computes in uint8, as Pillow does: 0.26 ms for a 256-px tile to 224; in float32 it takes 3.7 ms. Raise
    ConfigError if tiles are not square.
    """
    _, _, height, width = tiles.shape
    if height != width:
        raise ConfigError(f"tiles of {width}×{height} px, and encoders take squares", remedy="use square tiles")
    if width == side:
        return tiles
    if tiles.device.type == "cpu":
        bytes_ = tiles.contiguous(memory_format=torch.channels_last)
        return nn.functional.interpolate(bytes_, size=(side, side), mode=interpolation, antialias=True)
    return resized_in_float(tiles, side, interpolation)


def resized_in_float(tiles: Tensor, side: int, interpolation: Interpolation) -> Tensor:
    """Return the same as ``resized``, computed in float32 and rounded once: the only way of torch on CUDA.

    Bicubic values beyond white or black are clipped at the end, in uint8 also after the first direction.
    """
    pixels = tiles.to(torch.float32, memory_format=torch.contiguous_format)
    found = nn.functional.interpolate(pixels, size=(side, side), mode=interpolation, antialias=True)
    return found.round_().clamp_(0, 255).to(torch.uint8, memory_format=torch.channels_last)


def pooled(name: str, output: Any, count: int, pooling: Pooling, side: int, prefix_tokens: int = 1) -> Tensor:
    """Return the output of a network for ``count`` tiles of ``side`` px as (count, D).

    With the pooling "class+mean" as (count, 2 D): the first token, and the mean of those after ``prefix_tokens``.

    Raise ConfigError if it is not a tensor with one row per tile, or has tokens or fine maps and ``pooling`` is not
    given.
    """
    if not isinstance(output, Tensor):
        remedy = "wrap it in a module that returns one tensor, (n, D)"
        raise ConfigError(f"{name} returns a {type(output).__name__}", remedy=remedy)
    shape = tuple(output.shape)
    if not output.is_floating_point() or output.ndim not in (2, 3, 4) or shape[0] != count or 0 in shape[1:]:
        what = f"{shape} {str(output.dtype).removeprefix('torch.')}"
        raise ConfigError(f"{name} returns {what} for {count} tiles", remedy="wrap it in a module that returns (n, D)")
    if output.ndim == 4:
        return _of_maps(name, output, pooling, side)
    if output.ndim == 2:
        return output
    if pooling == "none":
        remedy = 'pass {pooling="class"} for the first token, or {pooling="mean"}'
        raise ConfigError(f"{name} returns {shape[1]} tokens per tile, {shape}", remedy=remedy)
    if pooling != "class+mean":
        return output[:, 0] if pooling == "class" else output.mean(1)
    if shape[1] <= prefix_tokens:
        reason = f"{name} returns {shape[1]} tokens per tile, {prefix_tokens} of which are not of patches"
        raise ConfigError(reason, remedy='pass {pooling="class"}')
    return torch.cat([output[:, 0], output[:, prefix_tokens:].mean(1)], 1)


def _of_maps(name: str, output: Tensor, pooling: Pooling, side: int) -> Tensor:
    """Return the means of (n, D, h, w) maps, or of (n, h, w, D) if the shape shows it.

    Backbones shrink tiles by 8 to 32. A finer map is a picture of each tile, as in segmentation: its mean is used as a
    feature only on request.
    """
    _, first, second, third = output.shape
    channels_last = first == second != third
    shape = (first, third) if channels_last else (second, first)
    if pooling != "mean" and (
        shape[0] * _LEAST_STRIDE > side + _LEAST_STRIDE or (second != third and not channels_last)
    ):
        reason = f"{name} returns maps of {tuple(output.shape[1:])} for a tile of {side} px, not features"
        remedy = 'pass {pooling="mean"} for the mean of each map, or wrap it in a module that returns (n, D)'
        raise ConfigError(reason, remedy=remedy)
    return output.mean((1, 2)) if channels_last else output.mean((2, 3))


def parameter_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype of a network's parameters; float32 without any."""
    kinds = (value.dtype for value in (*module.parameters(), *module.buffers()) if value.is_floating_point())
    return next(kinds, torch.float32)


def memory_layout(module: nn.Module) -> torch.memory_format:
    """Return the order of memory of a network's convolutions: the default one, unless the caller has changed it."""
    last = torch.channels_last
    planes = (value for value in module.parameters() if value.ndim == 4 and not value.is_contiguous())
    return last if any(value.is_contiguous(memory_format=last) for value in planes) else torch.contiguous_format


def module_device(module: nn.Module) -> torch.device:
    """Return the device of a network; the CPU without parameters."""
    return next((value.device for value in (*module.parameters(), *module.buffers())), torch.device("cpu"))
