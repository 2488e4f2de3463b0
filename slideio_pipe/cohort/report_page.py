"""``report.html``: every slide of a folder of outputs on one page, worst first, readable without a server.

A page is text made of records; pictures lie beside it, one file per slide, drawn while a worker had the slide open.
"""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.records import ABOUT, DONE, FAILED, QUARANTINED, WAITING, Records, SlideRecord
from slideio_pipe.cohort.report_style import SCRIPT, STYLE
from slideio_pipe.errors import OutputError

PAGE, PICTURES = "report.html", "report"
# So many slides, the worst, are shown with pictures and every word; a browser takes 50,000 rows of text.
PICTURED = 1000
# What a work notes that is the same for every slide, or said elsewhere.
_LEFT_OUT = {"slide", "bag", "tile_size", "seconds", "warnings"}
_LONGEST = 60


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table."""

    title: str
    cell: Callable[[SlideRecord], str]  # text, not yet escaped
    is_text: bool = False


def picture_file(folder: Path, name: str) -> Path:
    """Return where the picture of a slide is, for the page of this folder."""
    return folder / PICTURES / f"{name}.jpg"


def write_page(folder: Path, cohort: Cohort | None, numbers: Mapping[str, Any]) -> tuple[Path, int]:
    """Write ``report.html``, whole or not at all; return it, and how many slides came with warnings.

    Parameters
    ----------
    folder : Path
        With the events of its runs.
    cohort : Cohort, optional
        Slides that belong to it, done or not.
    numbers : mapping
        What ``run.json`` says.

    Raises
    ------
    OutputError
        The disk refuses.
    """
    path = folder / PAGE
    partial = path.with_name(f"{PAGE}.partial")
    records, title = Records(folder, cohort), "/".join(folder.absolute().parts[-2:]).lstrip("/")
    try:
        with partial.open("w", encoding="utf-8", errors="replace") as file:
            file.writelines(page(title, records, numbers, lambda name: picture_file(folder, name)))
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        remedy = "check folder, rights and space"
        raise OutputError(f"cannot be written ({error})", slide=str(path), remedy=remedy) from error
    return path, records.counts["warned"]


def page(
    title: str,
    records: Records,
    numbers: Mapping[str, Any],
    picture: Callable[[str], Path] | None = None,
    *,
    pictured: int = PICTURED,
) -> Iterator[str]:
    """Yield the page, piece by piece: nothing grows with the number of slides but the page.

    Parameters
    ----------
    title : str
        Of the folder.
    records : Records
        Worst first.
    numbers : mapping
        What ``run.json`` says of the last run.
    picture : callable, optional
        Name of a slide to its picture, which need not be there.
    pictured : int
        How many slides are shown with pictures.
    """
    columns = _columns(records)
    yield (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}: {len(records):,} slides'
        '</title><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head>\n<body><header><h1>Cohort: {_text(title)}</h1>"
    )
    yield from _head(records, numbers)
    yield '</header>\n<main><form class="find" hidden onsubmit="return false" role="search">'
    yield '<label for="filter">Show slides with</label><input id="filter" type="search" autocomplete="off" '
    yield 'placeholder="name, label, failed, warning, …">'
    yield '<span id="shown" class="soft" aria-live="polite"></span></form>'
    rows = iter(records)
    worst = f"The worst {pictured:,} of {len(records):,} slides" if len(records) > pictured else "Slides, worst first"
    yield f"\n<h2>{worst}</h2>"
    yield '<p class="soft">Failed, quarantined, with warnings, few tiles or low coverage, then the rest from few tiles '
    yield "to many. Each picture: the slide, its tissue, its tiles. Covered is the tissue that lies in some tile.</p>"
    yield from _table("slides", columns, (_full_row(row, columns, picture) for row in islice(rows, pictured)))
    if len(records) > pictured:
        yield f"\n<h2>The other {len(records) - pictured:,} slides, without pictures</h2>"
        # Laid out once they are scrolled to: a browser opens 50,000 rows as soon as 1,000.
        height = 28 * (len(records) - pictured)
        yield f'<div class="later" style="contain-intrinsic-size: auto {height}px">'
        yield from _table("slides small", columns, (_short_row(row, columns) for row in rows))
        yield "</div>"
    packages = numbers.get("packages") or {}
    version = packages.get("slideio-pipe", "")
    yield f"</main>\n<footer>slideio-pipe {_text(version)}, {_text(_moment(numbers.get('ended')))}</footer>"
    yield f"\n<script>{SCRIPT}</script></body></html>\n"


# --- above the table


def _head(records: Records, numbers: Mapping[str, Any]) -> Iterator[str]:
    counts, total = records.counts, len(records)
    failed = counts[FAILED] + counts[QUARANTINED]
    ended = f"The last run {_ending(numbers.get('state'))} {_moment(numbers.get('ended'))}".rstrip() + "."
    yield f"<p>{total:,} slide{'' if total == 1 else 's'}: {counts[DONE]:,} done, {failed:,} failed"
    yield f", {counts[WAITING]:,} not done yet" if counts[WAITING] else ""
    yield f'. <span class="soft">{_text(ended)}</span></p>'
    yield from _bar(
        [
            ("f", "failed", counts[FAILED]),
            ("f", "quarantined (took two worker processes with it)", counts[QUARANTINED]),
            ("d", "done", counts[DONE]),
            ("n", "not done yet", counts[WAITING]),
        ],
        max(1, total),
    )
    facts = {
        "done by the last run": f"{numbers.get('done', 0):,}",
        "there before": f"{numbers.get('kept', 0):,}",
        "failed": f"{failed:,}",
        "with warnings": f"{counts['warned']:,}",
        "tiles": f"{records.tiles:,}" if "tiles" in records.columns else None,
        "on disk": _size(records.bytes) if records.bytes else None,
        "time of the last run": _duration(float(numbers.get("seconds") or 0)),
        "slides per hour": f"{numbers['slides_per_hour']:,.0f}" if numbers.get("slides_per_hour") else None,
    }
    shown = "".join(f"<div><dd>{_text(v)}</dd><dt>{_text(k)}</dt></div>" for k, v in facts.items() if v is not None)
    yield f'<dl class="facts">{shown}</dl>'
    yield _pairs("Settings", _flat(numbers.get("settings") or {}))
    place = {key: numbers[key] for key in ("host", "cores", "workers", "started", "ended") if key in numbers}
    yield _pairs("Versions and machine", _flat(dict(numbers.get("packages") or {}) | place))


def _bar(parts: Iterable[tuple[str, str, int]], total: int) -> Iterator[str]:
    """Yield the parts of a cohort as a bar, and in words."""
    there = [(kind, what, count) for kind, what, count in parts if count]
    yield '<div class="bar" aria-hidden="true">'
    yield "".join(f'<i class="{kind}" style="flex:{count / total:.4f}"></i>' for kind, _, count in there)
    yield '</div><ul class="key">'
    yield "".join(f'<li><i class="{kind}" aria-hidden="true"></i>{count:,} {what}</li>' for kind, what, count in there)
    yield "</ul>"


def _pairs(title: str, pairs: Mapping[str, str]) -> str:
    rows = "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in pairs.items())
    return f'<details><summary>{_text(title)}</summary><dl class="pairs">{rows}</dl></details>' if pairs else ""


def _flat(settings: Mapping[str, Any], place: str = "") -> dict[str, str]:
    """Return nested settings as "view.mpp": "0.5", without those that are not set."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{place}{key}.")
        elif value is not None:
            found[f"{place}{key}"] = str(value)
    return found


