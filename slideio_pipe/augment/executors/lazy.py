"""A draw as a lazy uint8 pyvips image: built once per view, nothing decoded, equal pixels for any reading order.

Three ways to compute colours, each with one rounding at the end:

- Tones, saturation and stain become alternating tables and matrices, which libvips runs without branches, in ushort
  fixed point: 21 to 30 ns per pixel for a stain, with any number of tones around it.
- Hue, Lab and noise need steps that libvips has only in 8 bits, or at 60 to 230 ns per pixel. A chain with one of them
  runs in ``ColourProgram``, tile by tile, when libvips requests the tile: the pixels of decoded tiles, for 5 ns per
  pixel more. libvips requests one such tile at a time; in raster order, threads compute the next ones ahead.
- A transform of albumentationsxl that is not translated to operations builds its own graph.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pyvips
from numpy.typing import NDArray

from slideio_pipe.augment.draw import Draw
from slideio_pipe.augment.executors.cpu import ColourProgram, round_levels
from slideio_pipe.augment.opaque_transform import run_opaque
from slideio_pipe.augment.operations import Opaque, Operation, Saturation, Stain, Tone
from slideio_pipe.augment.own_functions import LiveFunction, live_function
from slideio_pipe.compiled.library import load
from slideio_pipe.cores import usable_cores
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import FINE_ENOUGH, Affine, Size
from slideio_pipe.images.virtual_tiff import VirtualTiff

Values = NDArray[np.float64]

TILE = Size(256, 256)
CODES = 65536
LOG_256 = float(np.log(256.0))
PER_DENSITY = (CODES - 1) / LOG_256  # codes per unit of optical density: black to white is the whole range
PER_LEVEL = 257  # codes per level
# With a matrix worse conditioned than this, its offset cannot be folded into the preceding table.
CONDITION = 1e6
# Coordinates of a canvas within this are equal: a pyramid's rounding stays below a thousandth of a pixel.
SAME_PX = 1e-6
WHITE = [255, 255, 255]
RUN = 3  # consecutive requests after which tiles are computed ahead
MOST_THREADS = 16


def apply_lazy(image: Any, draw: Draw, *, operations_only: bool = False, outside: int = 255) -> Any:
    """Return the augmented image as a lazy one; nothing is decoded until pixels are read.

    Raise ConfigError if the image is not 8-bit RGB, or not of the draw's size.

    Parameters
    ----------
    image : pyvips.Image
        3 bands, uchar.
    draw : Draw
    operations_only : bool
        Skip the geometry.
    outside : int
        Grey level outside the image; white by default.

    Returns
    -------
    pyvips.Image
        3 bands, uchar, sRGB. The same image when the draw is the identity.

    Notes
    -----
    Pixels are sampled once, bilinearly, with white around the image: within 1 level of float64 everywhere, including
    the border. If a draw shrinks by more than 1.25, the image is antialiased first, which reads all of it: a coarser
    ``mpp`` reads less. Flips, quarter turns and shifts by whole pixels copy pixels. An error of libvips in a tile of
    the given image is raised by the first fetch that needs it; libvips then keeps the tile as black. A
    ``pyvips.Region`` may not outlive the image it was made from, as with ``VirtualTiff``.

    Examples
    --------
    >>> glass = pyvips.Image.black(4, 2, bands=3) + 255
    >>> draw = Draw(size=Size(4, 2), canvas=Size(4, 2), operations=(Tone(brightness=0.5),))
    >>> apply_lazy(glass.cast("uchar"), draw).getpoint(0, 0)
    [128.0, 128.0, 128.0]
    """
    check_image(image)
    if not operations_only:
        given = Size(image.width, image.height)
        if given != draw.size:
            raise ConfigError(
                f"the image is {given.width}×{given.height} px, the draw was made for {draw.size.width}×"
                f"{draw.size.height}",
                remedy="draw for this image",
            )
        image = _moved(image, draw, [outside] * 3)
    for opaque, group in groupby(draw.operations, key=lambda operation: isinstance(operation, Opaque)):
        image = (_by_graphs if opaque else _coloured)(image, tuple(group))
    return image


def check_image(image: Any) -> None:
    """Raise ``ConfigError`` unless the image is an 8-bit RGB ``pyvips.Image``."""
    if not isinstance(image, pyvips.Image):
        raise ConfigError(f"the image is a {type(image).__name__}", remedy="pass a pyvips.Image of 8-bit RGB")
    if image.bands != 3 or image.format != "uchar":
        kind = {1: "grey", 2: "grey with alpha", 4: "RGBA"}.get(image.bands, f"{image.bands} bands")
        what = f"{kind}, {image.format}" if image.bands != 3 else f"RGB of format {image.format}"
        raise ConfigError(f"the image is {what}", remedy="pass 3 bands of uchar, such as image.colourspace('srgb')")


# -- geometry ------------------------------------------------------------------------------------------------------


def _moved(image: Any, draw: Draw, outside: list[int]) -> Any:
    if not draw.moves:
        return image
    affine, canvas = Affine.from_tuple(draw.affine), draw.canvas
    exact = _by_copies(image, affine, canvas, outside)
    if exact is not None:
        return exact
    shrunk, affine = _shrunk(image, affine)
    if shrunk is not image:
        image, exact = shrunk, _by_copies(shrunk, affine, canvas, outside)
        if exact is not None:
            return exact
    return image.affine(
        [affine.a, affine.b, affine.d, affine.e],
        interpolate=pyvips.Interpolate.new("bilinear"),
        oarea=[0, 0, canvas.width, canvas.height],
        # libvips puts pixel centres at whole numbers; ours are at halves.
        idx=0.5,
        idy=0.5,
        odx=affine.c - 0.5,
        ody=affine.f - 0.5,
        extend="background",
        background=outside,
    )


def _shrunk(image: Any, affine: Affine) -> tuple[Any, Affine]:
    """Return the image, antialiased and reduced where the affine shrinks it, and the remaining affine.

    Bilinear interpolation uses four pixels and would skip others if shrunk by more than ``FINE_ENOUGH``. The filter is
    a triangle, as for a plain view. Upright axes are each reduced by their own factor, rotated ones by the smaller.
    """
    inverse = affine.inverse()
    linear = np.array([[inverse.a, inverse.b], [inverse.d, inverse.e]])
    upright = not affine.b and not affine.d
    factors = np.abs(np.diagonal(linear)) if upright else np.repeat(np.linalg.norm(linear, -2), 2)
    # To a whole number of pixels: libvips centres a remainder, which would shift the image.
    across, down = (
        max(1, round(side / factor)) if factor > FINE_ENOUGH else side
        for side, factor in zip((image.width, image.height), factors.tolist(), strict=True)
    )
    if (across, down) == (image.width, image.height):
        return image, affine
    factor_x, factor_y = image.width / across, image.height / down
    return image.reduce(factor_x, factor_y, kernel="linear"), affine @ Affine.scaling(factor_x, factor_y)


# Rows (a, b), (d, e) of an affine, and the equivalent operation without sampling.
_COPIES: dict[tuple[int, int, int, int], Callable[[Any], Any]] = {
    (1, 0, 0, 1): lambda image: image,
    (-1, 0, 0, 1): lambda image: image.fliphor(),
    (1, 0, 0, -1): lambda image: image.flipver(),
    (-1, 0, 0, -1): lambda image: image.rot180(),
    (0, -1, 1, 0): lambda image: image.rot90(),
    (0, 1, -1, 0): lambda image: image.rot270(),
    (0, 1, 1, 0): lambda image: image.rot90().fliphor(),
    (0, -1, -1, 0): lambda image: image.rot90().flipver(),
}


def _by_copies(image: Any, affine: Affine, canvas: Size, outside: list[int]) -> Any | None:
    """Return the image moved pixel for pixel, or None where pixels must be interpolated."""
    linear = np.array([affine.a, affine.b, affine.d, affine.e])
    far = max(image.width, image.height, *canvas)
    left, top = affine.apply([[0, 0], [image.width, 0], [0, image.height], [image.width, image.height]]).min(axis=0)
    offset = np.array([left, top])
    turn = _COPIES.get(tuple(np.round(linear).astype(int)))
    if turn is None or np.abs(linear - np.round(linear)).max() * far > SAME_PX:
        return None
    if np.abs(offset - np.round(offset)).max() > SAME_PX:
        return None
    turned, (x, y) = turn(image), np.round(offset).astype(int).tolist()
    if (x, y, turned.width, turned.height) == (0, 0, *canvas):
        return turned
    return turned.embed(x, y, *canvas, extend="background", background=outside)


# -- colour --------------------------------------------------------------------------------------------------------


def _coloured(image: Any, operations: tuple[Operation, ...]) -> Any:
    # Compiled colours of tiles take a third of the time of tables and matrices.
    tabular = load() is None and all(isinstance(operation, Tone | Saturation | Stain) for operation in operations)
    return (_by_tables if tabular else _by_tiles)(image, operations)


class _Coded(NamedTuple):
    """An image of codes, uchar or ushort, and the value from 0 to 255 of each code."""

    image: Any
    values: Values

    def table(self, of: Callable[[Values], Values]) -> Any:
        """Return the image of a float function of the values."""
        return self.image.maplut(_strip(of(self.values).astype(np.float32), "float"))


def _by_tables(image: Any, operations: tuple[Operation, ...]) -> Any:
    levels = np.arange(256, dtype=np.float64)
    coded = _Coded(image, levels)
    for operation in operations:
        if isinstance(operation, Tone):
            coded = _Coded(coded.image, operation.curve(coded.values))
        elif isinstance(operation, Saturation):
            coded = _saturated(coded, operation)
        elif isinstance(operation, Stain):
            coded = _stained(coded, operation)
    return coded.image.maplut(_strip(round_levels(coded.values), "uchar")).copy(interpretation="srgb")


def _saturated(coded: _Coded, saturation: Saturation) -> _Coded:
    # Half a code, because the cast truncates: with it the cast rounds, and greys pass the matrix unchanged.
    shifted = coded.table(lambda values: values + 0.5 / PER_LEVEL)
    mixed = shifted.recomb((PER_LEVEL * saturation.matrix()).tolist())
    return _Coded(mixed.cast("ushort"), _level_values())


def _stained(coded: _Coded, stain: Stain) -> _Coded:
    """Convert to optical density by a table, apply the matrix, stay in codes: the cast clips to black and white."""
    matrix = np.array(stain.matrix)
    shift = np.array(stain.offset) + 0.5 / PER_DENSITY  # half a code, so that the cast rounds
    folded = np.linalg.cond(matrix) < CONDITION
    before = np.linalg.solve(matrix, shift) if folded else np.zeros(3)
    density = coded.table(lambda values: LOG_256 - np.log(values + 1)[:, None] + before)
    codes = density.recomb((PER_DENSITY * matrix).tolist())
    if not folded:
        codes = codes.linear([1.0] * 3, (PER_DENSITY * shift).tolist())
    return _Coded(codes.cast("ushort"), _density_values())


@cache
def _density_values() -> Values:
    values: Values = np.clip(256 * np.exp(-np.arange(CODES) / PER_DENSITY) - 1, 0, 255)
    values.flags.writeable = False
    return values


@cache
def _level_values() -> Values:
    values: Values = np.arange(CODES) / PER_LEVEL
    values.flags.writeable = False
    return values


def _strip(table: NDArray[Any], image_format: str) -> Any:
    """Return a table of (n,) or (n, bands) as the image that ``maplut`` takes."""
    table = np.ascontiguousarray(table)
    bands = 1 if table.ndim == 1 else table.shape[1]
    return pyvips.Image.new_from_memory(table.data, len(table), 1, bands, image_format)


def _by_tiles(image: Any, operations: tuple[Operation, ...]) -> Any:
    program = ColourProgram(operations)

    def colour(tile: NDArray[np.uint8], out: NDArray[np.uint8], place: int) -> None:
        program.apply(tile, out, place=place)

    return _tile_by_tile(image, colour)


def _by_function(image: Any, operation: Opaque, function: LiveFunction) -> Any:
    """Return the image as a user's function changes its squares, each with the same seed: one draw for all."""

    def call(tile: NDArray[np.uint8], out: NDArray[np.uint8], place: int) -> None:
        try:
            out[:] = function(tile, operation.seed)
        except ConfigError as error:
            function.failure = error  # libvips loses it, and keeps the square as black
            raise

    return _tile_by_tile(image, call)


