"""A class for each pixel of a slide, from a picture or an array, and the labels of tiles' pixels."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from slideio_pipe.errors import ConfigError, SlideNotFoundError
from slideio_pipe.files import not_there
from slideio_pipe.geometry import Affine, Rect, Size, round_half_up
from slideio_pipe.images import picture
from slideio_pipe.slides.frames import Frame, picture_affine, recorded_bounds
from slideio_pipe.slides.slide import Slide
from slideio_pipe.slides.view import SlideView
from slideio_pipe.tiles.bag import Bag
from slideio_pipe.tiles.drawn_bag import DrawnBag
from slideio_pipe.tiles.mask_files import Annotation, read_picture, write_label_picture
from slideio_pipe.tiles.outlines import mask_to_polygons
from slideio_pipe.tiles.tile_bag import TileBag

Labels = NDArray[np.uint8]

# Tolerance in px: a centre that rounding puts just before a border is on the border.
_ROUNDING_PX = 1e-6
_TIFF_SUFFIXES = (".tif", ".tiff")
# A larger file of labels is not read into memory.
_MAX_PX = 2**31


class TileLabels(ABC):
    """Labels of the pixels of tiles, from any source that can be drawn into a raster."""

    @abstractmethod
    def raster(self, size: Size | tuple[int, int], affine: Affine) -> Labels:
        """Return (height, width) uint8 labels of a grid; ``affine`` maps its px to the labels' own frame."""

    def labels(self, bag: Bag, indices: ArrayLike | None = None) -> Labels:
        """Return the labels of tiles, (n, H, W) uint8, for the pixels of ``bag.read(indices)``, with the same affines.

        Parameters
        ----------
        bag : Bag
            Its view and its tiles may be augmented; the tiles of a stored bag may not.
        indices : (n,) int array, optional
            Positions in the bag; all by default.

        Raises
        ------
        ConfigError
            It is a stored bag of augmented tiles.
        """
        size = tile_size_of(bag)
        rasters = [self.raster(size, affine) for affine in tile_affines(bag, indices)]
        return np.stack(rasters) if rasters else np.empty((0, size.height, size.width), np.uint8)


