"""A page of the viewer in headless Chromium, which the tests drive through Playwright's Python package.

The browser is Debian's (`apt-get install chromium`): no browser is downloaded. Without it, or without Playwright, tests
are skipped.
"""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
# Graphics by software, which gives the same pixels everywhere.
OPTIONS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
PATIENCE_S = 60.0


class Browser:
    """A page that shows a viewer.

    Attributes
    ----------
    problems : list of str
        Errors of the page's own scripts, and of addresses that it could not load.
    """

    def __init__(self, page: Any) -> None:
        self.page = page
        self.problems: list[str] = []
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda message: message.type == "error" and self.problems.append(message.text))

    def open(self, url: str) -> None:
        """Open the viewer and wait until its slide is on the screen."""
        self.page.goto(url)
        self.until("!!window.viewer && !!viewer.slide")
        self.settled()

    def settled(self) -> None:
        """Wait until every tile of the main picture is there, and the draw that was asked for is shown."""
        self.frames()
        self.until("viewer.main.settled")
        self.frames()

    def frames(self) -> None:
        """Wait until what was asked for is drawn."""
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def until(self, condition: str) -> None:
        """Wait until an expression of the page is true. (The page's content policy forbids Playwright's own way.)"""
        end = time.monotonic() + PATIENCE_S
        while not self.page.evaluate(f"() => {condition}"):
            if time.monotonic() > end:
                raise AssertionError(f"not within {PATIENCE_S:.0f} s: {condition}; {self.problems}")
            time.sleep(0.02)

    def get(self, expression: str) -> Any:
        """Return the value of an expression of the page."""
        return self.page.evaluate(f"() => ({expression})")

    def text(self, selector: str) -> str:
        """Return the text of an element."""
        return str(self.page.inner_text(selector))

    def look_at(self, x: float, y: float, shrink: float = 1.0) -> None:
        """Show level-0 px (x, y) in the upper left corner, ``shrink`` level-0 px per px of the screen."""
        self.page.evaluate(f"() => viewer.main.lookAt({json.dumps([x, y])}, {shrink})")
        self.settled()

    def pixels(self, selector: str = "#augmented") -> NDArray[np.uint8]:
        """Return what is on the screen in an element, without the controls over it, (h, w, 3) uint8."""
        style = "#scale, #notice, .navigator, .tag, .overlay { visibility: hidden !important; }"
        added = self.page.add_style_tag(content=style)
        box = self.page.locator(selector).bounding_box()
        shot = self.page.screenshot(clip=box)
        added.evaluate("element => element.remove()")
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))


@contextmanager
def chromium() -> Iterator[Any]:
    """Start the browser; skip the test if there is none."""
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -e .[dev]")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        try:
            yield browser
        finally:
            browser.close()
