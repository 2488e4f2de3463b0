"""The table that the page colours with is within four levels of the operations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.ndimage import map_coordinates

import slideio_pipe as sp
from slideio_pipe.augment.executors.cpu import ColourProgram
from slideio_pipe.synthetic.slide import write_synthetic_slide
from slideio_pipe.viewer.colour_table import ENTRIES, colour_table


def test_interpolated_colours_are_those_of_the_operations(tmp_path: Path) -> None:
    """On tissue, what a graphics card interpolates is at most 4 levels from the exact colours, 0.6 in the mean."""
    path = tmp_path / "a.svs"
    write_synthetic_slide(path, size=(600, 450), seed=2, lesions=1, pieces=1)
    with sp.open_slide(path) as slide:
        plain = slide.read_region((0, 0), 0, (600, 450))
    draw = sp.build_draw((9, 9), haematoxylin=1.6, eosin=0.7, brightness=1.05, contrast=1.1, saturation=1.2, hue=0.03)
    table = np.frombuffer(colour_table(draw.operations), np.uint8).reshape(ENTRIES, ENTRIES, ENTRIES, 3)
    places = plain.reshape(-1, 3)[:, ::-1].T * ((ENTRIES - 1) / 255)  # blue, green, red
    channels = [map_coordinates(table[..., k].astype(np.float32), places, order=1, mode="nearest") for k in range(3)]
    found = np.stack(channels, axis=1).round()
    true = ColourProgram(draw.operations).apply(plain).reshape(-1, 3).astype(int)
    assert np.abs(found - true).max() <= 4
    assert np.abs(found - true).mean() < 0.6
