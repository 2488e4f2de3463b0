"""The quality of a slide on coarse rasters, measured where tiles are, and read in tiles of any grid."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.cores import decoding_threads
from slideio_pipe.errors import SkippedWarning, warn_caller
from slideio_pipe.geometry import SAME_RESOLUTION, Affine
from slideio_pipe.slides.slide import Slide
from slideio_pipe.slides.view import SlideView
from slideio_pipe.tiles.failures import OnError, TileErrors, check_on_error
from slideio_pipe.tiles.quality.cell_map import CellMap, TilePlaces
from slideio_pipe.tiles.quality.focus import cell_moments
from slideio_pipe.tiles.quality.masks import MASKS, quality_masks
from slideio_pipe.tiles.quality.tile_quality import FOCUS_MPP, MASK_MPP
from slideio_pipe.tiles.reader import TileReader

# Blocks in which the Laplacian is computed, and the cells in which it is kept, px at FOCUS_MPP.
_BLOCK, _CELL = 256, 16
# Blocks that are read at once: 25 MB.
_RUN = 128


class SlideQuality:
    """Measures a slide's quality once, where tiles ask for it, and keeps it; pickles without the slide.

    Parameters
    ----------
    slide : Slide
        As scanned: transforms of a view do not matter.
    on_error : {"raise", "white"}
        "white" treats places that cannot be decoded as glass.
    threads : int, optional
        Number of decoding threads; by default all cores.
    """

    def __init__(self, slide: Slide, *, on_error: str = "raise", threads: int | None = None) -> None:
        self.slide: Slide | None = slide
        self._on_error: OnError = check_on_error(on_error)
        self._threads = decoding_threads() if threads is None else threads
        self._masks: CellMap | None = None
        self._focus: CellMap | None = None
        self._read: NDArray[np.bool_] | None = None  # blocks that were read, (rows, columns)

    def of(self, places: TilePlaces, names: Collection[str]) -> dict[str, NDArray[np.float32]]:
        """Return the numbers of tiles by name, (N,) each; NaN for focus of a slide coarser than ``FOCUS_MPP``."""
        found = {}
        if any(name in MASKS for name in names):
            found = dict(zip(MASKS, self._mask_map().means(places), strict=True))
        if "focus" in names:
            mean, square = self._focus_map(places).means(places)
            found["focus"] = np.maximum(square - mean**2, 0)
        return {name: found[name] for name in names}

    def on(self, slide: Slide) -> SlideQuality:
        """Return what was measured, to be continued on the same slide, opened again."""
        self.slide = slide
        return self

    def _mask_map(self) -> CellMap:
        if self._masks is None:
            slide = self._opened()
            if self._on_error == "raise":
                rgb, affine = slide.overview(MASK_MPP)
            else:
                rgb, affine, _ = slide.overview_around(MASK_MPP)  # find_tissue has warned of these places
            masks = quality_masks(rgb, affine.scale()[0] * slide.require_mpp().x)
            self._masks = CellMap(np.stack([masks[name] for name in MASKS]), affine)
        return self._masks

    def _focus_map(self, places: TilePlaces) -> CellMap:
        """Return the moments of the Laplacian, with the blocks that tiles touch."""
        slide = self._opened()
        if slide.require_mpp().mean > FOCUS_MPP * (1 + SAME_RESOLUTION):
            return CellMap(np.full((2, 1, 1), np.nan, np.float32), Affine.scaling(*slide.dimensions))
        view = slide.view(mpp=FOCUS_MPP)
        columns, rows = (-(-side // _BLOCK) for side in view.size)
        if self._focus is None or self._read is None:
            per_block = _BLOCK // _CELL
            planes = np.full((2, rows * per_block, columns * per_block), np.nan, np.float32)
            self._focus = CellMap(planes, view.affine @ Affine.scaling(_CELL, _CELL))
            self._read = np.zeros((rows, columns), bool)
        needed = touched(places, view.affine @ Affine.scaling(_BLOCK, _BLOCK), self._read.shape) & ~self._read
        self._measure(view, np.argwhere(needed), self._focus.planes)
        self._read |= needed
        return self._focus

    def _measure(self, view: SlideView, blocks: NDArray[np.int64], planes: NDArray[Any]) -> None:
        """Read blocks (row, column) and put their moments into the planes."""
        reader, origins = TileReader(view, _BLOCK), blocks[:, ::-1] * _BLOCK
        errors = TileErrors(view.slide.name, len(blocks), self._on_error)
        read, step = partial(reader.read, threads=self._threads), _BLOCK // _CELL
        for start in range(0, len(blocks), _RUN):
            some = origins[start : start + _RUN]
            pixels = np.empty((len(some), _BLOCK, _BLOCK, 3), np.uint8)
            errors.read(partial(_read_at, read, some), np.arange(len(some)), pixels)
            for (row, column), (x, y), block in zip(blocks[start:] * step, some.tolist(), pixels, strict=False):
                inside = (min(_BLOCK, view.size.width - x), min(_BLOCK, view.size.height - y))
                planes[:, row : row + step, column : column + step] = cell_moments(block, inside, _CELL)
        if errors.failures:
            count, why = len(errors.failures), errors.failures[0].error
            places = "1 place is" if count == 1 else f"{count} places are"
            reason = f"{view.slide.name}: {places} treated as glass when focus was measured, because {why}"
            warn_caller(SkippedWarning(reason))

    def _opened(self) -> Slide:
        assert self.slide is not None  # ``on`` sets it after unpickling
        return self.slide

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"slide": None}


def _read_at(
    read: Callable[..., object], origins: NDArray[np.int64], index: NDArray[np.int64], out: NDArray[np.uint8]
) -> None:
    read(origins[index], out)


def touched(places: TilePlaces, blocks: Affine, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return which blocks of a raster (rows, columns) tiles touch; ``blocks`` maps block numbers to level-0 px."""
    found = np.zeros(shape, bool)
    side = places.points((blocks.a / 4, blocks.e / 4)) + 1
    step = max(1, 1_000_000 // side**2)
    for start in range(0, len(places), step):
        points = places.lattice(slice(start, start + step), side)
        column, row = np.floor(blocks.inverse().apply(points)).astype(np.int64).T
        inside = (row >= 0) & (column >= 0) & (row < shape[0]) & (column < shape[1])
        found[row[inside], column[inside]] = True
    return found
