"""A composition that has one transform of every kind."""

from __future__ import annotations

import albumentationsxl as A

from slideio_pipe.augment.colour_transforms import ColorJitter, GaussianNoise, StainJitter
from slideio_pipe.augment.geometric_transforms import RandomAffine, Rotate90
from slideio_pipe.geometry import Size

SIZE = Size(400, 300)


def rich() -> A.Compose:
    """One of everything."""
    return A.Compose(
        [
            StainJitter(beta=0.05),
            A.OneOf([ColorJitter(), A.HueSaturationValue(p=2)], p=0.8),
            A.SomeOf([A.HorizontalFlip(), Rotate90(), RandomAffine(scale=0.2)], n=2, replace=False),
            A.OneOrOther(A.Blur(), A.Sequential([A.GaussNoise(), A.RandomGamma()])),
            GaussianNoise(),
        ]
    )
