"""The viewer with damaged and missing files, several windows, and the command itself."""

from __future__ import annotations

import csv
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import albumentationsxl as A
import pytest
import tifffile
from browser import Browser
from made_slides import made_slide

import slideio_pipe as sp


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A generated slide of 4000×3000 px."""
    path = tmp_path / "a.svs"
    made_slide(path, size=(4000, 3000), seed=5, lesions=1, pieces=1)
    return path


@contextmanager
def command(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run ``slideio-pipe view`` without a browser; yield it and its link."""
    words = [sys.executable, "-m", "slideio_pipe", "view", *map(str, arguments), "--no-browser"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.fullmatch(r"open (http://127\.0\.0\.1:\d+/\S+/)\n", process.stdout.readline())
        assert found is not None
        yield process, found[1]
    finally:
        process.kill()
        process.communicate(timeout=30)  # closes its pipes


def damage(path: Path) -> None:
    """Overwrite the bytes of a stored tile of level 0, at (2048, 1024) px."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        columns = -(-page.imagewidth // page.tilewidth)
        number = (1024 // page.tilelength) * columns + 2048 // page.tilewidth
        offset, count = page.dataoffsets[number], page.databytecounts[number]
    with path.open("r+b") as out:
        out.seek(offset)
        out.write(b"\x00" * count)


def test_the_command(browser: Browser, file: Path) -> None:
    """It prints a link that works, the way to it from another computer, and ends with Ctrl+C."""
    with command(file, "--port", 0) as (process, link):
        assert process.stdout is not None
        port = urlsplit(link).port
        assert f"ssh -L {port}:localhost:{port} {socket.gethostname()}" in process.stdout.readline()
        browser.open(link)
        assert browser.text("#name") == "a.svs"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_a_port_in_use_and_no_browser(file: Path) -> None:
    """The next port is taken, and said; where there is no browser the link is printed all the same."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = [sys.executable, "-m", "slideio_pipe", "view", str(file), "--port", str(port)]
        bare = {
            name: value for name, value in os.environ.items() if name not in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")
        }
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=bare | {"PATH": "", "COLUMNS": "200"}
        )
        try:
            assert process.stdout is not None
            link = process.stdout.readline()
            assert f"127.0.0.1:{port + 1}/" in link
            assert "Ctrl+C" in process.stdout.readline()
        finally:
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
    assert f"port {port} is in use; {port + 1} is used" in said
    assert "no browser was found; open the link yourself" in said


def test_a_killed_server(browser: Browser, file: Path) -> None:
    """The page says that the viewer has ended, and what to do."""
    with command(file, "--port", 0) as (process, link):
        browser.open(link)
        process.kill()
        process.wait(30)
        browser.page.evaluate("() => viewer.main.lookAt([1000, 800], 1)")
        browser.until("!document.getElementById('notice').hidden")
        assert "Start it again" in browser.text("#notice")


def test_a_damaged_tile(browser: Browser, file: Path) -> None:
    """It is shown as such, with the message; its neighbours are shown as usual."""
    damage(file)
    with sp.explore(file) as viewer:
        browser.open(viewer.url)
        browser.look_at(1800, 800)
        browser.until("!document.getElementById('notice').hidden")
        assert "a.svs" in browser.text("#notice")
        assert "decode" in browser.text("#notice")
        seen = browser.pixels()
        with sp.open_slide(file) as slide:
            true = slide.read_region((1800, 800), 0, (200, 200))
        assert abs(seen[:200, :200].astype(int) - true).mean() < 3
        assert (seen[300:400, 300:400].reshape(-1, 3).mean(0) > 150).all()  # the pale card with the message


def test_a_slide_that_is_deleted(browser: Browser, file: Path) -> None:
    """Deleted before it is opened, it is an error that names it; the other slides go on."""
    other = file.with_name("b.svs")
    other.write_bytes(file.read_bytes())
    with sp.explore(file.parent) as viewer:
        other.unlink()
        browser.open(viewer.url)
        browser.page.keyboard.press("]")
        browser.until("!document.getElementById('notice').hidden")
        assert "b.svs" in browser.text("#notice")
        browser.page.keyboard.press("[")
        browser.until("viewer.slide.name === 'a.svs' && document.getElementById('notice').hidden")
        browser.settled()


