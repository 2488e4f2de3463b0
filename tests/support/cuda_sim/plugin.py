"""A pytest plugin: tests marked ``cuda`` run on simulated devices, once for every order in which work may be done."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cuda_sim.install import build, install, reset

ORDERS = [("lazy", 0), ("random", 1), ("random", 2)]

install(build(Path(os.environ.get("CUDA_SIM_BUILD") or tempfile.mkdtemp())))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test in every order."""
    if metafunc.definition.get_closest_marker("one_order") is None:
        names = [policy if policy == "lazy" else f"{policy}{seed}" for policy, seed in ORDERS]
        metafunc.parametrize("simulated_cuda", ORDERS, ids=names, indirect=True)


@pytest.fixture(autouse=True)
def simulated_cuda(request: pytest.FixtureRequest) -> Iterator[None]:
    """Reset the simulation; check for races, and for contexts on devices that were not used.

    Used by every test: pytest leaves out a fixture that is only added to the names of a test.
    """
    if not hasattr(request, "param"):  # the test chooses its order itself
        yield
        return
    sim = reset(*request.param)
    yield
    assert not sim.races, f"{len(sim.races)} races; the first: {sim.races[0]}"
    if os.environ.get("TEST_CUDA_DEVICE") == "cuda:1":
        assert 0 not in sim.contexts, "something made a context on device 0"
