"""Stain vectors: published ones, those of a slide, and the linear maps in optical density that jitter or change them.

A basis is (3, 3): one stain per row, its optical density in red, green and blue. A pixel is a sum of stains,
``od = concentrations @ basis``, with od = −ln((x + 1)/256) as in ``operations.Stain``. Glass has od 0, so that a map
without offset leaves it white.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slideio_pipe.augment.operations import Matrix, Stain, Triple
from slideio_pipe.config import Record
from slideio_pipe.errors import ConfigError, NoTissueError
from slideio_pipe.geometry import Affine, Size

# Ruifrok and Johnston 2001, rounded as scikit-image publishes them (skimage.color.rgb_from_hed): haematoxylin, eosin,
# diaminobenzidine.
HED: Matrix = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
# The reference haematoxylin and eosin of Macenko et al. 2009, from their published implementation.
MACENKO_HE: tuple[Triple, Triple] = ((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581))
# Their 99th percentiles of concentration, for light of 240 levels.
MACENKO_STRENGTH: Triple = (1.9705, 1.0308, 1.0)

# Macenko et al. 2009: pixels below 0.15 in a channel are glass; the stains lie at the 1st and 99th percentile of angle.
MIN_OPTICAL_DENSITY = 0.15
ANGLE_PERCENTILES = (1.0, 99.0)
STRENGTH_PERCENTILE = 99.0
# A channel below this has lost its density to the sensor: ink, folds, black padding.
MIN_LEVEL = 5
# Fewer pixels say more about noise than about stains.
MIN_PIXELS = 500
# Above this a basis amplifies noise a hundredfold: two of its stains are one, or all lie in a plane.
MAX_CONDITION = 100.0
# Two stains are told apart from this angle on; haematoxylin and eosin are 20° to 40° apart.
MIN_ANGLE_DEGREES = 5.0

TILE_PX = 128
TILES = 64
THUMBNAIL_PX = 1024


class SlideColour(Record):
    """What a slide's own tissue looks like, measured once: for transforms that start from the slide's own colours."""

    basis: Matrix  # haematoxylin, eosin, what is left; unit vectors
    strength: Triple = (1.0, 1.0, 1.0)  # 99th percentile of each concentration
    lab_mean: Triple | None = None  # of CIE Lab in tissue tiles
    lab_std: Triple | None = None


class SampledSlide(Protocol):
    """What is asked of a slide to measure its colours."""

    @property
    def name(self) -> str:
        """The slide's name."""
        ...

    @property
    def dimensions(self) -> Size:
        """The size of level 0."""
        ...

    def thumbnail(self, max_size: int = 1024) -> NDArray[np.uint8]: ...

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return a rectangle of a level, its corner in level-0 px."""
        ...


class SampledMask(Protocol):
    """What is asked of a tissue mask."""

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(h, w), True on tissue."""
        ...

    @property
    def affine(self) -> Affine:
        """From mask px to level-0 px."""
        ...


def optical_density(rgb: ArrayLike) -> NDArray[np.float64]:
    """Return −ln((x + 1)/256): 0 for white, 5.5 for black.

    >>> optical_density([255, 127]).round(4).tolist()
    [-0.0, 0.6931]
    """
    return np.asarray(-np.log((np.asarray(rgb, np.float64) + 1) / 256))


def completed(stains: ArrayLike) -> NDArray[np.float64]:
    """Return two stains as unit vectors and, as third, the direction neither of them has."""
    first, second = (row / np.linalg.norm(row) for row in np.asarray(stains, np.float64)[:2])
    third = np.cross(first, second)
    return np.stack([first, second, third / np.linalg.norm(third)])


def named_basis(basis: str | ArrayLike, owner: str) -> NDArray[np.float64]:
    """Return the (3, 3) basis meant by "hed", "macenko" or an array.

    Raises
    ------
    ConfigError
        Naming ``owner``: no such name, no (3, 3) of numbers, or singular.
    """
    if not isinstance(basis, str):
        return checked_basis(basis, owner)
    if basis not in ("hed", "macenko"):
        raise ConfigError(f'{owner}: no stain basis "{basis}"', remedy='pass "hed", "macenko", "slide" or a 3×3')
    return np.array(HED) if basis == "hed" else completed(MACENKO_HE)


