"""The tissue mask of a slide: read from and written to QuPath and pictures; computes the tissue fraction of tiles."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from slideio_pipe.errors import ConfigError, EmptyTissueWarning
from slideio_pipe.geometry import Affine, Mpp, Rect, Size
from slideio_pipe.images import picture
from slideio_pipe.images.explained import Key
from slideio_pipe.slides.frames import Frame, frame_corner, picture_affine
from slideio_pipe.slides.slide import Slide
from slideio_pipe.slides.view import SlideView
from slideio_pipe.tiles.mask_files import read_mask, read_polygons, write_mask, write_polygons
from slideio_pipe.tiles.outlines import mask_to_polygons, polygons_to_mask


@dataclass(frozen=True, eq=False, repr=False)
class TissueMask:
    """The tissue of a slide as a mask.

    Parameters
    ----------
    mask : (h, w) bool
    affine : Affine
        Mask px to level-0 px: a scaling and a translation.
    slide_size : Size
        Level 0.
    slide_name : str
    method : str
        Origin of the mask: a method of `find_tissue`, "geojson", "png", "and", "or", "not" or "given".
    mpp : Mpp, optional
        The resolution of the mask; areas need it.
    settings : mapping
        Other parameters needed to reproduce it, JSON values.
    bounds : Rect, optional
        The scanned part of level 0, if the file states it: the origin of QuPath's coordinates.

    Examples
    --------
    >>> half = np.array([[True, False]])
    >>> tissue = TissueMask(half, Affine.scaling(100, 100), Size(200, 100), slide_name="a.svs", mpp=Mpp(25, 25))
    >>> tissue
    TissueMask(a.svs: 50.0 % tissue, 2x1 at 25.0 µm, given)
    >>> tissue.fractions([[0, 0, 100, 100], [50, 0, 100, 100], [150, 50, 100, 100]]).tolist()
    [1.0, 0.5, 0.0]
    >>> (tissue | ~tissue).fraction, tissue.area_um2
    (1.0, 625.0)
    """

    mask: NDArray[np.bool_]
    affine: Affine
    slide_size: Size
    slide_name: str = ""
    method: str = "given"
    mpp: Mpp | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    bounds: Rect | None = None

    __hash__ = None  # type: ignore[assignment]  # compared by its pixels

    def __post_init__(self) -> None:
        mask = np.array(self.mask, dtype=bool)  # a copy, independent of the caller's array
        if mask.ndim != 2 or mask.size == 0:
            raise ConfigError(
                f"a tissue mask of shape {mask.shape}", slide=self.slide_name or None, remedy="pass an (h, w) array"
            )
        a = self.affine
        if a.b or a.d or a.a <= 0 or a.e <= 0:
            raise ConfigError(
                f"the affine {a.as_tuple()} of a tissue mask turns or flips",
                slide=self.slide_name or None,
                remedy="pass one that scales and shifts only",
            )
        mask.flags.writeable = False
        object.__setattr__(self, "mask", mask)
        object.__setattr__(self, "slide_size", Size(*self.slide_size))

    # -- values -------------------------------------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """Whether there is no tissue."""
        return not self.mask.any()

    @property
    def fraction(self) -> float:
        """The tissue area as a fraction of the slide, 0 to 1."""
        return float(self.fractions([[0, 0, *self.slide_size]])[0])

    @property
    def area_um2(self) -> float:
        """The tissue area in µm².

        Raises
        ------
        ConfigError
            The mask has no resolution.
        """
        if self.mpp is None:
            raise ConfigError("an area needs mpp", slide=self.slide_name or None, remedy="pass mpp=Mpp(…)")
        return float(np.count_nonzero(self.mask)) * self.mpp.x * self.mpp.y

    @cached_property
    def _integral(self) -> NDArray[np.float64]:
        """(h + 1, w + 1): the number of tissue pixels above and to the left of every vertex."""
        height, width = self.mask.shape
        integral = np.zeros((height + 1, width + 1))
        np.cumsum(self.mask, axis=0, out=integral[1:, 1:], dtype=np.float64)
        np.cumsum(integral[1:, 1:], axis=1, out=integral[1:, 1:])
        return integral

    def _pixels_before(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the tissue area above and to the left of points: bilinear inside a pixel, so this is exact."""
        height, width = self.mask.shape
        column = np.minimum(x.astype(np.int64), width - 1)
        row = np.minimum(y.astype(np.int64), height - 1)
        right, down = x - column, y - row
        s = self._integral
        upper = s[row, column] * (1 - right) + s[row, column + 1] * right
        lower = s[row + 1, column] * (1 - right) + s[row + 1, column + 1] * right
        return np.asarray(upper * (1 - down) + lower * down, dtype=np.float64)

    def fractions(self, rects: ArrayLike) -> NDArray[np.float32]:
        """Return the tissue fraction of each rectangle, exactly weighted by area; outside the slide is no tissue.

        Parameters
        ----------
        rects : (N, 4) array_like
            Left, top, width and height in level-0 px, also fractional.

        Returns
        -------
        (N,) float32, 0 to 1
        """
        boxes = np.asarray(rects, dtype=np.float64).reshape(-1, 4)
        if not np.isfinite(boxes).all() or (boxes[:, 2:] <= 0).any():
            raise ConfigError("a rectangle without area", slide=self.slide_name or None, remedy="pass x, y, w, h")
        to_mask = self.affine.inverse()
        height, width = self.mask.shape
        # Cropped to the slide, which the last mask pixel may extend beyond, and to the mask.
        low = np.clip(boxes[:, :2], 0, self.slide_size)
        high = np.clip(boxes[:, :2] + boxes[:, 2:], 0, self.slide_size)
        x0, y0 = np.clip(to_mask.apply(low), 0, (width, height)).T
        x1, y1 = np.clip(to_mask.apply(high), 0, (width, height)).T
        before = self._pixels_before
        pixels = before(x1, y1) - before(x0, y1) - before(x1, y0) + before(x0, y0)
        area = boxes[:, 2] * boxes[:, 3] * to_mask.a * to_mask.e
        return np.clip(pixels / area, 0, 1).astype(np.float32)

    def through(self, view: SlideView) -> TissueMask:
        """Return the mask in the frame of ``view``, rotated and scaled with the slide.

        Its affine maps mask px to view px, and its ``slide_size`` is the view's. It is twice as fine as this mask, with
        nearest pixels, so that areas agree to half a mask pixel along outlines.
        """
        downsample = view.affine.scale()
        step = tuple(max(1.0, scale / down / 2) for scale, down in zip(self.affine.scale(), downsample, strict=True))
        width, height = (max(1, math.ceil(side / s)) for side, s in zip(view.size, step, strict=True))
        half = Affine.translation(0.5, 0.5)  # OpenCV puts pixel centres at whole numbers; ours are at halves
        mask_to_view = Affine.scaling(*step)
        to_mask = half.inverse() @ self.affine.inverse() @ view.affine @ mask_to_view @ half
        flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
        mask = cv2.warpAffine(self.mask.astype(np.uint8), to_mask.matrix()[:2], (width, height), flags=flags)
        return TissueMask(mask > 0, mask_to_view, view.size, self.slide_name, self.method, None, self.settings)

    def provenance(self) -> dict[str, Any]:
        """Return JSON values that describe how the mask was made, for the attributes of a bag."""
        height, width = self.mask.shape
        return {
            "method": self.method,
            "slide": self.slide_name,
            "size": [width, height],
            "mpp": None if self.mpp is None else list(self.mpp),
            "affine": list(self.affine.as_tuple()),
            "fraction": round(self.fraction, 6),
            "settings": dict(self.settings),
        }

    def plot(self, slide: Slide | None = None, max_size: int = 1024, *, titled: bool = True) -> Image.Image:
        """Return the mask as a picture: over a thumbnail of ``slide`` if given, else tissue on white.

        It has a title, a scale bar and a legend; without title only a scale bar, in its corner.
        """
        if slide is not None:
            image = picture.tint_mask(picture.fit(slide.thumbnail(max_size), max_size), self.mask)
            keys = list(picture.TISSUE_KEYS)
        else:
            colours = np.where(self.mask[..., None], np.array(picture.TISSUE, np.uint8), np.uint8(255))
            image, keys = picture.fit(colours.astype(np.uint8), max_size), [Key("tissue", picture.TISSUE)]
        um_per_px = None if self.mpp is None else self.mpp.x * self.mask.shape[1] / image.width
        of = f" of {self.slide_name}" if self.slide_name else ""
        title = f"tissue{of}: {self.fraction:.1%} of the slide, {self.method}"
        return picture.finished(image, title, titled=titled, um_per_px=um_per_px, keys=keys)

    def _repr_html_(self) -> str:
        size = f"{self.mask.shape[1]}×{self.mask.shape[0]} px"
        facts = {"tissue": f"{self.fraction:.1%}", "method": self.method, "mask": size}
        if self.mpp is not None:
            facts |= {"area": f"{self.area_um2 / 1e6:.2f} mm²", "mpp": f"{self.mpp.mean:.3g} µm"}
        pictures, keys = [self.plot(max_size=420, titled=False)], [Key("tissue", picture.TISSUE)]
        return picture.card(f"Tissue of {self.slide_name}", facts, pictures, keys)

    def __repr__(self) -> str:
        height, width = self.mask.shape
        scale = "" if self.mpp is None else f" at {self.mpp.mean:.1f} µm"
        name = f"{self.slide_name}: " if self.slide_name else ""
        return f"TissueMask({name}{100 * self.fraction:.1f} % tissue, {width}x{height}{scale}, {self.method})"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # Through the constructor, so that the pixels are read-only again and the integral image is not pickled.
        return TissueMask, (
            self.mask, self.affine, self.slide_size, self.slide_name, self.method, self.mpp, dict(self.settings),
            self.bounds,
        )  # fmt: skip

    # -- combined ------------------------------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TissueMask):
            return NotImplemented
        return (
            self.affine == other.affine
            and self.slide_size == other.slide_size
            and self.provenance() == other.provenance()
            and bool(np.array_equal(self.mask, other.mask))
        )

    def __and__(self, other: TissueMask) -> TissueMask:
        return self._combined("and", self.mask & self._aligned(other), other)

    def __or__(self, other: TissueMask) -> TissueMask:
        return self._combined("or", self.mask | self._aligned(other), other)

    def __invert__(self) -> TissueMask:
        return self._combined("not", ~self.mask)

    def _aligned(self, other: TissueMask) -> NDArray[np.bool_]:
        """Return the other mask on this grid: a pixel is tissue if at least half of its area is."""
        if self.slide_size != other.slide_size:
            raise ConfigError(
                f"masks of different slides: {self!r} and {other!r}", remedy="combine masks of the same slide"
            )
        if (self.mask.shape, self.affine) == (other.mask.shape, other.affine):
            return other.mask
        row, column = np.indices(self.mask.shape)
        corners = self.affine.apply(np.stack([column.ravel(), row.ravel()], axis=1))
        sides = np.broadcast_to(self.affine.scale(), corners.shape)
        return np.asarray(other.fractions(np.hstack([corners, sides])) >= 0.5).reshape(self.mask.shape)

    def _combined(self, method: str, mask: NDArray[np.bool_], *others: TissueMask) -> TissueMask:
        settings = {"of": [each.provenance() for each in (self, *others)]}
        return TissueMask(mask, self.affine, self.slide_size, self.slide_name, method, self.mpp, settings, self.bounds)

    # -- files ---------------------------------------------------------------------------------------------------

    def to_geojson(self, path: str | os.PathLike[str], *, overwrite: bool = False, frame: Frame = "qupath") -> None:
        """Write the outlines in QuPath's format: polygons with holes, one annotation per region.

        Coordinates are level-0 px from QuPath's origin, the slide's ``bounds``; with ``frame="level0"`` from the corner
        of level 0, for tools that read with OpenSlide. Without bounds both are the same.
        """
        affine = frame_corner(frame, self.bounds).inverse() @ self.affine
        polygons = ([affine.apply(ring) for ring in polygon] for polygon in mask_to_polygons(self.mask))
        write_polygons(Path(path), polygons, overwrite=overwrite)

    def to_png(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write an 8-bit grey picture of the whole slide: 255 on tissue, 0 elsewhere."""
        write_mask(Path(path), self.mask, overwrite=overwrite)

    @classmethod
    def from_geojson(
        cls,
        path: str | os.PathLike[str],
        slide: Slide,
        mpp: float = 8.0,
        classes: Sequence[str] | None = None,
        *,
        frame: Frame = "qupath",
    ) -> TissueMask:
        """Return the mask of the polygons of a QuPath export; points and lines are ignored.

        Parameters
        ----------
        path : path
            A FeatureCollection, Feature, GeometryCollection, geometry, or a list of these.
        slide : Slide
            The annotated slide.
        mpp : float
            The resolution of the mask, in µm per pixel.
        classes : sequence of str, optional
            The QuPath classes to read, "unclassified" for polygons without. By default all but "Ignore" and "…*".
        frame : {"qupath", "level0"}
            Origin of the coordinates: the corner of the slide's bounds, as in QuPath, or of level 0, as in OpenSlide.
        """
        check_slide(slide)
        path = Path(path)
        width, height, affine = mask_grid(slide, mpp)
        to_mask = affine.inverse() @ frame_corner(frame, slide.bounds)
        polygons = [[to_mask.apply(ring) for ring in polygon] for polygon in read_polygons(path, classes)]
        mask = polygons_to_mask(polygons, width, height)
        settings = {"file": path.name} | ({} if classes is None else {"classes": list(classes)})
        return mask_of(mask, affine, slide, "geojson", settings)

    @classmethod
    def from_png(cls, path: str | os.PathLike[str], slide: Slide, *, frame: Frame | None = None) -> TissueMask:
        """Return the mask in a grey picture of any size: every value but 0 is tissue.

        Parameters
        ----------
        path : path
        slide : Slide
            The slide of the mask.
        frame : {"level0", "qupath"}, optional
            Whether it covers the whole slide ("level0") or its bounds ("qupath", as in QuPath's exports). By default
            the shape decides: the whole slide if it has that shape, else the bounds.
        """
        check_slide(slide)
        path = Path(path)
        mask = read_mask(path)
        affine = picture_affine(mask.shape[::-1], slide, frame, what="a mask", path=str(path))
        return mask_of(mask, affine, slide, "png", {"file": path.name})


def mask_of(mask: NDArray[np.bool_], affine: Affine, slide: Slide, method: str, settings: dict[str, Any]) -> TissueMask:
    """Return the mask with the slide's size, name, mpp and bounds; warn if it is empty."""
    if not mask.any():
        warnings.warn(f"{slide.name}: no tissue ({method})", EmptyTissueWarning, stacklevel=3)
    scale, level0 = affine.scale(), slide.mpp
    mpp = None if level0 is None else Mpp(level0.x * scale[0], level0.y * scale[1])
    return TissueMask(mask, affine, slide.dimensions, slide.name, method, mpp, settings, slide.bounds)


def check_slide(slide: object) -> None:
    if not hasattr(slide, "dimensions"):
        how = f"open_slide({str(slide)!r})" if isinstance(slide, str | Path) else "open_slide(path)"
        raise ConfigError(f"a {type(slide).__name__} is no slide", remedy=f"pass {how}")


def check_mpp(slide: Slide, mpp: float) -> None:
    if not 0 < mpp < float("inf"):
        raise ConfigError(f"{{mpp=}} is {mpp}", slide=slide.name, remedy="pass {mpp=8}")


def mask_grid(slide: Slide, mpp: float) -> tuple[int, int, Affine]:
    """Return width, height and affine of a mask at about ``mpp``, not finer than level 0."""
    check_mpp(slide, mpp)
    level0, size = slide.require_mpp(), slide.dimensions
    width = max(1, round(size.width / max(1.0, mpp / level0.x)))
    height = max(1, round(size.height / max(1.0, mpp / level0.y)))
    return width, height, Affine.scaling(size.width / width, size.height / height)