def test_a_slide_that_is_deleted_while_it_is_shown(browser: Browser, file: Path) -> None:
    """The page keeps working, or says which file is missing; the server does not end."""
    with sp.explore(file) as viewer:
        browser.open(viewer.url)
        file.unlink()
        browser.look_at(1500, 1200)
        assert browser.get("viewer.main.settled")
        said = browser.text("#notice")
        assert not said or "a.svs" in said


def test_two_windows(started: Any, file: Path) -> None:
    """Each has its own slide, place and draw."""
    windows = [started.new_page(viewport={"width": 900, "height": 600}) for _ in range(2)]
    one, other = (Browser(window) for window in windows)
    with sp.explore(file) as viewer:
        for each in (one, other):
            each.open(viewer.url)
        one.page.evaluate("() => viewer.augmentation.set('turn', 30, true)")
        one.until("viewer.main.exact !== null")
        other.look_at(1500, 1200)
        assert other.get("viewer.main.shown.digest") == "plain"
        one.settled()
        assert not one.problems
        assert not other.problems
    for window in windows:
        window.close()


def test_a_cohort(browser: Browser, file: Path) -> None:
    """The side list has names, labels and splits, and is filtered by them; keys go through what is left."""
    with file.with_name("cohort.csv").open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["slide", "name", "label", "split"])
        for number in range(4):
            copy = file.with_name(f"{number}.svs")
            copy.write_bytes(file.read_bytes())
            writer.writerow(
                [copy.name, f"case {number}", "tumour" if number % 2 else "healthy", "train" if number else "test"]
            )
    with sp.explore(file.with_name("cohort.csv")) as viewer:
        browser.open(viewer.url)
        browser.until("[...document.querySelectorAll('#slide-list img')].every(image => image.naturalWidth > 100)")
        browser.page.fill("#filter", "tumour train")
        assert browser.text("#filter-count") == "2 of 4 slides"
        browser.page.press("#filter", "Enter")
        browser.until("viewer.slide.name === 'case 1' && document.activeElement.id !== 'filter'")
        browser.page.click("#slide-list li:not([hidden]):last-child button")
        browser.until("viewer.slide.name === 'case 3'")
        browser.page.click("#name")
        browser.page.keyboard.press("]")
        browser.until("viewer.slide.name === 'case 1'")


def test_a_transform_for_tiles(browser: Browser, file: Path) -> None:
    """What a slide cannot be augmented with is said; the slide is shown."""
    with sp.explore(file, transform=A.Compose([sp.RandomResizedCrop(64), sp.StainJitter()])) as viewer:
        browser.open(viewer.url)
        browser.until("!document.getElementById('notice').hidden")
        assert "crops tiles, not slides" in browser.text("#notice")


def test_a_bag_without_its_slide(browser: Browser, file: Path) -> None:
    """Its stored tiles are shown, and can be augmented; tiles have their numbers."""
    with sp.open_slide(file) as slide:
        view = slide.view(mpp=0.5)
        bag = sp.TileBag(view, sp.TileGrid(view, 128, tissue=sp.find_tissue(slide)))
        sp.save_bag(bag, file.with_name("bag") / "a.bag.zarr", progress=False)
    file.unlink()
    with sp.explore(file.with_name("bag") / "a.bag.zarr") as viewer:
        browser.open(viewer.url)
        assert "its stored tiles are shown" in browser.text("#notice")
        browser.page.keyboard.press("b")
        browser.until("!!viewer.layers.loaded.tiles")
        x, y = (bag.coords[5] + 100).tolist()
        browser.page.evaluate(f"() => viewer.place.show({x}, {y})")
        assert "bag[5]" in browser.text("#place")
        browser.page.evaluate("() => viewer.augmentation.set('eosin', 0.5, true)")
        browser.until("viewer.main.exact !== null")
        browser.settled()
    assert not browser.problems
