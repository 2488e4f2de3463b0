"""Draw a transform for many tiles of a slide at once, in arrays; the draws are those of ``compose.draw``, bit for bit.

The tiles take each part of the transform together, those that draw it, and each takes its numbers from its own stream
(``streams``). A transform of a user, or one that runs lazily only, has no such form: its tiles are drawn one by one, as
are a few tiles, for which arrays are not faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import albumentationsxl as A
import numpy as np
from albumentationsxl.core.composition import BaseCompose
from numpy.typing import ArrayLike, NDArray

from slideio_pipe.augment.albumentations import verdict
from slideio_pipe.augment.compose import check, draw_one, drawn_steps, leaves
from slideio_pipe.augment.draws import Draws
from slideio_pipe.augment.operation_columns import NONE, NUMBERS, Column, repeated
from slideio_pipe.augment.placement import CANVAS_ROUNDING, ROUNDING, bounds, checked_size
from slideio_pipe.augment.slide_colour import SlideColour
from slideio_pipe.augment.steps import Steps
from slideio_pipe.augment.streams import Streams
from slideio_pipe.augment.transform_base import Context, OurTransform
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Affine, Size

# Arrays of fewer tiles take longer than drawing one by one.
_FEWEST = 8

Rows = NDArray[np.intp]


def draw_tiles(
    transform: Any,
    *,
    seed: int = 0,
    epoch: int = 0,
    slide: str = "",
    tiles: ArrayLike,
    size: Size | tuple[int, int],
    colour: SlideColour | None = None,
) -> Draws:
    """Return the draws of tiles (n,): of each what ``compose.draw`` returns for it.

    Parameters
    ----------
    transform, seed, epoch, slide, size, colour
        As for ``compose.draw``.
    tiles : (n,) int
        Numbers of tiles.

    Raises
    ------
    ConfigError
        A transform is refused or invalid; the message names it.

    Examples
    --------
    >>> from slideio_pipe import draw
    >>> draws = draw_tiles(A.HorizontalFlip(), tiles=range(200), size=(40, 30))
    >>> draws[7] == draw(A.HorizontalFlip(), tile=7, size=(40, 30)), 80 < draws.moves.sum() < 120
    (True, np.True_)
    """
    check(transform)
    numbers = np.asarray(tiles, np.int64).reshape(-1)
    context = Context(colour=colour)
    key: dict[str, Any] = {"seed": int(seed), "epoch": int(epoch), "slide": slide, "size": checked_size(size)}
    if not len(numbers) or (len(numbers) >= _FEWEST and in_arrays(transform)):
        try:
            return _together(transform, numbers, context, **key)
        except (ConfigError, ValueError):
            pass  # drawn one by one, the first tile that is wrong raises its own error
    return Draws.of([draw_one(transform, tile=tile, context=context, **key) for tile in numbers.tolist()])


def in_arrays(transform: Any) -> bool:
    """Return whether tiles can be drawn together: every part is ours or translated to ours, none a user's class."""
    return all(
        verdict(leaf).kind in ("right", "corrected")
        and (not isinstance(leaf, OurTransform) or type(leaf).__module__.startswith("slideio_pipe."))
        for leaf in leaves(transform)
    )


def _together(
    transform: Any,
    tiles: NDArray[np.int64],
    context: Context,
    *,
    seed: int,
    epoch: int,
    slide: str,
    size: Size,
) -> Draws:
    paths = _Paths(Streams.seeded(seed, epoch, slide, tiles.tolist()), size, context)
    with np.errstate(all="ignore"):  # what is not finite is found below
        paths.walk(transform, np.arange(len(tiles)))
        affines, (kinds, numbers) = paths.affines(), paths.operations()
    if not np.isfinite(affines).all():
        raise ConfigError("an affine that is not finite", remedy="pass other limits")
    return Draws(
        seed=seed, epoch=epoch, slide=slide, size=size, tiles=tiles,
        canvases=paths.canvas.T.copy(), affines=affines, kinds=kinds, numbers=numbers,
    )  # fmt: skip


