"""The commands for many slides: ``export`` of a cohort, ``split``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from slideio_pipe.commands.exit_codes import ExitCode
from slideio_pipe.commands.terminal import print_failures, print_json, say, shown
from slideio_pipe.errors import ConfigError, worded

if TYPE_CHECKING:
    from slideio_pipe.cohort.cohort import Cohort
    from slideio_pipe.cohort.patient_files import PatientFiles
    from slideio_pipe.cohort.run import RunReport
    from slideio_pipe.export.config import ExportConfig


_SHOWN = 10  # patients without a file


def is_cohort(sources: Sequence[Path]) -> bool:
    """Return whether sources are more than one slide: several, a manifest, a pattern, a folder of slides."""
    from slideio_pipe.cohort.slide_files import is_collection
    from slideio_pipe.cohort.table import is_table

    return len(sources) > 1 or is_table(sources[0]) or is_collection(sources[0])


def worker_options(workers: int | None, cluster: str | None, *, default: int | None = 1) -> dict[str, Any]:
    """Return --workers and --cluster as arguments of a run."""
    if workers is not None and cluster is not None:
        remedy = "leave out --workers: a cluster does as many slides at a time as its workers have threads"
        raise ConfigError("--workers and --cluster are both given", remedy=remedy)
    return {"workers": default if workers is None else workers, "cluster": cluster}


# For cohorts, the alternatives to options of one slide.
_COLUMN = 'a cohort has it in a CSV, one row per slide, in a column "{}"'.format
_OF_MANY = {
    "--label": _COLUMN("label"),
    "--patient": _COLUMN("patient"),
    "--mask": _COLUMN("mask"),
    "--cells": _COLUMN("cell_file"),
    "--picture": "leave it out: report.html in the folder of the bags has a picture of every slide",
}


def export_many(
    sources: Sequence[Path],
    save: Path | None,
    config: ExportConfig,
    *,
    one_slide: Mapping[str, object],
    root: Path | None,
    tables: Mapping[str, Any],
    as_json: bool,
    **settings: Any,
) -> None:
    """Export a cohort and print the result; exit code 1 if slides failed."""
    from slideio_pipe.export.cohort import export_cohort

    for option, value in one_slide.items():
        if value is not None:
            raise ConfigError(f"{option} is for one slide", remedy=_OF_MANY[option])
    folder = Path.cwd() if save is None else save
    if folder.suffix == ".zarr" or folder.is_file():
        raise ConfigError("is no folder for the bags of a cohort", slide=str(folder), remedy="pass a folder to --out")
    cohort = cohort_of(sources, root, tables)
    report = export_cohort(cohort, folder, config, progress=shown(as_json), **settings)
    finish(report, as_json, _print_report)


def finish(report: Any, as_json: bool, show: Callable[[Any], object]) -> None:
    """Print the result for many slides, as JSON or in words; exit code 1 if some failed, or patients have no file."""
    if as_json:
        print_json(report.summary())
    else:
        show(report)
    patients = getattr(report, "patients", None)  # predictions and features have none
    if report.failed or (patients is not None and patients.without):
        raise typer.Exit(ExitCode.SOME_FAILED)


def table_options(slides: Path | None, clinical: Path | None, columns: Sequence[str] | None) -> dict[str, Any]:
    """Return the given ones of --slides, --clinical and --column as arguments of ``Cohort.of``."""
    given = {"slides": slides, "clinical": clinical, "columns": columns or None}
    return {name: value for name, value in given.items() if value is not None}


def cohort_of(sources: Sequence[Path], root: Path | None, tables: Mapping[str, Any] | None = None) -> Cohort:
    """Return the cohort of a command's sources: one table, folder or pattern, or several slides."""
    from slideio_pipe.cohort.cohort import Cohort

    source = sources[0] if len(sources) == 1 and is_cohort(sources) else sources
    return Cohort.of(source, root=root, **(tables or {}))


def _print_report(report: RunReport) -> None:
    rate = f", {3600 * report.done / report.seconds:,.0f} slides/h" if report.done else ""
    print_counts(report, "exported", f"{report.seconds:.1f} s{rate}")
    say(f"bags: {report.folder}")
    if report.patients is not None:
        _print_patients(report.patients, report.folder)
    if report.page is not None:
        warned = f"{report.warned:,} slide{'' if report.warned == 1 else 's'} with warnings"
        say(f"{warned if report.warned else 'report'}: {report.page}")


def _print_patients(patients: PatientFiles, folder: Path) -> None:
    """Print how many patients have a file, and why the first of the others have none."""
    count = patients.written + patients.kept
    of_all = count + len(patients.without)
    say(f"patients: {count:,} of {of_all:,}, {folder}/<patient>.patient.json")
    for name, reason in list(patients.without.items())[:_SHOWN]:
        say(f"  {name}: {reason}")
    if len(patients.without) > _SHOWN:
        say(f"  and {len(patients.without) - _SHOWN:,} more: {folder}/run.json")


def print_counts(report: RunReport, what: str, cost: str) -> None:
    """Print the numbers of done, kept and failed slides, and the first failures."""
    from slideio_pipe.cohort.cohort_slide import cohort_words

    parts = [f"{report.done:,} {what}"]
    parts += [f"{report.kept:,} there before"] if report.kept else []
    parts += [f"{len(report.failed):,} failed"] if report.failed else []
    count = f"{report.slides:,} slide{'' if report.slides == 1 else 's'}"
    say(f"{count}: {', '.join(parts)} ({cost})")
    with worded(cohort_words):
        print_failures([(failure.slide, failure.error) for failure in report.failed], report.failures)
