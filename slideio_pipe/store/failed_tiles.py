"""The tiles of a store that could not be read and are white: written down with each shard, told when it is whole.

A run that goes on after a kill does not read finished shards again, so what failed in them is kept beside them,
``tiles/c/<shard>/failures.json``, until the attributes of the whole store list it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slideio_pipe.errors import ConfigError, CorruptSlideError, SkippedWarning, warn_caller
from slideio_pipe.store.shards import ShardGrid
from slideio_pipe.tiles.failures import OnError, TileErrors, TileFailure, check_on_error

_KEPT = "failures.json"


def check_bearing(on_error: str) -> OnError:
    """Return a known way to deal with corrupt tiles that a store can have.

    Raises
    ------
    ConfigError
        There is no such way; or tiles would be left out, and the number of tiles is written before they are read.
    """
    known = check_on_error(on_error)
    if known == "skip":
        reason = 'on_error is "skip", and a stored bag has every tile of its grid'
        raise ConfigError(reason, remedy='pass on_error="white": the store lists such tiles under "failures"')
    return known


class FailedTiles:
    """Which tiles could not be read, by this run or by the ones before it.

    Parameters
    ----------
    grid : ShardGrid
        Of the store that is written.
    tolerance : TileErrors
        Counts them, over all runs.
    """

    def __init__(self, grid: ShardGrid, tolerance: TileErrors) -> None:
        self._grid, self._tolerance = grid, tolerance

    def load(self, shard: int) -> None:
        """Take over what failed in a shard that is finished."""
        try:
            noted = json.loads(self._file(shard).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        for each in noted:
            error = CorruptSlideError(each["error"], slide=self._tolerance.bag)
            self._tolerance.failures.append(TileFailure(self._tolerance.bag, error, int(each["tile"])))

    def save_with(self, shard: int, chunks: Iterator[bytes | memoryview]) -> Iterator[bytes | memoryview]:
        """Yield the chunks of a shard; behind the last one, and before the shard has its name, note what failed."""
        yield from chunks
        first, last = self._grid.span(shard)
        noted = [each for each in self.as_json() if first <= each["tile"] < last]
        file = self._file(shard)
        if not noted:
            file.unlink(missing_ok=True)
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", encoding="utf-8") as out:
            json.dump(noted, out)
            out.flush()
            os.fsync(out.fileno())

    def as_json(self) -> list[dict[str, Any]]:
        """Return every tile that failed, in order, with the reason, JSON-able."""
        failures = [failure for failure in list(self._tolerance.failures) if failure.tile is not None]
        reasons = {failure.tile or 0: getattr(failure.error, "reason", str(failure.error)) for failure in failures}
        return [{"tile": tile, "error": reasons[tile]} for tile in sorted(reasons)]

    def forget(self) -> None:
        """Remove the notes: the attributes of the store have them."""
        for shard in {each["tile"] // self._grid.slots for each in self.as_json()}:
            self._file(shard).unlink(missing_ok=True)

    def warn(self) -> None:
        """Say what became of the tiles, if there are such."""
        failed = self.as_json()
        if failed:
            verb = "is" if len(failed) == 1 else "are"
            what = f"{len(failed):,} of {self._grid.count:,} tiles could not be read and {verb}"
            first = f"tile {failed[0]['tile']}: {failed[0]['error']}"
            warn_caller(SkippedWarning(f"{self._tolerance.bag}: {what} white, such as {first}"))

    def _file(self, shard: int) -> Path:
        return self._grid.folder / "c" / str(shard) / _KEPT
