"""A slide, what a model looked at, and the tiles it looked at most, in one picture.

    python examples/heatmap.py run/best.ckpt a.svs --out heatmap.jpg

``examples/heatmap.jpg`` is of a generated slide with one lesion of 2 % of its tissue, which no training saw, and of a
model trained end to end on 20 others, each with nothing but a label: ``tests/benchmarks/mil.py stain`` trains it, from
``configs/mil-end-to-end.yaml``, and makes the slide, ``fresh-usual/slides/s01.svs``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

import slideio_pipe as sp


def draw(predictor: sp.Predictor, path: Path, width: int = 1400) -> Image.Image:
    """Return the picture, ``width`` px wide."""
    with sp.open_slide(path) as slide:
        prediction = predictor.predict(path)
        parts = [prediction.plot(slide), prediction.plot_tiles(slide, 8)]
    parts = [part.resize((width, round(part.height * width / part.width)), Image.Resampling.LANCZOS) for part in parts]
    sheet = Image.new("RGB", (width, sum(part.height for part in parts)), "white")
    sheet.paste(parts[0], (0, 0))
    sheet.paste(parts[1], (0, parts[0].height))
    return sheet


def main() -> None:
    """Read the command line and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--out", type=Path, default=Path("heatmap.jpg"))
    given = parser.parse_args()
    draw(sp.load_predictor(given.checkpoint), given.slide).save(given.out, quality=84)


if __name__ == "__main__":
    main()
