"""A picture of a slide that zooms and pans in a notebook by itself, without a server or the internet."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from string import Template

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slideio_pipe.geometry import Affine
from slideio_pipe.images.explained import Key

# Longer side of the picture: a slide of 25,000 px at a tenth of its size, about 2.3 MB of HTML.
SNAPSHOT_PX = 2500
# Longer side of the still picture, which is shown where a page is printed or its frames are left out.
STILL_PX = 800


def snapshot_html(
    image: Image.Image | NDArray[np.uint8],
    *,
    title: str,
    um_per_px: float | None = None,
    affine: Affine | None = None,
    keys: Sequence[Key] = (),
    height_px: int = 480,
) -> str:
    """Return HTML that shows a picture in which one zooms and pans; self-contained, for notebooks.

    It is a frame whose scripts cannot reach the notebook (``sandbox="allow-scripts"``), over a still picture that
    remains where frames are left out, as in exported notebooks.

    Parameters
    ----------
    image : Pillow image or (H, W, 3) uint8 array
        Shown at its own resolution; ``SNAPSHOT_PX`` is a good longer side.
    title : str
        What it is, shown above it.
    um_per_px : float, optional
        µm per picture pixel, for the scale bar.
    affine : Affine, optional
        From picture px to level-0 px, for the coordinates under the cursor.
    keys : sequence of Key
        The meaning of its colours.
    height_px : int
        Height in the notebook.

    Examples
    --------
    >>> text = snapshot_html(np.zeros((30, 40, 3), np.uint8), title="a.svs", um_per_px=8.0)
    >>> 'sandbox="allow-scripts"' in text, "://" in text
    (True, False)
    """
    shown = (image if isinstance(image, Image.Image) else Image.fromarray(image)).convert("RGB")
    page = snapshot_page(shown, title=title, um_per_px=um_per_px, affine=affine, keys=keys)
    still = shown.copy()
    still.thumbnail((STILL_PX, STILL_PX))
    name = html.escape(title, quote=True)
    box = f"position:relative;height:{height_px}px;box-sizing:border-box;border:1px solid #ccc;overflow:hidden"
    fill = "position:absolute;inset:0;width:100%;height:100%;border:0"
    fit = "max-width:100%;max-height:100%;display:block;margin:auto"
    return (
        f'<div style="{box}"><img alt="{name}" src="{_jpeg_url(still)}" style="{fit}">'
        f'<iframe title="{name}" sandbox="allow-scripts" style="{fill}" srcdoc="{html.escape(page, quote=True)}">'
        "</iframe></div>"
    )


def snapshot_page(
    image: Image.Image,
    *,
    title: str,
    um_per_px: float | None = None,
    affine: Affine | None = None,
    keys: Sequence[Key] = (),
) -> str:
    """Return the page inside the frame: one HTML document with its picture."""
    facts = {"um": um_per_px, "affine": None if affine is None else list(affine.as_tuple())}
    name = html.escape(title, quote=True)
    return _template().substitute(
        title=name, facts=json.dumps(facts), picture=_jpeg_url(image), keys="".join(map(_key, keys))
    )


def _key(key: Key) -> str:
    colour = f"background:rgb{key.colour}" if key.mark == "area" else f"border-color:rgb{key.colour}"
    return f'<span><i class="{key.mark}" style="{colour}"></i>{html.escape(key.text)}</span>'


@cache
def _template() -> Template:
    return Template(files("slideio_pipe.viewer").joinpath("page/snapshot.html").read_text(encoding="utf-8"))


def _jpeg_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85, subsampling=0)  # with full colour: stains differ in colour
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
