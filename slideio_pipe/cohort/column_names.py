"""Find which column of a table is the slide, the patient, the label and so on, by the names that tools give them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from slideio_pipe.cohort.cohort_slide import COLUMNS
from slideio_pipe.errors import ConfigError, NumericIdsWarning, warn_caller

# Names of columns in tables of CLAM (slide_id, case_id), TRIDENT (wsi) and STAMP (FILENAME, PATIENT), in any case.
ALIASES = {
    "slide": ("slide_id", "filename", "wsi"),
    "patient": ("case_id", "patient_id"),
    "mpp": ("slide_mpp",),
}
# Columns with ids and names, where 1 and 1.0 are the same and leading zeros count.
_IDS = ("slide", "name", "patient")
ColumnChoice = Mapping[str, str] | str | Iterable[str] | None


def column_choice(columns: ColumnChoice) -> dict[str, str]:
    """Return chosen columns as a dictionary from our name to the table's.

    >>> column_choice("slide=FILENAME"), column_choice(["label=isMSIH", "slide = file name"])
    ({'slide': 'FILENAME'}, {'label': 'isMSIH', 'slide': 'file name'})
    """
    if columns is None or isinstance(columns, Mapping):
        pairs = [*(columns or {}).items()]
    else:
        texts = [columns] if isinstance(columns, str) else list(columns)
        pairs = [_pair(text) for text in texts]
    unknown = [name for name, _ in pairs if name not in COLUMNS]
    if unknown:
        reason = f'{{columns=}} has "{unknown[0]}", which is no column of a cohort'
        raise ConfigError(reason, remedy=f"choose columns for {', '.join(COLUMNS)}")
    return {str(ours): str(theirs).strip() for ours, theirs in pairs}


def columns_taken(
    header: Sequence[str], choice: Mapping[str, str], where: str | None, besides: Iterable[str] = ()
) -> dict[str, str]:
    """Return the table's column for each of ours that it has.

    A chosen column comes first, then one of our own name, then one of another tool's name; those ``besides`` are not
    looked for. Raise ConfigError if a chosen one is not there, or two could be meant.
    """
    taken = {}
    for ours in (name for name in COLUMNS if name not in besides):
        found = _candidates(ours, header, choice.get(ours))
        if len(found) > 1:
            listed = " and ".join(f'"{name}"' for name in found)
            remedy = f'pass {{columns="{ours}={found[0]}"}}, or another of them'
            raise ConfigError(f"the columns {listed} may each be the {ours}", slide=where, remedy=remedy)
        if found and header.count(found[0]) > 1:
            raise ConfigError(f'column "{found[0]}" is there twice', slide=where, remedy="rename one of them")
        if ours in choice and not found:
            reason = f'no column "{choice[ours]}" for {ours}'
            raise ConfigError(reason, slide=where, remedy=f"there are: {', '.join(header)}")
        if found:
            taken[ours] = found[0]
    return taken


def has_column(header: Sequence[str], name: str) -> bool:
    """Return whether a table has a column, in any case."""
    return _plain(name) in {_plain(each) for each in header}


def taken_note(taken: Mapping[str, str]) -> str | None:
    """Return which columns are read under another name, None if all have ours.

    >>> taken_note({"slide": "FILENAME", "label": "label"})
    'columns: slide is "FILENAME"'
    """
    renamed = [f'{ours} is "{theirs}"' for ours, theirs in taken.items() if ours != theirs]
    return f"columns: {', '.join(renamed)}" if renamed else None


def id_text(cell: str) -> str:
    """Return an id that a table has as a decimal number without its decimals.

    >>> id_text("12.0"), id_text("12.5")
    ('12', '12.5')
    """
    return cell.removesuffix(".0") if cell.removesuffix(".0").isdigit() else cell


def is_id(ours: str) -> bool:
    """Return whether a column of ours has ids."""
    return ours in _IDS


def warn_of_numbers(name: str, cells: Sequence[str], where: str | None) -> None:
    """Warn if ids that are stored as numbers may have lost leading zeros: they differ in length, and have gaps."""
    numbers = sorted({int(cell) for cell in cells if cell.isdigit() and cell.isascii()})
    if len({len(str(number)) for number in numbers}) < 2 or numbers[-1] - numbers[0] < len(numbers):
        return
    head = "" if where is None else f"{where}: "
    reason = (
        f'{head}the ids in the column "{name}" are stored as numbers, which have no leading zeros ({numbers[0]}, '
        f"{numbers[-1]}); if your ids have them, store the column as text"
    )
    warn_caller(NumericIdsWarning(reason))


def _pair(text: str) -> tuple[str, str]:
    ours, equals, theirs = text.partition("=")
    if not (equals and ours.strip() and theirs.strip()):
        raise ConfigError(f"{{columns=}} {text!r} names no column", remedy='pass {columns="slide=FILENAME"}')
    return ours.strip(), theirs.strip()


def _candidates(ours: str, header: Sequence[str], chosen: str | None) -> list[str]:
    names = [name for name in dict.fromkeys(header) if name]
    if chosen is not None:
        exact = [name for name in names if name == chosen]
        return exact or [name for name in names if _plain(name) == _plain(chosen)]
    if ours in names:
        return [ours]
    if ours == "name":  # in a table of patients, "Name" is a person's name
        return []
    return [name for name in names if _plain(name) in (ours, *ALIASES.get(ours, ()))]


def _plain(name: str) -> str:
    return re.sub(r"[\s\-_.]+", "_", name.strip().casefold())
