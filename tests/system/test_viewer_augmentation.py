"""A slide under a live draw in the browser: sliders, preview, exact tiles, seeds, copies."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import albumentationsxl as A
import numpy as np
import pytest
import yaml
from browser import Browser
from made_slides import made_slide
from numpy.typing import NDArray
from pixel_noise import decibels

import slideio_pipe as sp
from slideio_pipe.geometry import Size
from slideio_pipe.slides.view import SlideView
from slideio_pipe.viewer.tile_source import ViewTiles

PLACE = (1500, 1200)  # level-0 px, in tissue
TRANSFORM = A.Compose([sp.StainJitter(alpha=0.4), sp.ColorJitter(), sp.RandomAffine(rotate=(10, 60))])


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> sp.Slide:
    """A generated slide of 4000×3000 px."""
    path = tmp_path_factory.mktemp("slides") / "a.svs"
    made_slide(path, size=(4000, 3000), seed=5, lesions=1, pieces=1)
    return sp.open_slide(path)


def move(browser: Browser, **values: float) -> None:
    """Move sliders to values, as a hand does, and wait for the exact tiles."""
    for name, value in values.items():
        browser.page.evaluate(f"() => viewer.augmentation.set({json.dumps(name)}, {value}, true)")
    browser.until("viewer.augmentation.exactShown && !viewer.augmentation.asking")
    browser.settled()


def look(browser: Browser, view: SlideView) -> tuple[int, int]:
    """Show the place at full resolution, a px of the view per px of the screen; return the corner, view px."""
    x, y = np.floor(view.places([PLACE])[0]).astype(int).tolist()
    browser.look_at(*view.affine.apply([(x, y)])[0], 1.0)
    browser.page.evaluate(f"() => viewer.main.lookAt({view.affine.apply([(x, y)])[0].tolist()}, {shrink_of(view)})")
    browser.settled()
    return x, y


def shrink_of(view: SlideView) -> float:
    """Return the level-0 px per px of a view."""
    return math.sqrt(abs(view.affine.a * view.affine.e - view.affine.b * view.affine.d))


def true_pixels(view: SlideView, corner: tuple[int, int], seen: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the pixels of a view that should be on the screen."""
    height, width = seen.shape[:2]
    return ViewTiles(view).region(corner, 1, Size(width, height))


def test_exact_tiles_are_the_views_pixels(browser: Browser, slide: sp.Slide) -> None:
    """Stained, turned and mirrored by sliders, the screen shows the pixels of the same view in Python."""
    values: dict[str, Any] = {"haematoxylin": 1.5, "eosin": 0.7, "turn": 20, "mirror": 1}
    with sp.explore(slide) as viewer:
        browser.open(viewer.url)
        move(browser, **values)
        view = slide.view().adjusted(haematoxylin=1.5, eosin=0.7, turn=20, mirror=True)
        assert browser.get("viewer.main.shown.affine") == pytest.approx(view.draw.affine)
        corner = look(browser, view)
        seen = browser.pixels()
        assert decibels(seen, true_pixels(view, corner, seen)) > 36
    assert not browser.problems


def test_the_preview_of_colours_is_the_picture(browser: Browser, slide: sp.Slide) -> None:
    """What is seen while a slider moves, by a table of colours, is as near to the truth as coded tiles can be."""
    with sp.explore(slide) as viewer:
        browser.open(viewer.url)
        browser.look_at(*PLACE)
        browser.page.evaluate("() => { viewer.augmentation.rest = () => {}; viewer.augmentation.set('eosin', 0.6); }")
        browser.page.evaluate("() => viewer.augmentation.set('haematoxylin', 1.6)")
        browser.until("!viewer.augmentation.asking && viewer.main.preview.active")
        browser.settled()
        seen = browser.pixels()
        view = slide.view().adjusted(haematoxylin=1.6, eosin=0.6)
        true = true_pixels(view, PLACE, seen)
        assert decibels(seen, true) > 35
        assert np.abs(seen.mean((0, 1)) - true.mean((0, 1))).max() < 1.0
        assert browser.get("viewer.main.exact === null")


