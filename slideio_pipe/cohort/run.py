"""Run one piece of work over many slides, in worker processes: finished slides are kept, failures are listed."""

from __future__ import annotations

import logging
import os
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide, cohort_words
from slideio_pipe.cohort.ledger import Entry, Ledger, fingerprint, settings_digest
from slideio_pipe.cohort.patient_files import PatientFiles
from slideio_pipe.cohort.records import about_slide
from slideio_pipe.cohort.report_page import write_page
from slideio_pipe.cohort.workers.dask_pool import pool_for
from slideio_pipe.cohort.workers.pool import OnProgress, Outcome, Pool
from slideio_pipe.cores import usable_cores
from slideio_pipe.errors import (
    ConfigError,
    CorruptSlideError,
    OutputError,
    OutputExistsError,
    SlideioPipeError,
    SlideioPipeWarning,
    SlideNotFoundError,
    WorkerError,
    worded,
)
from slideio_pipe.files import package_versions
from slideio_pipe.locks import remove_left_lock, within_run
from slideio_pipe.progress import Report, name_work, note_kept, reporting

_LOG = logging.getLogger(__name__)

# Consecutive write failures before the run stops: the disk is at fault.
_MAX_WRITE_FAILURES = 3
_SHOWN = 5
# Maximum bytes of a file name: 255 on most disks, minus the suffix used while writing.
_MAX_NAME_BYTES = 240


class CohortWork(Protocol):
    """The work done for each slide; can be pickled.

    It may write a picture of a slide to ``report/<name>.jpg`` in the folder (``report_page.picture_file``). It may have
    a method ``recall(slide)``, which returns for an existing output what ``__call__`` would have returned, and warns
    alike. It may have a method ``join_patients(cohort, done=…, fresh=…, overwrite=…)``, called when a run ends, which
    writes the files of patients: ``done`` has the names of slides with an output, ``fresh`` those of this run.
    """

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return the settings that the outputs depend on, as JSON values."""

    def output(self, slide: CohortSlide) -> Path:
        """Return the path at which a slide's output appears when it is complete."""

    def __call__(self, slide: CohortSlide, *, overwrite: bool, on_stage: OnProgress) -> dict[str, Any]:
        """Do the work, in a worker; return the entries for the ledger, as JSON values."""


@dataclass(frozen=True, slots=True)
class SlideFailure:
    """A failed slide, the stage and the error."""

    slide: str  # its name
    stage: str
    error: SlideioPipeError


@dataclass(slots=True)
class RunReport:
    """The results of a run.

    Examples
    --------
    >>> report = RunReport(Path("bags"), slides=12, done=9, kept=2)
    >>> report.done, report.kept, report.failed
    (9, 2, [])
    """

    folder: Path
    slides: int
    done: int = 0  # by this run
    kept: int = 0  # done by earlier runs
    failed: list[SlideFailure] = field(default_factory=list)
    tiles: int = 0  # tiles of the slides done by this run, if the work reports them
    warned: int = 0  # slides of the folder with warnings
    seconds: float = 0.0
    page: Path | None = None  # report.html, after it is written
    patients: PatientFiles | None = None  # with the unit patient: their files

    @property
    def failures(self) -> Path | None:
        """The list of failures, if there are any."""
        return self.folder / "failures.csv" if self.failed else None

    def summary(self) -> dict[str, Any]:
        """Return the numbers as JSON values."""
        return {
            "slides": self.slides,
            "done": self.done,
            "kept": self.kept,
            "failed": len(self.failed),
            "seconds": round(self.seconds, 3),
            "slides_per_hour": round(3600 * self.done / max(self.seconds, 1e-9), 1),
            "failures": None if self.failures is None else str(self.failures),
            "warned": self.warned,
            "report": None if self.page is None else str(self.page),
            **({} if self.patients is None else {"patients": self.patients.summary()}),
        }


