"""Draw pictures and notebook cards: arrays in, Pillow images and HTML out; independent of slides."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from slideio_pipe.errors import ConfigError, OutputError, OutputExistsError
from slideio_pipe.files import make_folder, write_file
from slideio_pipe.images.explained import Key, bar_of, explained
from slideio_pipe.images.lettering import INK, PAPER, font, shortened, text_px, text_width

TISSUE = (0, 150, 110)  # green-blue: far from eosin, haematoxylin and DAB
TILE = (20, 60, 200)
TISSUE_KEYS = (Key("tissue outline", TISSUE, "line"), Key("no tissue: faded", (232, 228, 232)))
# Opacity of a box's inside, and the side from which it has an outline.
_FILL, _OUTLINED_FROM_PX = 22, 4
# Tiles of a grid that are not kept.
DROPPED = (175, 175, 175)
REFUSED = (225, 110, 20)  # for their quality
# Colours of label classes, repeated in turn: P. Tol's "bright" scheme, distinguishable with any colour vision, then
# others of his "muted" and "vibrant" ones.
CLASSES = (
    (238, 102, 119), (68, 119, 170), (34, 136, 51), (204, 187, 68), (102, 204, 238), (170, 51, 119),
    (51, 34, 136), (238, 119, 51), (0, 153, 136), (136, 34, 85), (153, 153, 51), (85, 85, 85),
)  # fmt: skip


def fit(rgb: NDArray[np.uint8], max_size: int) -> Image.Image:
    """Return the image with its longer side at most ``max_size`` px."""
    image = Image.fromarray(rgb)
    factor = max(image.size) / max_size
    if factor <= 1:
        return image
    size = (max(1, round(image.width / factor)), max(1, round(image.height / factor)))
    return image.resize(size, Image.Resampling.BOX)


def tint_mask(image: Image.Image, mask: NDArray[np.bool_], colour: tuple[int, int, int] = TISSUE) -> Image.Image:
    """Return the image with the mask (any size, same area) outlined and the area outside it faded."""
    shown = np.asarray(image.convert("RGB")).copy()
    # Interpolated, because a mask pixel covers many image pixels and would draw stairs.
    smooth = cv2.resize(mask.astype(np.uint8) * 255, image.size, interpolation=cv2.INTER_LINEAR)
    scaled = (smooth > 127).astype(np.uint8)
    outside = scaled == 0
    shown[outside] = (shown[outside] * 0.55 + 255 * 0.45).astype(np.uint8)
    outlines, _ = cv2.findContours(scaled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    width = max(1, round(max(image.size) / 500))
    cv2.drawContours(shown, outlines, -1, colour, width, lineType=cv2.LINE_AA)
    return Image.fromarray(shown)


def label_colours() -> NDArray[np.uint8]:
    """Return the (256, 3) colours of label values: white for 0, then ``CLASSES`` repeated."""
    classes = [CLASSES[k % len(CLASSES)] for k in range(255)]
    return np.array([(255, 255, 255), *classes], dtype=np.uint8)


def label_keys(labels: NDArray[np.uint8], classes: Mapping[str, int]) -> list[Key]:
    """Return the meaning of the colours of the labels in a picture, in the order of their values."""
    names, colours = {value: name for name, value in classes.items()}, label_colours()
    found = [value for value in np.unique(labels).tolist() if value]
    return [Key(names.get(value, f"label {value}"), tuple(colours[value].tolist())) for value in found]


def tint_labels(image: Image.Image, labels: NDArray[np.uint8]) -> Image.Image:
    """Return the image blended half and half with the colours of labels of the same size; label 0 is unchanged."""
    shown = np.asarray(image.convert("RGB"))
    tinted = (shown.astype(np.uint16) + label_colours()[labels]) // 2
    return Image.fromarray(np.where(labels[..., None] > 0, tinted, shown).astype(np.uint8))


def draw_boxes(image: Image.Image, boxes: ArrayLike, colour: tuple[int, int, int] = TILE) -> Image.Image:
    """Return the image with (N, 4) rectangles x, y, width, height (image px) filled lightly and outlined."""
    base, places = image.convert("RGBA"), np.asarray(boxes, np.float64).reshape(-1, 4)
    tiny = places[:, 2:].min(axis=1, initial=np.inf) < _OUTLINED_FROM_PX
    layer = Image.new("RGBA", base.size, (0, 0, 0, 0))
    if tiny.any():  # a fine grid has millions
        layer.paste((*colour, _FILL), mask=Image.fromarray(_union(places[tiny], base.size)))
    draw = ImageDraw.Draw(layer)
    for x, y, width, height in places[~tiny]:
        draw.rectangle((x, y, x + max(1.0, width - 1), y + max(1.0, height - 1)), (*colour, _FILL), (*colour, 200))
    return Image.alpha_composite(base, layer).convert("RGB")


def draw_marks(
    image: Image.Image, boxes: ArrayLike, box_labels: Sequence[int], points: ArrayLike, point_labels: Sequence[int]
) -> Image.Image:
    """Return the image with outlines of (n, 4) boxes, lowest and highest x and y, and (m, 2) points, in class colours.

    All in image px. The first class has the first colour of ``CLASSES``, as in ``tint_labels``.
    """
    shown = image.convert("RGB")
    draw, radius = ImageDraw.Draw(shown), max(1.5, max(shown.size) / 150)
    for label, box in zip(box_labels, np.asarray(boxes, np.float64).reshape(-1, 4).tolist(), strict=True):
        places = (box[0], box[1], max(box[0], box[2] - 1), max(box[1], box[3] - 1))
        draw.rectangle(places, outline=_class_colour(label), width=max(1, round(radius * 0.8)))
    for label, (x, y) in zip(point_labels, np.asarray(points, np.float64).reshape(-1, 2).tolist(), strict=True):
        spot = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(spot, fill=_class_colour(label), outline=(255, 255, 255))
    return shown


def _class_colour(label: int) -> tuple[int, int, int]:
    return CLASSES[(label - 1) % len(CLASSES)]


def _union(boxes: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return (height, width) uint8, 255 where some box is, each at least one px."""
    width, height = size
    low = np.clip(np.floor(boxes[:, :2] + 0.5).astype(np.int64), 0, (width - 1, height - 1))
    high = np.clip(np.floor(boxes[:, :2] + boxes[:, 2:] + 0.5).astype(np.int64), low + 1, (width, height))
    steps = np.zeros((height + 1) * (width + 1), np.int64)
    for x, y, sign in ((low, low, 1), (high, high, 1), (low, high, -1), (high, low, -1)):
        steps += sign * np.bincount(y[:, 1] * (width + 1) + x[:, 0], minlength=len(steps))
    counts = steps.reshape(height + 1, width + 1).cumsum(0).cumsum(1)[:height, :width]
    return np.where(counts > 0, np.uint8(255), np.uint8(0))


