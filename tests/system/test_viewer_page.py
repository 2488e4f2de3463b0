"""The viewer's page in a real browser: what is on the screen equals the pixels of the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser
from made_slides import made_slide
from pixel_noise import decibels

import slideio_pipe as sp


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated slide of 4000×3000 px with a lesion."""
    path = tmp_path_factory.mktemp("slides") / "a.svs"
    made_slide(path, size=(4000, 3000), seed=5, lesions=1, pieces=1)
    return path


def test_the_screen_shows_the_slides_pixels(browser: Browser, slide_file: Path) -> None:
    """At full resolution every pixel of the screen is one of the slide, within the error of JPEG."""
    with sp.explore(slide_file) as viewer, sp.open_slide(slide_file) as slide:
        browser.open(viewer.url)
        browser.look_at(1400, 1100)
        seen = browser.pixels()
        height, width = seen.shape[:2]
        assert decibels(seen, slide.read_region((1400, 1100), 0, (width, height))) > 38
        assert browser.get("viewer.main.level0At(0, 0)") == pytest.approx([1400, 1100], abs=0.01)
    assert not browser.problems


def test_what_the_page_says(browser: Browser, slide_file: Path) -> None:
    """Magnification, coordinates under the pointer and the scale bar are those of the slide."""
    with sp.explore(slide_file) as viewer:
        browser.open(viewer.url)
        assert browser.text("#name") == "a.svs"
        assert "4,000 × 3,000 px · 0.25 µm per pixel · 1 mm × 750 µm" in browser.text("#facts")
        browser.look_at(1000, 800)
        assert browser.text("#zoom") == "40× · 0.25 µm per pixel"
        box = browser.page.locator("#augmented").bounding_box()
        browser.page.mouse.move(box["x"] + 100.5, box["y"] + 40.5)
        assert browser.text("#at") == "x 1,100, y 840 px · x 275 µm, y 210 µm"
        assert browser.text("#scale-text") == "20 µm"
        assert browser.get("document.getElementById('scale-line').getBoundingClientRect().width") == pytest.approx(
            80, abs=0.5
        )


def test_keys(browser: Browser, slide_file: Path) -> None:
    """Keys zoom, move, show the whole slide and the help, and change the surround."""
    with sp.explore(slide_file) as viewer:
        browser.open(viewer.url)
        whole = browser.get("viewer.readout.shrink")
        browser.page.keyboard.press("f")
        browser.until("Math.abs(viewer.readout.shrink - 1) < 1e-3")
        before = browser.get("viewer.main.level0At(0, 0)")
        browser.page.keyboard.press("ArrowRight")
        browser.until(f"viewer.main.level0At(0, 0)[0] > {before[0]} + 50")
        browser.page.keyboard.press("0")
        browser.until(f"Math.abs(viewer.readout.shrink / {whole} - 1) < 1e-3")
        browser.page.keyboard.press("?")
        assert browser.page.locator("#help").is_visible()
        browser.page.keyboard.press("Escape")
        first = browser.get("document.documentElement.dataset.surround")
        browser.page.keyboard.press("d")
        assert {first, browser.get("document.documentElement.dataset.surround")} == {"dark", "light"}


def test_the_place_under_the_pointer_stays_at_full_resolution(browser: Browser, slide_file: Path) -> None:
    """``f`` zooms to the pointer; a click there gives the Python of a region with that place in its middle."""
    with sp.explore(slide_file) as viewer:
        browser.open(viewer.url)
        box = browser.page.locator("#augmented").bounding_box()
        at = (box["width"] / 3, box["height"] / 2)
        browser.page.mouse.move(box["x"] + at[0], box["y"] + at[1])
        before = browser.get(f"viewer.main.level0At({at[0]}, {at[1]})")
        browser.page.keyboard.press("f")
        browser.until("Math.abs(viewer.readout.shrink - 1) < 1e-3")
        after = browser.get(f"viewer.main.level0At({at[0]}, {at[1]})")
        assert after == pytest.approx(before, abs=2)
        browser.page.mouse.click(box["x"] + at[0], box["y"] + at[1])
        left, top = (int(place) - 256 for place in browser.get(f"viewer.main.level0At({at[0]}, {at[1]})"))
        assert f"slide.region({left}, {top}, size=512)" in browser.text("#place")


@pytest.mark.parametrize(("width", "height"), [(1024, 640), (1280, 800), (2560, 1440)])
def test_everything_is_inside_the_window(
    started: Any, slide_file: Path, tmp_path: Path, width: int, height: int
) -> None:
    """On a laptop and on a large screen nothing is cut off at the right, whatever the name of the slide."""
    longest = tmp_path / f"{'a long name of a slide ' * 6}.svs"
    longest.write_bytes(slide_file.read_bytes())
    window = started.new_page(viewport={"width": width, "height": height})
    browser = Browser(window)
    with sp.explore([longest, slide_file]) as viewer:
        browser.open(viewer.url)
        for part in ("#bar", "#panel", "#status", "#panel-toggle", "#zoom", "#stage", "[data-copy=json]"):
            box = browser.page.locator(part).bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
        for heading in browser.page.locator("#panel summary:visible").all():
            if "Load a draw" not in heading.inner_text():
                box = heading.bounding_box()
                assert 0 <= box["y"] <= height - box["height"]
    window.close()


def test_a_slide_without_resolution(browser: Browser) -> None:
    """Lengths are in pixels, and the page says so."""
    pixels = np.random.default_rng(0).integers(0, 255, (600, 900, 3), np.uint8)
    with sp.explore(sp.open_slide(pixels)) as viewer:
        browser.open(viewer.url)
        assert "resolution unknown" in browser.text("#facts")
        assert browser.text("#scale-text").endswith(" px")


def test_the_server_ends(browser: Browser, slide_file: Path) -> None:
    """If the viewer ends, the page says so."""
    viewer = sp.explore(slide_file)
    browser.open(viewer.url)
    viewer.close()
    browser.page.evaluate("() => viewer.main.lookAt([1000, 800], 1)")
    browser.until("!document.getElementById('notice').hidden")
    assert "The viewer has ended" in browser.text("#notice")