@dataclass(frozen=True, eq=False, repr=False)
class LabelMask(TileLabels):
    """The class of every pixel: 0 is background, 1 to 255 are classes.

    Parameters
    ----------
    mask : (h, w) array of integers, 0 to 255
        A memory map of uint8 stays on disk.
    affine : Affine
        Mask px to level-0 px; may rotate.
    classes : mapping of str to int
        Names of values, for polygons and plots.
    slide_name : str
    bounds : Rect, optional
        The scanned part of level 0, if the file states it: the origin of QuPath's coordinates.

    Examples
    --------
    >>> from slideio_pipe import TileBag, TileGrid, open_slide
    >>> view = open_slide(np.zeros((200, 400, 3), np.uint8)).view()
    >>> halves = LabelMask(np.array([[1, 2]]), Affine.scaling(200, 200), {"stroma": 1, "tumour": 2})
    >>> bag = TileBag(view, TileGrid(view, tile_size=200))
    >>> halves.labels(bag)[:, 0, 0].tolist()
    [1, 2]
    """

    mask: NDArray[Any]
    affine: Affine
    classes: Mapping[str, int] = field(default_factory=dict)
    slide_name: str = ""
    bounds: Rect | None = None

    __hash__ = None  # type: ignore[assignment]  # compared by its pixels

    def __post_init__(self) -> None:
        name = self.slide_name or None
        if self.mask.ndim != 2 or not self.mask.size:
            raise ConfigError(f"labels of the shape {self.mask.shape}", slide=name, remedy="pass an (h, w) array")
        if self.mask.dtype == bool:
            object.__setattr__(self, "mask", self.mask.astype(np.uint8))
        if self.mask.dtype.kind not in "iu":
            raise ConfigError(f"labels are {self.mask.dtype}", slide=name, remedy="pass integers, 0 for background")
        if self.mask.dtype != np.uint8:
            low, high = int(self.mask.min()), int(self.mask.max())
            if low < 0 or high > 255:
                raise ConfigError(f"labels reach from {low} to {high}", slide=name, remedy="number classes 1 to 255")
            object.__setattr__(self, "mask", self.mask.astype(np.uint8))
        if self.affine.a * self.affine.e == self.affine.b * self.affine.d:
            raise ConfigError(f"the affine {self.affine.as_tuple()} of labels is singular", slide=name)
        object.__setattr__(self, "classes", checked_classes(self.classes, name))

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        slide: Slide,
        classes: Mapping[str, int] | None = None,
        *,
        frame: Frame | None = None,
    ) -> LabelMask:
        """Return the labels in a picture of any size: a grey or palette PNG, or a TIFF.

        In a colour image, red is used where the other bands are 0, as in PANDA's masks. In a pyramid, the finest level.

        Parameters
        ----------
        path : path
        slide : Slide
        classes : mapping of str to int, optional
        frame : {"level0", "qupath"}, optional
            Whether it covers the whole slide ("level0") or its bounds ("qupath", as in QuPath's exports). By default
            the shape decides: the whole slide if it has that shape, else the bounds.

        Raises
        ------
        ConfigError
            It cannot be read, has colours, or has another shape than the slide.
        """
        path = Path(path)
        pixels = _grey(_tiff_pixels(path) if path.suffix.lower() in _TIFF_SUFFIXES else read_picture(path)[0], path)
        affine = picture_affine(pixels.shape[::-1], slide, frame, what="labels", path=str(path))
        return cls(pixels, affine, {} if classes is None else classes, slide.name, slide.bounds)

    def through(self, view: SlideView) -> LabelMask:
        """Return the labels in the frame of ``view``, rotated and scaled with the slide; nearest pixel, 0 outside.

        Its upright pixels are those of the view, or coarser ones, half the side of this mask's. Its affine still maps
        to level-0 px, through the view's.
        """
        step = tuple(
            max(1.0, own / down / 2) for own, down in zip(self.affine.scale(), view.affine.scale(), strict=True)
        )
        size = Size(*(max(1, math.ceil(side / s)) for side, s in zip(view.size, step, strict=True)))
        affine = view.affine @ Affine.scaling(*step)
        return LabelMask(self.raster(size, affine), affine, self.classes, self.slide_name, self.bounds)

    def raster(self, size: Size | tuple[int, int], affine: Affine) -> Labels:
        """Return the labels under the pixel centres of a grid, (height, width) uint8, 0 outside the mask.

        Parameters
        ----------
        size : (width, height)
        affine : Affine
            Px of the grid to level-0 px.
        """
        width, height = size
        x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
        a, b, c, d, e, f = (self.affine.inverse() @ affine).as_tuple()
        if not b and not d:
            return _lookup(self.mask, _whole(a * x + c), _whole(e * y + f))
        return _lookup(self.mask, _whole(a * x + b * y + c), _whole(d * x + e * y + f))

    def regions(self) -> list[Annotation]:
        """Return one polygon, in level-0 px, per 4-connected region of each class, along pixel borders."""
        names = {value: name for name, value in self.classes.items()}
        found = []
        for value in np.unique(self.mask).tolist():
            if value:
                polygons = mask_to_polygons(self.mask == value)
                moved = [[self.affine.apply(ring) for ring in polygon] for polygon in polygons]
                found += [Annotation(names.get(value, str(value)), polygon) for polygon in moved]
        return found

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the values as an 8-bit grey PNG."""
        write_label_picture(Path(path), np.asarray(self.mask), overwrite=overwrite)

    def plot(self, max_size: int = 1024, *, titled: bool = True) -> Image.Image:
        """Return the labels as a picture, one colour per value, on white, with a title and the names of the classes."""
        height, width = self.mask.shape
        step = max(1, math.ceil(max(height, width) / max_size))
        labels = np.asarray(self.mask[::step, ::step])
        image = Image.fromarray(picture.label_colours()[labels])
        keys = picture.label_keys(labels, self.classes)
        return picture.finished(image, f"labels of {self.slide_name or 'a slide'}", titled=titled, keys=keys)

    def __repr__(self) -> str:
        names = ", ".join(f"{value} {name}" for name, value in self.classes.items()) or "no names"
        return f"LabelMask({self.slide_name or 'no slide'}: {self.mask.shape[1]}x{self.mask.shape[0]} px, {names})"


def checked_classes(classes: Mapping[str, int], slide: str | None) -> Mapping[str, int]:
    """Return validated class names and label values; raise ConfigError if a value is not in 1 to 255."""
    if not isinstance(classes, Mapping):
        raise ConfigError(f"classes are a {type(classes).__name__}", slide=slide, remedy='pass {"Tumor": 1}')
    for name, value in classes.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 255:
            raise ConfigError(f"class {name!r} has the value {value!r}", slide=slide, remedy="number classes 1 to 255")
    return dict(classes)


def tile_affines(bag: Bag, indices: ArrayLike | None) -> Iterator[Affine]:
    """Yield the affine of each tile, from its px to level-0 px.

    Raise ConfigError if the bag is a stored bag of augmented tiles: the store has the transform, not its affines.
    """
    positions = np.arange(len(bag)) if indices is None else np.arange(len(bag))[np.asarray(indices, np.int64)]
    if isinstance(bag, DrawnBag):
        yield from bag.affines(positions)
        return
    made = bag.provenance()
    if "view" not in made:
        raise ConfigError("the bag does not record its view", slide=bag.name, remedy="pass a TileBag")
    if made.get("tile_draw") is not None:
        raise ConfigError(
            "the tiles of this store were drawn one by one", slide=bag.name, remedy="pass the TileBag that was saved"
        )
    to_level0 = Affine.from_tuple(made["view"]["affine"])
    places = to_level0.inverse().apply(np.asarray(bag.coords)[positions])
    # Grid tiles begin at whole px of the view, and their level-0 corners are rounded; given corners are exact.
    between = bool(made.get("grid", {}).get("between_px", False))
    for x, y in (places if between else round_half_up(places)).tolist():
        yield to_level0 @ Affine.translation(x, y)


def tile_size_of(bag: Bag) -> Size:
    """Return the size of a tile; of tiles at several magnifications, of the first one's."""
    height, width = bag.shape[-3:-1]
    return Size(width, height)