def test_the_preview_of_geometry_is_in_place(browser: Browser, slide: sp.Slide) -> None:
    """Turned, mirrored and scaled by the viewer, the plain tiles are where the exact ones then are."""
    with sp.explore(slide) as viewer:
        browser.open(viewer.url)
        browser.look_at(*PLACE)
        browser.page.evaluate("() => { viewer.keep = viewer.augmentation.rest; viewer.augmentation.rest = () => {}; }")
        for name, value in {"turn": 33, "mirror": 1, "scale": 1.2}.items():
            browser.page.evaluate(f"() => viewer.augmentation.set('{name}', {value})")
        browser.until("!viewer.augmentation.asking && viewer.main.shown.digest != 'plain'")
        browser.look_at(*PLACE, 2.0)
        preview = browser.pixels()
        browser.page.evaluate("() => { viewer.augmentation.rest = viewer.keep; viewer.augmentation.rest(0); }")
        browser.until("viewer.augmentation.exactShown && viewer.main.exact !== null")
        browser.settled()
        exact = browser.pixels()
        assert decibels(preview, exact) > 24
        shifted = [decibels(np.roll(preview, step, axis), exact) for step in (-2, 2) for axis in (0, 1)]
        assert max(shifted) < decibels(preview, exact)  # no shift fits better


def test_a_seed_is_the_draw_of_a_training(browser: Browser, slide: sp.Slide) -> None:
    """A transform with a seed and an epoch shows what a training sees, and the sliders have its values."""
    with sp.explore(slide, transform=TRANSFORM, seed=4) as viewer:
        browser.open(viewer.url)
        browser.until("viewer.augmentation.latest && viewer.main.exact !== null")
        first = slide.view(transform=TRANSFORM, seed=4)
        assert json.loads(browser.get("viewer.augmentation.latest.json")) == first.draw.to_json()
        corner = look(browser, first)
        seen = browser.pixels()
        assert decibels(seen, true_pixels(first, corner, seen)) > 36
        browser.page.fill("#epoch", "12")
        browser.page.press("#epoch", "Enter")
        browser.until("JSON.parse(viewer.augmentation.latest.json).epoch === 12")
        later = slide.view(transform=TRANSFORM, seed=4, epoch=12)
        assert json.loads(browser.get("viewer.augmentation.latest.json")) == later.draw.to_json()


def test_a_locked_value_stays(browser: Browser, slide: sp.Slide) -> None:
    """Drawing again changes every value but those that are locked."""
    with sp.explore(slide, transform=TRANSFORM) as viewer:
        browser.open(viewer.url)
        browser.until("viewer.augmentation.latest")
        before = browser.get("viewer.augmentation.values")
        browser.page.click("[data-control='0.0'] .lock")
        browser.page.click("#draw-again")
        browser.until("viewer.augmentation.draws >= 2 && !viewer.augmentation.asking")
        after = browser.get("viewer.augmentation.values")
        assert after["0.0"] == pytest.approx(before["0.0"])
        assert after["0.1"] != before["0.1"]
        assert browser.page.input_value("#seed") == "1"


