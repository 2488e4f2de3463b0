"""The tiles of a bag as the slide stores them: JPEG bytes that go into a store unchanged."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import simplejpeg

from slideio_pipe.errors import ConfigError, CorruptSlideError
from slideio_pipe.store import zarr_jpeg
from slideio_pipe.store.codecs import TileCodec, codec_for, finest_jpeg, white_jpeg
from slideio_pipe.tiles.bag import Bag
from slideio_pipe.tiles.failures import TileErrors
from slideio_pipe.tiles.grid import stored_resolutions
from slideio_pipe.tiles.tile_bag import TileBag

_END = b"\xff\xd9"  # of a JPEG
# Tiles that show what JPEG it is: more than one, because one may be damaged; among so many, because some are sparse.
_LOOKED_AT, _LOOKED_FOR = 4, 64
_OTHERWISE = 'pixels="jpeg:90" or pixels="zstd"'


class SourceTiles:
    """The stored JPEG of every tile of a bag, in the bag's order.

    Parameters
    ----------
    bag : TileBag
        Its tiles lie on those the slide stores, at the resolution they are stored in, and nothing changes their pixels.

    Raises
    ------
    ConfigError
        They do not; the message says why, and what to do instead.
    """

    def __init__(self, bag: Bag) -> None:
        if not isinstance(bag, TileBag):
            reason = f'pixels="source" needs the tiles of a slide, not a {type(bag).__name__}'
            raise ConfigError(reason, slide=bag.name, remedy='pass pixels="jpeg:90", "zstd" or "none"')
        refused = _refusal(bag)
        if refused is not None:
            reason, remedy = refused
            raise ConfigError(f'pixels="source" is not possible: {reason}', slide=bag.name, remedy=remedy)
        self._slide, self._level, self._side = bag.name, bag.view.level, bag.grid.tile_size
        self._tiles: Any = bag.view.slide.stored_tiles(bag.view.level)
        self._places = bag.grid.origins // self._side

    def codec(self, tolerance: TileErrors) -> TileCodec:
        """Return the codec that reads what ``streams`` gives.

        Raises
        ------
        ConfigError
            The slide's JPEG is none that readers of the store can make three channels of 8 bits of.
        CorruptSlideError
            The bytes of the first tiles are not there, and ``tolerance`` bears with none.
        """
        codec, problem = codec_for("source"), None
        for stream in itertools.islice(filter(None, self._first(tolerance)), _LOOKED_AT):
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
        reason = f'pixels="source" is not possible: no reader takes the slide\'s JPEG as it is ({problem})'
        raise ConfigError(reason, slide=self._slide, remedy=f"pass {_OTHERWISE}") from problem

    def _first(self, tolerance: TileErrors) -> Iterator[bytes | None]:
        for column, row in self._places[:_LOOKED_FOR].tolist():
            try:
                yield self._tiles.stream(column, row)
            except CorruptSlideError:  # those that are borne with are counted when they are stored
                if tolerance.on_error == "raise":
                    raise

    def streams(self, first: int, last: int, tolerance: TileErrors) -> Iterator[bytes]:
        """Yield complete JPEGs of tiles ``first`` to ``last - 1``; where the slide stores nothing, one of ours.

        That one is white, or what the reader draws from the finer level, at the highest quality.
        They are not decoded, which would cost what storing them saves: only tiles that are cut short, or not of the
        size, are found here. Damage inside one comes to light when it is read, from the slide as from the store.

        Raises
        ------
        CorruptSlideError
            With the tile's place: its bytes are not there, or are no JPEG of that size, and ``tolerance`` does not
            bear with it.
        """
        for number, (column, row) in enumerate(self._places[first:last].tolist(), first):
            try:
                stream = self._tiles.stream(column, row)
                encoded = self._unstored(column, row) if stream is None else self._checked(stream, column, row)
            except CorruptSlideError as error:
                tolerance.record(number, error)
                encoded = self._white
            yield encoded

    def _unstored(self, column: int, row: int) -> bytes:
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
            if not stream.endswith(_END):  # cut short, or followed by filling: decoding tells
                zarr_jpeg.decode_into(stream, np.empty((height, width, 3), np.uint8))
        except ValueError as error:
            place = (
                f"({column}, {row}) of level {self._level}, at ({column * self._side}, {row * self._side}) px there,"
            )
            raise CorruptSlideError(
                f"the stored tile {place} cannot be decoded ({error})",
                slide=self._slide,
                remedy="copy the slide again, or leave this region out",
            ) from error
        return stream


def _refusal(bag: TileBag) -> tuple[str, str] | None:
    """Return why the tiles are not the slide's own and what to do instead; None when they are."""
    view, grid = bag.view, bag.grid
    if bag.tile_transform is not None or view.draw is not None:
        return "a transform changes the pixels", f"leave it out, or pass {_OTHERWISE}"
    if view.choice.resampled:
        shrink = f"resampled from level {view.level} ({view.choice.shrink[0]:.4g}×)"
        return f"the view is {shrink}", f"pass {stored_resolutions(view)}, or {_OTHERWISE}"
    stored = view.slide.stored_tiles(view.level)
    if stored is None:
        return f"level {view.level} holds no JPEG tiles", f"pass {_OTHERWISE}"
    side, (width, height) = grid.tile_size, stored.tile
    if width != height:
        return f"stored tiles are {width}×{height} px, not square", f"pass {_OTHERWISE}"
    if side != width:
        return f"tiles are {side} px, stored ones {width} px", f"lay the grid with align=True, or pass {_OTHERWISE}"
    beside = int((grid.origins % side).any(axis=1).sum())
    if beside:
        reason = f"{beside:,} of {len(grid):,} tiles do not lie on stored ones"
        return reason, f"lay the grid with align=True, or pass {_OTHERWISE}"
    outside = int(((grid.origins < 0) | (grid.origins + side > np.array(view.level_size))).any(axis=1).sum())
    if outside:
        reason = f"{outside:,} of {len(grid):,} tiles reach over the edge of the slide"
        return reason, f'lay the grid with edge="drop", or pass {_OTHERWISE}'
    return None
