"""Two screenshots of the slide viewer in one picture: a slide turned and stained by hand, whole and at its nuclei.

    pip install playwright && apt-get install chromium
    python examples/viewer_picture.py a.svs --out viewer.jpg

``examples/viewer.jpg`` shows a generated slide: ``sp.write_synthetic_slide("a.svs", size=(12000, 9000), seed=4)``.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import time
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

import slideio_pipe as sp

DRAW = {"haematoxylin": 1.35, "eosin": 0.6, "hue": 0.02, "turn": 20}
SIZE = {"width": 1280, "height": 720}


def screenshots(slide: Path, x: float, y: float) -> list[Image.Image]:
    """Return the viewer with the whole slide, and with the nuclei at level-0 px (x, y)."""
    with sp.explore(slide) as viewer, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, color_scheme="dark")
        page.goto(viewer.url)
        page.click("text=Side by side")
        for name, value in DRAW.items():
            page.evaluate(f"() => viewer.augmentation.set({json.dumps(name)}, {value}, true)")
        whole = _shot(page)
        page.evaluate(f"() => viewer.main.lookAt([{x}, {y}], 1.0)")
        return [whole, _shot(page)]


def _shot(page: Any) -> Image.Image:
    """Return the page when its tiles are there."""
    time.sleep(4)
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def main() -> None:
    """Read the command line and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--at", type=float, nargs=2, default=(5050, 5250), metavar=("X", "Y"), help="level-0 px")
    parser.add_argument("--out", type=Path, default=Path("viewer.jpg"))
    given = parser.parse_args()
    shots = screenshots(given.slide, *given.at)
    sheet = Image.new("RGB", (shots[0].width, sum(shot.height for shot in shots) + 8), "white")
    sheet.paste(shots[0], (0, 0))
    sheet.paste(shots[1], (0, shots[0].height + 8))
    sheet.save(given.out, quality=82)


if __name__ == "__main__":
    main()