def checked_basis(basis: ArrayLike, owner: str) -> NDArray[np.float64]:
    """Return the basis as (3, 3) float64, if it is one that can be inverted."""
    try:
        matrix = np.asarray(basis, np.float64)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        raise ConfigError(
            f"{owner}: a stain basis of shape {np.shape(matrix)}", remedy="pass 3×3 finite numbers, one stain per row"
        )
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    # Rows of any length are good: the direction is the stain.
    condition = float(np.linalg.cond(matrix / norms)) if norms.min() > 0 else float("inf")
    if not condition <= MAX_CONDITION:
        raise ConfigError(
            f"{owner}: the stain basis is singular (condition number {condition:.3g})",
            remedy=f"pass three different stains (condition number up to {MAX_CONDITION:g})",
        )
    return matrix


def jitter(
    basis: ArrayLike, alpha: ArrayLike, beta: ArrayLike = (0.0, 0.0, 0.0), *, owner: str = "StainJitter"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return M and offset with od′ = M·od + offset that turn each concentration c into alpha·c + beta.

    Multiplicative and additive perturbation of stains (Tellez et al. 2018).

    Parameters
    ----------
    basis : (3, 3) array_like
        One stain per row.
    alpha, beta : (3,) array_like
        Per stain; ``beta`` in units of natural optical density times the length of the row.

    Raises
    ------
    ConfigError
        An ``alpha`` that is not positive, or a singular basis.

    Examples
    --------
    >>> matrix, offset = jitter(HED, (1.2, 1.0, 1.0))
    >>> (matrix @ HED[0] / HED[0]).round(6).tolist(), offset.tolist()
    ([1.2, 1.2, 1.2], [0.0, 0.0, 0.0])
    """
    return jitter_checked(checked_basis(basis, owner), alpha, beta, owner=owner)


def jitter_checked(
    stains: NDArray[np.float64], alpha: ArrayLike, beta: ArrayLike, *, owner: str = "StainJitter"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what ``jitter`` returns, of a basis that was checked before."""
    factors, shifts = np.asarray(alpha, np.float64), np.asarray(beta, np.float64)
    if factors.shape != (3,) or shifts.shape != (3,) or not np.isfinite([factors, shifts]).all():
        raise ConfigError(f"{owner}: alpha={alpha!r}, beta={beta!r}", remedy="pass three finite numbers each")
    if not (factors > 0).all():
        raise ConfigError(f"{owner}: alpha={factors.tolist()} is not positive", remedy="pass alpha > 0")
    # Exactly the identity when nothing is asked for, whatever the rounding of the inverse.
    matrix = np.eye(3) if (factors == 1).all() else stains.T @ np.diag(factors) @ np.linalg.inv(stains.T)
    return matrix, stains.T @ shifts


def exchange(
    source: ArrayLike, target: ArrayLike, factors: ArrayLike = (1.0, 1.0, 1.0), *, owner: str = "StainNormalize"
) -> NDArray[np.float64]:
    """Return M with od′ = M·od that gives every pixel the target's stains, each ``factors`` times as strong."""
    old, new = checked_basis(source, owner), checked_basis(target, owner)
    if np.array_equal(old, new):
        return jitter(old, factors, owner=owner)[0]
    return np.asarray(new.T @ np.diag(np.asarray(factors, np.float64)) @ np.linalg.inv(old.T))


def as_stain(matrix: NDArray[np.float64], offset: ArrayLike = (0.0, 0.0, 0.0)) -> Stain:
    """Return the map as an operation."""
    return Stain(matrix=as_matrix(matrix), offset=as_triple(offset))


def as_triple(values: ArrayLike) -> Triple:
    """Return three plain numbers."""
    a, b, c = np.asarray(values, np.float64).tolist()
    return (a, b, c)


def as_matrix(values: ArrayLike) -> Matrix:
    """Return three triples of plain numbers."""
    a, b, c = np.asarray(values, np.float64)
    return (as_triple(a), as_triple(b), as_triple(c))


# -- what a slide looks like ---------------------------------------------------------------------------------------


def estimate_basis(
    pixels: ArrayLike, *, owner: str = 'StainJitter(basis="slide")', slide: str | None = None
) -> NDArray[np.float64]:
    """Return haematoxylin, eosin and what is left, estimated from tissue pixels; the same pixels, the same basis.

    Macenko et al. 2009, "A method for normalizing histology slides for quantitative analysis": the plane of the two
    largest eigenvectors of the covariance of optical density, and the extreme directions in it.

    Parameters
    ----------
    pixels : (n, 3) uint8 RGB
        Glass, and black where the sensor saw nothing, are left out here.
    owner, slide : str
        Named in errors.

    Returns
    -------
    (3, 3) float64
        Unit vectors, one stain per row; haematoxylin, the one that takes more red, is first.

    Raises
    ------
    NoTissueError
        Fewer than 500 stained pixels.
    ConfigError
        Only one stain, or pixels that are not (n, 3).
    """
    density = _stained(pixels, owner, slide)
    # Largest last; of the covariance, as in the paper.
    plane = np.linalg.eigh(np.cov(density, rowvar=False))[1][:, [2, 1]]
    plane *= np.where(plane.sum(axis=0) < 0, -1.0, 1.0)
    # Angles are measured from the mean direction, so that no stain lies on either side of ±180°.
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
    return completed(sorted(stains, key=lambda stain: -float(stain[0])))


def _stained(pixels: ArrayLike, owner: str, slide: str | None) -> NDArray[np.float64]:
    """Return the optical density of pixels that are neither glass nor black."""
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


def slide_basis(slide: SampledSlide, mask: SampledMask | None = None, seed: int = 0) -> NDArray[np.float64]:
    """Return the (3, 3) basis of a slide, from tissue tiles at full resolution; see ``slide_colour``."""
    return np.asarray(slide_colour(slide, mask, seed).basis)


def slide_colour(
    slide: SampledSlide,
    mask: SampledMask | None = None,
    seed: int = 0,
    *,
    owner: str = 'StainJitter(basis="slide")',
) -> SlideColour:
    """Measure a slide's stains and Lab statistics in up to 64 tissue tiles of 128 px, sampled at level 0.

    At level 0, because a thumbnail mixes stains within its pixels: 4° to 6° off in our measurements.

    Parameters
    ----------
    slide : Slide
    mask : TissueMask, optional
        Where to look; without one, what is coloured in the thumbnail.
    seed : int
        Of the sampling; the same seed gives the same numbers.

    Raises
    ------
    NoTissueError
        Glass only.
    """
    tiles = list(_tissue_tiles(slide, mask, seed, owner))
    pixels = np.concatenate([tile[::2, ::2].reshape(-1, 3) for tile in tiles])
    basis = estimate_basis(pixels, owner=owner, slide=slide.name)
    concentrations = _stained(pixels, owner, slide.name) @ np.linalg.inv(basis)
    strength = np.percentile(concentrations, STRENGTH_PERCENTILE, axis=0)
    lab = _lab(pixels[::4])  # means need fewer pixels than percentiles
    return SlideColour(
        basis=as_matrix(basis),
        strength=(float(strength[0]), float(strength[1]), 1.0),  # the third is what is left, mostly noise
        lab_mean=as_triple(lab.mean(axis=0)),
        lab_std=as_triple(lab.std(axis=0)),
    )


def _lab(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    from skimage.color import rgb2lab  # loads scipy: only where a slide is measured

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
    """Return where a tile around ``centre`` begins, moved onto the slide."""
    return int(min(max(centre - TILE_PX / 2, 0), max(length - TILE_PX, 0)))


def _tissue_points(slide: SampledSlide, mask: SampledMask | None) -> tuple[NDArray[np.int64], Affine]:
    """Return (n, 2) pixels (x, y) on tissue, and the affine from them to level-0 px."""
    if mask is not None:
        return np.argwhere(mask.mask)[:, ::-1], mask.affine
    thumbnail = slide.thumbnail(THUMBNAIL_PX)
    density = optical_density(thumbnail)
    # Darker than glass and coloured: neither shadow nor ink. Half of Macenko's limit, as a thumbnail mixes in glass.
    tissue = (density.mean(axis=2) > MIN_OPTICAL_DENSITY / 2) & (np.ptp(density, axis=2) > MIN_OPTICAL_DENSITY / 3)
    height, width = tissue.shape
    scale = Affine.scaling(slide.dimensions.width / width, slide.dimensions.height / height)
    return np.argwhere(tissue)[:, ::-1], scale
