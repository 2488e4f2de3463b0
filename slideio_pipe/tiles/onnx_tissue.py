"""Find tissue with a model in ONNX: in tiles that overlap, in memory that does not grow with the slide's resolution."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.cores import decoding_threads
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import SAME_RESOLUTION, Affine
from slideio_pipe.slides.slide import Slide
from slideio_pipe.slides.view import SlideView
from slideio_pipe.tiles.config import ONNX
from slideio_pipe.tiles.failures import TileErrors, check_on_error
from slideio_pipe.tiles.onnx_model import OnnxModel, OnnxSidecar
from slideio_pipe.tiles.reader import TileReader
from slideio_pipe.tiles.tissue_methods import Segmentation


def is_onnx(method: object) -> bool:
    """Return whether a tissue method is a model: ``onnx:FILE``."""
    return isinstance(method, str) and method.startswith(ONNX)


def file_of(method: str) -> Path:
    """Return the file of a model."""
    return Path(method.removeprefix(ONNX)).expanduser()


def segment_by_model(slide: Slide, method: str, mpp: float, on_error: str) -> tuple[Segmentation, Affine, int]:
    """Return the tissue that a model finds, its affine to level-0 px, and how many tiles could not be read.

    A pixel of the mask is tissue if at least half of its area is of the model's classes of tissue. Each tile is read
    with a margin, of which the result is not used; beyond the slide is white.

    Parameters
    ----------
    slide : Slide
    method : str
        ``onnx:FILE``.
    mpp : float
        µm per px of the mask; rounded to a multiple of the model's.
    on_error : {"raise", "white"}
    """
    threads = decoding_threads()
    model = OnnxModel(file_of(method), threads)
    view = _view(slide, model.about)
    places = _Places(view, model.about, max(1, round(mpp / model.about.mpp)), slide.name)
    reader = TileReader(view, model.about.tile_size)
    errors = TileErrors(slide.name, len(places.origins), check_on_error(on_error))
    kinds = model.about.kinds()
    for start in range(0, len(places.origins), model.batch):
        index = np.arange(start, min(start + model.batch, len(places.origins)))
        # A batch of a fixed size is filled with white.
        tiles = np.full((model.batch, model.about.tile_size, model.about.tile_size, 3), 255, np.uint8)
        errors.read(partial(_read, reader, places.origins, threads), index, tiles[: len(index)])
        for number, labels in zip(index.tolist(), model.labels(tiles), strict=False):
            places.add(number, kinds[labels])
    tissue, artefacts = places.masks()
    details = {**model.facts, "artefact_fraction": round(float(artefacts.mean()), 5)}
    return Segmentation(tissue, artefacts & ~tissue, details), places.affine, len(errors.failures)


def _read(
    reader: TileReader,
    origins: NDArray[np.int64],
    threads: int,
    index: NDArray[np.int64],
    out: NDArray[np.uint8],
) -> None:
    reader.read(origins[index], out, threads=threads)


def _view(slide: Slide, about: OnnxSidecar) -> SlideView:
    own = slide.require_mpp()
    if own.mean > about.mpp * (1 + SAME_RESOLUTION):
        reason = f"the model is for {about.mpp:g} µm per px, and the slide is scanned at {own.mean:.4g} µm"
        raise ConfigError(reason, slide=slide.name, remedy="use a model for coarser pixels, or another {method=}")
    return slide.view(mpp=about.mpp)


class _Places:
    """Where the tiles of a model are, and how many of the pixels in each cell of the mask are tissue and artefacts."""

    def __init__(self, view: SlideView, about: OnnxSidecar, cell: int, slide: str) -> None:
        self._cell, self._size = cell, view.size
        self._step = (about.tile_size - about.shared) // cell * cell  # px of a tile whose result is used
        if not self._step:
            reason = f"a pixel of the mask would be larger than a tile of the model, {about.tile_size} px"
            raise ConfigError(reason, slide=slide, remedy="pass a finer {mpp=}")
        self._margin = (about.tile_size - self._step) // 2
        columns, rows = (-(-side // self._step) for side in view.size)
        row, column = np.divmod(np.arange(rows * columns), columns)
        self._corners = np.stack([column, row], axis=1) * self._step
        self.origins = self._corners - self._margin
        self.affine = view.affine @ Affine.scaling(cell, cell)
        shape = (rows * self._step // cell, columns * self._step // cell)
        self._counts = np.zeros((2, *shape), np.float32)

    def add(self, number: int, kinds: NDArray[np.uint8]) -> None:
        """Count the kinds of a tile's pixels, (T, T): 1 tissue, 2 artefact; those beyond the slide are none."""
        (x, y), step, cell = self._corners[number].tolist(), self._step, self._cell
        used = kinds[self._margin : self._margin + step, self._margin : self._margin + step].copy()
        used[max(0, self._size.height - y) :], used[:, max(0, self._size.width - x) :] = 0, 0
        cells = used.reshape(step // cell, cell, step // cell, cell)
        rows, columns = slice(y // cell, (y + step) // cell), slice(x // cell, (x + step) // cell)
        for kind in (1, 2):
            self._counts[kind - 1, rows, columns] = (cells == kind).sum(axis=(1, 3))

    def masks(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the cells that are tissue, and those that are artefacts, by half of their area inside the slide."""
        width, height = (-(-side // self._cell) for side in self._size)
        x, y = (np.minimum(self._cell, side - np.arange(n) * self._cell)
                for side, n in zip(self._size, (width, height), strict=True))  # fmt: skip
        area = np.outer(y, x)
        tissue, artefacts = self._counts[:, :height, :width] * 2 >= area
        return tissue, artefacts