def montage(tiles: NDArray[np.uint8], *, columns: int | None = None, tile_px: int = 128, gap: int = 3) -> Image.Image:
    """Return (n, H, W, 3) uint8 tiles side by side, each shrunk to ``tile_px`` if larger."""
    count = len(tiles)
    if not count:
        return captioned(Image.new("RGB", (2 * tile_px, tile_px), (245, 245, 245)), "no tiles")
    columns = columns or math.ceil(math.sqrt(count))
    pictures = [fit(tile, tile_px) for tile in tiles]
    width, height = pictures[0].size
    rows = -(-count // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), PAPER)
    for k, picture in enumerate(pictures):
        sheet.paste(picture, ((k % columns) * (width + gap), (k // columns) * (height + gap)))
    return sheet


def captioned(image: Image.Image, caption: str) -> Image.Image:
    """Return the image with a line of text above it, readable when it is shown 600 px wide."""
    px = text_px(image.width)
    line = round(px * 1.75)
    sheet = Image.new("RGB", (image.width, image.height + line), PAPER)
    ImageDraw.Draw(sheet).text((2, round(px * 0.2)), shortened(caption, px, image.width - 2), INK, font(px))
    sheet.paste(image, (0, line))
    return sheet


def scale_bar(image: Image.Image, um_per_px: float, *, px: int | None = None) -> Image.Image:
    """Return the image with a scale bar of a round length, about a fifth of its width, at the lower left."""
    bar = bar_of(image.width, um_per_px)
    if bar is None or image.height < 48:
        return image
    shown, px = image.copy(), text_px(image.width) if px is None else px
    draw = ImageDraw.Draw(shown)
    left, bottom = 10, image.height - 10
    right, upper = left + max(bar.px, text_width(bar.text, px)), bottom - round(px * 1.7)
    draw.rectangle((left - 5, upper - 2, right + 5, bottom + 5), PAPER)
    draw.rectangle((left, bottom - 3, left + bar.px - 1, bottom), INK)
    draw.text((left, upper), bar.text, INK, font(px))
    return shown


def finished(
    image: Image.Image, title: str, *, titled: bool, um_per_px: float | None = None, keys: Sequence[Key] = ()
) -> Image.Image:
    """Return a picture with its title, scale bar and legend; without a title, for a card, its scale bar only."""
    if titled:
        return explained(image, title, um_per_px=um_per_px, keys=keys)
    return image if um_per_px is None else scale_bar(image, um_per_px)


def beside(images: Sequence[Image.Image], gap: int = 16) -> Image.Image:
    """Return images side by side, their tops aligned."""
    width = sum(image.width for image in images) + gap * (len(images) - 1)
    sheet = Image.new("RGB", (width, max(image.height for image in images)), PAPER)
    left = 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width + gap
    return sheet


def above(images: Sequence[Image.Image], gap: int = 16) -> Image.Image:
    """Return images below each other, their left sides aligned."""
    height = sum(image.height for image in images) + gap * (len(images) - 1)
    sheet = Image.new("RGB", (max(image.width for image in images), height), PAPER)
    top = 0
    for image in images:
        sheet.paste(image, (0, top))
        top += image.height + gap
    return sheet


def card(title: str, facts: Mapping[str, object], images: Iterable[Image.Image], keys: Sequence[Key] = ()) -> str:
    """Return an HTML card for notebooks: pictures with a legend on the left, a table of facts on the right.

    Text is escaped.
    """
    pictures = "".join(f'<img style="max-width:420px" src="{_data_url(image)}">' for image in images)
    rows = "".join(
        f'<tr><td style="text-align:left;opacity:.65;padding-right:12px">{html.escape(name)}</td>'
        f'<td style="text-align:left">{html.escape(str(value))}</td></tr>'
        for name, value in facts.items()
    )
    return (
        '<div style="display:flex;gap:16px;align-items:flex-start">'
        f"<div>{pictures}{_legend(keys)}</div>"
        f"<div><b>{html.escape(title)}</b><table>{rows}</table></div></div>"
    )


def _legend(keys: Sequence[Key]) -> str:
    """Return the meaning of a picture's colours as HTML."""
    marks = {
        "area": "height:.8em;background:",
        "line": "height:0;border-top:2px solid ",
        "box": "height:.7em;border:2px solid ",
    }
    shown = "".join(
        '<span style="margin-right:14px;white-space:nowrap"><i style="display:inline-block;width:1em;'
        f'vertical-align:middle;margin-right:5px;{marks[key.mark]}rgb{key.colour}"></i>{html.escape(key.text)}</span>'
        for key in keys
    )
    return f'<div style="max-width:420px">{shown}</div>' if keys else ""


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def picture_path(file: str | Path, *, overwrite: bool) -> Path:
    """Return the path of a picture to write.

    Raise ConfigError if the ending is not that of a picture, OutputExistsError if the file exists and may not be
    replaced.
    """
    path = Path(file).expanduser()
    if path.suffix.lower() not in PICTURES:
        raise ConfigError("no picture has this ending", slide=str(path), remedy=f"end it in {' or '.join(PICTURES)}")
    folder = next((parent for parent in path.absolute().parents if parent.exists()), path.parent)
    if not folder.is_dir():
        raise OutputError(
            f"the folder cannot be made ({folder} is a file)", slide=str(path), remedy="pass another path"
        )
    if path.exists() and not overwrite:
        raise OutputExistsError("already exists", slide=str(path), remedy="pass {overwrite=True} or another path")
    return path


def save_picture(image: Image.Image, file: Path, *, overwrite: bool) -> None:
    """Write a picture, complete or not at all; missing folders are created.

    Raises
    ------
    ConfigError, OutputExistsError, OutputError
        See ``picture_path``; or the file cannot be written.
    """
    path = picture_path(file, overwrite=overwrite)
    buffer = io.BytesIO()
    image.save(buffer, Image.registered_extensions()[path.suffix.lower()])
    make_folder(path.parent)
    write_file(path, buffer.getvalue(), overwrite=overwrite)
