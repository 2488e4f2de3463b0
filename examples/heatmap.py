"""A slide with the attention of a model, and its tiles with the highest attention, in one picture.

    python examples/heatmap.py run/best.ckpt a.svs --out heatmap.jpg

``examples/guide/pictures/heatmap.jpg`` shows a generated slide with a lesion of 2 % of its tissue, not used for
training, and a model trained end to end on 20 other slides with one label each: ``tests/benchmarks/mil.py stain``
trains it with ``configs/mil-end-to-end.yaml`` and makes the slide, ``fresh-usual/slides/s01.svs``.
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
