"""What a notebook shows of a running viewer: its page where the browser reaches it, else a picture that zooms.

Only the browser can find out whether it reaches the viewer: a kernel may run on another computer. So the picture is
shown at first. A script (``page/notebook.js``) tries the page through the notebook server's proxy and at this
computer's own address, each in a hidden frame, and shows the one that answers in place of the picture.
"""

from __future__ import annotations

import base64
import html
import io
import json
import secrets
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from slideio_pipe.errors import SlideioPipeError
from slideio_pipe.geometry import Affine
from slideio_pipe.images import picture
from slideio_pipe.images.explained import Key, explained
from slideio_pipe.slides.view import SlideView
from slideio_pipe.tiles.bag import ArrayLikeBag
from slideio_pipe.tiles.tile_bag import TileBag
from slideio_pipe.viewer.scene import Scene
from slideio_pipe.viewer.snapshot import SNAPSHOT_PX, STILL_PX, snapshot_html

HEIGHT_PX = 560
# What the page sends to the page around it once its slide is on the screen; as in page/main.js.
SHOWN = "slideio-pipe: shown"
# A page that has not answered until then is not reachable.
_PATIENCE_MS = 15_000


class RunningViewer(Protocol):
    """The parts of a viewer that this module uses; ``Explorer`` has them."""

    @property
    def url(self) -> str: ...
    @property
    def port(self) -> int: ...


class ScenePicture(NamedTuple):
    """A picture of what a viewer shows first."""

    image: Image.Image
    title: str
    um_per_px: float | None = None
    affine: Affine | None = None  # picture px to level-0 px
    keys: tuple[Key, ...] = ()


def scene_picture(scene: Scene, scores: Any = None) -> ScenePicture:
    """Return a picture of the first slide of a viewer, with the tiles if it is a bag, or with a prediction's scores.

    Raise SlideioPipeError if it cannot be read.
    """
    shown = next(iter(scene.slides.values()))
    others = f" and {len(scene.slides) - 1} more" if len(scene.slides) > 1 else ""
    if isinstance(shown.source, ArrayLikeBag) and not isinstance(shown.source, TileBag):  # the slide may be gone
        return ScenePicture(shown.source.plot(100, titled=False), f"tiles of {shown.name}{others}")
    view = scene.view(shown.id)
    if isinstance(shown.source, TileBag):
        grid = shown.source.grid
        return _of_view(view, grid.drawn(SNAPSHOT_PX), f"{len(grid):,} tiles of {shown.name}{others}", grid.legend())
    drawn = "" if view.draw is None else f", {view.draw.summary()}"
    plain = _of_view(view, picture.fit(view.thumbnail(SNAPSHOT_PX), SNAPSHOT_PX), f"{shown.name}{drawn}{others}", [])
    return _with_scores(plain, scores) if hasattr(scores, "tile_scores") else plain


def _with_scores(plain: ScenePicture, prediction: Any) -> ScenePicture:
    """Return the picture overlaid with the scores of a prediction, and the meaning of their colours."""
    found = prediction.tile_scores()
    scale, affine = found.scale, plain.affine
    painted = Image.fromarray(found.map.paint(np.asarray(plain.image.convert("RGB")), affine))
    # Attention at its mean, the first tick, has no colour.
    ticks = scale.ticks[:0:-1] if scale.logarithmic else scale.ticks[::-1]
    keys = [Key(f"{scale.name} {scale.shown(tick)}", tuple(scale.colours(tick).tolist())) for tick in ticks]
    return plain._replace(image=painted, title=f"{plain.title}: {found.title}", keys=tuple(keys))


def _of_view(view: SlideView, image: Image.Image, title: str, keys: list[Key]) -> ScenePicture:
    across, down = (whole / side for whole, side in zip(view.size, image.size, strict=True))
    um_per_px = None if view.mpp is None else view.mpp.x * across
    return ScenePicture(image, title, um_per_px, view.affine @ Affine.scaling(across, down), tuple(keys))


def notebook_bundle(viewer: RunningViewer, scene: Scene, scores: Any, *, running: bool) -> dict[str, Any]:
    """Return what a notebook shows: HTML, and a still picture for exports that leave HTML out."""
    try:
        found = scene_picture(scene, scores)
    except SlideioPipeError as error:
        problem = f"<p>no picture: {html.escape(str(error))}</p>"
        return {"text/html": _live(viewer, problem) if running else problem}
    snapshot = snapshot_html(
        found.image,
        title=found.title,
        um_per_px=found.um_per_px,
        affine=found.affine,
        keys=found.keys,
        height_px=HEIGHT_PX,
    )
    return {"text/html": _live(viewer, snapshot) if running else snapshot, "image/jpeg": _still(found)}


def _still(found: ScenePicture) -> str:
    """Return the picture with its title and scale bar as JPEG in base64, as notebooks keep it."""
    small = found.image.convert("RGB")
    small.thumbnail((STILL_PX, STILL_PX))
    um_per_px = None if found.um_per_px is None else found.um_per_px * found.image.width / small.width
    buffer = io.BytesIO()
    explained(small, found.title, um_per_px=um_per_px, keys=found.keys).save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()


def _live(viewer: RunningViewer, snapshot: str) -> str:
    """Return the snapshot, a link to the page, and the script that shows the page in place of the snapshot."""
    place, url = f"slideio-{secrets.token_hex(6)}", html.escape(viewer.url, quote=True)
    path = viewer.url.split("/", 3)[3]
    values = {
        "place": place,
        "url": viewer.url,
        "proxied": f"proxy/{viewer.port}/{path}",
        "shown": SHOWN,
        "patience_ms": _PATIENCE_MS,
    }
    link = f'<p style="margin:4px 0">Viewer: <a href="{url}" target="_blank" rel="noopener">{url}</a></p>'
    box = f'<div id="{place}" style="position:relative;height:{HEIGHT_PX}px">{snapshot}</div>'
    return f"{box}{link}<script>{_script()}({json.dumps(values)});</script>"


@cache
def _script() -> str:
    text = files("slideio_pipe.viewer").joinpath("page/notebook.js").read_text(encoding="utf-8")
    return text[text.index("((values)") :].rstrip()
