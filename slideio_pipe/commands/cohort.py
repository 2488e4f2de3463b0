"""The commands for many slides: ``export`` of a cohort, ``split``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from slideio_pipe.commands import options
from slideio_pipe.commands.terminal import called_as, escape, in_options, out, print_json, reported, say
from slideio_pipe.errors import ConfigError

# Each command imports what it needs: torch alone takes seconds, and --help should not wait for it.
if TYPE_CHECKING:
    from slideio_pipe.cohort.cohort import Cohort
    from slideio_pipe.cohort.run import RunReport
    from slideio_pipe.config import ExportConfig

_MANIFESTS = (".csv", ".tsv", ".parquet")
_SHOWN = 5


def is_cohort(sources: Sequence[Path]) -> bool:
    """Return whether what was given is more than one slide: several, a manifest, a pattern, a folder of slides."""
    first = sources[0]
    if len(sources) > 1 or first.suffix.lower() in _MANIFESTS:
        return True
    from slideio_pipe.cohort.slide_files import is_collection

    return is_collection(first)


def who_works(workers: int | None, cluster: str | None) -> dict[str, Any]:
    """Return --workers and --cluster as a run takes them."""
    if workers is not None and cluster is not None:
        remedy = "leave out --workers: a cluster does as many slides at a time as its workers have threads"
        raise ConfigError("--workers and --cluster are both given", remedy=remedy)
    return {"workers": workers or 1, "cluster": cluster}


# What a cohort has in place of the options of one slide.
_COLUMN = 'a cohort has it in a CSV, one row per slide, in a column "{}"'.format
_OF_MANY = {
    "--label": _COLUMN("label"),
    "--patient": _COLUMN("patient"),
    "--mask": _COLUMN("mask"),
    "--picture": "leave it out: report.html in the folder of the bags has a picture of every slide",
}


def export_many(
    sources: Sequence[Path],
    save: Path | None,
    config: ExportConfig,
    *,
    one_slide: Mapping[str, object],
    root: Path | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Export a cohort and print what came of it; exit code 1 when slides failed."""
    from slideio_pipe.export.cohort import export_cohort

    for option, value in one_slide.items():
        if value is not None:
            raise ConfigError(f"{option} is for one slide", remedy=_OF_MANY[option])
    folder = Path.cwd() if save is None else save
    if folder.suffix == ".zarr" or folder.is_file():
        raise ConfigError("is no folder for the bags of a cohort", slide=str(folder), remedy="pass a folder to --out")
    cohort = cohort_of(sources, root)
    report = export_cohort(cohort, folder, config, progress=False if as_json else None, **settings)
    if as_json:
        print_json(report.summary())
    else:
        _print_report(report)
    if report.failed:
        raise typer.Exit(1)


def cohort_of(sources: Sequence[Path], root: Path | None) -> Cohort:
    """Return the cohort that a command was given: one manifest, folder or pattern, or several slides."""
    from slideio_pipe.cohort.cohort import Cohort

    if len(sources) == 1 and is_cohort(sources):
        return Cohort.of(sources[0], root=root)
    return Cohort.of(sources, root=root)


def _print_report(report: RunReport) -> None:
    rate = f", {3600 * report.done / report.seconds:,.0f} slides/h" if report.done else ""
    print_counts(report, "exported", f"{report.seconds:.1f} s{rate}")
    say(f"bags: {report.folder}")
    if report.page is not None:
        warned = f"{report.warned:,} slide{'' if report.warned == 1 else 's'} with warnings"
        say(f"{warned if report.warned else 'report'}: {report.page}")


def print_counts(report: RunReport, what: str, cost: str) -> None:
    """Print how many slides were done, were there and failed, and why the first of those did."""
    parts = [f"{report.done:,} {what}"]
    parts += [f"{report.kept:,} there before"] if report.kept else []
    parts += [f"{len(report.failed):,} failed"] if report.failed else []
    count = f"{report.slides:,} slide{'' if report.slides == 1 else 's'}"
    say(f"{count}: {', '.join(parts)} ({cost})")
    for failure in report.failed[:_SHOWN]:
        reason = in_options(failure.error).removeprefix(f"{failure.slide}: ")
        out.print(f"[red]✗[/] {escape(failure.slide)}: {escape(reason)}", soft_wrap=True)
    if report.failures is not None:
        more = len(report.failed) - _SHOWN
        say(f"{f'and {more:,} more; ' if more > 0 else ''}failures: {report.failures}")