# --- the table


def _columns(records: Records) -> list[Column]:
    """Return the columns after the first one: what is known of the slides, and what the work noted of each."""
    columns = [Column(key, _about(key), True) for key in ABOUT if key in records.about]
    noted = [key for key in (*_NOTED, *records.columns) if key in records.columns and key not in _LEFT_OUT]
    columns += [_NOTED.get(key) or _column(key) for key in dict.fromkeys(noted)]
    columns.append(Column("s", lambda record: "" if record.seconds is None else f"{record.seconds:,.1f}"))
    columns.append(Column("warnings", lambda record: f"{len(record.warnings):,}" if record.warnings else ""))
    columns.append(Column("attempts", lambda record: f"{record.attempts:,}" if record.attempts else ""))
    return columns


def _about(key: str) -> Callable[[SlideRecord], str]:
    return lambda record: str(record.about.get(key, ""))


def _column(key: str) -> Column:
    """Return the column of something that is not known here."""

    def cell(record: SlideRecord) -> str:
        value = record.made.get(key)
        if value is None or isinstance(value, (list, dict)):
            return ""
        if isinstance(value, float):
            return f"{value:,.4g}"
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)[:_LONGEST]

    return Column(key.replace("_", " "), cell)


def _figure(key: str, digits: int = 0, scale: float = 1.0) -> Callable[[SlideRecord], str]:
    """Return a cell of a number; what is none is left out."""

    def cell(record: SlideRecord) -> str:
        value = record.made.get(key)
        return f"{value * scale:,.{digits}f}" if isinstance(value, (int, float)) else ""

    return cell


