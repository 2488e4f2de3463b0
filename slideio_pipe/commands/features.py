"""The command ``features``: encode a cohort."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from slideio_pipe.commands import cohort as cohort_commands
from slideio_pipe.commands import options
from slideio_pipe.commands.options import mpp_of, settings_of
from slideio_pipe.commands.terminal import reported, say, shown
from slideio_pipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from slideio_pipe.cohort.cohort import Cohort
    from slideio_pipe.features.encode_cohort import FeatureReport
    from slideio_pipe.features.encoders import Encoder


@reported
def features(
    cohort: options.Encoded,
    encoder: options.Encoders,
    save: options.FeatureFolder = None,
    normalize: options.Normalization = None,
    input_size: options.InputSize = None,
    pooling: options.TokenPooling = None,
    precision: options.Precision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    batch_size: options.BatchSize = 64,
    device: options.EncoderDevice = None,
    dtype: options.FeatureDtype = "float16",
    context_features: options.ContextFeatures = "concat",
    mpp: options.EncoderMpp = None,
    mag: options.Magnification = None,
    context: options.Context = None,
    tile_size: options.EncoderTileSize = None,
    stride: options.Stride = None,
    overlap: options.Overlap = None,
    edge: options.Edge = None,
    align: options.Align = False,
    tissue_method: options.TissueMethod = None,
    min_tissue: options.MinTissue = None,
    measure: options.Quality = False,
    min_focus: options.MinFocus = None,
    max_pen: options.MaxPen = None,
    max_fold: options.MaxFold = None,
    max_bubble: options.MaxBubble = None,
    max_white: options.MaxWhite = None,
    allow_empty: options.AllowEmpty = False,
    slide_mpp: options.CohortMpp = None,
    slide_mpp_override: options.CohortMppOverride = False,
    backend: options.Backend = None,
    config: options.Config = None,
    threads: options.LoaderThreads = None,
    shard: options.Shard = None,
    workers: options.FeatureWorkers = None,
    cluster: options.Cluster = None,
    time_limit: options.TimeLimit = None,
    memory_limit: options.MemoryLimit = None,
    retry: options.Retry = False,
    slide_folder: options.SlidesOfTable = None,
    clinical: options.Clinical = None,
    column: options.ColumnNames = None,
    root: options.Root = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Compute features of tiles with one or several encoders: into bags, or directly from slides.

    Tiles are decoded once for all encoders. Run it again after an interruption to continue; encoders can be
    added later. Slides that fail are listed in failures.csv, the others are encoded, and the exit code is 1. A slide
    that crashes its reader ends the run, unless --workers or --cluster encode each slide in its own process.

    Example: [bold]slideio-pipe features bags/ --encoder uni[/]

    Without pixels on disk: [bold]slideio-pipe features slides/ --encoder mine.pt2 --encoder phikon --out f/[/]
    """
    from slideio_pipe.features.encode_cohort import check_places, encode_cohort
    from slideio_pipe.features.encoders import load_encoders

    if save is not None and (save.suffix == ".zarr" or save.is_file()):
        raise ConfigError("is no folder for features", slide=str(save), remedy="pass a folder to --out")
    tables = cohort_commands.table_options(slide_folder, clinical, column)
    slides = cohort_commands.cohort_of(cohort, root, tables)
    grid = {"tile_size": tile_size, "stride": stride, "overlap": overlap, "edge": edge, "min_tissue": min_tissue}
    given: dict[str, dict[str, Any]] = {
        "slide": {"slide_mpp": slide_mpp, "slide_mpp_override": slide_mpp_override or None, "backend": backend},
        "view": {"mpp": mpp if mag is None else mpp_of(mag, mpp), "context": context or None},
        "tissue": {"method": tissue_method},
        "grid": grid | {"align": align or None},
        "quality": {
            "measure": measure or None,
            "min_focus": min_focus,
            "max_pen": max_pen,
            "max_fold": max_fold,
            "max_bubble": max_bubble,
            "max_white": max_white,
        },
    }
    _refuse_unused(slides, given, config)
    of_bags = check_places(slides, save)  # before networks are loaded
    processes = cohort_commands.worker_options(workers, cluster, default=None)
    otherwise = {"normalize": normalize, "input_size": input_size, "pooling": pooling}
    encoders = load_encoders(encoder, otherwise, precision=precision, trust_remote_code=trust_remote_code)
    if config is None and not of_bags:
        given = _by_default(given, encoders)
    done = encode_cohort(
        slides,
        encoders,
        save,
        settings_of(cohort[0], config, given),
        device=device,
        batch_size=batch_size,
        dtype=dtype,
        context_features=context_features,
        threads=threads,
        allow_empty=allow_empty,
        overwrite=overwrite,
        shard=shard,
        **processes,
        time_limit_s=time_limit,
        memory_limit_gb=memory_limit,
        retry=retry,
        progress=shown(as_json),
    )
    cohort_commands.finish(done, as_json, lambda report: _print_report(report, save))


def _by_default(given: dict[str, dict[str, Any]], encoders: Iterable[Encoder]) -> dict[str, dict[str, Any]]:
    """Return the options, with missing values set from the encoders."""
    from slideio_pipe.features.encoders.encoder_tiles import common_mpp, common_size

    view, grid = dict(given["view"]), dict(given["grid"])
    if view["mpp"] is None:
        view["mpp"] = common_mpp(encoders)
    if grid["tile_size"] is None:
        grid["tile_size"] = common_size(encoders)
    return given | {"view": view, "grid": grid}


def _refuse_unused(slides: Cohort, given: Mapping[str, Mapping[str, Any]], config: Path | None) -> None:
    """Raise if tile options are given for bags, whose tiles are fixed."""
    from slideio_pipe.store.metadata import is_bag_store

    if not all(isinstance(slide.source, Path) and is_bag_store(slide.source) for slide in slides):
        return
    used = [name for options_of in given.values() for name, value in options_of.items() if value is not None]
    used += [] if config is None else ["config"]
    if used:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in used)
        raise ConfigError(f"{names} with bags, which have their tiles", remedy="leave it out, or pass the slides")


def _print_report(report: FeatureReport, folder: Path | None) -> None:
    made = ", ".join(f"{name} ({dim:,})" for name, dim in report.encoders.items())
    rate = f", {report.tiles / report.seconds:,.0f} tiles/s" if report.tiles else ""
    cohort_commands.print_counts(report, "encoded", f"{report.tiles:,} tiles, {report.seconds:.1f} s{rate}")
    say(f"features: {made} in {folder or 'the bags'}, on {report.device}")
    where = "<slide>.bag.zarr" if folder is None else f"{folder}/<slide>.features.zarr"
    say(f'in Python: import slideio_pipe as sp; bag = sp.open_features("{where}")', copied=True)
