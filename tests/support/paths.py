"""Paths in the checkout."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS, CONFIGS = ROOT / "tests", ROOT / "configs"
SUPPORT, BENCHMARKS = TESTS / "support", TESTS / "benchmarks"
SEARCHED = os.pathsep.join([str(ROOT), str(SUPPORT)])  # PYTHONPATH of a process that imports helpers
MADE_SLIDES = "SLIDEIO_PIPE_MADE_SLIDES"  # the environment variable with the folder of slides that tests share
