"""The command ``convert``: bags to the layouts of other tools, and coordinates of other tools to bags."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slideio_pipe.commands import cohort as cohort_commands
from slideio_pipe.commands import options
from slideio_pipe.commands.completion import LAYOUTS, one_of
from slideio_pipe.commands.exit_codes import ExitCode
from slideio_pipe.commands.terminal import print_failures, print_json, reported, say, shown
from slideio_pipe.errors import ConfigError, SkippedWarning

if TYPE_CHECKING:
    from slideio_pipe.cohort.run import RunReport
    from slideio_pipe.export.import_bags import ImportWork
    from slideio_pipe.export.layouts import Converted

_SHOWN = 5
_HDF5 = (".h5", ".hdf5")

Sources = Annotated[
    list[Path],
    typer.Argument(
        help="Bags (.bag.zarr), a folder or pattern of them, or a CSV or Parquet file with bags in the column slide; "
        "with --from, files of coordinates or pixels (.h5).",
        metavar="BAG|STUDY|H5",
    ),
]
To = Annotated[
    str | None,
    options.option("--to", f"{', '.join(LAYOUTS)}.", unit="LAYOUT", autocompletion=one_of(*LAYOUTS)),
]
From = Annotated[
    str | None,
    options.option("--from", "Make bags from coordinates of these tools, or from CLAM's pixels.", unit="clam|trident"),
]
Folder = Annotated[Path, options.of_output("--out -o", "Output folder.", unit="FOLDER")]
Features = Annotated[
    Path | None,
    options.option("--features", "<slide>.npy, .pt or .h5 with one row per tile of the bag.", unit="FOLDER"),
]
InstanceLabels = Annotated[
    Path | None,
    options.option("--instance-labels", "For torchmil: <slide>.npy with one number per tile.", unit="FOLDER"),
]
Normalization = Annotated[
    str | None,
    options.option(
        "--normalize",
        "For memmap: write normalised float16 pixels; mean and deviation are in normalize.json.",
        unit="imagenet|half|identity",
    ),
]
Encoder = Annotated[
    str,
    options.option(
        "--encoder", "Name of the features' encoder; without --features, read features stored in the bags.", unit="NAME"
    ),
]
Slides = Annotated[
    Path | None, options.option("--slides --slide", "With --from: the slide, or the folder of slides.", unit="PATH")
]
Level0Size = Annotated[
    int | None,
    options.option("--tile-size-level0", "With --from, if the file does not state it: side at level 0.", unit="px"),
]
Size = Annotated[
    int | None, options.option("--tile-size", "With --from: side of a tile, if not that of the file.", unit="px")
]
Outside = Annotated[
    str | None,
    options.option(
        "--outside",
        "With --from: colour of tiles beyond the slide's edge; CLAM and TRIDENT use black.",
        unit="white|black",
    ),
]


@reported
def convert(
    sources: Sources,
    to: To = None,
    source: From = None,
    folder: Folder = Path(),
    features: Features = None,
    instance_labels: InstanceLabels = None,
    encoder: Encoder = "features",
    normalize: Normalization = None,
    slides: Slides = None,
    tile_size: Size = None,
    tile_size_level0: Level0Size = None,
    outside: Outside = None,
    slide_mpp: options.CohortMpp = None,
    slide_mpp_override: options.CohortMppOverride = False,
    pixels: options.Pixels = None,
    threads: options.Threads = None,
    workers: options.Workers = None,
    root: options.Root = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write bags in the layout of another MIL tool, or make bags from coordinates of CLAM or TRIDENT.

    Run it again to continue with several bags; those that fail are listed, and the exit code is 1.

    Example: [bold]slideio-pipe convert bags/ --to trident --out job/[/]

    Example: [bold]slideio-pipe convert patches/*.h5 --from clam --slides slides/ --out bags/[/]
    """
    if (to is None) == (source is None):
        raise ConfigError("one of --to and --from is needed", remedy="pass --to clam, or --from clam with --slides")
    progress = shown(as_json)
    sizes = {"--tile-size": tile_size, "--tile-size-level0": tile_size_level0}
    if source is not None and (features or instance_labels or normalize):
        reason = "--features, --instance-labels or --normalize with --from"
        raise ConfigError(reason, remedy="leave them out: they are for --to")
    only = {"--slides": slides, **sizes, "--outside": outside, "--slide-mpp": slide_mpp, "--pixels": pixels}
    only |= {"--slide-mpp-override": slide_mpp_override or None}
    unused = [name for name, value in only.items() if value is not None]
    if to is not None and unused:
        raise ConfigError(f"{' and '.join(unused)} with --to", remedy="leave it out: it is for --from")
    if to is not None:
        from slideio_pipe.export.convert import convert as write

        normalized = None
        if normalize is not None:
            from slideio_pipe.features.encoders.loading import named_normalize

            normalized = named_normalize(normalize)
        more: dict[str, Any] = {"overwrite": overwrite, "workers": workers, "threads": threads, "progress": progress}
        more |= {"instance_labels": instance_labels, "root": root, "normalize": normalized}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SkippedWarning)  # skipped bags are printed below
            done = write(sources, to, folder, features=features, encoder=encoder, **more)
        _print_converted(done, as_json)
        if done.failed:
            raise typer.Exit(ExitCode.SOME_FAILED)
        return
    assert source is not None
    from slideio_pipe.export.import_bags import ImportWork

    sizes_of = {"tile_size": tile_size, "tile_size_level0": tile_size_level0}
    mpps = (slide_mpp, slide_mpp_override)
    outside_colour = outside or "white"
    work = ImportWork(folder.absolute(), source, slides, sizes_of, *mpps, pixels or "zstd", threads, outside_colour)
    if len(sources) == 1 and sources[0].is_file() and sources[0].suffix in _HDF5 and workers is None:
        with work.make(sources[0], folder, overwrite=overwrite, progress=progress) as bag:
            found = [{"slide": bag.name, "bag": str(bag.path), "tiles": len(bag)}]
            text = f"{bag.name}: {len(bag):,} tiles of {bag.shape[1]} px; bag: {bag.path}"
        if as_json:
            print_json(found)
        else:
            say(text)
        return
    _import_many(work, sources, root, as_json, workers=workers or 1, overwrite=overwrite, progress=progress)