class _Paths:
    """State of the draws of n tiles: the geometry so far, and the operations; ``compose`` has that of one."""

    def __init__(self, streams: Streams, size: Size, context: Context) -> None:
        self.streams, self.context = streams, context
        count = len(streams)
        self.canvas = _stacked(size, count).astype(np.int64)
        self._operations: list[tuple[Rows, Column]] = []
        # As in ``compose``: the affine before the last chosen canvas, that canvas, and the affine since.
        self._before, self._since = _stacked(Affine(), count), _stacked(Affine(), count)
        self._content = self.canvas.copy()

    # -- walking -------------------------------------------------------------------------------------------------

    def walk(self, transform: Any, rows: Rows, *, forced: bool = False) -> None:
        """Draw for some tiles, by position, in the order in which ``compose`` draws for one."""
        if not len(rows):
            return
        streams = self.streams.only(rows)
        if not isinstance(transform, BaseCompose):
            drawn = streams.random() < transform.p
            self._take(transform, rows if transform.always_apply or forced else rows[drawn])
        elif isinstance(transform, A.OneOf):
            self._walk_chosen(transform, rows, 1, replace=True, forced=forced)
        elif isinstance(transform, A.SomeOf):
            self._walk_chosen(transform, rows, transform.n, replace=transform.replace, forced=forced)
        elif isinstance(transform, A.OneOrOther):
            first = streams.random() < transform.p
            self.walk(transform.transforms[0], rows[first], forced=True)
            self.walk(transform.transforms[-1], rows[~first], forced=True)
        elif isinstance(transform, A.Sequential):
            self._walk_all(transform.transforms, rows)
        elif isinstance(transform, A.Compose):
            run = np.ones(len(rows), bool) if forced else streams.random() < transform.p
            self._walk_all(transform.transforms, rows[run])
            self._walk_all([leaf for leaf in leaves(transform) if leaf.always_apply], rows[~run])
        else:
            raise ConfigError(f"{type(transform).__name__}: no composition known here", remedy="use A.Compose")

    def _walk_all(self, transforms: Sequence[Any], rows: Rows) -> None:
        for transform in transforms:
            self.walk(transform, rows)

    def _walk_chosen(self, transform: Any, rows: Rows, count: int, *, replace: bool, forced: bool) -> None:
        if not forced:
            rows = rows[self.streams.only(rows).random() < transform.p]
        parts = transform.transforms
        chosen = self.streams.only(rows).choice(len(parts), count, replace=replace, p=transform.transforms_ps)
        for choice in chosen.reshape(len(rows), count).T:
            for index, part in enumerate(parts):
                self.walk(part, rows[choice == index], forced=True)

    def _take(self, transform: Any, rows: Rows) -> None:
        """Append what one transform draws for some tiles."""
        if not len(rows):
            return
        # Streams have the methods of a generator that our transforms use.
        rng = cast(np.random.Generator, self.streams.only(rows))
        canvas = Size(*self.canvas[:, rows])
        steps = drawn_steps(transform, rng, canvas, self.context)
        for each in steps.operations:
            self._operations.append((rows, each if isinstance(each, Column) else repeated(each, len(rows))))
        if steps.affine is not None:
            self._move(rows, steps, steps.affine, canvas)

    # -- geometry ------------------------------------------------------------------------------------------------

    def _move(self, rows: Rows, steps: Steps, affine: Affine, plain: Size) -> None:
        since = affine @ Affine(*self._since[:, rows])
        count = len(rows)
        if steps.fit:
            left, top, right, lower = bounds(since, Size(*self._content[:, rows]))
            self._since[:, rows] = _stacked(Affine(c=-left, f=-top) @ since, count)
            sides = _stacked((right - left, lower - top), count)
            self.canvas[:, rows] = np.maximum(1, np.ceil(sides - CANVAS_ROUNDING))
            return
        canvas = plain if steps.canvas is None else steps.canvas
        cropped = np.zeros(count, bool)  # or padded
        for found, whole in zip(bounds(affine, plain), (0, 0, *canvas), strict=True):
            cropped |= abs(found - whole) > CANVAS_ROUNDING
        if cropped.any():
            some = rows[cropped]
            until = since @ Affine(*self._before[:, rows])
            self._before[:, some] = _stacked(until, count)[:, cropped]
            self._content[:, some] = _stacked(canvas, count)[:, cropped]
        self._since[:, rows] = np.where(cropped, _stacked(Affine(), count), _stacked(since, count))
        self.canvas[:, rows] = _stacked(canvas, count)

    def affines(self) -> NDArray[np.float64]:
        """Return the (n, 6) whole affines, with values that differ from whole numbers only by rounding made whole."""
        values = _stacked(Affine(*self._since) @ Affine(*self._before), len(self.streams)).T
        nearest = np.rint(values)
        return np.where(abs(values - nearest) < ROUNDING, nearest + 0.0, values)

    # -- colours -------------------------------------------------------------------------------------------------

    def operations(self) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
        """Return (n, m) kinds and (n, m, 12) numbers, from the left, without operations that change nothing."""
        count, places = len(self.streams), len(self._operations)
        kinds, numbers = np.full((count, places), NONE, np.int8), np.zeros((count, places, NUMBERS))
        for place, (rows, column) in enumerate(self._operations):
            kinds[rows, place], numbers[rows, place] = column
        left_out = kinds == NONE
        if left_out.any():
            numbers[left_out] = 0
            order = np.argsort(left_out, axis=1, kind="stable")[:, : places - int(left_out.sum(1).min())]
            kinds = np.take_along_axis(kinds, order, 1)
            numbers = np.take_along_axis(numbers, order[:, :, None], 1)
        return kinds, numbers


def _stacked(values: Sequence[Any], count: int) -> NDArray[np.float64]:
    """Return numbers, each of all tiles or of every one, as (k, count)."""
    stacked = np.empty((len(values), count))
    for row, value in zip(stacked, values, strict=True):
        row[:] = value
    return stacked
