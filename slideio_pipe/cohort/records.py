"""The state of every slide in a folder of outputs, worst first: read from the events of all its runs."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide

FAILED, QUARANTINED, DONE, WAITING = "failed", "quarantined", "done", "not done yet"
ABOUT = ("label", "patient", "split", "fold")
# With less than this fraction of the tissue in tiles, or of the median number of tiles, a slide is marked for review.
LOW_COVERAGE = 0.7
FEW_TILES = 0.1
# Types of a column's values; lists and mappings do not fit in a table.
_SCALARS = (int, float, str, bool)
# Order of the page: a slide belongs to the first group that applies.
_GROUPS = (FAILED, QUARANTINED, "warnings", "few", "good", WAITING)


@dataclass(frozen=True, slots=True)
class SlideRecord:
    """A slide and its state."""

    slide: str
    status: str  # failed, quarantined, done or not done yet
    about: Mapping[str, Any]  # label, patient, split, fold, if known
    made: Mapping[str, Any]  # entries of the work
    seconds: float | None = None
    attempts: int = 0  # in all runs
    warnings: tuple[str, ...] = ()
    stage: str = ""
    error: str = ""
    remedy: str = ""
    notable: tuple[str, ...] = ()  # "few tiles", "low coverage"


@dataclass(slots=True)
class _EventIndex:
    """Positions of a slide's events in the file, and the values that decide its position on the page."""

    status: str = WAITING
    started_at: int = -1  # bytes
    made_at: int = -1
    failed_at: int = -1
    attempts: int = 0
    made_warned: int = 0
    failed_warned: int = 0
    tiles: float = math.nan
    covered: float = math.nan
    bytes: float = 0.0

    @property
    def summary_offset(self) -> int:
        """Position of the event with the most details."""
        return self.made_at if self.status == DONE else self.failed_at

    @property
    def warned(self) -> int:
        """Number of warnings."""
        return self.made_warned if self.status == DONE else self.failed_warned


