"""Generate whole slides of any size with ground truth: Aperio-style TIFFs, H&E-like, in bounded memory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.errors import ConfigError, OutputExistsError
from slideio_pipe.files import replacing
from slideio_pipe.geometry import Rect, Size
from slideio_pipe.synthetic.anatomy import Anatomy, mask_positions
from slideio_pipe.synthetic.aperio import SlidePlan, write_aperio
from slideio_pipe.synthetic.histology import Histology
from slideio_pipe.synthetic.stain import Staining


@dataclass(frozen=True)
class SyntheticSlide:
    """A written slide and its ground truth.

    Equal arguments of `write_synthetic_slide` give equal bytes and equal truth.

    Examples
    --------
    >>> import tempfile
    >>> made = write_synthetic_slide(f"{tempfile.mkdtemp()}/a.svs", size=(512, 384), seed=3, lesions=0)
    >>> made.label, len(made.lesion_boxes), made.tissue_mask(downsample=16).shape
    (0, 0, (24, 32))
    """

    path: Path
    dimensions: Size  # level 0, px
    mpp: float
    seed: int
    label: int  # 1 with at least one lesion, else 0
    lesion_boxes: tuple[Rect, ...]  # level-0 px
    lesion_outlines: tuple[NDArray[np.float64], ...] = field(repr=False, compare=False)  # (n, 2) x, y, level-0 px
    tissue_fraction: float  # of the slide's area
    _anatomy: Anatomy = field(repr=False, compare=False)

    def tissue_mask(self, downsample: float) -> NDArray[np.bool_]:
        """Return the tissue, (h, w) bool, from the plan of the slide and not from its pixels.

        Parameters
        ----------
        downsample : float
            Level-0 px per mask pixel; the mask has floor(size / downsample) pixels, at least 1.
        """
        return self._mask(self._anatomy.tissue_depth, downsample)

    def lesion_mask(self, downsample: float) -> NDArray[np.bool_]:
        """Return the lesions, (h, w) bool; ``downsample`` as for ``tissue_mask``."""
        return self._mask(self._anatomy.lesion_depth, downsample)

    def _mask(self, depth: Callable[[Any, Any], NDArray[np.float64]], downsample: float) -> NDArray[np.bool_]:
        if not downsample > 0 or not math.isfinite(downsample):
            raise ConfigError(f"a mask at downsample {downsample}", slide=self.path.name, remedy="pass a number > 0")
        x, y = mask_positions(self.dimensions, self.mpp, downsample)
        strips = [depth(x, y[start : start + 256]) > 0 for start in range(0, len(y), 256)]
        return np.concatenate(strips)


def write_synthetic_slide(
    path: str | os.PathLike[str],
    *,
    size: tuple[int, int] = (20_000, 15_000),
    mpp: float = 0.25,
    seed: int = 0,
    lesions: int = 3,
    levels: Sequence[int] = (1, 4, 16),
    tile_size: int = 256,
    quality: int = 80,
    pieces: int = 3,
    stain: tuple[float, float, float] = (1.0, 1.0, 0.0),
    overwrite: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> SyntheticSlide:
    """Write an H&E-like whole slide as an Aperio-style TIFF and return its ground truth.

    The picture is procedural: nothing is read, memory does not grow with the height of the slide, and equal arguments
    give equal bytes. Pages are those of a scanner: level 0, thumbnail, lower levels, label, macro.

    Parameters
    ----------
    path : path
        The file, usually ending in ``.svs``. It appears only when it is complete.
    size : (int, int)
        Width and height of level 0 in px.
    mpp : float
        µm per pixel; nuclei are 6-9 µm at any mpp.
    seed : int
        Number of the slide. Pieces, lesions, textures and stain strength follow from it.
    lesions : int
        Compact regions of crowded, dark, irregular nuclei. 0 gives a healthy slide of label 0.
    levels : sequence of int
        Downsamples, 1 first, each a power of two times the one before.
    tile_size : int
        Side of stored tiles in px, a multiple of 16.
    quality : int
        JPEG quality, 1-100; colour is stored at half the resolution (4:2:0) as scanners do.
    pieces : int
        Tissue pieces. 0 gives an empty slide.
    stain : (float, float, float)
        Staining of another laboratory for the same tissue: factors for haematoxylin and eosin, and the rotation of all
        optical densities about grey, in rad. Real laboratories stay within (0.5 to 2, 0.5 to 2, -0.3 to 0.3).
    overwrite : bool
        Replace an existing file.
    progress : callable, optional
        Called with (rows of blocks done, rows of blocks in all) from the calling thread.

    Raises
    ------
    ConfigError
        An argument is invalid.
    OutputExistsError
        The file exists and ``overwrite`` is false.
    OutputError
        The file cannot be written.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> slide = write_synthetic_slide(f"{mkdtemp()}/a.svs", size=(1024, 768), seed=1, lesions=1)
    >>> slide.label, slide.lesion_mask(16).shape
    (1, (48, 64))
    """
    path = Path(path)
    plan = _check(size, mpp, seed, levels, tile_size, quality)
    if not (min(stain[:2]) > 0 and all(math.isfinite(value) for value in stain)):
        raise ConfigError(f"stain {stain}", remedy="pass two strengths > 0 and an angle")
    if lesions < 0 or pieces < 0 or (lesions and not pieces):
        raise ConfigError(f"{lesions} lesions in {pieces} tissue pieces", remedy="pass pieces >= 1")
    if path.exists() and not overwrite:
        raise OutputExistsError("already there", slide=str(path), remedy="pass {overwrite=True} or another path")
    extent_um = (plan.size.width * plan.mpp, plan.size.height * plan.mpp)
    anatomy = Anatomy(extent_um, seed=plan.seed, pieces=pieces, lesions=lesions)
    histology = Histology(anatomy, mpp=plan.mpp, seed=plan.seed, glass_period=plan.tile_size, stain=Staining(*stain))
    with replacing(path) as partial:
        write_aperio(partial, plan, histology, progress or (lambda done, total: None))
    return _truth(path, plan, anatomy)


def _check(
    size: tuple[int, int], mpp: float, seed: int, levels: Sequence[int], tile_size: int, quality: int
) -> SlidePlan:
    """Return the checked arguments, or raise ConfigError naming the invalid one."""
    width, height = size
    steps = [b / a for a, b in pairwise(levels)]
    wrong = {
        f"size {width} x {height}": not (1 <= width <= 1_000_000 and 1 <= height <= 1_000_000),
        f"mpp {mpp}": not 0.05 <= mpp <= 16,
        f"seed {seed}": seed < 0,
        f"levels {tuple(levels)}": not levels or levels[0] != 1 or any(s not in (2, 4, 8, 16, 32, 64) for s in steps),
        f"levels {tuple(levels)} of {width} x {height} px": bool(levels) and min(width, height) < levels[-1],
        f"tile size {tile_size}": tile_size % 16 != 0 or not 16 <= tile_size <= 4096,
        f"quality {quality}": not 1 <= quality <= 100,
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise ConfigError(
                f"{what} makes no slide", remedy="see write_synthetic_slide for what each argument may be"
            )
    return SlidePlan(Size(width, height), float(mpp), seed, tuple(levels), tile_size, quality)


def _truth(path: Path, plan: SlidePlan, anatomy: Anatomy) -> SyntheticSlide:
    """Return the record of a written slide."""
    outlines = tuple(lesion.outline() / plan.mpp for lesion in anatomy.lesions)
    boxes = []
    for outline in outlines:
        left, top = np.floor(outline.min(axis=0)).astype(int).tolist()
        right, bottom = np.ceil(outline.max(axis=0)).astype(int).tolist()
        boxes.append(Rect(left, top, right - left, bottom - top))
    x, y = mask_positions(plan.size, plan.mpp, max(1.0, max(plan.size) / 250))
    return SyntheticSlide(
        path=path,
        dimensions=plan.size,
        mpp=plan.mpp,
        seed=plan.seed,
        label=int(bool(anatomy.lesions)),
        lesion_boxes=tuple(boxes),
        lesion_outlines=outlines,
        tissue_fraction=float((anatomy.tissue_depth(x, y) > 0).mean()),
        _anatomy=anatomy,
    )