def _mpp(record: SlideRecord) -> str:
    mpp = record.made.get("mpp")
    sides = mpp if isinstance(mpp, (list, tuple)) else [mpp]
    return " × ".join(f"{side:.4g}" for side in dict.fromkeys(sides) if isinstance(side, (int, float)))


# What exports, features and tissue note, in the order of the page.
_NOTED: dict[str, Column] = {
    "tiles": Column("tiles", _figure("tiles")),
    "tissue": Column("tissue %", _figure("tissue", 1, 100)),
    "tissue_covered": Column("covered %", _figure("tissue_covered", 1, 100)),
    "mpp": Column("µm/px", _mpp),
    "mpp_source": Column("mpp from", lambda record: str(record.made.get("mpp_source") or "")[:_LONGEST], True),
    "bytes": Column("MB", _figure("bytes", 1, 1e-6)),
    "tiles_per_second": Column("tiles/s", _figure("tiles_per_second")),
}


def _table(kind: str, columns: list[Column], rows: Iterable[str]) -> Iterator[str]:
    heads = "".join(f'<th scope="col"{" class=t" if c.is_text else ""}>{_text(c.title)}</th>' for c in columns)
    yield f'<table class="{kind}"><thead><tr><th scope="col" class="t">slide</th>{heads}</tr></thead><tbody>\n'
    yield from rows
    yield "</tbody></table>"


def _cells(record: SlideRecord, columns: list[Column]) -> str:
    return "".join(f"<td{' class=t' if c.is_text else ''}>{_text(c.cell(record))}" for c in columns)


def _full_row(record: SlideRecord, columns: list[Column], picture: Callable[[str], Path] | None) -> str:
    name, parts = _text(record.slide), []
    if record.error:
        remedy = f" <b>{_text(record.remedy)}</b>" if record.remedy else ""
        stage = f"{_text(record.stage)}: " if record.stage else ""
        parts.append(f'<p class="say bad">{stage}{_text(record.error)}.{remedy}</p>')
    parts += [f'<p class="say">{_text(text)}</p>' for text in record.warnings]
    parts += [] if picture is None else [_strip(record, picture(record.slide))]
    head = f'<span class="name">{name}</span>{_tags(record)}'
    return f'<tr><td data-key="{name}">{head}{"".join(parts)}{_cells(record, columns)}\n'


def _strip(record: SlideRecord, file: Path) -> str:
    """Return the picture of a slide; nothing where there is none."""
    try:
        with Image.open(file) as found:
            width, height = found.size  # said, so that the page does not jump as pictures come
    except OSError:
        return ""
    source = quote(os.fsencode(f"{file.parent.name}/{file.name}"))
    shown = f'src="{source}" width="{width}" height="{height}" alt="{_text(_in_words(record))}"'
    return f'<a class="strip" href="{source}"><img loading="lazy" {shown}></a>'


def _short_row(record: SlideRecord, columns: list[Column]) -> str:
    why = "; ".join(text for text in (record.error, record.remedy, *record.warnings) if text)
    first = f"{_text(record.slide)} {_tags(record)}" + (f" {_text(why)}" if why else "")
    return f"<tr><td>{first}{_cells(record, columns)}\n"


def _tags(record: SlideRecord) -> str:
    """Return in words what makes a slide worth a look; one that is simply done needs none."""
    kind = {FAILED: " bad", QUARANTINED: " bad", WAITING: ""}
    tags = [] if record.status == DONE else [f'<span class="tag{kind[record.status]}">{record.status}</span>']
    count = len(record.warnings)
    tags += [f'<span class="tag warn">{count} warning{"" if count == 1 else "s"}</span>'] if count else []
    return "".join(tags + [f'<span class="tag warn">{_text(what)}</span>' for what in record.notable])


def _in_words(record: SlideRecord) -> str:
    """Return what the picture of a slide shows."""
    numbers = {"tiles": _figure("tiles")(record), "% tissue": _figure("tissue", 0, 100)(record)}
    known = ", ".join(f"{value} {what}" for what, value in numbers.items() if value)
    return f"{record.slide} as a thumbnail, with its tissue and with its tiles{': ' if known else ''}{known}"


# --- numbers and words


def _text(value: object) -> str:
    return html.escape(str(value))


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _ending(state: object) -> str:
    return "was interrupted" if state == "interrupted" else "finished"


def _moment(text: Any) -> str:
    """Return a time of run.json to the minute."""
    try:
        return f"{datetime.fromisoformat(str(text)):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return ""
