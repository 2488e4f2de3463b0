"""Layers in the browser: what is drawn is where it is on the slide, also under a turn; a click says what is there."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from browser import Browser
from made_slides import made_slide

import slideio_pipe as sp
from slideio_pipe.tiles.mask_files import Annotation


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> sp.Slide:
    """A generated slide of 4000×3000 px."""
    path = tmp_path_factory.mktemp("slides") / "a.svs"
    made_slide(path, size=(4000, 3000), seed=5, lesions=1, pieces=1)
    return sp.open_slide(path)


def painted(browser: Browser, x: float, y: float) -> bool:
    """Return whether the layers have paint at level-0 px (x, y)."""
    found = browser.get(
        f"""(() => {{
          const [a, b, c, d, e, f] = viewer.main.level0ToScreen;
          const at = [a * {x} + b * {y} + c, d * {x} + e * {y} + f].map(Math.floor);
          const canvas = document.querySelector('#augmented .overlay');
          return canvas.getContext('2d').getImageData(...at, 1, 1).data[3];
        }})()"""
    )
    return bool(found > 0)


def turn_on(browser: Browser, key: str, layer: str) -> None:
    """Show a layer by its key."""
    browser.page.keyboard.press(key)
    browser.until(f"!!viewer.layers.loaded.{layer}")
    browser.settled()


@pytest.mark.parametrize("turn", [0, 35])
def test_tissue_is_drawn_where_it_is(browser: Browser, slide: sp.Slide, turn: float) -> None:
    """Paint is on the tissue of the mask and nowhere else, whether the slide is turned or not."""
    mask = sp.find_tissue(slide)
    with sp.explore(slide) as viewer:
        browser.open(viewer.url)
        browser.page.evaluate(f"() => viewer.augmentation.set('turn', {turn}, true)")
        browser.until("viewer.augmentation.exactShown")
        browser.settled()
        turn_on(browser, "t", "tissue")
        rng = np.random.default_rng(0)
        for column, row in rng.integers((4, 4), np.array(mask.mask.shape[::-1]) - 4, (40, 2)).tolist():
            around = mask.mask[row - 3 : row + 4, column - 3 : column + 4]
            if around.all() or not around.any():  # not at an edge
                x, y = mask.affine.apply([(column + 0.5, row + 0.5)])[0]
                assert painted(browser, x, y) == bool(mask.mask[row, column])
    assert not browser.problems


def test_grid_and_its_settings(browser: Browser, slide: sp.Slide) -> None:
    """The legend counts the tiles of ``TileGrid``; another tile size makes another grid."""
    with sp.explore(slide) as viewer:
        browser.open(viewer.url)
        turn_on(browser, "g", "grid")
        grid = sp.TileGrid(slide.view(mpp=0.5), 256, tissue=sp.find_tissue(slide))
        assert f"{len(grid.coords):,} kept" in browser.text("[data-layer=grid]")
        browser.page.fill("[data-setting=tile_size]", "128")
        browser.page.press("[data-setting=tile_size]", "Enter")
        finer = sp.TileGrid(slide.view(mpp=0.5), 128, tissue=sp.find_tissue(slide))
        browser.until(f"viewer.layers.loaded.grid.kept === {len(finer.coords)}")


def test_a_click_says_what_is_there(browser: Browser, slide: sp.Slide, tmp_path: Path) -> None:
    """Coordinates, tile, score and annotation of the place, and Python that reads the tile."""
    square = [np.array([[1000.0, 1000], [2000, 1000], [2000, 2000], [1000, 2000]])]
    drawn = sp.Annotations([Annotation("Tumour", square)], {"Tumour": 1})
    file = tmp_path / "tiles.csv"
    with file.open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["tile", "x", "y", "attention"])
        writer.writerows([[0, 1024, 1024, 0.8], [1, 1536, 1024, 0.2]])
    with sp.explore(slide, annotations=drawn, scores=file) as viewer:
        browser.open(viewer.url)
        for key, layer in [("g", "grid"), ("a", "annotations"), ("s", "scores")]:
            turn_on(browser, key, layer)
        browser.look_at(1000, 900, 2)
        box = browser.page.locator("#augmented").bounding_box()
        browser.page.mouse.click(box["x"] + 100, box["y"] + 150)  # level-0 px (1200, 1200)
        said = browser.text("#place")
        for part in ("x 1,200, y 1,200 px", "x 300, y 300 µm", "Tumour", "column 2, row 2", "Attention\t1.6"):
            assert part in said
        browser.page.click("#copy-place")
        browser.until("!!window.lastCopied")
        assert "slide.region(1024, 1024, size=512)" in browser.get("window.lastCopied")
        assert slide.region(1024, 1024, size=512).size == (512, 512)


def test_points_and_boxes_of_cells(browser: Browser, slide: sp.Slide, tmp_path: Path) -> None:
    """Of CellViT's file, each in its class's colour at its place; a hidden class is not drawn."""
    cells = [
        {"centroid": [1200, 1100], "bbox": [[1060, 1150], [1140, 1250]], "type": 1},
        {"centroid": [1500, 1300], "bbox": [[1260, 1450], [1340, 1550]], "type": 2},
    ]
    (tmp_path / "cells.json").write_text(json.dumps({"type_map": {"1": "A", "2": "B"}, "cells": cells}))
    with sp.explore(slide, annotations=tmp_path / "cells.json") as viewer:
        browser.open(viewer.url)
        turn_on(browser, "a", "annotations")
        browser.look_at(1000, 900, 2)
        for x, y in ((1200, 1100), (1500, 1300), (1150, 1100), (1250, 1100), (1500, 1260)):
            assert painted(browser, x, y), (x, y)
        for x, y in ((1225, 1120), (1350, 1200)):
            assert not painted(browser, x, y), (x, y)
        browser.page.locator("[data-layer=annotations] label.line input").first.uncheck()
        assert not painted(browser, 1200, 1100)
        assert painted(browser, 1500, 1300)
    assert not browser.problems


def test_tiles_of_a_bag_are_coloured_by_their_focus(browser: Browser, slide: sp.Slide) -> None:
    """Outlines at first; then every tile, and above the cut only the sharpest."""
    view = slide.view(mpp=0.5)
    bag = sp.TileBag(view, sp.TileGrid(view, tile_size=256, tissue=sp.find_tissue(slide)))
    focus = sp.tile_quality(bag).focus
    x, y = (bag.coords[int(focus.argmin())] + 200).tolist()
    with sp.explore(bag) as viewer:
        browser.open(viewer.url)
        turn_on(browser, "b", "tiles")
        assert not painted(browser, x, y)
        browser.page.select_option("[data-layer=tiles] select", "focus")
        assert painted(browser, x, y)
        assert f"{len(bag)} of {len(bag)} tiles" in browser.text("[data-layer=tiles]")
        browser.page.fill("#tile-cut", "1")
        assert not painted(browser, x, y)
        browser.page.select_option("[data-layer=tiles] select", "")
        assert not painted(browser, x, y)
    assert not browser.problems


def test_below_the_cut_the_tissue_is_seen(browser: Browser, slide: sp.Slide, tmp_path: Path) -> None:
    """Tiles below the lower cut are not drawn; at first they are those below the mean of attention."""
    file = tmp_path / "tiles.csv"
    file.write_text("tile,x,y,attention\n0,1024,1024,0.8\n1,1536,1024,0.2\n", encoding="utf-8")
    with sp.explore(slide, scores=file) as viewer:
        browser.open(viewer.url)
        turn_on(browser, "s", "scores")
        assert painted(browser, 1200, 1200)
        assert not painted(browser, 1700, 1200)
        browser.page.fill("#score-cut", "0")
        assert painted(browser, 1700, 1200)
        assert "2 of 2 tiles" in browser.text("[data-layer=scores]")
