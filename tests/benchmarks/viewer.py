"""Speed and memory of the slide viewer (`slideio-pipe view`), over HTTP, as a browser asks.

    python tests/benchmarks/viewer.py                    # makes a 40,000 × 40,000 slide first
    python tests/benchmarks/viewer.py --slide a.svs --browser

Prints the time from the command to the first tiles; ms per 512-px tile, median and 95th percentile, at every zoom, one
at a time and four at once, plain, stained, and stained and turned; the screens of new draws; the table of the preview;
and the memory of the process while a hand drags sliders. Beside them plain tiles of OpenSlide's deep zoom, and those of
large_image and TIAToolbox if the Python of --python has them. With --browser, also the times in headless Chromium.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import local
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import simplejpeg
from benchmark import parsed, parser_of, require

import slideio_pipe as sp
from slideio_pipe.geometry import Size
from slideio_pipe.viewer.tile_source import TILE, zooms_of

DRAWS: dict[str, dict[str, float]] = {
    "plain": {},
    "stain": {"haematoxylin": 1.3, "eosin": 0.8},
    "stain + 20°": {"haematoxylin": 1.3, "eosin": 0.8, "turn": 20},
}
SCREEN = (1920, 1080)


class Client:
    """Asks a viewer, from any number of threads, each with its own connection."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address, self._path, self._local = (parts.hostname, parts.port), parts.path, local()

    def ask(self, path: str, body: Any = None) -> bytes:
        """Return the content of an address."""
        if not hasattr(self._local, "connection"):
            self._local.connection = http.client.HTTPConnection(*self._address, timeout=60)
        connection = self._local.connection
        content = None if body is None else json.dumps(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        connection.request("GET" if body is None else "POST", self._path + path, content, headers)
        reply = connection.getresponse()
        found: bytes = reply.read()
        require(reply.status == 200, f"{path}: {reply.status} {found[:200]!r}")
        return found

    def draw(self, **values: float) -> dict[str, Any]:
        """Return a draw with these values."""
        made: dict[str, Any] = json.loads(self.ask("slides/s0/draws", {"values": values}))
        return made

    def tile(self, digest: str, zoom: int, column: int, row: int) -> bytes:
        """Return a tile."""
        return self.ask(f"slides/s0/tiles/{digest}/{zoom}/{column}_{row}.jpg")


def start(slide: Path) -> tuple[subprocess.Popen[str], Client, str, dict[str, float]]:
    """Start the command, and return it with the seconds to its link and to the first tiles."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "slideio_pipe", "view", str(slide), "--no-browser", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = re.search(r"http://\S+", process.stdout.readline())
    require(found is not None, "the command printed no link")
    assert found is not None
    linked = time.perf_counter() - begun
    client = Client(found[0])
    size = json.loads(client.ask("slides/s0/facts.json"))["size"]
    zoom = max(0, zooms_of(Size(*size)) - 1)
    for column, row in itertools.product(range(2), range(2)):
        if max(column * (TILE << zoom) - size[0], row * (TILE << zoom) - size[1]) < 0:
            client.tile("plain", zoom, column, row)
    return process, client, found[0], {"link": linked, "first tiles": time.perf_counter() - begun}


def places(size: list[int], zoom: int, count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Return tiles in the middle of a view, without repeats."""
    columns, rows = (max(1, side // (TILE << zoom)) for side in size)
    near = [
        (x, y)
        for x in range(columns // 4, max(1, -(-3 * columns // 4)))
        for y in range(rows // 4, max(1, -(-3 * rows // 4)))
    ]
    chosen = rng.permutation(len(near))[:count]
    return [near[k] for k in chosen.tolist()]


def milliseconds(make: Callable[..., Any], items: list[Any], pool: ThreadPoolExecutor) -> tuple[float, float]:
    """Return median and 95th percentile of a call for each item."""

    def timed(item: Any) -> float:
        begun = time.perf_counter()
        make(*item)
        return 1000 * (time.perf_counter() - begun)

    spent = np.array(list(pool.map(timed, items)))
    return float(np.percentile(spent, 50)), float(np.percentile(spent, 95))


def print_tiles(client: Client, count: int) -> None:
    """Print the times of tiles at every zoom."""
    rng = np.random.default_rng(0)
    size = json.loads(client.ask("slides/s0/facts.json"))["size"]
    zooms = range(zooms_of(Size(*size)))
    print(f"ms per {TILE}-px tile, median/95th percentile, at 1:1, 1:2, 1:4, …")
    for at_once in (1, 4):
        with ThreadPoolExecutor(at_once) as pool:
            for name, values in DRAWS.items():
                times = []
                for zoom in zooms:
                    # A draw that was not seen before: its first tile makes its reader.
                    drawn = client.draw(**values, hue=rng.uniform(-0.01, 0.01)) if values else None
                    digest, canvas = ("plain", size) if drawn is None else (drawn["digest"], drawn["size"])
                    items = [(digest, zoom, *place) for place in places(canvas, zoom, count, rng)]
                    times.append("{:.1f}/{:.0f}".format(*milliseconds(client.tile, items, pool)))
                print(f"  {at_once} at once, {name:12} {'  '.join(times)}")


def screen_of(drawn: dict[str, Any], zoom: int, rng: np.random.Generator) -> list[tuple[str, int, int, int]]:
    """Return the tiles of a screen somewhere in the middle of a draw."""
    columns, rows = (max(1, -(-side // (TILE << zoom))) for side in drawn["size"])
    wide, high = (min(count, -(-side // TILE) + 1) for side, count in zip(SCREEN, (columns, rows), strict=True))
    left, top = (int(rng.integers(0, most - span + 1)) for most, span in ((columns, wide), (rows, high)))
    return [(drawn["digest"], zoom, left + x, top + y) for x, y in itertools.product(range(wide), range(high))]


def print_screens(client: Client, count: int) -> None:
    """Print the times of whole screens of new draws, and of the table of colours."""
    rng = np.random.default_rng(1)
    with ThreadPoolExecutor(6) as pool:
        for name, values in list(DRAWS.items())[1:]:
            spent, tables = [], []
            for number in range(count):
                begun = time.perf_counter()
                drawn = client.draw(**values, gamma=1 + 0.001 * (number + 1))
                table = client.ask(f"colours/{drawn['colours']}.bin")
                tables.append(1000 * (time.perf_counter() - begun))
                begun = time.perf_counter()
                list(pool.map(lambda tile: client.tile(*tile), screen_of(drawn, 2 if number % 2 else 0, rng)))
                spent.append(1000 * (time.perf_counter() - begun))
                require(len(table) == 3 * 52**3, "the table has another size")
            middle = np.median
            print(f"{name}: draw and table {middle(tables):.0f} ms, then a full-HD screen of it {middle(spent):.0f} ms")


def print_memory(client: Client, process: subprocess.Popen[str], draws: int) -> None:
    """Print the memory while sliders are dragged: a screen of each draw, at changing zooms."""
    watched = psutil.Process(process.pid)
    rng, at_start, most = np.random.default_rng(2), watched.memory_info().rss, 0
    size = json.loads(client.ask("slides/s0/facts.json"))["size"]
    zooms = zooms_of(Size(*size))
    with ThreadPoolExecutor(6) as pool:
        for _ in range(draws):
            drawn = client.draw(turn=rng.uniform(-180, 180), eosin=rng.uniform(0.5, 2), hue=rng.uniform(-0.1, 0.1))
            client.ask(f"colours/{drawn['colours']}.bin")
            zoom = int(rng.integers(0, zooms)) if zooms else 0
            list(pool.map(lambda tile: client.tile(*tile), screen_of(drawn, zoom, rng)))
            most = max(most, watched.memory_info().rss)
    print(f"{draws} draws dragged: resident {at_start / 1e6:.0f} MB before, at most {most / 1e6:.0f} MB")


def print_peers(slide: Path, size: list[int], count: int, python: Path) -> None:
    """Print the times of plain tiles made by others, without a server."""
    rng, script = np.random.default_rng(0), Path(__file__).with_name("tile_peers.py")
    wanted = [places(size, zoom, count, rng) for zoom in range(zooms_of(Size(*size)))]
    request = json.dumps({"slide": str(slide), "side": TILE, "places": wanted})
    done = subprocess.run([python, script], input=request, stdout=subprocess.PIPE, text=True, check=True)
    for name, zooms in json.loads(done.stdout.splitlines()[-1]).items():
        times = ["{:.1f}/{:.0f}".format(*np.percentile(spent, (50, 95))) for spent in zooms]
        print(f"  {name}, without a server, plain {'  '.join(times)}")


def print_browser(url: str) -> None:
    """Print the times of a page in headless Chromium."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
    from browser import Browser, chromium

    with chromium() as started:
        page = Browser(started.new_page(viewport={"width": SCREEN[0], "height": SCREEN[1]}))
        begun = time.perf_counter()
        page.open(url)
        print(f"browser: first picture {time.perf_counter() - begun:.2f} s after the page was asked for")
        page.page.evaluate(_MEASURE)
        previews, exact = page.get("window.measured")
        print(
            f"browser: slider to changed picture {np.median(previews):.0f} ms, to exact tiles {np.median(exact):.0f} ms"
        )


# Moves a slider eight times: ms to the preview, and to the exact tiles.
_MEASURE = """async () => {
  const { augmentation, main } = viewer;
  const frame = () => new Promise(done => requestAnimationFrame(done));
  const [previews, exact] = [[], []];
  for (let k = 1; k <= 8; k += 1) {
    const begun = performance.now();
    const before = main.shown;
    augmentation.set("eosin", 1 + 0.05 * k, true);
    while (main.shown === before) await frame();
    await frame();
    previews.push(performance.now() - begun);
    while (main.preview.active) await frame();
    exact.push(performance.now() - begun);
  }
  window.measured = [previews, exact];
}"""


def check(client: Client, slide: Path) -> None:
    """A tile under a draw has the pixels of the view, within the error of JPEG."""
    drawn = client.draw(**DRAWS["stain + 20°"])
    with sp.open_slide(slide) as opened:
        view = opened.view().adjusted(**DRAWS["stain + 20°"])
        require(list(view.size) == drawn["size"], f"a canvas of {drawn['size']}, of the view {view.size}")
        column, row = (side // (2 * TILE) for side in view.size)
        true = view.image.crop(column * TILE, row * TILE, TILE, TILE).numpy().astype(int)
    seen = simplejpeg.decode_jpeg(client.tile(drawn["digest"], 0, column, row)).astype(int)
    apart = np.abs(seen - true).mean()
    require(apart < 3, f"a tile is {apart:.1f} levels from the view's pixels on average")


def run(args: argparse.Namespace, slide: Path) -> None:
    """Measure one slide."""
    process, client, url, seconds = start(slide)
    try:
        check(client, slide)
        said = ", ".join(f"{what} {spent:.2f} s" for what, spent in seconds.items())
        size = json.loads(client.ask("slides/s0/facts.json"))["size"]
        print(f"{size[0]:,} × {size[1]:,} px; after the command: {said}")
        print_tiles(client, args.tiles)
        print_peers(slide, size, args.tiles, args.python)
        print_screens(client, args.screens)
        print_memory(client, process, args.draws)
        if args.browser:
            print_browser(url)
    finally:
        process.terminate()
        process.wait(30)


def main() -> None:
    """Make a slide if none is given, and measure."""
    parser = parser_of(__doc__)
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--side", type=int, default=40_000, help="of the slide that is made, px")
    parser.add_argument("--tiles", type=int, default=60, help="per zoom and draw")
    parser.add_argument("--screens", type=int, default=12, help="of new draws")
    parser.add_argument("--draws", type=int, default=600, help="that are dragged through")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="with large_image and TIAToolbox")
    parser.add_argument("--browser", action="store_true", help="also measure in headless Chromium")
    args = parsed(parser, side=2048, tiles=3, screens=2, draws=12)
    with tempfile.TemporaryDirectory() as folder:
        slide = args.slide or Path(folder) / "big.svs"
        if args.slide is None:
            sp.write_synthetic_slide(slide, size=(args.side, args.side), seed=1)
        run(args, slide)


if __name__ == "__main__":
    main()
