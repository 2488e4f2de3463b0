"""The viewer's server answers only those who know its link, and nothing but what was named."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import simplejpeg
from made_slides import made_slide
from pyramids import coordinate_pixels, write_pyramid

import slideio_pipe as sp
from slideio_pipe.errors import ConfigError
from slideio_pipe.store.feature_arrays import add_features
from slideio_pipe.viewer.explore import Explorer
from slideio_pipe.viewer.server import MOST_CONNECTIONS, Reply, Request, ViewerServer


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of 1500×1100 px whose pixels encode their coordinates."""
    return write_pyramid(tmp_path_factory.mktemp("written") / "named.tif", coordinate_pixels(1500, 1100))


@pytest.fixture
def slide(written: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copy(written, tmp_path))


@pytest.fixture
def viewer(slide: Path) -> Iterator[Explorer]:
    """A viewer of that slide."""
    with sp.explore(slide) as running:
        yield running


def ask(
    viewer: Explorer,
    path: str,
    *,
    method: str = "GET",
    token: str | None = None,
    body: object = None,
    **headers: str,
) -> tuple[int, bytes, dict[str, str]]:
    """Send a request, and return status, content and headers."""
    connection = http.client.HTTPConnection("127.0.0.1", viewer.port, timeout=30)
    known = urlsplit(viewer.url).path.strip("/")
    content = None if body is None else json.dumps(body)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None:
        sent.setdefault("Content-Type", "application/json")
    connection.putrequest(method, f"/{known if token is None else token}/{path}", skip_host="Host" in sent)
    for name, value in sent.items():
        connection.putheader(name, value)
    if content is not None:
        connection.putheader("Content-Length", str(len(content)))
    connection.endheaders(None if content is None else content.encode())
    reply = connection.getresponse()
    answer = reply.status, reply.read(), {name.lower(): value for name, value in reply.getheaders()}
    connection.close()
    return answer


def test_the_page_and_its_facts(viewer: Explorer) -> None:
    """The page, its files and the facts of the slide are served."""
    status, content, headers = ask(viewer, "")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert b"<title>" in content
    assert "default-src 'none'" in headers["content-security-policy"]
    facts = json.loads(ask(viewer, "slides/s0/facts.json")[1])
    assert facts["size"] == [1500, 1100]
    assert facts["name"] == "named.tif"
    assert ask(viewer, "page/openseadragon.min.js")[0] == 200
    assert b"Redistribution" in ask(viewer, "page/openseadragon-LICENSE.txt")[1]


def test_the_page_loads_nothing_from_other_servers() -> None:
    """No file of the page names an address of the internet to load from."""
    page = Path(sp.__file__).parent / "viewer" / "page"
    for file in page.iterdir():
        if file.suffix in (".html", ".css", ".js") and not file.name.startswith("openseadragon"):
            assert "http://" not in file.read_text(encoding="utf-8"), file.name
            assert "https://" not in file.read_text(encoding="utf-8"), file.name


def test_a_tile_is_the_slides_pixels(viewer: Explorer, slide: Path) -> None:
    """A tile at full resolution equals the slide's own pixels within the error of JPEG, and may be kept for ever."""
    status, content, headers = ask(viewer, "slides/s0/tiles/plain/0/1_1.jpg")
    assert status == 200
    assert "immutable" in headers["cache-control"]
    decoded = simplejpeg.decode_jpeg(content)
    with sp.open_slide(slide) as opened:
        true = opened.read_region((512, 512), 0, (512, 512))
    assert decoded.shape == true.shape
    assert np.abs(decoded.astype(int) - true).mean() < 4


@pytest.mark.parametrize(
    "path",
    [
        "page/../server.py",
        "page/%2e%2e/server.py",
        "page//etc/passwd",
        "page/..%2f..%2fpyproject.toml",
        "../explore.py",
        "slides/../../etc/passwd",
        "slides/named.tif/facts.json",
        "slides/s0/tiles/plain/0/-1_0.jpg",
        "slides/s0/tiles/../../facts.json",
        "page/__init__.py",
    ],
)
def test_no_other_file_is_served(viewer: Explorer, path: str) -> None:
    """Addresses that climb out of the page or name files are not there."""
    status, content, _ = ask(viewer, path)
    assert status == 404
    assert "problem" in json.loads(content)


