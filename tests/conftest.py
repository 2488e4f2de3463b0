"""Fixtures that several test modules share: real slides when they are there, and slides that encode coordinates."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from pyramids import coordinate_pixels, write_pyramid
from unequal_slide import unequal as unequal  # a fixture

# Tests press Ctrl-C; what a shell starts in its background would ignore it, and so would whatever that starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

collect_ignore_glob = ["mut*.py"]  # mutants.py needs cosmic-ray, in an environment of its own

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real slides; tests that need it are skipped where it is missing."""
    if not SHARED.is_dir():
        pytest.skip("the folder of real slides is not beside this checkout")
    return SHARED


@pytest.fixture
def coordinate_slide(tmp_path: Path) -> Path:
    """A 1000×700 pyramid (levels 1, 4, 16; mpp 0.25) whose pixels encode their own coordinates."""
    return write_pyramid(tmp_path / "coordinates.tif", coordinate_pixels(1000, 700))