@dataclass
class Records:
    """The slides of a folder, worst first; one line of the file is in memory at a time."""

    folder: Path  # with the ``run.jsonl`` of its runs
    cohort: Cohort | None = None  # slides to include as well, done or not
    tiles: int = 0  # of all slides that are done
    bytes: int = 0
    columns: list[str] = field(default_factory=list)  # keys of ``SlideRecord.made``, in order of appearance
    about: set[str] = field(default_factory=set)  # the fields of ABOUT that are known
    _traces: dict[str, _EventIndex] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for slide in self.cohort or ():
            self._traces[slide.name] = _EventIndex()
            self.about |= about_slide(slide).keys()
        path = self.folder / "run.jsonl"
        if path.exists():
            with path.open("rb") as lines:
                place = 0
                for line in lines:
                    event = _parsed(line)
                    if "slide" in event:
                        self._update(str(event["slide"]), event, place)
                    place += len(line)
        done = [trace for trace in self._traces.values() if trace.status == DONE]
        tiles = [trace.tiles for trace in done if not math.isnan(trace.tiles)]
        self.tiles, self.bytes = int(sum(tiles)), int(sum(trace.bytes for trace in done))
        self._few = FEW_TILES * statistics.median(tiles) if tiles else 0.0

    def _update(self, name: str, event: Mapping[str, Any], place: int) -> None:
        trace = self._traces.setdefault(name, _EventIndex())
        kind = event.get("event")
        if kind == "start":
            self._traces[name] = _EventIndex(started_at=place, attempts=trace.attempts + 1)
            self.about |= {key for key in ABOUT if key in event}
            return
        if kind == "quarantined":
            trace.status = QUARANTINED
            return
        trace.attempts += max(0, int(event.get("attempts", 1)) - 1)
        warned = len(event.get("warnings") or ())
        if kind == "failed":
            if trace.status == QUARANTINED and trace.failed_at >= 0:
                return  # skipped by a later run: the earlier failure has more details
            trace.status = QUARANTINED if trace.status == QUARANTINED else FAILED
            trace.failed_at, trace.failed_warned = place, warned
        elif kind == "done":
            trace.status = DONE
            if "made" in event or trace.made_at < 0:  # else the earlier event has its entries
                trace.made_at, trace.made_warned = place, warned
                self._count(trace, event.get("made") or {})

    def _count(self, trace: _EventIndex, made: Mapping[str, Any]) -> None:
        trace.tiles, trace.covered = _number(made.get("tiles")), _number(made.get("tissue_covered"))
        trace.bytes = _number(made.get("bytes"), 0.0)
        known = set(self.columns)
        self.columns += [key for key, value in made.items() if key not in known and isinstance(value, _SCALARS)]
        if "mpp" in made and "mpp" not in self.columns:
            self.columns.append("mpp")

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of slides per status, and number of slides with warnings."""
        found = dict.fromkeys((FAILED, QUARANTINED, DONE, WAITING), 0)
        for trace in self._traces.values():
            found[trace.status] += 1
        return found | {"warned": sum(trace.warned > 0 for trace in self._traces.values())}

    def __len__(self) -> int:
        return len(self._traces)

    def __iter__(self) -> Iterator[SlideRecord]:
        slides = {slide.name: slide for slide in self.cohort or ()}
        names = sorted(self._traces, key=self._rank)
        path = self.folder / "run.jsonl"
        if not path.exists():
            yield from (SlideRecord(name, WAITING, about_slide(slides[name]), {}) for name in names)
            return
        with path.open("rb") as lines:

            def event_at(place: int) -> Mapping[str, Any]:
                if place < 0:
                    return {}
                lines.seek(place)
                return _parsed(lines.readline())

            for name in names:
                trace = self._traces[name]
                start, latest = event_at(trace.started_at), event_at(trace.summary_offset)
                about = {key: start[key] for key in ABOUT if key in start}
                yield self._record(name, trace, about_slide(slides[name]) if name in slides else about, latest)

    def _record(
        self, name: str, trace: _EventIndex, about: Mapping[str, Any], latest: Mapping[str, Any]
    ) -> SlideRecord:
        return SlideRecord(
            slide=name,
            status=trace.status,
            about=about,
            made=latest.get("made") or {},
            seconds=latest.get("seconds"),
            attempts=trace.attempts,
            warnings=tuple(str(text) for text in latest.get("warnings") or ()),
            stage=str(latest.get("stage") or ""),
            error=str(latest.get("error") or ""),
            remedy=str(latest.get("remedy") or ""),
            notable=self._notable(trace),
        )

    def _notable(self, trace: _EventIndex) -> tuple[str, ...]:
        few = trace.status == DONE and (trace.tiles < self._few or trace.tiles == 0)
        low = trace.status == DONE and trace.covered < LOW_COVERAGE
        return (("few tiles",) if few else ()) + (("low coverage",) if low else ())

    def _rank(self, name: str) -> tuple[int, int, float, str]:
        trace = self._traces[name]
        if trace.status != DONE:
            group = trace.status
        else:
            group = "warnings" if trace.warned else "few" if self._notable(trace) else "good"
        tiles = math.inf if math.isnan(trace.tiles) else trace.tiles
        return _GROUPS.index(group), -trace.warned, tiles, name


def about_slide(slide: CohortSlide) -> dict[str, Any]:
    """Return a slide's fields in the cohort that the page shows, as JSON values."""
    known = {key: getattr(slide, key) for key in ABOUT}
    return {key: value for key, value in known.items() if value is not None}


def _parsed(line: bytes) -> Mapping[str, Any]:
    """Return an event; {} for a line truncated by a kill."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _number(value: Any, otherwise: float = math.nan) -> float:
    return float(value) if isinstance(value, (int, float)) else otherwise
