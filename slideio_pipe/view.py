"""A slide seen at one resolution: a lazy uint8 image plus one affine from view pixels to level-0 pixels."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyvips
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from slideio_pipe import picture
from slideio_pipe.augment.draw import Draw
from slideio_pipe.augment.lazy import apply_lazy
from slideio_pipe.augment.stains import SlideColour
from slideio_pipe.errors import ConfigError, CorruptSlideError, UpsamplingWarning
from slideio_pipe.geometry import Affine, LevelChoice, Mpp, Pyramid, Rect, Size, round_half_up
from slideio_pipe.progress import Report
from slideio_pipe.pyramid_file import save_pyramid


class PyramidSource(Protocol):
    """What a view needs of a slide; ``Slide`` is one."""

    @property
    def name(self) -> str: ...
    @property
    def pyramid(self) -> Pyramid: ...
    @property
    def mpp(self) -> Mpp | None: ...
    @property
    def tile_sizes(self) -> tuple[Size, ...]: ...
    def require_mpp(self) -> Mpp: ...
    def level_image(self, level: int) -> Any: ...
    def stored_tile(self, level: int, rect: Rect) -> NDArray[np.uint8] | None: ...
    def raise_failure(self, level: int, rect: Rect, pixels: NDArray[np.uint8]) -> None: ...
    def provenance(self) -> dict[str, Any]: ...
    def thumbnail(self, max_size: int = 1024) -> NDArray[np.uint8]: ...
    def renew(self) -> None: ...
    @property
    def colour(self) -> SlideColour: ...


# Finer than this, interpolated pixels are blur at many times its size on disk.
MAX_UPSAMPLING = 4.0


def _whole_shrinks(length: int, shrink: float) -> int:
    """Return the least length, ``length`` or a little more, that is a whole number of shrunk pixels.

    libvips centres what is left over, which would shift the image by up to half a level pixel. Within 500 pixels some
    multiple of any factor lies within 0.002 px of a whole number, nearly always; the nearest is taken.
    """
    counts = np.arange(math.ceil(length / shrink), math.ceil(length / shrink) + 500)
    misses = np.abs(counts * shrink - np.round(counts * shrink))
    good = np.flatnonzero(misses <= max(0.002, misses.min()))
    return int(np.round(counts[good[0]] * shrink))


@dataclass(frozen=True)
class SlideView:
    """A whole slide at ``mpp``, lazily; nothing is decoded until pixels are asked for.

    Make one with ``Slide.view``. View pixels are numbered from the slide's top-left corner.

    Parameters
    ----------
    slide : PyramidSource
        The slide looked at.
    choice : LevelChoice
        The stored level it is read from and the factor it is shrunk by.
    draw : Draw, optional
        An augmentation drawn for this slide at this resolution; the same for every pixel of the view.

    Examples
    --------
    >>> from slideio_pipe import open_slide
    >>> view = open_slide(np.zeros((600, 800, 3), np.uint8), slide_mpp=0.25).view(mpp=0.5)
    >>> view
    SlideView(array: 400×300 px at 0.5 µm, level 0 shrunk 2×)
    >>> view.to_level0([[10, 20]]).tolist()
    [[20, 40]]
    """

    slide: PyramidSource
    choice: LevelChoice
    draw: Draw | None = field(default=None, hash=False)  # it may hold a transform, which is a dict

    @classmethod
    def at(cls, slide: PyramidSource, mpp: float | tuple[float, float] | None) -> SlideView:
        """Return the view of ``slide`` at ``mpp`` µm per pixel; None is level 0 as stored, for which no mpp is needed.

        The coarsest level whose mpp is at most ``mpp`` is read; within 2 % it is not resampled.

        Raises
        ------
        MissingResolutionError
            ``mpp`` is given and the slide's own is not known.
        ConfigError
            ``mpp`` is not a positive number.
        """
        if mpp is None:
            return cls(slide, LevelChoice(0, (1.0, 1.0)))
        wanted = Mpp.asked(mpp)
        if wanted is None:
            raise ConfigError(f"mpp={mpp!r} is no resolution", slide=slide.name, remedy="pass µm per px, such as 0.5")
        own = slide.require_mpp()
        choice = slide.pyramid.choose((wanted.x / own.x, wanted.y / own.y))
        if min(choice.shrink) < 1 / MAX_UPSAMPLING:
            raise ConfigError(
                f"mpp={wanted.mean:g} is {1 / min(choice.shrink):.0f} times finer than the slide, {own.mean:.4g} µm",
                slide=slide.name,
                remedy=f"pass mpp={own.mean:.3g} or more, or None for level 0 as stored",
            )
        if min(choice.shrink) < 1:
            warnings.warn(
                UpsamplingWarning(
                    f"{slide.name}: {wanted.mean:g} µm wanted of a slide scanned at {own.mean:g} µm; "
                    "its pixels are interpolated"
                ),
                stacklevel=3,
            )
        return cls(slide, choice)

    @property
    def level(self) -> int:
        """The stored level that pixels come from."""
        return self.choice.level

    @property
    def level_size(self) -> Size:
        """Width and height of that level, in its own pixels."""
        return self.slide.pyramid.levels[self.level]

    @property
    def plain_size(self) -> Size:
        """Width and height before the augmentation moved anything."""
        return self.slide.pyramid.size_at(self.choice)

    @property
    def size(self) -> Size:
        """Width and height in view pixels; of a rotated slide, the canvas it fits on."""
        return self.plain_size if self.draw is None else self.draw.canvas

    @property
    def downsample(self) -> tuple[float, float]:
        """Level-0 pixels per plain pixel, along x and y: before any augmentation."""
        return self.slide.pyramid.downsample_at(self.choice)

    @property
    def moves(self) -> bool:
        """Whether the augmentation moves pixels."""
        return self.draw is not None and self.draw.moves

    @property
    def to_plain(self) -> Affine:
        """From view pixels to plain pixels: undoes the augmentation's affine."""
        return Affine() if self.draw is None else Affine.from_tuple(self.draw.affine).inverse()

    @property
    def mpp(self) -> Mpp | None:
        """The resolution the view really has, in µm per view pixel; None when the slide's is not known."""
        own, affine = self.slide.mpp, self.affine
        if own is None:
            return None
        return Mpp(math.hypot(affine.a * own.x, affine.d * own.y), math.hypot(affine.b * own.x, affine.e * own.y))

    @property
    def affine(self) -> Affine:
        """From view pixels to level-0 pixels."""
        scaled = Affine.scaling(*self.downsample)
        return scaled @ self.to_plain if self.moves else scaled

    def save(
        self,
        path: str | Path,
        *,
        quality: int = 90,
        overwrite: bool = False,
        progress: Report | bool | None = None,
    ) -> Path:
        """Write the whole view, augmentation included, as a tiled pyramid TIFF (JPEG), in bounded memory.

        Raises
        ------
        OutputExistsError, OutputError
            It cannot be written; nothing is left under ``path``.
        CorruptSlideError
            Pixels cannot be decoded.
        """
        target = Path(path)
        whole = Rect(0, 0, *self.level_size)

        def check() -> None:
            # These are not the level's own pixels, so there is nothing to look for in them: any will do, but black.
            self.slide.raise_failure(self.level, whole, np.broadcast_to(np.uint8(255), (whole.height, whole.width, 3)))

        # A tile that libvips could not decode it would give as black, now and to whoever asks afterwards.
        self.slide.renew()
        try:
            save_pyramid(
                replace(self).image,
                target,
                mpp=self.mpp,
                quality=quality,
                overwrite=overwrite,
                progress=progress,
                name=self.slide.name,
                check=check,
            )
        except CorruptSlideError:
            self.slide.renew()
            raise
        return target

    def thumbnail(self, max_size: int = 1024) -> NDArray[np.uint8]:
        """Return the whole view, its augmentation included, with its longer side at most ``max_size`` px."""
        if self.draw is None:
            return self.slide.thumbnail(max_size)
        factor = max(1.0, max(self.size) / max_size)
        a, b, _, d, e, _ = self.draw.affine
        zoom = math.sqrt(abs(a * e - b * d))  # no more is decoded than is shown
        small = self.slide.thumbnail(max(1, round(max(self.plain_size) * zoom / factor)))
        height, width = small.shape[:2]
        canvas = Size(*(max(1, round(side / factor)) for side in self.draw.canvas))
        to_plain = Affine.scaling(self.plain_size.width / width, self.plain_size.height / height)
        to_canvas = Affine.scaling(canvas.width / self.size.width, canvas.height / self.size.height)
        affine = to_canvas @ Affine.from_tuple(self.draw.affine) @ to_plain
        scaled = self.draw.model_copy(
            update={"size": Size(width, height), "canvas": canvas, "affine": affine.as_tuple()}
        )
        return np.asarray(apply_lazy(pyvips.Image.new_from_array(small), scaled).numpy(), np.uint8)

    def plot(self, max_size: int = 1024) -> Image.Image:
        """Return a thumbnail of the view; shows itself in a notebook."""
        return picture.fit(self.thumbnail(max_size), max_size)

    def _repr_html_(self) -> str:
        mpp = "unknown" if self.mpp is None else f"{self.mpp.mean:.4g} µm"
        facts = {"size": f"{self.size.width:,} × {self.size.height:,} px", "mpp": mpp, "level": self.level}
        if self.draw is not None:
            facts["drawn"] = self.draw.summary()
        return picture.card(f"View of {self.slide.name}", facts, [self.plot(420)])

    def memory_bytes(self) -> dict[str, int]:
        """Return the bytes the whole view would take if it were in memory, per dtype."""
        values = self.size.width * self.size.height * 3
        return {"uint8": values, "float16": 2 * values, "float32": 4 * values}

    def to_level0(self, points: ArrayLike) -> NDArray[np.int64]:
        """Map (..., 2) view px (x, y) to whole level-0 px, int64."""
        return round_half_up(self.affine.apply(points))

    def from_level0(self, points: ArrayLike) -> NDArray[np.int64]:
        """Map (..., 2) level-0 px (x, y) to the nearest whole view px, int64."""
        return round_half_up(self.affine.inverse().apply(points))

    @cached_property
    def image(self) -> Any:
        """The whole view as a lazy 3-band uchar ``pyvips.Image``; go on with pyvips from here."""
        return self.plain_image if self.draw is None else apply_lazy(self.plain_image, self.draw)

    @cached_property
    def plain_image(self) -> Any:
        """The view before the augmentation, lazily.

        Resampling is the antialiased triangle filter (``kernel="linear"``). Tiles are computed by the reader with
        Pillow's: they differ by at most 1 level in 99.9 % of the values, and by up to 10 in the last row and column,
        where libvips repeats the edge and Pillow renormalises (``tests/test_view.py``).
        """
        image = self.slide.level_image(self.level)
        if not self.choice.resampled:
            return image
        (sx, sy), (width, height) = self.choice.shrink, self.plain_size
        if sx < 1 or sy < 1:
            grow = Affine.scaling(1 / sx, 1 / sy)
            return image.affine(
                [grow.a, 0, 0, grow.e],
                interpolate=pyvips.Interpolate.new("bilinear"),
                oarea=[0, 0, width, height],
                # libvips puts pixel centres on whole numbers; ours lie halfway.
                idx=0.5 - 0.5 * sx,
                idy=0.5 - 0.5 * sy,
                extend="copy",
            )
        padded = (_whole_shrinks(image.width, sx), _whole_shrinks(image.height, sy))
        image = image.embed(0, 0, *padded, extend="copy").reduce(sx, sy, kernel="linear")
        return image.crop(0, 0, width, height)

    def __getstate__(self) -> dict[str, Any]:
        return {"slide": self.slide, "choice": self.choice, "draw": self.draw}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        at = "native resolution" if self.mpp is None else f"{self.mpp.mean:.4g} µm"
        shrink = f" shrunk {self.choice.shrink[0]:.4g}×" if self.choice.resampled else ""
        drawn = "" if self.draw is None else f", {self.draw.summary()}"
        size = f"{self.size.width}×{self.size.height} px"
        return f"SlideView({self.slide.name}: {size} at {at}, level {self.level}{shrink}{drawn})"