def test_what_is_copied_makes_the_view(browser: Browser, slide: sp.Slide, tmp_path: Path) -> None:
    """JSON, YAML and Python of the page give the draw that is on the screen; JSON can be loaded again."""
    with sp.explore(slide) as viewer:
        browser.open(viewer.url)
        move(browser, haematoxylin=1.4, turn=-30)
        wanted = slide.view().adjusted(haematoxylin=1.4, turn=-30).draw
        copied = {}
        for kind in ("json", "yaml", "python"):
            browser.page.click(f"[data-copy={kind}]")
            browser.until("!!window.lastCopied")
            copied[kind] = browser.get("window.lastCopied")
            browser.page.evaluate("() => { window.lastCopied = '' }")
        assert sp.Draw.from_json(copied["json"]) == wanted
        made: dict[str, Any] = {"slide": slide}
        exec(copied["python"], made)
        assert made["view"].draw == wanted
        file = tmp_path / "draw.yaml"
        file.write_text(copied["yaml"], encoding="utf-8")
        assert yaml.safe_load(copied["yaml"])["transform"]["__class_fullname__"] == "slideio_pipe.Replay"
        assert slide.view(transform=sp.load_transform(file)).draw.affine == pytest.approx(wanted.affine)
        browser.page.click("#as-scanned")
        browser.until("viewer.main.shown.digest === 'plain' && viewer.main.exact === null")
        browser.page.click(".load > summary")
        browser.page.fill("#draw-text", copied["json"])
        browser.page.click("#draw-load")
        browser.until("viewer.main.exact !== null")
        assert browser.get("viewer.main.shown.affine") == pytest.approx(wanted.affine)


def test_the_next_slide_has_the_same_seed_or_values(browser: Browser, slide: sp.Slide, tmp_path: Path) -> None:
    """A seed draws anew for every slide, as a training does; values that were set by hand stay."""
    other = tmp_path / "b.svs"
    other.write_bytes(slide.path.read_bytes())
    with sp.explore([slide, other], transform=TRANSFORM, seed=4) as viewer, sp.open_slide(other) as second:
        browser.open(viewer.url)
        browser.until("viewer.main.exact !== null")
        browser.page.keyboard.press(" ")  # seed 5
        browser.until("viewer.augmentation.latest && JSON.parse(viewer.augmentation.latest.json).seed === 5")
        browser.page.keyboard.press("]")
        browser.until("viewer.slide.name === 'b.svs' && !!viewer.augmentation.latest")
        true = second.view(transform=TRANSFORM, seed=5).draw
        assert json.loads(browser.get("viewer.augmentation.latest.json")) == true.to_json()
        browser.page.evaluate("() => viewer.augmentation.set('0.0', 1.21, true)")
        browser.until("viewer.augmentation.exactShown && !viewer.augmentation.asking")
        browser.page.keyboard.press("[")
        browser.until("viewer.slide.name === 'a.svs' && !!viewer.augmentation.latest")
        assert browser.get("viewer.augmentation.values['0.0']") == pytest.approx(1.21)


def test_the_original_is_seen_while_a_key_is_held(browser: Browser, slide: sp.Slide) -> None:
    """The plain pixels are shown in the draw's place, and the draw again when the key is let go."""
    with sp.explore(slide) as viewer:
        browser.open(viewer.url)
        move(browser, eosin=0.4, turn=15)
        browser.look_at(*PLACE)
        augmented = browser.pixels()
        browser.page.keyboard.down("o")
        browser.until("viewer.main.plain.getOpacity() === 1 && viewer.main.plain.getFullyLoaded()")
        browser.settled()
        plain = browser.pixels()
        browser.page.keyboard.up("o")
        browser.settled()
        assert decibels(augmented, browser.pixels()) > 45
        assert decibels(augmented, plain) < 25
        turned = slide.view().adjusted(turn=15)
        corner = tuple(np.round(turned.places([PLACE])[0]).astype(int).tolist())
        assert decibels(plain, true_pixels(turned, corner, plain)) > 24  # turned by the browser


def test_a_view_starts_with_its_draw(browser: Browser, slide: sp.Slide) -> None:
    """The draw that a view came with is on the screen, and comes back after it was taken away."""
    view = slide.view(transform=TRANSFORM, seed=8)
    with sp.explore(view) as viewer:
        browser.open(viewer.url)
        for _ in range(2):
            browser.until("viewer.main.exact !== null")
            assert browser.get("viewer.main.shown.affine") == pytest.approx(view.draw.affine)
            browser.page.click("#as-scanned")
            browser.until("viewer.main.exact === null")
            browser.page.click("#own-draw")


