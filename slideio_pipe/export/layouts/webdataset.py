"""WebDataset: tar shards ``<slide>-000000.tar`` of ``<key>.png``, ``.json`` and, for class numbers, ``.cls``.

A bag stored as JPEG is written with its own bytes, as ``<key>.jpg``.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path

from slideio_pipe.export.layouts.item import CHUNK, Item, Layout
from slideio_pipe.export.layouts.tile_files import ending, pictures, tile_facts
from slideio_pipe.files import replacing

# WebDataset's own writer starts another shard after 100,000 samples or 3 GB; a worker reads whole shards, so smaller
# ones divide the work of one slide.
SHARD = 8 * CHUNK


class WebDataset(Layout):
    """512 tiles per shard, in the bag's order, deterministic bytes; an empty bag has no shard."""

    leaves_out_empty = True

    def writes_pixels(self, item: Item) -> bool:
        """Whether the files of a bag have its tiles."""
        del item
        return True

    def outputs(self, item: Item, folder: Path) -> list[Path]:
        """Return the shards."""
        return [folder / f"{item.stem}-{shard:06d}.tar" for shard in range(-(-len(item.bag) // SHARD))]

    def write(self, item: Item, folder: Path) -> None:
        shards = self.outputs(item, folder)
        self._remove_others(item, folder, {path.name for path in shards})
        for shard, path in enumerate(shards):
            last = min((shard + 1) * SHARD, len(item.bag))
            with replacing(path) as partial, tarfile.open(partial, "w") as tar:
                for index, picture in pictures(item, shard * SHARD, last):
                    self._add(tar, item, index, picture)

    def _remove_others(self, item: Item, folder: Path, names: set[str]) -> None:
        """Remove shards of a longer bag of this name: its tiles would be mixed with those of this one."""
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name not in names and re.fullmatch(rf"{re.escape(item.stem)}-\d{{6}}\.tar", path.name):
                path.unlink()

    def _add(self, tar: tarfile.TarFile, item: Item, index: int, pixels: bytes) -> None:
        # A sample's key ends at its first dot.
        key = f"{item.stem.replace('.', '_')}_{index:06d}"
        parts = {ending(item): pixels, "json": json.dumps(tile_facts(item, index), ensure_ascii=False).encode()}
        label = item.label
        if isinstance(label, int) and label >= 0:
            parts["cls"] = str(label).encode()
        for name, content in parts.items():
            entry = tarfile.TarInfo(f"{key}.{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
