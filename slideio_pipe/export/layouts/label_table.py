"""Tables of labels and patients beside a folder of bags."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slideio_pipe.cohort.table import csv_bytes
from slideio_pipe.errors import OutputExistsError
from slideio_pipe.files import replacing


def write_labels(path: Path, rows: Sequence[dict[str, Any]]) -> list[Path]:
    """Write rows with known labels, after existing rows of other slides; return the written files."""
    if not rows:
        return []
    key = "slide_id" if "slide_id" in rows[0] else next(iter(rows[0]))
    return write_rows(path, [row for row in rows if row["label"] is not None], key, others=rows)


def write_rows(
    path: Path, rows: Sequence[dict[str, Any]], key: str, *, others: Sequence[dict[str, Any]] = ()
) -> list[Path]:
    """Write rows after existing ones; return the written files.

    Raise OutputExistsError if a table without the key column exists, which was not written here; OutputError if the
    table cannot be written.

    Parameters
    ----------
    path : Path
    rows : sequence of dict
        All with the same columns. An empty sequence writes nothing.
    key : str
        The key column: ``rows`` and ``others`` replace existing rows with equal keys.
    others : sequence of dict
        Rows that are removed and not written.
    """
    if not rows:
        return []
    now = {str(row[key]) for row in (*rows, *others)}
    columns, existing = _read(path, key)
    kept = [row for row in existing if row[key] not in now]
    names = list(rows[0]) if not kept else list(dict.fromkeys([*columns, *rows[0]]))
    with replacing(path) as partial:
        partial.write_bytes(csv_bytes(names, [*kept, *rows]))
    return [path]


def _read(path: Path, key: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the columns and rows of an existing table."""
    if not path.is_file():
        return [], []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or ())
        if columns and key not in columns:
            reason = f'a table without the column "{key}" is there'
            raise OutputExistsError(reason, slide=str(path), remedy="move it, or convert into another folder")
        return columns, list(reader)
