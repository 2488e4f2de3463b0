"""Print the comparison."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from slideio_pipe.commands.bench.measure import Ratio, Row, Table
from slideio_pipe.commands.bench.peers import OURS
from slideio_pipe.commands.bench.run import Comparison

LEGEND = (
    "tiles/CPU-s counts all threads of the reader's process; tiles/s is by the clock, and depends on what else "
    "the machine does. ours is faster: their CPU-seconds over ours, round by round. pixels: against the first row."
)


def in_words(table: Table) -> RichTable | str:
    """Return a case as a table of its readers, or as one line if it has none."""
    if not table.rows:
        return f"{table.case.title}: {_memory(table.case.name, table.facts)}"
    facts = table.facts
    size = f"{facts['tiles']} tiles of {facts['tile_px']} px"
    threads = table.case.name == "threads"
    head = RichTable(
        title=f"[bold]{table.case.title}[/]\n[dim]{size}, medians of {facts['rounds']} rounds (least to most)[/]",
        title_justify="left",
        title_style="",
        box=None,
        pad_edge=False,
    )
    head.add_column("reader", no_wrap=True)
    head.add_column("tiles/s with 2" if threads else "tiles/CPU-s", justify="right")
    if not threads:
        head.add_column("tiles/s", justify="right")
    head.add_column("two over one" if threads else "ours is faster", no_wrap=True)
    head.add_column("wanted", no_wrap=True)
    head.add_column("" if threads else "pixels")
    for row in table.rows:
        rates = [_rate(row.tiles_per_s)] if threads else [_rate(row.tiles_per_cpu_s), _rate(row.tiles_per_s)]
        ratio = "–" if row.ratio is None else _times(row.ratio)
        head.add_row(_name(row), *rates, ratio, _verdict(row), escape(row.note) if threads else _pixels(row))
    return head


def _name(row: Row) -> str:
    version = "" if row.reader == OURS or not row.version else f" {row.version}"
    return f"[bold]{row.reader}[/]" if row.reader == OURS else f"{row.reader}{version}"


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _times(ratio: Ratio) -> str:
    return f"{ratio.median:.2f}× ({ratio.least:.2f}–{ratio.most:.2f})"


def _verdict(row: Row) -> str:
    if row.wanted is None:
        return ""
    mark = {None: "", True: " [green]✓[/]", False: " [yellow]short[/]"}[row.reached]
    return f"≥ {row.wanted:g}×{mark}"


def _pixels(row: Row) -> str:
    """Return the comparison of pixels, after remarks on the reader."""
    if row.tiles_per_s is None or row.largest_difference is None:
        return escape(row.note)
    if row.largest_difference == 0:
        same = "the same"
    else:
        same = f"off by {row.mean_difference:.2f}, at most {row.largest_difference} levels"
    return f"{same}; {escape(row.note)}" if row.note else same


def _memory(case: str, facts: dict[str, Any]) -> str:
    if "error" in facts:
        return escape(str(facts["error"]))
    mark = "[green]✓[/]" if facts["reached"] else "[yellow]short[/]"
    if case == "slides":
        return (
            f"{facts['growth_mb']:+.1f} MB and {facts['open_files_grown']:+d} open files "
            f"from {facts['warm_mb']:.0f} MB (wanted at most {facts['allowed_mb']:+.0f} MB) {mark}"
        )
    return (
        f"peak {facts['peak_mb']:.0f} MB over {facts['tiles_read']:,} tiles read of {facts['bag']:,}, allowed "
        f"{facts['allowed_mb']:.0f} MB: ring {facts['ring_mb']:.0f}, caches {facts['caches_mb']:.0f}, 500 more {mark}"
    )


def print_comparison(found: Comparison, console: Console) -> None:
    """Print every table, and the missing readers."""
    width, height = found.dimensions
    console.print(f"[bold]{escape(found.slide)}[/], {width:,} × {height:,} px. {found.machine}", soft_wrap=True)
    for table in found.tables:
        console.print()
        console.print(in_words(table))
    if any(table.rows for table in found.tables):
        console.print(f"\n[dim]{LEGEND}[/]")
    for one in found.missing:
        console.print(f"\n{one.reader} is not compared: {escape(one.reason)}\n  {escape(one.remedy)}", soft_wrap=True)
