"""One piece of work over many slides, in worker processes: what is done stays done, what fails is listed."""

from __future__ import annotations

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
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.ledger import Entry, Ledger, fingerprint, settings_digest
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
)
from slideio_pipe.files import package_versions
from slideio_pipe.locks import remove_left_lock, within_run
from slideio_pipe.progress import Report, name_work, note_kept, reporting

# So many slides in a row that cannot be written: it is the disk, and the rest would fare no better.
_UNWRITABLE = 3
_SHOWN = 5
# Bytes of a file's name, on most disks 255, less what is put behind it while it is written.
_LONGEST = 240


class CohortWork(Protocol):
    """What is done to each slide; pickles.

    It may draw a picture of a slide into ``report/<name>.jpg`` of the folder (``cohort_page.picture_file``), and have
    a method ``recall(slide)`` that says of an output that is there what ``__call__`` would have said.
    """

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return what the outputs depend on, JSON-able."""
        ...

    def output(self, slide: CohortSlide) -> Path:
        """Return where the output of a slide appears, when it is whole."""
        ...

    def __call__(self, slide: CohortSlide, *, overwrite: bool, on_stage: OnProgress) -> dict[str, Any]:
        """Do it, in a worker, and return what to note of it, JSON-able."""
        ...


@dataclass(frozen=True, slots=True)
class SlideFailure:
    """A slide that failed, where and why."""

    slide: str  # its name
    stage: str
    error: SlideioPipeError


@dataclass(slots=True)
class RunReport:
    """What a run did."""

    folder: Path
    slides: int
    done: int = 0  # by this run
    kept: int = 0  # done before
    failed: list[SlideFailure] = field(default_factory=list)
    tiles: int = 0  # of the slides that this run did, where the work tells
    warned: int = 0  # slides of the folder that came with warnings
    seconds: float = 0.0
    page: Path | None = None  # report.html, once it is written

    @property
    def failures(self) -> Path | None:
        """The list of failures, if there are any."""
        return self.folder / "failures.csv" if self.failed else None

    def summary(self) -> dict[str, Any]:
        """Return the numbers, JSON-able."""
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
    """Do a piece of work for every slide; call it again, after whatever ended it, to go on.

    A slide that fails is listed in ``failures.csv`` and tried again by the next run. One that takes its worker process
    with it (a crash, the time or memory limit) is tried once more in another, then left out of later runs, too.
    However it ends, ``report.html`` then shows every slide of the folder.

    Parameters
    ----------
    work : CohortWork
        What to do; it pickles.
    cohort : Cohort
        Slides that are files.
    folder : str or Path
        Where the outputs and the ledger go; see ``ledger``.
    workers : int
        Processes.
    time_limit_s : float, optional
        For each slide.
    memory_limit_bytes : int, optional
        For each worker, resident (Linux).
    overwrite : bool
        Do again what was done with other settings or for another file; what is the same is kept all the same.
    retry : bool
        Try the slides again that took their worker with them.
    cluster : str or Path, optional
        Who does it in place of ``workers`` processes of this machine, under the same limits: a Dask scheduler,
        ``tcp://host:8786``, or a YAML file that says what to ask SLURM for, as ``configs/slurm.yaml``. See ``cluster``.
    pool : Pool, optional
        Who does it, of ``Job``s, in place of both.
    notes : str or Path, optional
        Where the ledger goes, for runs side by side over parts of a cohort; by default into ``folder``.
    progress : callable, bool or None
        See ``progress.reporting``; counts slides.

    Raises
    ------
    ConfigError
        What is done already was done with other settings; or outputs of the cohort would have one name.
    OutputError
        Another run is at work in this folder, or it cannot be written.
    WorkerError
        Worker processes do not start, or the cluster is lost.
    MissingExtraError
        A cluster is given, and Dask is not installed.
    """
    target = Path(folder).expanduser().absolute()
    noted = target if notes is None else Path(notes).expanduser().absolute()
    _check_outputs(work, cohort, target)
    if cluster is not None:  # its workers run in other folders
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
        run = _Run(work, cohort, ledger, RunReport(noted, len(cohort)), overwrite, retry)
        if not overwrite:
            run.refuse_other_settings()
        ledger.begin(work.settings)
        with reporting(progress, f"{len(cohort):,} slides") as report:
            run.go(pool, {"workers": workers} if cluster is None else {"cluster": str(cluster)}, report)
    return run.report


@dataclass(frozen=True, slots=True)
class Job:
    """A slide that is to be done: the task of a pool."""

    slide: CohortSlide
    entry: Entry
    overwrite: bool


@dataclass(frozen=True, slots=True)
class Task:
    """The work as the workers of a pool call it."""

    work: CohortWork
    folder: Path  # of the run

    def __call__(self, job: Job, on_stage: OnProgress) -> dict[str, Any]:
        """Do a job."""
        on_stage("open")
        try:
            os.stat(str(job.slide.source))
        except FileNotFoundError:  # it was there where the run began
            remedy = "put the slides on a disk that every worker sees under the same path"
            raise SlideNotFoundError(
                f"{job.slide.source} is not there on {socket.gethostname()}", slide=job.slide.name, remedy=remedy
            ) from None
        with within_run(self.folder):
            return self.work(job.slide, overwrite=job.overwrite, on_stage=on_stage)


@dataclass(slots=True)
class _Run:
    work: CohortWork
    cohort: Cohort
    ledger: Ledger
    report: RunReport
    overwrite: bool
    retry: bool
    unwritable: int = 0  # in a row
    ended: int = 0
    at_work: list[str] = field(default_factory=list)  # names of the slides that workers have
    progress: Report = lambda done, total: None

    def refuse_other_settings(self) -> None:
        """Raise ConfigError when slides were done with settings that are not those of now."""
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
            changed = differences(self.ledger.settings or {}, settings) or ["labels, mpp or masks of the cohort"]
            names = ", ".join(other[:_SHOWN]) + (", …" if len(other) > _SHOWN else "")
            raise ConfigError(
                f"{len(other):,} of {len(self.cohort):,} slides were done with other settings "
                f"({'; '.join(changed)}): {names}",
                slide=str(self.ledger.folder),
                remedy="pass overwrite=True or another folder",
            )

    def go(self, pool: Pool, who: Mapping[str, Any], progress: Report) -> None:
        """Do what is to be done, and write down what was, however it ends."""
        begun, started = time.perf_counter(), datetime.now(UTC)
        self.progress = progress
        note_kept(progress, 0, len(self.cohort))
        state = "interrupted"
        outcomes = pool.outcomes(self._jobs())
        try:
            for outcome in outcomes:
                self._take(outcome)
            state = "finished"
        finally:
            outcomes.close()  # the workers end before the lock is let go
            self.report.seconds = time.perf_counter() - begun
            times = {"state": state, "started": started.isoformat(), "ended": datetime.now(UTC).isoformat()}
            place = {"host": socket.gethostname(), "cores": usable_cores(), **who}
            about = {"settings": dict(self.work.settings), "packages": package_versions()}
            self._write_page(times | self.report.summary() | place | about)
            self.ledger.report(times | self.report.summary() | place | about)

    def _write_page(self, numbers: Mapping[str, Any]) -> None:
        """Write report.html; that it cannot be is no reason to lose a run, or to hide why it ended."""
        try:
            self.report.page, self.report.warned = write_page(self.ledger.folder, self.cohort, numbers)
        except Exception as error:
            if numbers["state"] == "finished":
                warnings.warn(SlideioPipeWarning(f"report.html was not written ({error})"), stacklevel=2)

    def _recalled(self, slide: CohortSlide) -> dict[str, Any]:
        """Return what the work says of an output that it made before a kill, of which nothing else is to be left."""
        with within_run(self.ledger.folder):
            remove_left_lock(self.work.output(slide))
        recall = getattr(self.work, "recall", None)
        try:
            return {} if recall is None else {"made": recall(slide)}
        except (SlideioPipeError, OSError):  # it says so itself to whoever opens it
            return {}

    def _jobs(self) -> Iterator[Job]:
        """Yield what is to be done, each when a worker is free for it."""
        for slide in self.cohort:
            job = self._job(slide)
            if job is None:
                self.ended += 1
                note_kept(self.progress, self.ended, len(self.cohort))
                continue
            self.ledger.note(slide.name, job.entry, **about_slide(slide))
            self.at_work.append(slide.name)
            name_work(self.progress, self.at_work)
            yield job

    def _job(self, slide: CohortSlide) -> Job | None:
        """Return what is to be done for a slide; None when that is nothing, or impossible."""
        assert isinstance(slide.source, Path)
        known = self.ledger.entries.get(slide.name)
        try:
            now = Entry("start", settings_digest(self.work.settings, slide), fingerprint(slide.source))
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
            self._fail(slide, "open", CorruptSlideError(reason, slide=slide.name, remedy="check the file"))
            return None
        same = known is not None and (known.settings, known.fingerprint) == (now.settings, now.fingerprint)
        there = self.work.output(slide).exists()
        if known is None or not (same or there):
            return Job(slide, replace(now, replaces=there), self.overwrite)
        if same and known.event == "quarantined" and not self.retry:
            remedy = "look at the slide, then run again with retry=True"
            self._fail(
                slide, "open", WorkerError("took two worker processes with it before", slide=slide.name, remedy=remedy)
            )
            return None
        if same and there and (known.event == "done" or (known.event == "start" and not known.replaces)):
            if known.event == "start":  # killed between giving the output its name and noting it
                self.ledger.note(slide.name, replace(now, event="done"), **self._recalled(slide))
            elif slide.name in self.ledger.failed:  # its file was another one for a while
                self.ledger.note(slide.name, known)
            self.report.kept += 1
            return None
        if known.event == "done" and not same and not self.overwrite:  # settings were looked at before: it is the file
            reason = "is another file than the one its output was made of"
            remedy = "pass overwrite=True or another folder"
            self._fail(slide, "open", OutputExistsError(reason, slide=slide.name, remedy=remedy))
            return None
        return Job(slide, replace(now, replaces=there), self.overwrite)

    def _take(self, outcome: Outcome) -> None:
        job: Job = outcome.task
        cost: dict[str, Any] = {"seconds": round(outcome.seconds, 3)}
        cost |= {"warnings": list(outcome.warnings)} if outcome.warnings else {}
        cost |= {"attempts": outcome.attempts} if outcome.attempts > 1 else {}
        if outcome.error is None or self._is_there_after_all(outcome):
            made = {"made": outcome.value} if outcome.error is None else self._recalled(job.slide)
            self.ledger.note(job.slide.name, replace(job.entry, event="done"), **cost, **made)
            self.report.done += 1
            self.report.tiles += int((made.get("made") or {}).get("tiles") or 0)
            self.unwritable = 0
        else:
            if outcome.quarantined:
                self.ledger.note(job.slide.name, replace(job.entry, event="quarantined"))
            self._fail(job.slide, outcome.stage, outcome.error, **cost)
            self.unwritable = self.unwritable + 1 if isinstance(outcome.error, OutputError) else 0
            if self.unwritable >= _UNWRITABLE:
                raise outcome.error
        self.ended += 1
        self.progress(self.ended, len(self.cohort))
        self.at_work.remove(job.slide.name)
        name_work(self.progress, self.at_work)

    def _is_there_after_all(self, outcome: Outcome) -> bool:
        """Return whether a worker made the output and died before it could say so: the next one found it there."""
        job: Job = outcome.task
        found = outcome.attempts > 1 and isinstance(outcome.error, OutputExistsError)
        return found and not job.entry.replaces and self.work.output(job.slide).exists()

    def _fail(self, slide: CohortSlide, stage: str, error: SlideioPipeError, **cost: Any) -> None:
        self.ledger.fail(slide.name, stage, error, **cost)
        self.report.failed.append(SlideFailure(slide.name, stage, error))


def _located(slide: CohortSlide) -> CohortSlide:
    """Return a slide whose paths mean the same in every folder."""
    mask = None if slide.mask is None else slide.mask.absolute()
    return replace(slide, source=slide.source.absolute() if isinstance(slide.source, Path) else slide.source, mask=mask)


def _check_outputs(work: CohortWork, cohort: Cohort, folder: Path) -> None:
    """Refuse a cohort whose outputs would lie elsewhere, or two of which would have one name."""
    problems, by_output = [], dict[Path, str]()
    inside = Path(os.path.normpath(folder.absolute()))
    for slide in cohort:
        if not isinstance(slide.source, Path):
            problems.append(f"{slide.name} is an open bag, no file")
            continue
        output = Path(os.path.normpath(work.output(slide).absolute()))
        own = Path(os.path.normpath(slide.source.absolute()))  # a bag may have its features in itself
        elsewhere = output == inside or not (output.is_relative_to(inside) or output.is_relative_to(own))
        strange = slide.name.startswith(".") or any(mark in slide.name for mark in "/\\\0")
        if strange or elsewhere or len(os.fsencode(output.name)) > _LONGEST:
            problems.append(f"{slide.name!r} is no name for a file")
        if output in by_output:
            called = output.relative_to(inside).parts[0] if output.is_relative_to(inside) else output.name
            problems.append(f"{by_output[output]} and {slide.name} would both become {called}")
        by_output.setdefault(output, slide.name)
    if problems:
        shown = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise ConfigError(shown, remedy='name the slides in a column "name"')


def differences(before: Mapping[str, Any], now: Mapping[str, Any], place: str = "") -> list[str]:
    """Return what differs between two settings, as "view.mpp was 0.5, is 1.0"."""
    found: list[str] = []
    for key in sorted({*before, *now}):
        old, new, name = before.get(key), now.get(key), f"{place}{key}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{name}.")
        elif old != new:
            found.append(f"{name} was {old}, is {new}")
    return found
