"""Tables of labels that go with a folder of bags."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slideio_pipe.foreign.item import replacing


def write_labels(path: Path, rows: Sequence[dict[str, Any]]) -> list[Path]:
    """Write rows whose label is known, after those of other slides that are there already; return what was written."""
    known = [row for row in rows if row["label"] is not None]
    if not known:
        return []
    key = "slide_id" if "slide_id" in known[0] else next(iter(known[0]))
    now = {str(row[key]) for row in rows}
    kept = [row for row in _read(path, list(known[0])) if row[key] not in now]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(known[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows([*kept, *known])
    with replacing(path) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8")
    return [path]


def _read(path: Path, columns: list[str]) -> list[dict[str, Any]]:
    """Return the rows of a table of ours; none where it has other columns."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        return list(reader) if reader.fieldnames == columns else []
