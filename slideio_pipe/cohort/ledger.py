"""The record of a run over a cohort, in its output folder, from which the next run continues.

::

    run.jsonl       one line per event, appended: settings, start, done, failed, quarantined
    run.json        versions, numbers and times of the latest run
    failures.csv    slide, stage, error, remedy; only if slides failed
    report.html     every slide of the folder, worst first; its pictures are in report/
    run.lock        the running process; one run at a time
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.errors import OutputError, SlideioPipeError
from slideio_pipe.files import disk_errors, file_fingerprint, write_file
from slideio_pipe.locks import WriterLock
from slideio_pipe.store.feature_arrays import FOLDER as FEATURES
from slideio_pipe.store.reduced import FOLDER as REDUCED

FAILURES = ("slide", "stage", "error", "remedy")
# First characters of a cell that a spreadsheet treats as a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, slots=True)
class Entry:
    """The latest event of a slide."""

    event: str  # start, done or quarantined
    settings: str  # digest of the run's and the slide's own settings
    fingerprint: str  # of the slide's file
    replaces: bool = False  # its output existed before it started


class Ledger:
    """The events of a folder, as a context manager: inside it, no other run can write there.

    Entering raises OutputError if another run is active, or the folder cannot be written.

    Parameters
    ----------
    folder : Path
        Folder of the outputs; created if missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        self.failed: set[str] = set()  # slides whose latest event is a failure
        self.settings: dict[str, Any] | None = None  # of the latest run
        self._lock = WriterLock(folder / "run.lock")
        self._events: io.FileIO | None = None

    def __enter__(self) -> Ledger:
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            try:
                self._read()
                # Unbuffered: an event is one write, complete or, if the disk is full, an error.
                self._events = io.FileIO(self.folder / "run.jsonl", "a")
                if self._events.tell():
                    self._events.write(b"\n")  # a kill may have truncated the last line
            except BaseException:
                self._lock.release()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._events is not None:
            self._events.close()
        self._lock.release()

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Record the settings of this run, and clear the failures of the previous one."""
        self.settings = dict(settings)
        with disk_errors(self.folder):
            (self.folder / "failures.csv").unlink(missing_ok=True)
        self._append({"event": "settings", "settings": self.settings})

    def note(self, name: str, entry: Entry, **more: Any) -> None:
        """Record the outcome of a slide."""
        self.entries[name] = entry
        if entry.event == "done":
            self.failed.discard(name)
        known = {"slide": name, "event": entry.event, "settings": entry.settings, "fingerprint": entry.fingerprint}
        self._append(known | ({"replaces": True} if entry.replaces else {}) | more)

    def fail(self, name: str, stage: str, error: SlideioPipeError, **more: Any) -> None:
        """Record a failure, and add it to ``failures.csv``."""
        self.failed.add(name)
        failure = {"stage": stage, "error": error.reason, "remedy": error.remedy}
        self._append({"slide": name, "event": "failed"} | failure | more)
        path = self.folder / "failures.csv"
        row = [name, stage, error.reason, error.remedy or ""]
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        if not path.exists():
            writer.writerow(FAILURES)
        writer.writerow([_escaped(" ".join(cell.split())) for cell in row])
        with disk_errors(path), path.open("a", encoding="utf-8", newline="") as file:
            file.write(text.getvalue())

    def report(self, numbers: Mapping[str, Any]) -> None:
        """Write ``run.json``, complete or not at all."""
        write_file(self.folder / "run.json", json.dumps(numbers, indent=2).encode() + b"\n", overwrite=True)

    def _append(self, event: Mapping[str, Any]) -> None:
        assert self._events is not None
        line = json.dumps(event, ensure_ascii=False).encode() + b"\n"
        with disk_errors(self.folder / "run.jsonl"):
            if self._events.write(line) != len(line):
                raise OutputError("cannot be written whole", slide=str(self.folder), remedy="free some space")

    def _read(self) -> None:
        path = self.folder / "run.jsonl"
        if not path.exists():
            return
        with path.open("rb") as lines:
            for line in lines:
                try:
                    event = json.loads(line)
                    if event["event"] == "settings":
                        self.settings = dict(event["settings"])
                    elif event["event"] == "failed":
                        self.failed.add(str(event["slide"]))
                    else:
                        if event["event"] == "done":
                            self.failed.discard(str(event["slide"]))
                        self.entries[str(event["slide"])] = Entry(
                            event["event"], event["settings"], event["fingerprint"], bool(event.get("replaces"))
                        )
                except (ValueError, KeyError, TypeError):
                    continue  # truncated by a kill: its slide is done again


def settings_digest(settings: Mapping[str, Any], slide: CohortSlide) -> str:
    """Return sixteen hex digits over everything a slide's output depends on, except its file."""
    own = [slide.label, slide.mpp, _content(slide.mask)]
    own += [] if slide.cell_file is None else [_content(slide.cell_file)]
    known = json.dumps([dict(settings), own], sort_keys=True, default=str)
    return hashlib.sha256(known.encode()).hexdigest()[:16]


def _content(path: Path | None) -> str | None:
    try:
        return None if path is None else fingerprint(path)
    except OSError as error:  # the work raises it for this slide, with more details
        return f"cannot be read ({error.strerror})"


def fingerprint(path: Path) -> str:
    """Return sixteen hex digits that identify a slide's file; for a folder, from its files' names and sizes.

    Raise OSError if it cannot be read.
    """
    if not path.is_dir():
        if not path.is_file() and path.exists():  # opening a pipe would wait for a writer
            raise OSError(errno.EINVAL, "it is no file")
        return file_fingerprint(path)
    with os.scandir(path) as found:
        names = sorted(
            (entry.name, entry.stat().st_size if entry.is_file() else -1)
            for entry in found
            if entry.name not in (FEATURES, REDUCED)  # what is added to a bag does not change the bag
        )
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]


def _escaped(cell: str) -> str:
    """Return a cell that no spreadsheet evaluates as a formula."""
    return f"'{cell}" if cell.startswith(_FORMULA) else cell
