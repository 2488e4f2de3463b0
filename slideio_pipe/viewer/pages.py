"""What each address of the viewer answers.

Addresses name slides by id and draws by digest, so a tile's address never means other pixels:
``slides/s0/tiles/<digest>/<zoom>/<column>_<row>.jpg``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np

from slideio_pipe.errors import ConfigError, CorruptSlideError, SlideNotFoundError
from slideio_pipe.geometry import Size
from slideio_pipe.images import picture
from slideio_pipe.viewer.drawn import DrawnSlides
from slideio_pipe.viewer.editing import Edit, SaveFolder, edits_of
from slideio_pipe.viewer.layers import Layers
from slideio_pipe.viewer.nearest import nearest_tiles
from slideio_pipe.viewer.scene import PRIVATE_IMAGES, Scene, facts_of
from slideio_pipe.viewer.server import Reply, Request
from slideio_pipe.viewer.tile_source import TileSource, ViewTiles, to_jpeg

PAGE = Path(__file__).parent / "page"
_KINDS = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".txt": "text/plain"}
THUMBNAIL = 160  # px
MOST_REGION = 2048  # px, a side of a picture that is made at once


class Pages:
    """Answers the requests of a viewer's page.

    Parameters
    ----------
    scene : Scene
    drawn : DrawnSlides
        The draws that the page has made.
    source : TileSource
    layers : Layers
        What is drawn over the slides.
    settings : dict
        Facts that the page loads when it starts: JSON values.
    private_images : bool
        Whether label and macro images, which may show a patient's name, are served.
    folder : SaveFolder, optional
        Where the page may save; nowhere by default.
    """

    def __init__(
        self,
        scene: Scene,
        drawn: DrawnSlides,
        source: TileSource,
        layers: Layers,
        settings: dict[str, Any],
        *,
        private_images: bool = False,
        folder: SaveFolder | None = None,
    ) -> None:
        self.scene, self.drawn, self.source, self.layers, self.settings = scene, drawn, source, layers, settings
        self.private_images, self.folder = private_images, folder
        # Files of the page are listed once: no address is ever joined to a path.
        self._files = {file.name: file for file in PAGE.iterdir() if file.suffix in _KINDS}
        slide, digest, number = r"slides/(s\d{1,9})", r"([0-9a-f]{16}|plain)", r"(\d{1,9})"
        self._routes: list[tuple[str, re.Pattern[str], Callable[..., Reply]]] = []
        self.add("GET", r"", self._index)
        self.add("GET", r"page/([\w.-]+)", self._file)
        self.add("GET", r"scene\.json", self._scene)
        self.add("GET", rf"{slide}/facts\.json", self._facts)
        self.add("GET", rf"{slide}/thumbnail\.jpg", self._thumbnail)
        self.add("GET", rf"{slide}/associated/(\w+)\.jpg", self._associated)
        self.add("GET", rf"{slide}/tiles/{digest}/{number}/{number}_{number}\.jpg", self._tile)
        self.add("GET", rf"{slide}/region/{digest}\.jpg", self._region)
        self.add("GET", rf"{slide}/layers/(tissue|grid|annotations|tiles|scores)\.json", self._layer)
        self.add("POST", rf"{slide}/layers/(tissue|grid)\.json", self._layer)
        self.add("POST", rf"{slide}/(tissue|regions)\.geojson", self._geojson)
        self.add("POST", rf"{slide}/save", self._save)
        self.add("GET", rf"{slide}/nearest\.json", self._nearest)
        self.add("POST", rf"{slide}/draws", self._draw)
        self.add("GET", rf"colours/{digest}\.bin", self._colours)

    def add(self, method: str, pattern: str, answer: Callable[..., Reply]) -> None:
        """Answer addresses of a pattern by a function of the request and the pattern's groups."""
        self._routes.append((method, re.compile(pattern), answer))

    def __call__(self, request: Request) -> Reply:
        method = "GET" if request.body is None else "POST"
        for verb, pattern, answer in self._routes:
            found = pattern.fullmatch(request.path)
            if found and verb == method:
                return answer(request, *found.groups())
        raise SlideNotFoundError("nothing is at this address", remedy="reload the page")

    # -- the page ----------------------------------------------------------------------------------------------------

    def _index(self, request: Request) -> Reply:
        return self._file(request, "index.html")

    def _file(self, request: Request, name: str) -> Reply:
        if name not in self._files:
            raise SlideNotFoundError("nothing is at this address", remedy="reload the page")
        file = self._files[name]
        return Reply(file.read_bytes(), _KINDS[file.suffix])

    def _scene(self, request: Request) -> Reply:
        panel = self.drawn.panel
        controls = [control.to_json() for control in panel.controls]
        slides = [each.to_json() for each in self.scene.slides.values()]
        page = {"slides": slides, "controls": controls, "notes": panel.notes, "saves": self.folder is not None}
        tissue = self.layers.settings.tissue.model_dump(mode="json")
        return Reply.json(page | {"tissue": tissue} | self.settings)

    # -- slides ------------------------------------------------------------------------------------------------------

    def _facts(self, request: Request, key: str) -> Reply:
        facts = facts_of(self.scene.view(key)) | {"layers": self.layers.listed(key)}
        own = self.scene.own_draw(key)
        facts["draw"] = None if own is None else own.to_json()
        if not self.private_images:
            facts["associated"] = [name for name in facts["associated"] if name not in PRIVATE_IMAGES]
        return Reply.json(self.scene[key].to_json() | facts)

    def _thumbnail(self, request: Request, key: str) -> Reply:
        def made() -> bytes:
            small = picture.fit(self.scene.view(key).slide.thumbnail(2 * THUMBNAIL), THUMBNAIL)
            return to_jpeg(np.asarray(small.convert("RGB")))

        return self._image(request, made, immutable=True)

    def _associated(self, request: Request, key: str, name: str) -> Reply:
        if name in PRIVATE_IMAGES and not self.private_images:
            raise ConfigError(f"the {name} image may show a name", remedy="start the viewer with {labels=True}")
        slide = self.scene.view(key).slide
        images = getattr(slide, "associated_images", {})
        if name not in images:
            raise SlideNotFoundError(f"there is no image {name}", slide=slide.name)
        return self._image(request, lambda: to_jpeg(images[name]), immutable=True)

    # -- pixels ------------------------------------------------------------------------------------------------------

    def _tile(self, request: Request, key: str, digest: str, zoom: str, column: str, row: str) -> Reply:
        def made() -> bytes:
            return to_jpeg(self._view_tiles(key, digest).tile(int(zoom), int(column), int(row)))

        return self._image(request, made, immutable=True)

    def _view_tiles(self, key: str, digest: str) -> ViewTiles:
        return self.source.tiles(f"{key}/{digest}", lambda: self.drawn.view(key, digest))

    def _region(self, request: Request, key: str, digest: str) -> Reply:
        """Return a picture around a place: x and y in level-0 px, shrink in view px per px, width and height."""
        x, y, shrink = (_number(request, name) for name in ("x", "y", "shrink"))
        size = Size(*(min(MOST_REGION, max(1, int(_number(request, name)))) for name in ("width", "height")))

        def made() -> bytes:
            tiles = self._view_tiles(key, digest)
            middle = tiles.view.places([(x, y)])[0]
            factor = min(max(1.0, shrink), float(1 << tiles.zooms))  # not smaller than one tile
            corner = (float(middle[0] - size.width * factor / 2), float(middle[1] - size.height * factor / 2))
            return to_jpeg(tiles.region(corner, factor, size))

        return self._image(request, made, immutable=True)

    def _image(self, request: Request, made: Callable[[], bytes], *, immutable: bool = False) -> Reply:
        """Make an image in one of the threads for pixels, unless the page has given it up before its turn."""
        try:
            content = self.source.submit(made, request.wanted).result()
        except CancelledError:
            content = None
        except CorruptSlideError as error:
            return Reply.json({"problem": " ".join(str(error).split()), "damaged": True}, 422)
        if content is None:
            return Reply.json({"problem": "given up"}, 410)
        return Reply(content, "image/jpeg", immutable=immutable)

    # -- layers ------------------------------------------------------------------------------------------------------

    def _layer(self, request: Request, key: str, name: str) -> Reply:
        query, edits = _edited(request)
        return Reply.json(getattr(self.layers, name)(key, query, edits))

    def _geojson(self, request: Request, key: str, what: str) -> Reply:
        return Reply(self.layers.geojson(key, what, *_edited(request)), "application/geo+json")

    def _save(self, request: Request, key: str) -> Reply:
        if self.folder is None:
            remedy = "start the viewer with {save_to=…}, the folder for files"
            raise ConfigError("this viewer writes no files", remedy=remedy)
        return Reply.json({"files": self.layers.save(key, self.folder, *_edited(request))})

    def _nearest(self, request: Request, key: str) -> Reply:
        number, source = int(_number(request, "tile")), self.scene[key].source
        return Reply.json(nearest_tiles(source, number, request.query.get("encoder")))

    # -- draws -------------------------------------------------------------------------------------------------------

    def _draw(self, request: Request, key: str) -> Reply:
        return Reply.json(self.drawn.make(key, request.body))

    def _colours(self, request: Request, digest: str) -> Reply:
        return Reply(self.drawn.colours(digest), "application/octet-stream", immutable=True)


def _edited(request: Request) -> tuple[dict[str, str], tuple[Edit, ...]]:
    """Return the settings and the edits of a page: of the address, or of the JSON that was sent."""
    if request.body is None:
        return request.query, ()
    body = request.body
    if not isinstance(body, Mapping) or not isinstance(body.get("settings", {}), Mapping):
        raise ConfigError("these are no settings", remedy="reload the page")
    settings = {str(name): str(value) for name, value in body.get("settings", {}).items()}
    return settings, edits_of(body.get("edits", ()))


def _number(request: Request, name: str) -> float:
    try:
        value = float(request.query[name])
    except (KeyError, ValueError):
        raise ConfigError(f'no number "{name}"', remedy="reload the page") from None
    if not np.isfinite(value):
        raise ConfigError(f"{name} is {value}", remedy="reload the page")
    return value
