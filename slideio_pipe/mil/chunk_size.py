"""How many tiles fit into memory at a time, found by trying."""

from __future__ import annotations

import gc

import torch
from torch import Tensor, nn


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
        try:
            parameters = [p for p in encoder.parameters() if p.requires_grad]
            with torch.enable_grad():
                out = encoder(tiles[:count]).sum()
            if parameters:
                torch.autograd.grad(out, parameters, allow_unused=True)
        except torch.OutOfMemoryError:
            count //= 2
        else:
            return count
    return 0
