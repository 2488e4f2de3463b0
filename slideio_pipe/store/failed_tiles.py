"""The undecodable tiles of a store, which are white: recorded with each shard, listed when the store is complete.

A run that continues after a kill does not read finished shards again, so their failures are stored beside them,
``tiles/c/<shard>/failures.json``, until the attributes of the complete store list them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slideio_pipe.errors import ConfigError, CorruptSlideError, SkippedWarning, warn_caller
from slideio_pipe.files import write_durably
from slideio_pipe.store.shards import ShardGrid
from slideio_pipe.tiles.failures import OnError, TileErrors, TileFailure, check_on_error

_NOTES = "failures.json"


def check_store_on_error(on_error: str) -> OnError:
    """Return a valid way to handle corrupt tiles in a store.

    Raise ConfigError if the value is unknown; or it is "skip", which is impossible: the number of tiles is written
    before reading.
    """
    known = check_on_error(on_error)
    if known == "skip":
        reason = '{on_error=} is "skip", and a stored bag has every tile of its grid'
        raise ConfigError(reason, remedy='pass {on_error="white"}: the store lists such tiles under "failures"')
    return known


@dataclass(frozen=True, slots=True)
class FailedTiles:
    """The tiles that could not be read, in this run or in earlier ones."""

    grid: ShardGrid  # of the store being written
    tolerance: TileErrors  # counts them over all runs

    def load(self, shard: int) -> None:
        """Load the failures of a finished shard."""
        try:
            noted = json.loads(self._file(shard).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        for each in noted:
            error = CorruptSlideError(each["error"], slide=self.tolerance.bag)
            self.tolerance.failures.append(TileFailure(self.tolerance.bag, error, int(each["tile"])))

    def save_with(self, shard: int, chunks: Iterator[bytes | memoryview]) -> Iterator[bytes | memoryview]:
        """Yield the chunks of a shard; after the last one, before the shard gets its name, save its failures."""
        yield from chunks
        first, last = self.grid.span(shard)
        noted = [each for each in self.as_json() if first <= each["tile"] < last]
        file = self._file(shard)
        if not noted:
            file.unlink(missing_ok=True)
            return
        write_durably(file, json.dumps(noted).encode())

    def as_json(self) -> list[dict[str, Any]]:
        """Return every failed tile, in order, with the reason, as JSON values."""
        failures = [failure for failure in list(self.tolerance.failures) if failure.tile is not None]
        reasons = {failure.tile or 0: getattr(failure.error, "reason", str(failure.error)) for failure in failures}
        return [{"tile": tile, "error": reasons[tile]} for tile in sorted(reasons)]

    def delete_notes(self) -> None:
        """Remove the notes, which the attributes of the store now contain."""
        for shard in {each["tile"] // self.grid.slots for each in self.as_json()}:
            self._file(shard).unlink(missing_ok=True)

    def warn(self) -> None:
        """Warn of the failed tiles, if any."""
        failed = self.as_json()
        if failed:
            verb = "is" if len(failed) == 1 else "are"
            what = f"{len(failed):,} of {self.grid.count:,} tiles could not be read and {verb}"
            first = f"tile {failed[0]['tile']}: {failed[0]['error']}"
            warn_caller(SkippedWarning(f"{self.tolerance.bag}: {what} white, such as {first}"))

    def _file(self, shard: int) -> Path:
        return self.grid.folder / "c" / str(shard) / _NOTES
