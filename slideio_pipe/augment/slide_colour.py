"""Estimate a slide's own stains and colour statistics from its tissue."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slideio_pipe.augment.operations import Matrix, Triple
from slideio_pipe.augment.stain_matrices import as_matrix, as_triple, complete_basis, optical_density
from slideio_pipe.config import Record
from slideio_pipe.errors import ConfigError, NoTissueError
from slideio_pipe.geometry import Affine, Size

# Macenko et al. 2009: pixels below 0.15 in a channel are glass; the stains are at the 1st and 99th percentile of angle.
MIN_OPTICAL_DENSITY = 0.15
ANGLE_PERCENTILES = (1.0, 99.0)
STRENGTH_PERCENTILE = 99.0
# A channel below this is not measurable: ink, folds, black padding.
MIN_LEVEL = 5
# With fewer pixels noise dominates.
MIN_PIXELS = 500
# Smallest angle between two stains; haematoxylin and eosin are 20° to 40° apart.
MIN_ANGLE_DEGREES = 5.0
TILE_PX = 128
TILES = 64
THUMBNAIL_PX = 1024


class SlideColour(Record):
    """Colours of a slide's own tissue, measured once, for transforms that start from them."""

    basis: Matrix  # haematoxylin, eosin, residual; unit vectors
    strength: Triple = (1.0, 1.0, 1.0)  # 99th percentile of each concentration
    lab_mean: Triple | None = None  # of CIE Lab in tissue tiles
    lab_std: Triple | None = None


class SampledSlide(Protocol):
    """The parts of a slide that the measurement uses."""

    @property
    def name(self) -> str:
        """The slide's name."""

    @property
    def dimensions(self) -> Size:
        """The size of level 0."""

    def thumbnail(self, max_size: int = 1024) -> NDArray[np.uint8]: ...

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return a rectangle of a level, its corner in level-0 px."""


class SampledMask(Protocol):
    """The parts of a tissue mask that the measurement uses."""

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(h, w), True on tissue."""

    @property
    def affine(self) -> Affine:
        """From mask px to level-0 px."""


def estimate_basis(
    pixels: ArrayLike, *, owner: str = 'StainJitter(basis="slide")', slide: str | None = None
) -> NDArray[np.float64]:
    """Return haematoxylin, eosin and the residual, estimated from tissue pixels; deterministic.

    Macenko et al. 2009, "A method for normalizing histology slides for quantitative analysis": the plane of the two
    largest eigenvectors of the covariance of optical density, and the extreme directions in it. Raise NoTissueError if
    there are fewer than 500 stained pixels, ConfigError if there is only one stain, or the pixels are not (n, 3).

    Parameters
    ----------
    pixels : (n, 3) uint8 RGB
        Glass and black pixels are ignored.
    owner, slide : str
        Named in errors.

    Returns
    -------
    (3, 3) float64
        Unit vectors, one stain per row; haematoxylin, which absorbs more red, is first.
    """
    density = _stained(pixels, owner, slide)
    # Largest last; eigenvectors of the covariance, as in the paper.
    plane = np.linalg.eigh(np.cov(density, rowvar=False))[1][:, [2, 1]]
    plane *= np.where(plane.sum(axis=0) < 0, -1.0, 1.0)
    # Angles are measured from the mean direction, so no stain is near ±180°.
    x, y = (density @ plane).T
    middle = np.arctan2(y.mean(), x.mean())
    angles = (np.arctan2(y, x) - middle + np.pi) % (2 * np.pi) - np.pi
    low, high = np.percentile(angles, ANGLE_PERCENTILES) + middle
    if np.degrees(high - low) < MIN_ANGLE_DEGREES:
        raise ConfigError(
            f"{owner}: only one stain ({np.degrees(high - low):.1f}° between the extremes)",
            slide=slide,
            remedy='pass basis="hed"',
        )
    stains = [plane @ (np.cos(angle), np.sin(angle)) for angle in (low, high)]
    stains = [stain * np.sign(stain.sum()) for stain in stains]
    return complete_basis(sorted(stains, key=lambda stain: -float(stain[0])))


