"""Parts of installed packages where they are used: encoders by name, and ``slideio-pipe doctor``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from own_modules import imports_from, write_distribution

from slideio_pipe import load_encoder
from slideio_pipe.commands.doctor.parts import examine_parts
from slideio_pipe.errors import ConfigError, PartNameWarning
from slideio_pipe.features.encoders.known import known_encoders
from slideio_pipe.features.encoders.own_encoder import encoder_of_package

ENCODER = """
from torch import nn
from slideio_pipe import load_encoder

def make():
    network = nn.Sequential(nn.Conv2d(3, 5, 7, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return load_encoder(network, name="hers", normalize="half", input_size=32)

def network():
    return nn.Sequential(nn.Conv2d(3, 4, 7, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def wrong():
    return 5
"""


def test_an_encoder_of_a_package(tmp_path: Path) -> None:
    """Which makes an ``Encoder``, or a network whose tiles the caller describes; a name of ours stays ours."""
    ours = known_encoders()[0].name
    points = {"hers": "her_encoder:make", "plain": "her_encoder:network", "wrong": "her_encoder:wrong", ours: "x:y"}
    write_distribution(tmp_path, "her-package", {"encoders": points})
    (tmp_path / "her_encoder.py").write_text(ENCODER)
    with imports_from(tmp_path):
        encoder = load_encoder("hers")
        assert (encoder.name, encoder.dim) == ("hers", 5)
        network = load_encoder("plain", normalize="half", input_size=32)
        assert (network.name, network.dim) == ("plain", 4)
        assert network.module(torch.zeros(2, 3, 32, 32)).shape == (2, 4)
        with pytest.raises(ConfigError, match=r"wrong of her-package 1\.0: it is a int, neither an nn\.Module nor"):
            load_encoder("wrong")
        with pytest.warns(PartNameWarning, match=f'brings the encoder "{ours}"; the one of slideio-pipe is used'):
            assert encoder_of_package(ours, known=True) is None


def test_doctor_lists_each_part(tmp_path: Path) -> None:
    """With its package; a broken one stops no other, and a name that is taken is said."""
    points = {"tissue": {"gone": "not_there_at_all:x", "fine": "her_fine:x"}, "layouts": {"clam": "her_fine:x"}}
    write_distribution(tmp_path, "her-package", points, "2.0")
    (tmp_path / "her_fine.py").write_text("x = 1\n")
    assert examine_parts() == []
    with imports_from(tmp_path):
        found = {finding.what: finding for finding in examine_parts()}
    assert found["tissue method fine"].status == "ok"
    assert found["tissue method fine"].found == "of her-package 2.0 (her_fine:x)"
    assert found["tissue method gone"].status == "broken"
    assert "not_there_at_all" in found["tissue method gone"].found
    assert found["layout clam"].found == "of her-package 2.0 is not used: the name is taken"
