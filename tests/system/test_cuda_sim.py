"""Tests marked ``cuda`` on a simulated, asynchronous CUDA: see tests/support/cuda_sim/README.md."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_sim.install import build, reason_not_to
from paths import ROOT, SEARCHED, TESTS

FILES = (
    "streaming/stream", "streaming/device", "streaming/ring", "streaming/loader", "streaming/stream_colours",
    "streaming/reading_workers", "streaming/views", "streaming/ranges", "streaming/context",
    "features/encode_bag", "features/encoders", "mil/two_pass",
)  # fmt: skip
# Minutes of arithmetic on one stream, without waits; "stream_colours" runs the same between streams.
ALSO_KNOWING_A_DEVICE = {"augment/device"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the library, compiled once."""
    reason = reason_not_to()
    if reason is not None:
        pytest.skip(reason)
    made = tmp_path_factory.mktemp("cuda_sim")
    build(made)
    return made


def run(folder: Path, device: str, *files: str) -> str:
    """Run tests in a process of its own, and return what pytest printed."""
    paths = os.pathsep.join([SEARCHED, os.environ.get("PYTHONPATH", "")])
    known = {"PYTHONPATH": paths, "CUDA_SIM_BUILD": str(folder), "TEST_CUDA_DEVICE": device}
    options = ["-n", "0", "-p", "cuda_sim.plugin", "-p", "no:cacheprovider", "-m", "cuda"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        cwd=ROOT,
        env=os.environ | known,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_all_work_waits_for_its_inputs(folder: Path, device: str) -> None:
    """As late as possible and in two random orders; on the second device from threads whose device is the first."""
    output = run(folder, device, *(f"tests/{name.replace('/', '/test_')}.py" for name in FILES))
    assert " passed" in output
    assert "skipped" not in output


def test_every_file_with_cuda_tests_is_run() -> None:
    """None is missing in the list."""
    found = {path for path in TESTS.glob("*/test_*.py") if "\nfrom cuda_device import" in path.read_text()}
    names = {f"{path.parent.name}/{path.stem.removeprefix('test_')}" for path in found}
    assert names == {*FILES, *ALSO_KNOWING_A_DEVICE}


def test_this_process_has_no_simulated_devices() -> None:
    """A search for doctests in every module would import the plugin, which installs them."""
    assert "cuda_sim.plugin" not in sys.modules


def test_missing_waits_are_noticed(folder: Path) -> None:
    """Each removed safeguard makes a result wrong."""
    assert "15 passed" in run(folder, "cuda:1", "tests/support/cuda_sim/test_safeguards.py")
