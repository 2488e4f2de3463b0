"""A small convolutional network for end-to-end training without pretrained weights."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from slideio_pipe.errors import ConfigError


class SmallEncoder(nn.Sequential):
    """Tiles of any size, (n, 3, H, W), to (n, features): four strided convolutions and the mean over the tile.

    61,000 parameters with the defaults, 3.4 million multiplications for a tile of 64 px. Without normalisation layers:
    the darkness of a tile relative to others is a useful feature; such a network needs He's initialisation (He et al.
    2015). Raise ConfigError if ``features`` is not a multiple of 4.

    Parameters
    ----------
    features : int
        D, a multiple of 4.
    """

    def __init__(self, features: int = 64) -> None:
        if features < 4 or features % 4:
            raise ConfigError(f"{features} features", remedy="pass a multiple of 4")
        widths = (3, features // 4, features // 2, features, features)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            convolution = nn.Conv2d(before, after, 3, stride=2, padding=1)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            convolution.bias = nn.Parameter(torch.zeros(after))  # random ones would dominate pale stains
            layers += [convolution, nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.features = features
