"""Join two tables by an id: a table of slides with one of patients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from slideio_pipe.cohort.cells import is_decimal, value_of
from slideio_pipe.cohort.cohort_slide import COLUMNS
from slideio_pipe.cohort.slide_search import listed, stem_of_id
from slideio_pipe.cohort.table import Table, file_name
from slideio_pipe.errors import ConfigError, UnmatchedWarning, warn_caller

_SHOWN = 20
# Columns of ours that say which file a row is of; they are not joined.
OF_FILES = ("slide", "name", "mask", "cell_file")


def join_tables(left: Table, right: Table, on: str) -> Table:
    """Return the left table with the columns of the right one, found by the id in the column ``on`` of both.

    Ids of only one of the tables are listed in a warning. An empty cell of the left table is filled from the right one.

    Raises
    ------
    ConfigError
        A table has no such column; rows of one id differ in the right table; a cell is not empty in both, and differs;
        or no id is in both. All rows together.
    """
    for table in (left, right):
        if on not in table.header:
            choice = f'; pass {{columns="{on}=…"}}' if on in COLUMNS else ""
            remedy = f"there are: {', '.join(table.header)}{choice}"
            raise ConfigError(f'no column "{on}" to join by', slide=table.where, remedy=remedy)
    rows_of = _by_id(right, on)
    added = [name for name in right.header if name != on and name not in OF_FILES]
    rows, problems = [], []
    for place, cells in zip(left.places, left.rows, strict=True):
        found = rows_of.get(_id(cells, on), {})
        for name in added:
            mine, theirs = value_of(cells.get(name, "")), value_of(found.get(name, ""))
            if mine and theirs and not _is_same(mine, theirs):
                problems.append(f'{place}: {name} is "{mine}", and "{theirs}" in {right.where}')
        joined = {name: found.get(name, "") for name in added if not value_of(cells.get(name, ""))}
        rows.append(cells | joined)
    if problems:
        raise _refused(left, problems, "correct the tables")
    _report_unmatched(left, right, on, rows_of)
    header = (*left.header, *(name for name in added if name not in left.header))
    notes = tuple(dict.fromkeys((*left.notes, *right.notes)))
    return replace(left, header=header, rows=tuple(rows), notes=notes)


def _by_id(table: Table, on: str) -> dict[str, dict[str, str]]:
    """Return the row of each id. Several rows of one id must not differ: which of them counts is unknown."""
    places: dict[str, list[int]] = defaultdict(list)
    for number, cells in enumerate(table.rows):
        if key := _id(cells, on):
            places[key].append(number)
    problems = []
    for key, numbers in places.items():
        rows = [table.rows[number] for number in numbers]
        differ = [name for name in table.header if len({_compared(row, name, on) for row in rows}) > 1]
        if differ:
            where = " and ".join(table.places[number] for number in numbers)
            problems.append(f'{where} are both of {on} "{key}", and differ in {" and ".join(differ)}')
    if problems:
        raise _refused(table, problems, "leave one row for each")
    return {key: table.rows[numbers[0]] for key, numbers in places.items()}


def _is_same(cell: str, other: str) -> bool:
    return cell == other or (is_decimal(cell) and is_decimal(other) and float(cell) == float(other))


def _compared(row: Mapping[str, str], name: str, on: str) -> str:
    return _id(row, on) if name == on else row.get(name, "")


def _id(cells: Mapping[str, str], on: str) -> str:
    """Return the id of a row; of a slide its file name without the ending."""
    cell = value_of(cells.get(on, ""))
    return stem_of_id(file_name(cell)) if cell and on in ("slide", "name") else cell


def _report_unmatched(left: Table, right: Table, on: str, rows_of: Mapping[str, object]) -> None:
    ids = dict.fromkeys(key for cells in left.rows if (key := _id(cells, on)))
    without = [key for key in ids if key not in rows_of]
    unused = [key for key in rows_of if key not in ids]
    if len(without) == len(ids):
        first, other = next(iter(ids), "none"), next(iter(rows_of), "none")
        zeros = {key.lstrip("0") for key in ids} & {key.lstrip("0") for key in rows_of}
        hint = "; they differ in leading zeros" if zeros else ""
        reason = f'no {on} is in both tables: "{first}" in {left.where}, "{other}" in {right.where}{hint}'
        raise ConfigError(reason, remedy=f'write the column "{on}" alike in both')
    for keys, here, there in ((without, left, right), (unused, right, left)):
        if keys:
            count = len(ids if here is left else rows_of)
            reason = f"{here.where}: {len(keys):,} of {count:,} values of {on} are not in {there.where}: {listed(keys)}"
            warn_caller(UnmatchedWarning(reason, names=keys))
    empty = sum(not _id(cells, on) for cells in left.rows)
    if empty:
        warn_caller(UnmatchedWarning(f"{left.where}: {empty:,} rows have no {on}, and get no cells of {right.where}"))


def _refused(table: Table, problems: Sequence[str], remedy: str) -> ConfigError:
    more = f"; and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
    return ConfigError("; ".join(problems[:_SHOWN]) + more, slide=table.where, remedy=remedy)