def bag_bounds(bag: Bag) -> Rect | None:
    """Return the scanned part of the bag's slide, if the slide states it."""
    if isinstance(bag, TileBag):
        return bag.view.slide.bounds
    return recorded_bounds(bag.provenance())


def _whole(values: NDArray[Any]) -> NDArray[np.int64]:
    return np.floor(values + _ROUNDING_PX).astype(np.int64)


def _lookup(mask: NDArray[Any], x: NDArray[np.int64], y: NDArray[np.int64]) -> Labels:
    """Return mask[y, x], 0 outside; reads only the bounding rectangle of the mask."""
    height, width = mask.shape
    left, right = (int(np.clip(side, 0, width)) for side in (x.min(initial=0), x.max(initial=0) + 1))
    top, bottom = (int(np.clip(side, 0, height)) for side in (y.min(initial=0), y.max(initial=0) + 1))
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    if right <= left or bottom <= top or not inside.any():
        return np.zeros(inside.shape, np.uint8)
    window = np.asarray(mask[top:bottom, left:right], dtype=np.uint8)
    found = window[np.clip(y - top, 0, len(window) - 1), np.clip(x - left, 0, window.shape[1] - 1)]
    return np.where(inside, found, np.uint8(0))


def _tiff_pixels(path: Path) -> NDArray[Any]:
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            shape = page.shape
            if math.prod(shape[:2]) <= _MAX_PX:
                pixels: NDArray[Any] = page.asarray()
                return pixels.reshape(*shape[:2], -1)
    except FileNotFoundError:
        raise not_there(SlideNotFoundError, "no such file", path) from None
    except Exception as error:  # tifffile and the codecs may raise anything
        raise ConfigError(
            f"the labels cannot be read ({error})", slide=str(path), remedy="pass a grey TIFF or PNG"
        ) from error
    raise ConfigError(
        f"labels of {shape[1]}x{shape[0]} px do not fit into memory",
        slide=str(path),
        remedy="pass LabelMask(array, affine) with a coarser level, or a memory map",
    )


def _grey(pixels: NDArray[Any], path: Path) -> NDArray[Any]:
    """Return one band of (h, w, bands) pixels: the only one, any if all are equal, or red if the others are 0."""
    colours = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., :1]
    rest = colours[..., 1:]
    if rest.any() and not all((rest[..., k] == colours[..., 0]).all() for k in range(rest.shape[2])):
        raise ConfigError("a colour picture, not labels", slide=str(path), remedy="pass one value per pixel")
    first: NDArray[Any] = np.ascontiguousarray(colours[..., 0])
    return first
