"""Tissue in the browser: sliders, drawing by hand, saving."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser
from command_line import run
from made_slides import made_slide

import slideio_pipe as sp
from slideio_pipe.export.config import load_config


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> sp.Slide:
    """A generated slide of 4000×3000 px."""
    path = tmp_path_factory.mktemp("slides") / "a.svs"
    made_slide(path, size=(4000, 3000), seed=5, lesions=1, pieces=1)
    return sp.open_slide(path)


def opened(browser: Browser, url: str) -> None:
    """Open the page with the part of tissue unfolded."""
    browser.open(url)
    browser.page.evaluate(
        "() => { document.getElementById('tissue').open = true; document.getElementById('augment').open = false }"
    )
    browser.page.keyboard.press("t")
    browser.until("!!viewer.layers.loaded.tissue")


def draw_around(browser: Browser, tool: str, ring: list[tuple[float, float]]) -> None:
    """Draw a ring of level-0 px with the mouse."""
    browser.page.click(f"[data-tool={tool}]")
    box = browser.page.locator("#augmented").bounding_box()
    places = browser.get(
        f"{json.dumps(ring)}.map(([x, y]) => {{ const [a, b, c, d, e, f] = viewer.main.level0ToScreen; "
        "return [a * x + b * y + c, d * x + e * y + f]; })"
    )
    mouse = browser.page.mouse
    mouse.move(box["x"] + places[0][0], box["y"] + places[0][1])
    mouse.down()
    for x, y in places[1:]:
        mouse.move(box["x"] + x, box["y"] + y, steps=3)
    mouse.up()
    browser.page.click(f"[data-tool={tool}]")


def test_sliders_are_the_settings(browser: Browser, slide: sp.Slide) -> None:
    """The mask follows the sliders: it is that of ``find_tissue`` with their values."""
    with sp.explore(slide) as viewer:
        opened(browser, viewer.url)
        browser.page.uncheck("#tissue-auto")
        browser.page.fill("#tissue-threshold", "0.3")
        true = sp.find_tissue(slide, threshold=0.3)
        browser.until(f"Math.abs(viewer.layers.loaded.tissue.facts.fraction - {true.fraction}) < 1e-6")
        browser.page.fill("#tissue-min_area_um2", "400")
        true = sp.find_tissue(slide, threshold=0.3, min_area_um2=400.0**2)
        browser.until(f"Math.abs(viewer.layers.loaded.tissue.facts.fraction - {true.fraction}) < 1e-6")
    assert not browser.problems


def test_the_threshold_is_moved_at_once(browser: Browser, slide: sp.Slide) -> None:
    """Moving the threshold ends the automatic one; ticking it again brings it back."""
    with sp.explore(slide) as viewer:
        opened(browser, viewer.url)
        automatic = browser.get("viewer.layers.loaded.tissue.facts.fraction")
        assert browser.page.is_checked("#tissue-auto")
        browser.page.fill("#tissue-threshold", "0.3")
        true = sp.find_tissue(slide, threshold=0.3)
        assert abs(true.fraction - automatic) > 0.01
        browser.until(f"Math.abs(viewer.layers.loaded.tissue.facts.fraction - {true.fraction}) < 1e-6")
        assert not browser.page.is_checked("#tissue-auto")
        browser.page.check("#tissue-auto")
        browser.until(f"Math.abs(viewer.layers.loaded.tissue.facts.fraction - {automatic}) < 1e-6")
    assert not browser.problems


def test_a_page_with_unsaved_drawings_asks_before_it_is_left(browser: Browser, slide: sp.Slide) -> None:
    """It asks once something is drawn; no longer when Ctrl+Z has taken that back."""
    asked: list[str] = []

    def answer(dialog: Any) -> None:
        asked.append(dialog.type)
        dialog.accept()

    browser.page.on("dialog", answer)
    with sp.explore(slide) as viewer:
        opened(browser, viewer.url)
        draw_around(browser, "add", [(10, 10), (900, 10), (900, 900), (10, 900)])
        browser.until("document.getElementById('edit-count').textContent === 'Drawn: 1 added.'")
        browser.open(viewer.url)
        assert asked == ["beforeunload"]
        opened(browser, viewer.url)
        draw_around(browser, "add", [(10, 10), (900, 10), (900, 900), (10, 900)])
        browser.until("document.getElementById('edit-count').textContent === 'Drawn: 1 added.'")
        browser.page.keyboard.press("Control+z")
        assert browser.text("#edit-count") == "Nothing is drawn."
        browser.open(viewer.url)
        assert asked == ["beforeunload"]


def test_a_corrected_mask_is_saved(browser: Browser, slide: sp.Slide, tmp_path: Path) -> None:
    """Tissue erased and a region drawn with the mouse are in the files that an export and QuPath read."""
    with sp.explore(slide, save_to=tmp_path / "saved") as viewer:
        opened(browser, viewer.url)
        middle = (1400.0, 1000.0, 2400.0, 1900.0)
        left, top, right, bottom = middle
        ring = [(left, top), (right, top), (right, bottom), (left, bottom)]
        before = sp.find_tissue(slide)
        inner = [[left + 50, top + 50, right - left - 100, bottom - top - 100]]
        assert before.fractions(inner)[0] > 0.5
        draw_around(browser, "erase", ring)
        browser.until(f"viewer.layers.loaded.tissue.facts.fraction < {before.fraction} - 0.02")
        draw_around(browser, "region", ring)
        assert browser.text("#edit-count") == "Drawn: 1 erased, 1 with a class."
        browser.page.click("#save")
        browser.until("document.getElementById('notice').textContent.startsWith('Saved')")
        browser.page.click("#notice")
        assert not browser.page.locator("#notice").is_visible()
        command = shlex.split(browser.text("#saved code"))
    saved = tmp_path / "saved"
    assert command[:3] == ["slideio-pipe", "export", "a.svs"]
    run("export", slide.path, *command[3:], "--out", tmp_path)
    tiles = np.asarray(sp.open_bag(tmp_path / "a.bag.zarr").coords)  # of 512 level-0 px
    assert len(tiles) > 0
    assert not ((tiles > (left - 64, top - 64)) & (tiles + 512 < (right + 64, bottom + 64))).all(1).any()
    assert sorted(file.name for file in saved.iterdir()) == ["a.geojson", "a.regions.geojson", "tissue.yaml"]
    after = sp.TissueMask.from_geojson(saved / "a.geojson", slide)
    assert after.fractions(inner)[0] == 0
    assert after.fraction < before.fraction
    assert load_config(saved / "tissue.yaml").tissue.method == "otsu"
    assert sp.Annotations.from_geojson(saved / "a.regions.geojson", slide=slide).regions[0].class_name == "Tumor"


def test_undo_and_download(browser: Browser, slide: sp.Slide, tmp_path: Path) -> None:
    """Undo takes an edit back; GeoJSON can be downloaded although the viewer saves nothing."""
    with sp.explore(slide) as viewer:
        opened(browser, viewer.url)
        assert not browser.page.locator("#save").is_visible()
        first = browser.get("viewer.layers.loaded.tissue.facts.fraction")
        draw_around(browser, "add", [(10, 10), (900, 10), (900, 900), (10, 900)])
        browser.until(f"viewer.layers.loaded.tissue.facts.fraction > {first} + 0.01")
        with browser.page.expect_download() as download:
            browser.page.click("#mask-download")
        file = tmp_path / download.value.suggested_filename
        download.value.save_as(file)
        assert file.name == "a.geojson"
        assert sp.TissueMask.from_geojson(file, slide).fractions([[100, 100, 600, 600]])[0] == 1
        browser.page.click("#undo")
        browser.until(f"Math.abs(viewer.layers.loaded.tissue.facts.fraction - {first}) < 1e-6")
