"""Transforms of every kind that draws a tile, by name, and the draws of ten tiles each as version 0.1.0 made them.

``python tests/support/drawn_transforms.py`` writes ``stored_draws.json.gz`` again: only for a new transform, as stored
draws must never change.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import albumentationsxl as A

import slideio_pipe as sp

STORED = Path(__file__).with_name("stored_draws.json.gz")
SIZE = (97, 61)
KEY: dict[str, Any] = {"seed": 7, "epoch": 3, "slide": "µ.svs", "size": SIZE}
TILES = (0, 1, 2, 3, 5, 8, 13, 21, 34, 10**6)


def classic(*colours: A.BasicTransform) -> A.Compose:
    """Return the usual transform of a bag's tiles, with more colours."""
    return A.Compose(
        [
            sp.RandomAffine(rotate=25), sp.RandomResizedCrop((224, 224), scale=(0.5, 1.5)), A.HorizontalFlip(p=0.5),
            A.VerticalFlip(p=0.5), sp.ColorJitter(0.2, 0.2, 0.2, 0.05), *colours,
        ]
    )  # fmt: skip


BASIS = ((0.6, 0.7, 0.3), (0.1, 0.9, 0.2), (0.3, 0.5, 0.8))

TRANSFORMS: dict[str, Any] = {
    "classic": classic(),
    "classic with stains": classic(sp.StainJitter(beta=0.05)),
    "RandomAffine": sp.RandomAffine(rotate=180, scale=0.3, shear=20, translate=0.1),
    "RandomAffine without a flip": sp.RandomAffine(rotate=(90, 90), flip=False),
    "RandomAffine of nothing": sp.RandomAffine(rotate=0),
    "Flip": sp.Flip(p=0.8),
    "Flip left-right": sp.Flip(vertical=False),
    "Rotate90": sp.Rotate90(p=0.8),
    "RandomResizedCrop": sp.RandomResizedCrop((64, 48)),
    "StainJitter": sp.StainJitter(alpha=(0.7, 1.2), p=0.7),
    "StainJitter of nothing": sp.StainJitter(alpha=(1, 1), beta=0.1),
    "StainJitter of a basis": sp.StainJitter(basis=BASIS, beta=(0, 0.1)),
    "StainNormalize": sp.StainNormalize(basis="hed", p=0.5),
    "ColorJitter": sp.ColorJitter(0.2, 0.3, 0.4, 0.5, pivot=0.4),
    "ColorJitter of nothing": sp.ColorJitter(0.2, 0, 0, 0),
    "ColorJitter above 1": sp.ColorJitter(3, 2, 1, (0.1, 0.2)),
    "GaussianNoise": sp.GaussianNoise(p=0.7),
    "RandStainNA": sp.RandStainNA(source="cohort"),
    "NoOp": A.NoOp(p=1),
    "HorizontalFlip": A.HorizontalFlip(),
    "VerticalFlip": A.VerticalFlip(),
    "A.Flip": A.Flip(p=0.8),
    "Transpose": A.Transpose(),
    "RandomRotate90": A.RandomRotate90(p=0.8),
    "Rotate": A.Rotate(limit=45),
    "Affine": A.Affine(scale=(0.8, 1.2), translate_px=(-5, 9), rotate=30, shear=(-10, 10), p=0.8),
    "Affine by percent": A.Affine(scale=(0.8, 1.2), translate_percent=(-0.1, 0.2), keep_ratio=True, p=1),
    "Affine along x": A.Affine(translate_px={"x": (2, 9)}, shear={"x": (3, 9)}, p=1),
    "Affine that fits": A.Affine(rotate=(-90, 90), fit_output=True, p=0.8),
    "RandomScale": A.RandomScale((-0.4, 0.7), p=0.8),
    "LongestMaxSize": A.LongestMaxSize([30, 60, 90], p=0.8),
    "SmallestMaxSize": A.SmallestMaxSize(50, p=0.8),
    "Resize": A.Resize(40, 80, p=0.8),
    "Crop": A.Crop(3, 5, 17, 25, p=0.8),
    "CenterCrop": A.CenterCrop(11, 20, p=0.8),
    "RandomCrop": A.RandomCrop(30, 41, p=0.8),
    "CropOrPad": A.CropOrPad(50, 151, p=0.8),
    "CropOrPad in a corner": A.CropOrPad(33, 135, p=1, direction="north-east"),
    "RandomBrightnessContrast": A.RandomBrightnessContrast(0.2, 1.5, p=0.8),
    "RandomBrightnessContrast of nothing": A.RandomBrightnessContrast(0, 0, p=0.8),
    "RandomGamma": A.RandomGamma(p=0.8),
    "HueSaturationValue": A.HueSaturationValue(p=0.8),
    "HEDShift": A.HEDShift(p=0.8),
    "GaussNoise": A.GaussNoise(mean=3, p=0.8),
    "Blur": A.Blur(p=0.8),
    "Compose of a half": A.Compose([A.HorizontalFlip(always_apply=True), sp.ColorJitter(), A.VerticalFlip()], p=0.5),
    "Compose inside": A.Compose([A.Compose([A.Transpose(), sp.Rotate90()], p=0.6), A.Resize(30, 20, p=1)]),
    "Sequential": A.Sequential([A.HorizontalFlip(), A.RandomGamma()], p=0.1),
    "OneOf": A.OneOf([sp.ColorJitter(), A.HueSaturationValue(p=2), A.Transpose(p=0.5), A.NoOp()], p=0.8),
    "SomeOf": A.SomeOf([A.HorizontalFlip(), A.Transpose(), sp.ColorJitter(), sp.Flip()], n=3),
    "SomeOf without replacement": A.SomeOf([A.Transpose(), sp.Rotate90(), A.CropOrPad(70, 80)], n=2, replace=False),
    "OneOrOther": A.OneOrOther(A.RandomGamma(), A.Sequential([A.GaussNoise(), A.HEDShift()]), p=0.3),
    "geometry in a row": A.Compose(
        [A.RandomRotate90(), A.RandomCrop(50, 50), sp.RandomAffine(), A.RandomScale(0.3), A.Affine(fit_output=True)]
    ),
    "many": A.Compose(
        [
            sp.StainJitter(beta=0.05), A.OneOf([sp.ColorJitter(), A.HueSaturationValue(p=2)], p=0.8),
            A.SomeOf([A.HorizontalFlip(), sp.Rotate90(), sp.RandomAffine(scale=0.2)], n=2, replace=True),
            A.OneOrOther(A.RandomBrightnessContrast(), A.Sequential([A.GaussNoise(), A.RandomGamma()])),
            sp.GaussianNoise(),
        ]
    ),
}  # fmt: skip


def stored() -> dict[str, list[Any]]:
    """Return the stored draws of ``TILES``, as JSON values."""
    values: dict[str, list[Any]] = json.loads(gzip.decompress(STORED.read_bytes()))
    return values


def draws() -> dict[str, list[Any]]:
    """Return the draws of ``TILES`` of every transform, one by one, as JSON values."""
    return {name: [sp.draw(each, tile=k, **KEY).to_json() for k in TILES] for name, each in TRANSFORMS.items()}


if __name__ == "__main__":
    STORED.write_bytes(gzip.compress(json.dumps(draws(), separators=(",", ":")).encode(), 9, mtime=0))
