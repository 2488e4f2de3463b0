"""Heat maps of a slide: a picture beside the slide, and a pyramid TIFF aligned with it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Affine, LevelChoice, Mpp, Rect, Size
from slideio_pipe.images import picture
from slideio_pipe.images.explained import explained
from slideio_pipe.images.lettering import text_px
from slideio_pipe.images.pyramid_tiff import save_pyramid
from slideio_pipe.images.virtual_tiff import VirtualTiff
from slideio_pipe.mil.prediction.score_map import ScoreMap, TileScores
from slideio_pipe.progress import Report
from slideio_pipe.slides.sampling import Sampler
from slideio_pipe.slides.slide import Slide

_TILE = Size(256, 256)
_QUALITY = 90


def draw_heatmap(scores: TileScores, slide: Slide | None, max_size: int = 640) -> Image.Image:
    """Return the slide, the slide with scores, each with title and scale bar, and the colour bar.

    Parameters
    ----------
    scores : TileScores
    slide : Slide or None
        None draws the scores on white, over the tiles' area.
    max_size : int
        Longer side of each of the two pictures, px.
    """
    heading = scores.title or scores.scale.name
    um_per_px = None
    if slide is None:
        corners = scores.corners_level0().reshape(-1, 2)
        low, high = corners.min(0), corners.max(0)
        width, height = (high - low).tolist()
        factor = max(width, height) / max_size
        blank = np.full((max(1, round(height / factor)), max(1, round(width / factor)), 3), 255, np.uint8)
        to_level0 = Affine.translation(*low.tolist()) @ Affine.scaling(factor, factor)
        panels = [Image.fromarray(scores.map.paint(blank, to_level0, blend=False))]
    else:
        _check_within(scores, slide)
        pixels = slide.thumbnail(max_size)
        high_px, wide_px = pixels.shape[:2]
        to_level0 = Affine.scaling(slide.dimensions.width / wide_px, slide.dimensions.height / high_px)
        panels = [Image.fromarray(pixels), Image.fromarray(scores.map.paint(pixels, to_level0))]
        um_per_px = None if slide.mpp is None else slide.mpp.x * to_level0.a
    px = text_px(sum(panel.width for panel in panels))
    titles = [f"{scores.slide}: {heading}"] if slide is None else [scores.slide, heading]
    shown = [explained(panel, title, um_per_px=um_per_px, px=px) for panel, title in zip(panels, titles, strict=True)]
    bar = scores.scale.bar(min(max(12 * px, panels[-1].height), round(28 * px)), px)
    framed = ImageOps.expand(bar, (0, round(px * 2.7), px, px), "white")
    return picture.beside([*shown, framed], gap=0)


def save_heatmap_pyramid(
    scores: TileScores,
    slide: Slide,
    path: Path,
    *,
    mpp: float | str | None = None,
    blend: bool = True,
    overwrite: bool = False,
    progress: Report | bool | None = None,
) -> Path:
    """Write the slide overlaid with its scores as a tiled pyramid TIFF, in bounded memory.

    It covers the whole slide from its upper left corner, so its px times its downsample are level-0 px.

    Parameters
    ----------
    mpp : float, "native" or None
        µm per px of the finest level; by default that where a tile has 64 px: a sixteenth of the file size of 256 px.
        "native" is the slide's own.
    blend : bool
        Whether the tissue stays visible; else colours on white.

    Raises
    ------
    ConfigError
        The scores are of another slide, or ``path`` does not end in .tif.
    OutputExistsError, OutputError, CorruptSlideError
        See ``SlideView.save``.
    """
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise ConfigError("what is written is a TIFF", slide=str(path), remedy="end it in .tif")
    _check_within(scores, slide)
    view = slide.view(mpp=_finest(scores, slide, mpp))
    paint = partial(_paint_tile, scores.map, Sampler(slide), view.choice, Affine.scaling(*view.downsample), blend)
    image = VirtualTiff(view.size, _TILE, paint, fail_on="warning")
    save_pyramid(
        image.image,
        path,
        mpp=view.mpp,
        quality=_QUALITY,
        overwrite=overwrite,
        progress=progress,
        name=slide.name,
        check=image.raise_failure,
    )
    return path


def _paint_tile(
    scores: ScoreMap, sampler: Sampler, choice: LevelChoice, to_level0: Affine, blend: bool, column: int, row: int
) -> NDArray[np.uint8]:
    """Return a tile of the pyramid's finest level."""
    x, y = column * _TILE.width, row * _TILE.height
    pixels = np.full((_TILE.height, _TILE.width, 3), 255, np.uint8)
    if blend:
        sampler.plain(choice, Rect(x, y, *_TILE), pixels)
    return scores.paint(pixels, to_level0 @ Affine.translation(x, y), blend=blend)


def _finest(scores: TileScores, slide: Slide, mpp: float | str | None) -> Mpp | None:
    if mpp == "native" or slide.mpp is None:
        return None
    if mpp is not None:
        return Mpp.of(float(mpp))
    factor = max(1.0, scores.side_level0 / 64)
    return Mpp(slide.mpp.x * factor, slide.mpp.y * factor)


def _check_within(scores: TileScores, slide: Slide) -> None:
    """Refuse scores of another slide, as far as detectable: they would be drawn at wrong positions."""
    if not len(scores):
        return
    corners = scores.corners_level0()
    if (corners.max(1) <= 0).any() or (corners.min(1) >= np.array(slide.dimensions)).any():
        reason = f"tiles of {scores.slide} are outside it ({slide.dimensions.width}×{slide.dimensions.height} px)"
        raise ConfigError(reason, slide=slide.name, remedy="pass the slide that was predicted")