def test_side_by_side_and_wipe_show_the_same_place(browser: Browser, slide: sp.Slide) -> None:
    """Both pictures have the same tissue in the middle; in a wipe it is turned alike."""
    with sp.explore(slide) as viewer:
        browser.open(viewer.url)
        move(browser, turn=40, scale=1.25, mirror=1)
        for key in ("2", "3"):
            browser.page.keyboard.press(key)
            browser.until("viewer.comparison.original && viewer.comparison.original.settled")
            browser.look_at(900, 700, 3)
            browser.until("viewer.comparison.original.settled")
            assert browser.get("viewer.comparison.original.middle") == pytest.approx(
                browser.get("viewer.main.middle"), abs=0.5
            )
        one, other = (browser.get(f"viewer.{pane}.level0ToScreen") for pane in ("main", "comparison.original"))
        assert other == pytest.approx(one, abs=0.6)


def test_a_slide_that_is_seen_as_a_whole_stays_whole(browser: Browser, slide: sp.Slide) -> None:
    """In panes of half the width, too, under a draw that turns it; a place that was looked at stays."""
    with sp.explore(slide) as viewer:
        browser.open(viewer.url)
        move(browser, turn=40)
        assert browser.get("viewer.main.whole")
        browser.page.keyboard.press("2")
        browser.until("viewer.comparison.mode === 'side' && viewer.comparison.arranged")
        assert browser.get("viewer.main.whole")
        browser.look_at(900, 700, 3)
        middle = browser.get("viewer.main.middle")
        browser.page.keyboard.press("1")
        browser.until("viewer.comparison.mode === 'one' && viewer.comparison.arranged")
        assert browser.get("viewer.main.middle") == pytest.approx(middle, abs=2)
        assert not browser.get("viewer.main.whole")


def test_eight_draws(browser: Browser, slide: sp.Slide) -> None:
    """Eight seeds of the place are shown; a click takes one."""
    with sp.explore(slide, transform=TRANSFORM) as viewer:
        browser.open(viewer.url)
        browser.page.keyboard.press("4")
        browser.until("document.querySelectorAll('#eight img').length === 8")
        browser.until(
            "[...document.querySelectorAll('#eight img')].every(image => image.complete && image.naturalWidth > 60)"
        )
        browser.page.click("#eight button:nth-child(6)")
        browser.until("viewer.augmentation.latest && JSON.parse(viewer.augmentation.latest.json).seed === 5")
        browser.until("viewer.main.exact !== null")
        assert browser.get("viewer.comparison.mode") == "one"


def test_eight_draws_have_the_middle_of_a_narrow_pane(browser: Browser, slide: sp.Slide) -> None:
    """From side by side, where the pane is half as wide: the place in its middle, not that at its edge."""
    with sp.explore(slide, transform=TRANSFORM) as viewer:
        browser.open(viewer.url)
        browser.page.keyboard.press("2")
        browser.until("viewer.comparison.mode === 'side' && viewer.comparison.arranged")
        middle = browser.get("viewer.main.middle")
        browser.page.keyboard.press("4")
        browser.until("document.querySelectorAll('#eight img').length === 8")
        for k in range(8):
            source = browser.get(f"document.querySelectorAll('#eight img')[{k}].src")
            asked = parse_qs(urlsplit(source).query)
            assert [float(asked[axis][0]) for axis in "xy"] == pytest.approx(middle, abs=1)


def test_a_transform_of_whole_images_has_no_quick_preview(browser: Browser, slide: sp.Slide) -> None:
    """The page says so, and its exact tiles are those of the view."""
    transform = A.Compose([sp.StainJitter(), A.ChannelDropout(p=1)])
    with sp.explore(slide, transform=transform, seed=1) as viewer:
        browser.open(viewer.url)
        browser.until("viewer.main.exact !== null")
        assert "ChannelDropout runs as a whole image only" in browser.text("#augment")
        view = slide.view(transform=transform, seed=1)
        corner = look(browser, view)
        seen = browser.pixels()
        assert decibels(seen, true_pixels(view, corner, seen)) > 36
