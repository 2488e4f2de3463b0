"""The same view of a slide, its draw included, at another resolution."""

from __future__ import annotations

from dataclasses import replace

from slideio_pipe.augment.draw import Draw
from slideio_pipe.geometry import Affine, Size, round_half_up
from slideio_pipe.slides.view import SlideView


def rescaled(view: SlideView, mpp: float) -> SlideView:
    """Return ``view`` at ``mpp`` µm per px before its draw: the same turn, zoom and colours, the same colour outside.

    A turn by quarters and a mirror still copy whole pixels: the frame then begins at the nearest whole pixel.

    Raises
    ------
    MissingResolutionError, ConfigError
        As ``SlideView.at``.

    Examples
    --------
    >>> import numpy as np
    >>> from slideio_pipe.slides.slide import open_slide
    >>> view = open_slide(np.zeros((600, 800, 3), np.uint8), slide_mpp=0.25).view(mpp=0.5).adjusted(turn=90)
    >>> rescaled(view, 1.0)
    SlideView(array: 150×200 px at 1 µm, level 0 shrunk 4×, turned 90°)
    """
    plain = replace(SlideView.at(view.slide, mpp), outside=view.outside)
    if view.draw is None:
        return plain
    ratio = tuple(coarse / fine for coarse, fine in zip(plain.downsample, view.downsample, strict=True))
    return replace(plain, draw=_rescaled_draw(view.draw, (ratio[0], ratio[1]), plain.plain_size))


def _rescaled_draw(draw: Draw, ratio: tuple[float, float], size: Size) -> Draw:
    """Return a draw for an image of ``size``, of which a px is ``ratio`` px of the draw's own."""
    a, b, c, d, e, f = draw.affine
    across, down = c / ratio[0], f / ratio[1]
    if sorted(map(abs, (a, b, d, e))) == [0, 0, 1, 1]:
        across, down = (float(v) for v in round_half_up((across, down)))
    moved = Affine(a, b, across, d, e, down) if draw.moves else Affine()
    width, height = (max(1, int(side / per + 1e-6)) for side, per in zip(draw.canvas, ratio, strict=True))
    canvas = Size(width, height) if draw.moves else size
    return draw.model_copy(update={"size": size, "canvas": canvas, "affine": moved.as_tuple()})
