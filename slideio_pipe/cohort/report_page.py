"""``report.html``: every slide of a folder of outputs on one page, worst first, readable without a server.

The template ``report_page.html``, with ``report_page.css`` and ``report_page.js`` put into it, is filled from records.
Pictures are files beside the page, one per slide, drawn while a worker had the slide open.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from PIL import Image

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.records import ABOUT, DONE, FAILED, QUARANTINED, WAITING, Records, SlideRecord
from slideio_pipe.files import replacing, size_text

PAGE, PICTURES = "report.html", "report"
# Number of slides, the worst ones, with pictures and full texts; a browser can show 50,000 rows of text.
PICTURED = 1000
# Entries that are equal for all slides, or are shown elsewhere on the page.
_LEFT_OUT = {"slide", "bag", "tile_size", "seconds", "warnings"}
_LONGEST, _LONGEST_WORD = 60, 16
# Entries that are text, such as the file of a slide's features.
_TEXTS = {"dropped_for", "features", "encoders", "mask", "geojson", "picture", "method", "note"}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table."""

    title: str
    cell: Callable[[SlideRecord], str]  # text, which the template escapes
    is_text: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """The picture of a slide, as the page shows it."""

    source: str  # address beside the page
    width: int  # px, so that the page does not jump while pictures load
    height: int
    words: str


def picture_file(folder: Path, name: str) -> Path:
    """Return where the picture of a slide is, for the page of this folder."""
    return folder / PICTURES / f"{name}.jpg"


def write_page(folder: Path, cohort: Cohort | None, numbers: Mapping[str, Any]) -> tuple[Path, int]:
    """Write ``report.html`` atomically; return its path and the number of slides with warnings.

    Raise OutputError if it cannot be written.

    Parameters
    ----------
    folder : Path
        Contains the events of its runs.
    cohort : Cohort, optional
        Slides that belong to it, done or not.
    numbers : mapping
        Content of ``run.json``.
    """
    path = folder / PAGE
    records, title = Records(folder, cohort), "/".join(folder.absolute().parts[-2:]).lstrip("/")
    with replacing(path) as partial, partial.open("w", encoding="utf-8", errors="replace") as file:
        drawn = (lambda name: picture_file(folder, name)) if (folder / PICTURES).is_dir() else None
        file.writelines(page(title, records, numbers, drawn))
    return path, records.counts["warned"]


def page(
    title: str,
    records: Records,
    numbers: Mapping[str, Any],
    picture: Callable[[str], Path] | None = None,
    *,
    pictured: int = PICTURED,
) -> Iterator[str]:
    """Yield the page in pieces, so that memory does not grow with the number of slides.

    Parameters
    ----------
    title : str
        Of the folder.
    records : Records
        Worst first.
    numbers : mapping
        Content of ``run.json``, of the last run.
    picture : callable, optional
        Returns the picture of a slide by its name; the file may be missing.
    pictured : int
        Number of slides with pictures.
    """
    rows, columns = iter(records), _columns(records)
    yield from _template().generate(
        title=title,
        slides=len(records),
        done=DONE,
        bad=(FAILED, QUARANTINED),
        **_summary(records, numbers),
        columns=columns,
        pictures=picture is not None,
        covered="tissue_covered" in records.columns,
        cells=lambda record: [(column.is_text, column.cell(record)) for column in columns],
        text_class=_text_class,
        pictured=pictured,
        worst=islice(rows, pictured),
        picture=lambda record: None if picture is None else _picture(record, picture(record.slide)),
        others=max(0, len(records) - pictured),
        rest=rows,
        style=_beside("css"),
        script=_beside("js"),
    )


def _beside(kind: str) -> str:
    return Path(__file__).with_suffix(f".{kind}").read_text(encoding="utf-8")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = "{:,}".format
    return environment.from_string(_beside("html"))


# --- above the table