def run_cohort(
    work: CohortWork,
    cohort: Cohort,
    folder: str | Path,
    *,
    workers: int = 1,
    time_limit_s: float | None = None,
    memory_limit_bytes: int | None = None,
    overwrite: bool = False,
    retry: bool = False,
    cluster: str | Path | None = None,
    pool: Pool | None = None,
    notes: str | Path | None = None,
    progress: Report | bool | None = None,
) -> RunReport:
    """Do a piece of work for every slide; call it again after an interruption to continue.

    A slide that fails is listed in ``failures.csv`` and retried by the next run. A slide that ends its worker process
    (a crash, the time or memory limit) is retried once in another process, then skipped by later runs. After the run,
    also after an interruption, ``report.html`` shows every slide of the folder.

    Parameters
    ----------
    work : CohortWork
        The work; can be pickled.
    cohort : Cohort
        Slides that are files.
    folder : str or Path
        Folder of the outputs and the ledger; see ``ledger``.
    workers : int
        Number of processes.
    time_limit_s : float, optional
        Limit per slide.
    memory_limit_bytes : int, optional
        Limit per worker, resident (Linux).
    overwrite : bool
        Repeat slides that were done with other settings or for another file; others are kept.
    retry : bool
        Retry the slides that ended their worker process.
    cluster : str or Path, optional
        A cluster instead of ``workers`` processes of this machine, with the same limits: a Dask scheduler,
        ``tcp://host:8786``, or a YAML file with the SLURM resources, such as the preset ``slurm``. See ``cluster``.
    pool : Pool, optional
        A pool for ``Job``s, instead of both.
    notes : str or Path, optional
        Folder of the ledger, for runs side by side over parts of a cohort; by default ``folder``.
    progress : callable, bool or None
        See ``progress.reporting``; counts slides.

    Raises
    ------
    ConfigError
        Slides were done with other settings; or several outputs of the cohort would share a name.
    OutputError
        Another run is active in this folder, or the folder cannot be written.
    WorkerError
        Worker processes do not start, or the cluster is lost.
    MissingExtraError
        A cluster is given, and Dask is not installed.
    """
    target = Path(folder).expanduser().absolute()
    noted = target if notes is None else Path(notes).expanduser().absolute()
    _check_outputs(work, cohort, target)
    if cluster is not None:  # its workers have other working directories
        cohort = Cohort.unchecked(_located(slide) for slide in cohort)
    if pool is None:
        pool = pool_for(
            cluster,
            Task(work, noted),
            max(1, workers),
            folder=noted,
            time_limit_s=time_limit_s,
            memory_limit_bytes=memory_limit_bytes,
        )
    with Ledger(noted) as ledger:
        run = Run(work, cohort, ledger, RunReport(noted, len(cohort)), overwrite, retry)
        if not overwrite:
            run.refuse_other_settings()
        ledger.begin(work.settings)
        with reporting(progress, f"{len(cohort):,} slides") as report:
            run.go(pool, {"workers": workers} if cluster is None else {"cluster": str(cluster)}, report)
    return run.report


@dataclass(frozen=True, slots=True)
class Job:
    """A slide to process: the task of a pool."""

    slide: CohortSlide
    entry: Entry
    overwrite: bool


@dataclass(frozen=True, slots=True)
class Task:
    """The work in the form that a pool's workers call."""

    work: CohortWork
    folder: Path  # of the run

    def __call__(self, job: Job, on_stage: OnProgress) -> dict[str, Any]:
        """Process a job."""
        on_stage("open")
        try:
            if isinstance(job.slide.source, Path):
                os.stat(job.slide.source)
        except FileNotFoundError:  # it existed on the machine of the run
            remedy = "put the slides on a disk that every worker sees under the same path"
            raise SlideNotFoundError(
                f"{job.slide.source} is not there on {socket.gethostname()}", slide=job.slide.name, remedy=remedy
            ) from None
        with within_run(self.folder):
            return self.work(job.slide, overwrite=job.overwrite, on_stage=on_stage)


