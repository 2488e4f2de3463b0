"""``ConvStem``: the convolutions with which CTransPath turns a tile into tokens, for timm's Swin transformer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class ConvStem(nn.Module):
    """Convolutions of 3×3 px with stride 2 until a token covers ``patch_size`` px, then one of 1×1.

    Early convolutions in place of cutting a tile into patches (Xiao et al. 2021, arXiv:2106.14881), as in CTransPath
    (Wang et al. 2022): two convolutions without bias, of an eighth and a quarter of the width, each with a batch norm
    and a ReLU.

    Parameters
    ----------
    img_size, patch_size : int
        Side of the tile, and of the px of a token.
    embed_dim : int
        Width of a token.
    norm_layer : callable, optional
        Norm of the tokens.
    others
        Arguments of timm for its own layer that have no meaning here.
    """

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
        norm_layer: Callable[[int], nn.Module] | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        del others
        side = img_size if isinstance(img_size, int) else img_size[0]
        self.img_size, self.patch_size = (side, side), (patch_size, patch_size)
        self.grid_size = (side // patch_size, side // patch_size)
        steps = int(math.log2(patch_size))
        layers: list[nn.Module] = []
        before = in_chans
        for step in range(steps):
            width = embed_dim // 2 ** (steps + 1 - step)
            layers += [nn.Conv2d(before, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            before = width
        self.proj = nn.Sequential(*layers, nn.Conv2d(before, embed_dim, 1))
        self.norm = nn.Identity() if norm_layer is None else norm_layer(embed_dim)

    def forward(self, tiles: Tensor) -> Tensor:
        """Return (n, h, w, D) tokens."""
        found: Tensor = self.norm(self.proj(tiles).permute(0, 2, 3, 1))
        return found
