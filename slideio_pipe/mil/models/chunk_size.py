"""How many tiles fit into memory at a time, found by trying."""

from __future__ import annotations

import gc

import torch
from torch import Tensor, nn

from slideio_pipe.streaming.device import on_device


def chunk_that_fits(encoder: nn.Module, tiles: Tensor) -> int:
    """Return the largest half, quarter, … of some tiles that the encoder takes with its graph; 0 when not even one.

    Parameters
    ----------
    encoder : nn.Module
    tiles : (n, 3, H, W) tensor
        A chunk that did not fit.
    """
    count = len(tiles) // 2
    while count:
        gc.collect()  # what the failed attempt still holds in cycles
        if tiles.device.type == "cuda":
            torch.cuda.empty_cache()
        if _fits(encoder, tiles[:count]):
            return count
        count //= 2
    return 0


def _fits(encoder: nn.Module, tiles: Tensor) -> bool:
    """Return whether the encoder takes tiles with their graph; what was computed is freed, whether it does or not."""
    parameters = [p for p in encoder.parameters() if p.requires_grad]
    try:
        with on_device(tiles.device), torch.enable_grad():
            out = encoder(tiles).sum()
            if parameters:
                torch.autograd.grad(out, parameters, allow_unused=True)
    except torch.OutOfMemoryError:
        return False
    return True
