"""The stored tiles that a run of tiles needs, decoded: from the cache, or together in one call without the GIL."""

from __future__ import annotations

from collections.abc import Sequence

from slideio_pipe.compiled.library import address
from slideio_pipe.slides.backends.base import StoredTiles
from slideio_pipe.slides.pixel_memory import PIXELS
from slideio_pipe.slides.sampling import Sampler
from slideio_pipe.slides.tile_cache import SHARED, Block

# A stored tile: level, decoder's shrink, column, row.
Key = tuple[int, int, int, int]


class StoredRuns:
    """Decodes stored tiles of one slide, those of a run together; can be shared by threads.

    Parameters
    ----------
    sampler : Sampler
    tiles : dict of int to StoredTiles
        By level.
    """

    def __init__(self, sampler: Sampler, tiles: dict[int, StoredTiles]) -> None:
        self._sampler, self._tiles = sampler, tiles

    def cache_key(self, key: Key) -> tuple[int, object]:
        """Return the key of a stored tile in the cache of decoded tiles."""
        return self._tiles[key[0]].serial, key[1:]

    def blocks(
        self, keys: Sequence[Key], cached: Sequence[tuple[int, object]], rows: Sequence[int] | None = None
    ) -> list[Block]:
        """Return stored tiles, C-contiguous. Raise CorruptSlideError if one cannot be decoded.

        Parameters
        ----------
        keys : sequence of Key
            All different.
        cached : sequence
            ``cache_key`` of each.
        rows : sequence of int, optional
            Number of the first rows of each that are needed; None keeps all of them in the cache.
        """
        found = SHARED.known_run(cached)
        missing: dict[tuple[int, int], list[int]] = {}
        for number, block in enumerate(found):
            if block is None:
                missing.setdefault(keys[number][:2], []).append(number)
        for numbers in missing.values():
            wanted = None if rows is None else [rows[number] for number in numbers]
            made = self._decoded([keys[number] for number in numbers], wanted)
            for number, block in zip(numbers, made, strict=True):
                found[number] = block
        return [block for block in found if block is not None]

    def _decoded(self, keys: Sequence[Key], rows: Sequence[int] | None) -> list[Block | None]:
        """Decode stored tiles of one level with one shrink."""
        (level, reduce, _, _), sampler = keys[0], self._sampler
        tiles, stage = self._tiles[level], sampler.on_stage
        width, height = tiles.tile.width // reduce, tiles.tile.height // reduce
        # Of a tile that is cut by the level's edge, what is beyond must not be mixed into the shrunk pixels.
        together = [k for k, (_, _, c, r) in enumerate(keys) if reduce == 1 or sampler.is_whole(tiles, level, c, r)]
        partial = {} if rows is None else {k: self._partly(keys[k], rows[k]) for k in together}
        made = [PIXELS.empty((partial.get(k) or height, width, 3)) for k in together]
        places = [address(pixels) for pixels in made]
        rows_of = [len(pixels) for pixels in made] if partial else height
        left = tiles.decode_at(
            [keys[k][2:] for k in together], places, stride=3 * width, rows=rows_of, reduce=reduce, on_stage=stage
        )
        failed = set(left)
        blocks: list[Block | None] = [None] * len(keys)
        for number, k in enumerate(together):
            if number not in failed:
                blocks[k] = made[number], places[number]
        kept = [k for number, k in enumerate(together) if number not in failed and not partial.get(k)]
        SHARED.keep(tiles, [keys[k][1:] for k in kept], [block for block in (blocks[k] for k in kept) if block])
        for k, (_, _, column, row) in enumerate(keys):
            if blocks[k] is None:
                needed = None if rows is None else rows[k]
                pixels = sampler.decoded(tiles, level, reduce, column, row, needed)
                blocks[k] = pixels, address(pixels)
        return blocks

    def _partly(self, key: Key, rows: int) -> int | None:
        """Return how many rows are decoded if the first ``rows`` are needed; None for all."""
        level, reduce, _, row = key
        tiles = self._tiles[level]
        if not self._sampler.partly(tiles, level, row, rows * reduce):
            return None
        return tiles.rows_for(rows * reduce) // reduce
