"""``slideio-pipe split``: split a cohort into training, validation and test."""

from __future__ import annotations

from collections import Counter

from slideio_pipe.commands import cohort as cohort_commands
from slideio_pipe.commands import options
from slideio_pipe.commands.terminal import print_json, reported, say
from slideio_pipe.errors import ConfigError


@reported
def split(
    cohort: options.Manifest,
    save: options.ManifestOut = None,
    slide_folder: options.SlidesOfTable = None,
    clinical: options.Clinical = None,
    column: options.ColumnNames = None,
    parts: options.Parts = None,
    folds: options.Folds = None,
    seed: options.Seed = 0,
    plain: options.Plain = False,
    by: options.SplitBy = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Split a cohort into training, validation and test, or into folds, and write it as a manifest.

    Slides of one patient (column patient) stay together; the split is stratified by label, or with --by by another
    column: the classes or the events to predict.

    Example: [bold]slideio-pipe split cohort.csv --folds 5 --out folds.csv[/]
    """
    from slideio_pipe.cohort.excel import EXCEL, sheet_of
    from slideio_pipe.cohort.splits import fold_cohort, split_cohort

    if parts is not None and folds is not None:
        raise ConfigError("--parts and --folds are both given", remedy="give one of them")
    if plain and by is not None:
        raise ConfigError("--plain and --by are both given", remedy="give one of them")
    stratify = not plain if by is None else by
    target = cohort if save is None else save
    if save is None and sheet_of(cohort)[0].suffix.lower() in EXCEL:
        remedy = "pass --out with another name: sheets and formats of an Excel file would be lost"
        raise ConfigError("is not written back", slide=str(target), remedy=remedy)
    if target.exists() and not overwrite:
        remedy = "pass --overwrite to write it back, or --out with another name"
        raise ConfigError("is there already", slide=str(target), remedy=remedy)
    tables = cohort_commands.table_options(slide_folder, clinical, column)
    found = cohort_commands.cohort_of([cohort], None, tables)
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
    """Return the fractions in "train=0.7,test=0.3"."""
    try:
        pairs = [part.split("=") for part in text.split(",")]
        return {name.strip(): float(value) for name, value in pairs}
    except ValueError:
        raise ConfigError(f"--parts {text} is no list of parts", remedy="pass --parts train=0.8,test=0.2") from None
