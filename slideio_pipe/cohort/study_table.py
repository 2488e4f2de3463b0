"""The table of a study: slides, with the columns of their patients, joined to files in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slideio_pipe.cohort.column_names import ColumnChoice, column_choice, has_column
from slideio_pipe.cohort.slide_search import join_files
from slideio_pipe.cohort.table import Table, raw_table, with_our_names
from slideio_pipe.cohort.table_join import OF_FILES, join_tables


def study_table(
    source: Any,
    *,
    columns: ColumnChoice = None,
    sheet: str | None = None,
    clinical: Any = None,
    slides: str | Path | None = None,
) -> Table:
    """Return a table with its columns also by our names, those of a clinical table, and paths of slides.

    Parameters
    ----------
    source : path, DataFrame or list of dictionaries
        The table of slides.
    columns : dict or list of str, optional
        The column for some of ours, of either table: ``{"slide": "FILENAME", "label": "isMSIH"}``.
    sheet : str, optional
        Sheet of an Excel file.
    clinical : path, DataFrame or list of dictionaries, optional
        A table of patients; see ``table_join.join_tables``.
    slides : path, optional
        A folder with the files of the ids; see ``slide_search.join_files``.
    """
    choice = column_choice(columns)
    table = raw_table(source, sheet=sheet)
    if clinical is None:
        table = with_our_names(table, choice)
    else:
        right = raw_table(clinical)
        theirs = {
            ours: name for ours, name in choice.items() if has_column(right.header, name) and ours not in OF_FILES
        }
        own = {ours: name for ours, name in choice.items() if has_column(table.header, name) or ours not in theirs}
        table = with_our_names(table, own)
        table = join_tables(table, with_our_names(right, theirs, besides=OF_FILES), "patient")
    return table if slides is None else join_files(table, slides)
