"""What a notebook shows of a viewer: a picture that zooms by itself, and the live page where the browser reaches it."""

from __future__ import annotations

import base64
import http.client
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium
from PIL import Image
from pyramids import write_pyramid

import slideio_pipe as sp
from slideio_pipe.geometry import Affine
from slideio_pipe.images.explained import Key
from slideio_pipe.mil.tasks import Classification
from slideio_pipe.viewer import notebook
from slideio_pipe.viewer.snapshot import SNAPSHOT_PX, snapshot_html

y, x = np.mgrid[:900, :1200]
PIXELS = np.stack([x * 255 // 1200, y * 255 // 900, 255 - x * 255 // 1200], axis=-1).astype(np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_pyramid(tmp_path / "named.tif", PIXELS, (1, 4))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


def shown(browser: Any, html: str) -> Any:
    """Return a page with some HTML, as a notebook's output."""
    page = browser.new_page(viewport={"width": 900, "height": 700})
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.set_content(f"<!doctype html><meta charset=utf-8><body style='margin:0'>{html}</body>")
    return page


def picture_frame(page: Any) -> Any:
    """Return the frame of the picture that zooms, with its picture drawn."""
    frame = page.query_selector("iframe[srcdoc]").content_frame()
    frame.wait_for_function("picture.complete && picture.width > 0 && scale !== 1")
    return frame


# -- the HTML ------------------------------------------------------------------------------------------------------


def test_a_snapshot_needs_nothing_else() -> None:
    """No address but data; the title and the meaning of colours are escaped; a scale bar and a frame without rights."""
    text = snapshot_html(PIXELS, title='a<b>"c".svs', um_per_px=2.0, keys=[Key("<tumour>", (238, 102, 119))])
    assert "://" not in text
    assert text.count("data:image/jpeg;base64,") == 2  # the still picture, and the one that zooms
    assert 'sandbox="allow-scripts"' in text
    assert "<b>" not in text
    assert "<tumour>" not in text
    assert "rgb(238, 102, 119)" in text


@pytest.mark.slow
def test_a_large_picture_is_about_as_large_as_stated() -> None:
    """2,500 px of detailed tissue take a few MB."""
    rng = np.random.default_rng(0)
    detailed = np.clip(rng.normal((190, 120, 170), 12, (SNAPSHOT_PX, SNAPSHOT_PX, 3)), 0, 255).astype(np.uint8)
    assert 1e6 < len(snapshot_html(detailed, title="a")) < 12e6


def test_slides_views_and_bags_are_explored(path: Path) -> None:
    """By one method, which takes the options of ``explore``; each is what the viewer shows."""
    slide = sp.open_slide(path)
    view = slide.view(mpp=0.5)
    bag = sp.TileBag(view, sp.TileGrid(view, 100))
    for source in (slide, view, bag):
        with source.explore(seed=3) as viewer:
            assert isinstance(viewer, sp.Explorer)
            assert [each.source for each in viewer._scene.slides.values()] == [source]


def test_a_notebook_keeps_a_still_picture(path: Path) -> None:
    """For exports without HTML: JPEG with a title and a scale bar; the text is that of ``repr``."""
    with sp.open_slide(path).explore() as viewer:
        bundle = viewer._repr_mimebundle_()
        assert bundle["text/plain"] == repr(viewer)
        assert viewer.url in bundle["text/html"]
    still = Image.open(io.BytesIO(base64.b64decode(bundle["image/jpeg"])))
    assert still.width > 800
    assert still.height > 600 + 40
    closed = viewer._repr_mimebundle_()
    assert viewer.url not in closed["text/html"]
    assert "srcdoc" in closed["text/html"]


def test_a_bag_is_shown_with_its_tiles(path: Path, tmp_path: Path) -> None:
    """Those of a view on the slide, with their number; those of a stored bag as a montage."""
    view = sp.open_slide(path).view(mpp=0.5)
    bag = sp.TileBag(view, sp.TileGrid(view, 100))
    with bag.explore() as viewer:
        found = notebook.scene_picture(viewer._scene)
    assert found.title == "24 tiles of named.tif"
    assert [key.text for key in found.keys] == ["24 tiles"]
    assert found.image.width * found.um_per_px == pytest.approx(300)
    assert found.affine.apply(found.image.size).tolist() == [1200, 900]
    stored = sp.save_bag(bag, tmp_path / "a.bag.zarr")
    with stored.explore() as viewer:
        assert notebook.scene_picture(viewer._scene).title == "tiles of named.tif"


def test_a_prediction_is_explored_on_its_slide(path: Path) -> None:
    """The viewer has its scores; the picture shows them, with the meaning of their colours."""
    slide = sp.open_slide(path)
    grid = sp.TileGrid(slide.view(), 300)
    attention = np.zeros(len(grid))
    attention[5] = 1.0
    task = Classification(("0", "1"), (1.0, 1.0))
    prediction = sp.Prediction(
        slide=slide.name,
        result={"predicted": "1", "probability_0": 0.1, "probability_1": 0.9},
        logits=np.array([2.2]),
        attention=attention,
        instances=None,
        instance_names=(),
        coords=grid.coords,
        tile_size=300.0,
        affine=Affine(),
        view_mpp=slide.mpp,
        task=task,
    )
    with prediction.explore(slide) as viewer:
        assert viewer._scores is prediction
        found = notebook.scene_picture(viewer._scene, prediction)
        assert "image/jpeg" in viewer._repr_mimebundle_()
    assert found.title == "named.tif: predicted 1 (90.0 %)"
    assert [key.text for key in found.keys] == ["attention 10×", "attention 5×", "attention 2×"]
    changed = (np.asarray(found.image).astype(int) != PIXELS).any(-1)
    x, y = grid.coords[5]
    assert changed[y : y + 300, x : x + 300].mean() > 0.99
    changed[y : y + 300, x : x + 300] = False
    assert not changed.any()


def test_a_slide_that_is_gone_is_said(path: Path) -> None:
    """In place of the picture; the link stays, as the viewer may show other slides."""
    with sp.explore(path) as viewer:
        path.unlink()
        bundle = viewer._repr_mimebundle_()
    assert "named.tif" in bundle["text/html"]
    assert "no picture" in bundle["text/html"]
    assert "image/jpeg" not in bundle


# -- in a browser --------------------------------------------------------------------------------------------------


@pytest.mark.system
def test_the_picture_zooms_and_pans(browser: Any) -> None:
    """By wheel once it was clicked, by keys, buttons and dragging; with a scale bar; nothing else is loaded."""
    scale = Affine.scaling(4, 4)
    page = shown(browser, snapshot_html(PIXELS, title="a.svs", um_per_px=2.0, affine=scale, height_px=480))
    frame = picture_frame(page)
    frame.wait_for_function("scale > 0")
    whole = frame.evaluate("scale")
    assert whole == pytest.approx(0.98 * min(898 / 1200, 478 / 900), rel=0.01)
    page.mouse.move(450, 240)
    page.mouse.wheel(0, -400)  # the notebook scrolls: it was not clicked
    assert frame.evaluate("scale") == whole
    page.mouse.click(450, 240)
    page.mouse.wheel(0, -400)
    frame.wait_for_function(f"scale > {1.5 * whole}")
    before = frame.evaluate("left")
    page.mouse.down()
    page.mouse.move(500, 240)
    page.mouse.up()
    assert frame.evaluate("left") == pytest.approx(before + 50, abs=1)
    assert "px at level 0" in frame.inner_text("#place")
    assert "µm" in frame.inner_text("#bar")
    frame.click("#all")
    assert frame.evaluate("scale") == whole
    page.keyboard.press("Escape")
    frame.focus("canvas")
    page.keyboard.press("+")
    assert frame.evaluate("scale") == pytest.approx(1.5 * whole)
    assert [url for url in page.asked if not url.startswith(("data:", "about:"))] == []
    page.close()


@pytest.mark.system
def test_the_pixels_on_the_screen_are_the_pictures(browser: Any) -> None:
    """At one screen px per picture px, within JPEG's error."""
    page = shown(browser, snapshot_html(PIXELS, title="a.svs"))
    frame = picture_frame(page)
    frame.evaluate("scale = 1; left = -300; upper = -200; fitted = false; paint()")
    # A screenshot may still have the frame before.
    frame.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    seen = np.asarray(image).astype(int)[101:401, 201:601]  # without its border, inside the plates
    assert np.abs(seen - PIXELS[300:600, 500:900]).max() <= 6
    page.close()


@pytest.mark.system
def test_without_frames_the_still_picture_remains(browser: Any) -> None:
    """As in an exported notebook that leaves them out."""
    page = shown(browser, snapshot_html(PIXELS, title="a.svs"))
    page.evaluate("document.querySelectorAll('iframe').forEach((frame) => frame.remove())")
    of_image = "({ naturalWidth, clientHeight }) => [naturalWidth, clientHeight]"
    size = page.query_selector("img").evaluate(of_image)
    assert size == [800, 478]
    page.close()


@pytest.mark.system
def test_the_live_page_takes_the_place_of_the_picture(browser: Any, path: Path) -> None:
    """Where the browser reaches the viewer."""
    with sp.open_slide(path).explore() as viewer:
        page = shown(browser, viewer._repr_mimebundle_()["text/html"])
        page.wait_for_function("!document.querySelector('iframe[srcdoc]')", timeout=60_000)
        frames = page.query_selector_all("iframe")
        assert [frame.get_attribute("src") for frame in frames] == [viewer.url]
        assert frames[0].is_visible()
        assert frames[0].content_frame().inner_text("#name") == "named.tif"
        page.close()


def asked(port: int, path: str, host: str) -> tuple[int, str, bytes]:
    """Return status, type and content of an address of a viewer, under a name of its server."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={"Host": host})
    reply = connection.getresponse()
    found = reply.status, reply.headers.get_content_type(), reply.read()
    connection.close()
    return found


def behind_a_hub(browser: Any, viewer: sp.Explorer) -> Any:
    """Return JupyterLab's page with the viewer's output, on another computer, which has a proxy to the kernel's."""
    config = '<script id="jupyter-config-data" type="application/json">{"baseUrl": "/user/me"}</script>'
    output = f"<!doctype html><meta charset=utf-8><body>{config}{viewer._repr_mimebundle_()['text/html']}"
    prefix = f"http://hub.test/user/me/proxy/{viewer.port}/"

    def answer(route: Any) -> None:
        url = route.request.url
        if url.startswith(prefix):
            status, kind, content = asked(viewer.port, f"/{url[len(prefix) :]}", "hub.test")
            route.fulfill(status=status, content_type=kind, body=content)
        elif url == "http://hub.test/lab":
            route.fulfill(body=output, content_type="text/html")
        else:
            route.abort()  # the kernel's own address is not this computer's

    page = browser.new_page()
    page.route("**/*", answer)
    page.goto("http://hub.test/lab")
    return page


@pytest.mark.system
def test_the_page_is_reached_through_the_notebooks_proxy(browser: Any, path: Path) -> None:
    """Where the kernel is on another computer: all its addresses are relative to the proxied one."""
    with sp.open_slide(path).explore(hosts=["hub.test"]) as viewer:
        page = behind_a_hub(browser, viewer)
        page.wait_for_function("!document.querySelector('iframe[srcdoc]')", timeout=60_000)
        (frame,) = page.query_selector_all("iframe")
        assert frame.get_attribute("src") == f"/user/me/proxy/{viewer.port}/{viewer.url.split('/', 3)[3]}"
        assert frame.content_frame().inner_text("#name") == "named.tif"
        page.unroute_all(behavior="ignoreErrors")
        page.close()


@pytest.mark.system
def test_a_proxy_whose_name_is_not_known_is_said(browser: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the argument that lets its name in; the picture stays."""
    monkeypatch.setattr(notebook, "_PATIENCE_MS", 2_000)
    with sp.open_slide(path).explore() as viewer:
        page = behind_a_hub(browser, viewer)
        page.wait_for_function("document.querySelectorAll('iframe').length === 1")
        assert 'explore(hosts=["hub.test"])' in page.inner_text("body")
        picture_frame(page)
        page.unroute_all(behavior="ignoreErrors")
        page.close()


@pytest.mark.system
def test_the_picture_stays_where_the_viewer_is_not_reached(
    browser: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own frames are removed after a while."""
    monkeypatch.setattr(notebook, "_PATIENCE_MS", 300)
    with sp.open_slide(path).explore() as viewer:
        html = viewer._repr_mimebundle_()["text/html"]
    page = shown(browser, html)
    page.wait_for_function("document.querySelectorAll('iframe').length === 1")
    assert "not reached from here. This picture zooms." in page.inner_text("body")
    picture_frame(page)
    page.close()
