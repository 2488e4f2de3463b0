"""The commands that measure speed: ``bench`` against other readers, ``profile`` for one's own slides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from slideio_pipe.commands import cohort as cohort_commands
from slideio_pipe.commands import options
from slideio_pipe.commands.terminal import out, print_json, reported, say, shown

if TYPE_CHECKING:
    from pathlib import Path

    from slideio_pipe.streaming.profile import Profile
    from slideio_pipe.streaming.thread_scan import ThreadScan


@reported
def bench(
    slide: options.BenchSlide = None,
    cases: options.Cases = None,
    peers: options.Peers = None,
    rounds: options.Rounds = 5,
    tiles: options.MostTiles = 600,
    python: options.OtherPython = None,
    as_json: options.Json = False,
) -> None:
    """Compare the speed of readers: the same tiles, in turns, each reader in its own process.

    Readers that are not installed are listed, with the install command.

    Example: [bold]slideio-pipe bench a.svs --case aligned --peer openslide[/]
    """
    from slideio_pipe.commands.bench.run import compare_readers

    chosen: dict[str, Any] = {"cases": cases or (), "peers": peers or (), "rounds": rounds, "tiles": tiles}
    found = compare_readers(slide, **chosen, python=python, progress=shown(as_json))
    if as_json:
        print_json(found.as_json())
    else:
        from slideio_pipe.commands.bench.tables import print_comparison

        print_comparison(found, out)


@reported
def profile(
    cohort: options.ProfiledCohort,
    config: options.LoaderFile = None,
    mpp: options.TileMpp = None,
    context: options.Context = None,
    tile_size: options.TileSize = None,
    slide_mpp: options.SlideMpp = None,
    threads: options.LoaderThreads = None,
    workers: options.ReadingWorkers = 0,
    chunk_size: options.ChunkSize = 64,
    mix: options.Mix = 0,
    device: options.ProfileDevice = "cpu",
    step_ms: options.StepMs = 0.0,
    max_failures: options.MaxFailures = 0,
    slide_folder: options.SlidesOfTable = None,
    clinical: options.Clinical = None,
    column: options.ColumnNames = None,
    tiles: options.ProfiledTiles = None,
    scan: options.Scan = False,
    trace: options.Trace = None,
    as_json: options.Json = False,
) -> None:
    """Show the time per stage from slide to device: share and rate of each, the bottleneck, and advice.

    Tiles go through the loader as in training. --step-ms simulates a model's step. --scan finds the best number of
    threads, or of worker processes.

    Example: [bold]slideio-pipe profile a.svs --tiles 2000 --step-ms 15 --trace trace.json[/]
    """
    from slideio_pipe.config import checked
    from slideio_pipe.errors import SlideNotFoundError
    from slideio_pipe.files import not_there
    from slideio_pipe.streaming.config import LoaderConfig, load_loader_config
    from slideio_pipe.streaming.dataset import BagDataset
    from slideio_pipe.streaming.profile import profile as measure

    values = load_loader_config(config).model_dump()
    values["view"] |= ({} if mpp is None else {"mpp": mpp}) | ({"context": context} if context else {})
    values["slide"] |= {} if slide_mpp is None else {"slide_mpp": slide_mpp}
    values["grid"] |= {} if tile_size is None else {"tile_size": tile_size}
    missing = next((path for path in cohort if not (path.exists() or cohort_commands.is_cohort([path]))), None)
    if missing is not None:
        raise not_there(SlideNotFoundError, "no such file", missing)
    tables = cohort_commands.table_options(slide_folder, clinical, column)
    sources = cohort_commands.cohort_of(cohort, None, tables)
    dataset = BagDataset(sources, checked(LoaderConfig, None, **values))
    loader: dict[str, Any] = {"threads": threads, "workers": workers}
    loader |= {"chunk_size": chunk_size, "mix": mix, "max_failures": max_failures}
    progress = shown(as_json)
    if scan:
        _refuse_with_scan(threads, workers, trace)
        from slideio_pipe.streaming.thread_scan import scan_threads

        del loader["threads"], loader["workers"]
        shared: dict[str, Any] = {"device": device, "max_tiles": tiles, "step_ms": step_ms, "progress": progress}
        threadwise = scan_threads(dataset, **shared, **loader)
        _print_scan(threadwise, as_json=as_json)
        return
    found = measure(dataset, device=device, max_tiles=tiles, step_ms=step_ms, trace=trace, progress=progress, **loader)
    if as_json:
        print_json(found.to_json() | {"trace": None if trace is None else str(trace)})
        return
    _print_profile(found)
    if trace is not None:
        say(f"trace: {trace} (open it at https://ui.perfetto.dev)")


def _refuse_with_scan(threads: int | None, workers: int, trace: Path | None) -> None:
    from slideio_pipe.errors import ConfigError

    given = {"--threads": threads is not None, "--workers": workers, "--trace": trace is not None}
    option = next((name for name, is_given in given.items() if is_given), None)
    if option is not None:
        raise ConfigError(f"--scan together with {option}", remedy="leave one of them out")


def _print_scan(found: ThreadScan, *, as_json: bool) -> None:
    if as_json:
        print_json(found.to_json())
        return
    table = Table(box=None, header_style="dim", pad_edge=False)
    for heading in ("threads", "workers", "tiles/s", "over the first", "first chunk", "consumer waited"):
        table.add_column(heading, justify="right")
    for run in found.runs:
        share = run.wait_s / run.seconds if run.seconds else 0.0
        table.add_row(
            "" if run.workers else str(run.threads), str(run.workers or ""), f"{run.steady_rate:,.0f}",
            f"{run.steady_rate / found.runs[0].steady_rate:.2f}×", f"{run.first_chunk_s:.2f} s", f"{share:.0%}",
            style="bold" if run is found.best else None,
        )  # fmt: skip
    out.print(table)
    say(found.verdict(), style="bold")


def _print_profile(found: Profile) -> None:
    from slideio_pipe.streaming.profile import STAGES

    table = Table(box=None, header_style="dim", pad_edge=False)
    for heading in ("stage", "share", "", "ms per tile", "tiles/s"):
        table.add_column(heading, justify="right" if heading in ("share", "ms per tile", "tiles/s") else "left")
    table.add_column("what it is", style="dim", no_wrap=True, overflow="ellipsis")
    for stage, _, share, ms, rate in found.rows():
        table.add_row(
            stage, f"{share:.1%}", f"[cyan]{'█' * round(16 * share):<16}[/]", f"{ms:.3f}", f"{rate:,.0f}", STAGES[stage]
        )
    out.print(table)
    bags = f"{found.bags:,} whole bag{'' if found.bags == 1 else 's'}"
    readers = "worker" if found.workers else "thread"
    say(
        f"{found.tiles:,} tiles, {bags}, in {found.seconds:.1f} s: {found.rate:,.0f} tiles/s on {found.threads} "
        f"{readers}{'' if found.threads == 1 else 's'}; first chunk after {found.first_chunk_s:.2f} s"
    )
    say(f"the consumer worked {found.consumer_s:.2f} s and waited {found.wait_s:.2f} s; memory {found.memory}")
    say(found.verdict(), style="bold")
