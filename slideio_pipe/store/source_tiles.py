"""The JPEG bytes of a bag's tiles as stored in the slide, to be copied into a store unchanged."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import simplejpeg

from slideio_pipe.errors import ConfigError, CorruptSlideError
from slideio_pipe.slides.backends.base import undecodable
from slideio_pipe.store import zarr_jpeg
from slideio_pipe.store.codecs import TileCodec, codec_for, finest_jpeg, white_jpeg
from slideio_pipe.tiles.aligned_grid import stored_resolutions
from slideio_pipe.tiles.bag import Bag
from slideio_pipe.tiles.failures import TileErrors
from slideio_pipe.tiles.tile_bag import TileBag

_END = b"\xff\xd9"  # end of a JPEG
# Tiles that show the kind of JPEG: several, as one may be damaged; searched among this many, as some may be missing.
_TILES_TO_CHECK, _TILES_TO_SEARCH = 4, 64
_ALTERNATIVES = '{pixels="jpeg:90"} or {pixels="zstd"}'


class SourceTiles:
    """The stored JPEG of every tile of a bag, in the bag's order.

    Raise ConfigError, with the reason and an alternative, if the bag's tiles are not such.

    Parameters
    ----------
    bag : TileBag
        Its tiles are aligned to those stored in the slide, at their resolution, and no operation changes their pixels.
    """

    def __init__(self, bag: Bag) -> None:
        if not isinstance(bag, TileBag):
            reason = f'{{pixels="source"}} needs the tiles of a slide, not a {type(bag).__name__}'
            raise ConfigError(reason, slide=bag.name, remedy=f"pass {_ALTERNATIVES}")
        refused = _refusal(bag)
        if refused is not None:
            reason, remedy = refused
            raise ConfigError(f'{{pixels="source"}} is not possible: {reason}', slide=bag.name, remedy=remedy)
        self._slide, self._level, self._side = bag.name, bag.view.level, bag.grid.tile_size
        self._tiles: Any = bag.view.slide.stored_tiles(bag.view.level)
        self._places = bag.grid.origins // self._side

    def codec(self, tolerance: TileErrors) -> TileCodec:
        """Return the codec that reads the bytes of ``streams``.

        Raise ConfigError if readers of the store cannot decode the slide's JPEG to three channels of 8 bits,
        CorruptSlideError if the bytes of the first tiles are missing, and ``tolerance`` raises.
        """
        codec, problem = codec_for("source"), None
        for stream in itertools.islice(filter(None, self._first(tolerance)), _TILES_TO_CHECK):
            try:
                _, _, colours, chroma = simplejpeg.decode_jpeg_header(stream)
                if colours not in ("RGB", "YCbCr"):
                    raise ValueError(f"its colours are {colours}")
                zarr_jpeg.decode_into(stream, np.empty((self._side, self._side, 3), np.uint8))
            except ValueError as error:
                problem = error
            else:
                return replace(codec, pixels={**codec.pixels, "chroma": ":".join(chroma)})
        if problem is None:
            return replace(codec, pixels={**codec.pixels, "chroma": None})
        reason = f'{{pixels="source"}} is not possible: no reader takes the slide\'s JPEG as it is ({problem})'
        raise ConfigError(reason, slide=self._slide, remedy=f"pass {_ALTERNATIVES}") from problem

    def _first(self, tolerance: TileErrors) -> Iterator[bytes | None]:
        for column, row in self._places[:_TILES_TO_SEARCH].tolist():
            try:
                yield self._tiles.stream(column, row)
            except CorruptSlideError:  # tolerated tiles are counted when they are stored
                if tolerance.on_error == "raise":
                    raise

    def streams(self, first: int, last: int, tolerance: TileErrors) -> Iterator[bytes]:
        """Yield complete JPEGs of tiles ``first`` to ``last - 1``; a tile missing in the slide is encoded here.

        Such a tile is white, or what the reader draws from the finer level, at the highest quality. Tiles are not
        decoded, which would take the time that copying saves: only truncated tiles and those of another size are
        detected here. Damage inside a tile is detected when it is read, from the slide as from the store. Raise
        CorruptSlideError, which names the tile's place, if the tile's bytes are missing, or are not a JPEG of that
        size, and ``tolerance`` raises.
        """
        for number, (column, row) in enumerate(self._places[first:last].tolist(), first):
            try:
                stream = self._tiles.stream(column, row)
                encoded = self._encoded_here(column, row) if stream is None else self._checked(stream, column, row)
            except CorruptSlideError as error:
                tolerance.record(number, error)
                encoded = self._white
            yield encoded

    def _encoded_here(self, column: int, row: int) -> bytes:
        pixels = self._tiles.decode(column, row)
        return self._white if (pixels == 255).all() else finest_jpeg(pixels)

    @cached_property
    def _white(self) -> bytes:
        return white_jpeg(self._side, self._side)

    def _checked(self, stream: bytes, column: int, row: int) -> bytes:
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(stream)
            if (height, width) != (self._side, self._side) or colours not in ("RGB", "YCbCr"):
                raise ValueError(f"its JPEG is {width}×{height} px, {colours}")
            if not stream.endswith(_END):  # truncated, or followed by padding: decoding decides
                zarr_jpeg.decode_into(stream, np.empty((height, width, 3), np.uint8))
        except ValueError as error:
            place = (
                f"({column}, {row}) of level {self._level}, at ({column * self._side}, {row * self._side}) px there,"
            )
            raise undecodable(f"the stored tile {place}", error, self._slide) from error
        return stream


def _refusal(bag: TileBag) -> tuple[str, str] | None:
    """Return why the tiles are not the slide's own and an alternative; None if they are."""
    view, grid = bag.view, bag.grid
    if len(bag.shape) == 5:
        return "further magnifications are not stored tiles", f"pass {_ALTERNATIVES}"
    if bag.tile_transform is not None or view.draw is not None:
        return "a transform changes the pixels", f"leave it out, or pass {_ALTERNATIVES}"
    if view.choice.resampled:
        shrink = f"resampled from level {view.level} ({view.choice.shrink[0]:.4g}×)"
        return f"the view is {shrink}", f"pass {stored_resolutions(view)}, or {_ALTERNATIVES}"
    stored = view.slide.stored_tiles(view.level)
    if stored is None:
        return f"level {view.level} holds no JPEG tiles", f"pass {_ALTERNATIVES}"
    side, (width, height) = grid.tile_size, stored.tile
    if width != height:
        return f"stored tiles are {width}×{height} px, not square", f"pass {_ALTERNATIVES}"
    if side != width:
        return (
            f"tiles are {side} px, stored ones {width} px",
            f"create the grid with {{align=True}}, or pass {_ALTERNATIVES}",
        )
    beside = int((grid.origins % side).any(axis=1).sum())
    if beside:
        reason = f"{beside:,} of {len(grid):,} tiles are not aligned with the stored ones"
        return reason, f"create the grid with {{align=True}}, or pass {_ALTERNATIVES}"
    outside = int(((grid.origins < 0) | (grid.origins + side > np.array(view.level_size))).any(axis=1).sum())
    if outside:
        reason = f"{outside:,} of {len(grid):,} tiles reach over the edge of the slide"
        return reason, f'create the grid with {{edge="drop"}}, or pass {_ALTERNATIVES}'
    return None
