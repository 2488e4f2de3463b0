"""Stain vectors, published or of a slide, and the linear maps in optical density that jitter or exchange them.

A basis is (3, 3): one stain per row, its optical density in red, green and blue. A pixel is a sum of stains,
``od = concentrations @ basis``, with od = −ln((x + 1)/256) as in ``operations.Stain``. Glass has od 0, so a map
without offset leaves it white.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slideio_pipe.augment.operation_columns import operation
from slideio_pipe.augment.operations import Matrix, Stain, Triple
from slideio_pipe.errors import ConfigError

# Ruifrok and Johnston 2001, rounded as scikit-image publishes them (skimage.color.rgb_from_hed): haematoxylin, eosin,
# diaminobenzidine.
HED: Matrix = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
# The reference haematoxylin and eosin of Macenko et al. 2009, from their published implementation.
MACENKO_HE: tuple[Triple, Triple] = ((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581))
# Their 99th percentiles of concentration, for light of 240 levels.
MACENKO_STRENGTH: Triple = (1.9705, 1.0308, 1.0)

# Above this a basis amplifies noise a hundredfold: two of its stains are nearly equal, or all are in one plane.
MAX_CONDITION = 100.0
_EYE = np.eye(3)


def optical_density(rgb: ArrayLike) -> NDArray[np.float64]:
    """Return −ln((x + 1)/256): 0 for white, 5.5 for black.

    >>> optical_density([255, 127]).round(4).tolist()
    [-0.0, 0.6931]
    """
    return np.asarray(-np.log((np.asarray(rgb, np.float64) + 1) / 256))


def complete_basis(stains: ArrayLike) -> NDArray[np.float64]:
    """Return two stains as unit vectors, with the direction orthogonal to both as third."""
    first, second = (row / np.linalg.norm(row) for row in np.asarray(stains, np.float64)[:2])
    third = np.cross(first, second)
    return np.stack([first, second, third / np.linalg.norm(third)])


def named_basis(basis: str | ArrayLike, owner: str) -> NDArray[np.float64]:
    """Return the (3, 3) basis for "hed", "macenko" or an array.

    Raise ConfigError if the name is unknown, or the array is not (3, 3) numbers or is singular; the message names
    ``owner``.
    """
    if not isinstance(basis, str):
        return checked_basis(basis, owner)
    if basis not in ("hed", "macenko"):
        raise ConfigError(f'{owner}: no stain basis "{basis}"', remedy='pass "hed", "macenko", "slide" or a 3×3')
    return np.array(HED) if basis == "hed" else complete_basis(MACENKO_HE)


def checked_basis(basis: ArrayLike, owner: str) -> NDArray[np.float64]:
    """Return the basis as (3, 3) float64 if it can be inverted."""
    try:
        matrix = np.asarray(basis, np.float64)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        raise ConfigError(
            f"{owner}: a stain basis of shape {np.shape(matrix)}", remedy="pass 3×3 finite numbers, one stain per row"
        )
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    # Rows may have any length: only their direction defines the stain.
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

    Multiplicative and additive perturbation of stains (Tellez et al. 2018). Raise ConfigError if an ``alpha`` is
    not positive, or the basis is singular.

    Parameters
    ----------
    basis : (3, 3) array_like
        One stain per row.
    alpha, beta : (3,) array_like
        Per stain; ``beta`` in units of natural optical density times the length of the row.

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
    """Return what ``jitter`` returns, for a basis already validated; of (n, 3) numbers, n matrices and offsets."""
    factors, shifts = np.asarray(alpha, np.float64), np.asarray(beta, np.float64)
    if (
        factors.shape[-1:] != (3,)
        or shifts.shape[-1:] != (3,)
        or not all(np.isfinite(each).all() for each in (factors, shifts))
    ):
        raise ConfigError(f"{owner}: alpha={alpha!r}, beta={beta!r}", remedy="pass three finite numbers each")
    if not (factors > 0).all():
        raise ConfigError(f"{owner}: alpha={factors.tolist()} is not positive", remedy="pass alpha > 0")
    # Exactly the identity if nothing changes, without the rounding of the inverse.
    matrix = stains.T @ (_EYE * factors[..., None, :]) @ np.linalg.inv(stains.T)
    matrix[(factors == 1).all(-1)] = _EYE
    return matrix, (stains.T @ shifts[..., None])[..., 0]


def exchange(
    source: ArrayLike, target: ArrayLike, factors: ArrayLike = (1.0, 1.0, 1.0), *, owner: str = "StainNormalize"
) -> NDArray[np.float64]:
    """Return M with od′ = M·od that replaces the source stains by the target's, scaled by ``factors``."""
    old, new = checked_basis(source, owner), checked_basis(target, owner)
    if np.array_equal(old, new):
        return jitter(old, factors, owner=owner)[0]
    return np.asarray(new.T @ np.diag(np.asarray(factors, np.float64)) @ np.linalg.inv(old.T))


def as_stain(matrix: NDArray[np.float64], offset: ArrayLike = (0.0, 0.0, 0.0)) -> Any:
    """Return the map as an operation, or (n, 3, 3) maps as a column of them."""
    if matrix.ndim == 3:
        return operation(Stain, matrix=matrix, offset=np.broadcast_to(offset, (len(matrix), 3)))
    return Stain(matrix=as_matrix(matrix), offset=as_triple(offset))


def as_triple(values: ArrayLike) -> Any:
    """Return three plain numbers; (n, 3) numbers of many tiles remain an array."""
    array = np.asarray(values, np.float64)
    if array.ndim == 2:
        return array
    a, b, c = array.tolist()
    return (a, b, c)


def as_matrix(values: ArrayLike) -> Matrix:
    """Return three triples of plain numbers."""
    a, b, c = np.asarray(values, np.float64)
    return (as_triple(a), as_triple(b), as_triple(c))


# -- what a slide looks like ---------------------------------------------------------------------------------------
