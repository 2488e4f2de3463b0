"""Which tiles share few stored tiles, counted one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pyramids import write_pyramid

from slideio_pipe import open_slide
from slideio_pipe.slides.sampling import Sampler


def test_tiles_that_need_stored_tiles_of_their_own_are_scattered(tmp_path: Path) -> None:
    """Also outside the slide: three quarters of those that they would need if none were shared."""
    pixels = np.zeros((640, 900, 3), np.uint8)
    view = open_slide(write_pyramid(tmp_path / "a.tif", pixels, (1,), tile=64, compression="jpeg")).view()
    sampler, rng = Sampler(view.slide), np.random.default_rng(0)
    answers = []
    for _ in range(200):
        corners, side = rng.integers(-300, rng.integers(0, 2500), (rng.integers(5, 30), 2)), int(rng.integers(20, 200))
        needed = [
            (x, y)
            for left, top in corners.tolist()
            for y in range(top // 64, (top + side - 1) // 64 + 1)
            for x in range(left // 64, (left + side - 1) // 64 + 1)
        ]
        answers.append(len(set(needed)) > 0.75 * len(needed))
        assert sampler.scattered(view.choice, corners, side) == answers[-1]
    assert 20 < sum(answers) < 180
