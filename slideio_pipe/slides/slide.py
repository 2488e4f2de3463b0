"""Open a slide: levels, resolution and its source, lazy pixels. Opening decodes nothing."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyvips
from numpy.typing import NDArray
from PIL import Image

from slideio_pipe.arguments import whole_number
from slideio_pipe.augment.draw import Draw
from slideio_pipe.augment.ending import split_end
from slideio_pipe.augment.slide_colour import SlideColour, slide_colour
from slideio_pipe.augment.target_rules import target_params
from slideio_pipe.errors import ConfigError, CorruptSlideError
from slideio_pipe.files import Closable, file_fingerprint
from slideio_pipe.geometry import Affine, Mpp, Rect
from slideio_pipe.images import picture
from slideio_pipe.images.explorable import Explorable
from slideio_pipe.images.vips import check_process
from slideio_pipe.slides.associated_images import AssociatedImages
from slideio_pipe.slides.backends import open_backend
from slideio_pipe.slides.backends.array import NumpyBackend
from slideio_pipe.slides.backends.base import Backend, Facts, StoredTiles
from slideio_pipe.slides.backends.properties import with_openslide_names
from slideio_pipe.slides.header import SlideHeader
from slideio_pipe.slides.regions import read_region, readable_view, thumbnail_of, whole_view
from slideio_pipe.slides.resolution import checked_mpp, resolve_mpp
from slideio_pipe.slides.slide_picture import slide_picture
from slideio_pipe.slides.view import SlideView

_LOG = logging.getLogger(__name__)


def open_slide(
    path: str | Path | NDArray[np.uint8],
    *,
    slide_mpp: float | tuple[float, float] | None = None,
    default_mpp: float | tuple[float, float] | None = None,
    backend: str = "auto",
) -> Slide:
    """Open a whole-slide image, an array or a flat image as a slide; no pixel is decoded.

    Parameters
    ----------
    path : str or Path or (H, W, 3) uint8 array
        SVS, generic or OME-TIFF, NDPI, MIRAX, SCN, BIF, DICOM, OME-Zarr, zarr, PNG, JPEG, or pixels in memory.
    slide_mpp : float or (float, float), optional
        µm per level-0 pixel; replaces the file's value.
    default_mpp : float or (float, float), optional
        µm per level-0 pixel if the file states no possible value.
    backend : {"auto", "tiff", "openslide", "array"}
        Backend that reads the file.

    Raises
    ------
    SlideNotFoundError, UnsupportedSlideError, CorruptSlideError
        The file is missing, is not a slide, or is damaged.
    ConfigError
        ``slide_mpp`` or ``default_mpp`` is impossible for a slide, or the backend is unknown.

    Warns
    -----
    EstimatedResolutionWarning
        The file states no possible resolution, and it is derived from the objective power.
    ImplausibleResolutionWarning
        The given resolution makes the slide larger than usual glass.

    Examples
    --------
    >>> slide = open_slide(np.zeros((600, 800, 3), np.uint8), slide_mpp=0.25)
    >>> slide.dimensions, slide.mpp, slide.mpp_source
    (Size(width=800, height=600), Mpp(x=0.25, y=0.25), 'slide_mpp argument')
    """
    given = None if slide_mpp is None else checked_mpp("slide_mpp", slide_mpp)
    default = None if default_mpp is None else checked_mpp("default_mpp", default_mpp)
    if isinstance(path, np.ndarray):
        return Slide(None, NumpyBackend(path), given, default_mpp=default, array=path)
    if not isinstance(path, str | Path):
        remedy = "pass the path of a slide, or pixels (height, width, 3) uint8"
        raise ConfigError(f"a {type(path).__name__} is no slide", remedy=remedy)
    resolved = Path(path).expanduser().absolute()  # a worker that reopens it may have another working directory
    check_process()
    try:
        slide = Slide(resolved, open_backend(resolved, backend), given, default_mpp=default, backend=backend)
    except pyvips.Error as error:
        raise CorruptSlideError(
            f"libvips cannot open it ({error})", slide=resolved.name, remedy="copy the slide again"
        ) from error
    _LOG.debug(
        "%s: reader %s, %s, %d × %d px, %d levels, mpp from %s",
        slide.name, slide.facts.backend, slide.vendor, *slide.dimensions, len(slide.level_dimensions), slide.mpp_source,
    )  # fmt: skip
    return slide


class Slide(SlideHeader, Explorable, Closable):
    """An open slide, made by ``open_slide``; pickled by path; a context manager.

    Attributes
    ----------
    path : Path or None
        None for an array in memory.
    facts : Facts
        Contents of the header: levels, vendor, properties, associated images.
    mpp : Mpp or None
        µm per level-0 pixel, along x and y.
    mpp_source : str
        Source of ``mpp``: the argument, the file, the objective power, or none.
    """

    def __init__(
        self,
        path: Path | None,
        opened: Backend,
        slide_mpp: Mpp | None,
        *,
        default_mpp: Mpp | None = None,
        backend: str = "auto",
        array: NDArray[np.uint8] | None = None,
    ) -> None:
        self.path = path
        self.facts: Facts = with_openslide_names(opened.facts, path)
        self._opened: Backend | None = opened
        self._reopen = (array if path is None else path, slide_mpp, backend, default_mpp)
        self.mpp, self.mpp_source = resolve_mpp(self.facts, slide_mpp, self.name, default_mpp)

    @property
    def associated_images(self) -> Mapping[str, NDArray[np.uint8]]:
        """Label, macro and thumbnail by name, (H, W, 3) uint8 RGB each; decoded on access."""
        return AssociatedImages(self)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits of SHA-256 over the size and the first and last 64 KiB; identifies the file."""
        if self.path is None or self.path.is_dir():
            digest = hashlib.sha256(repr(self.pyramid).encode())
            overview = self.thumbnail(256)
            digest.update(overview.tobytes())
            return digest.hexdigest()[:16]
        return file_fingerprint(self.path)

    def provenance(self) -> dict[str, Any]:
        """Return JSON values that identify the slide and how it was read."""
        return {
            "fingerprint": self.fingerprint,
            "vendor": self.vendor,
            "reader": self.facts.backend,
            "mpp_source": self.mpp_source,
        }

    def view(
        self,
        *,
        mpp: float | tuple[float, float] | Literal["native"] | None = None,
        transform: Any = None,
        seed: int = 0,
        epoch: int = 0,
        draw: Draw | None = None,
        outside: str = "white",
    ) -> SlideView:
        """Return the slide at ``mpp`` µm per pixel, lazily; None or "native" is level 0 as stored.

        Parameters
        ----------
        mpp : float, (float, float) or "native", optional
            µm per view pixel.
        transform : an albumentationsxl transform, optional
            Drawn once for the whole slide: all tiles of the view share its stain, colours and rotation. Normalize and
            ToTensor at its end run on the device, with each batch of a stream.
        seed, epoch : int
            Inputs of the draw, with the slide's name.
        draw : Draw, optional
            A draw to replay instead of ``transform``; it is valid at the resolution it was drawn for.
        outside : {"white", "black"}
            Colour of tiles beyond the slide's edge. White is glass; tools that read with OpenSlide, such as CLAM and
            TRIDENT, use black.

        Examples
        --------
        >>> open_slide(np.zeros((600, 800, 3), np.uint8), slide_mpp=0.25).view(mpp=1.0).size
        Size(width=200, height=150)
        """
        view = replace(SlideView.at(self, mpp), outside=outside)
        if draw is not None:
            if transform is not None or draw.size != view.plain_size:
                raise ConfigError(
                    f"a draw for {draw.size.width}×{draw.size.height} px in a view of {view.plain_size.width}×"
                    f"{view.plain_size.height} px" + (", and a transform" if transform is not None else ""),
                    slide=self.name,
                    remedy="pass the mpp it was drawn for, and no transform",
                )
            return replace(view, draw=draw)
        transform, ending = split_end(transform)
        view = replace(view, ending=ending)
        if transform is None:
            return view
        # albumentationsxl takes three seconds to import, and views without a transform do not need it.
        from slideio_pipe.augment import compose as drawing

        colour = drawing.measured(self, transform)
        drawn = drawing.draw(transform, seed=seed, epoch=epoch, slide=self.name, size=view.plain_size, colour=colour)
        return replace(view, draw=drawn, target_params=target_params(transform))

    @cached_property
    def colour(self) -> SlideColour:
        """The slide's own stains and colour statistics, measured once in tissue tiles at full resolution."""
        return slide_colour(self, owner="the slide's own colours")

    def level_image(self, level: int) -> Any:
        """Return a stored level as a lazy 3-band uchar ``pyvips.Image``, shared by all callers."""
        check_process()
        return self._backend.level_image(self._level(level))

    def _level(self, level: int) -> int:
        number = level if type(level) is int else whole_number(level, "a level", slide=self.name)
        if not 0 <= number < self.level_count:
            raise ConfigError(f"no level {number}", slide=self.name, remedy=f"pass 0 to {self.level_count - 1}")
        return number

    @property
    def _backend(self) -> Backend:
        if self._opened is None:
            raise ConfigError("the slide is closed", slide=self.name, remedy="open it again with open_slide")
        return self._opened

    def associated_image(self, name: str) -> NDArray[np.uint8]:
        """Return a label, macro or thumbnail, (H, W, 3) uint8 RGB.

        Raises
        ------
        ConfigError
            The slide has no image of that name.
        """
        if name not in self.facts.associated:
            known = ", ".join(self.facts.associated) or "none"
            raise ConfigError(f'no associated image "{name}"', slide=self.name, remedy=f"there are: {known}")
        return self._pixels(self._backend.associated_image(name))

    def stored_tiles(self, level: int) -> StoredTiles | None:
        """Return a level's JPEG tiles as stored in the file, or None if it has none."""
        check_process()
        return self._backend.stored_tiles(self._level(level))

    def raise_failure(self, level: int, rect: Rect, pixels: NDArray[np.uint8]) -> None:
        """Raise the error of ``pixels``, just fetched from ``rect`` (level px), that libvips may not have raised."""
        failure = self._backend.failure(level, rect, pixels)
        if failure is not None:
            raise failure.with_traceback(None)  # raised repeatedly: its traceback would grow each time

    def level_pixels(self, level: int, rect: Rect) -> NDArray[np.uint8]:
        """Return a rectangle inside a level, (rect.height, rect.width, 3) uint8 RGB."""
        pixels = self._pixels(self.level_image(level).crop(*rect))
        self.raise_failure(level, rect, pixels)
        return pixels

    def read_region(
        self, location: tuple[float, float], level: int, size: tuple[int, int], *, outside: str = "white"
    ) -> NDArray[np.uint8]:
        """Return a rectangle of a level, (H, W, 3) uint8 RGB.

        Parameters
        ----------
        location : (float, float)
            Top-left corner (x, y) in **level-0** pixels, as in OpenSlide. Between pixels of the level, pixels are
            interpolated (bilinear), as OpenSlide does.
        level : int
        size : (int, int)
            Width and height in pixels of that level.
        outside : {"white", "black"}
            Colour outside the slide; OpenSlide's ``read_region(…).convert("RGB")`` is black there.
        """
        return read_region(self, location, self._level(level), size, outside)

    def region(
        self,
        x: float,
        y: float,
        *,
        mpp: float | tuple[float, float] | Literal["native"] | None = None,
        size: int | tuple[int, int] = 512,
        outside: str = "white",
    ) -> Image.Image:
        """Return the pixels at a place as a picture; displayed in a notebook, an array by ``np.asarray``.

        Parameters
        ----------
        x, y : float
            Top-left corner in **level-0** pixels, as in OpenSlide; between pixels they are interpolated.
        mpp : float, (float, float) or "native", optional
            µm per pixel of the picture; None or "native" is level 0 as stored.
        size : int or (int, int)
            Width and height in pixels of the picture.
        outside : {"white", "black"}
            Colour outside the slide.

        Raises
        ------
        ConfigError, MissingResolutionError, CorruptSlideError
            An argument is impossible; the slide's own resolution is unknown; pixels cannot be decoded.

        Examples
        --------
        >>> slide = open_slide(np.zeros((600, 800, 3), np.uint8), slide_mpp=0.25)
        >>> slide.region(700, 100, mpp=0.5, size=(300, 200)).size
        (300, 200)
        """
        return self.view(mpp=mpp, outside=outside).crop(x, y, size)

    def overview(self, mpp: float) -> tuple[NDArray[np.uint8], Affine]:
        """Return the whole slide at ``mpp`` µm per pixel, or at level 0 if that is coarser, and its affine.

        Returns
        -------
        (H, W, 3) uint8 RGB, Affine
            The affine maps overview px to level-0 px.
        """
        view = self._overview_view(mpp)
        return whole_view(view), view.affine

    def overview_around(self, mpp: float) -> tuple[NDArray[np.uint8], Affine, list[CorruptSlideError]]:
        """Return the overview, white where pixels cannot be decoded, its affine, and the error of each such place.

        Raises
        ------
        CorruptSlideError
            More than a quarter of it cannot be decoded.
        """
        view = self._overview_view(mpp)
        pixels, errors = readable_view(view, self.tile_sizes[view.level])
        return pixels, view.affine, errors

    def _overview_view(self, mpp: float) -> SlideView:
        own = self.require_mpp()
        return self.view(mpp=(max(mpp, own.x), max(mpp, own.y)))

    def thumbnail(self, max_size: int = 1024) -> NDArray[np.uint8]:
        """Return the whole slide with its longer side at most ``max_size`` px, (H, W, 3) uint8; needs no mpp."""
        return thumbnail_of(self, whole_number(max_size, "a longer side", slide=self.name, least=1))

    def _pixels(self, image: Any) -> NDArray[np.uint8]:
        try:
            return np.asarray(image.numpy(), np.uint8)
        except pyvips.Error as error:
            reason = " ".join(str(error).split())
            self.renew()
            raise CorruptSlideError(
                f"pixels cannot be decoded ({reason})", slide=self.name, remedy="copy the slide again"
            ) from error

    def renew(self) -> None:
        """Open the file again: libvips reports an undecodable tile once, and returns it as black afterwards."""
        if self.path is not None:
            self._opened = open_backend(self.path, self.facts.backend)

    def plot(
        self, max_size: int = 1024, *, region: tuple[float, float, int, int] | None = None, titled: bool = True
    ) -> Image.Image:
        """Return a thumbnail with title and scale bar; displayed in a notebook, else save it with ``.save("a.png")``.

        Parameters
        ----------
        max_size : int
            Longer side of the slide in px.
        region : (x, y, width, height), optional
            Only this rectangle, level-0 px.
        titled : bool
            Whether it has a title and margins; else only a scale bar, in its corner.

        Examples
        --------
        >>> open_slide(np.zeros((600, 800, 3), np.uint8)).plot(100, region=(200, 100, 400, 300), titled=False).size
        (100, 75)
        """
        return slide_picture(self, max_size, region, titled=titled)

    def _repr_html_(self) -> str:
        return picture.card(self.name, self.describe(), [self.plot(420, titled=False)])

    def close(self) -> None:
        """Release the file, which is closed when no image of it is in use; views and bags cannot read then."""
        self._opened = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Colours take about a second to measure: a copy in another process has those that are known.
        return _reopen, self._reopen, {"colour": self.colour} if "colour" in vars(self) else None

    def __eq__(self, other: object) -> bool:
        """Whether both are the same file (or the same array object), read with the same backend and resolution."""
        return isinstance(other, Slide) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Any, ...]:
        source = self._reopen[0]
        return (id(source) if self.path is None else self.path, self.mpp, self.facts.backend)

    def __repr__(self) -> str:
        width, height = self.dimensions
        at = "no mpp" if self.mpp is None else f"{self.mpp.mean:.4g} µm"
        levels = f"{self.level_count} level{'s' if self.level_count > 1 else ''}"
        return f"Slide({self.name}: {width}×{height} px, {at}, {levels}, {self.vendor} by {self.facts.backend})"


def _reopen(path: Path | NDArray[np.uint8], slide_mpp: Mpp | None, backend: str, default_mpp: Mpp | None) -> Slide:
    return open_slide(path, slide_mpp=slide_mpp, default_mpp=default_mpp, backend=backend)