@dataclass(slots=True)
class Run:
    """One run over a cohort; a subclass may decide otherwise what there is to do."""

    work: CohortWork
    cohort: Cohort
    ledger: Ledger
    report: RunReport
    overwrite: bool
    retry: bool
    unwritable: int = 0  # in a row
    ended: int = 0  # weight of the slides that ended
    total: int = 0  # weight of all slides
    in_work: list[str] = field(default_factory=list)  # names of the slides in work
    fresh: set[str] = field(default_factory=set)  # names of the slides done by this run
    progress: Report = lambda done, total: None

    def refuse_other_settings(self) -> None:
        """Raise ConfigError if slides were done with other settings."""
        entries, settings = self.ledger.entries, self.work.settings
        other = [
            slide.name
            for slide in self.cohort
            if (entry := entries.get(slide.name)) is not None
            and entry.event == "done"
            and entry.settings != settings_digest(settings, slide)
            and self.work.output(slide).exists()
        ]
        if other:
            changed = differences(self.ledger.settings or {}, settings) or ["labels, mpp, masks or cells of the cohort"]
            names = ", ".join(other[:_SHOWN]) + (", …" if len(other) > _SHOWN else "")
            raise ConfigError(
                f"{len(other):,} of {len(self.cohort):,} slides were done with other settings "
                f"({'; '.join(changed)}): {names}",
                slide=str(self.ledger.folder),
                remedy="pass {overwrite=True} or another folder",
            )

    def go(self, pool: Pool, who: Mapping[str, Any], progress: Report) -> None:
        """Process the remaining slides, and record the outcomes, also after an interruption."""
        begun, started = time.perf_counter(), datetime.now(UTC)
        _LOG.info(
            "%d slides in %s: %d are in its ledger", len(self.cohort), self.ledger.folder, len(self.ledger.entries)
        )
        self.progress, self.total = progress, sum(map(self.weight, self.cohort))
        note_kept(progress, 0, self.total)
        state = "interrupted"
        outcomes = pool.outcomes(self._jobs())
        try:
            for outcome in outcomes:
                self._handle(outcome)
            state = "finished"
        finally:
            outcomes.close()  # the workers end before the lock is released
            self.report.patients = self._joined_patients()
            self.report.seconds = time.perf_counter() - begun
            counts = (self.report.done, self.report.kept, len(self.report.failed))
            _LOG.info("%s: %d done, %d kept, %d failed in %.1f s", state, *counts, self.report.seconds)
            times = {"state": state, "started": started.isoformat(), "ended": datetime.now(UTC).isoformat()}
            place = {"host": socket.gethostname(), "cores": usable_cores(), **who}
            about = {"settings": dict(self.work.settings), "packages": package_versions()}
            self.write_page(times | self.report.summary() | place | about)
            self.ledger.report(times | self.report.summary() | place | about)

    def _joined_patients(self) -> PatientFiles | None:
        """Write the files of the patients whose slides are all done, if the work has them."""
        join = getattr(self.work, "join_patients", None)
        if join is None:
            return None
        entries, failed = self.ledger.entries, self.ledger.failed
        done = {
            slide.name
            for slide in self.cohort
            if slide.name not in failed
            and (entry := entries.get(slide.name)) is not None
            and entry.event == "done"
            and self.work.output(slide).exists()
        }
        with within_run(self.ledger.folder):
            found: PatientFiles | None = join(self.cohort, done=done, fresh=self.fresh, overwrite=self.overwrite)
        return found

    def write_page(self, numbers: Mapping[str, Any]) -> None:
        """Write report.html; an error here must not hide the result of the run."""
        try:
            self.report.page, self.report.warned = write_page(self.ledger.folder, self.cohort, numbers)
        except Exception as error:
            if numbers["state"] == "finished":
                warnings.warn(SlideioPipeWarning(f"report.html was not written ({error})"), stacklevel=2)

    def weight(self, slide: CohortSlide) -> int:
        """Return how much a slide counts in the progress."""
        del slide
        return 1

    def _recalled(self, slide: CohortSlide) -> dict[str, Any]:
        """Return the work's entries for an output that was written just before a kill."""
        with within_run(self.ledger.folder):
            remove_left_lock(self.work.output(slide))
        recall = getattr(self.work, "recall", None)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                made = {} if recall is None else {"made": recall(slide)}
            except (SlideioPipeError, OSError):  # opening the output raises it again
                return {}
        found = list(dict.fromkeys(str(warning.message) for warning in caught))
        return made | ({"warnings": found} if found else {})

    def _jobs(self) -> Iterator[Job]:
        """Yield the jobs, each when a worker is free for it."""
        for slide in self.cohort:
            job = self.job(slide)
            if job is None:
                self.ended += self.weight(slide)
                note_kept(self.progress, self.ended, self.total)
                continue
            self.ledger.note(slide.name, job.entry, **about_slide(slide))
            self.in_work.append(slide.name)
            name_work(self.progress, self.in_work)
            yield job

    def job(self, slide: CohortSlide) -> Job | None:
        """Return the job of a slide; None if there is nothing to do or it is impossible."""
        assert isinstance(slide.source, Path)
        known = self.ledger.entries.get(slide.name)
        try:
            now = Entry("start", settings_digest(self.work.settings, slide), fingerprint(slide.source))
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
            self.fail(slide.name, "open", CorruptSlideError(reason, slide=slide.name, remedy="check the file"))
            return None
        same = known is not None and (known.settings, known.fingerprint) == (now.settings, now.fingerprint)
        exists = self.work.output(slide).exists()
        if known is None or not (same or exists):
            return Job(slide, replace(now, replaces=exists), self.overwrite)
        if same and known.event == "quarantined" and not self.retry:
            remedy = "look at the slide, then run again with {retry=True}"
            self.fail(
                slide.name,
                "open",
                WorkerError("crashed two worker processes before", slide=slide.name, remedy=remedy),
            )
            return None
        if same and exists and (known.event == "done" or (known.event == "start" and not known.replaces)):
            if known.event == "start":  # killed between renaming the output and recording it
                self.ledger.note(slide.name, replace(now, event="done"), **self._recalled(slide))
            elif slide.name in self.ledger.failed:  # its file had changed and changed back
                self.ledger.note(slide.name, known)
            self.report.kept += 1
            _LOG.debug("%s: kept, done before with these settings", slide.name)
            return None
        if (
            known.event == "done" and not same and not self.overwrite
        ):  # settings were checked before: the file has changed
            reason = "is another file than the one its output was made of"
            remedy = "pass {overwrite=True} or another folder"
            self.fail(slide.name, "open", OutputExistsError(reason, slide=slide.name, remedy=remedy))
            return None
        return Job(slide, replace(now, replaces=exists), self.overwrite)

    def _handle(self, outcome: Outcome) -> None:
        job: Job = outcome.task
        cost: dict[str, Any] = {"seconds": round(outcome.seconds, 3)}
        cost |= {"warnings": list(outcome.warnings)} if outcome.warnings else {}
        cost |= {"attempts": outcome.attempts} if outcome.attempts > 1 else {}
        if outcome.error is None or self._already_written(outcome):
            made = {"made": outcome.value} if outcome.error is None else self._recalled(job.slide)
            self.ledger.note(job.slide.name, replace(job.entry, event="done"), **cost, **made)
            self.report.done += 1
            self.fresh.add(job.slide.name)
            _LOG.info("%s: done in %.1f s", job.slide.name, outcome.seconds)
            self.report.tiles += int((made.get("made") or {}).get("tiles") or 0)
            self.unwritable = 0
        else:
            if outcome.quarantined:
                self.ledger.note(job.slide.name, replace(job.entry, event="quarantined"))
            self.fail(job.slide.name, outcome.stage, outcome.error, **cost)
            self.unwritable = self.unwritable + 1 if isinstance(outcome.error, OutputError) else 0
            if self.unwritable >= _MAX_WRITE_FAILURES:
                raise outcome.error
        self.ended += self.weight(job.slide)
        self.progress(self.ended, self.total)
        self.in_work.remove(job.slide.name)
        name_work(self.progress, self.in_work)

    def _already_written(self, outcome: Outcome) -> bool:
        """Return whether a worker wrote the output and died before reporting it: the next worker found it."""
        job: Job = outcome.task
        found = outcome.attempts > 1 and isinstance(outcome.error, OutputExistsError)
        return found and not job.entry.replaces and self.work.output(job.slide).exists()

    def fail(self, name: str, stage: str, error: SlideioPipeError, **cost: Any) -> None:
        """Record a failure."""
        with worded(cohort_words):
            self.ledger.fail(name, stage, error, **cost)
        self.report.failed.append(SlideFailure(name, stage, error))
        _LOG.info("%s: failed at %s (%s)", name, stage or "the start", type(error).__name__)