def demo_cohort(folder: Path, *, as_json: bool) -> None:
    """Run the demo of a cohort and say what to look at."""
    from slideio_pipe.commands.demos.cohort import run_cohort_demo

    if as_json:
        print_json(run_cohort_demo(folder, say=lambda line: None, progress=False))
        return
    done = run_cohort_demo(folder, say=say)
    called = called_as()
    say("next:", style="bold")
    say(f"  open {done['report']} in a browser")
    say(f"  {called} split {folder}/cohort.csv --folds 3 --out {folder}/folds.csv")
    say(f"  {called} export YOUR_COHORT.csv --out bags/ --workers 4")


def demo_mil(folder: Path, laboratory: str, *, as_json: bool) -> None:
    """Make the study to train on and say what can be done with it."""
    from slideio_pipe.cohort.cohort import Cohort
    from slideio_pipe.commands.demos.study import write_mil_cohort
    from slideio_pipe.progress import reporting

    with reporting(False if as_json else None, "slides") as report:
        # Others' slides are to test on: tissue that a training saw, in whatever stain, would flatter it.
        split = None if laboratory == "usual" else "test"
        manifest = write_mil_cohort(folder, laboratory=laboratory, split=split, progress=report)
    slides = Cohort.of(manifest)
    if as_json:
        print_json({"cohort": str(manifest), "slides": len(slides), "lesions": str(folder / "lesions")})
        return
    called = called_as()
    say(f"{len(slides)} slides: {manifest}")
    say(f"lesions, to compare with: {folder}/lesions/*.geojson")
    say("next:", style="bold")
    if split is not None:
        say(f"  {called} predict run/ {manifest} --out seen-{laboratory}/   # run/: trained on the usual ones")
        return
    say(f"  {called} train configs/mil-end-to-end.yaml --cohort {manifest} --out run/   # seven minutes on two cores")
    say(f"  {called} predict run/ {folder}/slides/s13.svs --out seen/")
    say(f"  {called} demo --mil --laboratory faded --out {folder}-faded/   # those that test, in another stain")


@reported
def split(
    cohort: options.Manifest,
    save: options.ManifestOut = None,
    parts: options.Parts = None,
    folds: options.Folds = None,
    seed: options.Seed = 0,
    plain: options.Plain = False,
    by: options.SplitBy = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Part a cohort into training, validation and test, or into folds, and write it as a manifest.

    Slides of one patient (column patient) stay together; every label is parted alike,
    or with --by every value of another column: the classes or the events that will be predicted.

    Example: [bold]slideio-pipe split cohort.csv --folds 5 --out folds.csv[/]
    """
    from slideio_pipe.cohort.cohort import Cohort
    from slideio_pipe.cohort.splits import fold_cohort, split_cohort

    if parts is not None and folds is not None:
        raise ConfigError("--parts and --folds are both given", remedy="give one of them")
    if plain and by is not None:
        raise ConfigError("--plain and --by are both given", remedy="give one of them")
    stratify = not plain if by is None else by
    target = cohort if save is None else save
    if target.exists() and not overwrite:
        remedy = "pass --overwrite to write it back, or --out with another name"
        raise ConfigError("is there already", slide=str(target), remedy=remedy)
    found = Cohort.of(cohort)
    if folds is not None:
        done = fold_cohort(found, folds, seed=seed, stratify=stratify)
    else:
        done = split_cohort(found, None if parts is None else _fractions(parts), seed=seed, stratify=stratify)
    done.write(target)
    counts = Counter(str(slide.split if folds is None else slide.fold) for slide in done)
    if as_json:
        print_json({"manifest": str(target), "slides": dict(sorted(counts.items()))})
        return
    what = "fold " if folds is not None else ""
    say(f"{len(done):,} slides: " + ", ".join(f"{what}{name} {count:,}" for name, count in sorted(counts.items())))
    say(f"manifest: {target}")


def _fractions(text: str) -> dict[str, float]:
    """Return what "train=0.7,test=0.3" says."""
    try:
        pairs = [part.split("=") for part in text.split(",")]
        return {name.strip(): float(value) for name, value in pairs}
    except ValueError:
        raise ConfigError(f"--parts {text} is no list of parts", remedy="pass --parts train=0.8,test=0.2") from None
