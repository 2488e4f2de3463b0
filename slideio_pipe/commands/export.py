"""``slideio-pipe export``: one slide to a bag; a cohort through ``commands/cohort``."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slideio_pipe.commands import cohort as cohort_commands
from slideio_pipe.commands import options
from slideio_pipe.commands.options import mpp_of, settings_of
from slideio_pipe.commands.terminal import print_json, reported, say, shown
from slideio_pipe.files import size_text

if TYPE_CHECKING:
    from slideio_pipe.export.slide import Exported


@reported
def export(
    slides: options.Exported,
    mpp: options.TileMpp = None,
    mag: options.Magnification = None,
    context: options.Context = None,
    tile_size: options.TileSize = None,
    stride: options.Stride = None,
    overlap: options.Overlap = None,
    edge: options.Edge = None,
    align: options.Align = False,
    tissue_method: options.TissueMethod = None,
    mask: options.Mask = None,
    min_tissue: options.MinTissue = None,
    measure: options.Quality = False,
    min_focus: options.MinFocus = None,
    max_pen: options.MaxPen = None,
    max_fold: options.MaxFold = None,
    max_bubble: options.MaxBubble = None,
    max_white: options.MaxWhite = None,
    allow_empty: options.AllowEmpty = False,
    mask_frame: options.MaskFrame = None,
    cells: options.Cells = None,
    cell_class: options.CellClasses = None,
    on_error: options.OnError = None,
    slide_mpp: options.CohortMpp = None,
    slide_mpp_override: options.CohortMppOverride = False,
    backend: options.Backend = None,
    save: options.BagFolder = None,
    pixels: options.Pixels = None,
    label: options.Label = None,
    patient: options.Patient = None,
    unit: options.Unit = None,
    picture: options.Picture = None,
    config: options.Config = None,
    threads: options.Threads = None,
    workers: options.Workers = None,
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
    """Write the tissue tiles of slides into bags (zarr v3), with coordinates and provenance.

    Run it again after an interruption to continue; finished bags are kept. In a cohort, slides that fail are
    listed in failures.csv beside the bags, the others are exported, and the exit code is 1.

    With --unit patient, each patient whose slides all have a bag gets a small file that names these bags.

    Example: [bold]slideio-pipe export a.svs --out bags/ --mpp 0.5 --tile-size 256[/]

    A cohort: [bold]slideio-pipe export cohort.csv --out bags/ --workers 4[/]

    A table of ids, and the folder of their slides: [bold]slideio-pipe export ids.xlsx --slides raw/ --out bags/[/]
    """
    from slideio_pipe.export.slide import export_slide
    from slideio_pipe.slides.frames import checked_frame

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
        "store": {"pixels": pixels},
    }
    settings = settings_of(slides[0], config, given, unit=unit)
    tables = cohort_commands.table_options(slide_folder, clinical, column)
    of_cohort = workers is not None or cluster is not None or settings.unit == "patient" or bool(tables)
    if of_cohort or cohort_commands.is_cohort(slides):
        cohort_commands.export_many(
            slides,
            save,
            settings,
            one_slide={"--label": label, "--patient": patient, "--mask": mask, "--cells": cells, "--picture": picture},
            root=root,
            tables=tables,
            as_json=as_json,
            **cohort_commands.worker_options(workers, cluster),
            threads=threads,
            time_limit_s=time_limit,
            memory_limit_gb=memory_limit,
            overwrite=overwrite,
            retry=retry,
            allow_empty=allow_empty,
            on_error=on_error or "raise",
            mask_frame=None if mask_frame is None else checked_frame(mask_frame),
            cell_classes=cell_class or None,
        )
        return
    done = export_slide(
        slides[0],
        save,
        settings,
        label=_number_or_text(label),
        patient=patient,
        tissue_file=mask,
        mask_frame=None if mask_frame is None else checked_frame(mask_frame),
        picture_file=picture,
        cell_file=cells,
        cell_classes=cell_class or None,
        overwrite=overwrite,
        keep=True,
        allow_empty=allow_empty,
        on_error=on_error or "raise",
        threads=threads,
        progress=shown(as_json),
    )
    if as_json:
        print_json(done.summary())
    else:
        _print_export(done, picture)


def _print_export(done: Exported, picture: Path | None) -> None:
    from slideio_pipe.tiles.bag import resolutions_text

    bag, summary = done.bag, done.summary()
    mpps = bag.mpps or (() if bag.view_mpp is None else (bag.view_mpp,))
    at = f"{resolutions_text(mpps)} per pixel" if mpps else "level 0"
    cost = f"{size_text(summary['bytes'])}, {done.seconds:.1f} s, {summary['tiles_per_second']:,.0f} tiles/s"
    how = "there already, kept" if done.kept else cost
    say(f"{bag.name}: {len(bag):,} tiles of {bag.shape[-3]} px at {at} ({how})")
    if summary.get("dropped"):
        say(f"{summary['dropped']:,} tiles dropped for their quality: {summary['dropped_for']}")
    elif done.covered < 0.95:
        left_out = f"{1 - done.covered:.0%} of the tissue is in no tile"
        aligned = bag.attributes["grid"].get("align")
        more = "a lower --min-tissue keeps" if aligned else "--edge shift or pad, or a lower --min-tissue, keep"
        say(f"{left_out}; {more} more")
    if summary["pixels"].get("source"):
        say("pixels: the JPEG bytes of the slide, unchanged")
    if "psnr_db" in summary["pixels"]:
        say(_loss(**summary["pixels"]))
    if (counts := bag.cell_counts) is not None:
        listed = ", ".join(f"{int(found.sum()):,} {name}" for name, found in counts.items())
        say(f"cells in the tiles: {listed or 'none'}")
    say(f"bag: {bag.path}")
    if picture is not None:
        say(f"picture: {picture}")
    say(f'in Python: import slideio_pipe as sp; bag = sp.open_bag("{bag.path}")', copied=True)


def _loss(quality: int, chroma: str, psnr_db: float | None, psnr_tiles: int, **_: Any) -> str:
    loss = "no loss" if psnr_db is None else f"{psnr_db:.1f} dB PSNR"
    return f"JPEG of quality {quality}, {chroma}: {loss} against the tiles (over {psnr_tiles:,} of them)"


def _number_or_text(label: str | None) -> int | float | str | None:
    """Return a label as a number if it is written as one; "007" and "nan" are texts."""
    if label is None:
        return None
    if re.fullmatch(r"[+-]?(0|[1-9][0-9]*)", label):
        return int(label)
    if re.fullmatch(r"[+-]?(0|[1-9][0-9]*)\.[0-9]+([eE][+-]?[0-9]+)?", label) and math.isfinite(float(label)):
        return float(label)
    return label
