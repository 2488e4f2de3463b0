"""Tiles at every zoom are the view's pixels, whatever the draw; memory and work are bounded."""

from __future__ import annotations

import threading
from typing import Any

import albumentationsxl as A
import numpy as np
import pytest
from made_slides import made_slide
from numpy.typing import NDArray

import slideio_pipe as sp
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Size
from slideio_pipe.slides.slide import Slide
from slideio_pipe.slides.view import SlideView
from slideio_pipe.viewer.tile_source import OPEN_VIEWS, TILE, TileSource, ViewTiles, coarser


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    """A generated slide of 1500×1200 px at 0.25 µm, levels 1, 4 and 16."""
    path = tmp_path_factory.mktemp("slides") / "a.svs"
    made_slide(path, size=(1500, 1200), seed=3, lesions=1, pieces=1)
    return sp.open_slide(path)


def plain_and_drawn(slide: Slide) -> dict[str, SlideView]:
    """Return a plain view, a stained one, a turned one, and one that runs as a whole image only."""
    return {
        "plain": slide.view(),
        "stained": slide.view().adjusted(haematoxylin=1.5),
        "turned": slide.view().adjusted(eosin=0.8, turn=25, mirror=True),
        "graph": slide.view(transform=A.Compose([sp.RandomAffine(rotate=(30, 30)), A.ChannelDropout(p=1)]), seed=2),
    }


def whole(tiles: ViewTiles, zoom: int) -> NDArray[np.uint8]:
    """Return all tiles of a zoom, put together."""
    columns, rows = (-(-side // (TILE << zoom)) for side in tiles.view.size)
    return np.vstack([np.hstack([tiles.tile(zoom, x, y) for x in range(columns)]) for y in range(rows)])


@pytest.mark.parametrize("kind", ["plain", "stained", "turned", "graph"])
def test_full_resolution_is_the_view(slide: Slide, kind: str) -> None:
    """At zoom 0 the tiles are the view's own pixels; its libvips graph is the oracle."""
    view = plain_and_drawn(slide)[kind]
    found, true = whole(ViewTiles(view), 0), view.image.numpy()
    assert found.shape == true.shape
    difference = np.abs(found.astype(int) - true)
    assert difference.max() <= 3
    assert difference.mean() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "stained", "turned", "graph"])
@pytest.mark.parametrize("zoom", [1, 2])
def test_every_zoom_is_the_view_smaller(slide: Slide, kind: str, zoom: int) -> None:
    """Zoomed out, tiles are the means of the view's pixels, but for the filters of the levels."""
    view = plain_and_drawn(slide)[kind]
    found = whole(ViewTiles(view), zoom)
    factor = 1 << zoom
    height, width = (side // factor for side in view.image.numpy().shape[:2])
    true = view.image.numpy()[: height * factor, : width * factor]
    means = true.reshape(height, factor, width, factor, 3).mean((1, 3))
    difference = np.abs(found[:height, :width] - means)
    assert difference.mean() < 4
    assert np.abs(found[:height, :width].mean((0, 1)) - means.mean((0, 1))).max() < 1.5  # no shift of colour


def test_the_last_zoom_is_one_tile(slide: Slide) -> None:
    """Zoomed out completely the whole view is one tile, and there is no further zoom."""
    tiles = ViewTiles(slide.view())
    assert tiles.tile(tiles.zooms, 0, 0).shape == (300, 375, 3)
    for zoom, column, row in [(tiles.zooms + 1, 0, 0), (0, 3, 0), (0, 0, 3), (-1, 0, 0), (0, -1, 0)]:
        with pytest.raises(ConfigError, match="no tile"):
            tiles.tile(zoom, column, row)


def test_a_region_of_any_size_and_place(slide: Slide) -> None:
    """A region is a crop of the view; beyond the slide it is white."""
    tiles = ViewTiles(slide.view())
    assert (tiles.region((100, 70), 1, Size(90, 40)) == slide.read_region((100, 70), 0, (90, 40))).all()
    assert (tiles.region((-500, -500), 2, Size(30, 20)) == 255).all()


def test_a_coarser_view_is_as_large_as_its_tiles_say(slide: Slide) -> None:
    """The view that stands for one four times smaller has a quarter of its sides."""
    view = plain_and_drawn(slide)["turned"]
    small = coarser(view, 4)
    assert small.size == Size(*(-(-side // 4) for side in view.size))
    assert coarser(slide.view(), 4).size == (375, 300)


def test_readers_of_few_views_are_kept(slide: Slide) -> None:
    """The oldest are dropped: each has scratch memory of its own."""
    source = TileSource(threads=1)
    kept = source.tiles("0", slide.view)
    for number in range(1, OPEN_VIEWS):
        source.tiles(str(number), slide.view)
    assert source.tiles("0", slide.view) is kept
    for number in range(OPEN_VIEWS, 3 * OPEN_VIEWS):
        source.tiles(str(number), slide.view)
    assert source.tiles("0", slide.view) is not kept
    source.close()


def test_work_that_is_not_wanted_is_not_done() -> None:
    """A tile whose page has closed its connection before its turn is never made."""
    source = TileSource(threads=1)
    block, done = threading.Event(), list[str]()

    def work(name: str) -> Any:
        def run() -> bytes:
            block.wait(30)
            done.append(name)
            return name.encode()

        return run

    first = source.submit(work("first"), lambda: True)
    given_up = source.submit(work("given up"), lambda: False)
    last = source.submit(work("last"), lambda: True)
    block.set()
    assert (first.result(), given_up.result(), last.result()) == (b"first", None, b"last")
    assert done == ["first", "last"]
    source.close()
