"""The draws of a tile transform for several tiles of one slide, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slideio_pipe.augment.draw import Draw
from slideio_pipe.augment.operation_columns import NONE, NUMBERS, OPAQUE, kind_of, numbers_of, record_of
from slideio_pipe.augment.operations import Operation
from slideio_pipe.geometry import Affine, Size


class Draws(Sequence[Draw]):
    """Draws of several tiles of one slide; an item is the ``Draw`` that ``compose.draw`` gives for its tile.

    Attributes
    ----------
    tiles : (n,) int64
        Tile numbers; −1 for a draw of the whole slide.
    size : Size
        Of the plain tiles, px.
    canvases : (n, 2) int64
        Width and height of each augmented tile, px.
    affines : (n, 6) float64
        ``Draw.affine`` of each: plain px → augmented px.
    kinds : (n, m) int8
        Colour operations in their order, from the left without gaps; 0 where a tile has fewer than m. Constants of
        ``operation_columns``.
    numbers : (n, m, 12) float64
        Their numbers, as ``operation_columns`` says; 0 where there is none.

    Examples
    --------
    >>> plain = Draw(tile=3, size=Size(9, 9), canvas=Size(9, 9))
    >>> draws = Draws.of([plain])
    >>> draws.affines.tolist(), draws.kinds.shape, draws[0] == plain
    ([[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]], (1, 0), True)
    """

    def __init__(
        self,
        *,
        seed: int,
        epoch: int,
        slide: str,
        size: Size,
        tiles: NDArray[np.int64],
        canvases: NDArray[np.int64],
        affines: NDArray[np.float64],
        kinds: NDArray[np.int8],
        numbers: NDArray[np.float64],
        records: Sequence[Draw] | None = None,
    ) -> None:
        self.seed, self.epoch, self.slide, self.size = seed, epoch, slide, size
        self.tiles, self.canvases, self.affines, self.kinds, self.numbers = tiles, canvases, affines, kinds, numbers
        self._records = None if records is None else list(records)

    @classmethod
    def of(cls, draws: Sequence[Draw]) -> Draws:
        """Return the arrays of records, at least one, all with the same plain size.

        The records remain the items: arrays have no place for the contents of opaque operations.
        """
        if isinstance(draws, Draws):
            return draws
        most = max(len(draw.operations) for draw in draws)
        missing = [0.0] * NUMBERS
        kinds, numbers = [], []
        for draw in draws:
            rest = most - len(draw.operations)
            kinds.append([*map(kind_of, draw.operations), *[NONE] * rest])
            numbers.append([*map(numbers_of, draw.operations), *[missing] * rest])
        first = draws[0]
        return cls(
            seed=first.seed, epoch=first.epoch, slide=first.slide, size=first.size,
            tiles=np.array([-1 if draw.tile is None else draw.tile for draw in draws], np.int64),
            canvases=np.array([draw.canvas for draw in draws], np.int64).reshape(-1, 2),
            affines=np.array([draw.affine for draw in draws], np.float64).reshape(-1, 6),
            kinds=np.array(kinds, np.int8).reshape(len(draws), most),
            numbers=np.array(numbers, np.float64).reshape(len(draws), most, NUMBERS), records=draws,
        )  # fmt: skip

    @classmethod
    def in_turns(cls, several: Sequence[Draws]) -> Draws:
        """Return the draws of n tiles by each of k transforms, k for each tile one after the other: n·k draws.

        All have the same tiles and the same plain size. Seed and epoch are those of the first.

        Examples
        --------
        >>> plain = Draw(tile=3, size=Size(9, 9), canvas=Size(9, 9))
        >>> moved = Draw(tile=3, size=Size(9, 9), canvas=Size(9, 9), affine=(1, 0, 2, 0, 1, 0))
        >>> Draws.in_turns([Draws.of([plain]), Draws.of([moved])]).affines[:, 2].tolist()
        [0.0, 2.0]
        """
        first, count = several[0], len(several)
        most = max(draws.kinds.shape[1] for draws in several)
        kinds = np.full((len(first), count, most), NONE, np.int8)
        numbers = np.zeros((len(first), count, most, NUMBERS))
        for place, draws in enumerate(several):
            kinds[:, place, : draws.kinds.shape[1]] = draws.kinds
            numbers[:, place, : draws.kinds.shape[1]] = draws.numbers
        records = None
        if any(draws._records is not None for draws in several):
            records = [draws[row] for row in range(len(first)) for draws in several]
        return cls(
            seed=first.seed, epoch=first.epoch, slide=first.slide, size=first.size,
            tiles=np.repeat(first.tiles, count),
            canvases=np.stack([draws.canvases for draws in several], axis=1).reshape(-1, 2),
            affines=np.stack([draws.affines for draws in several], axis=1).reshape(-1, 6),
            kinds=kinds.reshape(len(first) * count, most),
            numbers=numbers.reshape(len(first) * count, most, NUMBERS), records=records,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.tiles)

    @overload
    def __getitem__(self, key: int) -> Draw: ...
    @overload
    def __getitem__(self, key: slice) -> Draws: ...
    def __getitem__(self, key: Any) -> Draw | Draws:
        if isinstance(key, slice):
            return self.only(np.arange(len(self))[key])
        row = range(len(self))[key]
        return self._record(row) if self._records is None else self._records[row]

    def only(self, rows: ArrayLike) -> Draws:
        """Return some of the draws, by position."""
        places = np.asarray(rows, np.int64)
        return Draws(
            seed=self.seed, epoch=self.epoch, slide=self.slide, size=self.size, tiles=self.tiles[places],
            canvases=self.canvases[places], affines=self.affines[places],
            kinds=self.kinds[places], numbers=self.numbers[places],
            records=None if self._records is None else [self._records[place] for place in places.tolist()],
        )  # fmt: skip

    def with_affines(self, affines: NDArray[np.float64]) -> Draws:
        """Return the draws with other affines (n, 6)."""
        records = self._records
        if records is not None:
            moved = zip(records, affines.tolist(), strict=True)
            records = [record.model_copy(update={"affine": tuple(affine)}) for record, affine in moved]
        return Draws(
            seed=self.seed, epoch=self.epoch, slide=self.slide, size=self.size, tiles=self.tiles,
            canvases=self.canvases, affines=affines, kinds=self.kinds, numbers=self.numbers, records=records,
        )  # fmt: skip

    def operations(self, row: int) -> tuple[Operation, ...]:
        """Return the colour operations of one draw, by position: ``Draw.operations``."""
        if self._records is not None:
            return self._records[row].operations
        kinds = self.kinds[row].tolist()
        return tuple(record_of(kind, self.numbers[row, place]) for place, kind in enumerate(kinds) if kind != NONE)

    def _record(self, row: int) -> Draw:
        a, b, c, d, e, f = self.affines[row].tolist()
        return Draw(
            seed=self.seed, epoch=self.epoch, slide=self.slide, tile=int(self.tiles[row]), size=self.size,
            canvas=Size(*self.canvases[row].tolist()), affine=(a, b, c, d, e, f), operations=self.operations(row),
        )  # fmt: skip

    @cached_property
    def moves(self) -> NDArray[np.bool_]:
        """(n,) whether any pixel moves."""
        moved = (self.affines != Affine().as_tuple()).any(1)
        return np.asarray(moved | (self.canvases != self.size).any(1))

    @cached_property
    def lowered(self) -> NDArray[np.bool_]:
        """(n,) whether the draw runs completely on decoded batches."""
        return np.asarray((self.kinds != OPAQUE).all(1))