def _located(slide: CohortSlide) -> CohortSlide:
    """Return a slide with absolute paths."""
    source = slide.source.absolute() if isinstance(slide.source, Path) else slide.source
    mask, cells = (None if file is None else file.absolute() for file in (slide.mask, slide.cell_file))
    return replace(slide, source=source, mask=mask, cell_file=cells)


def _check_outputs(work: CohortWork, cohort: Cohort, folder: Path) -> None:
    """Refuse a cohort whose outputs would be in other folders, or share a name."""
    problems, by_output = [], dict[Path, str]()
    inside = Path(os.path.normpath(folder.absolute()))
    for slide in cohort:
        if not isinstance(slide.source, Path):
            problems.append(f"{slide.name} is an open bag, no file")
            continue
        output = Path(os.path.normpath(work.output(slide).absolute()))
        own = Path(os.path.normpath(slide.source.absolute()))  # a bag may contain its features
        elsewhere = output == inside or not (output.is_relative_to(inside) or output.is_relative_to(own))
        strange = slide.name.startswith(".") or any(mark in slide.name for mark in "/\\\0")
        if strange or elsewhere or len(os.fsencode(output.name)) > _MAX_NAME_BYTES:
            problems.append(f"{slide.name!r} is no name for a file")
        if output in by_output:
            called = output.relative_to(inside).parts[0] if output.is_relative_to(inside) else output.name
            problems.append(f"{by_output[output]} and {slide.name} would both become {called}")
        by_output.setdefault(output, slide.name)
    if problems:
        shown = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise ConfigError(shown, remedy='name the slides in a column "name"')


def differences(before: Mapping[str, Any], now: Mapping[str, Any], place: str = "") -> list[str]:
    """Return the differences between two settings, as "view.mpp was 0.5, is 1.0"."""
    found: list[str] = []
    for key in sorted({*before, *now}):
        old, new, name = before.get(key), now.get(key), f"{place}{key}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{name}.")
        elif old != new:
            found.append(f"{name} was {old}, is {new}")
    return found
