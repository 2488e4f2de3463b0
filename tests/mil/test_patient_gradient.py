"""End to end by patient: the gradient over all slides is that of plain back-propagation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from array_loader import bag, open_loader
from small_networks import encoder, gradients, model
from torch import Tensor

import slideio_pipe as sp
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.patients import by_patient
from slideio_pipe.mil.bag_tiles import PixelBag
from slideio_pipe.mil.config import load_train_config
from slideio_pipe.mil.models.two_pass import TwoPass
from slideio_pipe.mil.sources import PixelSource

SIZE = (12, 12)


def bags() -> list[Any]:
    return [bag(f"s{k}", count, size=SIZE) for k, count in enumerate((9, 1, 14))]


def prepare(tiles: Tensor) -> Tensor:
    return tiles.double() / 255


@pytest.mark.parametrize("keep_bytes", [0, 5000, 10**9], ids=["read again", "some kept", "kept"])
@pytest.mark.parametrize("chunk_size", [1, 5, 64])
@pytest.mark.parametrize("pool", ["gated", "mean", "max"])
def test_the_gradient_is_exact_over_all_slides_of_a_patient(pool: str, chunk_size: int, keep_bytes: int) -> None:
    """In double precision to 1e-9, for chunks that span slides, also if their tiles are read twice."""
    patient = sp.PatientBag(bags(), patient="P1", label=1)
    loader = open_loader([patient], ordered=True, chunk_size=chunk_size)
    chunks = iter(loader)
    tiles = PixelBag(next(chunks), chunks, loader.dataset, 0, 0, prepare, keep_bytes)
    network, head = encoder(), model(pool)
    encoded = TwoPass(network).encode(tiles)
    (head(encoded.features, tiles.coords).logits ** 2).sum().backward()
    encoded.backward()

    plain, plain_head = encoder(), model(pool)
    plain[1].eval()
    every = np.concatenate([slide[:] for slide in bags()])
    (plain_head(plain(prepare(torch.from_numpy(every).permute(0, 3, 1, 2)))).logits ** 2).sum().backward()
    wanted = gradients(plain, plain_head)
    found = gradients(network, head)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-9


def test_a_trainings_bags_are_the_tiles_of_all_slides_of_each_patient() -> None:
    slides = bags()
    cohort = sp.Cohort(
        CohortSlide(made, made.name, label=int(k == 2), patient="P1" if k == 2 else "P0")
        for k, made in enumerate(slides)
    )
    config = load_train_config({"unit": "patient", "encoder": {"source": "small", "chunk_size": 4}})
    source = PixelSource(by_patient(cohort), torch.device("cpu"), config, prepare, augment=True)
    found = {}
    for example in source.epoch(0, shuffle=True):
        assert example.pixels is not None
        found[example.number] = torch.cat(list(example.pixels))
    source.close()
    wanted = [np.concatenate([slides[0][:], slides[1][:]]), slides[2][:]]
    for number, tiles in enumerate(wanted):
        assert torch.equal(found[number], prepare(torch.from_numpy(tiles).permute(0, 3, 1, 2)))
