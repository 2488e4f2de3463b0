"""Read tables in memory (DataFrames, tables of Arrow, lists of dictionaries), and make DataFrames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from slideio_pipe.cohort.typed_cells import texts_of
from slideio_pipe.errors import ConfigError, require
from slideio_pipe.tiles.bag import Label

FRAMES = ("pandas", "polars")


def is_frame(source: Any) -> bool:
    """Return whether an object has columns, as a DataFrame has."""
    kind = type(source)  # not of the object: a LazyFrame of polars computes its columns
    return hasattr(kind, "columns") or hasattr(kind, "column_names")


def frame_columns(frame: Any) -> tuple[list[tuple[str, list[Any]]], list[str]]:
    """Return the columns of a DataFrame with their cells as values of Python, and notes.

    The named index of a pandas DataFrame is a column as well. Raise ConfigError if it has row names without a name for
    them, or columns of several levels.
    """
    if hasattr(frame, "iloc"):
        return _of_pandas(frame)
    if hasattr(frame, "collect") and not hasattr(frame, "to_dict"):
        raise ConfigError(f"a {type(frame).__name__} has no rows yet", remedy="pass its collect()")
    if hasattr(frame, "get_columns") and hasattr(frame, "to_dict"):  # polars
        return [(str(name).strip(), list(cells)) for name, cells in frame.to_dict(as_series=False).items()], []
    if not (hasattr(frame, "to_pydict") and hasattr(frame, "column_names")):
        if not hasattr(frame, "__arrow_c_stream__"):
            raise ConfigError(f"a cohort is no {type(frame).__name__}", remedy="pass a DataFrame of pandas or polars")
        frame = require("pyarrow", "parquet").table(frame)
    names = [str(name).strip() for name in frame.column_names]
    return [(name, frame.column(number).to_pylist()) for number, name in enumerate(names)], []


def text_columns(
    columns: Sequence[tuple[str, Sequence[Any]]],
) -> tuple[list[str], list[list[str]], set[str]]:
    """Return header, rows as text, and the columns with numbers."""
    texts = [texts_of(cells, name) for name, cells in columns]
    rows = [list(row) for row in zip(*(cells for cells, _ in texts), strict=True)]
    header = [name for name, _ in columns]
    return header, rows, {name for name, (_, has_numbers) in zip(header, texts, strict=True) if has_numbers}


def dictionary_columns(rows: Sequence[Mapping[Any, Any]]) -> list[tuple[str, list[Any]]]:
    """Return the columns of a list of dictionaries, in the order in which they first appear; a missing cell is None."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [(str(name).strip(), [row.get(name) for row in rows]) for name in names]


def made_frame(kind: str, columns: Mapping[str, Sequence[Label]]) -> Any:
    """Return a DataFrame of pandas or polars; empty cells are its missing values, and whole numbers stay whole."""
    if kind not in FRAMES:
        raise ConfigError(f"no DataFrame is called {kind!r}", remedy=f"pass {' or '.join(FRAMES)}")
    library = require(kind)
    if kind == "polars":
        return library.DataFrame({name: list(cells) for name, cells in columns.items()}, strict=False)
    return library.DataFrame({name: _pandas_column(library, cells) for name, cells in columns.items()})


def _of_pandas(frame: Any) -> tuple[list[tuple[str, list[Any]]], list[str]]:
    if getattr(frame.columns, "nlevels", 1) > 1:
        raise ConfigError("the DataFrame has columns of several levels", remedy="give each column one name")
    columns = [(str(name).strip(), frame.iloc[:, k].tolist()) for k, name in enumerate(frame.columns)]
    index, names = frame.index, list(frame.index.names)
    if all(name is None for name in names):
        # Numbers are left by reading, by a filter or by a sort; texts would be lost ids.
        if len(names) > 1 or not all(isinstance(each, int) for each in index.tolist()):
            remedy = 'make it a column: df.rename_axis("slide").reset_index(); or drop it: df.reset_index(drop=True)'
            raise ConfigError("the DataFrame has row names (its index), and they have no name", remedy=remedy)
        return columns, []
    if None in names or {str(name) for name in names} & {name for name, _ in columns}:
        remedy = "reset_index() makes it columns; reset_index(drop=True) drops it"
        raise ConfigError("the DataFrame has an index whose names are missing or are columns, too", remedy=remedy)
    levels = [(str(name).strip(), index.get_level_values(k).tolist()) for k, name in enumerate(names)]
    taken = " and ".join(f'"{name}"' for name, _ in levels)
    return [*levels, *columns], [f"the DataFrame's index is read as the column {taken}"]


def _pandas_column(pandas: Any, cells: Sequence[Label]) -> Any:
    whole = [isinstance(cell, int) and not isinstance(cell, bool) for cell in cells if cell is not None]
    if whole and all(whole) and len(whole) < len(cells):
        return pandas.array(list(cells), dtype="Int64")  # else 1 would be 1.0 beside an empty cell
    return list(cells)


def is_rows(items: Iterable[Any]) -> bool:
    """Return whether a list is one of dictionaries."""
    listed = list(items)
    return bool(listed) and all(isinstance(item, Mapping) for item in listed)
