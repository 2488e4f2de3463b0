"""Normalise uint8 tiles for a network: mean, standard deviation, dtype, one rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from numbers import Real
from typing import Any, Self

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from slideio_pipe.compiled.library import load
from slideio_pipe.errors import ConfigError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TILE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
FLOAT16_MAX = torch.finfo(torch.float16).max
OPENCV_MAX_VALUES = 2**31  # OpenCV counts in int
# The keys that only a Hugging Face image processor writes.
HUGGING_FACE_KEYS = ("image_mean", "image_std", "do_normalize", "do_rescale", "rescale_factor")
# Switches of Hugging Face processors that shift the rescaled values before the mean is subtracted.
OFFSET_KEYS = ("rescale_offset", "offset")

Statistic = tuple[float, float, float]


class _Half:
    """Descriptor: ``Normalize.half()`` returns 0.5/0.5, ``normalize.half()`` is the method of every module."""

    def __get__(self, instance: Normalize | None, owner: type[Normalize]) -> Callable[..., Normalize]:
        if instance is None:
            return partial(owner, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        return partial(nn.Module.half, instance)


class Normalize(nn.Module):
    """``(x · rescale − mean) / std`` per channel, computed in float32 and rounded once.

    A module that can be a model's first layer: ``model.half()`` leaves its statistics in float32, a state dict does not
    contain them, and ``torch.onnx.export`` supports it. ``Normalize.half()`` has mean and deviation 0.5: bytes become
    −1…1.

    Parameters
    ----------
    mean, std : three numbers, or one for all channels
        Red first, in units of the rescaled values (0…1 for the usual rescale).
    rescale : float
        Factor for a byte, applied first.
    dtype : torch.dtype
        Result dtype of ``forward``: float16, bfloat16 or float32.

    Raises
    ------
    ConfigError
        A number is missing, not finite, or out of range.

    Notes
    -----
    Over all byte values float16 differs from the float64 formula by at most 0.00098 with ImageNet statistics, half the
    distance of two float16 numbers between 2 and 4, and by 0.00025 with 0.5/0.5 (``tests/streaming/test_device.py``).

    Examples
    --------
    >>> tiles = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    >>> Normalize.half()(tiles)[0, :, 0, 0]
    tensor([1., 1., 1.], dtype=torch.float16)
    """

    half = _Half()
    scale: Tensor  # (3, 1, 1) float32: rescale / std
    offset: Tensor  # (3, 1, 1) float32: −mean / std

    def __init__(self, mean: Any, std: Any, *, rescale: float = 1 / 255, dtype: torch.dtype = torch.float16) -> None:
        super().__init__()
        self.mean, self.std = _three("mean", mean), _three("std", std)
        self.rescale = _number("rescale", rescale)
        self.dtype = check_dtype(dtype)
        self._check_range()
        self.register_buffer("scale", torch.empty(0), persistent=False)
        self.register_buffer("offset", torch.empty(0), persistent=False)
        self._compute_buffers()

    @classmethod
    def imagenet(cls, *, dtype: torch.dtype = torch.float16) -> Self:
        """Return the statistics of ImageNet, with which most encoders were trained."""
        return cls(IMAGENET_MEAN, IMAGENET_STD, dtype=dtype)

    @classmethod
    def identity(cls, *, dtype: torch.dtype = torch.float16) -> Self:
        """Return mean 0 and deviation 1: bytes become 0…1."""
        return cls(0.0, 1.0, dtype=dtype)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, dtype: torch.dtype = torch.float16) -> Self:
        """Return the normalisation in an encoder's published configuration.

        Parameters
        ----------
        config : mapping
            timm's ``pretrained_cfg`` or the ``config.json`` around it, or the dictionary of a Hugging Face image
            processor. Keys that do not concern normalisation are ignored.
        dtype : torch.dtype
            Result dtype of ``forward``.

        Raises
        ------
        ConfigError
            The statistics are missing, contradictory or invalid.

        Examples
        --------
        >>> Normalize.from_config({"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "input_size": [3, 224, 224]})
        Normalize(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), rescale=1/255, dtype=torch.float16)
        """
        if not isinstance(config, Mapping):
            raise ConfigError(f"a normalisation is a dictionary, not {type(config).__name__}")
        config = config.get("pretrained_cfg", config)
        hugging_face = any(key in config for key in HUGGING_FACE_KEYS)
        if hugging_face and "mean" in config:
            raise ConfigError('a normalisation with the keys of both timm ("mean") and Hugging Face ("image_mean")')
        return cls(**(_from_hugging_face if hugging_face else _from_timm)(config), dtype=dtype)

    def forward(self, tiles: Tensor) -> Tensor:
        """Return (N, 3, H, W) uint8 RGB tiles normalised, in new memory of the same layout."""
        _check_tiles(tiles)
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return (tiles.to(torch.float32) * self.scale + self.offset).to(self.dtype)
        return self.convert(tiles, self.dtype)

    def convert(self, tiles: Tensor, dtype: torch.dtype, layout: torch.memory_format = torch.preserve_format) -> Tensor:
        """Return (N, 3, H, W) uint8 tiles as ``dtype``, in the order of memory that a network takes.

        It is never a view: a cast in place corrupts overlapping tiles. On CUDA it is one kernel.
        """
        if _is_looked_up(tiles):
            out = torch.empty_like(tiles, dtype=dtype, memory_format=torch.preserve_format)
            self._look_up(tiles, out)
            return out if layout is torch.preserve_format else out.contiguous(memory_format=layout)
        out = torch.empty_like(tiles, dtype=dtype, memory_format=layout)
        self._compute(tiles, out)
        return out

    def convert_into(self, tiles: Tensor, out: Tensor) -> None:
        """Fill ``out``, which has the shape and the order of memory of (N, 3, H, W) uint8 tiles, as ``convert``."""
        (self._look_up if _is_looked_up(tiles) else self._compute)(tiles, out)

    def _compute(self, tiles: Tensor, out: Tensor) -> None:
        """Fill ``out`` by arithmetic; on CUDA one kernel that reads bytes and writes rounded values."""
        torch.addcmul(self.offset, tiles, self.scale, out=out)

    def _look_up(self, tiles: Tensor, out: Tensor) -> None:
        """Fill ``out`` from a table of all 256 bytes: 0.08 ms per 256-px tile on 2 cores; arithmetic takes 0.7 ms.

        Measured by ``tests/benchmarks/gpu.py --device cpu``. The table is computed as in ``_compute``, so it is exact.
        Where compiled arithmetic gives the table's own values, it is used: a quarter of the time.
        """
        table = torch.empty((256, 3, 1, 1), dtype=out.dtype)
        self._compute(torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1).expand(256, 3, 1, 1), table)
        if out.dtype == torch.float16 and self._computed(tiles, out, table):
            return
        # OpenCV has no half precision: 16-bit values are copied as integers with the same bits.
        bits = torch.int16 if out.itemsize == 2 else out.dtype
        n, _, height, width = tiles.shape
        rows = tiles.permute(0, 2, 3, 1).numpy().reshape(n * height, width, 3)
        target = out.permute(0, 2, 3, 1).view(bits).numpy().reshape(n * height, width, 3)
        cv2.LUT(rows, table.view(bits).numpy().reshape(1, 256, 3), dst=target)

    def _computed(self, tiles: Tensor, out: Tensor, table: Tensor) -> bool:
        """Fill ``out`` by the compiled programs, unless their arithmetic differs from the table by a bit."""
        programs = load()
        if programs is None:
            return False
        scale, offset = (np.ascontiguousarray(part.cpu().numpy().reshape(3)) for part in (self.scale, self.offset))
        levels = np.arange(256, dtype=np.uint8).repeat(3)
        found = np.empty(768, np.float16)
        if not programs.half(levels, found, scale, offset) or found.tobytes() != table.numpy().tobytes():
            return False
        rows, target = (part.permute(0, 2, 3, 1) for part in (tiles, out))
        if not (rows.is_contiguous() and target.is_contiguous()):
            return False
        return programs.half(rows.numpy(), target.numpy(), scale, offset)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move with the model, but stay float32: statistics cast to half would add a second rounding."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._compute_buffers()
        return self

    def _compute_buffers(self) -> None:
        mean, std = np.array(self.mean), np.array(self.std)
        device = self.scale.device
        self.scale = torch.tensor(self.rescale / std, dtype=torch.float32, device=device).view(3, 1, 1)
        self.offset = torch.tensor(-mean / std, dtype=torch.float32, device=device).view(3, 1, 1)

    def _check_range(self) -> None:
        if self.rescale <= 0:
            raise ConfigError(f"rescale is {self.rescale}, not positive", remedy="pass 1/255, or 1 for raw bytes")
        brightest = 255 * self.rescale
        for mean, std in zip(self.mean, self.std, strict=True):
            if std <= 0:
                raise ConfigError(f"std is {self.std}, not positive")
            if mean > brightest * (1 + 1e-6):
                raise ConfigError(
                    f"mean {mean:g} is brighter than white, {brightest:g}",
                    remedy="divide mean and std by 255, or pass rescale=1",
                )
            if max(abs(mean), abs(brightest - mean)) / std > FLOAT16_MAX:
                raise ConfigError(f"std {std:g} gives values beyond float16's {FLOAT16_MAX:g}")

    def extra_repr(self) -> str:
        """Return the statistics, for ``repr``."""
        rescale = "1/255" if self.rescale == 1 / 255 else f"{self.rescale:g}"
        return f"mean={self.mean}, std={self.std}, rescale={rescale}, dtype={self.dtype}"


def _is_looked_up(tiles: Tensor) -> bool:
    """Return whether a table is faster than arithmetic: on the CPU, for bytes that OpenCV can take as an image."""
    interleaved = tiles.is_contiguous(memory_format=torch.channels_last)
    return tiles.device.type == "cpu" and interleaved and 0 < tiles.numel() < OPENCV_MAX_VALUES


def _from_timm(config: Mapping[str, Any]) -> dict[str, Any]:
    channels = next(iter(config.get("input_size") or (3,)))
    if channels != 3:
        raise ConfigError(f"an encoder of {channels} channels; tiles are RGB")
    return {key: _statistic(config, key) for key in ("mean", "std")}


def _from_hugging_face(config: Mapping[str, Any]) -> dict[str, Any]:
    for key in OFFSET_KEYS:
        if config.get(key):
            raise ConfigError(f"{key} is set, which (x · rescale − mean) / std cannot express")
    settings: dict[str, Any] = {"mean": 0.0, "std": 1.0, "rescale": 1.0}
    if config.get("do_rescale", True):
        settings["rescale"] = config.get("rescale_factor", 1 / 255)
    if config.get("do_normalize", True):
        settings |= {key: _statistic(config, f"image_{key}") for key in ("mean", "std")}
    return settings


def _statistic(config: Mapping[str, Any], key: str) -> Any:
    if config.get(key) is None:
        raise ConfigError(
            f"a normalisation without {key!r} (found: {', '.join(map(str, config)) or 'nothing'})",
            remedy='pass "mean" and "std" (timm) or "image_mean" and "image_std" (Hugging Face)',
        )
    return config[key]


def _three(name: str, value: Any) -> Statistic:
    values = tuple(value) if isinstance(value, Iterable) else (value,) * 3
    if len(values) != 3:
        raise ConfigError(f"{name} has {len(values)} values", remedy="pass one per channel: red, green, blue")
    red, green, blue = (_number(name, v) for v in values)
    return red, green, blue


def _number(name: str, value: Any) -> float:
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ConfigError(f"{name} holds {value!r}, which is no finite number")
    return float(value)


def _check_tiles(tiles: Tensor) -> None:
    if tiles.dtype != torch.uint8:
        raise ConfigError(f"tiles are {tiles.dtype}, not uint8", remedy="normalise bytes, once")
    if tiles.ndim != 4 or tiles.shape[1] != 3:
        raise ConfigError(f"tiles have the shape {tuple(tiles.shape)}", remedy="pass (N, 3, H, W)")


def check_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return a valid dtype of tiles; raise ConfigError if it is not float16, bfloat16 or float32."""
    if dtype not in TILE_DTYPES:
        names = ", ".join(str(d) for d in TILE_DTYPES)
        raise ConfigError(f"tiles cannot be {dtype!r}", remedy=f"pass one of {names}")
    return dtype
