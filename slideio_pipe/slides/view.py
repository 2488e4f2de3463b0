"""A slide at one resolution: a lazy uint8 image plus one affine from view pixels to level-0 pixels."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol, Unpack

import numpy as np
import pyvips
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from slideio_pipe.arguments import no_index, picture_size, place, whole_number
from slideio_pipe.augment.build_draw import Adjustments, build_draw
from slideio_pipe.augment.draw import Draw
from slideio_pipe.augment.ending import Ending
from slideio_pipe.augment.executors.lazy import apply_lazy
from slideio_pipe.augment.slide_colour import SlideColour
from slideio_pipe.augment.target_rules import TargetParams
from slideio_pipe.errors import ConfigError, CorruptSlideError, UpsamplingWarning
from slideio_pipe.geometry import SAME_RESOLUTION, Affine, LevelChoice, Mpp, Rect, Size, round_half_up
from slideio_pipe.images import picture
from slideio_pipe.images.explorable import Explorable
from slideio_pipe.images.pyramid_tiff import save_pyramid
from slideio_pipe.images.virtual_tiff import VirtualTiff
from slideio_pipe.progress import Report
from slideio_pipe.slides.crops import crop_drawn, crop_plain
from slideio_pipe.slides.sampling import LevelSource, Sampler


class PyramidSource(LevelSource, Protocol):
    """The parts of a slide that a view uses; ``Slide`` has them."""

    @property
    def mpp(self) -> Mpp | None: ...
    @property
    def tile_sizes(self) -> tuple[Size, ...]: ...
    @property
    def bounds(self) -> Rect | None: ...
    def require_mpp(self) -> Mpp: ...
    def provenance(self) -> dict[str, Any]: ...
    def thumbnail(self, max_size: int = 1024) -> NDArray[np.uint8]: ...
    def renew(self) -> None: ...
    @property
    def colour(self) -> SlideColour: ...


# With a finer view, interpolated pixels are only blur, at many times their size on disk.
MAX_UPSAMPLING = 4.0
# Colour outside the slide, and its grey level. Tools that read with OpenSlide and drop its transparency see black.
OUTSIDE = {"white": 255, "black": 0}
# Tile size of the virtual TIFF with which libvips reads a resampled view.
_TILE = Size(256, 256)


@dataclass(frozen=True)
class SlideView(Explorable):
    """A whole slide at ``mpp``, lazily; nothing is decoded until pixels are read.

    Make one with ``Slide.view``. View pixels are numbered from the slide's top-left corner.

    Parameters
    ----------
    slide : PyramidSource
        The slide of the view.
    choice : LevelChoice
        The stored level to read and the factor to shrink it by.
    draw : Draw, optional
        An augmentation drawn for this slide at this resolution, applied to every pixel of the view.
    outside : {"white", "black"}
        Colour beyond the slide's edge: in tiles that extend over it, and in the corners of a rotated slide.
    target_params : TargetParams
        ``bbox_params`` and ``keypoint_params`` of the transform that was drawn: which boxes and points are kept.
    ending : Ending, optional
        What the transform does at its end to make tensors of bytes: a stream does it on the device.

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
    draw: Draw | None = field(default=None, hash=False)  # may contain a transform, which is a dict
    outside: str = "white"
    target_params: TargetParams = field(default=TargetParams(), compare=False)
    ending: Ending | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.outside not in OUTSIDE:
            remedy = 'pass "white" or "black"'
            raise ConfigError(f"outside is {self.outside!r}", slide=self.slide.name, remedy=remedy)

    @classmethod
    def at(cls, slide: PyramidSource, mpp: float | tuple[float, float] | Literal["native"] | None) -> SlideView:
        """Return the view of ``slide`` at ``mpp`` µm per pixel; None or "native": level 0 as stored, without mpp.

        The coarsest level whose mpp is at most ``mpp`` is read. Within 2 % of the level, or of 2, 4 or 8 times its mpp,
        ``mpp`` is rounded to that, and ``SlideView.mpp`` is the exact value: 0.5 µm of a 0.2528-µm scan is 0.5056 µm.

        Raises
        ------
        MissingResolutionError
            ``mpp`` is given and the slide's own is unknown.
        ConfigError
            ``mpp`` is not a positive number.
        """
        if mpp is None or mpp == "native":
            return cls(slide, LevelChoice(0, (1.0, 1.0)))
        target = Mpp.parse(mpp)
        if target is None:
            raise ConfigError(
                f"{{mpp={mpp!r}}} is no resolution", slide=slide.name, remedy="pass µm per px, such as 0.5"
            )
        own = slide.require_mpp()
        choice = slide.pyramid.choose((target.x / own.x, target.y / own.y))
        if min(choice.shrink) < 1 / MAX_UPSAMPLING:
            finer = f"{1 / min(choice.shrink):.0f} times finer"
            raise ConfigError(
                f"{{mpp={target.mean:g}}} is {finer} than the slide, {own.mean:.4g} µm",
                slide=slide.name,
                remedy=f"pass {{mpp={own.mean:.3g}}} or more, or {{mpp=None}} for level 0 as stored",
            )
        if min(choice.shrink) * (1 + SAME_RESOLUTION) < 1:
            warnings.warn(
                UpsamplingWarning(
                    f"{slide.name}: {target.mean:g} µm wanted of a slide scanned at {own.mean:g} µm; "
                    "its pixels are interpolated"
                ),
                stacklevel=3,
            )
        return cls(slide, choice)

    def adjusted(self, **values: Unpack[Adjustments]) -> SlideView:
        """Return the view with stains, colours, turn, mirror and scale exactly as given, lazily.

        Parameters
        ----------
        values
            Those of ``build_draw``; with ``basis="slide"`` the slide's own stains are measured.

        Raises
        ------
        ConfigError
            A value is out of its bounds, or the view has a draw already.

        Examples
        --------
        >>> from slideio_pipe import open_slide
        >>> view = open_slide(np.zeros((600, 800, 3), np.uint8), slide_mpp=0.25).view(mpp=0.5)
        >>> view.adjusted(haematoxylin=1.3, turn=90)
        SlideView(array: 300×400 px at 0.5 µm, level 0 shrunk 2×, turned 90°, stain)
        """
        if self.draw is not None:
            remedy = "call it on a view without one: slide.view(mpp=...).adjusted(...)"
            raise ConfigError("the view has a draw already", slide=self.slide.name, remedy=remedy)
        given: Any = dict(values)
        if isinstance(given.get("basis"), str) and given["basis"] == "slide":
            given["basis"] = self.slide.colour.basis
        return replace(self, draw=build_draw(self.plain_size, slide=self.slide.name, **given))

    @property
    def level(self) -> int:
        """The stored level that pixels are read from."""
        return self.choice.level

    @property
    def outside_level(self) -> int:
        """The grey level outside the slide."""
        return OUTSIDE[self.outside]

    @property
    def level_size(self) -> Size:
        """Width and height of that level, in its own pixels."""
        return self.slide.pyramid.levels[self.level]

    @property
    def plain_size(self) -> Size:
        """Width and height before the augmentation's affine."""
        return self.slide.pyramid.size_at(self.choice)

    @property
    def size(self) -> Size:
        """Width and height in view pixels; of a rotated slide, the size of its canvas."""
        return self.plain_size if self.draw is None else self.draw.canvas

    @property
    def downsample(self) -> tuple[float, float]:
        """Level-0 pixels per plain pixel, along x and y, before any augmentation."""
        return self.slide.pyramid.downsample_at(self.choice)

    @property
    def moves(self) -> bool:
        """Whether the augmentation moves pixels."""
        return self.draw is not None and self.draw.moves

    @property
    def to_plain(self) -> Affine:
        """From view pixels to plain pixels: the inverse of the augmentation's affine."""
        return Affine() if self.draw is None else Affine.from_tuple(self.draw.affine).inverse()

    @property
    def mpp(self) -> Mpp | None:
        """The exact resolution of the view in µm per view pixel; None if the slide's is unknown."""
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
        self, path: str | Path, *, quality: int = 90, overwrite: bool = False, progress: Report | bool | None = None
    ) -> Path:
        """Write the whole view, augmentation included, as a tiled pyramid TIFF (JPEG), in bounded memory.

        Raises
        ------
        ConfigError
            The ending of ``path`` is not that of a TIFF.
        OutputExistsError, OutputError
            The file cannot be written; nothing is left at ``path``.
        CorruptSlideError
            Pixels cannot be decoded.
        """
        target = Path(path)
        if target.suffix.lower() not in (".tif", ".tiff"):
            remedy = "end it in .tif, or save a picture of it: view.plot(1024).save(...)"
            raise ConfigError("what is written is a TIFF", slide=str(target), remedy=remedy)
        # libvips would return a tile that it could not decode before as black, now and to later callers.
        self.slide.renew()
        fresh = replace(self)
        try:
            save_pyramid(
                fresh.image,
                target,
                mpp=self.mpp,
                quality=quality,
                overwrite=overwrite,
                progress=progress,
                name=self.slide.name,
                check=fresh._raise_failure,
            )
        except CorruptSlideError:
            self.slide.renew()
            raise
        return target

    def thumbnail(self, max_size: int = 1024) -> NDArray[np.uint8]:
        """Return the whole view with its augmentation, its longer side at most ``max_size`` px."""
        if self.draw is None:
            return self.slide.thumbnail(max_size)
        max_size = whole_number(max_size, "a longer side", slide=self.slide.name, least=1)
        factor = max(1.0, max(self.size) / max_size)
        a, b, _, d, e, _ = self.draw.affine
        zoom = math.sqrt(abs(a * e - b * d))  # only the pixels that are shown are decoded
        small = self.slide.thumbnail(max(1, round(max(self.plain_size) * zoom / factor)))
        height, width = small.shape[:2]
        canvas = Size(*(max(1, round(side / factor)) for side in self.draw.canvas))
        to_plain = Affine.scaling(self.plain_size.width / width, self.plain_size.height / height)
        to_canvas = Affine.scaling(canvas.width / self.size.width, canvas.height / self.size.height)
        affine = to_canvas @ Affine.from_tuple(self.draw.affine) @ to_plain
        scaled = self.draw.model_copy(
            update={"size": Size(width, height), "canvas": canvas, "affine": affine.as_tuple()}
        )
        image = pyvips.Image.new_from_array(small)
        return np.asarray(apply_lazy(image, scaled, outside=self.outside_level).numpy(), np.uint8)

    def crop(self, x: float, y: float, size: int | tuple[int, int] = 512) -> Image.Image:
        """Return the pixels at a place, augmentation included, as a picture; white outside, as everywhere.

        Parameters
        ----------
        x, y : float
            Top-left corner in **level-0** pixels, as the coordinates of a bag: ``view.crop(*bag.coords[3], 256)``. In a
            plain view a corner between view pixels is read exactly there; in an augmented one at the nearest pixel.
        size : int or (int, int)
            Width and height in view pixels.

        Raises
        ------
        ConfigError
            The place or the size is no such number, or the picture would not fit in memory.
        CorruptSlideError
            Pixels cannot be decoded.

        Examples
        --------
        >>> from slideio_pipe import open_slide
        >>> view = open_slide(np.zeros((600, 800, 3), np.uint8), slide_mpp=0.25).view(mpp=0.5)
        >>> view.crop(790, 10, (64, 32)).size
        (64, 32)
        """
        corner = place((x, y), slide=self.slide.name)
        width, height = picture_size(size, slide=self.slide.name)
        out = np.empty((height, width, 3), np.uint8)
        left, top = self.places(corner).tolist()
        if self.draw is None:
            crop_plain(self, (left, top), out)
        else:
            column, row = round_half_up((left, top)).tolist()
            crop_drawn(self, column, row, out)
        return Image.fromarray(out)

    def __getitem__(self, key: Any) -> NoReturn:
        """Raise ConfigError: a place has a resolution and a frame, which an index has not."""
        raise no_index("a view", "view.crop(x, y, size)", self.slide.name)

    def plot(self, max_size: int = 1024, *, titled: bool = True) -> Image.Image:
        """Return a thumbnail with title and scale bar; displayed in a notebook.

        Without title it has a scale bar only, in its corner.
        """
        image, mpp = picture.fit(self.thumbnail(max_size), max_size), self.mpp
        um_per_px = None if mpp is None else mpp.x * self.size.width / image.width
        at = "level 0" if mpp is None else f"{mpp.mean:.3g} µm"
        title = f"{self.slide.name} at {at}" + ("" if self.draw is None else f", {self.draw.summary()}")
        return picture.finished(image, title, titled=titled, um_per_px=um_per_px)

    def _repr_html_(self) -> str:
        mpp = "unknown" if self.mpp is None else f"{self.mpp.mean:.4g} µm"
        facts = {"size": f"{self.size.width:,} × {self.size.height:,} px", "mpp": mpp, "level": self.level}
        if self.draw is not None:
            facts["drawn"] = self.draw.summary()
        return picture.card(f"View of {self.slide.name}", facts, [self.plot(420, titled=False)])

    def memory_bytes(self) -> dict[str, int]:
        """Return the memory in bytes that the whole view would take, per dtype."""
        values = self.size.width * self.size.height * 3
        return {"uint8": values, "float16": 2 * values, "float32": 4 * values}

    def to_level0(self, points: ArrayLike) -> NDArray[np.int64]:
        """Map (..., 2) view px (x, y) to whole level-0 px, int64."""
        return round_half_up(self.affine.apply(points))

    def from_level0(self, points: ArrayLike) -> NDArray[np.int64]:
        """Map (..., 2) level-0 px (x, y) to the nearest whole view px, int64; see ``places`` for exact ones."""
        return round_half_up(self.places(points))

    def places(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map (..., 2) level-0 px (x, y) to exact view px, float64."""
        return self.affine.inverse().apply(points)

    @cached_property
    def image(self) -> Any:
        """The whole view as a lazy 3-band uchar ``pyvips.Image``, for further work with pyvips."""
        if self.draw is None:
            return self.plain_image
        return apply_lazy(self.plain_image, self.draw, outside=self.outside_level)

    @property
    def plain_image(self) -> Any:
        """The view before the augmentation, lazily: the same pixels and resampling as bags."""
        return self.slide.level_image(self.level) if self._resampled is None else self._resampled.image

    @cached_property
    def _resampled(self) -> VirtualTiff | None:
        if not self.choice.resampled:
            return None
        read_tile = partial(_read_tile, Sampler(self.slide), self.choice)
        return VirtualTiff(self.plain_size, _TILE, read_tile, fail_on="warning")

    def _raise_failure(self) -> None:
        """Raise the first failure of any pixel of the view since it was made: libvips does not always report it."""
        if self._resampled is not None:
            self._resampled.raise_failure()
        # These are not the level's own pixels, so they are not searched for black tiles: a non-black pixel suffices.
        whole = Rect(0, 0, *self.level_size)
        self.slide.raise_failure(self.level, whole, np.broadcast_to(np.uint8(255), (whole.height, whole.width, 3)))

    def __getstate__(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        at = "native resolution" if self.mpp is None else f"{self.mpp.mean:.4g} µm"
        shrink = f" shrunk {self.choice.shrink[0]:.4g}×" if self.choice.resampled else ""
        drawn = "" if self.draw is None else f", {self.draw.summary()}"
        size = f"{self.size.width}×{self.size.height} px"
        return f"SlideView({self.slide.name}: {size} at {at}, level {self.level}{shrink}{drawn})"


def _read_tile(sampler: Sampler, choice: LevelChoice, column: int, row: int) -> NDArray[np.uint8]:
    pixels = np.empty((_TILE.height, _TILE.width, 3), np.uint8)
    sampler.plain(choice, Rect(column * _TILE.width, row * _TILE.height, *_TILE), pixels)
    return pixels