def _summary(records: Records, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content above and below the table, for the template."""
    counts = records.counts
    failed, packages = counts[FAILED] + counts[QUARANTINED], dict(numbers.get("packages") or {})
    ending = "was interrupted" if numbers.get("state") == "interrupted" else "finished"
    parts = [
        ("f", "failed", counts[FAILED]),
        ("f", "quarantined (crashed two worker processes)", counts[QUARANTINED]),
        ("d", "done", counts[DONE]),
        ("n", "not done yet", counts[WAITING]),
    ]
    facts = {
        "done by the last run": f"{numbers.get('done', 0):,}",
        "there before": f"{numbers.get('kept', 0):,}",
        "failed": f"{failed:,}",
        "with warnings": f"{counts['warned']:,}",
        "tiles": f"{records.tiles:,}" if "tiles" in records.columns else None,
        "on disk": size_text(records.bytes) if records.bytes else None,
        "time of the last run": _duration(float(numbers.get("seconds") or 0)),
        "slides per hour": f"{numbers['slides_per_hour']:,.0f}" if numbers.get("slides_per_hour") else None,
    }
    patients = numbers.get("patients")
    if patients is not None:
        joined = patients["written"] + patients["kept"]
        facts["patients"] = f"{joined:,} of {joined + len(patients['without']):,}"
    machine = {key: numbers[key] for key in ("host", "cores", "workers", "started", "ended") if key in numbers}
    moment = _moment(numbers.get("ended"))
    return {
        "counts": counts,
        "failed": failed,
        "waiting": counts[WAITING],
        "ended": f"The last run {ending} {moment}".rstrip() + ".",
        "parts": [part for part in parts if part[-1]],
        "facts": facts,
        "without": _flat((patients or {}).get("without") or {}),
        "settings": _flat(numbers.get("settings") or {}),
        "machine": _flat(packages | machine),
        "version": packages.get("slideio-pipe", ""),
        "moment": moment,
    }


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
    """Return the columns after the first one: fields of the slides, and entries of the work."""
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
    """Return the column of an entry without a definition here."""

    def cell(record: SlideRecord) -> str:
        value = record.made.get(key)
        if value is None or isinstance(value, (list, dict)):
            return ""
        if isinstance(value, float):
            return f"{value:,.4g}"
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else _short(str(value))

    return Column(key.replace("_", " "), cell, key in _TEXTS)


def _text_class(text: str) -> str:
    """Return the class of a cell with text; a long word may be broken anywhere, so that it does not widen the page."""
    return "t long" if max(map(len, text.split()), default=0) > _LONGEST_WORD else "t"


def _short(text: str) -> str:
    """Return a long text without its middle: the end of a path says more than its beginning."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]}…{text[len(text) - _LONGEST // 2 + 1 :]}"


def _figure(key: str, digits: int = 0, scale: float = 1.0) -> Callable[[SlideRecord], str]:
    """Return the cell of a number; empty for other values."""

    def cell(record: SlideRecord) -> str:
        value = record.made.get(key)
        return f"{value * scale:,.{digits}f}" if isinstance(value, (int, float)) else ""

    return cell


def _mpp(record: SlideRecord) -> str:
    mpp = record.made.get("mpp")
    sides = mpp if isinstance(mpp, (list, tuple)) else [mpp]
    return " × ".join(f"{side:.4g}" for side in dict.fromkeys(sides) if isinstance(side, (int, float)))


# Entries of exports, features and tissue, in the order of the page.
_NOTED: dict[str, Column] = {
    "tiles": Column("tiles", _figure("tiles")),
    "tissue": Column("tissue %", _figure("tissue", 1, 100)),
    "tissue_covered": Column("covered %", _figure("tissue_covered", 1, 100)),
    "dropped": Column("dropped", _figure("dropped")),
    "dropped_for": Column("dropped for", lambda record: str(record.made.get("dropped_for") or ""), True),
    "focus": Column("focus", _figure("focus")),
    "pen": Column("pen %", _figure("pen", 1, 100)),
    "fold": Column("fold %", _figure("fold", 1, 100)),
    "bubble": Column("bubble %", _figure("bubble", 1, 100)),
    "white": Column("white %", _figure("white", 1, 100)),
    "mpp": Column("µm/px", _mpp),
    "mpp_source": Column("mpp from", lambda record: _short(str(record.made.get("mpp_source") or "")), True),
    "bytes": Column("MB", _figure("bytes", 1, 1e-6)),
    "tiles_per_second": Column("tiles/s", _figure("tiles_per_second")),
}


def _picture(record: SlideRecord, file: Path) -> Picture | None:
    """Return the picture of a slide; None without one."""
    try:
        with Image.open(file) as found:
            width, height = found.size
    except OSError:
        return None
    source = quote(os.fsencode(f"{file.parent.name}/{file.name}"))
    return Picture(source, width, height, _in_words(record))


def _in_words(record: SlideRecord) -> str:
    """Return the alternative text of a slide's picture."""
    numbers = {"tiles": _figure("tiles")(record), "% tissue": _figure("tissue", 0, 100)(record)}
    known = ", ".join(f"{value} {what}" for what, value in numbers.items() if value)
    return f"{record.slide} as a thumbnail, with its tissue and with its tiles{': ' if known else ''}{known}"


# --- numbers and words


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _moment(text: Any) -> str:
    """Return a time of run.json to the minute."""
    try:
        return f"{datetime.fromisoformat(str(text)):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return ""