@pytest.mark.parametrize(
    "path", ["slides/s1/facts.json", "slides/s0/tiles/plain/0/9_9.jpg", "slides/s0/tiles/plain/9/0_0.jpg"]
)
def test_what_is_not_there_is_said(viewer: Explorer, path: str) -> None:
    """An unknown slide and a tile outside the slide are errors with a message."""
    status, content, _ = ask(viewer, path)
    assert status == 422
    assert json.loads(content)["problem"]


@pytest.mark.parametrize("token", ["", "x" * 24, "scene.json"])
def test_the_token_is_needed(viewer: Explorer, token: str) -> None:
    """Without the token of the link nothing is served."""
    assert ask(viewer, "scene.json", token=token)[0] == 404


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::1"])
def test_other_names_of_this_computer_are_refused(viewer: Explorer, host: str) -> None:
    """A page of another site that points its own name to this computer gets nothing."""
    assert ask(viewer, "scene.json", Host=host)[0] == 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:9", "LOCALHOST:80"])
def test_this_computer_is_known(viewer: Explorer, host: str) -> None:
    """Any port is right: a tunnel has another one."""
    assert ask(viewer, "scene.json", Host=host)[0] == 200


def test_a_hub_is_known_if_named(slide: Path) -> None:
    """Behind a proxy, its name is accepted if it was given."""
    with sp.explore(slide, hosts=["hub.example"]) as viewer:
        assert ask(viewer, "scene.json", Host="hub.example")[0] == 200


def test_other_pages_cannot_send(viewer: Explorer) -> None:
    """A form of another site is refused: its origin, and its kind of content."""
    assert ask(viewer, "slides/s0/draws", method="POST", body={}, Origin="http://evil.example")[0] == 403
    assert ask(viewer, "slides/s0/draws", method="POST", body={}, Content_Type="text/plain")[0] == 403


def test_the_error_of_bad_content_is_said(viewer: Explorer) -> None:
    """What is no JSON, and what is too long, is refused; the server goes on."""
    connection = http.client.HTTPConnection("127.0.0.1", viewer.port, timeout=30)
    path = urlsplit(viewer.url).path
    connection.request("POST", f"{path}slides/s0/draws", b"{", {"Content-Type": "application/json"})
    assert connection.getresponse().status == 400
    connection.close()
    connection = http.client.HTTPConnection("127.0.0.1", viewer.port, timeout=30)
    connection.putrequest("POST", f"{path}slides/s0/draws")
    connection.putheader("Content-Length", str(1 << 40))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()
    assert ask(viewer, "scene.json")[0] == 200


