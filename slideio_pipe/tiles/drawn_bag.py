"""A bag whose tiles are drawn from a view: one draw for all of them, and one draw per tile."""

from __future__ import annotations

import json
import time
from abc import abstractmethod
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slideio_pipe.augment.draw import Draw
from slideio_pipe.augment.operations import Opaque, Operation
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Affine, Size
from slideio_pipe.slides.backends.base import OnTiming
from slideio_pipe.slides.view import SlideView
from slideio_pipe.tiles.bag import ArrayLikeBag
from slideio_pipe.tiles.reader import TileReader

# Drawing takes 0.1 to 0.4 ms, and is needed for a tile's pixels, colours and labels: recent draws are cached.
_DRAWS_KEPT = 1024


class DrawnBag(ArrayLikeBag):
    """The base class of bags that read square tiles of a view, with a transform per tile.

    Parameters
    ----------
    view : SlideView
        Its draw, if any, is the same for all tiles.
    tile_size : int
        Side of a tile in view px, before its own draw.
    tile_transform : an albumentationsxl transform, optional
        Drawn once per tile.
    seed, epoch : int
        Inputs of the tiles' draws, with the slide's name and the tile's number.
    """

    def __init__(self, view: SlideView, tile_size: int, *, tile_transform: Any, seed: int, epoch: int) -> None:
        self.view, self.tile_size, self.name = view, tile_size, view.slide.name
        self.tile_transform, self.seed, self.epoch = tile_transform, int(seed), int(epoch)
        self.on_stage: OnTiming | None = None  # receives the timing of stages; set it before the first read
        self._drawn: dict[tuple[int, int, int], Draw] = {}
        self.canvas = Size(tile_size, tile_size) if tile_transform is None else self.draw(0).canvas

    def draw(self, index: int) -> Draw:
        """Return the draw of the tile transform for tile ``index``; always the same."""
        key = (int(index), self.seed, self.epoch)
        found = self._drawn.get(key)
        if found is None:
            if len(self._drawn) >= _DRAWS_KEPT:
                self._drawn.clear()
            found = self._drawn[key] = self._draw(int(index))
        return found

    def _draw(self, index: int) -> Draw:
        # albumentationsxl takes three seconds to import, so it is imported only for draws.
        from slideio_pipe.augment.compose import draw, measured

        size = Size(self.tile_size, self.tile_size)
        colour = measured(self.view.slide, self.tile_transform)
        return draw(
            self.tile_transform, seed=self.seed, epoch=self.epoch, slide=self.name, tile=index, size=size, colour=colour
        )

    @cached_property
    def _reader(self) -> TileReader:
        return TileReader(self.view, self.tile_size, on_stage=self.on_stage)

    def read(self, indices: ArrayLike, out: NDArray[np.uint8] | None = None, *, threads: int = 1) -> NDArray[np.uint8]:
        """Return tiles ``indices`` (n,), decoded in storage order into ``out`` (n, H, W, 3) uint8.

        Raises
        ------
        CorruptSlideError, BagFormatError
            A tile cannot be decoded.
        """
        return self._read(indices, out, threads=threads, colours=True)

    @abstractmethod
    def storage_order(self, indices: ArrayLike) -> NDArray[np.int64]:
        """Return ``indices`` in the order that decodes every stored tile once."""

    @abstractmethod
    def affines(self, indices: ArrayLike) -> list[Affine]:
        """Return one affine for each of tiles ``indices`` (n,), from its px to level-0 px."""

    @abstractmethod
    def _read_at(
        self,
        positions: NDArray[np.int64],
        draws: list[Draw] | None,
        out: NDArray[np.uint8] | None,
        *,
        threads: int,
        colours: bool,
    ) -> NDArray[np.uint8]:
        """Return tiles at ``positions``, of which there is at least one, with their draws."""

    def operations(self, index: int) -> tuple[Operation, ...]:
        """Return every colour operation of tile ``index``, the view's first: those that ``read_uncoloured`` skips."""
        view = () if self.view.draw is None else self.view.draw.operations
        return view if self.tile_transform is None else view + self.draw(index).operations

    @property
    def host_only(self) -> tuple[str, ...]:
        """Names of the transforms, of the view or of the tiles, that run only as libvips graphs, not on a device."""
        drawn = () if self.view.draw is None else self.view.draw.operations
        names = [operation.name for operation in drawn if isinstance(operation, Opaque)]
        if self.tile_transform is not None:
            from slideio_pipe.augment.albumentations import verdict  # imports albumentationsxl
            from slideio_pipe.augment.compose import leaves

            names += [type(leaf).__name__ for leaf in leaves(self.tile_transform) if verdict(leaf).kind == "opaque"]
        return tuple(dict.fromkeys(names))

    def read_uncoloured(
        self, indices: ArrayLike, out: NDArray[np.uint8] | None = None, *, threads: int = 1
    ) -> NDArray[np.uint8]:
        """Return tiles as ``read`` does, with geometry but without drawn colours, to be coloured on a device."""
        return self._read(indices, out, threads=threads, colours=False)

    def _read(
        self, indices: ArrayLike, out: NDArray[np.uint8] | None, *, threads: int, colours: bool
    ) -> NDArray[np.uint8]:
        positions = self._positions(indices)
        begun = time.perf_counter() if self.on_stage else 0.0
        draws = self._draws(positions)
        if self.on_stage and draws:
            self.on_stage("augment", begun, time.perf_counter())
        if not positions.size:
            return np.empty((0, *self.shape[1:]), np.uint8) if out is None else out
        return self._read_at(positions, draws, out, threads=threads, colours=colours)

    def _positions(self, indices: ArrayLike) -> NDArray[np.int64]:
        """Return positions of tiles; negative indices count from the end."""
        return np.arange(len(self), dtype=np.int64)[np.asarray(indices, np.int64)]

    def _draws(self, positions: NDArray[np.int64]) -> list[Draw] | None:
        if self.tile_transform is None:
            return None
        draws = [self.draw(int(k)) for k in positions]
        height, width = self.shape[1:3]
        if any(draw.canvas != (width, height) for draw in draws):
            raise ConfigError(
                "the tile transform draws tiles of different sizes",
                slide=self.name,
                remedy="end it with Resize(height, width) or RandomResizedCrop(size)",
            )
        return draws

    def _drawn_affines(self, positions: NDArray[np.int64], to_level0: list[Affine]) -> list[Affine]:
        """Return the affines from drawn tiles' px, from those of the tiles' px before their draws."""
        draws = self._draws(positions)
        if draws is None:
            return to_level0
        return [
            affine @ Affine.from_tuple(draw.affine).inverse() for affine, draw in zip(to_level0, draws, strict=True)
        ]

    def _tile_provenance(self) -> dict[str, Any] | None:
        """Return the tile transform as serialised by albumentationsxl, and the inputs of its draws."""
        if self.tile_transform is None:
            return None
        written = self.tile_transform.to_dict()["transform"]
        return {"transform": json.loads(json.dumps(written)), "seed": self.seed, "epoch": self.epoch}
