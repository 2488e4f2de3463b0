"""Runs over cohorts whose work copies files or acts on their text, and the command that exports one."""

from __future__ import annotations

import csv
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.run import RunReport, run_cohort
from slideio_pipe.errors import CorruptSlideError, OutputError, OutputExistsError


@dataclass(frozen=True)
class Copying:
    """Work that copies a file, or does what its text requires."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=lambda: {"scale": 1})

    def output(self, slide: CohortSlide) -> Path:
        return self.folder / f"{slide.name}.out"

    def __call__(self, slide: CohortSlide, *, overwrite: bool, on_stage: Any) -> dict[str, Any]:
        on_stage("copying")
        assert isinstance(slide.source, Path)
        text = slide.source.read_text()
        if text == "damaged":
            raise CorruptSlideError("damaged", slide=slide.name, remedy="=copy it again")
        if text == "fatal":
            os.kill(os.getpid(), signal.SIGSEGV)
        if text == "full":
            raise OutputError("cannot be written (no space)", slide=slide.name, remedy="free some space")
        if text.startswith("interrupt"):
            os.kill(int(text.split()[1]), signal.SIGINT)
            time.sleep(60)
        target = self.output(slide)
        if target.exists() and not overwrite:
            raise OutputExistsError("is there already", slide=slide.name)
        target.write_text(text * self.settings["scale"])
        if text == "last words":
            os.kill(os.getpid(), signal.SIGKILL)
        return {"length": len(text)}


def slides(folder: Path, **texts: str) -> Cohort:
    """Return a cohort of files with these texts."""
    for name, text in texts.items():
        (folder / name).write_text(text)
    return Cohort.of([folder / name for name in texts])


def run(cohort: Cohort, out: Path, scale: int = 1, **settings: Any) -> RunReport:
    """Copy a cohort."""
    return run_cohort(Copying(out, {"scale": scale}), cohort, out, **({"progress": False} | settings))


def failures(out: Path) -> list[dict[str, str]]:
    """Return the rows of failures.csv."""
    with (out / "failures.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def counts(report: RunReport) -> tuple[int, int, int]:
    """Return how many were done, kept and failed."""
    return report.done, report.kept, len(report.failed)


def tree(out: Path) -> dict[str, bytes]:
    """Return every file of the bags of a folder."""
    return {str(f.relative_to(out)): f.read_bytes() for f in out.rglob("*.bag.zarr/**/*") if f.is_file()}


def exporting(cohort: Path, out: Path) -> list[str]:
    """Return the command that exports a cohort of tiny tiles."""
    options = ["--mpp", "native", "--tile-size", "64", "--tissue", "none", "--workers", "2"]
    return [sys.executable, "-m", "slideio_pipe", "export", str(cohort), "--out", str(out), *options]


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []
