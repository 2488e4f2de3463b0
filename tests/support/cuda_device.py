"""Devices that tests run on: the CPU, and the CUDA device that ``TEST_CUDA_DEVICE`` names, else the current one."""

from __future__ import annotations

import os

import pytest

CUDA = os.environ.get("TEST_CUDA_DEVICE", "cuda")
DEVICES = ["cpu", pytest.param(CUDA, marks=pytest.mark.cuda, id="cuda")]
