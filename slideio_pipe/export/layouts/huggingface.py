"""Hugging Face datasets: ``data/<slide>.parquet`` with a row per tile, and a dataset card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slideio_pipe.errors import require
from slideio_pipe.export.layouts.item import CHUNK, BagRow, Item, Layout
from slideio_pipe.export.layouts.tile_files import pictures, tile_facts
from slideio_pipe.files import replacing
from slideio_pipe.tiles.bag import quality_of

# The card declares the split: otherwise "test" in a slide's name would create one.
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
---
Tiles of whole slides. `x` and `y` are the top-left corner in level-0 pixels, `mpp` is µm per tile pixel.
"""
_KINDS = {"slide": "string", "index": "int64", "x": "int64", "y": "int64", "column": "int32", "row": "int32"}
_KINDS |= {"tissue": "float32", "mpp": "float64", "patient": "string"}


class HuggingFace(Layout):
    """``load_dataset(folder)`` gives rows with ``image``, ``label`` and the tile's position; PNG or a bag's JPEG."""

    packages = ("pyarrow",)
    joins_labels = True
    version = 2  # 1: had no patient

    def writes_pixels(self, item: Item) -> bool:
        """Whether the files of a bag have its tiles."""
        del item
        return True

    def outputs(self, item: Item, folder: Path) -> list[Path]:
        """Return the file."""
        return [folder / "data" / f"{item.stem}.parquet"]

    def write(self, item: Item, folder: Path) -> None:
        pa, pq = require("pyarrow", "hf"), require("pyarrow.parquet", "hf")
        (path,) = self.outputs(item, folder)
        schema, label = _schema(pa, item), item.label
        label = str(label) if item.label_type == "string" and label is not None else label
        with replacing(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as file:
            for start in range(0, len(item.bag), CHUNK):
                rows = [
                    {"image": {"bytes": picture, "path": None}, **tile_facts(item, index), "label": label}
                    for index, picture in pictures(item, start, min(start + CHUNK, len(item.bag)))
                ]
                file.write_table(pa.Table.from_pylist(rows, schema))

    def finish(self, bags: Sequence[BagRow], folder: Path) -> list[Path]:
        """Write the card."""
        del bags
        with replacing(folder / "README.md") as partial:
            partial.write_text(CARD, encoding="utf-8")
        return [folder / "README.md"]


def _schema(pa: Any, item: Item) -> Any:
    """Return the columns, with their feature types for the datasets package."""
    quality = quality_of(item.bag)
    measured = {} if quality is None else dict.fromkeys(quality.measured, "float32")
    kinds = _KINDS | measured | {"label": item.label_type}
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    features = {"image": {"_type": "Image"}} | {n: {"dtype": kind, "_type": "Value"} for n, kind in kinds.items()}
    columns = [pa.field("image", image), *(pa.field(name, getattr(pa, kind)()) for name, kind in kinds.items())]
    told_to = json.dumps({"info": {"features": features}})
    return pa.schema(columns, metadata={"huggingface": told_to})
