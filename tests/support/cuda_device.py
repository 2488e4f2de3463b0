"""Devices that tests run on: the CPU, and the CUDA device that ``TEST_CUDA_DEVICE`` names, else the current one."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

CUDA = os.environ.get("TEST_CUDA_DEVICE", "cuda")
DEVICES = ["cpu", pytest.param(CUDA, marks=pytest.mark.cuda, id="cuda")]


def simulated() -> Any:
    """Return the simulation, whose memory and waits can be counted; skip the test where devices are not simulated."""
    if "cuda_sim.plugin" not in sys.modules:
        pytest.skip("tests/system/test_cuda_sim.py runs this with the simulated devices")
    from cuda_sim.scheduler import simulation

    return simulation()
