"""A small convolutional network, for end-to-end training without anybody's weights."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from slideio_pipe.errors import ConfigError


class SmallEncoder(nn.Sequential):
    """Tiles of any size, (n, 3, H, W), to (n, features): four strided convolutions and the mean over the tile.

    98,000 parameters with the defaults, 4 million multiplications for a tile of 64 px. Normalises each tile by itself
    (group norm), so that training in chunks is exact.

    Parameters
    ----------
    features : int
        D, a multiple of 32.

    Raises
    ------
    ConfigError
        It is not.
    """

    def __init__(self, features: int = 128) -> None:
        if features < 32 or features % 32:
            raise ConfigError(f"{features} features", remedy="pass a multiple of 32")
        widths = (3, features // 8, features // 4, features // 2, features)
        blocks: list[nn.Module] = []
        for before, after in pairwise(widths):
            blocks += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(4, after),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.features = features