def _import_many(work: ImportWork, sources: list[Path], root: Path | None, as_json: bool, **settings: Any) -> None:
    """Make a bag of each file of coordinates, and print the result; exit code 1 if files failed."""
    from slideio_pipe.cohort.cohort import Cohort
    from slideio_pipe.export.import_bags import import_cohort

    found = sorted(sources[0].glob("*.h5")) if len(sources) == 1 and sources[0].is_dir() else sources
    if not found:
        raise ConfigError("no files of coordinates (.h5) are there", slide=str(sources[0]), remedy="check the path")
    one_table = len(found) == 1 and found[0].suffix not in _HDF5
    cohort = Cohort.of(found[0] if one_table else found, root=root)
    cohort_commands.finish(import_cohort(work, cohort, **settings), as_json, _print_imported)


def _print_imported(report: RunReport) -> None:
    cohort_commands.print_counts(report, "made", f"{report.seconds:.1f} s")
    say(f"bags: {report.folder}")


def _print_converted(done: Converted, as_json: bool) -> None:
    if as_json:
        facts = {"layout": done.layout, "bags": done.bags, "kept": done.kept, "tiles": done.tiles}
        failed = {each.slide: str(each.error) for each in done.failed}
        facts |= {"left_out": list(done.left_out), "failed": failed}
        print_json(facts | {"paths": [str(path) for path in done.paths]})
        return
    before = f" ({done.kept:,} there before)" if done.kept else ""
    say(f"{done.layout}: {done.tiles:,} tiles of {done.bags:,} bag{'' if done.bags == 1 else 's'}{before}")
    for path in done.paths[:_SHOWN]:
        say(f"  {path}")
    if len(done.paths) > _SHOWN:
        say(f"  and {len(done.paths) - _SHOWN:,} more")
    if done.left_out:
        say(f"{done.layout} has no file for bags without a tile: {', '.join(done.left_out)}")
    print_failures([(failure.slide, failure.error) for failure in done.failed], done.failures)