def _tile_by_tile(image: Any, change: Callable[[NDArray[np.uint8], NDArray[np.uint8], int], None]) -> Any:
    """Return the image with ``change(tile, out, place)`` applied to squares of 256 px when they are requested."""
    size = Size(image.width, image.height)
    columns = -(-size.width // TILE.width)

    def compute(place: int) -> NDArray[np.uint8]:
        row, column = divmod(place, columns)
        x, y = column * TILE.width, row * TILE.height
        width, height = min(TILE.width, size.width - x), min(TILE.height, size.height - y)
        # A region may be used only in the thread that made it, and any thread may call this.
        pixels = np.frombuffer(pyvips.Region.new(image).fetch(x, y, width, height), np.uint8)
        tile = np.empty((TILE.height, TILE.width, 3), np.uint8)
        change(pixels.reshape(height, width, 3), tile[:height, :width], place)
        return tile

    ahead = _Ahead(compute, columns * -(-size.height // TILE.height))
    return VirtualTiff(size, TILE, lambda column, row: ahead.get(row * columns + column), fail_on="warning").image


class _Ahead:
    """Computes tiles in threads ahead of requests, after three requests in a row.

    libvips requests one tile of a ``VirtualTiff`` at a time; saving or averaging an image requests in raster order.
    """

    def __init__(self, compute: Callable[[int], NDArray[np.uint8]], tiles: int) -> None:
        self._compute, self._tiles = compute, tiles
        self._threads = min(usable_cores(), MOST_THREADS)
        self._pool: ThreadPoolExecutor | None = None
        self._pending: dict[int, Future[NDArray[np.uint8]]] = {}
        self._last, self._run = -1, 0

    def get(self, place: int) -> NDArray[np.uint8]:
        """Return a tile by its number in raster order."""
        self._run = self._run + 1 if place == self._last + 1 else 1
        self._last = place
        future = self._pending.pop(place, None)
        if self._run >= RUN:
            self._start(place)
        else:
            while self._pending:
                self._pending.popitem()[1].cancel()
        return self._compute(place) if future is None else future.result()

    def _start(self, place: int) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="augment")
        for later in range(place + 1, min(place + 1 + 2 * self._threads, self._tiles)):
            if later not in self._pending:
                self._pending[later] = self._pool.submit(self._compute, later)


def _by_graphs(image: Any, operations: tuple[Operation, ...]) -> Any:
    for operation in operations:
        if isinstance(operation, Opaque):
            function = live_function(operation)
            if function is None:
                image = run_opaque(image, operation)
            else:
                image = _by_function(image, operation, function)
    return image