def test_a_port_in_use(slide: Path) -> None:
    """The next free port is taken."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with sp.explore(slide, port=port) as viewer:
            assert port < viewer.port <= port + 20
            assert ask(viewer, "scene.json")[0] == 200


def test_an_impossible_port(slide: Path) -> None:
    """It is named in the error."""
    with pytest.raises(ConfigError, match="port=70000"):
        sp.explore(slide, port=70000)


def test_it_serves_this_computer_only(viewer: Explorer) -> None:
    """It is bound to the loopback address."""
    assert viewer._server.socket.getsockname()[0] == "127.0.0.1"


def test_closing_ends_it(slide: Path) -> None:
    """After ``close`` nothing answers, and closing again does nothing."""
    viewer = sp.explore(slide)
    viewer.close()
    viewer.close()
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", viewer.port), timeout=5):
        pass
    assert repr(viewer) == "Explorer(closed)"


def test_label_images_are_not_served_unless_asked_for(tmp_path: Path) -> None:
    """They may show a name; with ``labels`` they are listed and served, else neither."""
    path = tmp_path / "a.svs"
    made_slide(path, size=(1500, 1200), seed=3, lesions=1, pieces=1)
    with sp.explore(path) as viewer:
        facts = json.loads(ask(viewer, "slides/s0/facts.json")[1])
        assert facts["associated"] == ["thumbnail"]
        for name in ("label", "macro"):
            status, content, _ = ask(viewer, f"slides/s0/associated/{name}.jpg")
            assert (status, b"may show a name" in content) == (422, True)
        assert ask(viewer, "slides/s0/associated/thumbnail.jpg")[0] == 200
        assert ask(viewer, "slides/s0/associated/other.jpg")[0] == 404
    with sp.explore(path, labels=True) as viewer:
        assert "label" in json.loads(ask(viewer, "slides/s0/facts.json")[1])["associated"]
        assert simplejpeg.decode_jpeg(ask(viewer, "slides/s0/associated/label.jpg")[1]).ndim == 3


def test_a_page_that_leaves_is_noticed() -> None:
    """A request whose connection was closed meanwhile is no longer wanted; one that waits is."""
    asked, go, wanted = threading.Event(), threading.Event(), list[bool]()

    def answer(request: Request) -> Reply:
        asked.set()
        go.wait(30)
        wanted.append(request.wanted())
        return Reply(b"x")

    server = ViewerServer(answer)
    server.start()
    for leaves in (True, False):
        asked.clear()
        go.clear()
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.request("GET", f"/{server.token}/a")
        assert asked.wait(30)
        if leaves:
            connection.close()
        go.set()
        if not leaves:
            assert connection.getresponse().read() == b"x"
            connection.close()
        deadline = time.monotonic() + 30
        while len(wanted) < 1 + (not leaves) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert wanted == [False, True]
    server.stop()


def test_connections_are_limited(slide: Path) -> None:
    """Beyond the limit a connection is closed; when others end, new ones are answered."""
    with sp.explore(slide) as viewer:
        held = [socket.create_connection(("127.0.0.1", viewer.port), timeout=30) for _ in range(MOST_CONNECTIONS)]
        deadline = time.monotonic() + 30
        while len(viewer._server._connections) < MOST_CONNECTIONS and time.monotonic() < deadline:
            time.sleep(0.01)
        with socket.create_connection(("127.0.0.1", viewer.port), timeout=30) as late:
            assert late.recv(1) == b""
        for each in held:
            each.close()
        while viewer._server._connections and time.monotonic() < deadline:
            time.sleep(0.01)
        assert ask(viewer, "scene.json")[0] == 200


def test_nothing_is_written_unless_a_folder_was_given(viewer: Explorer, slide: Path) -> None:
    """Saving is refused, with what to do; with a folder the files are there."""
    before = sorted(slide.parent.rglob("*"))
    status, content, _ = ask(viewer, "slides/s0/save", method="POST", body={"settings": {}, "edits": []})
    assert (status, b"save_to" in content) == (422, True)
    assert sorted(slide.parent.rglob("*")) == before
    with sp.explore(slide, save_to=slide.parent / "saved") as other:
        status, content, _ = ask(other, "slides/s0/save", method="POST", body={"settings": {"threshold": "0.1"}})
        assert status == 200
        assert [Path(file).name for file in json.loads(content)["files"]] == ["tissue.yaml", "named.geojson"]


def test_tiles_that_look_alike_of_a_stored_bag(slide: Path, tmp_path: Path) -> None:
    """They are found by the features that are stored beside its tiles."""
    with sp.open_slide(slide) as opened:
        view = opened.view()
        sp.save_bag(sp.TileBag(view, sp.TileGrid(view, 256)), tmp_path / "named.bag.zarr", progress=False)
    count = len(sp.open_bag(tmp_path / "named.bag.zarr"))
    angles = np.linspace(0, 1, count)
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    add_features(tmp_path / "named.bag.zarr", "tiny", features, {"name": "tiny"})
    with sp.explore(tmp_path / "named.bag.zarr", slides=slide.parent) as viewer:
        assert json.loads(ask(viewer, "scene.json")[1])["slides"][0]["encoders"] == ["tiny"]
        found = json.loads(ask(viewer, "slides/s0/nearest.json?tile=10")[1])
        assert sorted(found["tiles"][:2]) == [9, 11]
        assert ask(viewer, "slides/s0/nearest.json?tile=999")[0] == 422
        assert json.loads(ask(viewer, "slides/s0/layers/tiles.json")[1])["count"] == count