def _stained(pixels: ArrayLike, owner: str, slide: str | None) -> NDArray[np.float64]:
    """Return the optical density of the pixels that are neither glass nor black."""
    rgb = np.asarray(pixels)
    if rgb.ndim != 2 or rgb.shape[1] != 3:
        raise ConfigError(f"{owner}: pixels of shape {rgb.shape}", slide=slide, remedy="pass (n, 3) uint8 RGB")
    density = optical_density(rgb)
    density = density[(density >= MIN_OPTICAL_DENSITY).all(axis=1) & (rgb >= MIN_LEVEL).all(axis=1)]
    if len(density) < MIN_PIXELS:
        raise NoTissueError(
            f"{owner}: {len(density)} stained pixels, and {MIN_PIXELS} are needed to estimate stains",
            slide=slide,
            remedy='pass basis="hed", or leave the slide out',
        )
    return density


def slide_colour(
    slide: SampledSlide, mask: SampledMask | None = None, seed: int = 0, *, owner: str = 'StainJitter(basis="slide")'
) -> SlideColour:
    """Measure a slide's stains and Lab statistics in up to 64 tissue tiles of 128 px, sampled at level 0.

    Level 0, because a thumbnail mixes stains within its pixels: 4° to 6° off in our measurements. Raise NoTissueError
    if the slide is only glass.

    Parameters
    ----------
    slide : Slide
    mask : TissueMask, optional
        Area to sample; by default, the coloured area of the thumbnail.
    seed : int
        Seed of the sampling; the same seed gives the same numbers.
    """
    return colour_of(_tissue_tiles(slide, mask, seed, owner), slide.name, owner=owner)


def colour_of(tiles: Iterable[NDArray[np.uint8]], slide: str, *, owner: str) -> SlideColour:
    """Measure stains and Lab statistics in tissue tiles of a slide, (h, w, 3) uint8 each, of any size.

    Raise NoTissueError if they are only glass.
    """
    pixels = np.concatenate([tile[::2, ::2].reshape(-1, 3) for tile in tiles])
    basis = estimate_basis(pixels, owner=owner, slide=slide)
    concentrations = _stained(pixels, owner, slide) @ np.linalg.inv(basis)
    strength = np.percentile(concentrations, STRENGTH_PERCENTILE, axis=0)
    lab = _lab(pixels[::4])  # means need fewer pixels than percentiles
    return SlideColour(
        basis=as_matrix(basis),
        strength=(float(strength[0]), float(strength[1]), 1.0),  # the third is the residual, mostly noise
        lab_mean=as_triple(lab.mean(axis=0)),
        lab_std=as_triple(lab.std(axis=0)),
    )


def _lab(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    from skimage.color import rgb2lab  # loads scipy: only when needed

    return np.asarray(rgb2lab(pixels), np.float64)


def _tissue_tiles(slide: SampledSlide, mask: SampledMask | None, seed: int, owner: str) -> Iterator[NDArray[np.uint8]]:
    rng = np.random.Generator(np.random.Philox(seed))
    points, to_level0 = _tissue_points(slide, mask)
    if len(points) == 0:
        raise NoTissueError(
            f"{owner}: glass only, no tissue to estimate stains from", slide=slide.name, remedy='pass basis="hed"'
        )
    chosen = points[np.sort(rng.choice(len(points), min(TILES, len(points)), replace=False))]
    for x, y in to_level0.apply(chosen + rng.random(chosen.shape)):
        corner = (_inside(x, slide.dimensions.width), _inside(y, slide.dimensions.height))
        size = (min(TILE_PX, slide.dimensions.width), min(TILE_PX, slide.dimensions.height))
        yield slide.read_region(corner, 0, size)


def _inside(centre: float, length: int) -> int:
    """Return the start of a tile around ``centre``, moved inside the slide."""
    return int(min(max(centre - TILE_PX / 2, 0), max(length - TILE_PX, 0)))


def _tissue_points(slide: SampledSlide, mask: SampledMask | None) -> tuple[NDArray[np.int64], Affine]:
    """Return (n, 2) pixels (x, y) on tissue, and the affine from them to level-0 px."""
    if mask is not None:
        return np.argwhere(mask.mask)[:, ::-1], mask.affine
    thumbnail = slide.thumbnail(THUMBNAIL_PX)
    density = optical_density(thumbnail)
    # Darker than glass and coloured: not shadow, not ink. Half of Macenko's limit, as a thumbnail mixes in glass.
    tissue = (density.mean(axis=2) > MIN_OPTICAL_DENSITY / 2) & (np.ptp(density, axis=2) > MIN_OPTICAL_DENSITY / 3)
    height, width = tissue.shape
    scale = Affine.scaling(slide.dimensions.width / width, slide.dimensions.height / height)
    return np.argwhere(tissue)[:, ::-1], scale
